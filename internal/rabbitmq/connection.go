package rabbitmq

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/streadway/amqp"

	"st2ha/internal/secure"
)

const (
	// heartbeat is asked for on every connection. It is a back-stop: who
	// watches a broker asks it something.
	heartbeat = 10 * time.Second
	// closeTime is what a broker gets to answer that a connection ends.
	closeTime = 300 * time.Millisecond
)

// Connection is a connection that can stay open for months and ends when it is
// closed. It guards against what streadway/amqp 1.1.0 leaves to its users; each
// guard's comment says what that is.
type Connection struct {
	*amqp.Connection
	// Closed gets the broker's or the network's reason once the connection has
	// ended, and is closed. It need not be read: the library sends to it while
	// it holds the connection's lock, so it has room for the one error there is.
	Closed <-chan *amqp.Error
	// Blocked holds the newest word of the broker on whether publishers are
	// blocked; it is closed with the connection. It need not be read either.
	Blocked <-chan amqp.Blocking

	raw *rawConn
}

// open makes an AMQP connection of a network connection, which is closed if
// that fails: the library leaves it, and the goroutine that reads it.
func open(ctx context.Context, conn net.Conn, l Login, beat time.Duration) (*Connection, error) {
	if beat < time.Second {
		beat = time.Second // less would mean the broker's own value to the library
	}
	raw := &rawConn{Conn: conn, frames: bufio.NewReader(conn), silence: 3 * beat, opening: true, long: shortener{}}
	properties := amqp.Table{"product": "st2ha"}
	// The library clears all deadlines before open returns, so that none could
	// end a handshake; and it has no context.
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	c, err := amqp.Open(raw, amqp.Config{
		SASL:       []amqp.Authentication{&auth{l.sasl(), properties}},
		Vhost:      l.VHost,
		Heartbeat:  beat,
		FrameSize:  maxFrame,
		Properties: properties,
	})
	inTime := stop()
	if err == nil && inTime {
		raw.opened()
		return newConnection(c, raw), nil
	}
	_ = raw.Close()
	if !inTime {
		return nil, fmt.Errorf("no answer to the login: %w", context.Cause(ctx))
	}
	return nil, raw.cause(l, err)
}

// newConnection has the library's notifications go to channels that never block it.
func newConnection(c *amqp.Connection, raw *rawConn) *Connection {
	news, blocked := c.NotifyBlocked(make(chan amqp.Blocking)), make(chan amqp.Blocking, 1)
	go func() {
		for b := range news {
			select {
			case <-blocked: // nobody took the former one
			default:
			}
			blocked <- b
		}
		close(blocked)
	}()
	return &Connection{Connection: c, Closed: c.NotifyClose(make(chan *amqp.Error, 1)), Blocked: blocked, raw: raw}
}

// Close ends the connection and returns when it has ended. The library waits
// for the broker's answer, for over 8 s when that has blocked the connection.
func (c *Connection) Close() error {
	late := time.AfterFunc(closeTime, func() { _ = c.raw.Close() })
	defer late.Stop()
	return c.Connection.Close()
}

// Within does what the library offers without a context. If ctx ends first, so
// does the connection, and f with it: nothing goes on behind the caller's back.
func (c *Connection) Within(ctx context.Context, f func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = c.raw.Close() })
	err := f()
	if !stop() {
		return fmt.Errorf("no answer: %w", context.Cause(ctx))
	}
	return err
}

// sasl is the login's method.
func (l Login) sasl() amqp.Authentication {
	if l.Method == "EXTERNAL" {
		return external{}
	}
	return &amqp.PlainAuth{Username: l.User, Password: l.Password}
}

// external has the broker take the user from the client's certificate.
type external struct{}

func (external) Mechanism() string { return "EXTERNAL" }
func (external) Response() string  { return "" }

// auth logs in, and has the broker report a refusal at once.
type auth struct {
	amqp.Authentication
	properties amqp.Table
}

// Response is asked for between the moment when the library has set its
// capabilities and the one when it sends them: the place to add the one that asks
// for the reason of a refusal. Without it RabbitMQ waits, and then closes the
// connection without a reason (RabbitMQ, "Authentication Failure Notifications").
func (a *auth) Response() string {
	if capabilities, ok := a.properties["capabilities"].(amqp.Table); ok {
		capabilities["authentication_failure_close"] = true
	}
	return a.Authentication.Response()
}

// rawConn is the network connection below the library, which gets only frames
// that it can be given.
type rawConn struct {
	net.Conn
	silence time.Duration // the longest the broker may have nothing to say

	frames *bufio.Reader
	frame  []byte // the one that is being read
	unread []byte // of it
	long   shortener

	mu       sync.Mutex
	dialogue dialogue
	opening  bool
	said     *amqp.Error // the broker's reason to close, while opening
	failed   error       // reading did, while opening
}

// SetDeadline takes the zero time for the time of three heartbeats: the
// library clears the deadline when it has opened a connection, and sets one
// only after the next frame, which never comes if the network is cut just then.
func (r *rawConn) SetDeadline(at time.Time) error {
	if at.IsZero() {
		at = time.Now().Add(r.silence)
	}
	return r.Conn.SetDeadline(at)
}

// Write has a deadline each time; the library sets none.
func (r *rawConn) Write(p []byte) (int, error) {
	if err := r.SetWriteDeadline(time.Now().Add(r.silence)); err != nil {
		return 0, err
	}
	r.mu.Lock()
	r.dialogue.sent(p) // before it is: the answer may be quick
	r.mu.Unlock()
	return r.Conn.Write(p)
}

// Read gives the library one frame after the other, and remembers how a
// handshake ends.
func (r *rawConn) Read(p []byte) (int, error) {
	if len(r.unread) == 0 {
		frame, passes, err := r.frame, false, error(nil)
		for !passes && err == nil {
			if frame, err = readFrame(r.frames, frame); err == nil {
				passes, err = r.long.passes(frame)
			}
			if !passes && err == nil { // the library would do so after a frame
				err = r.SetReadDeadline(time.Now().Add(r.silence))
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if err == nil {
			err = r.dialogue.received(frame)
		}
		if err != nil {
			if r.opening && r.failed == nil && !errors.Is(err, net.ErrClosed) {
				r.failed = err
			}
			return 0, err
		}
		if r.opening && r.said == nil {
			r.said = closeReason(frame)
		}
		r.frame, r.unread = frame, frame
	}
	n := copy(p, r.unread)
	r.unread = r.unread[n:]
	return n, nil
}

func (r *rawConn) opened() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.opening = false
}

// cause is why a handshake failed. To the library all that goes wrong in it is
// a refused login or vhost, also a broker that was killed just then.
func (r *rawConn) cause(l Login, err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	said := r.said
	switch {
	case errors.Is(err, amqp.ErrSASL):
		return fmt.Errorf("%w: %w", &secure.UnaskableError{Why: "it offers no login by " + l.sasl().Mechanism()}, err)
	case said != nil && said.Code == amqp.AccessRefused:
		// Only the broker's log says which of the two it is.
		return fmt.Errorf("%w: user %s does not exist, or has another password", ErrRefused, l.User)
	case said != nil && said.Code == amqp.NotAllowed:
		return fmt.Errorf("%w: %s", ErrRefused, Words(said))
	case said != nil:
		return said
	case errors.Is(r.failed, errFrame):
		return r.failed
	case r.failed != nil:
		return fmt.Errorf("the connection ended while it was opened: %w", secure.Explain(r.failed))
	}
	return err
}
