package stackstorm

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/mongodb"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

// Verifier is the step verify_node: it changes nothing and proves that a node
// does its part.
type Verifier struct {
	Role    string
	Primary host.Host
	Mounts  step.Step // mount_nfs, whose Plan is empty when all is mounted; nil on the primary
	Within  time.Duration
}

// Name is verify_node.
func (s *Verifier) Name() string { return "verify_node" }

// Check says that a restart is still to come, for the services run with the
// old configuration until then.
func (s *Verifier) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	pending, err := Pending(ctx, h)
	if err != nil || !pending {
		return nil, err
	}
	return []step.Finding{{Severity: step.Warning, Host: h.Name(), Check: "restart_pending",
		Message: "the st2 services are not restarted yet: their connections are not checked",
		Fix:     "run verify_node again after the restart, which follows the workflow's end by some seconds"}}, nil
}

// Plan is empty.
func (s *Verifier) Plan(context.Context, host.Host) ([]step.Change, error) { return nil, nil }

// Verify proves: services active, database and broker answer the login that
// the node's own st2.conf holds, and know connections from the node; the
// action runners consume; mounts are in place.
func (s *Verifier) Verify(ctx context.Context, h host.Host) error {
	ctx, cancel := context.WithTimeout(ctx, s.Within)
	defer cancel()
	group, both := errgroup.WithContext(ctx)
	group.Go(func() error { return await(both, h) })
	group.Go(func() error { return s.mounts(both, h) })
	if err := group.Wait(); err != nil {
		return err
	}
	if pending, err := Pending(ctx, h); err != nil || pending {
		return err
	}
	return s.connections(ctx, h)
}

// mounts proves that mount_nfs has nothing left to do.
func (s *Verifier) mounts(ctx context.Context, h host.Host) error {
	if s.Mounts == nil {
		return nil
	}
	missing, err := s.Mounts.Plan(ctx, h)
	if err == nil && len(missing) > 0 {
		err = fault.Failed("mounts", "run mount_nfs on it", "%s: %s: %s is not in place", h.Name(),
			missing[0].Kind(), missing[0].Target())
	}
	return err
}

// connections proves what st2.conf names, from the node and from the backends' side.
func (s *Verifier) connections(ctx context.Context, h host.Host) error {
	conf, err := ReadConf(ctx, h)
	if err != nil {
		return err
	}
	db, err := conf.Database()
	if err != nil {
		return err
	}
	login, err := conf.Broker()
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := mongodb.Login(ctx, h, db.Server, db.Via, "st2")
		if err != nil {
			err = fault.Failed("database", "compare [database] of "+ConfPath+" on both nodes",
				"%s: log in to MongoDB at %s: %w", h.Name(), db.Via, err)
		}
		return err
	})
	group.Go(func() error { return consumed(ctx, h, login, conf.Prefix()+"."+runnerQueue) })
	if s.Role == RoleSecondary {
		group.Go(func() error { return s.seen(ctx, h, db.Via, login.Addr) })
	}
	return group.Wait()
}

// consumed proves a login to the broker, and that somebody takes actions from the queue.
func consumed(ctx context.Context, h host.Host, login rabbitmq.Login, queue string) error {
	queues, err := rabbitmq.Inspect(ctx, h, login, queue)
	if err != nil {
		return fault.Failed("broker", "compare [messaging] of "+ConfPath+" with the broker's users",
			"%s: log in to RabbitMQ at %s as %s: %w", h.Name(), login.Addr, login.User, err)
	}
	if queues[queue].Consumers == 0 {
		return fault.Failed("consumers", "journalctl -u 'st2actionrunner*' says more",
			"%s: nobody consumes the queue %s", h.Name(), queue)
	}
	return nil
}

// runnerQueue is where action runners take their work, without its prefix (st2common/transport/queues.py).
const runnerQueue = "actionrunner.work"

// seen waits until the primary's kernel knows connections from the node to
// the ports of database and broker.
func (s *Verifier) seen(ctx context.Context, h host.Host, addrs ...string) error {
	names, err := addresses(ctx, s.Primary, h.Name())
	if err != nil {
		return err
	}
	return step.Await(ctx, 500*time.Millisecond, func(ctx context.Context) (waiting, err error) {
		peers, err := established(ctx, s.Primary)
		if err != nil {
			return nil, err
		}
		for _, addr := range addrs {
			_, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, fmt.Errorf("%s: %q: %w", h.Name(), addr, err)
			}
			if !slices.ContainsFunc(names, func(name string) bool { return peers[name+" "+port] }) {
				waiting = fmt.Errorf("%s has no connection from it to %s", s.Primary.Name(), addr)
			}
		}
		return waiting, nil
	}, func(seen error) error {
		return fault.Failed("connections", "journalctl -u 'st2*' on "+h.Name()+" says why", "%s: %w", h.Name(), seen)
	})
}

// addresses returns a node's addresses as another one knows it, in the form
// the kernel's table has them here.
func addresses(ctx context.Context, h host.Host, node string) ([]string, error) {
	if ip := net.ParseIP(node); ip != nil {
		return []string{ip.String()}, nil
	}
	out, err := h.Run(ctx, nil, "getent", "ahosts", node)
	if err != nil {
		return nil, fmt.Errorf("%s: look up %s: %w", h.Name(), node, err)
	}
	var found []string
	for _, line := range strings.Split(string(out), "\n") {
		if fields := strings.Fields(line); len(fields) > 0 && net.ParseIP(fields[0]) != nil {
			found = append(found, net.ParseIP(fields[0]).String())
		}
	}
	return found, nil
}

// established returns "peer's address, own port" of a host's TCP connections.
func established(ctx context.Context, h host.Host) (map[string]bool, error) {
	all, err := service.Sockets(ctx, h, "self")
	peers := map[string]bool{}
	for _, s := range all {
		if s.State == service.Established {
			peers[s.PeerIP+" "+s.Port] = true
		}
	}
	return peers, err
}
