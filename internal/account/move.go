package account

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/mountinfo"
	"st2ha/internal/stackstorm"
)

// Limits of what a journal holds of one move.
const (
	maxSpecial = 1000
	maxKept    = 10000
)

// Move gives a user or a group another number, and its files on the node's own file systems with it. What other
// machines have, by NFS or the like, is left alone.
//
// It is undone by the number, not by a list of paths: what was made in between belongs to the same user.
type Move struct {
	Database string
	Name     string
	From, To int
	// Special are files with setuid or setgid bits, which a change of owner takes away.
	Special []Special
	// Kept are paths that have the number To without it being anybody's, such as files of a package that is gone: an
	// undo leaves them with it. Many says that they are too many to be listed.
	Kept []string
	Many bool
}

// Special is a file whose mode is set again.
type Special struct {
	Path string
	Mode fs.FileMode // as chmod(1) takes it, in octal digits
}

// Kind is "id".
func (m *Move) Kind() string { return "id" }

// Target is the user or the group, with the numbers: of a ring, one is moved twice.
func (m *Move) Target() string {
	return fmt.Sprintf("%s %s, %d to %d", ID{Database: m.Database}.Noun(), m.Name, m.From, m.To)
}

// Diff says what is done.
func (m *Move) Diff() string {
	text := fmt.Sprintf("%s %d %s, and its files on this node's own file systems", strings.Join(m.program(), " "), m.To, m.Name)
	if n := len(m.Special); n > 0 {
		text += fmt.Sprintf("; setuid and setgid bits of %d files are set again", n)
	}
	switch {
	case m.Many:
		text += fmt.Sprintf("; more than %d files have the number %d already, and a rollback takes them along", maxKept, m.To)
	case len(m.Kept) > 0:
		text += fmt.Sprintf("; %d files have the number %d already, and keep it at a rollback", len(m.Kept), m.To)
	}
	return text
}

func (m *Move) program() []string {
	if m.Database == Users {
		return []string{"usermod", "-u"}
	}
	return []string{"groupmod", "-g"}
}

// look notes what has to be kept; what has the number To already is nobody's only if that is free.
func (m *Move) look(ctx context.Context, h host.Host, free bool) error {
	special, err := findAll(ctx, h, m.Database, m.From, "-type", "f", "-perm", "/6000", "-printf", `%m %p\0`)
	if err != nil {
		return err
	}
	for _, entry := range records(special) {
		mode, path, _ := strings.Cut(entry, " ")
		bits, err := strconv.ParseUint(mode, 8, 32)
		if err != nil {
			return fmt.Errorf("%s: find said %q of a file's mode", h.Name(), entry)
		}
		m.Special = append(m.Special, Special{Path: path, Mode: fs.FileMode(bits)})
	}
	if len(m.Special) > maxSpecial {
		return fault.Preflight("ids", "is that a node of StackStorm?",
			"%s: more than %d files of %s have setuid or setgid bits", h.Name(), maxSpecial, m.Name)
	}
	if !free {
		return nil
	}
	kept, err := findAll(ctx, h, m.Database, m.To, "-printf", `%p\0`)
	if err != nil {
		return err
	}
	if m.Kept = records(kept); len(m.Kept) > maxKept {
		m.Kept, m.Many = nil, true
	}
	return nil
}

// Apply moves the files, and then the entry.
func (m *Move) Apply(ctx context.Context, h host.Host) error {
	if err := m.own(ctx, h, m.From, m.To); err != nil {
		return err
	}
	return m.number(ctx, h, m.From, m.To)
}

// Undo moves them back, the services stopped.
func (m *Move) Undo(ctx context.Context, h host.Host) error {
	if err := (&stackstorm.Stop{}).Apply(ctx, h); err != nil {
		return err
	}
	if err := m.own(ctx, h, m.To, m.From, m.Kept...); err != nil {
		return err
	}
	return m.number(ctx, h, m.To, m.From)
}

// number changes the entry, unless that is done.
func (m *Move) number(ctx context.Context, h host.Host, from, to int) error {
	now, err := Read(ctx, h, []ID{{Database: m.Database, Name: m.Name}})
	if err != nil {
		return err
	}
	if id, ok := Get(now, m.Database, m.Name); !ok || id.Number != from {
		return nil
	}
	if _, err := h.Run(ctx, nil, append(m.program(), strconv.Itoa(to), m.Name)...); err != nil {
		return fault.Failed("ids", "see what the message says, and run it again",
			"%s: give %s %s the number %d: %w", h.Name(), ID{Database: m.Database}.Noun(), m.Name, to, err)
	}
	return nil
}

