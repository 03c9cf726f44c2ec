package stackstorm

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/host"
)

// st2node is a node whose systemd is canned, with a real broker: units are up
// or down, and connected or not.
type st2node struct {
	*machine
	units     map[string]string // state of each, "active running"
	connected map[string]int    // and the number of the process that is
	pids      map[string]int
	sockets   map[string]int // real ones: processes by local address
	begun     map[string]int // how often each was begun
	journal   []string       // what journalctl finds
}

func newST2Node(t *testing.T, broker, mongod string) *st2node {
	conf := fmt.Sprintf("[database]\nhost = mongodb://%s/st2\n[messaging]\nurl = %s\n", mongod,
		MessagingURL(backendtest.User, strings.ReplaceAll(backendtest.Password, "$", "$$"),
			"127.0.0.1", port(t, broker), "/", ""))
	n := &st2node{machine: newMachine(t, "node2", conf), units: map[string]string{}, connected: map[string]int{},
		pids: map[string]int{}, begun: map[string]int{}}
	for i, unit := range []string{"st2api", "st2scheduler", "st2workflowengine",
		"st2actionrunner@1", "st2actionrunner@2"} {
		n.units[unit] = "active running"
		n.connected[unit], n.pids[unit] = 100+i, 100+i
		name := fmt.Sprintf("/proc/%d/cgroup", 100+i)
		require.NoError(t, os.MkdirAll(n.root+name[:strings.LastIndex(name, "/")], 0o755))
		n.put(t, name, "0::/system.slice/system-st2actionrunner.slice/"+unit+".service\n")
	}
	n.units["st2actionrunner"] = "active exited"
	n.run = n.systemd
	return n
}

func port(t *testing.T, addr string) int {
	var n int
	_, err := fmt.Sscanf(addr, "127.0.0.1:%d", &n)
	require.NoError(t, err)
	return n
}

func (n *st2node) systemd(argv string) (string, error) {
	words := strings.Fields(argv)
	switch {
	case strings.HasPrefix(argv, "systemctl show --property=LoadState,UnitFileState "):
		var blocks []string
		for _, unit := range words[3:] {
			state := "LoadState=not-found\nUnitFileState="
			if n.units[unit] != "" {
				state = "LoadState=loaded\nUnitFileState=enabled"
			}
			blocks = append(blocks, state)
		}
		return strings.Join(blocks, "\n\n") + "\n", nil
	case strings.HasPrefix(argv, "systemctl show --property=Id,ActiveState,SubState,LoadState,UnitFileState "):
		var blocks []string
		for unit, state := range n.units {
			active, sub, _ := strings.Cut(state, " ")
			blocks = append(blocks, "Id="+unit+".service\nActiveState="+active+"\nSubState="+sub)
		}
		return strings.Join(blocks, "\n\n") + "\n", nil
	case strings.HasPrefix(argv, "systemctl show --property=Id,InvocationID "):
		var blocks []string
		for _, unit := range words[3:] {
			blocks = append(blocks, fmt.Sprintf("Id=%s.service\nInvocationID=%s-%d", unit, unit, n.begun[unit]))
		}
		return strings.Join(blocks, "\n\n") + "\n", nil
	case words[0] == "journalctl":
		if len(n.journal) == 0 {
			return "", &host.ExitError{Program: "journalctl", Code: 1}
		}
		return strings.Join(n.journal, "\n") + "\n", nil
	case words[0] == "ss":
		var out strings.Builder
		for unit, pid := range n.connected {
			fmt.Fprintf(&out, "0 0 127.0.0.1:%d 127.0.0.1:5672 users:((\"%s\",pid=%d,fd=7))\n"+
				"\t cubic rto:204 bytes_sent:900 bytes_acked:901 lastrcv:9\n", 40000+pid, unit, pid)
		}
		real, err := backendtest.Sockets(words, n.sockets)
		return out.String() + real, err
	case words[1] == "restart":
		n.units[words[2]] = "active running"
		n.connected[words[2]] = n.pids[words[2]]
		n.begun[words[2]]++
	case words[1] == "is-active":
		return "", &host.ExitError{Program: "systemctl is-active", Code: 3}
	}
	return "", nil
}

