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
	"syscall"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"st2ha/internal/fault"
)

// files is an sftp server that runs as root on the far side.
type files struct {
	*sftp.Client
	ses *session
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
	client, err := await(ctx, func() (*sftp.Client, error) {
		return sftp.NewClientPipe(ses.Channel, input{ses.Channel}, sftp.UseConcurrentWrites(true))
	})
	if err == nil {
		return &files{client, ses}, nil
	}
	// The server never came up; its shell's or sudo's words say why.
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
		return nil, fault.Preflight("sftp_server", "install openssh-sftp-server (Debian, Ubuntu) or openssh-server (Red Hat family)", "there is no sftp-server on %s", s.name)
	case s.user != "root" && (sudoRefused(status, said) || status > 0 && strings.Contains(said, "sudo")):
		return nil, s.sudoError(said)
	case status < 0:
		return nil, fmt.Errorf("start sftp-server on %s: %w", s.name, s.lost(err))
	}
	said, _, _ = strings.Cut(strings.TrimSpace(said), "\n")
	return nil, fault.Preflight("ssh_session", fmt.Sprintf("see that ssh %s@%s true prints nothing and succeeds: a login shell that is nologin or whose .bashrc prints breaks it", s.user, s.name),
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
		err = fileError(s.name, doing, name, s.lost(spoken(err)))
	}
	return v, err
}

// errServerEnded is a server that died, or whose connection did.
var errServerEnded = errors.New("sftp-server ended")

