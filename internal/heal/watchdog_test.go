package heal_test

import (
	"context"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

// init1 is a host whose systemd knows one unit once its file is there.
type init1 struct {
	*host.Local
	root            string
	active, enabled bool
	known           bool // the unit, since a reload
	ran             []string
}

func (s *init1) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	line := strings.Join(argv, " ")
	s.ran = append(s.ran, line)
	inactive := &host.ExitError{Program: "systemctl", Code: 3}
	_, err := os.Stat(s.root + "/etc/systemd/system/st2ha-watchdog.service")
	switch {
	case strings.Contains(line, "daemon-reload"):
		s.known = err == nil
	case strings.Contains(line, "--property=LoadState"):
		if !s.known {
			return []byte("LoadState=not-found\nNeedDaemonReload=no\n"), nil
		}
		return []byte("LoadState=loaded\nNeedDaemonReload=no\n"), nil
	case strings.Contains(line, "enable --now"):
		if !s.known {
			return nil, inactive
		}
		s.active, s.enabled = true, true
	case strings.Contains(line, " stop "):
		s.active = false
	case strings.Contains(line, " disable "):
		s.enabled = false
	case strings.Contains(line, "--property=ActiveState"):
		state, file := "ActiveState=failed\nSubState=failed\n", "UnitFileState=disabled\n"
		if s.active {
			state = "ActiveState=active\nSubState=running\n"
		}
		if s.enabled {
			file = "UnitFileState=enabled\n"
		}
		return []byte(state + file), nil
	}
	return nil, nil
}

func options(run string) step.Options {
	return step.Options{Run: run, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Mask: step.NewMasker(),
		Started: time.Now()}
}

func TestInstallWatchdog(t *testing.T) {
	local, root := node(t)
	require.NoError(t, os.MkdirAll(root+"/etc/systemd/system", 0o755))
	require.NoError(t, os.MkdirAll(root+"/usr/local/lib", 0o755))
	h := &init1{Local: local, root: root}
	files := func() []string {
		var found []string
		for _, dir := range []string{"/etc", "/usr"} {
			require.NoError(t, filepath.WalkDir(root+dir, func(path string, d fs.DirEntry, err error) error {
				found = append(found, path)
				return err
			}))
		}
		return found
	}
	before := files()
	program := []byte("\x7fELF\x00the first")
	install := func(run string) step.Result {
		t.Helper()
		r, err := step.Run(t.Context(), &heal.InstallWatchdog{Program: program}, h, options(run))
		require.NoError(t, err)
		return r
	}
	r := install("first")
	var kinds []string
	for _, c := range r.Changes {
		kinds = append(kinds, c.Kind)
		require.NotContains(t, c.Diff, "ELF")
	}
	require.Equal(t, []string{"directory", "file", "file", "daemon_reload", "start"}, kinds)
	info, err := os.Stat(root + "/usr/local/lib/st2ha/st2ha-watch")
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o755), info.Mode().Perm())
	require.False(t, install("again").Changed)

	// A run that was killed before its reload left the files as they shall be.
	h.known, h.active, h.enabled = false, false, false
	kinds = nil
	for _, c := range install("after a kill").Changes {
		kinds = append(kinds, c.Kind)
	}
	require.Equal(t, []string{"daemon_reload", "start"}, kinds)

	// A newer program is run, and the older one is what a rollback brings back.
	program = []byte("\x7fELF\x00the second")
	r = install("second")
	require.Len(t, r.Changes, 2)
	require.Equal(t, "systemctl restart st2ha-watchdog.service", r.Changes[1].Diff)
	kindsOf := step.Kinds{
		"file": func() step.Change { return &step.FileChange{} }, "directory": func() step.Change { return &step.MakeDir{} },
		"daemon_reload": func() step.Change { return &service.Reload{} },
		"start":         func() step.Change { return &service.Start{} },
		"restart":       func() step.Change { return &service.Restart{} },
	}
	undo := func(only string) {
		t.Helper()
		_, err := step.Rollback(t.Context(), h, step.RollbackOptions{Options: options("undo"), Only: only, Kinds: kindsOf})
		require.NoError(t, err)
	}
	undo("second")
	data, err := os.ReadFile(root + "/usr/local/lib/st2ha/st2ha-watch")
	require.NoError(t, err)
	require.Equal(t, "\x7fELF\x00the first", string(data))
	undo("")
	require.Equal(t, before, files())
	require.False(t, h.active || h.enabled)
}

// systemd takes the unit, and finds no fault with it.
func TestUnitFile(t *testing.T) {
	dir := t.TempDir()
	data, err := os.ReadFile("st2ha-watchdog.service")
	require.NoError(t, err)
	program := filepath.Join(dir, "st2ha-watch")
	require.NoError(t, os.WriteFile(program, nil, 0o755))
	unit := filepath.Join(dir, "st2ha-watchdog.service")
	require.NoError(t, os.WriteFile(unit, []byte(strings.ReplaceAll(string(data), "/usr/local/lib/st2ha/st2ha-watch",
		program)), 0o644))
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput()
	require.NoError(t, err, string(out))
	require.NotContains(t, string(out), "st2ha-watchdog")
	for _, option := range []string{"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectKernelModules",
		"ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths"} {
		require.NotContains(t, string(data), option+"=", "it would give it mounts of its own, and hide the host's")
	}
}

func TestSetMaintenance(t *testing.T) {
	h, root := node(t)
	always := func(context.Context, host.Host, step.Change) (*step.Finding, error) { return nil, nil }
	set := func(to heal.Maintenance) step.Result {
		t.Helper()
		to.Since = noon
		r, err := step.Heal(t.Context(), &heal.SetMaintenance{To: to}, h, options("x"), always)
		require.NoError(t, err)
		return r
	}
	require.False(t, set(heal.Maintenance{}).Changed)
	on := heal.Maintenance{On: true, Until: noon.Add(time.Hour), Reason: "new disk"}
	r := set(on)
	require.Equal(t, "- no maintenance\n+ maintenance is on until 2026-03-01T13:00:00Z (new disk)\n", r.Changes[0].Diff)
	require.False(t, set(on).Changed)
	require.True(t, set(heal.Maintenance{On: true}).Changed, "without an end now")
	require.FileExists(t, root+heal.MaintenanceFile)
	require.True(t, set(heal.Maintenance{}).Changed)
	require.NoFileExists(t, root+heal.MaintenanceFile)
	names, err := os.ReadDir(root + "/var/lib/st2ha/runs")
	require.NoError(t, err)
	require.Empty(t, names, "it is no run that a rollback undoes")
}
