package heal_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/fault"
	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// redis is a host with a real Redis whose unit's restart is one of the process.
type redis struct {
	systemd
	t      *testing.T
	server *backendtest.Server
}

func (r *redis) Run(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	if argv[1] == "restart" && !r.failed {
		r.server.Kill()
		require.NoError(r.t, r.server.Start())
	}
	return r.systemd.Run(ctx, stdin, argv...)
}

func (r *redis) restarts() int {
	return strings.Count(strings.Join(r.ran, "\n"), "restart redis-server.service")
}

func TestRestartBackend(t *testing.T) {
	server, err := backendtest.NewRedis(t, t.TempDir(), "requirepass s3cret") // NOAUTH is an answer
	require.NoError(t, err)
	t.Cleanup(func() { server.Kill() })
	local, root := node(t)
	_, port, err := net.SplitHostPort(server.Addr)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(root+"/etc/redis", 0o755))
	require.NoError(t, os.WriteFile(root+"/etc/redis/redis.conf", []byte("bind 127.0.0.1 -::1\nport "+port+"\n"), 0o644))
	h := &redis{systemd: systemd{Local: local, units: "redis-server.service"}, t: t, server: server}
	s := &heal.RestartBackend{Backend: "redis", Endpoint: server.Addr, Within: 20 * time.Second}
	run := func() []step.Change {
		t.Helper()
		findings, err := s.Check(t.Context(), h)
		require.NoError(t, err)
		require.Empty(t, findings)
		changes, err := s.Plan(t.Context(), h)
		require.NoError(t, err)
		for _, c := range changes {
			require.NoError(t, c.Apply(t.Context(), h))
		}
		require.NoError(t, s.Verify(t.Context(), h))
		return changes
	}
	require.Empty(t, run())
	server.Kill()
	changes := run()
	require.Len(t, changes, 1)
	require.Equal(t, "redis-server.service", changes[0].Target())
	require.Regexp(t, "^redis at "+server.Addr+": .*connection refused: systemctl restart redis-server.service$",
		changes[0].Diff())
	require.Equal(t, 1, h.restarts())

	// One that is frozen takes connections all the same.
	server.Freeze()
	conn, err := net.Dial("tcp", server.Addr)
	require.NoError(t, err)
	conn.Close()
	require.Len(t, run(), 1)
	require.Equal(t, 2, h.restarts())

	// A slow moment is none: the second look finds it up.
	server.Freeze()
	time.AfterFunc(3500*time.Millisecond, server.Thaw)
	require.Empty(t, run())
	require.Equal(t, 2, h.restarts())

	s.Within = 300 * time.Millisecond
	server.Kill()
	require.Equal(t, "silent", fault.Of(s.Verify(t.Context(), h)).Code)
	s.Backend = "mongodb"
	_, err = s.Check(t.Context(), h)
	require.Equal(t, "no_unit", fault.Of(err).Code)
}

// noWay is a host from which no connection can be tried.
type noWay struct {
	*systemd
	err error
}

func (n *noWay) DialContext(context.Context, string, string) (net.Conn, error) { return nil, n.err }

// A healthy backend that cannot be asked is not restarted: an sshd that forbids
// forwarding was enough for it.
func TestWhatSaysNothingRestartsNothing(t *testing.T) {
	local, _ := node(t)
	for name, err := range map[string]error{
		"no forwarding":  fault.Failed("forwarding", "set AllowTcpForwarding yes", "dial from b: sshd forbids forwarding"),
		"SSH ended":      fmt.Errorf("dial: %w: no answer for 30s", host.ErrDisconnected),
		"sshd's trouble": fmt.Errorf("dial: %w: open failed", host.ErrNotTried),
		"no descriptors": &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)},
		"no such name":   &net.OpError{Op: "dial", Err: &net.DNSError{Name: "b", Err: "no such host"}},
	} {
		for _, backend := range []string{"mongodb", "rabbitmq", "redis", "nfs"} {
			h := &noWay{&systemd{Local: local,
				units: "mongod.service rabbitmq-server.service redis-server.service nfs-server.service"}, err}
			changes, planErr := (&heal.RestartBackend{Backend: backend}).Plan(t.Context(), h)
			require.Empty(t, changes, "%s: %s", backend, name)
			require.Equal(t, "unknown", fault.Of(planErr).Code, "%s: %s: %v", backend, name, planErr)
			require.Contains(t, planErr.Error(), "so it is not restarted")
		}
		refusing := &noWay{&systemd{Local: local, units: "redis-server.service"},
			&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}}
		changes, err := (&heal.RestartBackend{Backend: "redis"}).Plan(t.Context(), refusing)
		require.NoError(t, err)
		require.Len(t, changes, 1, "one that refuses is")
	}
}

