package status

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/probe/probetest"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

var shared = &backendtest.Shared{}

// TestMain ends the tests' servers.
func TestMain(m *testing.M) { os.Exit(shared.Run(m)) }

// machine is a node whose files lie below a directory, and whose systemd and programs say what the test wants: the
// machine of the tests need not have them. Its connections are real ones.
type machine struct {
	*host.Local
	root  string
	units map[string]string // active/running, by the unit's name; all of them are enabled
	hang  bool              // its mount
}

func (m *machine) Run(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	switch argv[0] {
	case "systemctl":
		var out strings.Builder
		for _, name := range argv[3:] {
			if name == "st2actionrunner@*" {
				name = "st2actionrunner@1"
			}
			state, ok := m.units[name]
			if !ok {
				state = "active/running"
			}
			active, sub, _ := strings.Cut(state, "/")
			fmt.Fprintf(&out, "Id=%s.service\nActiveState=%s\nSubState=%s\nLoadState=loaded\nUnitFileState=enabled\n\n",
				strings.TrimSuffix(name, ".service"), active, sub)
		}
		return []byte(out.String()), nil
	case "cat", "sha256sum":
		if m.hang && argv[0] == "cat" {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return m.Local.Run(ctx, stdin, argv[0], m.root+argv[1])
	}
	return m.Local.Run(ctx, stdin, argv...)
}

// newMachine has files, by their paths.
func newMachine(t *testing.T, address string, files map[string]string) *machine {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		file := filepath.Join(root, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	}
	return &machine{Local: host.NewLocalAt(address, root), root: root, units: map[string]string{}}
}

const secret = "hunter2-s3cret"

// files are those of a node as the join leaves it.
func files(broker, redis, partition string) map[string]string {
	login := &url.URL{Scheme: "amqp", User: url.UserPassword(backendtest.User, backendtest.Password), Host: broker, Path: "/"}
	return map[string]string{
		"etc/st2/st2.conf": fmt.Sprintf(`[database]
host = mongodb://stackstorm:%s@127.0.0.1:1/st2?authSource=st2
[messaging]
url = %s
[coordination]
url = redis://%s
[keyvalue]
encryption_key_path = /etc/st2/keys/key.json
[auth]
backend_kwargs = {"file_path": "/etc/st2/htpasswd"}
[sensorcontainer]
%s
`, secret, login, redis, partition),
		"etc/st2/keys/key.json": secret, "etc/st2/htpasswd": "admin:" + secret,
		"opt/stackstorm/st2/pyvenv.cfg":                                         "home = /usr\nversion = 3.11.2\n",
		"opt/stackstorm/st2/lib/python3.11/site-packages/st2common/__init__.py": "__version__ = \"3.9.0\"\n",
		"opt/stackstorm/packs/st2ha/pack.yaml":                                  "---\nref: st2ha\nversion: 0.1.0\n",
		"usr/local/lib/st2ha/st2ha-watch":                                       "program",
		"var/lib/st2ha/heals/x.json": `{"target":"redis-server.service","heals":["2026-11-28T04:00:00Z"],` +
			`"gave_up":"2026-11-28T04:01:00Z"}`,
		"var/lib/st2ha/heals/torn.json": `{"targ`,
		"var/lib/st2ha/runs/000001.r1.configure_st2/journal.json": `{"run":"r1","step":"configure_st2","state":"done",` +
			`"started":"2026-11-28T03:00:00Z","entries":[]}`,
		"var/lib/st2ha/runs/000002.r1.mount_nfs/journal.json": `{"run":"r1","st`,
		"var/lib/st2ha/maintenance":                           "",
		"var/lib/st2ha/incidents.json":                        `[{"backend":"redis","endpoint":"x:6379","state":"down"}]`,
	}
}

// look looks at machines, the first one as the primary.
func lookAt(t *testing.T, machines ...*machine) Report {
	t.Helper()
	c := Cluster{Within: 5 * time.Second, Mask: step.NewMasker(backendtest.Password), Now: time.Now(), Program: []byte("program")}
	byName := map[string]*machine{}
	for i, m := range machines {
		if byName[m.Name()] = m; i == 0 {
			c.Primary = m.Name()
		} else {
			c.Secondaries = append(c.Secondaries, m.Name())
		}
	}
	c.Open = func(ctx context.Context, address string) (host.Host, error) {
		if m := byName[address]; m.root != "" {
			return m, nil
		}
		<-ctx.Done()
		return nil, fault.Preflight("unreachable", "try: ssh", "connect to %s: %w", address, ctx.Err())
	}
	return Look(t.Context(), c)
}

// A pair with real servers: what each node looks like, from its files and by its own logins.
func TestLook(t *testing.T) {
	broker, redis := shared.Broker(t), probetest.NewRedis(t)
	a := newMachine(t, "127.0.0.1", files(broker.Addr, redis.Addr, "partition_provider = name:hash, hash_ranges:MIN..2147483648"))
	other := files(broker.Addr, redis.Addr, "partition_provider = name:hash, hash_ranges:2147483648..MAX")
	other["etc/st2/keys/key.json"] = "another"
	other["etc/fstab"] = "192.0.2.1:/opt/x /opt/x nfs noauto 0 0\n127.0.0.1:/opt/y /opt/y nfs hard 0 0\n"
	other["proc/1/mountinfo"] = "36 35 98:0 / / rw - ext3 /dev/root rw\n"
	other["etc/st2/st2.conf"] += "[timersengine]\nenable = False\n"
	other["usr/local/lib/st2ha/st2ha-watch"] = "an older one"
	b := newMachine(t, "127.0.0.2", other)
	b.units = map[string]string{"st2timersengine": "inactive/dead", "st2api": "failed/failed"}
	r := lookAt(t, a, b)

	n := r.Nodes[0]
	require.True(t, n.Reached, n.Error)
	require.Equal(t, Versions{"3.9.0", "3.11.2", "0.1.0"}, n.Versions)
	require.Len(t, n.Services, len(stackstorm.Services()))
	require.Equal(t, "1 of 1 workers", n.Services[0].Detail)
	sum := sha256.Sum256([]byte("program"))
	require.Equal(t, Watchdog{Installed: true, Active: true, Program: hex.EncodeToString(sum[:6]), Current: true}, n.Watchdog)
	require.NotNil(t, n.Clock)
	require.InDelta(t, 0, n.Clock.Ahead, n.Clock.Accuracy+1)
	require.Len(t, n.Runs, 2)
	require.Equal(t, "unusable", n.Runs[0].State, "the newest first")
	require.Equal(t, "done", n.Runs[1].State)
	require.Len(t, n.Heals, 1)
	require.Equal(t, "redis-server.service", n.Heals[0].Target)
	require.NotNil(t, n.Maintenance)
	require.Len(t, n.Incidents, 1)
	require.Empty(t, n.Problems)
	states := map[string]string{}
	for _, s := range n.Backends {
		states[s.Name] = s.State
	}
	require.Equal(t, map[string]string{"mongodb": Down, "rabbitmq": Up, "redis": Up}, states)

	n = r.Nodes[1]
	require.False(t, n.Timers)
	s, _ := n.service("st2timersengine")
	require.True(t, s.Good, "switched off by st2.conf")
	s, _ = n.service("st2api")
	require.False(t, s.Good)
	require.False(t, n.Watchdog.Current)
	require.Equal(t, []Share{{"/opt/y", "127.0.0.1:/opt/y", false}}, n.Shares, "what is mounted by hand is left out")

	require.True(t, r.Sensors.Complete, "%+v", r.Sensors)
	require.Equal(t, []string{"127.0.0.1"}, r.Timers)
	var differ []string
	for _, d := range r.Differences {
		differ = append(differ, d.Setting)
	}
	// Loopback is each node's own, so the database is not the same one.
	require.Equal(t, []string{"[database] host", "[messaging] url", "[coordination] url", "the datastore's key",
		"[sensorcontainer] sensor_node_name"}, differ)

	var out bytes.Buffer
	require.NoError(t, json.NewEncoder(&out).Encode(r))
	require.NoError(t, json.NewEncoder(&out).Encode(r.Findings))
	require.NoError(t, r.Table(&out, false))
	require.NoError(t, r.HTML(&out))
	require.NotContains(t, out.String(), secret)
	require.NotContains(t, out.String(), backendtest.Password)
	require.NotContains(t, out.String(), url.QueryEscape(backendtest.Password))
	require.NotContains(t, out.String(), "null", "a list without elements is one")
}

// A node that is dead costs its time and no more, and its mounts that hang cost no other answer.
func TestDeadAndHanging(t *testing.T) {
	t.Parallel()
	broker, redis := "127.0.0.1:1", "127.0.0.1:1"
	a := newMachine(t, "127.0.0.1", files(broker, redis, ""))
	a.hang = true
	dead := &machine{Local: host.NewLocalAt("127.0.0.3", "")}
	began := time.Now()
	r := lookAt(t, a, dead)
	require.Less(t, time.Since(began), 7*time.Second)
	require.True(t, r.Nodes[0].Reached)
	require.Equal(t, "3.9.0", r.Nodes[0].Versions.StackStorm)
	require.Equal(t, []string{"127.0.0.1: /opt/stackstorm/packs does not answer: does its mount hang?"}, r.Nodes[0].Problems)
	require.False(t, r.Nodes[1].Reached)
	require.Contains(t, r.Nodes[1].Error, "connect to 127.0.0.3")
	require.Equal(t, "try: ssh", r.Nodes[1].Fix)
}

// A node without StackStorm, or with settings that nobody can read, is a node with findings.
func TestOddNodes(t *testing.T) {
	t.Parallel()
	bare := newMachine(t, "127.0.0.1", nil)
	odd := newMachine(t, "127.0.0.2", map[string]string{"etc/st2/st2.conf": "[sensorcontainer]\npartition_provider = x\n" +
		"[coordination]\nurl = etcd3://127.0.0.1\n[messaging]\nurl = nonsense://\n[database]\nport = x\n" +
		"[auth]\nbackend_kwargs = {\n"})
	r := lookAt(t, bare, odd)
	require.True(t, r.Nodes[0].Reached)
	require.Contains(t, strings.Join(r.Nodes[0].Problems, "\n"), "/etc/st2/st2.conf does not exist")
	problems := strings.Join(r.Nodes[1].Problems, "\n")
	require.Contains(t, problems, `/etc/st2/st2.conf:2: [sensorcontainer] partition_provider: "x" is not KEY:VALUE`)
	require.Contains(t, problems, `port must be a number, not "x"`)
	require.Contains(t, problems, "[auth] backend_kwargs is no JSON object")
	require.False(t, r.Sensors.Known)
	for _, f := range r.Findings {
		require.NotContains(t, f.Message, "\n")
	}
}

// A connection that ends while the node is asked is a node that was not reached.
func TestLost(t *testing.T) {
	t.Parallel()
	m := &lost{newMachine(t, "127.0.0.1", nil)}
	r := Look(t.Context(), Cluster{Primary: "127.0.0.1", Within: time.Second, Mask: step.NewMasker(), Now: time.Now(),
		Open: func(context.Context, string) (host.Host, error) { return m, nil }})
	require.False(t, r.Nodes[0].Reached)
	require.Contains(t, r.Nodes[0].Error, "the SSH connection ended")
}

type lost struct{ *machine }

func (l *lost) Run(context.Context, []byte, ...string) ([]byte, error) {
	return nil, errors.Join(host.ErrDisconnected)
}
