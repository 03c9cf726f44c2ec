package cli

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"st2ha/internal/fault"
	"st2ha/internal/step"
)

// What was done and could not be told is neither done nor undone.
func TestUnsaid(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	require.NoError(t, err)
	defer full.Close()
	var stderr bytes.Buffer
	require.Equal(t, fault.ExitUnsaid, report(full, &stderr, step.NewMasker(), step.Result{Changed: true}, nil))
	require.Contains(t, stderr.String(), "what was changed is in place")
	require.Equal(t, 1, bytes.Count(stderr.Bytes(), []byte("\n")))
	stderr.Reset()
	failed := fault.Preflight("x", "", "the reason")
	require.Equal(t, fault.ExitPreflight, report(full, &stderr, step.NewMasker(), nil, failed))
	require.Contains(t, stderr.String(), "the reason")
}

// An error from before a step began is masked as one of a step is: nobody knows what a library puts into its own.
func TestReportIsMasked(t *testing.T) {
	const secret = "what nobody may see"
	for name, tc := range map[string]struct {
		result any
		err    error
	}{
		"no step":   {nil, fault.Preflight("x", "not "+secret, "with %s", secret)},
		"of a step": {step.Result{Step: "drift"}, errors.New("a library says " + secret)},
		"any other": {struct{ Step string }{"x"}, fmt.Errorf("amqp://u:%s@host refused", url.PathEscape(secret))},
	} {
		var stdout, stderr bytes.Buffer
		report(&stdout, &stderr, step.NewMasker(secret), tc.result, tc.err)
		require.NotContains(t, stdout.String()+stderr.String(), secret, name)
		require.NotContains(t, stdout.String()+stderr.String(), url.PathEscape(secret), name)
		require.Contains(t, stderr.String(), "********", name)
	}
}

// What comes before the parameters are read, too: they may have been given the secret.
func TestUsageIsMasked(t *testing.T) {
	getenv := func(name string) string { return map[string]string{"ST2HA_RABBITMQ_PASSWORD": "hunter2"}[name] }
	for _, args := range [][]string{{"hunter2"}, {"preflight", "--primary=192.168.0.1", "hunter2"},
		{"preflight", "--nope=hunter2"}, {"preflight", "--wait=hunter2"}} {
		var stdout, stderr bytes.Buffer
		require.Equal(t, fault.ExitUsage, Run(t.Context(), args, getenv, &stdout, &stderr), args)
		require.NotContains(t, stdout.String()+stderr.String(), "hunter2", args)
	}
}
