// Package probe is what a backend's watch function is made of: what it reports,
// a session that is held and pinged, and fresh logins beside it.
package probe

import (
	"context"
	"net"
	"strings"
	"time"

	"st2ha/internal/reach"
)

// Verdict is what a probe makes of what it saw.
type Verdict = reach.Verdict

// The verdicts.
const (
	Good    = reach.Good
	Silent  = reach.Silent
	Bad     = reach.Bad
	Unknown = reach.Unknown
)

// Observation is what one probe found.
type Observation struct {
	Probe   string // which one: "connection", "ping", "login", "statfs", "export /opt/stackstorm/packs"
	Verdict Verdict
	Reason  string        // in words a person understands; when Good, a fact such as "secondary of rs0", or empty
	At      time.Time     // when it was found
	Took    time.Duration // how long the answer took; 0 where there is nothing to measure
	Limit   Limit         // what it takes for this probe's finding to count
}

// Limit says how many findings in a row that are Silent or Bad make an endpoint
// suspect, and when it is down. A zero field never does it.
type Limit struct {
	Suspect   int           // findings in a row
	Down      int           // findings in a row
	DownAfter time.Duration // since the first of them, once it is suspect
}

// Func watches one endpoint: it probes and reports until ctx ends, and leaves
// no goroutine, child or descriptor behind. report never blocks, and may be
// called by several goroutines at once.
type Func func(ctx context.Context, report func(Observation))

// Endpoint is one thing that is watched.
type Endpoint struct {
	Backend string // its name: "mongodb"
	Name    string // host:port, a mount point, or a unit: unique within the backend
	Host    string // the machine it is on; empty for this node
	Watch   Func
}

// Key names an endpoint.
type Key struct {
	Backend string
	Name    string
}

// String is how people and the account of heals name it: "redis 10.0.0.1:6379".
func (k Key) String() string { return k.Backend + " " + k.Name }

// Key is the endpoint's.
func (e Endpoint) Key() Key { return Key{e.Backend, e.Name} }

// Certain is the limit of findings that are proof by themselves.
func Certain() Limit { return Limit{Suspect: 1, Down: 1} }

// OnLoopback says whether host:port is on loopback, which is another machine to each who reads it.
func OnLoopback(addr string) bool {
	name, _, _ := net.SplitHostPort(addr)
	ip := net.ParseIP(name)
	return ip != nil && ip.IsLoopback() || strings.EqualFold(name, "localhost")
}
