package watch

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"st2ha/internal/probe"

	"github.com/stretchr/testify/require"
)

func TestFilter(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	event := func(id string, s State) Event {
		at = at.Add(time.Second)
		return Event{ID: id, Backend: "mongodb", Endpoint: "10.0.0.1:27017", State: s, DetectedAt: Time{at}}
	}
	pass := func(f *Filter, id string, states ...State) (passed []State) {
		for _, s := range states {
			if e, ok := f.Pass(event(id, s)); ok {
				passed = append(passed, e.State)
			}
		}
		return passed
	}
	f := NewFilter(false, nil)
	require.Empty(t, pass(f, "start", StateUp))
	require.Empty(t, pass(f, "slow", StateSuspect, StateUp))
	require.Empty(t, pass(f, "dark", StateUnknown, StateUp))
	require.Equal(t, []State{StateDown, StateUp}, pass(f, "outage", StateSuspect, StateDown, StateUp))
	require.Equal(t, []State{StateFlapping, StateDown, StateUp}, pass(f, "loose", StateSuspect, StateFlapping, StateDown, StateFlapping, StateDown, StateUp), "each once")
	slow := event("slow", StateFlapping)
	slow.Slow = true
	_, ok := f.Pass(slow)
	require.False(t, ok, "a doubt, as suspect is")
	require.Empty(t, pass(f, "slow", StateUp))
	require.Equal(t, []State{StateDown, StateUnknown}, pass(f, "gone", StateDown, StateUnknown))
	require.Equal(t, []State{StateSuspect, StateUp, StateUnknown}, pass(&Filter{All: true}, "all", StateSuspect, StateUp, StateUnknown))

	// What a former run said to be down is said to be up.
	f = NewFilter(false, []Incident{{ID: "old", Backend: "mongodb", Endpoint: "10.0.0.1:27017", State: StateDown}, {ID: "doubt", Backend: "redis", Endpoint: "x", State: StateSuspect}})
	require.Equal(t, []State{StateUp}, pass(f, "old", StateUp))

	// Too many are left out, counted, and said with the next that passes; what passed has its end.
	var left []Event
	f = NewFilter(false, nil)
	f.LeftOut = func(e Event) { left = append(left, e) }
	downs, ups := 0, 0
	for i := range 20 {
		for _, s := range pass(f, string(rune('a'+i)), StateDown, StateUp) {
			if s == StateDown {
				downs++
			} else {
				ups++
			}
		}
	}
	require.Equal(t, eventsOfOne, downs)
	require.Equal(t, downs, ups)
	require.Len(t, left, 20-eventsOfOne)
	at = at.Add(eventsWithin)
	e, ok := f.Pass(event("later", StateDown))
	require.True(t, ok)
	require.Equal(t, 20-eventsOfOne, e.Dropped)
	e, ok = f.Pass(event("later", StateUp))
	require.True(t, ok)
	require.Zero(t, e.Dropped, "said once")

	// All endpoints together, too.
	f = NewFilter(false, nil)
	passed := 0
	for i := range 200 {
		e := event("x", StateDown)
		e.Endpoint, e.ID = string(rune('0'+i)), string(rune('0'+i))
		if _, ok := f.Pass(e); ok {
			passed++
		}
	}
	require.Equal(t, eventsOfAll, passed)
}

// slowSession answers late, and sometimes at once.
type slowSession struct{ gone chan struct{} }

func (s *slowSession) Ended() <-chan struct{} { return s.gone }
func (s *slowSession) Close()                 {}
func (s *slowSession) Ping(ctx context.Context) (string, error) {
	select {
	case <-time.After(200*time.Millisecond + rand.N(1800*time.Millisecond)):
		return "", nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// A database on a slow disk, whose answers take 0.2 to 2 s for ten minutes, is no storm: 130 events in six minutes were, and
// each was work for that database.
func TestSlowBackend(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			var events []Event
			states := 0
			f := NewFilter(false, nil)
			w := NewWatcher(NewSet("sensor", DefaultRules()), func(e Event) {
				states++
				if e, ok := f.Pass(e); ok {
					events = append(events, e)
				}
			})
			ctx, cancel := context.WithCancel(t.Context())
			watch := func(ctx context.Context, report func(probe.Observation)) {
				probe.Sessions(ctx, probe.Timing{}.WithDefaults(), report, func(ctx context.Context) (probe.Session, error) {
					return &slowSession{gone: make(chan struct{})}, nil
				})
			}
			w.Watch(ctx, "node", []probe.Endpoint{{Backend: "mongodb", Name: "10.0.0.1:27017", Watch: watch}})
			time.Sleep(10 * time.Minute)
			w.mu.Lock()
			require.LessOrEqual(t, len(events), 3, "%+v", events)
			t.Logf("%d changes of state, %d events", states, len(events))

			w.mu.Unlock()
			cancel()
			w.Stop()
		})
	}
}

// dyingSession answers slowly, and then no more.
type dyingSession struct {
	slowSession
	dead *atomic.Bool
}

func (s *dyingSession) Ping(ctx context.Context) (string, error) {
	if s.dead.Load() {
		<-ctx.Done()
		return "", ctx.Err()
	}
	return s.slowSession.Ping(ctx)
}

// A backend that was slow, and so has a deadline that follows its answers, is down soon after it really dies: frozen, by
// silence within 6 s; killed, at once.
func TestSlowBackendDies(t *testing.T) {
	for name, killed := range map[string]bool{"frozen": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				synctest.Test(t, func(t *testing.T) {
					var dead atomic.Bool
					var down []time.Time
					f := NewFilter(false, nil)
					w := NewWatcher(NewSet("sensor", DefaultRules()), func(e Event) {
						if e, ok := f.Pass(e); ok && e.State == StateDown {
							down = append(down, e.DetectedAt.Time)
						}
					})
					gone := make(chan struct{})
					watch := func(ctx context.Context, report func(probe.Observation)) {
						probe.Sessions(ctx, probe.Timing{}.WithDefaults(), report, func(ctx context.Context) (probe.Session, error) {
							switch {
							case !dead.Load():
								return &dyingSession{slowSession{gone}, &dead}, nil
							case killed:
								return nil, syscall.ECONNREFUSED
							}
							<-ctx.Done()
							return nil, ctx.Err()
						})
					}
					ctx, cancel := context.WithCancel(t.Context())
					w.Watch(ctx, "node", []probe.Endpoint{{Backend: "mongodb", Name: "10.0.0.1:27017", Watch: watch}})
					time.Sleep(5 * time.Minute)
					w.mu.Lock()
					require.Empty(t, down, "slow is not down")
					w.mu.Unlock()
					died := time.Now()
					dead.Store(true)
					limit := 6 * time.Second
					if killed {
						close(gone)
						limit = 4 * time.Second // an answer may have been on its way for up to 2 s
					}
					time.Sleep(time.Minute)
					w.mu.Lock()
					require.Len(t, down, 1)
					require.Less(t, down[0].Sub(died), limit)
					w.mu.Unlock()
					cancel()
					w.Stop()
				})
			}
		})
	}
}
