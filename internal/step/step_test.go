package step_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

// machine is a host below a temporary root. It counts what changes it, so
// that a test can let the process die, or the disk fail, at each of them.
type machine struct {
	*host.Local
	root    string
	running string   // what the daemon read when it was last restarted
	log     []string // what was done, in order

	ops  int
	fail func(op int, what string) error // may panic with killed
	dead bool                            // it has
}

// killed is what a test panics with: no code after it runs, but for the
// release of the lock, which the kernel does.
type killed struct{}

// Lock leaves the note of a holder that died, as the kernel does.
func (m *machine) Lock(ctx context.Context, name, note string) (func(), error) {
	release, err := m.Local.Lock(ctx, name, note)
	return func() {
		release()
		if m.dead {
			_ = os.WriteFile(m.root+name, []byte(note), 0o600)
		}
	}, err
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"etc", "usr/bin", "var/lib"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	return &machine{Local: host.NewLocalAt("node", root), root: root}
}

func (m *machine) op(what string) error {
	m.ops++
	if m.fail != nil {
		if err := m.fail(m.ops, what); err != nil {
			return err
		}
	}
	m.log = append(m.log, what)
	return nil
}

func (m *machine) WriteFile(ctx context.Context, f host.File) error {
	if err := m.op("write " + f.Path); err != nil {
		return err
	}
	if os.Geteuid() != 0 { // who cannot give files away keeps them
		f.UID, f.GID = os.Geteuid(), os.Getegid()
	}
	return m.Local.WriteFile(ctx, f)
}

func (m *machine) Remove(ctx context.Context, name string) error {
	if err := m.op("remove " + name); err != nil {
		return err
	}
	return m.Local.Remove(ctx, name)
}

func (m *machine) Mkdir(ctx context.Context, name string, info host.Info) error {
	if err := m.op("mkdir " + name); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		info.UID, info.GID = os.Geteuid(), os.Getegid()
	}
	return m.Local.Mkdir(ctx, name, info)
}

func (m *machine) Rename(ctx context.Context, from, to string) error {
	if err := m.op("rename " + from + " " + to); err != nil {
		return err
	}
	return m.Local.Rename(ctx, from, to)
}

// put writes a file behind the engine's back.
func (m *machine) put(t *testing.T, name, data string, mode fs.FileMode) {
	t.Helper()
	require.NoError(t, os.WriteFile(m.root+name, []byte(data), 0o600))
	require.NoError(t, os.Chmod(m.root+name, mode))
}

func (m *machine) get(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(m.root + name)
	if errors.Is(err, fs.ErrNotExist) {
		return "(absent)"
	}
	require.NoError(t, err)
	return string(b)
}

// tree is all of the machine but the engine's own files.
func (m *machine) tree(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, filepath.WalkDir(m.root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name == m.root+step.StateDir {
			return filepath.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		data := ""
		if d.Type().IsRegular() {
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			data = string(content)
		}
		fmt.Fprintf(&b, "%s %v %d:%d %q\n", strings.TrimPrefix(name, m.root), info.Mode(), st.Uid, st.Gid, data)
		return nil
	}))
	return b.String()
}

// runs are the directories of the journal.
func (m *machine) runs(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob(m.root + step.StateDir + "/runs/*")
	require.NoError(t, err)
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	return names
}

// images are the before-images that are kept.
func (m *machine) images(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob(m.root + step.StateDir + "/runs/*/*.image")
	require.NoError(t, err)
	return names
}

func (m *machine) owed(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob(m.root + step.StateDir + "/owed/*")
	require.NoError(t, err)
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	return names
}

// journal reads a journal as it lies on the machine.
func (m *machine) journal(t *testing.T, dir string) (state string, entries []string, text string) {
	t.Helper()
	text = m.get(t, step.StateDir+"/runs/"+dir+"/journal.json")
	var j struct {
		State   string
		Entries []struct{ Kind, Target, State string }
	}
	require.NoError(t, json.Unmarshal([]byte(text), &j))
	for _, e := range j.Entries {
		entries = append(entries, e.Kind+" "+e.Target+" "+e.State)
	}
	return j.State, entries, text
}

// restart is an activator: the daemon reads its file anew.
type restart struct {
	Unit string
	File string
	Late bool // postponed
}

func (r *restart) Kind() string    { return "restart" }
func (r *restart) Target() string  { return r.Unit }
func (r *restart) Diff() string    { return "restart " + r.Unit }
func (r *restart) Owes() string    { return r.Unit }
func (r *restart) Postponed() bool { return r.Late }

func (r *restart) Apply(ctx context.Context, h host.Host) error {
	if r.Late {
		return nil
	}
	return r.Undo(ctx, h)
}

func (r *restart) Undo(ctx context.Context, h host.Host) error {
	m := h.(*machine)
	if err := m.op("restart " + r.Unit); err != nil {
		return err
	}
	f, err := m.ReadFile(ctx, r.File)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if r.Unit == "daemon" {
		m.running = string(f.Data)
	}
	return step.Settle(ctx, h, r.Unit)
}

// pkg is a package: a program and a configuration file of its own.
type pkg struct{ Name string }

func (p *pkg) Kind() string   { return "package" }
func (p *pkg) Target() string { return p.Name }
func (p *pkg) Diff() string   { return "install " + p.Name }
func (p *pkg) Replans()       {}

func (p *pkg) Apply(ctx context.Context, h host.Host) error {
	for _, name := range []string{"/etc/" + p.Name + ".conf", "/usr/bin/" + p.Name} {
		if err := h.WriteFile(ctx, host.File{Path: name, Data: []byte("of the package\n"), Mode: 0o755}); err != nil {
			return err
		}
	}
	return nil
}

