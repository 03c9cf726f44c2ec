package watchdog

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/backend"
	"st2ha/internal/backend/st2"
	"st2ha/internal/backendtest"
	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/incident"
	"st2ha/internal/probe"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/relay"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
	"st2ha/internal/watch"
)

// TestMain is also a watchdog to be killed.
func TestMain(m *testing.M) {
	if os.Getenv("ST2HA_TEST_MAIN") == "watchdog" {
		watchdogMain()
	}
	os.Exit(m.Run())
}

// await returns the next event with this state; others before it are passed over.
func await(t *testing.T, events <-chan incident.Event, backend string, state incident.State) incident.Event {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		select {
		case e := <-events:
			if e.Backend == backend && e.State == state {
				return e
			}
		case <-limit:
			t.Fatalf("%s was not %s within 30 s", backend, state)
		}
	}
}

const redisUnit = "redis-server.service"

// node is this machine with the files of a test's root, and a systemd that
// knows one unit: that of a real Redis, which is what it restarts.
type node struct {
	*host.Local
	redis *backendtest.Server

	mu    sync.Mutex
	state string // the unit's ActiveState
	ran   []string
}

func newNode(t *testing.T, redis *backendtest.Server) *node {
	t.Helper()
	testenv.NeedsRoot(t)
	n := &node{Local: host.NewLocalAt("n1", t.TempDir()), redis: redis, state: "failed"}
	for _, dir := range []string{"/var/lib/redis", step.StateDir, "/proc"} {
		require.NoError(t, os.MkdirAll(n.Path(dir), 0o700))
	}
	require.NoError(t, os.WriteFile(n.Path("/proc/uptime"), []byte("1000.00 900.00\n"), 0o600))
	return n
}

// Run is systemctl; all else is this machine's.
func (n *node) Run(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	if argv[0] != "systemctl" {
		argv[len(argv)-1] = n.Path(argv[len(argv)-1])
		return n.Local.Run(ctx, stdin, argv...)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch argv[1] {
	case "show":
		var out []byte
		for i, unit := range argv[3:] {
			if i > 0 {
				out = append(out, '\n')
			}
			loaded := "not-found"
			if unit == redisUnit {
				loaded = "loaded"
			}
			out = fmt.Appendf(out, "LoadState=%s\nActiveState=%s\nActiveEnterTimestampMonotonic=0\n", loaded, n.state)
		}
		return out, nil
	case "restart":
		n.ran = append(n.ran, argv[2])
		n.redis.Kill()
		if err := n.redis.Start(); err != nil {
			return nil, &host.ExitError{Program: "systemctl restart", Code: 1, Stderr: err.Error()}
		}
	}
	return nil, nil
}

func (n *node) restarts() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.ran)
}

// config is that of a node with a Redis and a broker.
func config(redis, broker string) backend.Config {
	login := "amqp://stackstorm:p%40ss%2Fw%25rd@" + broker + "/"
	return backend.Config{Redis: "redis://" + redis, RabbitMQ: login, MongoDB: "mongodb://127.0.0.1:1/",
		SuspectEvents: true}
}

// dog is a watchdog at work.
type dog struct {
	said testenv.Buffer
	stop func()
}

