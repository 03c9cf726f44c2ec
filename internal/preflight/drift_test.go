package preflight

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

// fixed is a step whose answers are given.
type fixed struct {
	findings []step.Finding
	changes  []step.Change
	planErr  error
	verify   func(context.Context) error
}

func (f *fixed) Name() string { return "fixed" }
func (f *fixed) Check(context.Context, host.Host) ([]step.Finding, error) {
	return f.findings, nil
}
func (f *fixed) Plan(context.Context, host.Host) ([]step.Change, error) { return f.changes, f.planErr }
func (f *fixed) Verify(ctx context.Context, _ host.Host) error {
	if f.verify == nil {
		return nil
	}
	return f.verify(ctx)
}

func TestDrift(t *testing.T) {
	never := func(context.Context) error { return errors.New("proved although something differs") }
	refused := step.Finding{Severity: step.Error, Host: "192.168.0.100", Check: "authorization", Message: "off"}
	nodes := []*Node{
		{Address: "192.168.0.100", Primary: true, Host: newMachine(t, "192.168.0.100"), Steps: []step.Step{
			&fixed{},
			&fixed{changes: []step.Change{&service.Reload{}, &service.Restart{Unit: "mongod.service"}}, verify: never},
			&fixed{findings: []step.Finding{refused}, changes: []step.Change{&service.Reload{}}, verify: never},
			&fixed{planErr: fault.Preflight("missing", "install it", "no /etc/mongod.conf"), verify: never},
			&fixed{verify: func(ctx context.Context) error {
				<-ctx.Done()
				return fault.Failed("login", "look at the log", "no login: %w", ctx.Err())
			}},
		}},
		{Address: "192.168.0.101", Err: fault.Preflight("unreachable", "try ssh", "no way there"),
			Steps: []step.Step{&fixed{verify: never}}},
	}
	var got []string
	for _, f := range Drift(t.Context(), nodes, 20*time.Millisecond) {
		require.Equal(t, step.Error, f.Severity)
		got = append(got, f.Host+" "+f.Check+": "+f.Message)
	}
	require.Equal(t, []string{
		"192.168.0.100 drift: fixed: daemon_reload systemd: systemctl daemon-reload",
		"192.168.0.100 drift: fixed: restart mongod.service: systemctl restart mongod.service",
		"192.168.0.100 authorization: off",
		"192.168.0.100 missing: no /etc/mongod.conf",
		"192.168.0.100 login: no login: context deadline exceeded",
		"192.168.0.101 unreachable: no way there",
	}, got)
	require.Empty(t, Drift(t.Context(), nodes[:0], time.Second))
}