func (p *pkg) Undo(ctx context.Context, h host.Host) error {
	for _, name := range []string{"/usr/bin/" + p.Name, "/etc/" + p.Name + ".conf"} {
		if err := h.Remove(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func kinds() step.Kinds {
	return step.Kinds{
		"file":    func() step.Change { return &step.FileChange{} },
		"restart": func() step.Change { return &restart{} },
		"package": func() step.Change { return &pkg{} },
	}
}

// fake is a step that adds a line to files and restarts a daemon that reads
// the first of them.
type fake struct {
	name     string
	line     string
	files    []string
	pkg      string // installed first, if set; its file is among files then
	unit     string // restarted, if set
	late     bool
	findings []step.Finding
	checkErr error
	verify   func() error
	planned  func()                               // called before each plan
	wrap     func(c *step.FileChange) step.Change // what is planned in its place
}

func (s *fake) Name() string { return s.name }

func (s *fake) Check(context.Context, host.Host) ([]step.Finding, error) {
	return s.findings, s.checkErr
}

func (s *fake) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	if s.planned != nil {
		s.planned()
	}
	var changes []step.Change
	if s.pkg != "" {
		if _, err := h.Stat(ctx, "/usr/bin/"+s.pkg); errors.Is(err, fs.ErrNotExist) {
			changes = append(changes, &pkg{Name: s.pkg})
		}
	}
	edited := false
	for _, name := range s.files {
		f, existed, err := step.ReadOrEmpty(ctx, h, name, 0o640)
		if err != nil {
			return nil, err
		}
		data := f.Data
		if !strings.Contains(string(data), s.line) {
			data = append(slices.Clone(data), s.line+"\n"...)
		}
		if c := step.EditFile(f, existed, data); c != nil {
			if edited = true; s.wrap != nil {
				changes = append(changes, s.wrap(c))
				continue
			}
			changes = append(changes, c)
		}
	}
	if s.unit == "" {
		return changes, nil
	}
	owed, err := step.Owed(ctx, h, s.unit)
	if err != nil {
		return nil, err
	}
	if edited || owed && !s.late {
		changes = append(changes, &restart{Unit: s.unit, File: s.files[0], Late: s.late})
	}
	return changes, nil
}

func (s *fake) Verify(context.Context, host.Host) error {
	if s.verify != nil {
		return s.verify()
	}
	return nil
}

const secret = `s3/c"r@t $x`

func options(run string) step.Options {
	return step.Options{Run: run, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Mask: step.NewMasker(secret), Started: time.Now()}
}

func undoAll() step.RollbackOptions {
	return step.RollbackOptions{Options: options("undo"), Kinds: kinds()}
}

// exit is an error's exit code and code.
func exit(err error) (int, string) {
	f := fault.Of(err)
	return f.Exit, f.Code
}

func requireFault(t *testing.T, err error, code int, name string) {
	t.Helper()
	require.Error(t, err)
	gotCode, gotName := exit(err)
	require.Equal(t, fmt.Sprint(code, " ", name), fmt.Sprint(gotCode, " ", gotName), err.Error())
}

func TestFileChange(t *testing.T) {
	ctx := t.Context()
	for name, tc := range map[string]struct {
		before string // "-" for no file
		mode   fs.FileMode
		uid    int
		after  string
	}{
		"replaced":          {"a\nb", 0o640, 0, "a\nc\n"},
		"another owner":     {"a\n", 0o604, 4711, "b\n"},
		"setgid":            {"a\n", 0o2755, 0, "b\n"},
		"created":           {"-", 0o600, 0, "b\n"},
		"emptied":           {"a\r\n\x00\xff", 0o444, 0, ""},
		"was empty":         {"", 0o644, 0, "b"},
		"no newline at end": {"a", 0o644, 0, "a\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.uid != 0 {
				testenv.NeedsRoot(t)
			}
			m := newMachine(t)
			if tc.before != "-" {
				m.put(t, "/etc/x", tc.before, 0o600)
				require.NoError(t, os.Chown(m.root+"/etc/x", os.Geteuid()+tc.uid, os.Getegid()))
				require.NoError(t, syscall.Chmod(m.root+"/etc/x", uint32(tc.mode&0o7777)))
			}
			first := m.tree(t)
			f, existed, err := step.ReadOrEmpty(ctx, m, "/etc/x", tc.mode)
			require.NoError(t, err)
			require.Equal(t, tc.before != "-", existed)
			if !existed {
				f.UID, f.GID = os.Geteuid(), os.Getegid()
			}
			c := step.EditFile(f, existed, []byte(tc.after))
			require.NotNil(t, c)
			require.Equal(t, first, m.tree(t), "planned only")
			const left = "/etc/.x.st2ha-0123456789abcdef" // by a run that was killed while it wrote
			m.put(t, left, "half", 0o600)
			require.NoError(t, c.Apply(ctx, m))
			require.NoFileExists(t, m.root+left)
			require.Equal(t, tc.after, m.get(t, "/etc/x"))
			now, err := m.ReadFile(ctx, "/etc/x")
			require.NoError(t, err)
			require.Equal(t, f.Mode, now.Mode)
			require.Equal(t, f.UID, now.UID)
			require.Nil(t, step.EditFile(now, true, []byte(tc.after)))

			// Undo works on what the journal and the image hold, and twice.
			text, err := json.Marshal(c)
			require.NoError(t, err)
			back := &step.FileChange{}
			require.NoError(t, json.Unmarshal(text, back))
			back.SetImage(c.Image())
			require.NoError(t, back.Undo(ctx, m))
			require.Equal(t, first, m.tree(t))
			m.put(t, left, "half", 0o600)
			require.NoError(t, back.Undo(ctx, m))
			require.Equal(t, first, m.tree(t))
		})
	}
}

// A link that leads to no file is kept, and what was made at its end is gone
// after Undo, which says so only then.
func TestFileChangeThroughLink(t *testing.T) {
	testenv.NeedsRoot(t)
	ctx := t.Context()
	m := newMachine(t)
	require.NoError(t, os.MkdirAll(m.root+"/srv/config", 0o755))
	require.NoError(t, os.MkdirAll(m.root+"/etc", 0o755))
	require.NoError(t, os.Symlink("/srv/config/x", m.root+"/etc/x"))
	before := m.tree(t)
	f, existed, err := step.ReadOrEmpty(ctx, m, "/etc/x", 0o644)
	require.NoError(t, err)
	require.False(t, existed)
	f.UID, f.GID = os.Geteuid(), os.Getegid()
	c := step.EditFile(f, existed, []byte("b\n"))
	require.NoError(t, c.Apply(ctx, m))
	require.Equal(t, "b\n", m.get(t, "/srv/config/x"))
	require.NoError(t, c.Undo(ctx, m))
	require.Equal(t, before, m.tree(t))
	require.NoFileExists(t, m.root+"/srv/config/x")

	// The directory's owner turns the file into a link while it is there.
	require.NoError(t, os.Chown(m.root+"/srv/config", 4711, 4711))
	require.NoError(t, os.Remove(m.root+"/etc/x"))
	m.put(t, "/root-only", "b\n", 0o600)
	f.Path = "/srv/config/y"
	c = step.EditFile(f, false, []byte("b\n"))
	require.NoError(t, c.Apply(ctx, m))
	require.NoError(t, os.Remove(m.root+"/srv/config/y"))
	require.NoError(t, os.Symlink("../../root-only", m.root+"/srv/config/y"))
	requireFault(t, c.Undo(ctx, m), fault.ExitPreflight, "foreign_link")
	require.Equal(t, "b\n", m.get(t, "/root-only"))
}

