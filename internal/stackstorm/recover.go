package stackstorm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/mongodb"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

// runnerUnit starts the workers st2actionrunner@1 and on, and stays active
// whatever becomes of them.
const runnerUnit = "st2actionrunner"

// consumed are the queues of services that have one with a name
// (st2common/transport/queues.py). Without its consumers such a service is
// deaf, however alive its process is.
func consumed() map[string]string {
	return map[string]string{
		runnerUnit:          runnerQueue,
		"st2scheduler":      "st2.actionrunner.req",
		"st2notifier":       "st2.notifiers.execution.work",
		"st2rulesengine":    "st2.trigger_instances_dispatch.rules_engine",
		"st2workflowengine": "st2.workflow.work",
	}
}

// Recoverer is the step recover_st2_services: it restarts exactly those st2
// units that are not active, or that are deaf: connected to no broker, or with
// a queue that nobody consumes.
type Recoverer struct {
	Delay  time.Duration // of a restart that would end the action that asks for it
	Within time.Duration // they must be active by then
}

// Name is recover_st2_services.
func (s *Recoverer) Name() string { return "recover_st2_services" }

// Check asks database and broker: with one of them away, or the login refused,
// a restart would heal nothing.
func (s *Recoverer) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	conf, err := ReadConf(ctx, h)
	if err != nil {
		return nil, err
	}
	db, err := conf.Database()
	if err != nil {
		return nil, err
	}
	login, err := conf.Broker()
	if err != nil {
		return nil, err
	}
	finding := step.Finding{Severity: step.Error, Host: h.Name(), Fix: "heal that first; the services connect again by themselves, or run this again"}
	if err := mongodb.Answers(ctx, h, db.Via); err != nil {
		finding.Check, finding.Message = "database", fmt.Sprintf("MongoDB at %s does not answer: %v", db.Via, err)
		return []step.Finding{finding}, nil
	}
	if _, err := rabbitmq.Consumers(ctx, h, login, runnerQueue); err != nil {
		finding.Check, finding.Message = "broker", fmt.Sprintf("log in to RabbitMQ at %s as %s: %v", login.Addr, login.User, err)
		return []step.Finding{finding}, nil
	}
	return nil, nil
}

// Plan finds the units.
func (s *Recoverer) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	ailing, err := s.ailing(ctx, h)
	if err != nil {
		return nil, err
	}
	var changes []step.Change
	for _, a := range ailing {
		a.Delay = s.Delay
		changes = append(changes, a)
	}
	return changes, nil
}

