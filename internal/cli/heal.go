package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"st2ha/internal/action"
	"st2ha/internal/fault"
	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/join"
	"st2ha/internal/nfs"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// healCommands are the actions that mend a fault, and what belongs to them.
func healCommands() []command {
	var all []command
	for _, s := range healingSteps() {
		all = append(all, healCommand(s))
	}
	return append(all, sweepCommand(), maintenanceCommand(), reportCommand())
}

// healingSteps are the steps that mend a fault of one host.
func healingSteps() []join.Spec {
	const changes = "no configuration: it mends a fault, within limits"
	return []join.Spec{
		{
			Spec: action.Spec{
				Name:    "restart_backend",
				Summary: "a backend that does not answer on its host is restarted there",
				Description: `On a host: the unit of MongoDB, RabbitMQ, Redis or the NFS server is restarted, if the backend
does not answer there. At most 3 times in 10 minutes, then it gives up and says so.`,
				Settings: []action.Setting{
					{
						Name: "backend", Default: "", Required: true, Enum: heal.Backends(), Help: `What is restarted.`,
						Check: func(v action.Values) error {
							if backend := v.String("backend"); !slices.Contains(heal.Backends(), backend) {
								return fault.Usage("backend must be one of %s, not %q", strings.Join(heal.Backends(), ", "), backend)
							}
							return nil
						},
					},
					{
						Name: "endpoint", Default: "", Check: checkEndpoint,
						Help: `host:port it has to answer at, seen from the host. Empty means its usual port at the host's
address.`,
					},
				},
				Rows: []action.Row{{Host: "any", Changes: changes}},
			},
			Build: func(_ context.Context, _ join.Cluster, v action.Values) (step.Step, error) {
				return &heal.RestartBackend{Backend: v.String("backend"), Endpoint: v.String("endpoint"), Within: join.RabbitMQTime}, nil
			},
		},
		{
			Spec: action.Spec{
				Name:    "recover_nfs_mount",
				Summary: "an NFS mount that is missing or hangs works again",
				Description: `On a node: an NFS mount that /etc/fstab names works again. One that is missing is mounted by
systemd. One that hangs while its server answers gets time to heal itself, as a hard mount does;
it is never unmounted by force.`,
				Settings: []action.Setting{
					{
						Name: "directory", Default: "", Required: true, Help: `The mount point, as /etc/fstab names it.`,
						Check: func(v action.Values) error {
							if v.String("directory") == "" {
								return fault.Usage("directory is missing: give the mount point")
							}
							return checkDirectory(v)
						},
					},
					{Name: "patience", Default: 30, Unit: action.Seconds, Help: `Seconds that a mount that hangs gets to heal itself.`},
					{
						Name: "detach", Default: false,
						Help: `Detach a mount that does not heal itself (umount --lazy), and mount it anew. What writers
there have not saved may be lost.`,
					},
				},
				Rows: []action.Row{{Host: "any", Changes: changes}},
			},
			Build: func(_ context.Context, _ join.Cluster, v action.Values) (step.Step, error) {
				return &nfs.Recover{Directory: v.String("directory"), Patience: duration(v, "patience"), Detach: v.Bool("detach"),
					Within: join.MountTime}, nil
			},
		},
		{
			Spec: action.Spec{
				Name:    "re_export",
				Summary: "what /etc/exports names is exported again",
				Description: `On the primary: what /etc/exports names is exported again, and the NFS server is started if it
is down. The file is not edited: what was taken out of it is withdrawn on purpose.`,
				Settings: []action.Setting{{
					Name: "directory", Default: "", Check: checkDirectory,
					Help: `A directory that has to be among the exports. Empty means whatever /etc/exports names.`,
				}},
				Rows: []action.Row{{Host: "any", Changes: changes}},
			},
			Build: func(_ context.Context, _ join.Cluster, v action.Values) (step.Step, error) {
				return &nfs.Restore{Directory: v.String("directory")}, nil
			},
		},
		{
			Spec: action.Spec{
				Name:    "recover_st2_services",
				Summary: "st2 services that are down or deaf are restarted, and no others",
				Description: `On a node: exactly those st2 services are restarted that are not active, or that are deaf:
connected to no broker, or with a queue that nobody consumes. This node's own action runners are
restarted after the action has ended.`,
				Settings: []action.Setting{{
					Name: "delay", Default: 15, Unit: action.Seconds,
					Help: `Seconds that a restart of this machine's own action runners waits, for the action to end.`,
				}},
				Rows: []action.Row{{Host: "any", Changes: changes}},
			},
			Build: func(_ context.Context, _ join.Cluster, v action.Values) (step.Step, error) {
				return &stackstorm.Recoverer{Delay: duration(v, "delay"), Within: join.ST2Time, Stuck: stuckTime}, nil
			},
		},
	}
}

