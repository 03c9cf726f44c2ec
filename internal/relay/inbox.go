package relay

import (
	"context"
	"encoding/json"
	"log/slog"
	"sync"

	"github.com/streadway/amqp"
)

// remembered is how many ids of events that were taken are known.
const remembered = 10000

// Inbox reads events from the queue.
type Inbox struct {
	Dial Dial
	Log  *slog.Logger
	// Take is given each event once, as one line of JSON. It calls taken, which
	// does not block, when the event is in safe hands; until then the broker has it.
	Take func(line []byte, taken func())
}

// Run reads until ctx ends.
func (i *Inbox) Run(ctx context.Context) {
	var p pause
	known := &known{entries: map[string]*entry{}}
	for ctx.Err() == nil {
		if err := i.consume(ctx, known, &p); ctx.Err() == nil {
			i.Log.Debug("no events from the watchdogs for now", "error", err)
			p.wait(ctx)
		}
	}
}

// consume reads until the connection ends.
func (i *Inbox) consume(ctx context.Context, known *known, p *pause) error {
	l, err := open(ctx, i.Dial)
	if err != nil {
		return err
	}
	defer l.close()
	var deliveries <-chan amqp.Delivery
	err = within(answerTime, func() error {
		if err := l.channel.Qos(batch, 0, false); err != nil {
			return err
		}
		deliveries, err = l.channel.Consume(Queue, "", false, false, false, false, nil)
		return err
	})
	if err != nil {
		return err
	}
	p.reset()
	acks := make(chan uint64, batch) // no more are under way
	for {
		select {
		case <-ctx.Done():
			for len(acks) > 0 && l.ack(<-acks) == nil { // else they come once more
			}
			return nil
		case err := <-l.closed:
			return why(err)
		case tag := <-acks:
			if err := l.ack(tag); err != nil {
				return err
			}
		case d, ok := <-deliveries:
			if !ok {
				return errEnded
			}
			i.take(known, d, acks)
		}
	}
}

func (l *link) ack(tag uint64) error {
	return within(answerTime, func() error { return l.channel.Ack(tag, false) })
}

// take hands an event on, unless it is a repetition.
func (i *Inbox) take(known *known, d amqp.Delivery, acks chan<- uint64) {
	if len(d.Body) == 0 || !json.Valid(d.Body) {
		i.Log.Warn("a message in the queue is no event, and is dropped", "queue", Queue, "message_id", d.MessageId)
		acks <- d.DeliveryTag
		return
	}
	if known.add(d.MessageId, d.DeliveryTag, acks) {
		i.Take(d.Body, func() { known.taken(d.MessageId) })
	}
}

// known tells repetitions, which come after a connection has ended, the
// reader's or a sender's, before an acknowledgement or a confirmation arrived.
type known struct {
	mu      sync.Mutex
	entries map[string]*entry
	old     []string // ids that were taken, oldest first
}

// entry is an event that was handed on, and until it was taken its deliveries.
type entry struct {
	taken bool
	acks  chan<- uint64 // of the newest connection: deliveries of ended ones are void
	tags  []uint64
}

// add says whether an event is new. Its delivery is acknowledged once it was taken.
func (k *known) add(id string, tag uint64, acks chan<- uint64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.entries[id]
	isNew := e == nil
	if isNew {
		e = &entry{}
		k.entries[id] = e
	}
	if e.taken {
		acks <- tag
		return false
	}
	if e.acks != acks {
		e.acks, e.tags = acks, nil
	}
	e.tags = append(e.tags, tag)
	return isNew
}

// taken has an event acknowledged.
func (k *known) taken(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e := k.entries[id]
	if e == nil || e.taken {
		return
	}
	for _, tag := range e.tags {
		e.acks <- tag
	}
	*e = entry{taken: true}
	k.old = append(k.old, id)
	if len(k.old) > remembered {
		delete(k.entries, k.old[0])
		k.old = k.old[1:]
	}
}
