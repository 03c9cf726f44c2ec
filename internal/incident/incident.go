package incident

import (
	"cmp"
	"slices"
	"time"

	"st2ha/internal/probe"
)

// Incident is one time of trouble of an endpoint, from the first doubt until
// all is well. It outlives a prober that is restarted, so that what was said to
// begin is said to end.
type Incident struct {
	ID       string    `json:"id"`
	Seq      int       `json:"seq"` // of its newest event
	Backend  string    `json:"backend"`
	Endpoint string    `json:"endpoint"`
	State    State     `json:"state"`
	Began    time.Time `json:"began"`
	HealedBy string    `json:"healed_by,omitempty"`
}

// FileName is the file beside a spool that has the open incidents.
const FileName = "incidents.json"

// Note has a list of open incidents follow an event.
func Note(open []Incident, e Event) []Incident {
	i := slices.IndexFunc(open, func(o Incident) bool { return o.Backend == e.Backend && o.Endpoint == e.Endpoint })
	switch {
	case e.Backend == Node:
		return open // it is found out anew
	case e.State == Up || e.State == Unknown:
		if i < 0 {
			return open
		}
		return slices.Delete(open, i, i+1)
	case i < 0:
		open = append(open, Incident{Backend: e.Backend, Endpoint: e.Endpoint, Began: e.Since.Time})
		i = len(open) - 1
	case open[i].ID != e.ID:
		open[i].Began = e.Since.Time
	}
	o := &open[i]
	o.ID, o.Seq, o.State, o.HealedBy = e.ID, e.Seq, e.State, cmp.Or(e.HealedBy, o.HealedBy)
	return open
}

// Restore has incidents of a former run go on. It is called before the first
// Replace, which ends those of endpoints that are not watched any more.
func (s *Set) Restore(open []Incident) {
	for _, o := range open {
		m := newMachine(s.rules)
		m.state, m.incident, m.down = o.State, &o, o.State == Down
		s.members[probe.Key{Backend: o.Backend, Name: o.Endpoint}] = &member{machine: m}
	}
}