// stuckTime is how long a service is watched that seems to take no messages: a
// healthy one acknowledges what it takes at once.
const stuckTime = 30 * time.Second

func duration(v action.Values, name string) time.Duration {
	return time.Duration(v.Int(name)) * time.Second
}

// nodesSetting are the addresses of the cluster, as the pack's configuration has them.
func nodesSetting(help string) action.Setting {
	return action.Setting{Name: "nodes", Default: []string{}, Help: help,
		Template: "{{ (([config_context.primary] if config_context.primary else []) + config_context.secondaries) | join(',') }}"}
}

// maintenanceSetting silences healing everywhere.
func maintenanceSetting() action.Setting {
	return action.Setting{
		Name: "maintenance", Default: "", Template: "{{ st2kv.system.st2ha_maintenance }}",
		Help: `Nothing is healed unless this is empty or off. The default is the key st2ha_maintenance of
the datastore, which silences healing everywhere.`,
	}
}

// checkEndpoint takes HOST:PORT apart, with [] around an IPv6 address.
func checkEndpoint(v action.Values) error {
	endpoint := v.String("endpoint")
	if endpoint == "" {
		return nil
	}
	address, port, err := net.SplitHostPort(endpoint)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fault.Usage("endpoint must be host:port, with [] around an IPv6 address, not %q", endpoint)
	}
	return host.CheckAddress("endpoint", address)
}

func checkDirectory(v action.Values) error {
	if v.String("directory") == "" {
		return nil
	}
	return nfs.Validate([]string{v.String("directory")})
}

