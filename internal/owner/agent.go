package owner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"st2ha/internal/wait"
)

const (
	beat     = time.Second     // between two questions to the broker
	lookEach = 2               // beats between two looks at who is there
	settle   = 5 * time.Second // parts that come so soon after each other are begun together
	lifeSign = 3 * time.Second // between two signs of life
)

// Broker is where the nodes meet.
type Broker interface {
	// Join logs in and takes part in the list of nodes; an error if another list is in use.
	Join(ctx context.Context) (Session, error)
}

// Session is one connection to the broker. What is claimed on it is this node's alone until it ends; every error but
// that of Join is its end.
type Session interface {
	// Ask has the broker answer.
	Ask(ctx context.Context) error
	// Present says whether a node has a session.
	Present(ctx context.Context, node string) (bool, error)
	// Claim takes a part; false if another session has it.
	Claim(ctx context.Context, part string) (bool, error)
	// Release gives it up.
	Release(ctx context.Context, part string) error
	Close()
}

// Unit is a service that runs what this node has: the sensor container or the timers engine.
type Unit interface {
	// Allow has Start run the service, with its share: ranges of sensors, or the empty text for the timers.
	Allow(share string) error
	// Forbid has no Start of whomever run it.
	Forbid() error
	// Start runs it, if that is allowed.
	Start(ctx context.Context) error
	// Stop ends it in its own time.
	Stop(ctx context.Context) error
	// Kill ends it at once, and returns when no process of it is left.
	Kill()
}

// Clock goes on while the machine sleeps, and nobody sets it.
type Clock interface {
	Now() time.Duration
	// Set arms the alarm for a time, in place of the one before.
	Set(at time.Duration) error
	// Wait returns when the time that was set has come.
	Wait(ctx context.Context) error
}

// Agent has its node run what is the node's to run. All times are the node's own; none is compared with another's.
type Agent struct {
	Config  Config
	Broker  Broker
	Sensors Unit
	Timers  Unit
	Clock   Clock
	Log     *slog.Logger
	// Alive is called again and again as long as the agent is not stuck.
	Alive func()

	parts   []Part
	self    int
	charges [2]*charge // sensors, timers

	mu         sync.Mutex
	held       map[int]*hold // by the part's index: its queue is this session's, or was the last one's
	deadline   time.Duration // by then nothing runs, unless the broker answers before
	generation int           // grows when all was ended at once
}

// hold is a part that this node has claimed.
type hold struct {
	from    time.Duration // when it may be run
	ready   bool          // it may be, by now
	leaving bool          // it may not any more: another node's turn has come
}

// charge is a service, and the parts that it runs or may run.
type charge struct {
	name    string
	unit    Unit
	timers  bool
	runs    []int         // guarded by Agent.mu; what is here has not surely stopped
	changed chan struct{} // holds one if the held parts have changed
}

// errKilled is the end of a session whose lease is over.
var errKilled = errors.New("the broker did not answer in time: all was ended")

// Run works until ctx ends; then nothing runs any more. ready is called once that is so at the beginning as well.
func (a *Agent) Run(ctx context.Context, ready func()) error {
	a.parts, a.self = a.Config.Parts(), slices.Index(a.Config.Nodes, a.Config.Node)
	a.held = map[int]*hold{}
	a.charges = [2]*charge{
		{name: "sensors", unit: a.Sensors, changed: make(chan struct{}, 1)},
		{name: "timers", unit: a.Timers, timers: true, changed: make(chan struct{}, 1)},
	}
	a.kill()
	ready()
	var work sync.WaitGroup
	for _, c := range a.charges {
		work.Go(func() { a.tend(ctx, c) })
	}
	work.Go(func() { a.watchDeadline(ctx) })
	work.Go(func() { wait.Every(ctx, lifeSign, func(context.Context) { a.tellAlive() }) })
	said := ""
	for ctx.Err() == nil {
		err := a.session(ctx)
		if err != nil && err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			a.Log.Warn("no connection to the broker that holds", "error", err)
		}
		_ = wait.Sleep(ctx, beat)
	}
	work.Wait()
	a.kill()
	return nil
}

// kill ends all at once.
func (a *Agent) kill() {
	a.mu.Lock()
	a.generation++
	clear(a.held)
	for _, c := range a.charges {
		if err := c.unit.Forbid(); err != nil {
			a.Log.Error("cannot forbid a unit to start", "unit", c.name, "error", err)
		}
	}
	a.mu.Unlock()
	var all sync.WaitGroup
	for _, c := range a.charges {
		all.Go(c.unit.Kill)
	}
	all.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.charges {
		c.runs = nil
	}
}

