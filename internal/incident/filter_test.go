package incident

import (
	"testing"
	"time"

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
	require.Empty(t, pass(f, "start", Up))
	require.Empty(t, pass(f, "slow", Suspect, Up))
	require.Empty(t, pass(f, "dark", Unknown, Up))
	require.Equal(t, []State{Down, Up}, pass(f, "outage", Suspect, Down, Up))
	require.Equal(t, []State{Flapping, Down, Up}, pass(f, "loose", Suspect, Flapping, Down, Flapping, Down, Up),
		"each once")
	slow := event("slow", Flapping)
	slow.Slow = true
	_, ok := f.Pass(slow)
	require.False(t, ok, "a doubt, as suspect is")
	require.Empty(t, pass(f, "slow", Up))
	require.Equal(t, []State{Down, Unknown}, pass(f, "gone", Down, Unknown))
	require.Equal(t, []State{Suspect, Up, Unknown}, pass(&Filter{All: true}, "all", Suspect, Up, Unknown))

	// What a former run said to be down is said to be up.
	f = NewFilter(false, []Incident{{ID: "old", Backend: "mongodb", Endpoint: "10.0.0.1:27017", State: Down},
		{ID: "doubt", Backend: "redis", Endpoint: "x", State: Suspect}})
	require.Equal(t, []State{Up}, pass(f, "old", Up))

	// Too many are left out, counted, and said with the next that passes; what passed has its end.
	var left []Event
	f = NewFilter(false, nil)
	f.LeftOut = func(e Event) { left = append(left, e) }
	downs, ups := 0, 0
	for i := range 20 {
		for _, s := range pass(f, string(rune('a'+i)), Down, Up) {
			if s == Down {
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
	e, ok := f.Pass(event("later", Down))
	require.True(t, ok)
	require.Equal(t, 20-eventsOfOne, e.Dropped)
	e, ok = f.Pass(event("later", Up))
	require.True(t, ok)
	require.Zero(t, e.Dropped, "said once")

	// All endpoints together, too.
	f = NewFilter(false, nil)
	passed := 0
	for i := range 200 {
		e := event("x", Down)
		e.Endpoint, e.ID = string(rune('0'+i)), string(rune('0'+i))
		if _, ok := f.Pass(e); ok {
			passed++
		}
	}
	require.Equal(t, eventsOfAll, passed)
}
