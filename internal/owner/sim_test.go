package owner

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

var seeds = flag.Int("seeds", 30, "how many clusters TestNeverTwo lets live")

// world is a broker and nodes in a bubble of testing/synctest: hours take milliseconds. Its time is nobody's clock.
type world struct {
	mu       sync.Mutex
	rand     *rand.Rand
	down     bool // the broker
	sessions map[*simSession]bool
	nodes    []*simNode
}

func (w *world) between(least, most time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return least + time.Duration(w.rand.Int64N(int64(most-least)))
}

// simNode is a node: it can be cut from the broker in each direction, frozen, killed, and its clock has its own speed.
type simNode struct {
	world  *world
	name   string
	config Config

	mu       sync.Mutex
	speed    float64
	thawed   chan struct{} // closed unless it is frozen
	toBroker bool          // what it sends is lost
	fromIt   bool          // what the broker sends is lost
	alarm    time.Duration
	armed    chan struct{}
	units    [2]*simUnit
	stop     context.CancelFunc
	stopped  chan struct{}
}

// gate holds whatever the node does while it is frozen.
func (n *simNode) gate() {
	for {
		n.mu.Lock()
		thawed := n.thawed
		n.mu.Unlock()
		select {
		case <-thawed:
			return
		default:
			<-thawed
		}
	}
}

func (n *simNode) frozen() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.thawed:
		return false
	default:
		return true
	}
}

var simBegin = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Now goes on while the node is frozen, as CLOCK_BOOTTIME does.
func (n *simNode) Now() time.Duration {
	n.gate()
	return n.now()
}

func (n *simNode) now() time.Duration { return time.Duration(float64(time.Since(simBegin)) * n.speed) }

func (n *simNode) Set(at time.Duration) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.alarm = at
	select {
	case n.armed <- struct{}{}:
	default:
	}
	return nil
}

func (n *simNode) Wait(ctx context.Context) error {
	for {
		n.mu.Lock()
		at := n.alarm
		n.mu.Unlock()
		var due <-chan time.Time
		if at > 0 {
			due = time.After(time.Duration(float64(at-n.now())/n.speed) + time.Nanosecond)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.armed:
		case <-due:
			n.mu.Lock()
			same := n.alarm == at
			if same {
				n.alarm = 0
			}
			n.mu.Unlock()
			if same {
				n.gate()
				return nil
			}
		}
	}
}

// simUnit is a service of a node. It runs from within Start until Stop or Kill end.
type simUnit struct {
	node *simNode

	mu      sync.Mutex
	file    *string
	running *string
}

func (u *simUnit) Allow(share string) error {
	u.node.gate()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.file = &share
	return nil
}

func (u *simUnit) Forbid() error {
	u.node.gate()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.file = nil
	return nil
}

func (u *simUnit) Start(context.Context) error {
	time.Sleep(u.node.world.between(0, 2*time.Second))
	u.node.gate()
	u.mu.Lock()
	u.running = u.file // ConditionPathExists
	u.mu.Unlock()
	time.Sleep(u.node.world.between(0, time.Second))
	u.node.gate()
	if u.node.world.between(0, 100) == 0 {
		return errors.New("systemctl: a time-out, though it runs")
	}
	return nil
}

