package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"st2ha/internal/mountinfo"
)

const mountTable = "/proc/self/mountinfo"

// watchMounts sends what is mounted on point, nil for nothing, at once and at
// each change until ctx ends. The kernel marks the table as ready with POLLPRI
// and POLLERR when it has changed (proc(5)); Go's poller waits for that without
// a thread. changed has room for one, and holds the latest.
func watchMounts(ctx context.Context, point string, changed chan *mountinfo.Mount) error {
	fd, err := unix.Open(mountTable, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), mountTable)
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	// a file of the poller takes deadlines
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var last *mountinfo.Mount
	var fault error
	first := true
	err = raw.Read(func(fd uintptr) bool {
		var now *mountinfo.Mount
		if now, fault = mountedOn(int(fd), point); fault != nil {
			return true
		}
		if !first && same(last, now) {
			return false
		}
		first, last = false, now
		select {
		case <-changed: // not taken yet, and no longer true
		default:
		}
		changed <- now
		return false
	})
	if fault == nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		fault = err
	}
	return fault
}

// same compares what Watch looks at.
func same(a, b *mountinfo.Mount) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Source == b.Source && a.FSType == b.FSType
}

// mountedOn reads the table that fd is open on.
func mountedOn(fd int, point string) (*mountinfo.Mount, error) {
	var table []byte
	for {
		if len(table) == cap(table) {
			table = append(table, make([]byte, 16<<10)...)[:len(table)]
		}
		n, err := unix.Pread(fd, table[len(table):cap(table)], int64(len(table)))
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		table = table[:len(table)+n]
	}
	all, err := mountinfo.Parse(table)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", mountTable, err)
	}
	var found *mountinfo.Mount
	for i, m := range all { // a later one hides an earlier one
		if m.Point == path.Clean(point) {
			found = &all[i]
		}
	}
	return found, nil
}
