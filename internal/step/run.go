package step

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/host"
)

// undoTime bounds the undoing of a step that failed: a broker's restart, with room.
const undoTime = 5 * time.Minute

// Result is what a command prints: one JSON object.
type Result struct {
	Step     string          `json:"step"`
	Host     string          `json:"host"`
	Run      string          `json:"run"`
	Changed  bool            `json:"changed"`
	DryRun   bool            `json:"dry_run"`
	Changes  []ChangeSummary `json:"changes"`
	Findings []Finding       `json:"findings"`
	Millis   int64           `json:"duration_ms"`
	Error    *ErrorSummary   `json:"error,omitempty"`
}

// ChangeSummary is a change as people see it, without secrets.
type ChangeSummary struct {
	Host   string `json:"host,omitempty"` // where it is not the result's
	Kind   string `json:"kind"`
	Target string `json:"target"`
	Diff   string `json:"diff"`
}

// ErrorSummary is the error as people see it, without secrets.
type ErrorSummary struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

// Options are what all steps' runs have in common.
type Options struct {
	Run     string        // the run's name; steps of one workflow share it
	DryRun  bool          // Check and Plan only
	Wait    time.Duration // for another run on the host to end
	Log     *slog.Logger
	Mask    *Masker
	Started time.Time
	// BeforeInterrupt is called with each unit that is going to be interrupted,
	// before anything is changed or logged; nil where nobody has to know.
	BeforeInterrupt func(ctx context.Context, h host.Host, unit string)
}

// beforeInterrupt reports each unit that the changes are going to interrupt.
func (o Options) beforeInterrupt(ctx context.Context, h host.Host, changes ...Change) {
	for _, c := range changes {
		if i, ok := c.(Interrupter); ok && o.BeforeInterrupt != nil {
			o.BeforeInterrupt(ctx, h, i.Interrupts())
		}
	}
}

// NewRun names a run: the time, readable and sorted by age, and a random part.
func NewRun(now time.Time) string {
	b := make([]byte, 2)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the program first
	return now.UTC().Format("20060102T150405Z") + "-" + hex.EncodeToString(b)
}

// Run brings a step about on a host: check, plan, apply under the journal,
// verify. When a change or the proof fails, what the step changed is undone.
// The result is complete also with an error.
func Run(ctx context.Context, s Step, h host.Host, o Options) (Result, error) {
	r := Result{Step: s.Name(), Host: h.Name(), Run: o.Run, DryRun: o.DryRun,
		Changes: []ChangeSummary{}, Findings: []Finding{}}
	err := run(ctx, s, h, o, &r)
	for i := range r.Findings {
		r.Findings[i].Message = o.Mask.Mask(r.Findings[i].Message)
	}
	r.Fail(err, o.Mask)
	r.Millis = time.Since(o.Started).Milliseconds()
	return r, err
}

// Fail puts an error into the result.
func (r *Result) Fail(err error, m *Masker) {
	if err == nil {
		return
	}
	f := fault.Of(err)
	r.Error = &ErrorSummary{Code: f.Code, Message: m.Mask(f.Error()), Hint: m.Mask(f.Hint)}
}

func run(ctx context.Context, s Step, h host.Host, o Options, r *Result) error {
	changes, err := checkAndPlan(ctx, s, h, r)
	if err != nil {
		return err
	}
	if o.DryRun {
		r.show(changes, o.Mask)
		return nil
	}
	if len(changes) == 0 {
		err = tidyIfFree(ctx, h, o.note(s))
	} else {
		changes, err = apply(ctx, s, h, o, r)
	}
	if err != nil {
		return err
	}
	if len(changes) == 0 {
		return s.Verify(ctx, h)
	}
	return nil
}

// checkAndPlan is what a run begins with: it only reads.
func checkAndPlan(ctx context.Context, s Step, h host.Host, r *Result) ([]Change, error) {
	findings, err := s.Check(ctx, h)
	r.Findings = append(r.Findings, findings...)
	if err != nil {
		return nil, err
	}
	if err := Refuse(findings); err != nil {
		return nil, err
	}
	return s.Plan(ctx, h)
}

// note says who holds the lock.
func (o Options) note(s Step) string { return "run " + o.Run + stepNote(s) }

func stepNote(s Step) string { return ", step " + s.Name() }

// Refuse turns findings of severity Error into one error.
func Refuse(findings []Finding) error {
	var first *Finding
	more := 0
	for i, f := range findings {
		switch {
		case f.Severity != Error:
		case first == nil:
			first = &findings[i]
		default:
			more++
		}
	}
	if first == nil {
		return nil
	}
	suffix := ""
	if more > 0 {
		suffix = fmt.Sprintf(" (and %d more, see findings)", more)
	}
	return fault.Preflight(first.Check, first.Fix, "%s: %s: %s%s", first.Host, first.Check, first.Message, suffix)
}

func (r *Result) show(changes []Change, m *Masker) {
	for _, c := range changes {
		r.Changes = append(r.Changes, ChangeSummary{Kind: c.Kind(), Target: c.Target(), Diff: m.Mask(c.Diff())})
	}
}

