package relay

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
)

// sensorOf is one of several readers, of which one has the queue.
type sensorOf struct {
	standby atomic.Bool
	stop    func()
}

func readAlone(t *testing.T, broker *backendtest.Broker) *sensorOf {
	t.Helper()
	s := &sensorOf{}
	ctx, cancel := context.WithCancel(t.Context())
	in := &Inbox{Dial: dialer(broker.Addr), Log: slog.New(slog.DiscardHandler),
		Handle:  func(_ []byte, taken func()) { taken() },
		Standby: s.standby.Store, takeOver: 15 * time.Second}
	ended := make(chan struct{})
	go func() { defer close(ended); in.Run(ctx) }()
	s.stop = sync.OnceFunc(func() { cancel(); <-ended })
	t.Cleanup(s.stop)
	return s
}

// Of several sensors one reads, and goes on to do so after the broker's restart;
// when it ends another one takes over.
func TestOneReads(t *testing.T) {
	broker := start(t)
	first := readAlone(t, broker)
	require.Eventually(t, func() bool {
		q := broker.MustCtl(t, "", "list_consumers")
		return len(q) > 0 && strings.Contains(q, Queue)
	}, 20*time.Second, 100*time.Millisecond)
	second := readAlone(t, broker)
	require.Eventually(t, second.standby.Load, 20*time.Second, 50*time.Millisecond)
	require.False(t, first.standby.Load())

	broker.Kill()
	time.Sleep(time.Second)
	require.True(t, second.standby.Load(), "nothing is known of the other one")
	require.NoError(t, broker.Start())
	time.Sleep(10 * time.Second)
	require.False(t, first.standby.Load())
	require.True(t, second.standby.Load())

	first.stop()
	require.Eventually(t, func() bool { return !second.standby.Load() }, 30*time.Second, 50*time.Millisecond)
}
