package watch

import (
	"context"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/incident"
	"st2ha/internal/probe"
)

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

// A database on a slow disk, whose answers take 0.2 to 2 s for ten minutes, is no storm: 130 events in six minutes
// were, and
// each was work for that database.
func TestSlowBackend(t *testing.T) {
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			var events []incident.Event
			states := 0
			f := incident.NewFilter(false, nil)
			w := NewWatcher(incident.NewSet("sensor", incident.DefaultRules()), func(e incident.Event) {
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

// A backend that was slow, and so has a deadline that follows its answers, is down soon after it really dies: frozen,
// by
// silence within 6 s; killed, at once.
func TestSlowBackendDies(t *testing.T) {
	for name, killed := range map[string]bool{"frozen": false, "killed": true} {
		t.Run(name, func(t *testing.T) {
			for range 20 {
				synctest.Test(t, func(t *testing.T) {
					var dead atomic.Bool
					var down []time.Time
					f := incident.NewFilter(false, nil)
					w := NewWatcher(incident.NewSet("sensor", incident.DefaultRules()), func(e incident.Event) {
						if e, ok := f.Pass(e); ok && e.State == incident.Down {
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
