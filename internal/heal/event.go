package heal

import "time"

// The names of events, and the triggers' without their pack.
const (
	EventGaveUp = "healing_gave_up" // people are needed
	EventHealed = "backend_healed"  // the watchdog acts; whether it helped the next change of state says
)

// Event tells people of healing, and that it was given up. The watcher prints
// it as a line beside its changes of state, actions send it to StackStorm's
// API; both become the trigger st2ha.healing_gave_up or st2ha.backend_healed.
type Event struct {
	Event  string    `json:"event"`  // EventGaveUp or EventHealed
	Target string    `json:"target"` // what was healed: a unit, a mount point
	Node   string    `json:"node"`   // where
	Heals  int       `json:"heals"`  // in the window; of EventGaveUp in vain
	Reason string    `json:"reason"` // in words a person understands
	By     string    `json:"by"`     // watchdog, or the action's name
	At     time.Time `json:"at"`
}
