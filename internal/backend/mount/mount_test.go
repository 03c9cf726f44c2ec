package mount_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"st2ha/internal/backend/mount"
	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
	"st2ha/internal/testenv"
)

// fuseMount is sshfs over a pipe to a real sftp-server: a file system whose
// server can be frozen, as an NFS mount's.
type fuseMount struct {
	point         string
	client, files *exec.Cmd
}

func mountFUSE(tb testing.TB) *fuseMount {
	tb.Helper()
	testenv.NeedsRoot(tb)
	testenv.NeedsPrograms(tb, "sshfs", "/usr/lib/openssh/sftp-server")
	m := &fuseMount{point: filepath.Join(tb.TempDir(), "mnt")}
	require.NoError(tb, os.Mkdir(m.point, 0o755))
	m.files = exec.Command("/usr/lib/openssh/sftp-server")
	m.client = exec.Command("sshfs", "-f", "-o", "passive", "primary:"+tb.TempDir(), m.point)
	var err error
	m.files.Stdin, err = m.client.StdoutPipe()
	require.NoError(tb, err)
	m.client.Stdin, err = m.files.StdoutPipe()
	require.NoError(tb, err)
	for _, cmd := range []*exec.Cmd{m.files, m.client} {
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		require.NoError(tb, cmd.Start())
		tb.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		})
	}
	tb.Cleanup(func() {
		m.thaw(tb)
		_ = unix.Unmount(m.point, unix.MNT_DETACH) // a test may have done so
	})
	require.Eventually(tb, func() bool { return strings.Contains(mountinfo(tb), " "+m.point+" ") }, probetest.Soon,
		5*time.Millisecond)
	return m
}

func mountinfo(tb testing.TB) string {
	table, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(tb, err)
	return string(table)
}

// freezeClient has requests stay in the kernel, where SIGKILL ends them, as it
// does with NFS.
func (m *fuseMount) freezeClient(tb testing.TB) { signal(tb, m.client, syscall.SIGSTOP) }

// freezeServer has requests taken and not answered: no signal ends those.
func (m *fuseMount) freezeServer(tb testing.TB) { signal(tb, m.files, syscall.SIGSTOP) }

func (m *fuseMount) thaw(tb testing.TB) {
	signal(tb, m.client, syscall.SIGCONT)
	signal(tb, m.files, syscall.SIGCONT)
}

func signal(tb testing.TB, cmd *exec.Cmd, sig syscall.Signal) {
	tb.Helper()
	require.NoError(tb, cmd.Process.Signal(sig))
}

// settings are the defaults at the pace of a test; the child is the test binary.
func settings() mount.Settings {
	s := mount.DefaultSettings()
	s.Interval, s.Timeout = 400*time.Millisecond, 200*time.Millisecond
	s.Stuck = new(atomic.Int64)
	return s
}

func TestMountHung(t *testing.T) {
	m := mountFUSE(t)
	w := probetest.Run(t, mount.Watch(m.point, settings()))
	good(t, w, 0, "mount")
	from, at := w.Mark(), time.Now()
	m.freezeClient(t)
	o := w.Next(t, from, "mount", probe.Silent, "mount hung for 200 ms")
	t.Logf("found after %v", o.At.Sub(at))
	require.Equal(t, settings().Limit, o.Limit)
	w.Next(t, from, "mount", probe.Silent, "mount hung for 1.")
	from, at = w.Mark(), time.Now()
	m.thaw(t)
	t.Logf("well after %v", w.Next(t, from, "mount", probe.Good, "").At.Sub(at))
	w.End()
	require.Empty(t, children(t))
}

// A process that SIGKILL does not end is counted, has no second one beside it,
// and is reaped in the end.
func TestMountUnkillable(t *testing.T) {
	m := mountFUSE(t)
	s := settings()
	w := probetest.Run(t, mount.Watch(m.point, s))
	good(t, w, 0, "mount")
	m.freezeServer(t)
	w.Next(t, w.Mark(), "mount", probe.Silent, "mount hung for 2.")
	require.EqualValues(t, 1, s.Stuck.Load())
	require.Len(t, children(t), 1)
	m.thaw(t)
	w.Next(t, w.Mark(), "mount", probe.Good, "")
	require.Eventually(t, func() bool { return s.Stuck.Load() == 0 && len(children(t)) == 0 }, probetest.Soon,
		time.Millisecond)

	m.freezeServer(t)
	w.Next(t, w.Mark(), "mount", probe.Silent, "mount hung for")
	at := time.Now()
	w.End()
	require.Less(t, time.Since(at), time.Second, "it ends in time all the same")
	m.thaw(t)
	require.Eventually(t, func() bool { return s.Stuck.Load() == 0 && len(children(t)) == 0 }, probetest.Soon,
		time.Millisecond)
}

