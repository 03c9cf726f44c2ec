package incident

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"st2ha/internal/probe"
)

// Status is how an endpoint is now.
type Status struct {
	probe.Key
	Host   string // the machine it is on; empty for this node
	State  State
	Probe  string // whose finding is the worst, if it is not up
	Reason string // of that finding

	Answers bool // the newest finding was good, of whatever probe; it may take more of them to be up
	Silent  bool // the newest finding that says anything was no answer
}

// Set makes states of all endpoints of one prober, and tells a prober that is
// cut off from endpoints that are down. It has no clock, and is not safe for
// concurrent use.
type Set struct {
	rules   Rules
	node    string
	source  string
	members map[probe.Key]*member
	cut     *cut // nil while the prober reaches others
}

// member is an endpoint of a Set.
type member struct {
	*machine
	host string // empty: this node
}

// cut is a time in which the prober reached no other host.
type cut struct {
	id    string
	since time.Time
	at    time.Time // when it was found out
}

// NewSet has no endpoints yet. source is what its events say they come from.
func NewSet(source string, rules Rules) *Set {
	return &Set{rules: rules, source: source, members: map[probe.Key]*member{}}
}

// Replace makes these the endpoints, to be probed anew, and node this node's
// name. Endpoints that are known keep their state; an incident of one that is
// watched no longer ends.
func (s *Set) Replace(node string, endpoints []probe.Endpoint, now time.Time) []Event {
	s.node = node
	next := map[probe.Key]*member{}
	for _, e := range endpoints {
		m := s.members[e.Key()]
		if m == nil {
			m = &member{machine: newMachine(s.rules)}
		}
		m.host = e.Host
		m.restart()
		m.setCutOff(s.cut != nil && m.host != "")
		next[e.Key()] = m
	}
	var events []Event
	for _, key := range s.keys() {
		if m := s.members[key]; next[key] == nil && m.incident != nil {
			m.now = now
			if e, changed := m.change(Unknown, ""); changed {
				e.Reason = "not watched any more"
				events = append(events, s.sign(key, e))
			}
		}
	}
	s.members = next
	return append(events, s.connection(now)...)
}

// Observe takes a finding of an endpoint in, and returns what it changes.
func (s *Set) Observe(key probe.Key, o probe.Observation) []Event {
	m := s.members[key]
	if m == nil {
		return nil // it was replaced meanwhile
	}
	var events []Event
	if e, changed := m.observe(o); changed {
		events = append(events, s.sign(key, e))
	}
	// Only silence cuts off, and only an answer ends it: all hosts are looked at no more often than that.
	if m.host == "" || (s.cut == nil) == m.silent.IsZero() {
		return events
	}
	return append(events, s.connection(m.now)...)
}

// Late says that the prober itself did not run for that long: its process or
// its whole machine was stopped, or had no CPU. That is nobody's silence.
func (s *Set) Late(by time.Duration) {
	for _, m := range s.members {
		m.late(by)
	}
}

// sign adds what all events of the set have in common.
func (s *Set) sign(key probe.Key, e Event) Event {
	e.Backend, e.Endpoint, e.Node, e.Source = key.Backend, key.Name, s.node, s.source
	return e
}

// Healed notes who acted on an endpoint; its incident's events say so from now
// on. It returns the incident's id, empty if there is none.
func (s *Set) Healed(key probe.Key, by string) string {
	m := s.members[key]
	if m == nil || m.incident == nil {
		return ""
	}
	m.incident.HealedBy = by
	return m.incident.ID
}

// Node is the name of the prober's node in events.
func (s *Set) Node() string { return s.node }

// CutOff says whether the prober reaches no other host.
func (s *Set) CutOff() bool { return s.cut != nil }

// Statuses are those of all endpoints, sorted.
func (s *Set) Statuses() []Status {
	var all []Status
	for _, key := range s.keys() {
		m := s.members[key]
		status := Status{Key: key, Host: m.host, State: m.state, Answers: m.goods.count > 0, Silent: !m.silent.IsZero()}
		if _, by := m.worst(); by != "" {
			status.Probe, status.Reason = by, m.probes[by].reason
		}
		all = append(all, status)
	}
	return all
}

