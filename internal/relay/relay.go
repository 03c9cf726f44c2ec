// Package relay carries events from the nodes' watchdogs to StackStorm's
// sensor, over a queue of RabbitMQ: at least once, so the reader tells
// repetitions by the message's id.
package relay

import (
	"context"
	"errors"
	"log/slog"
	"slices"
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
	err = l.within(func() error {
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

// within bounds calls of the library that take no context.
func (l *link) within(f func() error) error {
	ctx, cancel := context.WithTimeout(context.Background(), answerTime)
	defer cancel()
	return l.conn.Within(ctx, f)
}

// why is the error of a channel that has ended.
func why(err *amqp.Error) error {
	if err == nil {
		return errEnded
	}
	return err
}

// pause waits ever longer after failures, and is reset by a success. It says
// once what only people can end: a login, a vhost or a queue that is refused.
type pause struct {
	log     *slog.Logger
	refused func(error)     // or nil
	back    <-chan struct{} // or nil: the broker answers again, so the next attempt is due
	next    time.Duration
	said    string // of a refusal
}

func (p *pause) wait(ctx context.Context, err error) {
	p.next = min(max(p.next*2, firstPause), longestWait)
	if !isRefused(err) {
		p.log.Debug("events cannot be sent or read for now", "error", err)
	} else {
		p.next = longestWait
		if text := err.Error(); text != p.said {
			p.said = text
			p.log.Warn("events cannot be relayed until somebody mends that", "queue", Queue, "error", err)
			if p.refused != nil {
				p.refused(err)
			}
		}
	}
	due := time.NewTimer(p.next)
	defer due.Stop()
	select {
	case <-ctx.Done():
	case <-due.C:
	case <-p.back:
	}
}

func (p *pause) reset() { p.next, p.said = 0, "" }

// isRefused tells a refusal, which the broker repeats as often as it is asked,
// from a broker that is away (AMQP 0-9-1, section 1.2: reply codes).
func isRefused(err error) bool {
	if errors.Is(err, rabbitmq.ErrRefused) {
		return true
	}
	var said *amqp.Error
	return errors.As(err, &said) && slices.Contains([]int{amqp.AccessRefused, amqp.PreconditionFailed, amqp.NotAllowed,
		amqp.ResourceLocked}, said.Code)
}
