package hosttest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"st2ha/internal/fault"
	"st2ha/internal/host"
)

// swapper is the variable that makes a test's own program the one that swaps
// files for links, in the directory it names.
const swapper = "ST2HA_TEST_SWAPPER"

// stranger is the user, and the group, who owns a directory that root writes into.
const stranger = 4711

// Swap is to be called first in TestMain: it does not return in the process
// that plays the owner of a directory.
func Swap() {
	if dir := os.Getenv(swapper); dir != "" {
		fmt.Fprintln(os.Stderr, swap(dir)) // else it does not return
		os.Exit(1)
	}
}

// swap exchanges file and link, and directory and link, as fast as it can, and
// puts links in the place of temporary files, until it is killed.
func swap(dir string) error {
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(stranger), syscall.Setuid(stranger)); err != nil {
		return err
	}
	pairs := [][2]string{{"f", "f.link"}, {"n", "n.link"}, {"d", "d.link"}}
	for _, err := range []error{
		os.Symlink("../victim/secret", dir+"/f.link"), os.Symlink("../victim/made", dir+"/n.link"),
		os.Symlink("../victim", dir+"/d.link"),
		os.WriteFile(dir+"/swapping", nil, 0o600),
	} {
		if err != nil {
			return err
		}
	}
	for n := 0; ; n++ {
		for _, p := range pairs {
			_ = unix.Renameat2(unix.AT_FDCWD, dir+"/"+p[0], unix.AT_FDCWD, dir+"/"+p[1], unix.RENAME_EXCHANGE)
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if name := dir + "/" + e.Name(); strings.Contains(e.Name(), ".st2ha-") || e.Name() == "new" {
				if os.Rename(name, fmt.Sprint(dir, "/was", n)) == nil {
					_ = os.Symlink("../victim/secret", name)
				}
				_ = os.Remove(fmt.Sprint(dir, "/was", n))
			}
		}
	}
}

// hostileFixture is a directory of a stranger's beside one of root's with a secret.
func hostileFixture(t *testing.T, f fixture) (theirs, victim string) {
	t.Helper()
	needRoot(t)
	theirs, victim = f.path("theirs"), f.path("victim")
	for _, dir := range []string{theirs, victim} {
		require.NoError(t, os.Mkdir(f.real(dir), 0o755))
		require.NoError(t, os.Chmod(f.real(dir), 0o755))
	}
	for dir := f.real(f.dir); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) { // the stranger has to get there
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	require.NoError(t, os.WriteFile(f.real(victim+"/secret"), []byte("secret"), 0o600))
	require.NoError(t, os.Chown(f.real(theirs), stranger, stranger))
	return theirs, victim
}

// unharmed fails if anything of root's is not as hostileFixture made it.
func unharmed(t *testing.T, f fixture, victim string) {
	t.Helper()
	entries, err := os.ReadDir(f.real(victim))
	require.NoError(t, err)
	require.Len(t, entries, 1, "%v", entries)
	fi, err := os.Lstat(f.real(victim + "/secret"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), fi.Mode())
	require.Equal(t, uint32(0), fi.Sys().(*syscall.Stat_t).Uid)
	data, err := os.ReadFile(f.real(victim + "/secret"))
	require.NoError(t, err)
	require.Equal(t, "secret", string(data))
}

