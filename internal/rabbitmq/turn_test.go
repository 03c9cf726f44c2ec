package rabbitmq_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/rabbitmq"
)

// One at a time in the cluster, and none within the gap after another's end;
// whoever is killed leaves no turn behind, and whoever hangs loses it.
func TestTurn(t *testing.T) {
	broker, err := backendtest.NewBroker(t, t.TempDir())
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	login := rabbitmq.Login{Addr: broker.Addr, User: backendtest.User, Password: backendtest.Password, VHost: "/"}
	const gap = 2 * time.Second
	take := func(limit time.Duration) (*rabbitmq.Turn, context.Context, error) {
		return rabbitmq.TakeTurn(t.Context(), &net.Dialer{}, login, "sweep", "run r1", gap, limit)
	}

	var got, busy atomic.Int32
	var wg sync.WaitGroup
	turns := make(chan *rabbitmq.Turn, 8)
	for range 8 {
		wg.Go(func() {
			turn, _, err := take(time.Minute)
			var other *rabbitmq.BusyError
			if err == nil {
				got.Add(1)
				turns <- turn
			} else if errors.As(err, &other) {
				busy.Add(1)
			} else {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.Equal(t, []int32{1, 7}, []int32{got.Load(), busy.Load()})
	_, _, err = take(time.Minute)
	require.ErrorContains(t, err, "another sweep is at work in this cluster; it may be tried again at 20")
	time.Sleep(gap) // at work for longer than the gap
	require.NoError(t, (<-turns).Done(t.Context()))
	ended := time.Now()
	_, _, err = take(time.Minute)
	require.ErrorContains(t, err, "the last sweep was a moment ago (run r1, 20")
	require.ErrorContains(t, err, "; it may be tried again at 20")

	// Asked again and again it is not put off.
	var turn *rabbitmq.Turn
	var ctx context.Context
	for turn == nil {
		turn, ctx, err = take(time.Second)
		require.Less(t, time.Since(ended), gap+2*time.Second)
		time.Sleep(50 * time.Millisecond)
	}
	require.GreaterOrEqual(t, time.Since(ended), gap-100*time.Millisecond)

	// It hangs: after its limit the turn is free, and its work is told to end.
	<-ctx.Done()
	require.ErrorContains(t, context.Cause(ctx), "the turn's 1s are over")
	require.Eventually(t, func() bool { turn, ctx, err = take(time.Minute); return err == nil },
		10*time.Second, 50*time.Millisecond)

	// The broker restarts: whoever has the turn hears of it.
	broker.Kill()
	<-ctx.Done()
	require.ErrorContains(t, context.Cause(ctx), "the turn is lost")
	_, _, err = take(time.Minute)
	require.Error(t, err)
	require.NoError(t, broker.Start())
	require.Eventually(t, func() bool { _, _, err = take(time.Minute); return err == nil },
		20*time.Second, 100*time.Millisecond)
}
