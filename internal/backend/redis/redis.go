// Package redis is the backend Redis: StackStorm's coordinator.
package redis

import (
	"context"
	"net/url"
	"slices"
	"strings"

	"st2ha/internal/backend"
	"st2ha/internal/host"
	client "st2ha/internal/redis"
	"st2ha/internal/stackstorm"
)

// Name is the backend's.
const Name = "redis"

// New describes Redis.
func New() backend.Backend {
	return backend.Backend{
		Name:      Name,
		Units:     []string{"redis-server.service", "redis.service"}, // Debian's name, and Red Hat's
		DataDirs:  []string{"/var/lib/redis", "/var/log/redis"},
		Answers:   func(ctx context.Context, h host.Host, addr string) error { return client.Answers(ctx, h, addr) },
		Port:      client.Port,
		Servers:   servers,
		Listeners: listeners,
		Endpoints: endpoints,
	}
}

// servers are that of [coordination], unless another coordinator is used.
func servers(conf *stackstorm.Conf) []string {
	server, err := client.ParseURL(conf.Coordination())
	if err != nil {
		return nil
	}
	return []string{server.Addr}
}

// endpoints are the server of the pack's configuration, or of [coordination].
func endpoints(ctx context.Context, n *backend.Node) {
	text := n.Config.Redis
	if text == "" {
		if n.Conf == nil {
			return
		}
		text = n.Conf.Coordination()
		// Other coordinators are none of what is watched.
		if u, err := url.Parse(text); err == nil && u.Scheme != "redis" && u.Scheme != "rediss" {
			return
		}
	}
	server, err := client.ParseURL(text)
	if err != nil {
		n.Problem(err)
		return
	}
	if server.TLS != nil {
		server.TLS.Read = n.Contents
	}
	n.Add(ctx, Name, server.Addr, Watch(Settings{Server: server, Timing: n.Config.Timing()}))
}

// listeners reads redis.conf where distributions have it.
func listeners(read func(string) string) []backend.Listener {
	var all []backend.Listener
	for _, path := range []string{"/etc/redis/redis.conf", "/etc/redis.conf"} {
		all = append(all, parseListeners(read(path))...)
	}
	return all
}

// parseListeners reads "port N", "tls-port N", "bind ADDRESS…", where - before
// an address lets it be missing, and * is all (redis.conf's own comments).
func parseListeners(text string) []backend.Listener {
	var ports, bound []string
	for _, line := range strings.Split(text, "\n") {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch strings.ToLower(words[0]) {
		case "port", "tls-port":
			if words[1] != "0" {
				ports = append(ports, words[1])
			}
		case "bind":
			bound = nil
			for _, address := range words[1:] {
				bound = append(bound, strings.TrimPrefix(strings.Trim(address, `"`), "-"))
			}
		}
	}
	if text != "" && len(ports) == 0 {
		ports = []string{client.Port}
	}
	if len(bound) == 0 || slices.Contains(bound, "*") || slices.Contains(bound, "::*") {
		bound = []string{""}
	}
	var all []backend.Listener
	for _, port := range ports {
		for _, address := range bound {
			all = append(all, backend.Listener{Address: address, Port: port})
		}
	}
	return all
}
