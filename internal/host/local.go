package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Local is the machine this process runs on.
type Local struct {
	name string
	root string // put before every path of Files and Lock; a test's seam, "" otherwise
}

// NewLocal is this machine under the name it was asked for by.
func NewLocal(name string) *Local { return &Local{name: name} }

// NewLocalAt has its files, and the links among them, under root. Programs
// and connections are this machine's. It is for tests.
func NewLocalAt(name, root string) *Local {
	return &Local{name: name, root: strings.TrimRight(root, "/")}
}

// Name is the address the host was asked for by.
func (l *Local) Name() string { return l.name }

// IsLocal is true.
func (l *Local) IsLocal() bool { return true }

// Close does nothing.
func (l *Local) Close() error { return nil }

// Path is where a path of the host lies for this process.
func (l *Local) Path(name string) string { return l.root + name }

// localDir is a directory by its descriptor, which can only be gone through (O_PATH).
type localDir struct {
	fd  int
	own Info
}

func openDir(at int, name string) (*localDir, error) {
	fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	d := &localDir{fd: fd}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		d.close()
		return nil, err
	}
	d.own = statInfo(&st)
	return d, nil
}

func (d *localDir) info() Info { return d.own }

func (d *localDir) close() { unix.Close(d.fd) }

func (d *localDir) enter(name string) (directory, error) {
	in, err := openDir(d.fd, name)
	if err != nil {
		return nil, err // not in, which would be a directory that is not nil
	}
	return in, nil
}

func (d *localDir) lstat(name string) (Info, string, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return Info{}, "", err
	}
	info := statInfo(&st)
	if info.Mode&fs.ModeSymlink == 0 {
		return info, "", nil
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(d.fd, name, buf)
	if errors.Is(err, unix.EINVAL) { // it is none any more
		err = errSwapped
	}
	return info, string(buf[:max(n, 0)]), err
}

