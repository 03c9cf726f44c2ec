package main

import (
	"context"
	"io"

	"golang.org/x/sys/unix"

	"st2ha/internal/relay"
	"st2ha/internal/watch"
)

// sensor prints changes of state as lines, and those that watchdogs report,
// until ctx ends or the parent does.
func sensor(ctx context.Context, p *prober, proc process) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := endWithParent(cancel, proc.stdin); err != nil {
		return err
	}
	queue := watch.NewQueue(queued)
	p.watch("sensor", nil, queue.Put)
	watched := p.follow(ctx)
	inbox := &relay.Inbox{Dial: p.dial, Log: p.log, Take: queue.PutLine}
	go inbox.Run(ctx)
	written := make(chan struct{})
	go func() {
		defer close(written)
		defer cancel() // the reader is gone
		if err := queue.Write(ctx, proc.stdout); err != nil {
			p.log.Error("print a change of state", "error", err)
		}
	}()
	<-ctx.Done()
	wait(watched, stopTime)
	wait(written, flushTime) // nobody may be reading
	return nil
}

// endWithParent has the process end with its parent: by the end of stdin, which
// a parent that still lives can close too, and by a signal, for the write end of
// a pipe may be held by others (prctl(2), PR_SET_PDEATHSIG).
func endWithParent(cancel func(), stdin io.Reader) error {
	parent := unix.Getppid()
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return err
	}
	if unix.Getppid() != parent { // it ended just before
		cancel()
	}
	go func() {
		_, _ = io.Copy(io.Discard, stdin)
		cancel()
	}()
	return nil
}
