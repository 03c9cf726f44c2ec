package all_test

import (
	"net"
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
	rabbitclient "st2ha/internal/rabbitmq"
	"st2ha/internal/reach"
	redisclient "st2ha/internal/redis"
	"st2ha/internal/rpcping"
)

// What lies between a connection and reach.Classify keeps the error: the same holds for each backend.
func TestClassifyOfEachBackend(t *testing.T) {
	closed := backendtest.Closed(t)
	nowhere := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}}
	for name, open := range map[string]func(d *net.Dialer, addr string) error{
		"mongodb": func(d *net.Dialer, addr string) error {
			return mongoclient.Login(t.Context(), d, mongoclient.Server{URI: "mongodb://" + addr}, addr, "admin")
		},
		"rabbitmq": func(d *net.Dialer, addr string) error {
			return rabbitclient.Works(t.Context(), d, rabbitclient.Login{Addr: addr, User: "u", Password: "p", VHost: "/"})
		},
		"redis": func(d *net.Dialer, addr string) error {
			conn, err := redisclient.Dial(t.Context(), d, redisclient.Server{Addr: addr})
			if err == nil {
				conn.Close()
			}
			return err
		},
	} {
		for _, tc := range []struct {
			d       *net.Dialer
			addr    string
			verdict probe.Verdict
		}{
			{&net.Dialer{}, closed, probe.Bad},
			{&net.Dialer{}, "nobody.invalid:1", probe.Unknown},
			{nowhere, closed, probe.Unknown},
		} {
			err := open(tc.d, tc.addr)
			require.Error(t, err)
			verdict, reason := reach.Classify(err)
			require.Equal(t, tc.verdict, verdict, "%s at %s: %s (%v)", name, tc.addr, reason, err)
		}
	}
	_, err := rpcping.Dial(t.Context(), closed)
	verdict, _ := reach.Classify(err)
	require.Equal(t, probe.Bad, verdict)
	_, err = rpcping.Dial(t.Context(), "nobody.invalid:1")
	verdict, _ = reach.Classify(err)
	require.Equal(t, probe.Unknown, verdict)
}

// While the resolver is silent nothing is known of a server; it was down after 3 s.
func TestSilentResolver(t *testing.T) {
	timing := probe.Timing{PingEvery: 50 * time.Millisecond, PingDeadline: 50 * time.Millisecond,
		DownAfter:  300 * time.Millisecond,
		LoginEvery: 100 * time.Millisecond, LoginDeadline: 300 * time.Millisecond}
	d := &net.Dialer{Resolver: backendtest.SilentResolver(t)}
	for name, f := range map[string]probe.Func{
		"mongodb": mongodb.Watch(mongodb.Settings{Server: mongoclient.Server{URI: "mongodb://u:p@server.example:1"},
			Addr: "server.example:1", Dialer: d, Timing: timing}),
		"rabbitmq": rabbitmq.Watch(rabbitmq.Settings{Login: rabbitclient.Login{Addr: "server.example:1", User: "u",
			Password: "p", VHost: "/"},
			Dialer: d, Timing: timing}),
		"redis": redis.Watch(redis.Settings{Server: redisclient.Server{Addr: "server.example:1"}, Dialer: d, Timing: timing}),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := probetest.Start(t, f)
			w.Is(probe.Connection, probe.Unknown, "its name is being resolved for …")
			w.Is(probe.Connection, probe.Unknown, "the name server.example cannot be resolved: …")
			w.End()
			for _, o := range w.Reports() {
				require.Equal(t, probe.Unknown, o.Verdict, "%+v", o)
			}
		})
	}
}
