// Package nfstest runs a real NFS server for tests: NFS-Ganesha, which is a
// process of its own and needs no NFS in the kernel.
package nfstest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/testenv"
)

// Server is one on a loopback address, which a test may treat badly.
type Server struct {
	Addr string // host:port

	tb      testing.TB
	dir     string
	space   string // the network namespace; empty: this process's
	exports []string
	cmd     *exec.Cmd
	ended   chan struct{}
}

// Start runs a server with NFSv4 alone that exports a directory under each of
// the given paths, "secure" as Linux's server has it by default. It ends with
// the test.
func Start(tb testing.TB, exports ...string) *Server {
	tb.Helper()
	testenv.NeedsRoot(tb)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	s := &Server{Addr: l.Addr().String(), tb: tb, dir: tb.TempDir()}
	require.NoError(tb, l.Close())
	s.begin(exports)
	return s
}

func (s *Server) begin(exports []string) {
	s.tb.Helper()
	s.configure(exports)
	s.tb.Cleanup(s.Kill)
	s.Run()
}

// StartAway runs such a server behind a network link, which Cut cuts. It is in
// a network namespace of its own, on an address kept for documentation
// (RFC 5737).
func StartAway(tb testing.TB, exports ...string) *Server {
	tb.Helper()
	testenv.NeedsRoot(tb)
	s := &Server{Addr: "203.0.113.2:2049", tb: tb, dir: tb.TempDir(), space: fmt.Sprint("st2ha-nfs-", os.Getpid())}
	near := fmt.Sprint("st2ha", os.Getpid())
	s.ip("netns", "add", s.space)
	tb.Cleanup(func() { s.ip("netns", "del", s.space) })
	s.ip("link", "add", near, "type", "veth", "peer", "name", "away", "netns", s.space)
	s.ip("addr", "add", "203.0.113.1/30", "dev", near)
	s.ip("link", "set", near, "up")
	s.ip("-n", s.space, "link", "set", "away", "up")
	s.Heal()
	s.begin(exports)
	return s
}

// Cut has packets to the server vanish, with no word to either side; it is for StartAway.
func (s *Server) Cut() { s.ip("-n", s.space, "addr", "del", "203.0.113.2/30", "dev", "away") }

// Heal is the end of Cut.
func (s *Server) Heal() { s.ip("-n", s.space, "addr", "add", "203.0.113.2/30", "dev", "away") }

func (s *Server) ip(argv ...string) {
	s.tb.Helper()
	out, err := exec.Command("ip", argv...).CombinedOutput()
	require.NoError(s.tb, err, "ip %v: %s", argv, out)
}

// configure writes the configuration (ganesha-core-config(8), ganesha-export-config(8)).
func (s *Server) configure(exports []string) {
	s.tb.Helper()
	host, port, err := net.SplitHostPort(s.Addr)
	require.NoError(s.tb, err)
	var b strings.Builder
	fmt.Fprintf(&b, "NFS_CORE_PARAM { Bind_addr = %s; NFS_Port = %s; Protocols = 4; Enable_NLM = false; "+
		"Enable_RQUOTA = false; Enable_UDP = false; }\n", host, port)
	fmt.Fprintf(&b, "NFSV4 { Graceless = true; RecoveryBackend = fs; RecoveryRoot = %q; }\n", s.path("recovery"))
	for _, export := range exports {
		dir := s.path("shared" + export)
		require.NoError(s.tb, os.MkdirAll(dir, 0o755))
		if !slices.Contains(s.exports, export) {
			s.exports = append(s.exports, export)
		}
		fmt.Fprintf(&b, "EXPORT { Export_Id = %d; Path = %q; Pseudo = %q; Access_Type = RW; Squash = No_Root_Squash; "+
			"SecType = sys; PrivilegedPort = true; FSAL { Name = VFS; } }\n",
			slices.Index(s.exports, export)+1, dir, export)
	}
	require.NoError(s.tb, os.MkdirAll(s.path("recovery"), 0o700))
	require.NoError(s.tb, os.WriteFile(s.path("ganesha.conf"), []byte(b.String()), 0o600))
}

func (s *Server) path(name string) string { return filepath.Join(s.dir, name) }

// Run starts the server and waits until it listens.
func (s *Server) Run() {
	s.tb.Helper()
	argv := []string{"ganesha.nfsd", "-F", "-f", s.path("ganesha.conf"), "-L", s.path("log"), "-p", s.path("pid"),
		"-N", "NIV_EVENT"}
	if s.space != "" {
		argv = append([]string{"ip", "netns", "exec", s.space}, argv...) // which executes it in its own place
	}
	s.cmd = exec.Command(argv[0], argv[1:]...)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(s.tb, s.cmd.Start())
	s.ended = make(chan struct{})
	go func(cmd *exec.Cmd, ended chan struct{}) {
		_ = cmd.Wait() // it is killed
		close(ended)
	}(s.cmd, s.ended)
	for range 500 {
		conn, err := net.Dial("tcp", s.Addr)
		if err == nil {
			conn.Close()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	log, _ := os.ReadFile(s.path("log"))
	require.FailNow(s.tb, "the NFS server does not listen", "%s", log)
}

// Export has the running server export these and nothing else.
func (s *Server) Export(exports ...string) {
	s.tb.Helper()
	s.configure(exports)
	s.signal(syscall.SIGHUP)
}

// Freeze stops the server's process, Thaw lets it go on. On a busy machine a
// process runs on for a while after the signal: each of its threads is waited for.
func (s *Server) Freeze() {
	s.tb.Helper()
	s.signal(syscall.SIGSTOP)
	require.Eventually(s.tb, func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.cmd.Process.Pid))
		for _, stat := range threads {
			data, _ := os.ReadFile(stat)
			// The state follows the name, which may have blanks (proc(5)).
			if _, state, _ := bytes.Cut(data, []byte(") ")); len(state) > 0 && state[0] != 'T' {
				return false
			}
		}
		return err == nil
	}, 10*time.Second, time.Millisecond)
}

// Thaw is the end of Freeze.
func (s *Server) Thaw() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) {
	s.tb.Helper()
	require.NoError(s.tb, s.cmd.Process.Signal(sig))
}

// Kill ends the server and waits until it is gone.
func (s *Server) Kill() {
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.ended
}
