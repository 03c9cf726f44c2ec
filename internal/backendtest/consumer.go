package backendtest

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/stretchr/testify/require"
)

// Consumer takes messages from a queue as StackStorm's services do, one under
// way at a time (st2common/st2common/transport/consumers.py:56), over a
// connection of its own.
type Consumer struct {
	Local string // its address and port

	channel *amqp.Channel
	pace    chan time.Duration
}

// Hang is the pace of a Consumer that is connected and acknowledges nothing.
const Hang = time.Duration(-1)

// Consume declares the queue, and acknowledges one message in each pace until
// the test ends.
func Consume(tb testing.TB, url, queue string, heartbeat, pace time.Duration) *Consumer {
	tb.Helper()
	c := &Consumer{pace: make(chan time.Duration, 1)}
	dial := func(network, addr string) (net.Conn, error) {
		conn, err := net.Dial(network, addr)
		if err == nil {
			c.Local = conn.LocalAddr().String()
			err = conn.SetDeadline(time.Now().Add(startTime)) // the library expects one for its handshake
		}
		return conn, err
	}
	conn, err := amqp.DialConfig(url, amqp.Config{Heartbeat: heartbeat, Dial: dial})
	require.NoError(tb, err)
	c.channel, err = conn.Channel()
	require.NoError(tb, err)
	_, err = c.channel.QueueDeclare(queue, true, false, false, false, nil)
	require.NoError(tb, err)
	require.NoError(tb, c.channel.Qos(1, 0, false))
	messages, err := c.channel.Consume(queue, "", false, false, false, false, nil)
	require.NoError(tb, err)
	done := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(done)
		for message := range messages {
			for pace == Hang {
				select {
				case pace = <-c.pace:
				case <-stop:
					return
				}
			}
			select {
			case <-time.After(pace):
			case pace = <-c.pace:
			case <-stop:
				return
			}
			_ = message.Ack(false)
		}
	}()
	tb.Cleanup(func() {
		close(stop)
		_ = conn.Close()
		<-done
	})
	return c
}

// Pace changes how long a message takes.
func (c *Consumer) Pace(pace time.Duration) { c.pace <- pace }

// Publish puts n messages into the queue.
func (c *Consumer) Publish(tb testing.TB, queue string, n int) {
	tb.Helper()
	for range n {
		require.NoError(tb, c.channel.Publish("", queue, false, false, amqp.Publishing{Body: []byte("{}")}))
	}
}

// Sockets is what ss(8) with these arguments says of the sockets with the given
// local addresses, each as that of another process: a test's own process holds
// them, and the kernel's counters are the real ones.
func Sockets(argv []string, pids map[string]int) (string, error) {
	out, err := exec.Command(argv[0], argv[1:]...).Output()
	if err != nil {
		return "", err
	}
	var kept strings.Builder
	keep := false
	for line := range strings.Lines(string(out)) {
		if line[0] == ' ' || line[0] == '\t' {
			if keep {
				kept.WriteString(line)
			}
			continue
		}
		fields := strings.Fields(line)
		var pid int
		pid, keep = pids[fields[2]]
		if keep {
			fmt.Fprintf(&kept, "%s %s %s %s users:((\"python3\",pid=%d,fd=9))\n", fields[0], fields[1],
				fields[2], fields[3], pid)
		}
	}
	return kept.String(), nil
}