// open opens a name in the directory, and follows no link.
func (d *localDir) open(name string, flags int, mode uint32) (*os.File, error) {
	fd, err := unix.Openat(d.fd, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// sync makes a rename, a new name or a removal outlast a power cut.
func (d *localDir) sync() error {
	fd, err := d.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer fd.Close()
	return syncDir(fd)
}

// syncDir does so for a directory that is open. Some file systems cannot sync
// one, and say so by EINVAL.
func syncDir(fd *os.File) error {
	if err := fd.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// remove removes a file, a link or an empty directory.
func (d *localDir) remove(name string) error {
	err := unix.Unlinkat(d.fd, name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return err
	}
	if e := unix.Unlinkat(d.fd, name, unix.AT_REMOVEDIR); !errors.Is(e, unix.ENOTDIR) {
		return e
	}
	return err
}

func statInfo(st *unix.Stat_t) Info {
	mode := fs.FileMode(st.Mode & 0o777)
	for bit, is := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid,
		unix.S_ISVTX: fs.ModeSticky} {
		if st.Mode&bit != 0 {
			mode |= is
		}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	}
	return Info{Mode: mode, UID: int(st.Uid), GID: int(st.Gid), Size: st.Size}
}

// place is a spot of this machine.
type place struct {
	spot
	dir *localDir
}

// find walks to name. Links to absolute paths stay under root.
func (l *Local) find(name string, last bool) (place, error) {
	if err := absolute(name); err != nil {
		return place{}, err
	}
	root, err := openDir(unix.AT_FDCWD, l.root+"/.") // a test's root may be a link
	if err != nil {
		return place{}, err
	}
	s, err := walk(root, name, last, os.Geteuid())
	if err != nil {
		return place{}, err
	}
	return place{s, s.dir.(*localDir)}, nil
}

// at walks to name and runs fn on it, within ctx.
func at[T any](ctx context.Context, l *Local, doing, name string, last bool, fn func(p place) (T, error)) (T, error) {
	v, err := await(ctx, func() (T, error) {
		p, err := l.find(name, last)
		if err != nil {
			var zero T
			return zero, err
		}
		defer p.dir.close()
		return fn(p)
	})
	return v, fileError(l.name, doing, name, err)
}

// Resolve returns a path without its symbolic links.
func (l *Local) Resolve(ctx context.Context, name string) (string, error) {
	return at(ctx, l, "resolve", name, true, func(p place) (string, error) { return p.real, nil })
}

// leaseTime is how long a lease on a file is waited for, which the kernel ends by itself before.
const leaseTime = time.Minute

// read opens a regular file.
func (p place) read() (*os.File, Info, error) {
	// Opening a device can have effects; a pipe put there in between must not
	// block either.
	switch {
	case !p.exists:
		return nil, Info{}, fs.ErrNotExist
	case !p.info.Mode.IsRegular():
		return nil, Info{}, errNotRegular
	}
	fd, err := p.dir.open(p.base, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	// A file that an NFS client holds a delegation of is a lease to this kernel: it is called back, which open(2) does
	// not wait for (EAGAIN; /proc/sys/fs/lease-break-time is 45 s).
	for end := time.Now().Add(leaseTime); errors.Is(err, unix.EAGAIN) && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
		fd, err = p.dir.open(p.base, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, Info{}, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(fd.Fd()), &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errNotRegular
	}
	if err != nil {
		fd.Close()
		return nil, Info{}, err
	}
	return fd, statInfo(&st), nil
}

// ReadFile reads a regular file of at most 64 MiB.
func (l *Local) ReadFile(ctx context.Context, name string) (File, error) {
	return at(ctx, l, "read", name, true, func(p place) (File, error) {
		fd, info, err := p.read()
		if err != nil {
			return File{}, err
		}
		defer fd.Close()
		var buf bytes.Buffer
		if info.Size <= maxFile {
			buf.Grow(int(info.Size) + bytes.MinRead)
		}
		if _, err := buf.ReadFrom(io.LimitReader(fd, maxFile+1)); err != nil {
			return File{}, err
		}
		if buf.Len() > maxFile {
			return File{}, errTooLarge
		}
		return File{Path: name, Data: buf.Bytes(), Mode: modeBits(info.Mode), UID: info.UID, GID: info.GID}, nil
	})
}

// WriteFile replaces or creates a file, atomically and durably.
func (l *Local) WriteFile(ctx context.Context, f File) error {
	_, err := at(ctx, l, "write", f.Path, true, func(p place) (struct{}, error) {
		return struct{}{}, p.replace(ctx, f)
	})
	return err
}

func (p place) replace(ctx context.Context, f File) (err error) {
	if p.exists && !p.info.Mode.IsRegular() {
		return errNotRegular
	}
	temp := tempName(p.base)
	fd, err := p.dir.open(temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			fd.Close()
			_ = p.dir.remove(temp)
		}
	}()
	if _, err := fd.Write(f.Data); err != nil {
		return err
	}
	// In this order: chown clears setuid and capabilities, an ACL changes the mode.
	if err := fd.Chown(f.UID, f.GID); err != nil {
		return err
	}
	if p.exists {
		old, _, err := p.read()
		if err != nil {
			return err
		}
		defer old.Close()
		if err := keepAttributes(int(old.Fd()), int(fd.Fd())); err != nil {
			return err
		}
	}
	if err := fd.Chmod(modeBits(f.Mode)); err != nil {
		return err
	}
	if err := fd.Sync(); err != nil {
		return err
	}
	if err := fd.Close(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil { // the last moment at which nothing has changed
		return err
	}
	if err := unix.Renameat(p.dir.fd, temp, p.dir.fd, p.base); err != nil {
		return err
	}
	return p.dir.sync()
}

const aclAccess = "system.posix_acl_access"

// keepAttributes copies the extended attributes, ACLs among them, of a file
// to its replacement.
func keepAttributes(from, to int) error {
	names, err := attributes(func(buf []byte) (int, error) { return unix.Flistxattr(from, buf) })
	if err != nil {
		return nil // the file system has none
	}
	for _, name := range names {
		switch name {
		case "security.evm", "security.ima": // signatures of the old bytes; the kernel makes new ones
			continue
		}
		value, err := sized(func(buf []byte) (int, error) { return unix.Fgetxattr(from, name, buf) })
		if err != nil {
			continue
		}
		if err := unix.Fsetxattr(to, name, value, 0); err != nil {
			return fmt.Errorf("keep extended attribute %s: %w", name, err)
		}
	}
	// A directory's default ACL gave the new file one that the old has not.
	if !slices.Contains(names, aclAccess) {
		if err := unix.Fremovexattr(to, aclAccess); err != nil && !errors.Is(err, unix.ENODATA) &&
			!errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("drop the inherited ACL: %w", err)
		}
	}
	return nil
}

func attributes(list func([]byte) (int, error)) ([]string, error) {
	b, err := sized(list)
	if err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == 0 }), nil
}

