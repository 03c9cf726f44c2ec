package lab

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// older makes the lab's nodes what many in the field are: MongoDB by Debian's
// own package, with its ini-style file and its unit; no NFS installed; and at
// the broker a user of the name that the join uses, with a password and a
// vhost of its own.
func older(t *testing.T) {
	t.Helper()
	on(t, "primary", `set -e
systemctl --quiet disable --now mongod
rm /etc/mongod.conf
printf '%s\n' '# mongodb.conf' 'dbpath=/var/lib/mongodb' 'logpath=/var/log/mongodb/mongod.log' 'logappend=true' '' \
  'bind_ip = 127.0.0.1' '#port = 27017' 'journal=true' 'auth = true' > /etc/mongodb.conf
cd /usr/lib/systemd/system
sed 's,/etc/mongod.conf,/etc/mongodb.conf,' mongod.service > mongodb.service; rm mongod.service
systemctl daemon-reload
systemctl --quiet enable --now mongodb
rabbitmqctl --quiet eval '
  U = <<"st2">>, By = <<"lab">>,
  ok = rabbit_auth_backend_internal:add_user(U, <<"another">>, By),
  rabbit_vhost:add(<<"theirs">>, By),
  ok = rabbit_auth_backend_internal:set_permissions(U, <<"theirs">>, <<"^a">>, <<"^b">>, <<"^c">>, By).'`)
	for _, n := range []string{"primary", "secondary"} {
		on(t, n, "DEBIAN_FRONTEND=noninteractive apt-get -qq purge nfs-kernel-server nfs-common >/dev/null 2>&1 && "+
			"test ! -e /sbin/mount.nfs -a ! -e /usr/sbin/exportfs")
	}
}

// equalKeys is the README's first step: the system user's key is the same on
// all nodes.
func equalKeys(t *testing.T) {
	t.Helper()
	key := on(t, "primary", "cat /home/stanley/.ssh/stanley_rsa")
	out, err := command([]byte(key), "./lab.sh", "ssh", "secondary",
		"cat > /home/stanley/.ssh/stanley_rsa").CombinedOutput()
	require.NoError(t, err, string(out))
}

