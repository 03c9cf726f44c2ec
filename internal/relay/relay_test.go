package relay

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/streadway/amqp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/spool"
)

// TestMain is also the process that TestKill kills.
func TestMain(m *testing.M) {
	if dir := os.Getenv("ST2HA_TEST_SPOOL"); dir != "" {
		spoolAndSend(dir, os.Getenv("ST2HA_TEST_ADDR"), os.Getenv("ST2HA_TEST_PREFIX"))
	}
	os.Exit(m.Run())
}

// spoolAndSend says the id of each event that it has spooled, while it sends.
func spoolAndSend(dir, addr, prefix string) {
	s, err := spool.Open(dir, 1<<30)
	if err == nil {
		out := &Outbox{Spool: s, Dial: dialer(addr), Log: slog.New(slog.DiscardHandler)}
		go out.Run(context.Background())
	}
	for i := 0; err == nil; i++ {
		id := fmt.Sprintf("%s-%d", prefix, i)
		if _, err = s.Append(id, fmt.Appendf(nil, `{"id":%q}`, id)); err == nil {
			fmt.Println(id)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func dialer(addr string) Dial {
	return func(ctx context.Context) (*rabbitmq.Connection, error) {
		return rabbitmq.Dial(ctx, &net.Dialer{}, rabbitmq.Login{Addr: addr, User: backendtest.User,
			Password: backendtest.Password, VHost: "/"})
	}
}

func start(t *testing.T) *backendtest.Broker {
	broker, err := backendtest.NewBroker(t, t.TempDir())
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	return broker
}

// empty waits until all messages are acknowledged, also what is no event. It
// counts those under way, too, while somebody reads.
func empty(t *testing.T, broker *backendtest.Broker) {
	require.Eventually(t, func() bool {
		out, err := broker.Ctl("", "list_queues", "--no-table-headers", "name", "messages")
		return err == nil && strings.Join(strings.Fields(out), " ") == Queue+" 0"
	}, 2*time.Minute, 50*time.Millisecond)
}

// reader is an inbox that notes what it is given.
type reader struct {
	mu   sync.Mutex
	seen map[string]int
}

func read(t *testing.T, addr string) *reader {
	ctx, cancel := context.WithCancel(t.Context())
	r := &reader{seen: map[string]int{}}
	in := &Inbox{Dial: dialer(addr), Log: slog.New(slog.DiscardHandler), Handle: func(line []byte, taken func()) {
		var event struct{ ID string }
		if json.Unmarshal(line, &event) == nil {
			r.mu.Lock()
			r.seen[event.ID]++
			r.mu.Unlock()
		}
		go taken()
	}}
	var reading sync.WaitGroup
	reading.Go(func() { in.Run(ctx) })
	t.Cleanup(func() { cancel(); reading.Wait() })
	return r
}

func (r *reader) count(id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen[id]
}

func (r *reader) has(ids []string) bool {
	for _, id := range ids {
		if r.count(id) == 0 {
			return false
		}
	}
	return true
}

// A process that spools and sends is killed again and again, and the broker
// once: each event that was spooled arrives, and once for an id.
func TestKill(t *testing.T) {
	broker := start(t)
	r := read(t, broker.Addr)
	dir := filepath.Join(t.TempDir(), "spool")
	var said []string
	for round := range 20 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "ST2HA_TEST_SPOOL="+dir, "ST2HA_TEST_ADDR="+broker.Addr,
			fmt.Sprintf("ST2HA_TEST_PREFIX=r%d", round))
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		kill := time.AfterFunc(time.Duration(50+400*round/20)*time.Millisecond, func() { _ = cmd.Process.Kill() })
		for lines := bufio.NewScanner(out); lines.Scan(); {
			said = append(said, lines.Text())
		}
		_ = cmd.Wait()
		kill.Stop()
		require.Equal(t, -1, cmd.ProcessState.ExitCode(), "it was killed, and did not fail")
		if round == 10 {
			broker.Kill()
			require.NoError(t, broker.Start())
		}
	}
	s, err := spool.Open(dir, 1<<30)
	require.NoError(t, err)
	defer s.Close()
	ctx, cancel := context.WithCancel(t.Context())
	var sending sync.WaitGroup
	sending.Go(func() {
		(&Outbox{Spool: s, Dial: dialer(broker.Addr), Log: slog.New(slog.DiscardHandler)}).Run(ctx)
	})
	defer sending.Wait()
	defer cancel()
	require.Eventually(t, func() bool { return r.has(said) }, time.Minute, 50*time.Millisecond)
	left, err := s.Read(1)
	require.NoError(t, err)
	for end := time.Now().Add(10 * time.Second); len(left) > 0 &&
		time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		left, _ = s.Read(1)
	}
	assert.Empty(t, left)
	empty(t, broker)
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, n := range r.seen {
		assert.Equal(t, 1, n, id)
	}
	t.Logf("%d events spooled over 20 kills and one of the broker, %d arrived", len(said), len(r.seen))
}