// watchDeadline ends all when the lease is over. The alarm is armed ahead: after a standstill of whatever kind it is
// the first thing that the agent does.
func (a *Agent) watchDeadline(ctx context.Context) {
	for a.Clock.Wait(ctx) == nil {
		a.mu.Lock()
		over := a.Clock.Now() >= a.deadline
		running := a.anyReady()
		a.mu.Unlock()
		if !over {
			continue
		}
		if running {
			a.Log.Warn("the broker did not answer for the time of a lease: what runs here is ended", "lease", Lease)
		}
		a.kill()
	}
}

// tellAlive gives a sign of life, as long as the alarm does its work and nobody sits on the lock.
func (a *Agent) tellAlive() {
	a.mu.Lock()
	stuck := a.anyReady() && a.Clock.Now() >= a.deadline+2*lifeSign
	a.mu.Unlock()
	if !stuck {
		a.Alive()
	}
}

// session is one connection to the broker, from its beginning to its end.
func (a *Agent) session(ctx context.Context) error {
	s, err := a.Broker.Join(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	defer a.forget()
	if err := a.reclaim(ctx, s); err != nil {
		return err
	}
	a.mu.Lock()
	generation := a.generation
	a.mu.Unlock()
	seen := map[int]sight{}
	for turn := 0; ; turn++ {
		sent := a.Clock.Now()
		if err := s.Ask(ctx); err != nil {
			return err
		}
		if err := a.renew(sent, generation); err != nil {
			return err
		}
		if turn%lookEach == 0 {
			if err := a.look(ctx, s, seen); err != nil {
				return err
			}
			if err := a.claim(ctx, s, seen); err != nil {
				return err
			}
		}
		if err := a.leave(ctx, s, seen); err != nil {
			return err
		}
		a.ripen()
		if err := wait.Sleep(ctx, beat); err != nil {
			return err
		}
	}
}

// reclaim takes again what was this node's on the connection before. Whoever has it by now runs it no sooner than Grace
// after this node's last answer, so it has to be ended here by the deadline that still is; and it is, at once.
func (a *Agent) reclaim(ctx context.Context, s Session) error {
	a.mu.Lock()
	before := slices.Sorted(maps.Keys(a.held))
	generation := a.generation
	a.mu.Unlock()
	for _, i := range before {
		got, err := s.Claim(ctx, a.parts[i].Name)
		if err != nil {
			return err
		}
		if !got {
			a.Log.Warn("another node has taken a part meanwhile: what runs here is ended", "part", a.parts[i].Name)
			a.kill()
			return fmt.Errorf("part %s is another node's", a.parts[i].Name)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.generation != generation {
		return errKilled
	}
	return nil
}

// forget gives up what was claimed and not yet run: its time begins anew with a new connection.
func (a *Agent) forget() {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.held, func(_ int, h *hold) bool { return !h.ready })
}

// renew moves the deadline, as seen from when the question was sent that has been answered. A deadline that is over stays
// so, also where the alarm has not been heard yet: others may have run meanwhile what is reclaimed since.
func (a *Agent) renew(sent time.Duration, generation int) error {
	a.mu.Lock()
	now := a.Clock.Now()
	over := now >= sent+Lease || a.anyReady() && now >= a.deadline
	if a.generation == generation && !over {
		defer a.mu.Unlock()
		a.deadline = sent + Lease
		return a.Clock.Set(a.deadline)
	}
	a.mu.Unlock()
	if over {
		a.kill()
	}
	return errKilled
}

// anyReady says whether something may be running. The lock is held.
func (a *Agent) anyReady() bool {
	for _, h := range a.held {
		if h.ready {
			return true
		}
	}
	return len(a.charges[0].runs)+len(a.charges[1].runs) > 0
}

// sight is how another node was seen last, and since when it is so.
type sight struct {
	present bool
	since   time.Duration
}

// look asks for all other nodes.
func (a *Agent) look(ctx context.Context, s Session, seen map[int]sight) error {
	for i, node := range a.Config.Nodes {
		if i == a.self {
			continue
		}
		present, err := s.Present(ctx, node)
		if err != nil {
			return err
		}
		if last, known := seen[i]; !known || last.present != present {
			seen[i] = sight{present: present, since: a.Clock.Now()}
			if known || !present {
				a.Log.Info("another node", "node", node, "present", present)
			}
		}
	}
	return nil
}

// before are the nodes to which a part belongs sooner than to this one.
func (a *Agent) before(p Part) []int { return p.Order[:slices.Index(p.Order, a.self)] }

// claim takes the parts whose turn it is to be this node's.
func (a *Agent) claim(ctx context.Context, s Session, seen map[int]sight) error {
	away := time.Duration(a.Config.Away)*time.Second - Grace
	var got []int
	for i, p := range a.parts {
		a.mu.Lock()
		mine := a.held[i] != nil
		a.mu.Unlock()
		now := a.Clock.Now()
		if mine || slices.ContainsFunc(a.before(p), func(node int) bool {
			return seen[node].present || now < seen[node].since+away
		}) {
			continue
		}
		ok, err := s.Claim(ctx, p.Name)
		if err != nil {
			return err
		}
		if ok {
			got = append(got, i)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, i := range got {
		a.held[i] = &hold{from: a.Clock.Now() + Grace}
	}
	return nil
}

// leave gives parts back to nodes that have been there again for long enough; at once what does not run yet.
func (a *Agent) leave(ctx context.Context, s Session, seen map[int]sight) error {
	back := time.Duration(a.Config.Away) * time.Second
	var free []int
	a.mu.Lock()
	for i, h := range a.held {
		h.leaving = h.leaving || slices.ContainsFunc(a.before(a.parts[i]), func(node int) bool {
			return seen[node].present && (!h.ready || a.Clock.Now() >= seen[node].since+back)
		})
		if h.leaving && !a.runs(i) {
			free = append(free, i)
		}
	}
	a.mu.Unlock()
	for _, i := range free {
		if err := s.Release(ctx, a.parts[i].Name); err != nil {
			return err
		}
		a.mu.Lock()
		delete(a.held, i)
		a.mu.Unlock()
	}
	return nil
}

// runs says whether a part may be running. The lock is held.
func (a *Agent) runs(part int) bool {
	return slices.ContainsFunc(a.charges[:], func(c *charge) bool { return slices.Contains(c.runs, part) })
}

// ripen finds out which parts may be run by now, and has that done.
func (a *Agent) ripen() {
	a.mu.Lock()
	now := a.Clock.Now()
	soon := false // what would have the service restarted in a moment
	for _, h := range a.held {
		soon = soon || !h.ready && now < h.from && now+settle >= h.from
	}
	for _, h := range a.held {
		h.ready = h.ready || !soon && now >= h.from
	}
	a.mu.Unlock()
	for _, c := range a.charges {
		select {
		case c.changed <- struct{}{}:
		default:
		}
	}
}

// tend has one service run the parts that it is to run.
func (a *Agent) tend(ctx context.Context, c *charge) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.changed:
		}
		if err := a.change(ctx, c); err != nil && ctx.Err() == nil {
			a.Log.Error("cannot change what runs", "unit", c.name, "error", err) // and with the next beat again
		}
	}
}

// change stops and starts a service, if it does not run what it should.
func (a *Agent) change(ctx context.Context, c *charge) error {
	a.mu.Lock()
	want := a.want(c)
	if slices.Equal(want, c.runs) {
		a.mu.Unlock()
		return nil
	}
	if len(c.runs) > 0 {
		err := c.unit.Forbid()
		a.mu.Unlock()
		if err == nil {
			err = c.unit.Stop(ctx)
		}
		if err != nil {
			return err
		}
		a.mu.Lock()
		c.runs = nil
		want = a.want(c)
	}
	if len(want) == 0 || a.Clock.Now() >= a.deadline {
		a.mu.Unlock()
		return nil
	}
	c.runs = want
	generation := a.generation
	share := a.share(want)
	err := c.unit.Allow(share)
	a.mu.Unlock()
	if err == nil {
		a.Log.Info("begins", "unit", c.name, "share", share)
		err = c.unit.Start(ctx)
	}
	a.mu.Lock()
	killed := a.generation != generation
	a.mu.Unlock()
	if err == nil && !killed {
		return nil
	}
	// All was ended while this began: whatever has become of it, it is ended once more.
	if forbidden := c.unit.Forbid(); err == nil {
		err = forbidden
	}
	c.unit.Kill()
	a.mu.Lock()
	defer a.mu.Unlock()
	c.runs = nil
	return err
}

// want are the parts that a service is to run. The lock is held.
func (a *Agent) want(c *charge) []int {
	var parts []int
	for i, h := range a.held {
		if h.ready && !h.leaving && a.parts[i].timers() == c.timers {
			parts = append(parts, i)
		}
	}
	slices.Sort(parts)
	return parts
}

// share is what a service is told to run: ranges, or nothing for the timers.
func (a *Agent) share(parts []int) string {
	var list []Part
	for _, i := range parts {
		if !a.parts[i].timers() {
			list = append(list, a.parts[i])
		}
	}
	return Ranges(list)
}