// A secret is never shown, and gets its owner in the same write; Undo gives both back.
func TestEditSecret(t *testing.T) {
	testenv.NeedsRoot(t)
	ctx := t.Context()
	h := host.NewLocalAt("node", t.TempDir())
	before := host.File{Path: "/key", Data: []byte("old s3cret"), Mode: 0o644, UID: 0, GID: 7}
	require.NoError(t, h.WriteFile(ctx, before))
	owner := step.Owner{Mode: 0o600, UID: 5, GID: 6}
	for _, data := range []string{"new s3cret", "old s3cret"} {
		c := step.EditSecret(before, true, []byte(data), owner)
		require.NotContains(t, c.Diff(), "s3cret")
		require.Contains(t, c.Diff(), "- owner 0:7, mode 0644\n+ owner 5:6, mode 0600")
		require.Equal(t, data == "new s3cret", strings.Contains(c.Diff(), "SHA-256"))
		require.NoError(t, c.Apply(ctx, h))
		f, err := h.ReadFile(ctx, "/key")
		require.NoError(t, err)
		require.Equal(t, host.File{Path: f.Path, Data: []byte(data), Mode: 0o600, UID: 5, GID: 6}, f)
		require.Nil(t, step.EditSecret(f, true, []byte(data), owner))
		require.NoError(t, c.Undo(ctx, h))
		f, err = h.ReadFile(ctx, "/key")
		require.NoError(t, err)
		require.Equal(t, host.File{Path: f.Path, Data: before.Data, Mode: 0o644, UID: 0, GID: 7}, f)
	}
}

func TestEditFileOfNothing(t *testing.T) {
	require.Nil(t, step.EditFile(host.File{Path: "/etc/x"}, false, nil), "no file, no contents: nothing to do")
	require.Nil(t, step.EditFile(host.File{Path: "/etc/x"}, true, nil))
	c := step.EditFile(host.File{Path: "/etc/x", Data: []byte("keep\nold\n")}, true, []byte("keep\nnew\n"))
	require.Equal(t, "--- a/etc/x\n+++ b/etc/x\n@@ -2 +2 @@\n-old\n+new\n", c.Diff())
}

func TestFileChangedMeanwhile(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	m.put(t, "/etc/x", "a\n", 0o644)
	f, _, err := step.ReadOrEmpty(ctx, m, "/etc/x", 0o644)
	require.NoError(t, err)
	c := step.EditFile(f, true, []byte("b\n"))
	m.put(t, "/etc/x", "theirs\n", 0o644)
	requireFault(t, c.Apply(ctx, m), fault.ExitFailed, "changed_meanwhile")
	require.Equal(t, "theirs\n", m.get(t, "/etc/x"))
	requireFault(t, c.Undo(ctx, m), fault.ExitPreflight, "changed_since")
	require.Equal(t, "theirs\n", m.get(t, "/etc/x"))

	created := step.EditFile(host.File{Path: "/etc/new", Mode: 0o644}, false, []byte("b\n"))
	m.put(t, "/etc/new", "theirs\n", 0o644)
	requireFault(t, created.Apply(ctx, m), fault.ExitFailed, "changed_meanwhile")
}

func TestRun(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	m.put(t, "/etc/x", "password = "+secret+"\nold\n", 0o640)
	m.running = m.get(t, "/etc/x")
	first := m.tree(t)
	s := &fake{name: "configure", line: "url = amqp://st2:" + secret + "@h/",
		files: []string{"/etc/x", "/etc/y"}, unit: "daemon"}

	// A dry run says the same and touches nothing, not even the engine's own files.
	o := options("dry")
	o.DryRun = true
	r, err := step.Run(ctx, s, m, o)
	require.NoError(t, err)
	require.False(t, r.Changed)
	require.True(t, r.DryRun)
	require.Len(t, r.Changes, 3)
	require.Equal(t, first, m.tree(t))
	require.NoDirExists(t, m.root+step.StateDir)
	require.Zero(t, m.ops)
	dry := r.Changes

	r, err = step.Run(ctx, s, m, options("one"))
	require.NoError(t, err)
	require.True(t, r.Changed)
	require.Equal(t, dry, r.Changes)
	require.Nil(t, r.Error)
	text, err := json.Marshal(r)
	require.NoError(t, err)
	require.NotContains(t, string(text), "s3/c")
	require.Equal(t, []string{"000001.one.configure"}, m.runs(t))
	state, entries, journal := m.journal(t, "000001.one.configure")
	require.Equal(t, "done", state)
	require.Equal(t, []string{"file /etc/x applied", "file /etc/y applied", "restart daemon applied"}, entries)
	require.NotContains(t, journal, "s3/c")
	require.Equal(t, m.get(t, "/etc/x"), m.running)
	require.Empty(t, m.owed(t))
	require.Len(t, m.images(t), 1, "the created file has none")
	for name, mode := range map[string]fs.FileMode{
		"": fs.ModeDir | 0o700, "/runs": fs.ModeDir | 0o700, "/runs/000001.one.configure": fs.ModeDir | 0o700,
		"/runs/000001.one.configure/journal.json": 0o600, "/runs/000001.one.configure/01.image": 0o600,
	} {
		info, err := os.Stat(m.root + step.StateDir + name)
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), name)
	}
	require.Equal(t, "password = "+secret+"\nold\n", m.get(t, step.StateDir+"/runs/000001.one.configure/01.image"))

	// All is in place: no journal, no restart.
	m.log = nil
	after := m.tree(t)
	r, err = step.Run(ctx, s, m, options("two"))
	require.NoError(t, err)
	require.False(t, r.Changed)
	require.Empty(t, r.Changes)
	require.Empty(t, m.log)
	require.Equal(t, after, m.tree(t))
	require.Len(t, m.runs(t), 1)

	// Verify is asked also when nothing was to be done.
	s.verify = func() error { return fault.Failed("proof", "look", "it does not answer") }
	r, err = step.Run(ctx, s, m, options("three"))
	requireFault(t, err, fault.ExitFailed, "proof")
	require.Equal(t, &step.ErrorSummary{Code: "proof", Message: "it does not answer", Hint: "look"}, r.Error)
	require.Equal(t, after, m.tree(t))

	res, err := step.Rollback(ctx, m, undoAll())
	require.NoError(t, err)
	require.True(t, res.Changed)
	require.Equal(t, first, m.tree(t))
	require.Equal(t, m.get(t, "/etc/x"), m.running)
	require.Empty(t, m.images(t))
	state, _, _ = m.journal(t, "000001.one.configure")
	require.Equal(t, "undone", state)

	// Nothing is left to undo.
	m.log = nil
	res, err = step.Rollback(ctx, m, undoAll())
	require.NoError(t, err)
	require.False(t, res.Changed)
	require.NotContains(t, strings.Join(m.log, "\n"), "restart")
	require.Equal(t, first, m.tree(t))
}

