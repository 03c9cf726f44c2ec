package host

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"syscall"
	"time"

	"st2ha/internal/fault"
)

const (
	maxFile   = 64 << 20 // bytes of a file; a configuration file is never near it
	maxStdout = 16 << 20 // bytes a program may print
	maxStderr = 64 << 10 // bytes kept of stderr's beginning, and of its end
	maxNote   = 4 << 10  // bytes read of a lock's note

	// grace is what an operation that cannot be broken off gets to end by
	// itself after its context has: a hung file system holds system calls for good.
	grace = time.Second

	// searchPath has the sbin directories, which neither an action's runner
	// nor a login of the system user has.
	searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// await runs fn and returns when it ends, or soon after ctx does.
func await[T any](ctx context.Context, fn func() (T, error)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	if ctx.Done() == nil {
		return fn()
	}
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		v, err := fn()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case r := <-done:
		return r.value, r.err
	case <-t.C:
		return zero, fmt.Errorf("%w, and %w", ctx.Err(), errAbandoned)
	}
}

// errAbandoned is an operation that outlived its context.
var errAbandoned = errors.New("the operation has not ended")

// fileError says what was being done with which file of which host. Errors
// with a known remedy become a *fault.Error that names it.
func fileError(host, doing, name string, err error) error {
	if err == nil {
		return nil
	}
	err = bare(err)
	if _, ok := err.(*LockedError); ok { // names the file itself
		return fmt.Errorf("on %s: %w", host, err)
	}
	at := fmt.Sprintf("%s %s on %s", doing, name, host)
	dir := path.Dir(name)
	reading := strings.HasPrefix(doing, "read") || doing == "stat"
	var foreign *foreignError
	switch {
	case errors.As(err, &foreign):
		return fault.Preflight("foreign_link",
			fmt.Sprintf("make %s a plain file or directory, or keep the link in a directory that only root may write",
				foreign.link),
			"%s: %w", at, err)
	case errors.Is(err, syscall.EROFS):
		return fault.Failed("read_only",
			fmt.Sprintf("see findmnt -T %s and the kernel's log; mount -o remount,rw its mount point", dir),
			"%s: %w", at, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fault.Failed("disk_full", fmt.Sprintf("make room: df -h %s; df -i %s", dir, dir),
			"%s: %w; the file is as it was", at, err)
	// SFTP has one status for EPERM and EACCES; root hardly ever gets the latter.
	case !reading && errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EACCES):
		return fault.Failed("immutable",
			fmt.Sprintf("if lsattr -d %s %s shows i or a, take it away with chattr -i -a; on NFS, the server may "+
				"squash root", name, dir),
			"%s: %w (immutable? see lsattr, chattr -i)", at, err)
	}
	return fmt.Errorf("%s: %w", at, err)
}

// bare takes off the layers of package os, which repeat the path.
func bare(err error) error {
	for {
		switch e := err.(type) {
		case *fs.PathError:
			err = e.Err
		case *os.LinkError:
			err = e.Err
		case *os.SyscallError:
			err = e.Err
		default:
			return err
		}
	}
}

// errNotRegular is what reading or replacing a device or a directory gives.
var errNotRegular = errors.New("not a regular file")

// errTooLarge is a file no configuration can be.
var errTooLarge = fmt.Errorf("larger than %d MiB", maxFile>>20)

// absolute refuses what would depend on a working directory, and what the
// kernel cannot take.
func absolute(names ...string) error {
	for _, n := range names {
		if !path.IsAbs(n) {
			return errors.New("the path is not absolute")
		}
		if strings.ContainsRune(n, 0) {
			return errors.New("the path has a NUL byte")
		}
	}
	return nil
}

// modeBits is a mode without its type, as chmod takes it.
func modeBits(m fs.FileMode) fs.FileMode {
	return m & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
}

// tempName is a hidden name beside the file, so that no tool that reads
// *.conf takes the half-written file for one.
func tempName(name string) string {
	dir, _ := path.Split(name)
	return dir + tempPrefix(name) + random()
}

func tempPrefix(name string) string {
	base := path.Base(name)
	if len(base) > 200 { // a name has 255 bytes at most
		base = base[:200]
	}
	return "." + base + ".st2ha-"
}

var randomWord = regexp.MustCompile(`^[0-9a-f]{16}$`)

// isTemp says whether entry, of the directory that name is in, is one that
// tempName makes for name.
func isTemp(entry, name string) bool {
	word, ok := strings.CutPrefix(entry, tempPrefix(name))
	return ok && randomWord.MatchString(word)
}

// random is a word nobody can guess.
func random() string {
	b := make([]byte, 8)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// checkArgv refuses what no program can be given.
func checkArgv(argv []string) error {
	if len(argv) == 0 || argv[0] == "" {
		return errors.New("run: no program is named")
	}
	for i, a := range argv {
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("run %s: argument %d has a NUL byte", program(argv), i)
		}
	}
	return nil
}

var subcommand = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,30}$`)

// program is argv as messages name it.
func program(argv []string) string {
	name := strings.ReplaceAll(argv[0], "\x00", "")
	if len(argv) > 1 && subcommand.MatchString(argv[1]) {
		return name + " " + argv[1]
	}
	return name
}

// holder is a lock's note as one line.
func holder(note []byte) string {
	if s := strings.Join(strings.Fields(string(note)), " "); s != "" {
		return s
	}
	return NoNote
}

// headBuffer keeps what is written up to a limit, and calls over once when
// there is more. The buffer is no embedded field: its ReadFrom would pass the limit by.
type headBuffer struct {
	buf   bytes.Buffer
	limit int
	full  bool
	over  func()
}

func (b *headBuffer) Write(p []byte) (int, error) {
	if room := b.limit - b.buf.Len(); len(p) > room {
		b.buf.Write(p[:room])
		if !b.full {
			b.full = true
			b.over()
		}
		return len(p), nil
	}
	return b.buf.Write(p)
}

// Bytes is what was kept.
func (b *headBuffer) Bytes() []byte { return b.buf.Bytes() }

// endsBuffer keeps the beginning and the end of what is written: the first
// line says what went wrong, the last one how it ended.
type endsBuffer struct {
	head, tail []byte
	cut        bool
}

func (b *endsBuffer) Write(p []byte) (int, error) {
	n := len(p)
	if room := maxStderr - len(b.head); room > 0 {
		k := min(room, len(p))
		b.head = append(b.head, p[:k]...)
		p = p[k:]
	}
	b.tail = append(b.tail, p...)
	if len(b.tail) > 2*maxStderr { // moved seldom, not at each write
		b.tail = append([]byte(nil), b.tail[len(b.tail)-maxStderr:]...)
		b.cut = true
	}
	return n, nil
}

// String is what was kept.
func (b *endsBuffer) String() string {
	tail := b.tail
	if len(tail) > maxStderr {
		tail = tail[len(tail)-maxStderr:]
		b.cut = true
	}
	if b.cut {
		return string(b.head) + "\n…\n" + string(tail)
	}
	return string(b.head) + string(tail)
}
