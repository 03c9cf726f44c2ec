// Package status is a cluster at a glance: what each node looks like, seen from itself, side by side; who owns the
// sensors and the timers; what there is once only; and what differs that must not. It changes nothing and takes no lock.
package status

import (
	"slices"
	"strings"
	"time"

	"st2ha/internal/heal"
	"st2ha/internal/incident"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// State is how a cluster or a part of it is.
type State string

// The states, the best first.
const (
	Good    State = "good"
	Warning State = "warning" // it works, and somebody should look
	Trouble State = "trouble" // something does not work
)

// Report is the whole page.
type Report struct {
	At          time.Time    `json:"at"`
	State       State        `json:"state"` // the worst of all findings
	Nodes       []Node       `json:"nodes"`
	Sensors     Sensors      `json:"sensors"`
	Timers      []string     `json:"timers"` // the nodes that run them
	Single      []Single     `json:"single_points"`
	Differences []Difference `json:"differences"`

	Findings []step.Finding `json:"-"` // what is wrong; a result has a place for them
	Millis   int64          `json:"-"`
}

// Node is one node as it was seen.
type Node struct {
	Address string `json:"address"`
	Role    string `json:"role"` // primary or secondary
	Reached bool   `json:"reached"`
	Error   string `json:"error,omitempty"` // why it was not
	Fix     string `json:"fix,omitempty"`
	Millis  int64  `json:"took_ms"`

	Versions    Versions            `json:"versions"`
	Services    []Service           `json:"services"`
	Backends    []Backend           `json:"backends"`
	Sensors     *Partition          `json:"sensors,omitempty"` // nothing where st2.conf cannot be read
	Timers      bool                `json:"timers"`            // its timers engine is meant to run them
	Shares      []Share             `json:"shares"`
	Watchdog    Watchdog            `json:"watchdog"`
	Clock       *Clock              `json:"clock,omitempty"`
	Runs        []step.Recent       `json:"runs"`
	Heals       []heal.Record       `json:"heals"`
	Incidents   []incident.Incident `json:"incidents"` // open ones, as its watchdog has them
	Maintenance *heal.Maintenance   `json:"maintenance,omitempty"`
	RestartOwed bool                `json:"restart_owed"` // its services do not run with its st2.conf as it is now
	Problems    []string            `json:"problems"`     // what could not be found out

	settings []setting // what is compared
}

// Versions are those of a node's programs; empty where they are not known.
type Versions struct {
	StackStorm string `json:"stackstorm"`
	Python     string `json:"python"`
	Pack       string `json:"st2ha"`
}

// Service is one of StackStorm's units that the node is meant to run.
type Service struct {
	Unit   string `json:"unit"`
	State  string `json:"state"` // systemd's word: active, failed…
	Detail string `json:"detail,omitempty"`
	Good   bool   `json:"good"`
}

// Backend is a server that a node's configuration names, as the node sees it.
type Backend struct {
	Name     string  `json:"backend"`
	Endpoint string  `json:"endpoint"` // host:port, with the node's own address in the place of loopback
	State    string  `json:"state"`    // up, down, silent or unknown
	Millis   float64 `json:"latency_ms"`
	Reason   string  `json:"reason,omitempty"`
}

// The states of a Backend.
const (
	Up      = "up"
	Down    = "down"    // a wrong answer, or none that can be used
	Silent  = "silent"  // no answer in time
	Unknown = "unknown" // it could not be asked
)

// Partition is a node's share of the sensors, and whether its container is there to run them.
type Partition struct {
	Name     string             `json:"sensor_node_name"`
	Provider string             `json:"provider"`
	Ranges   []stackstorm.Range `json:"ranges"`
	Active   bool               `json:"active"`
}

// Sensors are all nodes' shares together.
type Sensors struct {
	Complete bool               `json:"complete"` // each hash has exactly one owner
	Known    bool               `json:"known"`    // all nodes were asked, and keep to ranges
	Gaps     []stackstorm.Range `json:"gaps"`     // that no node has
	Doubles  []Double           `json:"doubles"`
}

// Double is a range that several nodes have.
type Double struct {
	stackstorm.Range
	Nodes []string `json:"nodes"`
}

// Share is a directory that a node has from another machine.
type Share struct {
	Path    string `json:"path"`
	Source  string `json:"source"`
	Mounted bool   `json:"mounted"`
}

// Watchdog is the program that heals a node while StackStorm cannot.
type Watchdog struct {
	Installed bool   `json:"installed"`
	Active    bool   `json:"active"`
	Program   string `json:"program"` // the beginning of its SHA-256
	Current   bool   `json:"current"` // it is the one of this pack, as far as that is known
}

// Clock is how far a node's clock is ahead of that of the machine that asked.
type Clock struct {
	Ahead    float64 `json:"ahead_ms"`
	Accuracy float64 `json:"accuracy_ms"` // half of the round trip
}

// Single is what the cluster has once only.
type Single struct {
	What    string `json:"what"`
	Where   string `json:"where"`
	Message string `json:"message"`
}

// Difference is a setting that is not as it must be on all nodes.
type Difference struct {
	Setting string  `json:"setting"`
	Must    string  `json:"must"` // agree or differ
	Values  []Value `json:"values"`
	Fix     string  `json:"fix"`
}

// Value is what one node has.
type Value struct {
	Node  string `json:"node"`
	Value string `json:"value"`
}

// Reached are the nodes that answered.
func (r *Report) reached() []*Node {
	var all []*Node
	for i := range r.Nodes {
		if r.Nodes[i].Reached {
			all = append(all, &r.Nodes[i])
		}
	}
	return all
}

// state is the worst of what was found about a node; of all nodes if it is empty.
func (r *Report) state(node string) State {
	worst := Good
	for _, f := range r.Findings {
		if node != "" && f.Host != node {
			continue
		}
		if f.Severity == step.Error {
			return Trouble
		}
		worst = Warning
	}
	return worst
}

// service returns one of a node's services.
func (n *Node) service(unit string) (Service, bool) {
	i := slices.IndexFunc(n.Services, func(s Service) bool { return s.Unit == unit })
	if i < 0 {
		return Service{}, false
	}
	return n.Services[i], true
}

// words are a list in words: a, b and c.
func words(list []string) string {
	if len(list) < 2 {
		return strings.Join(list, "")
	}
	return strings.Join(list[:len(list)-1], ", ") + " and " + list[len(list)-1]
}
