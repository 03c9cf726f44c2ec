package heal_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/owner"
	"st2ha/internal/service"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// sharing is a node whose systemd has the agent once its unit is there and read, and StackStorm's two services.
type sharing struct {
	*host.Local
	root          string
	known, active bool
	command       map[string]string // of the services
	disabled      map[string]bool
	ran           []string
}

func newSharing(t *testing.T, conf string) *sharing {
	local, root := node(t)
	for _, dir := range []string{"/etc/systemd/system", "/usr/local/lib", "/etc/st2"} {
		require.NoError(t, os.MkdirAll(root+dir, 0o755))
	}
	require.NoError(t, os.WriteFile(root+stackstorm.ConfPath, []byte(conf), 0o640))
	s := &sharing{Local: local, root: root, command: map[string]string{}, disabled: map[string]bool{}}
	for _, unit := range []string{stackstorm.SensorsUnit, stackstorm.TimersUnit} {
		s.command[unit] = owner.Command(unit)
	}
	return s
}

func (s *sharing) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	line := strings.Join(argv, " ")
	s.ran = append(s.ran, line)
	unit := argv[len(argv)-1]
	switch _, err := os.Stat(s.root + "/etc/systemd/system/" + owner.AgentUnit); {
	case argv[0] == "uname":
		return []byte("x86_64\n"), nil
	case strings.Contains(line, "daemon-reload"):
		s.known = err == nil
	case strings.Contains(line, "--property=LoadState,UnitFileState"):
		var blocks []string
		for _, unit := range argv[3:] {
			blocks = append(blocks, "LoadState=loaded\nUnitFileState="+map[bool]string{true: "disabled", false: "enabled"}[s.disabled[unit]])
		}
		return []byte(strings.Join(blocks, "\n\n")), nil
	case strings.Contains(line, "--property=LoadState"):
		return []byte("LoadState=" + map[bool]string{true: "loaded", false: "not-found"}[s.known] + "\nNeedDaemonReload=no\n"), nil
	case strings.Contains(line, "--property=ExecStart"):
		return fmt.Appendf(nil, "ExecStart={ path=/x ; argv[]=%s ; ignore_errors=no ; start_time=[n/a] }\n", s.command[unit]), nil
	case strings.Contains(line, "--property=ActiveState"):
		if s.active {
			return []byte("ActiveState=active\nSubState=running\nUnitFileState=enabled\n"), nil
		}
		return []byte("ActiveState=inactive\nSubState=dead\nUnitFileState=disabled\n"), nil
	case strings.Contains(line, "enable --now"):
		if !s.known {
			return nil, &host.ExitError{Program: "systemctl", Code: 1}
		}
		s.active = true
	case line == "systemctl stop "+owner.AgentUnit:
		s.active = false
	}
	return nil, nil
}

func shared(primary host.Host) *heal.ShareSensors {
	return &heal.ShareSensors{Program: []byte("\x7fELF\x00"), Shared: true, Primary: primary,
		Config: owner.Config{Node: "192.0.2.2", Cluster: owner.Cluster{Nodes: []string{"192.0.2.1", "192.0.2.2"}, Away: 60}}}
}

// The services are stopped before the agent begins, and started without it when all is undone.
func TestShareSensors(t *testing.T) {
	primary := newSharing(t, "[system]\n")
	h := newSharing(t, "[sensorcontainer]\npartition_provider = name:hash, hash_ranges:0..0\n[timersengine]\nenable = False\n")
	files := func() (found []string) {
		for _, dir := range []string{"/etc", "/usr"} {
			require.NoError(t, filepath.WalkDir(h.root+dir, func(path string, _ fs.DirEntry, err error) error {
				found = append(found, path)
				return err
			}))
		}
		return found
	}
	before := files()
	s := shared(primary)
	run := func(name string) step.Result {
		t.Helper()
		r, err := step.Run(t.Context(), s, h, options(name))
		require.NoError(t, err)
		return r
	}
	r := run("first")
	var kinds []string
	for _, c := range r.Changes {
		kinds = append(kinds, c.Kind)
		require.NotContains(t, c.Diff, "ELF")
	}
	require.Equal(t, []string{"directory", "file", "directory", "file", "file", "directory", "file", "directory", "file",
		"daemon_reload", "yield", "yield", "start"}, kinds)
	stop := strings.Index(strings.Join(h.ran, "\n"), "systemctl stop st2timersengine")
	require.Positive(t, stop)
	require.Less(t, stop, strings.Index(strings.Join(h.ran, "\n"), "systemctl enable --now st2ha-owner.service"))
	data, err := os.ReadFile(h.root + owner.ConfigPath)
	require.NoError(t, err)
	config, err := owner.ParseConfig(data)
	require.NoError(t, err)
	require.True(t, config.Timers, "the primary has timers, whatever a secondary's st2.conf says")
	require.False(t, run("again").Changed)

	// Another node joins: the agents begin anew with the new list, and nothing else changes.
	s.Config.Nodes = append(s.Config.Nodes, "192.0.2.3")
	r = run("third")
	require.Len(t, r.Changes, 2)
	require.Equal(t, []string{owner.ConfigPath, owner.AgentUnit}, []string{r.Changes[0].Target, r.Changes[1].Target})

	h.ran = nil
	_, err = step.Rollback(t.Context(), h, step.RollbackOptions{Options: options("undo"), Kinds: step.Kinds{
		"file": func() step.Change { return &step.FileChange{} }, "directory": func() step.Change { return &step.MakeDir{} },
		"daemon_reload": func() step.Change { return &service.Reload{} }, "yield": func() step.Change { return &heal.Yield{} },
		"start": func() step.Change { return &service.Start{} }, "restart": func() step.Change { return &service.Restart{} },
	}})
	require.NoError(t, err)
	require.Equal(t, before, files())
	require.False(t, h.active)
	order := strings.Join(h.ran, "\n")
	reload, again := strings.Index(order, "daemon-reload"), strings.Index(order, "systemctl restart st2sensorcontainer")
	require.Positive(t, reload)
	require.Less(t, reload, again, "it starts without the drop-in")
	require.Contains(t, order, "systemctl restart st2timersengine")
}

