package incident

import (
	"fmt"
	"time"

	"st2ha/internal/probe"
)

// machine makes states of what the probes of one endpoint find. It has no
// clock: time comes with the findings.
type machine struct {
	rules    Rules
	state    State
	probes   map[string]*history
	incident *Incident // nil while all is well
	down     bool      // it was, in this incident
	cutOff   bool      // silence does not lead to down: the prober is cut off

	now       time.Time // of the newest finding; time does not run backwards
	goods     run       // findings in a row, of all probes, that were Good
	answers   run       // and that were answers at all
	silent    time.Time // first finding without an answer since the last answer
	lastReply time.Time
}

// run is an unbroken row of findings of one sort.
type run struct {
	count int
	since time.Time
}

func (r *run) add(ok bool, at time.Time) {
	if !ok {
		*r = run{}
		return
	}
	if r.count == 0 {
		r.since = at
	}
	r.count++
}

// enough says whether the row is what the rules ask for before all is well.
func (r run) enough(rules Rules, at time.Time) bool {
	return r.count >= rules.UpAfter && at.Sub(r.since) >= rules.UpFor
}

func newMachine(rules Rules) *machine {
	return &machine{rules: rules, state: Unknown, probes: map[string]*history{}}
}

// observe takes a finding in, and returns the change of state it leads to.
func (m *machine) observe(o probe.Observation) (Event, bool) {
	if o.At.Before(m.now) {
		o.At = m.now
	}
	m.now = o.At
	p := m.probes[o.Probe]
	if p == nil {
		p = &history{}
		m.probes[o.Probe] = p
	}
	p.add(o, m.rules)
	switch o.Verdict {
	case probe.Good, probe.Bad:
		m.lastReply, m.silent = o.At, time.Time{}
	case probe.Silent:
		if m.silent.IsZero() {
			m.silent = o.At
		}
	}
	if o.Verdict != probe.Unknown { // that says nothing of the endpoint
		m.goods.add(o.Verdict == probe.Good, o.At)
		m.answers.add(o.Verdict != probe.Silent, o.At)
	}
	next, by := m.next()
	return m.change(next, by)
}

// rank orders states by how bad they are.
func rank(s State) int {
	switch s {
	case Down:
		return 4
	case Flapping:
		return 3
	case Suspect:
		return 2
	case Unknown:
		return 1
	}
	return 0
}

// worst is the worst that any probe says, and which one says so. Of two that
// say the same the one that said so first counts. A probe that cannot be made
// counts only where none can: without root's source ports exports cannot be
// looked at, and the server answers all the same.
func (m *machine) worst() (State, string) {
	state, by := Up, ""
	for name, p := range m.probes {
		s := p.state(m.now, m.cutOff, m.rules)
		switch {
		case rank(s) < rank(state), s == Up:
			continue
		case s == state && !p.since.Before(m.probes[by].since) && !(p.since.Equal(m.probes[by].since) && name < by):
			continue
		}
		state, by = s, name
	}
	if state == Unknown && m.informed() {
		return Up, ""
	}
	return state, by
}

// informed says whether the newest finding of any probe says anything of the
// endpoint, if only that one answer was missed.
func (m *machine) informed() bool {
	for _, p := range m.probes {
		if p.verdict != probe.Unknown {
			return true
		}
	}
	return false
}

// anyGood says whether the newest finding of any probe was good.
func (m *machine) anyGood() bool {
	for _, p := range m.probes {
		if p.verdict == probe.Good {
			return true
		}
	}
	return false
}

// next is the state that follows from all findings. Trouble is taken back only
// by a row of good findings.
func (m *machine) next() (State, string) {
	worst, by := m.worst()
	switch {
	case worst == Up && m.recovered():
		return Up, ""
	case worst == Up:
		return m.state, ""
	case rank(worst) > rank(m.state), worst == Flapping, m.state == Flapping:
		return worst, by
	}
	return m.state, ""
}

// recovered says whether what is known is enough to call the endpoint up.
func (m *machine) recovered() bool {
	for _, p := range m.probes {
		if p.failed > 0 || p.verdict == probe.Silent {
			return false
		}
	}
	// One that was never in trouble needs no row of good findings.
	return m.anyGood() && (m.incident == nil || m.goods.enough(m.rules, m.now))
}

// change enters a state.
func (m *machine) change(next State, by string) (Event, bool) {
	if next == m.state {
		return Event{}, false
	}
	e := Event{Event: Changed, State: next, Previous: m.state, Probe: by, DetectedAt: Time{m.now}, Since: Time{m.now}}
	if p := m.probes[by]; p != nil {
		e.Reason = p.reason
		if p.failed > 0 {
			e.Since = Time{p.since}
		}
	}
	if m.incident == nil && next != Up {
		m.goods = run{} // those of before say nothing of its end
	}
	m.open(e.Since.Time)
	m.state = next
	m.down = m.down || next == Down
	if p := m.probes[by]; p != nil && next == Flapping {
		e.Slow = !m.down && m.now.Sub(p.bad) > m.rules.FlapWithin
	}
	e.ID, e.Seq, e.HealedBy = m.incident.ID, m.incident.Seq, m.incident.HealedBy
	if next == Up {
		m.close(&e)
	}
	e.AfterMS = e.DetectedAt.Sub(e.Since.Time).Milliseconds()
	return e, true
}

// open counts an event of the incident, which begins with it if there is none.
func (m *machine) open(began time.Time) {
	if m.incident == nil {
		m.incident = &Incident{ID: newID(), Began: began}
	}
	m.incident.Seq++
}

// close ends the incident with its last event.
func (m *machine) close(e *Event) {
	e.Reason = "answers"
	if !m.goods.since.IsZero() {
		e.Since = Time{m.goods.since}
	}
	if e.Since.Before(m.incident.Began) { // flapping begins with a good finding as well
		e.Since = Time{m.incident.Began}
	}
	if e.Seq > 1 {
		lasted := e.Since.Sub(m.incident.Began)
		e.LastedMS = max(1, lasted.Milliseconds()) // it is left out where it is 0
		e.Reason = fmt.Sprintf("answers again after %s", lasted.Round(time.Millisecond))
	}
	m.incident, m.down = nil, false
}

// restart forgets what the probes found, for they are made anew; the state and
// an incident stay.
func (m *machine) restart() {
	m.probes = map[string]*history{}
	m.goods, m.answers, m.silent = run{}, run{}, time.Time{}
}

// late takes time in which the prober itself did not run out of each silence:
// it could have read no answer then.
func (m *machine) late(by time.Duration) {
	for _, p := range m.probes {
		p.missed += by
	}
}

// setCutOff keeps silence from leading to down, or lets it again: then the silence
// so far does not count, for it was the prober's own.
func (m *machine) setCutOff(on bool) {
	if m.cutOff && !on {
		for _, p := range m.probes {
			if p.failed > 0 && p.verdict != probe.Bad {
				p.failed = 0
			}
		}
	}
	m.cutOff = on
}
