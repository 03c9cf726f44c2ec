package stackstorm

import (
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// HashEnd is where the hashes of sensors end: they are 0 to 2^32 - 1 (st2reactor/container/hash_partitioner.py:41-48).
const HashEnd uint64 = 1 << 32

// Range are the hashes of sensors from From to the one before To.
type Range struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// Partition says which sensors a node runs, as its st2.conf has it.
type Partition struct {
	Node     string  // [sensorcontainer] sensor_node_name
	Provider string  // default, hash, kvstore or file
	Ranges   []Range // of hashes; all of them for default, none where the provider keeps to no ranges
}

// Ranged says whether Ranges are all that there is to know: not where a list in the datastore or in a file decides.
func (p Partition) Ranged() bool { return p.Provider == "default" || p.Provider == "hash" }

// Empty says whether it has no sensors, by its ranges.
func (p Partition) Empty() bool { return p.Ranged() && len(p.Ranges) == 0 }

// Partition is that of [sensorcontainer] (st2reactor/container/partitioner_lookup.py:45-65, st2common/config.py).
func (c *Conf) Partition() (Partition, error) {
	provider, _, err := c.Value("sensorcontainer", "partition_provider")
	if err != nil {
		return Partition{}, err
	}
	p, err := ParsePartition(provider)
	if err != nil {
		return p, c.located("sensorcontainer", "partition_provider", fmt.Errorf("[sensorcontainer] "+
			"partition_provider: %w", err))
	}
	if p.Node = c.option("sensorcontainer", "sensor_node_name"); p.Node == "" {
		p.Node = "sensornode1"
	}
	return p, nil
}

// ParsePartition reads a partition_provider: KEY:VALUE with commas (oslo_config/types.py, Dict), empty for the default.
func ParsePartition(text string) (Partition, error) {
	if strings.TrimSpace(text) == "" {
		text = "name:default"
	}
	values := map[string]string{}
	for _, item := range strings.Split(text, ",") {
		key, value, ok := strings.Cut(item, ":")
		if !ok {
			return Partition{}, fmt.Errorf("%q is not KEY:VALUE", strings.TrimSpace(item))
		}
		values[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	p := Partition{Provider: strings.ToLower(values["name"])}
	switch p.Provider {
	case "default":
		p.Ranges = []Range{{0, HashEnd}}
	case "hash":
		var err error
		if p.Ranges, err = parseRanges(values["hash_ranges"]); err != nil {
			return Partition{}, err
		}
	case "kvstore", "file":
	default:
		return Partition{}, fmt.Errorf("there is no provider %q: it is default, hash, kvstore or file", values["name"])
	}
	return p, nil
}

// parseRanges reads START..END|START..END; empty ones are left out.
func parseRanges(text string) ([]Range, error) {
	var all []Range
	for _, part := range strings.Split(text, "|") {
		ends := strings.Split(part, "..")
		if len(ends) != 2 {
			return nil, fmt.Errorf("%q is not START..END", strings.TrimSpace(part))
		}
		var r Range
		for i, into := range []*uint64{&r.From, &r.To} {
			var err error
			if *into, err = bound(ends[i]); err != nil {
				return nil, err
			}
		}
		if r.From > r.To {
			return nil, fmt.Errorf("%q ends before it starts", strings.TrimSpace(part))
		}
		if r.From < r.To {
			all = append(all, r)
		}
	}
	return all, nil
}

// bound is a range's end: min, max or a number. What is less than the one or more than the other is that.
func bound(text string) (uint64, error) {
	switch text = strings.ToLower(strings.TrimSpace(text)); text {
	case "min":
		return 0, nil
	case "max":
		return HashEnd, nil
	}
	n, ok := new(big.Int).SetString(text, 10)
	switch {
	case !ok || len(text) > 100:
		return 0, errors.New("a range's end must be a number, MIN or MAX")
	case n.Sign() < 0:
		return 0, nil
	case n.Cmp(new(big.Int).SetUint64(HashEnd)) > 0:
		return HashEnd, nil
	}
	return n.Uint64(), nil
}

// Timers says whether the node's timers engine runs timers.
func (c *Conf) Timers() bool { return !c.SwitchedOff(TimersUnit) }
