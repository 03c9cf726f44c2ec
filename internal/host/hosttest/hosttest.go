// Package hosttest is the conformance suite that every host.Host passes, with
// the SSH servers to run it against.
package hosttest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/testenv"
)

// Run tests a host of this machine. open gives one, fresh for each call, and a
// directory of its own on it; the suite closes it. It takes root, as whom files are given away.
func Run(t *testing.T, open func(t *testing.T) (h host.Host, dir string)) {
	t.Helper()
	testenv.NeedsRoot(t)
	for name, test := range map[string]func(t *testing.T, f fixture){
		"files":          files,
		"odd files":      oddFiles,
		"directories":    directories,
		"atomic":         atomic,
		"links":          links,
		"foreign links":  foreign,
		"swapped":        swapped,
		"sweep":          sweep,
		"attributes":     attributes,
		"broken":         broken,
		"arguments":      arguments,
		"standard input": standardInput,
		"exit status":    exitStatus,
		"environment":    environment,
		"output":         output,
		"background":     background,
		"cancel":         cancel,
		"dial":           dial,
		"lock":           lock,
		"at once":        atOnce,
		"close":          closing,
	} {
		t.Run(name, func(t *testing.T) {
			h, dir := open(t)
			t.Cleanup(func() { h.Close() })
			ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
			t.Cleanup(stop)
			test(t, fixture{h: h, dir: dir, ctx: ctx, open: open})
		})
	}
}

type fixture struct {
	h    host.Host
	dir  string
	ctx  context.Context
	open func(t *testing.T) (host.Host, string)
}

// path is a name in the directory, for the host.
func (f fixture) path(name string) string { return f.dir + "/" + name }

// real is a host's path for this process.
func (f fixture) real(path string) string {
	if l, ok := f.h.(interface{ Path(string) string }); ok {
		return l.Path(path)
	}
	return path
}

// file is one with the tests' own owner, which needs no rights.
func (f fixture) file(name, data string, mode fs.FileMode) host.File {
	return host.File{Path: f.path(name), Data: []byte(data), Mode: mode, UID: os.Geteuid(), GID: os.Getegid()}
}

// clean fails if anything but the named is left in the directory.
func (f fixture) clean(t *testing.T, want ...string) {
	t.Helper()
	names, err := f.h.ReadDir(f.ctx, f.dir)
	require.NoError(t, err)
	require.ElementsMatch(t, want, names)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("takes root")
	}
}

func files(t *testing.T, f fixture) {
	require.NotEmpty(t, f.h.Name())
	for _, mode := range []fs.FileMode{0o600, 0o644, 0o640, 0o444, 0o755 | fs.ModeSetuid, 0o750 | fs.ModeSetgid, 0} {
		want := f.file("f", "mode "+mode.String(), mode)
		require.NoError(t, f.h.WriteFile(f.ctx, want))
		if mode&0o400 == 0 && os.Geteuid() != 0 {
			continue
		}
		got, err := f.h.ReadFile(f.ctx, want.Path)
		require.NoError(t, err)
		require.Equal(t, want, got)
		info, err := f.h.Stat(f.ctx, want.Path)
		require.NoError(t, err)
		require.Equal(t, host.Info{Mode: mode, UID: want.UID, GID: want.GID, Size: int64(len(want.Data))}, info)
	}
	big := make([]byte, 3<<20+17)
	for i := range big {
		big[i] = byte(rand.Uint32())
	}
	for _, data := range [][]byte{{}, big, []byte("no newline"), []byte("\x00\xff\r\n")} {
		want := f.file("f", string(data), 0o600)
		require.NoError(t, f.h.WriteFile(f.ctx, want))
		got, err := f.h.ReadFile(f.ctx, want.Path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got.Data), "%d bytes", len(data))
	}
	f.clean(t, "f")

	before := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(f.real(f.path("f")), before, before))
	require.NoError(t, f.h.WriteFile(f.ctx, f.file("f", "later", 0o600)))
	fi, err := os.Stat(f.real(f.path("f")))
	require.NoError(t, err)
	require.Less(t, time.Since(fi.ModTime()), time.Minute, "a file that changed looks changed")

	if os.Geteuid() == 0 {
		want := f.file("f", "owned", 0o750|fs.ModeSetgid)
		want.UID, want.GID = 1234, 4321
		require.NoError(t, f.h.WriteFile(f.ctx, want)) // another owner than before
		got, err := f.h.ReadFile(f.ctx, want.Path)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	// Names that a shell or a glob would take for something else.
	for _, name := range []string{"with space", "q'uo\"te", "-rf", "*", "$(id)", "new\nline", "ünï",
		strings.Repeat("n", 250)} {
		want := f.file(name, "1", 0o644)
		require.NoError(t, f.h.WriteFile(f.ctx, want), name)
		want.Data = []byte("2")
		require.NoError(t, f.h.WriteFile(f.ctx, want), name)
		got, err := f.h.ReadFile(f.ctx, want.Path)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.NoError(t, f.h.Remove(f.ctx, want.Path))
	}
	f.clean(t, "f")
}

