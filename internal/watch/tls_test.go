package watch

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/mongodb"
	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
	"st2ha/internal/secure"
)

// tlsNode is this machine; nothing is restarted on it.
type tlsNode struct{ *host.Local }

// neverRestarted fails the test if restart_backend would restart what is at addr.
func neverRestarted(t *testing.T, backend, addr string) {
	changes, err := (&heal.RestartBackend{Backend: backend, Endpoint: addr, Within: time.Second}).Plan(t.Context(), tlsNode{host.NewLocal("localhost")})
	require.NoError(t, err)
	require.Empty(t, changes)
}

// Whatever the settings, a broker that is up is never down, and never restarted.
func TestRabbitMQTLS(t *testing.T) {
	t.Parallel()
	c := backendtest.NewCertificates(t, t.TempDir())
	broker, err := backendtest.NewSecuredBroker(t, t.TempDir(), c)
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	neverRestarted(t, "rabbitmq", broker.Secured)
	for name, tc := range map[string]struct {
		addr    string
		tls     *secure.TLS
		method  string
		unknown string
	}{
		"trusted, whatever the name": {broker.Secured, &secure.TLS{CA: c.CA, Verify: true}, "", ""},
		"not verified":               {broker.Secured, &secure.TLS{}, "", ""},
		"with a certificate":         {broker.Secured, &secure.TLS{CA: c.CA, Cert: c.Client, Verify: true}, "PLAIN", ""},
		"another authority":          {broker.Secured, &secure.TLS{CA: c.Other, Verify: true}, "", "its certificate is not trusted: …"},
		"the system's authorities":   {broker.Secured, &secure.TLS{Verify: true}, "", "its certificate is not trusted: …"},
		"no file":                    {broker.Secured, &secure.TLS{CA: "/none", Verify: true}, "", "the file of authorities cannot be read: …"},
		"no key":                     {broker.Secured, &secure.TLS{Cert: c.CA}, "", "the client's certificate in …"},
		"without TLS":                {broker.Secured, nil, "", "it speaks TLS, and the settings ask without"},
		"TLS to a plain listener":    {broker.Addr, &secure.TLS{CA: c.CA, Verify: true}, "", "it speaks no TLS, and the settings ask for it"},
		"a login it does not offer":  {broker.Secured, &secure.TLS{CA: c.CA, Verify: true}, "EXTERNAL", "it offers no login by EXTERNAL"},
	} {
		t.Run(name, func(t *testing.T) {
			l := brokerLogin(tc.addr)
			if l.TLS, l.Method = tc.tls, tc.method; tc.tls != nil {
				tc.tls.Read = readFile
			}
			w := probetest.Start(t, WatchRabbitMQ(RabbitMQSettings{Login: l, Timing: probe.Timing{LoginEvery: 300 * time.Millisecond}}))
			if tc.unknown != "" {
				w.Is(probe.Connection, probe.Unknown, tc.unknown)
				return
			}
			w.Is(probe.Ping, probe.Good, "")
			w.Is(probe.Login, probe.Good, "")
		})
	}
}

func TestMongoDBTLS(t *testing.T) {
	t.Parallel()
	c := backendtest.NewCertificates(t, t.TempDir())
	plain := newMongod(t).Addr
	only, client := c.Secured(t, plain, false), c.Secured(t, plain, true)
	neverRestarted(t, "mongodb", only)
	neverRestarted(t, "mongodb", client)
	for name, tc := range map[string]struct {
		addr    string
		tls     *secure.TLS
		unknown string
	}{
		"trusted":                  {only, &secure.TLS{CA: c.CA, Verify: true, Hostname: true}, ""},
		"with a certificate":       {client, &secure.TLS{CA: c.CA, Cert: c.Client, Verify: true, Hostname: true}, ""},
		"without the certificate":  {client, &secure.TLS{CA: c.CA, Verify: true, Hostname: true}, "it does not agree on TLS: …"},
		"the system's authorities": {only, &secure.TLS{Verify: true, Hostname: true}, "its certificate is not trusted: …"},
		"without TLS":              {only, nil, "it speaks TLS, and the settings ask without"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.tls != nil {
				tc.tls.Read = readFile
			}
			w := probetest.Start(t, WatchMongoDB(MongoDBSettings{Server: mongodb.Server{URI: mongoURI(backendtest.User), TLS: tc.tls}, Addr: tc.addr,
				Timing: probe.Timing{LoginEvery: 300 * time.Millisecond}}))
			if tc.unknown != "" {
				o := w.Is(probe.Connection, probe.Unknown, tc.unknown)
				require.Equal(t, probe.Limit{}, o.Limit)
				return
			}
			w.Is(probe.Ping, probe.Good, "")
			w.Is(probe.Login, probe.Good, "")
		})
	}
}
