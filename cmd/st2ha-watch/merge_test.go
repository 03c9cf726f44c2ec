package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/backend"
	"st2ha/internal/backendtest"
	"st2ha/internal/incident"
	"st2ha/internal/output"
	"st2ha/internal/probe"
	"st2ha/internal/watch"
)

// What three watchers say of one broker is given to the shim as one down and one up.
func TestGivesOneEventAFault(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	acks := make(chan string, 100)
	var given []string
	out := writerFunc(func(line []byte) (int, error) {
		given = append(given, string(line))
		acks <- output.LineID(bytes.TrimSuffix(line, []byte("\n")))
		return len(line), nil
	})
	metrics := watch.NewProber("n1", backend.Config{}, slog.New(slog.DiscardHandler)).Metrics
	g := &giver{ctx: ctx, out: out, acks: acks, log: slog.New(slog.DiscardHandler), merger: incident.NewMerger(),
		merged: metrics.Merged}
	at := time.Now()
	for _, state := range []incident.State{incident.Down, incident.Up} {
		for i, observer := range []string{"10.0.0.1 sensor", "10.0.0.2 sensor", "10.0.0.1 watchdog", "10.0.0.2 watchdog"} {
			node, source, _ := strings.Cut(observer, " ")
			line, err := json.Marshal(incident.Event{Event: incident.Changed, ID: fmt.Sprint("incident", i), Backend: "rabbitmq",
				Endpoint: "10.0.0.1:5672",
				Node:     node, Source: source, State: state, Probe: probe.Connection, Reason: "connection refused",
				DetectedAt: incident.Time{Time: at}})
			require.NoError(t, err)
			require.NoError(t, g.Put(output.Message{JSON: line}))
		}
		at = at.Add(3 * time.Second)
	}
	require.NoError(t, g.Put(output.Message{JSON: []byte(`{"event":"backend_healed","target":"rabbitmq-server.service"}`)}))
	require.Len(t, given, 3)
	assert.Contains(t, given[0], `"state":"down"`)
	assert.Contains(t, given[1], `"state":"up"`)
	assert.Contains(t, given[2], "backend_healed")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// Where sensors run on two nodes one gives what both see, and when it ends the other one goes on.
func TestTwoSensors(t *testing.T) {
	t.Parallel()
	redis, broker := newRedis(t), newBroker(t)
	login := &url.URL{Scheme: "amqp", User: url.UserPassword(backendtest.User, backendtest.Password), Host: broker.Addr,
		Path: "/"}
	run := func() *watcher {
		c := redisConfig(redis)
		c["watch_rabbitmq_urls"], c["watch_suspect_events"] = login.String(), false
		cmd := command(t, c)
		cmd.Env = append(cmd.Env, "ST2HA_STATE_DIR="+t.TempDir())
		return start(t, cmd)
	}
	first := run()
	require.Eventually(t, func() bool { return strings.Contains(broker.MustCtl(t, "", "list_consumers"), "st2ha.events") },
		20*time.Second, 100*time.Millisecond)
	second := run()
	require.Eventually(t, func() bool { return strings.Contains(second.said.String(), "this_one=false") }, 20*time.Second,
		50*time.Millisecond)
	time.Sleep(time.Second)

	redis.Kill()
	ids := map[string]bool{await(t, first.lines, "redis", incident.Down).ID: true,
		await(t, first.lines, "redis", incident.Down).ID: true}
	assert.Len(t, ids, 2, "what both see, by the first")
	assert.Empty(t, second.lines)
	require.NoError(t, first.stdin.Close())
	require.NoError(t, redis.Start())
	await(t, second.lines, "redis", incident.Up)
}
