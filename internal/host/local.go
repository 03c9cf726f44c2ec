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

// resolve follows the links of a path within root, so that a link to an
// absolute path stays under it. The last element is followed only if last is
// set. What does not exist resolves to itself.
func (l *Local) resolve(name string, last bool) (string, error) {
	split := func(p string) []string {
		return strings.FieldsFunc(p, func(r rune) bool { return r == '/' })
	}
	done, rest := "", split(name)
	for links := 0; len(rest) > 0; {
		element := rest[0]
		rest = rest[1:]
		switch element {
		case ".":
			continue
		case "..":
			done = done[:max(strings.LastIndexByte(done, '/'), 0)]
			continue
		}
		next := done + "/" + element
		if len(rest) > 0 || last {
			if target, err := os.Readlink(l.root + next); err == nil {
				if links++; links > 40 {
					return "", syscall.ELOOP
				}
				if path.IsAbs(target) {
					done = ""
				}
				rest = append(split(target), rest...)
				continue
			}
		}
		done = next
	}
	if done == "" {
		done = "/"
	}
	return l.root + done, nil
}

// at resolves name and runs fn on it, within ctx.
func at[T any](ctx context.Context, l *Local, doing, name string, last bool, fn func(real string) (T, error)) (T, error) {
	v, err := await(ctx, func() (T, error) {
		var zero T
		if err := absolute(name); err != nil {
			return zero, err
		}
		real, err := l.resolve(name, last)
		if err != nil {
			return zero, err
		}
		return fn(real)
	})
	return v, fileError(l.name, doing, name, err)
}

// leaseTime is how long a lease on a file is waited for, which the kernel ends by itself before.
const leaseTime = time.Minute

