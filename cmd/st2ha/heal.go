package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"st2ha/internal/fault"
	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/nfs"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// healCommands are the actions that mend a fault, and what belongs to them.
func healCommands() []command {
	return []command{
		&stepCommand{title: "install_watchdog", about: "a node watches and heals its own backends, also while StackStorm cannot",
			build: buildWatchdog},
		&healCommand{stepCommand: stepCommand{title: "restart_backend", about: "a backend that does not answer on its host is restarted there",
			groups: []group{backendFlags, nodesFlags, datastoreFlags}, build: buildRestartBackend}},
		&healCommand{stepCommand: stepCommand{title: "recover_nfs_mount", about: "an NFS mount that is missing or hangs works again",
			groups: []group{recoverFlags, nodesFlags, datastoreFlags}, build: buildRecoverMount}},
		&healCommand{stepCommand: stepCommand{title: "re_export", about: "what /etc/exports names is exported again",
			groups: []group{exportedFlags, nodesFlags, datastoreFlags}, build: buildReexport}},
		&healCommand{stepCommand: stepCommand{title: "recover_st2_services", about: "st2 services that are down or deaf are restarted, and no others",
			groups: []group{delayFlags, nodesFlags, datastoreFlags}, build: buildRecoverST2}},
		&sweepCommand{},
		&maintenanceCommand{},
		&reportCommand{},
	}
}

// healParams are the parameters of what heals.
type healParams struct {
	nodes       []string
	maintenance string
	backend     string
	endpoint    string
	directory   string
	patience    int // seconds
	detach      bool
	cancel      bool
}

func datastoreFlags(p *params, f *pflag.FlagSet) {
	f.StringVar(&p.heal.maintenance, "maintenance", "", "heals nothing unless it is empty or off: for the datastore's key st2ha_maintenance")
}

func nodesFlags(p *params, f *pflag.FlagSet) {
	f.StringSliceVar(&p.heal.nodes, "nodes", nil, "addresses of all nodes, separated by commas: what knows a node by its name only finds it among them")
}

func backendFlags(p *params, f *pflag.FlagSet) {
	f.StringVar(&p.heal.backend, "backend", "", "what is restarted: "+strings.Join(heal.Backends(), ", "))
	f.StringVar(&p.heal.endpoint, "endpoint", "", "host:port it has to answer at, seen from the host (default: its usual port at the host's address)")
}

func recoverFlags(p *params, f *pflag.FlagSet) {
	f.StringVar(&p.heal.directory, "directory", "", "the mount point, as /etc/fstab names it")
	f.IntVar(&p.heal.patience, "patience", 30, "seconds that a mount that hangs gets to heal itself")
	f.BoolVar(&p.heal.detach, "detach", false, "detach a mount that does not heal itself (umount --lazy), and mount it anew")
}

func exportedFlags(p *params, f *pflag.FlagSet) {
	f.StringVar(&p.heal.directory, "directory", "", "a directory that has to be among the exports (default: whatever /etc/exports names)")
}

func delayFlags(p *params, f *pflag.FlagSet) {
	f.IntVar(&p.delay, "delay", 15, "seconds that a restart of this machine's own action runners waits, for the action to end")
}

func buildWatchdog(context.Context, *common, *params) (step.Step, error) {
	program, err := heal.WatchProgram()
	return &heal.InstallWatchdog{Program: program}, err
}

func buildRestartBackend(_ context.Context, _ *common, p *params) (step.Step, error) {
	if !slices.Contains(heal.Backends(), p.heal.backend) {
		return nil, fault.Usage("backend must be one of %s, not %q", strings.Join(heal.Backends(), ", "), p.heal.backend)
	}
	if p.heal.endpoint != "" {
		if err := checkEndpoint(p.heal.endpoint); err != nil {
			return nil, err
		}
	}
	return &heal.RestartBackend{Backend: p.heal.backend, Endpoint: p.heal.endpoint, Within: rabbitmqTime}, nil
}

// checkEndpoint takes HOST:PORT apart, with [] around an IPv6 address.
func checkEndpoint(endpoint string) error {
	address, port, err := net.SplitHostPort(endpoint)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fault.Usage("endpoint must be host:port, with [] around an IPv6 address, not %q", endpoint)
	}
	return host.CheckAddress("endpoint", address)
}

func buildRecoverMount(_ context.Context, _ *common, p *params) (step.Step, error) {
	if p.heal.directory == "" {
		return nil, fault.Usage("directory is missing: give the mount point")
	}
	if p.heal.patience < 0 {
		return nil, fault.Usage("patience must be a number of seconds, not %d", p.heal.patience)
	}
	return &nfs.Recover{Directory: p.heal.directory, Patience: time.Duration(p.heal.patience) * time.Second, Detach: p.heal.detach, Within: mountTime},
		nfs.Validate([]string{p.heal.directory})
}

