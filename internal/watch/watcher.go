package watch

import (
	"context"
	"sync"
	"time"
)

// again is when a watch function that ended by itself is started again.
const again = time.Second

// Watcher runs the watch functions of a set of endpoints.
type Watcher struct {
	// Event takes each change of state, in order. It must not block.
	Event func(Event)
	// Seen, if there is one, is told of every finding. It must not block.
	Seen func(Key, Observation)

	mu   sync.Mutex // of set, and of the order of events
	set  *Set
	stop func() // ends the running watch functions
	wait sync.WaitGroup
}

// NewWatcher makes states by a set of its own.
func NewWatcher(set *Set, event func(Event)) *Watcher {
	return &Watcher{Event: event, set: set}
}

// Watch makes these the endpoints that are watched until ctx ends, from the
// node of that name. What was watched before is stopped first.
func (w *Watcher) Watch(ctx context.Context, node string, endpoints []Endpoint) {
	w.Stop()
	ctx, stop := context.WithCancel(ctx)
	w.stop = stop
	w.do(func(s *Set) []Event { return s.Replace(node, endpoints, time.Now()) })
	for _, e := range endpoints {
		w.wait.Go(func() { w.run(ctx, e) })
	}
}

// Stop ends all watch functions and waits for them.
func (w *Watcher) Stop() {
	if w.stop != nil {
		w.stop()
	}
	w.wait.Wait()
}

// run has an endpoint watched, whatever becomes of its watch function.
func (w *Watcher) run(ctx context.Context, e Endpoint) {
	report := func(o Observation) {
		if ctx.Err() != nil {
			return // found while it was stopped: says nothing of the endpoint
		}
		if w.Seen != nil {
			w.Seen(e.Key(), o)
		}
		w.do(func(s *Set) []Event { return s.Observe(e.Key(), o) })
	}
	for {
		e.Watch(ctx, report)
		select {
		case <-ctx.Done():
			return
		case <-time.After(again):
		}
		report(Observation{Probe: "watch", Verdict: Unknown, Reason: "the watch function ended by itself", At: time.Now()})
	}
}

// do changes the set, and passes on what comes of it.
func (w *Watcher) do(f func(*Set) []Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range f(w.set) {
		w.Event(e)
	}
}

// Healed notes who acted on an endpoint, and returns its incident's id.
func (w *Watcher) Healed(key Key, by string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set.Healed(key, by)
}

// Node is this node's name in events.
func (w *Watcher) Node() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set.node
}

// CutOff says whether this node reaches no other host.
func (w *Watcher) CutOff() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set.CutOff()
}

// Statuses are those of all endpoints, sorted.
func (w *Watcher) Statuses() []Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set.Statuses()
}
