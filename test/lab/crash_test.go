package lab

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// crash is a step that is killed at each of its points, taken back and run again.
type crash struct {
	name    string
	from    string   // the node that it runs on
	node    string   // the node that it changes
	command string   // with its flags
	prepare string   // on node, once: what the step needs
	state   string   // on node: prints what the services have, whatever their files say
	real    string   // the points at which the service is restarted for real, not by its stand-in
	every   [2]int   // of so many points, the one with this rest: the other node does the others; 1, 0 if not set
	tidy    string   // on node, at the end
	first   []string // the files without the step
	before  string   // state without the step
	joined  []string // the files with it
	after   string   // state with it
}

const crashPassword = "crash-pass"

var addresses = map[string]string{"primary": primary, "secondary": secondary, "secondary2": secondary2}

// crashers puts the binary that can be killed, and the stand-ins for restarts
// that take long, on the nodes. The stand-in of the broker's restart opens and
// closes a listener in front of the real broker, where its files say; that of
// st2ctl remembers which st2.conf it started the services with.
func crashers(t *testing.T, nodes ...string) {
	t.Helper()
	provide(t, "/usr/local/bin/st2ha-crash", "../../cmd/st2ha", nodes, "-tags", "crash")
	for _, n := range nodes {
		out, err := command(fmt.Appendf(nil, crashStandIns, addresses[n]), "./lab.sh", "ssh", n,
			"sh -eu").CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	t.Cleanup(func() {
		for _, n := range nodes {
			on(t, n, "! mountpoint -q /usr/bin/st2ctl || umount /usr/bin/st2ctl; rm -rf /usr/local/sbin/systemctl "+
				"/usr/local/bin/st2ha-crash /usr/local/bin/st2ha-watch-crash /usr/local/lib/crash /run/crash "+
				"/run/systemd/system/lab-amqp.* /mnt/shared /var/lib/st2ha; systemctl daemon-reload")
		}
	})
}

const crashStandIns = `mkdir -p /run/crash /usr/local/lib/crash
install -d -g st2packs -m 2775 /mnt/shared
cat > /run/systemd/system/lab-amqp.socket <<END
[Socket]
ListenStream=%s:5672
FreeBind=yes
END
cat > /run/systemd/system/lab-amqp.service <<END
[Service]
ExecStart=/lib/systemd/systemd-socket-proxyd 127.0.0.1:5672
END
/usr/bin/systemctl daemon-reload
cat > /usr/local/sbin/systemctl <<'END'
#!/bin/sh
if [ "$*" = "restart rabbitmq-server.service" ] && [ ! -e /run/crash/real ]; then
	if grep -q '^listeners.tcp.st2ha' /etc/rabbitmq/rabbitmq.conf; then exec /usr/bin/systemctl start lab-amqp.socket; fi
	exec /usr/bin/systemctl stop lab-amqp.socket lab-amqp.service
fi
exec /usr/bin/systemctl "$@"
END
cp -p /usr/bin/st2ctl /usr/local/lib/crash/st2ctl.real
cat > /usr/local/lib/crash/st2ctl <<'END'
#!/bin/sh
[ ! -e /run/crash/real ] || /usr/local/lib/crash/st2ctl.real "$@" || exit
sleep 0.4
sha256sum < /etc/st2/st2.conf > /run/crash/started
END
chmod 755 /usr/local/sbin/systemctl /usr/local/lib/crash/st2ctl
sha256sum < /etc/st2/st2.conf > /run/crash/started
mount --bind /usr/local/lib/crash/st2ctl /usr/bin/st2ctl
`

// st2ha runs the binary and returns its exit status and what it said.
func (c *crash) st2ha(t *testing.T, env, command string) (status, said string) {
	t.Helper()
	out := on(t, c.from, fmt.Sprintf("cd /; export ST2HA_RABBITMQ_PASSWORD=%s %s; st2ha-crash %s 2>&1; echo $?",
		crashPassword, env, command))
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1], out
}

