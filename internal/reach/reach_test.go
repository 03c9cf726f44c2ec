package reach

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/rpcping"
	"st2ha/internal/secure"
)

// Errors as the kernel, the resolver and TLS make them, and what each says of the server.
func TestClassify(t *testing.T) {
	closed := backendtest.Closed(t)
	quiet := listen(t, func(c *net.TCPConn) {})
	after := func(begin func(*net.TCPConn), then func(net.Conn) error) error {
		c, err := net.Dial("tcp", listen(t, begin).Addr().String())
		require.NoError(t, err)
		defer c.Close()
		return then(c)
	}
	read := func(c net.Conn) error {
		_, err := c.Read(make([]byte, 1))
		return err
	}
	ask := func(c net.Conn) error {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		return read(c)
	}
	reset := func(c *net.TCPConn) { _ = read(c); _ = c.SetLinger(0); _ = c.Close() }
	dial := func(d net.Dialer, addr string) error {
		c, err := d.DialContext(t.Context(), "tcp", addr)
		if err == nil {
			c.Close()
		}
		return err
	}
	busy := quiet.Addr().(*net.TCPAddr)
	ended, end := context.WithCancel(t.Context())
	end()
	for name, tc := range map[string]struct {
		err     error
		verdict Verdict
		reason  string
	}{
		"nothing":            {nil, Good, ""},
		"nobody listens":     {dial(net.Dialer{}, closed), Bad, "connection refused"},
		"reset":              {after(reset, ask), Bad, "connection reset by peer"},
		"closed":             {after(func(c *net.TCPConn) { _ = c.Close() }, read), Bad, "the connection was closed"},
		"closed while asked": {after(reset, func(c net.Conn) error { _ = ask(c); return ask(c) }), Bad, "broken pipe"},
		"not its protocol": {fmt.Errorf("%w: %w", rpcping.ErrClosed, rpcping.ErrProtocol), Bad,
			rpcping.ErrProtocol.Error()},
		"said by the server": {errors.New("the broker ended the connection: x"), Bad,
			"the broker ended the connection: x"},
		"no answer": {after(func(*net.TCPConn) {},
			func(c net.Conn) error { _ = c.SetDeadline(time.Now()); return read(c) }), Silent, "no answer"},
		"not in time": {dial(net.Dialer{Deadline: time.Now().Add(-time.Second)}, closed), Silent, "no answer"},
		"too late":    {fmt.Errorf("hello: %w", context.DeadlineExceeded), Silent, "no answer"},
		"no way there": {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)},
			Silent, "no route to host"},
		"no network": {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)},
			Silent, "network is unreachable"},
		"TCP gave up": {&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ETIMEDOUT)}, Silent,
			"no answer"},
		"no such name": {dial(net.Dialer{}, "nobody.invalid:1"), Unknown,
			"the name nobody.invalid cannot be resolved: "},
		"resolver away": {dial(net.Dialer{Resolver: backendtest.Resolver("tcp", closed)}, "redis.example:1"),
			Unknown, "the name redis.example cannot be resolved: "},
		"resolver silent": {dial(net.Dialer{Resolver: backendtest.SilentResolver(t), Timeout: 50 * time.Millisecond},
			"redis.example:1"), Unknown, "the name redis.example cannot be resolved: "},
		"no such address": {dial(net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}}, closed), Unknown,
			"no connection can be made: cannot assign requested address"},
		"no port": {dial(net.Dialer{LocalAddr: busy}, closed), Unknown,
			"no connection can be made: address already in use"},
		"no descriptor": {os.NewSyscallError("socket", withoutDescriptors(t)), Unknown,
			"no connection can be made: too many open files"},
		"no memory": {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENOBUFS)}, Unknown,
			"no connection can be made: no buffer space available"},
		"the SSH connection ended": {fmt.Errorf("on b: %w: no answer for 30s", host.ErrDisconnected), Unknown,
			"on b: the SSH connection ended"},
		"sshd did not try": {fmt.Errorf("from b: %w: open failed", host.ErrNotTried), Unknown,
			"from b: sshd did not make the connection"},
		"sshd forbids it": {fmt.Errorf("x: %w", fault.Failed("forwarding", "set AllowTcpForwarding",
			"sshd forbids forwarding")), Unknown, "x: sshd forbids forwarding"},
		"this side ended it": {func() error {
			_, err := (&net.Dialer{}).DialContext(ended, "tcp",
				closed)
			return err
		}(), Unknown, "this side has ended the connection"},
		"no TLS there": {tlsTo(t, closedAfterHello(t)), Unknown, "it speaks no TLS, and the settings ask for it"},
		"no TLS file": {func() error {
			_, err := (&secure.TLS{Read: func(context.Context, string) ([]byte, error) { return nil, os.ErrNotExist },
				CA: "/none"}).Dial(t.Context(), &net.Dialer{}, closed)
			return err
		}(), Unknown, "the file of authorities cannot be read: "},
		"closed by a library": {after(func(*net.TCPConn) {}, func(c net.Conn) error { c.Close(); return read(c) }), Bad,
			"the connection was closed"},
	} {
		verdict, reason := Classify(tc.err)
		require.Equal(t, tc.verdict, verdict, "%s: %v", name, tc.err)
		require.True(t, strings.HasPrefix(reason, tc.reason), "%s: %s", name, reason)
		if name != "resolver away" { // whose address is of use
			require.NotContains(t, reason, "127.0.0.1", "%s: the event has the server's", name)
		}
	}
}

// listen serves each connection.
func listen(t *testing.T, serve func(*net.TCPConn)) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			serve(c.(*net.TCPConn))
		}
	}()
	return l
}

// withoutDescriptors is the error of socket(2) in a process that has no descriptor left.
func withoutDescriptors(t *testing.T) error {
	t.Helper()
	program := filepath.Join(t.TempDir(), "full.py")
	require.NoError(t, os.WriteFile(program, []byte(`import os, resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
try:
    kept = [os.dup(0) for _ in range(99)]
except OSError:
    pass
try:
    socket.socket()
except OSError as error:
    sys.exit(error.errno)
`), 0o600))
	out, err := exec.Command("python3", "-S", program).CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Empty(t, string(out))
	return syscall.Errno(exit.ExitCode())
}

// closedAfterHello is a server that speaks no TLS.
func closedAfterHello(t *testing.T) string {
	return listen(t, func(c *net.TCPConn) { _, _ = c.Write([]byte("-ERR what is this?\r\n")) }).Addr().String()
}

func tlsTo(t *testing.T, addr string) error {
	t.Helper()
	c, err := (&secure.TLS{}).Dial(t.Context(), &net.Dialer{}, addr)
	if err == nil {
		c.Close()
	}
	return err
}