// The primary's st2.conf has the timers switched off: so they stay.
func TestShareSensorsWithoutTimers(t *testing.T) {
	primary := newSharing(t, "[timersengine]\nenable = False\n")
	_, err := step.Run(t.Context(), shared(primary), primary, options("r"))
	require.NoError(t, err)
	require.NoFileExists(t, primary.root+stackstorm.TurnDropIn(stackstorm.TimersUnit))
	data, err := os.ReadFile(primary.root + owner.ConfigPath)
	require.NoError(t, err)
	require.Contains(t, string(data), `"timers": false`)
}

// What people have set themselves is not overruled: it is named, and nothing is changed.
func TestShareSensorsCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		conf   string
		spoil  func(*sharing)
		checks []string
	}{
		"as installed":         {conf: "[system]\n"},
		"all sensors, in full": {conf: "[sensorcontainer]\npartition_provider = name:default\n"},
		"a partition by hand": {conf: "[sensorcontainer]\npartition_provider = name:kvstore\n",
			checks: []string{"error own_partition"}},
		"a cluster of brokers": {conf: "[messaging]\ncluster_urls = amqp://u:p@192.0.2.8/, amqp://u:p@192.0.2.9/\n",
			checks: []string{"warning broker_cluster"}},
		"a unit that is off": {conf: "[system]\n", checks: []string{"error sensors_unit"},
			spoil: func(s *sharing) { s.disabled[stackstorm.SensorsUnit] = true }},
		"another command": {conf: "[system]\n", checks: []string{"error sensors_command"},
			spoil: func(s *sharing) { s.command[stackstorm.TimersUnit] += " --debug" }},
		"shared already": {conf: "[system]\n", spoil: func(s *sharing) {
			s.command[stackstorm.TimersUnit] += " --config-file /run/st2ha-owner/st2timersengine.conf"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newSharing(t, tc.conf)
			if tc.spoil != nil {
				tc.spoil(h)
			}
			findings, err := shared(h).Check(t.Context(), h)
			require.NoError(t, err)
			var checks []string
			for _, f := range findings {
				checks = append(checks, string(f.Severity)+" "+f.Check)
			}
			require.Equal(t, tc.checks, checks)
		})
	}
}

// Without the setting nothing is done; a node that an earlier run has share them is named.
func TestSensorsOnPrimary(t *testing.T) {
	h := newSharing(t, "[system]\n")
	s := &heal.ShareSensors{}
	r, err := step.Run(t.Context(), s, h, options("r"))
	require.NoError(t, err)
	require.False(t, r.Changed)
	name := h.root + stackstorm.TurnDropIn(stackstorm.SensorsUnit)
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, nil, 0o644))
	findings, err := s.Check(t.Context(), h)
	require.NoError(t, err)
	require.Len(t, findings, 1)
	require.Equal(t, "sensors_shared", findings[0].Check)
}

// systemd takes the agent's unit, and finds no fault with it.
func TestAgentUnit(t *testing.T) {
	dir := t.TempDir()
	data, err := os.ReadFile("st2ha-owner.service")
	require.NoError(t, err)
	program := filepath.Join(dir, "st2ha-owner")
	require.NoError(t, os.WriteFile(program, nil, 0o755))
	unit := filepath.Join(dir, "st2ha-owner.service")
	require.NoError(t, os.WriteFile(unit, []byte(strings.ReplaceAll(string(data), "/usr/local/lib/st2ha/st2ha-owner",
		program)), 0o644))
	out, err := exec.Command("systemd-analyze", "verify", "--man=no", unit).CombinedOutput()
	require.NoError(t, err, string(out))
	require.NotContains(t, string(out), "st2ha-owner")
}