func TestRefused(t *testing.T) {
	m := newMachine(t)
	finding := step.Finding{Severity: step.Error, Host: "node", Check: "clock",
		Message: "it says " + secret, Fix: "set it"}
	s := &fake{name: "configure", line: "x", files: []string{"/etc/x"}, findings: []step.Finding{
		{Severity: step.Warning, Check: "w"}, finding, finding,
	}}
	r, err := step.Run(t.Context(), s, m, options("one"))
	requireFault(t, err, fault.ExitPreflight, "clock")
	require.Len(t, r.Findings, 3)
	require.Equal(t, "it says ********", r.Findings[1].Message)
	require.Equal(t, "node: clock: it says ******** (and 1 more, see findings)", r.Error.Message)
	require.Zero(t, m.ops)

	s.findings = s.findings[:1]
	r, err = step.Run(t.Context(), s, m, options("two"))
	require.NoError(t, err, "a warning stops nothing")
	require.True(t, r.Changed)

	s.checkErr = errors.New("cannot look")
	r, err = step.Run(t.Context(), s, m, options("three"))
	requireFault(t, err, fault.ExitFailed, "failed")
	require.Len(t, r.Findings, 1)
}

func TestFailingVerifyIsUndone(t *testing.T) {
	m := newMachine(t)
	m.put(t, "/etc/x", "old\n", 0o604)
	m.running = "old\n"
	first := m.tree(t)
	s := &fake{name: "configure", line: "new", files: []string{"/etc/x", "/etc/y"}, unit: "daemon",
		verify: func() error { return fault.Failed("proof", "look", "no answer from %s", secret) }}
	r, err := step.Run(t.Context(), s, m, options("one"))
	requireFault(t, err, fault.ExitFailed, "proof")
	require.False(t, r.Changed)
	require.Equal(t, "no answer from ********; what this step had changed is undone", r.Error.Message)
	require.Equal(t, first, m.tree(t))
	require.Equal(t, "old\n", m.running)
	require.Empty(t, m.images(t))
	require.Empty(t, m.owed(t))
	state, _, _ := m.journal(t, "000001.one.configure")
	require.Equal(t, "undone", state)
}

// The context that ended the step does not end its undoing.
func TestUndoneAfterItsTime(t *testing.T) {
	m := newMachine(t)
	m.put(t, "/etc/x", "old\n", 0o604)
	first := m.tree(t)
	ctx, cancel := context.WithCancel(t.Context())
	s := &fake{name: "configure", line: "new", files: []string{"/etc/x"}, unit: "daemon",
		verify: func() error { cancel(); return ctx.Err() }}
	_, err := step.Run(ctx, s, m, options("one"))
	requireFault(t, err, fault.ExitFailed, "failed")
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, first, m.tree(t))
}

func TestUndoThatFails(t *testing.T) {
	m := newMachine(t)
	m.put(t, "/etc/x", "old\n", 0o604)
	first := m.tree(t)
	s := &fake{name: "configure", line: "new", files: []string{"/etc/x"}, verify: func() error {
		m.fail = func(int, string) error { return syscall.EROFS }
		return fault.Failed("proof", "look", "no answer")
	}}
	r, err := step.Run(t.Context(), s, m, options("one"))
	requireFault(t, err, fault.ExitUndoFailed, "undo_failed")
	require.Contains(t, r.Error.Message, "no answer; undoing it failed as well: undo file /etc/x")
	require.Contains(t, r.Error.Hint, "st2ha.rollback host=node only=one")
	require.Equal(t, "old\nnew\n", m.get(t, "/etc/x"))
	m.fail = nil
	_, err = step.Rollback(t.Context(), m, undoAll())
	require.NoError(t, err)
	require.Equal(t, first, m.tree(t))
}

func TestRollbackConflict(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	m.put(t, "/etc/x", "old\n", 0o644)
	m.put(t, "/etc/y", "old\n", 0o644)
	first := m.tree(t)
	_, err := step.Run(ctx, &fake{name: "a", line: "one", files: []string{"/etc/x"}, unit: "daemon"}, m, options("one"))
	require.NoError(t, err)
	_, err = step.Run(ctx, &fake{name: "b", line: "two", files: []string{"/etc/x", "/etc/y"}, unit: "daemon"},
		m, options("two"))
	require.NoError(t, err)
	after := m.tree(t)

	// One run under another one's edit.
	only := undoAll()
	only.Only = "one"
	m.log = nil
	_, err = step.Rollback(ctx, m, only)
	requireFault(t, err, fault.ExitPreflight, "changed_since")
	require.Equal(t, after, m.tree(t))

	// Somebody's later edit: nothing at all is touched.
	m.put(t, "/etc/x", "theirs\n", 0o644)
	edited := m.tree(t)
	for _, dry := range []bool{true, false} {
		o := undoAll()
		o.DryRun = dry
		_, err = step.Rollback(ctx, m, o)
		requireFault(t, err, fault.ExitPreflight, "changed_since")
		require.Equal(t, edited, m.tree(t))
	}
	o := undoAll()
	o.Force = true
	_, err = step.Rollback(ctx, m, o)
	require.NoError(t, err)
	require.Equal(t, first, m.tree(t))
	require.Equal(t, "old\n", m.running)
}

func TestRollbackOfRuns(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	m.put(t, "/etc/x", "old\n", 0o644)
	first := m.tree(t)
	for i, run := range []string{"one", "two", "three"} {
		s := &fake{name: "configure", line: run, files: []string{"/etc/x"}, unit: "daemon"}
		if i == 2 {
			s = &fake{name: "other", line: run, files: []string{"/etc/y", "/etc/z"}, unit: "second"}
		}
		_, err := step.Run(ctx, s, m, options(run))
		require.NoError(t, err)
	}
	require.Equal(t, []string{"000001.one.configure", "000002.two.configure", "000003.three.other"}, m.runs(t))

	o := undoAll()
	o.Only, o.DryRun = "two", true
	before := m.tree(t)
	r, err := step.Rollback(ctx, m, o)
	require.NoError(t, err)
	require.NotNil(t, r.Findings, "a list in JSON, also an empty one")
	require.False(t, r.Changed)
	require.Len(t, r.Changes, 2)
	require.Equal(t, before, m.tree(t))

	o.DryRun = false
	m.log = nil
	r, err = step.Rollback(ctx, m, o)
	require.NoError(t, err)
	require.True(t, r.Changed)
	require.Equal(t, "old\none\n", m.get(t, "/etc/x"))
	require.Equal(t, "old\none\n", m.running)
	require.Equal(t, "three\n", m.get(t, "/etc/y"))
	require.Equal(t, []string{"restart daemon"}, only(m.log, "restart"))

	// The rest, newest first; each daemon is restarted once, after all files.
	m.log = nil
	// by a run that was killed
	const half = step.StateDir + "/runs/000001.one.configure/.01.image.st2ha-0123456789abcdef"
	m.put(t, half, "secret", 0o600)
	r, err = step.Rollback(ctx, m, undoAll())
	require.NoError(t, err)
	require.NoFileExists(t, m.root+half)
	require.Equal(t, first, m.tree(t))
	require.Equal(t, "old\n", m.running)
	var targets []string
	for _, c := range r.Changes {
		targets = append(targets, c.Target)
	}
	require.Equal(t, []string{"second", "/etc/z", "/etc/y", "daemon", "/etc/x"}, targets)
	require.Equal(t, []string{"remove /etc/z", "remove /etc/y", "write /etc/x", "restart daemon", "restart second"},
		only(m.log, "restart", "remove /etc", "write /etc"))
	require.Empty(t, m.images(t))

	// Numbers go on where they were.
	_, err = step.Run(ctx, &fake{name: "configure", line: "four", files: []string{"/etc/x"}}, m, options("four"))
	require.NoError(t, err)
	require.Contains(t, m.runs(t), "000004.four.configure")
}

