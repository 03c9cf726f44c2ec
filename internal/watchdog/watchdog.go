// Package watchdog heals what a node's prober finds down, with systemd and the
// node's own tools, so that it works also while StackStorm can run nothing; and
// it keeps all events until a broker has taken them.
package watchdog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/heal"
	"st2ha/internal/incident"
	"st2ha/internal/output"
	"st2ha/internal/relay"
	"st2ha/internal/spool"
	"st2ha/internal/wait"
	"st2ha/internal/watch"
)

// The spool of events.
const (
	SpoolName  = "spool"  // in the state directory
	SpoolLimit = 64 << 20 // bytes: some 100,000 events
)

// Watchdog heals what it sees on its node.
type Watchdog struct {
	Prober   *watch.Prober
	Dir      string        // where events and incidents are kept
	RuleTime time.Duration // that a rule of StackStorm has to mend what needs no watchdog; 60 s
}

// Run heals, and keeps all events until a broker has taken them, until ctx ends.
func (w *Watchdog) Run(ctx context.Context) error {
	p, log := w.Prober, w.Prober.Log
	if err := os.Mkdir(w.Dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", p.Host.Name(), err)
	}
	s, err := spool.Open(filepath.Join(w.Dir, SpoolName), SpoolLimit)
	if err != nil {
		return fault.Failed("spool", "systemctl status st2ha-watchdog shows another one that runs",
			"%s: %w", p.Host.Name(), err)
	}
	defer s.Close()
	queue := output.NewQueue(output.QueueSize)
	keeper := output.NewKeeper(ctx, s, w.Dir, log)
	put := p.Filter(keeper.Open(), queue.Put)
	kicked := make(chan struct{}, 1)
	p.Begin(source, keeper.Open(), func(e incident.Event) {
		log.Info("state", "backend", e.Backend, "endpoint", e.Endpoint, "state", e.State, "previous", e.Previous,
			"reason", e.Reason, "id", e.ID)
		put(e)
		select {
		case kicked <- struct{}{}:
		default:
		}
	})
	h := newHealer(p.Host, p.Watcher, log)
	h.count, h.gaveUp = p.Metrics.Healed, p.Metrics.GaveUp
	h.report = queue.PutHeal
	h.mender.ruleTime(w.RuleTime)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := p.Follow(ctx)
	outbox := &relay.Outbox{Spool: s, Dial: p.Dial, Back: p.Back(), Log: log, Refused: func(err error) {
		RelayRefused(queue, p.Watcher.Node(), source, err)
	}}
	sent := wait.Ending(func() { outbox.Run(ctx) })
	healed := wait.Ending(func() { h.run(ctx, kicked) })
	written := wait.Ending(func() { _ = queue.Write(ctx, keeper) })
	<-ctx.Done()
	wait.For(watched, watch.StopTime)
	wait.For(written, output.FlushTime)
	wait.For(sent, output.FlushTime)
	wait.For(healed, output.FlushTime)
	return nil
}

// RelayRefused has people know that events cannot be relayed, and why.
func RelayRefused(queue *output.Queue, node, by string, reason error) {
	queue.PutHeal(heal.Event{Event: heal.EventGaveUp, Target: relay.Queue, Node: node, By: by, At: time.Now(),
		Reason: "events cannot be relayed: " + reason.Error()})
}