// healCommand makes a step that mends a fault a command: within limits, and not journalled.
func healCommand(s join.Spec) command {
	s.Heals = true
	s.Settings = append(s.Settings, nodesSetting(`Addresses of all nodes, separated by commas. What an event calls by its host name is found among
them.`), maintenanceSetting())
	cmd := stepCommand(s, func(ctx context.Context, c *common, built step.Step, h host.Host, v action.Values) (step.Result, error) {
		if off, r := c.silenced(v, built.Name(), h.Name()); off {
			return r, nil
		}
		return step.Heal(ctx, built, h, c.options(), c.guard(built.Name()))
	})
	run := cmd.exec
	cmd.exec = func(ctx context.Context, c *common, v action.Values) (step.Result, error) {
		address, err := c.addressOf(ctx, v.String("host"), v.List("nodes"))
		if err != nil {
			return c.result(s.Name, v.String("host")), err
		}
		return run(ctx, c, v.With("host", address))
	}
	return cmd
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
func (c *common) silenced(v action.Values, name, address string) (bool, step.Result) {
	r := c.result(name, address)
	r.Findings = append(r.Findings, step.Finding{Severity: step.Warning, Host: address, Check: "maintenance",
		Message: "nothing is healed: maintenance is on in StackStorm's datastore", Fix: "st2 key delete st2ha_maintenance ends it"})
	r.Millis = time.Since(c.start).Milliseconds()
	switch strings.ToLower(strings.TrimSpace(v.String("maintenance"))) {
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
func sweepCommand() command {
	return command{exec: sweep, Spec: action.Spec{
		Name:    "sweep_executions",
		Summary: "executions whose runner is gone are ended, so that what waits for them goes on; what else stands still is reported",
		Description: `On the whole cluster: running executions whose runner is gone are abandoned, so that what waits
for them goes on. Workflows all of whose tasks have ended, and requested or scheduled executions
that later ones have overtaken, are reported; with cancel they are cancelled, if nothing can move
them any more. Those on a node that cannot be reached are left alone.`,
		Settings: []action.Setting{
			nodesSetting(`Addresses of all nodes, separated by commas: where runners can be. Empty means this machine.`),
			{
				Name: "patience", Default: 900, Unit: action.Seconds,
				Help: `Seconds that a workflow, or a requested or scheduled execution, must have stood still. More
than the longest delay between two tasks of a workflow.`,
			},
			{Name: "cancel", Default: false, Help: `Cancel what stands still and nothing can move any more. False only reports it.`},
			maintenanceSetting(),
		},
		Heals: true,
		Rows: []action.Row{{Host: "all", Changes: "nothing on the hosts: executions whose runner is gone are ended; what else stands " +
			"still is reported, and ended with `cancel` if nothing can move it any more"}},
	}}
}

func sweep(ctx context.Context, c *common, v action.Values) (step.Result, error) {
	off, r := c.silenced(v, "sweep_executions", here)
	if off {
		return r, nil
	}
	r.Findings = []step.Finding{}
	api, err := c.api()
	if err != nil {
		return r, err
	}
	nodes, unreached, err := c.reach(ctx, v.List("nodes"))
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
	sweeper := &stackstorm.Sweeper{API: api, Nodes: nodes, Away: away, Patience: duration(v, "patience"),
		Cancel: v.Bool("cancel"), Own: c.getenv("ST2_ACTION_EXECUTION_ID"), Now: time.Now}
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

// reach connects to the nodes. One that cannot be reached may be down or only
// cut off: its executions are left alone, and that is said.
func (c *common) reach(ctx context.Context, list []string) (nodes []host.Host, unreached []step.Finding, err error) {
	addresses := given(list)
	if len(addresses) == 0 {
		addresses = []string{here}
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
func maintenanceCommand() command {
	return command{exec: maintenance, Spec: action.Spec{
		Name:    "maintenance",
		Summary: "healing on a node is silenced, or goes on again",
		Description: `On a node: healing is silenced while people work there, or goes on again. Rules and watchdog
heed it. Watching goes on.`,
		Settings: []action.Setting{
			hostSetting(),
			{Name: "mode", Default: "", Required: true, Enum: []string{"on", "off"}, Help: `Whether healing is silenced.`},
			{
				Name: "lasts", Default: 0, Unit: action.Seconds,
				Help: `Seconds after which it ends by itself, with on. 0 means when it is switched off.`,
			},
			{Name: "reason", Default: "", Help: `With on: why, for others who look.`},
			{
				Name: "for_run", Default: false,
				Help: `It is the run's own; one that somebody else has set is left alone. Needs lasts with on.`,
			},
		},
		Heals: true,
		Rows:  []action.Row{{Host: "any", Changes: "healing there is silenced, or goes on again"}},
	}}
}

func maintenance(ctx context.Context, c *common, v action.Values) (step.Result, error) {
	address := v.String("host")
	failed := c.result("maintenance", address)
	if err := host.CheckAddress("host", address); err != nil {
		return failed, err
	}
	lasts, own := duration(v, "lasts"), v.Bool("for_run")
	to := heal.Maintenance{On: v.String("mode") == "on", Since: c.start.UTC(), Reason: v.String("reason")}
	if own {
		to.Run = c.run
	}
	switch {
	case !to.On && (lasts > 0 || to.Reason != ""):
		return failed, fault.Usage("lasts and reason belong to mode on")
	case lasts > 0:
		to.Until = to.Since.Add(lasts)
	}
	h, err := c.open(ctx, address)
	if err != nil {
		return failed, err
	}
	if own && to.On && to.Until.IsZero() {
		return failed, fault.Usage("lasts is missing: what a run sets must end also if the run dies")
	}
	return step.Heal(ctx, &heal.SetMaintenance{To: to, Own: own}, h, c.options(), always)
}

// reportCommand tells people, by this machine's system log, what nobody but
// they can mend.
func reportCommand() command {
	return command{exec: tellPeople, Spec: action.Spec{
		Name:    "report",
		Summary: "a line goes to the system log: what a person has to look at",
		Description: `Changes nothing: a line goes to the system log of the machine that runs the action, with the tag
st2ha: what a person has to look at. Put an action of your own in its place, in a rule, for mail
or chat.`,
		Settings: []action.Setting{{Name: "message", Default: "", Required: true, Help: `What to say; one line.`}},
		Heals:    true,
		Rows:     []action.Row{{Host: "where it runs", Changes: "a line in the system log"}},
	}}
}

func tellPeople(ctx context.Context, c *common, v action.Values) (step.Result, error) {
	result := c.result("report", here)
	message := strings.Join(strings.Fields(c.mask.Mask(v.String("message"))), " ")
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
