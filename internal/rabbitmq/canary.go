package rabbitmq

import (
	"context"
	"errors"

	"github.com/streadway/amqp"
)

// Canary publishes messages that only show whether the broker takes any. A
// broker with an alarm reports it only to connections that publish.
type Canary struct {
	conn          *Connection
	channel       *amqp.Channel
	exchange, key string
	body          []byte
	confirmed     <-chan amqp.Confirmation
	closed        <-chan *amqp.Error
	waiting       bool          // a message is on its way
	blocked       *BlockedError // until the broker takes it back
}

// NewCanary declares a queue that holds one message, drops the older one, and
// goes with the connection. A user that may not do that is an ErrForbidden.
func (c *Connection) NewCanary(ctx context.Context) (*Canary, error) {
	var canary *Canary
	err := c.Within(ctx, func() error {
		channel, err := c.Channel()
		if err != nil {
			return err
		}
		q, err := channel.QueueDeclare(ownName("canary"), false, true, true, false,
			amqp.Table{"x-max-length": int32(1)})
		if err != nil {
			return permission(err, "configure")
		}
		if err := channel.Confirm(false); err != nil {
			return err
		}
		canary = newCanary(c, channel, "", q.Name)
		return nil
	})
	return canary, err
}

// newCanary publishes on a channel that confirms. One message is on its way
// at a time, so one confirmation is, and nobody has to drain them.
func newCanary(conn *Connection, channel *amqp.Channel, exchange, key string) *Canary {
	return &Canary{conn: conn, channel: channel, exchange: exchange, key: key, body: []byte("st2ha"),
		confirmed: channel.NotifyPublish(make(chan amqp.Confirmation, 1)),
		closed:    channel.NotifyClose(make(chan *amqp.Error, 1))}
}

// Publish sends a message and waits until the broker has confirmed it. As long
// as the broker has an alarm it is a *BlockedError, and nothing more is sent.
// If ctx ends first, so does the connection.
func (c *Canary) Publish(ctx context.Context) error { return c.conn.Within(ctx, c.publish) }

func (c *Canary) publish() error {
	select {
	case b := <-c.conn.Blocked:
		c.setBlocked(b)
	default:
	}
	if c.blocked != nil {
		return c.blocked
	}
	if !c.waiting {
		if err := c.channel.Publish(c.exchange, c.key, false, false, amqp.Publishing{Body: c.body}); err != nil {
			return permission(err, "write")
		}
		c.waiting = true
	}
	for {
		select {
		case confirmation, ok := <-c.confirmed:
			if !ok {
				return permission(ended(<-c.closed), "write")
			}
			c.waiting = false
			if !confirmation.Ack {
				return errors.New("the broker did not take a message")
			}
			return nil
		case b, ok := <-c.conn.Blocked:
			if c.setBlocked(b); c.blocked != nil {
				return c.blocked
			}
			if !ok {
				return permission(ended(<-c.closed), "write")
			}
		}
	}
}

// setBlocked notes whether the broker has an alarm.
func (c *Canary) setBlocked(b amqp.Blocking) {
	if c.blocked = nil; b.Active {
		c.blocked = &BlockedError{b.Reason}
	}
}

// Ask has the broker answer something that takes no permission.
func (c *Connection) Ask(ctx context.Context) error {
	return c.Within(ctx, func() error {
		channel, err := c.Channel()
		if err != nil {
			return err
		}
		return channel.Close()
	})
}
