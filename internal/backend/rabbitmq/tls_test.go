package rabbitmq

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/host"
	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
	"st2ha/internal/secure"
)

// Whatever the settings, a broker that is up is never down, and never restarted.
func TestRabbitMQTLS(t *testing.T) {
	t.Parallel()
	c := backendtest.NewCertificates(t, t.TempDir())
	broker, err := backendtest.NewSecuredBroker(t, t.TempDir(), c)
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	require.NoError(t, New().Answers(t.Context(), host.NewLocal("localhost"), broker.Secured),
		"restart_backend would restart it")
	for name, tc := range map[string]struct {
		addr    string
		tls     *secure.TLS
		method  string
		unknown string
	}{
		"trusted, whatever the name": {broker.Secured, &secure.TLS{CA: c.CA, Verify: true}, "", ""},
		"not verified":               {broker.Secured, &secure.TLS{}, "", ""},
		"with a certificate":         {broker.Secured, &secure.TLS{CA: c.CA, Cert: c.Client, Verify: true}, "PLAIN", ""},
		"another authority": {broker.Secured, &secure.TLS{CA: c.Other, Verify: true}, "",
			"its certificate is not trusted: …"},
		"the system's authorities": {broker.Secured, &secure.TLS{Verify: true}, "", "its certificate is not trusted: …"},
		"no file": {broker.Secured, &secure.TLS{CA: "/none", Verify: true}, "",
			"the file of authorities cannot be read: …"},
		"no key":      {broker.Secured, &secure.TLS{Cert: c.CA}, "", "the client's certificate in …"},
		"without TLS": {broker.Secured, nil, "", "it speaks TLS, and the settings ask without"},
		"TLS to a plain listener": {broker.Addr, &secure.TLS{CA: c.CA, Verify: true}, "",
			"it speaks no TLS, and the settings ask for it"},
		"a login it does not offer": {broker.Secured, &secure.TLS{CA: c.CA, Verify: true}, "EXTERNAL",
			"it offers no login by EXTERNAL"},
	} {
		t.Run(name, func(t *testing.T) {
			l := probetest.BrokerLogin(tc.addr)
			if l.TLS, l.Method = tc.tls, tc.method; tc.tls != nil {
				tc.tls.Read = probetest.ReadFile
			}
			w := probetest.Start(t, Watch(Settings{Login: l, Timing: probe.Timing{LoginEvery: 300 * time.Millisecond}}))
			if tc.unknown != "" {
				w.Is(probe.Connection, probe.Unknown, tc.unknown)
				return
			}
			w.Is(probe.Ping, probe.Good, "")
			w.Is(probe.Login, probe.Good, "")
		})
	}
}
