// Package rabbitmq opens a RabbitMQ broker to the other nodes: listener,
// vhost, user and permissions.
package rabbitmq

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/streadway/amqp"
)

// answerTime bounds one conversation with a broker.
const answerTime = 5 * time.Second

// ContextDialer is what connections are made with: a host.
type ContextDialer interface {
	DialContext(ctx context.Context, network, addr string) (net.Conn, error)
}

// Login is how a client presents itself.
type Login struct {
	Addr     string // host:port
	User     string
	Password string
	VHost    string
}

// ErrRefused is a login the broker does not accept: no such user, another
// password, or no permission for the vhost.
var ErrRefused = errors.New("login refused")

// Dial opens a connection. ErrRefused is told from a broker that is away.
func Dial(ctx context.Context, d ContextDialer, l Login) (*amqp.Connection, error) {
	var raw net.Conn
	conn, err := amqp.DialConfig("amqp://"+l.Addr, amqp.Config{
		SASL:      []amqp.Authentication{&amqp.PlainAuth{Username: l.User, Password: l.Password}},
		Vhost:     l.VHost,
		Heartbeat: 10 * time.Second,
		Dial: func(network, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, answerTime)
			defer cancel()
			var err error
			if raw, err = d.DialContext(ctx, network, addr); err != nil {
				return nil, err
			}
			return raw, raw.SetDeadline(time.Now().Add(answerTime))
		},
	})
	if err == nil {
		return conn, nil
	}
	if raw != nil {
		_ = raw.Close() // the library leaves it open (streadway/amqp: DialConfig)
	}
	var said *amqp.Error
	if errors.As(err, &said) && (said.Code == amqp.AccessRefused || said.Code == amqp.NotAllowed) {
		return nil, fmt.Errorf("%w: %s", ErrRefused, said.Reason)
	}
	return nil, err
}

// Listens says whether an AMQP broker answers at addr (host:port).
func Listens(ctx context.Context, d ContextDialer, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(answerTime))
	// AMQP 0-9-1, section 2.2.4: the protocol header, answered by
	// Connection.Start: a method frame (1) on channel 0.
	if _, err := conn.Write([]byte("AMQP\x00\x00\x09\x01")); err != nil {
		return err
	}
	frame := make([]byte, 3)
	if _, err := conn.Read(frame); err != nil {
		return err
	}
	if frame[0] != 1 || frame[1] != 0 || frame[2] != 0 {
		return errors.New("what answers is no AMQP 0-9-1 broker")
	}
	return nil
}

// Works logs in and uses the permissions to configure, write and read: it
// declares a queue of its own, publishes to it and takes the message out. The
// queue is gone when the connection ends.
func Works(ctx context.Context, d ContextDialer, l Login) error {
	conn, err := Dial(ctx, d, l)
	if err != nil {
		return err
	}
	defer closeConnection(conn)
	name := make([]byte, 8)
	_, _ = rand.Read(name)
	queue := "st2ha.check." + hex.EncodeToString(name)
	return within(answerTime, func() error {
		channel, err := conn.Channel()
		if err != nil {
			return err
		}
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
		confirmed := channel.NotifyPublish(make(chan amqp.Confirmation, 1))
		closed := channel.NotifyClose(make(chan *amqp.Error, 1))
		if err := channel.Publish(queue, "", false, false, amqp.Publishing{Body: []byte("st2ha")}); err != nil {
			return permission(err, "write")
		}
		select {
		case <-confirmed:
		case err := <-closed:
			if err == nil {
				return errors.New("the connection ended")
			}
			return permission(err, "write")
		}
		if _, ok, err := channel.Get(queue, true); err != nil || !ok {
			return permission(err, "read")
		}
		return nil
	})
}

// permission names the permission that a refused operation needs.
func permission(err error, which string) error {
	var said *amqp.Error
	if errors.As(err, &said) && said != nil && said.Code == amqp.AccessRefused {
		return fmt.Errorf("%w: no permission to %s: %s", ErrRefused, which, said.Reason)
	}
	if err == nil {
		return errors.New("a message that was just published could not be read")
	}
	return err
}

// within bounds calls of the library that take no context.
func within(limit time.Duration, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		return fmt.Errorf("no answer within %s", limit)
	}
}

// closeConnection does not wait for a broker that has blocked the connection:
// the library's Close would (over 8 s measured).
func closeConnection(conn *amqp.Connection) {
	_ = within(500*time.Millisecond, conn.Close)
}

// Consumers returns how many consumers a queue has. A queue that does not
// exist has none.
func Consumers(ctx context.Context, d ContextDialer, l Login, queue string) (int, error) {
	conn, err := Dial(ctx, d, l)
	if err != nil {
		return 0, err
	}
	defer closeConnection(conn)
	count := 0
	err = within(answerTime, func() error {
		channel, err := conn.Channel()
		if err != nil {
			return err
		}
		q, err := channel.QueueInspect(queue)
		var said *amqp.Error
		if errors.As(err, &said) && said.Code == amqp.NotFound {
			return nil
		}
		count = q.Consumers
		return err
	})
	return count, err
}