// done runs the binary to its end.
func (c *crash) done(t *testing.T, command, where string) {
	t.Helper()
	status, said := c.st2ha(t, "", command)
	require.Equal(t, "0", status, "%s: %s: %s", where, command, said)
}

func (c *crash) rollback() string { return "rollback --host=" + addresses[c.node] }

// is compares the node with what it was.
func (c *crash) is(t *testing.T, files []string, state, where string) {
	t.Helper()
	require.Empty(t, difference(files, tree(t, c.node)), where)
	require.Equal(t, state, c.has(t), where)
}

// has is the state of the services, and what still has to be restarted.
func (c *crash) has(t *testing.T) string {
	t.Helper()
	return on(t, c.node, c.state+"; ls -A /var/lib/st2ha/owed 2>/dev/null || true")
}

// undisturbed learns what the step does, and the names of its points.
func (c *crash) undisturbed(t *testing.T) []string {
	t.Helper()
	if c.prepare != "" {
		on(t, c.node, c.prepare)
	}
	on(t, c.node, "rm -rf /var/lib/st2ha")
	c.first, c.before = tree(t, c.node), c.has(t)
	log := "/run/crash/points-" + c.node // another node's step may run from here as well
	status, said := c.st2ha(t, "ST2HA_CRASH_LOG="+log, c.command)
	require.Equal(t, "0", status, said)
	c.joined, c.after = tree(t, c.node), c.has(t)
	c.done(t, c.rollback(), "undisturbed")
	c.is(t, c.first, c.before, "undisturbed")
	return strings.Split(strings.TrimSpace(on(t, c.from, "cat "+log+"; rm "+log)), "\n")
}

// whole fails if a file is neither old nor new, or gone.
func (c *crash) whole(t *testing.T, where string) {
	t.Helper()
	known, killed := map[string]bool{}, map[string]bool{}
	for _, line := range append(c.first, c.joined...) {
		known[line] = true
	}
	path := func(line string) string { return strings.Fields(line)[4] }
	for _, line := range tree(t, c.node) {
		require.True(t, known[line], "%s: neither old nor new: %s", where, line)
		killed[path(line)] = true
	}
	both := map[string]int{}
	for _, line := range append(c.first, c.joined...) {
		if strings.Fields(line)[3] == "f" {
			both[path(line)]++
		}
	}
	for p, n := range both {
		require.True(t, n == 1 || killed[p], "%s: %s is gone", where, p)
	}
}

// left fails if the killed run goes on somewhere, or its lock is held.
func (c *crash) left(t *testing.T, where string) {
	t.Helper()
	if c.from == c.node {
		return
	}
	on(t, c.node, `for i in $(seq 50); do pgrep -f '[s]ftp-server|[f]lock --exclusive' >/run/crash/left || break; sleep 0.1; done
		test ! -s /run/crash/left || exit
		test ! -e /var/lib/st2ha/lock || flock --nonblock /var/lib/st2ha/lock true`)
}

// run kills the step at each point, runs it again, and takes it back.
// KILL_EVERY=4 leaves out three points of four.
func (c *crash) run(t *testing.T) {
	if c.every[0] == 0 {
		c.every = [2]int{1, 0}
	}
	if text := os.Getenv("KILL_EVERY"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err, "KILL_EVERY")
		c.every[1] += c.every[0] * rand.IntN(n) // other points each time
		c.every[0] *= n
	}
	began := time.Now()
	points := c.undisturbed(t)
	killed := 0
	for i, name := range points {
		if i%c.every[0] != c.every[1] {
			continue
		}
		where := fmt.Sprintf("killed at %d, %s", i+1, name)
		real := c.real != "" && regexp.MustCompile(c.real).MatchString(name)
		if real {
			on(t, c.node, "touch /run/crash/real")
		}
		on(t, c.node, "rm -rf /var/lib/st2ha")
		status, said := c.st2ha(t, fmt.Sprintf("ST2HA_CRASH_AT=%d", i+1), c.command)
		require.Equal(t, "137", status, "%s: %s", where, said)
		c.left(t, where)
		c.whole(t, where)
		c.done(t, c.command, where)
		c.is(t, c.joined, c.after, where)
		c.done(t, c.rollback(), where)
		c.is(t, c.first, c.before, where)
		require.Empty(t, on(t, c.node, "find /var/lib/st2ha -name '*.image' -o -name '.*'"), where)
		if real {
			on(t, c.node, "rm /run/crash/real")
		}
		killed++
	}
	if c.tidy != "" {
		on(t, c.node, c.tidy)
	}
	t.Logf("%s on %s: %d points, killed at %d, %.0f s", c.name, c.node, len(points), killed,
		time.Since(began).Seconds())
}

