package service_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/service"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

// machine is a host below a temporary root whose programs are canned.
type machine struct {
	*host.Local
	root string
	ran  []string
	run  func(argv string) (string, error)
}

func (m *machine) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	line := strings.Join(argv, " ")
	m.ran = append(m.ran, line)
	if m.run == nil {
		return nil, nil
	}
	out, err := m.run(line)
	return []byte(out), err
}

func newMachine(t *testing.T, answer string, err error) *machine {
	t.Helper()
	m := &machine{root: t.TempDir(), run: func(string) (string, error) { return answer, err }}
	m.Local = host.NewLocalAt("node", m.root)
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/var/lib"} {
		require.NoError(t, os.MkdirAll(m.root+dir, 0o755))
	}
	return m
}

var status3 = &host.ExitError{Program: "systemctl", Code: 3}

func TestStates(t *testing.T) {
	ctx := t.Context()
	for _, tc := range []struct {
		err  error
		want bool
		fail bool
	}{{nil, true, false}, {status3, false, false}, {errors.New("gone"), false, true}} {
		m := newMachine(t, "", tc.err)
		active, err := service.IsActive(ctx, m, "a.service")
		require.Equal(t, tc.fail, err != nil)
		require.Equal(t, tc.want, active)
	}
	_, err := service.Inactive(ctx, newMachine(t, "ActiveState=active\n\nActiveState=active\n", nil), "a")
	require.ErrorContains(t, err, "answered for 2 of 1 units")
	first, err := service.First(ctx, newMachine(t, "LoadState=not-found\n\nLoadState=loaded\n", nil),
		"mongod", "mongodb")
	require.NoError(t, err)
	require.Equal(t, "mongodb", first)
	first, err = service.First(ctx, newMachine(t, "LoadState=not-found\n", nil), "mongod")
	require.NoError(t, err)
	require.Empty(t, first)
}

