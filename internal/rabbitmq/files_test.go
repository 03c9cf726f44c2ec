package rabbitmq

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/secure"
	"st2ha/internal/service"
	"st2ha/internal/testenv"
)

const (
	unitPath = "/lib/systemd/system/rabbitmq-server.service"
	dropIn   = "/etc/systemd/system/rabbitmq-server.service.d/x.conf"
)

// node is a machine that has a unit for its broker.
type node struct {
	*machine
	process string // of the broker
}

func newNode(t *testing.T, files map[string]string) *node {
	n := &node{machine: newMachine(t, nil), process: "0"}
	for name, data := range files {
		require.NoError(t, os.MkdirAll(filepath.Dir(n.root+name), 0o755))
		require.NoError(t, os.WriteFile(n.root+name, []byte(data), 0o644))
	}
	return n
}

func (n *node) Run(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	switch strings.Join(argv, " ") {
	case "systemctl show --property=FragmentPath,DropInPaths " + Unit:
		return []byte("FragmentPath=" + unitPath + "\nDropInPaths=" + dropIn + "\n"), nil
	case "systemctl show --property=MainPID " + Unit:
		return []byte("MainPID=" + n.process + "\n"), nil
	case "systemctl show --property=LoadState " + Unit:
		return []byte("LoadState=loaded\n"), nil
	}
	return n.machine.Run(ctx, stdin, argv...)
}

// tables are the kernel's, whatever the root.
func (n *node) ReadFile(ctx context.Context, name string) (host.File, error) {
	if strings.HasPrefix(name, "/proc/") {
		return host.NewLocal("localhost").ReadFile(ctx, name)
	}
	return n.machine.ReadFile(ctx, name)
}

// debianUnit is that of Debian 12's package 3.10.8-1.1, as are the comments of debianDefaults.
const debianUnit = `[Unit]
Description=RabbitMQ Messaging Server
After=network.target epmd.socket
Wants=network.target epmd.socket

[Service]
Type=notify
User=rabbitmq
Group=rabbitmq
UMask=0027
NotifyAccess=all
TimeoutStartSec=600
LimitNOFILE=65536
SyslogIdentifier=rabbitmq
Restart=on-failure
RestartSec=10
WorkingDirectory=/var/lib/rabbitmq
ExecStart=/usr/lib/rabbitmq/bin/rabbitmq-server
ExecStop=/usr/sbin/rabbitmqctl stop
StandardOutput=append:/var/log/rabbitmq/rabbitmq-server.log
StandardError=append:/var/log/rabbitmq/rabbitmq-server.error.log
OOMScoreAdjust=-500

[Install]
WantedBy=multi-user.target
`

const debianDefaults = `# This file is sourced by /etc/init.d/rabbitmq-server. Its primary
# reason for existing is to allow adjustment of system limits for the
# rabbitmq-server process.
#
# Maximum number of open file handles. This will need to be increased
# to handle many simultaneous connections. Refer to the system
# documentation for ulimit (in man bash) for more information.
#
ulimit -n 1024
`

const (
	loopbackEnv  = "NODE_IP_ADDRESS=127.0.0.1\n"
	opened       = "listeners.tcp.local = 127.0.0.1:5672\nlisteners.tcp.st2ha = 192.168.0.100:5672\n"
	classicTerms = "%% mine\n[{rabbit,\n  [{tcp_listeners,[{\"127.0.0.1\",5672}]}]}].\n"
)

// broker is a case of what a broker reads.
type brokerFiles struct {
	name  string
	files map[string]string
	want  map[string]string // what the edits make of files
	err   string
	bound string // what a broker that is started with the result listens on; empty: not tried
}

