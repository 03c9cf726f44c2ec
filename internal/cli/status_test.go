package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"st2ha/internal/fault"
	"st2ha/internal/status"
	"st2ha/internal/testenv"
)

// statusOf runs cluster_status, and returns what it printed.
func statusOf(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, log bytes.Buffer
	code = Run(t.Context(), append([]string{"cluster_status"}, args...), func(string) string { return "" }, &out, &log)
	return code, out.String(), log.String()
}

func TestStatusRefuses(t *testing.T) {
	for want, args := range map[string][]string{
		"primary is missing":                                                    nil,
		`format must be json, table or html, not "xml"`:                         {"--primary=127.0.0.1", "--format=xml"},
		"node_timeout must be 1 to 300 seconds, not 0":                          {"--primary=127.0.0.1", "--node_timeout=0"},
		"192.0.2.1 is given twice: each node joins once, and not to itself":     {"--primary=192.0.2.1", "--secondaries=192.0.2.1"},
		`primary "192.0.2.300" is neither an IP address nor a host name`:        {"--primary=192.0.2.300"},
		`cluster_status: unexpected word "x": write parameters as --name=value`: {"--primary=192.0.2.1", "x"},
	} {
		code, stdout, stderr := statusOf(t, args...)
		require.Equal(t, fault.ExitUsage, code, want)
		require.Contains(t, stderr, want)
		require.NotContains(t, stdout, `"status"`)
	}
}

// Where no node can be asked it says so, in each form, with the page.
func TestStatusOfNobody(t *testing.T) {
	args := []string{"--primary=198.51.100.1", "--secondaries=198.51.100.2", "--ssh_key=/nowhere"} // RFC 5737
	code, stdout, stderr := statusOf(t, args...)
	require.Equal(t, fault.ExitPreflight, code)
	require.Contains(t, stderr, "none of the nodes answers: read SSH key /nowhere")
	var p page
	require.NoError(t, json.Unmarshal([]byte(stdout), &p))
	require.Equal(t, "no_node", p.Error.Code)
	require.Equal(t, status.Trouble, p.Status.State)
	require.Len(t, p.Findings, 2)
	require.Equal(t, "cluster_status", p.Step)

	code, stdout, _ = statusOf(t, append(args, "--format=table")...)
	require.Equal(t, fault.ExitPreflight, code)
	require.Contains(t, stdout, "Cluster: trouble")
	code, stdout, _ = statusOf(t, append(args, "--format=html")...)
	require.Equal(t, fault.ExitPreflight, code)
	require.Contains(t, stdout, "<!DOCTYPE html>")
}

// This machine as a cluster of one: whatever it has, there is a page, and nothing is changed.
func TestStatusOfThisMachine(t *testing.T) {
	testenv.NeedsRoot(t)
	code, stdout, stderr := statusOf(t, "--primary=127.0.0.1")
	require.Zero(t, code, stderr)
	var p page
	require.NoError(t, json.Unmarshal([]byte(stdout), &p))
	require.True(t, p.Status.Nodes[0].Reached)
	require.NotNil(t, p.Status.Nodes[0].Clock)
	require.Equal(t, "node", p.Status.Single[0].What)
}

// Colours are for terminals: not for a file, nor for a pipe.
func TestTerminal(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "x"))
	require.NoError(t, err)
	defer file.Close()
	require.False(t, terminal(file))
	require.False(t, terminal(&bytes.Buffer{}))
	pty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no terminal can be made here: %v", err)
	}
	defer pty.Close()
	require.True(t, terminal(pty))
}
