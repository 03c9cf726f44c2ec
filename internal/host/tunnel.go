package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"st2ha/internal/fault"
)

// DialContext connects from the far side, through sshd's direct-tcpip.
func (s *SSH) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if err := s.begin(); err != nil {
		return nil, fmt.Errorf("dial %s from %s: %w", addr, s.name, err)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		defer s.wg.Done()
		conn, err := s.client.Dial(network, addr)
		select {
		case <-ctx.Done(): // nobody waits any more
			if conn != nil {
				conn.Close()
			}
			err = ctx.Err()
			conn = nil
		default:
		}
		done <- result{conn, err}
	}()
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		r.err = ctx.Err()
		select {
		case late := <-done: // both were ready
			if late.conn != nil {
				late.conn.Close()
			}
		default:
		}
	}
	if r.err != nil {
		return nil, s.dialError(network, addr, r.err)
	}
	conn, err := s.bridge(r.conn, network, addr)
	if err != nil {
		return nil, s.dialError(network, addr, err)
	}
	return conn, nil
}

// dialError gives a refusal by the far side the errno it had there, so that
// callers need not know that there is a tunnel.
func (s *SSH) dialError(network, addr string, err error) error {
	var open *ssh.OpenChannelError
	if !errors.As(err, &open) {
		return fmt.Errorf("dial %s from %s: %w", addr, s.name, s.lost(err))
	}
	if open.Reason == ssh.Prohibited {
		return fault.Failed("forwarding", fmt.Sprintf("set AllowTcpForwarding yes (or local) in sshd_config on %s, also where a Match block has it, and reload sshd", s.name),
			"dial %s from %s: sshd forbids forwarding: %w", addr, s.name, err)
	}
	for words, errno := range map[string]syscall.Errno{
		"Connection refused":     syscall.ECONNREFUSED,
		"Connection timed out":   syscall.ETIMEDOUT,
		"No route to host":       syscall.EHOSTUNREACH,
		"Network is unreachable": syscall.ENETUNREACH,
	} {
		if strings.Contains(open.Message, words) {
			err = farErrno{errno}
		}
	}
	return fmt.Errorf("from %s: %w", s.name, &net.OpError{Op: "dial", Net: network, Addr: address{network, addr}, Err: err})
}

// farErrno is an errno of the far side's connect.
type farErrno struct{ errno syscall.Errno }

func (e farErrno) Error() string   { return "connect: " + e.errno.Error() }
func (e farErrno) Unwrap() error   { return e.errno }
func (e farErrno) Timeout() bool   { return e.errno.Timeout() }
func (e farErrno) Temporary() bool { return e.errno.Temporary() }

// Is makes a timeout over there the timeout that callers look for here.
func (e farErrno) Is(target error) bool {
	return target == os.ErrDeadlineExceeded && e.errno == syscall.ETIMEDOUT
}

type address struct{ network, addr string }

func (a address) Network() string { return a.network }
func (a address) String() string  { return a.addr }

// tunnel is one end of a pipe whose other end is pumped to and from an SSH
// channel: channels know no deadlines, and drivers need them.
type tunnel struct {
	net.Conn
	local, remote net.Addr
}

func (t tunnel) LocalAddr() net.Addr  { return t.local }
func (t tunnel) RemoteAddr() net.Addr { return t.remote }

func (s *SSH) bridge(far net.Conn, network, addr string) (net.Conn, error) {
	if err := s.begin(); err != nil {
		far.Close()
		return nil, err
	}
	near, inner := net.Pipe()
	received, sent := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(received)
		io.Copy(inner, far)
		inner.Close() // the caller reads what is left, then EOF
	}()
	go func() {
		defer close(sent)
		io.Copy(far, inner)
	}()
	go func() {
		defer s.wg.Done()
		select {
		case <-sent: // closed by the caller, all it wrote is on its way
		case <-received:
		}
		far.Close()
		inner.Close()
		<-received
		<-sent
	}()
	// A writer that waits for a window the far side never opens is let go by
	// the channel's end only.
	return &closer{tunnel: tunnel{near, address{network, s.name}, address{network, addr}}, linger: func() {
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-sent:
		case <-t.C:
			far.Close()
		}
	}, s: s}, nil
}

// closer is a tunnel that bounds what its Close leaves behind.
type closer struct {
	tunnel
	s      *SSH
	linger func()
}

// Close ends the connection; what was written is still sent.
func (c *closer) Close() error {
	err := c.tunnel.Close()
	if c.s.begin() == nil {
		go func() {
			defer c.s.wg.Done()
			c.linger()
		}()
	}
	return err
}
