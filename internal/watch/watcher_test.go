package watch

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/incident"
	"st2ha/internal/probe"
)

// A prober that is kept from running, with its machine or by it, calls nothing
// down for that.
func TestWatcherThatDidNotRun(t *testing.T) {
	events := make(chan incident.Event, 10)
	w := NewWatcher(incident.NewSet("sensor", incident.DefaultRules()), func(e incident.Event) { events <- e })
	verdicts := make(chan probe.Verdict)
	watched := probe.Endpoint{Backend: "redis", Name: "127.0.0.1:6379",
		Watch: func(ctx context.Context, report func(probe.Observation)) {
			for {
				select {
				case <-ctx.Done():
					return
				case v := <-verdicts:
					report(probe.Observation{Probe: "ping", Verdict: v, At: time.Now(),
						Limit: probe.Limit{Suspect: 2, DownAfter: time.Second}})
				}
			}
		}}
	w.Watch(t.Context(), "node1", []probe.Endpoint{watched})
	defer w.Stop()
	for _, v := range []probe.Verdict{probe.Good, probe.Silent, probe.Silent} {
		verdicts <- v
	}
	require.Equal(t, incident.Up, (<-events).State)
	require.Equal(t, incident.Suspect, (<-events).State)

	w.mu.Lock() // nothing of it goes on
	time.Sleep(1500 * time.Millisecond)
	w.mu.Unlock()
	verdicts <- probe.Silent
	verdicts <- probe.Silent // the one before has been taken
	require.Empty(t, events, "the time was the prober's own")

	time.Sleep(time.Second)
	verdicts <- probe.Silent
	require.Equal(t, incident.Down, (<-events).State)
}
