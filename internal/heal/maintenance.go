package heal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"st2ha/internal/host"
)

// Maintenance is the switch that silences healing on a node.
type Maintenance struct {
	On     bool      `json:"-"`
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until,omitzero"` // zero: until it is switched off
	Reason string    `json:"reason,omitempty"`
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
// on while the file is there, so that touch(1) is enough; only an end that it
// names, and that has passed, switches it off.
func ReadMaintenance(ctx context.Context, h host.Host, now time.Time) (Maintenance, error) {
	f, err := h.ReadFile(ctx, MaintenanceFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Maintenance{}, nil
	}
	if err != nil {
		return Maintenance{}, err
	}
	var m Maintenance
	if json.Unmarshal(f.Data, &m) != nil {
		m = Maintenance{}
	}
	m.On = m.Until.IsZero() || now.Before(m.Until)
	return m, nil
}
