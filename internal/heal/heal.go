// Package heal decides whether a fault may be healed now: limits and back-off
// for each unit or mount, and a switch that silences healing while people work on a
// node. What was decided lies on the node that is healed, so that StackStorm's
// rules and the node's own watchdog share one account.
package heal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"st2ha/internal/host"
	"st2ha/internal/step"
)

// Where a node keeps it.
const (
	Dir             = step.StateDir + "/heals" // a file a target
	MaintenanceFile = step.StateDir + "/maintenance"
	lockFile        = step.StateDir + "/heals.lock"
)

// Verdict is what a Decision comes to.
type Verdict string

// The verdicts.
const (
	GoAhead       Verdict = "go_ahead"    // heal now; it is counted already
	Wait          Verdict = "wait"        // not before Until
	GaveUp        Verdict = "gave_up"     // healing did not help; people are needed
	InMaintenance Verdict = "maintenance" // people are at work on the node
)

// Decision says whether a target may be healed.
type Decision struct {
	Verdict Verdict
	Until   time.Time // of Wait; of InMaintenance if that has an end
	First   bool      // of GaveUp: nobody was told yet, and the caller shall
	Heals   int       // counted in the window, with one that may go ahead now
	Reason  string    // for people; empty with GoAhead
}

// Ledger holds the limits.
type Ledger struct {
	Heals   int             // a target is healed at most so often in Window
	Window  time.Duration   // counted back from now
	Backoff []time.Duration // between one heal and the next; the last one is for all others
	Again   time.Duration   // after it was given up, it is tried again; 0 for never
}

// Gap is between two heals of the same thing, whoever they come from: a broker
// takes 30 s to start (measured), and several observers ask for the same heal.
const Gap = time.Minute

// Default is at most 3 heals in 10 minutes, Gap apart and then more, which
// leaves room for a fault that passes by itself. An hour
// after it gave up it tries again: the disk that was full may have room by then.
func Default() Ledger {
	return Ledger{Heals: 3, Window: 10 * time.Minute, Backoff: []time.Duration{Gap, 2 * time.Minute}, Again: time.Hour}
}

// account is what a file in Dir holds.
type account struct {
	Target string      `json:"target"`
	Heals  []time.Time `json:"heals"`
	GaveUp *time.Time  `json:"gave_up,omitempty"`
}

// Allow decides whether target may be healed on h now, and counts the heal
// before it takes place: one that is cut off counts as well. The target is
// what is acted on, a unit or a mount point, for an endpoint has another
// address on each node that watches it.
func (l Ledger) Allow(ctx context.Context, h host.Host, target string, now time.Time) (Decision, error) {
	m, err := Silence(ctx, h, now)
	if err != nil {
		return Decision{}, err
	}
	if m.On {
		return Decision{Verdict: InMaintenance, Until: m.Until, Reason: m.String()}, nil
	}
	var d Decision
	err = locked(ctx, h, func() error {
		a, err := read(ctx, h, target)
		if err != nil {
			return err
		}
		corrected := a.correct(now)
		var changed bool
		if d, changed = l.decide(&a, now); !changed && !corrected {
			return nil
		}
		return a.write(ctx, h)
	})
	return d, err
}

// decide is Allow without the files: it returns whether a was changed.
func (l Ledger) decide(a *account, now time.Time) (d Decision, changed bool) {
	if l.Again > 0 && a.GaveUp != nil && !now.Before(a.GaveUp.Add(l.Again)) {
		a.GaveUp = nil
	}
	if a.GaveUp != nil {
		return Decision{Verdict: GaveUp, Heals: len(a.Heals), Reason: l.reason(len(a.Heals))}, false
	}
	a.Heals = l.recent(a.Heals, now)
	n := len(a.Heals)
	if n >= l.Heals {
		a.GaveUp = &now
		return Decision{Verdict: GaveUp, First: true, Heals: n, Reason: l.reason(n)}, true
	}
	if n > 0 && len(l.Backoff) > 0 {
		until := a.Heals[n-1].Add(l.Backoff[min(n, len(l.Backoff))-1])
		if now.Before(until) {
			return Decision{Verdict: Wait, Until: until, Heals: n,
				Reason: fmt.Sprintf("it was healed at %s (%d of %d within %s), and may be again at %s",
					a.Heals[n-1].UTC().Format(time.RFC3339), n, l.Heals, l.Window, until.UTC().Format(time.RFC3339))}, false
		}
	}
	a.Heals = append(a.Heals, now.UTC())
	return Decision{Verdict: GoAhead, Heals: n + 1}, true
}

func (l Ledger) reason(n int) string {
	return fmt.Sprintf("healed %d times within %s, and down again: a person is needed", n, l.Window)
}

// correct takes times that lie in the future, for a clock was set back, as of
// now, and says whether there were any: what is written down so is no longer
// in the future at the next look, and no wait is longer than its back-off.
func (a *account) correct(now time.Time) (changed bool) {
	now = now.UTC()
	for i, t := range a.Heals {
		if t.After(now) {
			a.Heals[i], changed = now, true
		}
	}
	if a.GaveUp != nil && a.GaveUp.After(now) {
		a.GaveUp, changed = &now, true
	}
	return changed
}

// recent returns the heals that count.
func (l Ledger) recent(heals []time.Time, now time.Time) []time.Time {
	var kept []time.Time
	for _, t := range heals {
		if now.Sub(t) < l.Window {
			kept = append(kept, t)
		}
	}
	return kept
}

// Recovered notes that target is up: what was given up may be healed again at
// once. Heals in the window still count, for a target that comes and goes.
func (l Ledger) Recovered(ctx context.Context, h host.Host, target string, now time.Time) error {
	// Nearly always there is nothing to note, and then nothing is locked.
	if a, err := read(ctx, h, target); err != nil || a.GaveUp == nil && len(l.recent(a.Heals, now)) == len(a.Heals) {
		return err
	}
	return locked(ctx, h, func() error {
		a, err := read(ctx, h, target)
		if err != nil {
			return err
		}
		a.correct(now)
		a.GaveUp, a.Heals = nil, l.recent(a.Heals, now)
		if len(a.Heals) > 0 {
			return a.write(ctx, h)
		}
		if err := h.Remove(ctx, file(target)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// Finding is a decision against healing as a step's guard reports it; nil
// when it goes ahead. To have given up is an error, for people must act.
func (d Decision) Finding(h host.Host, target string) *step.Finding {
	f := &step.Finding{Severity: step.Warning, Host: h.Name(), Message: target + " is not healed: " + d.Reason}
	switch d.Verdict {
	case GoAhead:
		return nil
	case InMaintenance:
		f.Check, f.Fix = "maintenance", "st2 run st2ha.maintenance host="+h.Name()+" mode=off ends it"
	case Wait:
		f.Check, f.Fix = "healing_waits", "try it again then, or mend it by hand"
	case GaveUp:
		f.Severity = step.Error
		f.Check, f.Fix = "healing_gave_up", "find out why it does not stay up, and mend it"
	}
	return f
}
