// Package rabbitmq opens a RabbitMQ broker to the other nodes: listener,
// vhost, user and permissions.
package rabbitmq

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/streadway/amqp"

	"st2ha/internal/secure"
)

// answerTime bounds one conversation with a broker.
const answerTime = 5 * time.Second

// Login is how a client presents itself.
type Login struct {
	Addr     string // host:port
	User     string
	Password string
	VHost    string
	Method   string      // of SASL: EXTERNAL, or else by user and password
	TLS      *secure.TLS // nil: without
}

// ErrRefused is a login the broker does not accept: no such user, another
// password, or no permission for the vhost.
var ErrRefused = errors.New("login refused")

// ErrForbidden is a login that is accepted, of a user who may not do what is
// needed. It is an ErrRefused as well.
var ErrForbidden = errors.New("no permission")

// BlockedError is a broker that takes no messages until its alarm is over.
type BlockedError struct {
	Reason string // the broker's: low on memory, low on disk
}

// Error names the alarm as RabbitMQ's documentation does.
func (e *BlockedError) Error() string {
	if alarm, ok := strings.CutPrefix(e.Reason, "low on "); ok {
		return alarm + " alarm: publishers are blocked"
	}
	return "publishers are blocked: " + e.Reason
}

// Words is the broker's message, without the constant's name before it.
func Words(e *amqp.Error) string {
	if name, words, ok := strings.Cut(e.Reason, " - "); ok && name == strings.ToUpper(name) {
		return words
	}
	return e.Reason
}

// Dial opens a connection. A refused login is ErrRefused, a broker that is away is not.
func Dial(ctx context.Context, d secure.ContextDialer, l Login) (*Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := l.TLS.Dial(ctx, d, l.Addr)
	if err != nil {
		return nil, err
	}
	c, err := open(ctx, conn, l, heartbeat)
	if err != nil && l.TLS == nil {
		err = secure.ExplainEnd(ctx, d, l.Addr, err)
	}
	return c, err
}

// Listens says whether an AMQP broker answers at addr (host:port), with TLS or without.
func Listens(ctx context.Context, d secure.ContextDialer, addr string) error {
	return secure.Answers(ctx, d, addr, greet)
}

func greet(conn net.Conn) error {
	// AMQP 0-9-1, section 2.2.4: the protocol header, answered by
	// Connection.Start: a method frame (1) on channel 0.
	if _, err := conn.Write([]byte("AMQP\x00\x00\x09\x01")); err != nil {
		return err
	}
	frame := make([]byte, 3)
	if _, err := io.ReadFull(conn, frame); err != nil {
		return err
	}
	if err := secure.ExplainAnswer(frame); err != nil {
		return err
	}
	if frame[0] != 1 || frame[1] != 0 || frame[2] != 0 {
		return errFrame
	}
	return nil
}

// Works logs in and uses the permissions to configure, write and read: it
// declares a queue of its own, publishes to it and takes the message out. The
// queue is gone when the connection ends. A broker with an alarm is a
// *BlockedError.
func Works(ctx context.Context, d secure.ContextDialer, l Login) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := Dial(ctx, d, l)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Within(ctx, func() error { return works(conn) })
}

func works(conn *Connection) error {
	channel, err := conn.Channel()
	if err != nil {
		return err
	}
	queue := ownName("check")
	if _, err := channel.QueueDeclare(queue, false, true, true, false, nil); err != nil {
		return permission(err, "configure")
	}
	// The default exchange needs no permission to write, so one of its own is used.
	if err := channel.ExchangeDeclare(queue, amqp.ExchangeFanout, false, true, false, false, nil); err != nil {
		return permission(err, "configure")
	}
	if err := channel.QueueBind(queue, "", queue, false, nil); err != nil {
		return permission(err, "write")
	}
	if err := channel.Confirm(false); err != nil {
		return err
	}
	if err := newCanary(conn, channel, queue, "").publish(); err != nil {
		return err
	}
	if _, ok, err := channel.Get(queue, true); err != nil || !ok {
		return permission(err, "read")
	}
	return nil
}

// ownName is a name that no other queue or exchange has.
func ownName(purpose string) string {
	name := make([]byte, 8)
	_, _ = rand.Read(name)
	return "st2ha." + purpose + "." + hex.EncodeToString(name)
}

// ended is the error of a channel or connection that has ended.
func ended(err *amqp.Error) error {
	if err == nil {
		return errors.New("the connection ended")
	}
	return err
}

// permission names the permission that a refused operation needs.
func permission(err error, which string) error {
	var said *amqp.Error
	if errors.As(err, &said) && said.Code == amqp.AccessRefused {
		return fmt.Errorf("%w: %w to %s: %s", ErrRefused, ErrForbidden, which, Words(said))
	}
	if err == nil {
		return errors.New("a message that was just published could not be read")
	}
	return err
}

// Queue is what a broker says of a queue (AMQP 0-9-1, queue.declare-ok).
type Queue struct {
	Messages  int // that wait for a consumer; those under way are not counted
	Consumers int
}

// Inspect asks for queues by name. One that does not exist is empty and has no
// consumers.
func Inspect(ctx context.Context, d secure.ContextDialer, l Login, queues ...string) (map[string]Queue, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := Dial(ctx, d, l)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.Inspect(ctx, queues...)
}

// Inspect is as the function of that name, on a connection that is there.
func (c *Connection) Inspect(ctx context.Context, queues ...string) (map[string]Queue, error) {
	found := map[string]Queue{}
	err := c.Within(ctx, func() error {
		for _, queue := range queues {
			// The broker closes the channel of a question for a queue that is not there.
			channel, err := c.Channel()
			if err != nil {
				return err
			}
			q, err := channel.QueueInspect(queue)
			var said *amqp.Error
			if errors.As(err, &said) && said.Code == amqp.NotFound {
				continue
			}
			if err != nil {
				return permission(err, "read")
			}
			found[queue] = Queue{Messages: q.Messages, Consumers: q.Consumers}
			if err := channel.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	return found, err
}
