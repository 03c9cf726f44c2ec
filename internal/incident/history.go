package incident

import (
	"time"

	"st2ha/internal/probe"
)

// history is what is remembered of one probe's findings.
type history struct {
	verdict  probe.Verdict // of the last finding
	reason   string        // of the last finding that was not Good
	limit    probe.Limit
	failed   int           // findings in a row that were Silent or Bad
	since    time.Time     // the first of them
	bad      time.Time     // the last one that was Bad
	missed   time.Duration // since then, in which the prober itself did not run
	blind    int           // findings in a row that were Unknown
	last     bool          // whether the newest of turns was Good
	turns    []turn        // the findings but the first
	next     int           // place of turns that is overwritten next
	changes  int           // changed ones among turns
	changed  time.Time     // the last one of them
	started  bool
	flapping bool
}

// turn is a finding, and whether it differed from the one before.
type turn struct {
	at      time.Time
	changed bool
}

// add takes a finding in.
func (p *history) add(o probe.Observation, rules Rules) {
	p.verdict, p.limit = o.Verdict, o.Limit
	if o.Verdict != probe.Good {
		p.reason = o.Reason
	}
	switch o.Verdict {
	case probe.Unknown:
		// It says nothing of the endpoint: neither for it nor against it.
		p.blind++
		return
	case probe.Good:
		p.failed = 0
	default:
		if o.Verdict == probe.Bad {
			p.bad = o.At
		}
		if p.failed == 0 {
			p.since, p.missed = o.At, 0
		}
		p.failed++
	}
	p.blind = 0
	p.remember(o.Verdict == probe.Good, o.At, rules)
}

// remember judges flapping by the share of changes among the last findings.
func (p *history) remember(good bool, at time.Time, rules Rules) {
	changed := p.started && good != p.last
	p.last = good
	if !p.started {
		p.started = true
		return
	}
	if len(p.turns) < rules.History-1 {
		p.turns = append(p.turns, turn{at, changed})
	} else {
		if p.turns[p.next].changed {
			p.changes--
		}
		p.turns[p.next] = turn{at, changed}
		p.next = (p.next + 1) % len(p.turns)
	}
	if changed {
		p.changes++
		p.changed = at
	}
	share := float64(p.changes) / float64(rules.History-1)
	full := len(p.turns) == rules.History-1
	switch recent := full && at.Sub(p.turns[p.next].at) <= rules.FlapWithin; {
	case recent && share > rules.FlapAbove:
		p.flapping = true
	case !recent || share < rules.FlapBelow:
		p.flapping = false
	}
}

// state is what this probe alone says of the endpoint at the time of a finding.
func (p *history) state(at time.Time, cutOff bool, rules Rules) State {
	suspect := p.limit.Suspect > 0 && p.failed >= p.limit.Suspect
	down := p.limit.Down > 0 && p.failed >= p.limit.Down ||
		p.limit.DownAfter > 0 && suspect && at.Sub(p.since)-p.missed >= p.limit.DownAfter
	switch {
	case p.flapping && at.Sub(p.changed) < rules.FlapCalm:
		return Flapping
	case down && cutOff && p.verdict != probe.Bad:
		return Suspect
	case down:
		return Down
	case suspect:
		return Suspect
	case p.blind > 0 && p.blind >= p.limit.Suspect:
		return Unknown
	}
	return Up
}
