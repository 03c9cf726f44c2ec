package host_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/host"
	"st2ha/internal/host/hosttest"
	"st2ha/internal/testenv"
)

// child is the variable that makes the test's own program the one to be killed.
const child = "ST2HA_TEST_CHILD"

func TestMain(m *testing.M) {
	hosttest.Swap()
	job := strings.Fields(os.Getenv(child))
	if len(job) == 0 {
		os.Exit(m.Run())
	}
	if job[0] == "sftp" {
		oddFiles()
		os.Exit(0)
	}
	if err := work(context.Background(), job); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// work writes a file, on this machine ("local FILE") or on another under a
// lock ("ssh FILE PORT DIRECTORY", the directory being that of the keys).
func work(ctx context.Context, job []string) error {
	var h host.Host = host.NewLocal("node")
	if job[0] == "ssh" {
		port, err := strconv.Atoi(job[2])
		if err != nil {
			return err
		}
		if h, err = host.DialSSH(ctx, host.SSHConfig{Addr: "127.0.0.1", Port: port, User: "root",
			KeyFile: job[3] + "/id_ed25519", KnownHosts: []string{job[3] + "/known_hosts"}}); err != nil {
			return err
		}
		defer h.Close()
		release, err := h.Lock(ctx, job[1]+".lock", "who is killed")
		if err != nil {
			return err
		}
		defer release()
	}
	// All system calls from one thread: strace counts by thread.
	runtime.LockOSThread()
	return h.WriteFile(ctx, host.File{Path: job[1], Data: []byte(newText), Mode: 0o640, UID: 1, GID: 2})
}

var (
	oldText = strings.Repeat("old line\n", 1000)
	newText = strings.Repeat("a new line\n", 9000)
)

// start runs work in a process of its own, under what wraps it.
func start(t *testing.T, job string, wrap ...string) *exec.Cmd {
	t.Helper()
	testenv.NeedsRoot(t)
	if len(wrap) > 0 {
		testenv.NeedsPrograms(t, wrap[0])
	}
	argv := append(wrap, os.Args[0])
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), child+"="+job, "GOMAXPROCS=1", "GOGC=off")
	require.NoError(t, cmd.Start())
	return cmd
}

func oldFile(t *testing.T) (file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "f.conf")
	require.NoError(t, os.WriteFile(file, []byte(oldText), 0o604))
	require.NoError(t, os.Chmod(file, 0o604)) // whatever the umask
	return file
}

// whole says whether a file is the new one; anything but old or new, with
// their modes and owners, fails the test.
func whole(t *testing.T, file string, at int) (isNew bool) {
	t.Helper()
	got, err := host.NewLocal("node").ReadFile(t.Context(), file)
	require.NoError(t, err, "killed at %d", at)
	isNew = string(got.Data) == newText
	want := host.File{Path: file, Data: []byte(oldText), Mode: 0o604}
	if isNew {
		want = host.File{Path: file, Data: []byte(newText), Mode: 0o640, UID: 1, GID: 2}
	}
	require.Equal(t, want.Mode, got.Mode, "killed at %d", at)
	require.Equal(t, [2]int{want.UID, want.GID}, [2]int{got.UID, got.GID}, "killed at %d", at)
	require.Equal(t, len(want.Data), len(got.Data), "killed at %d", at)
	require.Equal(t, string(want.Data), string(got.Data), "killed at %d", at)
	return isNew
}

// leftovers counts the temporary files beside a file. There is one at most,
// and Sweep removes it.
func leftovers(t *testing.T, file string) int {
	t.Helper()
	others := func() (found []string) {
		entries, err := os.ReadDir(filepath.Dir(file))
		require.NoError(t, err)
		for _, e := range entries {
			if base := filepath.Base(file); e.Name() != base && e.Name() != base+".lock" {
				found = append(found, e.Name())
			}
		}
		return found
	}
	found := others()
	require.LessOrEqual(t, len(found), 1, found)
	require.NoError(t, host.NewLocal("node").Sweep(t.Context(), file))
	require.Empty(t, others())
	return len(found)
}