// only keeps what begins with one of the words.
func only(log []string, words ...string) []string {
	var kept []string
	for _, l := range log {
		for _, w := range words {
			if strings.HasPrefix(l, w) {
				kept = append(kept, l)
				break
			}
		}
	}
	return kept
}

// Files of several runs, one daemon: it is restarted once, after the last file.
func TestActivatorsLastAndOnce(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	m.put(t, "/etc/x", "old\n", 0o644)
	for _, run := range []string{"one", "two", "three"} {
		_, err := step.Run(ctx, &fake{name: "configure", line: run, files: []string{"/etc/x"}, unit: "daemon"},
			m, options(run))
		require.NoError(t, err)
	}
	m.log = nil
	_, err := step.Rollback(ctx, m, undoAll())
	require.NoError(t, err)
	require.Equal(t, []string{"write /etc/x", "write /etc/x", "write /etc/x", "restart daemon"},
		only(m.log, "restart", "write /etc"))
}

func TestPostponed(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	m.put(t, "/etc/x", "old\n", 0o644)
	m.running = "old\n"
	first := m.tree(t)
	late := &fake{name: "configure", line: "new", files: []string{"/etc/x"}, unit: "daemon", late: true}
	_, err := step.Run(ctx, late, m, options("one"))
	require.NoError(t, err)
	require.Equal(t, "old\n", m.running)
	require.Equal(t, []string{"daemon"}, m.owed(t))
	r, err := step.Run(ctx, late, m, options("again"))
	require.NoError(t, err)
	require.False(t, r.Changed, "what is owed is left to the step that makes up for it")

	// Undone before it was restarted: it still runs with what is restored.
	m.log = nil
	_, err = step.Rollback(ctx, m, undoAll())
	require.NoError(t, err)
	require.Equal(t, first, m.tree(t))
	require.Empty(t, m.owed(t))
	require.Empty(t, only(m.log, "restart"))

	// Undone after it was: it has to be restarted again.
	_, err = step.Run(ctx, late, m, options("two"))
	require.NoError(t, err)
	_, err = step.Run(ctx, &fake{name: "restart", line: "new", files: []string{"/etc/x"}, unit: "daemon"},
		m, options("two"))
	require.NoError(t, err)
	require.Equal(t, "old\nnew\n", m.running)
	require.Empty(t, m.owed(t))
	_, err = step.Rollback(ctx, m, undoAll())
	require.NoError(t, err)
	require.Equal(t, first, m.tree(t))
	require.Equal(t, "old\n", m.running)
	require.Empty(t, m.owed(t))
}

// What an earlier run owes stays owed when a later one is undone.
func TestPostponedTwice(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	m.put(t, "/etc/x", "old\n", 0o644)
	late := func(line string) *fake {
		return &fake{name: "configure", line: line, files: []string{"/etc/x"}, unit: "daemon", late: true}
	}
	_, err := step.Run(ctx, late("one"), m, options("one"))
	require.NoError(t, err)
	failing := late("two")
	failing.verify = func() error { return errors.New("no answer") }
	_, err = step.Run(ctx, failing, m, options("two"))
	require.ErrorContains(t, err, "no answer")
	require.Equal(t, []string{"daemon"}, m.owed(t))
	_, err = step.Run(ctx, late("three"), m, options("three"))
	require.NoError(t, err)
	o := undoAll()
	o.Only = "three"
	_, err = step.Rollback(ctx, m, o)
	require.NoError(t, err)
	require.Equal(t, "old\none\n", m.get(t, "/etc/x"))
	require.Equal(t, []string{"daemon"}, m.owed(t))
	_, err = step.Rollback(ctx, m, undoAll())
	require.NoError(t, err)
	require.Empty(t, m.owed(t))
	require.Empty(t, only(m.log, "restart"))
}

// A restart that failed half-way leaves the daemon with what is then undone.
func TestPostponedThenRestartFailed(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	m.put(t, "/etc/x", "old\n", 0o644)
	m.running = "old\n"
	_, err := step.Run(ctx, &fake{name: "configure", line: "new", files: []string{"/etc/x"}, unit: "daemon",
		late: true}, m, options("one"))
	require.NoError(t, err)
	failing := &fake{name: "restart", line: "new", files: []string{"/etc/x"}, unit: "daemon",
		verify: func() error { return errors.New("no answer") }}
	_, err = step.Run(ctx, failing, m, options("one"))
	require.ErrorContains(t, err, "no answer")
	require.Equal(t, "old\nnew\n", m.running)
	_, err = step.Rollback(ctx, m, undoAll())
	require.NoError(t, err)
	require.Equal(t, "old\n", m.running)
	require.Empty(t, m.owed(t))
}

func TestOwed(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	owed, err := step.Owed(ctx, m, "daemon")
	require.NoError(t, err)
	require.False(t, owed, "nothing is owed where st2ha never was")
	require.NoError(t, step.Settle(ctx, m, "daemon"))
	release, err := step.Lock(ctx, m, "x", 0)
	require.NoError(t, err)
	release()
	require.NoError(t, step.Owe(ctx, m, "daemon"))
	require.NoError(t, step.Owe(ctx, m, "daemon"))
	owed, err = step.Owed(ctx, m, "daemon")
	require.NoError(t, err)
	require.True(t, owed)
	require.NoError(t, step.Settle(ctx, m, "daemon"))
	owed, err = step.Owed(ctx, m, "daemon")
	require.NoError(t, err)
	require.False(t, owed)
}