func oddFiles(t *testing.T, f fixture) {
	missing := f.path("missing")
	_, err := f.h.ReadFile(f.ctx, missing)
	require.ErrorIs(t, err, fs.ErrNotExist)
	oneLine(t, err, missing, f.h.Name())
	_, err = f.h.Stat(f.ctx, missing)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = f.h.ReadDir(f.ctx, missing)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorIs(t, f.h.Remove(f.ctx, missing), fs.ErrNotExist)
	require.ErrorIs(t, f.h.Rename(f.ctx, missing, f.path("to")), fs.ErrNotExist)
	require.ErrorIs(t, f.h.WriteFile(f.ctx, f.file("missing/f", "", 0o600)), fs.ErrNotExist)
	require.ErrorIs(t, f.h.Mkdir(f.ctx, f.path("missing/d"), host.Info{Mode: 0o755}), fs.ErrNotExist)

	// A pipe must not hang it, and what is no file must not be replaced.
	require.NoError(t, unix.Mkfifo(f.real(f.path("fifo")), 0o600))
	require.NoError(t, os.Mkdir(f.real(f.path("d")), 0o755))
	for _, name := range []string{"fifo", "d"} {
		_, err = f.h.ReadFile(f.ctx, f.path(name))
		oneLine(t, err, f.path(name), "not a regular file")
		oneLine(t, f.h.WriteFile(f.ctx, f.file(name, "", 0o600)), "not a regular file")
	}
	_, err = f.h.ReadFile(f.ctx, "relative")
	oneLine(t, err, "not absolute")
	oneLine(t, f.h.WriteFile(f.ctx, f.file("nul\x00", "", 0o600)), "NUL")

	huge := f.path("huge")
	require.NoError(t, os.WriteFile(f.real(huge), nil, 0o600))
	require.NoError(t, os.Truncate(f.real(huge), 65<<20))
	_, err = f.h.ReadFile(f.ctx, huge)
	oneLine(t, err, "larger than 64 MiB")

	done, stop := context.WithCancel(f.ctx)
	stop()
	_, err = f.h.ReadFile(done, huge)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, f.h.WriteFile(done, f.file("never", "", 0o600)), context.Canceled)
	f.clean(t, "d", "fifo", "huge")
}

