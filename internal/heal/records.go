package heal

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"st2ha/internal/host"
)

// Record is what was healed on a node of late: a unit or a mount, when, and whether it was given up.
type Record struct {
	Target string      `json:"target"`
	Heals  []time.Time `json:"heals"`
	GaveUp *time.Time  `json:"gave_up,omitempty"`
}

// Records are those of a node, sorted by target. A file that is torn is left out, as it counts for nothing.
func Records(ctx context.Context, h host.Host) ([]Record, error) {
	names, err := h.ReadDir(ctx, Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Record
	for _, name := range names {
		if !strings.HasSuffix(name, ".json") || strings.HasPrefix(name, ".") {
			continue
		}
		f, err := h.ReadFile(ctx, path.Join(Dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has just recovered
		}
		if err != nil {
			return all, err
		}
		var a account
		if json.Unmarshal(f.Data, &a) == nil && a.Target != "" {
			a.Heals = append([]time.Time{}, a.Heals...) // a list in JSON, also without any
			all = append(all, Record(a))
		}
	}
	slices.SortFunc(all, func(a, b Record) int { return strings.Compare(a.Target, b.Target) })
	return all, nil
}

// WatchdogProgram is the program of a node's watchdog.
const WatchdogProgram = programPath
