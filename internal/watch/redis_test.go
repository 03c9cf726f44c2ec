package watch

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
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
		{"no password given", "requirepass x", redis.Server{}, ProbeLogin, "login refused: Redis asks for a password, and none is configured"},
		{"another password", "requirepass x", redis.Server{Password: backendtest.Password}, ProbeLogin,
			"login refused: the default user does not exist, is disabled, or has another password"},
		{"no such user", "", redis.Server{User: "st2", Password: backendtest.Password}, ProbeLogin,
			"login refused: user st2 does not exist, is disabled, or has another password"},
		{"no password there", "", redis.Server{Password: backendtest.Password}, ProbeLogin, "login refused: a password is configured, and Redis has none"},
		{"no permission", "user st2 on nopass ~* +ping +auth +select", redis.Server{User: "st2", Password: "x"}, ProbeLogin,
			"login refused: user st2 has no permission: NOPERM …"},
		{"no such database", "databases 1", redis.Server{DB: 5}, ProbeAlarm, "ERR DB index is out of range"},
		{"replica", "replicaof 127.0.0.1 1\nreplica-read-only yes", redis.Server{}, ProbeAlarm, "read only: it is a replica"},
		{"replica that is out of date", "replicaof 127.0.0.1 1\nreplica-serve-stale-data no", redis.Server{}, ProbeAlarm, "a replica whose master is down"},
		{"memory", "maxmemory 1", redis.Server{}, ProbeAlarm, "out of memory: it refuses writes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			check := backendtest.NoLeaks(t)
			s := newRedis(t, tc.conf)
			tc.settings.Addr = s.Addr
			w := start(t, WatchRedis(RedisSettings{Server: tc.settings}))
			o := w.is(tc.probe, Bad, tc.reason)
			require.NotZero(t, o.Limit.Suspect)
			w.end()
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
	w := start(t, WatchRedis(RedisSettings{Server: redis.Server{Addr: s.Addr}, Timing: Timing{LoginEvery: 300 * time.Millisecond}}))
	w.is(ProbePing, Good, "")
	w.is(ProbeAlarm, Bad, "it cannot save to disk, and refuses writes")
	require.NoError(t, os.Remove(filepath.Join(s.Dir, "dump")))
	w.is(ProbeAlarm, Good, "")
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
			w := start(t, WatchRedis(RedisSettings{Server: s, Timing: Timing{LoginEvery: 300 * time.Millisecond}}))
			if tc.unknown != "" {
				w.is(ProbeConnection, Unknown, tc.unknown)
				return
			}
			w.is(ProbePing, Good, "")
			w.is(ProbeLogin, Good, "")
		})
	}
}

func readFile(_ context.Context, path string) ([]byte, error) { return os.ReadFile(path) }

// What answers may be no Redis.
func TestRedisIsAnother(t *testing.T) {
	broker := shared.Broker(t)
	w := start(t, WatchRedis(RedisSettings{Server: redis.Server{Addr: broker.Addr}}))
	w.is(ProbeConnection, Bad, "…")
}
