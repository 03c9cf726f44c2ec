// Package heal decides whether a fault may be healed now: limits and back-off
// for each endpoint, and a switch that silences healing while people work on a
// node. What was decided lies on the node that is healed, so that StackStorm's
// rules and the node's own watchdog share one account.
package heal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// Where a node keeps it.
const (
	Dir             = step.StateDir + "/heals" // a file an endpoint
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

// Decision says whether an endpoint may be healed.
type Decision struct {
	Verdict Verdict
	Until   time.Time // of Wait; of InMaintenance if that has an end
	First   bool      // of GaveUp: nobody was told yet, and the caller shall
	Heals   int       // counted in the window, with one that may go ahead now
	Reason  string    // for people; empty with GoAhead
}

// Ledger holds the limits.
type Ledger struct {
	Heals   int             // an endpoint is healed at most so often in Window
	Window  time.Duration   // counted back from now
	Backoff []time.Duration // between one heal and the next; the last one is for all others
}

// Default is at most 3 heals in 10 minutes. The waits leave a broker time to
// start (30 s measured), and room for a fault that passes by itself.
func Default() Ledger {
	return Ledger{Heals: 3, Window: 10 * time.Minute, Backoff: []time.Duration{45 * time.Second, 2 * time.Minute}}
}

// account is what a file in Dir holds.
type account struct {
	Endpoint string      `json:"endpoint"`
	Heals    []time.Time `json:"heals"`
	GaveUp   *time.Time  `json:"gave_up,omitempty"`
}

// Allow decides whether endpoint ("redis 10.0.0.1:6379", say) may be healed on
// h now, and counts the heal before it takes place: one that is cut off counts
// as well. Once given up, an endpoint is not healed until Recovered is called.
func (l Ledger) Allow(ctx context.Context, h host.Host, endpoint string, now time.Time) (Decision, error) {
	m, err := ReadMaintenance(ctx, h, now)
	if err != nil {
		return Decision{}, err
	}
	if m.On {
		return Decision{Verdict: InMaintenance, Until: m.Until, Reason: m.String()}, nil
	}
	var d Decision
	err = locked(ctx, h, func() error {
		a, err := read(ctx, h, endpoint)
		if err != nil {
			return err
		}
		var changed bool
		if d, changed = l.decide(&a, now); !changed {
			return nil
		}
		return a.write(ctx, h)
	})
	return d, err
}

// decide is Allow without the files: it returns whether a was changed.
func (l Ledger) decide(a *account, now time.Time) (d Decision, changed bool) {
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
				Reason: fmt.Sprintf("healed %d times within %s; the next is due at %s", n, l.Window, until.UTC().Format(time.RFC3339))}, false
		}
	}
	a.Heals = append(a.Heals, now.UTC())
	return Decision{Verdict: GoAhead, Heals: n + 1}, true
}

func (l Ledger) reason(n int) string {
	return fmt.Sprintf("healed %d times within %s, and down again: a person is needed", n, l.Window)
}

// recent returns the heals that count. After a clock was set back some lie in
// the future; they count as of now, so that no wait is longer than its back-off.
func (l Ledger) recent(heals []time.Time, now time.Time) []time.Time {
	var kept []time.Time
	for _, t := range heals {
		if t.After(now) {
			t = now.UTC()
		}
		if now.Sub(t) < l.Window {
			kept = append(kept, t)
		}
	}
	return kept
}

// Recovered notes that endpoint is up: what was given up may be healed again.
// Heals in the window still count, for an endpoint that comes and goes.
func (l Ledger) Recovered(ctx context.Context, h host.Host, endpoint string, now time.Time) error {
	// Nearly always there is nothing to note, and then nothing is locked.
	if a, err := read(ctx, h, endpoint); err != nil || a.GaveUp == nil && len(l.recent(a.Heals, now)) == len(a.Heals) {
		return err
	}
	return locked(ctx, h, func() error {
		a, err := read(ctx, h, endpoint)
		if err != nil {
			return err
		}
		a.GaveUp, a.Heals = nil, l.recent(a.Heals, now)
		if len(a.Heals) > 0 {
			return a.write(ctx, h)
		}
		if err := h.Remove(ctx, file(endpoint)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// Refusal is a decision against healing, as the error of who wanted to.
func (d Decision) Refusal(h host.Host, endpoint string) error {
	switch d.Verdict {
	case GoAhead:
		return nil
	case InMaintenance:
		return fault.Preflight("maintenance", "st2 run st2ha.maintenance host="+h.Name()+" mode=off ends it",
			"%s: %s is not healed: %s", h.Name(), endpoint, d.Reason)
	case Wait:
		return fault.Preflight("healing_waits", "wait, or mend it by hand", "%s: %s is not healed: %s", h.Name(), endpoint, d.Reason)
	}
	return fault.Preflight("healing_gave_up", "find out why it does not stay up, and mend it; it is healed again once it was up",
		"%s: %s is not healed: %s", h.Name(), endpoint, d.Reason)
}
