package probetest

import (
	"context"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/probe"
)

// Soon bounds what takes milliseconds on a machine that does nothing else.
const Soon = 20 * time.Second

// Record is a watch function at work, and all that it reported.
type Record struct {
	mu   sync.Mutex
	seen []probe.Observation
	End  func() // ends it
}

// Run starts f and ends it with the test at the latest.
func Run(tb testing.TB, f probe.Func) *Record {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Record{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx, func(o probe.Observation) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.seen = append(w.seen, o)
		})
	}()
	w.End = sync.OnceFunc(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(Soon):
			tb.Error("it does not end")
		}
	})
	tb.Cleanup(w.End)
	return w
}

// Since returns what was reported from the nth on.
func (w *Record) Since(n int) []probe.Observation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[n:len(w.seen):len(w.seen)]
}

// Mark is where the report stands now.
func (w *Record) Mark() int { return len(w.Since(0)) }

// Next waits for a finding of a probe after mark from. A reason is given by how
// it begins.
func (w *Record) Next(tb testing.TB, from int, of string, verdict probe.Verdict, reason string) probe.Observation {
	tb.Helper()
	var last probe.Observation
	for end := time.Now().Add(Soon); time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
		for _, o := range w.Since(from) {
			last = o
			if o.Probe == of && o.Verdict == verdict && strings.HasPrefix(o.Reason, reason) {
				return o
			}
		}
	}
	require.FailNow(tb, "not reported", "%s: %v %q; the last is %+v", of, verdict, reason, last)
	return last
}

// Left is what a watch function could leave behind in this process.
type Left struct{ goroutines, threads, descriptors int }

// NowLeft counts it.
func NowLeft(tb testing.TB) Left {
	tb.Helper()
	count := func(dir string) int {
		names, err := os.ReadDir(dir)
		require.NoError(tb, err)
		return len(names)
	}
	return Left{runtime.NumGoroutine(), count("/proc/self/task"), count("/proc/self/fd")}
}

// Same waits until no more is left than before. Threads are a little more: the
// runtime keeps some.
func (before Left) Same(tb testing.TB) {
	tb.Helper()
	var now Left
	for end := time.Now().Add(Soon); time.Now().Before(end); time.Sleep(time.Millisecond) {
		now = NowLeft(tb)
		if now.goroutines <= before.goroutines && now.threads <= before.threads+2 && now.descriptors <= before.descriptors {
			tb.Logf("left behind: %+v before, %+v after", before, now)
			return
		}
	}
	require.FailNow(tb, "something is left behind", "before %+v, after %+v", before, now)
}

// Quantiles prints how long something took.
func Quantiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
	b.ReportMetric(ms(took[len(took)-1]), "max-ms")
}
