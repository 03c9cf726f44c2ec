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
	r := Result{Step: "rollback", Host: h.Name(), Run: o.Run, DryRun: o.DryRun,
		Changes: []ChangeSummary{}, Findings: []Finding{}}
	err := rollback(ctx, h, o, &r)
	r.Fail(err, o.Mask)
	r.Millis = time.Since(o.Started).Milliseconds()
	return r, err
}

func rollback(ctx context.Context, h host.Host, o RollbackOptions, r *Result) error {
	found, unusable, err := journals(ctx, h, o.Only, o.Kinds)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		r.Findings = append(r.Findings, unusable...)
		if err := Refuse(unusable); err != nil || o.DryRun {
			return err
		}
		return tidyIfFree(ctx, h, "rollback "+o.Run)
	}
	if !o.DryRun {
		release, err := Lock(ctx, h, "rollback "+o.Run, o.Wait)
		if err != nil {
			return err
		}
		defer release()
		if found, unusable, err = journals(ctx, h, o.Only, o.Kinds); err != nil {
			return err
		}
	}
	r.Findings = append(r.Findings, unusable...)
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
			if l, ok := e.change.(UndoChecker); ok && e.State == applied {
				lost, err := l.CheckUndo(ctx, h)
				if err != nil {
					return err
				}
				r.Findings = append(r.Findings, lost...)
			}
		}
	}
	if o.DryRun {
		return Refuse(unusable)
	}
	if err := undo(ctx, h, found, o.Options); err != nil {
		f := fault.Of(err)
		return &fault.Error{Exit: fault.ExitUndoFailed, Code: f.Code, Hint: f.Hint, Err: err}
	}
	r.Changed = len(r.Changes) > 0
	if err := Refuse(unusable); err != nil { // the others are undone
		f := fault.Of(err)
		return &fault.Error{Exit: fault.ExitUndoFailed, Code: f.Code, Hint: f.Hint, Err: f.Err}
	}
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
	activators, idle, err := owed(ctx, h, found)
	if err != nil {
		return err
	}
	for _, a := range activators {
		o.beforeInterrupt(ctx, h, a)
	}
	var unsaved error // a journal that cannot be written does not keep the rest from being undone
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
			if err := j.save(ctx, h); err != nil && unsaved == nil {
				unsaved = err
			}
		}
	}
	for _, a := range activators {
		o.Log.Info("undo "+a.Kind(), "host", h.Name(), "target", a.Target())
		if err := a.Undo(ctx, h); err != nil {
			return fmt.Errorf("undo %s %s: %w", a.Kind(), a.Target(), err)
		}
	}
	if unsaved != nil {
		return unsaved
	}
	if err := forget(ctx, h, found, idle); err != nil {
		return err
	}
	for _, j := range found {
		if err := j.close(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// forget takes back the notes of restarts that never began. The journals say
// so first: a rollback that is cut off here must not take a note that is gone
// for a restart that took place.
func forget(ctx context.Context, h host.Host, found []*journal, idle map[string]bool) error {
	for _, j := range found {
		changed := false
		for _, e := range j.Entries {
			if a, ok := e.change.(Activator); ok && idle[a.Owes()] && e.State != undone {
				e.State, changed = undone, true
			}
		}
		if !changed {
			continue
		}
		if err := j.save(ctx, h); err != nil {
			return err
		}
	}
	for name := range idle {
		if err := Settle(ctx, h, name); err != nil {
			return err
		}
	}
	return nil
}

// owed returns what has to be activated again once the journals are undone,
// each target once, and notes it on the host: until then it runs with what is
// being undone. idle is what owes a restart that never began: it still runs
// with what is restored, so the notes can go, but only then.
func owed(ctx context.Context, h host.Host,
	found []*journal) (activators []Activator, idle map[string]bool, err error) {
	idle = map[string]bool{}
	var late []*entry         // never begun, left to a later step, or forgotten
	seen := map[string]bool{} // kinds and targets, and the names they owe
	state := changesState(found)
	for _, j := range found {
		for _, e := range j.Entries {
			a, ok := e.change.(Activator)
			switch {
			case !ok:
				continue
			case e.State == planned || e.State == undone || a.Postponed():
				late = append(late, e)
				continue
			case !state || seen[a.Kind()+" "+a.Target()]:
				continue
			}
			seen[a.Kind()+" "+a.Target()] = true
			seen[a.Owes()] = true
			activators = append(activators, a)
			if a.Owes() == "" {
				continue
			}
			if err := begin(ctx, h, a.Owes()); err != nil {
				return nil, nil, err
			}
		}
	}
	for _, e := range late {
		a := e.change.(Activator)
		if a.Owes() == "" || seen[a.Owes()] || idle[a.Owes()] {
			continue
		}
		pending, err := untouched(ctx, h, a.Owes())
		switch {
		case err != nil:
			return nil, nil, err
		case pending && e.Owed: // by an earlier run, that is not undone
			continue
		case pending:
			idle[a.Owes()] = true
			continue
		case e.State == planned || e.State == undone || !state:
			continue
		}
		// Restarted since, if only half, by a step that is undone itself already:
		// it runs with what is undone now.
		if err := begin(ctx, h, a.Owes()); err != nil {
			return nil, nil, err
		}
		seen[a.Owes()] = true
		activators = append(activators, a)
	}
	return activators, idle, nil
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
