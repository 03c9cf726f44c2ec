package step

import (
	"context"
	"errors"
	"strings"
	"time"

	"st2ha/internal/host"
)

// Guard says why a change that heals is not to be made now, or nil.
type Guard func(ctx context.Context, h host.Host, c Change) (*Finding, error)

// LeftError is what Apply returns for a change that turned out to be
// impossible, and harms nothing: Heal notes the finding, and goes on.
type LeftError struct{ Finding Finding }

func (e *LeftError) Error() string { return e.Finding.Message }

// Heal brings a step about that mends a fault and is no configuration: check,
// plan, apply what guard lets pass, verify. It excludes other runs on the host
// as Run does, but keeps no journal: a restart left nothing to be undone, and a
// rollback must not restart what was only mended. A refused change is a finding.
func Heal(ctx context.Context, s Step, h host.Host, o Options, guard Guard) (Result, error) {
	r := Result{Step: s.Name(), Host: h.Name(), Run: o.Run, DryRun: o.DryRun,
		Changes: []ChangeSummary{}, Findings: []Finding{}}
	err := heal(ctx, s, h, o, guard, &r)
	for i := range r.Findings {
		r.Findings[i].Message = o.Mask.Mask(r.Findings[i].Message)
	}
	r.Fail(err, o.Mask)
	r.Millis = time.Since(o.Started).Milliseconds()
	return r, err
}

func heal(ctx context.Context, s Step, h host.Host, o Options, guard Guard, r *Result) error {
	changes, err := checkAndPlan(ctx, s, h, r)
	if err != nil {
		return err
	}
	if o.DryRun {
		r.show(changes, o.Mask)
		return nil
	}
	if len(changes) == 0 {
		return s.Verify(ctx, h)
	}
	release, err := Lock(ctx, h, o.note(s), o.Wait)
	if twin := sameHeal(err, s); twin != "" {
		r.Findings = append(r.Findings, Finding{Severity: Warning, Host: h.Name(), Check: "healing_waits",
			Message: s.Name() + " is at work on " + h.Name() + " already: " + twin,
			Fix:     "try it again when that one has ended, if it is still needed then"})
		return nil
	}
	if err != nil {
		return err
	}
	defer release()
	// Somebody else may have healed it meanwhile.
	if changes, err = s.Plan(ctx, h); err != nil {
		return err
	}
	o.beforeInterrupt(ctx, h, changes...)
	refused := false
	for _, c := range changes {
		f, err := guard(ctx, h, c)
		if err != nil {
			return err
		}
		if f != nil {
			refused = true
			r.Findings = append(r.Findings, *f)
			continue
		}
		o.Log.Info(c.Kind(), "host", h.Name(), "target", c.Target())
		err = c.Apply(ctx, h)
		var left *LeftError
		if errors.As(err, &left) {
			r.Findings = append(r.Findings, left.Finding)
			continue
		}
		if err != nil {
			return err
		}
		r.Changed = true
		r.show([]Change{c}, o.Mask)
	}
	if refused {
		return Refuse(r.Findings)
	}
	return s.Verify(ctx, h)
}

// sameHeal is the run that heals the same on the host right now, if that is why
// the lock is taken: several observers of one fault start the same heal, and this
// is no more of a failure than to come a moment later.
func sameHeal(err error, s Step) string {
	var held *host.LockedError
	if errors.As(err, &held) && strings.HasSuffix(held.Holder, stepNote(s)) {
		return held.Holder
	}
	return ""
}
