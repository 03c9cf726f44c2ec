// Package rabbitmq is the backend RabbitMQ: StackStorm's message bus.
package rabbitmq

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"st2ha/internal/backend"
	"st2ha/internal/confedit"
	"st2ha/internal/host"
	client "st2ha/internal/rabbitmq"
	"st2ha/internal/stackstorm"
)

// Name is the backend's.
const Name = "rabbitmq"

// New describes RabbitMQ.
func New() backend.Backend {
	return backend.Backend{
		Name:      Name,
		Units:     []string{client.Unit},
		DataDirs:  []string{"/var/lib/rabbitmq", "/var/log/rabbitmq"},
		Answers:   func(ctx context.Context, h host.Host, addr string) error { return client.Listens(ctx, h, addr) },
		Port:      strconv.Itoa(client.DefaultPort),
		Servers:   servers,
		Listeners: listeners,
		Endpoints: endpoints,
		Needed:    true,
	}
}

// servers are those of [messaging].
func servers(conf *stackstorm.Conf) []string {
	logins, err := conf.Brokers()
	if err != nil {
		return nil
	}
	var all []string
	for _, l := range logins {
		all = append(all, l.Addr)
	}
	return all
}

// Logins are those of the pack's configuration, or of [messaging].
func Logins(n *backend.Node) ([]client.Login, error) {
	if n.Config.RabbitMQ != "" {
		logins, err := n.Conf.MessagingLogins(strings.Split(n.Config.RabbitMQ, ","))
		if err != nil {
			err = fmt.Errorf("watch_rabbitmq_urls: %w", err)
		}
		return logins, err
	}
	if n.Conf == nil {
		return nil, nil
	}
	return n.Conf.Brokers()
}

// endpoints are the nodes of the broker.
func endpoints(ctx context.Context, n *backend.Node) {
	logins, err := Logins(n)
	n.Problem(err)
	for _, l := range logins {
		n.Add(ctx, Name, l.Addr, Watch(Settings{Login: l, Timing: n.Config.Timing()}))
	}
}

// listeners reads rabbitmq.conf and rabbitmq-env.conf.
func listeners(read func(string) string) []backend.Listener {
	var all []backend.Listener
	if conf, err := confedit.ParseINI([]byte(read("/etc/rabbitmq/rabbitmq.conf")), confedit.Rabbit); err == nil {
		for _, key := range conf.Keys("") {
			if !strings.HasPrefix(key, "listeners.tcp") && !strings.HasPrefix(key, "listeners.ssl") {
				continue
			}
			value, _ := conf.Get("", key)
			i := strings.LastIndexByte(value, ':')
			if _, err := strconv.ParseUint(value[i+1:], 10, 16); err == nil {
				all = append(all, backend.Listener{Address: strings.Trim(value[:max(i, 0)], "[]"), Port: value[i+1:]})
			}
		}
	}
	env, err := confedit.ParseINI([]byte(read("/etc/rabbitmq/rabbitmq-env.conf")), confedit.Env)
	if err != nil {
		return all
	}
	usual := backend.Listener{Port: strconv.Itoa(client.DefaultPort)}
	l := usual
	if port, ok := env.Get("", "NODE_PORT"); ok && port != "" {
		l.Port = port
	}
	l.Address, _ = env.Get("", "NODE_IP_ADDRESS")
	if len(all) == 0 || l != usual {
		all = append(all, l)
	}
	return all
}
