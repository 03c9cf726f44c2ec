package step_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"st2ha/internal/host"
	"st2ha/internal/step"
)

// Interrupts makes the tests' restart one of a unit that others work with.
func (r *restart) Interrupts() string { return r.Unit }

// Interrupts is the same for what heals.
func (a *ailment) Interrupts() string { return a.name }

// What is going to be interrupted is told before anything is changed or said,
// whatever interrupts it.
func TestBeforeInterrupt(t *testing.T) {
	var said []string
	o := options("one")
	o.Log = slog.New(slog.NewTextHandler(writer(func(line string) { said = append(said, "log") }), nil))
	o.BeforeInterrupt = func(_ context.Context, h host.Host, unit string) { said = append(said, h.Name()+" "+unit) }
	held := func() []string {
		defer func() { said = nil }()
		var units []string
		for _, s := range said {
			if s == "log" {
				break
			}
			units = append(units, s)
		}
		require.Less(t, len(units), len(said), "something is logged afterwards")
		return units
	}

	m := newMachine(t)
	m.put(t, "/etc/a.conf", "a\n", 0o644)
	s := &fake{name: "s", line: "b", files: []string{"/etc/a.conf"}, unit: "a"}
	_, err := step.Run(t.Context(), s, m, o)
	require.NoError(t, err)
	require.Equal(t, []string{"node a"}, held())

	_, err = step.Rollback(t.Context(), m, step.RollbackOptions{Options: o, Kinds: kinds()})
	require.NoError(t, err)
	require.Equal(t, []string{"node a"}, held())

	_, err = step.Heal(t.Context(), &ailing{ill: map[string]bool{"a": true, "b": true}}, m, o,
		func(context.Context, host.Host, step.Change) (*step.Finding, error) { return nil, nil })
	require.NoError(t, err)
	require.Equal(t, []string{"node a", "node b"}, held())

	said = nil
	o.DryRun = true
	_, err = step.Run(t.Context(), s, m, o)
	require.NoError(t, err)
	require.Empty(t, said)
}

type writer func(line string)

func (w writer) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		w(line)
	}
	return len(p), nil
}
