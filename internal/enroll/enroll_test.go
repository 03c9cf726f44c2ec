package enroll_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"st2ha/internal/confedit"
	"st2ha/internal/enroll"
	"st2ha/internal/host"
	"st2ha/internal/host/hosttest"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

// machine is a node below a temporary root. Its users and programs are few.
type machine struct {
	*host.Local
	root    string
	users   string // passwd(5)
	version string // of its StackStorm
	sudo    func() bool
	ran     []string
}

func newMachine(t *testing.T, name string) *machine {
	t.Helper()
	testenv.NeedsRoot(t) // files get owners
	m := &machine{root: t.TempDir(), version: "3.9.0", users: "stanley:x:0:0::/home/stanley:/bin/bash\n"}
	m.Local = host.NewLocalAt(name, m.root)
	for _, dir := range []string{"/etc/ssh", "/etc/sudoers.d", "/etc/st2", "/home/stanley", "/var/lib"} {
		require.NoError(t, os.MkdirAll(m.root+dir, 0o755))
	}
	m.write(t, "/etc/st2/st2.conf", "[system_user]\nuser = stanley\nssh_key_file = /home/stanley/.ssh/stanley_rsa\n")
	_, key := hosttest.NewKey(t, filepath.Join(m.root, "key"))
	m.write(t, "/etc/ssh/ssh_host_ed25519_key.pub", string(ssh.MarshalAuthorizedKey(key.PublicKey())))
	m.sudo = func() bool { return strings.Contains(m.read(t, "/etc/sudoers.d/st2"), "NOPASSWD") }
	return m
}

func (m *machine) write(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(m.root+path), 0o755))
	require.NoError(t, os.WriteFile(m.root+path, []byte(text), 0o600))
}

func (m *machine) read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(m.root + path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(data)
}

// ReadDir has StackStorm's Python where there is a version of it.
func (m *machine) ReadDir(ctx context.Context, name string) ([]string, error) {
	if name == "/opt/stackstorm/st2/lib" {
		if m.version == "" {
			return nil, fs.ErrNotExist
		}
		file := m.root + name + "/python3.11/site-packages/st2common/__init__.py"
		_ = os.MkdirAll(filepath.Dir(file), 0o755)
		_ = os.WriteFile(file, []byte("__version__ = '"+m.version+"'\n"), 0o600)
	}
	return m.Local.ReadDir(ctx, name)
}

func (m *machine) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	line := strings.Join(argv, " ")
	m.ran = append(m.ran, line)
	failed := func(code int) ([]byte, error) { return nil, &host.ExitError{Program: argv[0], Code: code} }
	switch argv[0] {
	case "getent":
		for user := range strings.Lines(m.users) {
			if strings.HasPrefix(user, argv[2]+":") {
				return []byte(user), nil
			}
		}
		return failed(2)
	case "useradd":
		m.users = "stanley:x:0:0:" + argv[len(argv)-2] + ":/home/stanley:/bin/bash\n"
		return nil, os.MkdirAll(m.root+"/home/stanley", 0o700)
	case "userdel":
		m.users = ""
		if strings.Contains(line, "--remove") {
			return nil, os.Remove(m.root + "/home/stanley") // what is in it would have been left behind
		}
		return nil, nil
	case "runuser":
		if m.sudo() {
			return nil, nil
		}
		return failed(1)
	}
	return failed(127)
}

// files are all of a machine's, with mode and contents, but for the journal.
func (m *machine) files(t *testing.T) string {
	t.Helper()
	var all []string
	require.NoError(t, filepath.Walk(m.root, func(path string, info os.FileInfo, err error) error {
		name := strings.TrimPrefix(path, m.root)
		if err == nil && !strings.HasPrefix(name, "/var/lib/") && !strings.HasPrefix(name, "/opt") && !info.IsDir() {
			all = append(all, name+" "+info.Mode().String()+" "+m.read(t, name))
		}
		return err
	}))
	return strings.Join(all, "\n") + m.users
}

func options(run string) step.Options {
	return step.Options{Run: run, Log: slog.New(slog.DiscardHandler), Mask: step.NewMasker(), Started: time.Now()}
}

