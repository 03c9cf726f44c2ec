package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"st2ha/internal/incident"
	"st2ha/internal/output"
	"st2ha/internal/relay"
	"st2ha/internal/spool"
	"st2ha/internal/step"
	"st2ha/internal/wait"
	"st2ha/internal/watch"
	"st2ha/internal/watchdog"
)

const (
	lockTime  = 10 * time.Second // for a sensor that was killed to let its spool go
	lockEvery = 100 * time.Millisecond
)

// sensor hands changes of state, and those that watchdogs report, to its parent
// line by line, until ctx ends or the parent does. Its own are kept in a spool
// and the watchdogs' by the broker, until the parent says that they are taken.
func sensor(ctx context.Context, p *watch.Prober, proc process) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	acks, err := endWithParent(ctx, cancel, proc.stdin)
	if err != nil {
		return err
	}
	giver := &giver{ctx: ctx, out: proc.stdout, acks: acks, log: p.Log, merged: p.Metrics.Merged}
	if !p.Config.SuspectEvents { // who asks for all events gets those of all observers
		giver.merger = incident.NewMerger()
	}
	var spooled *spool.Spool
	var keeper *output.Keeper
	var open []incident.Incident
	if dir := proc.getenv("ST2HA_STATE_DIR"); dir == "" {
		p.Log.Warn("there is no directory to keep events in: what waits is lost when the sensor ends; " +
			"make one as root: install -d -m 700 -o UID /var/cache/st2ha-UID, UID being the number of this user")
	} else if spooled, err = openSpool(ctx, filepath.Join(dir, watchdog.SpoolName)); err != nil {
		p.Log.Warn("events cannot be kept: what waits is lost when the sensor ends", "error", err)
	} else {
		defer spooled.Close()
		keeper = output.NewKeeper(ctx, spooled, dir, p.Log)
		open = keeper.Open()
	}
	own, relayed := output.NewQueue(output.QueueSize), output.NewQueue(output.QueueSize)
	put := p.Filter(open, own.Put)
	p.Begin("sensor", open, func(e incident.Event) {
		p.Log.Debug("state", "backend", e.Backend, "endpoint", e.Endpoint, "state", e.State, "previous", e.Previous, "reason",
			e.Reason, "id", e.ID)
		put(e)
	})
	watched := p.Follow(ctx)
	roles := make(chan bool, 1) // whether another sensor is the one that gives events
	inbox := &relay.Inbox{Standby: func(standby bool) {
		select {
		case <-roles: // nobody took the former one
		default:
		}
		roles <- standby
	}, Dial: p.Dial, Back: p.Back(), Log: p.Log, Handle: relayed.PutLine, Refused: func(err error) {
		watchdog.RelayRefused(own, p.Watcher.Node(), "sensor", err)
	}}
	go inbox.Run(ctx)
	// Each of these ends early only if the parent reads no more, or the machine ends.
	pass := func(f func() error) <-chan struct{} {
		return wait.Ending(func() {
			defer cancel()
			if err := f(); err != nil && ctx.Err() == nil {
				p.Log.Error("print a change of state", "error", err)
			}
		})
	}
	var kept <-chan struct{}
	if spooled == nil {
		kept = pass(func() error { return own.Write(ctx, giver) })
	} else {
		kept = pass(func() error { return own.Write(ctx, keeper) })
		// Where sensors run on several nodes, one gives what all of them see, or
		// each fault would be as many triggers; the others send theirs there.
		outbox := &relay.Outbox{Spool: spooled, Dial: p.Dial, Back: p.Back(), Log: p.Log}
		pass(func() error {
			return takeTurns(ctx, roles, func(ctx context.Context) error { return giver.feed(ctx, spooled) },
				func(ctx context.Context) error { outbox.Run(ctx); return ctx.Err() })
		})
	}
	pass(func() error { return relayed.Write(ctx, giver) })
	if giver.merger != nil {
		pass(giver.late)
	}
	<-ctx.Done()
	wait.For(watched, watch.StopTime)
	wait.For(kept, output.FlushTime)
	return nil
}

