package stackstorm

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/service"
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
	// this very process, and Inline on another.
	Auto     When = "auto"
	Inline   When = "inline"   // now, before the command ends
	Deferred When = "deferred" // by a transient systemd unit, after the workflow has ended
	Later    When = "later"    // by a later restart_st2
	Others   When = "others"   // Later on this machine, Inline on another
)

// ParseWhen reads a When.
func ParseWhen(s string) (When, error) {
	switch w := When(s); w {
	case Auto, Inline, Deferred, Later, Others:
		return w, nil
	}
	return "", fault.Usage("restart %q is none: it is auto, inline, deferred, later or others", s)
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
	c, err := planRestart(ctx, h, s.Restart, s.Force)
	if err != nil || c == nil {
		return nil, err
	}
	c.Delay, c.Run = s.Delay, s.Run
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
func planRestart(ctx context.Context, h host.Host, when When, needed bool) (*Restart, error) {
	owed, err := Pending(ctx, h)
	if err != nil {
		return nil, err
	}
	switch {
	case when == Auto && h.IsLocal():
		when = Deferred
	case when == Others && h.IsLocal():
		when = Later
	case when == Others:
		when = Inline
	}
	switch {
	case !needed && !owed:
		return nil, nil
	case !needed && when == Later:
		return nil, nil // already left to restart_st2
	case !needed && when == Deferred:
		scheduled, err := service.IsActive(ctx, h, restartUnit+".timer")
		if err != nil || scheduled {
			return nil, err
		}
	}
	return &Restart{When: when, Delay: defaultDelay}, nil
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
	case r.When == Deferred && h.IsLocal():
		return r.schedule(ctx, h)
	}
	if _, err := h.Run(ctx, nil, st2ctl, "restart"); err != nil {
		return fault.Failed("restart", "st2ctl status says which service is down", "%s: st2ctl restart: %w", h.Name(), err)
	}
	return step.Settle(ctx, h, owes)
}

// Undo restarts the services with what was restored.
func (r *Restart) Undo(ctx context.Context, h host.Host) error {
	again := *r
	if again.When = Inline; h.IsLocal() {
		again.When = Deferred
	}
	return again.Apply(ctx, h)
}

// schedule has PID 1 run this program's restart_st2 once the action that asks
// for it has ended: st2ctl stops the action runner first, and with it whatever
// runs below it, this process included.
func (r *Restart) schedule(ctx context.Context, h host.Host) error {
	// A copy: the pack's directory can be a mount that is undone before the
	// restart takes place. /run is noexec on Debian.
	const program = step.StateDir + "/st2ha"
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("%s: read this program: %w", h.Name(), err)
	}
	if err := h.WriteFile(ctx, host.File{Path: program, Data: self, Mode: 0o700}); err != nil {
		return err
	}
	for _, unit := range []string{restartUnit + ".timer", restartUnit + ".service"} {
		// Left from an earlier run, to be replaced by this one.
		_, _ = h.Run(ctx, nil, "systemctl", "stop", unit)
		_, _ = h.Run(ctx, nil, "systemctl", "reset-failed", unit)
	}
	argv := []string{"systemd-run", "--quiet", "--collect", "--unit=" + restartUnit,
		"--on-active=" + strconv.Itoa(int(r.Delay.Seconds())), "--timer-property=AccuracySec=1s", "--",
		program, "restart_st2", "--host=127.0.0.1", "--restart=" + string(Inline)}
	if r.Run != "" {
		argv = append(argv, "--run="+r.Run)
	}
	if _, err := h.Run(ctx, nil, argv...); err != nil {
		return fault.Failed("restart", "run st2ctl restart by hand", "%s: schedule the restart of the st2 services: %w", h.Name(), err)
	}
	return nil
}
