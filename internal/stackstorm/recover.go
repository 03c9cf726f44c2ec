package stackstorm

import (
	"context"
	"fmt"
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
	"st2ha/internal/wait"
)

// Recoverer is the step recover_st2_services: it restarts exactly those st2
// units that are not active, or that are deaf: connected to no broker, with a
// queue that nobody consumes, with messages of which they take none, or unable
// to publish (Mute).
type Recoverer struct {
	Delay  time.Duration // of a restart that would end the action that asks for it
	Within time.Duration // they must be active by then
	Stuck  time.Duration // that messages may wait without one being taken
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
	finding := step.Finding{Severity: step.Error, Host: h.Name(),
		Fix: "heal that first; the services connect again by themselves, or run this again"}
	if err := mongodb.Answers(ctx, h, db.Via); err != nil {
		finding.Check, finding.Message = "database", fmt.Sprintf("MongoDB at %s does not answer: %v", db.Via, err)
		return []step.Finding{finding}, nil
	}
	conn, err := rabbitmq.Dial(ctx, h, login)
	if err != nil {
		finding.Check, finding.Message = "broker",
			fmt.Sprintf("log in to RabbitMQ at %s as %s: %v", login.Addr, login.User, err)
		return []step.Finding{finding}, nil
	}
	_ = conn.Close()
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
	first := "'st2*'" // of those that are waited for
	return step.Await(ctx, 500*time.Millisecond, func(ctx context.Context) (waiting, err error) {
		ailing, err := s.ailing(ctx, h)
		if err != nil {
			return nil, err
		}
		ailing = slices.DeleteFunc(ailing, func(r *unitRestart) bool { return r.postponed(h) })
		if len(ailing) == 0 {
			return nil, nil
		}
		first = ailing[0].Unit
		return fmt.Errorf("%s: %s", first, ailing[0].why), nil
	}, func(seen error) error {
		return fault.Failed("services", "journalctl -u "+first+" says why",
			"%s: wait for the st2 services to recover: %w", h.Name(), seen)
	})
}

// ailing returns the units that have to be restarted.
func (s *Recoverer) ailing(ctx context.Context, h host.Host) ([]*unitRestart, error) {
	units, err := Units(ctx, h)
	if err == nil {
		units, err = withTurn(ctx, h, units)
	}
	if err != nil {
		return nil, err
	}
	states, err := service.States(ctx, h, append(slices.Clone(units), runnerUnit+"@*")...)
	if err != nil {
		return nil, err
	}
	var ailing []*unitRestart
	var active []string
	for _, state := range states {
		unit := strings.TrimSuffix(state.Unit, ".service")
		if state.Active == "active" {
			active = append(active, unit)
			continue
		}
		ailing = append(ailing, &unitRestart{Unit: unit, why: state.Active + " (" + state.Sub + ")"})
	}
	deaf, err := s.deaf(ctx, h, active)
	if err != nil {
		return nil, err
	}
	ailing = append(ailing, deaf...)
	// A restart of the runner is one of all its workers.
	if slices.ContainsFunc(ailing, func(r *unitRestart) bool { return r.Unit == runnerUnit }) {
		ailing = slices.DeleteFunc(ailing,
			func(r *unitRestart) bool { return strings.HasPrefix(r.Unit, runnerUnit+"@") })
	}
	return ailing, nil
}

// deaf returns those of the active units that should consume and do not: each
// must hold a connection, and each queue must have a consumer, on whichever node.
func (s *Recoverer) deaf(ctx context.Context, h host.Host, active []string) ([]*unitRestart, error) {
	conf, err := ReadConf(ctx, h)
	if err != nil {
		return nil, err
	}
	login, err := conf.Broker()
	if err != nil {
		return nil, err
	}
	prefix := conf.Prefix()
	var names []string
	for _, unit := range active {
		for _, queue := range Queues(unit) {
			names = append(names, prefix+"."+queue)
		}
	}
	count, err := rabbitmq.Inspect(ctx, h, login, names...)
	if err != nil {
		return nil, fmt.Errorf("%s: list the consumers at RabbitMQ %s: %w", h.Name(), login.Addr, err)
	}
	list, err := connections(ctx, h, login.Addr)
	if err != nil {
		return nil, err
	}
	connected := map[string]bool{}
	for _, c := range list {
		connected[c.unit] = true
	}
	var deaf []*unitRestart
	for _, unit := range active {
		if why := deafness(unit, prefix, count, connected); why != "" {
			deaf = append(deaf, &unitRestart{Unit: unit, why: why})
		}
	}
	stuck, err := s.stuck(ctx, h, login, names, prefix, active)
	if err != nil {
		return nil, err
	}
	deaf = append(deaf, stuck...)
	// If the journal cannot be searched, the other units are healed all the same.
	mute, _ := Mute(ctx, h, MuteWithin)
	for _, unit := range mute {
		if slices.Contains(active, unit) &&
			!slices.ContainsFunc(deaf, func(r *unitRestart) bool { return r.Unit == unit }) {
			deaf = append(deaf, &unitRestart{Unit: unit, why: "active, but publishes nothing any more"})
		}
	}
	return deaf, nil
}

// stuck returns those of the active units that are connected, have messages
// waiting, and take none for all of Stuck. It ends as soon as all have taken one.
func (s *Recoverer) stuck(ctx context.Context, h host.Host, login rabbitmq.Login, names []string, prefix string,
	active []string) ([]*unitRestart, error) {
	var p Progress
	var doubtful []string
	end := time.Now().Add(s.Stuck)
	for first := true; ; first = false {
		queues, err := rabbitmq.Inspect(ctx, h, login, names...)
		if err != nil {
			return nil, fmt.Errorf("%s: list the messages at RabbitMQ %s: %w", h.Name(), login.Addr, err)
		}
		moved, err := p.Look(ctx, h, login.Addr)
		if err != nil {
			return nil, err
		}
		if first {
			doubtful = active
		}
		doubtful = slices.DeleteFunc(slices.Clone(doubtful), func(unit string) bool {
			took, connected := moved[unit]
			return !connected || took && !first || Waits(unit, prefix, queues) == ""
		})
		if len(doubtful) == 0 {
			return nil, nil
		}
		if !time.Now().Before(end) {
			var stuck []*unitRestart
			for _, unit := range doubtful {
				stuck = append(stuck, &unitRestart{Unit: unit,
					why: fmt.Sprintf("active, but takes none of %s for %s", Waits(unit, prefix, queues), s.Stuck)})
			}
			return stuck, nil
		}
		if err := wait.Sleep(ctx, time.Second); err != nil {
			return nil, err
		}
	}
}

// deafness says why an active unit is deaf; empty if it is not.
func deafness(unit, prefix string, queues map[string]rabbitmq.Queue, connected map[string]bool) string {
	for _, queue := range Queues(unit) {
		if name := prefix + "." + queue; queues[name].Consumers == 0 {
			return "active, but nobody consumes " + name
		}
	}
	name, _, worker := strings.Cut(unit, "@")
	runs := worker || name != runnerUnit // the runner's own unit has ended once its workers run
	if runs && Queues(name) != nil && !connected[unit] {
		return "active, but not connected to RabbitMQ"
	}
	return ""
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