func runWatchdog(t *testing.T, n host.Host, c backend.Config, change ...func(*Watchdog)) *dog {
	t.Helper()
	d := &dog{}
	p := watch.NewProber("n1", c, slog.New(slog.NewTextHandler(&d.said, nil)))
	p.Host = n
	w := &Watchdog{Prober: p, Dir: n.(interface{ Path(string) string }).Path(step.StateDir)}
	for _, f := range change {
		f(w)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	var once sync.Once
	d.stop = func() {
		once.Do(func() {
			cancel()
			require.NoError(t, <-ended)
		})
	}
	t.Cleanup(d.stop)
	return d
}

// events reads what watchdogs sent to a broker; the lines of heals go to heals.
func events(t *testing.T, broker string) (<-chan incident.Event, <-chan heal.Event) {
	t.Helper()
	all, heals := make(chan incident.Event, 10000), make(chan heal.Event, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	in := &relay.Inbox{Log: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context) (*rabbitmq.Connection, error) {
			return rabbitmq.Dial(ctx, &net.Dialer{}, rabbitmq.Login{Addr: broker, User: backendtest.User,
				Password: backendtest.Password, VHost: "/"})
		},
		Handle: func(line []byte, taken func()) {
			var e incident.Event
			var h heal.Event
			if json.Unmarshal(line, &e) == nil && e.Event == incident.Changed {
				all <- e
			} else if json.Unmarshal(line, &h) == nil {
				heals <- h
			}
			taken()
		}}
	ended := make(chan struct{})
	go func() { defer close(ended); in.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return all, heals
}

func newRedis(t *testing.T) *backendtest.Server {
	t.Helper()
	s, err := backendtest.NewRedis(t, t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { s.Kill() })
	return s
}

func newBroker(t *testing.T) *backendtest.Broker {
	t.Helper()
	b, err := backendtest.NewBroker(t, t.TempDir())
	require.NoError(t, err)
	t.Cleanup(b.Close)
	return b
}

func TestWatchdogHealsAndReportsAfterwards(t *testing.T) {
	t.Parallel()
	redis, broker := newRedis(t), newBroker(t)
	n := newNode(t, redis)
	d := runWatchdog(t, n, config(redis.Addr, broker.Addr))
	defer func() { t.Log(d.said.String()) }()
	all, heals := events(t, broker.Addr)
	await(t, all, "redis", incident.Up)
	await(t, all, "rabbitmq", incident.Up)

	// With the broker away it heals all the same, and tells when that is back.
	broker.Kill()
	killed := redis.Kill()
	require.Eventually(t, func() bool { return n.restarts() == 1 }, 20*time.Second, 20*time.Millisecond)
	t.Logf("killed to restart: %s", time.Since(killed).Round(time.Millisecond))
	time.Sleep(3 * time.Second)
	require.NoError(t, broker.Start())
	down := await(t, all, "redis", incident.Down)
	up := await(t, all, "redis", incident.Up)
	assert.Equal(t, []string{down.ID, "watchdog", "watchdog", "n1"}, []string{up.ID, up.HealedBy, up.Source, up.Node})
	h := <-heals
	assert.Equal(t, []any{heal.EventHealed, redisUnit, 1}, []any{h.Event, h.Target, h.Heals})
	assert.Contains(t, h.Reason, "connection refused")
	t.Logf("down for %d ms, healed", up.LastedMS)
}

func TestWatchdogLeavesAlone(t *testing.T) {
	t.Parallel()
	redis := newRedis(t)
	for name, c := range map[string]struct {
		prepare func(*testing.T, *node)
		said    string // why not
	}{
		"in maintenance": {func(t *testing.T, n *node) {
			require.NoError(t, os.WriteFile(n.Path(heal.MaintenanceFile), nil, 0o600))
		}, "maintenance is on"},
		"while a run is at work": {func(t *testing.T, n *node) {
			release, err := step.Lock(t.Context(), n, "run one, step configure_rabbitmq", 0)
			require.NoError(t, err)
			t.Cleanup(release)
		}, "run one, step configure_rabbitmq"},
		"while systemd starts it": {func(t *testing.T, n *node) { n.state = "activating" },
			"systemd says that it is activating"},
		"while systemd stops it": {func(t *testing.T, n *node) { n.state = "deactivating" },
			"systemd says that it is deactivating"},
		"when it has just begun": {func(t *testing.T, n *node) {
			n.state = "active"
			require.NoError(t, os.WriteFile(n.Path("/proc/uptime"), []byte("5.00 5.00\n"), 0o600))
		}, "it was started less than "},
		"with a full disk": {func(t *testing.T, n *node) {
			require.NoError(t, syscall.Mount("tmpfs", n.Path("/var/lib/redis"), "tmpfs", 0, "size=4m"))
			t.Cleanup(func() { _ = syscall.Unmount(n.Path("/var/lib/redis"), 0) })
		}, "the disk of /var/lib/redis is full"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, restart(redis))
			n := newNode(t, redis)
			c.prepare(t, n)
			d := runWatchdog(t, n, backend.Config{Redis: "redis://" + redis.Addr, SuspectEvents: true})
			redis.Kill()
			require.Eventually(t, func() bool { return bytes.Contains([]byte(d.said.String()), []byte("state=down")) },
				20*time.Second, 20*time.Millisecond)
			time.Sleep(2500 * time.Millisecond)
			assert.Zero(t, n.restarts())
			assert.Contains(t, d.said.String(), c.said)
			d.stop()
		})
	}
}

func TestHealable(t *testing.T) {
	down := func(backend string, change func(*incident.Status)) incident.Status {
		s := incident.Status{Key: probe.Key{Backend: backend, Name: backend}, State: incident.Down, Probe: probe.Ping,
			Silent: true}
		if change != nil {
			change(&s)
		}
		return s
	}
	frozen := down("rabbitmq", nil)
	assert.True(t, healable(frozen, nil))
	assert.False(t, healable(down("rabbitmq", func(s *incident.Status) { s.Host = "10.0.0.2" }), nil), "another node's")
	assert.False(t, healable(down("rabbitmq", func(s *incident.Status) { s.Silent, s.Answers = false, true }), nil),
		"it answers again, and is not up yet")
	assert.False(t, healable(down("rabbitmq", func(s *incident.Status) { s.Probe = probe.Alarm }), nil),
		"a restart frees no memory")
	backends := []incident.Status{{Key: probe.Key{Backend: "mongodb"}, State: incident.Up},
		{Key: probe.Key{Backend: "rabbitmq"}, State: incident.Up}}
	mute := func(unit string) incident.Status {
		return incident.Status{Key: probe.Key{Backend: "st2", Name: unit}, State: incident.Down, Probe: st2.ProbeJournal}
	}
	assert.True(t, healable(mute("st2scheduler"), backends))
	assert.False(t, healable(mute("st2scheduler"), nil), "its backends first")
	assert.False(t, healable(mute("st2actionrunner"), backends), "its other workers have actions in hand")

	var said testenv.Buffer
	h := newHealer(nil, nil, slog.New(slog.NewTextHandler(&said, nil)))
	quiet := down("redis", func(s *incident.Status) { s.State = incident.Up })
	assert.False(t, h.starved(frozen, []incident.Status{frozen}))
	assert.False(t, h.starved(frozen, []incident.Status{frozen, down("nfs",
		func(s *incident.Status) { s.Host = "10.0.0.2" })}))
	assert.True(t, h.starved(frozen, []incident.Status{frozen, quiet}), "two at once are the node's fault")
	assert.Contains(t, said.String(), "this node is overloaded")
	refused := down("rabbitmq", func(s *incident.Status) { s.Silent, s.Probe = false, probe.Connection })
	assert.False(t, h.starved(refused, []incident.Status{refused, quiet}), "refused is no matter of time")

	now := time.Unix(1e9, 0)
	assert.False(t, h.patient(refused, now))
	assert.True(t, h.patient(frozen, now))
	assert.True(t, h.patient(frozen, now.Add(patience-time.Second)))
	assert.False(t, h.patient(frozen, now.Add(patience)))
	h.patient(down("rabbitmq", func(s *incident.Status) { s.Silent, s.Answers = false, true }), now.Add(patience))
	assert.True(t, h.patient(frozen, now.Add(patience)), "it answered in between")
}

