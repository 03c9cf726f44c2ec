package stackstorm

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParsePartition(t *testing.T) {
	whole := []Range{{0, HashEnd}}
	for text, want := range map[string]Partition{
		"":                                          {Provider: "default", Ranges: whole},
		"name:default":                              {Provider: "default", Ranges: whole},
		"name:Hash, hash_ranges:MIN..MAX":           {Provider: "hash", Ranges: whole},
		"name:hash, hash_ranges:0..0":               {Provider: "hash"},
		"name:hash,hash_ranges:0..8| 16..max":       {Provider: "hash", Ranges: []Range{{0, 8}, {16, HashEnd}}},
		"hash_ranges:-5..99999999999,name:hash":     {Provider: "hash", Ranges: whole},
		"name:kvstore":                              {Provider: "kvstore"},
		"name:file, partition_file:/etc/st2/p.yaml": {Provider: "file"},
	} {
		p, err := ParsePartition(text)
		require.NoError(t, err, text)
		require.Equal(t, want, p, text)
	}
	for text, want := range map[string]string{
		"name":                           `"name" is not KEY:VALUE`,
		"name:zookeeper":                 `there is no provider "zookeeper": it is default, hash, kvstore or file`,
		"name:hash":                      `"" is not START..END`,
		"name:hash, hash_ranges:9..8":    `"9..8" ends before it starts`,
		"name:hash, hash_ranges:0..half": "a range's end must be a number, MIN or MAX",
	} {
		_, err := ParsePartition(text)
		require.EqualError(t, err, want, text)
	}
}

func FuzzParsePartition(f *testing.F) {
	for _, seed := range []string{"", "name:default", "name:hash, hash_ranges:MIN..2147483648", "name:hash,hash_ranges:0..1|3..4"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePartition(text)
		for _, r := range p.Ranges {
			if r.From >= r.To || r.To > HashEnd || err != nil {
				t.Fatalf("%q: %+v, %v", text, p, err)
			}
		}
		if err == nil && p.Provider == "" {
			t.Fatalf("%q has no provider", text)
		}
	})
}
