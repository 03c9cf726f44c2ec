package incident

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/backend/mount"
	"st2ha/internal/probe"
)

var (
	pingLimit  = probe.Limit{Suspect: 2, DownAfter: 3 * time.Second}
	heldLimit  = probe.Limit{Suspect: 1, Down: 1}
	loginLimit = probe.Limit{Suspect: 1, Down: 2}
)

// play has a machine observe findings, written as "PROBE VERDICTS" with one
// letter a finding (g, s, b, u) every step, and returns "TIME STATE" for each
// change of state, in seconds.
func play(t *testing.T, m *machine, clock *time.Time, step time.Duration, name string, limit probe.Limit,
	verdicts string) []string {
	t.Helper()
	start := time.Unix(1e9, 0)
	var changes []string
	for _, v := range verdicts {
		o := probe.Observation{Probe: name, Limit: limit, At: *clock, Reason: "no answer"}
		switch v {
		case 'g':
			o.Verdict, o.Reason = probe.Good, ""
		case 's':
			o.Verdict = probe.Silent
		case 'b':
			o.Verdict, o.Reason = probe.Bad, "connection refused"
		case 'u':
			o.Verdict, o.Reason = probe.Unknown, "out of descriptors"
		default:
			t.Fatalf("no verdict: %c", v)
		}
		if e, changed := m.observe(o); changed {
			state := string(e.State)
			if e.Slow {
				state = "slow " + state
			}
			changes = append(changes, fmt.Sprintf("%.2f %s", clock.Sub(start).Seconds(), state))
		}
		*clock = clock.Add(step)
	}
	return changes
}

