package watch_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"st2ha/internal/watch"
)

// TestMain lets the test binary be the child process of the mount probe, and a
// small watcher of one mount.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 3 && os.Args[1] == "statfs":
		unix.Exit(watch.Statfs(os.Args[2])) // os.Exit takes a second with the race detector
	case len(os.Args) == 3 && os.Args[1] == "watch":
		watchMount(os.Args[2])
	default:
		os.Exit(watch.RunTests(m))
	}
}

// watchMount prints which file the program runs from, and then what changes.
func watchMount(point string) {
	if err := watch.RunFromMemory(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	program, _ := os.Readlink("/proc/self/exe")
	fmt.Println(program)
	last := watch.Unknown
	watch.NFSMount(point, settings())(context.Background(), func(o watch.Observation) {
		if o.Verdict != last {
			last = o.Verdict
			fmt.Println(o.Reason)
		}
	})
}

// soon bounds what takes milliseconds on a machine that does nothing else.
const soon = 20 * time.Second

// watched is a watch function at work, and all that it reported.
type watched struct {
	mu   sync.Mutex
	seen []watch.Observation
	end  func()
}

// run starts f and ends it with the test at the latest.
func run(tb testing.TB, f watch.Func) *watched {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watched{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx, func(o watch.Observation) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.seen = append(w.seen, o)
		})
	}()
	w.end = sync.OnceFunc(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(soon):
			tb.Error("it does not end")
		}
	})
	tb.Cleanup(w.end)
	return w
}

// since returns what was reported from the nth on.
func (w *watched) since(n int) []watch.Observation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[n:len(w.seen):len(w.seen)]
}

// mark is where the report stands now.
func (w *watched) mark() int { return len(w.since(0)) }

// next waits for a finding of a probe after mark from. A reason is given by how
// it begins.
func (w *watched) next(tb testing.TB, from int, probe string, verdict watch.Verdict, reason string) watch.Observation {
	tb.Helper()
	var last watch.Observation
	for end := time.Now().Add(soon); time.Now().Before(end); time.Sleep(200 * time.Microsecond) {
		for _, o := range w.since(from) {
			last = o
			if o.Probe == probe && o.Verdict == verdict && strings.HasPrefix(o.Reason, reason) {
				return o
			}
		}
	}
	require.FailNow(tb, "not reported", "%s: %v %q; the last is %+v", probe, verdict, reason, last)
	return last
}

// left is what a watch function could leave behind in this process.
type left struct{ goroutines, threads, descriptors int }

func nowLeft(tb testing.TB) left {
	tb.Helper()
	count := func(dir string) int {
		names, err := os.ReadDir(dir)
		require.NoError(tb, err)
		return len(names)
	}
	return left{runtime.NumGoroutine(), count("/proc/self/task"), count("/proc/self/fd")}
}

// same waits until no more is left than before. Threads are a little more: the
// runtime keeps some.
func (before left) same(tb testing.TB) {
	tb.Helper()
	var now left
	for end := time.Now().Add(soon); time.Now().Before(end); time.Sleep(time.Millisecond) {
		now = nowLeft(tb)
		if now.goroutines <= before.goroutines && now.threads <= before.threads+2 && now.descriptors <= before.descriptors {
			tb.Logf("left behind: %+v before, %+v after", before, now)
			return
		}
	}
	require.FailNow(tb, "something is left behind", "before %+v, after %+v", before, now)
}

// quantiles prints how long something took.
func quantiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	b.ReportMetric(ms(took[len(took)/2]), "p50-ms")
	b.ReportMetric(ms(took[len(took)*99/100]), "p99-ms")
	b.ReportMetric(ms(took[len(took)-1]), "max-ms")
}
