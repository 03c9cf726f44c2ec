package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
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

// ErrNotTried is a connection from another host that its sshd did not make, for
// a reason of its own (a name that it cannot resolve, no descriptors): nothing is
// known of the server.
var ErrNotTried = errors.New("sshd did not make the connection")

// dialError gives a refusal by the far side the errno it had there, so that
// callers need not know that there is a tunnel.
func (s *SSH) dialError(network, addr string, err error) error {
	var open *ssh.OpenChannelError
	if !errors.As(err, &open) {
		return fmt.Errorf("dial %s from %s: %w", addr, s.name, s.lost(err))
	}
	if open.Reason == ssh.Prohibited {
		return fault.Failed("forwarding",
			fmt.Sprintf("set AllowTcpForwarding yes (or local) in sshd_config on %s, also where a Match block has "+
				"it, and reload sshd", s.name),
			"dial %s from %s: sshd forbids forwarding: %w", addr, s.name, err)
	}
	tried := false
	for words, errno := range map[string]syscall.Errno{
		"Connection refused":     syscall.ECONNREFUSED,
		"Connection timed out":   syscall.ETIMEDOUT,
		"No route to host":       syscall.EHOSTUNREACH,
		"Network is unreachable": syscall.ENETUNREACH,
	} {
		if strings.Contains(open.Message, words) {
			err, tried = farErrno{errno}, true
		}
	}
	if !tried {
		err = fmt.Errorf("%w: %w", ErrNotTried, err)
	}
	return fmt.Errorf("from %s: %w", s.name,
		&net.OpError{Op: "dial", Net: network, Addr: address{network, addr}, Err: err})
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

// tunnel is a connection through an SSH channel. Channels know no deadlines,
// and drivers need them, so what is read and what is written goes through a
// pipe each; one pipe for both could not end in one direction only.
type tunnel struct {
	in, out       net.Conn
	local, remote net.Addr
	shut          atomic.Bool
	closing       chan struct{} // closed by Close
}

// bridge pumps to and from the channel until the caller closes the connection
// or the SSH connection ends.
func (s *SSH) bridge(far net.Conn, network, addr string) (net.Conn, error) {
	if err := s.begin(); err != nil {
		far.Close()
		return nil, err
	}
	in, received := net.Pipe()
	out, toSend := net.Pipe()
	ended, sent, closing := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		io.Copy(received, far)
		received.Close() // the caller reads what is left, then EOF
	}()
	go func() {
		defer close(sent)
		io.Copy(far, toSend)
		toSend.Close()
	}()
	go func() {
		defer s.wg.Done()
		select {
		case <-closing:
			// What was written is sent first, unless the far side takes no more.
			t := time.NewTimer(grace)
			defer t.Stop()
			select {
			case <-sent:
			case <-t.C:
			case <-s.gone:
			}
		case <-s.gone:
		}
		far.Close()
		received.Close()
		toSend.Close()
		<-ended
		<-sent
	}()
	return &tunnel{in: in, out: out, local: address{network, s.name},
		remote: address{network, addr}, closing: closing}, nil
}

// netError makes a pipe's errors those of a network connection.
func (t *tunnel) netError(err error) error {
	switch {
	case !errors.Is(err, io.ErrClosedPipe):
		return err
	case t.shut.Load():
		return net.ErrClosed
	}
	return syscall.EPIPE
}

func (t *tunnel) Read(b []byte) (int, error) {
	n, err := t.in.Read(b)
	return n, t.netError(err)
}

func (t *tunnel) Write(b []byte) (int, error) {
	n, err := t.out.Write(b)
	return n, t.netError(err)
}

func (t *tunnel) LocalAddr() net.Addr  { return t.local }
func (t *tunnel) RemoteAddr() net.Addr { return t.remote }

func (t *tunnel) SetReadDeadline(d time.Time) error  { return t.deadline(t.in.SetReadDeadline(d)) }
func (t *tunnel) SetWriteDeadline(d time.Time) error { return t.deadline(t.out.SetWriteDeadline(d)) }
func (t *tunnel) SetDeadline(d time.Time) error {
	return cmp.Or(t.SetReadDeadline(d), t.SetWriteDeadline(d))
}

// deadline leaves it to the next Read to report that the far side has ended, as
// a socket does.
func (t *tunnel) deadline(err error) error {
	if err = t.netError(err); err == syscall.EPIPE {
		return nil
	}
	return err
}

// Close ends the connection; what was written is still sent.
func (t *tunnel) Close() error {
	if t.shut.Swap(true) {
		return net.ErrClosed
	}
	close(t.closing)
	return errors.Join(t.in.Close(), t.out.Close())
}
