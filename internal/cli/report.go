package cli

import (
	"context"
	"strings"
	"time"

	"st2ha/internal/action"
	"st2ha/internal/fault"
	"st2ha/internal/step"
)

// reportCommand tells people, by this machine's system log, what nobody but
// they can mend.
func reportCommand() command {
	return command{exec: tellPeople, Spec: action.Spec{
		Name:    "report",
		Summary: "writes a line to the system log, for a person to look at",
		Description: `Changes nothing: a line goes to the system log of the machine that runs the action, with the tag
st2ha: what a person has to look at. Put an action of your own in its place, in a rule, for mail
or chat.`,
		Settings: []action.Setting{{Name: "message", Default: "", Required: true, Help: `What to say; one line.`}},
		Heals:    true,
		Rows:     []action.Row{{Host: "where it runs", Changes: "a line in the system log"}},
	}}
}

func tellPeople(ctx context.Context, c *common, v action.Values) (step.Result, error) {
	result := c.result("report", here)
	message := strings.Join(strings.Fields(c.mask.Mask(v.String("message"))), " ")
	if message == "" {
		return result, fault.Usage("message is missing: give the line to write")
	}
	result.Findings = append(result.Findings,
		step.Finding{Severity: step.Warning, Host: here, Check: "report", Message: message})
	if c.dryRun {
		return result, nil
	}
	h, err := c.open(ctx, here)
	if err != nil {
		return result, err
	}
	if _, err := h.Run(ctx, nil, "logger", "--tag", "st2ha", "--priority", "user.err", "--", message); err != nil {
		return result, fault.Failed("report", "see whether the system log's service runs: systemctl status systemd-journald",
			"%s: logger: %w", here, err)
	}
	result.Millis = time.Since(c.start).Milliseconds()
	return result, nil
}