// primary has a key, and lets it in, as the installer leaves it.
func primary(t *testing.T) (*machine, *enroll.System) {
	t.Helper()
	m := newMachine(t, "192.0.2.1")
	m.write(t, "/home/stanley/.ssh/x", "")
	_, key := hosttest.NewKey(t, m.root+"/home/stanley/.ssh/stanley_rsa")
	m.write(t, "/home/stanley/.ssh/stanley_rsa.pub", string(ssh.MarshalAuthorizedKey(key.PublicKey())))
	m.write(t, "/home/stanley/.ssh/authorized_keys", string(ssh.MarshalAuthorizedKey(key.PublicKey())))
	m.write(t, "/etc/sudoers.d/st2", "stanley    ALL=(ALL)       NOPASSWD: SETENV: ALL\n")
	system, err := enroll.ReadSystem(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, "3.9.0", system.Version)
	return m, system
}

func peers(t *testing.T, all ...*machine) (list []enroll.Peer) {
	t.Helper()
	for _, m := range all {
		keys, err := enroll.HostKeys(t.Context(), m)
		require.NoError(t, err)
		list = append(list, enroll.Peer{Name: m.Name(), Keys: keys})
	}
	return list
}

func TestAdmit(t *testing.T) {
	p, system := primary(t)
	const own = "/home/stanley/.ssh/stanley_rsa"
	for name, prepare := range map[string]func(m *machine){
		"as installed": func(m *machine) { m.write(t, own, "its own"); m.write(t, "/etc/sudoers.d/st2", "# mine") },
		"no account":   func(m *machine) { m.users = ""; require.NoError(t, os.Remove(m.root+"/home/stanley")) },
		"home is left": func(m *machine) { m.users = ""; m.write(t, "/home/stanley/notes", "kept") },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, "192.0.2.2")
			prepare(m)
			before := m.files(t)
			admit := &enroll.Admit{System: system, Peers: peers(t, m, p)}
			dry := options("dry")
			dry.DryRun = true
			r, err := step.Run(t.Context(), admit, m, dry)
			require.NoError(t, err)
			require.NotEmpty(t, r.Changes)
			require.Equal(t, before, m.files(t))

			r, err = step.Run(t.Context(), admit, m, options("r1"))
			require.NoError(t, err)
			require.True(t, r.Changed)
			for _, c := range r.Changes {
				require.NotContains(t, c.Diff, "PRIVATE", c.Target)
			}
			require.Equal(t, string(system.Key), m.read(t, own))
			require.Equal(t, string(system.Public), m.read(t, own+".pub"))
			require.Contains(t, m.read(t, "/home/stanley/.ssh/authorized_keys"), strings.Fields(string(system.Public))[1])
			for _, peer := range admit.Peers {
				require.Contains(t, m.read(t, enroll.KnownHosts), peer.Name+" "+peer.Keys[0].Type+" "+peer.Keys[0].Blob)
			}
			info, err := os.Stat(m.root + "/etc/sudoers.d/st2")
			require.NoError(t, err)
			if name == "as installed" {
				require.Len(t, r.Findings, 1)
				require.Equal(t, "own_key", r.Findings[0].Check)
				require.Equal(t, "# mine\nstanley    ALL=(ALL)       NOPASSWD: SETENV: ALL\n", m.read(t, "/etc/sudoers.d/st2"))
			} else {
				require.Equal(t, os.FileMode(0o440), info.Mode())
			}

			again, err := step.Run(t.Context(), admit, m, options("r2"))
			require.NoError(t, err)
			require.False(t, again.Changed, "%v", again.Changes)
			kinds := step.Kinds{"file": func() step.Change { return &step.FileChange{} },
				"directory": func() step.Change { return &step.MakeDir{} }}
			for _, empty := range enroll.Kinds() {
				kinds[empty().Kind()] = empty
			}
			_, err = step.Rollback(t.Context(), m, step.RollbackOptions{Options: options("undo"), Kinds: kinds})
			require.NoError(t, err)
			require.Equal(t, before, m.files(t))
		})
	}
	// The primary has all but the host keys.
	r, err := step.Run(t.Context(), &enroll.Admit{System: system, Peers: peers(t, p)}, p, options("r1"))
	require.NoError(t, err)
	require.Len(t, r.Changes, 1)
	require.Equal(t, enroll.KnownHosts, r.Changes[0].Target)
}