// ReadFile reads a regular file of at most 64 MiB.
func (l *Local) ReadFile(ctx context.Context, name string) (File, error) {
	return at(ctx, l, "read", name, true, func(real string) (File, error) {
		// Opening a device can have effects; a pipe put there in between
		// must not block either.
		if info, err := os.Lstat(real); err != nil {
			return File{}, err
		} else if !info.Mode().IsRegular() {
			return File{}, errNotRegular
		}
		fd, err := os.OpenFile(real, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		// A file that an NFS client holds a delegation of is a lease to this kernel: it is called back, which open(2)
		// does not wait for (EAGAIN; /proc/sys/fs/lease-break-time is 45 s).
		for end := time.Now().Add(leaseTime); errors.Is(err, unix.EAGAIN) && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
			fd, err = os.OpenFile(real, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
		}
		if err != nil {
			return File{}, err
		}
		defer fd.Close()
		fi, err := fd.Stat()
		if err != nil {
			return File{}, err
		}
		if !fi.Mode().IsRegular() {
			return File{}, errNotRegular
		}
		var buf bytes.Buffer
		if s := fi.Size(); s <= maxFile {
			buf.Grow(int(s) + bytes.MinRead)
		}
		if _, err := buf.ReadFrom(io.LimitReader(fd, maxFile+1)); err != nil {
			return File{}, err
		}
		if buf.Len() > maxFile {
			return File{}, errTooLarge
		}
		info := infoOf(fi)
		return File{Path: name, Data: buf.Bytes(), Mode: modeBits(info.Mode), UID: info.UID, GID: info.GID}, nil
	})
}

func infoOf(fi fs.FileInfo) Info {
	info := Info{Mode: fi.Mode(), Size: fi.Size()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		info.UID, info.GID = int(st.Uid), int(st.Gid)
	}
	return info
}

// WriteFile replaces or creates a file, atomically and durably.
func (l *Local) WriteFile(ctx context.Context, f File) error {
	_, err := at(ctx, l, "write", f.Path, true, func(real string) (struct{}, error) {
		return struct{}{}, replace(ctx, real, f)
	})
	return err
}

func replace(ctx context.Context, real string, f File) (err error) {
	old, err := os.Lstat(real)
	switch {
	case err == nil && !old.Mode().IsRegular():
		return errNotRegular
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	exists := err == nil
	temp := tempName(real)
	fd, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			fd.Close()
			os.Remove(temp)
		}
	}()
	if _, err := fd.Write(f.Data); err != nil {
		return err
	}
	// In this order: chown clears setuid and capabilities, an ACL changes the mode.
	if err := fd.Chown(f.UID, f.GID); err != nil {
		return err
	}
	if exists {
		if err := keepAttributes(real, int(fd.Fd())); err != nil {
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
	if err := os.Rename(temp, real); err != nil {
		return err
	}
	return syncDir(path.Dir(real))
}

const aclAccess = "system.posix_acl_access"

// keepAttributes copies the extended attributes, ACLs among them, of a file
// to its replacement.
func keepAttributes(from string, to int) error {
	names, err := attributes(func(buf []byte) (int, error) { return unix.Llistxattr(from, buf) })
	if err != nil {
		return nil // the file system has none
	}
	for _, name := range names {
		switch name {
		case "security.evm", "security.ima": // signatures of the old bytes; the kernel makes new ones
			continue
		}
		value, err := sized(func(buf []byte) (int, error) { return unix.Lgetxattr(from, name, buf) })
		if err != nil {
			continue
		}
		if err := unix.Fsetxattr(to, name, value, 0); err != nil {
			return fmt.Errorf("keep extended attribute %s: %w", name, err)
		}
	}
	// A directory's default ACL gave the new file one that the old has not.
	if !slices.Contains(names, aclAccess) {
		if err := unix.Fremovexattr(to, aclAccess); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
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

// syncDir makes a rename, a new name or a removal outlast a power cut.
func syncDir(dir string) error {
	fd, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer fd.Close()
	// Some file systems cannot sync a directory, and say so by EINVAL.
	if err := fd.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// Stat follows symbolic links.
func (l *Local) Stat(ctx context.Context, name string) (Info, error) {
	return at(ctx, l, "stat", name, true, func(real string) (Info, error) {
		fi, err := os.Lstat(real)
		if err != nil {
			return Info{}, err
		}
		return infoOf(fi), nil
	})
}

// ReadDir returns the names in a directory, sorted.
func (l *Local) ReadDir(ctx context.Context, name string) ([]string, error) {
	return at(ctx, l, "read directory", name, true, func(real string) ([]string, error) {
		fd, err := os.OpenFile(real, os.O_RDONLY|unix.O_DIRECTORY, 0)
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
	_, err := at(ctx, l, "make directory", name, false, func(real string) (_ struct{}, err error) {
		var none struct{}
		if err := os.Mkdir(real, 0o700); err != nil {
			return none, err
		}
		defer func() {
			if err != nil {
				os.Remove(real)
			}
		}()
		if err := os.Lchown(real, info.UID, info.GID); err != nil {
			return none, err
		}
		if err := os.Chmod(real, modeBits(info.Mode)); err != nil {
			return none, err
		}
		if err := syncDir(real); err != nil {
			return none, err
		}
		return none, syncDir(path.Dir(real))
	})
	return err
}

// Rename moves a file or directory and refuses to replace one. The kernel
// makes sure of that; where the file system cannot (NFS), a target that
// appears in the same moment could be replaced.
func (l *Local) Rename(ctx context.Context, from, to string) error {
	_, err := at(ctx, l, "rename", from, false, func(real string) (struct{}, error) {
		var none struct{}
		if err := absolute(to); err != nil {
			return none, err
		}
		target, err := l.resolve(to, false)
		if err != nil {
			return none, err
		}
		err = unix.Renameat2(unix.AT_FDCWD, real, unix.AT_FDCWD, target, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			if _, err := os.Lstat(target); err == nil {
				return none, syscall.EEXIST
			}
			err = os.Rename(real, target)
		}
		if err != nil {
			return none, fmt.Errorf("to %s: %w", to, bare(err))
		}
		if err := syncDir(path.Dir(target)); err != nil {
			return none, err
		}
		if path.Dir(target) == path.Dir(real) {
			return none, nil
		}
		return none, syncDir(path.Dir(real))
	})
	return err
}

// Remove removes a file, a link or an empty directory.
func (l *Local) Remove(ctx context.Context, name string) error {
	_, err := at(ctx, l, "remove", name, false, func(real string) (struct{}, error) {
		if err := os.Remove(real); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, syncDir(path.Dir(real))
	})
	return err
}

// Sweep removes what killed writes left beside a file.
func (l *Local) Sweep(ctx context.Context, name string) error {
	_, err := at(ctx, l, "clean up beside", name, true, func(real string) (struct{}, error) {
		var none struct{}
		dir := path.Dir(real)
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return none, nil
		}
		if err != nil {
			return none, err
		}
		swept := false
		for _, e := range entries {
			if !e.Type().IsRegular() || !isTemp(e.Name(), real) {
				continue
			}
			if err := os.Remove(dir + "/" + e.Name()); err != nil {
				return none, err
			}
			swept = true
		}
		if !swept {
			return none, nil
		}
		return none, syncDir(dir)
	})
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
		return stdout.Bytes(), fmt.Errorf("on %s: %w", l.name, &ExitError{Program: program(argv), Code: code, Stderr: stderr.String()})
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

// Lock takes flock(2) on the file, which the kernel lets go when this process
// ends. The file stays, empty, when the lock is released; with the note of a
// holder that died.
func (l *Local) Lock(ctx context.Context, name, note string) (func(), error) {
	fd, err := at(ctx, l, "lock", name, true, func(real string) (*os.File, error) {
		return flock(real, name, note)
	})
	if err != nil {
		return nil, err
	}
	return func() {
		fd.Truncate(0)
		fd.Close()
	}, nil
}

func flock(real, name, note string) (*os.File, error) {
	for {
		fd, err := os.OpenFile(real, os.O_RDWR|os.O_CREATE|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(fd.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = &LockedError{Path: name, Holder: noteOf(fd)}
		} else if err == nil {
			// A lock on a file that was removed meanwhile keeps nobody out.
			mine, e1 := fd.Stat()
			there, e2 := os.Stat(real)
			if e1 == nil && errors.Is(e2, fs.ErrNotExist) || e1 == nil && e2 == nil && !os.SameFile(mine, there) {
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
