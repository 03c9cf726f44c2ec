package cli

import (
	"context"
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
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// healCommands are the actions that mend a fault, and what belongs to them.
func healCommands() []command {
	var all []command
	for _, s := range healingSteps() {
		all = append(all, healCommand(s))
	}
	return append(all, sweepCommand(), maintenanceCommand(), healsCommand(), reportCommand())
}

// healingSteps are the steps that mend a fault of one host.
func healingSteps() []join.Spec {
	const changes = "no configuration: it mends a fault, within limits"
	return []join.Spec{
		{
			Spec: action.Spec{
				Name:    "restart_backend",
				Summary: "restarts a backend that does not answer on its host",
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
				return &heal.RestartBackend{Backend: v.String("backend"), Endpoint: v.String("endpoint"),
					Within: join.RabbitMQTime}, nil
			},
		},
		{
			Spec: action.Spec{
				Name:    "recover_nfs_mount",
				Summary: "repairs an NFS mount that is missing or hangs",
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
					{
						Name: "patience", Default: 30, Unit: action.Seconds,
						Help: `Seconds that a mount that hangs gets to heal itself.`,
					},
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
				Summary: "exports again what /etc/exports names",
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
				Summary: "restarts st2 services that are down or get no messages, and no others",
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
	const primary = "([config_context.primary] if config_context.primary else [])"
	return action.Setting{Name: "nodes", Default: []string{}, Help: help,
		Template: "{{ (" + primary + " + config_context.secondaries) | join(',') }}"}
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
	s.Settings = append(s.Settings, nodesSetting("Addresses of all nodes, separated by commas. "+
		"What an event calls by its host name is found among\nthem."), maintenanceSetting())
	cmd := stepCommand(s, healStep)
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

// healStep runs a step that mends a fault, unless healing is silenced.
func healStep(ctx context.Context, c *common, built step.Step, h host.Host, v action.Values) (step.Result, error) {
	if off, r := c.silenced(v, built.Name(), h.Name()); off {
		return r, nil
	}
	return step.Heal(ctx, built, h, c.options(), c.guard(built.Name()))
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
		Message: "nothing is healed: maintenance is on in StackStorm's datastore",
		Fix:     "st2 key delete st2ha_maintenance ends it"})
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
			c.tell(ctx, heal.Event{Event: heal.EventGaveUp, Target: change.Target(), Node: h.Name(), Heals: d.Heals,
				Reason: d.Reason, By: by, At: time.Now().UTC()})
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
		c.log.Warn("StackStorm was not told", "trigger", "st2ha."+e.Event, "why", c.mask.Mask(err.Error()))
	}
}

func (c *common) api() (*stackstorm.API, error) {
	return stackstorm.NewAPI(c.getenv("ST2_ACTION_API_URL"), c.getenv("ST2_ACTION_AUTH_TOKEN"))
}

// always is a guard without limits.
func always(context.Context, host.Host, step.Change) (*step.Finding, error) { return nil, nil }
