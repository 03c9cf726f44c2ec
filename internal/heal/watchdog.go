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
	"st2ha/internal/service"
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
		Fix: "run install_watchdog on " + h.Name() + " itself"}}, nil
}

// Plan copies the program and the unit, and has systemd run it.
func (s *InstallWatchdog) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	var changes []step.Change
	if _, err := h.Stat(ctx, programDir); errors.Is(err, fs.ErrNotExist) {
		changes = append(changes, &step.MakeDir{Dir: programDir, Mode: 0o755})
	} else if err != nil {
		return nil, err
	}
	program, err := edit(ctx, h, programPath, 0o755, s.Program)
	if err != nil {
		return nil, err
	}
	unit, err := edit(ctx, h, unitPath, 0o644, watchdogUnit)
	if err != nil {
		return nil, err
	}
	if program != nil {
		changes = append(changes, program)
	}
	if unit != nil {
		changes = append(changes, unit)
	}
	return s.run(ctx, h, changes, unit != nil, program != nil || unit != nil)
}

// run appends what makes systemd run the program as it is on disk. reload and
// changed say whether its unit, and any of its files, are changed.
func (s *InstallWatchdog) run(ctx context.Context, h host.Host, changes []step.Change,
	reload, changed bool) ([]step.Change, error) {
	start, err := service.PlanStart(ctx, h, WatchdogUnit)
	if err != nil {
		return nil, err
	}
	owed, err := step.Owed(ctx, h, WatchdogUnit)
	if err != nil {
		return nil, err
	}
	if !reload && (start != nil || owed) {
		if reload, err = service.ReloadNeeded(ctx, h, WatchdogUnit); err != nil {
			return nil, err
		}
	}
	if reload {
		changes = append(changes, &service.Reload{})
	}
	if start != nil {
		changes = append(changes, start)
	}
	if owed || changed && (start == nil || start.WasActive) {
		changes = append(changes, &service.Restart{Unit: WatchdogUnit})
	}
	return changes, nil
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
	down, err := service.Inactive(ctx, h, WatchdogUnit)
	if err != nil {
		return err
	}
	if len(down) > 0 {
		return fault.Failed("watchdog", "journalctl -u "+WatchdogUnit+" says why", "%s: %s", h.Name(), down[0])
	}
	return nil
}
