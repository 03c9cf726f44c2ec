package heal_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/fault"
	"st2ha/internal/heal"
	"st2ha/internal/step"
)

// redis is a host with a real Redis whose unit's restart is one of the process.
type redis struct {
	systemd
	t      *testing.T
	server *backendtest.Server
}

func (r *redis) Run(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	if argv[1] == "restart" && !r.failed {
		r.server.Kill()
		require.NoError(r.t, r.server.Start())
	}
	return r.systemd.Run(ctx, stdin, argv...)
}

func (r *redis) restarts() int {
	return strings.Count(strings.Join(r.ran, "\n"), "restart redis-server.service")
}

func TestRestartBackend(t *testing.T) {
	server, err := backendtest.NewRedis(t.TempDir(), "requirepass s3cret") // NOAUTH is an answer
	require.NoError(t, err)
	t.Cleanup(func() { server.Kill() })
	local, _ := node(t)
	h := &redis{systemd: systemd{Local: local, units: "redis-server.service"}, t: t, server: server}
	s := &heal.RestartBackend{Backend: "redis", Endpoint: server.Addr, Within: 20 * time.Second}
	run := func() []step.Change {
		t.Helper()
		findings, err := s.Check(t.Context(), h)
		require.NoError(t, err)
		require.Empty(t, findings)
		changes, err := s.Plan(t.Context(), h)
		require.NoError(t, err)
		for _, c := range changes {
			require.NoError(t, c.Apply(t.Context(), h))
		}
		require.NoError(t, s.Verify(t.Context(), h))
		return changes
	}
	require.Empty(t, run())
	server.Kill()
	changes := run()
	require.Len(t, changes, 1)
	require.Equal(t, "redis-server.service", changes[0].Target())
	require.Regexp(t, "^redis at "+server.Addr+": .*connection refused: systemctl restart redis-server.service$", changes[0].Diff())
	require.Equal(t, 1, h.restarts())

	// One that is frozen takes connections all the same.
	server.Freeze()
	conn, err := net.Dial("tcp", server.Addr)
	require.NoError(t, err)
	conn.Close()
	require.Len(t, run(), 1)
	require.Equal(t, 2, h.restarts())

	// A slow moment is none: the second look finds it up.
	server.Freeze()
	time.AfterFunc(3500*time.Millisecond, server.Thaw)
	require.Empty(t, run())
	require.Equal(t, 2, h.restarts())

	s.Within = 300 * time.Millisecond
	server.Kill()
	require.Equal(t, "silent", fault.Of(s.Verify(t.Context(), h)).Code)
	s.Backend = "mongodb"
	_, err = s.Check(t.Context(), h)
	require.Equal(t, "no_unit", fault.Of(err).Code)
}
