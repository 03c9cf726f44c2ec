package mongodb

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/host"
	client "st2ha/internal/mongodb"
	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
	"st2ha/internal/secure"
)

func TestMongoDBTLS(t *testing.T) {
	t.Parallel()
	c := backendtest.NewCertificates(t, t.TempDir())
	plain := probetest.NewMongod(t, shared).Addr
	only, asking := c.Secured(t, plain, false), c.Secured(t, plain, true)
	require.NoError(t, New().Answers(t.Context(), host.NewLocal("localhost"), only), "restart_backend would restart it")
	require.NoError(t, New().Answers(t.Context(), host.NewLocal("localhost"), asking), "restart_backend would restart it")
	for name, tc := range map[string]struct {
		addr    string
		tls     *secure.TLS
		unknown string
	}{
		"trusted":            {only, &secure.TLS{CA: c.CA, Verify: true, Hostname: true}, ""},
		"with a certificate": {asking, &secure.TLS{CA: c.CA, Cert: c.Client, Verify: true, Hostname: true}, ""},
		"without the certificate": {asking, &secure.TLS{CA: c.CA, Verify: true, Hostname: true},
			"it does not agree on TLS: …"},
		"the system's authorities": {only, &secure.TLS{Verify: true, Hostname: true}, "its certificate is not trusted: …"},
		"without TLS":              {only, nil, "it speaks TLS, and the settings ask without"},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.tls != nil {
				tc.tls.Read = probetest.ReadFile
			}
			w := probetest.Start(t, Watch(Settings{Server: client.Server{URI: probetest.MongoURI(backendtest.User), TLS: tc.tls},
				Addr:   tc.addr,
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
