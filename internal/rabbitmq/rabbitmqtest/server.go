// Package rabbitmqtest runs a real RabbitMQ for tests: Debian's, with its own
// node name, data and ports on loopback, and without what it would share with
// the machine's.
package rabbitmqtest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	program   = "/usr/lib/rabbitmq/bin/rabbitmq-server"
	startTime = 2 * time.Minute // an Erlang VM beside other tests
)

// Server is a broker, with the user guest.
type Server struct {
	Addr string // host:port of its AMQP listener

	t      testing.TB
	dir    string
	epmd   int // port of its own Erlang port mapper
	dist   int // port of Erlang's distribution
	server *exec.Cmd
}

// Start runs a broker until the test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	require.FileExists(t, program, "test/setup.sh installs it")
	dir, err := os.MkdirTemp("", "st2ha-rabbitmq-")
	require.NoError(t, err)
	s := &Server{t: t, dir: dir, epmd: freePort(t), dist: freePort(t), Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))}
	mapper := exec.Command("epmd", "-address", "127.0.0.1", "-port", strconv.Itoa(s.epmd))
	mapper.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(t, mapper.Start())
	t.Cleanup(func() {
		s.Kill()
		_ = mapper.Process.Kill()
		_ = mapper.Wait()
		_ = os.RemoveAll(dir)
	})
	s.Restart()
	return s
}

// URL is how guest logs in.
func (s *Server) URL() string { return "amqp://guest:guest@" + s.Addr + "/" }

// Restart runs the broker, with the data it has, and waits until it serves.
func (s *Server) Restart() {
	s.t.Helper()
	_, port, _ := net.SplitHostPort(s.Addr)
	conf := fmt.Sprintf("listeners.tcp.1 = 127.0.0.1:%s\n", port)
	require.NoError(s.t, os.WriteFile(filepath.Join(s.dir, "rabbitmq.conf"), []byte(conf), 0o644))
	require.NoError(s.t, os.WriteFile(filepath.Join(s.dir, "plugins"), []byte("[]."), 0o644))
	s.server = s.command(program)
	s.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var said bytes.Buffer
	s.server.Stdout, s.server.Stderr = &said, &said
	require.NoError(s.t, s.server.Start())
	for end := time.Now().Add(startTime); !s.serves(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			s.Kill()
			s.t.Fatalf("RabbitMQ does not serve after %s: %s", startTime, said.String())
		}
	}
}

// Kill ends it as a kill -9 does.
func (s *Server) Kill() {
	if s.server == nil {
		return
	}
	_ = syscall.Kill(-s.server.Process.Pid, syscall.SIGKILL)
	_ = s.server.Wait()
	s.server = nil
}

// Signal sends a signal to the broker, for example SIGSTOP.
func (s *Server) Signal(sig syscall.Signal) {
	s.t.Helper()
	require.NoError(s.t, syscall.Kill(-s.server.Process.Pid, sig))
}

// Ctl runs rabbitmqctl on it.
func (s *Server) Ctl(args ...string) string {
	s.t.Helper()
	out, err := s.command("/usr/lib/rabbitmq/bin/rabbitmqctl", args...).CombinedOutput()
	require.NoError(s.t, err, string(out))
	return string(out)
}

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	dist := strconv.Itoa(s.dist)
	cmd.Env = append(os.Environ(),
		"HOME="+s.dir, // the Erlang cookie
		"ERL_EPMD_PORT="+strconv.Itoa(s.epmd), "ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_NODENAME=t"+dist+"@localhost",
		"RABBITMQ_DIST_PORT="+dist,
		"RABBITMQ_CONF_ENV_FILE="+filepath.Join(s.dir, "no-env.conf"),
		"RABBITMQ_CONFIG_FILE="+filepath.Join(s.dir, "rabbitmq"),
		"RABBITMQ_ENABLED_PLUGINS_FILE="+filepath.Join(s.dir, "plugins"),
		"RABBITMQ_MNESIA_BASE="+filepath.Join(s.dir, "mnesia"),
		"RABBITMQ_LOG_BASE="+filepath.Join(s.dir, "log"),
		"RABBITMQ_PID_FILE="+filepath.Join(s.dir, "pid"))
	return cmd
}

// serves says whether an AMQP listener answers a protocol header.
func (s *Server) serves() bool {
	conn, err := net.DialTimeout("tcp", s.Addr, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte("AMQP\x00\x00\x09\x01")); err != nil {
		return false
	}
	answer := make([]byte, 8)
	n, err := conn.Read(answer)
	return err == nil && n > 0 && !strings.HasPrefix(string(answer), "AMQP")
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
