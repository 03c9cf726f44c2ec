package stackstorm

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"st2ha/internal/confedit"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// SensorsUnit and TimersUnit are what runs sensors and timers.
const (
	SensorsUnit = "st2sensorcontainer"
	TimersUnit  = "st2timersengine"
)

// TurnDir is of the agent that shares sensors and timers among the nodes (package owner): it goes with it.
const TurnDir = "/run/st2ha-owner"

// TurnFile is a second file of settings for one of the two services. While it is not there systemd does not start it.
func TurnFile(unit string) string { return TurnDir + "/" + unit + ".conf" }

// TurnDropIn is the file that binds one of the two services to the agent.
func TurnDropIn(unit string) string { return "/etc/systemd/system/" + unit + ".service.d/st2ha.conf" }

// Shared says whether a unit is bound to the agent, whatever st2.conf says of it.
func Shared(ctx context.Context, h host.Host, unit string) (bool, error) {
	unit = strings.TrimSuffix(unit, ".service")
	if unit != SensorsUnit && unit != TimersUnit {
		return false, nil
	}
	return exists(ctx, h, TurnDropIn(unit))
}

// Waiting says whether a unit rightly does not run: it is another node's turn.
func Waiting(ctx context.Context, h host.Host, unit string) (bool, error) {
	shared, err := Shared(ctx, h, unit)
	if err != nil || !shared {
		return false, err
	}
	turn, err := exists(ctx, h, TurnFile(strings.TrimSuffix(unit, ".service")))
	return err == nil && !turn, err
}

// Turn is what one of the two services is told by the agent, in place of st2.conf; without any settings where it is
// another node's turn, and nil where nodes do not share them.
func Turn(ctx context.Context, h host.Host, unit string) (*Conf, error) {
	shared, err := Shared(ctx, h, unit)
	if err != nil || !shared {
		return nil, err
	}
	f, err := h.ReadFile(ctx, TurnFile(unit))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	ini, err := confedit.ReadOSLO(f.Data)
	return &Conf{INI: ini, file: host.File{Path: TurnFile(unit)}, host: h}, step.Located(h, TurnFile(unit), err)
}

// withTurn are those of the units that do not wait for their turn.
func withTurn(ctx context.Context, h host.Host, units []string) ([]string, error) {
	var failed error
	units = slices.DeleteFunc(slices.Clone(units), func(unit string) bool {
		waiting, err := Waiting(ctx, h, unit)
		failed = errors.Join(failed, err)
		return waiting
	})
	return units, failed
}

// noSensors is the partition that configure_st2 gives a secondary.
const noSensors = "name:hash, hash_ranges:0..0"

// OwnPartition is a partition of the sensors that somebody has made by hand.
func (c *Conf) OwnPartition() (provider string, ok bool) {
	provider, ok = c.Get("sensorcontainer", "partition_provider")
	return provider, ok && provider != noSensors && !everySensor(provider)
}
