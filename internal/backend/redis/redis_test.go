package redis

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/host"
	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
	client "st2ha/internal/redis"
)

func TestRedisRefuses(t *testing.T) {
	for _, tc := range []struct {
		name     string
		conf     string
		settings client.Server
		probe    string
		reason   string
	}{
		{"no password given", "requirepass x", client.Server{}, probe.Login,
			"login refused: Redis asks for a password, and none is configured"},
		{"another password", "requirepass x", client.Server{Password: backendtest.Password}, probe.Login,
			"login refused: the default user does not exist, is disabled, or has another password"},
		{"no such user", "", client.Server{User: "st2", Password: backendtest.Password}, probe.Login,
			"login refused: user st2 does not exist, is disabled, or has another password"},
		{"no password there", "", client.Server{Password: backendtest.Password}, probe.Login,
			"login refused: a password is configured, and Redis has none"},
		{"no permission", "user st2 on nopass ~* +ping +auth +select", client.Server{User: "st2", Password: "x"}, probe.Login,
			"login refused: user st2 has no permission: NOPERM …"},
		{"no such database", "databases 1", client.Server{DB: 5}, probe.Alarm, "ERR DB index is out of range"},
		{"replica", "replicaof 127.0.0.1 1\nreplica-read-only yes", client.Server{}, probe.Alarm,
			"read only: it is a replica"},
		{"replica that is out of date", "replicaof 127.0.0.1 1\nreplica-serve-stale-data no", client.Server{}, probe.Alarm,
			"a replica whose master is down"},
		{"memory", "maxmemory 1", client.Server{}, probe.Alarm, "out of memory: it refuses writes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			check := backendtest.NoLeaks(t)
			s := probetest.NewRedis(t, tc.conf)
			tc.settings.Addr = s.Addr
			w := probetest.Start(t, Watch(Settings{Server: tc.settings}))
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
	s := probetest.NewRedis(t, "dbfilename dump", "save 1 1")
	require.NoError(t, os.Mkdir(filepath.Join(s.Dir, "dump"), 0o700)) // no file can be renamed to it
	w := probetest.Start(t, Watch(Settings{Server: client.Server{Addr: s.Addr},
		Timing: probe.Timing{LoginEvery: 300 * time.Millisecond}}))
	w.Is(probe.Ping, probe.Good, "")
	w.Is(probe.Alarm, probe.Bad, "it cannot save to disk, and refuses writes")
	require.NoError(t, os.Remove(filepath.Join(s.Dir, "dump")))
	w.Is(probe.Alarm, probe.Good, "")
}

// A server that speaks TLS is asked so, and what cannot be asked is unknown, never down.
func TestRedisTLS(t *testing.T) {
	c := backendtest.NewCertificates(t, t.TempDir())
	addr := c.Secured(t, probetest.NewRedis(t).Addr, false)
	require.NoError(t, New().Answers(t.Context(), host.NewLocal("localhost"), addr), "restart_backend would restart it")
	for name, tc := range map[string]struct{ url, unknown string }{
		"trusted":          {"rediss://" + addr + "/1?ssl_ca_certs=" + c.CA, ""},
		"as tooz takes it": {"redis://" + addr + "?ssl=True&ssl_ca_certs=" + c.CA, ""},
		"untrusted":        {"rediss://" + addr, "its certificate is not trusted: …"},
		"no file":          {"rediss://" + addr + "?ssl_ca_certs=/none", "the file of authorities cannot be read: …"},
		"without TLS":      {"redis://" + addr, "it speaks TLS, and the settings ask without"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := client.ParseURL(tc.url)
			require.NoError(t, err)
			if s.TLS != nil {
				s.TLS.Read = probetest.ReadFile
			}
			w := probetest.Start(t, Watch(Settings{Server: s, Timing: probe.Timing{LoginEvery: 300 * time.Millisecond}}))
			if tc.unknown != "" {
				w.Is(probe.Connection, probe.Unknown, tc.unknown)
				return
			}
			w.Is(probe.Ping, probe.Good, "")
			w.Is(probe.Login, probe.Good, "")
		})
	}
}
