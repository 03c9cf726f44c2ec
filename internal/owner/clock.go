package owner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// BootClock is CLOCK_BOOTTIME: it goes on while the machine sleeps, which Go's own timers do not, and is never set.
type BootClock struct{ timer *os.File }

// NewBootClock makes the clock and its alarm.
func NewBootClock() (*BootClock, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	return &BootClock{timer: os.NewFile(uintptr(fd), "timerfd")}, nil
}

// Now is the time since the machine was started.
func (c *BootClock) Now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 1<<63 - 1 // it cannot fail (clock_gettime(2)); if it does, every lease is over
	}
	return time.Duration(t.Nano())
}

// Set arms the alarm.
func (c *BootClock) Set(at time.Duration) error {
	conn, err := c.timer.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		failed = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME,
			&unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(at), 1))}, nil)
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("set a timer: %w", err)
	}
	return nil
}

// Wait waits for the alarm.
func (c *BootClock) Wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.timer.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var expired [8]byte
	if _, err := c.timer.Read(expired[:]); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("wait for a timer: %w", err)
	}
	return nil
}

// Close ends the alarm.
func (c *BootClock) Close() error { return c.timer.Close() }
