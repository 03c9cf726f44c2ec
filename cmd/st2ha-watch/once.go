package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/incident"
	"st2ha/internal/wait"
	"st2ha/internal/watch"
)

const (
	onceAtLeast = 1500 * time.Millisecond // some probes of each kind
	onceAtMost  = 6 * time.Second         // enough for a login that is not answered
)

// once prints the state of all endpoints, and returns 1 if one is not up.
func once(ctx context.Context, p *watch.Prober, out io.Writer) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, onceAtMost)
	p.Begin("once", nil, func(incident.Event) {})
	found := p.Find(ctx)
	p.Watcher.Watch(ctx, found.Node, found.Endpoints)
	defer func() { cancel(); p.Watcher.Stop() }()
	started := time.Now()
	members := p.Heard()
	for ctx.Err() == nil && (time.Since(started) < onceAtLeast || !settled(p.Watcher.Statuses())) {
		_ = wait.Sleep(ctx, 50*time.Millisecond)
		// A replica set has named its members: they are part of the table.
		if said := p.Heard(); said != members && ctx.Err() == nil {
			members = said
			if more := p.Find(ctx); len(more.Endpoints) != len(found.Endpoints) {
				found = more
				p.Watcher.Watch(ctx, found.Node, found.Endpoints)
			}
		}
	}
	all := p.Watcher.Statuses()
	code := 0
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BACKEND\tENDPOINT\tSTATE\tLATENCY\tREASON")
	for _, s := range all {
		if s.State != incident.Up {
			code = 1
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", s.Backend, fault.Printable(s.Name), s.State, p.Metrics.Latency(s.Key),
			fault.Printable(s.Reason))
	}
	if len(found.Endpoints) == 0 {
		code = 1
		fmt.Fprintln(w, "nothing to watch was found")
	}
	return code, w.Flush()
}

// settled says whether all is known: suspects may still be down.
func settled(all []incident.Status) bool {
	for _, s := range all {
		if s.State != incident.Up && s.State != incident.Down {
			return false
		}
	}
	return true
}
