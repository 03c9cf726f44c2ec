package heal

import (
	"context"
	_ "embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/owner"
	"st2ha/internal/service"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// How the sensors are spread over the nodes.
const (
	SensorsPrimary = "primary" // all on the primary, as configure_st2 leaves them
	SensorsShared  = "shared"  // each on one node, by its agent
)

//go:embed st2ha-owner.service
var agentUnit []byte

// ShareSensors is the step share_sensors: each sensor runs on one node, and the timers on one, and on another one when
// that is lost.
type ShareSensors struct {
	Program []byte // of st2ha-watch
	Shared  bool   // else it only looks whether they are
	Config  owner.Config
	Primary host.Host // whether there are timers, its st2.conf says
}

// Name is share_sensors.
func (s *ShareSensors) Name() string { return "share_sensors" }

// agent is the unit, and its files.
func (s *ShareSensors) agent(ctx context.Context) (daemon, error) {
	timers, err := s.timers(ctx)
	if err != nil {
		return daemon{}, err
	}
	config := s.Config
	config.Timers = timers
	d := daemon{unit: owner.AgentUnit, files: []placed{
		{path: programDir + "/st2ha-owner", mode: 0o755, data: s.Program},
		{path: owner.ConfigPath, mode: 0o644, data: config.Encode()},
		{path: "/etc/systemd/system/" + owner.AgentUnit, mode: 0o644, data: agentUnit, unit: true},
	}}
	for _, unit := range s.units(timers) {
		d.files = append(d.files, placed{path: stackstorm.TurnDropIn(unit), mode: 0o644, data: owner.DropInText(unit),
			unit: true, binds: unit})
	}
	return d, nil
}

// timers says whether the cluster is to have any: its primary's st2.conf may have switched them off.
func (s *ShareSensors) timers(ctx context.Context) (bool, error) {
	conf, err := stackstorm.LookAtConf(ctx, s.Primary)
	if conf == nil {
		return false, err
	}
	return !conf.SwitchedOff(stackstorm.TimersUnit), nil
}

// units are the services that are shared.
func (s *ShareSensors) units(timers bool) []string {
	if timers {
		return []string{stackstorm.SensorsUnit, stackstorm.TimersUnit}
	}
	return []string{stackstorm.SensorsUnit}
}

// Check looks for what a second file of settings would overrule, and for units that are not as StackStorm's packages
// have them.
func (s *ShareSensors) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	if !s.Shared {
		return s.leftOver(ctx, h)
	}
	findings, err := sameMachine(ctx, h, s.Name())
	if err != nil {
		return nil, err
	}
	conf, err := stackstorm.LookAtConf(ctx, h)
	if conf == nil {
		return nil, err
	}
	add := func(severity step.Severity, check, fix, format string, args ...any) {
		findings = append(findings, step.Finding{Severity: severity, Host: h.Name(), Check: check,
			Message: fmt.Sprintf(format, args...), Fix: fix})
	}
	if provider, ok := conf.OwnPartition(); ok {
		add(step.Error, "own_partition", "remove partition_provider there, or set sensors to primary in the pack's configuration",
			"%s: [sensorcontainer] partition_provider is %q, which sharing the sensors would overrule", stackstorm.ConfPath, provider)
	}
	if brokers, err := conf.Brokers(); err == nil && len(brokers) > 1 {
		add(step.Warning, "broker_cluster", "give the brokers cluster_partition_handling = pause_minority, and see docs/sensors.md",
			"%s names %d brokers: while they are cut off from each other two nodes may run a sensor", stackstorm.ConfPath, len(brokers))
	}
	timers, err := s.timers(ctx)
	if err != nil {
		return nil, err
	}
	units := s.units(timers)
	enabled, err := service.Enabled(ctx, h, units...)
	if err != nil {
		return nil, err
	}
	for _, unit := range units {
		if !slices.Contains(enabled, unit) {
			add(step.Error, "sensors_unit", "systemctl enable "+unit+" there, or set sensors to primary in the pack's configuration",
				"%s is not enabled, so this node could not do its share", unit)
			continue
		}
		out, err := h.Run(ctx, nil, "systemctl", "show", "--property=ExecStart", unit)
		if err != nil {
			return nil, fmt.Errorf("%s: command of %s: %w", h.Name(), unit, err)
		}
		if !strings.Contains(string(out), "argv[]="+owner.Command(unit)+" ;") &&
			!strings.Contains(string(out), "argv[]="+owner.Command(unit)+" --config-file "+stackstorm.TurnFile(unit)+" ;") {
			add(step.Error, "sensors_command", "take ExecStart= out of its drop-ins (systemctl cat "+unit+"), or set sensors to primary",
				"%s does not run the command of StackStorm's packages, %s", unit, owner.Command(unit))
		}
	}
	return findings, nil
}

// leftOver finds a node that shares them although nobody asks for that any more.
func (s *ShareSensors) leftOver(ctx context.Context, h host.Host) ([]step.Finding, error) {
	shared, err := stackstorm.Shared(ctx, h, stackstorm.SensorsUnit)
	if err != nil || !shared {
		return nil, err
	}
	return []step.Finding{{Severity: step.Error, Host: h.Name(), Check: "sensors_shared",
		Message: "this node shares sensors and timers with others, and the setting sensors is primary",
		Fix:     "set sensors to shared; or undo the run that shared them on all nodes, the secondaries first (rollback)"}}, nil
}