func buildReexport(_ context.Context, _ *common, p *params) (step.Step, error) {
	if p.heal.directory == "" {
		return &nfs.Restore{}, nil
	}
	return &nfs.Restore{Directory: p.heal.directory}, nfs.Validate([]string{p.heal.directory})
}

// stuckTime is how long a service is watched that seems to take no messages: a
// healthy one acknowledges what it takes at once.
const stuckTime = 30 * time.Second

func buildRecoverST2(_ context.Context, _ *common, p *params) (step.Step, error) {
	if p.delay < 0 {
		return nil, fault.Usage("delay must be a number of seconds, not %d", p.delay)
	}
	return &stackstorm.Recoverer{Delay: time.Duration(p.delay) * time.Second, Within: st2Time, Stuck: stuckTime}, nil
}

// healCommand runs a step that mends a fault: within limits, and not journalled.
type healCommand struct{ stepCommand }

func (c *healCommand) exec(ctx context.Context, o *common) (any, error) {
	address, err := o.addressOf(ctx, c.params.host, c.params.heal.nodes)
	if err != nil {
		return nil, err
	}
	c.params.host = address
	return c.run(ctx, o, func(built step.Step, h host.Host) (step.Result, error) {
		if off, r := silenced(c.params.heal.maintenance, built.Name(), h.Name(), o); off {
			return r, nil
		}
		return step.Heal(ctx, built, h, o.options(), o.guard(built.Name()))
	})
}

// addressOf finds the address of a node that is given by its host name, which
// is what an event calls it: other nodes need not be able to resolve it, and
// know its host key by its address. What is none of the nodes stays as it is.
func (c *common) addressOf(ctx context.Context, name string, nodes []string) (string, error) {
	if net.ParseIP(name) != nil || slices.Contains(nodes, name) {
		return name, nil
	}
	if local, err := host.IsLocal(ctx, name); err == nil && local {
		return name, nil
	}
	for _, address := range given(nodes) {
		if err := host.CheckAddress("nodes", address); err != nil {
			return "", err
		}
		h, err := c.open(ctx, address)
		if err != nil {
			continue // the node that is looked for may be another
		}
		if found, err := stackstorm.Hostname(ctx, h); err == nil && strings.EqualFold(found, name) {
			return address, nil
		}
	}
	return name, nil
}

// given are the elements of a list that a template may have left empty.
func given(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(e string) bool { return e == "" })
}

// silenced says whether the datastore's switch is on, with the result that says so.
func silenced(value, name, address string, o *common) (bool, step.Result) {
	r := step.Result{Step: name, Host: address, Run: o.run, DryRun: o.dryRun, Changes: []step.ChangeSummary{}, Findings: []step.Finding{{
		Severity: step.Warning, Host: address, Check: "maintenance", Message: "nothing is healed: maintenance is on in StackStorm's datastore",
		Fix: "st2 key delete st2ha_maintenance ends it"}}}
	r.Millis = time.Since(o.start).Milliseconds()
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "", "off", "false", "no", "0", "none":
		return false, r
	}
	return true, r
}

// guard asks the ledger on the host, and tells StackStorm when it gives up.
func (c *common) guard(by string) step.Guard {
	return func(ctx context.Context, h host.Host, change step.Change) (*step.Finding, error) {
		d, err := heal.Default().Allow(ctx, h, change.Target(), time.Now())
		if err != nil {
			return nil, err
		}
		if d.First {
			c.tell(ctx, heal.Event{Event: heal.EventGaveUp, Target: change.Target(), Node: h.Name(), Heals: d.Heals, Reason: d.Reason, By: by, At: time.Now().UTC()})
		}
		return d.Finding(h, change.Target()), nil
	}
}

// tell dispatches a trigger. Where that fails the failed action still tells.
func (c *common) tell(ctx context.Context, e heal.Event) {
	api, err := c.api()
	if err == nil {
		err = api.Trigger(ctx, "st2ha."+e.Event, e)
	}
	if err != nil {
		c.log.Warn("trigger not dispatched", "trigger", "st2ha."+e.Event, "why", c.mask.Mask(err.Error()))
	}
}

func (c *common) api() (*stackstorm.API, error) {
	return stackstorm.NewAPI(c.getenv("ST2_ACTION_API_URL"), c.getenv("ST2_ACTION_AUTH_TOKEN"))
}

// sweepCommand ends executions that a fault left behind.
type sweepCommand struct{ params params }

func (s *sweepCommand) name() string { return "sweep_executions" }
func (s *sweepCommand) summary() string {
	return "executions whose runner is gone are ended, so that what waits for them goes on; what else stands still is reported"
}

