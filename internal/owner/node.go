package owner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/stackstorm"
)

// Serve is the agent of this node, as its unit runs it.
func Serve(ctx context.Context, log *slog.Logger) error {
	data, err := os.ReadFile(ConfigPath)
	if err != nil {
		return fault.Preflight("no_nodes", "run share_sensors on this node", "read the list of nodes: %w", err)
	}
	config, err := ParseConfig(data)
	if err != nil {
		return fault.Preflight("no_nodes", "run share_sensors on this node", "%s: %w", ConfigPath, err)
	}
	if err := realTime(); err != nil {
		log.Warn("no real-time priority: after a standstill of the machine sensors may run for a moment before they are ended",
			"error", err)
	}
	clock, err := NewBootClock()
	if err != nil {
		return err
	}
	defer clock.Close()
	tell := func(what string) func() {
		return func() { _, _ = daemon.SdNotify(false, what) } // there is nobody to tell outside systemd
	}
	a := &Agent{Config: config, Broker: &Bus{Host: host.NewLocal(config.Node), Config: config}, Clock: clock, Log: log,
		Sensors: NewSensors(config.Node, log), Timers: NewTimers(log), Alive: tell(daemon.SdNotifyWatchdog)}
	return a.Run(ctx, tell(daemon.SdNotifyReady))
}

// realTime has the agent run before sensors do when both could. Threads that begin later inherit it.
func realTime() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	var failed error
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err == nil {
			err = unix.SchedSetAttr(id, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) { // a thread may have ended
			failed = cmp.Or(failed, fmt.Errorf("sched_setattr: %w", err))
		}
	}
	return failed
}

// Bus is the message bus that a node's st2.conf names.
type Bus struct {
	Host   host.Host
	Config Config

	next int // of several brokers
}

// Join logs in where StackStorm does.
func (b *Bus) Join(ctx context.Context) (Session, error) {
	conf, err := stackstorm.LookAtConf(ctx, b.Host)
	if conf == nil {
		return nil, err
	}
	logins, err := conf.Brokers()
	if err != nil {
		return nil, err
	}
	login := logins[b.next%len(logins)]
	group := rabbitmq.Group{Name: "sensors", List: b.Config.Fingerprint(), Label: "list of nodes"}
	m, err := rabbitmq.JoinGroup(ctx, &net.Dialer{}, login, group, b.Config.Node)
	if err != nil {
		b.next++
		return nil, fmt.Errorf("RabbitMQ at %s: %w", login.Addr, err)
	}
	return m, nil
}
