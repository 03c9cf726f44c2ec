package mongodb

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"st2ha/internal/host"
	"st2ha/internal/probe"
	"st2ha/internal/secure"
	"st2ha/internal/wait"
)

// Members are those of a replica set that its servers name and the URI does
// not: StackStorm's driver uses them all, so all are watched. It is safe for
// concurrent use; nil has none.
type Members struct {
	mu   sync.Mutex
	said map[string]set // by the server of the URI that said so
}

// set is what a server says of its replica set.
type set struct {
	me      string // its own name in the set
	members []Member
}

// Member is one of a replica set.
type Member struct {
	Addr    string // host:port
	Arbiter bool   // it holds no data, and so no users to log in as
}

const (
	maxMembers    = 50 // of a replica set (MongoDB manual, limits)
	resolveTime   = 2 * time.Second
	resolveEvery  = time.Minute
	unresolvedFor = 10 * time.Second // until a name that is not known is looked up again
)

// NewMembers knows of none.
func NewMembers() *Members { return &Members{said: map[string]set{}} }

// Of are the members beside these servers, which are those of the URI. What
// others have said before is forgotten.
func (m *Members) Of(servers []string) []Member {
	if m == nil {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	known := map[string]bool{} // under the URI's names, or under the set's
	for _, server := range servers {
		known[strings.ToLower(server)], known[m.said[server].me] = true, true
	}
	var all []Member
	for from, set := range m.said {
		if !slices.Contains(servers, from) {
			delete(m.said, from)
			continue
		}
		for _, member := range set.members {
			if !known[member.Addr] {
				known[member.Addr] = true
				all = append(all, member)
			}
		}
	}
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.Addr, b.Addr) })
	return all[:min(len(all), maxMembers)]
}

// String is what was said, in a form that tells one state from another.
func (m *Members) String() string {
	if m == nil {
		return ""
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Sprint(m.said) // fmt sorts maps
}

// heard notes what a server of the URI says of its set: text from a server, of
// which only addresses that are some are taken, and no more than a set can have.
// The server itself is watched under the address that the URI has. An address
// on loopback means another machine to each who reads it, so it counts only
// where the server was reached by such a one.
func (m *Members) heard(from string, h hello) {
	if m == nil || h.SetName == "" {
		return
	}
	said := set{}
	if isAddr(h.Me) {
		said.me = strings.ToLower(h.Me)
	}
	add := func(list []string, arbiter bool) {
		for _, addr := range list[:min(len(list), maxMembers)] {
			addr = strings.ToLower(addr)
			if len(said.members) < maxMembers && isAddr(addr) && (!probe.OnLoopback(addr) || probe.OnLoopback(from)) {
				said.members = append(said.members, Member{addr, arbiter})
			}
		}
	}
	add(h.Hosts, false)
	add(h.Passives, false)
	add(h.Arbiters, true)
	// another order is no other set
	slices.SortFunc(said.members, func(a, b Member) int { return strings.Compare(a.Addr, b.Addr) })
	m.mu.Lock()
	defer m.mu.Unlock()
	m.said[from] = said
}

// isAddr says whether a text is host:port.
func isAddr(text string) bool {
	name, port, err := net.SplitHostPort(text)
	if err != nil || host.CheckAddress("member", name) != nil {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0 && port == strconv.FormatUint(n, 10)
}

// resolved watches a member once its name is known here: a set may name its
// members as only they know each other, and then nothing can be told of them.
// A name that was known stays so, also while the resolver is away.
func resolved(addr string, watch func(secure.ContextDialer) probe.Func) probe.Func {
	name, port, _ := net.SplitHostPort(addr)
	if net.ParseIP(name) != nil {
		return watch(&net.Dialer{})
	}
	return func(ctx context.Context, report func(probe.Observation)) {
		d := &namedDialer{port: port}
		for !d.resolve(ctx, name) {
			report(probe.Observation{Probe: probe.Connection, Verdict: probe.Unknown, At: time.Now(),
				Reason: "the replica set names this member, but its name cannot be resolved here: " + name})
			if wait.Sleep(ctx, unresolvedFor) != nil {
				return
			}
		}
		looking := make(chan struct{})
		ctx, cancel := context.WithCancel(ctx)
		defer func() { cancel(); <-looking }()
		go func() {
			defer close(looking)
			for wait.Sleep(ctx, resolveEvery) == nil {
				d.resolve(ctx, name)
			}
		}()
		watch(d)(ctx, report)
	}
}

// namedDialer dials the addresses that a name had when it was last resolved.
type namedDialer struct {
	port string
	mu   sync.Mutex
	ips  []string
}

func (d *namedDialer) resolve(ctx context.Context, name string) bool {
	ctx, cancel := context.WithTimeout(ctx, resolveTime)
	defer cancel()
	ips, err := net.DefaultResolver.LookupHost(ctx, name)
	if err != nil || len(ips) == 0 {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ips = ips
	return true
}

// DialContext connects to the first address that takes it.
func (d *namedDialer) DialContext(ctx context.Context, network, _ string) (conn net.Conn, err error) {
	d.mu.Lock()
	ips := d.ips
	d.mu.Unlock()
	for _, ip := range ips {
		if conn, err = new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(ip, d.port)); err == nil {
			return conn, nil
		}
	}
	return nil, err
}