// What nobody has taken yet is not acknowledged, and comes again.
func TestAckOnlyWhenTaken(t *testing.T) {
	broker := start(t)
	s, err := spool.Open(filepath.Join(t.TempDir(), "spool"), 1<<30)
	require.NoError(t, err)
	defer s.Close()
	for i := range 200 {
		_, err := s.Append(fmt.Sprint(i), fmt.Appendf(nil, `{"id":"%d"}`, i))
		require.NoError(t, err)
	}
	_, err = s.Append("broken", []byte("no JSON"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	log := slog.New(slog.DiscardHandler)
	var wait sync.WaitGroup
	wait.Go(func() { (&Outbox{Spool: s, Dial: dialer(broker.Addr), Log: log}).Run(ctx) })
	lines := make(chan string, 1000)
	wait.Go(func() {
		(&Inbox{Dial: dialer(broker.Addr), Log: log, Handle: func(line []byte, _ func()) { lines <- string(line) }}).Run(ctx)
	})
	require.Eventually(t, func() bool { return len(lines) == batch }, 20*time.Second, 20*time.Millisecond)
	time.Sleep(200 * time.Millisecond)
	assert.Len(t, lines, batch, "no more are under way")
	cancel()
	wait.Wait()
	r := read(t, broker.Addr)
	var all []string
	for i := range 200 {
		all = append(all, fmt.Sprint(i))
	}
	require.Eventually(t, func() bool { return r.has(all) }, 20*time.Second, 20*time.Millisecond)
	empty(t, broker)
}

// A sender that was killed sends again what it had sent, over the connection
// that still waits for the first one to be taken: both are acknowledged.
func TestRepetitionBeforeTaken(t *testing.T) {
	broker := start(t)
	l, err := open(t.Context(), dialer(broker.Addr))
	require.NoError(t, err)
	defer l.close()
	publish := func(id string) {
		require.NoError(t, l.channel.Publish("", Queue, false, false, amqp.Publishing{MessageId: id, Body: []byte("{}")}))
	}
	given := make(chan func(), batch)
	ctx, cancel := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	wait.Go(func() {
		(&Inbox{Dial: dialer(broker.Addr), Log: slog.New(slog.DiscardHandler),
			Handle: func(_ []byte, taken func()) { given <- taken }}).Run(ctx)
	})
	defer wait.Wait()
	defer cancel()
	for range 3 {
		publish("same")
	}
	publish("next")
	first := <-given
	next := <-given // after it, all of the first have come
	assert.Empty(t, given, "an event is given once")
	first()
	next()
	empty(t, broker)
}

// What Python, MongoDB or the rules could not hold is set aside, and what comes
// after it is read; counted, and said at most once a minute.
func TestWhatIsNoEvent(t *testing.T) {
	for body, want := range map[string]string{
		`{"id":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`: "neither text nor a number",
		strings.Repeat("[", 20000):                       "depth",
		`{"id":"` + strings.Repeat("x", maxEvent) + `"}`: "larger than",
		`{"a.b":1}`: "cannot be the name of a field", `{"$where":1}`: "cannot be the name of a field",
		`{"seq":1e300}`: "too large", `{"seq":99999999999999999999}`: "too large",
		`{"seq":{}}`: "neither text", `[1]`: "cannot unmarshal", ``: "empty, or longer",
	} {
		_, err := event([]byte(body))
		assert.ErrorContains(t, err, want, "%.40s", body)
	}
	line, err := event([]byte("{\"id\": \"\\ud800<\",\n\"seq\": 5, \"x\": null, \"after_ms\": 1.5, \"big\": " +
		"9007199254740992}"))
	require.NoError(t, err)
	assert.JSONEq(t, "{\"id\":\"\ufffd<\",\"seq\":5,\"x\":null,\"after_ms\":1.5,\"big\":9007199254740992}", string(line))
	assert.NotContains(t, string(line), "\n")

	broker := start(t)
	l, err := open(t.Context(), dialer(broker.Addr))
	require.NoError(t, err)
	defer l.close()
	for range 4 { // the library would take a multiple of them in memory
		require.NoError(t, l.channel.Publish("", Queue, false, false, amqp.Publishing{Body: make([]byte, 60<<20)}))
	}
	for range 100 {
		require.NoError(t, l.channel.Publish("", Queue, false, false, amqp.Publishing{Body: []byte(`{"id":[[1]]}`)}))
	}
	for _, id := range []string{"a", "b", "a"} { // without a message id the content tells repetitions
		require.NoError(t, l.channel.Publish("", Queue, false, false,
			amqp.Publishing{Body: fmt.Appendf(nil, `{"id":%q}`, id)}))
	}
	var log strings.Builder
	in := &Inbox{Dial: dialer(broker.Addr), Log: slog.New(slog.NewTextHandler(&log, nil))}
	var got []string
	ctx, cancel := context.WithCancel(t.Context())
	in.Handle = func(line []byte, taken func()) {
		got = append(got, string(line))
		go taken()
	}
	var reading sync.WaitGroup
	reading.Go(func() { in.Run(ctx) })
	empty(t, broker)
	cancel()
	reading.Wait()
	assert.Equal(t, []string{`{"id":"a"}`, `{"id":"b"}`}, got)
	assert.Equal(t, 104, in.unread)
	assert.Contains(t, log.String(), "bytes=0 ", "it was not held in memory")
	assert.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
	assert.Contains(t, log.String(), "level=WARN")
}

// What only people can end is said once, and not asked for at full speed.
func TestRefused(t *testing.T) {
	broker := start(t)
	dials := map[string]Dial{
		"login": func(ctx context.Context) (*rabbitmq.Connection, error) {
			return rabbitmq.Dial(ctx, &net.Dialer{}, rabbitmq.Login{Addr: broker.Addr, User: backendtest.User, Password: "wrong",
				VHost: "/"})
		},
		"vhost": func(ctx context.Context) (*rabbitmq.Connection, error) {
			return rabbitmq.Dial(ctx, &net.Dialer{}, rabbitmq.Login{Addr: broker.Addr, User: backendtest.User,
				Password: backendtest.Password, VHost: "none"})
		},
		"queue": dialer(broker.Addr),
	}
	conn, err := dialer(broker.Addr)(t.Context())
	require.NoError(t, err)
	defer conn.Close()
	channel, err := conn.Channel()
	require.NoError(t, err)
	_, err = channel.QueueDeclare(Queue, false, false, false, false, nil) // PRECONDITION_FAILED to a durable one
	require.NoError(t, err)
	for name, dial := range dials {
		t.Run(name, func(t *testing.T) {
			var log strings.Builder
			told := make(chan error, 10)
			logger := slog.New(slog.NewTextHandler(&log, nil))
			s, err := spool.Open(filepath.Join(t.TempDir(), "spool"), 1<<30)
			require.NoError(t, err)
			defer s.Close()
			_, err = s.Append("a", []byte("{}"))
			require.NoError(t, err)
			refused := func(err error) { told <- err }
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { (&Outbox{Spool: s, Dial: dial, Log: logger, Refused: refused}).Run(ctx) })
			running.Go(func() {
				(&Inbox{Dial: dial, Log: slog.New(slog.DiscardHandler), Handle: func([]byte, func()) {}, Refused: refused}).Run(ctx)
			})
			for range 2 {
				assert.True(t, isRefused(<-told))
			}
			time.Sleep(firstPause + 500*time.Millisecond) // a broker that is only away would have been asked again
			cancel()
			running.Wait()
			assert.Empty(t, told)
			assert.Equal(t, 1, strings.Count(log.String(), "level=WARN"), log.String())
		})
	}
	p := pause{log: slog.New(slog.DiscardHandler),
		refused: func(error) { t.Error("a broker that is away refuses nothing") }}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.wait(ctx, errEnded)
}

// After an outage the pauses are long, and people wait for what happened in it.
func TestTriedAtOnceWhenTheBrokerIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		back := make(chan struct{}, 1)
		p := pause{log: slog.New(slog.DiscardHandler), back: back}
		for range 10 {
			p.wait(t.Context(), errEnded)
		}
		began := time.Now()
		p.wait(t.Context(), errEnded)
		require.Equal(t, longestWait, time.Since(began))

		began = time.Now()
		time.AfterFunc(time.Second, func() { back <- struct{}{} })
		p.wait(t.Context(), errEnded)
		require.Equal(t, time.Second, time.Since(began))
		began = time.Now()
		p.wait(t.Context(), errEnded)
		require.Equal(t, longestWait, time.Since(began), "once for each time that it is back")
	})
}
