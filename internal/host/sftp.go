package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"st2ha/internal/fault"
)

// files is an sftp server that runs as root on the far side.
type files struct {
	*sftp.Client
	ses   *session
	heard *meter
	// pinning is held by whoever works where others can swap things: one at a
	// time, so that what the server has open there is that one's.
	pinning sync.Mutex
}

// sftpScript finds the server where distributions put it. Its files are
// private until they get their mode.
const sftpScript = `umask 077
for f in /usr/lib/openssh/sftp-server /usr/libexec/openssh/sftp-server /usr/lib/ssh/sftp-server /usr/libexec/sftp-server; do
	if [ -x "$f" ]; then exec "$f"; fi
done
echo "st2ha: no sftp-server" >&2
exit 69`

// input is what the sftp client writes to and closes: not the whole channel,
// for the exit status says why a server does not come up.
type input struct{ ssh.Channel }

func (i input) Close() error { return i.CloseWrite() }

// meter is read through, and ends what has let the other side say too much.
type meter struct {
	r    io.Reader
	mu   sync.Mutex
	next int
	left map[int]*allowance
}

// allowance is what one operation may hear; others at the same time count too.
type allowance struct {
	bytes int64
	over  func()
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.left {
		if a.bytes -= int64(n); a.bytes < 0 {
			a.over()
		}
	}
	return n, err
}

// allow calls over once the other side has sent more than so many bytes.
func (m *meter) allow(bytes int64, over func()) (done func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left == nil {
		m.left = map[int]*allowance{}
	}
	n := m.next
	m.next++
	m.left[n] = &allowance{bytes, over}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.left, n)
	}
}

// errLongList is a directory that no step has to do with.
var errLongList = fmt.Errorf("its list is larger than %d MiB", maxFile>>20)

// list reads a directory, whose list the library keeps whole and asks for until
// the server says that it has ended.
func (c *files) list(ctx context.Context, dir string) ([]fs.FileInfo, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer c.heard.allow(maxFile, func() { cancel(errLongList) })()
	infos, err := c.ReadDirContext(ctx, dir)
	if err != nil && context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	return infos, err
}

// files returns the running sftp server, or starts it.
func (s *SSH) files(ctx context.Context) (*files, error) {
	s.starting.Lock()
	defer s.starting.Unlock()
	s.mu.Lock()
	f := s.sftp
	s.mu.Unlock()
	if f != nil {
		select {
		case <-f.ses.ended: // it died; start another
		default:
			return f, nil
		}
	}
	f, err := s.startFiles(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.sftp = f
	s.mu.Unlock()
	return f, nil
}

func (s *SSH) startFiles(ctx context.Context) (*files, error) {
	ses, err := s.start(ctx, s.asRoot()+quoteAll([]string{"sh", "-c", sftpScript}), func() {})
	if err != nil {
		return nil, err
	}
	if err := s.begin(); err != nil {
		return nil, err
	}
	errs := &endsBuffer{}
	stderr := &gate{w: errs}
	drained := make(chan struct{})
	go func() {
		defer s.wg.Done()
		defer close(drained)
		io.Copy(stderr, ses.Channel.Stderr())
	}()
	heard := &meter{r: ses.Channel}
	client, err := await(ctx, func() (*sftp.Client, error) {
		return sftp.NewClientPipe(heard, input{ses.Channel}, sftp.UseConcurrentWrites(true))
	})
	if err == nil {
		return &files{Client: client, ses: ses, heard: heard}, nil
	}
	// The server never came up; what its shell or sudo printed says why.
	t := time.NewTimer(grace)
	defer t.Stop()
	if ctx.Err() == nil {
		select {
		case <-ses.ended:
			select {
			case <-drained:
			case <-t.C:
			}
		case <-t.C:
		}
	}
	ses.Channel.Close()
	stderr.close()
	said, status := errs.String(), ses.statusNow()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("start sftp-server on %s: %w", s.name, ctx.Err())
	case status == 69:
		return nil, fault.Preflight("sftp_server",
			"install openssh-sftp-server (Debian, Ubuntu) or openssh-server (Red Hat family)",
			"there is no sftp-server on %s", s.name)
	case s.user != "root" && (sudoRefused(status, said) || status > 0 && strings.Contains(said, "sudo")):
		return nil, s.sudoError(said)
	case status < 0:
		return nil, fmt.Errorf("start sftp-server on %s: %w", s.name, s.lost(err))
	}
	said, _, _ = strings.Cut(strings.TrimSpace(said), "\n")
	return nil, fault.Preflight("ssh_session",
		fmt.Sprintf("check that ssh %s@%s true prints nothing and succeeds: the login shell must not be nologin, and "+
			"its .bashrc must print nothing", s.user, s.name),
		"start sftp-server on %s: status %d: %s: %w", s.name, status, said, err)
}