// foreign has links that a directory's owner, or its group, may have made.
func foreign(t *testing.T, f fixture) {
	theirs, victim := hostileFixture(t, f)
	link := func(target, name string) {
		require.NoError(t, os.Symlink(target, f.real(name)))
		require.NoError(t, os.Lchown(f.real(name), stranger, stranger))
	}
	link(victim+"/secret", theirs+"/f")
	link("../victim/secret", theirs+"/relative")
	link(victim+"/made", theirs+"/dangling")
	link(victim, theirs+"/d")
	link(theirs+"/f", theirs+"/twice")
	refused := func(err error, name string) {
		t.Helper()
		var e *fault.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, "foreign_link", e.Code, err.Error())
		require.NotEmpty(t, e.Hint)
		oneLine(t, err, name, f.h.Name(), fmt.Sprint("user ", stranger))
	}
	for _, name := range []string{"f", "relative", "d/secret", "twice"} {
		_, err := f.h.ReadFile(f.ctx, theirs+"/"+name)
		refused(err, theirs)
		_, err = f.h.Stat(f.ctx, theirs+"/"+name)
		refused(err, theirs)
	}
	for _, name := range []string{"f", "relative", "dangling", "d/secret", "d/made", "twice"} {
		refused(f.h.WriteFile(f.ctx, f.file("theirs/"+name, "new", 0o666)), theirs)
	}
	_, err := f.h.Lock(f.ctx, theirs+"/dangling", "x")
	refused(err, theirs)
	_, err = f.h.ReadDir(f.ctx, theirs+"/d")
	refused(err, theirs)
	refused(f.h.Mkdir(f.ctx, theirs+"/d/made", host.Info{Mode: 0o777}), theirs)
	refused(f.h.Remove(f.ctx, theirs+"/d/secret"), theirs)
	refused(f.h.Rename(f.ctx, theirs+"/d/secret", theirs+"/taken"), theirs)
	require.NoError(t, f.h.WriteFile(f.ctx, f.file("mine", "mine", 0o600)))
	refused(f.h.Rename(f.ctx, f.path("mine"), theirs+"/d/made"), theirs)
	refused(f.h.Sweep(f.ctx, theirs+"/d/made"), theirs)
	_, err = f.h.Resolve(f.ctx, theirs+"/d")
	refused(err, theirs)
	unharmed(t, f, victim)
	require.NoError(t, f.h.Remove(f.ctx, theirs+"/f"), "of the link itself")
	unharmed(t, f, victim)

	// What stays with its owner is as it always was.
	require.NoError(t, os.Mkdir(f.real(theirs+"/sub"), 0o755))
	require.NoError(t, os.Chown(f.real(theirs+"/sub"), stranger, stranger))
	require.NoError(t, os.WriteFile(f.real(theirs+"/sub/own"), []byte("old"), 0o640))
	require.NoError(t, os.Chown(f.real(theirs+"/sub/own"), stranger, stranger))
	require.NoError(t, unix.Lsetxattr(f.real(theirs+"/sub/own"), "user.st2ha.test", []byte("kept"), 0))
	link("sub/own", theirs+"/f")
	for _, name := range []string{"f", "sub/own", "sub/new"} {
		want := f.file("theirs/"+name, "by "+name, 0o640)
		want.UID, want.GID = stranger, stranger
		require.NoError(t, f.h.WriteFile(f.ctx, want), name)
		got, err := f.h.ReadFile(f.ctx, want.Path)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	real, err := f.h.Resolve(f.ctx, theirs+"/f")
	require.NoError(t, err)
	require.Equal(t, theirs+"/sub/own", real)
	buf := make([]byte, 100)
	n, err := unix.Lgetxattr(f.real(theirs+"/sub/own"), "user.st2ha.test", buf)
	require.NoError(t, err)
	require.Equal(t, "kept", string(buf[:n]))
	info := host.Info{Mode: 0o750, UID: stranger, GID: 1234}
	require.NoError(t, f.h.Mkdir(f.ctx, theirs+"/sub/dir", info))
	require.ErrorIs(t, f.h.Mkdir(f.ctx, theirs+"/sub/dir", info), fs.ErrExist)
	got, err := f.h.Stat(f.ctx, theirs+"/sub/dir")
	require.NoError(t, err)
	require.Equal(t, info.Mode|fs.ModeDir, got.Mode)
	require.Equal(t, [2]int{stranger, 1234}, [2]int{got.UID, got.GID})
	require.NoError(t, f.h.Rename(f.ctx, theirs+"/sub/new", theirs+"/sub/dir/moved"))
	require.ErrorIs(t, f.h.Rename(f.ctx, theirs+"/sub/dir/moved", theirs+"/sub/own"), fs.ErrExist)
	require.NoError(t, os.WriteFile(f.real(theirs+"/sub/.own.st2ha-0123456789abcdef"), nil, 0o600))
	require.NoError(t, f.h.Sweep(f.ctx, theirs+"/f"))
	names, err := f.h.ReadDir(f.ctx, theirs+"/sub")
	require.NoError(t, err)
	require.Equal(t, []string{"dir", "own"}, names)
	require.NoError(t, f.h.Remove(f.ctx, theirs+"/sub/dir/moved"))
	require.NoError(t, f.h.Remove(f.ctx, theirs+"/sub/dir"))

	// A link of root's in root's directory leads anywhere, also to a stranger's file.
	require.NoError(t, os.Symlink(theirs+"/sub/own", f.real(f.path("root's"))))
	file := f.file("root's", "by root's link", 0o640)
	require.NoError(t, f.h.WriteFile(f.ctx, file))
	data, err := os.ReadFile(f.real(theirs + "/sub/own"))
	require.NoError(t, err)
	require.Equal(t, "by root's link", string(data))

	// Whoever may write a directory by its group may have made its links.
	require.NoError(t, os.Mkdir(f.real(f.path("group")), 0o755))
	require.NoError(t, os.Chown(f.real(f.path("group")), 0, stranger))
	require.NoError(t, os.Symlink(victim+"/secret", f.real(f.path("group/f"))))
	_, err = f.h.ReadFile(f.ctx, f.path("group/f"))
	require.NoError(t, err, "nobody but root may write it")
	require.NoError(t, os.Chmod(f.real(f.path("group")), 0o775))
	_, err = f.h.ReadFile(f.ctx, f.path("group/f"))
	require.ErrorContains(t, err, fmt.Sprint("group ", stranger))
	require.NoError(t, f.h.WriteFile(f.ctx, f.file("group/plain", "x", 0o644)))
	unharmed(t, f, victim)
}

