package lab

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// datastoreKey is where the nodes' st2.conf has it.
const datastoreKey = "/etc/st2/keys/datastore_key.json"

// TestJoin walks through the life of a pair, started on the primary: dry run,
// joins that fail, join, again, a third node, undone. What it runs is as verbose
// as it can be, and secrets are looked for where they must not be: arguments and
// environments of processes, output, logs, the journal but for its before-images,
// other files.
func TestJoin(t *testing.T) {
	needs(t, kernelNFS)
	nodes := []string{"primary", "secondary", "secondary2"}
	untouched := installed(t, nodes...)
	secret := newSecrets(t, nodes...)
	for _, n := range nodes {
		key := regexp.MustCompile(`"aesKeyString": "([^"]+)`).FindStringSubmatch(on(t, n, "cat "+datastoreKey))
		require.Len(t, key, 2)
		secret.all = append(secret.all, forms(t, key[1])...)
	}
	secret.watch(t, "primary", "secondary")
	before := map[string][]string{}
	for _, n := range nodes {
		before[n] = tree(t, n)
	}

	require.True(t, t.Run("dry run shows every diff and changes nothing", func(t *testing.T) {
		const journal = "find /var/lib/st2ha -printf '%P %m %s\n' 2>/dev/null || true"
		then := on(t, "primary", journal)
		o := secret.action(t, "primary", "join_secondary", map[string]any{"dry_run": true})
		require.Contains(t, o.raw, "level=DEBUG")
		require.Equal(t, "succeeded", o.Status, o.raw)
		require.False(t, o.Output.Changed)
		diffs := ""
		for _, address := range []string{primary, secondary} {
			for _, c := range o.changes(address) {
				diffs += fmt.Sprintf("%s: %s %s\n%s\n", address, c.Kind, c.Target,
					strings.TrimSpace(strings.Join(c.Diff, "\n")))
			}
		}
		golden(t, "dry-run", diffs)
		untouched(t)
		require.Equal(t, then, on(t, "primary", journal))
	}))

	require.True(t, t.Run("a user with another password at the broker is reported", func(t *testing.T) {
		on(t, "primary", "rabbitmqctl --quiet add_user st2 another-one")
		o := secret.action(t, "primary", "join_secondary", nil)
		on(t, "primary", "rabbitmqctl --quiet delete_user st2")
		require.Equal(t, "failed", o.Status, o.raw)
		require.Equal(t, "rabbitmq_password", o.Output.Failure.Code, o.raw)
		untouched(t)
	}))

	require.True(t, t.Run("a join that fails half-way is undone on both nodes", func(t *testing.T) {
		on(t, "secondary", "chattr +i /etc/fstab")
		o := secret.action(t, "primary", "join_secondary", nil)
		on(t, "secondary", "chattr -i /etc/fstab")
		require.Equal(t, "failed", o.Status, o.raw)
		require.Equal(t, secondary, o.Output.Failure.Host, o.raw)
		require.Equal(t, "mount_nfs", o.Output.Failure.Step, o.raw)
		require.Equal(t, "immutable", o.Output.Failure.Code, o.raw)
		require.Contains(t, o.Output.Failure.Message, "/etc/fstab")
		require.Contains(t, o.Output.Failure.Hint, "chattr -i")
		untouched(t)
		require.Empty(t, on(t, "primary", "ls -A /var/lib/st2ha/owed"), "no service ever saw a change")
	}))

	joined := map[string][]string{}
	require.True(t, t.Run("join", func(t *testing.T) {
		// What runs that were killed in the middle of a write left is removed, here and over SSH.
		on(t, "primary", "touch /etc/.mongod.conf"+half)
		on(t, "secondary", "touch /etc/.fstab"+half)
		o := secret.action(t, "primary", "join_secondary", nil)
		require.Equal(t, "succeeded", o.Status, o.raw)
		require.True(t, o.Output.Changed)
		require.Equal(t, "1 change made: st2", o.said(t, primary, "restart_st2"), "deferred, and said")
		settle(t, "primary")
		for _, n := range nodes {
			joined[n] = tree(t, n)
			if n == "secondary2" {
				require.Empty(t, difference(before[n], joined[n]), "it has no part in this")
				continue
			}
			golden(t, "join-"+n, difference(before[n], joined[n]))
		}
		for _, role := range []struct{ host, role string }{{primary, "primary"}, {secondary, "secondary"}} {
			o := secret.action(t, "primary", "verify_node", map[string]any{"host": role.host, "role": role.role})
			require.Equal(t, "succeeded", o.Status, o.raw)
		}
		on(t, "secondary", "echo from-b > /opt/stackstorm/packs/default/shared")
		require.Equal(t, "from-b\n", on(t, "primary", "cat /opt/stackstorm/packs/default/shared"))
		require.Equal(t, "root st2packs\n",
			on(t, "primary", "stat -c '%U %G' /opt/stackstorm/packs/default/shared; rm "+
				"/opt/stackstorm/packs/default/shared"))
	}))

	require.True(t, t.Run("secrets are in the files that need them only", func(t *testing.T) {
		for _, n := range nodes {
			for _, file := range holding(t, n, secret.all) {
				require.True(t, file == "/etc/st2/st2.conf" || strings.HasPrefix(file, datastoreKey) ||
					strings.HasPrefix(file, "/var/lib/st2ha/runs/") &&
						strings.HasSuffix(file, ".image"), "%s: %s", n, file)
				require.Contains(t, []string{"600\n", "640\n", "660\n"}, on(t, n, "stat -c %a "+file), "%s: %s",
					n, file)
			}
		}
	}))

	require.True(t, t.Run("a second join changes nothing and says so", func(t *testing.T) {
		o := secret.action(t, "primary", "join_secondary", nil)
		require.Equal(t, "succeeded", o.Status, o.raw)
		require.False(t, o.Output.Changed)
		for _, s := range o.Output.Steps {
			require.False(t, s.Changed, s.Host)
			require.Contains(t, []string{"nothing to change", "in order"}, o.said(t, s.Host, s.Step), "%s %s",
				s.Host, s.Step)
		}
		for _, n := range nodes {
			require.Empty(t, difference(joined[n], tree(t, n)), n)
		}
	}))

	secret.unseen(t) // the database's administrator is asked with the password in an argument
	require.True(t, t.Run("the services are as StackStorm leaves them", func(t *testing.T) {
		require.Equal(t, timersEnded, on(t, "secondary", timersState), "its timers are the primary's")
		require.Contains(t, on(t, "primary", timersState), "ActiveState=active")
		count := func(command string) string { return on(t, "primary", mongocmd(command)) }
		require.Contains(t, count(`{"count": "action_execution_d_b", "query": {"status": "running"}}`), `:"0"}`,
			"the end of each was stored")
		require.NotContains(t, count(`{"count": "action_execution_output_d_b"}`), `:"0"}`, "and what they said")
	}))

	secret.watch(t, "primary", "secondary")
	require.True(t, t.Run("another secondary joins beside the first", func(t *testing.T) {
		o := secret.action(t, "primary", "join_secondary",
			map[string]any{"secondaries": []string{secondary, secondary2}})
		require.Equal(t, "succeeded", o.Status, o.raw)
		require.False(t, o.changed(secondary), o.raw)
		require.True(t, o.changed(secondary2), o.raw)
		var targets []string
		for _, c := range o.changes(primary) {
			targets = append(targets, c.Target)
		}
		require.Equal(t, []string{"/etc/exports", "/etc/exports"}, targets, "the lines grow, and the kernel is told")
		exports := on(t, "primary", "grep -v '^#' /etc/exports")
		require.Equal(t, 3, strings.Count(exports, "\n"), exports)
		for _, n := range []string{"secondary", "secondary2"} {
			require.Equal(t, "3\n", on(t, n, "mount -t nfs4 | wc -l"))
		}
	}))

	require.True(t, t.Run("an edit made since keeps rollback from losing it", func(t *testing.T) {
		on(t, "secondary", "cp -a /etc/st2/st2.conf /root/kept; echo '# mine' >> /etc/st2/st2.conf")
		r := st2ha(t, "primary", "rollback", "--host="+secondary)
		require.Equal(t, 3, r.exit, r.raw)
		require.Equal(t, "changed_since", r.Error.Code)
		require.Contains(t, on(t, "secondary", "mount -t nfs4; cat /etc/st2/st2.conf"), "# mine")
		on(t, "secondary", "mv /root/kept /etc/st2/st2.conf")
	}))

	require.True(t, t.Run("what rollback cannot bring back is said before", func(t *testing.T) {
		kept := "/opt/stackstorm/configs.before-st2ha"
		r := st2ha(t, "primary", "rollback", "--dry_run", "--host="+secondary2)
		require.Zero(t, r.exit, r.raw)
		require.Empty(t, r.Findings)
		on(t, "secondary2", "mv "+kept+" /root/kept")
		r = st2ha(t, "primary", "rollback", "--dry_run", "--host="+secondary2)
		on(t, "secondary2", "mv /root/kept "+kept)
		require.Zero(t, r.exit, r.raw)
		require.Len(t, r.Findings, 1, r.raw)
		require.Equal(t, "kept_aside", r.Findings[0].Check)
		require.Contains(t, r.Findings[0].Message, kept)
	}))

	require.True(t, t.Run("rollback restores every byte, mode and owner", func(t *testing.T) {
		rollback := func(t *testing.T, runner, host string) {
			o := secret.action(t, runner, "rollback", map[string]any{"host": host})
			require.Equal(t, "succeeded", o.Status, o.raw)
			handedOver(t, host)
		}
		t.Run("secondaries", func(t *testing.T) { // side by side
			t.Run("by the primary's runner", func(t *testing.T) {
				t.Parallel()
				rollback(t, "primary", secondary2)
			})
			t.Run("by its own runner, whose program lies on a mount that goes away meanwhile", func(t *testing.T) {
				t.Parallel()
				rollback(t, "secondary", secondary)
				require.Empty(t, on(t, "secondary", "ls "+program+" 2>/dev/null || true"), "it is the primary's")
			})
		})
		rollback(t, "primary", primary)
		settle(t, "primary")
		settle(t, "secondary")
		untouched(t)
		secret.unseen(t)
		require.Empty(t, on(t, "secondary", "mount -t nfs,nfs4"))
		require.NotContains(t, on(t, "primary", "rabbitmqctl --quiet list_users"), "st2\t")
		for _, n := range nodes {
			require.NotContains(t, on(t, n, "find /var/lib/st2ha -name '*.image*'; st2ctl status"), "image")
			require.Empty(t, holding(t, n, forms(t, password)), n)
			for _, file := range holding(t, n, secret.all) {
				require.Contains(t, []string{"/etc/st2/st2.conf", datastoreKey}, file, n)
			}
		}
		lab(t, append([]string{"./lab.sh", "ready"}, nodes...)...)
	}))
}
