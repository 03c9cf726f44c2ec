// Package wait waits for a time that may be cut short.
package wait

import (
	"context"
	"time"
)

// Sleep waits for d, or until ctx ends, whose error it returns then.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Every calls f at once, and then again and again until ctx ends.
func Every(ctx context.Context, interval time.Duration, f func(ctx context.Context)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		f(ctx)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Ending runs f, and closes ended after it.
func Ending(f func()) (ended <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	return done
}

// For waits for something to end, but no longer than limit.
func For(ended <-chan struct{}, limit time.Duration) {
	select {
	case <-ended:
	case <-time.After(limit):
	}
}
