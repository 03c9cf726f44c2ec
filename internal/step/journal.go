package step

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"st2ha/internal/host"
)

// Where a host keeps what st2ha did to it.
const (
	StateDir = "/var/lib/st2ha"
	runsDir  = StateDir + "/runs" // a directory a step of a run: NUMBER.RUN.STEP
	owedDir  = StateDir + "/owed" // a file a restart that is still to come
	lockPath = StateDir + "/lock"
)

// state is how far a step of a run, or one change of it, has come.
type state string

const (
	planned  state = "planned"  // a change: not begun
	applying state = "applying" // a change: begun; it may or may not have taken place
	applied  state = "applied"  // a change: in place
	open     state = "open"     // a step: at work, or killed
	done     state = "done"     // a step: brought about
	undone   state = "undone"   // both: taken back
)

// entry is one change in the journal.
type entry struct {
	Kind   string          `json:"kind"`
	Target string          `json:"target"`
	State  state           `json:"state"`
	Change json.RawMessage `json:"change"`
	Image  string          `json:"image,omitempty"` // name of the file with the before-image

	Owed bool `json:"owed,omitempty"` // of an Activator: what it owes was owed before it already

	change Change
}

// journal is what a step of a run did, or was about to do, on one host. It
// lies on that host and is written before each change.
type journal struct {
	Run     string    `json:"run"`
	Step    string    `json:"step"`
	State   state     `json:"state"`
	Started time.Time `json:"started"`
	Entries []*entry  `json:"entries"`

	dir string
}

// Kinds makes an empty change of each kind, for the journal to read into.
type Kinds map[string]func() Change

var runName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// ValidRun says whether a run's name can be a part of a directory's.
func ValidRun(run string) bool { return runName.MatchString(run) }