func (u *simUnit) Stop(context.Context) error {
	most := 10 * time.Second
	if u.node.world.between(0, 4) == 0 {
		most = time.Minute // TimeoutSec of StackStorm's units
	}
	time.Sleep(u.node.world.between(0, most))
	u.node.gate()
	if u.node.world.between(0, 50) == 0 {
		return errors.New("systemctl: a time-out")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.running = nil
	return nil
}

func (u *simUnit) Kill() {
	u.node.gate()
	u.mu.Lock()
	u.running = nil
	u.mu.Unlock()
}

// simSession is a connection as the broker has it: it ends when the broker has noticed that nothing comes any more.
type simSession struct {
	node   *simNode
	silent time.Time // since when the broker has heard nothing, or the zero time
	left   bool      // its node has closed it
	ended  bool
	queues map[string]bool
}

var errLost = errors.New("the connection is lost")

// ask takes a question to the broker, has it do something, and the answer back.
func (n *simNode) ask(s *simSession, do func()) error {
	n.gate()
	time.Sleep(n.world.between(0, 20*time.Millisecond))
	if n.world.between(0, 200) == 0 { // a broker that is slow now and then
		time.Sleep(n.world.between(0, 4*time.Second))
	}
	n.mu.Lock()
	lost := n.toBroker
	n.mu.Unlock()
	w := n.world
	w.mu.Lock()
	gone := w.down || s != nil && s.ended
	if !lost && !gone {
		do()
	}
	w.mu.Unlock()
	n.mu.Lock()
	lost = lost || n.fromIt
	n.mu.Unlock()
	if lost {
		time.Sleep(5 * time.Second) // the time of an answer
	}
	n.gate()
	if lost || gone {
		return errLost
	}
	return nil
}

func (n *simNode) Join(context.Context) (Session, error) {
	s := &simSession{node: n, queues: map[string]bool{}}
	refused := false
	err := n.ask(nil, func() {
		w := n.world
		for other := range w.sessions {
			if other.node.config.Fingerprint() != n.config.Fingerprint() || other.queues["member."+n.config.Node] {
				refused = true
				return
			}
		}
		s.queues["member."+n.config.Node] = true
		w.sessions[s] = true
	})
	if err == nil && refused {
		err = errors.New("the list of nodes is another one's, or a session of this node is still there")
	}
	if err != nil {
		n.leave(s) // the broker may have taken it up
		return nil, err
	}
	return s, nil
}

func (s *simSession) Ask(context.Context) error { return s.node.ask(s, func() {}) }

func (s *simSession) has(queue string) (mine, others bool) {
	for other := range s.node.world.sessions {
		if other.queues[queue] {
			mine, others = mine || other == s, others || other != s
		}
	}
	return mine, others
}

func (s *simSession) Present(_ context.Context, node string) (present bool, err error) {
	err = s.node.ask(s, func() { _, present = s.has("member." + node) })
	return present, err
}

func (s *simSession) Claim(_ context.Context, part string) (got bool, err error) {
	err = s.node.ask(s, func() {
		if _, others := s.has(part); !others {
			got = true
			s.queues[part] = true
		}
	})
	return got, err
}

func (s *simSession) Release(_ context.Context, part string) error {
	return s.node.ask(s, func() { delete(s.queues, part) })
}

// Close may reach the broker.
func (s *simSession) Close() {
	s.node.gate()
	s.node.leave(s)
}

// leave ends a session, of which the broker hears at once or when it notices.
func (n *simNode) leave(s *simSession) {
	n.mu.Lock()
	lost := n.toBroker
	n.mu.Unlock()
	n.world.mu.Lock()
	defer n.world.mu.Unlock()
	if s.left = true; !lost {
		n.world.end(s)
	}
}

// end takes a session's queues. The lock is held.
func (w *world) end(s *simSession) {
	s.ended = true
	delete(w.sessions, s)
}

// notice has the broker end sessions of which it hears nothing, for 10 to 30 s.
func (w *world) notice() {
	now := time.Now()
	patience := w.between(10*time.Second, 30*time.Second)
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.sessions {
		s.node.mu.Lock()
		cut := s.node.toBroker || s.node.fromIt
		s.node.mu.Unlock()
		switch {
		case !cut && !s.node.frozen() && !s.left:
			s.silent = time.Time{}
		case s.silent.IsZero():
			s.silent = now
		case now.Sub(s.silent) > patience:
			w.end(s)
		}
	}
}

// boot runs a node's agent.
func (n *simNode) boot(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	n.mu.Lock()
	n.stop, n.stopped, n.alarm = cancel, stopped, 0
	n.mu.Unlock()
	a := &Agent{Config: n.config, Broker: n, Sensors: n.units[0], Timers: n.units[1], Clock: n, Alive: func() {},
		Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	go func() {
		defer close(stopped)
		_ = a.Run(ctx, func() {})
	}()
}

func newWorld(seed uint64, nodes int) *world {
	w := &world{rand: rand.New(rand.NewPCG(seed, 1)), sessions: map[*simSession]bool{}}
	c := cluster(nodes)
	for _, name := range c.Nodes {
		n := &simNode{world: w, name: name, config: Config{Node: name, Cluster: c}, armed: make(chan struct{}, 1),
			thawed: make(chan struct{}), speed: 1 + (w.rand.Float64()-0.5)/50} // 1 % too fast or too slow
		close(n.thawed)
		n.units = [2]*simUnit{{node: n}, {node: n}}
		w.nodes = append(w.nodes, n)
	}
	return w
}

// owners says which nodes run a part now; a frozen one's sensors do nothing.
func (w *world) owners(p Part) []string {
	var names []string
	for _, n := range w.nodes {
		if n.frozen() {
			continue
		}
		u := n.units[0]
		if p.timers() {
			u = n.units[1]
		}
		u.mu.Lock()
		if u.running != nil && (p.timers() || covers(*u.running, p)) {
			names = append(names, n.name)
		}
		u.mu.Unlock()
	}
	return names
}

func covers(ranges string, p Part) bool {
	return slices.ContainsFunc(strings.Split(ranges, "|"), func(text string) bool {
		var start, end uint64
		_, _ = fmt.Sscanf(text, "%d..%d", &start, &end)
		return start <= p.Start && p.End <= end
	})
}

func (n *simNode) freeze() {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.thawed:
		n.thawed = make(chan struct{})
	default:
	}
}

func (n *simNode) thaw() {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.thawed:
	default:
		close(n.thawed)
	}
}

