package st2

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/host"
	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/service"
	"st2ha/internal/stackstorm"
)

var shared = &backendtest.Shared{}

// TestMain ends the tests' servers.
func TestMain(m *testing.M) { os.Exit(shared.Run(m)) }

// node is this machine with a systemd that says what the test wants: the
// machine of the tests need not have one.
type node struct {
	*host.Local
	mu               sync.Mutex
	states           map[string]string // of a unit: active/running
	err              error
	calls            int
	owners           map[string]int    // processes, by the local address of their connection to the broker
	units            map[string]string // of /proc/PID/cgroup
	mute, invocation string            // a unit that says so, and its present run
}

func (n *node) ReadFile(ctx context.Context, name string) (host.File, error) {
	if unit, ok := n.units[name]; ok {
		return host.File{Path: name, Data: []byte("0::/system.slice/" + unit + ".service\n")}, nil
	}
	return n.Local.ReadFile(ctx, name)
}

func (n *node) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if argv[0] == "ss" {
		out, err := backendtest.Sockets(argv, n.owners)
		return []byte(out), err
	}
	if argv[0] == "journalctl" {
		if n.mute == "" {
			return nil, &host.ExitError{Program: "journalctl", Code: 1}
		}
		return []byte(`{"_SYSTEMD_UNIT":"` + n.mute + `.service","_SYSTEMD_INVOCATION_ID":"4"}` + "\n"), nil
	}
	if argv[2] == "--property=Id,InvocationID" {
		return []byte("Id=" + argv[3] + ".service\nInvocationID=" + n.invocation + "\n"), nil
	}
	return nil, fmt.Errorf("not expected: %q", argv)
}

// systemd is the node's.
type systemd struct{ *node }

func (systemd) Close() {}

func (n systemd) States(_ context.Context, units ...string) ([]service.State, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls++
	var states []service.State
	for _, unit := range units {
		names := []string{unit}
		if strings.HasSuffix(unit, "*") {
			names = []string{strings.Replace(unit, "*", "1", 1), strings.Replace(unit, "*", "2", 1)}
		}
		for _, name := range names {
			if state, ok := n.states[name]; ok {
				active, sub, _ := strings.Cut(state, "/")
				states = append(states, service.State{Unit: name + ".service", Active: active, Sub: sub})
			}
		}
	}
	return states, n.err
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
	return &node{Local: host.NewLocal("localhost"), states: map[string]string{"st2api": "active/running",
		"st2scheduler":    "active/running",
		"st2actionrunner": "active/exited", "st2actionrunner@1": "active/running", "st2actionrunner@2": "active/running"}}
}

func unitSettings(n *node) Settings {
	return Settings{Host: n, Systemd: systemd{n}, Units: []string{"st2api", "st2scheduler", "st2actionrunner"}, Every: 20 * time.Millisecond}
}

func TestUnits(t *testing.T) {
	check := backendtest.NoLeaks(t)
	n := newNode()
	endpoints := Endpoints(unitSettings(n))
	require.Len(t, endpoints, 3)
	watches := map[string]*probetest.Watched{}
	for _, e := range endpoints {
		require.Equal(t, "st2", e.Backend)
		watches[e.Name] = probetest.Start(t, e.Watch)
	}
	for _, w := range watches {
		w.Is(ProbeUnit, probe.Good, "")
	}
	n.set("st2api", "failed/failed")
	o := watches["st2api"].Is(ProbeUnit, probe.Bad, "st2api is failed (failed)")
	require.Equal(t, probe.Limit{Suspect: 1, Down: 2}, o.Limit)
	n.set("st2api", "activating/auto-restart")
	o = watches["st2api"].Is(ProbeUnit, probe.Bad, "st2api is activating (auto-restart)")
	require.Equal(t, probe.Limit{Suspect: 2, DownAfter: 90 * time.Second}, o.Limit)
	n.set("st2api", "active/running")
	watches["st2api"].Is(ProbeUnit, probe.Good, "")
	// The unit itself only starts the workers.
	n.set("st2actionrunner@2", "failed/failed")
	watches["st2actionrunner"].Is(ProbeUnit, probe.Bad, "st2actionrunner@2 is failed (failed)")
	n.mu.Lock()
	n.err = context.DeadlineExceeded
	n.mu.Unlock()
	watches["st2scheduler"].Is(ProbeUnit, probe.Unknown, "systemd does not answer")
	for _, w := range watches {
		w.End()
	}
	check()
	before := n.count()
	time.Sleep(100 * time.Millisecond)
	require.Equal(t, before, n.count(), "nobody watches")
}

