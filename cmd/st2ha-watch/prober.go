package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"st2ha/internal/host"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/watch"
)

const (
	lookEvery  = 5 * time.Second  // at the files that endpoints come from
	retryEvery = 30 * time.Second // what could not be found out
)

// prober watches the endpoints of this node's configuration.
type prober struct {
	node    string // if no address of it is known
	config  watch.Config
	host    host.Host
	log     *slog.Logger
	metrics *metrics
	brokers atomic.Pointer[[]rabbitmq.Login]
	watcher *watch.Watcher
	members *watch.Members
	rules   time.Duration   // ruleTime
	told    map[string]bool // problems that were logged
}

func newProber(node string, config watch.Config, log *slog.Logger) *prober {
	return &prober{node: node, members: watch.NewMembers(), config: config, host: host.NewLocal(node), log: log, metrics: newMetrics(), rules: ruleTime, told: map[string]bool{}}
}

// filter passes to put what is to become a trigger.
func (p *prober) filter(open []watch.Incident, put func(watch.Event)) func(watch.Event) {
	f := watch.NewFilter(p.config.SuspectEvents, open)
	f.LeftOut = func(e watch.Event) {
		p.metrics.leftOut.Inc()
		p.log.Warn("an event is left out: there were too many in ten minutes", "backend", e.Backend, "endpoint", e.Endpoint, "state", e.State)
	}
	return func(e watch.Event) {
		if e, ok := f.Pass(e); ok {
			put(e)
		}
	}
}

// watch makes the watcher whose events go to event. source is what they say
// they come from, open the incidents of a former run.
func (p *prober) watch(source string, open []watch.Incident, event func(watch.Event)) {
	set := watch.NewSet(source, p.config.Rules())
	set.Restore(open)
	p.watcher = watch.NewWatcher(set, func(e watch.Event) {
		p.metrics.changed(e)
		event(e)
	})
	p.watcher.Seen = p.metrics.seen
}

// find finds the endpoints, and logs each problem once.
func (p *prober) find(ctx context.Context) (found watch.Found) {
	found = watch.Find(ctx, p.host, p.config, p.members)
	for _, err := range found.Problems {
		if text := err.Error(); !p.told[text] {
			p.told[text] = true
			p.log.Warn("not all that is to be watched is known", "error", text)
		}
	}
	p.brokers.Store(&found.Brokers)
	found.Node = cmp.Or(found.Node, p.node)
	return found
}

// follow watches until ctx ends, and begins anew when the files that endpoints
// come from have changed. ended is closed when nothing is watched any more.
func (p *prober) follow(ctx context.Context) (ended <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer p.watcher.Stop()
		p.loop(ctx)
	}()
	return done
}

func (p *prober) loop(ctx context.Context) {
	for ctx.Err() == nil {
		before := p.fingerprint(ctx)
		found := p.find(ctx)
		p.log.Info("watching", "node", found.Node, "endpoints", len(found.Endpoints))
		p.metrics.watching(found.Endpoints)
		p.watcher.Watch(ctx, found.Node, found.Endpoints)
		tried := time.Now()
		for p.fingerprint(ctx) == before {
			select {
			case <-ctx.Done():
				return
			case <-time.After(lookEvery):
			}
			if len(found.Problems) > 0 && time.Since(tried) >= retryEvery {
				if tried = time.Now(); fmt.Sprint(p.find(ctx).Problems) != fmt.Sprint(found.Problems) {
					break
				}
			}
		}
	}
}

// fingerprint tells one state of what endpoints come from from another: the
// files, and the members that a replica set names.
func (p *prober) fingerprint(ctx context.Context) [sha256.Size]byte {
	sum := sha256.New()
	for _, name := range watch.Files() {
		f, err := p.host.ReadFile(ctx, name)
		fmt.Fprintf(sum, "%s %d %q %v\n", name, len(f.Data), f.Data, err)
	}
	fmt.Fprint(sum, p.members)
	return [sha256.Size]byte(sum.Sum(nil))
}

// dial connects to the first node of the broker that takes the login.
func (p *prober) dial(ctx context.Context) (*rabbitmq.Connection, error) {
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

// wait waits for something to end, but not for ever.
func wait(ended <-chan struct{}, limit time.Duration) {
	select {
	case <-ended:
	case <-time.After(limit):
	}
}