func TestMountTable(t *testing.T) {
	testenv.NeedsRoot(t)
	point := filepath.Join(t.TempDir(), "a mount")
	require.NoError(t, os.Mkdir(point, 0o755))
	s := settings()
	s.Source = "192.168.0.100:/opt/stackstorm/packs"
	w := probetest.Run(t, mount.Watch(point, s))
	o := w.Next(t, 0, "mount", probe.Bad, "not mounted")
	require.Equal(t, probe.Limit{Suspect: 1, Down: 1}, o.Limit)

	// The table is real; that it is memory which is mounted there does not matter to it.
	mount := func(source string) {
		require.NoError(t, unix.Mount(source, point, "tmpfs", 0, "size=1m"))
		t.Cleanup(func() { _ = unix.Unmount(point, unix.MNT_DETACH) })
	}
	from := w.Mark()
	mount(s.Source)
	w.Next(t, from, "mount", probe.Good, "")
	from = w.Mark()
	mount("192.168.0.99:/srv")
	w.Next(t, from, "mount", probe.Bad, "192.168.0.99:/srv is mounted there, not 192.168.0.100:/opt/stackstorm/packs")
	from = w.Mark()
	require.NoError(t, unix.Unmount(point, 0))
	w.Next(t, from, "mount", probe.Good, "")
	from, at := w.Mark(), time.Now()
	require.NoError(t, unix.Unmount(point, 0))
	t.Logf("found after %v", w.Next(t, from, "mount", probe.Bad, "not mounted").At.Sub(at))
}

// A mount that hangs and is detached by hand is not mounted, at once.
func TestMountDetached(t *testing.T) {
	m := mountFUSE(t)
	s := settings()
	s.Timeout = time.Hour
	w := probetest.Run(t, mount.Watch(m.point, s))
	good(t, w, 0, "mount")
	m.freezeClient(t)
	require.NoError(t, unix.Unmount(m.point, unix.MNT_DETACH))
	w.Next(t, 0, "mount", probe.Bad, "not mounted")
	w.End()
	require.Empty(t, children(t))
}

func TestMountErrors(t *testing.T) {
	m := mountFUSE(t)
	s := settings()
	closed := filepath.Dir(m.point)
	require.NoError(t, os.Chmod(closed, 0o700))
	s.Child = append([]string{"setpriv", "--reuid=65534", "--clear-groups"}, nobodysChild(t)...)
	w := probetest.Run(t, mount.Watch(m.point, s))
	w.Next(t, 0, "mount", probe.Bad, "access denied: the export is withdrawn, or does not allow this node")
	w.End()

	for want, argv := range map[string][]string{
		// 64 + ESTALE
		"stale file handle: the export is withdrawn, or its directory was deleted or replaced on the server": {"sh", "-c",
			"exit 180"},
		"no answer for so long that the mount gave up: input/output error": {"sh", "-c",
			"exit 69"},
		"the mount point does not exist": {"sh", "-c", `exec "$0" statfs /nowhere`, os.Args[0]},
	} {
		s.Child = argv
		w = probetest.Run(t, mount.Watch(m.point, s))
		require.Equal(t, probe.Limit{Suspect: 1, Down: 2}, w.Next(t, 0, "mount", probe.Bad, want).Limit)
		w.End()
	}
	for want, argv := range map[string][]string{
		"statfs cannot be tried: exit status 2":     {"sh", "-c", "exit 2"}, // as a panic's
		"statfs cannot be tried: signal: killed":    {"sh", "-c", "kill -9 $$"},
		"statfs cannot be tried: exec: \"no-such-p": {"no-such-program"},
	} {
		s.Child = argv
		w = probetest.Run(t, mount.Watch(m.point, s))
		w.Next(t, 0, "mount", probe.Unknown, want)
		w.End()
	}

	s.Child = settings().Child
	w = probetest.Run(t, mount.Watch(m.point, s))
	good(t, w, 0, "mount")
	require.NoError(t, m.client.Process.Kill())
	w.Next(t, 0, "mount", probe.Bad, "statfs: transport endpoint is not connected")
}

