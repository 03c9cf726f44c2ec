package step

import (
	"context"
	"errors"
	"io/fs"

	"st2ha/internal/host"
)

// MakeDir is a directory that is made, such as a mount point. Undo removes it; one
// that has something in it by then it refuses, unless others may put things there.
type MakeDir struct {
	Dir    string
	Mode   fs.FileMode
	UID    int
	GID    int
	Shared bool // others may: it then stays for them
}

// Kind is "directory".
func (m *MakeDir) Kind() string { return "directory" }

// Target is the directory.
func (m *MakeDir) Target() string { return m.Dir }

// Diff says what is made.
func (m *MakeDir) Diff() string { return "+ " + m.Dir }

// Apply makes it.
func (m *MakeDir) Apply(ctx context.Context, h host.Host) error {
	return h.Mkdir(ctx, m.Dir, host.Info{Mode: m.Mode, UID: m.UID, GID: m.GID})
}

// Undo removes it.
func (m *MakeDir) Undo(ctx context.Context, h host.Host) error {
	if m.Shared {
		if names, err := h.ReadDir(ctx, m.Dir); err == nil && len(names) > 0 {
			return nil
		}
	}
	if err := h.Remove(ctx, m.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
