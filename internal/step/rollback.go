package step

import (
	"context"
	"fmt"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/host"
)

// RollbackOptions say what is to be undone.
type RollbackOptions struct {
	Options
	Only  string // the name of a run; empty for all of the host's runs
	Force bool   // restore files that somebody else has changed since, too
	Kinds Kinds
}

// Rollback undoes a host's runs, newest first, byte for byte. Before it
// touches anything it makes sure that nobody's later edit would be lost.
func Rollback(ctx context.Context, h host.Host, o RollbackOptions) (Result, error) {
	r := Result{Step: "rollback", Host: h.Name(), Run: o.Run, DryRun: o.DryRun, Changes: []ChangeSummary{}, Findings: []Finding{}}
	err := rollback(ctx, h, o, &r)
	r.Fail(err, o.Mask)
	r.Millis = time.Since(o.Started).Milliseconds()
	return r, err
}

func rollback(ctx context.Context, h host.Host, o RollbackOptions, r *Result) error {
	found, err := journals(ctx, h, o.Only, o.Kinds)
	if err != nil || len(found) == 0 {
		return err
	}
	if !o.DryRun {
		release, err := Lock(ctx, h, "rollback "+o.Run, o.Wait)
		if err != nil {
			return err
		}
		defer release()
		if found, err = journals(ctx, h, o.Only, o.Kinds); err != nil {
			return err
		}
	}
	if err := conflicts(ctx, h, found, o.Force); err != nil {
		return err
	}
	for i := len(found) - 1; i >= 0 && changesState(found); i-- {
		for k := len(found[i].Entries) - 1; k >= 0; k-- {
			e := found[i].Entries[k]
			if e.State == planned || e.State == undone {
				continue
			}
			r.Changes = append(r.Changes, ChangeSummary{Kind: e.Kind, Target: e.Target,
				Diff: fmt.Sprintf("undo of run %s, step %s", found[i].Run, found[i].Step)})
			if l, ok := e.change.(Loser); ok && e.State == applied {
				lost, err := l.Lost(ctx, h)
				if err != nil {
					return err
				}
				r.Findings = append(r.Findings, lost...)
			}
		}
	}
	if o.DryRun {
		return nil
	}
	if err := undo(ctx, h, found, o.Options); err != nil {
		f := fault.Of(err)
		return &fault.Error{Exit: fault.ExitUndoFailed, Code: f.Code, Hint: f.Hint, Err: err}
	}
	r.Changed = len(r.Changes) > 0
	return nil
}

// conflicts follows each file back through the runs: every one must have left
// it as the next one found it, and the newest as it is now.
func conflicts(ctx context.Context, h host.Host, found []*journal, force bool) error {
	sums := map[string]string{}
	for i := len(found) - 1; i >= 0; i-- {
		for k := len(found[i].Entries) - 1; k >= 0; k-- {
			c, ok := found[i].Entries[k].change.(*FileChange)
			if state := found[i].Entries[k].State; !ok || state == planned || state == undone {
				continue
			}
			c.force = force
			current, seen := sums[c.Path]
			if !seen {
				var err error
				if current, err = currentSum(ctx, h, c.Path); err != nil {
					return err
				}
			}
			if current != c.After && current != c.Before && !force {
				return c.conflict(h)
			}
			sums[c.Path] = c.Before
		}
	}
	return nil
}

// undo takes journals back, newest first: state before what activates it.
func undo(ctx context.Context, h host.Host, found []*journal, o Options) error {
	var activators []Activator
	if changesState(found) {
		var err error
		if activators, err = owed(ctx, h, found); err != nil {
			return err
		}
	}
	for i := len(found) - 1; i >= 0; i-- {
		j := found[i]
		for k := len(j.Entries) - 1; k >= 0; k-- {
			e := j.Entries[k]
			if _, ok := e.change.(Activator); ok || e.State == planned || e.State == undone {
				continue
			}
			o.Log.Info("undo "+e.Kind, "host", h.Name(), "target", e.Target)
			if err := e.change.Undo(ctx, h); err != nil {
				return fmt.Errorf("undo %s %s of run %s: %w", e.Kind, e.Target, j.Run, err)
			}
			e.State = undone
			if err := j.save(ctx, h); err != nil {
				return err
			}
		}
	}
	for _, a := range activators {
		o.Log.Info("undo "+a.Kind(), "host", h.Name(), "target", a.Target())
		if err := a.Undo(ctx, h); err != nil {
			return fmt.Errorf("undo %s %s: %w", a.Kind(), a.Target(), err)
		}
	}
	for _, j := range found {
		if err := j.close(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// owed returns what has to be activated again once the journals are undone,
// each target once, and notes it on the host: until then it runs with what is
// being undone.
func owed(ctx context.Context, h host.Host, found []*journal) ([]Activator, error) {
	var activators []Activator
	type late struct {
		Activator
		owed bool
	}
	var postponed []late      // left to a later step
	seen := map[string]bool{} // kinds and targets, and the names they owe
	for _, j := range found {
		for _, e := range j.Entries {
			a, ok := e.change.(Activator)
			switch {
			case !ok || e.State == planned || e.State == undone:
				continue
			case a.Postponed():
				postponed = append(postponed, late{a, e.Owed})
				continue
			case seen[a.Kind()+" "+a.Target()]:
				continue
			}
			seen[a.Kind()+" "+a.Target()] = true
			seen[a.Owes()] = true
			activators = append(activators, a)
			if a.Owes() == "" {
				continue
			}
			if err := begin(ctx, h, a.Owes()); err != nil {
				return nil, err
			}
		}
	}
	for _, a := range postponed {
		if seen[a.Owes()] {
			continue
		}
		pending, err := untouched(ctx, h, a.Owes())
		if err != nil {
			return nil, err
		}
		if pending {
			// Never restarted since the change: it still runs with what is restored now.
			if !a.owed { // by an earlier run, that is not undone
				err = Settle(ctx, h, a.Owes())
			}
			if err != nil {
				return nil, err
			}
			seen[a.Owes()] = !a.owed
			continue
		}
		// Restarted since, if only half, by a step that is undone itself already:
		// it runs with what is undone now.
		if err := begin(ctx, h, a.Owes()); err != nil {
			return nil, err
		}
		seen[a.Owes()] = true
		activators = append(activators, a.Activator)
	}
	return activators, nil
}

// changesState says whether there is more to undo than restarts: those alone
// left nothing behind. What an earlier rollback undid before it was cut off
// counts, for its restarts are still to come.
func changesState(found []*journal) bool {
	for _, j := range found {
		for _, e := range j.Entries {
			if _, ok := e.change.(Activator); !ok && e.State != planned {
				return true
			}
		}
	}
	return false
}
