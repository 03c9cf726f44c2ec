package st2

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"st2ha/internal/host"
	"st2ha/internal/probe"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/secure"
	"st2ha/internal/service"
	"st2ha/internal/stackstorm"
	"st2ha/internal/wait"
)

// The probes of a StackStorm unit.
const (
	ProbeUnit      = "unit"      // systemd's word
	ProbeConsumers = "consumers" // the broker's: somebody takes what is in the unit's queues
	ProbeJournal   = "journal"   // the unit's own: it says that it cannot publish
)

// Settings are the StackStorm units of a node, and how they are watched.
type Settings struct {
	Host   host.Host
	Units  []string             // without suffix: st2api, st2actionrunner…
	Login  rabbitmq.Login       // [messaging] url; without an address no consumers are looked for
	Prefix string               // [messaging] prefix; st2
	Dialer secure.ContextDialer // to the broker from where; this machine if nil
	// Systemd says how units are; this machine's if nil. It is closed with the last watch.
	Systemd interface {
		States(ctx context.Context, units ...string) ([]service.State, error)
		Close()
	}

	Every        time.Duration // between two looks at all units; 1 s
	BrokerEvery  time.Duration // between two questions to the broker, one for each queue; twice that
	Deadline     time.Duration // of one question; 4 s
	StartTime    time.Duration // that a unit may take to start or stop until it is down; 90 s, systemd's own
	DeafAfter    time.Duration // without consumers until a unit is down: a service that starts has none yet; 10 s
	DeafFindings int           // without consumers in a row until a unit is suspect; 2
	StuckAfter   time.Duration // that messages wait, and the unit acknowledges none, until it is down; 60 s
	JournalEvery time.Duration // between two looks at what the units log; 20 s
}

// Endpoints returns an endpoint for each unit. They share one connection to systemd
// and one to the broker, as long as one is watched.
func Endpoints(s Settings) []probe.Endpoint {
	or := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	or(&s.Every, time.Second)
	or(&s.BrokerEvery, 2*s.Every)
	or(&s.Deadline, 4*time.Second)
	or(&s.StartTime, 90*time.Second)
	or(&s.DeafAfter, 10*time.Second)
	or(&s.StuckAfter, time.Minute)
	or(&s.JournalEvery, 20*time.Second)
	if s.DeafFindings == 0 {
		s.DeafFindings = 2
	}
	if s.Prefix == "" {
		s.Prefix = "st2"
	}
	if s.Dialer == nil {
		s.Dialer = s.Host
	}
	if s.Systemd == nil {
		s.Systemd = &service.Bus{}
	}
	u := &units{Settings: s, reports: map[string]func(probe.Observation){}, active: map[string]bool{}}
	var endpoints []probe.Endpoint
	for _, unit := range s.Units {
		endpoints = append(endpoints, probe.Endpoint{Backend: Name, Name: unit, Watch: u.watch(unit)})
	}
	return endpoints
}

// workers is the pattern of the units that do a unit's work, or empty:
// st2actionrunner itself is active as soon as it has started them.
func workers(unit string) string {
	if unit == "st2actionrunner" {
		return unit + "@*"
	}
	return ""
}

// units looks at all units at once for those that are watched.
type units struct {
	Settings

	life    sync.Mutex // of the looking: begun by the first watch, ended by the last
	stop    context.CancelFunc
	stopped chan struct{}

	mu      sync.Mutex
	reports map[string]func(probe.Observation)
	active  map[string]bool // as of the last look
}

func (u *units) watch(unit string) probe.Func {
	return func(ctx context.Context, report func(probe.Observation)) {
		u.join(unit, report)
		defer u.leave(unit)
		<-ctx.Done()
	}
}