func directories(t *testing.T, f fixture) {
	d := f.path("d")
	info := host.Info{Mode: 0o775 | fs.ModeSetgid, UID: os.Geteuid(), GID: os.Getegid()}
	if os.Geteuid() == 0 {
		info.UID, info.GID = 1234, 4321
	}
	require.NoError(t, f.h.Mkdir(f.ctx, d, info))
	got, err := f.h.Stat(f.ctx, d)
	require.NoError(t, err)
	require.Equal(t, info.Mode|fs.ModeDir, got.Mode)
	require.Equal(t, [2]int{info.UID, info.GID}, [2]int{got.UID, got.GID})
	require.ErrorIs(t, f.h.Mkdir(f.ctx, d, info), fs.ErrExist)
	for _, name := range []string{"b", "a", "c", ".hidden"} {
		require.NoError(t, f.h.WriteFile(f.ctx, f.file("d/"+name, name, 0o600)))
	}
	names, err := f.h.ReadDir(f.ctx, d)
	require.NoError(t, err)
	require.Equal(t, []string{".hidden", "a", "b", "c"}, names)
	require.Error(t, f.h.Remove(f.ctx, d), "it is not empty")

	// No rename replaces anything.
	require.ErrorIs(t, f.h.Rename(f.ctx, d+"/a", d+"/b"), fs.ErrExist)
	require.NoError(t, os.Mkdir(f.real(f.path("e")), 0o755))
	require.ErrorIs(t, f.h.Rename(f.ctx, d, f.path("e")), fs.ErrExist)
	require.NoError(t, f.h.Remove(f.ctx, f.path("e")))
	require.NoError(t, f.h.Rename(f.ctx, d+"/a", f.path("moved")))
	require.NoError(t, f.h.Rename(f.ctx, d, f.path("e")))
	got2, err := f.h.ReadFile(f.ctx, f.path("moved"))
	require.NoError(t, err)
	require.Equal(t, "a", string(got2.Data))
	f.clean(t, "moved", "e")
	for _, name := range []string{"e/.hidden", "e/b", "e/c", "e", "moved"} {
		require.NoError(t, f.h.Remove(f.ctx, f.path(name)))
	}
	f.clean(t)
}

// atomic reads in a loop while the file is written.
func atomic(t *testing.T, f fixture) {
	contents := [2]string{strings.Repeat("a", 100_000), strings.Repeat("b", 150_001)}
	require.NoError(t, f.h.WriteFile(f.ctx, f.file("f", contents[0], 0o640)))
	stop := make(chan struct{})
	torn := make(chan string, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			b, err := os.ReadFile(f.real(f.path("f")))
			if err != nil || string(b) != contents[0] && string(b) != contents[1] {
				select {
				case torn <- fmt.Sprintf("%d bytes, %v", len(b), err):
				default:
				}
			}
		}
	})
	for i := range 20 {
		if err := f.h.WriteFile(f.ctx, f.file("f", contents[(i+1)%2], 0o640)); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
	select {
	case what := <-torn:
		t.Fatalf("a reader saw neither the old nor the new file: %s", what)
	default:
	}
	f.clean(t, "f")
}

// What a killed WriteFile leaves is removed, and nothing that merely looks like it.
func sweep(t *testing.T, f fixture) {
	put := func(names ...string) {
		for _, name := range names {
			require.NoError(t, os.WriteFile(f.real(f.path(name)), []byte("half"), 0o600))
		}
	}
	const left = ".f.st2ha-0123456789abcdef"
	others := []string{"f", ".f.st2ha-0123456789abcde", ".f.st2ha-0123456789abcdeg", ".f.st2ha-0123456789abcdef0",
		"f.st2ha-0123456789abcdef",
		".g.st2ha-0123456789abcdef", ".ff.st2ha-0123456789abcdef", ".f.before-st2ha", "dir"}
	put(others[:len(others)-1]...)
	require.NoError(t, os.MkdirAll(f.real(f.path("dir/.f.st2ha-0123456789abcdef")), 0o755))
	put(left, ".f.st2ha-fedcba9876543210")
	require.NoError(t, f.h.Sweep(f.ctx, f.path("f")))
	f.clean(t, others...)
	require.NoError(t, f.h.Sweep(f.ctx, f.path("f")), "nothing to do")
	require.NoError(t, f.h.Sweep(f.ctx, f.path("none/f")), "no such directory")
	require.NoError(t, f.h.Sweep(f.ctx, f.path("dir/f")))
	require.DirExists(t, f.real(f.path("dir/.f.st2ha-0123456789abcdef")), "no file")

	// It lies beside the file that is written, not beside a link to it.
	put(left)
	require.NoError(t, os.Symlink("../f", f.real(f.path("dir/link"))))
	require.NoError(t, f.h.Sweep(f.ctx, f.path("dir/link")))
	f.clean(t, others...)

	// The pattern is that of what WriteFile makes, also for the longest name.
	long := strings.Repeat("n", 255)
	put(long, "."+long[:200]+".st2ha-0123456789abcdef")
	require.NoError(t, f.h.Sweep(f.ctx, f.path(long)))
	f.clean(t, append(others, long)...)
}