// Verify waits until none is left but those whose restart is put off.
func (s *Recoverer) Verify(ctx context.Context, h host.Host) error {
	ctx, cancel := context.WithTimeout(ctx, s.Within)
	defer cancel()
	for {
		ailing, err := s.ailing(ctx, h)
		if err != nil {
			return err
		}
		ailing = slices.DeleteFunc(ailing, func(r *unitRestart) bool { return r.postponed(h) })
		if len(ailing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fault.Failed("services", "journalctl -u "+ailing[0].Unit+" says why", "%s: %s: %s", h.Name(), ailing[0].Unit, ailing[0].why)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// ailing returns the units that have to be restarted.
func (s *Recoverer) ailing(ctx context.Context, h host.Host) ([]*unitRestart, error) {
	units, err := Units(ctx, h)
	if err != nil {
		return nil, err
	}
	workers, err := workers(ctx, h)
	if err != nil {
		return nil, err
	}
	var ailing []*unitRestart
	bad := map[string]bool{}
	add := func(unit, why string) {
		bad[unit] = true
		ailing = append(ailing, &unitRestart{Unit: unit, why: why})
	}
	down, err := service.Inactive(ctx, h, append(units, workers...)...)
	if err != nil {
		return nil, err
	}
	for _, line := range down {
		unit, state, _ := strings.Cut(line, " is ")
		add(unit, state)
	}
	deaf, err := s.deaf(ctx, h, append(units, workers...))
	if err != nil {
		return nil, err
	}
	for _, d := range deaf {
		if !bad[d.Unit] && !(bad[runnerUnit] && strings.HasPrefix(d.Unit, runnerUnit+"@")) {
			add(d.Unit, d.why)
		}
	}
	return ailing, nil
}

// workers lists the action runner's workers that systemd knows.
func workers(ctx context.Context, h host.Host) ([]string, error) {
	out, err := h.Run(ctx, nil, "systemctl", "list-units", "--all", "--plain", "--no-legend", "--full", runnerUnit+"@*.service")
	if err != nil {
		return nil, fmt.Errorf("%s: list the units of %s: %w", h.Name(), runnerUnit, err)
	}
	var found []string
	for _, line := range strings.Split(string(out), "\n") {
		if fields := strings.Fields(line); len(fields) > 0 {
			found = append(found, strings.TrimSuffix(fields[0], ".service"))
		}
	}
	return found, nil
}

// deaf returns those of the units that should consume and do not.
func (s *Recoverer) deaf(ctx context.Context, h host.Host, units []string) ([]*unitRestart, error) {
	conf, err := ReadConf(ctx, h)
	if err != nil {
		return nil, err
	}
	login, err := conf.Broker()
	if err != nil {
		return nil, err
	}
	connected, err := connectedUnits(ctx, h, login.Addr)
	if err != nil {
		return nil, err
	}
	var deaf []*unitRestart
	for _, unit := range units {
		service, _, worker := strings.Cut(unit, "@")
		queue := consumed()[service]
		if queue == "" {
			continue
		}
		if worker || service != runnerUnit { // which itself runs nothing
			if !connected[unit] {
				deaf = append(deaf, &unitRestart{Unit: unit, why: "active, but not connected to RabbitMQ"})
				continue
			}
		}
		if worker {
			continue
		}
		n, err := rabbitmq.Consumers(ctx, h, login, queue)
		if err != nil {
			return nil, fmt.Errorf("%s: consumers of %s: %w", h.Name(), queue, err)
		}
		if n == 0 {
			deaf = append(deaf, &unitRestart{Unit: unit, why: "active, but nobody consumes " + queue})
		}
	}
	return deaf, nil
}

var (
	pidOf    = regexp.MustCompile(`pid=(\d+)`)
	cgroupOf = regexp.MustCompile(`(?m)/(st2[a-z]+(?:@[^/.]+)?)\.service(?:/|$)`)
)

// connectedUnits are the st2 units with a process that holds a connection to
// addr: ss(8) knows the process, its control group the unit (systemd, cgroups(7)).
func connectedUnits(ctx context.Context, h host.Host, addr string) (map[string]bool, error) {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%s: broker %q: %w", h.Name(), addr, err)
	}
	out, err := h.Run(ctx, nil, "ss", "--tcp", "--numeric", "--no-header", "--processes", "state", "established", "dport = :"+port)
	if err != nil {
		return nil, fmt.Errorf("%s: connections to RabbitMQ: %w", h.Name(), err)
	}
	units := map[string]bool{}
	seen := map[string]bool{}
	for _, m := range pidOf.FindAllStringSubmatch(string(out), -1) {
		if seen[m[1]] {
			continue
		}
		seen[m[1]] = true
		f, err := h.ReadFile(ctx, "/proc/"+m[1]+"/cgroup")
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended
		}
		if err != nil {
			return nil, err
		}
		if unit := cgroupOf.FindSubmatch(f.Data); unit != nil {
			units[string(unit[1])] = true
		}
	}
	return units, nil
}

// unitRestart restarts one st2 unit.
type unitRestart struct {
	Unit  string
	Delay time.Duration
	why   string
}

// Kind is "restart".
func (r *unitRestart) Kind() string { return "restart" }

// Target is the unit.
func (r *unitRestart) Target() string { return r.Unit }

// Diff says why, and what is done.
func (r *unitRestart) Diff() string { return r.why + ": systemctl restart " + r.Unit }

// postponed says whether the restart could end the process that asks for it:
// an action of this node is a child of one of its runners.
func (r *unitRestart) postponed(h host.Host) bool {
	return h.IsLocal() && strings.HasPrefix(r.Unit, runnerUnit)
}

// Apply restarts the unit, or has PID 1 do it after the action has ended.
func (r *unitRestart) Apply(ctx context.Context, h host.Host) error {
	argv := []string{"systemctl", "restart", r.Unit}
	if r.postponed(h) {
		// A name for each unit: one that waits already is not asked for twice.
		name := "st2ha-recover-" + strings.ReplaceAll(r.Unit, "@", "-")
		waiting, err := service.IsActive(ctx, h, name+".timer")
		if err != nil || waiting {
			return err
		}
		argv = append([]string{"systemd-run", "--quiet", "--collect", "--unit=" + name,
			"--on-active=" + strconv.Itoa(int(r.Delay.Seconds())), "--timer-property=AccuracySec=1s", "--"}, argv...)
	}
	if _, err := h.Run(ctx, nil, argv...); err != nil {
		return fault.Failed("restart", "journalctl -u "+r.Unit+" says why", "%s: restart %s: %w", h.Name(), r.Unit, err)
	}
	return nil
}

// Undo does nothing: it is no configuration.
func (r *unitRestart) Undo(context.Context, host.Host) error { return nil }