// on runs fn with the sftp server, within ctx. A server that hangs (on a dead
// NFS mount, say) is given up, and the next call starts another.
func on[T any](ctx context.Context, s *SSH, doing, name string, fn func(c *files) (T, error)) (T, error) {
	var zero T
	if err := absolute(name); err != nil {
		return zero, fileError(s.name, doing, name, err)
	}
	if err := ctx.Err(); err != nil {
		return zero, fileError(s.name, doing, name, err)
	}
	c, err := s.files(ctx)
	if err != nil {
		var f *fault.Error
		if errors.As(err, &f) {
			return zero, err
		}
		return zero, fileError(s.name, doing, name, err)
	}
	v, err := await(ctx, func() (T, error) {
		if err := s.begin(); err != nil {
			return zero, err
		}
		defer s.wg.Done()
		return fn(c)
	})
	if errors.Is(err, errAbandoned) {
		s.mu.Lock()
		if s.sftp == c {
			s.sftp = nil
		}
		s.mu.Unlock()
		c.ses.Channel.Close()
	}
	if err != nil {
		err = fileError(s.name, doing, name, s.lost(explainStatus(err)))
	}
	return v, err
}

// errServerEnded is a server that died, or whose connection did.
var errServerEnded = errors.New("sftp-server ended")

// explainStatus puts the statuses of SFTP into words.
func explainStatus(err error) error {
	var status *sftp.StatusError
	if !errors.As(err, &status) {
		if errors.Is(err, sftp.ErrSSHFxConnectionLost) {
			return errServerEnded
		}
		return err
	}
	switch status.FxCode() {
	case sftp.ErrSSHFxFailure:
		return errors.New("sftp-server reports a failure without saying which")
	case sftp.ErrSSHFxBadMessage:
		return syscall.EINVAL // also a name that is too long
	}
	return err
}

// genericFailure says whether the server gave the status that stands for all
// errnos for which SFTP has no other.
func genericFailure(err error) bool {
	var status *sftp.StatusError
	return errors.As(err, &status) && status.FxCode() == sftp.ErrSSHFxFailure
}

// why finds the errno behind a failure to write into a directory.
func (c *files) why(err error, dir string, need int) error {
	if !genericFailure(err) {
		return err
	}
	v, e := c.StatVFS(dir)
	switch {
	case e != nil:
		return err
	case v.Flag&1 != 0: // ST_RDONLY
		return syscall.EROFS
	case v.Bfree*v.Frsize < uint64(max(need, 1)), v.Files > 0 && v.Ffree == 0:
		return syscall.ENOSPC
	}
	return err
}

// errNoPin is a server that does not say which file is open.
var errNoPin = errors.New("users other than root can replace it, and the sftp-server's /proc/self/fd does not say " +
	"what was opened")

// farWalk is one operation's way to the files of a server. SFTP has no
// directory descriptors, but OpenSSH's server has, below /proc/self/fd. Where
// only root can swap what a path leads to, the path is good enough. Where
// others can, a directory is opened, what was opened is looked at, and it is
// gone through by its descriptor.
type farWalk struct {
	c      *files
	seen   map[string]farStat // of the path's own elements, asked for all at once
	locked bool
	pins   []*sftp.File
}

type farStat struct {
	info Info
	err  error
}