// TestKilled kills each step at each change of the node and each write of the
// journal, and in the middle of each program that it runs: on the node itself,
// and over SSH. Each node has a part of it, being an all-in-one of its own.
func TestKilled(t *testing.T) {
	needs(t)
	nodes := []string{"primary", "secondary", "secondary2"}
	crashers(t, nodes...)
	provide(t, "/usr/local/bin/st2ha-watch-crash", "../../cmd/st2ha-watch", []string{"secondary2"})
	parts := map[string][]crash{
		"primary": append([]crash{
			{name: "configure_mongodb", command: "configure_mongodb --host=" + primary,
				state: `until nc -z 127.0.0.1 27017; do sleep 0.1; done; ss -Hltn sport = :27017 | awk '{print $4}' | sort`},
			{name: "configure_st2, restart later", state: "true",
				command: "configure_st2 --restart=later --role=primary --host=" + primary + " --primary=" + primary},
		}, brokerCrashes(primary, 0)...),
		"secondary": brokerCrashes(secondary, 1),
		"secondary2": {
			{name: "configure_st2, over SSH", from: "primary", real: "st2ctl restart",
				command: "configure_st2 --restart=inline --role=primary --host=" + secondary2 +
					" --primary=" + secondary2,
				state: "sha256sum < /etc/st2/st2.conf | cmp - /run/crash/started && cat /run/crash/started"},
			{name: "restart_st2", command: "restart_st2 --restart=inline --force --host=" + secondary2,
				state: "sha256sum < /etc/st2/st2.conf | cmp - /run/crash/started && cat /run/crash/started"},
			{name: "install_watchdog", command: "install_watchdog --host=" + secondary2,
				state: "systemctl is-active st2ha-watchdog; systemctl is-enabled st2ha-watchdog; pgrep -c -x " +
					"st2ha-watch; lab-tree /usr/local/lib"},
		},
	}
	killed(t, parts)
}

// TestKilledShares is TestKilled of the steps that the kernel's NFS serves.
func TestKilledShares(t *testing.T) {
	needs(t, kernelNFS)
	crashers(t, "primary", "secondary", "secondary2")
	// For the mounts; with the server running, which the secondary's export_nfs starts.
	on(t, "primary", "cp -p /etc/exports /run/crash/exports; echo '/mnt/shared "+secondary2+
		"(rw,sync,no_subtree_check,no_root_squash)' >> /etc/exports; systemctl start nfs-server; exportfs -ra")
	killed(t, map[string][]crash{
		"secondary": {{name: "export_nfs", command: "export_nfs --host=" + secondary + " --secondaries=" + primary,
			state: "systemctl is-active nfs-server; systemctl is-enabled nfs-server; exportfs -v"}},
		"secondary2": {{name: "mount_nfs, over SSH", from: "primary", prepare: "echo here > /mnt/shared/file",
			state:   "lab-tree /mnt; mount -t nfs4",
			command: "mount_nfs --host=" + secondary2 + " --primary=" + primary + " --directories=/mnt/shared"}},
	})
	require.Empty(t, on(t, "primary", "ls -A /mnt/shared"), "the proofs of killed runs are gone")
	on(t, "primary", "cp -p /run/crash/exports /etc/exports; exportfs -ra; systemctl stop nfs-server")
}

