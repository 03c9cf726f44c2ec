package stackstorm

import (
	"context"
	"fmt"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// owes is the name under which a restart of the st2 services is owed.
const owes = "st2"

// restartUnit is the transient unit of a deferred restart. The name is fixed,
// so that two runs cannot have two of them.
const restartUnit = "st2ha-restart-st2"

// When says when the st2 services are restarted.
type When string

// The times of a restart.
const (
	// Auto is Deferred on this machine, whose action runner may be running
	// this very process, and where somebody waits for the run to end; else Inline.
	Auto     When = "auto"
	Inline   When = "inline"   // now, before the command ends
	Deferred When = "deferred" // by a transient systemd unit of the host, after the workflow has ended
	Later    When = "later"    // by a later restart_st2
	Others   When = "others"   // Later on this machine, Inline on another
	Idle     When = "idle"     // Later where Auto is Deferred; else Inline
)

// ParseWhen reads a When.
func ParseWhen(s string) (When, error) {
	switch w := When(s); w {
	case Auto, Inline, Deferred, Later, Others, Idle:
		return w, nil
	}
	return "", fault.Usage("restart must be auto, inline, deferred, later, others or idle, not %q", s)
}

// Restarter is the step restart_st2: it makes up for the restart that
// configure_st2 left to it.
type Restarter struct {
	Restart When
	Force   bool          // restart also if nothing calls for it
	Delay   time.Duration // of a deferred restart
	Within  time.Duration // the services must be active by then
	Run     string        // the run's name, for the deferred restart's own journal
}

// Name is restart_st2.
func (s *Restarter) Name() string { return "restart_st2" }

// Check looks for st2ctl.
func (s *Restarter) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	if _, err := h.Stat(ctx, st2ctl); err != nil {
		return []step.Finding{{Severity: step.Error, Host: h.Name(), Check: "st2ctl", Message: st2ctl + " is missing",
			Fix: "install StackStorm on " + h.Name() + " first"}}, nil
	}
	return nil, nil
}

const st2ctl = "/usr/bin/st2ctl"

// Plan restarts if a restart is owed.
func (s *Restarter) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	c, err := planRestart(ctx, h, s.Restart, s.Force, s.Run)
	if err != nil || c == nil {
		return nil, err
	}
	c.Delay = s.Delay
	return []step.Change{c}, nil
}

// Verify waits for the services, unless they are to be restarted only later.
func (s *Restarter) Verify(ctx context.Context, h host.Host) error {
	if pending, err := Pending(ctx, h); err != nil || pending {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.Within)
	defer cancel()
	return await(ctx, h)
}

// Pending says whether the st2 services still run with an older st2.conf.
func Pending(ctx context.Context, h host.Host) (bool, error) { return step.Owed(ctx, h, owes) }

// planRestart returns the restart that is needed now, or nil.
func planRestart(ctx context.Context, h host.Host, when When, needed bool, run string) (*Restart, error) {
	owed, err := Pending(ctx, h)
	if err != nil {
		return nil, err
	}
	if !needed && !owed {
		return nil, nil
	}
	when = when.on(ctx, h, run)
	switch {
	case !needed && when == Later:
		return nil, nil // already left to restart_st2
	case !needed && when == Deferred:
		scheduled, err := deferred(ctx, h, restartUnit)
		if err != nil || scheduled {
			return nil, err
		}
	}
	return &Restart{When: when, Delay: defaultDelay, Run: run}, nil
}

// on is Inline, Deferred or Later, whichever it means on that host.
func (w When) on(ctx context.Context, h host.Host, run string) When {
	switch w {
	case Others:
		if h.IsLocal() {
			return Later
		}
		return Inline
	case Auto, Idle:
		switch {
		case !h.IsLocal() && !waits(ctx, h, run):
			return Inline
		case w == Auto:
			return Deferred
		}
		return Later
	}
	return w
}

// defaultDelay gives the action that asked for the restart time to end.
const defaultDelay = 15 * time.Second

// Restart restarts a host's st2 services.
type Restart struct {
	When  When
	Delay time.Duration
	Run   string
}

// Kind is "restart_st2".
func (r *Restart) Kind() string { return "restart_st2" }

// Target is st2, for all of its services.
func (r *Restart) Target() string { return owes }

// Diff says what is done, and when.
func (r *Restart) Diff() string {
	switch r.When {
	case Later:
		return "st2ctl restart, by the step restart_st2"
	case Deferred:
		if executionID.MatchString(r.Run) {
			return fmt.Sprintf("st2ctl restart, %s after this execution has ended, by the unit %s", fetchTime, restartUnit)
		}
		return fmt.Sprintf("st2ctl restart, %s after this action, by the unit %s", r.Delay, restartUnit)
	}
	return "st2ctl restart"
}

// Owes is st2.
func (r *Restart) Owes() string { return owes }

// Postponed is true if another step is to do it.
func (r *Restart) Postponed() bool { return r.When == Later }

// Apply restarts the services or arranges for it.
func (r *Restart) Apply(ctx context.Context, h host.Host) error {
	switch {
	case r.When == Later:
		return nil
	case r.When == Deferred:
		// st2ctl stops the action runner first, and with it whatever runs below
		// it, such as this process.
		args := []string{"restart_st2", "--host=127.0.0.1", "--restart=" + string(Inline), "--deadline=7200"}
		if r.Run != "" {
			args = append(args, "--run="+r.Run)
		}
		return Defer(ctx, h, restartUnit, r.Delay, r.Run, args...)
	}
	if _, err := h.Run(ctx, nil, st2ctl, "restart"); err != nil {
		return fault.Failed("restart", "st2ctl status says which service is down", "%s: st2ctl restart: %w",
			h.Name(), err)
	}
	return step.Settle(ctx, h, owes)
}

// Undo restarts the services with what was restored.
func (r *Restart) Undo(ctx context.Context, h host.Host) error {
	again := *r
	again.When = Auto.on(ctx, h, r.Run)
	return again.Apply(ctx, h)
}

// Stop stops a host's st2 services, for what cannot be done while they run. A Restart later in the same plan starts them
// again; where it does not come to that, undoing this one does.
type Stop struct{}

// Kind is "stop_st2".
func (s *Stop) Kind() string { return "stop_st2" }

// Target is st2, for all of its services.
func (s *Stop) Target() string { return owes }

// Diff says what is done.
func (s *Stop) Diff() string { return "st2ctl stop" }

// Apply stops them.
func (s *Stop) Apply(ctx context.Context, h host.Host) error { return s.ctl(ctx, h, "stop") }

// Undo starts them.
func (s *Stop) Undo(ctx context.Context, h host.Host) error { return s.ctl(ctx, h, "start") }

func (s *Stop) ctl(ctx context.Context, h host.Host, verb string) error {
	if _, err := h.Run(ctx, nil, st2ctl, verb); err != nil {
		return fault.Failed("restart", "st2ctl status says which service is down", "%s: st2ctl %s: %w", h.Name(), verb, err)
	}
	return nil
}
