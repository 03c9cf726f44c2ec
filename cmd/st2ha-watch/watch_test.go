package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/backend"
	"st2ha/internal/backendtest"
	"st2ha/internal/host"
	"st2ha/internal/incident"
	"st2ha/internal/output"
	"st2ha/internal/testenv"
	"st2ha/internal/watch"
)

// TestMain is also the program under test, and a parent of it.
func TestMain(m *testing.M) {
	switch os.Getenv("ST2HA_TEST_MAIN") {
	case "watch":
		main()
	case "parent":
		parent()
	case "footprint":
		footprintMain()
	}
	os.Exit(m.Run())
}

// command is the program under test, with a configuration and none of the
// machine's own files used.
func command(t *testing.T, config map[string]any, args ...string) *exec.Cmd {
	t.Helper()
	if _, given := config["watch_suspect_events"]; !given && config != nil {
		config["watch_suspect_events"] = true // each change of state is a line; what is left out by default is incident.Filter's
	}
	text, err := json.Marshal(config)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "ST2HA_TEST_MAIN=watch", "GORACE=atexit_sleep_ms=0", "ST2HA_WATCH_CONFIG="+string(text))
	return cmd
}

// watcher is the program as it runs.
type watcher struct {
	*exec.Cmd
	stdin io.WriteCloser
	lines chan incident.Event
	said  testenv.Buffer // on stderr, so far
}

func start(t *testing.T, cmd *exec.Cmd) *watcher {
	t.Helper()
	w := &watcher{Cmd: cmd, lines: make(chan incident.Event, 1000)}
	var err error
	w.stdin, err = cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = &w.said
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	go func() {
		defer close(w.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			var e incident.Event
			if json.Unmarshal(s.Bytes(), &e) == nil {
				w.lines <- e
			}
			_, _ = fmt.Fprintln(w.stdin, output.LineID(s.Bytes()))
		}
	}()
	return w
}

// await returns the next event with this state; others before it are passed over.
func await(t *testing.T, events <-chan incident.Event, backend string, state incident.State) incident.Event {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatalf("it ended before %s was %s", backend, state)
			}
			if e.Backend == backend && e.State == state {
				return e
			}
		case <-limit:
			t.Fatalf("%s was not %s within 30 s", backend, state)
		}
	}
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

func redisConfig(s *backendtest.Server) map[string]any {
	return map[string]any{"watch_redis_url": "redis://" + s.Addr}
}

func TestSensor(t *testing.T) {
	redis := newRedis(t)
	w := start(t, command(t, redisConfig(redis)))
	up := await(t, w.lines, "redis", incident.Up)
	assert.Equal(t, redis.Addr, up.Endpoint)
	assert.Equal(t, "sensor", up.Source)

	killed := redis.Kill()
	down := await(t, w.lines, "redis", incident.Down)
	assert.Equal(t, "connection refused", down.Reason)
	t.Logf("killed to event: %s", down.DetectedAt.Sub(killed).Round(time.Millisecond))
	require.NoError(t, redis.Start())
	again := await(t, w.lines, "redis", incident.Up)
	assert.Equal(t, down.ID, again.ID)
	assert.Positive(t, again.LastedMS)

	redis.Freeze()
	frozen := time.Now()
	suspect := await(t, w.lines, "redis", incident.Suspect)
	t.Logf("frozen to suspect: %s", suspect.DetectedAt.Sub(frozen).Round(time.Millisecond))
	down = await(t, w.lines, "redis", incident.Down)
	t.Logf("frozen to down: %s", down.DetectedAt.Sub(frozen).Round(time.Millisecond))
	assert.Equal(t, suspect.ID, down.ID)
	redis.Thaw()

	// It ends when stdin does, and what is left is written.
	closed := time.Now()
	require.NoError(t, w.stdin.Close())
	for range w.lines {
	}
	require.NoError(t, w.Wait())
	assert.Less(t, time.Since(closed), 2*time.Second)
}

// Nobody reads stdout, and the server does not answer: SIGTERM ends it all the same.
func TestTerminated(t *testing.T) {
	redis := newRedis(t)
	cmd := command(t, redisConfig(redis))
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	defer stdin.Close()
	_, err = cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	time.Sleep(500 * time.Millisecond)
	redis.Freeze()
	defer redis.Thaw()
	time.Sleep(500 * time.Millisecond)
	at := time.Now()
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait())
	t.Logf("SIGTERM to end: %s", time.Since(at).Round(time.Millisecond))
	assert.Less(t, time.Since(at), 2*time.Second)
}

// parent starts the watcher with a stdin that somebody else holds open too,
// says its process id, and waits to be killed.
func parent() {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "ST2HA_TEST_MAIN=watch")
	cmd.Stdin = os.Stdin
	if err := cmd.Start(); err != nil {
		fmt.Println(err)
	}
	fmt.Println(cmd.Process.Pid)
	time.Sleep(time.Hour)
}

func TestEndsWithItsParent(t *testing.T) {
	redis := newRedis(t)
	cmd := command(t, redisConfig(redis))
	cmd.Env = append(cmd.Env, "ST2HA_TEST_MAIN=parent")
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	defer stdin.Close()
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var child int
	_, err = fmt.Fscan(out, &child)
	require.NoError(t, err)
	time.Sleep(500 * time.Millisecond) // it has begun
	require.NoError(t, syscall.Kill(child, 0))
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	assert.Eventually(t, func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		return err != nil || bytes.Contains(stat, []byte(") Z "))
	}, 3*time.Second, 20*time.Millisecond)
}

