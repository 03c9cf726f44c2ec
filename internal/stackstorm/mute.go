package stackstorm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"st2ha/internal/host"
	"st2ha/internal/service"
)

// muteSays is what a service logs that cannot publish any more. A publisher
// that reaches no broker for some 20 s closes its connection, and puts it back
// into its pool closed; from then on each message fails that is to go over it,
// for good (st2common/transport/connection_retry_wrapper.py: run closes, and
// raises where it cannot connect; kombu 5.5.4 connection.py:928). The service
// goes on taking messages and answering heartbeats: a scheduler's executions
// stay requested or scheduled, a rules engine's are begun by nobody.
const muteSays = `^\S+ \S+ ERROR \[-\] Connections to RabbitMQ cannot be re-established: ` +
	`'NoneType' object has no attribute 'channel'`

// MuteWithin is how long ago a service may have said so to be mute.
const MuteWithin = 15 * time.Minute

// Mute returns the units, workers each for itself, that said within that time
// that they cannot publish, and have not been begun anew since. A service that
// logs elsewhere than to the journal is not found (st2api, as its packages have it).
func Mute(ctx context.Context, h host.Host, within time.Duration) ([]string, error) {
	out, err := h.Run(ctx, nil, "journalctl", "--quiet", "--no-pager", "--output=json",
		"--output-fields=_SYSTEMD_UNIT,_SYSTEMD_INVOCATION_ID",
		fmt.Sprintf("--since=-%ds", int(within.Seconds())), "--unit=st2*", "--grep="+muteSays)
	var exit *host.ExitError
	if errors.As(err, &exit) && exit.Code == 1 && strings.TrimSpace(exit.Stderr) == "" {
		return nil, nil // its way to say that there is no such line
	}
	if err != nil {
		return nil, fmt.Errorf("%s: read the log of the st2 services: %w", h.Name(), err)
	}
	said := map[string]string{} // unit: the invocation that did last
	for line := range bytes.Lines(out) {
		var entry struct {
			Unit       string `json:"_SYSTEMD_UNIT"`
			Invocation string `json:"_SYSTEMD_INVOCATION_ID"`
		}
		if json.Unmarshal(line, &entry) == nil && strings.HasPrefix(entry.Unit, "st2") && entry.Invocation != "" {
			said[strings.TrimSuffix(entry.Unit, ".service")] = entry.Invocation
		}
	}
	if len(said) == 0 {
		return nil, nil
	}
	var units []string
	for unit := range said {
		units = append(units, unit)
	}
	slices.Sort(units)
	now, err := service.Invocations(ctx, h, units...)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(units, func(unit string) bool { return now[unit] != said[unit] }), nil
}
