package watch

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/host"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/stackstorm"
)

// node is this machine with a systemd that says what the test wants: the
// machine of the tests need not have one. The form is systemctl's.
type node struct {
	*host.Local
	mu     sync.Mutex
	states map[string]string // of a unit: active/running
	err    error
	calls  int
}

func (n *node) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls++
	var out []string
	for _, unit := range argv[3:] {
		names := []string{unit}
		if strings.HasSuffix(unit, "*") {
			names = []string{strings.Replace(unit, "*", "1", 1), strings.Replace(unit, "*", "2", 1)}
		}
		for _, name := range names {
			if state, ok := n.states[name]; ok {
				active, sub, _ := strings.Cut(state, "/")
				out = append(out, fmt.Sprintf("Id=%s.service\nActiveState=%s\nSubState=%s\n", name, active, sub))
			}
		}
	}
	return []byte(strings.Join(out, "\n")), n.err
}

func (n *node) set(unit, state string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.states[unit] = state
}

func (n *node) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.calls
}

func newNode() *node {
	return &node{Local: host.NewLocal("localhost"), states: map[string]string{"st2api": "active/running", "st2scheduler": "active/running",
		"st2actionrunner": "active/exited", "st2actionrunner@1": "active/running", "st2actionrunner@2": "active/running"}}
}

func unitSettings(n *node) UnitsSettings {
	return UnitsSettings{Host: n, Units: []string{"st2api", "st2scheduler", "st2actionrunner"}, Every: 20 * time.Millisecond}
}

func TestUnits(t *testing.T) {
	check := backendtest.NoLeaks(t)
	n := newNode()
	endpoints := UnitEndpoints(unitSettings(n))
	require.Len(t, endpoints, 3)
	watches := map[string]*watched{}
	for _, e := range endpoints {
		require.Equal(t, StackStorm, e.Backend)
		watches[e.Name] = start(t, e.Watch)
	}
	for _, w := range watches {
		w.is(ProbeUnit, Good, "")
	}
	n.set("st2api", "failed/failed")
	o := watches["st2api"].is(ProbeUnit, Bad, "st2api is failed (failed)")
	require.Equal(t, Limit{Suspect: 1, Down: 2}, o.Limit)
	n.set("st2api", "activating/auto-restart")
	o = watches["st2api"].is(ProbeUnit, Bad, "st2api is activating (auto-restart)")
	require.Equal(t, Limit{Suspect: 2, DownAfter: 90 * time.Second}, o.Limit)
	n.set("st2api", "active/running")
	watches["st2api"].is(ProbeUnit, Good, "")
	// The unit itself only starts the workers.
	n.set("st2actionrunner@2", "failed/failed")
	watches["st2actionrunner"].is(ProbeUnit, Bad, "st2actionrunner@2 is failed (failed)")
	n.mu.Lock()
	n.err = context.DeadlineExceeded
	n.mu.Unlock()
	watches["st2scheduler"].is(ProbeUnit, Unknown, "systemd does not answer")
	for _, w := range watches {
		w.end()
	}
	check()
	before := n.count()
	time.Sleep(100 * time.Millisecond)
	require.Equal(t, before, n.count(), "nobody watches")
}

// One call asks for all units, however many are watched.
func TestUnitsShareOneCall(t *testing.T) {
	n := newNode()
	s := unitSettings(n)
	s.Every = 100 * time.Millisecond
	for _, e := range UnitEndpoints(s) {
		start(t, e.Watch)
	}
	time.Sleep(time.Second)
	require.LessOrEqual(t, n.count(), 12)
}

func TestConsumers(t *testing.T) {
	broker := shared.Broker(t)
	l := brokerLogin(broker.Addr)
	conn, err := rabbitmq.Dial(t.Context(), &net.Dialer{}, l)
	require.NoError(t, err)
	defer conn.Close()
	channel, err := conn.Channel()
	require.NoError(t, err)
	for _, q := range append(stackstorm.Queues("st2actionrunner"), stackstorm.Queues("st2scheduler")...) {
		_, err := channel.QueueDeclare("lab."+q, false, true, false, false, nil)
		require.NoError(t, err)
		_, err = channel.Consume("lab."+q, q, true, false, false, false, nil)
		require.NoError(t, err)
	}

	check := backendtest.NoLeaks(t)
	p := newProxy(t, broker.Addr)
	l.Addr = p.Addr
	n := newNode()
	s := unitSettings(n)
	s.Login, s.Prefix, s.Deadline = l, "lab", 300*time.Millisecond
	watches := map[string]*watched{}
	for _, e := range UnitEndpoints(s) {
		watches[e.Name] = start(t, e.Watch)
	}
	runner := watches["st2actionrunner"]
	runner.is(ProbeConsumers, Good, "")
	watches["st2scheduler"].is(ProbeConsumers, Good, "")
	require.NoError(t, channel.Cancel("actionrunner.work", false))
	o := runner.is(ProbeConsumers, Bad, "st2actionrunner is active but nobody consumes lab.actionrunner.work")
	require.Equal(t, Limit{Suspect: 3, DownAfter: 10 * time.Second}, o.Limit)
	watches["st2scheduler"].is(ProbeConsumers, Good, "")
	p.Hold()
	runner.is(ProbeConsumers, Unknown, "the broker does not say who consumes lab.actionrunner.work")
	p.Release()
	runner.is(ProbeConsumers, Bad, "st2actionrunner is active but nobody consumes lab.actionrunner.work")
	for _, o := range watches["st2api"].reports() {
		require.NotEqual(t, ProbeConsumers, o.Probe, "its queues have no names")
	}
	for _, w := range watches {
		w.end()
	}
	p.Close()
	check()
}
