// Package discover finds the endpoints that a node uses.
package discover

import (
	"cmp"
	"context"
	"net"
	"slices"

	"st2ha/internal/backend"
	"st2ha/internal/backend/nfs"
	"st2ha/internal/backend/rabbitmq"
	"st2ha/internal/host"
	"st2ha/internal/probe"
	client "st2ha/internal/rabbitmq"
	"st2ha/internal/stackstorm"
)

// Files are what the endpoints of a node come from, beside the pack's configuration.
func Files() []string {
	return []string{stackstorm.ConfPath, backend.FstabPath, nfs.ExportsPath, stackstorm.TurnDropIn(stackstorm.TimersUnit)}
}

// Found is what a node uses.
type Found struct {
	// Node is this node's address as other nodes know it, which is how actions
	// reach it; empty if it cannot be told.
	Node      string
	Endpoints []probe.Endpoint
	Brokers   []client.Login // the nodes of the message bus
	Problems  []error        // what cannot be found out, beside all else
}

// Find returns what a node uses of these backends.
func Find(ctx context.Context, h host.Host, c backend.Config, backends []backend.Backend) Found {
	n := &backend.Node{Host: h, Config: c}
	var err error
	n.Conf, err = stackstorm.LookAtConf(ctx, h)
	if n.Conf != nil || c.MongoDB == "" || c.RabbitMQ == "" {
		n.Problem(err) // an odd line costs that line only
	}
	for _, b := range backends {
		if b.Endpoints != nil {
			b.Endpoints(ctx, n)
		}
	}
	slices.SortFunc(n.Endpoints, func(a, b probe.Endpoint) int {
		return cmp.Or(cmp.Compare(a.Backend, b.Backend), cmp.Compare(a.Name, b.Name))
	})
	found := Found{Problems: n.Problems}
	found.Endpoints = slices.CompactFunc(n.Endpoints, func(a, b probe.Endpoint) bool { return a.Key() == b.Key() })
	found.Brokers, _ = rabbitmq.Logins(n) // the backend's own endpoints say what is wrong
	found.Node = address(ctx, found.Endpoints)
	return found
}

// address is the address that this node speaks to another one from, or else
// the one at which a backend of its own serves others.
func address(ctx context.Context, endpoints []probe.Endpoint) string {
	own := ""
	for _, e := range endpoints {
		if e.Host != "" {
			// No packet is sent: the kernel looks up the route (connect(2) on UDP).
			conn, err := new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(e.Host, "9"))
			if err != nil {
				continue
			}
			defer conn.Close()
			return conn.LocalAddr().(*net.UDPAddr).IP.String()
		}
		if name, _, err := net.SplitHostPort(e.Name); err == nil {
			if ip := net.ParseIP(name); ip != nil && !ip.IsLoopback() {
				own = name
			}
		}
	}
	return own
}
