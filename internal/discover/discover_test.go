package discover_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/backend"
	"st2ha/internal/backend/all"
	"st2ha/internal/discover"
	"st2ha/internal/host"
)

// stackNode is this machine with other files, on which these units are enabled.
type stackNode struct {
	*host.Local
	units string
}

func (n *stackNode) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	var blocks []string
	for _, unit := range argv[3:] {
		state := "disabled"
		if strings.Contains(n.units, unit) {
			state = "enabled"
		}
		blocks = append(blocks, "LoadState=loaded\nUnitFileState="+state)
	}
	return []byte(strings.Join(blocks, "\n\n") + "\n"), nil
}

func TestFind(t *testing.T) {
	for name, c := range map[string]struct {
		files    map[string]string
		config   backend.Config
		want     string // endpoints; those on other machines with their host
		problems []string
	}{
		"a primary": {
			files: map[string]string{
				"/etc/st2/st2.conf": "[database]\nhost = mongodb://stackstorm:p@127.0.0.1:27017/st2?authSource=st2\n" +
					"[messaging]\nurl = amqp://stackstorm:p@127.0.0.1:5672/\n[coordination]\nurl = redis://127.0.0.1:6379\n",
				"/etc/exports": "/opt/stackstorm/packs 203.0.113.7(rw)\n",
			},
			want: "mongodb 127.0.0.1:27017, nfs localhost:2049, rabbitmq 127.0.0.1:5672, redis 127.0.0.1:6379, st2 st2api, " +
				"st2 st2scheduler",
		},
		"a secondary": {
			files: map[string]string{
				"/etc/st2/st2.conf": "[database]\nhost = 203.0.113.1\nport = 27018\n[messaging]\nurl = " +
					"amqp://st2:p@203.0.113.1/v\n",
				"/etc/fstab": "203.0.113.1:/opt/stackstorm/packs /opt/stackstorm/packs nfs hard 0 0\n" +
					"[2001:db8::1]:/x /x nfs4 hard 0 0\n/dev/sda1 / ext4 defaults 0 1\n",
			},
			want: "mongodb 203.0.113.1:27018 on 203.0.113.1, mount /opt/stackstorm/packs on 203.0.113.1, mount /x on " +
				"2001:db8::1, " +
				"nfs 203.0.113.1:2049 on 203.0.113.1, nfs [2001:db8::1]:2049 on 2001:db8::1, rabbitmq 203.0.113.1:5672 on " +
				"203.0.113.1, st2 st2api, st2 st2scheduler",
		},
		"a cluster": {
			files: map[string]string{
				"/etc/st2/st2.conf": "[database]\nhost = mongodb://u:p@203.0.113.1,203.0.113.2:27018/st2?replicaSet=rs0\n" +
					"[messaging]\nurl = amqp://ignored@127.0.0.1/\ncluster_urls = amqp://a:p@203.0.113.1:5671/, " +
					"amqp://a:p@203.0.113.2/\nssl = True\n" +
					"[coordination]\nurl = zookeeper://127.0.0.1:2181\n",
			},
			want: "mongodb 203.0.113.1:27017 on 203.0.113.1, mongodb 203.0.113.2:27018 on 203.0.113.2, " +
				// TLS has a port of its own (kombu/transport/pyamqp.py)
				"rabbitmq 203.0.113.1:5671 on 203.0.113.1, rabbitmq 203.0.113.2:5671 on 203.0.113.2, st2 st2api, st2 st2scheduler",
		},
		"all by the pack's configuration": {
			config: backend.Config{MongoDB: "mongodb://203.0.113.1/",
				RabbitMQ: "amqp://a:p@203.0.113.1/,amqp://a:p@203.0.113.2/",
				Redis:    "rediss://:p@203.0.113.3", NFS: []string{"203.0.113.4:/a", "203.0.113.4:/b"}, Mounts: []string{"/mnt"},
				Units: []string{"st2api"}},
			want: "mongodb 203.0.113.1:27017 on 203.0.113.1, mount /mnt, nfs 203.0.113.4:2049 on 203.0.113.4, rabbitmq " +
				"203.0.113.1:5672 on 203.0.113.1, " +
				"rabbitmq 203.0.113.2:5672 on 203.0.113.2, redis 203.0.113.3:6379 on 203.0.113.3, st2 st2api",
		},
		"an odd line of st2.conf": {
			files: map[string]string{
				"/etc/st2/st2.conf": "[database]\nhost = 203.0.113.1\nnonsense\n[messaging]\nurl = amqp://st2:p@203.0.113.1/v\n",
			},
			want: "mongodb 203.0.113.1:27017 on 203.0.113.1, rabbitmq 203.0.113.1:5672 on 203.0.113.1, st2 st2api, st2 " +
				"st2scheduler",
			problems: []string{"n1: /etc/st2/st2.conf: line 3: neither an option, a section nor a comment"},
		},
		"an odd line that hides where the broker is": { // not on loopback, where nothing may run
			files: map[string]string{
				"/etc/st2/st2.conf": "[database]\nhost = 203.0.113.1\n[messaging\nurl = amqp://st2:p@203.0.113.1/v\n",
			},
			want: "mongodb 203.0.113.1:27017 on 203.0.113.1, st2 st2api, st2 st2scheduler",
			problems: []string{"n1: /etc/st2/st2.conf: line 3: section header without a name or its closing bracket",
				"n1: /etc/st2/st2.conf: [messaging] url: it is not set in any line that can be read"},
		},
		"nothing at all": {problems: []string{"n1: /etc/st2/st2.conf does not exist"}},
		"what cannot be read does not hide the rest, and no secret is told": {
			files: map[string]string{
				"/etc/st2/st2.conf": "[database]\nhost = mongodb://u:secret@:x@h/\n[messaging]\nurl = " +
					"amqp://u:secret@h:x/\n[coordination]\nurl = redis://:secret@h:x/\n",
				"/etc/fstab":   "203.0.113.1:/a /a nfs\nbroken\n",
				"/etc/exports": "/opt/stackstorm/packs *(rw)\n",
			},
			want: "mount /a on 203.0.113.1, nfs 203.0.113.1:2049 on 203.0.113.1, nfs localhost:2049, st2 st2api, st2 " +
				"st2scheduler",
			problems: []string{"MongoDB", "[messaging] url is not a URL", "URL", "/etc/fstab"},
		},
		"an odd line costs that line only": {
			files: map[string]string{
				"/etc/fstab": "/dev/sdb1 /data ext4 defaults # old\n192.168.0.100:/opt/stackstorm/packs /opt/stackstorm/packs " +
					"nfs _netdev,nofail,bg,hard 0 0\n" +
					"one-word\n203.0.113.1:/b /b nfs defaults # nightly\n203.0.113.1:/nul\x00 /c nfs\n203.0.113.1:/d /d nfs4\n",
				"/etc/exports": "/srv *(rw\n/opt/stackstorm/packs *(rw)\n/x \"open\n",
			},
			config: backend.Config{MongoDB: "mongodb://203.0.113.9/", RabbitMQ: "amqp://a:p@203.0.113.9/",
				Units: []string{"st2api"}},
			want: "mongodb 203.0.113.9:27017 on 203.0.113.9, mount /b on 203.0.113.1, mount /d on 203.0.113.1, mount " +
				"/opt/stackstorm/packs on 192.168.0.100, " +
				"nfs 192.168.0.100:2049 on 192.168.0.100, nfs 203.0.113.1:2049 on 203.0.113.1, nfs localhost:2049, rabbitmq " +
				"203.0.113.9:5672 on 203.0.113.9, st2 st2api",
			problems: []string{"/etc/fstab: line 1: a comment after field 4", "/etc/exports: line 1: "},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for path, text := range c.files {
				require.NoError(t, os.MkdirAll(filepath.Dir(root+path), 0o755))
				require.NoError(t, os.WriteFile(root+path, []byte(text), 0o644))
			}
			found := discover.Find(t.Context(), &stackNode{host.NewLocalAt("n1", root), "st2api st2scheduler"}, c.config,
				all.Backends())
			var got []string
			for _, e := range found.Endpoints {
				text := e.Key().String()
				if e.Host != "" {
					text += " on " + e.Host
				}
				got = append(got, text)
			}
			assert.Equal(t, c.want, strings.Join(got, ", "))
			require.Len(t, found.Problems, len(c.problems), "%v", found.Problems)
			for i, err := range found.Problems {
				assert.ErrorContains(t, err, c.problems[i])
				assert.NotContains(t, err.Error(), "secret")
			}
		})
	}
}