func TestReplanner(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	first := m.tree(t)
	plans := 0
	s := &fake{name: "install", line: "new", files: []string{"/etc/nfs.conf"}, pkg: "nfs", unit: "nfs",
		planned: func() { plans++ }}
	o := options("dry")
	o.DryRun = true
	r, err := step.Run(ctx, s, m, o)
	require.NoError(t, err)
	require.Len(t, r.Changes, 3)
	require.Contains(t, r.Changes[1].Diff, "+new")
	plans = 0
	r, err = step.Run(ctx, s, m, options("one"))
	require.NoError(t, err)
	require.Equal(t, 3, plans)
	require.Equal(t, "of the package\nnew\n", m.get(t, "/etc/nfs.conf"))
	require.Len(t, r.Changes, 3)
	_, entries, _ := m.journal(t, "000001.one.install")
	require.Equal(t, []string{"package nfs applied", "file /etc/nfs.conf applied", "restart nfs applied"}, entries)
	_, err = step.Rollback(ctx, m, undoAll())
	require.NoError(t, err)
	require.Equal(t, first, m.tree(t))

	// A package that is in place and still needed would be installed for ever.
	broken := &fake{name: "install", pkg: "nothing", files: nil}
	broken.planned = func() { _ = os.Remove(m.root + "/usr/bin/nothing") }
	_, err = step.Run(ctx, broken, m, options("two"))
	requireFault(t, err, fault.ExitFailed, "package")
	require.ErrorContains(t, err, "is still needed")
	require.Equal(t, first, m.tree(t))
}

func TestLocked(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	s := &fake{name: "configure", line: "new", files: []string{"/etc/x"}}
	other, err := step.Lock(ctx, m, "run other, step configure_st2", 0)
	require.NoError(t, err)
	_, err = step.Run(ctx, s, m, options("one"))
	requireFault(t, err, fault.ExitPreflight, "locked")
	require.ErrorContains(t, err, "run other, step configure_st2")
	require.Equal(t, "(absent)", m.get(t, "/etc/x"))
	require.Empty(t, m.runs(t))
	_, err = step.TryLock(ctx, m, "preflight")
	var held *host.LockedError
	require.ErrorAs(t, err, &held)

	// The wait ends with the context, and with the other's run.
	short, cancel := context.WithCancel(ctx)
	cancel()
	o := options("one")
	o.Wait = time.Minute
	_, err = step.Run(short, s, m, o)
	require.ErrorIs(t, err, context.Canceled)
	other()
	_, err = step.Run(ctx, s, m, o)
	require.NoError(t, err)

	other, err = step.Lock(ctx, m, "run other, step configure_st2", 0)
	require.NoError(t, err)
	_, err = step.Rollback(ctx, m, undoAll())
	requireFault(t, err, fault.ExitPreflight, "locked")
	require.Equal(t, "new\n", m.get(t, "/etc/x"))
	other()
	release, err := step.TryLock(ctx, m, "preflight")
	require.NoError(t, err)
	release()
}

func TestTryLockLeavesNothing(t *testing.T) {
	m := newMachine(t)
	release, err := step.TryLock(t.Context(), m, "preflight")
	require.NoError(t, err)
	release()
	require.NoDirExists(t, m.root+step.StateDir)
}

// A preflight that comes after a killed run must not be the end of its traces.
func TestTryLockTidies(t *testing.T) {
	m := newMachine(t)
	release, err := step.Lock(t.Context(), m, "run one, step configure", 0)
	require.NoError(t, err)
	release()
	const half = step.StateDir + "/owed/.st2.st2ha-0123456789abcdef"
	m.put(t, half, "", 0o600)
	m.put(t, step.StateDir+"/lock", "run one, step configure\n", 0o600)
	release, err = step.TryLock(t.Context(), m, "preflight")
	require.NoError(t, err)
	release()
	require.NoFileExists(t, m.root+half)
}

// What changes between Check and the lock is planned anew.
func TestPlannedUnderTheLock(t *testing.T) {
	m := newMachine(t)
	plans := 0
	s := &fake{name: "configure", line: "new", files: []string{"/etc/x"}}
	s.planned = func() {
		if plans++; plans == 2 {
			m.put(t, "/etc/x", "new\n", 0o644)
		}
	}
	r, err := step.Run(t.Context(), s, m, options("one"))
	require.NoError(t, err)
	require.False(t, r.Changed)
	require.Empty(t, m.runs(t))
}

func TestJournalOfNewer(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	_, err := step.Run(ctx, &fake{name: "configure", line: "new", files: []string{"/etc/x"}}, m, options("one"))
	require.NoError(t, err)
	o := undoAll()
	o.Kinds = step.Kinds{}
	_, err = step.Rollback(ctx, m, o)
	require.ErrorContains(t, err, "newer st2ha")
	require.Equal(t, "new\n", m.get(t, "/etc/x"))
}

// loss is a change that says what its Undo will not bring back.
type loss struct{ step.FileChange }

func (l *loss) Kind() string { return "loss" }

func (l *loss) CheckUndo(_ context.Context, h host.Host) ([]step.Finding, error) {
	return []step.Finding{{Severity: step.Warning, Host: h.Name(), Check: "loss", Message: l.Path}}, nil
}

// What will not come back is said by a dry run, and by the rollback itself;
// not of a change that was never made.
func TestRollbackLoss(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	for _, name := range []string{"/etc/x", "/etc/y"} {
		f := &fake{name: "configure", line: "new", files: []string{name}}
		f.wrap = func(c *step.FileChange) step.Change { return &loss{*c} }
		f.verify = func() error { return nil }
		if name == "/etc/y" {
			m.fail = func(_ int, what string) error {
				if what == "write /etc/y" {
					panic(killed{})
				}
				return nil
			}
		}
		func() {
			defer func() { _ = recover() }()
			_, err := step.Run(ctx, f, m, options("one"))
			require.NoError(t, err)
		}()
	}
	m.fail = nil
	o := undoAll()
	o.Kinds = step.Kinds{"loss": func() step.Change { return &loss{} }}
	for _, dry := range []bool{true, false} {
		o.DryRun = dry
		r, err := step.Rollback(ctx, m, o)
		require.NoError(t, err)
		require.Equal(t, []step.Finding{{Severity: step.Warning, Host: "node", Check: "loss", Message: "/etc/x"}},
			r.Findings)
	}
}