func links(t *testing.T, f fixture) {
	require.NoError(t, os.MkdirAll(f.real(f.path("there/deep")), 0o755))
	require.NoError(t, f.h.WriteFile(f.ctx, f.file("there/f", "old", 0o640)))
	for link, target := range map[string]string{
		"absolute": f.path("there/f"), "relative": "there/f", "up": "there/deep/../f",
		"twice": "absolute", "dir": f.path("there"), "dangling": "there/new", "loop": "loop",
	} {
		require.NoError(t, os.Symlink(target, f.real(f.path(link))))
	}
	for i, name := range []string{"absolute", "relative", "up", "twice", "dir/f"} {
		data := fmt.Sprint("new ", i)
		require.NoError(t, f.h.WriteFile(f.ctx, f.file(name, data, 0o640)), name)
		for _, where := range []string{name, "there/f"} {
			got, err := f.h.ReadFile(f.ctx, f.path(where))
			require.NoError(t, err)
			require.Equal(t, data, string(got.Data))
		}
	}
	require.NoError(t, f.h.WriteFile(f.ctx, f.file("dangling", "made", 0o640)))
	got, err := f.h.ReadFile(f.ctx, f.path("there/new"))
	require.NoError(t, err)
	require.Equal(t, "made", string(got.Data))
	require.Error(t, f.h.WriteFile(f.ctx, f.file("loop", "", 0o640)))
	_, err = f.h.ReadFile(f.ctx, f.path("loop"))
	require.Error(t, err)
	for _, name := range []string{"absolute", "relative", "up", "twice", "dir", "dangling"} {
		fi, err := os.Lstat(f.real(f.path(name)))
		require.NoError(t, err)
		require.NotZero(t, fi.Mode()&fs.ModeSymlink, name)
	}
	info, err := f.h.Stat(f.ctx, f.path("twice"))
	require.NoError(t, err)
	require.True(t, info.Mode.IsRegular())
	require.NoError(t, f.h.Remove(f.ctx, f.path("twice")), "of a link removes the link")
	_, err = f.h.Stat(f.ctx, f.path("there/f"))
	require.NoError(t, err)
	f.clean(t, "absolute", "relative", "up", "dir", "dangling", "loop", "there")
}

