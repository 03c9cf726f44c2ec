package step

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"st2ha/internal/host"
)

// lastRunDied says whether the last run that had the host's lock never released it.
func lastRunDied(ctx context.Context, h host.Host) (bool, error) {
	f, err := h.ReadFile(ctx, lockPath)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return len(f.Data) > 0, err
}

// lockAndTidy takes the host's lock, and removes what a holder that died left
// half written. A lock that is held is a *host.LockedError.
func lockAndTidy(ctx context.Context, h host.Host, note string) (release func(), err error) {
	dead, err := lastRunDied(ctx, h) // asked first: the lock overwrites the note
	if err != nil {
		return nil, err
	}
	if release, err = h.Lock(ctx, lockPath, note); err != nil || !dead {
		return release, err
	}
	if err := tidy(ctx, h); err != nil {
		release()
		return nil, fmt.Errorf("tidy up after a run that was killed: %w", err)
	}
	return release, nil
}

// tidyIfFree does what is left to do after a killed run where nothing is to be
// changed: who holds the lock now tidies up by itself.
func tidyIfFree(ctx context.Context, h host.Host, note string) error {
	if dead, err := lastRunDied(ctx, h); err != nil || !dead {
		return err
	}
	release, err := lockAndTidy(ctx, h, note)
	var held *host.LockedError
	if errors.As(err, &held) {
		return nil
	}
	if err == nil {
		release()
	}
	return err
}

// tidy removes what killed runs left half-written: files of the journal, and
// temporary files beside those that the runs were at work on. Directories whose
// journal was never written go as a whole.
func tidy(ctx context.Context, h host.Host) error {
	for _, dir := range []string{StateDir, owedDir} {
		hidden := func(name string) bool { return name[0] == '.' }
		if err := removeFrom(ctx, h, dir, hidden); err != nil {
			return err
		}
	}
	names, err := h.ReadDir(ctx, runsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, _, _, ok := parseDir(name); !ok {
			continue
		}
		if err := tidyRun(ctx, h, path.Join(runsDir, name)); err != nil {
			return err
		}
	}
	return nil
}

func tidyRun(ctx context.Context, h host.Host, dir string) error {
	f, err := h.ReadFile(ctx, path.Join(dir, "journal.json"))
	if errors.Is(err, fs.ErrNotExist) {
		if err := removeFrom(ctx, h, dir, func(string) bool { return true }); err != nil {
			return err
		}
		return h.Remove(ctx, dir)
	}
	if err != nil {
		return err
	}
	j, err := parseJournal(f.Data)
	if err != nil {
		return nil // rollback says so; nothing there is known to be left over
	}
	known := map[string]bool{"journal.json": true}
	for _, e := range j.Entries {
		known[e.Image] = true
		if e.Kind != (*FileChange)(nil).Kind() {
			continue
		}
		if err := h.Sweep(ctx, e.Target); err != nil {
			return err
		}
	}
	return removeFrom(ctx, h, dir, func(name string) bool { return !known[name] })
}

// removeFrom removes files from a directory of the journal.
func removeFrom(ctx context.Context, h host.Host, dir string, which func(name string) bool) error {
	names, err := h.ReadDir(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if !which(name) {
			continue
		}
		if err := h.Remove(ctx, path.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
