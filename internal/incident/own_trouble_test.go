package incident

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/probe"
)

// A prober's own trouble makes an endpoint unknown where it stays, and never more than that.
func TestOwnTroubleIsNeverDown(t *testing.T) {
	s := NewSet("sensor", DefaultRules())
	key, now := probe.Key{Backend: "redis", Name: "10.0.0.1:6379"}, time.Now()
	s.Replace("n1", []probe.Endpoint{{Backend: "redis", Name: key.Name, Host: "10.0.0.1"}}, now)
	see := func(v probe.Verdict) State {
		now = now.Add(250 * time.Millisecond)
		s.Observe(key, probe.Observation{Probe: probe.Connection, Verdict: v, Reason: "x", At: now,
			Limit: probe.Limit{Suspect: 2}})
		return s.Statuses()[0].State
	}
	require.Equal(t, Unknown, see(probe.Unknown), "one at the start does not make it up")
	up := func() {
		t.Helper()
		for see(probe.Good) != Up {
			require.WithinDuration(t, time.Now(), now, 5*time.Minute)
		}
	}
	up()
	require.Equal(t, Up, see(probe.Unknown), "once may be a moment")
	for range 400 {
		require.Equal(t, Unknown, see(probe.Unknown))
	}
	up()
}