// sized calls get with a buffer large enough for what it has.
func sized(get func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := get(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		buf := make([]byte, n)
		n, err = get(buf)
		if errors.Is(err, unix.ERANGE) { // it grew in between
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// Stat follows symbolic links.
func (l *Local) Stat(ctx context.Context, name string) (Info, error) {
	return at(ctx, l, "stat", name, true, func(p place) (Info, error) {
		if !p.exists {
			return Info{}, fs.ErrNotExist
		}
		return p.info, nil
	})
}

// ReadDir returns the names in a directory, sorted.
func (l *Local) ReadDir(ctx context.Context, name string) ([]string, error) {
	return at(ctx, l, "read directory", name, true, func(p place) ([]string, error) {
		fd, err := p.dir.open(p.base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		defer fd.Close()
		names, err := fd.Readdirnames(-1)
		slices.Sort(names)
		return names, err
	})
}

// Mkdir makes one directory.
func (l *Local) Mkdir(ctx context.Context, name string, info Info) error {
	_, err := at(ctx, l, "make directory", name, false, func(p place) (_ struct{}, err error) {
		var none struct{}
		if err := unix.Mkdirat(p.dir.fd, p.base, 0o700); err != nil {
			return none, err
		}
		defer func() {
			if err != nil && !errors.Is(err, errSwapped) {
				_ = unix.Unlinkat(p.dir.fd, p.base, unix.AT_REMOVEDIR)
			}
		}()
		fd, err := p.dir.open(p.base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return none, err
		}
		defer fd.Close()
		var st unix.Stat_t
		if err := unix.Fstat(int(fd.Fd()), &st); err != nil {
			return none, err
		}
		if int(st.Uid) != os.Geteuid() {
			return none, errSwapped
		}
		if err := fd.Chown(info.UID, info.GID); err != nil {
			return none, err
		}
		if err := fd.Chmod(modeBits(info.Mode)); err != nil {
			return none, err
		}
		if err := syncDir(fd); err != nil {
			return none, err
		}
		return none, p.dir.sync()
	})
	return err
}

// Rename moves a file or directory and refuses to replace one. The kernel
// makes sure of that; where the file system cannot (NFS), a target that
// appears in the same moment could be replaced.
func (l *Local) Rename(ctx context.Context, from, to string) error {
	_, err := at(ctx, l, "rename", from, false, func(p place) (struct{}, error) {
		var none struct{}
		target, err := l.find(to, false)
		if err != nil {
			return none, fmt.Errorf("to %s: %w", to, bare(err))
		}
		defer target.dir.close()
		err = unix.Renameat2(p.dir.fd, p.base, target.dir.fd, target.base, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			if _, _, err := target.dir.lstat(target.base); err == nil {
				return none, syscall.EEXIST
			}
			err = unix.Renameat(p.dir.fd, p.base, target.dir.fd, target.base)
		}
		if err != nil {
			return none, fmt.Errorf("to %s: %w", to, err)
		}
		if err := target.dir.sync(); err != nil {
			return none, err
		}
		if path.Dir(target.real) == path.Dir(p.real) {
			return none, nil
		}
		return none, p.dir.sync()
	})
	return err
}

// Remove removes a file, a link or an empty directory.
func (l *Local) Remove(ctx context.Context, name string) error {
	_, err := at(ctx, l, "remove", name, false, func(p place) (struct{}, error) {
		if err := p.dir.remove(p.base); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, p.dir.sync()
	})
	return err
}

// Sweep removes what killed writes left beside a file.
func (l *Local) Sweep(ctx context.Context, name string) error {
	_, err := at(ctx, l, "clean up beside", name, true, func(p place) (struct{}, error) {
		var none struct{}
		fd, err := p.dir.open(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return none, err
		}
		defer fd.Close()
		names, err := fd.Readdirnames(-1)
		if err != nil {
			return none, err
		}
		swept := false
		for _, name := range names {
			if !isTemp(name, p.base) {
				continue
			}
			if info, _, err := p.dir.lstat(name); err != nil || !info.Mode.IsRegular() {
				continue
			}
			if err := unix.Unlinkat(p.dir.fd, name, 0); err != nil {
				return none, err
			}
			swept = true
		}
		if !swept {
			return none, nil
		}
		return none, syncDir(fd)
	})
	if errors.Is(err, fs.ErrNotExist) { // no directory, so nothing beside it
		return nil
	}
	return err
}

// Run runs a program in a process group of its own, which is killed when ctx
// ends. What a program leaves behind in the background is not waited for.
func (l *Local) Run(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	if err := checkArgv(argv); err != nil {
		return nil, fmt.Errorf("on %s: %w", l.name, err)
	}
	doing := fmt.Sprintf("run %s on %s", program(argv), l.name)
	file, err := lookPath(argv[0])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doing, err)
	}
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(run, file, argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Env = environment(os.Environ())
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); errors.Is(err, syscall.ESRCH) {
			return os.ErrProcessDone
		} else {
			return err
		}
	}
	cmd.WaitDelay = grace / 2
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	stdout := &headBuffer{limit: maxStdout, over: cancel}
	stderr := &endsBuffer{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	err = cmd.Run()
	if stdout.full {
		return nil, fmt.Errorf("%s: it printed more than %d MiB and was stopped", doing, maxStdout>>20)
	}
	if ctx.Err() != nil && err != nil {
		return nil, fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // ended well; a child holds its output open
		return stdout.Bytes(), nil
	case errors.As(err, &exit):
		code := exit.ExitCode()
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			code = 128 + int(ws.Signal())
		}
		return stdout.Bytes(), fmt.Errorf("on %s: %w", l.name,
			&ExitError{Program: program(argv), Code: code, Stderr: stderr.String()})
	}
	return nil, fmt.Errorf("%s: %w", doing, bare(err))
}

// lookPath finds a program in the fixed search path, not in the caller's.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range strings.Split(searchPath, ":") {
		file := dir + "/" + name
		if fi, err := os.Stat(file); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return file, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// environment is what programs get of st2ha's own: without its secrets, and
// in a fixed language.
func environment(of []string) []string {
	env := slices.DeleteFunc(slices.Clone(of), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return strings.HasPrefix(name, "ST2HA_") || name == "ST2_ACTION_AUTH_TOKEN" ||
			name == "LC_ALL" || name == "PATH" || name == "PWD"
	})
	return append(env, "LC_ALL=C", "PATH="+searchPath, "PWD=/")
}

