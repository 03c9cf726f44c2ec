// Package service acts on systemd units and distribution packages of a host.
package service

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// IsActive says whether a unit is active (systemctl(1), is-active).
func IsActive(ctx context.Context, h host.Host, unit string) (bool, error) {
	return holds(ctx, h, "is-active", unit)
}

// IsEnabled says whether a unit starts at boot (systemctl(1), is-enabled).
func IsEnabled(ctx context.Context, h host.Host, unit string) (bool, error) {
	return holds(ctx, h, "is-enabled", unit)
}

func holds(ctx context.Context, h host.Host, verb, unit string) (bool, error) {
	_, err := h.Run(ctx, nil, "systemctl", verb, "--quiet", unit)
	var exit *host.ExitError
	if errors.As(err, &exit) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %s of %s: %w", h.Name(), verb, unit, err)
	}
	return true, nil
}

// Enabled returns those of the units that the host starts at boot, in the
// same order: the ones that are meant to run.
func Enabled(ctx context.Context, h host.Host, units ...string) ([]string, error) {
	blocks, err := show(ctx, h, "LoadState,UnitFileState", units)
	if err != nil {
		return nil, err
	}
	var found []string
	for i, block := range blocks {
		if strings.Contains(block, "LoadState=loaded") && strings.Contains(block, "UnitFileState=enabled") {
			found = append(found, units[i])
		}
	}
	return found, nil
}

// First returns the first of the units that the host has, for services that
// distributions name differently; empty if it has none.
func First(ctx context.Context, h host.Host, units ...string) (string, error) {
	blocks, err := show(ctx, h, "LoadState", units)
	if err != nil {
		return "", err
	}
	for i, block := range blocks {
		if strings.Contains(block, "LoadState=loaded") {
			return units[i], nil
		}
	}
	return "", nil
}

// show returns a block of properties for each unit (systemctl(1), show).
func show(ctx context.Context, h host.Host, properties string, units []string) ([]string, error) {
	out, err := h.Run(ctx, nil, append([]string{"systemctl", "show", "--property=" + properties}, units...)...)
	if err != nil {
		return nil, fmt.Errorf("%s: state of %s: %w", h.Name(), strings.Join(units, ", "), err)
	}
	blocks := strings.Split(strings.TrimSpace(string(out)), "\n\n")
	if len(blocks) != len(units) {
		return nil, fmt.Errorf("%s: state of %s: systemctl show answered for %d of %d units", h.Name(), strings.Join(units, ", "), len(blocks), len(units))
	}
	return blocks, nil
}

// Inactive returns those of the units that are not active, with their state.
func Inactive(ctx context.Context, h host.Host, units ...string) ([]string, error) {
	blocks, err := show(ctx, h, "ActiveState,SubState", units)
	if err != nil {
		return nil, err
	}
	var down []string
	for i, block := range blocks {
		if !strings.Contains(block, "ActiveState=active") {
			state := strings.NewReplacer("ActiveState=", "", "SubState=", "", "\n", "/").Replace(block)
			down = append(down, units[i]+" is "+state)
		}
	}
	return down, nil
}

// State is what systemd says of a unit.
type State struct {
	Unit   string // with its suffix
	Active string // active, activating, failed, inactive…
	Sub    string // running, exited, auto-restart, dead…
}

// States asks for any number of units in one call; a pattern such as
// st2actionrunner@* stands for the loaded units that match (systemctl(1), show).
func States(ctx context.Context, h host.Host, units ...string) ([]State, error) {
	out, err := h.Run(ctx, nil, append([]string{"systemctl", "show", "--property=Id,ActiveState,SubState"}, units...)...)
	if err != nil {
		return nil, fmt.Errorf("%s: state of %s: %w", h.Name(), strings.Join(units, ", "), err)
	}
	var states []State
	for _, block := range strings.Split(strings.TrimSpace(string(out)), "\n\n") {
		var s State
		for _, line := range strings.Split(block, "\n") {
			switch name, value, _ := strings.Cut(line, "="); name {
			case "Id":
				s.Unit = value
			case "ActiveState":
				s.Active = value
			case "SubState":
				s.Sub = value
			}
		}
		if s.Unit != "" {
			states = append(states, s)
		}
	}
	return states, nil
}

// Activity is a unit's ActiveState, and for how long it has been active, 0 if
// it is not (org.freedesktop.systemd1(5)).
func Activity(ctx context.Context, h host.Host, unit string) (state string, since time.Duration, err error) {
	blocks, err := show(ctx, h, "ActiveState,ActiveEnterTimestampMonotonic", []string{unit})
	if err != nil {
		return "", 0, err
	}
	for line := range strings.Lines(blocks[0]) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "ActiveState":
			state = value
		case "ActiveEnterTimestampMonotonic":
			at, err := strconv.ParseInt(value, 10, 64) // microseconds
			if err != nil {
				return "", 0, fmt.Errorf("%s: state of %s: %w", h.Name(), unit, err)
			}
			since = time.Duration(at) * time.Microsecond
		}
	}
	if state != "active" {
		return state, 0, nil
	}
	uptime, err := h.ReadFile(ctx, "/proc/uptime") // proc(5): CLOCK_BOOTTIME, which runs on while a machine sleeps
	if err != nil {
		return "", 0, err
	}
	seconds, _, _ := strings.Cut(string(uptime.Data), " ")
	now, err := strconv.ParseFloat(seconds, 64)
	if err != nil {
		return "", 0, fmt.Errorf("%s: /proc/uptime: %w", h.Name(), err)
	}
	return state, max(0, time.Duration(now*float64(time.Second))-since), nil
}

