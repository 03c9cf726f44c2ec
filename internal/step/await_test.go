package step_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/fault"
	"st2ha/internal/step"
)

func TestAwait(t *testing.T) {
	gaveUp := func(seen error) error { return fmt.Errorf("waited for it: %w", seen) }
	looks := 0
	require.NoError(t, step.Await(t.Context(), time.Millisecond, func(context.Context) (error, error) {
		if looks++; looks < 3 {
			return errors.New("not yet"), nil
		}
		return nil, nil
	}, gaveUp))
	require.Equal(t, 3, looks)
	broken := errors.New("broken")
	require.Equal(t, broken, step.Await(t.Context(), time.Millisecond,
		func(context.Context) (error, error) { return nil, broken }, gaveUp))

	// The last look is cut off by the end of the time, in either way.
	for _, cut := range []func(err error) (error, error){
		func(err error) (error, error) { return nil, err },
		func(err error) (error, error) { return err, nil },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		looks = 0
		err := step.Await(ctx, time.Millisecond, func(ctx context.Context) (error, error) {
			if looks++; looks == 1 {
				return errors.New("it is starting"), nil
			}
			<-ctx.Done()
			return cut(ctx.Err())
		}, gaveUp)
		require.EqualError(t, err, "waited for it: it is starting")

		// Where nothing else was seen, that is said.
		err = step.Await(ctx, time.Millisecond,
			func(ctx context.Context) (error, error) { return cut(ctx.Err()) }, gaveUp)
		require.EqualError(t, err, "waited for it: context deadline exceeded")
		cancel()
	}
}

// The time may be over while another run is waited for.
func TestLockGivesUp(t *testing.T) {
	m := newMachine(t)
	release, err := step.Lock(t.Context(), m, "run other", 0)
	require.NoError(t, err)
	defer release()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = step.Lock(ctx, m, "run mine", time.Minute)
	requireFault(t, err, fault.ExitPreflight, "locked")
	require.ErrorContains(t, err, "run other")
	require.NotEmpty(t, fault.Of(err).Hint)
}

// StackStorm may begin an action twice, at the same moment on two nodes: the second waits for the first, though it is
// not told to wait for others, and finds nothing to do.
func TestLockOfATwin(t *testing.T) {
	m := newMachine(t)
	s := &fake{name: "configure", line: "new", files: []string{"/etc/x"}}
	release, err := step.Lock(t.Context(), m, "run one, step configure", 0)
	require.NoError(t, err)
	time.AfterFunc(time.Second, release)
	r, err := step.Run(t.Context(), s, m, options("one"))
	require.NoError(t, err)
	require.True(t, r.Changed)

	// A lock that is being taken or released has no note for a moment.
	release, err = step.Lock(t.Context(), m, "", 0)
	require.NoError(t, err)
	time.AfterFunc(time.Second, release)
	_, err = step.Run(t.Context(), s, m, options("one"))
	require.NoError(t, err)

	release, err = step.Lock(t.Context(), m, "run one, step other", 0)
	require.NoError(t, err)
	defer release()
	s.line = "newer"
	_, err = step.Run(t.Context(), s, m, options("one"))
	requireFault(t, err, fault.ExitPreflight, "locked")
}
