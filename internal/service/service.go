// Package service acts on systemd units and distribution packages of a host.
package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// IsActive says whether a unit is active (systemctl(1), is-active).
func IsActive(ctx context.Context, h host.Host, unit string) (bool, error) {
	_, err := h.Run(ctx, nil, "systemctl", "is-active", "--quiet", unit)
	var exit *host.ExitError
	if errors.As(err, &exit) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: is-active of %s: %w", h.Name(), unit, err)
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
		if enabled(properties(block)) {
			found = append(found, units[i])
		}
	}
	return found, nil
}

func enabled(p map[string]string) bool {
	return p["LoadState"] == "loaded" && p["UnitFileState"] == "enabled"
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
		return nil, fmt.Errorf("%s: state of %s: systemctl show answered for %d of %d units", h.Name(),
			strings.Join(units, ", "), len(blocks), len(units))
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
		down = append(down, inactive(units[i], properties(block))...)
	}
	return down, nil
}

// inactive is the unit with its state, or nothing if it is active.
func inactive(unit string, p map[string]string) []string {
	if p["ActiveState"] == "active" {
		return nil
	}
	return []string{unit + " is " + p["ActiveState"] + "/" + p["SubState"]}
}

// properties takes a block of "systemctl show" apart.
func properties(block string) map[string]string {
	p := map[string]string{}
	for _, line := range strings.Split(block, "\n") {
		name, value, _ := strings.Cut(line, "=")
		p[name] = value
	}
	return p
}

// State is what systemd says of a unit.
type State struct {
	Unit   string // with its suffix
	Active string // active, activating, failed, inactive…
	Sub    string // running, exited, auto-restart, dead…
}

// Unit is what systemd says of a unit, and whether the host has it and starts it at boot.
type Unit struct {
	State
	Enabled bool
}

// States asks for any number of units in one call; a pattern such as
// st2actionrunner@* stands for the loaded units that match (systemctl(1), show).
func States(ctx context.Context, h host.Host, units ...string) ([]State, error) {
	all, err := Units(ctx, h, units...)
	var states []State
	for _, u := range all {
		states = append(states, u.State)
	}
	return states, err
}

// Units is States, with which of them the host starts.
func Units(ctx context.Context, h host.Host, units ...string) ([]Unit, error) {
	out, err := h.Run(ctx, nil, append([]string{"systemctl", "show",
		"--property=Id,ActiveState,SubState,LoadState,UnitFileState"}, units...)...)
	if err != nil {
		return nil, fmt.Errorf("%s: state of %s: %w", h.Name(), strings.Join(units, ", "), err)
	}
	var all []Unit
	for _, block := range strings.Split(strings.TrimSpace(string(out)), "\n\n") {
		if p := properties(block); p["Id"] != "" {
			all = append(all, Unit{State{Unit: p["Id"], Active: p["ActiveState"], Sub: p["SubState"]}, enabled(p)})
		}
	}
	return all, nil
}

// Invocations are what systemd calls the present runs of units, by their names
// without suffix.
func Invocations(ctx context.Context, h host.Host, units ...string) (map[string]string, error) {
	blocks, err := show(ctx, h, "Id,InvocationID", units)
	if err != nil {
		return nil, err
	}
	runs := map[string]string{}
	for _, block := range blocks {
		p := properties(block)
		runs[strings.TrimSuffix(p["Id"], ".service")] = p["InvocationID"]
	}
	return runs, nil
}

