package heal

import "time"

// EventGaveUp is the event's name, and the trigger's without its pack.
const EventGaveUp = "healing_gave_up"

// Event tells people that healing was given up. The watcher prints it as a
// line beside its changes of state, actions send it to StackStorm's API; both
// become the trigger st2ha.healing_gave_up.
type Event struct {
	Event  string    `json:"event"`  // EventGaveUp
	Target string    `json:"target"` // what was healed: a unit, a mount point
	Node   string    `json:"node"`   // where
	Heals  int       `json:"heals"`  // in vain
	Reason string    `json:"reason"` // in words a person understands
	By     string    `json:"by"`     // watchdog, or the action's name
	At     time.Time `json:"at"`
}
