package watch

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
	"st2ha/internal/redis"
)

func newRedis(t *testing.T, lines ...string) *backendtest.Server {
	s, err := backendtest.NewRedis(t, t.TempDir(), lines...)
	require.NoError(t, err)
	t.Cleanup(func() { s.Kill() })
	return s
}

func TestRedisRefuses(t *testing.T) {
	for _, tc := range []struct {
		name     string
		conf     string
		settings redis.Server
		probe    string
		reason   string
	}{
		{"no password given", "requirepass x", redis.Server{}, probe.Login, "login refused: Redis asks for a password, and none is configured"},
		{"another password", "requirepass x", redis.Server{Password: backendtest.Password}, probe.Login,
			"login refused: the default user does not exist, is disabled, or has another password"},
		{"no such user", "", redis.Server{User: "st2", Password: backendtest.Password}, probe.Login,
			"login refused: user st2 does not exist, is disabled, or has another password"},
		{"no password there", "", redis.Server{Password: backendtest.Password}, probe.Login, "login refused: a password is configured, and Redis has none"},
		{"no permission", "user st2 on nopass ~* +ping +auth +select", redis.Server{User: "st2", Password: "x"}, probe.Login,
			"login refused: user st2 has no permission: NOPERM …"},
		{"no such database", "databases 1", redis.Server{DB: 5}, probe.Alarm, "ERR DB index is out of range"},
		{"replica", "replicaof 127.0.0.1 1\nreplica-read-only yes", redis.Server{}, probe.Alarm, "read only: it is a replica"},
		{"replica that is out of date", "replicaof 127.0.0.1 1\nreplica-serve-stale-data no", redis.Server{}, probe.Alarm, "a replica whose master is down"},
		{"memory", "maxmemory 1", redis.Server{}, probe.Alarm, "out of memory: it refuses writes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			check := backendtest.NoLeaks(t)
			s := newRedis(t, tc.conf)
			tc.settings.Addr = s.Addr
			w := probetest.Start(t, WatchRedis(RedisSettings{Server: tc.settings}))
			o := w.Is(tc.probe, probe.Bad, tc.reason)
			require.NotZero(t, o.Limit.Suspect)
			w.End()
			s.Kill()
			check()
		})
	}
}

// A server that cannot save refuses even PING.
func TestRedisCannotSave(t *testing.T) {
	t.Parallel()
	s := newRedis(t, "dbfilename dump", "save 1 1")
	require.NoError(t, os.Mkdir(filepath.Join(s.Dir, "dump"), 0o700)) // no file can be renamed to it
	w := probetest.Start(t, WatchRedis(RedisSettings{Server: redis.Server{Addr: s.Addr}, Timing: probe.Timing{LoginEvery: 300 * time.Millisecond}}))
	w.Is(probe.Ping, probe.Good, "")
	w.Is(probe.Alarm, probe.Bad, "it cannot save to disk, and refuses writes")
	require.NoError(t, os.Remove(filepath.Join(s.Dir, "dump")))
	w.Is(probe.Alarm, probe.Good, "")
}

// A server that speaks TLS is asked so, and what cannot be asked is unknown, never down.
func TestRedisTLS(t *testing.T) {
	c := backendtest.NewCertificates(t, t.TempDir())
	addr := c.Secured(t, newRedis(t).Addr, false)
	neverRestarted(t, "redis", addr)
	for name, tc := range map[string]struct{ url, unknown string }{
		"trusted":          {"rediss://" + addr + "/1?ssl_ca_certs=" + c.CA, ""},
		"as tooz takes it": {"redis://" + addr + "?ssl=True&ssl_ca_certs=" + c.CA, ""},
		"untrusted":        {"rediss://" + addr, "its certificate is not trusted: …"},
		"no file":          {"rediss://" + addr + "?ssl_ca_certs=/none", "the file of authorities cannot be read: …"},
		"without TLS":      {"redis://" + addr, "it speaks TLS, and the settings ask without"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := redis.ParseURL(tc.url)
			require.NoError(t, err)
			if s.TLS != nil {
				s.TLS.Read = readFile
			}
			w := probetest.Start(t, WatchRedis(RedisSettings{Server: s, Timing: probe.Timing{LoginEvery: 300 * time.Millisecond}}))
			if tc.unknown != "" {
				w.Is(probe.Connection, probe.Unknown, tc.unknown)
				return
			}
			w.Is(probe.Ping, probe.Good, "")
			w.Is(probe.Login, probe.Good, "")
		})
	}
}

func readFile(_ context.Context, path string) ([]byte, error) { return os.ReadFile(path) }

// What answers may be no Redis.
func TestRedisIsAnother(t *testing.T) {
	broker := shared.Broker(t)
	w := probetest.Start(t, WatchRedis(RedisSettings{Server: redis.Server{Addr: broker.Addr}}))
	w.Is(probe.Connection, probe.Bad, "…")
}
