package stackstorm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/mongodb"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

// executionID is the form of an execution's id, MongoDB's ObjectId.
var executionID = regexp.MustCompile(`^[0-9a-f]{24}$`)

// executionStatus reads an execution's status from the database that a host's
// st2.conf names; empty if it is not there. The API is of no use here: an action's
// token is deleted when the action ends (st2actions/container/base.py:135).
func executionStatus(ctx context.Context, h host.Host, id string) (string, error) {
	if !executionID.MatchString(id) {
		return "", nil
	}
	conf, err := ReadConf(ctx, h)
	if err != nil {
		return "", err
	}
	db, err := conf.Database()
	if err != nil {
		return "", err
	}
	status, err := mongodb.Field(ctx, h, db.Server, db.Via, conf.databaseName(db.URI), "action_execution_d_b",
		id, "status")
	if err != nil {
		return "", fmt.Errorf("%s: look up execution %s at MongoDB %s: %w", h.Name(), id, db.Via, err)
	}
	return status, nil
}

// databaseName is that of the URI, as mongoengine takes it, or [database] db_name.
func (c *Conf) databaseName(uri string) string {
	if u, err := url.Parse(uri); err == nil && strings.Trim(u.Path, "/") != "" {
		return strings.Trim(u.Path, "/")
	}
	if name := c.option("database", "db_name"); name != "" {
		return name
	}
	return "st2"
}

// waits says whether somebody waits at the host for the run to end: the run is
// an execution that the host's StackStorm has not ended. Where that cannot be
// found out it is taken for yes, since to restart later does no harm.
func waits(ctx context.Context, h host.Host, run string) bool {
	status, err := executionStatus(ctx, h, run)
	return err != nil || status != "" && !completed(status)
}

// fetchTime is what the client needs from an execution's end to its result: it
// polls every 2 s (st2client/commands/action.py:426), and then fetches the children;
// measured: 3.5 s, and twice that on a busy node.
const fetchTime = 10 * time.Second

// AwaitEnd waits until the host's StackStorm has stored an execution's end, and
// st2 run had time to fetch the result. An execution that it does not know has
// ended.
func AwaitEnd(ctx context.Context, h host.Host, id string) error {
	err := step.Await(ctx, 2*time.Second, func(ctx context.Context) (waiting, err error) {
		status, err := executionStatus(ctx, h, id)
		if err == nil && status != "" && !completed(status) {
			err = errors.New("it is " + status)
		}
		return err, nil // a database that is away may come back
	}, func(seen error) error {
		return fault.Failed("execution", "look at st2 execution get "+id+", then run the action again",
			"%s: waited for the end of execution %s, and gave up: %w", h.Name(), id, seen)
	})
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-time.After(fetchTime):
	}
	return nil
}

// AfterEnd is the variable that names the execution whose end a deferred
// command waits for.
const AfterEnd = "ST2HA_AFTER"

// Defer has PID 1 of the host run this program with args there once the run has
// ended: what it does would take StackStorm away from whoever waits for the
// run's result, or end the action that asks for it. A run that is an execution
// is looked up from now on, so that its end is seen when it comes; of any other,
// delay is all that gives it time. unit is its fixed name, so that there are no
// two of them.
func Defer(ctx context.Context, h host.Host, unit string, delay time.Duration, run string, args ...string) error {
	// A copy: the pack's directory can be a mount that is undone before. /run
	// is noexec on Debian.
	const program = step.StateDir + "/st2ha"
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("%s: read this program: %w", h.Name(), err)
	}
	if err := h.Mkdir(ctx, step.StateDir, host.Info{Mode: 0o700}); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := h.WriteFile(ctx, host.File{Path: program, Data: self, Mode: 0o700}); err != nil {
		return err
	}
	for _, name := range []string{unit + ".timer", unit + ".service"} {
		// Left from an earlier run, to be replaced by this one.
		_, _ = h.Run(ctx, nil, "systemctl", "stop", name)
		_, _ = h.Run(ctx, nil, "systemctl", "reset-failed", name)
	}
	argv := []string{"systemd-run", "--quiet", "--collect", "--unit=" + unit, "--timer-property=AccuracySec=1s"}
	if executionID.MatchString(run) {
		argv = append(argv, "--on-active=1", "--setenv="+AfterEnd+"="+run)
	} else {
		argv = append(argv, "--on-active="+strconv.Itoa(int(delay.Seconds())))
	}
	argv = append(append(argv, "--", program), args...)
	if _, err := h.Run(ctx, nil, argv...); err != nil {
		return fault.Failed("defer", "run it in a shell on "+h.Name()+": st2ha "+strings.Join(args, " "),
			"%s: schedule %s: %w", h.Name(), unit, err)
	}
	return nil
}

// deferred says whether the host has such a unit that waits, or is at work.
func deferred(ctx context.Context, h host.Host, unit string) (bool, error) {
	for _, name := range []string{unit + ".timer", unit + ".service"} {
		if active, err := service.IsActive(ctx, h, name); err != nil || active {
			return active, err
		}
	}
	return false, nil
}
