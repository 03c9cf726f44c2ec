package incident

import (
	"net"
	"strings"
	"time"

	"st2ha/internal/probe"
)

// MergeWithin is how far apart several observers see one fault.
const MergeWithin = time.Minute

// mostFaults bounds what a Merger remembers: what events name may be anybody's.
const mostFaults = 4096

// Merger makes one event of a fault that several observers see: the first
// report of it is passed on, with its end. A fault is what is in trouble and
// how, whoever sees it: a broker that three watchers find refusing connections
// within a minute is one fault.
//
// No fault that only one observer sees is lost:
//
//   - another verdict is another fault. One that hears nothing of a broker, for
//     the network between them is cut, has not seen the end of its process, which
//     others see as a refused connection; a login that is refused to one user is
//     not refused to the other node's;
//   - what one observer says a minute before or after the other is passed on;
//   - who still sees the fault a minute after the first one saw its end sees
//     something else: what it said is passed on then;
//   - who sees its end, while the first one goes on to see the fault, is passed
//     on a minute later.
//
// An endpoint on loopback, a mount and a unit are their node's own, so they are
// compared only where they were seen from one node. Where observers call a server
// by different names nothing is merged. What waits for its minute is in memory: a
// sensor that is killed meanwhile passes its end on without its begin.
//
// It has no clock, and is not safe for concurrent use.
type Merger struct {
	reported map[trouble]*report
	begun    map[string]bool      // incidents that were passed on, and have not ended
	also     map[string]*follower // incidents that are another's fault
	dropped  int
}

// trouble is what is in trouble, and how.
type trouble struct {
	what  probe.Key // as all observers call it
	state State
	kind  string // of the finding
}

// report is the newest event of a fault that was passed on.
type report struct {
	id, observer string
	at           time.Time // detected
	ended        time.Time // detected; zero while it goes on
}

// follower is an incident of an observer who came after another one.
type follower struct {
	trouble
	observer string
	of       *report
	at       time.Time // detected
	line     []byte    // what is held back; nil if nothing is
	due      time.Time // when that is passed on all the same; zero: not while the other goes on
	up       bool      // line is the end
}

// NewMerger knows of no fault.
func NewMerger() *Merger {
	return &Merger{reported: map[trouble]*report{}, begun: map[string]bool{}, also: map[string]*follower{}}
}

// Merged is how many events were not passed on.
func (m *Merger) Merged() int { return m.dropped }

// Pass says whether an event is passed on now; line is how it is written.
func (m *Merger) Pass(e Event, line []byte, now time.Time) bool {
	pass := true
	switch e.State {
	case Suspect, Flapping, Down, CutOff:
		pass = m.begin(e, line, now)
	case Up, Unknown:
		pass = m.end(e, line, now)
	}
	if !pass {
		m.dropped++
	}
	return pass
}

func (m *Merger) begin(e Event, line []byte, now time.Time) bool {
	f := trouble{what(e), e.State, kind(e)}
	t, observer := m.reported[f], e.Node+" "+e.Source
	if t != nil && t.id != e.ID && t.observer != observer && e.DetectedAt.Sub(t.at).Abs() <= MergeWithin &&
		(t.ended.IsZero() || !e.DetectedAt.After(t.ended)) {
		also := &follower{trouble: f, observer: observer, of: t, at: e.DetectedAt.Time, line: line}
		if !t.ended.IsZero() {
			also.due = now.Add(MergeWithin)
		}
		m.also[e.ID] = also
		return false
	}
	if len(m.reported)+len(m.also)+len(m.begun) > mostFaults { // as after a restart: what comes twice is passed on twice
		*m = Merger{reported: map[trouble]*report{}, begun: map[string]bool{}, also: m.heldBack(), dropped: m.dropped}
	}
	m.reported[f] = &report{id: e.ID, observer: observer, at: e.DetectedAt.Time}
	m.begun[e.ID] = true
	return true
}

// heldBack are the followers of which something is held back, due at once.
func (m *Merger) heldBack() map[string]*follower {
	held := map[string]*follower{}
	for id, also := range m.also {
		if also.line != nil {
			also.due = also.at
			held[id] = also
		}
	}
	return held
}

func (m *Merger) end(e Event, line []byte, now time.Time) bool {
	if m.begun[e.ID] {
		delete(m.begun, e.ID)
		for f, t := range m.reported {
			switch {
			case t.id == e.ID:
				t.ended = e.DetectedAt.Time
			case !t.ended.IsZero() && e.DetectedAt.Sub(t.ended) > 2*MergeWithin:
				delete(m.reported, f)
			}
		}
		for id, also := range m.also {
			if also.of.id != e.ID {
				continue
			}
			also.of.ended = e.DetectedAt.Time
			switch {
			case also.up: // both have seen the end
				delete(m.also, id)
			case also.line != nil:
				also.due = now.Add(MergeWithin)
			}
		}
		delete(m.also, e.ID)
		return true
	}
	also := m.also[e.ID]
	switch {
	case also == nil:
		return true
	case !also.of.ended.IsZero():
		delete(m.also, e.ID)
	default:
		also.line, also.up, also.due = line, true, now.Add(MergeWithin)
	}
	return false
}

// Due returns what was held back and is to be passed on now.
func (m *Merger) Due(now time.Time) (lines [][]byte) {
	for id, also := range m.also {
		if also.line == nil || also.due.IsZero() || now.Before(also.due) {
			continue
		}
		lines = append(lines, also.line)
		m.dropped--
		delete(m.also, id)
		if !also.up {
			m.reported[also.trouble] = &report{id: id, observer: also.observer, at: also.at}
			m.begun[id] = true
		}
	}
	return lines
}

// what is an event's endpoint under a name that all observers of it have. Of
// endpoints only servers are host:port.
func what(e Event) probe.Key {
	name, port, err := net.SplitHostPort(e.Endpoint)
	switch {
	case err != nil || strings.HasPrefix(name, "/"): // a unit, this node, or a mount
		return probe.Key{Backend: e.Backend, Name: e.Node + " " + e.Endpoint}
	case probe.OnLoopback(e.Endpoint):
		return probe.Key{Backend: e.Backend, Name: net.JoinHostPort(e.Node, port)}
	}
	return probe.Key{Backend: e.Backend, Name: net.JoinHostPort(strings.ToLower(name), port)}
}

// kind is how it is in trouble, as far as what is done about it may differ.
func kind(e Event) string {
	reason, _, _ := strings.Cut(e.Reason, " (") // a fact of the server's part
	begins := func(texts ...string) bool {
		for _, text := range texts {
			if strings.HasPrefix(reason, text) {
				return true
			}
		}
		return false
	}
	switch {
	case e.Probe == probe.Connection && begins("connection refused", "connection reset", "broken pipe",
		"the connection was closed"):
		return "gone"
	case (e.Probe == probe.Connection || e.Probe == probe.Ping) &&
		begins("no answer", "no route", "network is unreachable", "connection timed out", "host is down"):
		return "silent"
	}
	return e.Probe + ": " + strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1 // how long it has lasted
		}
		return r
	}, reason)
}