// Activity is a unit's ActiveState, and for how long it has been active, 0 if
// it is not (org.freedesktop.systemd1(5)).
func Activity(ctx context.Context, h host.Host, unit string) (state string, since time.Duration, err error) {
	blocks, err := show(ctx, h, "ActiveState,ActiveEnterTimestampMonotonic", []string{unit})
	if err != nil {
		return "", 0, err
	}
	p := properties(blocks[0])
	if state = p["ActiveState"]; state != "active" {
		return state, 0, nil
	}
	at, err := strconv.ParseInt(p["ActiveEnterTimestampMonotonic"], 10, 64) // microseconds
	if err != nil {
		return "", 0, fmt.Errorf("%s: state of %s: %w", h.Name(), unit, err)
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
	return state, max(0, time.Duration(now*float64(time.Second))-time.Duration(at)*time.Microsecond), nil
}

// AwaitEnabled waits until those of the units that the host starts at boot,
// and so is meant to run, are active, and returns how many they are.
func AwaitEnabled(ctx context.Context, h host.Host, units ...string) (count int, err error) {
	first := "'st2*'" // of those that are waited for
	err = step.Await(ctx, 200*time.Millisecond, func(ctx context.Context) (waiting, err error) {
		blocks, err := show(ctx, h, "LoadState,UnitFileState,ActiveState,SubState", units)
		if err != nil {
			return nil, err
		}
		count = 0
		var down []string
		for i, block := range blocks {
			if p := properties(block); enabled(p) {
				count++
				down = append(down, inactive(units[i], p)...)
			}
		}
		if len(down) == 0 {
			return nil, nil
		}
		first = strings.Fields(down[0])[0]
		return errors.New(strings.Join(down, ", ")), nil
	}, func(seen error) error {
		return fault.Failed("inactive", "look at: systemctl status, journalctl -u "+first,
			"%s: %w (waited for it to be active)", h.Name(), seen)
	})
	return count, err
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

// Interrupts is the unit.
func (r *Restart) Interrupts() string { return r.Unit }

// Postponed is false.
func (r *Restart) Postponed() bool { return false }

// Apply restarts the unit. One that systemd has given up starting, or that was
// started often of late, is started all the same (systemctl(1), reset-failed); a
// process that is stopped gets SIGCONT, and SIGKILL in the end (systemd.kill(5)).
func (r *Restart) Apply(ctx context.Context, h host.Host) error {
	// Fails for a unit that systemd has not loaded at the moment; the restart loads it.
	_, _ = h.Run(ctx, nil, "systemctl", "reset-failed", r.Unit)
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
	blocks, err := show(ctx, h, "ActiveState,UnitFileState", []string{unit})
	if err != nil {
		return nil, err
	}
	p := properties(blocks[0])
	active := p["ActiveState"] == "active"
	// Those that systemctl is-enabled counts.
	enabled := slices.Contains([]string{"enabled", "enabled-runtime", "static", "alias", "indirect", "generated"},
		p["UnitFileState"])
	if active && enabled {
		return nil, nil
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

// Known says which of the units PID 1 has, and whether it has still to read
// what is on disk of one of those.
func Known(ctx context.Context, h host.Host, units ...string) (known []bool, reload bool, err error) {
	blocks, err := show(ctx, h, "LoadState,NeedDaemonReload", units)
	for _, block := range blocks {
		p := properties(block)
		loaded := p["LoadState"] == "loaded"
		known = append(known, loaded)
		reload = reload || loaded && p["NeedDaemonReload"] == "yes"
	}
	return known, reload, err
}

// ReloadNeeded says whether PID 1 has still to read what is on disk of one of
// the units, as after a run that was killed before its Reload: it does not know
// the unit, or an older one (org.freedesktop.systemd1(5), NeedDaemonReload).
func ReloadNeeded(ctx context.Context, h host.Host, units ...string) (bool, error) {
	blocks, err := show(ctx, h, "LoadState,NeedDaemonReload", units)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(blocks, func(block string) bool {
		p := properties(block)
		return p["LoadState"] == "not-found" || p["NeedDaemonReload"] == "yes"
	}), nil
}

// Reload has PID 1 read its units and fstab again (systemctl(1), daemon-reload).
type Reload struct{}

// Kind is "daemon_reload".
func (r *Reload) Kind() string { return "daemon_reload" }

// Target is systemd.
func (r *Reload) Target() string { return "systemd" }

// Diff says what is done.
func (r *Reload) Diff() string { return "systemctl daemon-reload" }

// Owes is empty: PID 1 is asked (ReloadNeeded).
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