// A sensor container that waits for its node's turn is not ill; one that should run is.
func TestUnitWaits(t *testing.T) {
	root := t.TempDir()
	n := newNode()
	n.Local = host.NewLocalAt("localhost", root)
	n.set(stackstorm.SensorsUnit, "inactive/dead")
	s := unitSettings(n)
	s.Units = []string{stackstorm.SensorsUnit}
	w := probetest.Start(t, Endpoints(s)[0].Watch)
	w.Is(ProbeUnit, probe.Bad, "st2sensorcontainer is inactive (dead)")
	write := func(name string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(root+name), 0o755))
		require.NoError(t, os.WriteFile(root+name, nil, 0o644))
	}
	write(stackstorm.TurnDropIn(stackstorm.SensorsUnit))
	w.Is(ProbeUnit, probe.Good, "")
	write(stackstorm.TurnFile(stackstorm.SensorsUnit))
	w.Is(ProbeUnit, probe.Bad, "st2sensorcontainer is inactive (dead)")
	w.End()
}

// A service that cannot publish says so in the journal, until it is begun anew.
func TestMuteUnit(t *testing.T) {
	n := newNode()
	s := unitSettings(n)
	s.JournalEvery = 20 * time.Millisecond
	watches := map[string]*probetest.Watched{}
	for _, e := range Endpoints(s) {
		watches[e.Name] = probetest.Start(t, e.Watch)
	}
	set := func(unit, invocation string) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.mute, n.invocation = unit, invocation
	}
	watches["st2scheduler"].Is(ProbeJournal, probe.Good, "")
	set("st2scheduler", "4")
	watches["st2scheduler"].Is(ProbeJournal, probe.Bad, "st2scheduler is active but publishes nothing any more")
	watches["st2api"].Is(ProbeJournal, probe.Good, "")
	set("st2scheduler", "5")
	watches["st2scheduler"].Is(ProbeJournal, probe.Good, "")
	set("st2actionrunner@2", "4")
	watches["st2actionrunner"].Is(ProbeJournal, probe.Bad, "st2actionrunner@2 is active but publishes nothing any more")
	for _, w := range watches {
		w.End()
	}
}

// One call asks for all units, however many are watched.
func TestUnitsShareOneCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		s := unitSettings(n)
		s.Every = 100 * time.Millisecond
		for _, e := range Endpoints(s) {
			probetest.Start(t, e.Watch)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		require.InDelta(t, 10, n.count(), 1)
	})
}

func TestConsumers(t *testing.T) {
	broker := shared.Broker(t)
	l := probetest.BrokerLogin(broker.Addr)
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
	p := probetest.NewProxy(t, broker.Addr)
	l.Addr = p.Addr
	n := newNode()
	s := unitSettings(n)
	s.Login, s.Prefix, s.Deadline = l, "lab", 300*time.Millisecond
	watches := map[string]*probetest.Watched{}
	for _, e := range Endpoints(s) {
		watches[e.Name] = probetest.Start(t, e.Watch)
	}
	runner := watches["st2actionrunner"]
	runner.Is(ProbeConsumers, probe.Good, "")
	watches["st2scheduler"].Is(ProbeConsumers, probe.Good, "")
	require.NoError(t, channel.Cancel("actionrunner.work", false))
	o := runner.Is(ProbeConsumers, probe.Bad, "st2actionrunner is active but nobody consumes lab.actionrunner.work")
	require.Equal(t, probe.Limit{Suspect: 2, DownAfter: 10 * time.Second}, o.Limit)
	watches["st2scheduler"].Is(ProbeConsumers, probe.Good, "")
	p.Hold()
	runner.Is(ProbeConsumers, probe.Unknown, "the broker does not say who consumes lab.actionrunner.work")
	p.Release()
	runner.Is(ProbeConsumers, probe.Bad, "st2actionrunner is active but nobody consumes lab.actionrunner.work")
	for _, o := range watches["st2api"].Reports() {
		require.NotEqual(t, ProbeConsumers, o.Probe, "its queues have no names")
	}
	for _, w := range watches {
		w.End()
	}
	p.Close()
	check()
}

