package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	neturl "net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/bson"

	"st2ha/internal/backendtest"
)

const execution = "6527242448d1e4e9ef404ebb"

var shared = &backendtest.Shared{}

func TestMain(m *testing.M) { os.Exit(shared.Run(m)) }

// mongod is the lab's, and what a runner stores output in it with.
func mongod(t *testing.T) (*backendtest.Server, *output) {
	t.Helper()
	server, err := backendtest.NewMongod(shared.Mongod(t), t.TempDir(), false)
	require.NoError(t, err)
	t.Cleanup(func() { server.Kill() })
	host, port, err := net.SplitHostPort(server.Addr)
	require.NoError(t, err)
	o := newOutput(config{host: host, port: port, dbName: "st2"})
	t.Cleanup(o.close)
	return server, o
}

func line(text string) stored {
	return stored{Execution: execution, Action: "st2ha.preflight", Runner: "local-shell-script",
		Stream: "stderr", Line: text}
}

// What was measured on StackStorm 3.9.0: after mongod's restart a line that comes within a second of the one before is
// stored by a connection that is none any more; 1.5 s without one were enough.
func TestStaleConnection(t *testing.T) {
	server, o := mongod(t)
	ctx := context.Background()
	restart := func(pause time.Duration) {
		t.Helper()
		require.NoError(t, o.store(ctx, line("before")))
		stored := time.Now()
		server.Kill()
		require.NoError(t, server.Start())
		o.mu.Lock()
		// A start may take longer here than the pause that is tried.
		o.used = o.used.Add(max(0, time.Since(stored)-pause))
		o.mu.Unlock()
		time.Sleep(time.Until(stored.Add(pause)))
	}
	require.NoError(t, o.store(ctx, line("first")))
	time.Sleep(700 * time.Millisecond) // a new client looks at the server once more
	restart(600 * time.Millisecond)
	require.Error(t, o.store(ctx, line("lost")), "it is not looked at, and not repeated")
	require.NoError(t, o.store(ctx, line("after")), "by a new connection")
	restart(1500 * time.Millisecond)
	require.NoError(t, o.store(ctx, line("after")))

	require.NoError(t, o.store(ctx, stored{Execution: execution, Status: "succeeded"}))
	db, err := o.database(ctx)
	require.NoError(t, err)
	var document bson.M
	require.NoError(t, db.Collection("action_execution_d_b").FindOne(ctx, bson.M{}).Decode(&document))
	require.Equal(t, "succeeded", document["status"])
	found, err := db.Collection("action_execution_output_d_b").Find(ctx,
		bson.M{"execution_id": execution, "output_type": "stderr"})
	require.NoError(t, err)
	var lines []struct{ Data string }
	require.NoError(t, found.All(ctx, &lines))
	var data []string
	for _, l := range lines {
		data = append(data, l.Data)
	}
	require.Equal(t, "first before after before after", strings.Join(data, " "))
}

func TestDatabaseAway(t *testing.T) {
	server, o := mongod(t)
	require.NoError(t, o.store(context.Background(), line("before")))
	server.Kill()
	o.mu.Lock()
	o.used = o.used.Add(-2 * time.Second)
	o.mu.Unlock()
	began := time.Now()
	require.Error(t, o.store(context.Background(), line("lost")))
	require.Less(t, time.Since(began), 2*connectionTimeout)
}

func TestServe(t *testing.T) {
	_, o := mongod(t)
	here, there := net.Pipe()
	go o.serve(context.Background(), there)
	defer here.Close()
	answers := bufio.NewScanner(here)
	for _, ask := range []struct {
		s    stored
		want string
	}{
		{line("one\n"), `{}`},
		{stored{Execution: execution, Status: "failed"}, `{}`},
		{stored{Execution: "x"}, `{"error":"execution \"x\": the provided hex string is not a valid ObjectID"}`},
	} {
		require.NoError(t, json.NewEncoder(here).Encode(ask.s))
		require.True(t, answers.Scan())
		require.Equal(t, ask.want, answers.Text())
	}
}

// A service listens as long as it holds both connections.
func TestPresence(t *testing.T) {
	p := &presence{address: fmt.Sprintf("@st2service-test-%d", os.Getpid())}
	listens := func() bool {
		conn, err := net.Dial("unix", p.address)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	for _, step := range []struct {
		which     int
		yes, then bool
	}{{database, true, false}, {broker, true, true}, {broker, true, true}, {database, false, false},
		{database, true, true}} {
		p.holds(step.which, step.yes)
		require.Equal(t, step.then, listens(), "%+v", step)
	}
	p.holds(broker, false)
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		text    string
		timers  bool
		refused string
	}{
		{"", true, ""},
		{"[timersengine]\nenable = False\n", false, ""},
		{"[timer]\nenable = False\n", true, ""}, // does nothing by itself
		{"[timer]\nenable = True\n[timersengine]\nenable = no\n", true, ""},
		{"[timersengine]\nenabled = False\n", true, ""}, // is no option
		{"[timersengine]\nenable = never\n", false, "unexpected boolean"},
	} {
		name := filepath.Join(t.TempDir(), "st2.conf")
		require.NoError(t, os.WriteFile(name, []byte(c.text), 0o600))
		got, err := readConfig(name)
		if c.refused != "" {
			require.ErrorContains(t, err, c.refused)
			continue
		}
		require.NoError(t, err, c.text)
		require.Equal(t, c.timers, got.timers, c.text)
	}
}

// Services as docs/stackstorm.md has them: what ends one, and with which code.
func TestServices(t *testing.T) {
	broker := shared.Broker(t)
	server, o := mongod(t)
	url := func(password string) []string {
		return []string{(&neturl.URL{Scheme: "amqp", User: neturl.UserPassword(backendtest.User, password),
			Host: broker.Addr, Path: "/"}).String()}
	}
	c := o.c
	c.brokers = url(backendtest.Password)
	node, err := os.Hostname()
	require.NoError(t, err)

	require.NoError(t, serve(t.Context(), "st2timersengine", c),
		"without timers its engine ends by itself, and all is well")

	wrong := c
	wrong.brokers = url("wrong")
	began := time.Now()
	require.ErrorContains(t, serve(t.Context(), "st2scheduler", wrong), "[messaging]")
	require.Less(t, time.Since(began), 10*time.Second)

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, "st2notifier", c) }()
	listens := func() bool {
		conn, err := net.Dial("unix", "@st2service/st2notifier")
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	require.Eventually(t, listens, 20*time.Second, 50*time.Millisecond)
	// Its login is refused now: it was connected once, so it goes on, and is back when it may be.
	_, err = broker.Ctl("", "change_password", backendtest.User, "another")
	require.NoError(t, err)
	_, err = broker.Ctl("", "eval",
		`[rabbit_networking:close_connection(rabbit_misc:pget(pid, C), "test") || C <- rabbit_networking:connection_info_all([pid])].`)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return !listens() }, 20*time.Second, 50*time.Millisecond)
	select {
	case err := <-ended:
		require.NoError(t, err, "it has ended")
	case <-time.After(3 * retry):
	}
	_, err = broker.Ctl("", "change_password", backendtest.User, backendtest.Password)
	require.NoError(t, err)
	require.Eventually(t, listens, 20*time.Second, 50*time.Millisecond)
	cancel()
	<-ended

	db, err := o.database(t.Context())
	require.NoError(t, err)
	var beat bson.M
	require.NoError(t, db.Collection("lab_heartbeat").FindOne(t.Context(),
		bson.M{"_id": "st2notifier@" + node}).Decode(&beat))
	server.Kill()
}