func attributes(t *testing.T, f fixture) {
	needRoot(t) // for security.* and another's ACL
	target := f.file("f", "old", 0o640)
	require.NoError(t, f.h.WriteFile(f.ctx, target))
	real := f.real(target.Path)
	// user::rw- user:1234:rw- group::r-- mask::rw- other::---
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{1, 6, ^uint32(0)}, {2, 6, 1234}, {4, 4, ^uint32(0)}, {0x10, 6, ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	want := map[string]string{"user.st2ha.test": "kept\x00\xff", "user.empty": "", "security.st2ha": "label"}
	for name, value := range want {
		require.NoError(t, unix.Lsetxattr(real, name, []byte(value), 0),
			"the test's directory needs a file system with extended attributes, and %s has no %s", real, name)
	}
	require.NoError(t, unix.Lsetxattr(real, "system.posix_acl_access", acl, 0),
		"the test's directory needs a file system with ACLs")
	want["system.posix_acl_access"] = string(acl)
	info, err := f.h.Stat(f.ctx, target.Path)
	require.NoError(t, err)
	target.Mode, target.Data = info.Mode, []byte("new")
	require.NoError(t, f.h.WriteFile(f.ctx, target))
	got, err := f.h.ReadFile(f.ctx, target.Path)
	require.NoError(t, err)
	require.Equal(t, target, got)
	for name, value := range want {
		buf := make([]byte, 200)
		n, err := unix.Lgetxattr(real, name, buf)
		require.NoError(t, err, name)
		require.Equal(t, value, string(buf[:n]), name)
	}
	// A file without an ACL does not get one from its directory's default.
	require.NoError(t, f.h.WriteFile(f.ctx, f.file("plain", "old", 0o644)))
	require.NoError(t, unix.Lsetxattr(f.real(f.dir), "system.posix_acl_default", acl, 0))
	require.NoError(t, f.h.WriteFile(f.ctx, f.file("plain", "new", 0o644)))
	_, err = unix.Lgetxattr(f.real(f.path("plain")), "system.posix_acl_access", nil)
	require.ErrorIs(t, err, unix.ENODATA)
	f.clean(t, "f", "plain")
}

// broken meets files and file systems that cannot be written.
func broken(t *testing.T, f fixture) {
	needRoot(t)
	is := func(err error, code string, words ...string) {
		t.Helper()
		var e *fault.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, code, e.Code, err.Error())
		require.NotEmpty(t, e.Hint)
		oneLine(t, err, words...)
	}
	t.Run("immutable", func(t *testing.T) {
		require.NoError(t, f.h.WriteFile(f.ctx, f.file("f", "old", 0o644)))
		if out, err := exec.Command("chattr", "+i", f.real(f.path("f"))).CombinedOutput(); err != nil {
			t.Fatalf("chattr: %s", out)
		}
		t.Cleanup(func() { exec.Command("chattr", "-i", f.real(f.path("f"))).Run() })
		is(f.h.WriteFile(f.ctx, f.file("f", "new", 0o644)), "immutable", f.path("f"), "lsattr", "chattr -i")
		got, err := f.h.ReadFile(f.ctx, f.path("f"))
		require.NoError(t, err)
		require.Equal(t, "old", string(got.Data))
		f.clean(t, "f")
	})
	t.Run("full and read-only", func(t *testing.T) {
		small := f.real(f.path("small"))
		require.NoError(t, os.Mkdir(small, 0o755))
		if err := unix.Mount("st2ha-test", small, "tmpfs", 0, "size=128k"); err != nil {
			os.Remove(small)
			t.Fatalf("mount a tmpfs: %v", err)
		}
		t.Cleanup(func() {
			unix.Unmount(small, unix.MNT_DETACH)
			os.Remove(small)
		})
		require.NoError(t, f.h.WriteFile(f.ctx, f.file("small/f", "old", 0o644)))
		is(f.h.WriteFile(f.ctx, f.file("small/f", strings.Repeat("x", 300_000), 0o644)), "disk_full", f.path("small/f"))
		names, err := f.h.ReadDir(f.ctx, f.path("small"))
		require.NoError(t, err)
		require.Equal(t, []string{"f"}, names)
		require.NoError(t, f.h.WriteFile(f.ctx, f.file("small/f", "still", 0o644)), "there is room again")
		require.NoError(t, unix.Mount("st2ha-test", small, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, "size=128k"))
		is(f.h.WriteFile(f.ctx, f.file("small/f", "new", 0o644)), "read_only", f.path("small/f"))
		is(f.h.Mkdir(f.ctx, f.path("small/d"), host.Info{Mode: 0o755}), "read_only")
		is(f.h.Remove(f.ctx, f.path("small/f")), "read_only")
		got, err := f.h.ReadFile(f.ctx, f.path("small/f"))
		require.NoError(t, err)
		require.Equal(t, "still", string(got.Data))
	})
}

