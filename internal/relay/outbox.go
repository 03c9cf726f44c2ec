package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/streadway/amqp"

	"st2ha/internal/spool"
)

// Outbox sends a spool's records to the queue.
type Outbox struct {
	Spool *spool.Spool
	Dial  Dial
	Log   *slog.Logger
	// Back, if it is there, says that the broker answers again: what failed is tried at once.
	Back <-chan struct{}
	// Refused, if it is there, is called once with the reason why the broker will never take them.
	Refused func(error)
}

// Run sends whatever the spool gets, as soon as a broker takes it, until ctx
// ends. A record counts as taken once the broker has confirmed it.
func (o *Outbox) Run(ctx context.Context) {
	p := pause{log: o.Log, refused: o.Refused, back: o.Back}
	for ctx.Err() == nil {
		if err := o.deliver(ctx, &p); err != nil {
			if ctx.Err() == nil {
				p.wait(ctx, err)
			}
			continue
		}
		select {
		case <-ctx.Done():
		case <-o.Spool.More():
		}
	}
}

// deliver sends until the connection ends; that is an error as long as records are left.
func (o *Outbox) deliver(ctx context.Context, p *pause) error {
	if records, err := o.Spool.Read(1); err != nil || len(records) == 0 {
		return err
	}
	l, err := open(ctx, o.Dial)
	if err != nil {
		return err
	}
	defer l.close()
	// Buffered for a whole batch: the library waits for whoever reads them.
	confirmed := l.channel.NotifyPublish(make(chan amqp.Confirmation, batch))
	returned := l.channel.NotifyReturn(make(chan amqp.Return, batch))
	if err := l.within(func() error { return l.channel.Confirm(false) }); err != nil {
		return err
	}
	for {
		records, err := o.Spool.Read(batch)
		if err != nil {
			return err
		}
		if len(records) == 0 {
			select {
			case <-ctx.Done():
				return nil
			case err := <-l.closed:
				o.Log.Debug("connection for events ended", "error", why(err))
				return nil
			case <-o.Spool.More():
				continue
			}
		}
		if err := o.send(ctx, l, records, confirmed, returned); err != nil {
			return err
		}
		broken := 0
		for _, r := range records {
			broken += r.Broken
		}
		if broken > 0 {
			o.Log.Error("events in the spool cannot be read, and are lost: look at the node's disk", "lost", broken)
		}
		if err := o.Spool.Taken(records[len(records)-1]); err != nil {
			return err
		}
		p.reset()
	}
}

// send publishes records and waits until the broker has confirmed them all.
func (o *Outbox) send(ctx context.Context, l *link, records []spool.Record, confirmed <-chan amqp.Confirmation,
	returned <-chan amqp.Return) error {
	err := l.within(func() error {
		for _, r := range records {
			message := amqp.Publishing{MessageId: r.ID, DeliveryMode: amqp.Persistent, ContentType: "application/json",
				Timestamp: time.Now(), Body: r.Data}
			if err := l.channel.Publish("", Queue, true, false, message); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	limit := time.NewTimer(answerTime)
	defer limit.Stop()
	for range records {
		select {
		case c, ok := <-confirmed:
			if !ok {
				return errEnded
			}
			if !c.Ack {
				return errors.New("the broker refused an event")
			}
		case err := <-l.closed:
			return why(err)
		case <-limit.C:
			return fmt.Errorf("no confirmation within %s", answerTime)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case r := <-returned: // it comes before the confirmation (AMQP 0-9-1, basic.return)
		return fmt.Errorf("the queue %s is gone: %s", Queue, r.ReplyText)
	default:
		return nil
	}
}
