package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/streadway/amqp"

	"st2ha/internal/secure"
)

// Turn is a turn at work that is done by one at a time in the whole cluster,
// and with a gap between the end of one and the begin of the next.
//
// The broker is where all nodes meet: it keeps the turn as a queue that is
// exclusive to one connection, and the gap as a message that lives for so long
// in a second queue. So no clock but the broker's counts, and nobody has to tidy
// up after a holder that was killed: its queue goes with its connection, at once
// if its kernel closes that, after two missed heartbeats if its node is gone. A
// holder that hangs loses it after its limit.
//
// How it fails: a broker that cannot be asked, or that refuses the user these
// queues, is an error, and the work is not done. A broker that restarts forgets
// both turn and gap; the holder's context ends with its connection, so two work
// at once for no longer than it takes to notice that. In a cluster of brokers that
// is cut in two and goes on in both halves (cluster_partition_handling = ignore)
// each half has a turn of its own.
type Turn struct {
	conn   *Connection
	canary *Canary
	cancel context.CancelFunc
	limit  *time.Timer
	by     string
	now    func() time.Time
}

// BusyError is a turn that is another one's, or a gap that is not over.
type BusyError struct {
	Work  string
	Last  string    // who had the last turn, and when; empty while another has it
	Until time.Time // when it may be tried again, by this machine's clock
}

// Error says who had it and when it may be tried.
func (e *BusyError) Error() string {
	if e.Last == "" {
		return fmt.Sprintf("another %s is at work in this cluster; it may be tried again at %s", e.Work,
			e.Until.UTC().Format(time.RFC3339))
	}
	return fmt.Sprintf("the last %s was a moment ago (%s); it may be tried again at %s", e.Work, e.Last,
		e.Until.UTC().Format(time.RFC3339))
}

// TakeTurn takes a turn, and does not wait for one. The context that it returns
// ends when the turn is lost, and after limit. by names who takes it, for people.
// If somebody else has the turn, or the gap is not over, the error is a *BusyError.
func TakeTurn(ctx context.Context, d secure.ContextDialer, l Login, work, by string, gap,
	limit time.Duration) (*Turn, context.Context, error) {
	asking, done := context.WithTimeout(ctx, answerTime)
	defer done()
	conn, err := Dial(asking, d, l)
	if err != nil {
		return nil, nil, err
	}
	t := &Turn{conn: conn, by: by, now: time.Now}
	if err := conn.Within(asking, func() error { return t.acquire(work, gap) }); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	// Noted at its begin, too: a holder that is killed leaves the gap behind.
	if err := t.note(asking); err != nil {
		_ = conn.Close()
		return nil, nil, err
	}
	working, cancel := context.WithCancelCause(ctx)
	t.cancel = func() { cancel(context.Canceled) }
	t.limit = time.AfterFunc(limit, func() {
		cancel(fmt.Errorf("the turn's %s are over", limit))
		_ = conn.raw.Close()
	})
	go func() {
		if err := <-conn.Closed; working.Err() == nil {
			cancel(fmt.Errorf("the turn is lost: %w", ended(err)))
		}
	}()
	return t, working, nil
}

// acquire declares both queues, and reads that of the gap, which only the holder of the turn does.
func (t *Turn) acquire(work string, gap time.Duration) error {
	channel, err := t.conn.Channel()
	if err != nil {
		return err
	}
	var said *amqp.Error
	switch _, err := channel.QueueDeclare("st2ha."+work+".turn", false, true, true, false, nil); {
	case errors.As(err, &said) && said.Code == amqp.ResourceLocked:
		return &BusyError{Work: work, Until: t.now().Add(gap)}
	case err != nil:
		return permission(err, "configure")
	}
	// It goes by itself when it was not used for some time.
	last, err := channel.QueueDeclare("st2ha."+work+".last", false, false, false, false,
		amqp.Table{"x-max-length": int32(1),
			"x-message-ttl": int32(gap.Milliseconds()), "x-expires": int32(10 * gap.Milliseconds())})
	if err != nil {
		return permission(err, "configure")
	}
	before, found, err := channel.Get(last.Name, false)
	if err != nil {
		return permission(err, "read")
	}
	if found {
		if err := before.Nack(false, true); err != nil { // with the time that it has left (RabbitMQ, TTL)
			return err
		}
		return busy(work, before.Body, gap, t.now())
	}
	if err := channel.Confirm(false); err != nil {
		return err
	}
	t.canary = newCanary(t.conn, channel, "", last.Name)
	return nil
}

// busy reads what the last holder left. Its clock may be another node's: what
// it says is believed only where the gap makes it possible.
func busy(work string, body []byte, gap time.Duration, now time.Time) *BusyError {
	e := &BusyError{Work: work, Until: now.Add(gap), Last: "by whom it does not say"}
	stamp, by, ok := strings.Cut(string(body[:min(len(body), 300)]), " ")
	if at, err := time.Parse(time.RFC3339, stamp); err == nil && ok {
		e.Last = by + ", " + at.UTC().Format(time.RFC3339)
		if until := at.Add(gap); until.After(now) && until.Before(e.Until) {
			e.Until = until
		}
	}
	return e
}

// note begins the gap anew.
func (t *Turn) note(ctx context.Context) error {
	t.canary.body = []byte(t.now().UTC().Format(time.RFC3339) + " " + t.by)
	return t.canary.Publish(ctx)
}

// Done ends the turn; the gap begins. An error says that it did not, and the
// next one may follow sooner.
func (t *Turn) Done(ctx context.Context) error {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
	defer done()
	t.limit.Stop()
	t.cancel()
	err := t.note(ctx)
	_ = t.conn.Close()
	return err
}