// Await waits until all units are active, and fails as soon as one has failed
// or ctx ends.
func Await(ctx context.Context, h host.Host, units ...string) error {
	for {
		down, err := Inactive(ctx, h, units...)
		if err != nil {
			return err
		}
		if len(down) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.Failed("inactive", "look at: systemctl status, journalctl -u "+strings.Fields(down[0])[0],
				"%s: %s", h.Name(), strings.Join(down, ", "))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// Restart restarts a unit and waits until it is active.
type Restart struct{ Unit string }

// Kind is "restart".
func (r *Restart) Kind() string { return "restart" }

// Target is the unit.
func (r *Restart) Target() string { return r.Unit }

// Diff says what is done.
func (r *Restart) Diff() string { return "systemctl restart " + r.Unit }

// Owes is the unit: a killed run's restart is made up for by the next one.
func (r *Restart) Owes() string { return r.Unit }

// Postponed is false.
func (r *Restart) Postponed() bool { return false }

// Apply restarts the unit.
func (r *Restart) Apply(ctx context.Context, h host.Host) error {
	if _, err := h.Run(ctx, nil, "systemctl", "restart", r.Unit); err != nil {
		return fault.Failed("restart", "journalctl -u "+r.Unit+" says why", "%s: restart %s: %w", h.Name(), r.Unit, err)
	}
	return step.Settle(ctx, h, r.Unit)
}

// Undo restarts it with what was restored.
func (r *Restart) Undo(ctx context.Context, h host.Host) error { return r.Apply(ctx, h) }

// Start has a unit run, now and after a reboot.
type Start struct {
	Unit       string
	WasActive  bool
	WasEnabled bool
}

// PlanStart returns the change that starts and enables a unit, or nil.
func PlanStart(ctx context.Context, h host.Host, unit string) (*Start, error) {
	active, err := IsActive(ctx, h, unit)
	if err != nil {
		return nil, err
	}
	enabled, err := IsEnabled(ctx, h, unit)
	if err != nil || active && enabled {
		return nil, err
	}
	return &Start{Unit: unit, WasActive: active, WasEnabled: enabled}, nil
}

// Kind is "start".
func (s *Start) Kind() string { return "start" }

// Target is the unit.
func (s *Start) Target() string { return s.Unit }

// Diff says what is done.
func (s *Start) Diff() string { return "systemctl enable --now " + s.Unit }

// Apply enables and starts the unit.
func (s *Start) Apply(ctx context.Context, h host.Host) error {
	if _, err := h.Run(ctx, nil, "systemctl", "enable", "--now", s.Unit); err != nil {
		return fault.Failed("start", "journalctl -u "+s.Unit+" says why", "%s: start %s: %w", h.Name(), s.Unit, err)
	}
	return nil
}

// Undo stops or disables it again, as it was.
func (s *Start) Undo(ctx context.Context, h host.Host) error {
	for verb, was := range map[string]bool{"stop": s.WasActive, "disable": s.WasEnabled} {
		if was {
			continue
		}
		if _, err := h.Run(ctx, nil, "systemctl", verb, s.Unit); err != nil {
			return fmt.Errorf("%s: %s %s: %w", h.Name(), verb, s.Unit, err)
		}
	}
	return nil
}

// Reload has PID 1 read its units and fstab again (systemctl(1), daemon-reload).
type Reload struct{}

// Kind is "daemon_reload".
func (r *Reload) Kind() string { return "daemon_reload" }

// Target is systemd.
func (r *Reload) Target() string { return "systemd" }

// Diff says what is done.
func (r *Reload) Diff() string { return "systemctl daemon-reload" }

// Owes is empty: a unit that is not there yet is seen by the step that needs it.
func (r *Reload) Owes() string { return "" }

// Postponed is false.
func (r *Reload) Postponed() bool { return false }

// Apply reloads.
func (r *Reload) Apply(ctx context.Context, h host.Host) error {
	if _, err := h.Run(ctx, nil, "systemctl", "daemon-reload"); err != nil {
		return fmt.Errorf("%s: daemon-reload: %w", h.Name(), err)
	}
	return nil
}

// Undo reloads what was restored.
func (r *Reload) Undo(ctx context.Context, h host.Host) error { return r.Apply(ctx, h) }