// farDir is a directory on the far side.
type farDir struct {
	w    *farWalk
	path string // what the server is given
	real string // where it lies
	own  Info
	pin  *sftp.File // of a descriptor
}

func (d *farDir) info() Info { return d.own }

func (d *farDir) close() {} // done does

// name is a name in the directory, for the server.
func (d *farDir) name(base string) string { return path.Join(d.path, base) }

func (d *farDir) lstat(name string) (Info, string, error) {
	full := d.name(name)
	l, ok := d.w.seen[full]
	if !ok {
		l = d.w.c.lstat(full)
	}
	if l.err != nil || l.info.Mode&fs.ModeSymlink == 0 {
		return l.info, "", l.err
	}
	target, err := d.w.c.ReadLink(full)
	return l.info, target, err
}

func (d *farDir) enter(name string) (directory, error) {
	info, _, err := d.lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode.IsDir() {
		return nil, syscall.ENOTDIR
	}
	in := &farDir{w: d.w, path: d.name(name), real: path.Join(d.real, name), own: info}
	if d.pin == nil && len(makers(d.own, info, 0)) == 0 {
		return in, nil
	}
	fd, at, err := d.open(name + "/.")
	if err != nil {
		return nil, err
	}
	fi, err := fd.Stat()
	if err != nil {
		return nil, err
	}
	in.path, in.own, in.pin = at, sftpInfo(fi), fd
	return in, nil
}

// open opens what others could swap meanwhile, makes sure that it is what has
// that name, and returns the server's own path of it. It is open until done.
func (d *farDir) open(name string) (*sftp.File, string, error) {
	if !d.w.locked {
		d.w.c.pinning.Lock()
		d.w.locked = true
	}
	fd, err := d.w.c.Open(d.path + "/" + name)
	if err != nil {
		return nil, "", err
	}
	d.w.pins = append(d.w.pins, fd)
	at, err := d.w.c.descriptor(path.Join(d.real, name))
	return fd, at, err
}

// done closes what the operation had open.
func (w *farWalk) done(s *SSH) {
	for _, fd := range w.pins {
		if w.locked {
			fd.Close()
		} else {
			s.background(func() { fd.Close() }) // its answer says nothing
		}
	}
	if w.locked {
		w.c.pinning.Unlock()
	}
}

// descriptor finds what the server has open of a path (proc(5): the links in
// /proc/self/fd say where an open file lies now).
func (c *files) descriptor(real string) (string, error) {
	self, err := c.ReadLink("/proc/self")
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNoPin, err)
	}
	dir := "/proc/" + self + "/fd"
	open, err := c.list(context.Background(), dir)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNoPin, err)
	}
	targets := make([]string, len(open))
	var all sync.WaitGroup
	for i, fi := range open {
		all.Go(func() { targets[i], _ = c.ReadLink(path.Join(dir, fi.Name())) })
	}
	all.Wait()
	if i := slices.Index(targets, real); i >= 0 {
		return path.Join(dir, open[i].Name()), nil
	}
	return "", errSwapped
}

func (c *files) lstat(name string) farStat {
	fi, err := c.Lstat(name)
	if err != nil {
		return farStat{err: err}
	}
	return farStat{info: sftpInfo(fi)}
}

// ahead asks for all elements of a path at once, in the time of one.
func (c *files) ahead(name string) *farWalk {
	w := &farWalk{c: c, seen: map[string]farStat{}}
	var all sync.WaitGroup
	var mu sync.Mutex
	stat := func(at string) {
		all.Go(func() {
			l := c.lstat(at)
			mu.Lock()
			defer mu.Unlock()
			w.seen[at] = l
		})
	}
	stat("/")
	at := ""
	for _, e := range elements(name) {
		if e == ".." {
			break
		}
		if e != "." {
			at += "/" + e
			stat(at)
		}
	}
	all.Wait()
	return w
}

// farPlace is a spot of another machine.
type farPlace struct {
	spot
	dir *farDir
}

