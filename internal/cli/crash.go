//go:build crash

package cli

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"st2ha/internal/host"
)

// crashes counts the process's points.
var crashes atomic.Int64

// crashing makes the process die at the point that ST2HA_CRASH_AT numbers, or
// stop there if ST2HA_CRASH_STOP is set. A point is each change of a host, and
// for a program that changes one also the middle of it. The names of the points
// passed are appended to ST2HA_CRASH_LOG.
func crashing(h host.Host) host.Host { return crashHost{h} }

type crashHost struct{ host.Host }

// reached passes a point, or dies there.
func reached(name string) {
	if due(name) {
		die()
	}
}

func due(name string) bool {
	n := crashes.Add(1)
	if log, err := os.OpenFile(os.Getenv("ST2HA_CRASH_LOG"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err == nil {
		fmt.Fprintln(log, name)
		log.Close()
	}
	return strconv.FormatInt(n, 10) == os.Getenv("ST2HA_CRASH_AT")
}

func die() {
	if os.Getenv("ST2HA_CRASH_STOP") != "" {
		// To this very thread, so that it does not go on before the others stop.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP)
		return
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func (c crashHost) WriteFile(ctx context.Context, f host.File) error {
	err := c.Host.WriteFile(ctx, f)
	reached("write " + f.Path)
	return err
}

func (c crashHost) Mkdir(ctx context.Context, path string, info host.Info) error {
	err := c.Host.Mkdir(ctx, path, info)
	reached("mkdir " + path)
	return err
}

func (c crashHost) Rename(ctx context.Context, from, to string) error {
	err := c.Host.Rename(ctx, from, to)
	reached("rename " + from)
	return err
}

func (c crashHost) Remove(ctx context.Context, path string) error {
	err := c.Host.Remove(ctx, path)
	reached("remove " + path)
	return err
}

// reads are the programs that change nothing that matters.
var reads = []string{"exportfs -v", "getent ", "rabbitmqctl --quiet export_definitions",
	"systemctl is-", "systemctl show", "systemctl reset-failed"}

func (c crashHost) Run(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	line := strings.Join(argv, " ")
	if slices.ContainsFunc(reads, func(p string) bool { return strings.HasPrefix(line, p) }) {
		return c.Host.Run(ctx, stdin, argv...)
	}
	var dying *time.Timer
	if due("during " + line) {
		dying = time.AfterFunc(200*time.Millisecond, die) // it is at work by then
	}
	out, err := c.Host.Run(ctx, stdin, argv...)
	if dying != nil && dying.Stop() {
		die() // it was quicker
	}
	reached("run " + line)
	return out, err
}
