package relay

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/streadway/amqp"

	"st2ha/internal/wait"
)

const (
	remembered  = 10000       // ids of events that were taken
	maxEvent    = 64 << 10    // bytes
	maxFields   = 64          // of an event
	unreadPause = time.Minute // between two reports of messages that are no events

	standbyPause = 5 * time.Second // whether the queue is free
	takeOver     = longestWait * 2 // after a connection was lost: the other one's pauses are shorter
)

var fieldName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)

// Inbox reads events from the queue.
type Inbox struct {
	Dial Dial
	Log  *slog.Logger
	// Handle is given each event once, as one line of JSON. It calls taken, which
	// does not block, when the event is in safe hands; until then the broker has it.
	Handle func(line []byte, taken func())
	// Back, if it is there, says that the broker answers again: what failed is tried at once.
	Back <-chan struct{}
	// Refused, if it is there, is called once with the reason why the broker will never give them.
	Refused func(error)
	// Standby, if it is there, has one reader at a time have the queue, of all
	// that set it, and is called when this one is not it (true), and when it is
	// again. What the others see belongs into the queue then: so whatever the
	// nodes see comes together in one place.
	Standby func(bool)

	standby bool // another one has the queue
	alone   bool // since that was said the connection was lost

	takeOver time.Duration // a test's; takeOver if 0

	unread int       // messages that were no events
	warned time.Time // of them
}

// Run reads until ctx ends.
func (i *Inbox) Run(ctx context.Context) {
	p := pause{log: i.Log, refused: i.Refused, back: i.Back}
	known := &known{entries: map[string]*entry{}}
	for ctx.Err() == nil {
		err := i.consume(ctx, known, &p)
		switch {
		case ctx.Err() != nil:
		case taken(err):
			i.alone = false
			i.setStandby(true)
			_ = wait.Sleep(ctx, standbyPause)
		default:
			i.alone = true
			if isRefused(err) { // for good: nobody is known to read what would be sent there
				i.setStandby(false)
			}
			p.wait(ctx, err)
		}
	}
}

// setStandby notes whether another one has the queue.
func (i *Inbox) setStandby(by bool) {
	if i.standby == by || i.Standby == nil {
		return
	}
	i.standby = by
	i.Log.Info("events of all nodes are read by one sensor", "queue", Queue, "this_one", !by)
	i.Standby(by)
}

// taken says whether somebody else reads the queue alone (RabbitMQ, exclusive consumers).
func taken(err error) bool {
	var said *amqp.Error
	return errors.As(err, &said) && said.Code == amqp.AccessRefused && strings.Contains(said.Reason, "in exclusive use")
}

func (i *Inbox) patience() time.Duration { return cmp.Or(i.takeOver, takeOver) }

// consume reads until the connection ends.
func (i *Inbox) consume(ctx context.Context, known *known, p *pause) error {
	l, err := open(ctx, i.Dial)
	if err != nil {
		return err
	}
	defer l.close()
	// After a restart of the broker the one that had the queue comes first: it
	// may have an event of that restart in its hands.
	if i.standby && i.alone {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-l.closed:
			return why(err)
		case <-time.After(i.patience()):
		}
	}
	var deliveries <-chan amqp.Delivery
	err = l.within(func() error {
		if err := l.channel.Qos(batch, 0, false); err != nil {
			return err
		}
		deliveries, err = l.channel.Consume(Queue, "", false, i.Standby != nil, false, false, nil)
		return err
	})
	if err != nil {
		return err
	}
	p.reset()
	i.setStandby(false)
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
			if err := i.handle(l, known, d, acks); err != nil {
				return err
			}
		}
	}
}

func (l *link) ack(tag uint64) error {
	return l.within(func() error { return l.channel.Ack(tag, false) })
}

// handle hands an event on, unless it is a repetition. What is none is rejected:
// the broker drops it, or has it where a policy names a dead letter exchange.
func (i *Inbox) handle(l *link, known *known, d amqp.Delivery, acks chan<- uint64) error {
	line, err := event(d.Body)
	if err != nil {
		i.unread++
		if time.Since(i.warned) > unreadPause {
			i.warned = time.Now()
			i.Log.Warn("a message in the queue is not an event, and is set aside", "queue", Queue, "message_id", d.MessageId,
				"bytes", len(d.Body), "error", err, "so_far", i.unread)
		}
		return l.within(func() error { return l.channel.Reject(d.DeliveryTag, false) })
	}
	id := d.MessageId
	if id == "" {
		sum := sha256.Sum256(line)
		id = string(sum[:])
	}
	if known.add(id, d.DeliveryTag, acks) {
		i.Handle(line, func() { known.taken(id) })
	}
	return nil
}

// event is a message as the sensor's Python, MongoDB and the rules can hold it:
// one object whose fields are names and plain values. Deeper ones end Python
// (RecursionError), larger numbers MongoDB's driver (OverflowError).
func event(body []byte) ([]byte, error) {
	if len(body) > maxEvent {
		return nil, fmt.Errorf("it is larger than %d bytes", maxEvent)
	}
	if len(body) == 0 { // as package rabbitmq gives one that is too long
		return nil, errors.New("it is empty, or longer than 1 MiB")
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, err
	}
	if len(fields) > maxFields {
		return nil, fmt.Errorf("it has %d fields", len(fields))
	}
	for name, value := range fields {
		if !fieldName.MatchString(name) {
			return nil, fmt.Errorf("%q cannot be the name of a field", name)
		}
		var plain any
		if err := json.Unmarshal(value, &plain); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		switch v := plain.(type) {
		case string:
			again, err := json.Marshal(v) // without halves of characters
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			fields[name] = again
		case float64:
			if math.Abs(v) > 1<<53 {
				return nil, fmt.Errorf("%s: the number is too large", name)
			}
		case bool, nil:
		default:
			return nil, fmt.Errorf("%s is neither text nor a number", name)
		}
	}
	return json.Marshal(fields)
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
