// Package probetest runs watch functions for tests, and looks at what they report.
package probetest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"st2ha/internal/backendtest"
	"st2ha/internal/probe"
)

// stopTime is what a watch may take to end.
const stopTime = 500 * time.Millisecond

// Watched is a watch that runs, and what it has reported.
type Watched struct {
	t    testing.TB
	stop context.CancelFunc
	done chan struct{}

	mu   sync.Mutex
	all  []probe.Observation // not looked at yet
	seen []probe.Observation // since the last one that was waited for
	news chan struct{}       // has room for one
}

// Start watches until the test ends.
func Start(t testing.TB, f probe.Func) *Watched {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watched{t: t, stop: cancel, done: make(chan struct{}), news: make(chan struct{}, 1)}
	go func() {
		defer close(w.done)
		f(ctx, w.report)
	}()
	t.Cleanup(w.End)
	return w
}

func (w *Watched) report(o probe.Observation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.Contains(o.Reason, backendtest.Password) {
		w.t.Errorf("a password in %q", o.Reason)
	}
	w.all = append(w.all, o)
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// End stops the watch, which has to be quick.
func (w *Watched) End() {
	w.t.Helper()
	w.stop()
	began := time.Now()
	select {
	case <-w.done:
	case <-time.After(10 * time.Second):
		w.t.Fatal("the watch has not ended after 10 s")
	}
	if took := time.Since(began); took > 2*stopTime { // twice: the machine may be busy
		w.t.Errorf("the watch took %s to end", took)
	}
}

// Reports are those not looked at yet.
func (w *Watched) Reports() []probe.Observation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]probe.Observation(nil), w.all...)
}

// Next waits for the first report from now on that is wanted, and forgets
// those before.
func (w *Watched) Next(what string, want func(probe.Observation) bool) probe.Observation {
	w.t.Helper()
	late := time.After(20 * time.Second)
	for {
		w.mu.Lock()
		for len(w.all) > 0 {
			o := w.all[0]
			w.all = w.all[1:]
			w.seen = append(w.seen, o)
			if want(o) {
				w.seen = nil
				w.mu.Unlock()
				return o
			}
		}
		w.mu.Unlock()
		select {
		case <-w.news:
		case <-late:
			w.t.Fatalf("not reported in time: %s; reported: %+v", what, w.seen)
		}
	}
}

// Is waits for a verdict of a probe with exactly this reason; "…" in it stands for anything.
func (w *Watched) Is(of string, v probe.Verdict, reason string) probe.Observation {
	w.t.Helper()
	return w.Next(fmt.Sprintf("%s %d %q", of, v, reason), func(o probe.Observation) bool {
		if o.Probe != of || o.Verdict != v {
			return false
		}
		before, after, any := strings.Cut(reason, "…")
		return o.Reason == reason || any && strings.HasPrefix(o.Reason, before) && strings.HasSuffix(o.Reason, after)
	})
}

// Trouble waits until what is reported from now on adds up to down, by each
// probe's own limit, and returns what made the endpoint suspect, and down.
func (w *Watched) Trouble() (suspect, down probe.Observation) {
	w.t.Helper()
	rows, since := map[string]int{}, map[string]time.Time{}
	down = w.Next("down", func(o probe.Observation) bool {
		if o.Verdict == probe.Good || o.Verdict == probe.Unknown {
			rows[o.Probe] = 0
			return false
		}
		if rows[o.Probe]++; rows[o.Probe] == 1 {
			since[o.Probe] = o.At
		}
		doubt := o.Limit.Suspect > 0 && rows[o.Probe] >= o.Limit.Suspect
		if doubt && suspect.At.IsZero() {
			suspect = o
		}
		return o.Limit.Down > 0 && rows[o.Probe] >= o.Limit.Down ||
			doubt && o.Limit.DownAfter > 0 && o.At.Sub(since[o.Probe]) >= o.Limit.DownAfter
	})
	return suspect, down
}
