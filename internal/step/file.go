package step

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/host"
)

// absent stands for the sum of a file that does not exist.
const absent = "absent"

// FileChange replaces, creates or removes a file. Owner and mode stay those of
// the file that was there, unless Gets has others.
type FileChange struct {
	Path    string
	Existed bool
	Mode    fs.FileMode // of the file before; of the new one if it did not exist
	UID     int
	GID     int
	Before  string // SHA-256 in hex, or "absent"
	After   string
	Gets    *Owner `json:",omitempty"`
	Secret  bool   `json:",omitempty"` // its contents are nothing to show

	before, after []byte
	force         bool
}

// EditFile returns the change that makes data the contents of f, or nil if
// they are: a file that is missing holds nothing. existed says whether f was
// read from the host; for a new file f gives path, mode and owner.
func EditFile(f host.File, existed bool, data []byte) *FileChange {
	c := &FileChange{Path: f.Path, Existed: existed, Mode: f.Mode, UID: f.UID, GID: f.GID,
		Before: absent, After: sum(data), before: f.Data, after: data}
	if existed {
		c.Before = sum(f.Data)
	}
	if c.Before == c.After || !existed && len(data) == 0 {
		return nil
	}
	return c
}

// Owner is whose a file is, and its mode.
type Owner struct {
	Mode fs.FileMode
	UID  int
	GID  int
}

// EditSecret is EditFile for a file whose contents are shown to nobody, and
// that shall be the owner's.
func EditSecret(f host.File, existed bool, data []byte, owner Owner) *FileChange {
	had := Owner{f.Mode, f.UID, f.GID}
	c := EditFile(f, existed, data)
	if c == nil && (had == owner || !existed) {
		return nil
	}
	if c == nil {
		c = &FileChange{Path: f.Path, Existed: true, Mode: f.Mode, UID: f.UID, GID: f.GID, Before: sum(data),
			After: sum(data), before: data, after: data}
	}
	c.Secret = true
	if had != owner {
		c.Gets = &owner
	}
	return c
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// Kind is "file".
func (c *FileChange) Kind() string { return "file" }

// Target is the path.
func (c *FileChange) Target() string { return c.Path }

// Diff is a unified diff without context, since context lines are what others wrote.
// Of a secret it tells no more than whether two are the same.
func (c *FileChange) Diff() string {
	if !c.Secret {
		return unified(c.Path, c.before, c.after)
	}
	var said []string
	switch {
	case !c.Existed:
		said = append(said, "+ SHA-256 "+c.After[:12])
	case c.Before != c.After:
		said = append(said, "- SHA-256 "+c.Before[:12], "+ SHA-256 "+c.After[:12])
	}
	if c.Gets != nil {
		said = append(said, fmt.Sprintf("- owner %d:%d, mode %04o", c.UID, c.GID, c.Mode),
			fmt.Sprintf("+ owner %d:%d, mode %04o", c.Gets.UID, c.Gets.GID, c.Gets.Mode))
	}
	return strings.Join(said, "\n")
}

// Image is the file as it was.
func (c *FileChange) Image() []byte {
	if !c.Existed {
		return nil
	}
	return c.before
}

// SetImage gives back what Image returned.
func (c *FileChange) SetImage(b []byte) { c.before = b }

// Apply writes the file, unless somebody else changed it after the plan was made.
func (c *FileChange) Apply(ctx context.Context, h host.Host) error {
	if err := h.Sweep(ctx, c.Path); err != nil { // of a run that was killed here
		return err
	}
	current, err := currentSum(ctx, h, c.Path)
	if err != nil {
		return err
	}
	if current != c.Before {
		return fault.Failed("changed_meanwhile", "run it again",
			"%s: %s was changed by somebody else while this run was at work", h.Name(), c.Path)
	}
	f := host.File{Path: c.Path, Data: c.after, Mode: c.Mode, UID: c.UID, GID: c.GID}
	if c.Gets != nil {
		f.Mode, f.UID, f.GID = c.Gets.Mode, c.Gets.UID, c.Gets.GID
	}
	return h.WriteFile(ctx, f)
}

// Undo restores the file, unless somebody else changed it after the run.
func (c *FileChange) Undo(ctx context.Context, h host.Host) error {
	if err := h.Sweep(ctx, c.Path); err != nil {
		return err
	}
	current, err := currentSum(ctx, h, c.Path)
	if err != nil {
		return err
	}
	if current == c.Before && c.Gets == nil {
		return nil
	}
	if current != c.Before && current != c.After && !c.force {
		return c.conflict(h)
	}
	if !c.Existed {
		return c.remove(ctx, h)
	}
	return h.WriteFile(ctx, host.File{Path: c.Path, Data: c.before, Mode: c.Mode, UID: c.UID, GID: c.GID})
}

// remove removes the file that Apply made. A link that was there before, and
// led to no file, stays: what is removed is where it leads to.
func (c *FileChange) remove(ctx context.Context, h host.Host) error {
	real, err := h.Resolve(ctx, c.Path)
	if err != nil {
		return err
	}
	if err := h.Remove(ctx, real); err != nil {
		return err
	}
	current, err := currentSum(ctx, h, c.Path)
	if err == nil && current != absent {
		err = fault.Failed("changed_meanwhile", "see who writes it, and run rollback again",
			"%s: %s was removed, and is there again", h.Name(), c.Path)
	}
	return err
}

func (c *FileChange) conflict(h host.Host) error {
	return fault.Preflight("changed_since",
		"undo newer runs first; if you edited it by hand, take your edit out, or run rollback with force=true to "+
			"restore the file anyway",
		"%s: %s was changed after the run that is to be undone", h.Name(), c.Path)
}

func currentSum(ctx context.Context, h host.Host, path string) (string, error) {
	f, err := h.ReadFile(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return absent, nil
	}
	if err != nil {
		return "", err
	}
	return sum(f.Data), nil
}

// ReadOrEmpty reads a configuration file that may be missing. existed is false
// then, and the file has the mode and owner a new one shall get.
func ReadOrEmpty(ctx context.Context, h host.Host, path string,
	mode fs.FileMode) (f host.File, existed bool, err error) {
	f, err = h.ReadFile(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return host.File{Path: path, Mode: mode}, false, nil
	}
	if err != nil {
		return host.File{}, false, err
	}
	f.Path = path
	return f, true, nil
}

// Located puts host and path before an editor's error and makes it a
// preflight one: the file is not as the step can edit it.
func Located(h host.Host, path string, err error) error {
	if err == nil {
		return nil
	}
	return fault.Preflight("unparsable",
		fmt.Sprintf("correct %s on %s, or make the change by hand: the step then sees that it is done", path, h.Name()),
		"%s: %s: %w", h.Name(), path, err)
}
