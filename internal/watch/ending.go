package watch

import "time"

// What a program that ends waits for.
const (
	StopTime  = 400 * time.Millisecond // for the watch functions to end
	FlushTime = 200 * time.Millisecond // for the events that are left
)

// QueueSize is how many events wait for the reader of stdout, or for the disk.
const QueueSize = 1000

// Ending runs f, and closes ended after it.
func Ending(f func()) (ended <-chan struct{}) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	return done
}

// Wait waits for something to end, but not for ever.
func Wait(ended <-chan struct{}, limit time.Duration) {
	select {
	case <-ended:
	case <-time.After(limit):
	}
}
