package incident

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/probe"
)

// merging is what a Merger passes on, in seconds after noon.
type merging struct {
	*Merger
	t   *testing.T
	now time.Time
}

func newMerging(t *testing.T) *merging {
	return &merging{NewMerger(), t, time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
}

// says passes an event of an observer, and returns whether it was passed on.
func (m *merging) says(node, source, id string, s State, change ...func(*Event)) bool {
	e := Event{Event: Changed, ID: id, Backend: "rabbitmq", Endpoint: "10.0.0.1:5672", Node: node, Source: source,
		State: s,
		Probe: probe.Connection, Reason: "connection refused", DetectedAt: Time{m.now}}
	for _, f := range change {
		f(&e)
	}
	return m.Pass(e, []byte(fmt.Sprint(id, " ", s)), m.now)
}

func (m *merging) after(d time.Duration) []string {
	m.now = m.now.Add(d)
	var lines []string
	for _, line := range m.Due(m.now) {
		lines = append(lines, string(line))
	}
	return lines
}

// Three watchers see one broker down: one event for down, one for up.
func TestOneEventAFault(t *testing.T) {
	m := newMerging(t)
	require.True(t, m.says("10.0.0.2", "sensor", "a", Down))
	require.False(t, m.says("10.0.0.2", "watchdog", "b", Down))
	m.now = m.now.Add(time.Second)
	require.False(t, m.says("10.0.0.1", "watchdog", "c", Down, func(e *Event) { e.Endpoint = "127.0.0.1:5672" }),
		"the node's own, on loopback")
	m.now = m.now.Add(20 * time.Minute)
	require.False(t, m.says("10.0.0.1", "watchdog", "c", Up), "the first that told of it tells its end")
	require.True(t, m.says("10.0.0.2", "sensor", "a", Up))
	require.False(t, m.says("10.0.0.2", "watchdog", "b", Up))
	require.Empty(t, m.after(time.Hour))
	require.Equal(t, 4, m.Merged())

	// The next fault is another one, also soon.
	require.True(t, m.says("10.0.0.1", "watchdog", "d", Down))
	require.False(t, m.says("10.0.0.2", "sensor", "e", Down))
	require.True(t, m.says("10.0.0.1", "watchdog", "d", Up))
	m.now = m.now.Add(2 * time.Second)
	require.True(t, m.says("10.0.0.2", "watchdog", "f", Down), "after its end")
}

// What a watchdog saw at the same time arrives when its spool is sent.
func TestMergedLate(t *testing.T) {
	m := newMerging(t)
	noon := m.now
	require.True(t, m.says("10.0.0.2", "sensor", "a", Down))
	m.now = m.now.Add(10 * time.Minute)
	require.True(t, m.says("10.0.0.2", "sensor", "a", Up))
	then := func(at time.Duration) func(*Event) {
		return func(e *Event) { e.DetectedAt = Time{noon.Add(at)} }
	}
	require.False(t, m.says("10.0.0.1", "watchdog", "b", Down, then(time.Second)))
	require.False(t, m.says("10.0.0.1", "watchdog", "b", Up, then(10*time.Minute)))
	require.True(t, m.says("10.0.0.1", "watchdog", "c", Down, then(5*time.Minute)), "at another time")
	require.Empty(t, m.after(time.Hour))
}

// What only one observer sees, or sees otherwise, is not lost.
func TestFaultOfOneObserver(t *testing.T) {
	for name, other := range map[string]func(*Event){
		"another verdict":   func(e *Event) { e.Probe, e.Reason = probe.Ping, "no answer for 3.1 s" },
		"another user":      func(e *Event) { e.Probe, e.Reason = probe.Login, "login refused: user st2" },
		"another endpoint":  func(e *Event) { e.Endpoint = "10.0.0.3:5672" },
		"another port":      func(e *Event) { e.Endpoint = "10.0.0.1:5673" },
		"its own loopback":  func(e *Event) { e.Endpoint = "127.0.0.1:5672" },
		"another backend":   func(e *Event) { e.Backend = "redis" },
		"another state":     func(e *Event) { e.State = Flapping },
		"its own mount":     func(e *Event) { e.Backend, e.Endpoint = "mount", "/opt/stackstorm/packs" },
		"a minute later":    func(e *Event) { e.DetectedAt = Time{e.DetectedAt.Add(61 * time.Second)} },
		"the same observer": func(e *Event) { e.Source, e.Node = "sensor", "10.0.0.2" },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMerging(t)
			require.True(t, m.says("10.0.0.2", "sensor", "a", Down))
			require.True(t, m.says("10.0.0.3", "watchdog", "b", Down, other))
			require.True(t, m.says("10.0.0.2", "sensor", "a", Up))
			require.True(t, m.says("10.0.0.3", "watchdog", "b", Up, other))
		})
	}

	// The network between one of them and the broker stays cut.
	silent := func(e *Event) { e.Probe, e.Reason = probe.Ping, "no answer for 3.1 s" }
	m := newMerging(t)
	require.True(t, m.says("10.0.0.2", "sensor", "a", Down, silent))
	require.False(t, m.says("10.0.0.3", "watchdog", "b", Down, silent))
	require.Empty(t, m.after(10*time.Second))
	require.True(t, m.says("10.0.0.2", "sensor", "a", Up))
	require.Empty(t, m.after(59*time.Second))
	require.Equal(t, []string{"b down"}, m.after(time.Second))
	require.Empty(t, m.after(time.Hour), "once")
	require.True(t, m.says("10.0.0.3", "watchdog", "b", Up))

	// The other way round: the first goes on to see it, the other one sees its end.
	m = newMerging(t)
	require.True(t, m.says("10.0.0.2", "sensor", "a", Down, silent))
	require.False(t, m.says("10.0.0.3", "watchdog", "b", Down, silent))
	require.False(t, m.says("10.0.0.3", "watchdog", "b", Up))
	require.Empty(t, m.after(59*time.Second))
	require.Equal(t, []string{"b up"}, m.after(time.Second))
	require.True(t, m.says("10.0.0.2", "sensor", "a", Up))
}

