package confedit_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/confedit"
)

// editor is what st2ha does to a file of one kind.
type editor struct {
	kind string
	edit func(src []byte) ([]byte, error)
}

// iniEdit sets the triples section, key, value one after the other.
func iniEdit(style confedit.Style, triples ...string) func([]byte) ([]byte, error) {
	return func(src []byte) ([]byte, error) {
		f, err := confedit.ParseINI(src, style)
		if err != nil {
			return nil, err
		}
		for i := 0; i < len(triples); i += 3 {
			if err := f.Set(triples[i], triples[i+1], triples[i+2]); err != nil {
				return nil, err
			}
		}
		return f.Bytes(), nil
	}
}

func editors() []editor {
	return []editor{
		{"yaml", func(src []byte) ([]byte, error) {
			return confedit.YAMLSet(src, "127.0.0.1,192.168.0.100", "net", "bindIp")
		}},
		{"mongo", iniEdit(confedit.Mongo, "", "bind_ip", "127.0.0.1,192.168.0.100")},
		{"oslo", iniEdit(confedit.OSLO,
			"messaging", "url", "amqp://st2:p%40ss@192.168.0.100:5672/",
			"database", "host", "192.168.0.100",
			"sensorcontainer", "partition_provider", "name:hash, hash_ranges:MIN..2147483648",
			"webui", "webui_base_url", "https://192.168.0.100",
			"auth", "api_url", "https://192.168.0.100/api")},
		{"rabbit", iniEdit(confedit.Rabbit, "", "listeners.tcp.default", "192.168.0.100:5672")},
		{"env", iniEdit(confedit.Env, "", "NODE_IP_ADDRESS", "192.168.0.100")},
		{"exports", func(src []byte) ([]byte, error) {
			return confedit.AddExport(src, "/opt/stackstorm/packs", "192.168.0.101",
				[]string{"rw", "sync", "no_subtree_check", "anonuid=0", "anongid=999"})
		}},
		{"fstab", func(src []byte) ([]byte, error) {
			return confedit.AddMount(src, confedit.Mount{
				Source: "192.168.0.100:/opt/stackstorm/packs", Target: "/opt/stackstorm/packs",
				Type: "nfs", Options: []string{"_netdev", "nofail"},
			})
		}},
	}
}

// TestGolden edits the files of testdata, real ones and their ugly cousins. A
// golden file holds the result, or the error.
func TestGolden(t *testing.T) {
	for _, e := range editors() {
		files, err := filepath.Glob(filepath.Join("testdata", e.kind, "*.in"))
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			name := strings.TrimSuffix(filepath.Base(file), ".in")
			t.Run(e.kind+"/"+name, func(t *testing.T) {
				src, err := os.ReadFile(file)
				require.NoError(t, err)
				out, err := e.edit(src)
				got := string(out)
				if err != nil {
					var ce *confedit.Error
					require.True(t, errors.As(err, &ce), "%T", err)
					got = "error: " + err.Error() + "\n"
				} else {
					again, err := e.edit(out)
					require.NoError(t, err)
					assert.Equal(t, got, string(again), "not idempotent")
				}
				golden := strings.TrimSuffix(file, ".in") + ".golden"
				if flag.Lookup("update").Value.String() == "true" {
					require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
				}
				want, err := os.ReadFile(golden)
				require.NoError(t, err)
				assert.Equal(t, string(want), got)
			})
		}
	}
}

func TestMain(m *testing.M) {
	flag.Bool("update", false, "write the golden files anew")
	os.Exit(m.Run())
}
