package step_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"st2ha/internal/fault"
	"st2ha/internal/testenv"
)

// small mounts a file system with room for some files only, over a directory
// of the machine whose files it takes with it.
func (m *machine) small(t *testing.T, dir string, inodes int) {
	t.Helper()
	testenv.NeedsRoot(t)
	before := m.root + dir + ".before"
	require.NoError(t, os.Rename(m.root+dir, before))
	require.NoError(t, os.Mkdir(m.root+dir, 0o755))
	require.NoError(t, unix.Mount("st2ha-test", m.root+dir, "tmpfs", 0, fmt.Sprintf("mode=755,nr_inodes=%d", inodes)))
	t.Cleanup(func() { unix.Unmount(m.root+dir, unix.MNT_DETACH) })
	require.NoError(t, os.CopyFS(m.root+dir, os.DirFS(before)))
	require.NoError(t, os.RemoveAll(before))
}

// A disk that is full, sooner or later: nothing is lost, the error says so, and
// with room again it can be gone on with and taken back.
func TestDiskFull(t *testing.T) {
	for _, dir := range []string{"/var/lib", "/etc"} { // the journal's, and that of the files
		t.Run(strings.TrimPrefix(dir, "/"), func(t *testing.T) {
			undone, left := 0, 0
			for inodes := 4; ; inodes++ {
				m := newMachine(t)
				m.put(t, "/etc/x", "old\n", 0o604)
				m.running = "old\n"
				m.small(t, dir, inodes)
				s := &scenario{m, m.tree(t)}
				err := s.run(t, "one")
				if err == nil {
					t.Logf("full at %d sizes; undone at once at %d, after room was made at %d", undone+left,
						undone, left)
					require.Positive(t, undone)
					return
				}
				require.ErrorContains(t, err, "no space left on device", "%d inodes", inodes)
				switch f := fault.Of(err); f.Exit {
				case fault.ExitFailed:
					undone++
					require.Equal(t, "disk_full", f.Code)
					require.Contains(t, f.Hint, "df -i")
				case fault.ExitUndoFailed:
					left++
					require.Contains(t, f.Hint, "st2ha.rollback")
				default:
					require.Fail(t, "exit code", "%d: %v", f.Exit, err)
				}
				for _, name := range []string{"/etc/x", "/etc/y", "/etc/nfs.conf", "/etc/exports"} {
					require.Contains(t, []string{"old\n", "old\nnew\n", "new\n", "of the package\n",
						"of the package\nnew\n", "(absent)"}, m.get(t, name))
				}
				require.NoError(t, unix.Mount("st2ha-test", m.root+dir, "tmpfs", unix.MS_REMOUNT, "nr_inodes=1000"))
				require.NoError(t, s.run(t, "two"), "%d inodes, with room again", inodes)
				s.requireJoined(t)
				require.NoError(t, s.rollback(t))
				s.requireFirst(t)
				require.Empty(t, m.owed(t))
			}
		})
	}
}
