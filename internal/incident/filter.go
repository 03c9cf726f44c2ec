package incident

import (
	"time"

	"st2ha/internal/probe"
)

// Bounds of what becomes a trigger: each one is work for the rules engine and
// for the database, which may be what is in trouble.
const (
	eventsWithin = 10 * time.Minute
	eventsOfOne  = 6  // of an endpoint, within that time, beside their ends
	eventsOfAll  = 60 // of all endpoints
)

// Filter passes on what rules and people act on: down and flapping, each once
// an incident, this node being cut off, and the end of what was passed on. The
// first doubt, what flaps only by being slow, what is only unknown, and the ends
// of those stay in log and metrics. It has no clock, and is not safe for concurrent use.
type Filter struct {
	All     bool                         // suspect, unknown and each up, too
	LeftOut func(Event)                  // gets what was too many, if set
	open    map[probe.Key]incidentStates // of the incident that was passed on
	passed  map[probe.Key][]time.Time    // when
	total   []time.Time
	dropped int // since the last event that passed
}

// incidentStates are those of an incident that were passed on.
type incidentStates struct {
	id     string
	states map[State]bool
}

// NewFilter knows of the incidents of a former run that were passed on.
func NewFilter(all bool, open []Incident) *Filter {
	f := &Filter{All: all, open: map[probe.Key]incidentStates{}, passed: map[probe.Key][]time.Time{}}
	for _, o := range open {
		if o.State == Down || o.State == Flapping {
			f.open[probe.Key{Backend: o.Backend, Name: o.Endpoint}] = incidentStates{o.ID, map[State]bool{o.State: true}}
		}
	}
	return f
}

// Pass says whether an event is passed on. Its Dropped counts those before it
// that were too many.
func (f *Filter) Pass(e Event) (Event, bool) {
	if f.All {
		return e, true
	}
	key := e.Key()
	known := f.open[key]
	switch e.State {
	case Down, Flapping, CutOff:
		if e.Slow || known.id == e.ID && known.states[e.State] {
			return e, false
		}
		if f.tooMany(key, e.DetectedAt.Time) {
			f.dropped++
			if f.LeftOut != nil {
				f.LeftOut(e)
			}
			return e, false
		}
		if known.id != e.ID {
			known = incidentStates{e.ID, map[State]bool{}}
		}
		known.states[e.State] = true
		f.open[key] = known
	case Up, Unknown: // unknown: not watched any more
		// It has no limit of its own: it ends what passed the limit.
		if known.id != e.ID {
			return e, false
		}
		delete(f.open, key)
	default:
		return e, false
	}
	e.Dropped, f.dropped = f.dropped, 0
	return e, true
}

// tooMany counts an event, unless it is one too many.
func (f *Filter) tooMany(key probe.Key, at time.Time) bool {
	recent := func(list []time.Time) []time.Time {
		for len(list) > 0 && at.Sub(list[0]) >= eventsWithin {
			list = list[1:]
		}
		return list
	}
	f.passed[key], f.total = recent(f.passed[key]), recent(f.total)
	if len(f.passed[key]) >= eventsOfOne || len(f.total) >= eventsOfAll {
		return true
	}
	f.passed[key], f.total = append(f.passed[key], at), append(f.total, at)
	return false
}