// takeTurns gives or stands by, as roles says. What is being given is given to its end.
func takeTurns(ctx context.Context, roles <-chan bool, give, standBy func(context.Context) error) error {
	for standby := false; ; standby = !standby {
		turn, end := context.WithCancel(ctx)
		f, done := give, make(chan error, 1)
		if standby {
			f = standBy
		}
		go func() { done <- f(turn) }()
		for next := standby; next == standby; {
			select {
			case next = <-roles:
			case err := <-done:
				end()
				return err
			}
		}
		end()
		if err := <-done; ctx.Err() != nil || !errors.Is(err, context.Canceled) {
			return err
		}
	}
}

// openSpool opens the spool, also while a sensor that was killed still has it.
func openSpool(ctx context.Context, dir string) (s *spool.Spool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTime)
	defer cancel()
	err = step.Await(ctx, lockEvery, func(context.Context) (busy, err error) {
		if s, err = spool.Open(dir, watchdog.SpoolLimit); errors.Is(err, unix.EWOULDBLOCK) {
			return err, nil
		}
		return nil, err
	}, func(seen error) error { return seen })
	return s, err
}

// giver gives lines to the parent, one at a time and in order: the next one when
// the parent has said that one is taken, by a line with its output.LineID.
type giver struct {
	ctx  context.Context
	mu   sync.Mutex
	out  io.Writer
	acks <-chan string
	log  *slog.Logger

	merger *incident.Merger // nil: nothing is merged
	merged prometheus.Counter
}

// Put gives one message, and returns when it is taken. What another observer has
// reported already is taken without.
func (g *giver) Put(m output.Message) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	line, err := m.Line()
	if err != nil {
		return err
	}
	if e := change(m); g.merger != nil && e != nil && !g.merger.Pass(*e, bytes.Clone(line), time.Now()) {
		g.merged.Inc()
		g.log.Info("an event is another observer's, too, and is merged with it", "backend", e.Backend, "endpoint", e.Endpoint,
			"state", e.State, "node", e.Node, "source", e.Source, "id", e.ID, "so_far", g.merger.Merged())
		return nil
	}
	return g.give(line)
}

// change is the change of state that a message is, if it is one.
func change(m output.Message) *incident.Event {
	if m.JSON == nil {
		return m.Change
	}
	var e incident.Event
	if json.Unmarshal(m.JSON, &e) != nil || e.Event != incident.Changed {
		return nil
	}
	return &e
}

// late gives what was held back as another observer's, and is not, for ever.
func (g *giver) late() error {
	ticks := time.NewTicker(time.Second)
	defer ticks.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return g.ctx.Err()
		case <-ticks.C:
		}
		g.mu.Lock()
		for _, line := range g.merger.Due(time.Now()) {
			if err := g.give(line); err != nil {
				g.mu.Unlock()
				return err
			}
		}
		g.mu.Unlock()
	}
}

func (g *giver) give(line []byte) error {
	if err := g.ctx.Err(); err != nil {
		return err
	}
	if _, err := g.out.Write(append(bytes.Clone(line), '\n')); err != nil {
		return fmt.Errorf("the reader of stdout: %w", err)
	}
	id := output.LineID(line)
	for {
		select {
		case <-g.ctx.Done():
			return g.ctx.Err()
		case said := <-g.acks:
			if said == id {
				return nil
			}
			g.log.Warn("the reader has acknowledged what it was not given", "id", said)
		}
	}
}

// feed gives what the spool holds, until ctx ends.
func (g *giver) feed(ctx context.Context, s *spool.Spool) error {
	for {
		records, err := s.Read(output.QueueSize)
		if err != nil {
			g.log.Error("read events that wait", "error", err)
		}
		for _, r := range records {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := g.Put(output.Message{JSON: r.Data}); err != nil {
				return err
			}
			if err := s.Taken(r); err != nil {
				g.log.Error("note that an event is taken", "error", err) // it comes again after a restart
			}
		}
		if len(records) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.More():
		}
	}
}

// endWithParent has the process end with its parent: by the end of stdin, which
// a parent that still lives can close too, and by a signal, for the write end of
// a pipe may be held by others (prctl(2), PR_SET_PDEATHSIG). acks are the lines
// that come on stdin until then.
func endWithParent(ctx context.Context, cancel func(), stdin io.Reader) (acks <-chan string, err error) {
	parent := unix.Getppid()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return nil, err
	}
	if unix.Getppid() != parent { // it ended just before
		cancel()
	}
	lines := make(chan string)
	go func() {
		defer cancel()
		for s := bufio.NewScanner(stdin); s.Scan(); {
			select {
			case lines <- s.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	return lines, nil
}
