package watch

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
)

func newRedis(t *testing.T, lines ...string) *backendtest.Server {
	s, err := backendtest.NewRedis(t.TempDir(), lines...)
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

func TestRedisTLS(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "redis"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	secret, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}), 0o600))
	plain := newRedis(t, "tls-port 0", "tls-cert-file "+certFile, "tls-key-file "+keyFile, "tls-auth-clients no")
	admin := RedisSettings{Addr: plain.Addr, Dialer: &net.Dialer{}}
	conn, err := admin.open(t.Context())
	require.NoError(t, err)
	defer conn.close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, l.Close())
	_, err = conn.ask(t.Context(), "CONFIG", "SET", "tls-port", port)
	require.NoError(t, err)

	s, err := ParseRedisURL("rediss://127.0.0.1:" + port + "/1")
	require.NoError(t, err)
	w := start(t, WatchRedis(s))
	w.is(ProbeConnection, Bad, "tls: failed to verify certificate: …")
	w.end()
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	s.TLS = &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "127.0.0.1"}
	s.TLS.RootCAs.AddCert(cert)
	s.LoginEvery = 300 * time.Millisecond
	w = start(t, WatchRedis(s))
	w.is(ProbePing, Good, "")
	w.is(ProbeLogin, Good, "")
}

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
		"redis://h?ssl=True":                      {Addr: "h:6379", TLS: &tls.Config{ServerName: "h"}},
		"rediss://h:7":                            {Addr: "h:7", TLS: &tls.Config{ServerName: "h"}},
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