// TestOlderNodes joins nodes that are not as today's installer leaves them,
// from the secondary's side, and undoes it.
func TestOlderNodes(t *testing.T) {
	needs(t, kernelNFS)
	nodes := []string{"primary", "secondary"}
	installed(t, nodes...)
	older(t)
	equalKeys(t)
	// A secondary's action runner works the other way round. The patterns keep it from one queue, as PCRE alone can.
	const pattern = `^(?!secret\.).*`
	here := stackstorm{node: "secondary",
		settings: "permission_configure: '" + pattern + "'\npermission_write: '" + pattern +
			"'\npermission_read: '" + pattern + "'\n"}
	before := map[string][]string{}
	untouched := func(t *testing.T) {
		t.Helper()
		for _, n := range nodes {
			require.Empty(t, difference(before[n], tree(t, n)), n)
		}
	}
	access := func(t *testing.T) string {
		t.Helper()
		return on(t, "primary", "rabbitmqctl --quiet export_definitions - | python3 -c 'import json, sys; d = "+
			"json.load(sys.stdin); "+
			`print(json.dumps([sorted([e for e in d[k] if "st2" in (e.get("name"), e.get("user"))], key=str) for k in ("users", "permissions")], sort_keys=True))'`)
	}
	theirs := `{"configure": "^a", "read": "^c", "user": "st2", "vhost": "theirs", "write": "^b"}`

	lab(t, "./deploy.sh", "./lab.sh", "ssh", "secondary")
	for _, n := range nodes {
		before[n] = tree(t, n)
	}
	then := access(t)
	require.Contains(t, then, theirs)

	require.True(t, t.Run("a user with another password is reported", func(t *testing.T) {
		o := here.action(t, "join_secondary", nil)
		require.Equal(t, "failed", o.Status, o.raw)
		require.Equal(t, "rabbitmq_password", o.Output.Failure.Code, o.raw)
		require.Contains(t, o.Output.Failure.Hint, "update_password=true")
		untouched(t)
		require.Equal(t, then, access(t))
	}))

	require.True(t, t.Run("a join that fails half-way is kept if that is asked for", func(t *testing.T) {
		on(t, "secondary", "chattr +i /etc/fstab")
		o := here.action(t, "join_secondary",
			map[string]any{"keep_on_failure": true, "update_password": true, "replace_bind_ip": true, "run": "kept"})
		on(t, "secondary", "chattr -i /etc/fstab")
		require.Equal(t, "failed", o.Status, o.raw)
		require.Equal(t, "mount_nfs", o.Output.Failure.Step, o.raw)
		// The steps before the failed one stay; that one has undone itself, the package included.
		require.Contains(t, on(t, "primary", "grep -x 'bind_ip = "+primary+"' /etc/mongodb.conf && exportfs -v"),
			"/opt/stackstorm/packs")
		require.Contains(t, on(t, "secondary", "cat /etc/st2/st2.conf"), "@"+primary+":5672/")
		on(t, "secondary", "test ! -e /sbin/mount.nfs && ! grep nfs /etc/fstab")
		require.Equal(t, "st2\n", on(t, "primary", "ls /var/lib/st2ha/owed"), "the restart is left to the next join")
		now := access(t)
		require.Contains(t, now, theirs, "what the user may elsewhere stays")
		require.Contains(t, now, strings.ReplaceAll(
			`"configure": "PATTERN", "read": "PATTERN", "user": "st2", "vhost": "/", "write": "PATTERN"`,
			"PATTERN", `^(?!secret\\.).*`))
		// MongoDB listens on the one address only.
		on(t, "secondary", "mongocmd mongodb://"+primary+`/admin '{"ping": 1}'`)
		on(t, "primary", "! nc -z 127.0.0.1 27017")
	}))

	require.True(t, t.Run("and the next join goes on from there", func(t *testing.T) {
		o := here.action(t, "join_secondary", map[string]any{"replace_bind_ip": true})
		require.Equal(t, "succeeded", o.Status, o.raw)
		for _, name := range []string{"configure_mongodb", "configure_st2", "configure_rabbitmq", "export_nfs"} {
			require.Equal(t, "nothing to change", o.said(t, primary, name), name)
		}
		var kinds []string
		for _, c := range o.changes(secondary) {
			kinds = append(kinds, c.Kind)
		}
		require.Equal(t, []string{
			"package", "file", // mount_nfs
			"directory", "file", "directory", "file", "directory", "file", "directory", "file", "daemon_reload",
			"aside", "mount", "aside", "mount", "aside", "mount",
			"directory", "file", "file", "daemon_reload", "start", // install_watchdog
			"restart_st2",
		}, kinds)
		// The other node was restarted at once; this one, where the workflow ran, after it.
		require.Empty(t, on(t, "primary", "ls -A /var/lib/st2ha/owed"))
		findings := o.findings(secondary)
		require.Len(t, findings, 1, o.raw)
		require.Equal(t, "restart_pending", findings[0].Check)
		settle(t, "secondary")
		for _, of := range []struct{ host, role string }{{primary, "primary"}, {secondary, "secondary"}} {
			r := st2ha(t, "secondary", "verify_node", "--host="+of.host, "--role="+of.role, "--primary="+primary)
			require.Zero(t, r.exit, r.raw)
			require.Empty(t, r.Findings)
		}
	}))

	require.True(t, t.Run("rollback takes back all of it, packages and password included", func(t *testing.T) {
		for _, host := range []string{secondary, primary} {
			o := here.action(t, "rollback", map[string]any{"host": host})
			require.Equal(t, "succeeded", o.Status, o.raw)
			handedOver(t, host)
		}
		settle(t, "secondary")
		untouched(t)
		require.Equal(t, then, access(t))
		on(t, "primary", "test ! -e /usr/sbin/exportfs && nc -z 127.0.0.1 27017 && ! nc -z "+primary+" 27017")
		on(t, "secondary", "test ! -e /sbin/mount.nfs")
		lab(t, append([]string{"./lab.sh", "ready"}, nodes...)...)
	}))
}