func (u *units) join(unit string, report func(probe.Observation)) {
	u.life.Lock()
	defer u.life.Unlock()
	u.mu.Lock()
	u.reports[unit] = report
	first := len(u.reports) == 1
	u.mu.Unlock()
	if !first {
		return
	}
	ctx, stop := context.WithCancel(context.Background()) // it belongs to all watches, so to none
	stopped := make(chan struct{})
	u.stop, u.stopped = stop, stopped
	go func() {
		defer close(stopped)
		var both sync.WaitGroup
		both.Go(func() { wait.Every(ctx, u.Every, u.askSystemd); u.Systemd.Close() })
		both.Go(func() { wait.Every(ctx, u.JournalEvery, u.readJournal) })
		if u.Login.Addr != "" {
			c := &consumers{units: u, stuck: map[string]time.Time{}}
			both.Go(func() { wait.Every(ctx, u.BrokerEvery, c.askBroker); c.hangUp() })
		}
		both.Wait()
	}()
}

func (u *units) leave(unit string) {
	u.life.Lock()
	defer u.life.Unlock()
	u.mu.Lock()
	delete(u.reports, unit)
	last := len(u.reports) == 0
	u.mu.Unlock()
	if last {
		u.stop()
		<-u.stopped
	}
}

// report goes to whoever watches the unit.
func (u *units) report(unit string, o probe.Observation) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if report := u.reports[unit]; report != nil {
		o.At = time.Now()
		report(o)
	}
}

// askSystemd looks at all units at once.
func (u *units) askSystemd(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, u.Deadline)
	defer cancel()
	ask := slices.Clone(u.Units)
	for _, unit := range u.Units {
		if pattern := workers(unit); pattern != "" {
			ask = append(ask, pattern)
		}
	}
	states, err := u.Systemd.States(ctx, ask...)
	if context.Cause(ctx) == context.Canceled {
		return
	}
	for _, unit := range u.Units {
		o := probe.Observation{Probe: ProbeUnit, Verdict: probe.Unknown, Reason: "systemd does not answer"}
		if err == nil {
			o = u.judge(unit, states)
		}
		if o.Verdict == probe.Bad {
			if waiting, err := stackstorm.Waiting(ctx, u.Host, unit); err == nil && waiting {
				o = probe.Observation{Probe: ProbeUnit} // it rightly does not run: another node does its work
			}
		}
		u.mu.Lock()
		u.active[unit] = o.Verdict == probe.Good
		u.mu.Unlock()
		u.report(unit, o)
	}
}

// readJournal looks for units that say that they cannot publish. Nobody but root, and
// who is in the journal's groups, can read that: the others find nothing.
func (u *units) readJournal(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, u.JournalEvery)
	defer cancel()
	mute, err := stackstorm.Mute(ctx, u.Host, stackstorm.MuteWithin)
	if err != nil {
		return // no journal, or one that cannot be searched
	}
	for _, unit := range u.Units {
		i := slices.IndexFunc(mute, func(name string) bool {
			return name == unit || workers(unit) != "" && strings.HasPrefix(name, unit+"@")
		})
		o := probe.Observation{Probe: ProbeJournal}
		if i >= 0 {
			o.Verdict, o.Limit = probe.Bad, probe.Certain() // it does not pass by itself
			o.Reason = mute[i] + " is active but publishes nothing any more"
		}
		u.report(unit, o)
	}
}

// judge says how a unit and its workers are.
func (u *units) judge(unit string, states []service.State) probe.Observation {
	var failing []string
	moving, count := true, 0
	for _, s := range states {
		name := strings.TrimSuffix(s.Unit, ".service")
		worker := workers(unit) != "" && strings.HasPrefix(name, unit+"@")
		if name != unit && !worker {
			continue
		}
		count++
		if s.Active == "active" {
			continue
		}
		failing = append(failing, fmt.Sprintf("%s is %s (%s)", name, s.Active, s.Sub))
		moving = moving && (s.Active == "activating" || s.Active == "deactivating" || s.Active == "reloading")
	}
	o := probe.Observation{Probe: ProbeUnit}
	switch {
	case count == 0:
		o.Verdict, o.Reason = probe.Unknown, "systemd does not know "+unit
	case len(failing) == 0:
	default:
		o.Verdict, o.Reason = probe.Bad, strings.Join(failing, ", ")
		if o.Limit = (probe.Limit{Suspect: 1, Down: 2}); moving {
			o.Limit = probe.Limit{Suspect: 2, DownAfter: u.StartTime}
		}
	}
	return o
}

