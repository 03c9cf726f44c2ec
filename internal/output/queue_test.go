package output

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/incident"
)

func change(endpoint string, state incident.State, seq int) incident.Event {
	return incident.Event{Event: incident.Changed, ID: endpoint, Seq: seq, Endpoint: endpoint, State: state,
		DetectedAt: incident.Time{Time: time.Unix(1e9, 5e6)}}
}

// lines writes messages as lines.
type lines struct{ io.Writer }

func (l lines) Put(m Message) error {
	line, err := m.Line()
	if err == nil {
		_, err = l.Write(append(line, '\n'))
	}
	return err
}

// drained is what a queue holds, as "endpoint state seq (dropped)".
func drained(t *testing.T, q *Queue) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out bytes.Buffer
	require.NoError(t, q.Write(ctx, lines{&out}))
	var all []string
	for line := range strings.Lines(out.String()) {
		var e struct {
			Endpoint, State string
			Seq, Dropped    int
		}
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		all = append(all, fmt.Sprintf("%s %s %d (%d)", e.Endpoint, e.State, e.Seq, e.Dropped))
	}
	return strings.Join(all, ", ")
}

func TestQueueDropsSuspectsFirst(t *testing.T) {
	q := NewQueue(3)
	q.Put(change("a", incident.Suspect, 1))
	q.Put(change("a", incident.Down, 2))
	q.Put(change("b", incident.Suspect, 1))
	q.Put(change("b", incident.Down, 2))
	q.Put(change("b", incident.Up, 3))
	assert.Equal(t, "a down 2 (2), b down 2 (0), b up 3 (0)", drained(t, q))
}

func TestQueueKeepsTheNewestDownAndUp(t *testing.T) {
	q := NewQueue(2)
	for i := range 10 {
		q.Put(change("a", incident.Down, 2*i+1))
		q.Put(change("a", incident.Up, 2*i+2))
	}
	q.Put(change("b", incident.Down, 1))
	assert.Equal(t, "a down 19 (18), a up 20 (0), b down 1 (0)", drained(t, q))
}

func TestQueueTellsWhenALineWasTaken(t *testing.T) {
	q, taken := NewQueue(1), 0
	for range 5 {
		q.PutLine([]byte(`{"endpoint":"x"}`), func() { taken++ })
	}
	q.Put(change("a", incident.Down, 1))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, q.Write(ctx, lines{failing{}}), errFull)
	assert.Zero(t, taken, "not written: not taken")
	drained(t, q)
	assert.Equal(t, 4, taken)
}

type failing struct{}

var errFull = errors.New("full")

func (failing) Write([]byte) (int, error) { return 0, errFull }

// A reader that does not read: a pipe holds 64 KiB, then the writer blocks.
func TestQueueNeverBlocksOnItsReader(t *testing.T) {
	read, write, err := os.Pipe()
	require.NoError(t, err)
	q := NewQueue(100)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { ended <- q.Write(ctx, lines{write}) }()
	start := time.Now()
	for i := range 5000 {
		q.Put(change(fmt.Sprint("e", i%10), []incident.State{incident.Suspect, incident.Down, incident.Up}[i%3], i))
	}
	assert.Less(t, time.Since(start), 30*time.Second)
	cancel()
	go func() { <-ended; write.Close() }()
	out, err := io.ReadAll(read)
	require.NoError(t, err)
	require.NoError(t, read.Close())
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	seen, total := map[string]bool{}, 0
	for _, line := range lines {
		var e incident.Event
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		total += e.Dropped
		seen[fmt.Sprint(e.Endpoint, e.State)] = true
	}
	assert.Equal(t, 5000, len(lines)+total, "what is not written is counted")
	for i := range 10 {
		assert.True(t, seen[fmt.Sprint("e", i, incident.Down)] && seen[fmt.Sprint("e", i, incident.Up)])
	}
}

func TestEventAsJSON(t *testing.T) {
	line, err := json.Marshal(incident.Event{Event: incident.Changed, ID: "5e1f", Seq: 2, Backend: "rabbitmq",
		Endpoint: "10.0.0.1:5672", Node: "n2", Source: "watchdog",
		State: incident.Down, Previous: incident.Up, Probe: "connection", Reason: "connection refused",
		DetectedAt: incident.Time{Time: time.UnixMilli(1700000000123)},
		Since:      incident.Time{Time: time.UnixMilli(1700000000100)}, AfterMS: 23})
	require.NoError(t, err)
	assert.JSONEq(t, `{"event":"backend_changed","id":"5e1f","seq":2,"backend":"rabbitmq","endpoint":"10.0.0.1:5672","node":"n2","source":"watchdog",
		"state":"down","previous":"up","probe":"connection","reason":"connection refused",
		"detected_at":"2023-11-14T22:13:20.123Z","since":"2023-11-14T22:13:20.100Z","after_ms":23}`, string(line))
	var back incident.Event
	require.NoError(t, json.Unmarshal(line, &back))
	assert.Equal(t, "5e1f-2", back.MessageID())
}