func brokerCases() []brokerFiles {
	return []brokerFiles{
		{name: "Debian's own", files: map[string]string{envPath: loopbackEnv, unitPath: debianUnit,
			"/etc/default/rabbitmq-server": debianDefaults},
			want:  map[string]string{envPath: "#" + loopbackEnv, confPath: opened},
			bound: "127.0.0.1:5672 192.168.0.100:5672"},
		{name: "a drop-in with limits and arguments",
			files: map[string]string{envPath: loopbackEnv, unitPath: debianUnit,
				"/etc/default/rabbitmq-server": debianDefaults,
				dropIn: "[Service]\nLimitNOFILE=1000\nEnvironmentFile=-/etc/default/rabbitmq-server\nEnvironmentFile=-/etc/none\n" +
					"Environment=\"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 1:1 +sbwt none\" LANG=C.UTF-8\n"},
			want: map[string]string{envPath: "#" + loopbackEnv, confPath: opened}},
		{name: "the unit's address",
			files: map[string]string{unitPath: debianUnit,
				dropIn: "[Service]\nEnvironment=RABBITMQ_NODE_IP_ADDRESS=127.0.0.1\n"},
			want: map[string]string{confPath: opened}, bound: "127.0.0.1:5672 192.168.0.100:5672"},
		{name: "the unit's address, taken back",
			files: map[string]string{dropIn: "[Service]\nEnvironment=RABBITMQ_NODE_IP_ADDRESS=127.0.0.1\nEnvironment=\n"}},
		{name: "the unit's other address",
			files: map[string]string{dropIn: "[Service]\nEnvironment=RABBITMQ_NODE_IP_ADDRESS=10.0.0.1\n"},
			err:   dropIn + ":2: RABBITMQ_NODE_IP_ADDRESS makes RabbitMQ listen on 10.0.0.1"},
		{name: "the unit's port",
			files: map[string]string{dropIn: "[Service]\nEnvironmentFile=/etc/default/x\n",
				"/etc/default/x": "\nRABBITMQ_NODE_PORT='5673'\n"},
			err: "/etc/default/x:2: RABBITMQ_NODE_PORT makes RabbitMQ listen on port 5673, not 5672"},
		{name: "the unit's specifier",
			files: map[string]string{dropIn: "[Service]\nEnvironment=RABBITMQ_CONFIG_FILE=/etc/rabbitmq/%H\n"},
			err:   dropIn + ":2: RABBITMQ_CONFIG_FILE has a value that is for systemd to say"},
		{name: "the unit's command",
			files: map[string]string{dropIn: "[Service]\nExecStart=\n" +
				"ExecStart=/usr/bin/env RABBITMQ_NODE_PORT=5673 /usr/lib/rabbitmq/bin/rabbitmq-server\n"},
			err: dropIn + ":3: RABBITMQ_NODE_PORT is set by ExecStart"},
		{name: "the unit's arguments",
			files: map[string]string{envPath: loopbackEnv,
				dropIn: "[Service]\nEnvironment='RABBITMQ_SERVER_START_ARGS=-rabbit tcp_listeners [5672]'\n"},
			err: dropIn + ":2: RABBITMQ_SERVER_START_ARGS has arguments that may change where RabbitMQ listens"},
		{name: "arguments in rabbitmq-env.conf",
			files: map[string]string{envPath: loopbackEnv + "SERVER_ADDITIONAL_ERL_ARGS=\"-config /x\"\n"},
			err:   envPath + ":2: SERVER_ADDITIONAL_ERL_ARGS has arguments"},
		{name: "another rabbitmq-env.conf",
			files: map[string]string{dropIn: "[Service]\nEnvironment=RABBITMQ_CONF_ENV_FILE=/etc/rabbitmq/my-env\n",
				"/etc/rabbitmq/my-env": loopbackEnv, envPath: "NODE_IP_ADDRESS=0.0.0.0\n"},
			want: map[string]string{"/etc/rabbitmq/my-env": "#" + loopbackEnv, confPath: opened}},
		{name: "rabbitmq-env-elsewhere.conf",
			files: map[string]string{envPath: loopbackEnv + "CONFIG_FILE=/data/rabbitmq/rabbitmq\n"},
			err:   "RabbitMQ reads /data/rabbitmq/rabbitmq.conf, and there is no directory /data/rabbitmq"},
		{name: "rabbitmq-env-elsewhere.conf, where it is",
			files: map[string]string{envPath: loopbackEnv + "CONFIG_FILE=/etc/rabbitmq/data/rabbitmq\n",
				"/etc/rabbitmq/data/rabbitmq.conf": "heartbeat = 60\n", confPath: "listeners.tcp.x = 5672\n"},
			want: map[string]string{envPath: "#" + loopbackEnv + "CONFIG_FILE=/etc/rabbitmq/data/rabbitmq\n",
				"/etc/rabbitmq/data/rabbitmq.conf": "heartbeat = 60\n" + opened},
			bound: "127.0.0.1:5672 192.168.0.100:5672"},
		{name: "elsewhere, with its ending",
			files: map[string]string{envPath: loopbackEnv + "RABBITMQ_CONFIG_FILE=/data/x.conf\n",
				"/data/x.conf": "heartbeat = 60\n"},
			want: map[string]string{envPath: "#" + loopbackEnv + "RABBITMQ_CONFIG_FILE=/data/x.conf\n",
				"/data/x.conf": "heartbeat = 60\n" + opened}},
		{name: "elsewhere, without an ending",
			files: map[string]string{envPath: loopbackEnv + "CONFIG_FILE=/data/x\n", "/data/x": "heartbeat = 60\n"},
			err:   "/data/x is RabbitMQ's configuration, and its name does not say in which format"},
		{name: "elsewhere, relative", files: map[string]string{envPath: loopbackEnv + "CONFIG_FILE=rabbitmq\n"},
			err: envPath + ":2: CONFIG_FILE: rabbitmq is relative"},
		{name: "elsewhere, by the shell",
			files: map[string]string{envPath: loopbackEnv + "CONFIG_FILE=/etc/$(hostname)\n"},
			err:   envPath + ": line 2: CONFIG_FILE: only a shell can say its value"},

		{name: "rabbitmq-loopback.config", files: map[string]string{classicPath: classicTerms},
			err: classicPath + ":3: tcp_listeners makes RabbitMQ listen on 127.0.0.1:5672 only, in Erlang terms"},
		{name: "both formats: the old one counts",
			files: map[string]string{classicPath: classicTerms, confPath: "listeners.tcp.x = 192.168.0.100:5672\n"},
			err:   classicPath + ":3: tcp_listeners makes RabbitMQ listen on 127.0.0.1:5672", bound: "127.0.0.1:5672"},
		{name: "both formats, the old one says nothing",
			files: map[string]string{envPath: loopbackEnv, classicPath: "[].\n", confPath: opened},
			err:   classicPath + " is in Erlang terms", bound: "127.0.0.1:5672"},
		{name: "the old format, open",
			files: map[string]string{envPath: loopbackEnv,
				classicPath: "[{rabbit,[{tcp_listeners,[{\"192.168.0.100\",5672}]}]}]."}, bound: "192.168.0.100:5672"},
		{name: "the old format, open by a number",
			files: map[string]string{classicPath: "[{rabbit,[{tcp_listeners,[5672]}]}]."}},
		{name: "the old format, in another way",
			files: map[string]string{classicPath: "[{rabbit,[{tcp_listeners,[{{127,0,0,1},5672}]}]}]."},
			err:   classicPath + ":1: tcp_listeners has an entry that is not a listener"},
		{name: "the old format, broken", files: map[string]string{classicPath: "[{rabbit,\n[}]."},
			err: classicPath + ": line 2: not an Erlang term"},
		{name: "the old format, and another's listeners",
			files: map[string]string{classicPath: "[{rabbitmq_mqtt,[{tcp_listeners,[1883]}]}]."}},
		{name: "advanced.config",
			files: map[string]string{advancedPath: classicTerms, confPath: "listeners.tcp.x = 5672\n"},
			err:   advancedPath + ":3: tcp_listeners makes RabbitMQ listen on 127.0.0.1:5672", bound: "127.0.0.1:5672"},
		{name: "advanced.config, of other things",
			files: map[string]string{advancedPath: "[{rabbit,[{heartbeat,60}]}].",
				confPath: "listeners.tcp.x = 127.0.0.1:5672\n"},
			want: map[string]string{confPath: "listeners.tcp.x = 127.0.0.1:5672\n" +
				"listeners.tcp.st2ha = 192.168.0.100:5672\n"}, bound: "127.0.0.1:5672 192.168.0.100:5672"},
		{name: "advanced.config, elsewhere",
			files: map[string]string{envPath: "ADVANCED_CONFIG_FILE=/data/a.config\n", "/data/a.config": classicTerms},
			err:   "/data/a.config:3: tcp_listeners makes"},
		{name: "conf.d", files: map[string]string{"/etc/rabbitmq/conf.d/10.conf": "listeners.tcp.x = 127.0.0.1:5672\n",
			"/etc/rabbitmq/conf.d/10.conf~": "x",
			"/etc/rabbitmq/conf.d/.20.conf": "listeners.tcp.y = 127.0.0.1:5673\n"},
			want:  map[string]string{confPath: "listeners.tcp.st2ha = 192.168.0.100:5672\n"},
			bound: "127.0.0.1:5672 127.0.0.1:5673 192.168.0.100:5672"},
		{name: "conf.d counts more",
			files: map[string]string{confPath: "listeners.tcp.x = 192.168.0.100:5672\n",
				"/etc/rabbitmq/conf.d/10.conf": "listeners.tcp.x = 127.0.0.1:5672\n"},
			want: map[string]string{confPath: "listeners.tcp.x = 192.168.0.100:5672\n" +
				"listeners.tcp.st2ha = 192.168.0.100:5672\n"},
			bound: "127.0.0.1:5672 192.168.0.100:5672"},
		{name: "conf.d replaces the edit",
			files: map[string]string{"/etc/rabbitmq/conf.d/10.conf": "listeners.tcp.st2ha = 127.0.0.1:5672\n"},
			err:   "/etc/rabbitmq/conf.d/10.conf:1: listeners.tcp.st2ha replaces what " + confPath + " says"},
		{name: "conf.d, broken", files: map[string]string{"/etc/rabbitmq/conf.d/10.conf": "\nx\n"},
			err: "/etc/rabbitmq/conf.d/10.conf: line 2"},
		{name: "conf.d switches it off",
			files: map[string]string{"/etc/rabbitmq/conf.d/10.conf": "listeners.tcp = none\n"},
			err:   "/etc/rabbitmq/conf.d/10.conf:1: listeners.tcp = none"},
		{name: "conf.d elsewhere",
			files: map[string]string{envPath: "CONFIG_FILES=/data/more\n",
				"/data/more/a": "listeners.tcp.x = 127.0.0.1:5672\n"},
			want: map[string]string{confPath: "listeners.tcp.st2ha = 192.168.0.100:5672\n"}},
		{name: "conf.d by another pattern", files: map[string]string{envPath: "CONFIG_FILES=/data/*/a\n"},
			err: "RABBITMQ_CONFIG_FILES is /data/*/a, a pattern that st2ha does not read"},

		{name: "rabbitmq-port.conf", files: map[string]string{confPath: "listeners.tcp.default = 5673\n"},
			err: confPath + ":1: listeners.tcp.default makes RabbitMQ listen on port 5673, not 5672"},
		{name: "loopback's port", files: map[string]string{confPath: "listeners.tcp.x = 127.0.0.1:5673\n"},
			err: confPath + ":1: listeners.tcp.x makes RabbitMQ listen on port 5673, not 5672"},
		{name: "files count more than the environment",
			files: map[string]string{envPath: "NODE_PORT=5673\nNODE_IP_ADDRESS=10.0.0.1\n",
				confPath: "listeners.tcp.x = 127.0.0.1:5672\n"},
			want: map[string]string{confPath: "listeners.tcp.x = 127.0.0.1:5672\n" +
				"listeners.tcp.st2ha = 192.168.0.100:5672\n"},
			bound: "127.0.0.1:5672 192.168.0.100:5672"},
		{name: "TLS at the port",
			files: map[string]string{confPath: "listeners.ssl.x = 127.0.0.1:5672\nlisteners.tcp.x = 127.0.0.1:5673\n"},
			err:   confPath + ":1: listeners.ssl.x makes RabbitMQ listen for TLS on 127.0.0.1:5672"},
		{name: "no port", files: map[string]string{confPath: "listeners.tcp.x = localhost\n"},
			err: confPath + ":1: listeners.tcp.x is localhost, which has no port"},
	}
}

