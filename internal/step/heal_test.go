package step_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"st2ha/internal/host"
	"st2ha/internal/step"
)

// ailment is a change that heals.
type ailment struct {
	name string
	s    *ailing
}

func (a *ailment) Kind() string                          { return "heal" }
func (a *ailment) Target() string                        { return a.name }
func (a *ailment) Diff() string                          { return "heal " + a.name }
func (a *ailment) Undo(context.Context, host.Host) error { return errors.New("nothing is undone") }

func (a *ailment) Apply(context.Context, host.Host) error {
	if a.s.applyErr != nil {
		return a.s.applyErr
	}
	delete(a.s.ill, a.name)
	return nil
}

// ailing is a step whose targets are ill.
type ailing struct {
	ill      map[string]bool
	findings []step.Finding
	applyErr error
	verified int
	elsewhen func() // called by Plan: what others do meanwhile
}

func (s *ailing) Name() string { return "heal" }
func (s *ailing) Check(context.Context, host.Host) ([]step.Finding, error) {
	return s.findings, nil
}
func (s *ailing) Verify(context.Context, host.Host) error { s.verified++; return nil }
func (s *ailing) Plan(context.Context, host.Host) ([]step.Change, error) {
	var changes []step.Change
	for _, name := range []string{"a", "b"} {
		if s.ill[name] {
			changes = append(changes, &ailment{name, s})
		}
	}
	if s.elsewhen != nil {
		s.elsewhen()
	}
	return changes, nil
}

func TestHeal(t *testing.T) {
	both := func() map[string]bool { return map[string]bool{"a": true, "b": true} }
	allow := func(context.Context, host.Host, step.Change) (*step.Finding, error) { return nil, nil }
	refuse := func(severity step.Severity) step.Guard {
		return func(_ context.Context, _ host.Host, c step.Change) (*step.Finding, error) {
			if c.Target() == "b" {
				return nil, nil
			}
			return &step.Finding{Severity: severity, Check: "limit", Message: c.Target() + " was healed too often"}, nil
		}
	}
	for name, tc := range map[string]struct {
		step     *ailing
		guard    step.Guard
		dry      bool
		left     int // ill in the end
		changes  int
		changed  bool
		verified int
		code     string
		findings int
	}{
		"heals":           {step: &ailing{ill: both()}, changes: 2, changed: true, verified: 1},
		"nothing to heal": {step: &ailing{}, verified: 1},
		"dry run":         {step: &ailing{ill: both()}, dry: true, left: 2, changes: 2},
		"refused for now": {step: &ailing{ill: both()}, guard: refuse(step.Warning), left: 1, changes: 1,
			changed: true, findings: 1},
		"given up": {step: &ailing{ill: both()}, guard: refuse(step.Error), left: 1, changes: 1,
			changed: true, findings: 1, code: "limit"},
		"check fails": {step: &ailing{ill: both(),
			findings: []step.Finding{{Severity: step.Error, Check: "server"}}}, left: 2, findings: 1, code: "server"},
		"apply fails": {step: &ailing{ill: both(), applyErr: errors.New("no")}, left: 2, code: "failed"},
		"guard fails": {step: &ailing{ill: both()},
			guard: func(context.Context, host.Host, step.Change) (*step.Finding, error) {
				return nil,
					errors.New("no")
			}, left: 2, code: "failed"},
		"healed by somebody else": {step: &ailing{ill: both()}, verified: 1},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			guard := tc.guard
			if guard == nil {
				guard = allow
			}
			if name == "healed by somebody else" {
				tc.step.elsewhen = func() { tc.step.ill = nil }
			}
			o := options("r1")
			o.DryRun = tc.dry
			r, err := step.Heal(t.Context(), tc.step, m, o, guard)
			require.Equal(t, tc.code == "", err == nil, "%v", err)
			if err != nil {
				require.Equal(t, tc.code, r.Error.Code)
			}
			require.Len(t, tc.step.ill, tc.left)
			require.Len(t, r.Changes, tc.changes)
			require.Len(t, r.Findings, tc.findings)
			require.Equal(t, tc.changed, r.Changed)
			require.Equal(t, tc.verified, tc.step.verified)
			require.Empty(t, m.runs(t), "a heal leaves no journal")
		})
	}
}

// A heal does not get in the way of a run, nor a run in its way.
func TestHealExcluded(t *testing.T) {
	m := newMachine(t)
	release, err := step.Lock(t.Context(), m, "run x", 0)
	require.NoError(t, err)
	defer release()
	s := &ailing{ill: map[string]bool{"a": true}}
	_, err = step.Heal(t.Context(), s, m, options("r1"),
		func(context.Context, host.Host, step.Change) (*step.Finding, error) { return nil, nil })
	require.ErrorContains(t, err, "another run is in progress: run x")
	require.Len(t, s.ill, 1)
}

// The same heal that is at work already is no failure: it says so, and changes nothing.
func TestHealTwice(t *testing.T) {
	m := newMachine(t)
	release, err := step.Lock(t.Context(), m, "run other, step heal", 0)
	require.NoError(t, err)
	defer release()
	s := &ailing{ill: map[string]bool{"a": true}}
	r, err := step.Heal(t.Context(), s, m, options("r1"),
		func(context.Context, host.Host, step.Change) (*step.Finding, error) { return nil, nil })
	require.NoError(t, err)
	require.False(t, r.Changed)
	require.Len(t, s.ill, 1)
	require.Len(t, r.Findings, 1)
	require.Equal(t, "healing_waits", r.Findings[0].Check)
	require.Contains(t, r.Findings[0].Message, "is at work on "+m.Name()+" already: run other, step heal")
}

// What cannot be done and harms nothing is told, and the rest is healed.
func TestHealLeaves(t *testing.T) {
	s := &leaving{ailing{ill: map[string]bool{"a": true, "b": true}}}
	m := newMachine(t)
	r, err := step.Heal(t.Context(), s, m, options("r1"),
		func(context.Context, host.Host, step.Change) (*step.Finding, error) { return nil, nil })
	require.NoError(t, err)
	require.True(t, r.Changed)
	require.Equal(t, []step.Finding{{Check: "left", Message: "a"}}, r.Findings)
	require.Len(t, r.Changes, 1)
	require.Equal(t, "b", r.Changes[0].Target)
	require.Equal(t, 1, s.verified)
}

// leaving is an ailing whose a cannot be healed.
type leaving struct{ ailing }

func (s *leaving) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	changes, err := s.ailing.Plan(ctx, h)
	changes[0] = &lost{changes[0]}
	return changes, err
}

type lost struct{ step.Change }

func (l *lost) Apply(context.Context, host.Host) error {
	return &step.LeftError{Finding: step.Finding{Check: "left", Message: l.Target()}}
}
