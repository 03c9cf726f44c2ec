package nfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

// Restore is the step re_export: what /etc/exports names is exported again.
// It edits nothing, for what somebody took out of the file is withdrawn on purpose.
type Restore struct {
	Directory string // must be among them; empty: whatever the file names
}

// Name is re_export.
func (s *Restore) Name() string { return "re_export" }

// Check looks for the directory in /etc/exports.
func (s *Restore) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	wanted, err := s.wanted(ctx, h)
	if err != nil || s.Directory == "" {
		return nil, err
	}
	if slices.ContainsFunc(wanted, func(e confedit.Export) bool { return e.Path == s.Directory }) {
		return nil, nil
	}
	return []step.Finding{{Severity: step.Error, Host: h.Name(), Check: "exports",
		Message: exportsPath + " does not name " + s.Directory,
		Fix:     "if it was not taken out on purpose, run export_nfs on it"}}, nil
}

func (s *Restore) wanted(ctx context.Context, h host.Host) ([]confedit.Export, error) {
	f, _, err := step.ReadOrEmpty(ctx, h, exportsPath, 0o644)
	if err != nil {
		return nil, err
	}
	list, err := confedit.Exports(f.Data)
	if slices.ContainsFunc(list, func(e confedit.Export) bool { return e.Path == s.Directory }) {
		return list, nil
	}
	return list, step.Located(h, exportsPath, err) // it may be on a line that cannot be read
}

// Plan compares the file with what the kernel exports.
func (s *Restore) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	var changes []step.Change
	active, err := service.IsActive(ctx, h, serverUnit)
	if err != nil {
		return nil, err
	}
	if !active {
		changes = append(changes, &service.Restart{Unit: serverUnit})
	}
	missing, err := s.missing(ctx, h)
	if err != nil || len(missing) == 0 {
		return changes, err
	}
	return append(changes, &Reexport{}), nil
}

// Verify looks at what the kernel exports.
func (s *Restore) Verify(ctx context.Context, h host.Host) error {
	missing, err := s.missing(ctx, h)
	if err != nil || len(missing) == 0 {
		return err
	}
	return fault.Failed("export", "exportfs -v and journalctl -u "+serverUnit+" on "+h.Name()+" say more",
		"%s: %s is in %s, but not exported", h.Name(), strings.Join(missing, ", "), exportsPath)
}

// missing are the directories of /etc/exports that are exported to nobody.
// Clients are not compared: exportfs shows some under other names.
func (s *Restore) missing(ctx context.Context, h host.Host) ([]string, error) {
	wanted, err := s.wanted(ctx, h)
	if err != nil {
		return nil, err
	}
	out, err := h.Run(ctx, nil, "exportfs", "-v")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.Name(), err)
	}
	have := map[string]bool{}
	for key := range exported(string(out)) {
		have[key[0]] = true
	}
	var missing []string
	for _, e := range wanted {
		if !have[e.Path] && !slices.Contains(missing, e.Path) {
			missing = append(missing, e.Path)
		}
	}
	return missing, nil
}

// Withdrawn are the directories that /etc/exports names, that are there, and
// that the host's NFS server, which runs, exports to nobody.
func Withdrawn(ctx context.Context, h host.Host) ([]string, error) {
	s := &Restore{}
	wanted, err := s.wanted(ctx, h)
	if len(wanted) == 0 {
		return nil, err
	}
	if active, err := service.IsActive(ctx, h, serverUnit); err != nil || !active {
		return nil, err
	}
	missing, err := s.missing(ctx, h)
	if err != nil {
		return nil, err
	}
	var there []string
	for _, dir := range missing {
		switch _, err := h.Stat(ctx, dir); {
		case err == nil:
			there = append(there, dir)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return there, nil
}