// consumers asks the broker who consumes the queues of active units, and, where
// messages wait, the kernel whether the units take them.
type consumers struct {
	*units
	conn *rabbitmq.Connection

	progress *stackstorm.Progress // while messages wait
	stuck    map[string]time.Time // by unit: since when messages wait and none is taken
	looked   time.Time
}

func (c *consumers) hangUp() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// askBroker asks who consumes the queues of the active units.
func (c *consumers) askBroker(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.Deadline)
	defer cancel()
	c.mu.Lock()
	active := slices.Sorted(maps.Keys(c.active))
	active = slices.DeleteFunc(active, func(unit string) bool { return !c.active[unit] || stackstorm.Queues(unit) == nil })
	c.mu.Unlock()
	var names []string
	for _, unit := range active {
		for _, q := range stackstorm.Queues(unit) {
			names = append(names, c.Prefix+"."+q)
		}
	}
	if len(names) == 0 {
		return
	}
	count, err := c.count(ctx, names)
	if context.Cause(ctx) == context.Canceled {
		return
	}
	idle := c.idle(ctx, active, count)
	for _, unit := range active {
		o := probe.Observation{Probe: ProbeConsumers}
		var deaf []string
		for _, q := range stackstorm.Queues(unit) {
			if name := c.Prefix + "." + q; count[name].Consumers == 0 {
				deaf = append(deaf, name)
			}
		}
		switch {
		case err != nil: // the broker's own endpoint says why
			o.Verdict, o.Reason = probe.Unknown, "the broker does not say who consumes "+c.Prefix+"."+stackstorm.Queues(unit)[0]
		case len(deaf) > 0:
			o.Verdict, o.Reason = probe.Bad, fmt.Sprintf("%s is active but nobody consumes %s", unit, strings.Join(deaf, ", "))
			o.Limit = probe.Limit{Suspect: c.DeafFindings, DownAfter: c.DeafAfter}
		case idle[unit] >= c.StuckAfter:
			o.Verdict, o.Limit = probe.Bad, probe.Certain() // it was seen for long enough
			o.Reason = fmt.Sprintf("%s is active but takes none of %s for %s", unit, stackstorm.Waits(unit, c.Prefix, count),
				probe.Span(idle[unit]))
		}
		c.report(unit, o)
	}
}

// idle is how long each unit has had messages waiting and took none. Units
// whose connections cannot be seen (those of other users, without root) are not
// judged, and time in which nobody looked is no unit's.
func (c *consumers) idle(ctx context.Context, active []string,
	queues map[string]rabbitmq.Queue) map[string]time.Duration {
	now := time.Now()
	gap := now.Sub(c.looked)
	c.looked = now
	waiting := slices.DeleteFunc(slices.Clone(active), func(unit string) bool {
		return stackstorm.Waits(unit, c.Prefix,
			queues) == ""
	})
	if len(waiting) == 0 || gap > c.Every+c.Deadline {
		c.progress = nil
		clear(c.stuck)
		return nil
	}
	if c.progress == nil {
		c.progress = &stackstorm.Progress{}
	}
	moved, err := c.progress.Look(ctx, c.Host, c.Login.Addr)
	idle := map[string]time.Duration{}
	for _, unit := range active {
		took, connected := moved[unit]
		since, doubtful := c.stuck[unit]
		switch {
		case err != nil || !connected || !slices.Contains(waiting, unit):
			delete(c.stuck, unit)
		case took || !doubtful:
			c.stuck[unit] = now
		default:
			idle[unit] = now.Sub(since)
		}
	}
	return idle
}

func (c *consumers) count(ctx context.Context, names []string) (map[string]rabbitmq.Queue, error) {
	if c.conn == nil {
		conn, err := rabbitmq.Dial(ctx, c.Dialer, c.Login)
		if err != nil {
			return nil, err
		}
		c.conn = conn
	}
	count, err := c.conn.Inspect(ctx, names...)
	if err != nil {
		c.hangUp()
	}
	return count, err
}
