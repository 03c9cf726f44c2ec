package heal

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// What install_watchdog puts on a node.
const (
	programDir   = "/usr/local/lib/st2ha"
	programPath  = programDir + "/st2ha-watch"
	unitPath     = "/etc/systemd/system/" + WatchdogUnit
	WatchdogUnit = "st2ha-watchdog.service"
)

//go:embed st2ha-watchdog.service
var watchdogUnit []byte

// InstallWatchdog is the step install_watchdog: the node watches and heals
// its own backends, also while StackStorm can run nothing for want of its
// broker or database.
type InstallWatchdog struct {
	Program []byte // of st2ha-watch
}

// Name is install_watchdog.
func (s *InstallWatchdog) Name() string { return "install_watchdog" }

// WatchProgram reads st2ha-watch, which lies beside the program that runs: it
// is named as this one is, with st2ha-watch for st2ha.
func WatchProgram() ([]byte, error) {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	dir, base := filepath.Split(self)
	program := dir + "st2ha-watch" + strings.TrimPrefix(base, "st2ha")
	data, err := os.ReadFile(program)
	if err != nil {
		return nil, fault.Preflight("no_watcher", "install the pack anew: it brings or builds both programs",
			"read the watchdog's program: %w", err)
	}
	return data, nil
}

// Check compares the machines: the program is this one's.
func (s *InstallWatchdog) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	return sameMachine(ctx, h, s.Name())
}

// sameMachine finds a host on which this machine's programs do not run.
func sameMachine(ctx context.Context, h host.Host, action string) ([]step.Finding, error) {
	if h.IsLocal() {
		return nil, nil
	}
	theirs, err := h.Run(ctx, nil, "uname", "-m")
	if err != nil {
		return nil, fmt.Errorf("%s: uname: %w", h.Name(), err)
	}
	ours, err := host.NewLocal("localhost").Run(ctx, nil, "uname", "-m")
	if err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	if string(theirs) == string(ours) {
		return nil, nil
	}
	return []step.Finding{{Severity: step.Error, Host: h.Name(), Check: "machine",
		Message: fmt.Sprintf("it is a %s machine, and the program is one for %s", strings.TrimSpace(string(theirs)),
			strings.TrimSpace(string(ours))),
		Fix: "run " + action + " on " + h.Name() + " itself"}}, nil
}

// Plan copies the program and the unit, and has systemd run it.
func (s *InstallWatchdog) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	return daemon{unit: WatchdogUnit, files: []placed{
		{path: programPath, mode: 0o755, data: s.Program},
		{path: unitPath, mode: 0o644, data: watchdogUnit, unit: true},
	}}.plan(ctx, h)
}

// makeDir returns the change that makes a directory, or nil if it is there.
func makeDir(ctx context.Context, h host.Host, dir string) (*step.MakeDir, error) {
	_, err := h.Stat(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return &step.MakeDir{Dir: dir, Mode: 0o755}, nil
	}
	return nil, err
}

// edit returns the change that makes data a file's contents, or nil.
func edit(ctx context.Context, h host.Host, path string, mode fs.FileMode, data []byte) (*step.FileChange, error) {
	f, existed, err := step.ReadOrEmpty(ctx, h, path, mode)
	if err != nil {
		return nil, err
	}
	return step.EditFile(f, existed, data), nil
}

// Verify asks systemd.
func (s *InstallWatchdog) Verify(ctx context.Context, h host.Host) error {
	return runs(ctx, h, WatchdogUnit, "watchdog")
}
