package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/relay"
	"st2ha/internal/spool"
	"st2ha/internal/step"
	"st2ha/internal/watch"
)

const (
	spoolDir   = step.StateDir + "/spool"
	spoolLimit = 64 << 20        // bytes: some 100,000 events
	diskPause  = 2 * time.Second // until a disk that took no event is tried again
)

// watchdog heals what it sees on this node, and keeps all events until a
// broker has taken them, until ctx ends.
func watchdog(ctx context.Context, p *prober) error {
	s, err := spool.Open(spoolDir, spoolLimit)
	if err != nil {
		return fault.Failed("spool", "systemctl status st2ha-watchdog shows another one that runs", "%s: %w", p.node, err)
	}
	defer s.Close()
	queue := watch.NewQueue(queued)
	h := newHealer(p, queue)
	p.watch(source, func(e watch.Event) {
		p.log.Info("state", "backend", e.Backend, "endpoint", e.Endpoint, "state", e.State, "previous", e.Previous, "reason", e.Reason, "id", e.ID)
		queue.Put(e)
		h.kick()
	})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := p.follow(ctx)
	outbox := &relay.Outbox{Spool: s, Dial: p.dial, Log: p.log}
	sent := ending(func() { outbox.Run(ctx) })
	healed := ending(func() { h.run(ctx) })
	written := ending(func() { _ = queue.Write(ctx, &spooler{ctx: ctx, spool: s, log: p.log}) })
	<-ctx.Done()
	wait(watched, stopTime)
	wait(written, flushTime)
	wait(sent, flushTime)
	wait(healed, flushTime)
	return nil
}

// ending runs f, and closes ended after it.
func ending(f func()) (ended <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	return done
}

// spooler writes lines to the spool, and waits for a disk that is full.
type spooler struct {
	ctx   context.Context
	spool *spool.Spool
	log   *slog.Logger
}

// Write keeps one line.
func (s *spooler) Write(line []byte) (int, error) {
	id := messageID(line)
	for told := false; ; told = true {
		lost, err := s.spool.Append(id, line[:len(line)-1])
		if lost > 0 {
			s.log.Error("the spool is full: the oldest events had to go", "lost", lost)
		}
		if err == nil {
			return len(line), nil
		}
		if !told {
			s.log.Error("an event cannot be kept yet", "error", err)
		}
		select {
		case <-s.ctx.Done():
			return 0, err
		case <-time.After(diskPause):
		}
	}
}

// messageID is the event's own name; that of other lines follows from what they say.
func messageID(line []byte) string {
	var e watch.Event
	if json.Unmarshal(line, &e) == nil && e.ID != "" && e.Seq > 0 {
		return e.MessageID()
	}
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:12])
}