// find walks to name.
func (w *farWalk) find(name string, last bool) (farPlace, error) {
	top := w.seen["/"]
	if top.err != nil {
		return farPlace{}, top.err
	}
	s, err := walk(&farDir{w: w, path: "/", real: "/", own: top.info}, name, last, 0)
	if err != nil {
		return farPlace{}, err
	}
	return farPlace{s, s.dir.(*farDir)}, nil
}

// name is the spot's, for the server.
func (p farPlace) name() string { return p.dir.name(p.base) }

// firm says whether only root can put something else in the spot's place.
func (p farPlace) firm() bool {
	return p.dir.pin == nil && (p.base == "." || len(makers(p.dir.own, p.info, 0)) == 0)
}

// open opens what is there for reading; the operation's end closes it.
func (p farPlace) open() (*sftp.File, error) {
	if !p.firm() {
		fd, _, err := p.dir.open(p.base)
		return fd, err
	}
	fd, err := p.dir.w.c.Open(p.name())
	if err == nil {
		p.dir.w.pins = append(p.dir.w.pins, fd)
	}
	return fd, err
}

// there walks to name and runs fn on it with the sftp server, within ctx.
func there[T any](ctx context.Context, s *SSH, doing, name string, last bool,
	fn func(c *files, p farPlace) (T, error)) (T, error) {
	return on(ctx, s, doing, name, func(c *files) (T, error) {
		w := c.ahead(name)
		defer w.done(s)
		p, err := w.find(name, last)
		if err != nil {
			var zero T
			return zero, err
		}
		return fn(c, p)
	})
}

// Resolve returns a path without its symbolic links.
func (s *SSH) Resolve(ctx context.Context, name string) (string, error) {
	return there(ctx, s, "resolve", name, true, func(_ *files, p farPlace) (string, error) { return p.real, nil })
}

// sync makes a directory's entries outlast a power cut.
func (s *SSH) sync(ctx context.Context, c *files, d *farDir) error {
	fd, err := c.Open(d.path)
	if err == nil {
		err = fd.Sync()
		fd.Close()
	}
	if err == nil {
		return nil
	}
	_, err = s.Run(ctx, nil, "sync", "--", d.path)
	return err
}

func sftpInfo(fi fs.FileInfo) Info {
	info := Info{Mode: fi.Mode(), Size: fi.Size()}
	if st, ok := fi.Sys().(*sftp.FileStat); ok {
		info.UID, info.GID = int(st.UID), int(st.GID)
	}
	return info
}

// readAll reads to the end of a file that is not too large.
func readAll(fd io.Reader) ([]byte, error) {
	var buf bytes.Buffer
	buf.Grow(32 << 10) // what one request asks for
	if _, err := buf.ReadFrom(io.LimitReader(fd, maxFile+1)); err != nil {
		return nil, err
	}
	if buf.Len() > maxFile {
		return nil, errTooLarge
	}
	return buf.Bytes(), nil
}

// ReadFile reads a regular file of at most 64 MiB.
func (s *SSH) ReadFile(ctx context.Context, name string) (File, error) {
	return there(ctx, s, "read", name, true, func(_ *files, p farPlace) (File, error) {
		// Opening a pipe would hang the server, and a device can have effects.
		if !p.exists {
			return File{}, fs.ErrNotExist
		}
		if !p.info.Mode.IsRegular() {
			return File{}, errNotRegular
		}
		fd, err := p.open()
		if err != nil {
			return File{}, err
		}
		// Again, and beside the first read: the file may have been replaced in between.
		data := make([]byte, max(min(p.info.Size, maxFile), 0)) // a server may say anything
		read := make(chan int, 1)
		go func() {
			n, _ := fd.ReadAt(data, 0)
			read <- n
		}()
		fi, err := fd.Stat()
		n := <-read
		if err != nil {
			return File{}, err
		}
		if !fi.Mode().IsRegular() {
			return File{}, errNotRegular
		}
		if fi.Size() > maxFile {
			return File{}, errTooLarge
		}
		if n == 0 || int64(n) != fi.Size() { // it has changed, or lies in /proc, where sizes are 0
			if data, err = readAll(fd); err != nil {
				return File{}, err
			}
		}
		info := sftpInfo(fi)
		return File{Path: name, Data: data, Mode: modeBits(info.Mode), UID: info.UID, GID: info.GID}, nil
	})
}