func TestFiles(t *testing.T) {
	testenv.NeedsRoot(t)
	for _, tc := range brokerCases() {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, tc.files)
			changes, err := configure().listener(t.Context(), n)
			if tc.err != "" {
				require.ErrorContains(t, err, "primary: ")
				require.ErrorContains(t, err, tc.err)
				require.Equal(t, fault.ExitPreflight, fault.Of(err).Exit)
			} else {
				require.NoError(t, err)
				got := map[string]string{}
				for _, c := range changes {
					require.NoError(t, c.Apply(t.Context(), n))
					data, err := os.ReadFile(n.root + c.Target())
					require.NoError(t, err)
					got[c.Target()] = string(data)
				}
				if tc.want == nil {
					tc.want = map[string]string{}
				}
				require.Equal(t, tc.want, got)
			}
			if tc.bound == "" {
				return
			}
			want := strings.Fields(tc.bound)
			f, err := readFiles(t.Context(), n)
			require.NoError(t, err)
			plain, _, _, err := f.listeners(t.Context())
			require.NoError(t, err)
			var read []string
			for _, l := range plain {
				read = append(read, l.String())
			}
			slices.Sort(read)
			require.Equal(t, want, read, "as the files are read")
			if testing.Short() {
				return
			}
			n.start(t, f.unit)
			for end := time.Now().Add(10 * time.Second); !slices.Equal(want, n.listening(t)) &&
				time.Now().Before(end); {
				time.Sleep(50 * time.Millisecond) // it opens one listener after the other
			}
			require.Equal(t, want, n.listening(t), "as the broker reads them")
			s := configure()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if tc.err == "" {
				require.NoError(t, s.bound(ctx, n))
			} else {
				require.ErrorContains(t, s.bound(ctx, n), "it listens on 127.0.0.1, port 5672, not on 192.168.0.100")
			}
		})
	}
}

