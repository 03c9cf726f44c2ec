package watch

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/secure"
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
		settings RedisSettings
		probe    string
		reason   string
	}{
		{"no password given", "requirepass x", RedisSettings{}, ProbeLogin, "login refused: Redis asks for a password, and none is configured"},
		{"another password", "requirepass x", RedisSettings{Password: backendtest.Password}, ProbeLogin,
			"login refused: the default user does not exist, is disabled, or has another password"},
		{"no such user", "", RedisSettings{User: "st2", Password: backendtest.Password}, ProbeLogin,
			"login refused: user st2 does not exist, is disabled, or has another password"},
		{"no password there", "", RedisSettings{Password: backendtest.Password}, ProbeLogin, "login refused: a password is configured, and Redis has none"},
		{"no permission", "user st2 on nopass ~* +ping +auth +select", RedisSettings{User: "st2", Password: "x"}, ProbeLogin,
			"login refused: user st2 has no permission: NOPERM …"},
		{"no such database", "databases 1", RedisSettings{DB: 5}, ProbeAlarm, "ERR DB index is out of range"},
		{"replica", "replicaof 127.0.0.1 1\nreplica-read-only yes", RedisSettings{}, ProbeAlarm, "read only: it is a replica"},
		{"replica that is out of date", "replicaof 127.0.0.1 1\nreplica-serve-stale-data no", RedisSettings{}, ProbeAlarm, "a replica whose master is down"},
		{"memory", "maxmemory 1", RedisSettings{}, ProbeAlarm, "out of memory: it refuses writes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			check := backendtest.NoLeaks(t)
			s := newRedis(t, tc.conf)
			tc.settings.Addr = s.Addr
			w := start(t, WatchRedis(tc.settings))
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
	w := start(t, WatchRedis(RedisSettings{Addr: s.Addr, Timing: Timing{LoginEvery: 300 * time.Millisecond}}))
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
			s, err := ParseRedisURL(tc.url)
			require.NoError(t, err)
			s.LoginEvery = 300 * time.Millisecond
			if s.TLS != nil {
				s.TLS.Read = readFile
			}
			w := start(t, WatchRedis(s))
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
	w := start(t, WatchRedis(RedisSettings{Addr: broker.Addr}))
	w.is(ProbeConnection, Bad, "…")
}

func TestParseRedisURL(t *testing.T) {
	for text, want := range map[string]RedisSettings{
		"redis://127.0.0.1:6379":                  {Addr: "127.0.0.1:6379"},
		"redis://[::1]":                           {Addr: "[::1]:6379"},
		"redis://:p%40ss%2F@h/2":                  {Addr: "h:6379", Password: "p@ss/", DB: 2},
		"redis://u:p@h:1?db=3":                    {Addr: "h:1", User: "u", Password: "p", DB: 3},
		"redis://h?password=p":                    {Addr: "h:6379", Password: "p"},
		"redis://h?ssl=True":                      {Addr: "h:6379", TLS: &secure.TLS{Verify: true, Hostname: true}},
		"rediss://h:7":                            {Addr: "h:7", TLS: &secure.TLS{Verify: true, Hostname: true}},
		"redis://127.0.0.1:6379/?namespace=_st2_": {Addr: "127.0.0.1:6379"},
	} {
		got, err := ParseRedisURL(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "redis://", "zookeeper://h", "redis://h/x", "redis://:" + backendtest.Password + "@h"} {
		_, err := ParseRedisURL(text)
		require.Error(t, err, text)
		require.NotContains(t, err.Error(), "p@ss")
	}
}

// FuzzRedis is a server that says anything: the session ends, or goes on with
// what it asked for, and keeps no more than a line.
func FuzzRedis(f *testing.F) {
	for _, said := range []string{"+PONG\r\n", "-NOAUTH x\r\n+OK\r\n", "$-1\r\n", "*1000000000\r\n", "\r\n\r\n\r\n", "-MISCONF", "+OK", strings.Repeat("x", 5000)} {
		f.Add([]byte(said))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		near, far := net.Pipe()
		go func() {
			_, _ = io.CopyN(io.Discard, far, 1) // the question has begun
			go io.Copy(io.Discard, far)
			_, _ = far.Write(said)
			_ = far.Close()
		}()
		s := &RedisSettings{Timing: Timing{}.withDefaults()}
		s.Dialer = dialed(func() (net.Conn, error) { return near, nil })
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		r, err := s.open(ctx)
		require.NoError(t, err)
		reply, err := r.ask(ctx, "PING")
		require.NoError(t, ctx.Err(), "it ends")
		if err != nil {
			require.LessOrEqual(t, len(err.Error()), 5000)
		}
		require.LessOrEqual(t, len(reply), 4096)
		r.close()
	})
}

// dialed is a dialer that has the connection already.
type dialed func() (net.Conn, error)

func (d dialed) DialContext(context.Context, string, string) (net.Conn, error) { return d() }
