package cli

import (
	"context"
	"slices"
	"time"

	"st2ha/internal/action"
	"st2ha/internal/enroll"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/join"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// rollbackUnit is the transient unit of a rollback that an action hands over.
const rollbackUnit = "st2ha-rollback"

// handOverDelay gives the action that hands over time to end where it cannot be looked up.
const handOverDelay = 10 * time.Second

// rollbackCommand undoes runs on one host.
func rollbackCommand() command {
	return command{exec: rollback, Spec: action.Spec{
		Name:    "rollback",
		Summary: "undoes what st2ha did to a host, newest first",
		Description: `On a host: what st2ha did there is undone byte for byte, newest first, and the services concerned
are restarted. The host does so itself once the action has ended, for StackStorm may stand on it.`,
		Settings: []action.Setting{
			hostSetting(),
			{
				Name: "only", Default: "",
				Help: `Name of the one run to undo. Empty means all of the host's runs, newest first.`,
				Check: func(v action.Values) error {
					if only := v.String("only"); only != "" && !step.ValidRun(only) {
						return fault.Usage("only must be the name of a run, not %q", only)
					}
					return nil
				},
			},
			{
				Name: "force", Default: false,
				Help: `Restore files that somebody else has changed since, too. Those later edits are lost.`,
			},
			{
				Name: "at_once", Default: false,
				Help: `Undo at once, as a workflow does that undoes its own steps. False hands it over to a systemd
unit of the host, which begins once the action has ended.`,
			},
		},
		Rows: []action.Row{{Host: "any", Changes: "undoes what the journal of that host says, once the action has ended"}},
	}}
}

func rollback(ctx context.Context, c *common, v action.Values) (step.Result, error) {
	failed := c.result("rollback", v.String("host"))
	if err := host.CheckAddress("host", v.String("host")); err != nil {
		return failed, err
	}
	h, err := c.open(ctx, v.String("host"))
	if err != nil {
		return failed, err
	}
	o := step.RollbackOptions{Options: c.options(), Only: v.String("only"), Force: v.Bool("force"), Kinds: join.Kinds()}
	execution := c.getenv("ST2_ACTION_EXECUTION_ID")
	if o.DryRun || v.Bool("at_once") {
		return step.Rollback(ctx, h, o)
	}
	if execution == "" {
		if within, err := c.endsWithin(ctx, h, o); err != nil || within {
			return step.Rollback(ctx, h, o) // which says what is wrong
		}
	}
	return c.handOver(ctx, h, o, execution)
}

// endsWithin says whether this process can undo the runs to their end: not those that gave the system user the rights by
// which it works on another host.
func (c *common) endsWithin(ctx context.Context, h host.Host, o step.RollbackOptions) (bool, error) {
	if h.IsLocal() || c.ssh.User == "root" {
		return true, nil
	}
	o.DryRun = true
	result, err := step.Rollback(ctx, h, o)
	return !slices.ContainsFunc(result.Changes, func(d step.ChangeSummary) bool { return d.Target == enroll.SudoersPath }), err
}

// handOver has the host itself undo its runs once this action has ended. It may
// take from StackStorm's services the address that they know their database by,
// or unmount the directory that this very program lies in; so an action that
// did that itself could never have its result stored.
func (c *common) handOver(ctx context.Context, h host.Host, o step.RollbackOptions, execution string) (
	step.Result, error,
) {
	o.DryRun = true
	result, err := step.Rollback(ctx, h, o)
	result.DryRun = false
	if err != nil || len(result.Changes) == 0 {
		return result, err
	}
	args := []string{"rollback", "--host=127.0.0.1", "--deadline=7200", "--wait=600"}
	if o.Only != "" {
		args = append(args, "--only="+o.Only)
	}
	if o.Force {
		args = append(args, "--force")
	}
	if err = stackstorm.Defer(ctx, h, rollbackUnit, handOverDelay, execution, args...); err != nil {
		result.Fail(err, c.mask)
		return result, err
	}
	result.Findings = append(result.Findings, step.Finding{Severity: step.Warning, Host: h.Name(), Check: "handed_over",
		Message: "the unit " + rollbackUnit + " of the host undoes this once the action has ended, " +
			"for it may stop what StackStorm itself needs",
		Fix: "journalctl -u " + rollbackUnit + " on " + h.Name() + " says how it went, " +
			"rollback with dry_run=true what is left"})
	return result, nil
}