// apply plans once more, now that nobody else can be at work, and makes the changes.
func apply(ctx context.Context, s Step, h host.Host, o Options, r *Result) ([]Change, error) {
	release, err := Lock(ctx, h, o.note(s), o.Wait)
	if err != nil {
		return nil, err
	}
	defer release()
	changes, err := s.Plan(ctx, h)
	if err != nil || len(changes) == 0 {
		return nil, err
	}
	o.beforeInterrupt(ctx, h, changes...)
	j, err := openJournal(ctx, h, o.Run, s.Name(), changes, time.Now())
	if err != nil {
		return nil, err
	}
	err = j.apply(ctx, s, h, o)
	r.show(j.changes(), o.Mask)
	if err == nil {
		r.Changed = true
		return changes, nil
	}
	// The step's time may be over, or somebody may have pressed ^C: undoing
	// gets time of its own.
	undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	o.Log.Warn("undoing", "host", h.Name(), "step", s.Name(), "why", o.Mask.Mask(err.Error()))
	if undoErr := undo(undoCtx, h, []*journal{j}, o); undoErr != nil {
		f := fault.Of(err)
		return nil, &fault.Error{Exit: fault.ExitUndoFailed, Code: "undo_failed",
			Hint: fmt.Sprintf("remove the cause, then: st2 run st2ha.rollback host=%s only=%s", h.Name(), o.Run),
			Err:  fmt.Errorf("%w; undoing it failed as well: %v", f.Err, undoErr)}
	}
	f := fault.Of(err)
	return nil, &fault.Error{Exit: fault.ExitFailed, Code: f.Code, Hint: f.Hint,
		Err: fmt.Errorf("%w; what this step had changed is undone", err)}
}

func (j *journal) apply(ctx context.Context, s Step, h host.Host, o Options) error {
	for i := 0; i < len(j.Entries); i++ {
		e := j.Entries[i]
		e.State = applying
		if err := j.save(ctx, h); err != nil {
			return err
		}
		if a, ok := e.change.(Activator); ok && a.Owes() != "" && !a.Postponed() {
			if err := begin(ctx, h, a.Owes()); err != nil {
				return err
			}
		}
		o.Log.Info(e.Kind, "host", h.Name(), "target", e.Target)
		began := time.Now()
		if err := e.change.Apply(ctx, h); err != nil {
			return err
		}
		o.Log.Debug("applied", "host", h.Name(), "kind", e.Kind, "target", e.Target, "took", time.Since(began))
		e.State = applied
		if _, ok := e.change.(Replanner); ok {
			rest, err := s.Plan(ctx, h)
			if err != nil {
				return err
			}
			if len(rest) > 0 && rest[0].Kind() == e.Kind && rest[0].Target() == e.Target {
				return fault.Failed(e.Kind, "", "%s: %s %s was changed, but is still needed", h.Name(),
					e.Kind, e.Target)
			}
			o.beforeInterrupt(ctx, h, rest...)
			j.Entries = j.Entries[:i+1]
			if err := j.add(ctx, h, rest); err != nil {
				return err
			}
		}
	}
	if err := s.Verify(ctx, h); err != nil {
		return err
	}
	j.State = done
	return j.save(ctx, h)
}

// TryLock takes the host's lock if it is free, without making anything: a host
// that st2ha was never at work on has no lock to be held. The lock takes the
// note of a run that died with it, so what that left is tidied up here, too.
func TryLock(ctx context.Context, h host.Host, note string) (release func(), err error) {
	_, err = h.Stat(ctx, lockPath)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	return lockAndTidy(ctx, h, note)
}

// noteTime is what taking or releasing a lock takes at most, its note written or not.
const noteTime = 5 * time.Second

// Lock excludes other runs on the host, waiting for one at work to end.
func Lock(ctx context.Context, h host.Host, note string, wait time.Duration) (release func(), err error) {
	if err := makeState(ctx, h); err != nil {
		return nil, err
	}
	began := time.Now()
	err = Await(ctx, 500*time.Millisecond, func(ctx context.Context) (waiting, err error) {
		var held *host.LockedError
		release, err = lockAndTidy(ctx, h, note)
		if !errors.As(err, &held) {
			return nil, err
		}
		patience := wait
		switch held.Holder {
		// The same step of the same run: StackStorm has begun the action twice, as schedulers of two nodes do that
		// share no coordinator. The twin is waited for, and leaves nothing to do.
		case note:
			return held, nil
		case host.NoNote:
			patience = max(wait, noteTime)
		}
		if time.Since(began) >= patience {
			return nil, locked(h, held)
		}
		return held, nil
	}, func(seen error) error {
		return locked(h, seen)
	})
	return release, err
}

// locked is a run that others kept from its work.
func locked(h host.Host, seen error) error {
	if held := (*host.LockedError)(nil); errors.As(seen, &held) {
		seen = holder{held}
	}
	return fault.Preflight("locked", "wait until that run has ended; st2 execution list shows it",
		"%s: another run is in progress: %w", h.Name(), seen)
}

// holder is a lock that is held, as who holds it.
type holder struct{ *host.LockedError }

func (h holder) Error() string { return h.Holder }
func (h holder) Unwrap() error { return h.LockedError }
