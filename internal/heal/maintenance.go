package heal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// Maintenance is the switch that silences healing on a node.
type Maintenance struct {
	On     bool      `json:"-"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until,omitzero"` // zero: until it is switched off
	Reason string    `json:"reason,omitempty"`
	Run    string    `json:"run,omitempty"` // whose it is; empty: people's
}

// String says it to people.
func (m Maintenance) String() string {
	if !m.On {
		return "no maintenance"
	}
	text := "maintenance is on"
	if !m.Until.IsZero() {
		text += " until " + m.Until.UTC().Format(time.RFC3339)
	}
	if m.Reason != "" {
		text += fmt.Sprintf(" (%s)", m.Reason)
	}
	return text
}

// Encode is the contents of MaintenanceFile.
func (m Maintenance) Encode() ([]byte, error) {
	data, err := json.Marshal(m)
	return append(data, '\n'), err
}

// ReadMaintenance reads the switch of a node. Whatever the file holds, it is
// on while the file is there, so that an empty one is enough; only an end that
// it names, and that has passed, switches it off.
//
// A switch that was set in the future, for the clock was set back since, and
// that ends by itself, lasts as long as it was to last, from now on: counted
// from its own time it would last until the clock has caught up.
func ReadMaintenance(ctx context.Context, h host.Host, now time.Time) (Maintenance, error) {
	m, _, err := readMaintenance(ctx, h, now)
	return m, err
}

// skew is how far ahead another node's clock may be, from which a switch is set.
const skew = time.Minute

func readMaintenance(ctx context.Context, h host.Host, now time.Time) (m Maintenance, corrected bool, err error) {
	f, err := h.ReadFile(ctx, MaintenanceFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Maintenance{}, false, nil
	}
	if err != nil {
		return Maintenance{}, false, err
	}
	if json.Unmarshal(f.Data, &m) != nil {
		m = Maintenance{}
	}
	if m.Until.After(m.Since) && m.Since.Sub(now) > skew {
		m.Since, m.Until, corrected = now.UTC(), now.UTC().Add(m.Until.Sub(m.Since)), true
	}
	m.On = m.Until.IsZero() || now.Before(m.Until)
	return m, corrected, nil
}

// Silence is ReadMaintenance for who acts by it: what it corrects is written
// down, so that it comes to an end. A switch whose end has passed is removed:
// touch(1) leaves the contents, so over it it would not switch anything on.
func Silence(ctx context.Context, h host.Host, now time.Time) (Maintenance, error) {
	m, corrected, err := readMaintenance(ctx, h, now)
	over := func() bool { return !m.On && !m.Until.IsZero() }
	if err != nil || !corrected && !over() {
		return m, err
	}
	err = locked(ctx, h, func() error {
		m, corrected, err = readMaintenance(ctx, h, now) // somebody else may have been first
		switch {
		case err != nil:
			return err
		case corrected:
			return m.write(ctx, h)
		case over():
			return (&turn{}).Apply(ctx, h)
		}
		return nil
	})
	return m, err
}

func (m Maintenance) write(ctx context.Context, h host.Host) error {
	data, err := m.Encode()
	if err != nil {
		return fmt.Errorf("%s: %s: %w", h.Name(), MaintenanceFile, err)
	}
	return h.WriteFile(ctx, host.File{Path: MaintenanceFile, Data: data, Mode: 0o644})
}

// SetMaintenance is the step maintenance: the switch is set or taken away.
type SetMaintenance struct {
	To Maintenance
	// Own leaves a switch alone that is on and not To.Run's: a run neither
	// shortens nor ends what people have set.
	Own bool
}

// Name is maintenance.
func (s *SetMaintenance) Name() string { return "maintenance" }

// Check has nothing to look for.
func (s *SetMaintenance) Check(context.Context, host.Host) ([]step.Finding, error) { return nil, nil }

// Plan switches, unless it is switched so.
func (s *SetMaintenance) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	now, err := ReadMaintenance(ctx, h, s.To.Since)
	if err != nil {
		return nil, err
	}
	if s.another(now) || now.On == s.To.On && now.Until.Equal(s.To.Until) && now.Reason == s.To.Reason {
		return nil, nil
	}
	return []step.Change{&turn{from: now, to: s.To}}, nil
}

// Verify reads it.
func (s *SetMaintenance) Verify(ctx context.Context, h host.Host) error {
	now, err := ReadMaintenance(ctx, h, s.To.Since)
	if err == nil && now.On != s.To.On && !s.another(now) {
		err = fault.Failed("maintenance", "run it again", "%s: somebody else has switched maintenance meanwhile: %s",
			h.Name(), now)
	}
	return err
}

// another says whether the switch is somebody else's.
func (s *SetMaintenance) another(now Maintenance) bool { return s.Own && now.On && now.Run != s.To.Run }

// turn is one turn of the switch.
type turn struct{ from, to Maintenance }

// Kind is "maintenance".
func (t *turn) Kind() string { return "maintenance" }

// Target is the file.
func (t *turn) Target() string { return MaintenanceFile }

// Diff says how it was and how it is to be.
func (t *turn) Diff() string { return "- " + t.from.String() + "\n+ " + t.to.String() + "\n" }

// Apply writes or removes the file.
func (t *turn) Apply(ctx context.Context, h host.Host) error {
	if !t.to.On {
		err := h.Remove(ctx, MaintenanceFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return t.to.write(ctx, h)
}

// Undo turns it back.
func (t *turn) Undo(ctx context.Context, h host.Host) error {
	return (&turn{from: t.to, to: t.from}).Apply(ctx, h)
}