// makeState makes the directories that the journal and the lock lie in.
func makeState(ctx context.Context, h host.Host) error {
	for _, dir := range []string{StateDir, runsDir, owedDir} {
		err := h.Mkdir(ctx, dir, host.Info{Mode: 0o700})
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// openJournal writes down what is about to be done.
func openJournal(ctx context.Context, h host.Host, run, step string, changes []Change,
	now time.Time) (*journal, error) {
	names, err := h.ReadDir(ctx, runsDir)
	if err != nil {
		return nil, err
	}
	number := 1
	for _, name := range names {
		if n, _, _, ok := parseDir(name); ok && n >= number {
			number = n + 1
		}
	}
	j := &journal{Run: run, Step: step, State: open, Started: now.UTC(),
		dir: fmt.Sprintf("%s/%06d.%s.%s", runsDir, number, run, step)}
	if err := h.Mkdir(ctx, j.dir, host.Info{Mode: 0o700}); err != nil {
		return nil, err
	}
	return j, j.add(ctx, h, changes)
}

// add appends changes that are about to be made, with their before-images, and
// then notes the restarts that they owe: a note without a journal would stay.
func (j *journal) add(ctx context.Context, h host.Host, changes []Change) error {
	for _, c := range changes {
		e := &entry{Kind: c.Kind(), Target: c.Target(), State: planned, change: c}
		var err error
		if e.Change, err = json.Marshal(c); err != nil {
			return fmt.Errorf("journal of %s %s: %w", e.Kind, e.Target, err)
		}
		if imager, ok := c.(Imager); ok && imager.Image() != nil {
			e.Image = fmt.Sprintf("%02d.image", len(j.Entries)+1)
			if err := h.WriteFile(ctx,
				host.File{Path: path.Join(j.dir, e.Image), Data: imager.Image(), Mode: 0o600}); err != nil {
				return err
			}
		}
		if a, ok := c.(Activator); ok && a.Owes() != "" {
			if e.Owed, err = Owed(ctx, h, a.Owes()); err != nil {
				return err
			}
		}
		j.Entries = append(j.Entries, e)
	}
	if err := j.save(ctx, h); err != nil {
		return err
	}
	for _, e := range j.Entries[len(j.Entries)-len(changes):] {
		if a, ok := e.change.(Activator); ok && a.Owes() != "" && !e.Owed {
			if err := Owe(ctx, h, a.Owes()); err != nil {
				return err
			}
		}
	}
	return nil
}

// changes returns what the journal holds, as it was planned.
func (j *journal) changes() []Change {
	var changes []Change
	for _, e := range j.Entries {
		changes = append(changes, e.change)
	}
	return changes
}

func (j *journal) save(ctx context.Context, h host.Host) error {
	data, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("journal %s: %w", j.dir, err)
	}
	return h.WriteFile(ctx, host.File{Path: path.Join(j.dir, "journal.json"), Data: append(data, '\n'), Mode: 0o600})
}

// parseDir takes NUMBER.RUN.STEP apart.
func parseDir(name string) (number int, run, step string, ok bool) {
	parts := strings.Split(name, ".")
	if len(parts) != 3 {
		return 0, "", "", false
	}
	number, err := strconv.Atoi(parts[0])
	return number, parts[1], parts[2], err == nil && ValidRun(parts[1])
}

// journals reads the steps that are not undone, oldest first; of one run, or
// of all when run is empty. One that cannot be used is a finding, and keeps
// nobody from the others.
func journals(ctx context.Context, h host.Host, run string, kinds Kinds) ([]*journal, []Finding, error) {
	names, err := h.ReadDir(ctx, runsDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	var found []*journal
	var unusable []Finding
	for _, name := range names { // numbers have leading zeros: sorted by name is sorted by age
		_, r, _, ok := parseDir(name)
		if !ok || (run != "" && r != run) {
			continue
		}
		dir := path.Join(runsDir, name)
		j, err := readJournal(ctx, h, dir, kinds)
		var bad *unusableError
		switch {
		case errors.Is(err, fs.ErrNotExist):
			// killed before the journal was written, so before any change
		case errors.As(err, &bad):
			unusable = append(unusable, Finding{Severity: Error, Host: h.Name(), Check: "journal",
				Message: fmt.Sprintf("run %s: %v: what it changed is not undone", r, err),
				Fix: fmt.Sprintf("put that file back from a backup; or undo by hand what it names, with the "+
					"before-images in %s, and move that directory away", dir)})
		case err != nil:
			return nil, nil, err
		case j.State != undone:
			found = append(found, j)
		}
	}
	return found, unusable, nil
}

// unusableError is a journal that is there and cannot be used: cut off,
// edited, or written by another version.
type unusableError struct{ err error }

// Error is the reason.
func (e *unusableError) Error() string { return e.err.Error() }

// parseJournal reads what save wrote: the states and names that it can hold.
func parseJournal(data []byte) (*journal, error) {
	j := &journal{}
	if err := json.Unmarshal(data, j); err != nil {
		return nil, fmt.Errorf("it is not a journal, or not a whole one: %w", err)
	}
	if j.State != open && j.State != done && j.State != undone {
		return nil, fmt.Errorf("its state is %q", j.State)
	}
	for i, e := range j.Entries {
		switch {
		case e == nil:
			return nil, fmt.Errorf("entry %d is empty", i+1)
		case e.State != planned && e.State != applying && e.State != applied && e.State != undone:
			return nil, fmt.Errorf("the state of entry %d is %q", i+1, e.State)
		case e.Image != "" && !imageName.MatchString(e.Image):
			return nil, fmt.Errorf("the before-image of entry %d is called %q", i+1, e.Image)
		}
	}
	return j, nil
}

// imageName is what add calls before-images.
var imageName = regexp.MustCompile(`^[0-9]{2,}\.image$`)

func readJournal(ctx context.Context, h host.Host, dir string, kinds Kinds) (*journal, error) {
	f, err := h.ReadFile(ctx, path.Join(dir, "journal.json"))
	if err != nil {
		return nil, err
	}
	unusable := func(err error) error { return &unusableError{fmt.Errorf("%s: %w", f.Path, err)} }
	j, err := parseJournal(f.Data)
	if err != nil {
		return nil, unusable(err)
	}
	if j.dir = dir; j.State == undone {
		return j, nil
	}
	for i, e := range j.Entries {
		empty, ok := kinds[e.Kind]
		if !ok {
			return nil, unusable(fmt.Errorf("change of an unknown kind %q: it was made by a newer st2ha", e.Kind))
		}
		e.change = empty()
		if err := json.Unmarshal(e.Change, e.change); err != nil {
			return nil, unusable(fmt.Errorf("change of %s: %w", e.Target, err))
		}
		if target := e.change.Target(); target != e.Target {
			return nil, unusable(fmt.Errorf("entry %d is for %q and holds a change of %q", i+1, e.Target, target))
		}
		if e.Image == "" || e.State == planned || e.State == undone {
			continue // not needed, and gone if the rollback was killed at its end
		}
		image, err := h.ReadFile(ctx, path.Join(dir, e.Image))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, unusable(fmt.Errorf("the before-image of %s, %s, is missing", e.Target, e.Image))
		}
		if err != nil {
			return nil, err
		}
		if imager, ok := e.change.(Imager); ok {
			imager.SetImage(image.Data)
		}
	}
	return j, nil
}

// close removes the before-images of a journal that is undone, also those it
// does not know of yet: they may hold secrets, and what they hold is in place again.
func (j *journal) close(ctx context.Context, h host.Host) error {
	if err := removeFrom(ctx, h, j.dir, func(name string) bool { return name != "journal.json" }); err != nil {
		return err
	}
	j.State = undone
	return j.save(ctx, h)
}

// Owe notes on the host that name has to be restarted before its
// configuration is in effect, so that a killed run's restart is made up for.
func Owe(ctx context.Context, h host.Host, name string) error {
	return h.WriteFile(ctx, host.File{Path: path.Join(owedDir, name), Mode: 0o600})
}

// begin notes, beside what Owe does, that name is about to be restarted: from
// now on it may or may not run with the configuration as it is now.
func begin(ctx context.Context, h host.Host, name string) error {
	f, err := h.ReadFile(ctx, path.Join(owedDir, name))
	if err == nil && len(f.Data) > 0 {
		return nil
	}
	return h.WriteFile(ctx, host.File{Path: path.Join(owedDir, name), Data: []byte("begun\n"), Mode: 0o600})
}

// untouched says whether a restart of name is owed and has not begun.
func untouched(ctx context.Context, h host.Host, name string) (bool, error) {
	f, err := h.ReadFile(ctx, path.Join(owedDir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return len(f.Data) == 0, err
}

// Owed says whether a restart of name is still to come.
func Owed(ctx context.Context, h host.Host, name string) (bool, error) {
	_, err := h.Stat(ctx, path.Join(owedDir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Settle takes back what Owe noted: name was restarted.
func Settle(ctx context.Context, h host.Host, name string) error {
	err := h.Remove(ctx, path.Join(owedDir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
