package watch

import (
	"context"
	"encoding/json"
	"io"
	"sync"

	"st2ha/internal/incident"
	"st2ha/internal/probe"
)

// Queue holds events until a writer takes them, one JSON line each, so that a
// reader who does not read never holds up the probing.
//
// It is bounded. When it is full the oldest suspect or flapping goes first. If
// there is none, an endpoint's older events go before its newest down and its
// newest up: what is left tells how it was, and how it is. So it never holds
// more than its limit, or two events an endpoint if that is more, and lines of
// others. The next line's dropped counts what went.
type Queue struct {
	mu      sync.Mutex
	items   []item
	max     int
	dropped int
	more    chan struct{} // has a token while items may be waiting
}

// item is an event, or a line of somebody else who waits for it to be taken.
type item struct {
	event incident.Event
	line  []byte
	taken func()
}

// NewQueue holds max events.
func NewQueue(max int) *Queue { return &Queue{max: max, more: make(chan struct{}, 1)} }

// Put adds an event. It does not block.
func (q *Queue) Put(e incident.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = append(q.items, item{event: e})
	for len(q.items) > q.max && q.drop() {
		q.dropped++
	}
	q.wake()
}

// PutLine adds a line, without its newline, that is never dropped; taken is
// called once it is written. Who puts lines waits for them, so their number is
// bounded by that.
func (q *Queue) PutLine(line []byte, taken func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.items = append(q.items, item{line: line, taken: taken})
	q.wake()
}

func (q *Queue) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// drop gives up one event.
func (q *Queue) drop() bool {
	for i, it := range q.items {
		if s := it.event.State; s == incident.Suspect || s == incident.Flapping {
			q.cut(i)
			return true
		}
	}
	type what struct {
		probe.Key
		state incident.State
	}
	newest := map[what]int{}
	for i, it := range q.items {
		if it.line == nil {
			newest[what{it.event.Key(), it.event.State}] = i
		}
	}
	for i, it := range q.items {
		if it.line == nil && newest[what{it.event.Key(), it.event.State}] != i {
			q.cut(i)
			return true
		}
	}
	return false
}

func (q *Queue) cut(i int) { q.items = append(q.items[:i], q.items[i+1:]...) }

// Write writes lines to w until ctx ends or w fails. After ctx has ended it
// still writes what is there, which ends early only if w fails.
func (q *Queue) Write(ctx context.Context, w io.Writer) error {
	for {
		for {
			it, dropped, ok := q.take()
			if !ok {
				break
			}
			if err := it.write(w, dropped); err != nil {
				return err
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

func (q *Queue) take() (it item, dropped int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		return item{}, 0, false
	}
	it = q.items[0]
	q.items = q.items[1:]
	if it.line == nil {
		dropped, q.dropped = q.dropped, 0
	}
	return it, dropped, true
}

func (it item) write(w io.Writer, dropped int) error {
	line := it.line
	if line == nil {
		it.event.Dropped += dropped
		var err error
		if line, err = json.Marshal(it.event); err != nil {
			return err
		}
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return err
	}
	if it.taken != nil {
		it.taken()
	}
	return nil
}
