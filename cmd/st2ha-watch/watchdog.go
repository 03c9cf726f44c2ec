package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/relay"
	"st2ha/internal/spool"
	"st2ha/internal/watch"
)

const (
	spoolName     = "spool"          // in the state directory
	incidentsName = "incidents.json" // there too
	spoolLimit    = 64 << 20         // bytes: some 100,000 events
	diskPause     = 2 * time.Second  // until a disk that took no event is tried again
)

// watchdog heals what it sees on this node, and keeps all events in dir until a
// broker has taken them, until ctx ends.
func watchdog(ctx context.Context, p *prober, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", p.node, err)
	}
	s, err := spool.Open(filepath.Join(dir, spoolName), spoolLimit)
	if err != nil {
		return fault.Failed("spool", "systemctl status st2ha-watchdog shows another one that runs", "%s: %w", p.node, err)
	}
	defer s.Close()
	queue := watch.NewQueue(queued)
	h := newHealer(p, queue)
	keeper := &keeper{ctx: ctx, spool: s, log: p.log, file: filepath.Join(dir, incidentsName)}
	keeper.load()
	put := p.filter(keeper.open, queue.Put)
	p.watch(source, keeper.open, func(e watch.Event) {
		p.log.Info("state", "backend", e.Backend, "endpoint", e.Endpoint, "state", e.State, "previous", e.Previous, "reason", e.Reason, "id", e.ID)
		put(e)
		h.kick()
	})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := p.follow(ctx)
	outbox := &relay.Outbox{Spool: s, Dial: p.dial, Log: p.log, Refused: func(err error) {
		tellRefused(queue, p.watcher.Node(), source, err)
	}}
	sent := ending(func() { outbox.Run(ctx) })
	healed := ending(func() { h.run(ctx) })
	written := ending(func() { _ = queue.Write(ctx, keeper) })
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

// keeper keeps lines in the spool, and which incidents are open.
type keeper struct {
	ctx   context.Context
	spool *spool.Spool
	log   *slog.Logger
	file  string // of incidents
	open  []watch.Incident
}

// load reads the incidents of a former run.
func (k *keeper) load() {
	data, err := os.ReadFile(k.file)
	if err == nil {
		err = json.Unmarshal(data, &k.open)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.log.Warn("incidents of before are not known, and are told anew", "error", err)
		k.open = nil
	}
	for i, now := 0, time.Now(); i < len(k.open); i++ {
		if k.open[i].Began.After(now) { // the clock was set back since
			k.open[i].Began = now
		}
	}
}

// Write keeps one line. It waits for a disk that is full.
func (k *keeper) Write(line []byte) (int, error) {
	var e watch.Event
	id := messageID(line)
	isEvent := json.Unmarshal(line, &e) == nil && e.Event == watch.EventChanged
	if isEvent {
		id = e.MessageID()
	}
	for told := false; ; told = true {
		lost, err := k.spool.Append(id, bytes.TrimSuffix(line, []byte("\n")))
		if lost > 0 {
			k.log.Error("the spool is full: the oldest events had to go", "lost", lost)
		}
		if err == nil {
			break
		}
		if !told {
			k.log.Error("an event cannot be kept yet", "error", err)
		}
		select {
		case <-k.ctx.Done():
			return 0, err
		case <-time.After(diskPause):
		}
	}
	if isEvent {
		k.note(e)
	}
	return len(line), nil
}

// note writes the open incidents down, after the event: a kill in between has
// the next run tell it again, under the same id.
func (k *keeper) note(e watch.Event) {
	before := len(k.open)
	k.open = watch.Note(k.open, e)
	if before == 0 && len(k.open) == 0 {
		return
	}
	data, err := json.Marshal(k.open)
	if err == nil {
		err = host.NewLocal("").WriteFile(context.WithoutCancel(k.ctx), host.File{Path: k.file, Data: data, Mode: 0o600, UID: os.Getuid(), GID: os.Getgid()})
	}
	if err != nil {
		k.log.Error("note the open incidents", "error", err)
	}
}

// messageID is the name of a line that is no change of state.
func messageID(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:12])
}
