package install

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"st2ha/internal/testenv"
)

// A release: made twice, it is the same; installed, it needs neither Go nor
// network nor cache.
func TestRelease(t *testing.T) {
	testenv.NeedsRoot(t)
	from := origin(t)
	main := run(t, from, "git", "rev-parse", "main")
	version := strings.TrimSpace(run(t, from, "sed", "-n", "s/^version: *//p", "pack.yaml"))
	run(t, from, "make", "release", "VERSION="+version)
	require.Equal(t, main, run(t, from, "git", "rev-parse", "main"))
	require.Empty(t, run(t, from, "git", "status", "--porcelain"))
	require.Empty(t, run(t, from, "git", "ls-files", "bin"))

	t.Run("refused", func(t *testing.T) {
		for _, wrong := range []string{version, "99.0.0", ""} {
			out, err := exec.Command("make", "-C", from, "release", "VERSION="+wrong).CombinedOutput()
			require.Error(t, err, "VERSION=%s", wrong)
			require.Contains(t, string(out), "release: ")
		}
	})

	t.Run("made again elsewhere", func(t *testing.T) {
		clone := t.TempDir() + "/elsewhere"
		run(t, "/", "git", "clone", "-q", "--no-tags", "--single-branch", from, clone)
		run(t, clone, "make", "release", "VERSION="+version)
		require.Equal(t, run(t, from, "git", "ls-tree", "-r", "v"+version),
			run(t, clone, "git", "ls-tree", "-r", "v"+version))
		require.Equal(t, run(t, from, "git", "rev-parse", "v"+version+"^{commit}"),
			run(t, clone, "git", "rev-parse", "v"+version+"^{commit}"))

		// Once more from nothing, lest what Go had compiled before is compared with itself. One architecture: it
		// takes a minute.
		t.Setenv("GOCACHE", t.TempDir())
		run(t, clone, "make", "build", "GOARCH="+runtime.GOARCH)
		name := "bin/st2ha-linux-" + runtime.GOARCH
		built := strings.TrimSpace(run(t, clone, "git", "hash-object", name))
		require.Equal(t, strings.TrimSpace(run(t, from, "git", "rev-parse", "v"+version+":"+name)), built)
	})

	t.Run("installed", func(t *testing.T) {
		n := newNode(t)
		n.install(t, "file://"+from, version)
		require.NoFileExists(t, n.pack()+"/requirements.txt")
		for machine, arch := range map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"} {
			static(t, n.pack()+"/bin/st2ha-linux-"+arch, machine)
		}
		require.Empty(t, n.launch(t, `mount -t tmpfs -o ro none /var/cache`, true).stderr.String())
		require.NotContains(t, n.sensor(t, asSt2, n.base+"/exports/st2ha"), "building")
		link := t.TempDir() + "/st2ha"
		require.NoError(t, os.Symlink(n.pack()+"/actions/st2ha", link))
		c := n.start(t, "", true, link, "--help")
		require.Zero(t, c.wait(t), "by a link from elsewhere: %s", c.stderr.String())
	})

	t.Run("pack", func(t *testing.T) {
		run(t, from, "make", "pack")
		dist := from + "/dist/st2ha"
		require.FileExists(t, dist+"/bin/st2ha-linux-amd64")
		require.FileExists(t, from+"/dist/st2ha-"+version+".tgz")
		require.NoDirExists(t, dist+"/test")
		// A directory that is no repository is copied with what its links point to.
		n := newNode(t)
		run(t, "/", "cp", "-rL", dist, n.pack())
		require.FileExists(t, n.pack()+"/actions/workflows/join_secondary.yaml")
		n.launch(t, "", true)
	})
}

// static wants an executable for that machine which loads nothing.
func static(t *testing.T, name string, machine elf.Machine) {
	t.Helper()
	f, err := elf.Open(name)
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, machine, f.Machine)
	for _, p := range f.Progs {
		require.NotEqual(t, elf.PT_INTERP, p.Type, name)
	}
	info, err := os.Stat(name)
	require.NoError(t, err)
	t.Logf("%s: %.1f MB", filepath.Base(name), float64(info.Size())/1e6)
}