// nobodysChild is the test binary where everybody may run it.
func nobodysChild(t *testing.T) []string {
	dir, err := os.MkdirTemp("/tmp", "st2ha-watch")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	program, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dir+"/child", program, 0o755))
	return []string{dir + "/child", "statfs"}
}

// servers are the processes of all tests of this package (proc(5), stat).
var servers = regexp.MustCompile(`\((sshfs|sftp-server|ganesha\.nfsd|epmd|rabbitmq-server|beam\.smp|erl_child_setup|inet_gethost|redis-server|mongod)\)`)

// children are the child processes of this one that probe, dead or alive.
func children(tb testing.TB) []string {
	tb.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	require.NoError(tb, err)
	var found []string
	for _, list := range lists {
		pids, _ := os.ReadFile(list) // a thread may have ended
		for _, pid := range strings.Fields(string(pids)) {
			stat, _ := os.ReadFile("/proc/" + pid + "/stat")
			if servers.Match(stat) {
				continue
			}
			found = append(found, string(stat))
		}
	}
	return found
}

func TestMountLeavesNothing(t *testing.T) {
	m := mountFUSE(t)
	s := settings()
	s.Timeout, s.Patience = 10*time.Millisecond, 1 // often before the child has come to statfs
	hang := func(times int) {
		w := probetest.Run(t, mount.Watch(m.point, s))
		require.Eventually(t, func() bool { return w.Mark() >= times }, 5*time.Minute, 10*time.Millisecond)
		w.End()
		silent := 0
		for _, o := range w.Since(0) {
			if o.Verdict == probe.Silent {
				silent++
			}
		}
		require.GreaterOrEqual(t, silent, times-1)
	}
	m.freezeClient(t)
	hang(50) // the runtime has its threads then
	before := probetest.NowLeft(t)
	hang(1000)
	before.Same(t)
	require.Empty(t, children(t))
	require.Zero(t, s.Stuck.Load())
}

// A node that is too slow to start a process has no mount that hangs.
func TestMountSlowNode(t *testing.T) {
	s := settings()
	s.Child = []string{"sh", "-c", "exec sleep 60"}
	w := probetest.Run(t, mount.Watch("/", s))
	w.Next(t, 0, "mount", probe.Unknown, "statfs cannot be tried: this node is too slow")
	require.Len(t, w.Since(0), 1)
	w.End()
	require.Empty(t, children(t))
}

// BenchmarkStatfs prints what one look at a mount costs: a process, here with
// all of the test binary in it.
func BenchmarkStatfs(b *testing.B) {
	m := mountFUSE(b)
	for b.Loop() {
		require.NoError(b, exec.Command("/proc/self/exe", "statfs", m.point).Run())
	}
}

// BenchmarkMountGone prints how long after umount(2) it is reported.
func BenchmarkMountGone(b *testing.B) {
	point := b.TempDir()
	w := probetest.Run(b, mount.Watch(point, settings()))
	var took []time.Duration
	for b.Loop() {
		from := w.Mark()
		require.NoError(b, unix.Mount("primary:/", point, "tmpfs", 0, "size=1m"))
		w.Next(b, from, "mount", probe.Good, "")
		from, at := w.Mark(), time.Now()
		require.NoError(b, unix.Unmount(point, unix.MNT_DETACH))
		took = append(took, w.Next(b, from, "mount", probe.Bad, "not mounted").At.Sub(at))
	}
	probetest.Quantiles(b, took)
}

// BenchmarkMountKill prints how long a process on a hung mount takes to end by SIGKILL.
func BenchmarkMountKill(b *testing.B) {
	m := mountFUSE(b)
	m.freezeClient(b)
	var took []time.Duration
	for b.Loop() {
		cmd := exec.Command("/proc/self/exe", "statfs", m.point)
		require.NoError(b, cmd.Start())
		time.Sleep(20 * time.Millisecond)
		at := time.Now()
		require.NoError(b, cmd.Process.Kill())
		require.Error(b, cmd.Wait())
		took = append(took, time.Since(at))
	}
	probetest.Quantiles(b, took)
}
