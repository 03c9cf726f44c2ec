package rpcping

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed is a connection that the server ended.
var ErrClosed = errors.New("the server ended the connection")

// Conn is a connection to an NFS server. Calls may be made at once: answers
// are matched by transaction id, and those that come too late are dropped.
type Conn struct {
	conn       net.Conn
	privileged bool
	done       chan struct{} // closed when the connection has ended
	err        error         // why, once done is closed

	mu      sync.Mutex
	xid     uint32
	waiting map[uint32]chan reply
}

// Dial connects to the server at addr (host:port), from a source port below
// 1024 where this process may take one: exports are "secure" unless they say
// otherwise (exports(5)). The errors are those of package net. Close ends it.
func Dial(ctx context.Context, addr string) (*Conn, error) {
	conn, privileged, err := dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	// Closing resets the connection, so that no TIME_WAIT keeps the port.
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		conn.Close()
		return nil, err
	}
	c := &Conn{conn: conn, privileged: privileged, done: make(chan struct{}), xid: rand.Uint32(),
		waiting: map[uint32]chan reply{}}
	go c.read()
	return c, nil
}

// The reserved ports that the kernel's NFS client takes as well (min_resvport
// and max_resvport of sunrpc): daemons with fixed ports are seldom among them.
const (
	firstPort = 665
	lastPort  = 1023
)

func dial(ctx context.Context, addr string) (conn net.Conn, privileged bool, err error) {
	d := net.Dialer{
		Control: control,
		// A peer that has vanished is given up after some 2 s also when nothing is sent.
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2},
	}
	ports := lastPort - firstPort + 1
	start := rand.IntN(ports)
	for i := range ports {
		d.LocalAddr = &net.TCPAddr{Port: firstPort + (start+i)%ports}
		conn, err = d.DialContext(ctx, "tcp", addr)
		var call *os.SyscallError
		switch {
		case errors.Is(err, unix.EADDRINUSE), errors.Is(err, unix.EADDRNOTAVAIL):
			continue
		case errors.As(err, &call) && call.Syscall == "bind": // not root, and no CAP_NET_BIND_SERVICE
			d.LocalAddr = nil
			conn, err = d.DialContext(ctx, "tcp", addr)
			return conn, false, err
		}
		return conn, true, err
	}
	d.LocalAddr = nil
	conn, err = d.DialContext(ctx, "tcp", addr)
	return conn, false, err
}

// control sets the socket up before it is bound (tcp(7), socket(7)).
func control(_, _ string, raw syscall.RawConn) error {
	const unanswered = 1500 // milliseconds; data that is not acknowledged ends the connection then
	var err error
	if controlErr := raw.Control(func(fd uintptr) {
		// One reserved port serves connections to many servers, and does not
		// keep a daemon from listening on it.
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err == nil {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, unanswered)
		}
	}); controlErr != nil {
		return controlErr
	}
	return err
}

// Privileged says whether the source port is below 1024.
func (c *Conn) Privileged() bool { return c.privileged }

// Done is closed when the connection has ended, by either side.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Close ends the connection and all calls on it, and waits for its reader.
func (c *Conn) Close() {
	c.conn.Close()
	<-c.done
}

// Null makes the NULL call of a version of NFS: nil when the server answers,
// a *MismatchError when it does and lacks that version, which is as much alive.
func (c *Conn) Null(ctx context.Context, version uint32) error {
	_, err := c.call(ctx, version, 0, authNone(), nil)
	return err
}

// Export walks to an exported directory by NFSv4.0: nil when it is there, a
// *StatusError when the server says no. It leaves no state on the server.
func (c *Conn) Export(ctx context.Context, export string) error {
	const version, compound = 4, 1
	names, err := components(export)
	if err != nil {
		return err
	}
	result, err := c.call(ctx, version, compound, authSys(), encodeWalk(names))
	if err != nil {
		return err
	}
	return parseWalk(result, names)
}

// call sends one call and waits for its answer until ctx ends.
func (c *Conn) call(ctx context.Context, version, procedure uint32, cred, args []byte) ([]byte, error) {
	xid, answer := c.expect()
	defer c.forget(xid)
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetWriteDeadline(deadline); err != nil {
		return nil, c.ended(err)
	}
	if n, err := c.conn.Write(encodeCall(xid, version, procedure, cred, args)); err != nil {
		if n > 0 {
			c.conn.Close() // what follows half a record is no call
		}
		return nil, c.ended(err)
	}
	select {
	case r := <-answer:
		return r.result, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.done:
	}
	select {
	case r := <-answer: // the last thing that came
		return r.result, r.err
	default:
		return nil, c.err
	}
}

// ended prefers the reader's error to the one that a writer gets later.
func (c *Conn) ended(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return context.DeadlineExceeded
	}
	select {
	case <-c.done:
		return c.err
	default:
		return err
	}
}

func (c *Conn) expect() (uint32, <-chan reply) {
	answer := make(chan reply, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.xid++
	c.waiting[c.xid] = answer
	return c.xid, answer
}

func (c *Conn) forget(xid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, xid)
}

// read hands out answers until the connection ends. It has no deadline: each
// call has, and the socket's options end a connection whose peer has vanished.
func (c *Conn) read() {
	defer close(c.done)
	defer c.conn.Close()
	for {
		record, err := readRecord(c.conn)
		var r reply
		if err == nil {
			r, err = parseReply(record)
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
			c.err = ErrClosed
			return
		case err != nil:
			c.err = fmt.Errorf("%w: %w", ErrClosed, err)
			return
		}
		c.mu.Lock()
		answer := c.waiting[r.xid]
		delete(c.waiting, r.xid)
		c.mu.Unlock()
		if answer != nil {
			answer <- r
		}
	}
}
