package heal

import (
	"context"
	"slices"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/service"
)

// units are the backends that run as a unit, under the names distributions
// give it: the package of MongoDB, Inc. and older Debian; Debian and Red Hat.
func units() map[string][]string {
	return map[string][]string{
		"mongodb":  {"mongod.service", "mongodb.service"},
		"rabbitmq": {"rabbitmq-server.service"},
		"redis":    {"redis-server.service", "redis.service"},
		"nfs":      {"nfs-server.service", "nfs-kernel-server.service"},
	}
}

// Backends are the backends that a restart of their unit can heal, sorted.
func Backends() []string {
	var names []string
	for name := range units() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Unit returns the systemd unit of a backend on a host.
func Unit(ctx context.Context, h host.Host, backend string) (string, error) {
	candidates := units()[backend]
	if candidates == nil {
		return "", fault.Usage("backend %q has no unit to restart: it is one of %s", backend, strings.Join(Backends(), ", "))
	}
	unit, err := service.First(ctx, h, candidates...)
	if err == nil && unit == "" {
		err = fault.Preflight("no_unit", "restart it where it runs", "%s: none of %s is installed: %s does not run here under systemd", h.Name(), strings.Join(candidates, ", "), backend)
	}
	return unit, err
}

// Backend returns the backend that a unit runs; empty for what runs none.
func Backend(unit string) string {
	for name, candidates := range units() {
		if slices.Contains(candidates, unit) {
			return name
		}
	}
	return ""
}