// start starts a broker that reads the node's files, in a network of its own
// that has the primary's address.
func (n *node) start(t *testing.T, unit map[string]setting) {
	t.Helper()
	dir := filepath.Join(n.root, "broker")
	require.NoError(t, os.Mkdir(dir, 0o755))
	script := `ip link set lo up && ip addr add "$1/32" dev lo && mount --bind "$2" /etc/rabbitmq && shift 2 && exec env -i "$@"`
	argv := []string{"--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh",
		address, n.root + "/etc/rabbitmq",
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "RABBITMQ_NODENAME=st2ha@localhost", "RABBITMQ_MNESIA_BASE=" + dir,
		"RABBITMQ_LOG_BASE=" + dir,
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + dir + "/plugins", "RUNNING_UNDER_SYSTEMD=true"}
	for key, s := range unit {
		argv = append(argv, key+"="+s.value)
	}
	cmd := exec.Command("unshare", append(argv, "/usr/lib/rabbitmq/bin/rabbitmq-server")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := os.Create(dir + "/out")
	require.NoError(t, err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	require.NoError(t, cmd.Start())
	n.process = strconv.Itoa(cmd.Process.Pid)
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // and with it all that it has begun
		_ = cmd.Wait()
	})
	require.Eventually(t, func() bool { return len(n.listening(t)) > 0 }, 90*time.Second, 200*time.Millisecond)
}