func (n *simNode) cut(to, from bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.toBroker, n.fromIt = to, from
}

// crash ends the agent as SIGKILL does: systemd ends what it ran.
func (n *simNode) crash(t *testing.T) {
	n.thaw()
	n.stop()
	<-n.stopped
	n.world.mu.Lock()
	for s := range n.world.sessions {
		if s.node == n {
			n.world.end(s)
		}
	}
	n.world.mu.Unlock()
	n.boot(t)
}

// disturb does something bad to a node, or to the broker, and says what.
func (w *world) disturb(t *testing.T) string {
	n := w.nodes[w.between(0, time.Duration(len(w.nodes)))]
	switch w.between(0, 9) {
	case 0:
		n.freeze()
		return n.name + " frozen"
	case 1, 2:
		n.thaw()
		return n.name + " thawed"
	case 3:
		n.cut(true, true)
		return n.name + " cut"
	case 4:
		n.cut(true, false)
		return n.name + " cut to the broker"
	case 5:
		n.cut(false, true)
		return n.name + " cut from the broker"
	case 6:
		n.cut(false, false)
		return n.name + " healed"
	case 7:
		n.crash(t)
		return n.name + " crashed"
	default:
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.down = !w.down; w.down {
			for s := range w.sessions {
				w.end(s)
			}
			return "the broker is down"
		}
		return "the broker is up"
	}
}

// heal ends all that was done.
func (w *world) heal() {
	w.mu.Lock()
	w.down = false
	w.mu.Unlock()
	for _, n := range w.nodes {
		n.cut(false, false)
		n.thaw()
	}
}

// longest is what a takeover takes at most: the broker's patience, away, and the services' stop and start.
const longest = 30*time.Second + 60*time.Second + 90*time.Second

// Whatever happens to nodes, network and broker, no part has two owners at any moment; and once that is over each has
// its home again.
func TestNeverTwo(t *testing.T) {
	for seed := range uint64(*seeds) {
		nodes := int(seed%4) + 1
		t.Run(fmt.Sprintf("%d nodes, seed %d", nodes, seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(seed, nodes)
				for _, n := range w.nodes {
					n.boot(t)
				}
				w.live(t, 40*time.Minute)
				for _, n := range w.nodes {
					n.stop()
					<-n.stopped
				}
				for _, p := range w.nodes[0].config.Parts() {
					require.Empty(t, w.owners(p), "an agent that ends leaves nothing behind")
				}
			})
		})
	}
}