// DialContext connects from this machine.
func (l *Local) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("from %s: %w", l.name, err)
	}
	return conn, nil
}

// Lock takes flock(2) on the file, which the kernel releases when this process
// ends. The file stays, empty, when the lock is released; with the note of a
// holder that died.
func (l *Local) Lock(ctx context.Context, name, note string) (func(), error) {
	fd, err := at(ctx, l, "lock", name, true, func(p place) (*os.File, error) {
		return p.flock(name, note)
	})
	if err != nil {
		return nil, err
	}
	return func() {
		fd.Truncate(0)
		fd.Close()
	}, nil
}

func (p place) flock(name, note string) (*os.File, error) {
	for {
		fd, err := p.dir.open(p.base, unix.O_RDWR|unix.O_CREAT|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(fd.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = &LockedError{Path: name, Holder: noteOf(fd)}
		} else if err == nil {
			// A lock on a file that was removed meanwhile keeps nobody out.
			var mine, there unix.Stat_t
			e1 := unix.Fstat(int(fd.Fd()), &mine)
			e2 := unix.Fstatat(p.dir.fd, p.base, &there, unix.AT_SYMLINK_NOFOLLOW)
			if e1 == nil && (errors.Is(e2, fs.ErrNotExist) ||
				e2 == nil && (mine.Dev != there.Dev || mine.Ino != there.Ino)) {
				fd.Close()
				continue
			}
			if err = errors.Join(e1, e2); err == nil {
				if err = fd.Truncate(0); err == nil {
					_, err = fd.WriteAt([]byte(note+"\n"), 0)
				}
				if err == nil {
					err = fd.Sync()
				}
			}
		}
		if err != nil {
			fd.Close()
			return nil, err
		}
		return fd, nil
	}
}

// noteOf reads who holds the lock. Whoever has just taken it may not have
// written it yet.
func noteOf(fd *os.File) string {
	buf := make([]byte, maxNote)
	n, _ := fd.ReadAt(buf, 0)
	for i := 0; n == 0 && i < 10; i++ {
		time.Sleep(20 * time.Millisecond)
		n, _ = fd.ReadAt(buf, 0)
	}
	return holder(buf[:n])
}
