package watch

import (
	"context"
	"sync"
	"time"

	"st2ha/internal/incident"
	"st2ha/internal/probe"
	"st2ha/internal/wait"
)

// The prober looks every beatEvery whether it runs at all; a timer is late by
// up to beatSlack on any machine.
const (
	beatEvery = 100 * time.Millisecond
	beatSlack = 20 * time.Millisecond
)

// StopTime is what the watch functions may take to end.
const StopTime = 400 * time.Millisecond

// again is when a watch function that ended by itself is started again.
const again = time.Second

// Watcher runs the watch functions of a set of endpoints.
type Watcher struct {
	// Event takes each change of state, in order. It must not block.
	Event func(incident.Event)
	// Seen, if there is one, is told of every finding. It must not block.
	Seen func(probe.Key, probe.Observation)

	mu   sync.Mutex // of set and beat, and of the order of events
	set  *incident.Set
	beat time.Time // the last one, or when a late one was noticed
	stop func()    // ends the running watch functions
	wait sync.WaitGroup
}

// NewWatcher makes states by a set of its own.
func NewWatcher(set *incident.Set, event func(incident.Event)) *Watcher {
	return &Watcher{Event: event, set: set}
}

// Watch makes these the endpoints that are watched until ctx ends, from the
// node of that name. What was watched before is stopped first.
func (w *Watcher) Watch(ctx context.Context, node string, endpoints []probe.Endpoint) {
	w.Stop()
	ctx, stop := context.WithCancel(ctx)
	w.stop = stop
	w.do(func(s *incident.Set) []incident.Event {
		w.beat = time.Now()
		return s.Replace(node, endpoints, w.beat)
	})
	w.wait.Go(func() { w.beats(ctx) })
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
func (w *Watcher) run(ctx context.Context, e probe.Endpoint) {
	report := func(o probe.Observation) {
		if ctx.Err() != nil {
			return // found while it was stopped: says nothing of the endpoint
		}
		if w.Seen != nil {
			w.Seen(e.Key(), o)
		}
		w.do(func(s *incident.Set) []incident.Event { return s.Observe(e.Key(), o) })
	}
	for {
		e.Watch(ctx, report)
		if wait.Sleep(ctx, again) != nil {
			return
		}
		report(probe.Observation{Probe: "watch", Verdict: probe.Unknown, Reason: "the watch function ended by itself",
			At: time.Now()})
	}
}

// beats has time pass until ctx ends.
func (w *Watcher) beats(ctx context.Context) {
	wait.Every(ctx, beatEvery, func(context.Context) {
		w.do(func(*incident.Set) []incident.Event {
			w.beat = time.Now()
			return nil
		})
	})
}

// late takes the time that the prober did not run from what is silent. Whatever
// comes first after such a time calls it, finding or beat.
func (w *Watcher) late() {
	now := time.Now()
	if by := now.Sub(w.beat) - beatEvery; !w.beat.IsZero() && by > beatSlack {
		w.set.Late(by)
		w.beat = now
	}
}

// do changes the set, and passes on what comes of it.
func (w *Watcher) do(f func(*incident.Set) []incident.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.late()
	for _, e := range f(w.set) {
		w.Event(e)
	}
}

// Healed notes who acted on an endpoint, and returns its incident's id.
func (w *Watcher) Healed(key probe.Key, by string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set.Healed(key, by)
}

// Node is this node's name in events.
func (w *Watcher) Node() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set.Node()
}

// CutOff says whether this node reaches no other host.
func (w *Watcher) CutOff() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set.CutOff()
}

// Statuses are those of all endpoints, sorted.
func (w *Watcher) Statuses() []incident.Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.set.Statuses()
}