func arguments(t *testing.T, f fixture) {
	every := make([]byte, 0, 255)
	for b := 1; b < 256; b++ {
		every = append(every, byte(b))
	}
	args := []string{"", " ", "'", `"`, "''", `\`, "$HOME", "`id`", "$(id)", "*", "~", "!!", "a\nb", "\n", "-n", "--",
		"%s", "a=b", "#", ";", "&", "|", ">", string(every), strings.Repeat("x", 50_000)}
	for _, b := range every {
		args = append(args, string([]byte{b}), string([]byte{'a', b, b, 'z'}))
	}
	out, err := f.h.Run(f.ctx, nil, append([]string{"printf", `%s\0`}, args...)...)
	require.NoError(t, err)
	require.Equal(t, strings.Join(args, "\x00")+"\x00", string(out))
	_, err = f.h.Run(f.ctx, nil, "printf", "a\x00b")
	oneLine(t, err, "NUL", f.h.Name())
	_, err = f.h.Run(f.ctx, nil)
	require.Error(t, err)
	_, err = f.h.Run(f.ctx, nil, "")
	require.Error(t, err)
}

func standardInput(t *testing.T, f fixture) {
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	out, err := f.h.Run(f.ctx, data, "cat")
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, out))
	out, err = f.h.Run(f.ctx, nil, "cat")
	require.NoError(t, err)
	require.Empty(t, out)
	_, err = f.h.Run(f.ctx, data, "true")
	require.NoError(t, err, "a program need not read it")
}

func exitStatus(t *testing.T, f fixture) {
	out, err := f.h.Run(f.ctx, nil, "sh", "-c", "echo out; echo first >&2; echo middle >&2; echo last >&2; exit 42")
	var exit *host.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, host.ExitError{Program: "sh", Code: 42, Stderr: "first\nmiddle\nlast\n"}, *exit)
	require.Equal(t, "out\n", string(out))
	oneLine(t, err, f.h.Name(), "42", "first … last")
	for name, code := range map[string]int{"KILL": 137, "TERM": 143} {
		_, err = f.h.Run(f.ctx, nil, "sh", "-c", "kill -"+name+" $$; sleep 5")
		require.ErrorAs(t, err, &exit)
		require.Equal(t, code, exit.Code, name)
	}
	_, err = f.h.Run(f.ctx, nil, "false", "subcommand", "secret")
	require.ErrorAs(t, err, &exit)
	require.Equal(t, "false subcommand", exit.Program)
	_, err = f.h.Run(f.ctx, nil, "st2ha-no-such-program")
	require.ErrorIs(t, err, exec.ErrNotFound)
	oneLine(t, err, "st2ha-no-such-program", f.h.Name())
	require.NotErrorAs(t, err, &exit)
}

func environment(t *testing.T, f fixture) {
	t.Setenv("ST2HA_PASSWORD", "secret")
	t.Setenv("ST2_ACTION_AUTH_TOKEN", "secret")
	out, err := f.h.Run(f.ctx, nil, "sh", "-c", `echo "$LC_ALL:$PATH"; pwd`)
	require.NoError(t, err)
	require.Equal(t, "C:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n/\n", string(out))
	if f.h.IsLocal() {
		out, err := f.h.Run(f.ctx, nil, "env")
		require.NoError(t, err)
		require.NotContains(t, string(out), "secret")
	}
}

func output(t *testing.T, f fixture) {
	out, err := f.h.Run(f.ctx, nil, "head", "-c", "16777216", "/dev/zero")
	require.NoError(t, err)
	require.Len(t, out, 16<<20)
	start := time.Now()
	_, err = f.h.Run(f.ctx, nil, "cat", "/dev/zero")
	oneLine(t, err, "more than 16 MiB")
	require.Less(t, time.Since(start), 10*time.Second)
	_, err = f.h.Run(f.ctx, nil, "sh", "-c", "echo first >&2; head -c 5000000 /dev/zero >&2; echo last >&2; exit 1")
	var exit *host.ExitError
	require.ErrorAs(t, err, &exit)
	require.Less(t, len(exit.Stderr), 140_000)
	require.True(t, strings.HasPrefix(exit.Stderr, "first\n"))
	require.True(t, strings.HasSuffix(exit.Stderr, "last\n"))
}

// background leaves a program behind that holds the output open.
func background(t *testing.T, f fixture) {
	start := time.Now()
	out, err := f.h.Run(f.ctx, nil, "sh", "-c", "sleep 4 & echo started")
	require.NoError(t, err)
	require.Equal(t, "started\n", string(out))
	require.Less(t, time.Since(start), 3*time.Second)
}

func cancel(t *testing.T, f fixture) {
	// A number that is in no other process's arguments.
	mark := fmt.Sprintf("%d.%d", 100_000+rand.IntN(900_000), 1+rand.IntN(900_000))
	ctx, stop := context.WithCancel(f.ctx)
	time.AfterFunc(300*time.Millisecond, stop)
	start := time.Now()
	_, err := f.h.Run(ctx, nil, "sh", "-c",
		`trap "" TERM HUP INT PIPE; sleep `+mark+` & sleep `+mark+` >/dev/null 2>&1 </dev/null & sh -c "sleep `+
			mark+`; :"; :`)
	require.ErrorIs(t, err, context.Canceled)
	oneLine(t, err, "run sh", f.h.Name())
	require.Less(t, time.Since(start), 10*time.Second, "and not for as long as the programs would have run")
	require.Eventually(t, func() bool { return len(running(mark)) == 0 }, 10*time.Second, 20*time.Millisecond,
		"left: %v", running(mark))

	ctx, stop = context.WithTimeout(f.ctx, 50*time.Millisecond)
	defer stop()
	_, err = f.h.Run(ctx, nil, "sleep", mark)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = f.h.Run(ctx, nil, "sleep", mark)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Eventually(t, func() bool { return len(running(mark)) == 0 }, 500*time.Millisecond, 20*time.Millisecond)
	// At whatever moment the end comes, nothing is left.
	for range 15 {
		ctx, stop := context.WithTimeout(f.ctx, time.Duration(rand.IntN(15_000))*time.Microsecond)
		_, err = f.h.Run(ctx, nil, "sleep", mark)
		stop()
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	require.Eventually(t, func() bool { return len(running(mark)) == 0 }, 500*time.Millisecond, 20*time.Millisecond)
	out, err := f.h.Run(f.ctx, nil, "echo", "still usable")
	require.NoError(t, err)
	require.Equal(t, "still usable\n", string(out))
}

// running lists the processes that have a word in their arguments.
func running(word string) (found []string) {
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		b, _ := os.ReadFile(name)
		if bytes.Contains(b, []byte(word)) {
			found = append(found, name+": "+strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return found
}

func dial(t *testing.T, f fixture) {
	addr := testenv.Serve(t, func(c net.Conn) { io.Copy(c, c) })
	conn, err := f.h.DialContext(f.ctx, "tcp", addr)
	require.NoError(t, err)
	require.NotPanics(t, func() { _ = conn.LocalAddr().String() + conn.LocalAddr().Network() })
	require.Equal(t, addr, conn.RemoteAddr().String())
	data := bytes.Repeat([]byte("0123456789abcdef"), 40_000)
	go conn.Write(data)
	got := make([]byte, len(data))
	_, err = io.ReadFull(conn, got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))

	// Deadlines, which drivers live by, end a call and can be taken back.
	start := time.Now()
	require.NoError(t, conn.SetReadDeadline(start.Add(100*time.Millisecond)))
	_, err = conn.Read(got)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	var ne net.Error
	require.ErrorAs(t, err, &ne)
	require.True(t, ne.Timeout())
	require.Less(t, time.Since(start), time.Second)
	require.NoError(t, conn.SetDeadline(time.Now().Add(-time.Second)))
	_, err = conn.Write([]byte("x"))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, conn.SetDeadline(time.Time{}))
	_, err = conn.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(conn, got[:1])
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	_, err = conn.Read(got)
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = conn.Write(got)
	require.ErrorIs(t, err, net.ErrClosed)
	require.ErrorIs(t, conn.SetDeadline(time.Now()), net.ErrClosed)

	// The far side's end is EOF here, after all it sent; and what was written
	// just before Close arrives.
	l2, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l2.Close()
	received := make(chan string, 1)
	go func() {
		c, err := l2.Accept()
		if err != nil {
			return
		}
		io.WriteString(c, "bye")
		c.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(c)
		received <- string(b)
		c.Close()
	}()
	conn, err = f.h.DialContext(f.ctx, "tcp", l2.Addr().String())
	require.NoError(t, err)
	_, err = conn.Write([]byte("last words"))
	require.NoError(t, err)
	require.NoError(t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	said, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "bye", string(said))
	require.NoError(t, conn.Close())
	select {
	case got := <-received:
		require.Equal(t, "last words", got)
	case <-time.After(5 * time.Second):
		t.Fatal("what was written before Close did not arrive")
	}

	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr = closed.Addr().String()
	closed.Close()
	_, err = f.h.DialContext(f.ctx, "tcp", addr)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	oneLine(t, err, addr, f.h.Name(), "connection refused")
	ctx, stop := context.WithCancel(f.ctx)
	stop()
	_, err = f.h.DialContext(ctx, "tcp", addr)
	require.Error(t, err)
}

func lock(t *testing.T, f fixture) {
	path := f.path("lock")
	other, _ := f.open(t)
	t.Cleanup(func() { other.Close() })
	Exclude(t, f.h, other, path)
	Exclude(t, other, f.h, path)
	Exclude(t, f.h, f.h, path)
	_, err := f.h.Lock(f.ctx, f.path("missing/lock"), "x")
	require.ErrorIs(t, err, fs.ErrNotExist)
	fi, err := os.Stat(f.real(path))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), fi.Mode())
}

