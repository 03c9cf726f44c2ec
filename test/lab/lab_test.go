// Package lab tests the main job on two real nodes: User-Mode Linux machines
// with their own kernel, systemd, sshd, RabbitMQ, Redis and NFS.
package lab

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	primary    = "192.168.0.100"
	secondary  = "192.168.0.101"
	secondary2 = "192.168.0.102"
	// password has every character that a format on its way could trip over.
	password = `p'a"s@s/w:o$r%d`
)

// directories are compared byte for byte; st2ha's own journal is not.
var directories = []string{"/etc", "/opt/stackstorm", "/home", "/root", "/srv"}

func TestMain(m *testing.M) {
	flag.Parse()
	code := 1
	if err := up(); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	if err := command(nil, "./lab.sh", "down").Run(); err != nil {
		fmt.Fprintln(os.Stderr, "lab.sh down:", err)
		code = 1
	}
	os.Exit(code)
}

func up() error {
	dir, err := os.MkdirTemp("", "st2ha-lab-test")
	if err != nil {
		return err
	}
	os.Remove(dir) // lab.sh makes it
	for name, value := range map[string]string{"LAB": dir, "NODES": "primary secondary secondary2"} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	for _, script := range []string{"up", ""} {
		c := command(nil, "./lab.sh", script)
		if script == "" {
			c = command(nil, "./deploy.sh")
		}
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(c.Args, " "), err, out)
		}
	}
	return nil
}

func command(stdin []byte, argv ...string) *exec.Cmd {
	c := exec.Command(argv[0], argv[1:]...)
	c.Stdin = bytes.NewReader(stdin)
	return c
}

// on runs a command on a node as root and returns what it printed.
func on(t *testing.T, node, line string) string {
	t.Helper()
	var stderr bytes.Buffer
	c := command(nil, "./lab.sh", "ssh", node, line)
	c.Stderr = &stderr
	out, err := c.Output()
	require.NoError(t, err, "%s on %s: %s%s", line, node, out, &stderr)
	return string(out)
}

// tree lists the files of a node that a run may change.
func tree(t *testing.T, node string) []string {
	t.Helper()
	out, err := command(nil, append([]string{"./lab.sh", "tree", node}, directories...)...).Output()
	require.NoError(t, err)
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

// difference shows two trees as a diff without context.
func difference(before, after []string) string {
	var out strings.Builder
	for _, line := range before {
		if !slices.Contains(after, line) {
			out.WriteString("- " + line + "\n")
		}
	}
	for _, line := range after {
		if !slices.Contains(before, line) {
			out.WriteString("+ " + line + "\n")
		}
	}
	return out.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "run with -update if the change is meant")
}

// outcome is what the workflow engine says of a run.
type outcome struct {
	Status string
	Output struct {
		Changed bool
		Run     string
		Failure struct{ Host, Step, Code, Message, Hint string }
		Nodes   map[string]struct {
			Changed, Failed bool
			Steps           map[string]string
			Changes         []struct{ Kind, Target, Diff string }
		}
	}
	Tasks []struct {
		Name   string
		Result json.RawMessage
	}
	raw string
}

// action runs an action of the pack as StackStorm on the primary would.
func action(t *testing.T, name string, params map[string]any) outcome {
	t.Helper()
	config := filepath.Join(t.TempDir(), "st2ha.yaml")
	secret, err := json.Marshal(password)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, "primary: %s\nsecondaries: [%s]\nrabbitmq_password: %s\n", primary, secondary, secret), 0o600))
	python, err := command(nil, "../workflow/setup.sh").Output()
	require.NoError(t, err)
	if params == nil {
		params = map[string]any{}
	}
	encoded, err := json.Marshal(params)
	require.NoError(t, err)
	c := command(encoded, strings.TrimSpace(string(python)), "../workflow/run.py", "--pack", "../..", "--config", config, "--params", "-",
		"--exec", "ssh -F "+os.Getenv("LAB")+"/ssh_config primary", name)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, _ := c.Output() // a failed workflow is judged by its output
	t.Log(stderr.String())
	var o outcome
	require.NoError(t, json.Unmarshal(out, &o), "%s\n%s", out, &stderr)
	o.raw = string(out) + stderr.String()
	return o
}