func TestMachine(t *testing.T) {
	type part struct {
		step     time.Duration
		probe    string
		limit    probe.Limit
		verdicts string
	}
	quarter := 250 * time.Millisecond
	for name, c := range map[string]struct {
		parts []part
		want  string
	}{
		"the first good finding is up": {[]part{{quarter, "ping", pingLimit, "gggg"}}, "0.00 up"},
		"one miss is nothing":          {[]part{{quarter, "ping", pingLimit, "gsgsg"}}, "0.00 up"},
		"two misses are suspect, and a short row of answers does not take it back": {
			[]part{{quarter, "ping", pingLimit, "gss" + "ggggggg"}}, "0.00 up, 0.50 suspect"},
		"suspect is up again after 2 s of answers": {
			[]part{{quarter, "ping", pingLimit, "gss" + "gggggggggg"}}, "0.00 up, 0.50 suspect, 2.75 up"},
		"3 s of misses are down": {
			[]part{{quarter, "ping", pingLimit, "g" + strings.Repeat("s", 14)}}, "0.00 up, 0.50 suspect, 3.25 down"},
		"a miss in between starts the 3 s anew": {
			[]part{{quarter, "ping", pingLimit, "g" + strings.Repeat("s", 11) + "g" + strings.Repeat("s", 13)}},
			"0.00 up, 0.50 suspect, 6.25 down"},
		"a refused connection is down at once": {
			[]part{{quarter, "connection", heldLimit, "gb"}}, "0.00 up, 0.25 down"},
		"down goes to up, never back to suspect": {
			[]part{{quarter, "connection", heldLimit, "gbggg"}, {quarter, "ping", pingLimit, "ssss"},
				{quarter, "ping", pingLimit, strings.Repeat("g", 9)}},
			"0.00 up, 0.25 down, 4.25 up"},
		"a row of three answers has to cover 2 s": {
			[]part{{time.Second, "connection", heldLimit, "gbggg"}}, "0.00 up, 1.00 down, 4.00 up"},
		"two answers are too few, whatever they cover": {
			[]part{{5 * time.Second, "login", loginLimit, "gssggg"}}, "0.00 up, 5.00 suspect, 10.00 down, 25.00 up"},
		"a mount that hangs for less than 3 s is not down": {
			[]part{{time.Second, "mount", mount.DefaultSettings().Limit, "gssggg"}}, "0.00 up, 1.00 suspect, 5.00 up"},
		"at its third time-out it is": {
			[]part{{time.Second, "mount", mount.DefaultSettings().Limit, "gsss"}}, "0.00 up, 1.00 suspect, 3.00 down"},
		"one probe's good findings don't outweigh another's failure": {
			[]part{{quarter, "login", loginLimit, "gbb"}, {quarter, "ping", pingLimit, strings.Repeat("g", 30)},
				{quarter, "login", loginLimit, "g"}},
			"0.00 up, 0.25 suspect, 0.50 down, 8.25 up"},
		"a probe that cannot be made is told, and never is down": {
			[]part{{quarter, "ping", pingLimit, "gsuuuuuuuuuuuuuuuug"}}, "0.00 up, 0.75 unknown"},
		"beside one that can be made it is nothing, also after trouble": {
			[]part{{quarter, "ping", pingLimit, "g"}, {quarter, "export /a", loginLimit, "uuu"},
				{quarter, "connection", heldLimit, "bg"},
				{quarter, "ping", pingLimit, "gggg"}, {quarter, "export /a", loginLimit, "u"},
				{quarter, "ping", pingLimit, "gggg"}},
			"0.00 up, 1.00 down, 3.25 up"},
		"also where that one is missed once": {
			[]part{{quarter, "ping", pingLimit, "g"}, {quarter, "export /a", loginLimit, "uu"},
				{quarter, "ping", pingLimit, "s"},
				{quarter, "export /a", loginLimit, "u"}, {quarter, "ping", pingLimit, "gg"}}, "0.00 up"},
		"nor does it interrupt a row of misses": {
			[]part{{quarter, "ping", pingLimit, "gsus"}}, "0.00 up, 0.75 suspect"},
		"down from the start": {
			[]part{{quarter, "connection", heldLimit, "b"}}, "0.00 down"},
		"every other finding fails: flapping, and up again when it has calmed down": {
			[]part{{quarter, "ping", pingLimit, strings.Repeat("gs", 11) + strings.Repeat("g", 20)}},
			"0.00 up, 5.00 slow flapping, 9.75 up"},
		"of the flapping that ends in silence": {
			[]part{{quarter, "ping", pingLimit, strings.Repeat("gs", 11) + strings.Repeat("s", 20)}},
			"0.00 up, 5.00 slow flapping, 9.50 down"},
		"a probe that finds something only in trouble flaps no more once that is over": {
			[]part{{time.Second, "connection", heldLimit, strings.Repeat("gb", 11) + "g"},
				{quarter, "ping", pingLimit, strings.Repeat("g", 130)}},
			"0.00 up, 1.00 down, 20.00 flapping, 52.00 up"},
		"a fault now and then is no flapping": {
			[]part{{40 * time.Second, "connection", heldLimit, "g" + strings.Repeat("bg", 15)}}, "0.00 up, 40.00 down"},
		"six changes in 21 are no flapping": {
			[]part{{quarter, "ping", pingLimit, "gsgsgsg" + strings.Repeat("g", 20)}}, "0.00 up"},
		"seven are": {
			[]part{{quarter, "ping", pingLimit, strings.Repeat("g", 12) + "sgsgsgs" + "gg"}}, "0.00 up, 5.00 slow flapping"},
	} {
		t.Run(name, func(t *testing.T) {
			m, clock := newMachine(DefaultRules()), time.Unix(1e9, 0)
			var got []string
			for _, p := range c.parts {
				got = append(got, play(t, m, &clock, p.step, p.probe, p.limit, p.verdicts)...)
			}
			assert.Equal(t, c.want, strings.Join(got, ", "))
		})
	}
}

func TestIncidentEndsAfterItsBeginning(t *testing.T) {
	m, at := newMachine(DefaultRules()), time.Unix(1e9, 0)
	for range 40 { // it has been well for long
		m.observe(probe.Observation{Probe: "mount", At: at})
		at = at.Add(time.Second)
	}
	m.observe(probe.Observation{Probe: "mount", Verdict: probe.Unknown, Reason: "no process can be started", At: at})
	require.Equal(t, Unknown, m.state)
	var up Event
	for range 10 {
		at = at.Add(time.Second)
		if e, changed := m.observe(probe.Observation{Probe: "mount", At: at}); changed {
			up = e
		}
	}
	require.Equal(t, Up, up.State)
	require.Equal(t, int64(1000), up.LastedMS)
}