// Exclude tests that b cannot take the lock that a holds, that it is told who
// holds it, and that it gets it at once when a releases it.
func Exclude(t *testing.T, a, b host.Host, path string) {
	t.Helper()
	note := `run 7 of "join_secondary" on $(hostname), it's pid 42`
	release, err := a.Lock(t.Context(), path, note)
	require.NoError(t, err)
	start := time.Now()
	_, err = b.Lock(t.Context(), path, "b")
	var locked *host.LockedError
	require.ErrorAs(t, err, &locked)
	require.Equal(t, host.LockedError{Path: path, Holder: note}, *locked)
	oneLine(t, err, b.Name(), note)
	require.Less(t, time.Since(start), 5*time.Second)
	release()
	f, err := b.ReadFile(t.Context(), path)
	require.NoError(t, err)
	require.Empty(t, f.Data, "the note is emptied at release")
	release2, err := b.Lock(t.Context(), path, "b")
	require.NoError(t, err, "released means free")
	release() // a second time is harmless
	_, err = a.Lock(t.Context(), path, "a")
	require.ErrorAs(t, err, &locked)
	require.Equal(t, "b", locked.Holder)
	release2()
}

// atOnce uses a host from many goroutines.
func atOnce(t *testing.T, f fixture) {
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			name := fmt.Sprint("f", i)
			out, err := f.h.Run(f.ctx, []byte(name), "cat")
			if err != nil || string(out) != name {
				t.Errorf("run: %q, %v", out, err)
			}
			for range 2 {
				if err := f.h.WriteFile(f.ctx, f.file(name, name, 0o600)); err != nil {
					t.Error(err)
				}
			}
			if got, err := f.h.ReadFile(f.ctx, f.path(name)); err != nil || string(got.Data) != name {
				t.Errorf("read: %q, %v", got.Data, err)
			}
		})
	}
	wg.Wait()
}

