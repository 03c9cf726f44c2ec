package stackstorm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"regexp"
	"strconv"
	"strings"

	"st2ha/internal/host"
	"st2ha/internal/rabbitmq"
)

// Progress distinguishes units that take messages from those that are connected
// and do nothing. StackStorm's consumers have one message each under way
// (st2common/st2common/transport/consumers.py:56, prefetch_count=1) and
// acknowledge it as soon as a thread has it, or, the rules engine, once it is
// in the database; AMQP says how many messages wait, not how many were taken.
// So the kernel is asked what the unit has sent to the broker.
type Progress struct {
	sent map[string]uint64 // bytes, by connection, as of the last Look
}

// ackFrame is the size of basic.ack with its frame (AMQP 0-9-1, sections 4.2.3
// and 1.8.3.13). A heartbeat has 8 bytes, and comes once a second at most.
const ackFrame = 21

// Look returns the units that hold connections to the broker at addr, each
// with whether it has sent an acknowledgement, or more, since the last Look; at
// the first one, and where the kernel keeps no count, all have. Workers count
// for their unit. It is to be called about once a second.
func (p *Progress) Look(ctx context.Context, h host.Host, addr string) (map[string]bool, error) {
	list, err := connections(ctx, h, addr)
	if err != nil {
		return nil, err
	}
	moved, now := map[string]bool{}, map[string]uint64{}
	for _, c := range list {
		unit, _, _ := strings.Cut(c.unit, "@")
		before, known := p.sent[c.local]
		now[c.local] = c.sent
		moved[unit] = moved[unit] || !known || c.sent == 0 || c.sent >= before+ackFrame
	}
	p.sent = now
	return moved, nil
}

// Waits says how many messages wait in which queue of a unit; empty if none do.
func Waits(unit, prefix string, queues map[string]rabbitmq.Queue) string {
	for _, queue := range Queues(unit) {
		if name := prefix + "." + queue; queues[name].Messages > 0 {
			return fmt.Sprintf("%d messages in %s", queues[name].Messages, name)
		}
	}
	return ""
}

// connection is one of a unit to the broker.
type connection struct {
	unit  string // with the worker's number: st2actionrunner@3
	local string // address and port
	sent  uint64 // bytes; 0 where the kernel does not say
}

var (
	pidOf    = regexp.MustCompile(`pid=(\d+)`)
	sentOf   = regexp.MustCompile(`\bbytes_(?:sent|acked):(\d+)`) // bytes_sent came with Linux 4.19
	cgroupOf = regexp.MustCompile(`(?m)/(st2[a-z]+(?:@[^/.]+)?)\.service(?:/|$)`)
)

// connections are those of st2 units to addr: ss(8) knows the processes, whose
// control group names the unit (systemd, cgroups(7)). Only root sees those of
// other users.
func connections(ctx context.Context, h host.Host, addr string) ([]connection, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%s: broker %q: %w", h.Name(), addr, err)
	}
	out, err := h.Run(ctx, nil, "ss", "--tcp", "--numeric", "--no-header", "--processes", "--info", "state",
		"established", "dport = :"+port)
	if err != nil {
		return nil, fmt.Errorf("%s: connections to RabbitMQ: %w", h.Name(), err)
	}
	var found []connection
	units := map[string]string{} // by process
	var open []connection        // of the socket whose lines are being read
	flush := func() { found, open = append(found, open...), nil }
	for _, line := range strings.Split(string(out), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if line[0] == ' ' || line[0] == '\t' { // what --info says of the socket before
			if m := sentOf.FindStringSubmatch(line); m != nil {
				sent, _ := strconv.ParseUint(m[1], 10, 64)
				for i := range open {
					open[i].sent = sent
				}
			}
			continue
		}
		flush()
		if len(fields) < 4 {
			continue
		}
		for _, m := range pidOf.FindAllStringSubmatch(line, -1) {
			unit, seen := units[m[1]]
			if !seen {
				if unit, err = unitOf(ctx, h, m[1]); err != nil {
					return nil, err
				}
				units[m[1]] = unit
			}
			if unit != "" {
				open = append(open, connection{unit: unit, local: fields[2]})
			}
		}
	}
	flush()
	return found, nil
}

// unitOf is the st2 unit of a process; empty if it is none's, or has ended.
func unitOf(ctx context.Context, h host.Host, pid string) (string, error) {
	f, err := h.ReadFile(ctx, "/proc/"+pid+"/cgroup")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if unit := cgroupOf.FindSubmatch(f.Data); unit != nil {
		return string(unit[1]), nil
	}
	return "", nil
}
