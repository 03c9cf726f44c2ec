package install

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/testenv"
)

// The pack from main: no binary in it, a toolchain in its virtualenv.
func TestInstallMain(t *testing.T) {
	testenv.NeedsRoot(t)
	n := newNode(t)
	from := origin(t)
	n.install(t, "file://"+from, "")
	start := time.Now()
	n.virtualenv(t)
	t.Logf("virtualenv with the toolchain: %s", time.Since(start).Round(time.Second))

	info, err := os.Lstat(n.pack() + "/actions/workflows")
	require.NoError(t, err)
	require.Equal(t, os.ModeSymlink, info.Mode().Type())
	require.FileExists(t, n.pack()+"/actions/workflows/join_secondary.yaml")
	require.NoDirExists(t, n.pack()+"/bin")

	start = time.Now()
	n.buildOnce(t)
	t.Logf("first call, which builds, and five others that wait for it: %s", time.Since(start).Round(time.Second))
	n.overhead(t)

	t.Run("upgrade", func(t *testing.T) {
		for _, old := range []string{"build-1", "build-2", "build-3"} {
			require.NoError(t, os.Mkdir(n.cache+"/st2ha/"+old, 0o700))
			require.NoError(t, os.Chtimes(n.cache+"/st2ha/"+old, time.Unix(1, 0), time.Unix(1, 0)))
		}
		// Another program, as the sensor's is, goes by a link of its name.
		require.NoError(t, os.Mkdir(from+"/cmd/st2ha-twin", 0o755))
		require.NoError(t, os.WriteFile(from+"/cmd/st2ha-twin/main.go",
			[]byte("package main\n\nfunc main() { println(`twin`) }\n"), 0o644))
		require.NoError(t, os.Symlink("st2ha", from+"/actions/st2ha-twin"))
		require.NoError(t, os.Symlink("st2ha", from+"/actions/st2ha-gone"))
		n.upgrade(t, from)
		start := time.Now()
		n.buildOnce(t)
		t.Logf("after an upgrade: %s", time.Since(start).Round(time.Second))
		require.Len(t, n.builds(t), 3, "old builds are removed, but for two")

		twin := n.start(t, "", true, n.pack()+"/actions/st2ha-twin")
		require.Zero(t, twin.wait(t))
		require.Equal(t, "twin\n", twin.stderr.String(), "built already, with the first one")
		gone := n.start(t, "", true, n.pack()+"/actions/st2ha-gone")
		require.Equal(t, 3, gone.wait(t))
		require.Empty(t, gone.stdout.String())
		require.Contains(t, gone.stderr.String(), "there is no program st2ha-gone")
	})

	t.Run("killed", func(t *testing.T) {
		n.upgrade(t, from)
		c := n.start(t, "", false, n.pack()+"/actions/st2ha", "--help")
		require.Eventually(t, func() bool { return len(n.unfinished(t)) == 1 }, time.Minute, 10*time.Millisecond)
		require.NoError(t, syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL))
		require.Equal(t, -9, c.wait(t))
		n.buildOnce(t)
		require.Empty(t, n.unfinished(t))
	})

	t.Run("cache that others can write", func(t *testing.T) {
		for _, mode := range []os.FileMode{0o702, 0o720, 0o777} {
			require.NoError(t, os.Chmod(n.cache+"/st2ha", mode))
			require.Contains(t, n.fails(t, "", false).Message,
				"/var/cache/st2ha is not a directory that user 0 alone can write")
		}
		require.NoError(t, os.Chmod(n.cache+"/st2ha", 0o700))
		require.NoError(t, os.Chown(n.cache+"/st2ha", 65534, -1))
		require.Contains(t, n.fails(t, "", false).Message, "alone can write")
		require.NoError(t, os.Chown(n.cache+"/st2ha", 0, -1))
		n.launch(t, "", false)
	})

	t.Run("sensor", func(t *testing.T) {
		// What Go has compiled already, to be quick.
		cache := n.base + "/exports/st2ha"
		run(t, "/", "sh", "-c", `cp -a "$0" "$1"; rm -rf "$1"/build-* "$1"/lock; chown -R `+strconv.Itoa(st2)+` "$1"`,
			n.cache+"/st2ha", cache)
		require.Contains(t, n.sensor(t, asSt2, n.base+"/exports/st2ha"), "building in "+cache)
		require.NotContains(t, n.sensor(t, asSt2, n.base+"/exports/st2ha"), "building")
	})

	t.Run("no place for builds", func(t *testing.T) {
		// Neither a directory that others can write, nor one that somebody has prepared, nor a link to one.
		evil := openDir(t)
		for _, setup := range []string{
			`chmod 775 "$EXPORTS"; trap 'chmod 755 "$EXPORTS"' EXIT; `,
			`chown 0 "$EXPORTS"; `,
		} {
			setup = "EXPORTS=" + n.base + "/exports\n" + setup + asSt2 + `set -- "$@"
XDG_CACHE_HOME=/tmp; export XDG_CACHE_HOME`
			c := n.start(t, setup, true, n.pack()+"/actions/st2ha", "--help")
			require.Equal(t, 3, c.wait(t), c.stdout.String())
			require.Contains(t, c.stderr.String(), "install -d -m 700 -o 1498 /var/cache/st2ha-1498")
			require.NoError(t, os.Chmod(n.base+"/exports", 0o755))
			require.NoError(t, os.Chown(n.base+"/exports", st2, 0))
		}
		require.NoError(t, os.Rename(n.base+"/exports/st2ha", evil+"/st2ha"))
		require.NoError(t, os.Chown(evil+"/st2ha", 65534, -1))
		require.NoError(t, os.Symlink(evil+"/st2ha", n.base+"/exports/st2ha"))
		require.Contains(t, n.fails(t, asSt2, true).Message, "is not a directory that user 1498 alone can write")
		require.NoError(t, os.Remove(n.base+"/exports/st2ha"))

		// What the message says helps.
		require.NoError(t, os.Chown(evil+"/st2ha", st2, -1))
		require.NoError(t, os.Rename(evil+"/st2ha", n.cache+"/st2ha-1498"))
		require.Contains(t, n.sensor(t, asSt2, n.cache+"/st2ha-1498"), "watching")
		require.NoError(t, os.RemoveAll(n.cache+"/st2ha-1498"))
	})

	t.Run("hostile environment", func(t *testing.T) { n.hostile(t, from) })

	// A secondary's mount can be one; and people who are not root try --help.
	t.Run("read-only pack, not root", func(t *testing.T) {
		user := openDir(t)
		// What Go has compiled already, to be quick.
		run(t, "/", "cp", "-a", n.cache+"/st2ha", user+"/st2ha")
		run(t, "/", "sh", "-c", `rm -rf "$0"/st2ha/build-*; chown -R 65534 "$0"`, user)
		setup := `mount --bind "$PACK" "$PACK"; mount -o remount,bind,ro "$PACK"
		set -- setpriv --reuid=65534 --regid=65534 --clear-groups env XDG_CACHE_HOME=` + user + ` "$@"`
		require.Contains(t, n.launch(t, setup, false).stderr.String(), "building")
		require.NotContains(t, n.launch(t, setup, false).stderr.String(), "building")
		before := n.builds(t)
		readOnly := `mount --bind "$PACK" "$PACK"; mount -o remount,bind,ro "$PACK"`
		require.Empty(t, n.launch(t, readOnly, true).stderr.String())
		require.Equal(t, before, n.builds(t))
	})

	t.Run("full disk", func(t *testing.T) {
		e := n.fails(t, `mount -t tmpfs -o size=4m none /var/cache`, false)
		require.Contains(t, e.Message, "no space left")
		require.Contains(t, e.Hint, "make room")
	})

	t.Run("read-only cache", func(t *testing.T) {
		require.Contains(t, n.fails(t, `mount -t tmpfs -o ro none /var/cache`, false).Message,
			"/var/cache/st2ha cannot be written")
	})

	t.Run("no network", func(t *testing.T) {
		e := n.fails(t, `mount -t tmpfs none /var/cache`, true)
		require.Regexp(t, `go build: exit code 1: .*dial`, e.Message)
		require.Contains(t, e.Hint, "GOPROXY")
	})

	t.Run("neither Go nor network", func(t *testing.T) {
		require.NoError(t, os.RemoveAll(n.base+"/virtualenvs"))
		e := n.fails(t, `mount -t tmpfs none /var/cache`, true)
		require.Contains(t, e.Message, "neither a binary for this machine")
		// An older Go than go.mod's is none: known vulnerabilities are mended in it.
		e = n.fails(t, `mount -t tmpfs none /var/cache; mkdir -p /usr/local/go/bin
printf '#!/bin/sh\n[ "$2" != GOVERSION ] || { echo go1.26.0; exit 0; }\necho "go: go.mod requires a newer one" >&2; exit 1\n' >/usr/local/go/bin/go; chmod 755 /usr/local/go/bin/go`, true)
		require.Contains(t, e.Message, "/usr/local/go/bin/go is go1.26.0, not new enough")
		require.Contains(t, e.Hint, "st2 pack install URL=VERSION")
	})
}