// The same mount seen by a node's sensor and its watchdog is one; what is only on loopback is the node's.
func TestMergedOnOneNode(t *testing.T) {
	for _, change := range []func(*Event){
		func(e *Event) {
			e.Backend, e.Endpoint, e.Probe, e.Reason = "mount", "/opt/a", "mount",
				"mount hung for "+fmt.Sprint(len(e.Source))+" s"
		},
		func(e *Event) { e.Backend, e.Endpoint, e.Probe, e.Reason = "st2", "st2api", "unit", "inactive" },
		func(e *Event) { e.Endpoint = "localhost:5672" },
		func(e *Event) {
			e.Backend, e.Endpoint, e.State, e.Probe, e.Reason = Node, "10.0.0.2", CutOff, "", "cut off"
		},
	} {
		m := newMerging(t)
		require.True(t, m.says("10.0.0.2", "sensor", "a", Down, change))
		require.False(t, m.says("10.0.0.2", "watchdog", "b", Down, change))
		require.True(t, m.says("10.0.0.3", "watchdog", "c", Down, change), "another node's")
	}
}

// However many names come, what is remembered is bounded, and what was held back is passed on.
func TestMergerBounded(t *testing.T) {
	m := newMerging(t)
	require.True(t, m.says("10.0.0.2", "sensor", "a", Down))
	require.False(t, m.says("10.0.0.3", "watchdog", "b", Down))
	for i := range 3 * mostFaults {
		require.True(t, m.says("10.0.0.2", "sensor", fmt.Sprint(i), Down,
			func(e *Event) { e.Endpoint = fmt.Sprintf("h%d:1", i) }))
		require.LessOrEqual(t, len(m.reported)+len(m.also)+len(m.begun), mostFaults+2)
	}
	require.Equal(t, []string{"b down"}, m.after(0))
}
