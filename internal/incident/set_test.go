package incident

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"st2ha/internal/probe"
)

// world is a set of endpoints, one a host, that are pinged every 250 ms.
type world struct {
	set    *Set
	at     time.Time
	hosts  []string
	events []Event
}

func newWorld(hosts ...string) *world {
	w := &world{set: NewSet("sensor", DefaultRules()), at: time.Unix(1e9, 0), hosts: hosts}
	var endpoints []probe.Endpoint
	for _, h := range hosts {
		endpoints = append(endpoints, w.endpoint(h))
	}
	w.set.Replace("node1", endpoints, w.at)
	return w
}

func (w *world) endpoint(h string) probe.Endpoint {
	if h == "local" {
		return probe.Endpoint{Backend: "redis", Name: "127.0.0.1:6379"}
	}
	return probe.Endpoint{Backend: "rabbitmq", Name: h + ":5672", Host: h}
}

// pass lets time pass; verdicts holds what each host's endpoint says, Good if it is not there.
func (w *world) pass(d time.Duration, verdicts map[string]probe.Verdict) {
	for end := w.at.Add(d); w.at.Before(end); w.at = w.at.Add(250 * time.Millisecond) {
		for i, h := range w.hosts {
			v := verdicts[h]
			at := w.at.Add(time.Duration(i) * 10 * time.Millisecond)
			w.events = append(w.events, w.set.Observe(w.endpoint(h).Key(),
				probe.Observation{Probe: "ping", Verdict: v, At: at, Limit: pingLimit, Reason: "x"})...)
		}
	}
}

func (w *world) said() string {
	var all []string
	for _, e := range w.events {
		all = append(all, fmt.Sprintf("%s %s", e.Endpoint, e.State))
	}
	w.events = nil
	return strings.NewReplacer(":5672", "", ":6379", "").Replace(strings.Join(all, ", "))
}

func TestProberCutOff(t *testing.T) {
	w := newWorld("a", "b", "local")
	w.pass(time.Second, nil)
	assert.Equal(t, "a up, b up, 127.0.0.1 up", w.said())

	w.pass(20*time.Second, map[string]probe.Verdict{"a": probe.Silent, "b": probe.Silent})
	assert.Equal(t, "a suspect, b suspect, node1 cut_off", w.said(), "one event, and no down")
	assert.True(t, w.set.CutOff())

	w.pass(4*time.Second, nil)
	assert.Equal(t, "a up, node1 up, b up", w.said())
	assert.False(t, w.set.CutOff())
}

func TestCutOffEndsWithOneHostStillSilent(t *testing.T) {
	w := newWorld("a", "b")
	w.pass(time.Second, nil)
	w.pass(10*time.Second, map[string]probe.Verdict{"a": probe.Silent, "b": probe.Silent})
	w.said()
	w.pass(4*time.Second, map[string]probe.Verdict{"a": probe.Silent})
	assert.Equal(t, "b up, node1 up", w.said(), "a has its full time from here")
	w.pass(3*time.Second, map[string]probe.Verdict{"a": probe.Silent})
	assert.Equal(t, "a down", w.said())
}

func TestNotCutOff(t *testing.T) {
	for name, c := range map[string]struct {
		hosts    []string
		verdicts map[string]probe.Verdict
		want     string
	}{
		"one host of two is silent": {[]string{"a", "b"}, map[string]probe.Verdict{"a": probe.Silent},
			"a suspect, a down"},
		"one is silent, one refuses": {[]string{"a", "b"}, map[string]probe.Verdict{"a": probe.Silent, "b": probe.Bad},
			"a suspect, b suspect, a down, b down"},
		"a third one answers": {[]string{"c", "a", "b"},
			map[string]probe.Verdict{"a": probe.Silent, "b": probe.Silent}, "a suspect, b suspect, a down, b down"},
		"only one host is another one": {[]string{"a", "local"}, map[string]probe.Verdict{"a": probe.Silent},
			"a suspect, a down"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(c.hosts...)
			w.pass(time.Second, nil)
			w.said()
			w.pass(5*time.Second, c.verdicts)
			assert.Equal(t, c.want, w.said())
			assert.False(t, w.set.CutOff())
		})
	}
}

func TestTimeOfTheProbersOwnIsNobodysSilence(t *testing.T) {
	w := newWorld("a", "local")
	w.pass(time.Second, nil)
	w.pass(time.Second, map[string]probe.Verdict{"a": probe.Silent})
	assert.Equal(t, "a up, 127.0.0.1 up, a suspect", w.said())
	w.at = w.at.Add(10 * time.Second)
	w.set.Late(10 * time.Second)
	w.pass(1900*time.Millisecond, map[string]probe.Verdict{"a": probe.Silent})
	assert.Empty(t, w.said())
	w.pass(500*time.Millisecond, map[string]probe.Verdict{"a": probe.Silent})
	assert.Equal(t, "a down", w.said())
	assert.Greater(t, w.set.members[w.endpoint("a").Key()].now.Sub(w.set.members[w.endpoint("a").Key()].silent),
		12*time.Second)
	w.pass(4*time.Second, nil)
	w.said()
	w.pass(4*time.Second, map[string]probe.Verdict{"a": probe.Silent}) // what was is over
	assert.Equal(t, "a suspect, a down", w.said())
}

func TestHostsThatFailOneAfterTheOtherAreNoCutOff(t *testing.T) {
	w := newWorld("a", "b")
	w.pass(time.Second, nil)
	w.pass(10*time.Second, map[string]probe.Verdict{"a": probe.Silent})
	w.pass(10*time.Second, map[string]probe.Verdict{"a": probe.Silent, "b": probe.Silent})
	assert.Equal(t, "a up, b up, a suspect, a down, b suspect, b down", w.said())
}

func TestReplaceKeepsIncidents(t *testing.T) {
	w := newWorld("a", "b")
	w.pass(time.Second, nil)
	w.pass(5*time.Second, map[string]probe.Verdict{"a": probe.Bad})
	id := w.events[len(w.events)-1].ID
	w.said()
	w.set.Replace("node1", []probe.Endpoint{w.endpoint("a"), w.endpoint("b")}, w.at)
	w.pass(3*time.Second, map[string]probe.Verdict{"a": probe.Bad})
	w.events = append(w.events, w.set.Replace("node1", []probe.Endpoint{w.endpoint("b")}, w.at)...)
	if assert.Len(t, w.events, 1) {
		e := w.events[0]
		assert.Equal(t, []any{id, Down, Unknown, "not watched any more"}, []any{e.ID, e.Previous, e.State, e.Reason})
	}
}