func TestIncidentKeepsItsID(t *testing.T) {
	m, at := newMachine(DefaultRules()), time.Unix(1e9, 0)
	var events []Event
	see := func(v probe.Verdict, reason string) {
		if e, changed := m.observe(probe.Observation{Probe: "ping", Verdict: v, Reason: reason, At: at,
			Limit: pingLimit}); changed {
			events = append(events, e)
		}
		at = at.Add(250 * time.Millisecond)
	}
	see(probe.Good, "")
	for range 14 {
		see(probe.Silent, "no answer within 250 ms")
	}
	m.incident.HealedBy = "watchdog"
	for range 10 {
		see(probe.Good, "")
	}
	see(probe.Silent, "no answer within 250 ms")
	see(probe.Silent, "no answer within 250 ms")
	require.Len(t, events, 5)
	states := []State{Up, Suspect, Down, Up, Suspect}
	for i, e := range events {
		assert.Equal(t, states[i], e.State)
	}
	suspect, down, up := events[1], events[2], events[3]
	assert.Equal(t, suspect.ID, down.ID)
	assert.Equal(t, down.ID, up.ID)
	assert.Equal(t, []int{1, 2, 3}, []int{suspect.Seq, down.Seq, up.Seq})
	assert.NotEqual(t, up.ID, events[4].ID)
	assert.NotEqual(t, up.ID, events[0].ID)
	assert.Equal(t, int64(250), suspect.AfterMS)
	assert.Equal(t, int64(3000), down.AfterMS)
	assert.Equal(t, "no answer within 250 ms", down.Reason)
	assert.Equal(t, int64(14*250), up.LastedMS)
	assert.Equal(t, "watchdog", up.HealedBy)
	assert.Equal(t, "answers again after 3.5s", up.Reason)
}

// FuzzMachine: whatever is found in whatever order, down is said only with a
// limit reached, an incident has one id from its first doubt until all is well
// and another one never has it, and each event follows from the one before.
func FuzzMachine(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		random := rand.New(rand.NewPCG(a, b))
		limits := map[string]probe.Limit{"connection": heldLimit, "ping": pingLimit, "login": loginLimit}
		names := []string{"connection", "ping", "login"}
		m, at := newMachine(DefaultRules()), time.Unix(1e9, 0)
		failed, since := map[string]int{}, map[string]time.Time{}
		ids := map[string]bool{}
		var open *Event
		previous, sticky := Unknown, probe.Good
		for range 2000 {
			at = at.Add(time.Duration(random.Int64N(int64(600 * time.Millisecond))))
			if random.IntN(4) == 0 {
				sticky = probe.Verdict(random.IntN(4))
			}
			o := probe.Observation{Probe: names[random.IntN(3)], Verdict: sticky, At: at}
			o.Limit = limits[o.Probe]
			switch o.Verdict {
			case probe.Good:
				failed[o.Probe] = 0
			case probe.Silent, probe.Bad:
				if failed[o.Probe]++; failed[o.Probe] == 1 {
					since[o.Probe] = at
				}
			}
			e, changed := m.observe(o)
			if !changed {
				continue
			}
			require.Equal(t, previous, e.Previous)
			require.NotEqual(t, e.Previous, e.State)
			previous = e.State
			if e.State == Down {
				l, n := limits[e.Probe], failed[e.Probe]
				require.True(t, l.Down > 0 && n >= l.Down || l.DownAfter > 0 && n >= l.Suspect &&
					at.Sub(since[e.Probe]) >= l.DownAfter, "down by %s after %d", e.Probe, n)
			}
			if open == nil {
				require.False(t, ids[e.ID], "an incident's id is used again")
				require.Equal(t, 1, e.Seq)
			} else {
				require.Equal(t, open.ID, e.ID)
				require.Equal(t, open.Seq+1, e.Seq)
			}
			ids[e.ID], open = true, &e
			if e.State == Up {
				open = nil
				require.GreaterOrEqual(t, e.LastedMS, int64(0))
				for name, n := range failed {
					require.Zero(t, n, "up while %s fails", name)
				}
			}
			require.GreaterOrEqual(t, e.AfterMS, int64(0))
		}
	})
}