// consume has somebody, on whichever node, consume queues; it returns how to stop.
func consume(t *testing.T, addr string, units ...string) (stop func()) {
	conn, err := amqp.Dial(MessagingURL(backendtest.User, backendtest.Password, "127.0.0.1", port(t, addr), "/", ""))
	require.NoError(t, err)
	channel, err := conn.Channel()
	require.NoError(t, err)
	for _, unit := range units {
		for _, queue := range Queues(unit) {
			_, err := channel.QueueDeclare("st2."+queue, true, false, false, false, nil)
			require.NoError(t, err)
			_, err = channel.Consume("st2."+queue, "", true, false, false, false, nil)
			require.NoError(t, err)
		}
	}
	return func() { _ = conn.Close() }
}

func TestRecoverServices(t *testing.T) {
	broker, err := backendtest.NewBroker(t, t.TempDir())
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	program, err := backendtest.BuildMongod(t.TempDir())
	require.NoError(t, err)
	mongod, err := backendtest.NewMongod(program, t.TempDir(), false)
	require.NoError(t, err)
	t.Cleanup(func() { mongod.Kill() })
	stop := consume(t, broker.Addr, "st2scheduler", "st2workflowengine", runnerUnit)
	s := &Recoverer{Delay: 15 * time.Second, Within: 2 * time.Second}
	plan := func(n *st2node) map[string]string {
		t.Helper()
		findings, err := s.Check(t.Context(), n)
		require.NoError(t, err)
		require.Empty(t, findings)
		changes, err := s.Plan(t.Context(), n)
		require.NoError(t, err)
		found := map[string]string{}
		for _, c := range changes {
			found[c.Target()] = strings.Split(c.Diff(), ": ")[0]
		}
		return found
	}

	n := newST2Node(t, broker.Addr, mongod.Addr)
	require.Empty(t, plan(n))
	require.NoError(t, s.Verify(t.Context(), n))

	// Down, deaf by itself, and a worker of many.
	n.units["st2api"] = "failed failed"
	delete(n.connected, "st2api")
	delete(n.connected, "st2workflowengine")
	n.units["st2actionrunner@2"] = "inactive dead"
	require.Equal(t, map[string]string{
		"st2api": "failed (failed)", "st2workflowengine": "active, but not connected to RabbitMQ",
		"st2actionrunner@2": "inactive (dead)",
	}, plan(n))
	changes, err := s.Plan(t.Context(), n)
	require.NoError(t, err)
	for _, c := range changes {
		require.NoError(t, c.Apply(t.Context(), n))
	}
	require.NoError(t, s.Verify(t.Context(), n))
	require.Empty(t, plan(n))

	// A scheduler that took a request while the broker was away goes on taking them, and publishes none: only its log
	// says so.
	n.journal = []string{
		`{"_SYSTEMD_UNIT":"st2scheduler.service","_SYSTEMD_INVOCATION_ID":"st2scheduler-0","_PID":"3826"}`,
		`{"_SYSTEMD_UNIT":"st2actionrunner@1.service","_SYSTEMD_INVOCATION_ID":"st2actionrunner@1-0"}`,
		// it was begun anew since
		`{"_SYSTEMD_UNIT":"st2workflowengine.service","_SYSTEMD_INVOCATION_ID":"st2workflowengine-0"}`,
		`{"_SYSTEMD_UNIT":["st2api.service"]}`, "cut o",
	}
	require.Equal(t, map[string]string{
		"st2scheduler":      "active, but publishes nothing any more",
		"st2actionrunner@1": "active, but publishes nothing any more",
	}, plan(n))
	changes, err = s.Plan(t.Context(), n)
	require.NoError(t, err)
	for _, c := range changes {
		require.NoError(t, c.Apply(t.Context(), n))
	}
	require.Empty(t, plan(n))
	require.NoError(t, s.Verify(t.Context(), n))
	n.journal = nil

	// Restarts of this machine's own runners follow the action's end.
	n.local = true
	n.units["st2actionrunner@1"] = "failed failed"
	n.ran = nil
	changes, err = s.Plan(t.Context(), n)
	require.NoError(t, err)
	require.Len(t, changes, 1)
	require.NoError(t, changes[0].Apply(t.Context(), n))
	require.Equal(t, "systemd-run --quiet --collect --unit=st2ha-recover-st2actionrunner-1 --on-active=15 "+
		"--timer-property=AccuracySec=1s -- systemctl restart st2actionrunner@1",
		n.ran[len(n.ran)-1])
	require.NoError(t, s.Verify(t.Context(), n))

	// Nobody anywhere consumes: a restart of the runner is one of its workers.
	stop()
	n = newST2Node(t, broker.Addr, mongod.Addr)
	n.units["st2actionrunner@2"] = "inactive dead"
	require.Eventually(t, func() bool { return len(plan(n)) == 3 }, 10*time.Second, 100*time.Millisecond)
	require.Equal(t, map[string]string{
		"st2scheduler":      "active, but nobody consumes st2.actionrunner.req",
		"st2workflowengine": "active, but nobody consumes st2.workflow.work",
		runnerUnit:          "active, but nobody consumes st2.actionrunner.work",
	}, plan(n))
	require.ErrorContains(t, s.Verify(t.Context(), n), "nobody consumes")

	// Where it is the backend that is away, a restart heals nothing.
	broker.MustCtl(t, "0ther\n0ther\n", "change_password", backendtest.User)
	findings, err := s.Check(t.Context(), n)
	require.NoError(t, err)
	require.Equal(t, "broker", findings[0].Check)
	require.NotContains(t, findings[0].Message, backendtest.Password)
	mongod.Kill()
	findings, err = s.Check(t.Context(), n)
	require.NoError(t, err)
	require.Equal(t, "database", findings[0].Check)
}

