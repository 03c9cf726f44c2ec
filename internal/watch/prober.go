package watch

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"st2ha/internal/backend"
	"st2ha/internal/backend/all"
	broker "st2ha/internal/backend/rabbitmq"
	"st2ha/internal/discover"
	"st2ha/internal/host"
	"st2ha/internal/incident"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/wait"
)

const (
	lookEvery  = 5 * time.Second  // at the files that endpoints come from
	retryEvery = 30 * time.Second // what could not be found out
)

// Prober watches the endpoints that this node's configuration names.
type Prober struct {
	Config  backend.Config
	Host    host.Host
	Log     *slog.Logger
	Metrics *Metrics
	Watcher *Watcher // since Begin

	node     string // if no address of it is known
	brokers  atomic.Pointer[[]rabbitmq.Login]
	backends []backend.Backend
	logged   map[string]bool // problems

	mu   sync.Mutex
	back []chan<- struct{} // told when a broker is up
}

// NewProber watches nothing yet. node is this node's name where no address of it is known.
func NewProber(node string, config backend.Config, log *slog.Logger) *Prober {
	return &Prober{Config: config, Host: host.NewLocal(node), Log: log, Metrics: newMetrics(),
		node: node, backends: all.Backends(), logged: map[string]bool{}}
}

// Filter passes to put what is to become a trigger.
func (p *Prober) Filter(open []incident.Incident, put func(incident.Event)) func(incident.Event) {
	f := incident.NewFilter(p.Config.SuspectEvents, open)
	f.LeftOut = func(e incident.Event) {
		p.Metrics.LeftOut.Inc()
		p.Log.Warn("an event is left out: there were too many in ten minutes",
			"backend", e.Backend, "endpoint", e.Endpoint, "state", e.State)
	}
	return func(e incident.Event) {
		if e, ok := f.Pass(e); ok {
			put(e)
		}
	}
}

// Begin makes the watcher whose events go to event. source is what they say
// they come from, open the incidents of a former run.
func (p *Prober) Begin(source string, open []incident.Incident, event func(incident.Event)) {
	rules := incident.DefaultRules()
	if d := p.Config.UpFor(); d > 0 {
		rules.UpFor = d
	}
	set := incident.NewSet(source, rules)
	set.Restore(open)
	p.Watcher = NewWatcher(set, func(e incident.Event) {
		p.Metrics.changed(e)
		if e.Backend == broker.Name && e.State == incident.Up {
			p.brokerBack()
		}
		event(e)
	})
	p.Watcher.Seen = p.Metrics.seen
}

// Heard is what endpoints have said of others that belong to them, in a form
// that tells one state from another.
func (p *Prober) Heard() string {
	var heard []string
	for _, b := range p.backends {
		if b.Learned != nil {
			heard = append(heard, b.Learned())
		}
	}
	return strings.Join(heard, "\n")
}

// Find finds the endpoints, and logs each problem once.
func (p *Prober) Find(ctx context.Context) (found discover.Found) {
	found = discover.Find(ctx, p.Host, p.Config, p.backends)
	for _, err := range found.Problems {
		if text := err.Error(); !p.logged[text] {
			p.logged[text] = true
			p.Log.Warn("some of what is to be watched could not be found out", "error", text)
		}
	}
	p.brokers.Store(&found.Brokers)
	found.Node = cmp.Or(found.Node, p.node)
	return found
}

// Follow watches until ctx ends, and begins anew when the files that endpoints
// come from have changed. ended is closed when nothing is watched any more.
func (p *Prober) Follow(ctx context.Context) (ended <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer p.Watcher.Stop()
		p.loop(ctx)
	}()
	return done
}

func (p *Prober) loop(ctx context.Context) {
	for ctx.Err() == nil {
		before := p.fingerprint(ctx)
		found := p.Find(ctx)
		p.Log.Info("watching", "node", found.Node, "endpoints", len(found.Endpoints))
		p.Metrics.watching(found.Endpoints)
		p.Watcher.Watch(ctx, found.Node, found.Endpoints)
		tried := time.Now()
		for p.fingerprint(ctx) == before {
			if wait.Sleep(ctx, lookEvery) != nil {
				return
			}
			if len(found.Problems) > 0 && time.Since(tried) >= retryEvery {
				if tried = time.Now(); fmt.Sprint(p.Find(ctx).Problems) != fmt.Sprint(found.Problems) {
					break
				}
			}
		}
	}
}

// fingerprint tells one state of what endpoints come from from another: the
// files, and the members that a replica set names.
func (p *Prober) fingerprint(ctx context.Context) [sha256.Size]byte {
	sum := sha256.New()
	for _, name := range discover.Files() {
		f, err := p.Host.ReadFile(ctx, name)
		fmt.Fprintf(sum, "%s %d %q %v\n", name, len(f.Data), f.Data, err)
	}
	fmt.Fprint(sum, p.Heard())
	return [sha256.Size]byte(sum.Sum(nil))
}

// Back says when a broker is up, again or for the first time: who uses Dial need not wait out a pause then.
func (p *Prober) Back() <-chan struct{} {
	back := make(chan struct{}, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.back = append(p.back, back)
	return back
}

func (p *Prober) brokerBack() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, back := range p.back {
		select {
		case back <- struct{}{}:
		default:
		}
	}
}

// Dial connects to the first node of the broker that takes the login.
func (p *Prober) Dial(ctx context.Context) (*rabbitmq.Connection, error) {
	var all []error
	if brokers := p.brokers.Load(); brokers != nil {
		for _, l := range *brokers {
			conn, err := rabbitmq.Dial(ctx, &net.Dialer{}, l)
			if err == nil {
				return conn, nil
			}
			all = append(all, err)
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no broker is known")
	}
	return nil, errors.Join(all...)
}
