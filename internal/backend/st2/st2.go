// Package st2 is StackStorm's own services, which are watched and restarted one
// by one.
package st2

import (
	"context"
	"net"

	"st2ha/internal/backend"
	"st2ha/internal/backend/rabbitmq"
	"st2ha/internal/stackstorm"
)

// Name is the backend's.
const Name = "st2"

// New describes StackStorm's services.
func New() backend.Backend {
	return backend.Backend{Name: Name, DataDirs: []string{"/var/log/st2"}, Endpoints: endpoints}
}

// endpoints are the units of the pack's configuration, or those that are enabled.
func endpoints(ctx context.Context, n *backend.Node) {
	s := Settings{Host: n.Host, Units: n.Config.Units}
	if len(s.Units) == 0 {
		if n.Conf == nil {
			return
		}
		var err error
		if s.Units, err = stackstorm.Units(ctx, n.Host); err != nil {
			n.Problem(err)
			return
		}
	}
	if n.Conf != nil {
		s.Prefix = n.Conf.Prefix()
	}
	if brokers, _ := rabbitmq.Logins(n); len(brokers) > 0 { // the broker's own endpoints say what is wrong
		s.Login, s.Dialer = brokers[0], &net.Dialer{}
	}
	n.Endpoints = append(n.Endpoints, Endpoints(s)...)
}
