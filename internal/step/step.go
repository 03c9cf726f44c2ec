// Package step brings configuration about: a Step plans Changes, Run applies
// them under a journal that is written before each one, and Rollback undoes
// what the journal says, newest first.
package step

import (
	"context"

	"st2ha/internal/host"
)

// Step is one piece of configuration, brought about idempotently on one host.
// A step that needs other hosts too (the primary's st2.conf, say) is given
// them when it is made.
type Step interface {
	// Name is the action's and the command's name.
	Name() string
	// Check looks for what would make the step fail or do harm. It changes
	// nothing and reports all it finds. An error is a check that could not be made.
	Check(ctx context.Context, h host.Host) ([]Finding, error)
	// Plan says what differs from what the step wants, in the order in which it
	// has to be applied. It only reads, and is empty when all is in place.
	Plan(ctx context.Context, h host.Host) ([]Change, error)
	// Verify proves that what the step wants has come about.
	Verify(ctx context.Context, h host.Host) error
}

// Change is one difference between the host as it is and as the step wants
// it. Its exported fields go to the journal as JSON, and Undo is called on a
// Change that was read back from there, so they hold all that Undo needs and
// no secret.
type Change interface {
	// Kind is the change's type in the journal and in the output, e.g. "file".
	Kind() string
	// Target is what is changed: a path, a unit, a user.
	Target() string
	// Diff shows a person what will differ. Secrets are masked by the caller.
	Diff() string
	// Apply makes the change.
	Apply(ctx context.Context, h host.Host) error
	// Undo takes the change back. It may be called on a change that was never
	// or only half applied, and more than once.
	Undo(ctx context.Context, h host.Host) error
}

// Imager is a Change whose Undo needs bytes that may contain secrets. The
// journal keeps them in a file of their own, mode 0600.
type Imager interface {
	Change
	Image() []byte
	SetImage([]byte)
}

// Activator is a Change that makes others take effect: a restart, a reload.
// Rollback undoes all other changes first and then calls Undo of the
// activators in the order in which they were applied, each Target once.
type Activator interface {
	Change
	// Owes names what has to be restarted, for Owe and Settle; empty where
	// Plan sees by itself that the activation has not taken place.
	Owes() string
	// Postponed says that Apply leaves the activation to a later step, so that
	// there is nothing to activate again when the change is undone before it.
	Postponed() bool
}

// Interrupter is a Change whose Apply and Undo take a unit away for a moment,
// from all that work with it.
type Interrupter interface {
	Change
	Interrupts() string
}

// UndoChecker is a Change whose Undo needs something that somebody may have
// removed meanwhile. Rollback calls CheckUndo before it undoes anything: its
// findings are what will not come back.
type UndoChecker interface {
	Change
	CheckUndo(ctx context.Context, h host.Host) ([]Finding, error)
}

// Replanner is a Change that brings files of its own, such as a package: what
// comes after it is planned anew once it is applied.
type Replanner interface {
	Change
	Replans()
}

// Severity says whether a Finding stops a run.
type Severity string

// The severities of a Finding.
const (
	Error   Severity = "error"   // nothing is changed until it is mended
	Warning Severity = "warning" // the run goes on
)

// Finding is one thing a check found, with its remedy.
type Finding struct {
	Severity Severity `json:"severity"`
	Host     string   `json:"host"`
	Check    string   `json:"check"`   // what was checked, e.g. "clock"
	Message  string   `json:"message"` // what is wrong, with the file and line or the figure
	Fix      string   `json:"fix"`     // what to do about it
}