// swapped works in a directory whose owner swaps all that is in it all the
// time. What fails, fails; nothing of root's is read or changed.
func swapped(t *testing.T, f fixture) {
	theirs, victim := hostileFixture(t, f)
	require.NoError(t, os.WriteFile(f.real(theirs+"/f"), []byte("theirs"), 0o644))
	require.NoError(t, os.WriteFile(f.real(theirs+"/n"), []byte("theirs"), 0o644))
	require.NoError(t, os.Mkdir(f.real(theirs+"/d"), 0o777))
	for _, name := range []string{"/f", "/n", "/d"} {
		require.NoError(t, os.Chown(f.real(theirs+name), stranger, stranger))
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), swapper+"="+f.real(theirs))
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	require.Eventually(t, func() bool {
		_, err := os.Stat(f.real(theirs + "/swapping"))
		return err == nil
	}, 10*time.Second, 5*time.Millisecond)
	done, refused := map[string]int{}, 0
	count := func(what string, err error) {
		var e *fault.Error
		if err == nil {
			done[what]++
		} else if errors.As(err, &e) && e.Code == "foreign_link" {
			refused++
		}
	}
	// At least so long, and until each has been met: beside other work few rounds fit into any time.
	met := func() bool { return refused > 0 && done["write"] > 0 && done["read"] > 0 }
	for began := time.Now(); time.Since(began) < 1500*time.Millisecond || !met() && time.Since(began) < time.Minute; {
		for _, name := range []string{"theirs/f", "theirs/n", "theirs/d/secret", "theirs/d/made"} {
			file := f.file(name, "of a run", 0o666)
			file.UID, file.GID = stranger, stranger
			count("write", f.h.WriteFile(f.ctx, file))
			got, err := f.h.ReadFile(f.ctx, f.path(name))
			require.NotEqual(t, "secret", string(got.Data))
			count("read", err)
			_, err = f.h.Stat(f.ctx, f.path(name))
			count("stat", err)
		}
		_, err := f.h.ReadDir(f.ctx, theirs+"/d")
		count("read directory", err)
		count("mkdir", f.h.Mkdir(f.ctx, theirs+"/new", host.Info{Mode: 0o777, UID: stranger, GID: stranger}))
		count("mkdir", f.h.Mkdir(f.ctx, theirs+"/d/new", host.Info{Mode: 0o777, UID: stranger, GID: stranger}))
		count("rename", f.h.Rename(f.ctx, theirs+"/d/secret", theirs+"/d/made"))
		count("remove", f.h.Remove(f.ctx, theirs+"/d/secret"))
		count("remove", f.h.Remove(f.ctx, theirs+"/d/made"))
		count("remove", f.h.Remove(f.ctx, theirs+"/d/new"))
		count("sweep", f.h.Sweep(f.ctx, theirs+"/d/made"))
		unharmed(t, f, victim)
	}
	t.Logf("%d refused, done: %v", refused, done)
	require.True(t, met())
	require.NoError(t, cmd.Process.Signal(syscall.Signal(0)), "it swapped to the end")
}
