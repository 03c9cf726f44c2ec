package step

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"st2ha/internal/host"
)

// died says whether whoever had the host's lock last never let go of it.
func died(ctx context.Context, h host.Host) (bool, error) {
	f, err := h.ReadFile(ctx, lockPath)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return len(f.Data) > 0, err
}

// lockAndTidy takes the host's lock, and removes what a holder that died left
// half written. A lock that is held is a *host.LockedError.
func lockAndTidy(ctx context.Context, h host.Host, note string) (release func(), err error) {
	dead, err := died(ctx, h) // asked first: the lock overwrites the note
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
	if dead, err := died(ctx, h); err != nil || !dead {
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

// tidy removes the temporary files of killed runs: those of the journal and of
// the files in it. Directories whose journal was never written go as a whole.
func tidy(ctx context.Context, h host.Host) error {
	if err := sweep(ctx, h, StateDir, ""); err != nil {
		return err
	}
	if err := sweep(ctx, h, owedDir, ""); err != nil {
		return err
	}
	names, err := h.ReadDir(ctx, runsDir)
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
		return removeRun(ctx, h, dir)
	}
	if err != nil {
		return err
	}
	var j journal
	if err := json.Unmarshal(f.Data, &j); err != nil {
		return fmt.Errorf("%s: %s: %w", h.Name(), f.Path, err)
	}
	if err := sweep(ctx, h, dir, ""); err != nil {
		return err
	}
	for _, e := range j.Entries {
		if e.Kind != (*FileChange)(nil).Kind() {
			continue
		}
		if err := sweep(ctx, h, path.Dir(e.Target), path.Base(e.Target)); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes the temporary files for base, or for all files, in a directory.
func sweep(ctx context.Context, h host.Host, dir, base string) error {
	names, err := h.ReadDir(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, name := range names {
		if !host.Leftover(name, base) {
			continue
		}
		if err := h.Remove(ctx, path.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return err
}

// removeRun removes a directory that was to hold a journal.
func removeRun(ctx context.Context, h host.Host, dir string) error {
	names, err := h.ReadDir(ctx, dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := h.Remove(ctx, path.Join(dir, name)); err != nil {
			return err
		}
	}
	return h.Remove(ctx, dir)
}