// Whatever a journal holds, it is a clear error with what to do; the other runs are undone, and later steps run.
func TestUnusableJournal(t *testing.T) {
	ctx := t.Context()
	for name, tc := range map[string]struct {
		spoil func(string) string
		want  string
	}{
		"null": {func(string) string { return "null" }, `its state is ""`},
		"empty": {func(string) string { return "" },
			"it is not a journal, or not a whole one: unexpected end"},
		"truncated": {func(s string) string { return s[:len(s)/2] }, "it is not a journal, or not a whole one"},
		"zeros": {func(s string) string { return strings.Repeat("\x00", len(s)) },
			"it is not a journal, or not a whole one"},
		"a null entry": {func(s string) string {
			return strings.Replace(s, `"entries": [`, `"entries": [null,`,
				1)
		}, "entry 1 is empty"},
		"entries no list": {func(s string) string {
			return strings.Replace(s, `"entries": [`, `"entries": 7, "e": [`,
				1)
		}, "it is not a journal"},
		"a foreign kind": {func(s string) string { return strings.Replace(s, `"kind": "file"`, `"kind": "x"`, 1) },
			`change of an unknown kind "x": it was made by a newer st2ha`},
		"a foreign state": {func(s string) string {
			return strings.Replace(s, `"state": "applied"`,
				`"state": "mended"`, 1)
		}, `the state of entry 1 is "mended"`},
		"a foreign journal": {func(s string) string {
			return strings.Replace(s, `"state": "done"`, `"state": "ended"`,
				1)
		}, `its state is "ended"`},
		"no change": {func(s string) string {
			return regexp.MustCompile(`(?s)"change": \{.*?\}`).ReplaceAllString(s, `"change": null`)
		}, `entry 1 is for "/etc/bad" and holds a change of ""`},
		"another's change": {func(s string) string {
			return strings.Replace(s, `"target": "/etc/bad"`,
				`"target": "/etc/passwd"`, 1)
		}, `entry 1 is for "/etc/passwd" and holds a change of "/etc/bad"`},
		"an image elsewhere": {func(s string) string {
			return strings.Replace(s, `"01.image"`,
				`"../../../../etc/shadow"`, 1)
		}, "the before-image of entry 1 is called"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			for _, run := range []string{"older", "bad", "newer"} {
				m.put(t, "/etc/"+run, "old\n", 0o644)
				_, err := step.Run(ctx, &fake{name: "configure", line: run, files: []string{"/etc/" + run}},
					m, options(run))
				require.NoError(t, err)
			}
			const dir = step.StateDir + "/runs/000002.bad.configure"
			whole := m.get(t, dir+"/journal.json")
			spoilt := tc.spoil(whole)
			require.NotEqual(t, whole, spoilt)
			m.put(t, dir+"/journal.json", spoilt, 0o600)

			// A later step runs, also as the one that tidies up after a run that died.
			m.put(t, step.StateDir+"/lock", "run dead, step x", 0o600)
			_, err := step.Run(ctx, &fake{name: "configure", line: "later", files: []string{"/etc/later"}},
				m, options("later"))
			require.NoError(t, err)

			o := undoAll()
			o.DryRun = true
			r, err := step.Rollback(ctx, m, o)
			requireFault(t, err, fault.ExitPreflight, "journal")
			require.Len(t, r.Changes, 3)
			r, err = step.Rollback(ctx, m, undoAll())
			requireFault(t, err, fault.ExitUndoFailed, "journal")
			require.ErrorContains(t, err, "node: journal: run bad: "+dir+"/journal.json: "+tc.want)
			require.Contains(t, r.Error.Hint, "with the before-images in "+dir)
			require.True(t, r.Changed)
			require.Equal(t, "old\n", m.get(t, "/etc/older"))
			require.Equal(t, "old\nbad\n", m.get(t, "/etc/bad"))
			require.Equal(t, "old\n", m.get(t, "/etc/newer"))
			require.Equal(t, "(absent)", m.get(t, "/etc/later"))
			require.NotEmpty(t, m.images(t), "what a person needs is kept")

			// Alone it is the same error, and a run that is whole is undone without one.
			o = undoAll()
			o.Only = "bad"
			_, err = step.Rollback(ctx, m, o)
			requireFault(t, err, fault.ExitPreflight, "journal")
			o.Only = "newer"
			_, err = step.Rollback(ctx, m, o)
			require.NoError(t, err)
			m.put(t, dir+"/journal.json", whole, 0o600)
			_, err = step.Rollback(ctx, m, undoAll())
			require.NoError(t, err)
			require.Equal(t, "old\n", m.get(t, "/etc/bad"))
		})
	}
}

// A journal whose image is lost is no journal that was never written.
func TestImageLost(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t)
	m.put(t, "/etc/x", "old\n", 0o644)
	_, err := step.Run(ctx, &fake{name: "configure", line: "new", files: []string{"/etc/x"}}, m, options("one"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(m.images(t)[0]))
	_, err = step.Rollback(ctx, m, undoAll())
	require.ErrorContains(t, err, "01.image")
}

func TestValidRun(t *testing.T) {
	for _, run := range []string{"a", "65f2c0ffee", step.NewRun(time.Now()), strings.Repeat("x", 64)} {
		require.True(t, step.ValidRun(run), run)
	}
	for _, run := range []string{"", ".", "a.b", "../x", "a b", "a/b", "a\n", "ä", strings.Repeat("x", 65)} {
		require.False(t, step.ValidRun(run), run)
	}
}

// scenario is a join in small: two steps, one of which leaves its restart to
// the other, a package and an activator.
type scenario struct {
	m     *machine
	first string
}

func newScenario(t *testing.T) *scenario {
	m := newMachine(t)
	m.put(t, "/etc/x", "old\n", 0o604)
	m.running = "old\n"
	return &scenario{m, m.tree(t)}
}

func (s *scenario) steps() []*fake {
	return []*fake{
		{name: "install", line: "new", files: []string{"/etc/nfs.conf", "/etc/exports"}, pkg: "nfs"},
		{name: "configure", line: "new", files: []string{"/etc/x", "/etc/y"}, unit: "daemon", late: true},
		{name: "restart", line: "new", files: []string{"/etc/x"}, unit: "daemon"},
	}
}

func (s *scenario) run(t *testing.T, name string) error {
	for _, f := range s.steps() {
		if _, err := step.Run(t.Context(), f, s.m, options(name)); err != nil {
			return err
		}
	}
	return nil
}

func (s *scenario) rollback(t *testing.T) error {
	_, err := step.Rollback(t.Context(), s.m, undoAll())
	return err
}

func (s *scenario) requireFirst(t *testing.T) {
	t.Helper()
	require.Equal(t, s.first, s.m.tree(t))
	require.Equal(t, "old\n", s.m.running)
}

func (s *scenario) requireJoined(t *testing.T) {
	t.Helper()
	require.Equal(t, "old\nnew\n", s.m.get(t, "/etc/x"))
	require.Equal(t, "new\n", s.m.get(t, "/etc/y"))
	require.Equal(t, "of the package\nnew\n", s.m.get(t, "/etc/nfs.conf"))
	require.Equal(t, "old\nnew\n", s.m.running)
	require.Empty(t, s.m.owed(t))
	log := len(s.m.log)
	require.NoError(t, s.run(t, "idle"))
	require.Len(t, s.m.log, log, "a run more changes nothing")
}

// until runs f and lets the process die before its n-th change of the
// machine. It says whether that came.
func (s *scenario) until(t *testing.T, n int, f func() error) (died bool) {
	t.Helper()
	s.m.ops = 0
	s.m.fail = func(op int, _ string) error {
		if op == n {
			s.m.dead = true
			panic(killed{})
		}
		return nil
	}
	defer func() {
		s.m.fail, s.m.dead = nil, false
		switch r := recover(); r.(type) {
		case nil:
		case killed:
			died = true
		default:
			panic(r)
		}
	}()
	require.NoError(t, f())
	return false
}

