package heal

import (
	"context"
	"fmt"
	"net"
	"time"

	"st2ha/internal/backend/all"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/reach"
	"st2ha/internal/service"
	"st2ha/internal/step"
	"st2ha/internal/wait"
)

// RestartBackend is the step restart_backend: the unit of a backend is
// restarted on its host if the backend does not answer, seen from that host.
type RestartBackend struct {
	Backend  string        // one of Backends
	Endpoint string        // host:port it must answer at; empty: its default port at the host's address
	Within   time.Duration // it must answer again by then
}

// Name is restart_backend.
func (s *RestartBackend) Name() string { return "restart_backend" }

func (s *RestartBackend) addr(h host.Host) string {
	if s.Endpoint != "" {
		return s.Endpoint
	}
	return net.JoinHostPort(h.Name(), all.Get(s.Backend).Port)
}

// Check looks for the unit, and whether the endpoint is the host's own.
func (s *RestartBackend) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	if _, err := Unit(ctx, h, s.Backend); err != nil {
		return nil, err
	}
	return nil, s.own(ctx, h)
}

// Plan restarts the unit if the backend fails twice in a row: once may be a
// slow moment. What says nothing of the backend restarts nothing.
func (s *RestartBackend) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	var err error
	for i := range 2 {
		if i > 0 {
			if err := wait.Sleep(ctx, time.Second); err != nil {
				return nil, err
			}
		}
		if err = all.Get(s.Backend).Answers(ctx, h, s.addr(h)); err == nil {
			return nil, nil
		}
		if verdict, why := reach.Classify(err); verdict == reach.Unknown {
			return nil, fault.Preflight("unknown",
				"mend that first; if "+s.Backend+" does not answer either, restart its unit by hand",
				"%s: whether %s answers at %s cannot be found out, so it is not restarted: %s", h.Name(), s.Backend, s.addr(h), why)
		}
	}
	unit, unitErr := Unit(ctx, h, s.Backend)
	if unitErr != nil {
		return nil, unitErr
	}
	return []step.Change{&mend{Restart: service.Restart{Unit: unit},
		why: fmt.Sprintf("%s at %s: %v", s.Backend, s.addr(h), err)}}, nil
}

// Verify waits until it answers.
func (s *RestartBackend) Verify(ctx context.Context, h host.Host) error {
	ctx, cancel := context.WithTimeout(ctx, s.Within)
	defer cancel()
	return step.Await(ctx, 500*time.Millisecond, func(ctx context.Context) (waiting, err error) {
		return all.Get(s.Backend).Answers(ctx, h, s.addr(h)), nil
	}, func(seen error) error {
		return fault.Failed("silent", "its log says more", "%s: %s does not answer at %s: %w", h.Name(), s.Backend, s.addr(h),
			seen)
	})
}

// mend is a restart of what does not answer.
type mend struct {
	service.Restart
	why string
}

// Diff says why, and what is done.
func (m *mend) Diff() string { return m.why + ": " + m.Restart.Diff() }