// spoken puts words to the statuses of SFTP.
func spoken(err error) error {
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

// failed tells whether the server gave the status that stands for all errnos
// it has no other for.
func failed(err error) bool {
	var status *sftp.StatusError
	return errors.As(err, &status) && status.FxCode() == sftp.ErrSSHFxFailure
}

// why finds the errno behind a failure to write into a directory.
func (c *files) why(err error, dir string, need int) error {
	if !failed(err) {
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

// real resolves the links of a path whose last element need not exist.
func (c *files) real(name string) (string, error) {
	for range 40 {
		real, err := c.RealPath(name)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return real, err
		}
		// Servers before OpenSSH 8 resolve only what exists.
		dir, err := c.RealPath(path.Dir(name))
		if err != nil {
			return "", err
		}
		name = path.Join(dir, path.Base(name))
		fi, err := c.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return name, nil
		}
		if err != nil {
			return "", err
		}
		if fi.Mode()&fs.ModeSymlink == 0 {
			continue // it has come to exist
		}
		target, err := c.ReadLink(name)
		if err != nil {
			return "", err
		}
		if !path.IsAbs(target) {
			target = path.Join(dir, target)
		}
		name = target
	}
	return "", syscall.ELOOP
}

// sync makes a directory's entries outlast a power cut.
func (s *SSH) sync(ctx context.Context, c *files, dir string) error {
	fd, err := c.Open(dir)
	if err == nil {
		err = fd.Sync()
		fd.Close()
	}
	if err == nil {
		return nil
	}
	_, err = s.Run(ctx, nil, "sync", "--", dir)
	return err
}

func sftpInfo(fi fs.FileInfo) Info {
	info := Info{Mode: fi.Mode(), Size: fi.Size()}
	if st, ok := fi.Sys().(*sftp.FileStat); ok {
		info.UID, info.GID = int(st.UID), int(st.GID)
	}
	return info
}

// limitedBuffer takes no more than a file may have; /proc tells no sizes.
type limitedBuffer struct{ buf bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.buf.Len()+len(p) > maxFile {
		return 0, errTooLarge
	}
	return b.buf.Write(p)
}

// ReadFile reads a regular file of at most 64 MiB.
func (s *SSH) ReadFile(ctx context.Context, name string) (File, error) {
	return on(ctx, s, "read", name, func(c *files) (File, error) {
		// Opening a pipe would hang the server, and a device can have effects.
		fi, err := c.Stat(name)
		if err != nil {
			return File{}, err
		}
		if !fi.Mode().IsRegular() {
			return File{}, errNotRegular
		}
		fd, err := c.Open(name)
		if err != nil {
			return File{}, err
		}
		defer fd.Close()
		// Again: the file may have been replaced in between.
		if fi, err = fd.Stat(); err != nil {
			return File{}, err
		}
		if !fi.Mode().IsRegular() {
			return File{}, errNotRegular
		}
		if fi.Size() > maxFile {
			return File{}, errTooLarge
		}
		data := &limitedBuffer{}
		data.buf.Grow(int(fi.Size()) + bytes.MinRead)
		if _, err := fd.WriteTo(data); err != nil {
			return File{}, err
		}
		info := sftpInfo(fi)
		return File{Path: name, Data: data.buf.Bytes(), Mode: modeBits(info.Mode), UID: info.UID, GID: info.GID}, nil
	})
}

// WriteFile replaces or creates a file, atomically and durably. The temporary
// file stays only if the connection is lost in between.
func (s *SSH) WriteFile(ctx context.Context, f File) error {
	_, err := on(ctx, s, "write", f.Path, func(c *files) (struct{}, error) {
		return struct{}{}, s.replace(ctx, c, f)
	})
	return err
}

func (s *SSH) replace(ctx context.Context, c *files, f File) (err error) {
	real, err := c.real(f.Path)
	if err != nil {
		return err
	}
	dir := path.Dir(real)
	old, err := c.Lstat(real)
	switch {
	case err == nil && !old.Mode().IsRegular():
		return errNotRegular
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	exists := err == nil
	temp := tempName(real)
	fd, err := c.OpenFile(temp, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_EXCL)
	if err != nil {
		return c.why(err, dir, 1)
	}
	defer func() {
		if err == nil {
			return
		}
		err = c.why(err, dir, len(f.Data)) // while the temporary file shows how full it is
		fd.Close()
		if c.Remove(temp) != nil {
			s.sweep(temp)
		}
	}()
	if exists {
		// SFTP knows no ACLs and attributes. Not the times: a file that
		// changed has to look changed.
		if _, err := s.Run(ctx, nil, "cp", "--attributes-only", "--preserve=all", "--no-preserve=timestamps", "--", real, temp); err != nil {
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
	if err := c.PosixRename(temp, real); err != nil {
		return err
	}
	return s.sync(ctx, c, dir)
}

// sweep removes a temporary file with another server, the first having died.
func (s *SSH) sweep(temp string) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if c, err := s.files(ctx); err == nil {
		c.Remove(temp)
	}
}

// Stat follows symbolic links.
func (s *SSH) Stat(ctx context.Context, name string) (Info, error) {
	return on(ctx, s, "stat", name, func(c *files) (Info, error) {
		fi, err := c.Stat(name)
		if err != nil {
			return Info{}, err
		}
		return sftpInfo(fi), nil
	})
}

// ReadDir returns the names in a directory, sorted.
func (s *SSH) ReadDir(ctx context.Context, name string) ([]string, error) {
	return on(ctx, s, "read directory", name, func(c *files) ([]string, error) {
		infos, err := c.ReadDirContext(ctx, name)
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
	_, err := on(ctx, s, "make directory", name, func(c *files) (_ struct{}, err error) {
		var none struct{}
		if err := c.Mkdir(name); err != nil {
			if _, e := c.Lstat(name); failed(err) && e == nil {
				return none, fs.ErrExist
			}
			return none, c.why(err, path.Dir(name), 1)
		}
		defer func() {
			if err != nil {
				c.RemoveDirectory(name)
			}
		}()
		if err := c.Chown(name, info.UID, info.GID); err != nil {
			return none, err
		}
		if err := c.Chmod(name, modeBits(info.Mode)); err != nil {
			return none, err
		}
		if err := s.sync(ctx, c, name); err != nil {
			return none, err
		}
		return none, s.sync(ctx, c, path.Dir(name))
	})
	return err
}

// Rename moves a file or directory and refuses to replace one. For a file the
// server links and unlinks, so a target that appears in the same moment is
// safe, and a power cut can leave both names; a directory could replace an
// empty one that appears in the same moment.
func (s *SSH) Rename(ctx context.Context, from, to string) error {
	_, err := on(ctx, s, "rename", from, func(c *files) (struct{}, error) {
		var none struct{}
		if err := absolute(to); err != nil {
			return none, err
		}
		if err := c.Rename(from, to); err != nil {
			if _, e := c.Lstat(to); failed(err) && e == nil {
				err = fs.ErrExist
			}
			return none, fmt.Errorf("to %s: %w", to, c.why(err, path.Dir(to), 1))
		}
		if err := s.sync(ctx, c, path.Dir(to)); err != nil {
			return none, err
		}
		if path.Dir(to) == path.Dir(from) {
			return none, nil
		}
		return none, s.sync(ctx, c, path.Dir(from))
	})
	return err
}

// Remove removes a file, a link or an empty directory.
func (s *SSH) Remove(ctx context.Context, name string) error {
	_, err := on(ctx, s, "remove", name, func(c *files) (struct{}, error) {
		var none struct{}
		if err := c.Remove(name); err != nil {
			err = bare(err)
			if fi, e := c.Lstat(name); errors.Is(e, fs.ErrNotExist) {
				err = fs.ErrNotExist
			} else if failed(err) && e == nil && fi.IsDir() {
				if names, e := c.ReadDir(name); e == nil && len(names) > 0 {
					err = syscall.ENOTEMPTY
				}
			}
			return none, c.why(err, path.Dir(name), 1)
		}
		return none, s.sync(ctx, c, path.Dir(name))
	})
	return err
}

// Sweep removes what killed writes, and those that lost their connection, left
// beside a file.
func (s *SSH) Sweep(ctx context.Context, name string) error {
	_, err := on(ctx, s, "clean up beside", name, func(c *files) (struct{}, error) {
		var none struct{}
		real, err := c.real(name)
		if errors.Is(err, fs.ErrNotExist) {
			return none, nil
		}
		if err != nil {
			return none, err
		}
		dir := path.Dir(real)
		entries, err := c.ReadDirContext(ctx, dir)
		if errors.Is(err, fs.ErrNotExist) {
			return none, nil
		}
		if err != nil {
			return none, err
		}
		swept := false
		for _, e := range entries {
			if !e.Mode().IsRegular() || !isTemp(e.Name(), real) {
				continue
			}
			if err := c.Remove(path.Join(dir, e.Name())); err != nil {
				return none, err
			}
			swept = true
		}
		if !swept {
			return none, nil
		}
		return none, s.sync(ctx, c, dir)
	})
	return err
}
