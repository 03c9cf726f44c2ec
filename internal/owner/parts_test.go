package owner

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func cluster(n int) Cluster {
	c := Cluster{Timers: true, Away: 60}
	for i := range n {
		c.Nodes = append(c.Nodes, fmt.Sprintf("192.0.2.%d", i+1))
	}
	return c
}

// Whatever the number of nodes, each hash is in one part, nodes have equal shares, and what a lost node had is spread
// over all others.
func TestParts(t *testing.T) {
	for n := 1; n <= 9; n++ {
		c := cluster(n)
		parts := c.Parts()
		timers := parts[len(parts)-1]
		require.True(t, timers.timers())
		require.Equal(t, c.ring(0), timers.Order)
		parts = parts[:len(parts)-1]
		require.Len(t, parts, n*max(n-1, 1))
		next := uint64(0)
		shares, seconds := make([]uint64, n), map[[2]int]int{}
		for _, p := range parts {
			require.Equal(t, next, p.Start, "%d nodes: %s follows the one before it", n, p.Name)
			require.Greater(t, p.End, p.Start)
			next = p.End
			require.Equal(t, c.ring(0), slices.Sorted(slices.Values(p.Order)), "each node is in its order once")
			shares[p.Order[0]] += p.End - p.Start
			if n > 1 {
				seconds[[2]int{p.Order[0], p.Order[1]}]++
			}
		}
		require.EqualValues(t, 1<<32, next)
		for _, share := range shares {
			require.InDelta(t, (1<<32)/n, share, 1)
		}
		require.Len(t, seconds, n*(n-1), "each node is the second for one part of each other")
		require.Equal(t, "0..4294967296", Ranges(parts), "all together are one range")
	}
	require.Len(t, Cluster{Nodes: []string{"a"}}.Parts(), 1, "no timers, no part of theirs")
}

func TestPartsOfThree(t *testing.T) {
	var got []string
	for _, p := range cluster(3).Parts() {
		got = append(got, fmt.Sprintf("%s %d..%d %v", p.Name, p.Start, p.End, p.Order))
	}
	require.Equal(t, []string{
		"0.0 0..715827882 [0 1 2]",
		"0.1 715827882..1431655765 [0 2 1]",
		"1.0 1431655765..2147483647 [1 2 0]",
		"1.1 2147483647..2863311530 [1 0 2]",
		"2.0 2863311530..3579139413 [2 0 1]",
		"2.1 3579139413..4294967296 [2 1 0]",
		"timers 0..0 [0 1 2]",
	}, got)
}

func TestRanges(t *testing.T) {
	parts := cluster(3).Parts()
	require.Equal(t, "0..1431655765|2147483647..2863311530", Ranges([]Part{parts[3], parts[1], parts[0]}))
	require.Empty(t, Ranges(nil))
}

// What agents must agree on is in the number that they compare at the broker.
func TestFingerprint(t *testing.T) {
	seen := map[int32]bool{}
	for _, c := range []Cluster{cluster(1), cluster(2), cluster(3), {Nodes: cluster(2).Nodes, Timers: true, Away: 61},
		{Nodes: cluster(2).Nodes, Away: 60}, {Nodes: []string{"192.0.2.2", "192.0.2.1"}, Timers: true, Away: 60}} {
		f := c.Fingerprint()
		require.Positive(t, f)
		require.False(t, seen[f], "%+v", c)
		seen[f] = true
	}
	require.Equal(t, cluster(2).Fingerprint(), cluster(2).Fingerprint())
}

func TestParseConfig(t *testing.T) {
	good := Config{Node: "192.0.2.2", Cluster: cluster(2)}
	got, err := ParseConfig(good.Encode())
	require.NoError(t, err)
	require.Equal(t, good, got)
	for text, want := range map[string]string{
		``:                              "unexpected end of JSON input",
		`{"node": "a", "away": 60}`:     "it names no nodes",
		`{"nodes": ["a", "a"]}`:         "it names a node twice",
		`{"nodes": ["a", ""]}`:          "it names a node without an address",
		`{"node": "b", "nodes": ["a"]}`: `this node, "b", is none of a`,
		`{"node": "a", "nodes": ["a"], "away": 44}`: "the seconds that a node has to be away must be 45 to 86400, not 44: " +
			"a lost node has stopped by itself only after that",
	} {
		_, err := ParseConfig([]byte(text))
		require.EqualError(t, err, want, text)
	}
}

// FuzzParseConfig reads any file: what it takes is a cluster whose parts cover all, and is written as it was read.
func FuzzParseConfig(f *testing.F) {
	f.Add(Config{Node: "192.0.2.2", Cluster: cluster(2)}.Encode())
	f.Add([]byte(`{"node": "a", "nodes": ["a", "b", "c"], "away": 60, "timers": false}`))
	f.Add([]byte(`{"nodes": [""]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err != nil || len(c.Nodes) > 50 {
			return
		}
		parts := c.Parts()
		if c.Timers {
			parts = parts[:len(parts)-1]
		}
		require.Equal(t, "0..4294967296", Ranges(parts))
		again, err := ParseConfig(c.Encode())
		require.NoError(t, err)
		require.Equal(t, c, again)
	})
}
