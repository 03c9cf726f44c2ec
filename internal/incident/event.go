// Package incident makes states of what probes find, and events and incidents of
// the states. It has no clock: time comes with the findings.
package incident

import (
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"time"

	"st2ha/internal/probe"
)

// State is how an endpoint is.
type State string

// The states.
const (
	Unknown  State = "unknown"  // nothing was found out yet, or probes cannot be made
	Up       State = "up"       // it answers as it should
	Suspect  State = "suspect"  // a slow moment, or the begin of an outage: heals nothing
	Flapping State = "flapping" // it comes and goes: heals nothing
	Down     State = "down"     // its probes' limits are reached
	CutOff   State = "cut_off"  // of Node only: this node reaches no other host
)

// Node is the backend of events about the prober itself.
const Node = "node"

// Event is a change of an endpoint's state.
type Event struct {
	Event      string `json:"event"`    // EventChanged
	ID         string `json:"id"`       // of the incident: the same from the first doubt until it is up again
	Seq        int    `json:"seq"`      // counts the incident's events from 1
	Backend    string `json:"backend"`  //
	Endpoint   string `json:"endpoint"` // host:port, a mount point, or a unit
	Node       string `json:"node"`     // where it was seen from
	Source     string `json:"source"`   // sensor or watchdog
	State      State  `json:"state"`    //
	Previous   State  `json:"previous"` //
	Probe      string `json:"probe"`    // whose finding decided
	Reason     string `json:"reason"`   // in words a person understands
	DetectedAt Time   `json:"detected_at"`
	Since      Time   `json:"since"`               // the first finding that led to this state
	AfterMS    int64  `json:"after_ms"`            // from since to detected_at
	LastedMS   int64  `json:"lasted_ms,omitempty"` // up only: how long the incident was
	HealedBy   string `json:"healed_by,omitempty"` // who acted during the incident
	Dropped    int    `json:"dropped,omitempty"`   // events that were given up since the line before, for nobody took them

	// Slow says that it flaps by late answers alone: it was not down, and nothing was refused.
	Slow bool `json:"-"`
}

// EventChanged is the name of an Event, and the trigger's without its pack.
const Changed = "backend_changed"

// Key is the endpoint's.
func (e Event) Key() probe.Key { return probe.Key{Backend: e.Backend, Name: e.Endpoint} }

// MessageID is the event's own, unique name.
func (e Event) MessageID() string { return e.ID + "-" + strconv.Itoa(e.Seq) }

// Time is a point in time that is written as RFC 3339 with milliseconds, in UTC.
type Time struct{ time.Time }

// MarshalJSON writes it as a string; time.Time's own would have nanoseconds.
func (t Time) MarshalJSON() ([]byte, error) {
	return t.UTC().AppendFormat(nil, `"2006-01-02T15:04:05.000Z07:00"`), nil
}

// newID makes the name of an incident.
func newID() string {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