func TestAdmitRefuses(t *testing.T) {
	p, system := primary(t)
	for want, prepare := range map[string]func(m *machine){
		"stackstorm: StackStorm is not installed; the primary has 3.9.0": func(m *machine) { m.version = "" },
		"version: StackStorm is 3.8.1 here and 3.9.0 on the primary":     func(m *machine) { m.version = "3.8.1" },
		"has no usable entry in passwd":                                  func(m *machine) { m.users = "stanley:x\n" },
		enroll.KnownHosts + ": line 1: ": func(m *machine) {
			m.write(t, enroll.KnownHosts, "x\n")
		},
	} {
		m := newMachine(t, "192.0.2.2")
		prepare(m)
		before := m.files(t)
		r, err := step.Run(t.Context(), &enroll.Admit{System: system, Peers: peers(t, m, p)}, m, options("r1"))
		require.ErrorContains(t, err, want)
		require.Equal(t, before, m.files(t))
		for _, f := range r.Findings {
			require.Contains(t, f.Fix, "https://stackstorm.com/packages/install.sh")
			require.Contains(t, f.Fix, "--version=3.9.0")
		}
	}
	// sudo that does not heed the file is found, and what was written taken back.
	m := newMachine(t, "192.0.2.2")
	m.sudo = func() bool { return false }
	before := m.files(t)
	_, err := step.Run(t.Context(), &enroll.Admit{System: system, Peers: peers(t, m, p)}, m, options("r1"))
	require.ErrorContains(t, err, "sudo does not give stanley root without a password")
	require.Equal(t, before, m.files(t))
}

func TestReadSystem(t *testing.T) {
	m, _ := primary(t)
	m.write(t, "/etc/st2/st2.conf", "[system_user]\nuser = -o\n")
	_, err := enroll.ReadSystem(t.Context(), m)
	require.ErrorContains(t, err, `the user "-o"`)
	m.write(t, "/etc/st2/st2.conf", "[system_user]\nssh_key_file = /root/none\n")
	_, err = enroll.ReadSystem(t.Context(), m)
	require.ErrorContains(t, err, "/root/none, the key of stanley, does not exist")
	m.version = ""
	_, err = enroll.ReadSystem(t.Context(), m)
	require.ErrorContains(t, err, "StackStorm is not installed")
	m.version = "3.9.0"
	m.write(t, "/root/none", "secret words")
	_, err = enroll.ReadSystem(t.Context(), m)
	require.ErrorContains(t, err, "/root/none is no private key")
	require.NotContains(t, err.Error(), "secret words")
	require.NoError(t, os.Remove(m.root+"/etc/ssh/ssh_host_ed25519_key.pub"))
	_, err = enroll.HostKeys(t.Context(), m)
	require.ErrorContains(t, err, "no file ssh_host_*_key.pub")
}

// An account that somebody else has made is never removed.
func TestAccount(t *testing.T) {
	m := newMachine(t, "192.0.2.2")
	require.NoError(t, (&enroll.Account{User: "stanley"}).Undo(t.Context(), m))
	require.NotContains(t, strings.Join(m.ran, "\n"), "userdel")
	require.NotEmpty(t, m.users)
}

// proving is a host that can log in to some.
type proving struct {
	*machine
	refused string
}

func (p *proving) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	line := strings.Join(argv, " ")
	p.ran = append(p.ran, line)
	if p.refused != "" && strings.Contains(line, " -- "+p.refused+" sudo -n true") {
		return nil, &host.ExitError{Program: "ssh", Code: 255, Stderr: "Permission denied (publickey)."}
	}
	return nil, nil
}

func TestProve(t *testing.T) {
	system := &enroll.System{User: "stanley", KeyFile: "/k"}
	all := []*proving{{machine: newMachine(t, "a")}, {machine: newMachine(t, "b")}, {machine: newMachine(t, "c")}}
	hosts := []host.Host{all[0], all[1], all[2]}
	require.NoError(t, enroll.Prove(t.Context(), system, 22, hosts))
	for _, p := range all {
		require.Len(t, p.ran, 2)
		for _, line := range p.ran {
			require.NotContains(t, line, " -- "+p.Name()+" ")
			require.Contains(t, line, "StrictHostKeyChecking=yes")
		}
	}
	all[1].refused = "c"
	require.ErrorContains(t, enroll.Prove(t.Context(), system, 22, hosts), "from b log in to c as stanley: ")
}

func TestSecretDiff(t *testing.T) {
	edit := step.EditFile(host.File{Path: "/k", Data: []byte("old")}, true, []byte("new"))
	edit.Secret = true
	require.NotContains(t, edit.Diff(), "new")
	require.False(t, bytes.Contains([]byte(edit.Diff()), []byte("old")))
	_, err := confedit.ParsePublicKey("x")
	require.Error(t, err)
}
