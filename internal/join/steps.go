package join

import (
	"context"
	"os"
	"slices"
	"time"

	"st2ha/internal/account"
	"st2ha/internal/action"
	"st2ha/internal/fault"
	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/mongodb"
	"st2ha/internal/nfs"
	"st2ha/internal/owner"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/service"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// Times by which a backend must do its part.
const (
	MongoDBTime  = time.Minute
	RabbitMQTime = 2 * time.Minute
	MountTime    = 90 * time.Second
	ST2Time      = 3 * time.Minute
)

// Steps are the steps of a join, in its order.
func Steps() []Spec {
	return []Spec{
		{
			Spec: action.Spec{
				Name:    "configure_mongodb",
				Summary: "makes mongod of the primary listen on its address",
				Description: `On the primary: net.bindIp of /etc/mongod.conf (bind_ip of an ini-style file) gains the address, and
mongod is restarted.`,
				Settings: Kept("replace_bind_ip", "allow_unauthenticated"),
				Rows: []action.Row{{Host: "primary", Changes: "`net.bindIp` in `/etc/mongod.conf` (or ini-style `bind_ip`, " +
					"there or in `/etc/mongodb.conf`) gains the address, and for an IPv6 one `net.ipv6` is set; MongoDB " +
					"restarted. Refuses to expose a MongoDB without authorization"}},
			},
			Role:  Primary,
			Build: buildMongoDB,
			Kinds: kinds(of[step.FileChange], of[service.Restart]),
		},
		{
			Spec: action.Spec{
				Name:    "configure_st2",
				Summary: "makes st2.conf point to the primary's backends",
				Description: `On a node: /etc/st2/st2.conf points to the primary's MongoDB and, on a secondary, to its RabbitMQ; a
secondary leaves sensors and timers to the primary. The st2 services are restarted.`,
				Settings: action.Union([]action.Setting{role()}, Kept("primary"),
					onSecondary("rabbitmq_user", "rabbitmq_password", "rabbitmq_vhost", "rabbitmq_port", "heartbeat",
						"keep_sensors"),
					[]action.Setting{restart()}),
				Rows: []action.Row{
					{With: "role=primary", Host: "primary",
						Changes: "`[database] host` in `/etc/st2/st2.conf` names the primary's address, " +
							"`connection_timeout` gives a replica set 15 s; st2 restarted"},
					{With: "role=secondary", Host: "secondary",
						Changes: "`[database]` as the primary's, `[messaging] url` to the primary, with `heartbeat`; `[sensorcontainer]` with an empty " +
							"partition and `[timersengine] enable = False`, unless `keep_sensors`; st2 restarted"},
				},
			},
			Role:  Any,
			Given: map[string]any{"restart": string(stackstorm.Later)},
			Check: checkST2,
			Build: buildST2,
			Kinds: kinds(of[step.FileChange], of[stackstorm.Restart]),
		},
		{
			Spec: action.Spec{
				Name:    "configure_rabbitmq",
				Summary: "makes RabbitMQ of the primary listen on its address, with a user for the secondaries",
				Description: `On the primary: RabbitMQ listens on the address beside loopback, and has a vhost and a user with
permissions for the secondaries. It is restarted if the listener changes.`,
				Settings: action.Union(Kept("secondaries", "rabbitmq_user", "rabbitmq_password", "rabbitmq_vhost", "rabbitmq_port",
					"permission_configure", "permission_write", "permission_read"),
					[]action.Setting{updatePassword()}),
				Rows: []action.Row{{Host: "primary", Changes: "where the broker binds loopback: `rabbitmq-env.conf`, the " +
					"`rabbitmq.conf` that it reads, and a restart, after which it is looked at where it listens; the vhost, the " +
					"user, its permissions"}},
			},
			Role:  Primary,
			Check: checkRabbitMQ,
			Build: buildRabbitMQ,
			Kinds: kinds(of[step.FileChange], of[service.Restart],
				of[rabbitmq.VHost], of[rabbitmq.User], of[rabbitmq.Password], of[rabbitmq.Grant]),
		},
		{
			Spec: action.Spec{
				Name:    "export_nfs",
				Summary: "exports StackStorm's content from the primary to the secondaries",
				Description: `On the primary: the NFS server is installed if missing, /etc/exports gains the directories for the
secondaries, and the server exports them.`,
				Settings: Kept("secondaries", "directories"),
				Rows: []action.Row{{Host: "primary", Changes: "the NFS server's package if missing; `/etc/exports`; the server " +
					"enabled and started; `exportfs -ra`"}},
			},
			Role:  Primary,
			Check: someSecondaries,
			Build: buildExport,
			Kinds: kinds(of[service.Package], of[step.FileChange], of[service.Start], of[nfs.Reexport]),
		},
		{
			Spec: action.Spec{
				Name:    "sync_keys",
				Summary: "gives a secondary the primary's datastore key and htpasswd",
				Description: `On a secondary: the datastore's key ([keyvalue] encryption_key_path) and the file of the users who log in
with a password ([auth] backend_kwargs) become the primary's, each where the node's own st2.conf has
it; other ones that the node had are kept beside them. The st2 services are restarted.`,
				Settings: append(Kept("primary"), restart()),
				Rows: []action.Row{{Host: "secondary", Changes: "the files that `[keyvalue] encryption_key_path` and `file_path` " +
					"in `[auth] backend_kwargs` name are the primary's; others are kept as `….before-st2ha-…`; st2 restarted"}},
			},
			Role:  Secondary,
			Given: map[string]any{"restart": string(stackstorm.Later)},
			Check: somePrimary,
			Build: buildKeys,
			Kinds: kinds(of[step.MakeDir], of[step.FileChange], of[stackstorm.Restart]),
		},
		{
			Spec: action.Spec{
				Name:    "mount_nfs",
				Summary: "mounts StackStorm's content from the primary on a secondary",
				Description: `On a secondary: the NFS client is installed if missing, /etc/fstab gains the primary's directories,
what the mounts would hide is kept aside, and PID 1 mounts them. The st2 services that read the
directories start on the mounts only.`,
				Settings: Kept("primary", "directories", "mount_options"),
				Rows: []action.Row{{Host: "secondary", Changes: "the NFS client's package if missing; `/etc/fstab`; " +
					"`st2ha-mounts.conf` of the st2 services that read the directories, which start on the mounts only; what the " +
					"mounts would hide is kept aside; mounted by systemd"}},
			},
			Role:  Secondary,
			Check: somePrimary,
			Build: buildMount,
			Kinds: kinds(of[service.Package], of[step.FileChange], of[service.Reload], of[nfs.Aside], of[step.MakeDir],
				of[nfs.MountUnit]),
		},
		{
			Spec: action.Spec{
				Name:        "restart_st2",
				Summary:     "restarts the st2 services if a change calls for it",
				Description: `On a node: the st2 services are restarted if a change calls for it.`,
				Settings: []action.Setting{
					{
						Name: "restart", Default: string(stackstorm.Auto),
						Help: `When the st2 services of the host are restarted. inline is at once, deferred by a systemd unit
of the host once the workflow has ended. auto is deferred on the machine that runs the
action and where the workflow is waited for, else inline; idle is later there, else inline;
others is later on the machine that runs the action, inline on others.`,
						Enum:  []string{"auto", "inline", "deferred", "others", "idle"},
						Check: checkNow,
					},
					{Name: "force", Default: false, Help: `Restart also if no change calls for it.`},
					{
						Name: "delay", Default: 15, Unit: action.Seconds,
						Help: `Seconds that a deferred restart waits where it cannot see the end of the workflow: outside StackStorm.`,
					},
				},
				Rows: []action.Row{{Host: "any", Changes: "st2 services restarted, if a change calls for it or with `force`"}},
			},
			// The primary's is the last act of a join, and verify_node says that it is still to come.
			Role: Any, Placed: true, Foreseen: Secondary,
			Given: map[string]any{"restart": string(stackstorm.Auto), "force": false, "delay": 15},
			Build: buildRestart,
			Kinds: kinds(of[stackstorm.Restart]),
		},
		{
			Spec: action.Spec{
				Name:    "verify_node",
				Summary: "checks that a node does its part",
				Description: `Changes nothing: proves that a node does its part, by services, logins and connections to the
primary's MongoDB and RabbitMQ, consumers, mounts.`,
				Settings: action.Union([]action.Setting{role()}, Kept("primary"), onSecondary("directories", "mount_options")),
				Rows: []action.Row{{Host: "any", Changes: "nothing. Services active; logins to MongoDB and RabbitMQ work; " +
					"somebody takes actions from the queue; on a secondary also the mounts, and the primary's kernel knows its " +
					"connections"}},
			},
			Role: Any, Placed: true, Proof: true,
			Check: func(v action.Values) error {
				if v.String("role") == stackstorm.RolePrimary {
					return nil
				}
				return somePrimary(v)
			},
			Build: buildVerify,
		},
		{
			Spec: action.Spec{
				Name:    "share_sensors",
				Summary: "has each sensor run on one of the nodes, and on another one when that is lost",
				Description: `On a node, the primary first: where the setting sensors is shared, an agent (st2ha-owner.service)
runs the node's share of the sensors, and the timers on one node. When a node is lost, the others
take over its share. Where it is primary, nothing is changed.`,
				Settings: Kept("primary", "secondaries", "sensors", "sensors_away"),
				Rows: []action.Row{{Host: "any", Changes: "with `sensors: shared`: `/usr/local/lib/st2ha/st2ha-owner`, " +
					"`/etc/st2ha/sensors.json`, `st2ha-owner.service`, enabled and started, and a drop-in each that binds " +
					"`st2sensorcontainer` and `st2timersengine` to it: see [Sensors and timers](sensors.md)"}},
			},
			Role: Any, Placed: true, Foreseen: Any,
			Check: checkSensors,
			Build: buildSensors,
			Kinds: kinds(of[step.MakeDir], of[step.FileChange], of[service.Reload], of[heal.Yield], of[service.Start],
				of[service.Restart]),
		},
		{
			Spec: action.Spec{
				Name:    "install_watchdog",
				Summary: "installs a program that watches and heals a node's backends, also while StackStorm is down",
				Description: `On a node: the program st2ha-watch is copied to /usr/local/lib/st2ha and run by systemd as
st2ha-watchdog.service. It watches the backends of this node and heals them also while
StackStorm can run nothing, for want of its broker or database. rollback takes it away again.`,
				Rows: []action.Row{{Host: "any", Changes: "`/usr/local/lib/st2ha/st2ha-watch` and `st2ha-watchdog.service`, " +
					"enabled and started: see [Healing](healing.md)"}},
			},
			Role: Any, Placed: true,
			Build: buildWatchdog,
			Kinds: kinds(of[step.MakeDir], of[step.FileChange], of[service.Reload], of[service.Start], of[service.Restart]),
		},
		{
			Spec: action.Spec{
				Name:    "align_ids",
				Summary: "gives a secondary's users and groups the primary's numbers, and their files with them",
				Description: `On a secondary: user st2, groups st2 and st2packs get the numbers that they have on the primary, for
NFS knows numbers only. Their files on the node's own file systems follow, the st2 services are
stopped meanwhile. No part of a join. rollback gives all of it the old numbers back.`,
				Settings: action.Union(Kept("primary"), []action.Setting{{
					Name: "system_user", Default: false,
					Help: `The system user (stanley) and its group as well. Nobody may be logged in as that user there, so
that this needs another ssh_user, or a shell on the node.`,
				}}),
				Rows: []action.Row{{Host: "secondary", Changes: "numbers of `st2` and `st2packs` in `/etc/passwd` and " +
					"`/etc/group` as on the primary, and the owners of their files; st2 stopped meanwhile. Never part of a join"}},
			},
			// No workflow has it, and what it mends is a finding of preflight.
			Role: Secondary, Placed: true,
			Check: somePrimary,
			Build: buildAlign,
			Kinds: kinds(of[stackstorm.Stop], of[account.Move], of[stackstorm.Restart]),
		},
	}
}

// Workflows are the actions that run the steps on the nodes of a cluster.
func Workflows() []action.Spec {
	last := []action.Setting{
		{
			Name: "keep_on_failure", Default: false,
			Help: `Leave what was changed as it is when a step fails, to look around; rollback undoes it later.`,
		},
		{Name: "dry_run", Default: false, Help: `Run the whole workflow, change nothing, and return every diff.`},
		{Name: "run", Default: "", Help: `Name of the run on the nodes, for rollback. Empty means the execution's id.`},
	}
	return []action.Spec{
		{
			Name: "prepare_primary", Workflow: true,
			Description: `On the primary: configure_mongodb, configure_st2, configure_rabbitmq, export_nfs and the restart of
the st2 services, in this order. When one fails, what was changed is undone.`,
			Settings: slices.Concat(
				Kept("primary", "secondaries", "directories", "replace_bind_ip", "allow_unauthenticated"),
				[]action.Setting{updatePassword()},
				Kept("rabbitmq_user", "rabbitmq_vhost"),
				[]action.Setting{{
					Name: "restart_primary", Default: true,
					Help: `Restart the primary's st2 services at the end; deferred when this workflow runs on it.`,
				}},
				last),
			Rows: []action.Row{{Host: "primary", Changes: "workflow: `configure_mongodb`, `configure_st2`, " +
				"`configure_rabbitmq`, `export_nfs`, and `restart_st2` if wanted"}},
		},
		{
			Name: "join_secondary", Workflow: true,
			Description: `On the primary and the secondaries: preflight of all nodes, prepare_primary on the primary, then on
the secondaries in parallel configure_st2, sync_keys, mount_nfs, restart_st2 and verify_node, and last
the primary's restart. When a step fails, what was changed on all nodes is undone in reverse order. A
second run changes nothing.`,
			Settings: slices.Concat(
				Kept("primary", "secondaries", "directories", "mount_options", "replace_bind_ip", "allow_unauthenticated"),
				[]action.Setting{updatePassword()},
				Kept("rabbitmq_user", "rabbitmq_vhost", "keep_sensors", "sensors", "sensors_away"),
				last),
			Rows: []action.Row{{Host: "all", Changes: "workflow: `preflight`, `prepare_primary`, then on all secondaries side " +
				"by side `configure_st2`, `sync_keys`, `mount_nfs`, `restart_st2`, `verify_node`; then `restart_st2` and " +
				"`verify_node` of the primary, `share_sensors` where that is wanted, and `install_watchdog` on all nodes. The node " +
				"that it runs on is restarted last of all, after the " +
				"workflow"}},
		},
	}
}

// of makes an empty change of a type.
func of[T any, C interface {
	*T
	step.Change
}]() step.Change {
	return C(new(T))
}

func kinds(empty ...func() step.Change) []func() step.Change { return empty }

func buildMongoDB(_ context.Context, c Cluster, v action.Values) (step.Step, error) {
	s := &mongodb.Configure{Address: c.Node, Replace: v.Bool("replace_bind_ip"),
		AllowUnauthenticated: v.Bool("allow_unauthenticated"), Within: MongoDBTime}
	if c.InAction {
		s.Clients = runnersDatabase
	}
	return s, nil
}

// runnersDatabase are the servers that the runner of this very action stores its result in.
func runnersDatabase(ctx context.Context, h host.Host) ([]string, error) {
	if !h.IsLocal() { // the runner's own database is another one
		return nil, nil
	}
	conf, err := stackstorm.ReadConf(ctx, h)
	if err != nil {
		return nil, err
	}
	database, err := conf.Database()
	return database.Servers, err
}

func checkST2(v action.Values) error {
	if err := somePrimary(v); err != nil {
		return err
	}
	if v.String("role") == stackstorm.RoleSecondary && v.String("rabbitmq_password") == "" {
		return fault.Usage("rabbitmq_password is missing: set it in the pack's configuration, " +
			"or in the environment as ST2HA_RABBITMQ_PASSWORD")
	}
	return nil
}

func buildST2(ctx context.Context, c Cluster, v action.Values) (step.Step, error) {
	s := &stackstorm.Configure{Role: v.String("role"), PrimaryAddress: v.String("primary"),
		KeepSensors: v.Bool("keep_sensors"), Restart: stackstorm.When(v.String("restart")), Run: c.Run}
	if s.Role == stackstorm.RolePrimary {
		return s, nil
	}
	s.Broker = stackstorm.Broker{User: v.String("rabbitmq_user"), Password: v.String("rabbitmq_password"),
		VHost: v.String("rabbitmq_vhost"), Port: v.Int("rabbitmq_port"),
		Heartbeat: v.Int("heartbeat")}
	var err error
	s.Primary, err = c.Open(ctx, s.PrimaryAddress)
	return s, err
}

func rabbitMQ(v action.Values) *rabbitmq.Configure {
	return &rabbitmq.Configure{
		Port: v.Int("rabbitmq_port"), VHost: v.String("rabbitmq_vhost"),
		User: v.String("rabbitmq_user"), Password: v.String("rabbitmq_password"), UpdatePassword: v.Bool("update_password"),
		Permissions: rabbitmq.Permissions{Configure: v.String("permission_configure"), Write: v.String("permission_write"),
			Read: v.String("permission_read")},
		Within: RabbitMQTime, TLS: stackstorm.NodeTLS,
	}
}

func checkRabbitMQ(v action.Values) error {
	if err := rabbitMQ(v).Validate(); err != nil {
		return err
	}
	return someSecondaries(v)
}

func buildRabbitMQ(ctx context.Context, c Cluster, v action.Values) (step.Step, error) {
	s := rabbitMQ(v)
	s.Address = c.Node
	var err error
	s.From, err = c.nodes(ctx, v.List("secondaries"))
	return s, err
}

func buildExport(_ context.Context, _ Cluster, v action.Values) (step.Step, error) {
	return &nfs.Export{Directories: v.List("directories"), Clients: v.List("secondaries")}, nil
}

func buildKeys(ctx context.Context, c Cluster, v action.Values) (step.Step, error) {
	primary, err := c.Open(ctx, v.String("primary"))
	return &stackstorm.SyncKeys{Primary: primary, Restart: stackstorm.When(v.String("restart")), Run: c.Run}, err
}

func buildMount(ctx context.Context, c Cluster, v action.Values) (step.Step, error) {
	program, _ := os.Executable() // where it is unknown, it is not looked after
	primary, err := c.Open(ctx, v.String("primary"))
	return &nfs.Mount{PrimaryAddress: v.String("primary"), Primary: primary, Directories: v.List("directories"),
		Options: v.String("mount_options"), Within: MountTime, Program: program}, err
}

func checkNow(v action.Values) error {
	when, err := stackstorm.ParseWhen(v.String("restart"))
	if when == stackstorm.Later {
		return fault.Usage("restart must be auto, inline, deferred, others or idle, not later")
	}
	return err
}

func buildRestart(_ context.Context, c Cluster, v action.Values) (step.Step, error) {
	return &stackstorm.Restarter{Restart: stackstorm.When(v.String("restart")), Force: v.Bool("force"),
		Delay: time.Duration(v.Int("delay")) * time.Second, Within: ST2Time, Run: c.Run}, nil
}

func buildVerify(ctx context.Context, c Cluster, v action.Values) (step.Step, error) {
	s := &stackstorm.Verifier{Role: v.String("role"), Within: ST2Time}
	if s.Role == stackstorm.RolePrimary {
		return s, nil
	}
	var err error
	if !c.Whole { // else mount_nfs says what is missing
		if s.Mounts, err = buildMount(ctx, c, v); err != nil {
			return nil, err
		}
	}
	s.Primary, err = c.Open(ctx, v.String("primary"))
	return s, err
}

func checkSensors(v action.Values) error {
	if v.String("sensors") != heal.SensorsShared {
		return nil
	}
	if err := owner.ValidateAway(v.Int("sensors_away")); err != nil {
		return fault.Usage("sensors_away: %w", err)
	}
	if err := somePrimary(v); err != nil {
		return err
	}
	return someSecondaries(v)
}

func buildSensors(ctx context.Context, c Cluster, v action.Values) (step.Step, error) {
	s := &heal.ShareSensors{Shared: v.String("sensors") == heal.SensorsShared}
	if !s.Shared {
		return s, nil
	}
	s.Config = owner.Config{Node: c.Node, Cluster: owner.Cluster{Away: v.Int("sensors_away"),
		Nodes: append([]string{v.String("primary")}, v.List("secondaries")...)}}
	if !slices.Contains(s.Config.Nodes, c.Node) {
		return nil, fault.Usage("host must be the primary or one of the secondaries, as they are given, not %s", c.Node)
	}
	var err error
	if s.Program, err = heal.WatchProgram(); err != nil {
		return nil, err
	}
	s.Primary, err = c.Open(ctx, v.String("primary"))
	return s, err
}

func buildWatchdog(context.Context, Cluster, action.Values) (step.Step, error) {
	program, err := heal.WatchProgram()
	return &heal.InstallWatchdog{Program: program}, err
}

func buildAlign(ctx context.Context, c Cluster, v action.Values) (step.Step, error) {
	primary, err := c.Open(ctx, v.String("primary"))
	return &account.Align{Primary: primary, SystemUser: v.Bool("system_user"), InAction: c.InAction,
		Restart: stackstorm.Restarter{Restart: stackstorm.Inline, Within: ST2Time, Run: c.Run}}, err
}

// Settings are those that people keep in the pack's configuration, in the order in which it has them.
func Settings() []action.Setting {
	return []action.Setting{
		{
			Name: "primary", Default: "",
			Help: `Address of the primary, as the secondaries reach it.`,
			Kept: `Address of the primary, as the secondaries reach it (for example 192.168.0.100).`,
			Docs: "address of the primary, as the secondaries reach it",
			Check: func(v action.Values) error {
				if v.String("primary") == "" {
					return nil
				}
				return host.CheckAddress("primary", v.String("primary"))
			},
		},
		{
			Name: "secondaries", Default: []string{},
			Help:       `Addresses of the secondaries, separated by commas.`,
			InWorkflow: `Addresses of the secondaries.`,
			Kept:       `Addresses of the secondaries (for example 192.168.0.101).`,
			Docs:       "addresses of the secondaries",
			Check: func(v action.Values) error {
				for _, address := range v.List("secondaries") {
					if err := host.CheckAddress("secondaries", address); err != nil {
						return err
					}
				}
				return nil
			},
		},
		{
			Name: "rabbitmq_user", Default: "st2",
			Help: `User of the secondaries at the primary's RabbitMQ.`,
			Kept: `User of the secondaries at the primary's RabbitMQ. It is created if it does not exist.`,
			Docs: "the secondaries' user at the primary's RabbitMQ; created if it does not exist. Not `guest`",
		},
		{
			Name: "rabbitmq_password", Default: "", Secret: true,
			Kept: "Password of that user. No control characters such as a newline; everything else is encoded where it has " +
				"to be.",
			Docs: "its password. Secret, never a parameter. No control characters",
			Check: func(v action.Values) error {
				return stackstorm.ValidateSecret("rabbitmq_password", v.String("rabbitmq_password"))
			},
		},
		{
			Name: "rabbitmq_vhost", Default: "/",
			Help: `Vhost of that user.`,
			Kept: `Vhost of that user. It is created if it does not exist.`,
			Docs: "vhost of that user; created if it does not exist",
		},
		{
			Name: "rabbitmq_port", Default: 0, Unit: action.Port,
			Help: `TCP port of RabbitMQ's AMQP listener (0: as RabbitMQ's own files have it).`,
			Kept: `TCP port of RabbitMQ's AMQP listener. 0 means the one that RabbitMQ's own files name, or its default, 5672.`,
			Docs: "TCP port of the AMQP listener; 0: as RabbitMQ's own files have it. Where StackStorm speaks TLS to " +
				"RabbitMQ, that listener's",
		},
		{
			Name: "heartbeat", Default: 10, Unit: action.Seconds,
			Help: `Seconds of silence after which a secondary's services ask whether the broker is there (0: they do not ask).`,
			Kept: "Seconds of silence after which a secondary's services ask whether the broker is there, as ?heartbeat= of " +
				"the messaging URL. 0 leaves it out. One that stands in a URL already is kept.",
			Docs: "seconds of silence after which a secondary's services ask whether RabbitMQ is there: `?heartbeat=` of " +
				"`[messaging] url`. They give up after twice that. 0 leaves it out; one that stands in the URL already is kept",
			Check: func(v action.Values) error {
				if n := v.Int("heartbeat"); n < 0 || n > 65535 { // a short integer of AMQP's tune-ok
					return fault.Usage("heartbeat must be 0 to 65535 seconds, not %d", n)
				}
				return nil
			},
		},
		{
			Name: "permission_configure", Default: ".*",
			Help: `What the user may configure in the vhost: a regular expression.`,
			Kept: `What the user may configure in the vhost, a regular expression.`,
			Docs: "what the user may configure in the vhost, a regular expression (PCRE; RabbitMQ is asked whether it takes it)",
		},
		{
			Name: "permission_write", Default: ".*",
			Help: `What the user may write to in the vhost: a regular expression.`,
			Kept: `What the user may write to in the vhost, a regular expression.`,
			Docs: "what it may write to",
		},
		{
			Name: "permission_read", Default: ".*",
			Help: `What the user may read from in the vhost: a regular expression.`,
			Kept: `What the user may read from in the vhost, a regular expression.`,
			Docs: "what it may read from",
		},
		{
			Name: "mongodb_port", Default: mongodb.DefaultPort, Unit: action.Port,
			Help: `TCP port of mongod that the secondaries must reach.`,
			Kept: `TCP port of mongod that the secondaries must reach.`,
			Docs: "the port that preflight tries from the secondaries. What MongoDB listens on is up to its own file",
		},
		{
			Name: "replace_bind_ip", Default: false,
			Help:       `Listen on the address only, not on loopback as well.`,
			InWorkflow: `Have mongod listen on the primary's address only, not on loopback as well.`,
			Kept:       `Have mongod listen on the primary's address only, not on loopback as well.`,
			Docs: "MongoDB listens on the primary's address only, no longer on loopback. The primary's StackStorm has no " +
				"database then until it is restarted, so its own runner refuses: start such a join on the secondary, or its " +
				"steps from a shell",
		},
		{
			Name: "allow_unauthenticated", Default: false,
			Help: `Expose mongod also if it asks for no login. Everybody who reaches the address can then read and
change StackStorm's data.`,
			Kept: "Expose mongod also if it asks for no login. Everybody who reaches the address can then read and change " +
				"StackStorm's data.",
			Docs: "expose MongoDB also if it asks for no login",
		},
		{
			Name: "keep_sensors", Default: false,
			Help: `Leave the secondary's sensors and timers running beside the primary's: each event then fires
twice unless sensors are partitioned by hand.`,
			InWorkflow: `Leave the secondary's sensors and timers running beside the primary's.`,
			Kept: "Leave a secondary's sensors and timers running beside the primary's. Each event then fires twice unless " +
				"sensors are partitioned by hand.",
			Docs: "leave the secondary's sensors and timers on: each event fires twice, unless you partition by hand",
		},
		{
			Name: "sensors", Default: heal.SensorsPrimary, Enum: []string{heal.SensorsPrimary, heal.SensorsShared},
			Help: `Where sensors and timers run, all on the primary or shared among the nodes, which take over the share
of one that is lost.`,
			InWorkflow: `Where sensors and timers run, all on the primary or shared among all nodes.`,
			Kept: "Where sensors and timers run. With primary all of them run there, with shared each on one node; when a " +
				"node is lost, the others take over its share.",
			Docs: "`primary`: sensors and timers run there. `shared`: each node runs its share of the sensors, one the " +
				"timers, and the others take over when one is lost: [Sensors and timers](sensors.md)",
		},
		{
			Name: "sensors_away", Default: 60, Unit: action.Seconds,
			Help: `Seconds that a node has to be away until others run its share of the sensors.`,
			Kept: "Seconds that a node has to be away until others run its share of the sensors, and back until it has it " +
				"again. 45 or more.",
			Docs: "with `sensors: shared`: seconds that a node has to be away until others run its share, and back until it " +
				"has it again; 45 or more",
		},
		{
			Name: "directories", Default: []string{},
			Help: `Directories to share, absolute paths separated by commas. Empty means packs, virtualenvs and,
where it exists, configs below /opt/stackstorm.`,
			InWorkflow: `Directories to share, absolute paths. Empty means packs, virtualenvs and, where it exists,
configs below /opt/stackstorm.`,
			Kept: "Directories to share, absolute paths. Empty means packs, virtualenvs and, where it exists, configs below " +
				"/opt/stackstorm.",
			Docs: "directories to share. Empty means `packs`, `virtualenvs` and, where the primary has it, `configs` below " +
				"`/opt/stackstorm`",
			Check: func(v action.Values) error { return nfs.Validate(v.List("directories")) },
		},
		{
			Name: "mount_options", Default: nfs.DefaultMountOptions,
			Help: `Options of the mounts in /etc/fstab, see nfs(5).`,
			Kept: "Options of the mounts in /etc/fstab of the secondaries, see nfs(5). The default lets a node boot while " +
				"the primary is away, and mounts when it is back.",
			Docs:  "options in the secondaries' `/etc/fstab`, see nfs(5)",
			Check: func(v action.Values) error { return nfs.ValidateOptions(v.String("mount_options")) },
		},
	}
}

// Kept are settings of the pack's configuration, by their names.
func Kept(names ...string) []action.Setting {
	var list []action.Setting
	all := Settings()
	for _, name := range names {
		list = append(list, all[slices.IndexFunc(all, func(s action.Setting) bool { return s.Name == name })])
	}
	return list
}

// onSecondary are settings that are kept and that only secondaries need, by their names.
func onSecondary(names ...string) []action.Setting {
	list := Kept(names...)
	for i := range list {
		list[i].Only = string(Secondary)
	}
	return list
}

func updatePassword() action.Setting {
	return action.Setting{Name: "update_password", Default: false,
		Help: `Set the password of a RabbitMQ user that exists with another one.`}
}

func restart() action.Setting {
	return action.Setting{
		Name: "restart", Default: string(stackstorm.Auto),
		Help: `When the st2 services of the host are restarted. inline is at once, deferred by a systemd unit
of the host once the workflow has ended, later by restart_st2. auto is deferred on the machine that runs the
action and where the workflow is waited for, else inline; idle is later there, else inline;
others is later on the machine that runs the action, inline on others.`,
		Enum:  []string{"auto", "inline", "deferred", "later", "others", "idle"},
		Check: func(v action.Values) error { _, err := stackstorm.ParseWhen(v.String("restart")); return err },
	}
}

func role() action.Setting {
	return action.Setting{Name: "role", Default: "", Required: true, Help: `Role of the host.`,
		Enum: []string{stackstorm.RolePrimary, stackstorm.RoleSecondary}}
}

// somePrimary refuses a primary that is not given.
func somePrimary(v action.Values) error { return host.CheckAddress("primary", v.String("primary")) }

// someSecondaries refuses a list without any.
func someSecondaries(v action.Values) error {
	if len(v.List("secondaries")) == 0 {
		return fault.Usage("secondaries is missing: give the address of one or more, separated by commas")
	}
	return nil
}
