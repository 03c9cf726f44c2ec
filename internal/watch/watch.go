// Package watch tells how the backends of a node are: one watch function a
// backend reports what its probes find, and one state machine makes states of it.
package watch

import (
	"context"
	"time"

	"st2ha/internal/reach"
)

// Backend is a kind of what is watched.
type Backend string

// The backends.
const (
	MongoDB    Backend = "mongodb"
	RabbitMQ   Backend = "rabbitmq"
	Redis      Backend = "redis"
	NFS        Backend = "nfs"   // an NFS server, with the exports this node uses
	Mount      Backend = "mount" // an NFS mount of this node
	StackStorm Backend = "st2"   // a unit of StackStorm on this node
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
	Backend Backend
	Name    string // host:port, a mount point, or a unit: unique within the backend
	Host    string // the machine it is on; empty for this node
	Watch   Func
}