// own gives files to another number, all but those that keep theirs. What was interrupted is gone on with: it goes by
// the number that files have.
func (m *Move) own(ctx context.Context, h host.Host, from, to int, keep ...string) error {
	change := func(from, to int) []string {
		before := ""
		if m.Database == Groups {
			before = ":"
		}
		return []string{"chown", "-h", fmt.Sprintf("--from=%s%d", before, from), fmt.Sprintf("%s%d", before, to)}
	}
	// One program for owner and mode, which runs to its end when this one is killed.
	for _, s := range m.Special {
		argv := slices.Concat([]string{"find", s.Path, "-maxdepth", "0", test(m.Database), strconv.Itoa(from), "-exec"},
			change(from, to), []string{"{}", ";", "-exec", "chmod", fmt.Sprintf("%04o", uint32(s.Mode)), "{}", ";"})
		if _, err := h.Run(ctx, nil, argv...); err != nil && !errors.As(err, new(*host.ExitError)) {
			return fmt.Errorf("%s: owner of %s: %w", h.Name(), s.Path, err)
		}
	}
	_, failed := findAll(ctx, h, m.Database, from, slices.Concat([]string{"-exec"}, change(from, to), []string{"{}", "+"})...)
	if failed != nil && !errors.As(failed, new(*host.ExitError)) {
		return failed
	}
	// What is gone by now is no failure; what is left is.
	left, err := findAll(ctx, h, m.Database, from, "-printf", `%p\0`, "-quit")
	if err != nil {
		return err
	}
	if paths := records(left); len(paths) > 0 {
		return fault.Failed("owner", "see lsattr and mount for why it cannot be changed, then run this again",
			"%s: %s still belongs to the %s %d: %w", h.Name(), paths[0], ID{Database: m.Database}.Kind(), from,
			cause(failed))
	}
	if len(keep) == 0 {
		return nil
	}
	_, err = h.Run(ctx, []byte(strings.Join(keep, "\x00")+"\x00"), append([]string{"xargs", "-0"}, change(to, from)...)...)
	if err != nil && !errors.As(err, new(*host.ExitError)) { // one that is gone is no failure
		return fmt.Errorf("%s: owner of files that keep theirs: %w", h.Name(), err)
	}
	return nil
}

// cause is err, or that there was none to see.
func cause(err error) error {
	if err == nil {
		return errors.New("chown said nothing of it")
	}
	return err
}

// test is find's, for a number.
func test(database string) string {
	if database == Users {
		return "-uid"
	}
	return "-gid"
}

// findAll runs find over the files of a number on each of the node's own file systems, and returns what it prints.
func findAll(ctx context.Context, h host.Host, database string, number int, what ...string) ([]string, error) {
	roots, err := ownRoots(ctx, h)
	if err != nil {
		return nil, err
	}
	var out []string
	var failed error
	for _, r := range roots {
		argv := []string{"find", r.point, "-ignore_readdir_race", "-xdev", test(database), strconv.Itoa(number)}
		for _, point := range r.below { // what is mounted there is no part of it, though find looks at the directory
			argv = append(argv, "!", "-path", pattern(point))
		}
		argv = append(argv, what...)
		data, err := h.Run(ctx, nil, argv...)
		if err != nil {
			failed = fmt.Errorf("%s: find files of the %s %d below %s: %w", h.Name(), ID{Database: database}.Kind(), number,
				r.point, err)
			if !errors.As(err, new(*host.ExitError)) {
				return nil, failed
			}
		}
		out = append(out, string(data))
	}
	return out, failed
}

// records are what find printed, each with a NUL after it.
func records(out []string) []string {
	var all []string
	for _, text := range out {
		for _, r := range strings.Split(text, "\x00") {
			if r != "" {
				all = append(all, r)
			}
		}
	}
	return all
}

// localTypes are the file systems whose files are this machine's own, and have owners.
func localTypes() []string {
	return []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "reiserfs", "zfs", "bcachefs", "overlay", "tmpfs"}
}

// root is a file system of the node's own, where it is mounted, with the mount points below.
type root struct {
	point string
	below []string
}

// pattern is a path as find's -path takes it (fnmatch(3)).
func pattern(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// ownRoots are a node's own file systems that can be written to, and that no other mount hides.
func ownRoots(ctx context.Context, h host.Host) ([]root, error) {
	f, err := h.ReadFile(ctx, "/proc/1/mountinfo") // PID 1's, for an action runner has a mount namespace of its own
	if err != nil {
		return nil, err
	}
	all, err := mountinfo.Parse(f.Data)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", h.Name(), f.Path, err)
	}
	var roots []root
	for i, m := range all {
		hidden := slices.ContainsFunc(all[i+1:], func(later mountinfo.Mount) bool {
			return later.Point == m.Point || strings.HasPrefix(m.Point, later.Point+"/")
		})
		if hidden || !slices.Contains(localTypes(), m.FSType) || !slices.Contains(m.Options, "rw") {
			continue
		}
		r := root{point: m.Point}
		for _, other := range all {
			if other.Point != m.Point && strings.HasPrefix(other.Point, strings.TrimSuffix(m.Point, "/")+"/") {
				r.below = append(r.below, other.Point)
			}
		}
		roots = append(roots, r)
	}
	return roots, nil
}