func restart(s *backendtest.Server) error {
	s.Kill()
	return s.Start()
}

// watchdogMain is a watchdog in a process of its own, to be killed. It heals
// nothing, for that is its parent's.
func watchdogMain() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	root := os.Getenv("ST2HA_TEST_ROOT")
	p := watch.NewProber("n1", config(os.Getenv("ST2HA_TEST_REDIS"), os.Getenv("ST2HA_TEST_BROKER")),
		slog.New(slog.NewTextHandler(os.Stderr, nil)))
	p.Config.UpAfter = 0.2
	p.Host = host.NewLocalAt("n1", root)
	if err := (&Watchdog{Prober: p, Dir: filepath.Join(root, step.StateDir)}).Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(3)
}

// The watchdog is killed at any moment, while Redis and now and then the broker
// come and go: of each incident all events arrive, in their order and once each,
// and in the end all is told to be as it is.
func TestWatchdogKilled(t *testing.T) {
	t.Parallel()
	redis, broker := newRedis(t), newBroker(t)
	n := newNode(t, redis)
	require.NoError(t, os.WriteFile(n.Path(heal.MaintenanceFile), nil, 0o600))
	all, _ := events(t, broker.Addr)
	const rounds = 12
	launch := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "ST2HA_TEST_MAIN=watchdog", "ST2HA_TEST_ROOT="+n.Path(""),
			"ST2HA_TEST_REDIS="+redis.Addr, "ST2HA_TEST_BROKER="+broker.Addr)
		require.NoError(t, cmd.Start())
		return cmd
	}
	for round := range rounds {
		// Each round has its kills at other moments, the same ones in each run; 12 has no divisor with these steps.
		phase := func(step int, of time.Duration) time.Duration { return of * time.Duration(round*step%rounds) / rounds }
		cmd := launch()
		for range 2 {
			time.Sleep(phase(7, 700*time.Millisecond))
			redis.Kill()
			time.Sleep(phase(5, 700*time.Millisecond))
			require.NoError(t, redis.Start())
		}
		if round == rounds/2 {
			broker.Kill()
		}
		time.Sleep(phase(1, 500*time.Millisecond))
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
		require.Equal(t, -1, cmd.ProcessState.ExitCode(), "it was killed, and did not end by itself")
		if round == rounds/2+1 {
			require.NoError(t, broker.Start())
		}
	}
	cmd := launch()
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	incidents := map[string][]incident.Event{}
	seen := map[string]bool{}
	state := map[string]incident.State{}
	launched := time.Now()
	for quiet := false; !quiet; {
		select {
		case e := <-all:
			require.False(t, seen[e.MessageID()], "%s came twice", e.MessageID())
			seen[e.MessageID()] = true
			incidents[e.ID] = append(incidents[e.ID], e)
			state[e.Backend] = e.State
		case <-time.After(8 * time.Second):
			well := state["redis"] == incident.Up && state["rabbitmq"] == incident.Up
			quiet = well || time.Since(launched) > time.Minute // a machine that is short of CPU takes longer
		}
	}
	open := 0
	for id, list := range incidents {
		for i, e := range list {
			require.Equal(t, i+1, e.Seq, "an event of %s %s is missing or not in order: %v", e.Backend, id, list)
		}
		if last := list[len(list)-1]; last.State != incident.Up && last.Backend != "mongodb" {
			open++
		}
	}
	t.Logf("%d events of %d incidents over %d kills", len(seen), len(incidents), rounds)
	assert.Zero(t, open, "each incident ends")
	assert.Equal(t, incident.Up, state["redis"])
	assert.Equal(t, incident.Up, state["rabbitmq"])
}
