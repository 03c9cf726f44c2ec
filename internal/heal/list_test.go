package heal

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/host"
	"st2ha/internal/testenv"
)

// What the limits were asked about is what the report says, and the report changes nothing.
func TestReport(t *testing.T) {
	testenv.NeedsRoot(t)
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(root+"/var/lib", 0o755))
	h := host.NewLocalAt("node2", root)
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	found, err := Report(t.Context(), h, now)
	require.NoError(t, err)
	require.Empty(t, found, "a node on which nothing was ever healed")

	l := Default()
	d, err := l.Allow(t.Context(), h, "redis-server.service", now)
	require.NoError(t, err)
	require.Equal(t, GoAhead, d.Verdict)
	for _, minute := range []time.Duration{0, 2, 5, 8} {
		_, err = l.Allow(t.Context(), h, "/opt/stackstorm/packs", now.Add(minute*time.Minute))
		require.NoError(t, err)
	}
	require.NoError(t, os.WriteFile(root+MaintenanceFile, nil, 0o600))
	require.NoError(t, os.WriteFile(root+Dir+"/torn.json", []byte("{"), 0o600))

	found, err = Report(t.Context(), h, now.Add(9*time.Minute))
	require.NoError(t, err)
	var said []string
	for _, f := range found {
		said = append(said, f.Check+": "+f.Message)
	}
	require.Equal(t, []string{
		"maintenance: nothing is healed: maintenance is on",
		"healing_gave_up: healing of /opt/stackstorm/packs was given up at 2026-03-01T12:08:00Z",
		"healed: heals of redis-server.service: 1, last at 2026-03-01T12:00:00Z",
	}, said)
	again, err := Report(t.Context(), h, now.Add(9*time.Minute))
	require.NoError(t, err)
	require.Equal(t, found, again)
}