// Plan installs the agent. A service that runs is stopped before the agent begins: from then on it is the agent's.
func (s *ShareSensors) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	if !s.Shared {
		return nil, nil
	}
	d, err := s.agent(ctx)
	if err != nil {
		return nil, err
	}
	return d.plan(ctx, h)
}

// Verify asks systemd: the agent says that it is there once nothing runs that is not its own.
func (s *ShareSensors) Verify(ctx context.Context, h host.Host) error {
	if !s.Shared {
		return nil
	}
	return runs(ctx, h, owner.AgentUnit, "sensors_agent")
}

// Yield stops a service of StackStorm that its agent is to start from now on. Undone, the service runs by itself again.
type Yield struct{ Unit string }

// Kind is "yield".
func (y *Yield) Kind() string { return "yield" }

// Target is the unit.
func (y *Yield) Target() string { return y.Unit }

// Diff says what is done.
func (y *Yield) Diff() string {
	return "systemctl stop " + y.Unit + ": from now on " + owner.AgentUnit + " starts it when it is this node's turn"
}

// Owes is the unit: what a killed run did not come to, and a rollback has to start, is made up for by the next one.
func (y *Yield) Owes() string { return y.Unit }

// Postponed is false.
func (y *Yield) Postponed() bool { return false }

// Apply stops it.
func (y *Yield) Apply(ctx context.Context, h host.Host) error {
	if _, err := h.Run(ctx, nil, "systemctl", "stop", y.Unit); err != nil {
		return fault.Failed("yield", "journalctl -u "+y.Unit+" says why", "%s: stop %s: %w", h.Name(), y.Unit, err)
	}
	return step.Settle(ctx, h, y.Unit)
}

// Undo starts it, if the host starts it at boot.
func (y *Yield) Undo(ctx context.Context, h host.Host) error {
	enabled, err := service.Enabled(ctx, h, y.Unit)
	if err != nil {
		return err
	}
	if len(enabled) > 0 {
		if _, err := h.Run(ctx, nil, "systemctl", "restart", y.Unit); err != nil {
			return fault.Failed("yield", "journalctl -u "+y.Unit+" says why", "%s: start %s: %w", h.Name(), y.Unit, err)
		}
	}
	return step.Settle(ctx, h, y.Unit)
}

// daemon is a unit of ours on a node, with the files that it needs.
type daemon struct {
	unit  string
	files []placed
}

// placed is a file of it.
type placed struct {
	path  string
	mode  fs.FileMode
	data  []byte
	unit  bool   // systemd reads it
	binds string // the service whose drop-in it is
}

// plan writes the files, and has systemd run what is on disk.
func (d daemon) plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	var changes []step.Change
	made := map[string]bool{}
	reload, changed := false, false
	var yields []step.Change
	for _, f := range d.files {
		dir, err := makeDir(ctx, h, path.Dir(f.path))
		if err != nil {
			return nil, err
		}
		if dir != nil && !made[dir.Dir] {
			made[dir.Dir] = true
			changes = append(changes, dir)
		}
		c, err := edit(ctx, h, f.path, f.mode, f.data)
		if err != nil {
			return nil, err
		}
		if c != nil {
			changes = append(changes, c)
			changed, reload = true, reload || f.unit
		}
		if f.binds == "" {
			continue
		}
		owed, err := step.Owed(ctx, h, f.binds)
		if err != nil {
			return nil, err
		}
		if c != nil || owed {
			yields = append(yields, &Yield{Unit: f.binds})
		}
	}
	return d.run(ctx, h, changes, yields, reload, changed)
}

// run appends what makes systemd run the program as it is on disk. reload and changed say whether its unit, and any of
// its files, are changed; between comes before it begins.
func (d daemon) run(ctx context.Context, h host.Host, changes, between []step.Change, reload,
	changed bool) ([]step.Change, error) {
	start, err := service.PlanStart(ctx, h, d.unit)
	if err != nil {
		return nil, err
	}
	owed, err := step.Owed(ctx, h, d.unit)
	if err != nil {
		return nil, err
	}
	if !reload && (start != nil || owed || len(between) > 0) {
		if reload, err = service.ReloadNeeded(ctx, h, d.unit); err != nil {
			return nil, err
		}
	}
	if reload {
		changes = append(changes, &service.Reload{})
	}
	changes = append(changes, between...)
	if start != nil {
		changes = append(changes, start)
	}
	if owed || changed && (start == nil || start.WasActive) {
		changes = append(changes, &service.Restart{Unit: d.unit})
	}
	return changes, nil
}

// runs asks systemd whether a unit of ours does.
func runs(ctx context.Context, h host.Host, unit, code string) error {
	down, err := service.Inactive(ctx, h, unit)
	if err != nil {
		return err
	}
	if len(down) > 0 {
		return fault.Failed(code, "journalctl -u "+unit+" says why", "%s: %s", h.Name(), down[0])
	}
	return nil
}
