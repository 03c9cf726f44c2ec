package output

import (
	"context"
	"sync"
	"time"

	"st2ha/internal/heal"
	"st2ha/internal/incident"
	"st2ha/internal/probe"
)

// QueueSize is how many changes of state wait for who takes them.
const QueueSize = 1000

// FlushTime is for the messages that are left when a program ends.
const FlushTime = 200 * time.Millisecond

// Queue holds messages until a writer takes them, so that a reader who does not
// read never holds up the probing.
//
// It is bounded. When it is full the oldest suspect or flapping goes first. If
// there is none, an endpoint's older events go before its newest down and its
// newest up: what is left tells how it was, and how it is. So it never holds
// more than its limit, or two events an endpoint if that is more, and messages
// that are no changes of state. The next change's Dropped counts what went.
type Queue struct {
	mu      sync.Mutex
	items   []item
	max     int
	dropped int
	more    chan struct{} // has a token while items may be waiting
}

// item is a message, and who waits for it to be taken, if anybody does.
type item struct {
	Message
	taken func()
}

// NewQueue holds max changes of state.
func NewQueue(max int) *Queue { return &Queue{max: max, more: make(chan struct{}, 1)} }

// Put adds a change of state. It does not block.
func (q *Queue) Put(e incident.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = append(q.items, item{Message: Message{Change: &e}})
	for len(q.items) > q.max && q.drop() {
		q.dropped++
	}
	q.wake()
}

// PutHeal adds an event of healing, which is never dropped: they are few.
func (q *Queue) PutHeal(e heal.Event) { q.add(item{Message: Message{Heal: &e}}) }

// PutLine adds what another process has written, without its newline, which is
// never dropped; taken is called once it is taken. Who puts lines waits for
// them, so their number is bounded by that.
func (q *Queue) PutLine(line []byte, taken func()) {
	q.add(item{Message: Message{JSON: line}, taken: taken})
}

func (q *Queue) add(it item) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = append(q.items, it)
	q.wake()
}

func (q *Queue) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// drop gives up one change of state.
func (q *Queue) drop() bool {
	type stateOf struct {
		probe.Key
		state incident.State
	}
	newest := map[stateOf]int{}
	for i, it := range q.items {
		if it.Change == nil {
			continue
		}
		if s := it.Change.State; s == incident.Suspect || s == incident.Flapping {
			q.cut(i)
			return true
		}
		newest[stateOf{it.Change.Key(), it.Change.State}] = i
	}
	for i, it := range q.items {
		if it.Change != nil && newest[stateOf{it.Change.Key(), it.Change.State}] != i {
			q.cut(i)
			return true
		}
	}
	return false
}

func (q *Queue) cut(i int) { q.items = append(q.items[:i], q.items[i+1:]...) }

// Write gives messages to w until ctx ends or w fails. After ctx has ended it
// still gives what is there, which ends early only if w fails.
func (q *Queue) Write(ctx context.Context, w Writer) error {
	for {
		for {
			it, ok := q.next()
			if !ok {
				break
			}
			if err := w.Put(it.Message); err != nil {
				return err
			}
			if it.taken != nil {
				it.taken()
			}
		}
		select {
		case <-q.more:
		case <-ctx.Done():
			if q.empty() {
				return nil
			}
		}
	}
}

func (q *Queue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.items) == 0
}

// next takes the oldest message out.
func (q *Queue) next() (it item, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		return item{}, false
	}
	it = q.items[0]
	q.items = q.items[1:]
	if it.Change != nil {
		it.Change.Dropped += q.dropped
		q.dropped = 0
	}
	return it, true
}
