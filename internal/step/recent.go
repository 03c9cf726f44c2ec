package step

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"time"

	"st2ha/internal/host"
)

// Recent is a step of a run in a host's journal, as people look back at it.
type Recent struct {
	Run     string    `json:"run"`
	Step    string    `json:"step"`
	State   string    `json:"state"` // open: at work, or killed; done; undone
	Started time.Time `json:"started"`
	Changes int       `json:"changes"`
}

// RecentSteps are the newest steps of a host's journal, at most so many, the newest first. One whose journal cannot be
// used has the state "unusable".
func RecentSteps(ctx context.Context, h host.Host, most int) ([]Recent, error) {
	names, err := h.ReadDir(ctx, runsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Recent
	for _, name := range slices.Backward(names) { // numbers have leading zeros: sorted by name is sorted by age
		_, run, what, ok := parseDir(name)
		if !ok || len(all) == most {
			continue
		}
		f, err := h.ReadFile(ctx, path.Join(runsDir, name, "journal.json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // killed before anything was changed
		}
		if err != nil {
			return all, err
		}
		r := Recent{Run: run, Step: what, State: "unusable"}
		if j, err := parseJournal(f.Data); err == nil {
			r.State, r.Started, r.Changes = string(j.State), j.Started, len(j.Entries)
		}
		all = append(all, r)
	}
	return all, nil
}