// The local writer is killed before each of its system calls that change
// something.
func TestWriterKilled(t *testing.T) {
	t.Parallel()
	var points []string
	half, moved := 0, 0
	for _, call := range []string{"write", "fchown", "flistxattr", "fremovexattr", "fchmod", "fsync",
		"rename", "renameat"} {
		for at := 1; ; at++ { // strace counts by call and thread
			file := oldFile(t)
			err := start(t, "local "+file, "strace", "-f", "-qq", "-o", "/dev/null",
				"-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, at)).Wait()
			isNew := whole(t, file, at)
			left := leftovers(t, file)
			if err == nil {
				require.True(t, isNew)
				require.Zero(t, left)
				break
			}
			points = append(points, fmt.Sprintf("%s %d", call, at))
			half += left
			if isNew {
				moved++
			}
		}
	}
	t.Logf("killed before %s; %d times with the temporary file there, %d times after the rename",
		strings.Join(points, ", "), half, moved)
	require.Equal(t, 7, half)
	require.Equal(t, 1, moved)
}

// What a power cut may lose is decided by the order of the system calls: the
// bytes are on disk before the name is theirs, and the name before it is said.
func TestWriteOrder(t *testing.T) {
	t.Parallel()
	for name, server := range map[string]bool{"local": false, "sftp": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file, trace := oldFile(t), filepath.Join(t.TempDir(), "trace")
			job := "local " + file
			var argv []string
			if server {
				cfg := hosttest.NewSSHD(t)
				job = fmt.Sprintf("ssh %s %d %s", file, cfg.Port, filepath.Dir(cfg.KeyFile))
				pid := listener(t, cfg.Port)
				tracer := exec.Command("strace", "-f", "-qq", "-y", "-s", "64", "-o", trace, "-e",
					"trace=openat,write,fsync,rename,renameat,renameat2", "-p", pid)
				require.NoError(t, tracer.Start())
				t.Cleanup(func() { tracer.Process.Kill(); tracer.Wait() })
				require.Eventually(t, func() bool {
					status, _ := os.ReadFile("/proc/" + pid + "/status")
					return strings.Contains(string(status), fmt.Sprintf("TracerPid:\t%d\n", tracer.Process.Pid))
				}, 10*time.Second, 10*time.Millisecond)
			} else {
				argv = []string{"strace", "-f", "-qq", "-y", "-s", "64", "-o", trace, "-e",
					"trace=openat,write,fsync,rename,renameat,renameat2"}
			}
			require.NoError(t, start(t, job, argv...).Wait())
			require.True(t, whole(t, file, 0))
			dir := regexp.QuoteMeta(filepath.Dir(file))
			temp := dir + `/\.f\.conf\.st2ha-[0-9a-f]{16}`
			// By a path over SFTP, by a name in the directory's descriptor here.
			created, renamed := `openat\(.*"`+temp+`", .*O_CREAT\|O_EXCL`, `rename(at2?)?\(.*"`+temp+`", .*"`+
				regexp.QuoteMeta(file)+`"`
			if !server {
				name := `"\.f\.conf\.st2ha-[0-9a-f]{16}"`
				created = `openat\(\d+<` + dir + `>, ` + name + `, .*O_CREAT\|O_EXCL\|O_NOFOLLOW`
				renamed = `renameat2?\(\d+<` + dir + `>, ` + name + `, \d+<` + dir + `>, "f\.conf"`
			}
			order := []string{
				created,
				`write\(\d+<` + temp + `>, "a new line`,
				`fsync\(\d+<` + temp + `>\)\s+= 0`,
				renamed,
				`fsync\(\d+<` + dir + `>\)\s+= 0`,
			}
			text, err := os.ReadFile(trace)
			require.NoError(t, err)
			rest := string(text)
			for _, want := range order {
				found := regexp.MustCompile(want).FindStringIndex(rest)
				require.NotNil(t, found, "%s is not, or not in its place, in\n%s", want, text)
				rest = rest[found[1]:]
			}
			require.NotRegexp(t, `write\(\d+<`+temp, rest)
		})
	}
}

