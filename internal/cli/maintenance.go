package cli

import (
	"context"

	"st2ha/internal/action"
	"st2ha/internal/fault"
	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// maintenanceCommand silences healing on a node while people work there.
func maintenanceCommand() command {
	return command{exec: maintenance, Spec: action.Spec{
		Name:    "maintenance",
		Summary: "stops healing on a node while people work there, or lets it go on",
		Description: `On a node: healing is silenced while people work there, or goes on again. Rules and watchdog
heed it. Watching goes on.`,
		Settings: []action.Setting{
			hostSetting(),
			{Name: "mode", Default: "", Required: true, Enum: []string{"on", "off"}, Help: `Whether healing is silenced.`},
			{
				Name: "lasts", Default: 0, Unit: action.Seconds,
				Help: `Seconds after which it ends by itself, with on. 0 means when it is switched off.`,
			},
			{Name: "reason", Default: "", Help: `With on: why, for others who look.`},
			{
				Name: "for_run", Default: false,
				Help: `It is the run's own; one that somebody else has set is left alone. Needs lasts with on.`,
			},
		},
		Heals: true,
		Rows:  []action.Row{{Host: "any", Changes: "healing there is silenced, or goes on again"}},
	}}
}

func maintenance(ctx context.Context, c *common, v action.Values) (step.Result, error) {
	address := v.String("host")
	failed := c.result("maintenance", address)
	if err := host.CheckAddress("host", address); err != nil {
		return failed, err
	}
	lasts, own := duration(v, "lasts"), v.Bool("for_run")
	to := heal.Maintenance{On: v.String("mode") == "on", Since: c.start.UTC(), Reason: v.String("reason")}
	if own {
		to.Run = c.run
	}
	switch {
	case !to.On && (lasts > 0 || to.Reason != ""):
		return failed, fault.Usage("lasts and reason can only be given with mode on")
	case lasts > 0:
		to.Until = to.Since.Add(lasts)
	}
	h, err := c.open(ctx, address)
	if err != nil {
		return failed, err
	}
	if own && to.On && to.Until.IsZero() {
		return failed, fault.Usage("lasts is missing: with run it is needed, so that maintenance ends even if the run dies")
	}
	return step.Heal(ctx, &heal.SetMaintenance{To: to, Own: own}, h, c.options(), always)
}