// The process dies before each change it makes: what it began can be undone,
// and can be brought to its end.
func TestKilled(t *testing.T) {
	t.Parallel()
	nothing := func(*testing.T, *scenario) {}
	joined := func(t *testing.T, s *scenario) { require.NoError(t, s.run(t, "one")) }
	first := func(t *testing.T, s *scenario, n int) {
		t.Helper()
		require.NoError(t, s.rollback(t), "killed before change %d", n)
		s.requireFirst(t)
		require.Empty(t, s.m.owed(t), "killed before change %d", n)
		require.Empty(t, s.m.images(t), "killed before change %d", n)
	}
	again := func(t *testing.T, s *scenario, n int) {
		t.Helper()
		require.NoError(t, s.run(t, "two"), "killed before change %d", n)
		s.requireJoined(t)
	}
	for _, c := range []struct {
		name    string
		prepare func(*testing.T, *scenario)
		dies    func(*testing.T, *scenario) error
		kills   int // at least
		then    []func(*testing.T, *scenario, int)
	}{
		{"then rolled back", nothing, func(t *testing.T, s *scenario) error { return s.run(t, "one") }, 30,
			[]func(*testing.T, *scenario, int){first, again, first}},
		{"then run again", nothing, func(t *testing.T, s *scenario) error { return s.run(t, "one") }, 30,
			[]func(*testing.T, *scenario, int){again, first}},
		{"in the rollback", joined, func(t *testing.T, s *scenario) error { return s.rollback(t) }, 20,
			[]func(*testing.T, *scenario, int){first}},
		{"in the rollback, then run again", joined, func(t *testing.T, s *scenario) error { return s.rollback(t) }, 20,
			[]func(*testing.T, *scenario, int){again, first}},
		{"in the rollback of what was never restarted, then run again", func(t *testing.T, s *scenario) {
			_, err := step.Run(t.Context(), s.steps()[1], s.m, options("one"))
			require.NoError(t, err)
		}, func(t *testing.T, s *scenario) error { return s.rollback(t) }, 10, []func(*testing.T,
			*scenario, int){again}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for n := 1; ; n++ {
				s := newScenario(t)
				c.prepare(t, s)
				died := s.until(t, n, func() error { return c.dies(t, s) })
				for _, f := range c.then {
					f(t, s, n)
				}
				if !died {
					t.Logf("killed before each of %d changes", n-1)
					require.GreaterOrEqual(t, n-1, c.kills)
					return
				}
			}
		})
	}
}

// One change fails, once or from then on.
func TestFailingChange(t *testing.T) {
	t.Parallel()
	t.Run("once", func(t *testing.T) {
		t.Parallel()
		for n := 1; ; n++ {
			s := newScenario(t)
			failed := ""
			s.m.fail = func(op int, what string) error {
				if op == n {
					failed = what
					return syscall.EIO
				}
				return nil
			}
			err := s.run(t, "one")
			s.m.fail = nil
			if failed == "" {
				require.NoError(t, err)
				return
			}
			code, _ := exit(err)
			require.Equal(t, fault.ExitFailed, code, "%d: %s: %v", n, failed, err)
			// The steps before the one that failed are the workflow's to undo.
			require.NoError(t, s.rollback(t), "%d: %s", n, failed)
			require.Equal(t, "old\n", s.m.running, "%d: %s: %v", n, failed, err)
			s.requireFirst(t)
		}
	})
	t.Run("from then on", func(t *testing.T) {
		t.Parallel()
		for n := 1; ; n++ {
			s := newScenario(t)
			failed := ""
			s.m.fail = func(op int, what string) error {
				if op >= n {
					failed = what
					return syscall.EIO
				}
				return nil
			}
			err := s.run(t, "one")
			s.m.fail = nil
			if failed == "" {
				require.NoError(t, err)
				return
			}
			code, _ := exit(err)
			require.Contains(t, []int{fault.ExitFailed, fault.ExitUndoFailed}, code, "%d: %v", n, err)
			require.NoError(t, s.rollback(t), "%d: %s", n, failed)
			require.Equal(t, "old\n", s.m.running, "%d: %s: %v", n, failed, err)
			s.requireFirst(t)
		}
	})
}

// A step that fails leaves the machine as it found it, whatever change failed.
func TestFailingStepIsUndone(t *testing.T) {
	t.Parallel()
	for n := 1; ; n++ {
		s := newScenario(t)
		failed := ""
		s.m.fail = func(op int, what string) error {
			if op == n {
				failed = what
				return syscall.EIO
			}
			return nil
		}
		f := &fake{name: "install", line: "new", files: []string{"/etc/x", "/etc/nfs.conf", "/etc/y"},
			pkg: "nfs", unit: "daemon"}
		r, err := step.Run(t.Context(), f, s.m, options("one"))
		if failed == "" {
			require.NoError(t, err)
			return
		}
		code, _ := exit(err)
		require.Equal(t, fault.ExitFailed, code, "%d: %s: %v", n, failed, err)
		require.False(t, r.Changed)
		s.requireFirst(t)
	}
}

func TestMasker(t *testing.T) {
	m := step.NewMasker(secret, "")
	for text, want := range map[string]string{
		"plain " + secret + ".":                           "plain ********.",
		"amqp://st2:s3%2Fc%22r%40t%20%24x@10.0.0.1:5672/": "amqp://st2:********@10.0.0.1:5672/",
		"s3%2Fc%22r%40t%20%24x":                           "********", // as MessagingURL writes it
		"s3%2Fc%22r%40t+%24x":                             "********", // as in a query
		`s3/c"r@t $$x`:                                    "********", // as oslo.config escapes it
		fmt.Sprintf("%q", secret):                         `"********"`,
		"mongodb://u:pw@h1,h2/st2":                        "mongodb://u:********@h1,h2/st2",
		"mongodb://u:p@w@h1/st2":                          "mongodb://u:********@h1/st2",
		"amqp://u@h/":                                     "amqp://u@h/",
		"http://h:80/a@b":                                 "http://h:80/a@b",
		"-password = x":                                   "-password = ********",
		"+ password=x y":                                  "+ password=********",
		"  db_password: x":                                "  db_password: ********",
		"PASSWORD = x\nkeep = y":                          "PASSWORD = ********\nkeep = y",
		"api_key = x\ntoken=y":                            "api_key = ********\ntoken=********",
		"password =\nkeep = y":                            "password =\nkeep = y",
		"the password is wrong":                           "the password is wrong",
		"nothing":                                         "nothing",
	} {
		require.Equal(t, want, m.Mask(text), text)
	}
	quoted, err := json.Marshal(secret)
	require.NoError(t, err)
	require.Equal(t, `"********"`, m.Mask(string(quoted)))
	require.Equal(t, "x", step.NewMasker().Mask("x"))
}