// settle waits for the restart of the primary's services that follows a
// workflow's end.
func settle(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(3 * time.Minute); ; time.Sleep(time.Second) {
		if on(t, "primary", "ls /var/lib/st2ha/owed") == "" {
			return
		}
		require.True(t, time.Now().Before(end), "the deferred restart did not take place")
	}
}

// TestJoin walks through the life of a pair: dry run, join, again, undone, a
// join that fails half-way.
func TestJoin(t *testing.T) {
	nodes := []string{"primary", "secondary", "secondary2"}
	before := map[string][]string{}
	for _, n := range nodes {
		before[n] = tree(t, n)
	}
	untouched := func(t *testing.T) {
		t.Helper()
		for _, n := range nodes {
			require.Empty(t, difference(before[n], tree(t, n)), n)
		}
	}

	require.True(t, t.Run("dry run shows every diff and changes nothing", func(t *testing.T) {
		o := action(t, "join_secondary", map[string]any{"dry_run": true})
		require.Equal(t, "succeeded", o.Status, o.raw)
		require.False(t, o.Output.Changed)
		diffs := ""
		for _, address := range []string{primary, secondary} {
			for _, c := range o.Output.Nodes[address].Changes {
				diffs += fmt.Sprintf("%s: %s %s\n%s\n", address, c.Kind, c.Target, strings.TrimSpace(c.Diff))
			}
		}
		golden(t, "dry-run", diffs)
		untouched(t)
		on(t, "primary", "test ! -e /var/lib/st2ha")
	}))

	joined := map[string][]string{}
	require.True(t, t.Run("join", func(t *testing.T) {
		o := action(t, "join_secondary", nil)
		require.Equal(t, "succeeded", o.Status, o.raw)
		require.True(t, o.Output.Changed)
		settle(t)
		for _, n := range nodes {
			joined[n] = tree(t, n)
			if n == "secondary2" {
				require.Empty(t, difference(before[n], joined[n]), "it has no part in this")
				continue
			}
			golden(t, "join-"+n, difference(before[n], joined[n]))
		}
		for _, role := range []struct{ host, role string }{{primary, "primary"}, {secondary, "secondary"}} {
			o := action(t, "verify_node", map[string]any{"host": role.host, "role": role.role})
			require.Equal(t, "succeeded", o.Status, o.raw)
		}
		on(t, "secondary", "echo from-b > /opt/stackstorm/packs/default/shared")
		require.Equal(t, "from-b\n", on(t, "primary", "cat /opt/stackstorm/packs/default/shared"))
		require.Equal(t, "root st2packs\n", on(t, "primary", "stat -c '%U %G' /opt/stackstorm/packs/default/shared; rm /opt/stackstorm/packs/default/shared"))
	}))

	require.True(t, t.Run("secrets are in the files that need them only", func(t *testing.T) {
		for _, n := range nodes {
			found := on(t, n, `grep -rlF -e 'p%27a%22s' -e "p'a\"s@" /etc /var/lib/st2ha /var/log /tmp /run/systemd 2>/dev/null || true`)
			for _, file := range strings.Fields(found) {
				require.True(t, file == "/etc/st2/st2.conf" || strings.HasSuffix(file, ".image"), "%s: %s", n, file)
			}
			require.Empty(t, on(t, n, `journalctl --no-pager | grep -F -e 'p%27a%22s' -e "p'a\"s@" || true`))
		}
	}))

	require.True(t, t.Run("a second join changes nothing and says so", func(t *testing.T) {
		o := action(t, "join_secondary", nil)
		require.Equal(t, "succeeded", o.Status, o.raw)
		require.False(t, o.Output.Changed)
		for address, node := range o.Output.Nodes {
			require.False(t, node.Changed, address)
			for name, said := range node.Steps {
				require.Contains(t, []string{"nothing to change", "in order"}, said, "%s %s", address, name)
			}
		}
		for _, n := range nodes {
			require.Empty(t, difference(joined[n], tree(t, n)), n)
		}
	}))

	require.True(t, t.Run("another secondary joins beside the first", func(t *testing.T) {
		o := action(t, "join_secondary", map[string]any{"secondaries": []string{secondary, secondary2}})
		require.Equal(t, "succeeded", o.Status, o.raw)
		require.False(t, o.Output.Nodes[secondary].Changed, o.raw)
		require.True(t, o.Output.Nodes[secondary2].Changed, o.raw)
		var targets []string
		for _, c := range o.Output.Nodes[primary].Changes {
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
		o := action(t, "rollback", map[string]any{"host": secondary})
		require.NotEqual(t, "succeeded", o.Status)
		require.Contains(t, o.raw, "changed_since")
		require.Contains(t, on(t, "secondary", "mount -t nfs4; cat /etc/st2/st2.conf"), "# mine")
		on(t, "secondary", "mv /root/kept /etc/st2/st2.conf")
	}))

	require.True(t, t.Run("rollback restores every byte, mode and owner", func(t *testing.T) {
		for _, address := range []string{secondary2, secondary, primary} {
			o := action(t, "rollback", map[string]any{"host": address})
			require.Equal(t, "succeeded", o.Status, o.raw)
		}
		settle(t)
		untouched(t)
		require.Empty(t, on(t, "secondary", "mount -t nfs,nfs4"))
		require.NotContains(t, on(t, "primary", "rabbitmqctl --quiet list_users"), "st2\t")
		for _, n := range nodes {
			require.NotContains(t, on(t, n, "find /var/lib/st2ha -name '*.image'; st2ctl status"), "image")
		}
	}))

	require.True(t, t.Run("a join that fails half-way is undone on both nodes", func(t *testing.T) {
		on(t, "secondary", "chattr +i /etc/fstab")
		o := action(t, "join_secondary", nil)
		on(t, "secondary", "chattr -i /etc/fstab")
		require.Equal(t, "failed", o.Status, o.raw)
		require.Equal(t, secondary, o.Output.Failure.Host, o.raw)
		require.Equal(t, "mount_nfs", o.Output.Failure.Step, o.raw)
		require.Contains(t, o.Output.Failure.Message, "/etc/fstab")
		require.NotEmpty(t, o.Output.Failure.Hint+o.Output.Failure.Message)
		settle(t)
		untouched(t)
		require.NotContains(t, o.raw, password)
	}))

	t.Run("bad input changes nothing", func(t *testing.T) {
		for name, c := range map[string]struct {
			prepare, tidy string // on the secondary
			params        map[string]any
			code          string
		}{
			"a secondary that is not there": {params: map[string]any{"secondaries": []string{"192.168.0.77"}}, code: "unreachable"},
			"fstab mounts something else there": {
				prepare: "cp -a /etc/fstab /root/fstab; echo '/dev/sdz /opt/stackstorm/packs ext4 noauto 0 0' >> /etc/fstab",
				tidy:    "mv /root/fstab /etc/fstab", code: "unparsable"},
			"loopback as a secondary's address": {
				params: map[string]any{"secondaries": []string{"127.0.0.1"}}, code: "address"},
			"no sudo":             {prepare: "mv /etc/sudoers.d/st2 /root/st2", tidy: "mv /root/st2 /etc/sudoers.d/st2", code: "sudo"},
			"another clock":       {prepare: "date -s '+1 hour'", tidy: "date -s '-1 hour'", code: "clock"},
			"another gid":         {prepare: "cp -a /etc/group /root/group; sed -i s/:1499:/:1777:/ /etc/group", tidy: "mv /root/group /etc/group", code: "ids"},
			"st2.conf is missing": {prepare: "mv /etc/st2/st2.conf /root/st2.conf", tidy: "mv /root/st2.conf /etc/st2/st2.conf", code: "missing"},
		} {
			t.Run(name, func(t *testing.T) {
				if c.prepare != "" {
					on(t, "secondary", c.prepare)
				}
				o := action(t, "join_secondary", c.params)
				if c.tidy != "" {
					on(t, "secondary", c.tidy)
				}
				require.Equal(t, "failed", o.Status, o.raw)
				require.Contains(t, o.raw, `"`+c.code+`"`)
				require.NotEqual(t, "", o.Output.Failure.Hint, o.raw)
				untouched(t)
			})
		}
	})
}