// WriteFile replaces or creates a file, atomically and durably. The temporary
// file stays only if the connection is lost in between.
func (s *SSH) WriteFile(ctx context.Context, f File) error {
	_, err := there(ctx, s, "write", f.Path, true, func(c *files, p farPlace) (struct{}, error) {
		return struct{}{}, s.replace(ctx, c, p, f)
	})
	return err
}

func (s *SSH) replace(ctx context.Context, c *files, p farPlace, f File) (err error) {
	if p.exists && !p.info.Mode.IsRegular() {
		return errNotRegular
	}
	base := tempName(p.base)
	temp := p.dir.name(base)
	fd, err := c.OpenFile(temp, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL)
	if err != nil {
		return c.why(err, p.dir.path, 1)
	}
	defer func() {
		if err == nil {
			return
		}
		err = c.why(err, p.dir.path, len(f.Data)) // while the temporary file shows how full it is
		fd.Close()
		if c.Remove(temp) != nil {
			s.sweep(path.Join(p.dir.real, base))
		}
	}()
	if p.exists {
		from, to := p.name(), temp
		if !p.firm() {
			if _, from, err = p.dir.open(p.base); err != nil {
				return err
			}
			if to, err = c.descriptor(path.Join(p.dir.real, base)); err != nil {
				return err
			}
		}
		// SFTP knows no ACLs and attributes. Not the times: a file that
		// changed has to look changed.
		if _, err := s.Run(ctx, nil, "cp", "--attributes-only", "--preserve=all", "--no-preserve=timestamps",
			"--", from, to); err != nil {
			return fmt.Errorf("keep its ACLs and attributes: %w", err)
		}
	}
	// Before the bytes: who may not read the file must not see them.
	if err := fd.Chown(f.UID, f.GID); err != nil {
		return err
	}
	if err := fd.Chmod(modeBits(f.Mode)); err != nil {
		return err
	}
	if _, err := fd.Write(f.Data); err != nil {
		return err
	}
	if err := fd.Sync(); errors.Is(err, sftp.ErrSSHFxOpUnsupported) {
		if _, err := s.Run(ctx, nil, "sync", "--", temp); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if err := fd.Close(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil { // the last moment at which nothing has changed
		return err
	}
	if err := c.PosixRename(temp, p.name()); err != nil {
		return err
	}
	return s.sync(ctx, c, p.dir)
}

// sweep removes a temporary file with another server, the first having died.
func (s *SSH) sweep(temp string) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	_ = s.Remove(ctx, temp)
}

// Stat follows symbolic links.
func (s *SSH) Stat(ctx context.Context, name string) (Info, error) {
	return there(ctx, s, "stat", name, true, func(_ *files, p farPlace) (Info, error) {
		if !p.exists {
			return Info{}, fs.ErrNotExist
		}
		return p.info, nil
	})
}

// ReadDir returns the names in a directory, sorted.
func (s *SSH) ReadDir(ctx context.Context, name string) ([]string, error) {
	return there(ctx, s, "read directory", name, true, func(c *files, p farPlace) ([]string, error) {
		if !p.exists {
			return nil, fs.ErrNotExist
		}
		at := p.name()
		if !p.firm() {
			var err error
			if _, at, err = p.dir.open(p.base + "/."); err != nil {
				return nil, err
			}
		}
		infos, err := c.list(ctx, at)
		if err != nil {
			return nil, err
		}
		names := make([]string, len(infos))
		for i, fi := range infos {
			names[i] = fi.Name()
		}
		slices.Sort(names)
		return names, nil
	})
}

// Mkdir makes one directory.
func (s *SSH) Mkdir(ctx context.Context, name string, info Info) error {
	_, err := there(ctx, s, "make directory", name, false, func(c *files, p farPlace) (_ struct{}, err error) {
		var none struct{}
		if p.exists {
			return none, fs.ErrExist
		}
		if err := c.Mkdir(p.name()); err != nil {
			if _, e := c.Lstat(p.name()); genericFailure(err) && e == nil {
				return none, fs.ErrExist
			}
			return none, c.why(err, p.dir.path, 1)
		}
		defer func() {
			if err != nil && !errors.Is(err, errSwapped) {
				c.RemoveDirectory(p.name())
			}
		}()
		p.info = Info{Mode: fs.ModeDir | 0o700}
		fd, err := p.open()
		if err != nil {
			return none, err
		}
		fi, err := fd.Stat()
		if err != nil {
			return none, err
		}
		if made := sftpInfo(fi); !made.Mode.IsDir() || made.UID != 0 {
			return none, errSwapped
		}
		if err := fd.Chown(info.UID, info.GID); err != nil {
			return none, err
		}
		if err := fd.Chmod(modeBits(info.Mode)); err != nil {
			return none, err
		}
		if fd.Sync() != nil {
			if _, err := s.Run(ctx, nil, "sync", "--", p.name()); err != nil {
				return none, err
			}
		}
		return none, s.sync(ctx, c, p.dir)
	})
	return err
}

// Rename moves a file or directory and refuses to replace one. For a file the
// server links and unlinks, so a target that appears in the same moment is
// safe, and a power cut can leave both names; a directory could replace an
// empty one that appears in the same moment.
func (s *SSH) Rename(ctx context.Context, from, to string) error {
	_, err := there(ctx, s, "rename", from, false, func(c *files, p farPlace) (struct{}, error) {
		var none struct{}
		if err := absolute(to); err != nil {
			return none, err
		}
		target, err := p.dir.w.find(to, false)
		if err == nil {
			err = c.Rename(p.name(), target.name())
		}
		if err != nil {
			if target.dir == nil {
				return none, fmt.Errorf("to %s: %w", to, err)
			}
			if _, e := c.Lstat(target.name()); genericFailure(err) && e == nil {
				err = fs.ErrExist
			}
			return none, fmt.Errorf("to %s: %w", to, c.why(err, target.dir.path, 1))
		}
		if err := s.sync(ctx, c, target.dir); err != nil {
			return none, err
		}
		if target.dir.real == p.dir.real {
			return none, nil
		}
		return none, s.sync(ctx, c, p.dir)
	})
	return err
}

// Remove removes a file, a link or an empty directory.
func (s *SSH) Remove(ctx context.Context, name string) error {
	_, err := there(ctx, s, "remove", name, false, func(c *files, p farPlace) (struct{}, error) {
		var none struct{}
		if err := c.Remove(p.name()); err != nil {
			err = bare(err)
			if fi, e := c.Lstat(p.name()); errors.Is(e, fs.ErrNotExist) {
				err = fs.ErrNotExist
			} else if genericFailure(err) && e == nil && fi.IsDir() {
				if names, e := c.ReadDir(p.name()); e == nil && len(names) > 0 {
					err = syscall.ENOTEMPTY
				}
			}
			return none, c.why(err, p.dir.path, 1)
		}
		return none, s.sync(ctx, c, p.dir)
	})
	return err
}

// Sweep removes what killed writes, and those that lost their connection, left
// beside a file.
func (s *SSH) Sweep(ctx context.Context, name string) error {
	_, err := there(ctx, s, "clean up beside", name, true, func(c *files, p farPlace) (struct{}, error) {
		var none struct{}
		entries, err := c.ReadDirContext(ctx, p.dir.path)
		if err != nil {
			return none, err
		}
		swept := false
		for _, e := range entries {
			if !e.Mode().IsRegular() || !isTemp(e.Name(), p.base) {
				continue
			}
			if err := c.Remove(p.dir.name(e.Name())); err != nil {
				return none, err
			}
			swept = true
		}
		if !swept {
			return none, nil
		}
		return none, s.sync(ctx, c, p.dir)
	})
	if errors.Is(err, fs.ErrNotExist) { // no directory, so nothing beside it
		return nil
	}
	return err
}