func TestAwait(t *testing.T) {
	m := newMachine(t, "ActiveState=active\nSubState=running\n\nActiveState=activating\nSubState=auto-restart\n", nil)
	down, err := service.Inactive(t.Context(), m, "a", "b")
	require.NoError(t, err)
	require.Equal(t, []string{"b is activating/auto-restart"}, down)

	// One that is not enabled, or not there, is not waited for.
	const starting = "LoadState=loaded\nUnitFileState=enabled\nActiveState=activating\nSubState=auto-restart\n"
	const others = "\nLoadState=not-found\nUnitFileState=\nActiveState=inactive\nSubState=dead\n" +
		"\nLoadState=loaded\nUnitFileState=disabled\nActiveState=inactive\nSubState=dead\n"
	m = newMachine(t, starting+others, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = service.AwaitEnabled(ctx, m, "a", "b", "c")
	require.Equal(t, "inactive", fault.Of(err).Code)
	require.ErrorContains(t, err, "node: a is activating/auto-restart")
	require.NotContains(t, err.Error(), ",")
	// The time may be over while systemctl is being asked.
	short, end := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer end()
	m.ran = nil
	m.run = func(string) (string, error) {
		if len(m.ran) < 2 {
			return starting + others, nil
		}
		<-short.Done()
		return "", short.Err()
	}
	_, err = service.AwaitEnabled(short, m, "a", "b", "c")
	require.Equal(t, "inactive", fault.Of(err).Code, err)
	require.ErrorContains(t, err, "node: a is activating/auto-restart")
	require.NotEmpty(t, fault.Of(err).Hint)
	m.run = func(string) (string, error) {
		if len(m.ran) < 3 {
			return starting + others, nil
		}
		return strings.Replace(starting, "activating", "active", 1) + others, nil
	}
	m.ran = nil
	enabled, err := service.AwaitEnabled(t.Context(), m, "a", "b", "c")
	require.NoError(t, err)
	require.Equal(t, 1, enabled)
	require.Len(t, m.ran, 3)
	m.run = func(string) (string, error) { return "", status3 }
	_, err = service.AwaitEnabled(t.Context(), m, "a")
	require.ErrorContains(t, err, "state of a")
}

func TestStart(t *testing.T) {
	ctx := t.Context()
	var s *service.Start
	m := newMachine(t, "", nil)
	for state, want := range map[string][]string{
		"ActiveState=active\nUnitFileState=enabled\n":   nil,
		"ActiveState=active\nUnitFileState=static\n":    nil,
		"ActiveState=inactive\nUnitFileState=enabled\n": {"systemctl stop a.service"},
		"ActiveState=active\nUnitFileState=disabled\n":  {"systemctl disable a.service"},
		"ActiveState=active\nUnitFileState=linked\n":    {"systemctl disable a.service"},
		"ActiveState=failed\nUnitFileState=disabled\n": {"systemctl disable a.service",
			"systemctl stop a.service"},
		"ActiveState=inactive\nUnitFileState=\n": {"systemctl disable a.service",
			"systemctl stop a.service"},
		"ActiveState=deactivating\nUnitFileState=masked\n": {"systemctl disable a.service",
			"systemctl stop a.service"},
		"ActiveState=inactive\nUnitFileState=linked-runtime\n": {"systemctl disable a.service",
			"systemctl stop a.service"},
	} {
		m.run = func(argv string) (string, error) { return state, nil }
		var err error
		s, err = service.PlanStart(ctx, m, "a.service")
		if want == nil {
			require.NoError(t, err)
			require.Nil(t, s)
			continue
		}
		require.NoError(t, err)
		require.NotNil(t, s)
		m.ran = nil
		require.NoError(t, s.Apply(ctx, m))
		require.Equal(t, []string{"systemctl enable --now a.service"}, m.ran)
		m.ran = nil
		require.NoError(t, s.Undo(ctx, m))
		slices.Sort(m.ran)
		require.Equal(t, want, m.ran)
	}
	s = &service.Start{Unit: "a.service"}
	m.run = func(string) (string, error) { return "", status3 }
	require.Equal(t, "start", fault.Of(s.Apply(ctx, m)).Code)
	require.Error(t, s.Undo(ctx, m))
}

// A restart that took place is no longer owed; one that failed still is.
func TestRestart(t *testing.T) {
	testenv.NeedsRoot(t)
	ctx := t.Context()
	m := newMachine(t, "", status3)
	release, err := step.Lock(ctx, m, "x", 0)
	require.NoError(t, err)
	defer release()
	r := &service.Restart{Unit: "a.service"}
	require.NoError(t, step.Owe(ctx, m, r.Owes()))
	require.Equal(t, "restart", fault.Of(r.Apply(ctx, m)).Code)
	require.Equal(t, []string{"systemctl reset-failed a.service", "systemctl restart a.service"}, m.ran[len(m.ran)-2:])
	owed, err := step.Owed(ctx, m, "a.service")
	require.NoError(t, err)
	require.True(t, owed)
	m.run = nil
	require.NoError(t, r.Apply(ctx, m))
	owed, err = step.Owed(ctx, m, "a.service")
	require.NoError(t, err)
	require.False(t, owed)
}

func TestPackage(t *testing.T) {
	ctx := t.Context()
	names := service.Package{Debian: "nfs-common", RedHat: "nfs-utils"}
	plan := func(m *machine) *service.Package {
		p, err := service.PlanPackage(ctx, m, names, "/usr/sbin/mount.nfs", "/sbin/mount.nfs")
		require.NoError(t, err)
		m.ran = nil
		return p
	}
	with := func(manager string) *machine {
		m := newMachine(t, "", nil)
		require.NoError(t, os.WriteFile(m.root+"/usr/bin/"+manager, nil, 0o755))
		return m
	}

	m := newMachine(t, "", nil)
	err := plan(m).Apply(ctx, m)
	require.Equal(t, "package_manager", fault.Of(err).Code)
	require.NoError(t, os.WriteFile(m.root+"/usr/sbin/mount.nfs", nil, 0o755))
	require.Nil(t, plan(m), "it is there")

	for manager, lines := range map[string][]string{
		"dnf": {"dnf install --assumeyes --quiet nfs-utils", "dnf makecache --quiet",
			"dnf remove --assumeyes --quiet nfs-utils"},
		"apt-get": {"env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet " +
			"--option=DPkg::Lock::Timeout=120 --no-install-recommends nfs-common",
			"env DEBIAN_FRONTEND=noninteractive apt-get update --yes --quiet --option=DPkg::Lock::Timeout=120",
			"env DEBIAN_FRONTEND=noninteractive apt-get purge --yes --quiet --option=DPkg::Lock::Timeout=120 nfs-common"},
	} {
		m := with(manager)
		p := plan(m)
		require.NoError(t, p.Apply(ctx, m))
		require.NoError(t, p.Undo(ctx, m))
		require.Equal(t, []string{lines[0], lines[2]}, m.ran)

		// Old lists are renewed, once.
		m.ran = nil
		m.run = func(argv string) (string, error) {
			if strings.Contains(argv, "install") && len(m.ran) < 2 {
				return "", status3
			}
			return "", nil
		}
		require.NoError(t, p.Apply(ctx, m))
		require.Equal(t, []string{lines[0], lines[1], lines[0]}, m.ran)
		m.ran = nil
		m.run = func(string) (string, error) { return "", status3 }
		require.Equal(t, "package", fault.Of(p.Apply(ctx, m)).Code)
		require.Error(t, p.Undo(ctx, m))
	}
}

// What came with a package goes with it; what was there before, or is needed, stays.
func TestPackageCompany(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t, "", nil)
	require.NoError(t, os.WriteFile(m.root+"/usr/bin/apt-get", nil, 0o755))
	m.run = func(argv string) (string, error) {
		switch {
		case strings.HasPrefix(argv, "dpkg-query"):
			return "ii  bash\nii  keyutils\nrc  rpcbind\n", nil
		case strings.Contains(argv, "--simulate"):
			return "Reading package lists...\n  nfs-kernel-server*\nPurg nfs-kernel-server [1:2.6.2-4]\n" +
				"Purg nfs-common [1:2.6.2-4]\n" +
				"Purg keyutils [1.6.3-2]\nPurg rpcbind [1.2.6]\n", nil
		}
		return "", nil
	}
	p, err := service.PlanPackage(ctx, m, service.Package{Debian: "nfs-kernel-server"}, "/usr/sbin/exportfs")
	require.NoError(t, err)
	require.Equal(t, "bash\nkeyutils\n", string(p.Image()))
	back := &service.Package{Debian: "nfs-kernel-server"} // as the journal gives it
	back.SetImage(p.Image())
	m.ran = nil
	require.NoError(t, back.Undo(ctx, m))
	require.Len(t, m.ran, 2)
	require.Contains(t, m.ran[1],
		"apt-get purge --yes --quiet --option=DPkg::Lock::Timeout=120 nfs-kernel-server nfs-common rpcbind")
}