func (s *Set) keys() []probe.Key {
	keys := make([]probe.Key, 0, len(s.members))
	for key := range s.members {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b probe.Key) int {
		return cmp.Or(cmp.Compare(a.Backend, b.Backend), cmp.Compare(a.Name, b.Name))
	})
	return keys
}

// heard is what is known of another host.
type heard struct {
	silent   time.Time // the first finding without an answer, of an endpoint that is in doubt
	answered time.Time // the last answer of any endpoint
	back     bool      // an endpoint has answered for long enough
}

// connection looks whether the prober has been cut off, or is no longer.
func (s *Set) connection(now time.Time) []Event {
	hosts := s.hosts()
	if s.cut == nil {
		since, ok := s.togetherSilent(hosts)
		if !ok {
			return nil
		}
		s.cut = &cut{id: newID(), since: since, at: now}
		s.setCutOff(true)
		return []Event{s.ofNode(Up, CutOff, 1, now,
			fmt.Sprintf("none of %d other hosts answers any more: this node is cut off", len(hosts)))}
	}
	for _, h := range hosts {
		if h.back && h.answered.After(s.cut.at) {
			return s.rejoin(now, "other hosts answer again")
		}
	}
	if len(hosts) < 2 {
		return s.rejoin(now, "fewer than two other hosts are watched")
	}
	return nil
}

// rejoin ends the time of being cut off.
func (s *Set) rejoin(now time.Time, reason string) []Event {
	e := s.ofNode(CutOff, Up, 2, now, reason)
	e.LastedMS = now.Sub(s.cut.since).Milliseconds()
	s.cut = nil
	s.setCutOff(false)
	return []Event{e}
}

// ofNode is an event about this node.
func (s *Set) ofNode(from, to State, seq int, now time.Time, reason string) Event {
	return s.sign(probe.Key{Backend: Node, Name: s.node},
		Event{Event: Changed, ID: s.cut.id, Seq: seq, State: to, Previous: from, Reason: reason,
			DetectedAt: Time{now}, Since: Time{s.cut.since}, AfterMS: now.Sub(s.cut.since).Milliseconds()})
}

// setCutOff has the endpoints on other hosts know of it.
func (s *Set) setCutOff(on bool) {
	for _, m := range s.members {
		m.setCutOff(on && m.host != "")
	}
}

// hosts sums up what the endpoints say of the other hosts.
func (s *Set) hosts() map[string]heard {
	hosts := map[string]heard{}
	for _, m := range s.members {
		if m.host == "" {
			continue
		}
		h := hosts[m.host]
		if !m.silent.IsZero() && rank(m.state) >= rank(Suspect) && (h.silent.IsZero() || m.silent.Before(h.silent)) {
			h.silent = m.silent
		}
		if m.lastReply.After(h.answered) {
			h.answered = m.lastReply
		}
		h.back = h.back || m.answers.enough(s.rules, m.now)
		hosts[m.host] = h
	}
	return hosts
}

// togetherSilent says since when no other host has answered, if at least two
// fell silent at about the same time. While one answers the prober is not cut
// off, whatever happened to the others.
func (s *Set) togetherSilent(hosts map[string]heard) (time.Time, bool) {
	var first, last time.Time
	silent := 0
	for _, h := range hosts {
		if h.silent.IsZero() || !h.silent.After(h.answered) {
			continue
		}
		silent++
		if first.IsZero() || h.silent.Before(first) {
			first = h.silent
		}
		if h.silent.After(last) {
			last = h.silent
		}
	}
	if silent < 2 || last.Sub(first) > s.rules.Together {
		return time.Time{}, false
	}
	for _, h := range hosts {
		if h.answered.After(last) {
			return time.Time{}, false
		}
	}
	return first, true
}
