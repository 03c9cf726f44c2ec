// Package owner has a node of a cluster run its share of the sensors, and one node the timers: each of them on one node
// at a time, and a lost node's on another one after a while. docs/sensors.md says how, and how it can fail.
package owner

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The times that are no settings. The wait is longer than the lease by what the clocks of two nodes may differ in speed,
// and what it takes to end processes.
const (
	Lease = 30 * time.Second // from the last question to the broker that was answered: by then all is stopped
	Grace = 40 * time.Second // that the next one waits once it has the queue
)

// hashSpace is the end of what StackStorm's hash of a sensor's name can be (st2reactor/container/hash_partitioner.py).
const hashSpace = 1 << 32

// timersPart is the name of the part that is no range.
const timersPart = "timers"

// Cluster is what all agents of a cluster must agree on. Where two do not, one of them runs nothing (Fingerprint).
type Cluster struct {
	Nodes  []string `json:"nodes"`  // addresses, the primary's first: they are a ring
	Timers bool     `json:"timers"` // whether there are any: the primary's st2.conf says so
	Away   int      `json:"away"`   // seconds that a node has to be away until others run its share, and back until it has it again
}

// Config is what an agent is told, by the file that the join writes.
type Config struct {
	Node string `json:"node"` // this one, as Nodes has it
	Cluster
}

// ParseConfig reads the file of a node's agent.
func ParseConfig(data []byte) (Config, error) {
	var c Config
	if err := json.Unmarshal(data, &c); err != nil {
		return Config{}, err
	}
	return c, c.validate()
}

func (c Config) validate() error {
	switch sorted := slices.Sorted(slices.Values(c.Nodes)); {
	case len(c.Nodes) == 0:
		return errors.New("it names no nodes")
	case len(slices.Compact(sorted)) < len(c.Nodes):
		return errors.New("it names a node twice")
	case slices.Contains(c.Nodes, ""):
		return errors.New("it names a node without an address")
	case !slices.Contains(c.Nodes, c.Node):
		return fmt.Errorf("this node, %q, is none of %s", c.Node, strings.Join(c.Nodes, ", "))
	}
	return ValidateAway(c.Away)
}

// ValidateAway refuses a time that is shorter than what a lost node's lease takes to end.
func ValidateAway(seconds int) error {
	if shortest := int(Grace/time.Second) + 5; seconds < shortest || seconds > 86400 {
		return fmt.Errorf("the seconds that a node has to be away must be %d to 86400, not %d: "+
			"a lost node has stopped by itself only after that", shortest, seconds)
	}
	return nil
}

// Encode writes the file of a node's agent.
func (c Config) Encode() []byte {
	data, _ := json.MarshalIndent(c, "", "  ") // strings and numbers: nothing can fail
	return append(data, '\n')
}

// Fingerprint is a number of 31 bits that two lists of nodes, or two settings, have in common only if they are equal.
func (c Cluster) Fingerprint() int32 {
	data, _ := json.Marshal(c)
	sum := sha256.Sum256(fmt.Appendf(data, " %s %s", Lease, Grace))
	return int32(binary.BigEndian.Uint32(sum[:]) & 0x7fffffff)
}

// Part is what one node runs or none: a range of sensors, or the timers.
type Part struct {
	Name       string // I.J or timers: also of its queue
	Start, End uint64 // Start <= hash < End; both 0 for the timers
	Order      []int  // of nodes: the first that is there has it
}

// timers says whether the part is that of the timers.
func (p Part) timers() bool { return p.Name == timersPart }

// Parts cuts the hash space into equal ranges, one for each node, and each of these into as many as there are other
// nodes, so that a lost node's work is spread over all that are left. Together they cover it exactly once.
func (c Cluster) Parts() []Part {
	n := uint64(len(c.Nodes))
	pieces := max(n-1, 1)
	var parts []Part
	for i := range n {
		from, to := hashSpace*i/n, hashSpace*(i+1)/n
		for j := range pieces {
			order := c.ring(int(i))
			if n > 1 { // the second in turn is another one for each piece
				second := order[1+j]
				order = slices.Insert(slices.Delete(order, int(1+j), int(2+j)), 1, second)
			}
			parts = append(parts, Part{Name: fmt.Sprintf("%d.%d", i, j), Order: order,
				Start: from + (to-from)*j/pieces, End: from + (to-from)*(j+1)/pieces})
		}
	}
	if c.Timers {
		parts = append(parts, Part{Name: timersPart, Order: c.ring(0)})
	}
	return parts
}

// ring are all nodes in their order, from one on.
func (c Cluster) ring(from int) []int {
	var order []int
	for k := range c.Nodes {
		order = append(order, (from+k)%len(c.Nodes))
	}
	return order
}

// Ranges writes parts as [sensorcontainer] partition_provider has them; ranges that touch are one.
func Ranges(parts []Part) string {
	sorted := slices.Clone(parts)
	slices.SortFunc(sorted, func(a, b Part) int { return int(int64(a.Start) - int64(b.Start)) })
	var text []string
	for i := 0; i < len(sorted); {
		start, end := sorted[i].Start, sorted[i].End
		for i++; i < len(sorted) && sorted[i].Start == end; i++ {
			end = sorted[i].End
		}
		text = append(text, fmt.Sprintf("%d..%d", start, end))
	}
	return strings.Join(text, "|")
}
