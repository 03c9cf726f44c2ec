package watch

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backend"
	"st2ha/internal/incident"
	"st2ha/internal/probe"
)

// Who waits for the broker hears of it, and of nothing else.
func TestBrokerIsBack(t *testing.T) {
	p := NewProber("n1", backend.Config{}, slog.New(slog.DiscardHandler))
	events := make(chan incident.Event, 10)
	p.Begin("sensor", nil, func(e incident.Event) { events <- e })
	one, other := p.Back(), p.Back()
	good := func(name string) probe.Endpoint {
		return probe.Endpoint{Backend: name, Name: "127.0.0.1:1",
			Watch: func(ctx context.Context, report func(probe.Observation)) {
				report(probe.Observation{Probe: "ping", Verdict: probe.Good, At: time.Now()})
				<-ctx.Done()
			}}
	}
	defer func() { p.Watcher.Stop() }()
	p.Watcher.Watch(t.Context(), "n1", []probe.Endpoint{good("redis")})
	require.Equal(t, incident.Up, (<-events).State)
	require.Empty(t, one)
	p.Watcher.Watch(t.Context(), "n1", []probe.Endpoint{good("rabbitmq")})
	require.Equal(t, incident.Up, (<-events).State)
	<-one
	<-other
}
