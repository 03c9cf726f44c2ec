package probe

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The deadline follows what the server's answers usually take, within bounds: a fast one's stays as it is.
func TestDeadline(t *testing.T) {
	p := &pinger{Timing: Timing{}.WithDefaults()}
	require.Equal(t, 250*time.Millisecond, p.deadline())
	for range 400 {
		p.usual.add(3 * time.Millisecond)
	}
	p.usual.add(2 * time.Second) // one odd answer is not what it usually takes
	require.Equal(t, 250*time.Millisecond, p.deadline())
	for range 400 {
		p.usual.add(400 * time.Millisecond)
	}
	require.Equal(t, 600*time.Millisecond, p.deadline())
	for range 400 {
		p.usual.add(time.Minute)
	}
	require.Equal(t, 2*time.Second, p.deadline(), "it is down after 3 s without an answer, however slow it was")
}

// A member's part goes with what is reported of it.
func TestFactsGoWithReasons(t *testing.T) {
	var got []Observation
	p := &pinger{Timing: Timing{}.WithDefaults(), trouble: map[string]bool{},
		report: func(o Observation) { got = append(got, o) }}
	p.conclude(outcome{fact: "secondary of rs0"}, time.Now())
	p.miss(time.Now().Add(-250 * time.Millisecond))
	p.conclude(outcome{err: &Finding{Probe: "primary", Reason: "no primary", Limit: Limit{Suspect: 2}}}, time.Now())
	for i, want := range []Observation{
		{Probe: Ping, Verdict: Good, Reason: "secondary of rs0"},
		{Probe: Ping, Verdict: Silent, Reason: "no answer for 250ms (secondary of rs0)",
			Limit: Limit{Suspect: 2, DownAfter: 2750 * time.Millisecond}},
		{Probe: Ping, Verdict: Good, Reason: "secondary of rs0"}, // any answer ends a silence
		{Probe: "primary", Verdict: Bad, Reason: "no primary (secondary of rs0)", Limit: Limit{Suspect: 2}},
	} {
		got[i].At, got[i].Took = time.Time{}, 0
		require.Equal(t, want, got[i])
	}
}
