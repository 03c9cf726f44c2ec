package main

import (
	"context"
	"crypto/md5"
	"fmt"
	"log"
	"math/big"
	"os"
	"strconv"
	"strings"
	"time"
)

// counters is a directory that a test makes where sensors are to count. Each service writes a file of its own there.
const counters = "/run/lab-sensors"

// labSensors are the sensors that the lab's packs would have.
func labSensors() []string {
	var refs []string
	for i := range 24 {
		refs = append(refs, fmt.Sprintf("lab.Sensor%d", i))
	}
	return refs
}

// partition is which sensors a node runs: all, or those in its ranges.
type partition struct {
	all    bool
	ranges [][2]int64
}

// parsePartition reads [sensorcontainer] partition_provider as StackStorm does, and refuses what it refuses: a
// dictionary (oslo_config/types.py, Dict), of which name and hash_ranges count here
// (st2reactor/container/partitioner_lookup.py:53, hash_partitioner.py:38-66).
func parsePartition(text string) (partition, error) {
	values := map[string]string{}
	for _, item := range strings.Split(text, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(item), ":")
		if !ok {
			return partition{}, fmt.Errorf("partition_provider: not key:value: %q", item)
		}
		values[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	switch strings.ToLower(values["name"]) {
	case "default":
		return partition{all: true}, nil
	case "hash":
	default:
		return partition{}, fmt.Errorf("partition provider %s not found", values["name"])
	}
	var p partition
	for _, text := range strings.Split(values["hash_ranges"], "|") {
		bounds := strings.Split(strings.TrimSpace(text), "..")
		if len(bounds) != 2 {
			return partition{}, fmt.Errorf("unsupported sub-range format %q", text)
		}
		var r [2]int64
		for i, bound := range bounds {
			switch bound = strings.TrimSpace(bound); strings.ToLower(bound) {
			case "min":
			case "max":
				r[i] = 1 << 32
			default:
				n, err := strconv.ParseInt(bound, 10, 64)
				if err != nil {
					return partition{}, err
				}
				r[i] = min(max(n, 0), 1<<32)
			}
		}
		if r[0] > r[1] {
			return partition{}, fmt.Errorf("misconfigured range [%d..%d]", r[0], r[1])
		}
		p.ranges = append(p.ranges, r)
	}
	return p, nil
}

// own are those of the sensors that are in the partition.
func (p partition) own(refs []string) (own []string) {
	for _, ref := range refs {
		h := int64(hash(ref))
		mine := p.all
		for _, r := range p.ranges {
			mine = mine || r[0] <= h && h < r[1]
		}
		if mine {
			own = append(own, ref)
		}
	}
	return own
}

// hash is StackStorm's hash of a sensor's name (hash_partitioner.py:68-88).
func hash(ref string) uint32 {
	sum := md5.Sum([]byte(ref))
	digits := new(big.Int).SetBytes(sum[:]).String()
	var h uint32
	for i := len(digits) - 1; i >= 0; i-- {
		high := h & 0xF8000000
		h = h<<5 ^ high>>27 ^ uint32(digits[i]-'0')
	}
	return h
}

// count has each sensor write a line five times a second, with the time.
func count(ctx context.Context, refs []string) {
	if _, err := os.Stat(counters); err != nil || len(refs) == 0 {
		return
	}
	file, err := os.Create(fmt.Sprintf("%s/%d-%d", counters, time.Now().UnixMilli(), os.Getpid()))
	if err != nil {
		log.Print(err)
		return
	}
	defer file.Close()
	for tick := time.Tick(200 * time.Millisecond); ; {
		now := time.Now().UnixMilli()
		for _, ref := range refs {
			fmt.Fprintln(file, now, ref)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
	}
}
