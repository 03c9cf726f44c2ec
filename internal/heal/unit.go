package heal

import (
	"context"
	"slices"
	"strings"

	"st2ha/internal/backend/all"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/service"
)

// Backends are the backends that a restart of their unit can heal, sorted.
func Backends() []string {
	var names []string
	for _, b := range all.Backends() {
		if len(b.Units) > 0 {
			names = append(names, b.Name)
		}
	}
	slices.Sort(names)
	return names
}

// Unit returns the systemd unit of a backend on a host.
func Unit(ctx context.Context, h host.Host, backend string) (string, error) {
	candidates := all.Get(backend).Units
	if candidates == nil {
		return "", fault.Usage("backend must be one of %s, not %q", strings.Join(Backends(), ", "), backend)
	}
	unit, err := service.First(ctx, h, candidates...)
	if err == nil && unit == "" {
		err = fault.Preflight("no_unit", "restart it where it runs",
			"%s: none of %s is installed: %s does not run here under systemd", h.Name(), strings.Join(candidates, ", "), backend)
	}
	return unit, err
}