// A service that is connected and takes nothing is restarted; one that is slow is not, and is told from it within
// seconds.
func TestRecoverStuck(t *testing.T) {
	broker, err := backendtest.NewBroker(t, t.TempDir())
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	const queue = "st2.actionrunner.req"
	c := backendtest.Consume(t,
		MessagingURL(backendtest.User, backendtest.Password, "127.0.0.1", port(t, broker.Addr), "/", ""), queue,
		time.Second, backendtest.Hang)
	c.Publish(t, queue, 9)
	stop := consume(t, broker.Addr, "st2workflowengine", runnerUnit)
	defer stop()
	n := newST2Node(t, broker.Addr, "127.0.0.1:1")
	n.connected = map[string]int{"st2workflowengine": n.pids["st2workflowengine"],
		"st2actionrunner@1": n.pids["st2actionrunner@1"], "st2actionrunner@2": n.pids["st2actionrunner@2"]}
	n.sockets = map[string]int{c.Local: n.pids["st2scheduler"]}
	s := &Recoverer{Within: time.Second, Stuck: 4 * time.Second}
	require.Eventually(t, func() bool {
		changes, err := s.Plan(t.Context(), n)
		require.NoError(t, err)
		return len(changes) == 1 && changes[0].Diff() == "active, but takes none of 8 messages in "+queue+
			" for 4s: systemctl restart st2scheduler"
	}, 30*time.Second, time.Millisecond)
	c.Pace(500 * time.Millisecond)
	began := time.Now()
	changes, err := s.Plan(t.Context(), n)
	require.NoError(t, err)
	require.Empty(t, changes)
	require.Less(t, time.Since(began), 4*time.Second)
}