func (w *world) live(t *testing.T, span time.Duration) {
	const tick = 100 * time.Millisecond
	parts := w.nodes[0].config.Parts()
	var story []string
	begin := time.Now()
	end, next := begin.Add(span), begin.Add(w.between(0, 3*time.Minute))
	ran := 0
	for time.Now().Before(end) {
		time.Sleep(tick)
		if now := time.Now(); now.After(next) {
			story = append(story, fmt.Sprintf("%s %s", now.Sub(begin).Round(tick), w.disturb(t)))
			next = now.Add(w.between(0, time.Minute))
			if w.between(0, 4) == 0 {
				next = now.Add(w.between(0, 5*time.Minute))
			}
			if w.between(0, 12) == 0 {
				w.heal()
				story = append(story, "all healed")
			}
			time.Sleep(time.Millisecond) // what was thawed has its alarm first
		}
		w.notice()
		synctest.Wait()
		for _, p := range parts {
			owners := w.owners(p)
			ran += len(owners)
			if len(owners) > 1 {
				t.Fatalf("after %s %s has the owners %v\n%s", time.Since(begin).Round(tick), p.Name, owners,
					strings.Join(story, "\n"))
			}
		}
	}
	require.Positive(t, ran, "nothing ever ran")
	w.heal()
	for range int(2 * longest / time.Second) {
		time.Sleep(time.Second)
		w.notice()
		synctest.Wait()
	}
	for _, p := range parts {
		require.Equal(t, []string{w.nodes[p.Order[0]].name}, w.owners(p), "the home of %s, after\n%s", p.Name,
			strings.Join(story, "\n"))
	}
}

// settleDown lets a quiet cluster find its owners.
func (w *world) settleDown() {
	for range int(longest / time.Second) {
		time.Sleep(time.Second)
		w.notice()
	}
	synctest.Wait()
}

// A node that is lost: the others have its parts once, and within the time that is promised; with all that it had spread
// over them. What they had themselves, they keep. When it is back for a while, it has all again.
func TestTakeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, 3)
		for _, n := range w.nodes {
			n.boot(t)
		}
		w.settleDown()
		parts := w.nodes[0].config.Parts()
		changes := map[string][]string{} // of the owners of each part
		watch := func(span time.Duration) (gap time.Duration) {
			gaps := map[string]time.Duration{}
			for range int(span / time.Second) {
				time.Sleep(time.Second)
				w.notice()
				synctest.Wait()
				for _, p := range parts {
					owners := strings.Join(w.owners(p), " ")
					if owners == "" {
						gaps[p.Name] += time.Second
						gap = max(gap, gaps[p.Name])
						continue
					}
					gaps[p.Name] = 0
					if all := changes[p.Name]; len(all) == 0 || all[len(all)-1] != owners {
						changes[p.Name] = append(all, owners)
					}
				}
			}
			return gap
		}
		require.Zero(t, watch(time.Minute))
		lost := w.nodes[2]
		lost.cut(true, true)
		require.Less(t, watch(2*longest), longest)
		require.Empty(t, lost.units[0].running, "it was only cut off, and has stopped by itself")
		lost.cut(false, false)
		require.Less(t, watch(2*longest), longest)
		a, b, c := w.nodes[0].name, w.nodes[1].name, lost.name
		require.Equal(t, map[string][]string{"0.0": {a}, "0.1": {a}, "1.0": {b}, "1.1": {b}, "2.0": {c, a, c},
			"2.1": {c, b, c}, "timers": {a}}, changes)
		for _, n := range w.nodes {
			n.stop()
			<-n.stopped
		}
	})
}

// A cut that is shorter than the lease, and a broker's restart, stop nothing.
func TestShortCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2, 2)
		for _, n := range w.nodes {
			n.boot(t)
		}
		w.settleDown()
		parts := w.nodes[0].config.Parts()
		run := func(span time.Duration) {
			for range int(span / time.Second) {
				time.Sleep(time.Second)
				synctest.Wait()
				for _, p := range parts {
					require.Equal(t, []string{w.nodes[p.Order[0]].name}, w.owners(p))
				}
			}
		}
		w.nodes[1].cut(true, true)
		w.mu.Lock()
		for s := range w.sessions { // the broker notices at once
			if s.node == w.nodes[1] {
				w.end(s)
			}
		}
		w.mu.Unlock()
		run(15 * time.Second)
		w.nodes[1].cut(false, false)
		run(2 * time.Minute)
		w.mu.Lock()
		w.down = true
		for s := range w.sessions {
			w.end(s)
		}
		w.mu.Unlock()
		run(20 * time.Second)
		w.mu.Lock()
		w.down = false
		w.mu.Unlock()
		run(3 * time.Minute)
		for _, n := range w.nodes {
			n.stop()
			<-n.stopped
		}
	})
}