// listening is where the broker takes AMQP: not the Erlang distribution's ports.
func (n *node) listening(t *testing.T) []string {
	t.Helper()
	all, err := service.Sockets(t.Context(), n, n.process)
	require.NoError(t, err)
	found := map[string]bool{}
	for _, s := range all {
		if s.State == service.Listening && strings.HasPrefix(s.Port, "567") {
			found[net.JoinHostPort(s.IP, s.Port)] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// A broker that is open to all after an edit is said to be.
func TestBound(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	require.NoError(t, err)
	defer l.Close()
	n := newNode(t, nil)
	s := configure()
	s.Port, s.Within = l.Addr().(*net.TCPAddr).Port, time.Minute
	n.process = strconv.Itoa(os.Getpid())
	err = s.bound(t.Context(), n)
	requireFault(t, err, fault.ExitFailed, "rabbitmq_listener")
	require.ErrorContains(t, err, fmt.Sprintf("it listens on every interface, port %d", s.Port))

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	n.process = "0"
	require.EqualError(t, s.bound(ctx, n),
		"primary: RabbitMQ does not listen as its files say: rabbitmq-server.service has no process")
}

func TestPort(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		want  int
		err   string
	}{
		"nothing":            {nil, 5672, ""},
		"rabbitmq-port.conf": {map[string]string{confPath: "listeners.tcp.default = 5673\n"}, 5673, ""},
		"environment":        {map[string]string{envPath: "NODE_PORT=5673\n"}, 5673, ""},
		"loopback's":         {map[string]string{confPath: "listeners.tcp.x = 127.0.0.1:5673\n"}, 5673, ""},
		"the address's": {map[string]string{
			confPath: "listeners.tcp.x = 127.0.0.1:5672\nlisteners.tcp.y = 192.168.0.100:5673\n"}, 5673, ""},
		"several, and the usual": {map[string]string{confPath: "listeners.tcp.x = 5673\nlisteners.tcp.y = 5672\n"},
			5672, ""},
		"several": {map[string]string{confPath: "listeners.tcp.x = 5673\nlisteners.tcp.y = 5674\n"}, 0,
			confPath + ":1: listeners.tcp.x"},
		"TLS": {map[string]string{confPath: "listeners.tcp = none\nlisteners.ssl.default = 5671\n"},
			5671, ""},
		"Erlang terms":         {map[string]string{classicPath: "[{rabbit,[{tcp_listeners,[5673]}]}]."}, 5673, ""},
		"what is not followed": {map[string]string{envPath: "if true; then NODE_PORT=5673; fi\n"}, 5672, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Port(t.Context(), newNode(t, tc.files), address)
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				requireFault(t, err, fault.ExitPreflight, "rabbitmq_listener")
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

// Where no port is given, a plan takes the broker's.
func TestPlanPort(t *testing.T) {
	s := configure()
	s.Port = 0
	s.TLS = func(_ context.Context, _ host.Host, port int) (*secure.TLS, error) {
		require.Equal(t, 5673, port)
		return nil, nil
	}
	n := newNode(t, map[string]string{confPath: "listeners.tcp.x = 127.0.0.1:5673\n"})
	s.Address = "127.0.0.9" // nobody listens there
	n.out = `{"users":[],"vhosts":[{"name":"/"}],"permissions":[]}`
	changes, err := s.Plan(t.Context(), n)
	require.NoError(t, err)
	require.Len(t, changes, 4)
	require.Contains(t, changes[2].Diff(), "+listeners.tcp.st2ha = 127.0.0.9:5673")
}

// A wait that ends says what it waited for, and what it saw last.
func TestVerifyGivesUp(t *testing.T) {
	s := configure()
	s.Address, s.Port, s.Within = "127.0.0.9", 1, 100*time.Millisecond
	err := s.Verify(t.Context(), newMachine(t, nil))
	requireFault(t, err, fault.ExitFailed, "rabbitmq_login")
	require.ErrorContains(t, err, "log in to RabbitMQ at 127.0.0.9:1 as st2 from primary: ")
	require.ErrorContains(t, err, "connection refused")
}
