// Package relay carries events from the nodes' watchdogs to StackStorm's
// sensor, over a queue of RabbitMQ: at least once, so the reader tells
// repetitions by the message's id.
package relay

import (
	"context"
	"errors"
	"time"

	"github.com/streadway/amqp"

	"st2ha/internal/rabbitmq"
)

// Queue is the durable queue that holds them.
const Queue = "st2ha.events"

const (
	batch       = 64 // messages that are under way at a time
	answerTime  = 10 * time.Second
	firstPause  = time.Second // after a failure; it doubles
	longestWait = 30 * time.Second
)

// Dial makes a connection to a broker.
type Dial func(ctx context.Context) (*rabbitmq.Connection, error)

var errEnded = errors.New("the connection ended")

// link is a connection with one channel on which the queue is known to exist.
type link struct {
	conn    *rabbitmq.Connection
	channel *amqp.Channel
	closed  chan *amqp.Error
}

// open connects and declares the queue.
func open(ctx context.Context, dial Dial) (*link, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	l := &link{conn: conn}
	err = within(answerTime, func() error {
		if l.channel, err = conn.Channel(); err != nil {
			return err
		}
		// Buffered: the library sends while it holds the connection's mutex.
		l.closed = l.channel.NotifyClose(make(chan *amqp.Error, 1))
		_, err = l.channel.QueueDeclare(Queue, true, false, false, false, nil)
		return err
	})
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *link) close() { _ = l.conn.Close() }

// why is the error of a channel that has ended.
func why(err *amqp.Error) error {
	if err == nil {
		return errEnded
	}
	return err
}

// within bounds calls of the library that take no context. A call that hangs
// ends with the connection, which callers close.
func within(limit time.Duration, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(limit):
		return errors.New("no answer within " + limit.String())
	}
}

// pause waits ever longer, and is reset by a success.
type pause struct{ next time.Duration }

func (p *pause) wait(ctx context.Context) {
	p.next = min(max(p.next*2, firstPause), longestWait)
	select {
	case <-ctx.Done():
	case <-time.After(p.next):
	}
}

func (p *pause) reset() { p.next = 0 }
