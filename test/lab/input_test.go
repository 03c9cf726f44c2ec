package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestBadInput: what a join cannot work with ends in one clear line, with the
// exit code that says so, and nothing is changed.
func TestBadInput(t *testing.T) {
	needs(t)
	untouched := installed(t, "primary", "secondary")
	preflight := []string{"preflight", "--primary=" + primary, "--secondaries=" + secondary}
	const knownHosts = "/root/known_hosts"
	knows := func(address string) string { return "echo '" + address + " " + hostKey(t) + "' > $f" }

	for _, c := range []struct {
		name         string
		node         string   // where something is not as it should be
		file, change string   // a file there, and the command that spoils it
		user         string   // who runs it; root on the primary if empty
		secret       string   // in place of the good one
		args         []string // preflight if empty
		exit         int
		code         string
		says         string // a part of the message
	}{
		{name: "no address", args: []string{"configure_mongodb", "--host=192.168.0.300"}, exit: 2, code: "usage",
			says: `host "192.168.0.300" is neither an IP address nor a host name`},
		{name: "no role", args: []string{"verify_node", "--host=" + primary, "--role=arbiter"}, exit: 2, code: "usage",
			says: `role must be primary or secondary, not "arbiter"`},
		{name: "a secret of two lines", secret: "one\ntwo", exit: 2, code: "usage",
			says: "rabbitmq_password holds a control character such as a newline"},
		{name: "not root", user: "stanley@primary", args: []string{"configure_mongodb", "--host=" + primary}, exit: 3,
			code: "not_root", says: primary + " is this machine, and only root can change it"},
		{name: "a secondary that is not there",
			args: []string{"preflight", "--primary=" + primary, "--secondaries=192.168.0.77"}, exit: 3,
			code: "unreachable", says: "connect to 192.168.0.77 port 22 by SSH"},
		{name: "an address that is not the node's",
			args: []string{"preflight", "--primary=" + primary, "--secondaries=127.0.0.1"}, exit: 3, code: "address",
			says: "127.0.0.1 is not one of the node's addresses ("},
		{name: "a wrong host key", node: "primary", file: knownHosts, change: knows(secondary),
			args: append(slices.Clone(preflight), "--known_hosts="+knownHosts), exit: 3, code: "host_key_changed",
			says: "another machine may answer in its place"},
		{name: "an unknown host key", node: "primary", file: knownHosts, change: knows(secondary2),
			args: append(slices.Clone(preflight), "--known_hosts="+knownHosts), exit: 3, code: "host_key_unknown",
			says: "which is not in " + knownHosts},
		{name: "no sudo", node: "secondary", file: "/etc/sudoers.d/st2", change: "rm $f", exit: 3, code: "sudo"},
		{name: "another gid", node: "secondary", file: "/etc/group", change: "sed -i s/:1499:/:1777:/ $f", exit: 3,
			code: "ids", says: "group st2packs has gid 1777 here and 1499 on the primary"},
		{name: "st2.conf is missing", node: "secondary", file: "/etc/st2/st2.conf", change: "rm $f", exit: 3,
			code: "missing", says: "/etc/st2/st2.conf"},
		{name: "mongod.conf is missing", node: "primary", file: "/etc/mongod.conf", change: "rm $f", exit: 3,
			code: "missing", says: "neither /etc/mongod.conf nor /etc/mongodb.conf exists"},
		{name: "mongod.conf does not parse", node: "primary", file: "/etc/mongod.conf",
			change: `sed -i 's/^  port: /  port\t/' $f`, exit: 3, code: "unparsable",
			says: "/etc/mongod.conf: line 21: "},
		{name: "MongoDB asks for no login", node: "primary", file: "/etc/mongod.conf",
			change: "sed -i 's/authorization: enabled/authorization: disabled/' $f", exit: 3,
			code: "mongodb_authorization",
			says: "everybody who reaches " + primary + " could read and change StackStorm's data"},
		{name: "fstab mounts something else there", node: "secondary", file: "/etc/fstab",
			change: "echo '/dev/sdz /opt/stackstorm/packs ext4 noauto 0 0' >> $f", exit: 3, code: "unparsable",
			says: "/etc/fstab: line 2: "},
		{name: "exported otherwise already", node: "primary", file: "/etc/exports",
			change: "printf '/opt/stackstorm/packs " + secondary + "(ro,sync)\n' > $f", exit: 3, code: "unparsable",
			says: "/etc/exports: line 1: "},
		{name: "RabbitMQ on another port", args: append(slices.Clone(preflight), "--rabbitmq_port=5672"),
			node: "primary", file: "/etc/rabbitmq/rabbitmq-env.conf", change: "echo NODE_PORT=5673 >> $f", exit: 3,
			code: "rabbitmq_listener", says: "NODE_PORT makes RabbitMQ listen on port 5673, not 5672"},
		{name: "RabbitMQ with TLS only", node: "primary", file: "/etc/rabbitmq/rabbitmq.conf",
			change: "echo 'listeners.tcp = none' > $f", exit: 3, code: "rabbitmq_listener",
			says: "/etc/rabbitmq/rabbitmq.conf:1: listeners.tcp = none"},
		{name: "a pattern the broker does not take",
			args: append(slices.Clone(preflight), `--permission_write=^st2\.(`), exit: 3, code: "rabbitmq_permission",
			says: `permission_write "^st2\\.(" is not a regular expression for RabbitMQ, from its character 7 on`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.file != "" {
				keep(t, c.node, c.file)
				on(t, c.node, "f="+c.file+"; "+c.change)
			}
			if c.node == "" {
				c.node = "primary"
			}
			if c.user == "" {
				c.user = "primary"
			}
			if c.secret == "" {
				c.secret = password
			}
			if c.args == nil {
				c.args = preflight
			}
			before := tree(t, c.node)
			r := st2haWith(t, c.user, c.secret, c.args...)
			require.Empty(t, difference(before, tree(t, c.node)))
			require.Equal(t, c.exit, r.exit, r.raw)
			require.Equal(t, c.code, r.Error.Code, r.raw)
			require.Contains(t, r.Error.Message, c.says)
			require.NotContains(t, r.Error.Message, "\n")
			if c.exit == 3 {
				require.NotEmpty(t, r.Error.Hint, r.raw)
			}
		})
	}

	t.Run("the pack is not on the primary, where the mount would be from", func(t *testing.T) {
		lab(t, "./deploy.sh", "./lab.sh", "ssh", "secondary")
		on(t, "primary", "mv /opt/stackstorm/packs/st2ha /root/st2ha")
		cp := "install -m 600 /home/stanley/.ssh/stanley_rsa /root/kept; cat > /home/stanley/.ssh/stanley_rsa"
		require.NoError(t, command([]byte(on(t, "primary", "cat /home/stanley/.ssh/stanley_rsa")), "./lab.sh",
			"ssh", "secondary", cp).Run())
		r := st2ha(t, "secondary", preflight...)
		on(t, "secondary", "rm -r /opt/stackstorm/packs/st2ha; cat /root/kept > /home/stanley/.ssh/stanley_rsa; rm "+
			"/root/kept")
		on(t, "primary", "mv /root/st2ha /opt/stackstorm/packs/st2ha")
		require.Equal(t, 3, r.exit, r.raw)
		require.Equal(t, "pack", r.Error.Code, r.raw)
	})

	t.Run("a workflow says what to do", func(t *testing.T) {
		o := action(t, "join_secondary", map[string]any{"secondaries": []string{"192.168.0.77"}})
		require.Equal(t, "failed", o.Status, o.raw)
		require.Equal(t, "unreachable", o.Output.Failure.Code)
		require.NotEmpty(t, o.Output.Failure.Hint, o.raw)
	})
	untouched(t)
}

