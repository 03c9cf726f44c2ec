package all_test

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backend/mongodb"
	"st2ha/internal/backend/rabbitmq"
	"st2ha/internal/backend/redis"
	"st2ha/internal/backendtest"
	mongoclient "st2ha/internal/mongodb"
	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
	redisclient "st2ha/internal/redis"
)

var shared = &backendtest.Shared{}

// TestMain ends the tests' servers.
func TestMain(m *testing.M) { os.Exit(shared.Run(m)) }

// backend is what the tests of all three have in common.
type backend struct {
	name  string
	addr  string
	watch func(addr string, t probe.Timing) probe.Func
	// freeze, thaw and kill do that to the server; start starts it again.
	freeze, thaw func()
	kill         func() time.Time
	start        func() error
}

func rabbitBackend(t testing.TB) backend {
	broker := shared.Broker(t)
	return backend{"RabbitMQ", broker.Addr, func(addr string, timing probe.Timing) probe.Func {
		return rabbitmq.Watch(rabbitmq.Settings{Login: probetest.BrokerLogin(addr), Timing: timing})
	}, broker.Freeze, broker.Thaw, broker.Kill, broker.Start}
}

func redisBackend(t testing.TB) backend {
	s, err := backendtest.NewRedis(t, t.TempDir(), "requirepass "+backendtest.Password)
	require.NoError(t, err)
	t.Cleanup(func() { s.Kill() })
	return backend{"Redis", s.Addr, func(addr string, timing probe.Timing) probe.Func {
		return redis.Watch(redis.Settings{Server: redisclient.Server{Addr: addr, Password: backendtest.Password, DB: 1},
			Timing: timing})
	}, s.Freeze, s.Thaw, s.Kill, s.Start}
}

func mongoBackend(t testing.TB) backend {
	s := probetest.NewMongod(t, shared)
	return backend{"MongoDB", s.Addr, func(addr string, timing probe.Timing) probe.Func {
		return mongodb.Watch(mongodb.Settings{Server: mongoclient.Server{URI: probetest.MongoURI(backendtest.User)},
			Addr: addr, Timing: timing})
	}, s.Freeze, s.Thaw, s.Kill, s.Start}
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
		w := probetest.Start(t, b.watch(b.addr, probe.Timing{}))
		w.Is(probe.Login, probe.Good, "")
		w.Is(probe.Ping, probe.Good, "")
		at := b.kill()
		o := w.Is(probe.Connection, probe.Bad, "connection refused")
		require.Equal(t, 1, o.Limit.Down)
		t.Logf("seen after %s", o.At.Sub(at))
		require.Less(t, o.At.Sub(at), 2*time.Second)
		w.Is(probe.Connection, probe.Bad, "connection refused") // again and again
		require.NoError(t, b.start())
		w.Is(probe.Connection, probe.Good, "")
		w.Is(probe.Ping, probe.Good, "")
		w.End()
		check()
	})
}

func TestFrozen(t *testing.T) {
	forEach(t, func(t *testing.T, b backend) {
		w := probetest.Start(t, b.watch(b.addr, probe.Timing{}))
		w.Is(probe.Ping, probe.Good, "") // in the first second of the connection
		at := time.Now()
		b.freeze()
		defer b.thaw()
		suspect, down := w.Trouble()
		t.Logf("suspect after %s, down after %s", suspect.At.Sub(at), down.At.Sub(at))
		require.Equal(t, probe.Silent, down.Verdict)
		require.Regexp(t, "^no answer for 3", down.Reason)
		require.Less(t, suspect.At.Sub(at), 2*time.Second)
		require.Less(t, down.At.Sub(at), 6*time.Second)
		b.thaw()
		w.Is(probe.Ping, probe.Good, "")
	})
}

// A black hole: connections stay open, nothing comes through, and new ones are
// accepted.
func TestCutOff(t *testing.T) {
	forEach(t, func(t *testing.T, b backend) {
		p := probetest.NewProxy(t, b.addr)
		check := backendtest.NoLeaks(t)
		w := probetest.Start(t, b.watch(p.Addr, probe.Timing{}))
		w.Is(probe.Ping, probe.Good, "")
		at := time.Now()
		p.Hold()
		suspect, down := w.Trouble()
		t.Logf("suspect after %s, down after %s", suspect.At.Sub(at), down.At.Sub(at))
		require.Less(t, suspect.At.Sub(at), 2*time.Second)
		require.Less(t, down.At.Sub(at), 6*time.Second)
		p.Release()
		w.Is(probe.Ping, probe.Good, "")
		p.Hold()
		w.Is(probe.Ping, probe.Silent, "no answer for …")
		w.End() // in the middle of it
		p.Release()
		check()
	})
}

// A network that has lost the open connections, and lets new ones through, is
// not a server that is down.
func TestConnectionLost(t *testing.T) {
	forEach(t, func(t *testing.T, b backend) {
		p := probetest.NewProxy(t, b.addr)
		check := backendtest.NoLeaks(t)
		w := probetest.Start(t, b.watch(p.Addr, probe.Timing{}))
		w.Is(probe.Ping, probe.Good, "")
		for range 2 {
			at := time.Now()
			p.Lose()
			w.Is(probe.Ping, probe.Silent, "no answer for …") // the first one
			suspect := w.Is(probe.Ping, probe.Silent, "no answer for …")
			again := w.Is(probe.Ping, probe.Good, "")
			t.Logf("suspect after %s, answered after %s", suspect.At.Sub(at), again.At.Sub(at))
			require.Less(t, again.At.Sub(at), probe.Timing{}.WithDefaults().DownAfter)
		}
		w.End()
		p.Release()
		check()
	})
}

// A server that answers late is not one that is away.
func TestSlow(t *testing.T) {
	forEach(t, func(t *testing.T, b backend) {
		p := probetest.NewProxy(t, b.addr)
		w := probetest.Start(t, b.watch(p.Addr, probe.Timing{}))
		w.Is(probe.Ping, probe.Good, "")
		for range 3 {
			p.Hold()
			w.Is(probe.Ping, probe.Silent, "no answer for …")
			p.Release()
			w.Is(probe.Ping, probe.Good, "")
		}
		for _, o := range w.Reports() {
			require.NotEqual(t, probe.Connection, o.Probe, "the connection was given up: %+v", o)
		}
	})
}

// Nothing is left of 50 dials that fail.
func TestFailedDials(t *testing.T) {
	forEach(t, func(t *testing.T, b backend) {
		p := probetest.NewProxy(t, "127.0.0.1:1") // accepts, and hangs up
		check := backendtest.NoLeaks(t)
		w := probetest.Start(t, b.watch(p.Addr, probe.Timing{PingEvery: 10 * time.Millisecond}))
		w.Is(probe.Connection, probe.Bad, "…")
		require.Eventually(t, func() bool { return p.Opened() >= 50 }, 20*time.Second, 10*time.Millisecond)
		w.End()
		check()
		p.Close()
		w = probetest.Start(t, b.watch(p.Addr, probe.Timing{PingEvery: 10 * time.Millisecond}))
		for range 50 {
			w.Is(probe.Connection, probe.Bad, "connection refused")
		}
		w.End()
		check()
	})
}

// What answers may be no Redis.
func TestRedisIsAnother(t *testing.T) {
	broker := shared.Broker(t)
	w := probetest.Start(t, redis.Watch(redis.Settings{Server: redisclient.Server{Addr: broker.Addr}}))
	w.Is(probe.Connection, probe.Bad, "…")
}