// Deaf is who takes nothing, not who is slow or has much to do: a service that hangs stays connected and consumes, as
// both
// rules engines did after their database had been away. The heartbeats of its connection are no progress.
func TestStuckConsumer(t *testing.T) {
	broker := shared.Broker(t)
	l := probetest.BrokerLogin(broker.Addr)
	_, text, err := net.SplitHostPort(broker.Addr)
	require.NoError(t, err)
	port, err := strconv.Atoi(text)
	require.NoError(t, err)
	url := stackstorm.MessagingURL(backendtest.User, backendtest.Password, "127.0.0.1", port, "/", "")
	n := newNode()
	n.owners, n.units = map[string]int{}, map[string]string{}
	s := Settings{Host: n, Systemd: systemd{n}, Login: l, Prefix: "stuck", Every: time.Second, StuckAfter: 4 * time.Second}
	consumers := map[string]*backendtest.Consumer{}
	for i, unit := range []string{"st2rulesengine", "st2notifier", "st2scheduler"} {
		queue := "stuck." + stackstorm.Queues(unit)[0]
		c := backendtest.Consume(t, url, queue, time.Second, backendtest.Hang)
		consumers[unit] = c
		n.owners[c.Local] = 4000000 + i
		n.units[fmt.Sprintf("/proc/%d/cgroup", 4000000+i)] = unit
		n.states[unit] = "active/running"
		s.Units = append(s.Units, unit)
		defer func() { broker.MustCtl(t, "", "delete_queue", queue) }()
	}
	// one is under way, four wait
	consumers["st2rulesengine"].Publish(t, "stuck."+stackstorm.Queues("st2rulesengine")[0], 5)
	consumers["st2notifier"].Publish(t, "stuck."+stackstorm.Queues("st2notifier")[0], 100) // slow: one each second
	consumers["st2notifier"].Pace(900 * time.Millisecond)
	stop := make(chan struct{}) // as much comes as is taken, so that the queue's length never changes
	busy := make(chan struct{})
	go func() {
		defer close(busy)
		queue := "stuck." + stackstorm.Queues("st2scheduler")[0]
		c := consumers["st2scheduler"]
		c.Publish(t, queue, 20)
		c.Pace(300 * time.Millisecond)
		for {
			select {
			case <-stop:
				return
			case <-time.After(300 * time.Millisecond):
				c.Publish(t, queue, 1)
			}
		}
	}()
	defer func() { close(stop); <-busy }()

	watches := map[string]*probetest.Watched{}
	for _, e := range Endpoints(s) {
		watches[e.Name] = probetest.Start(t, e.Watch)
	}
	began := time.Now()
	engine := watches["st2rulesengine"]
	engine.Is(ProbeConsumers, probe.Good, "")
	o := engine.Is(ProbeConsumers, probe.Bad,
		"st2rulesengine is active but takes none of 4 messages in stuck.trigger_instances_dispatch.rules_engine for… s")
	require.Equal(t, probe.Limit{Suspect: 1, Down: 1}, o.Limit)
	require.Greater(t, o.At.Sub(began), 4*time.Second)
	time.Sleep(time.Until(began.Add(7 * time.Second)))
	consumers["st2rulesengine"].Pace(0)
	engine.Is(ProbeConsumers, probe.Good, "")
	for _, unit := range []string{"st2notifier", "st2scheduler"} {
		for _, o := range watches[unit].Reports() {
			require.Equal(t, probe.Good, o.Verdict, "%s works: %+v", unit, o)
		}
	}
	for _, w := range watches {
		w.End()
	}
}