func TestOnce(t *testing.T) {
	redis := newRedis(t)
	out, err := command(t, redisConfig(redis), "--once").Output()
	require.NoError(t, err)
	assert.Regexp(t, `(?m)^BACKEND +ENDPOINT +STATE +LATENCY +REASON$`, string(out))
	assert.Regexp(t, `(?m)^redis +`+redis.Addr+` +up +[0-9.]+ ms`, string(out))

	redis.Kill()
	started := time.Now()
	out, err = command(t, redisConfig(redis), "--once").Output()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, 1, exit.ExitCode())
	assert.Regexp(t, `(?m)^redis +`+redis.Addr+` +down +- +connection refused$`, string(out))
	assert.Less(t, time.Since(started), 10*time.Second)
}

func TestMetrics(t *testing.T) {
	redis := newRedis(t)
	w := start(t, command(t, redisConfig(redis), "--metrics=127.0.0.1:0"))
	await(t, w.lines, "redis", incident.Up)
	time.Sleep(time.Second)
	addr := regexp.MustCompile(`serving metrics" address=(\S+)`).FindStringSubmatch(w.said.String())
	require.NotNil(t, addr)
	answer, err := http.Get("http://" + addr[1] + "/metrics")
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	for _, want := range []string{
		fmt.Sprintf(`st2ha_up{backend="redis",endpoint=%q} 1`, redis.Addr),
		fmt.Sprintf(`st2ha_state_changes_total{backend="redis",endpoint=%q,state="up"} 1`, redis.Addr),
		fmt.Sprintf(`st2ha_state_changes_total{backend="redis",endpoint=%q,state="down"} 0`, redis.Addr),
		fmt.Sprintf(`st2ha_heals_total{backend="redis",endpoint=%q,result="done"} 0`, redis.Addr),
		fmt.Sprintf(`st2ha_probe_duration_seconds_count{backend="redis",endpoint=%q}`, redis.Addr),
		"st2ha_build_info{",
	} {
		assert.True(t, bytes.Contains(body, []byte(want)), want)
	}
}

func TestUsage(t *testing.T) {
	for args, want := range map[string]string{
		"--once --heal":   "cannot be used together",
		"--nonsense":      "unknown flag",
		"more":            "unexpected argument",
		"--metrics=x:y:z": "serve metrics",
		"--help":          "",
	} {
		out, err := command(t, nil, strings.Fields(args)...).CombinedOutput()
		if want == "" {
			require.NoError(t, err)
			assert.Contains(t, string(out), "ST2HA_WATCH_CONFIG")
			continue
		}
		require.Error(t, err, args)
		assert.Contains(t, string(out), want)
		assert.Equal(t, 1, strings.Count(string(out), "\n"), string(out))
	}
	cmd := command(t, map[string]any{"watch_redis_url": 5, "watch_mongodb_uri": "mongodb://u:secret@h/"}, "--once")
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	assert.Contains(t, string(out), "ST2HA_WATCH_CONFIG")
	assert.NotContains(t, string(out), "secret")
}

// A change of st2.conf is noticed, and what it names from then on is watched.
func TestConfigurationChanges(t *testing.T) {
	one, two := newRedis(t), newRedis(t)
	root := t.TempDir()
	conf := filepath.Join(root, "etc/st2/st2.conf")
	require.NoError(t, os.MkdirAll(filepath.Dir(conf), 0o755))
	use := func(s *backendtest.Server) {
		text := "[database]\nhost = 127.0.0.1\nport = 1\n[messaging]\nurl = amqp://127.0.0.1:1/\n[coordination]\nurl = " +
			"redis://" + s.Addr + "\n"
		require.NoError(t, os.WriteFile(conf, []byte(text), 0o644))
	}
	use(one)
	p := watch.NewProber("n1", backend.Config{Units: []string{"st2api"}}, slog.New(slog.DiscardHandler))
	p.Host = host.NewLocalAt("n1", root)
	all := make(chan incident.Event, 1000)
	var ofMongoDB atomic.Int32
	p.Begin("sensor", nil, func(e incident.Event) {
		if e.Backend == "mongodb" {
			ofMongoDB.Add(1)
		}
		all <- e
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := p.Follow(ctx)
	defer func() { cancel(); <-ended }()
	assert.Equal(t, one.Addr, await(t, all, "redis", incident.Up).Endpoint)
	require.Eventually(t, func() bool { return ofMongoDB.Load() == 1 }, 20*time.Second, 20*time.Millisecond)
	one.Kill()
	gone := await(t, all, "redis", incident.Down)
	use(two)
	lost := await(t, all, "redis", incident.Unknown)
	assert.Equal(t, []string{gone.ID, "not watched any more"}, []string{lost.ID, lost.Reason})
	assert.Equal(t, two.Addr, await(t, all, "redis", incident.Up).Endpoint)
	time.Sleep(time.Second)
	assert.Equal(t, int32(1), ofMongoDB.Load(), "what goes on is not told anew")
}
