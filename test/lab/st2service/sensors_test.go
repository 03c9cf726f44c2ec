package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// The numbers are those of StackStorm's own hash_partitioner.py.
func TestHash(t *testing.T) {
	for ref, want := range map[string]uint32{"examples.SampleSensor": 4026535470, "st2ha.BackendSensor": 49470805, "lab.Sensor0": 3391360337} {
		require.Equal(t, want, hash(ref), ref)
	}
}

func TestPartition(t *testing.T) {
	refs := labSensors()
	var all []string
	for _, text := range []string{"name:hash, hash_ranges:MIN..2147483648", "name:hash, hash_ranges:2147483648..3000000000|3000000000..max"} {
		p, err := parsePartition(text)
		require.NoError(t, err)
		all = append(all, p.own(refs)...)
	}
	require.ElementsMatch(t, refs, all)
	p, err := parsePartition("name:default")
	require.NoError(t, err)
	require.Equal(t, refs, p.own(refs))
	for _, text := range []string{"hash", "name:other", "name:hash, hash_ranges:5", "name:hash, hash_ranges:9..5", "name:hash"} {
		_, err := parsePartition(text)
		require.Error(t, err, text)
	}
}