// TestAnotherClock: nodes whose clocks differ are not joined.
func TestAnotherClock(t *testing.T) {
	needs(t, ownClock)
	untouched := installed(t, "primary", "secondary")
	on(t, "secondary", "date -s '+1 hour'")
	t.Cleanup(func() { on(t, "secondary", "date -s '-1 hour'") })
	r := st2ha(t, "primary", "preflight", "--primary="+primary, "--secondaries="+secondary)
	require.Equal(t, 3, r.exit, r.raw)
	require.Equal(t, "clock", r.Error.Code, r.raw)
	require.Contains(t, r.Error.Message, "the clock differs from the primary's by")
	require.NotEmpty(t, r.Error.Hint, r.raw)
	untouched(t)
}

// hostKey is the third node's, as known_hosts has it after the name.
func hostKey(t *testing.T) string {
	t.Helper()
	_, key, _ := strings.Cut(on(t, "primary", "grep ^secondary2, /home/stanley/.ssh/known_hosts"), " ")
	return strings.TrimSpace(key)
}

// TestUnauthenticated: a MongoDB that asks for no login is exposed if that is
// accepted, and then on the address alone if that is wanted.
func TestUnauthenticated(t *testing.T) {
	needs(t)
	untouched := installed(t, "primary")
	const authorization = "sed -i 's/authorization: %s/authorization: %s/' /etc/mongod.conf; systemctl restart mongod"
	on(t, "primary", fmt.Sprintf(authorization, "enabled", "disabled"))
	args := []string{"configure_mongodb", "--host=" + primary, "--replace_bind_ip"}
	r := st2ha(t, "primary", args...)
	require.Equal(t, 3, r.exit, r.raw)
	require.Equal(t, "mongodb_authorization", r.Error.Code)
	args = append(args, "--allow_unauthenticated")
	r = st2ha(t, "primary", args...)
	require.Zero(t, r.exit, r.raw)
	require.True(t, r.Changed)
	require.Len(t, r.Findings, 1)
	require.Equal(t, "warning", r.Findings[0].Severity)
	require.Contains(t, on(t, "primary", "grep bindIp /etc/mongod.conf"), "bindIp: "+primary+"\n")
	require.Contains(t, on(t, "primary", "mongocmd mongodb://"+primary+`/admin '{"listDatabases": 1}'`), "st2")
	on(t, "primary", "! nc -z 127.0.0.1 27017")
	r = st2ha(t, "primary", args...)
	require.Zero(t, r.exit, r.raw)
	require.False(t, r.Changed)
	r = st2ha(t, "primary", "rollback", "--host="+primary)
	require.Zero(t, r.exit, r.raw)
	on(t, "primary", fmt.Sprintf(authorization, "disabled", "enabled"))
	untouched(t)
	lab(t, "./lab.sh", "ready", "primary")
}

