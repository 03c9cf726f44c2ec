package watchdog

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/incident"
	"st2ha/internal/probe"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

// seen are endpoints as a test wants them.
type seen struct {
	all    []incident.Status
	cutOff bool
	healed []probe.Key
}

func (s *seen) Statuses() []incident.Status { return s.all }
func (s *seen) CutOff() bool                { return s.cutOff }
func (s *seen) Node() string                { return "10.0.0.1" }
func (s *seen) Healed(key probe.Key, _ string) string {
	s.healed = append(s.healed, key)
	return "incident"
}

// machine is one on which each unit has failed, and whose restarts are noted.
type machine struct {
	*host.Local
	restarts []string
}

func (m *machine) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	if argv[1] == "restart" {
		m.restarts = append(m.restarts, argv[2])
		return nil, nil
	}
	var blocks []string
	for range argv[3:] {
		blocks = append(blocks, "LoadState=loaded\nActiveState=failed\nActiveEnterTimestampMonotonic=0\n")
	}
	return []byte(strings.Join(blocks, "\n")), nil
}

// The policy alone, without a prober, servers or a broker.
func TestHealer(t *testing.T) {
	testenv.NeedsRoot(t)
	m := &machine{Local: host.NewLocalAt("n1", t.TempDir())}
	for path, text := range map[string]string{step.StateDir + "/x": "", "/proc/uptime": "1000.00 900.00\n"} {
		require.NoError(t, os.MkdirAll(m.Path(path[:strings.LastIndex(path, "/")]), 0o700))
		require.NoError(t, os.WriteFile(m.Path(path), []byte(text), 0o600))
	}
	key := probe.Key{Backend: "redis", Name: "127.0.0.1:6379"}
	s := &seen{}
	h := newHealer(m, s, slog.New(slog.DiscardHandler))
	h.mender.every = 0
	var reports []heal.Event
	h.report = func(e heal.Event) { reports = append(reports, e) }
	needed := map[probe.Key]bool{}
	var mu sync.Mutex // several endpoints are decided on side by side
	h.gaveUp = func(k probe.Key, gaveUp bool) {
		mu.Lock()
		defer mu.Unlock()
		needed[k] = gaveUp
	}
	look := func(states ...incident.Status) {
		s.all = states
		h.healAll(t.Context())
		h.wait.Wait()
	}
	down := incident.Status{Key: key, State: incident.Down, Probe: probe.Connection, Reason: "connection refused"}
	s.cutOff = true
	look(down)
	require.Empty(t, m.restarts, "who reaches nobody heals nothing")
	s.cutOff = false
	alarm := down
	alarm.Probe, alarm.Answers = probe.Alarm, true
	look(alarm)
	require.Empty(t, m.restarts, "a restart does not help one that answers")
	look(down)
	require.Equal(t, []string{"redis-server.service"}, m.restarts)
	require.Equal(t, []probe.Key{key}, s.healed)
	require.Len(t, reports, 1)
	require.Equal(t, heal.Event{Event: heal.EventHealed, Target: "redis-server.service", Node: "10.0.0.1", Heals: 1,
		By:     "watchdog",
		Reason: "restarting redis-server.service: redis 127.0.0.1:6379: connection refused", At: reports[0].At}, reports[0])
	look(down)
	require.Len(t, m.restarts, 1, "the next one waits for a minute")
	require.NoError(t, os.WriteFile(m.Path(heal.MaintenanceFile), nil, 0o600))
	look(down)
	require.Len(t, m.restarts, 1)
	require.False(t, needed[key])

	require.NoError(t, os.Remove(m.Path(heal.MaintenanceFile)))
	h.ledger = heal.Ledger{Heals: 1, Window: time.Hour}
	look(down)
	require.True(t, needed[key], "a metric has it, as long as it is given up")
	look(incident.Status{Key: key, State: incident.Up})
	require.False(t, needed[key])
}
