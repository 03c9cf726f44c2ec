package stackstorm

import (
	"context"
	"slices"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/service"
)

// services are StackStorm's units (COMPONENTS of st2ctl), as far as they hold
// connections; st2chatops speaks to the API only.
func services() []string {
	return []string{"st2actionrunner", "st2api", "st2stream", "st2auth", "st2garbagecollector", "st2notifier",
		"st2rulesengine", SensorsUnit, TimersUnit, "st2workflowengine", "st2scheduler"}
}

// Services are StackStorm's units, without their suffix.
func Services() []string { return services() }

// SwitchedOff says whether st2.conf has a unit's service end by itself: it exits
// with 0, its unit restarts on failure only, and enabled and inactive is its
// right state. That is the timers engine with neither of its two options true
// (st2reactor/cmd/timersengine.py:71); the other services run with any settings.
// A value that StackStorm refuses makes the service fail: that is not switched off.
func (c *Conf) SwitchedOff(unit string) bool {
	// Where lines are left out it may be: one that is on is not missed for long,
	// and one that is off would be restarted for ever.
	return strings.TrimSuffix(unit, ".service") == TimersUnit &&
		c.isFalse("timer", "enable", true) && c.isFalse("timersengine", "enable", c.odd)
}

// isFalse reads a boolean as oslo.config does (oslo_config/types.py, Boolean).
func (c *Conf) isFalse(section, key string, otherwise bool) bool {
	value, ok, err := c.Lookup(section, key)
	if err != nil || !ok {
		return err == nil && otherwise
	}
	return slices.Contains([]string{"false", "0", "off", "no"}, strings.ToLower(value))
}

// expected are the services that st2.conf does not switch off. Where the timers are shared among nodes, it does not say.
func expected(ctx context.Context, h host.Host) ([]string, error) {
	conf, err := LookAtConf(ctx, h)
	if conf == nil {
		return nil, err
	}
	shared, err := Shared(ctx, h, TimersUnit)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(services(), func(unit string) bool { return conf.SwitchedOff(unit) && !shared }), nil
}

// Units are the units of StackStorm that are meant to run: the host starts
// them at boot, and its st2.conf does not switch them off.
func Units(ctx context.Context, h host.Host) ([]string, error) {
	meant, err := expected(ctx, h)
	if err != nil {
		return nil, err
	}
	units, err := service.Enabled(ctx, h, meant...)
	if err == nil && len(units) == 0 {
		err = noUnits(h)
	}
	return units, err
}

func noUnits(h host.Host) error {
	return fault.Preflight("st2_units", "install StackStorm on "+h.Name()+", or enable its services",
		"%s: none of the st2 services is enabled", h.Name())
}

// await waits until the st2 services that the host is meant to run are active. What may run on one node at a time is
// its agent's to start.
func await(ctx context.Context, h host.Host) error {
	meant, err := expected(ctx, h)
	if err == nil {
		meant, err = withTurn(ctx, h, meant)
	}
	if err != nil {
		return err
	}
	enabled, err := service.AwaitEnabled(ctx, h, meant...)
	if err == nil && enabled == 0 {
		return noUnits(h)
	}
	return err
}
