package account

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/host"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

// node is this machine with an /etc of its own: shadow's programs run in a mount namespace in which that is bound over
// the machine's, and the only file system is the test's directory. systemd and st2ctl are what it says.
type node struct {
	*host.Local
	root string
	ctl  []string // what st2ctl was told
	here bool     // the program runs on it
	// dies ends the process, as it were: nothing runs any more once this many programs have.
	dies, ran int
}

var errKilled = errors.New("killed")

func (n *node) Run(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	if n.ran++; n.dies > 0 && n.ran > n.dies {
		return nil, errKilled
	}
	switch argv[0] {
	case "/usr/bin/st2ctl":
		n.ctl = append(n.ctl, argv[1])
		return nil, nil
	case "systemctl":
		var blocks []string
		for range argv[3:] {
			blocks = append(blocks, "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nSubState=running\n")
		}
		return []byte(strings.Join(blocks, "\n")), nil
	case "pgrep": // of the machine: the numbers of the tests are nobody's else
	default:
		argv = append([]string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc && exec "$@"`, n.root + "/etc"}, argv...)
	}
	return n.Local.Run(ctx, stdin, argv...)
}

// IsLocal is false where another node's program is at work.
func (n *node) IsLocal() bool { return n.here }

// ReadFile has processes from the machine.
func (n *node) ReadFile(ctx context.Context, path string) (host.File, error) {
	if strings.HasPrefix(path, "/proc/") && path != "/proc/1/mountinfo" {
		return host.NewLocal("machine").ReadFile(ctx, path)
	}
	return n.Local.ReadFile(ctx, path)
}

// newNode makes a node with users and groups by their lines in /etc/passwd and /etc/group.
func newNode(t *testing.T, name, passwd, group string) *node {
	t.Helper()
	testenv.NeedsRoot(t)
	testenv.NeedsPrograms(t, "unshare", "usermod", "groupmod", "getent", "pgrep", "getcap", "setcap")
	n := &node{root: t.TempDir()}
	n.Local = host.NewLocalAt(name, n.root)
	for file, text := range map[string]string{
		"/etc/passwd": "root:x:0:0::/root:/bin/sh\n" + passwd, "/etc/group": "root:x:0:\n" + group,
		"/etc/nsswitch.conf": "passwd: files\ngroup: files\n", "/etc/st2/st2.conf": "[system]\n", "/usr/bin/st2ctl": "",
		"/var/lib/x": "", "/proc/1/mountinfo": mounts(n.root + "/data"),
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(n.root+file), 0o755))
		require.NoError(t, os.WriteFile(n.root+file, []byte(text), 0o644))
	}
	require.NoError(t, os.MkdirAll(n.root+"/data", 0o755))
	return n
}

// mounts are a table in which a directory is a file system of the node's own, and one below it another machine's.
func mounts(dir string) string {
	return "1 0 8:1 / " + dir + " rw - ext4 /dev/x rw\n2 1 0:9 / " + dir + "/n*fs rw - nfs4 h:/x rw\n"
}

// make makes files with owner and mode, and a link.
func (n *node) make(t *testing.T, files map[string][3]int) {
	t.Helper()
	for name, of := range files {
		path := n.root + "/data/" + name
		require.NoError(t, os.WriteFile(path, []byte(name), 0o600))
		require.NoError(t, os.Chown(path, of[0], of[1]))
		require.NoError(t, os.Chmod(path, 0)) // os.Chmod has its own bits
		require.NoError(t, syscall.Chmod(path, uint32(of[2])))
	}
}

// owners are those of all files, with their modes.
func (n *node) owners(t *testing.T) map[string][3]int {
	t.Helper()
	all := map[string][3]int{}
	require.NoError(t, filepath.WalkDir(n.root+"/data", func(path string, _ fs.DirEntry, err error) error {
		require.NoError(t, err)
		var s syscall.Stat_t
		require.NoError(t, syscall.Lstat(path, &s))
		if name := strings.TrimPrefix(path, n.root+"/data"); name != "" {
			all[name[1:]] = [3]int{int(s.Uid), int(s.Gid), int(s.Mode & 0o7777)}
		}
		return nil
	}))
	return all
}

func (n *node) read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(n.root + file)
	require.NoError(t, err)
	return string(data)
}

const (
	primaryPasswd = "st2:x:61002:61012::/nonexistent:/bin/false\nstanley:x:61003:61013::/nonexistent:/bin/sh\n"
	primaryGroup  = "st2packs:x:61011:st2\nst2:x:61012:\nstanley:x:61013:\n"
)

// align is the step, for a node.
func align(t *testing.T) *Align {
	return &Align{Primary: newNode(t, "primary", primaryPasswd, primaryGroup),
		Restart: stackstorm.Restarter{Restart: stackstorm.Inline, Within: time.Second, Run: "r"}}
}

func options() step.Options {
	return step.Options{Run: "r", Log: slog.New(slog.DiscardHandler), Mask: step.NewMasker(), Started: time.Now()}
}

func kinds() step.Kinds {
	return step.Kinds{"id": func() step.Change { return &Move{} }, "stop_st2": func() step.Change { return &stackstorm.Stop{} },
		"restart_st2": func() step.Change { return &stackstorm.Restart{} }}
}

// checks are the codes of what is found.
func checks(found []step.Finding) (all []string) {
	for _, f := range found {
		all = append(all, f.Check+": "+f.Message)
	}
	return all
}

// Groups that have each other's numbers, files of the user, links, setuid bits and an ACL; then all of it undone, and
// what was made in between has the old numbers, too.
func TestAlign(t *testing.T) {
	passwd := "st2:x:61102:61011:# comment:/nonexistent:/bin/false\nbob:x:61200:61200::/:/bin/sh\n"
	group := "st2:x:61011:\nst2packs:x:61012:st2,bob\nbob:x:61200:\n"
	n := newNode(t, "secondary", passwd, group)
	files := map[string][3]int{"of st2": {61102, 61011, 0o640}, "of packs\n": {0, 61012, 0o664}, "-setuid": {61102, 61012, 0o6755},
		"bob's": {61200, 61200, 0o600}, "orphan": {61002, 0, 0o600}, "root's": {0, 0, 0o644}}
	n.make(t, files)
	require.NoError(t, os.Symlink("root's", n.root+"/data/link"))
	require.NoError(t, os.Lchown(n.root+"/data/link", 61102, 61011))
	files["link"] = [3]int{61102, 61011, 0o777}
	require.NoError(t, os.Mkdir(n.root+"/data/dir", 0o755))
	require.NoError(t, os.Chown(n.root+"/data/dir", 0, 61012))
	require.NoError(t, syscall.Chmod(n.root+"/data/dir", 0o2775))
	files["dir"] = [3]int{0, 61012, 0o2775}
	for _, dir := range []string{"n*fs", "nxfs"} { // the first is another machine's, as the table of mounts has it
		require.NoError(t, os.Mkdir(n.root+"/data/"+dir, 0o755))
		require.NoError(t, os.Chown(n.root+"/data/"+dir, 61102, 61012))
	}
	acl := exec.Command("setfacl", "-m", "u:61200:r", n.root+"/data/of st2")
	hasACL := acl.Run() == nil
	files = n.owners(t)

	s := align(t)
	dry := options()
	dry.DryRun = true
	r, err := step.Run(t.Context(), s, n, dry)
	require.NoError(t, err)
	require.Len(t, r.Changes, 6, "stop, a ring of two groups in three moves, the user, restart")
	require.Equal(t, files, n.owners(t))
	require.Empty(t, n.ctl)

	r, err = step.Run(t.Context(), s, n, options())
	require.NoError(t, err)
	require.True(t, r.Changed)
	require.Equal(t, "root:x:0:0::/root:/bin/sh\nst2:x:61002:61012:# comment:/nonexistent:/bin/false\n"+
		"bob:x:61200:61200::/:/bin/sh\n", n.read(t, "/etc/passwd"))
	require.Equal(t, "root:x:0:\nst2:x:61012:\nst2packs:x:61011:st2,bob\nbob:x:61200:\n", n.read(t, "/etc/group"))
	want := map[string][3]int{}
	for name, of := range files {
		u := map[int]int{61102: 61002}
		g := map[int]int{61011: 61012, 61012: 61011}
		if to, ok := u[of[0]]; ok {
			of[0] = to
		}
		if to, ok := g[of[1]]; ok {
			of[1] = to
		}
		want[name] = of
	}
	want["n*fs"] = files["n*fs"]
	require.Equal(t, want, n.owners(t))
	require.Equal(t, []string{"stop", "restart"}, n.ctl)
	if hasACL {
		out, err := exec.Command("getfacl", "-n", "-p", n.root+"/data/of st2").Output()
		require.NoError(t, err)
		require.Contains(t, string(out), "user:61200:r--")
	}

	again, err := step.Run(t.Context(), s, n, options())
	require.NoError(t, err)
	require.False(t, again.Changed)
	require.Empty(t, again.Changes)

	n.make(t, map[string][3]int{"new": {61002, 61012, 0o600}})
	files["new"] = [3]int{61102, 61011, 0o600}
	n.ctl = nil
	_, err = step.Rollback(t.Context(), n, step.RollbackOptions{Options: options(), Kinds: kinds()})
	require.NoError(t, err)
	require.Equal(t, "root:x:0:0::/root:/bin/sh\n"+passwd, n.read(t, "/etc/passwd"))
	require.Equal(t, "root:x:0:\n"+group, n.read(t, "/etc/group"))
	require.Equal(t, files, n.owners(t))
	require.Equal(t, "restart", n.ctl[len(n.ctl)-1])
}

// Killed at any program, the next run goes on; and a rollback of both leaves all as it was.
func TestAlignKilled(t *testing.T) {
	passwd := "st2:x:61102:61011::/nonexistent:/bin/false\n"
	group := "st2:x:61011:\nst2packs:x:61012:st2\n"
	files := map[string][3]int{"a": {61102, 61011, 0o640}, "b": {0, 61012, 0o664}, "setuid": {61102, 61012, 0o6755},
		"orphan": {61002, 0, 0o600}}
	s := align(t)
	for dies := 12; ; dies += 5 { // the first ones only look
		n := newNode(t, "secondary", passwd, group)
		n.make(t, files)
		n.dies = dies
		_, err := step.Run(t.Context(), s, n, options()) // it does not come to undo anything either
		if err == nil {
			require.Greater(t, dies, 30, "it was killed at many places")
			break
		}
		n.dies, n.ran = 0, 0
		_, err = step.Run(t.Context(), s, n, options())
		require.NoError(t, err, dies)
		require.Contains(t, n.read(t, "/etc/passwd"), "st2:x:61002:61012:", dies)
		require.Contains(t, n.read(t, "/etc/group"), "st2packs:x:61011:", dies)
		require.Equal(t, map[string][3]int{"a": {61002, 61012, 0o640}, "b": {0, 61011, 0o664},
			"setuid": {61002, 61011, 0o6755}, "orphan": {61002, 0, 0o600}}, n.owners(t), dies)
		if dies%2 == 0 {
			_, err = step.Rollback(t.Context(), n, step.RollbackOptions{Options: options(), Kinds: kinds()})
			require.NoError(t, err, dies)
			require.Equal(t, files, n.owners(t), dies)
			require.Equal(t, "root:x:0:\n"+group, n.read(t, "/etc/group"), dies)
		}
	}
}

// What stands in the way is said, each with its name, and nothing is changed.
func TestAlignRefuses(t *testing.T) {
	group := "st2:x:61112:\nst2packs:x:61011:st2\n"
	refused := func(t *testing.T, s *Align, n *node) []string {
		t.Helper()
		before := n.read(t, "/etc/passwd") + n.read(t, "/etc/group")
		found, err := s.Check(t.Context(), n)
		require.NoError(t, err)
		_, err = step.Run(t.Context(), s, n, options())
		require.Error(t, err)
		require.Equal(t, before, n.read(t, "/etc/passwd")+n.read(t, "/etc/group"))
		require.Empty(t, n.ctl)
		for _, f := range found {
			require.NotEmpty(t, f.Fix)
		}
		return checks(found)
	}
	t.Run("taken", func(t *testing.T) {
		n := newNode(t, "secondary", "st2:x:61102:61112::/:/bin/false\nbob:x:61002:61012::/:/bin/sh\n", group+"bob:x:61012:\n")
		require.Equal(t, []string{"id_taken: gid 61012, which group st2 has on the primary, belongs to bob here",
			"id_taken: uid 61002, which user st2 has on the primary, belongs to bob here"}, refused(t, align(t), n))
	})
	t.Run("one number of two names", func(t *testing.T) {
		n := newNode(t, "secondary", "st2:x:61102:61012::/:/bin/false\ntwin:x:61102:61012::/:/bin/sh\n",
			"st2:x:61012:\nst2packs:x:61011:st2\n")
		require.Equal(t, []string{"id_shared: uid 61102 belongs to st2 and twin: whose files are whose cannot be told"},
			refused(t, align(t), n))
	})
	t.Run("no StackStorm", func(t *testing.T) {
		n := newNode(t, "secondary", "st2:x:61002:61012::/:/bin/false\n", "st2:x:61012:\n")
		require.Equal(t, []string{"ids: group has no entry st2packs"}, refused(t, align(t), n))
	})
	t.Run("a process", func(t *testing.T) {
		n := newNode(t, "secondary", "st2:x:61104:61012::/:/bin/false\n", "st2:x:61012:\nst2packs:x:61011:st2\n")
		cmd := exec.Command("sleep", "60")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 61104, Gid: 61104}}
		require.NoError(t, cmd.Start())
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		require.Equal(t, []string{"processes: process " + strconv.Itoa(cmd.Process.Pid) + " (sleep) runs as st2"},
			refused(t, align(t), n))
	})
	t.Run("capabilities", func(t *testing.T) {
		n := newNode(t, "secondary", "st2:x:61102:61012::/:/bin/false\n", "st2:x:61012:\nst2packs:x:61011:st2\n")
		n.make(t, map[string][3]int{"ping": {61102, 0, 0o755}})
		require.NoError(t, exec.Command("setcap", "cap_net_raw=ep", n.root+"/data/ping").Run())
		require.Equal(t, []string{"capabilities: " + n.root + "/data/ping cap_net_raw=ep: a change of owner takes the " +
			"capabilities of a file away"}, refused(t, align(t), n))
	})
	t.Run("the primary", func(t *testing.T) {
		s := align(t)
		_, err := s.Check(t.Context(), s.Primary)
		require.ErrorContains(t, err, "host and primary are both primary: give the secondary whose numbers are to change")
	})
	t.Run("the action would stop itself", func(t *testing.T) {
		n := newNode(t, "secondary", "st2:x:61102:61012::/:/bin/false\n", "st2:x:61012:\nst2packs:x:61011:st2\n")
		s := align(t)
		s.InAction, n.here = true, true
		require.Equal(t, []string{"own_services: this action runs on the node whose st2 services it has to stop"},
			refused(t, s, n))
	})
	t.Run("the system user is left alone unless asked", func(t *testing.T) {
		n := newNode(t, "secondary", "st2:x:61002:61012::/:/bin/false\nstanley:x:61203:61203::/nonexistent:/bin/sh\n",
			"st2:x:61012:\nst2packs:x:61011:st2\nstanley:x:61203:\n")
		s := align(t)
		r, err := step.Run(t.Context(), s, n, options())
		require.NoError(t, err)
		require.False(t, r.Changed)
		s.SystemUser = true
		r, err = step.Run(t.Context(), s, n, options())
		require.NoError(t, err)
		require.True(t, r.Changed)
		require.Contains(t, n.read(t, "/etc/passwd"), "stanley:x:61003:61013:")
	})
	t.Run("a file that cannot be changed", func(t *testing.T) {
		n := newNode(t, "secondary", "st2:x:61102:61012::/:/bin/false\n", "st2:x:61012:\nst2packs:x:61011:st2\n")
		n.make(t, map[string][3]int{"a": {61102, 0, 0o600}, "fast": {61102, 0, 0o600}})
		if exec.Command("chattr", "+i", n.root+"/data/fast").Run() != nil {
			t.Skip("no chattr on this file system")
		}
		defer exec.Command("chattr", "-i", n.root+"/data/fast").Run()
		_, err := step.Run(t.Context(), align(t), n, options())
		require.ErrorContains(t, err, n.root+"/data/fast still belongs to the uid 61102")
		require.Contains(t, n.read(t, "/etc/passwd"), "st2:x:61102:")
		require.Equal(t, 61102, n.owners(t)["a"][0], "what was done is undone")
		require.Equal(t, "start", n.ctl[len(n.ctl)-1])
	})
}

// The order of moves, over all ways in which three names can have three numbers of five.
func TestOrder(t *testing.T) {
	numbers := []int{1, 2, 3, 4, 5}
	each := func(f func([3]int)) {
		for _, a := range numbers {
			for _, b := range numbers {
				for _, c := range numbers {
					if a != b && b != c && a != c {
						f([3]int{a, b, c})
					}
				}
			}
		}
	}
	each(func(from [3]int) {
		each(func(to [3]int) {
			var all []aim
			now := map[int]string{}
			held := map[key][]string{}
			for i, name := range []string{"a", "b", "c"} {
				now[from[i]] = name
				held[key{Groups, from[i]}] = []string{name}
				if from[i] != to[i] {
					all = append(all, aim{ID{Groups, name, from[i]}, to[i]})
				}
			}
			moves, taken := order(all, held)
			require.Empty(t, taken)
			for _, m := range moves {
				require.Equal(t, m.Name, now[m.From])
				require.Empty(t, now[m.To], "%v to %v: %d is free", from, to, m.To)
				delete(now, m.From)
				now[m.To] = m.Name
			}
			require.Equal(t, map[int]string{to[0]: "a", to[1]: "b", to[2]: "c"}, now)
		})
	})
	_, taken := order([]aim{{ID{Groups, "a", 1}, 0}, {ID{Groups, "b", 2}, 9}}, map[key][]string{{Groups, 0}: {"root"},
		{Groups, 9}: {"z"}})
	require.Len(t, taken, 2)
}

// Only what is this machine's own, can be written to, and can be seen.
func TestRoots(t *testing.T) {
	n := newNode(t, "n", "", "")
	require.NoError(t, os.WriteFile(n.root+"/proc/1/mountinfo", []byte("1 0 8:1 / / rw - ext4 /dev/a rw\n"+
		"2 1 8:2 / /opt/local rw - xfs /dev/b rw\n3 1 8:3 / /srv rw - xfs /dev/c rw\n4 1 0:9 / /opt rw - nfs4 h:/x rw\n"+
		"5 1 8:4 / /ro ro - ext4 /dev/d rw\n6 1 0:5 / /proc rw - proc proc rw\n7 1 0:6 / /run rw - tmpfs tmpfs rw\n"), 0o644))
	roots, err := ownRoots(t.Context(), n)
	require.NoError(t, err)
	require.Equal(t, []root{{"/", []string{"/opt/local", "/srv", "/opt", "/ro", "/proc", "/run"}}, {point: "/srv"},
		{point: "/run"}}, roots)
}