// TestTwoRuns: two runs on one host exclude each other, and the lock of one
// that died holds nobody up.
func TestTwoRuns(t *testing.T) {
	needs(t)
	untouched := installed(t, "primary")
	restart := []string{"restart_st2", "--host=" + primary, "--restart=inline", "--force"}
	begin := func(run string) (*exec.Cmd, *bytes.Buffer) {
		c := remote(password, "primary", append(restart, "--run="+run)...)
		out := &bytes.Buffer{}
		c.Stdout = out
		require.NoError(t, c.Start())
		lock := func() string { return on(t, "primary", "cat /var/lib/st2ha/lock 2>/dev/null || true") }
		for end := time.Now().Add(time.Minute); !strings.Contains(lock(), "run "+run); {
			require.True(t, time.Now().Before(end), "run %s has no lock", run)
		}
		return c, out
	}
	signal := func(name, run string) { on(t, "primary", "pkill -"+name+" -f -- '--run=["+run[:1]+"]"+run[1:]+"'") }

	first, said := begin("first")
	signal("STOP", "first")
	r := st2ha(t, "primary", append(restart, "--run=second")...)
	require.Equal(t, 3, r.exit, r.raw)
	require.Equal(t, "locked", r.Error.Code)
	require.Contains(t, r.Error.Message, "another run is in progress: run first, step restart_st2")
	r = st2ha(t, "primary", "preflight", "--primary="+primary, "--secondaries="+secondary)
	require.Equal(t, "locked", r.Error.Code, r.raw)

	// One that waits gets its turn.
	waiting := remote(password, "primary", append(restart, "--run=third", "--wait=300")...)
	var waited bytes.Buffer
	waiting.Stdout = &waited
	require.NoError(t, waiting.Start())
	signal("CONT", "first")
	for _, c := range []struct {
		run string
		cmd *exec.Cmd
		out *bytes.Buffer
	}{{"first", first, said}, {"third", waiting, &waited}} {
		require.NoError(t, c.cmd.Wait(), c.out.String())
		var r result
		require.NoError(t, json.Unmarshal(c.out.Bytes(), &r), c.out.String())
		require.Equal(t, c.run, r.Run)
		require.True(t, r.Changed)
	}

	// One is killed: its note stays, its lock does not.
	fourth, _ := begin("fourth")
	signal("KILL", "fourth")
	require.Error(t, fourth.Wait())
	require.Contains(t, on(t, "primary", "cat /var/lib/st2ha/lock"), "run fourth, step restart_st2")
	r = st2ha(t, "primary", append(restart, "--run=fifth")...)
	require.Zero(t, r.exit, r.raw)
	require.True(t, r.Changed)
	untouched(t)
}