// killed has the nodes' steps killed, side by side.
func killed(t *testing.T, parts map[string][]crash) {
	t.Helper()
	t.Run("at each point", func(t *testing.T) {
		for node, crashes := range parts {
			t.Run(node, func(t *testing.T) {
				t.Parallel()
				for _, c := range crashes {
					if c.node = node; c.from == "" {
						c.from = node
					}
					if !t.Run(c.name, c.run) {
						return
					}
				}
			})
		}
	})
}

// brokerCrashes are every second point of configure_rabbitmq, from the first
// or the second. RabbitMQ's restart and rabbitmqctl take seconds, so it is
// two: the listener with the user there already, and the user with the
// listener there. Around its restart the broker is restarted for real; else a
// stand-in does it.
func brokerCrashes(address string, from int) []crash {
	command, every := "configure_rabbitmq --host="+address+" --secondaries="+address, [2]int{2, from}
	return []crash{
		{name: "configure_rabbitmq, listener", command: command, every: every, real: "systemctl restart|remove .*owed",
			prepare: "rabbitmqctl --quiet add_user st2 " + crashPassword +
				"; rabbitmqctl --quiet set_permissions st2 '.*' '.*' '.*'",
			state: `ss -Hltn sport = :5672 | awk '{print $4}' | sort`},
		{name: "configure_rabbitmq, user", command: command, every: every,
			prepare: "rabbitmqctl --quiet delete_user st2; systemctl start lab-amqp.socket", state: "true",
			tidy: `rabbitmqctl --quiet list_users > /run/crash/users; test -s /run/crash/users || exit
				! grep '^st2\s' /run/crash/users || exit 1
				systemctl stop lab-amqp.socket lab-amqp.service`},
	}
}

// TestPowerCut cuts the power right after a step's files are written, here and
// over SSH: what the kernel had not been made to write is lost, and that is
// nothing of a file or of the journal.
func TestPowerCut(t *testing.T) {
	needs(t, powerCut)
	nodes := []string{"primary", "secondary"}
	crashers(t, nodes...)
	cases := []*crash{
		{from: "primary", node: "secondary",
			command: "configure_st2 --restart=later --role=secondary --host=" + secondary + " --primary=" + primary,
			state:   "true"},
		{from: "primary", node: "primary", command: "configure_mongodb --host=" + primary, state: "true"},
	}
	type cut struct {
		c    *crash
		at   int
		file string
	}
	var cuts []cut
	for _, c := range cases {
		for i, name := range c.undisturbed(t) {
			if file, ok := strings.CutPrefix(name, "write /etc/"); ok {
				cuts = append(cuts, cut{c, i + 1, "/etc/" + file})
			}
		}
		on(t, c.node, "rm -rf /var/lib/st2ha; sync")
	}
	require.Len(t, cuts, 2)
	// The kernel writes what is left to it after 30 s; a file that is written
	// plainly shows that this power cut loses what it should.
	for _, x := range cuts {
		status, said := x.c.st2ha(t, fmt.Sprintf("ST2HA_CRASH_AT=%d", x.at), x.c.command)
		require.Equal(t, "137", status, said)
		on(t, x.c.node, "echo plainly > /root/plain")
		lab(t, "./lab.sh", "kill", x.c.node)
	}
	for _, n := range nodes { // a secondary's services have no user at the primary's broker here
		lab(t, "env", "WAIT=ssh", "./lab.sh", "start", n)
	}
	crashers(t, nodes...)
	for _, x := range cuts {
		require.Empty(t, on(t, x.c.node, "cat /root/plain 2>/dev/null || true; rm -f /root/plain"),
			"the power cut lost nothing")
		require.Empty(t, difference(x.c.joined, tree(t, x.c.node)),
			"the files are new: the power was cut after they were written")
		journal := on(t, x.c.node, "cat /var/lib/st2ha/runs/*/journal.json")
		require.True(t, json.Valid([]byte(journal)), journal)
		require.Contains(t, journal, x.file)
		x.c.done(t, x.c.command, "after the power cut")
		require.Empty(t, difference(x.c.joined, tree(t, x.c.node)))
		x.c.done(t, x.c.rollback(), "after the power cut")
		require.Empty(t, difference(x.c.first, tree(t, x.c.node)))
	}
}
