package watch

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/mongodb"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/redis"
)

var shared = &backendtest.Shared{Users: []string{"st2", "watched", "restricted"}}

// RunTests runs the tests, and ends their servers.
func RunTests(m *testing.M) int { return shared.Run(m) }

// stopTime is what a watch may take to end.
const stopTime = 500 * time.Millisecond

// watched is a watch that runs, and what it has reported.
type watched struct {
	t    testing.TB
	stop context.CancelFunc
	done chan struct{}

	mu   sync.Mutex
	all  []Observation // not looked at yet
	seen []Observation // since the last one that was waited for
	news chan struct{} // has room for one
}

// start watches until the test ends.
func start(t testing.TB, f Func) *watched {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watched{t: t, stop: cancel, done: make(chan struct{}), news: make(chan struct{}, 1)}
	go func() {
		defer close(w.done)
		f(ctx, w.report)
	}()
	t.Cleanup(w.end)
	return w
}

func (w *watched) report(o Observation) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.Contains(o.Reason, backendtest.Password) {
		w.t.Errorf("a password in %q", o.Reason)
	}
	w.all = append(w.all, o)
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// end stops the watch, which has to be quick.
func (w *watched) end() {
	w.t.Helper()
	w.stop()
	began := time.Now()
	select {
	case <-w.done:
	case <-time.After(10 * time.Second):
		w.t.Fatal("the watch has not ended after 10 s")
	}
	if took := time.Since(began); took > 2*stopTime { // twice: the machine may be busy
		w.t.Errorf("the watch took %s to end", took)
	}
}

// reports are those not looked at yet.
func (w *watched) reports() []Observation {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Observation(nil), w.all...)
}

// next waits for the first report from now on that is wanted, and forgets
// those before.
func (w *watched) next(what string, want func(Observation) bool) Observation {
	w.t.Helper()
	late := time.After(20 * time.Second)
	for {
		w.mu.Lock()
		for len(w.all) > 0 {
			o := w.all[0]
			w.all = w.all[1:]
			w.seen = append(w.seen, o)
			if want(o) {
				w.seen = nil
				w.mu.Unlock()
				return o
			}
		}
		w.mu.Unlock()
		select {
		case <-w.news:
		case <-late:
			w.t.Fatalf("not reported in time: %s; reported: %+v", what, w.seen)
		}
	}
}

// is waits for a verdict of a probe with exactly this reason; "…" in it stands for anything.
func (w *watched) is(probe string, v Verdict, reason string) Observation {
	w.t.Helper()
	return w.next(fmt.Sprintf("%s %d %q", probe, v, reason), func(o Observation) bool {
		if o.Probe != probe || o.Verdict != v {
			return false
		}
		before, after, any := strings.Cut(reason, "…")
		return o.Reason == reason || any && strings.HasPrefix(o.Reason, before) && strings.HasSuffix(o.Reason, after)
	})
}

// trouble waits until what is reported from now on adds up to down, by each
// probe's own limit, and returns what made the endpoint suspect, and down.
func (w *watched) trouble() (suspect, down Observation) {
	w.t.Helper()
	rows, since := map[string]int{}, map[string]time.Time{}
	down = w.next("down", func(o Observation) bool {
		if o.Verdict == Good || o.Verdict == Unknown {
			rows[o.Probe] = 0
			return false
		}
		if rows[o.Probe]++; rows[o.Probe] == 1 {
			since[o.Probe] = o.At
		}
		doubt := o.Limit.Suspect > 0 && rows[o.Probe] >= o.Limit.Suspect
		if doubt && suspect.At.IsZero() {
			suspect = o
		}
		return o.Limit.Down > 0 && rows[o.Probe] >= o.Limit.Down ||
			doubt && o.Limit.DownAfter > 0 && o.At.Sub(since[o.Probe]) >= o.Limit.DownAfter
	})
	return suspect, down
}

func newProxy(t testing.TB, to string) *backendtest.Proxy {
	p, err := backendtest.NewProxy(to)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p
}

// backend is what the tests of all three have in common.
type backend struct {
	name  string
	addr  string
	watch func(addr string, t Timing) Func
	// freeze, thaw and kill do that to the server; start starts it again.
	freeze, thaw func()
	kill         func() time.Time
	start        func() error
}

func rabbitBackend(t testing.TB) backend {
	broker := shared.Broker(t)
	return backend{"RabbitMQ", broker.Addr, func(addr string, timing Timing) Func {
		return WatchRabbitMQ(RabbitMQSettings{Login: brokerLogin(addr), Timing: timing})
	}, broker.Freeze, broker.Thaw, broker.Kill, broker.Start}
}

func redisBackend(t testing.TB) backend {
	s, err := backendtest.NewRedis(t, t.TempDir(), "requirepass "+backendtest.Password)
	require.NoError(t, err)
	t.Cleanup(func() { s.Kill() })
	return backend{"Redis", s.Addr, func(addr string, timing Timing) Func {
		return WatchRedis(RedisSettings{Server: redis.Server{Addr: addr, Password: backendtest.Password, DB: 1}, Timing: timing})
	}, s.Freeze, s.Thaw, s.Kill, s.Start}
}

func mongoBackend(t testing.TB) backend {
	s := newMongod(t)
	return backend{"MongoDB", s.Addr, func(addr string, timing Timing) Func {
		return WatchMongoDB(MongoDBSettings{Server: mongodb.Server{URI: mongoURI(backendtest.User)}, Addr: addr, Timing: timing})
	}, s.Freeze, s.Thaw, s.Kill, s.Start}
}

