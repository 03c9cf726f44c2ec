package main

import (
	"bytes"
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
	require.Equal(t, fault.ExitUnsaid, report(full, &stderr, step.Result{Changed: true}, nil))
	require.Contains(t, stderr.String(), "what was changed is in place")
	require.Equal(t, 1, bytes.Count(stderr.Bytes(), []byte("\n")))
	stderr.Reset()
	require.Equal(t, fault.ExitPreflight, report(full, &stderr, nil, fault.Preflight("x", "", "the reason")))
	require.Contains(t, stderr.String(), "the reason")
}
