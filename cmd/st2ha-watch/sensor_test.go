package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/fault"
	"st2ha/internal/heal"
	"st2ha/internal/incident"
	"st2ha/internal/output"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/relay"
	"st2ha/internal/spool"
)

// shim stands in for sensors/backend_sensor.py: it is given lines, and may
// acknowledge them.
type shim struct {
	*exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
}

func startShim(t *testing.T, cmd *exec.Cmd) *shim {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return &shim{cmd, stdin, bufio.NewScanner(out)}
}

func (s *shim) next(t *testing.T) string {
	t.Helper()
	require.True(t, s.lines.Scan())
	return s.lines.Text()
}

func (s *shim) ack(line string) { _, _ = fmt.Fprintln(s.stdin, output.LineID([]byte(line))) }

// await takes lines until Redis is in that state, and leaves that line without
// an acknowledgement.
func (s *shim) await(t *testing.T, state incident.State) (line string, e incident.Event) {
	t.Helper()
	for {
		line = s.next(t)
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		if e.Backend == "redis" && e.State == state {
			return line, e
		}
		s.ack(line)
	}
}

// What was not acknowledged is given again by the next process, first and
// unchanged, and what happened meanwhile after it.
func TestKeptUntilAcknowledged(t *testing.T) {
	redis := newRedis(t)
	dir := t.TempDir()
	run := func() *shim {
		cmd := command(t, redisConfig(redis))
		cmd.Env = append(cmd.Env, "ST2HA_STATE_DIR="+dir)
		return startShim(t, cmd)
	}
	first := run()
	line, _ := first.await(t, incident.Up)
	redis.Kill()
	more := make(chan bool, 1)
	go func() { more <- first.lines.Scan() }()
	select {
	case <-more:
		t.Fatal("a line came before the one before was acknowledged")
	case <-time.After(time.Second):
	}
	require.NoError(t, first.Process.Kill())
	_ = first.Wait()

	second := run()
	assert.Equal(t, line, second.next(t))
	second.ack("something else")
	second.ack(line)
	line, down := second.await(t, incident.Down)
	second.ack(line)
	require.NoError(t, second.Process.Kill())
	_ = second.Wait()

	require.NoError(t, redis.Start())
	third := run()
	_, up := third.await(t, incident.Up)
	assert.Equal(t, down.ID, up.ID, "the incident goes on")
}

// Killed at any point, of 10,000 events that a watchdog had sent none is lost,
// for the broker has what was not acknowledged; and what is no event is not in
// the way.
func TestRelayedKilledAtAnyPoint(t *testing.T) {
	t.Parallel()
	const events = 10000
	broker, err := backendtest.NewBroker(t, t.TempDir())
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	s, err := spool.Open(filepath.Join(t.TempDir(), "spool"), 1<<30)
	require.NoError(t, err)
	defer s.Close()
	fill(t, s, "deep", `{"event":"backend_changed","id":`+strings.Repeat("[", 5000)+strings.Repeat("]", 5000)+`}`)
	for i := range events {
		fill(t, s, fmt.Sprint(i), fmt.Sprintf(`{"event":"backend_changed","id":"relayed","seq":%d}`, i))
	}
	ctx, cancel := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	sending.Go(func() {
		(&relay.Outbox{Spool: s, Log: slog.New(slog.DiscardHandler),
			Dial: func(ctx context.Context) (*rabbitmq.Connection, error) {
				return rabbitmq.Dial(ctx, &net.Dialer{}, rabbitmq.Login{Addr: broker.Addr, User: backendtest.User,
					Password: backendtest.Password, VHost: "/"})
			}}).Run(ctx)
	})
	defer sending.Wait()
	defer cancel()
	broke := &url.URL{Scheme: "amqp", User: url.UserPassword(backendtest.User, backendtest.Password), Host: broker.Addr,
		Path: "/"}
	config := map[string]any{"watch_rabbitmq_urls": broke.String()}
	state := t.TempDir()
	seen := map[int]int{}
	kills := 0
	for len(seen) < events {
		require.Less(t, kills, 200)
		cmd := command(t, config)
		cmd.Env = append(cmd.Env, "ST2HA_STATE_DIR="+state)
		r := startShim(t, cmd)
		for left := 1 + rand.N(1500); left > 0 && len(seen) < events && r.lines.Scan(); left-- {
			var e incident.Event
			if json.Unmarshal(r.lines.Bytes(), &e) == nil && e.ID == "relayed" {
				seen[e.Seq]++ // the trigger instance is there
			}
			if left > 1 || rand.N(2) == 0 {
				r.ack(r.lines.Text())
			}
		}
		_ = cmd.Process.Kill()
		_ = r.Wait()
		kills++
	}
	twice := 0
	for _, n := range seen {
		twice += n - 1
	}
	t.Logf("%d events, %d kills, %d came twice", events, kills, twice)
	assert.LessOrEqual(t, twice, kills*100)
}

func fill(t *testing.T, s *spool.Spool, id, line string) {
	t.Helper()
	_, err := s.Append(id, []byte(line))
	require.NoError(t, err)
}

// A queue that others declared otherwise is refused at each attempt: the
// sensor says so once, as an event that people get.
func TestRefusedForGood(t *testing.T) {
	broker, err := backendtest.NewBroker(t, t.TempDir())
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	conn, err := rabbitmq.Dial(t.Context(), &net.Dialer{},
		rabbitmq.Login{Addr: broker.Addr, User: backendtest.User, Password: backendtest.Password, VHost: "/"})
	require.NoError(t, err)
	channel, err := conn.Channel()
	require.NoError(t, err)
	_, err = channel.QueueDeclare(relay.Queue, false, false, false, false, nil)
	require.NoError(t, err)
	defer conn.Close()
	broke := &url.URL{Scheme: "amqp", User: url.UserPassword(backendtest.User, backendtest.Password), Host: broker.Addr,
		Path: "/"}
	r := startShim(t, command(t, map[string]any{"watch_rabbitmq_urls": broke.String()}))
	for {
		line := r.next(t)
		var e heal.Event
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		if e.Event == heal.EventGaveUp {
			assert.Equal(t, []string{relay.Queue, "sensor"}, []string{e.Target, e.By})
			assert.Regexp(t, `events cannot be relayed: .*PRECONDITION_FAILED`, e.Reason)
			return
		}
		r.ack(line)
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"größer → \"x\" C:\\y":   "größer → \"x\" C:\\y",
		"\x1b[2J\x1b]0;t\a\r\nx": `\x1b[2J\x1b]0;t\a\r\nx`,
		"\u202ereversed\u009b1m": `\u202ereversed\u009b1m`,
		"broken \xff":            `broken \xff`,
	} {
		assert.Equal(t, want, fault.Printable(in))
	}
}