func brokerLogin(addr string) rabbitmq.Login {
	return rabbitmq.Login{Addr: addr, User: backendtest.User, Password: backendtest.Password, VHost: "/"}
}

// forEach runs a test with each backend that is reached over TCP.
func forEach(t *testing.T, f func(t *testing.T, b backend)) {
	t.Run("MongoDB", func(t *testing.T) { f(t, mongoBackend(t)) })
	t.Run("RabbitMQ", func(t *testing.T) { f(t, rabbitBackend(t)) })
	t.Run("Redis", func(t *testing.T) { f(t, redisBackend(t)) })
}

func TestKilled(t *testing.T) {
	forEach(t, func(t *testing.T, b backend) {
		check := backendtest.NoLeaks(t)
		w := start(t, b.watch(b.addr, Timing{}))
		w.is(ProbeLogin, Good, "")
		w.is(ProbePing, Good, "")
		at := b.kill()
		o := w.is(ProbeConnection, Bad, "connection refused")
		require.Equal(t, 1, o.Limit.Down)
		t.Logf("seen after %s", o.At.Sub(at))
		require.Less(t, o.At.Sub(at), 2*time.Second)
		w.is(ProbeConnection, Bad, "connection refused") // again and again
		require.NoError(t, b.start())
		w.is(ProbeConnection, Good, "")
		w.is(ProbePing, Good, "")
		w.end()
		check()
	})
}

func TestFrozen(t *testing.T) {
	forEach(t, func(t *testing.T, b backend) {
		w := start(t, b.watch(b.addr, Timing{}))
		w.is(ProbePing, Good, "") // in the first second of the connection
		at := time.Now()
		b.freeze()
		defer b.thaw()
		suspect, down := w.trouble()
		t.Logf("suspect after %s, down after %s", suspect.At.Sub(at), down.At.Sub(at))
		require.Equal(t, Silent, down.Verdict)
		require.Regexp(t, "^no answer for 3", down.Reason)
		require.Less(t, suspect.At.Sub(at), 2*time.Second)
		require.Less(t, down.At.Sub(at), 6*time.Second)
		b.thaw()
		w.is(ProbePing, Good, "")
	})
}

// A black hole: connections stay open, nothing comes through, and new ones are
// accepted.
func TestCutOff(t *testing.T) {
	forEach(t, func(t *testing.T, b backend) {
		p := newProxy(t, b.addr)
		check := backendtest.NoLeaks(t)
		w := start(t, b.watch(p.Addr, Timing{}))
		w.is(ProbePing, Good, "")
		at := time.Now()
		p.Hold()
		suspect, down := w.trouble()
		t.Logf("suspect after %s, down after %s", suspect.At.Sub(at), down.At.Sub(at))
		require.Less(t, suspect.At.Sub(at), 2*time.Second)
		require.Less(t, down.At.Sub(at), 6*time.Second)
		p.Release()
		w.is(ProbePing, Good, "")
		p.Hold()
		w.is(ProbePing, Silent, "no answer for …")
		w.end() // in the middle of it
		p.Release()
		check()
	})
}

// A network that has lost the open connections, and lets new ones through, is
// not a server that is down.
func TestConnectionLost(t *testing.T) {
	forEach(t, func(t *testing.T, b backend) {
		p := newProxy(t, b.addr)
		check := backendtest.NoLeaks(t)
		w := start(t, b.watch(p.Addr, Timing{}))
		w.is(ProbePing, Good, "")
		for range 2 {
			at := time.Now()
			p.Lose()
			w.is(ProbePing, Silent, "no answer for …") // the first one
			suspect := w.is(ProbePing, Silent, "no answer for …")
			again := w.is(ProbePing, Good, "")
			t.Logf("suspect after %s, answered after %s", suspect.At.Sub(at), again.At.Sub(at))
			require.Less(t, again.At.Sub(at), Timing{}.withDefaults().DownAfter)
		}
		w.end()
		p.Release()
		check()
	})
}

// A server that answers late is not one that is away.
func TestSlow(t *testing.T) {
	forEach(t, func(t *testing.T, b backend) {
		p := newProxy(t, b.addr)
		w := start(t, b.watch(p.Addr, Timing{}))
		w.is(ProbePing, Good, "")
		for range 3 {
			p.Hold()
			w.is(ProbePing, Silent, "no answer for …")
			p.Release()
			w.is(ProbePing, Good, "")
		}
		for _, o := range w.reports() {
			require.NotEqual(t, ProbeConnection, o.Probe, "the connection was given up: %+v", o)
		}
	})
}

// Nothing is left of 50 dials that fail.
func TestFailedDials(t *testing.T) {
	forEach(t, func(t *testing.T, b backend) {
		p := newProxy(t, "127.0.0.1:1") // accepts, and hangs up
		check := backendtest.NoLeaks(t)
		w := start(t, b.watch(p.Addr, Timing{PingEvery: 10 * time.Millisecond}))
		w.is(ProbeConnection, Bad, "…")
		require.Eventually(t, func() bool { return p.Opened() >= 50 }, 20*time.Second, 10*time.Millisecond)
		w.end()
		check()
		p.Close()
		w = start(t, b.watch(p.Addr, Timing{PingEvery: 10 * time.Millisecond}))
		for range 50 {
			w.is(ProbeConnection, Bad, "connection refused")
		}
		w.end()
		check()
	})
}