func (s *sweepCommand) flags(f *pflag.FlagSet) {
	f.StringSliceVar(&s.params.heal.nodes, "nodes", nil, "addresses of all nodes, separated by commas: where runners can be (default: this machine)")
	f.IntVar(&s.params.heal.patience, "patience", 900, "seconds that an execution must have stood still")
	f.BoolVar(&s.params.heal.cancel, "cancel", false, "cancel workflows and requests that nothing can move any more; they are only reported without it")
	datastoreFlags(&s.params, f)
}

func (s *sweepCommand) exec(ctx context.Context, c *common) (any, error) {
	const here = "127.0.0.1"
	off, r := silenced(s.params.heal.maintenance, s.name(), here, c)
	if off {
		return r, nil
	}
	r.Findings = []step.Finding{}
	if s.params.heal.patience < 0 {
		return r, fault.Usage("patience must be a number of seconds, not %d", s.params.heal.patience)
	}
	api, err := c.api()
	if err != nil {
		return r, err
	}
	nodes, unreached, err := s.open(ctx, c)
	if err != nil {
		return r, err
	}
	// People at work on one node, or a run that joins it, are at work on the cluster's executions, too.
	for _, n := range nodes {
		look := heal.Silence
		if c.dryRun {
			look = heal.ReadMaintenance // which writes nothing
		}
		m, err := look(ctx, n, time.Now())
		if err != nil {
			return r, err
		}
		if m.On {
			r.Findings = []step.Finding{{Severity: step.Warning, Host: n.Name(), Check: "maintenance", Message: "nothing is swept: " + m.String(),
				Fix: "st2ha.maintenance with mode=off on that node ends it"}}
			return r, nil
		}
	}
	local, err := c.open(ctx, here)
	if err != nil {
		return r, err
	}
	var away []string
	for _, f := range unreached {
		away = append(away, f.Host)
	}
	if !c.dryRun {
		turn, working, err := takeSweep(ctx, local, c)
		var busy *rabbitmq.BusyError
		if errors.As(err, &busy) {
			r.Findings = append(unreached, step.Finding{Severity: step.Warning, Host: local.Name(), Check: "sweep_waits",
				Message: "nothing is swept: " + busy.Error(), Fix: "wait; the rule st2ha.sweep_regularly sweeps every ten minutes"})
			return r, nil
		}
		if err != nil {
			return r, err
		}
		defer func() {
			if err := turn.Done(ctx); err != nil {
				c.log.Warn("the next sweep may follow at once: its pause is not noted", "why", c.mask.Mask(err.Error()))
			}
		}()
		ctx = working
	}
	sweeper := &stackstorm.Sweeper{API: api, Nodes: nodes, Away: away, Patience: time.Duration(s.params.heal.patience) * time.Second,
		Cancel: s.params.heal.cancel, Own: c.getenv("ST2_ACTION_EXECUTION_ID"), Now: time.Now}
	// An execution is ended once: that has no limits.
	r, err = step.Heal(ctx, sweeper, local, c.options(), always)
	r.Findings = append(append([]step.Finding{}, unreached...), r.Findings...) // a list also when there is none
	return r, err
}

const (
	sweepGap  = heal.Gap         // between the end of a sweep and the next one's begin
	sweepTime = 15 * time.Minute // more than any sweep takes: the action ends it before
)

// takeSweep takes the turn at sweeping: each sweep loads the API, the database
// and the broker, whose slowness may be what asked for it, so one is at work in
// the whole cluster. All nodes reach the broker that StackStorm works with.
func takeSweep(ctx context.Context, h host.Host, c *common) (*rabbitmq.Turn, context.Context, error) {
	conf, err := stackstorm.ReadConf(ctx, h)
	if err != nil {
		return nil, nil, err
	}
	brokers, err := conf.Brokers()
	if err != nil {
		return nil, nil, err
	}
	by := "run " + c.run
	if name, err := stackstorm.Hostname(ctx, h); err == nil {
		by += " on " + name
	}
	var all []error
	for _, login := range brokers {
		turn, working, err := rabbitmq.TakeTurn(ctx, h, login, "sweep", by, sweepGap, sweepTime)
		var busy *rabbitmq.BusyError
		if err == nil || errors.As(err, &busy) {
			return turn, working, err
		}
		all = append(all, fmt.Errorf("RabbitMQ at %s: %w", login.Addr, err))
	}
	return nil, nil, fault.Failed("sweep_turn", "nothing was swept; bring the broker back, or let its user have queues named st2ha.sweep.*",
		"%s: whether another sweep is at work cannot be found out: %w", h.Name(), errors.Join(all...))
}

