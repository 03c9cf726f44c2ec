package cli

import (
	"context"
	"time"

	"st2ha/internal/action"
	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// healsCommand says what was healed on a node of late.
func healsCommand() command {
	return command{exec: heals, Spec: action.Spec{
		Name:    "heals",
		Summary: "says what was healed on a node of late, and what was given up",
		Description: `Changes nothing: says what rules and watchdog healed on a node in the last minutes, what they gave
up, and whether it is in maintenance.`,
		Settings: []action.Setting{hostSetting()},
		Heals:    true,
		Rows:     []action.Row{{Host: "any", Changes: "nothing. What was healed there of late, and what was given up"}},
	}}
}

func heals(ctx context.Context, c *common, v action.Values) (step.Result, error) {
	address := v.String("host")
	failed := c.result("heals", address)
	if err := host.CheckAddress("host", address); err != nil {
		return failed, err
	}
	h, err := c.open(ctx, address)
	if err != nil {
		return failed, err
	}
	found, err := heal.Report(ctx, h, time.Now())
	if err != nil {
		return failed, err
	}
	return c.found("heals", address, found)
}