// upgrade puts a new commit into the repository and installs it. The
// virtualenv, which StackStorm would make anew, stays: what it would hold is the same.
func (n node) upgrade(t *testing.T, from string) {
	t.Helper()
	f, err := os.OpenFile(from+"/cmd/st2ha/main.go", os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("\n// Changed.\n")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	commit(t, from, "a change")
	n.install(t, "file://"+from, "")
}

// buildOnce calls the launcher six times at once, and once more: one builds.
func (n node) buildOnce(t *testing.T) {
	t.Helper()
	var calls []*call
	for range 6 {
		calls = append(calls, n.start(t, "", false, n.pack()+"/actions/st2ha", "--help"))
	}
	built := 0
	for _, c := range calls {
		require.Zero(t, c.wait(t), c.stderr.String())
		require.Equal(t, calls[0].stdout.String(), c.stdout.String())
		built += strings.Count(c.stderr.String(), "building in ")
	}
	require.Equal(t, 1, built)
	require.Empty(t, n.launch(t, "", true).stderr.String())
}

// sensor starts the watcher as StackStorm's sensor does, and ends it when it
// has found its place for events. It returns what it said.
func (n node) sensor(t *testing.T, setup, place string) string {
	t.Helper()
	require.NoError(t, os.RemoveAll(place+"/spool"))
	c := n.start(t, setup, true, n.pack()+"/actions/st2ha-watch")
	assert.Eventually(t, func() bool { return exists(place + "/spool/lock") }, 3*time.Minute, 20*time.Millisecond)
	require.Zero(t, c.wait(t), c.stderr.String())
	require.NotContains(t, c.stderr.String(), "events cannot be kept")
	return c.stderr.String()
}

// hostile starts a build as root with all variables that name programs, files
// with settings or functions, and none of them runs or gets to the program.
func (n node) hostile(t *testing.T, from string) {
	t.Helper()
	evil := openDir(t)
	program := evil + "/run"
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\n: >>"+evil+"/ran\nexit 1\n"), 0o755))
	for _, name := range append(slices.Clone(tools), "go", "git", "gcc", "awk", "ld", "asm") {
		require.NoError(t, os.Symlink(program, evil+"/"+name))
	}
	require.NoError(t, os.MkdirAll(evil+"/.config/go", 0o755))
	settings := "GOFLAGS=-toolexec=" + program + "\nGOCACHEPROG=" + program + "\n"
	require.NoError(t, os.WriteFile(evil+"/.config/go/env", []byte(settings), 0o644))
	hostile := []string{"PATH=" + evil, "HOME=" + evil, "XDG_CONFIG_HOME=" + evil + "/.config",
		"XDG_CACHE_HOME=" + evil, "GOENV=" + evil + "/.config/go/env",
		"GOFLAGS=-toolexec=" + program, "GOCACHEPROG=" + program, "GOROOT=" + evil, "GOTOOLCHAIN=path",
		"GOCACHE=" + evil, "GOMODCACHE=" + evil,
		"GOTMPDIR=" + evil, "TMPDIR=" + evil, "CC=" + program, "CGO_ENABLED=1", "GIT_EXEC_PATH=" + evil,
		"GIT_SSH_COMMAND=" + program, "GIT_CONFIG_GLOBAL=" + program,
		"ENV=" + program, "BASH_ENV=" + program, "IFS=/", "CDPATH=" + evil, "BASH_FUNC_find%%=() { " + program + "; }",
		"BASH_FUNC_id%%=() { " + program + "; }",
		"SHELLOPTS=xtrace", "PS4=$(" + program + ")", "ERL_FLAGS=x", "RABBITMQ_CTL_ERL_ARGS=x", "PYTHONPATH=" + evil,
		"PERL5LIB=" + evil, "GODEBUG=x=y", "ST2HA_STATE_DIR=" + evil,
		"ST2HA_RABBITMQ_PASSWORD=s3cret", "LC_ALL=C.UTF-8", "LANG=C.UTF-8"}
	main := "package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n)\n\nfunc main() { fmt.Println(os.Environ()) }\n"
	for _, shell := range []string{"dash", "bash"} {
		require.NoError(t, os.WriteFile(from+"/cmd/st2ha-twin/main.go", []byte(main+"\n// "+shell+"\n"), 0o644))
		n.upgrade(t, from)
		setup := `mount --bind /bin/` + shell + ` /bin/sh; cp /bin/` + shell + ` "$TOOLS/sh"
`
		argv := append([]string{"env"}, append(hostile, n.pack()+"/actions/st2ha-twin")...)
		c := n.start(t, setup, false, argv...)
		require.Zero(t, c.wait(t), c.stderr.String())
		require.Contains(t, c.stderr.String(), "building", shell)
		require.NoFileExists(t, evil+"/ran", shell)
		given := strings.Fields(strings.Trim(c.stdout.String(), "[]\n"))
		slices.Sort(given)
		require.Equal(t, []string{"HOME=/root", "LANG=C.UTF-8", "LC_ALL=C.UTF-8",
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"ST2HA_RABBITMQ_PASSWORD=s3cret"}, given, shell)
	}
	left, err := os.ReadDir(evil)
	require.NoError(t, err)
	for _, e := range left {
		require.NotContains(t, []string{"st2ha", "download", "cache", "go-build"}, e.Name(), "nothing is written there")
	}
}

func (n node) builds(t *testing.T) []string { return n.cached(t, "build-*") }

func (n node) unfinished(t *testing.T) []string { return n.cached(t, "new.*") }

func (n node) cached(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(n.cache + "/st2ha/" + pattern)
	require.NoError(t, err)
	return found
}

type failure struct{ Code, Message, Hint string }

// fails wants the one error: an object on stdout, its words at the end of
// stderr, exit code 3.
func (n node) fails(t *testing.T, setup string, offline bool) failure {
	t.Helper()
	c := n.start(t, setup, offline, n.pack()+"/actions/st2ha", "preflight", "--primary=192.0.2.1")
	require.Equal(t, 3, c.wait(t), c.stderr.String())
	var result struct{ Error failure }
	require.NoError(t, json.Unmarshal(c.stdout.Bytes(), &result), c.stdout.String())
	require.Equal(t, "no_binary", result.Error.Code)
	require.Equal(t, 1, strings.Count(c.stderr.String(), " → "))
	require.True(t, strings.HasSuffix(c.stderr.String(), "st2ha: "+result.Error.Message+" → "+result.Error.Hint+"\n"),
		c.stderr.String())
	t.Logf("%s → %s", result.Error.Message, result.Error.Hint)
	return result.Error
}

// overhead prints what the launcher costs a call, beside the program itself.
func (n node) overhead(t *testing.T) {
	t.Helper()
	const times = 100
	measure := func(program string) time.Duration {
		start := time.Now()
		c := n.start(t, "", false, "sh", "-euc",
			`i=0; while [ $i -lt 100 ]; do "$0" --help >/dev/null; i=$((i+1)); done`, program)
		require.Zero(t, c.wait(t), c.stderr.String())
		return time.Since(start) / times
	}
	builds := n.builds(t)
	require.Len(t, builds, 1)
	binary := measure("/var/cache/st2ha/" + filepath.Base(builds[0]) + "/st2ha")
	launcher := measure(n.pack() + "/actions/st2ha")
	t.Logf("launcher: %s a call, of which the program %s", launcher.Round(100*time.Microsecond),
		binary.Round(100*time.Microsecond))
}