// open connects to the nodes. One that cannot be reached may be down or only
// cut off: its executions are left alone, and that is said.
func (s *sweepCommand) open(ctx context.Context, c *common) (nodes []host.Host, unreached []step.Finding, err error) {
	addresses := given(s.params.heal.nodes)
	if len(addresses) == 0 {
		addresses = []string{"127.0.0.1"}
	}
	for _, address := range addresses {
		if err := host.CheckAddress("nodes", address); err != nil {
			return nil, nil, err
		}
		h, err := c.open(ctx, address)
		if err != nil {
			unreached = append(unreached, step.Finding{Severity: step.Warning, Host: address, Check: "unreachable",
				Message: c.mask.Mask(err.Error()) + "; executions there are left alone", Fix: fault.Of(err).Hint})
			continue
		}
		nodes = append(nodes, h)
	}
	return nodes, unreached, nil
}

// always is a guard without limits.
func always(context.Context, host.Host, step.Change) (*step.Finding, error) { return nil, nil }

// maintenanceCommand silences healing on a node while people work there.
type maintenanceCommand struct {
	host   string
	mode   string
	lasts  int // seconds
	reason string
	own    bool
}

func (m *maintenanceCommand) name() string { return "maintenance" }
func (m *maintenanceCommand) summary() string {
	return "healing on a node is silenced, or goes on again"
}

func (m *maintenanceCommand) flags(f *pflag.FlagSet) {
	f.StringVar(&m.host, "host", "", "address of the host to act on; this machine's own means locally, others are reached over SSH")
	f.StringVar(&m.mode, "mode", "", "on or off")
	f.IntVar(&m.lasts, "lasts", 0, "with on: seconds after which it ends by itself (0: when it is switched off)")
	f.StringVar(&m.reason, "reason", "", "with on: why, for others who look")
	f.BoolVar(&m.own, "for_run", false, "it is the run's: one that somebody else has set is left alone")
}

func (m *maintenanceCommand) exec(ctx context.Context, c *common) (any, error) {
	failed := step.Result{Step: m.name(), Host: m.host, Run: c.run, DryRun: c.dryRun, Changes: []step.ChangeSummary{}, Findings: []step.Finding{}}
	if err := host.CheckAddress("host", m.host); err != nil {
		return failed, err
	}
	to := heal.Maintenance{On: m.mode == "on", Since: c.start.UTC(), Reason: m.reason}
	if m.own {
		to.Run = c.run
	}
	switch {
	case m.mode != "on" && m.mode != "off":
		return failed, fault.Usage("mode must be on or off, not %q", m.mode)
	case m.lasts < 0:
		return failed, fault.Usage("lasts must be a number of seconds, not %d", m.lasts)
	case !to.On && (m.lasts > 0 || m.reason != ""):
		return failed, fault.Usage("lasts and reason belong to mode on")
	case m.lasts > 0:
		to.Until = to.Since.Add(time.Duration(m.lasts) * time.Second)
	}
	h, err := c.open(ctx, m.host)
	if err != nil {
		return failed, err
	}
	if m.own && to.On && to.Until.IsZero() {
		return failed, fault.Usage("lasts is missing: what a run sets must end also if the run dies")
	}
	return step.Heal(ctx, &heal.SetMaintenance{To: to, Own: m.own}, h, c.options(), always)
}

// reportCommand tells people, by this machine's system log, what nobody but
// they can mend.
type reportCommand struct {
	message string
}

func (r *reportCommand) name() string { return "report" }
func (r *reportCommand) summary() string {
	return "a line goes to the system log: what a person has to look at"
}

func (r *reportCommand) flags(f *pflag.FlagSet) {
	f.StringVar(&r.message, "message", "", "what to say; one line")
}

func (r *reportCommand) exec(ctx context.Context, c *common) (any, error) {
	const here = "127.0.0.1"
	result := step.Result{Step: r.name(), Host: here, Run: c.run, DryRun: c.dryRun, Changes: []step.ChangeSummary{}, Findings: []step.Finding{}}
	message := strings.Join(strings.Fields(c.mask.Mask(r.message)), " ")
	if message == "" {
		return result, fault.Usage("message is missing")
	}
	result.Findings = append(result.Findings, step.Finding{Severity: step.Warning, Host: here, Check: "report", Message: message})
	if c.dryRun {
		return result, nil
	}
	h, err := c.open(ctx, here)
	if err != nil {
		return result, err
	}
	if _, err := h.Run(ctx, nil, "logger", "--tag", "st2ha", "--priority", "user.err", "--", message); err != nil {
		return result, fault.Failed("report", "look at the system log's service", "%s: logger: %w", here, err)
	}
	result.Millis = time.Since(c.start).Milliseconds()
	return result, nil
}
