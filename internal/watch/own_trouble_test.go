package watch

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/mongodb"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/reach"
	"st2ha/internal/redis"
	"st2ha/internal/rpcping"
)

// What lies between a connection and reach.Classify keeps the error: the same holds for each backend.
func TestClassifyOfEachBackend(t *testing.T) {
	closed := backendtest.Closed(t)
	nowhere := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}}
	for name, open := range map[string]func(d *net.Dialer, addr string) error{
		"mongodb": func(d *net.Dialer, addr string) error {
			return mongodb.Login(t.Context(), d, mongodb.Server{URI: "mongodb://" + addr}, addr, "admin")
		},
		"rabbitmq": func(d *net.Dialer, addr string) error {
			return rabbitmq.Works(t.Context(), d, rabbitmq.Login{Addr: addr, User: "u", Password: "p", VHost: "/"})
		},
		"redis": func(d *net.Dialer, addr string) error {
			s := RedisSettings{Server: redis.Server{Addr: addr}, Dialer: d}
			return s.login(t.Context())
		},
	} {
		for _, tc := range []struct {
			d       *net.Dialer
			addr    string
			verdict Verdict
		}{
			{&net.Dialer{}, closed, Bad},
			{&net.Dialer{}, "nobody.invalid:1", Unknown},
			{nowhere, closed, Unknown},
		} {
			err := open(tc.d, tc.addr)
			require.Error(t, err)
			verdict, reason := reach.Classify(err)
			require.Equal(t, tc.verdict, verdict, "%s at %s: %s (%v)", name, tc.addr, reason, err)
		}
	}
	_, err := rpcping.Dial(t.Context(), closed)
	verdict, _ := reach.Classify(err)
	require.Equal(t, Bad, verdict)
	_, err = rpcping.Dial(t.Context(), "nobody.invalid:1")
	verdict, _ = reach.Classify(err)
	require.Equal(t, Unknown, verdict)
}

// While the resolver is silent nothing is known of a server; it was down after 3 s.
func TestSilentResolver(t *testing.T) {
	timing := Timing{PingEvery: 50 * time.Millisecond, PingDeadline: 50 * time.Millisecond, DownAfter: 300 * time.Millisecond,
		LoginEvery: 100 * time.Millisecond, LoginDeadline: 300 * time.Millisecond}
	d := &net.Dialer{Resolver: backendtest.SilentResolver(t)}
	for name, f := range map[string]Func{
		"mongodb": WatchMongoDB(MongoDBSettings{Server: mongodb.Server{URI: "mongodb://u:p@server.example:1"}, Addr: "server.example:1", Dialer: d, Timing: timing}),
		"rabbitmq": WatchRabbitMQ(RabbitMQSettings{Login: rabbitmq.Login{Addr: "server.example:1", User: "u", Password: "p", VHost: "/"},
			Dialer: d, Timing: timing}),
		"redis": WatchRedis(RedisSettings{Server: redis.Server{Addr: "server.example:1"}, Dialer: d, Timing: timing}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := start(t, f)
			w.is(ProbeConnection, Unknown, "its name is being resolved for …")
			w.is(ProbeConnection, Unknown, "the name server.example cannot be resolved: …")
			w.end()
			for _, o := range w.reports() {
				require.Equal(t, Unknown, o.Verdict, "%+v", o)
			}
		})
	}
}

// A prober's own trouble makes an endpoint unknown where it stays, and never more than that.
func TestOwnTroubleIsNeverDown(t *testing.T) {
	s := NewSet("sensor", DefaultRules())
	key, now := Key{Redis, "10.0.0.1:6379"}, time.Now()
	s.Replace("n1", []Endpoint{{Backend: Redis, Name: key.Name, Host: "10.0.0.1"}}, now)
	see := func(v Verdict) State {
		now = now.Add(250 * time.Millisecond)
		s.Observe(key, Observation{Probe: ProbeConnection, Verdict: v, Reason: "x", At: now, Limit: Limit{Suspect: 2}})
		return s.Statuses()[0].State
	}
	require.Equal(t, StateUnknown, see(Unknown), "one at the start does not make it up")
	up := func() {
		t.Helper()
		for see(Good) != StateUp {
			require.WithinDuration(t, time.Now(), now, 5*time.Minute)
		}
	}
	up()
	require.Equal(t, StateUp, see(Unknown), "once may be a moment")
	for range 400 {
		require.Equal(t, StateUnknown, see(Unknown))
	}
	up()
}
