package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"st2ha/internal/probe"
)

// statfsErrno is added to an errno in the exit status of a child: what is
// below it is the program's own, such as 2 for a panic.
const statfsErrno = 64

// Statfs is all that the child process of Watch does: statfs(2) on point,
// after a byte on stdout that says so. It returns the exit status, which tells
// Watch what came of it.
func Statfs(point string) int {
	if _, err := os.Stdout.Write([]byte{'\n'}); err != nil {
		return 1
	}
	for {
		var stat unix.Statfs_t
		var errno unix.Errno
		err := unix.Statfs(point, &stat)
		switch {
		case err == nil:
			return 0
		case errors.Is(err, unix.EINTR): // by a signal of the Go runtime
		case errors.As(err, &errno):
			return statfsErrno + int(errno)
		default:
			return 1
		}
	}
}

// statfsChild is a process that calls Statfs.
type statfsChild struct {
	cmd     *exec.Cmd
	entered chan struct{} // closed when it is about to call statfs, or has ended
	done    chan struct{} // closed when it has been reaped
	err     error         // of Wait
}

func startStatfs(argv []string, point string) (*statfsChild, error) {
	argv = append(slices.Clone(argv), point)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"                                                   // nothing of its own on a mount that may hang
	cmd.Env = []string{"GOMAXPROCS=1"}                              // no secret of the parent's, and few threads
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL} // also when the parent is killed
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &statfsChild{cmd: cmd, entered: make(chan struct{}), done: make(chan struct{})}
	go func() {
		_, _ = stdout.Read(make([]byte, 1)) // or its end, of which Wait tells
		close(c.entered)
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// kill sends SIGKILL; that the process has ended meanwhile is no fault.
func (c *statfsChild) kill() { _ = c.cmd.Process.Kill() }

// gone waits for the end, at most for d or until ctx ends.
func (c *statfsChild) gone(ctx context.Context, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	select {
	case <-c.done:
	case <-ctx.Done():
	}
	select {
	case <-c.done: // or both
		return true
	default:
		return false
	}
}

// verdict is what a child that has ended tells.
func (c *statfsChild) verdict() (probe.Verdict, string) {
	if c.err == nil {
		return probe.Good, ""
	}
	var exit *exec.ExitError
	if !errors.As(c.err, &exit) || exit.ExitCode() <= statfsErrno {
		return probe.Unknown, fmt.Sprintf("statfs cannot be tried: %v", c.err)
	}
	switch errno := unix.Errno(exit.ExitCode() - statfsErrno); errno {
	// Linux's client gives either for an export that is withdrawn.
	case unix.ESTALE:
		return probe.Bad, "stale file handle: the export is withdrawn, or its directory was deleted or replaced on the server"
	case unix.EACCES, unix.EPERM:
		return probe.Bad, "access denied: the export is withdrawn, or does not allow this node"
	case unix.EIO, unix.ETIMEDOUT: // a soft mount that has given up
		return probe.Bad, "no answer for so long that the mount gave up: " + errno.Error()
	case unix.ENOENT:
		return probe.Bad, "the mount point does not exist"
	default:
		return probe.Bad, "statfs: " + errno.Error()
	}
}
