package service

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/stretchr/testify/require"
)

// answering does so as ListUnitsByNames and ListUnitsByPatterns of systemd 252 do: the first one also about units that it
// does not know, the second one about loaded ones only, and about all of them where there is no pattern.
type answering struct {
	life    context.Context
	broken  bool
	silent  bool
	closed  bool
	names   []string
	pattern []string
}

func (s *answering) answer(ctx context.Context) error {
	switch {
	case s.silent:
		<-ctx.Done()
		return ctx.Err()
	case s.broken, s.closed, s.life.Err() != nil:
		return errors.New("dbus: connection closed by user")
	}
	return nil
}

func (s *answering) ListUnitsByNamesContext(ctx context.Context, units []string) ([]dbus.UnitStatus, error) {
	s.names = units
	var all []dbus.UnitStatus
	for _, u := range units {
		all = append(all, dbus.UnitStatus{Name: u, ActiveState: "inactive", SubState: "dead"})
	}
	return all, s.answer(ctx)
}

func (s *answering) ListUnitsByPatternsContext(ctx context.Context, _, patterns []string) ([]dbus.UnitStatus, error) {
	s.pattern = patterns
	return []dbus.UnitStatus{{Name: "st2actionrunner@1.service", ActiveState: "active", SubState: "running"}}, s.answer(ctx)
}

func (s *answering) Close() { s.closed = true }

func TestBus(t *testing.T) {
	var all []*answering
	broken := false
	b := &Bus{dial: func(ctx context.Context) (systemd, error) {
		if broken {
			return nil, errors.New("no such file or directory")
		}
		all = append(all, &answering{life: ctx})
		return all[len(all)-1], nil
	}}
	ask := func() ([]State, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel() // the connection outlives it
		return b.States(ctx, "st2api", "opt-x.mount", "st2actionrunner@*")
	}
	want := []State{{"st2api.service", "inactive", "dead"}, {"opt-x.mount", "inactive", "dead"},
		{"st2actionrunner@1.service", "active", "running"}}
	for range 3 {
		states, err := ask()
		require.NoError(t, err)
		require.Equal(t, want, states)
	}
	require.Len(t, all, 1, "one connection")
	require.Equal(t, []string{"st2api.service", "opt-x.mount"}, all[0].names)
	require.Equal(t, []string{"st2actionrunner@*.service"}, all[0].pattern)

	states, err := b.States(t.Context(), "st2api")
	require.NoError(t, err)
	require.Equal(t, want[:1], states, "without a pattern all units would be listed")

	all[0].broken = true
	states, err = ask()
	require.NoError(t, err, "asked again over a new one")
	require.Equal(t, want, states)
	require.Len(t, all, 2)
	require.True(t, all[0].closed)

	all[1].silent = true
	_, err = ask()
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "ask systemd for the state of st2api, opt-x.mount, st2actionrunner@*: ")
	require.True(t, all[1].closed)
	require.Len(t, all, 2, "its time is over")
	_, err = ask()
	require.NoError(t, err)

	all[2].broken, broken = true, true
	_, err = ask()
	require.ErrorContains(t, err, "no such file or directory")
	require.Len(t, all, 3)
	b.Close()
	b.Close()
}

func TestBusCannotBeReachedInTime(t *testing.T) {
	b := &Bus{dial: func(ctx context.Context) (systemd, error) {
		<-ctx.Done() // as the handshake with a systemd that is stopped
		return nil, ctx.Err()
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := b.States(ctx, "st2api")
	require.Error(t, err)
}
