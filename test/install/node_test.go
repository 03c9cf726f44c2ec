// Package install installs the pack as StackStorm does, from git, and runs its
// launcher there: st2common/util/pack_management.py and virtualenvs.py say how.
package install

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// st2packs is a group's number; there need not be such a group here.
const st2packs = 1499

// st2 is the number of the user that runs StackStorm's services. As its packages
// make it (packaging/deb/scripts/pre-install.sh:27), it has no home.
const st2 = 1498

var asSt2 = fmt.Sprintf(`set -- setpriv --reuid=%d --regid=%d --groups=%d env HOME=/home/st2 "$@"
`, st2, st2, st2packs)

// tools are the programs that the launcher and StackStorm's sandbox need on a
// node. A Go is not among them.
var tools = strings.Fields("cat env find flock id ls mkdir mktemp mv readlink rm sed setpriv sh sha256sum stat sync " +
	"tail timeout tr uname xargs")

// node is a machine with StackStorm's directories, as far as a pack sees it.
type node struct {
	base  string // stands for /opt/stackstorm
	cache string // stands for /var/cache
	path  string // stands for /usr/bin
}

func newNode(t *testing.T) node {
	t.Helper()
	n := node{base: openDir(t), cache: openDir(t), path: openDir(t)}
	require.NoError(t, os.Mkdir(n.base+"/packs", 0o775))
	for _, name := range tools {
		found, err := exec.LookPath(name)
		require.NoError(t, err)
		run(t, "/", "cp", "-L", found, filepath.Join(n.path, name))
	}
	// The packages' directories of user st2 (packaging/common/BUILD:25-43).
	require.NoError(t, os.Mkdir(n.base+"/exports", 0o755))
	require.NoError(t, os.Chown(n.base+"/exports", st2, 0))
	return n
}

// openDir is a temporary directory that users other than root reach, too.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	return dir
}

func (n node) pack() string { return n.base + "/packs/st2ha" }

// install does what packs.download does: clone, check out the version, put
// the clone in the old one's place, chgrp and chmod all of it.
func (n node) install(t *testing.T, url, version string) {
	t.Helper()
	clone := t.TempDir() + "/clone"
	run(t, "/", "git", "clone", "-q", url, clone)
	if version != "" {
		commit := strings.TrimSpace(run(t, clone, "git", "rev-parse", "v"+version+"^{commit}"))
		require.Empty(t, run(t, clone, "git", "branch", "-a", "--contains", commit),
			"StackStorm checks out v%s if the tag is on no branch", version)
		run(t, clone, "git", "checkout", "-q", "v"+version)
	}
	require.NoError(t, os.RemoveAll(n.pack()))
	require.NoError(t, os.Rename(clone, n.pack()))
	run(t, "/", "chgrp", "-R", strconv.Itoa(st2packs), n.pack())
	require.NoError(t, filepath.WalkDir(n.pack(), func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chmod(name, 0o775) // of a link's target, as Python's
	}))
}

// virtualenv does what packs.setup_virtualenv does.
func (n node) virtualenv(t *testing.T) {
	t.Helper()
	home := n.base + "/virtualenvs/st2ha"
	run(t, "/", "/usr/bin/python3", "-m", "venv", home)
	run(t, "/", home+"/bin/pip", "install", "-q", "six>=1.9.0,<2.0")
	if requirements := n.pack() + "/requirements.txt"; exists(requirements) {
		run(t, "/", home+"/bin/pip", "install", "-q", "-U", "-r", requirements)
	}
	run(t, "/", "chgrp", "-R", strconv.Itoa(st2packs), home)
}

// call is one start of the launcher.
type call struct {
	cmd            *exec.Cmd
	stdin          *os.File // open until it is waited for
	stdout, stderr bytes.Buffer
}

// start runs a program of the node in a mount namespace of its own, where the
// node's cache is /var/cache, its programs are /usr/bin, and there are no
// others; setup, a shell script, comes before. The process that is started
// becomes the program itself.
func (n node) start(t *testing.T, setup string, offline bool, argv ...string) *call {
	t.Helper()
	args := []string{"--mount", "--propagation", "private"}
	if offline {
		args = append(args, "--net")
	}
	script := `PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount --bind "$CACHE" /var/cache
for dir in /usr/local /usr/sbin /var/log; do mount -t tmpfs none $dir; done
` + setup + `
mount --bind "$TOOLS" /usr/bin
unset CACHE TOOLS; exec "$@"`
	c := &call{cmd: exec.Command("/usr/bin/unshare", append(append(args, "/bin/sh", "-euc", script, "sh"), argv...)...)}
	c.cmd.Env = append(slices.DeleteFunc(os.Environ(), func(s string) bool {
		name, _, _ := strings.Cut(s, "=")
		return slices.Contains([]string{"HOME", "PATH", "XDG_CACHE_HOME"}, name) || strings.HasPrefix(name, "GO")
	}), "CACHE="+n.cache, "TOOLS="+n.path, "PACK="+n.pack())
	c.cmd.Stdout, c.cmd.Stderr = &c.stdout, &c.stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	in, stdin, err := os.Pipe()
	require.NoError(t, err)
	c.cmd.Stdin, c.stdin = in, stdin
	require.NoError(t, c.cmd.Start())
	require.NoError(t, in.Close())
	return c
}

// wait returns the exit code.
func (c *call) wait(t *testing.T) int {
	t.Helper()
	_ = c.stdin.Close()
	err := c.cmd.Wait()
	if c.cmd.ProcessState == nil {
		require.NoError(t, err)
	}
	if status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return -int(status.Signal())
	}
	return c.cmd.ProcessState.ExitCode()
}

// launch runs the launcher's help, which needs no host, and wants success.
func (n node) launch(t *testing.T, setup string, offline bool) *call {
	t.Helper()
	c := n.start(t, setup, offline, n.pack()+"/actions/st2ha", "--help")
	require.Zero(t, c.wait(t), "%s", c.stderr.String())
	require.Contains(t, c.stdout.String(), "join")
	return c
}

func run(t *testing.T, dir, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), identity...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s %s\n%s%s", program, strings.Join(args, " "), out, stderr.String())
	return string(out)
}

// identity is whose commits the tests make.
var identity = []string{
	"GIT_AUTHOR_NAME=test", "GIT_AUTHOR_EMAIL=test@example.com", "GIT_COMMITTER_NAME=test",
	"GIT_COMMITTER_EMAIL=test@example.com",
	"GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
}

// origin is a repository with one commit on main: the work tree as it is.
func origin(t *testing.T) string {
	t.Helper()
	top, err := filepath.Abs("../..")
	require.NoError(t, err)
	dir := t.TempDir() + "/st2ha"
	run(t, "/", "git", "init", "-q", "-b", "main", dir)
	for name := range strings.SplitSeq(run(t, top, "git", "ls-files", "-z", "--cached", "--others",
		"--exclude-standard"), "\x00") {
		if from := filepath.Join(top, name); name != "" && exists(from) {
			require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
			run(t, "/", "cp", "-a", from, filepath.Join(dir, name))
		}
	}
	commit(t, dir, "the work tree")
	return dir
}

func commit(t *testing.T, dir, message string) {
	t.Helper()
	run(t, dir, "git", "add", "-A")
	run(t, dir, "git", "commit", "-q", "-m", message)
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}