// Events may be forged: what is restarted is only what the host's own configuration has.
func TestOwnEndpoint(t *testing.T) {
	st2 := func(section, line string) map[string]string {
		return map[string]string{"/etc/st2/st2.conf": "[" + section + "]\n" + line + "\n"}
	}
	for name, tc := range map[string]struct {
		backend, endpoint string
		files             map[string]string
		says              string // empty: it is its own
	}{
		"its usual port":  {backend: "nfs", endpoint: "192.0.2.1:2049"},
		"on loopback":     {backend: "redis", endpoint: "127.0.0.1:6379"},
		"by its own name": {backend: "redis", endpoint: "node1:6379"},
		"another port":    {backend: "redis", endpoint: "192.0.2.1:9", says: "has port 9"},
		"another host": {backend: "redis", endpoint: "192.0.2.2:6379",
			says: "192.0.2.2 is not one of its addresses"},
		"another host by name": {backend: "redis", endpoint: "other.invalid:6379",
			says: "other.invalid is not one of its addresses"},
		"IPv6":               {backend: "redis", endpoint: "[2001:db8::1]:6379"},
		"another one's IPv6": {backend: "redis", endpoint: "[2001:db8::2]:6379", says: "not one of its addresses"},
		"named by st2.conf": {backend: "mongodb", endpoint: "192.0.2.1:27018",
			files: st2("database", "host = mongodb://u:p@192.0.2.1:27018/st2")},
		"named by st2.conf, elsewhere": {backend: "mongodb", endpoint: "192.0.2.1:27018",
			files: st2("database", "host = mongodb://u:p@192.0.2.2:27018/st2"), says: "has port 27018"},
		"a broker of st2.conf": {backend: "rabbitmq", endpoint: "127.0.0.1:5673",
			files: st2("messaging", "url = amqp://u:p@127.0.0.1:5673/")},
		"a coordinator of st2.conf": {backend: "redis", endpoint: "192.0.2.1:6380",
			files: st2("coordination", "url = redis://:p@192.0.2.1:6380")},
		"mongod.conf": {backend: "mongodb", endpoint: "192.0.2.1:27018",
			files: map[string]string{"/etc/mongod.conf": "net:\n  port: 27018\n  bindIp: 127.0.0.1,192.0.2.1\n"}},
		"mongod on loopback only": {backend: "mongodb", endpoint: "192.0.2.1:27017",
			files: map[string]string{"/etc/mongod.conf": "net:\n  bindIp: 127.0.0.1\n"}, says: "listen on other addresses"},
		"mongod's other port": {backend: "mongodb", endpoint: "192.0.2.1:27017",
			files: map[string]string{"/etc/mongodb.conf": "port = 27018\n"}, says: "has port 27017"},
		"rabbitmq.conf": {backend: "rabbitmq", endpoint: "192.0.2.1:5673",
			files: map[string]string{"/etc/rabbitmq/rabbitmq.conf": "listeners.tcp.a = 0.0.0.0:5673\n"}},
		"rabbitmq-env.conf": {backend: "rabbitmq", endpoint: "192.0.2.1:5673",
			files: map[string]string{"/etc/rabbitmq/rabbitmq-env.conf": "NODE_PORT=5673\n"}},
		"redis.conf": {backend: "redis", endpoint: "192.0.2.1:6380",
			files: map[string]string{"/etc/redis/redis.conf": "tls-port 6380\nport 0\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			files := map[string]string{"/proc/sys/kernel/hostname": "node1\n",
				"/proc/net/if_inet6": "20010db8000000000000000000000001 02 40 00 80     eth0\n",
				"/proc/net/fib_trie": "Local:\n  +-- 192.0.2.0/24 2 0 2\n     |-- 192.0.2.1\n        /32 host LOCAL\n     |-- " +
					"192.0.2.255\n        /32 link BROADCAST\n"}
			for path, text := range tc.files {
				files[path] = text
			}
			for path, text := range files {
				require.NoError(t, os.MkdirAll(filepath.Dir(root+path), 0o755))
				require.NoError(t, os.WriteFile(root+path, []byte(text), 0o644))
			}
			h := &systemd{Local: host.NewLocalAt("node1", root),
				units: "mongod.service rabbitmq-server.service redis-server.service nfs-server.service"}
			_, err := (&heal.RestartBackend{Backend: tc.backend, Endpoint: tc.endpoint}).Check(t.Context(), h)
			if tc.says == "" {
				require.NoError(t, err)
				return
			}
			require.Equal(t, "foreign_endpoint", fault.Of(err).Code)
			require.ErrorContains(t, err, "does not belong to this host: ")
			require.ErrorContains(t, err, tc.says)
		})
	}
}