// listener finds the process that listens on a port.
func listener(t *testing.T, port int) string {
	t.Helper()
	out, err := exec.Command("ss", "-Hltnp", "sport", "=", strconv.Itoa(port)).Output()
	require.NoError(t, err)
	found := regexp.MustCompile(`pid=(\d+)`).FindSubmatch(out)
	require.NotNil(t, found, string(out))
	return string(found[1])
}

// The writer on another host is killed after each packet that it has sent:
// the file is whole there, and no program of it goes on, the lock's included.
func TestRemoteWriterKilled(t *testing.T) {
	t.Parallel()
	cfg := hosttest.NewSSHD(t)
	keys := filepath.Dir(cfg.KeyFile)
	proxy := newProxy(t, cfg.Port)
	known, err := os.ReadFile(keys + "/known_hosts")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(keys+"/known_hosts",
		[]byte(strings.ReplaceAll(string(known), fmt.Sprintf(":%d ", cfg.Port), fmt.Sprintf(":%d ", proxy.port))),
		0o600))
	there := host.NewLocal("node")
	var half, moved int
	for at := 1; ; at++ {
		require.Less(t, at, 200, "the writer never comes to its end")
		file := oldFile(t)
		proxy.packets.Store(int64(at))
		cmd := start(t, fmt.Sprintf("ssh %s %d %s", file, proxy.port, keys))
		proxy.kill.Store(&cmd.Process)
		err := cmd.Wait()
		// sshd may be about to start what it was asked for, so that nothing is there yet: the lock shows that, too.
		require.Eventually(t, func() bool {
			if len(withHome(keys)) > 0 {
				return false
			}
			release, err := there.Lock(t.Context(), file+".lock", "the next")
			if err != nil {
				return false
			}
			release()
			return len(withHome(keys)) == 0
		}, 10*time.Second, 10*time.Millisecond, "killed at %d, and still there: %v", at, withHome(keys))
		isNew := whole(t, file, at)
		left := leftovers(t, file)
		if err == nil {
			require.True(t, isNew)
			require.Zero(t, left)
			t.Logf("killed at %d packets: %d times with the temporary file there, %d times after the rename",
				at-1, half, moved)
			require.Positive(t, half)
			require.Positive(t, moved)
			return
		}
		half += left
		if isNew {
			moved++
		}
	}
}

// withHome finds the programs that the sshd with this directory started.
func withHome(dir string) (found []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, p := range procs {
		env, _ := os.ReadFile(p)
		if slices.Contains(strings.Split(string(env), "\x00"), "HOME="+dir) {
			found = append(found, p)
		}
	}
	return found
}

// proxy passes what a process sends on to a port, and kills the process after
// a number of packets.
type proxy struct {
	port    int
	packets atomic.Int64
	kill    atomic.Pointer[*os.Process]
}

func newProxy(t *testing.T, to int) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	p := &proxy{port: l.Addr().(*net.TCPAddr).Port}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go p.pass(conn, to)
		}
	}()
	return p
}

func (p *proxy) pass(conn net.Conn, to int) {
	defer conn.Close()
	far, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", to))
	if err != nil {
		return
	}
	defer far.Close()
	go func() {
		io.Copy(conn, far)
		conn.Close()
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			far.Write(buf[:n])
			if p.packets.Add(-1) == 0 {
				for p.kill.Load() == nil {
					time.Sleep(time.Millisecond)
				}
				(*p.kill.Load()).Kill()
			}
		}
		if err != nil {
			return
		}
	}
}