// closing ends what is under way, and leaves no goroutine.
func closing(t *testing.T, f fixture) {
	if f.h.IsLocal() {
		require.NoError(t, f.h.Close())
		return
	}
	before := Goroutines()
	h, _ := f.open(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, err = h.DialContext(f.ctx, "tcp", l.Addr().String())
	require.NoError(t, err)
	_, err = h.Lock(f.ctx, f.path("lock"), "x")
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := h.Run(context.WithoutCancel(f.ctx), nil, "sleep", "2")
		ended <- err
	}()
	time.Sleep(100 * time.Millisecond)
	start := time.Now()
	require.NoError(t, h.Close())
	require.NoError(t, h.Close())
	require.Less(t, time.Since(start), time.Second)
	require.Error(t, <-ended)
	_, err = h.Run(f.ctx, nil, "true")
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = h.ReadFile(f.ctx, f.path("f"))
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = h.DialContext(f.ctx, "tcp", l.Addr().String())
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = h.Lock(f.ctx, f.path("lock"), "x")
	require.ErrorIs(t, err, net.ErrClosed)
	require.Eventually(t, func() bool { return Goroutines() <= before }, 5*time.Second, 50*time.Millisecond)
	require.Eventually(t, func() bool {
		release, err := f.h.Lock(f.ctx, f.path("lock"), "y")
		if err == nil {
			release()
		}
		return err == nil
	}, 5*time.Second, 50*time.Millisecond, "the lock goes with the connection")
}

// oneLine fails unless err is one line with all of the words.
func oneLine(t *testing.T, err error, words ...string) {
	t.Helper()
	require.Error(t, err)
	require.NotContains(t, err.Error(), "\n")
	for _, w := range words {
		require.Contains(t, err.Error(), w)
	}
	var e *fault.Error
	if errors.As(err, &e) {
		require.NotContains(t, e.Hint, "\n")
	}
}
