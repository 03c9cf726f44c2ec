package heal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"st2ha/internal/host"
	"st2ha/internal/step"
)

// Report is what was healed on a node of late, what was given up, and whether people silence healing there. It reads
// only; an account that is torn is left out, as it counts for nothing.
func Report(ctx context.Context, h host.Host, now time.Time) ([]step.Finding, error) {
	m, err := ReadMaintenance(ctx, h, now)
	if err != nil {
		return nil, err
	}
	var all []step.Finding
	add := func(check, fix, format string, args ...any) {
		all = append(all, step.Finding{Severity: step.Warning, Host: h.Name(), Check: check,
			Message: fmt.Sprintf(format, args...), Fix: fix})
	}
	if m.On {
		add("maintenance", "st2 run st2ha.maintenance host="+h.Name()+" mode=off ends it", "nothing is healed: %s", m)
	}
	names, err := h.ReadDir(ctx, Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".json") {
			continue
		}
		f, err := h.ReadFile(ctx, Dir+"/"+name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has recovered meanwhile
		}
		if err != nil {
			return nil, err
		}
		var a account
		switch err := json.Unmarshal(f.Data, &a); {
		case err != nil || a.Target == "":
		case a.GaveUp != nil:
			add("healing_gave_up", "find out why it does not stay up, and mend it", "healing of %s was given up at %s",
				a.Target, a.GaveUp.UTC().Format(time.RFC3339))
		case len(a.Heals) > 0:
			add("healed", "", "heals of %s: %d, last at %s", a.Target, len(a.Heals),
				a.Heals[len(a.Heals)-1].UTC().Format(time.RFC3339))
		}
	}
	return all, nil
}
