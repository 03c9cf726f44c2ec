package mount_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A watcher whose own program lies on the mount that hangs still sees it.
func TestRunFromMemory(t *testing.T) {
	m := mountFUSE(t)
	program, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	file := filepath.Join(m.point, "st2ha-watch")
	require.NoError(t, os.WriteFile(file, program, 0o755))
	cmd := exec.Command(file, "watch", m.point)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}()
	said := bufio.NewScanner(stdout)
	next := func() string {
		require.True(t, said.Scan(), "%v", said.Err())
		return said.Text()
	}
	require.Equal(t, "/memfd:st2ha-watch (deleted)", next())
	require.Equal(t, "", next())
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", cmd.Process.Pid))
	require.NoError(t, err)
	require.Equal(t, "st2ha-watch\n", string(comm))
	m.freezeClient(t)
	require.Equal(t, "mount hung for 200 ms", next())
	m.thaw(t)
	require.Equal(t, "", next())

	local := exec.Command("/proc/self/exe", "watch", "/nowhere")
	stdout, err = local.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, local.Start())
	said = bufio.NewScanner(stdout)
	require.NotContains(t, next(), "memfd", "a local program stays what it is")
	require.Equal(t, "not mounted", next())
	_ = local.Process.Kill()
	_ = local.Wait() // it was killed
}
