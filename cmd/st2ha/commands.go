package main

import (
	"context"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/mongodb"
	"st2ha/internal/nfs"
	"st2ha/internal/preflight"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/service"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// commands are the actions, in the order of a join.
func commands() []command {
	return append([]command{
		&preflightCommand{},
		&stepCommand{title: "configure_mongodb", about: "mongod of the primary listens on its address",
			groups: []group{mongodbFlags}, build: buildMongoDB},
		&stepCommand{title: "configure_st2", about: "st2.conf points to the primary's backends",
			groups: []group{roleFlags, primaryFlags, rabbitmqFlags, st2Flags, restartFlags}, build: buildST2},
		&stepCommand{title: "configure_rabbitmq", about: "RabbitMQ of the primary listens on its address and has a user for the secondaries",
			groups: []group{secondariesFlags, rabbitmqFlags, rabbitmqAdminFlags}, build: buildRabbitMQ},
		&stepCommand{title: "export_nfs", about: "the primary exports StackStorm's content to the secondaries",
			groups: []group{secondariesFlags, directoriesFlags}, build: buildExport},
		&stepCommand{title: "mount_nfs", about: "a secondary mounts StackStorm's content from the primary",
			groups: []group{primaryFlags, directoriesFlags, mountFlags}, build: buildMount},
		&stepCommand{title: "restart_st2", about: "st2 services are restarted if a change calls for it",
			groups: []group{restartFlags, forceRestartFlags}, build: buildRestart},
		&stepCommand{title: "verify_node", about: "a node is proved to do its part",
			groups: []group{roleFlags, primaryFlags, directoriesFlags, mountFlags}, build: buildVerify},
		&driftCommand{},
		&rollbackCommand{},
	}, healCommands()...)
}

// params are the parameters of the steps.
type params struct {
	host        string
	primary     string
	secondaries []string
	role        string

	replaceBindIP        bool
	allowUnauthenticated bool
	mongodbPort          int

	rabbitmqUser        string
	rabbitmqVHost       string
	rabbitmqPort        int
	rabbitmqPermissions rabbitmq.Permissions
	updatePassword      bool

	keepSensors bool
	restart     string
	force       bool
	delay       int // seconds

	directories  []string
	mountOptions string

	heal healParams
}

// group declares flags that commands share.
type group func(*params, *pflag.FlagSet)

func hostFlags(p *params, f *pflag.FlagSet) {
	f.StringVar(&p.host, "host", "", "address of the host to act on; this machine's own means locally, others are reached over SSH")
}

func primaryFlags(p *params, f *pflag.FlagSet) {
	f.StringVar(&p.primary, "primary", "", "address of the primary, as the secondaries reach it")
}

func secondariesFlags(p *params, f *pflag.FlagSet) {
	f.StringSliceVar(&p.secondaries, "secondaries", nil, "addresses of the secondaries, separated by commas")
}

func roleFlags(p *params, f *pflag.FlagSet) {
	f.StringVar(&p.role, "role", "", "role of the host: primary or secondary")
}

func mongodbFlags(p *params, f *pflag.FlagSet) {
	f.BoolVar(&p.replaceBindIP, "replace_bind_ip", false, "listen on the address only, not on loopback as well")
	f.BoolVar(&p.allowUnauthenticated, "allow_unauthenticated", false, "expose mongod also if it asks for no login")
}

func rabbitmqFlags(p *params, f *pflag.FlagSet) {
	f.StringVar(&p.rabbitmqUser, "rabbitmq_user", "st2", "the secondaries' user at RabbitMQ")
	f.StringVar(&p.rabbitmqVHost, "rabbitmq_vhost", "/", "vhost of that user")
	f.IntVar(&p.rabbitmqPort, "rabbitmq_port", 0, "TCP port of RabbitMQ's AMQP listener (0: as RabbitMQ's own files have it)")
}

func rabbitmqAdminFlags(p *params, f *pflag.FlagSet) {
	f.StringVar(&p.rabbitmqPermissions.Configure, "permission_configure", ".*", "what the user may configure: a regular expression")
	f.StringVar(&p.rabbitmqPermissions.Write, "permission_write", ".*", "what the user may write to: a regular expression")
	f.StringVar(&p.rabbitmqPermissions.Read, "permission_read", ".*", "what the user may read from: a regular expression")
	f.BoolVar(&p.updatePassword, "update_password", false, "set the password of a user that exists with another one")
}

func st2Flags(p *params, f *pflag.FlagSet) {
	f.BoolVar(&p.keepSensors, "keep_sensors", false, "leave the secondary's sensors and timers running beside the primary's")
}

func restartFlags(p *params, f *pflag.FlagSet) {
	f.StringVar(&p.restart, "restart", string(stackstorm.Auto), "when the st2 services are restarted: auto, inline, deferred, later, others or idle")
}

func forceRestartFlags(p *params, f *pflag.FlagSet) {
	f.BoolVar(&p.force, "force", false, "restart also if no change calls for it")
	f.IntVar(&p.delay, "delay", 15, "seconds that a deferred restart waits, for the workflow to end")
}

func directoriesFlags(p *params, f *pflag.FlagSet) {
	f.StringSliceVar(&p.directories, "directories", nil, "directories to share, separated by commas (default: packs, virtualenvs and, where it exists, configs below /opt/stackstorm)")
}

func mountFlags(p *params, f *pflag.FlagSet) {
	f.StringVar(&p.mountOptions, "mount_options", nfs.DefaultMountOptions, "options of the mounts in /etc/fstab, see nfs(5)")
}

// Times by which a backend must do its part.
const (
	mongodbTime  = time.Minute
	rabbitmqTime = 2 * time.Minute
	mountTime    = 90 * time.Second
	st2Time      = 3 * time.Minute
)

// stepCommand runs one step on one host.
type stepCommand struct {
	title, about string
	groups       []group
	build        func(ctx context.Context, c *common, p *params) (step.Step, error)
	params       params
}

func (s *stepCommand) name() string    { return s.title }
func (s *stepCommand) summary() string { return s.about }

func (s *stepCommand) flags(f *pflag.FlagSet) {
	hostFlags(&s.params, f)
	for _, g := range s.groups {
		g(&s.params, f)
	}
}

func (s *stepCommand) exec(ctx context.Context, c *common) (any, error) {
	return s.run(ctx, c, func(built step.Step, h host.Host) (step.Result, error) {
		return step.Run(ctx, built, h, c.options())
	})
}

// run builds the step, opens the host, and runs the one on the other.
func (s *stepCommand) run(ctx context.Context, c *common, do func(step.Step, host.Host) (step.Result, error)) (any, error) {
	failed := step.Result{Step: s.title, Host: s.params.host, Run: c.run, DryRun: c.dryRun, Changes: []step.ChangeSummary{}, Findings: []step.Finding{}}
	if err := host.CheckAddress("host", s.params.host); err != nil {
		return failed, err
	}
	go c.open(ctx, s.params.host) // beside those that the step needs, too
	built, err := s.build(ctx, c, &s.params)
	if err != nil {
		return failed, err
	}
	h, err := c.open(ctx, s.params.host)
	if err != nil {
		return failed, err
	}
	return do(built, h)
}

func buildMongoDB(_ context.Context, c *common, p *params) (step.Step, error) {
	return p.mongodb(c, p.host), nil
}

func (p *params) mongodb(c *common, address string) *mongodb.Configure {
	s := &mongodb.Configure{Address: address, Replace: p.replaceBindIP, AllowUnauthenticated: p.allowUnauthenticated, Within: mongodbTime}
	if c.getenv("ST2_ACTION_EXECUTION_ID") != "" {
		s.Clients = func(ctx context.Context, h host.Host) ([]string, error) {
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
	}
	return s
}

func (p *params) broker(c *common) (stackstorm.Broker, error) {
	password := c.secret("RABBITMQ_PASSWORD")
	if err := stackstorm.ValidateSecret("rabbitmq_password", password); err != nil {
		return stackstorm.Broker{}, err
	}
	if p.rabbitmqPort < 0 || p.rabbitmqPort > 65535 {
		return stackstorm.Broker{}, fault.Usage("rabbitmq_port must be 1 to 65535, or 0, not %d", p.rabbitmqPort)
	}
	return stackstorm.Broker{User: p.rabbitmqUser, Password: password, VHost: p.rabbitmqVHost, Port: p.rabbitmqPort}, nil
}

func buildST2(ctx context.Context, c *common, p *params) (step.Step, error) {
	when, err := stackstorm.ParseWhen(p.restart)
	if err != nil {
		return nil, err
	}
	if err := host.CheckAddress("primary", p.primary); err != nil {
		return nil, err
	}
	s := &stackstorm.Configure{Role: p.role, PrimaryAddress: p.primary, KeepSensors: p.keepSensors, Restart: when, Run: c.run}
	switch p.role {
	case stackstorm.RolePrimary:
		return s, nil
	case stackstorm.RoleSecondary:
	default:
		return nil, fault.Usage("role must be primary or secondary, not %q", p.role)
	}
	if s.Broker, err = p.broker(c); err != nil {
		return nil, err
	}
	if s.Broker.Password == "" {
		return nil, fault.Usage("rabbitmq_password is missing: set it in the pack's configuration, or in the environment as ST2HA_RABBITMQ_PASSWORD")
	}
	s.Primary, err = c.open(ctx, p.primary)
	return s, err
}

// nodes opens the secondaries.
func (p *params) nodes(ctx context.Context, c *common) ([]host.Host, error) {
	if len(p.secondaries) == 0 {
		return nil, fault.Usage("secondaries is missing: give the address of one or more, separated by commas")
	}
	for _, address := range p.secondaries {
		if err := host.CheckAddress("secondaries", address); err != nil {
			return nil, err
		}
		go c.open(ctx, address)
	}
	var list []host.Host
	for _, address := range p.secondaries {
		h, err := c.open(ctx, address)
		if err != nil {
			return nil, err
		}
		list = append(list, h)
	}
	return list, nil
}

func buildRabbitMQ(ctx context.Context, c *common, p *params) (step.Step, error) {
	b, err := p.broker(c)
	if err != nil {
		return nil, err
	}
	s := &rabbitmq.Configure{Address: p.host, Port: b.Port, User: b.User, Password: b.Password, VHost: b.VHost,
		Permissions: p.rabbitmqPermissions, UpdatePassword: p.updatePassword, Within: rabbitmqTime, TLS: stackstorm.NodeTLS}
	if err := s.Validate(); err != nil {
		return nil, err
	}
	s.From, err = p.nodes(ctx, c)
	return s, err
}

func buildExport(_ context.Context, _ *common, p *params) (step.Step, error) {
	if len(p.secondaries) == 0 {
		return nil, fault.Usage("secondaries is missing: give the address of one or more, separated by commas")
	}
	for _, address := range p.secondaries {
		if err := host.CheckAddress("secondaries", address); err != nil {
			return nil, err
		}
	}
	return &nfs.Export{Directories: p.directories, Clients: p.secondaries}, nfs.Validate(p.directories)
}

func buildMount(ctx context.Context, c *common, p *params) (step.Step, error) {
	if err := host.CheckAddress("primary", p.primary); err != nil {
		return nil, err
	}
	if err := nfs.ValidateOptions(p.mountOptions); err != nil {
		return nil, err
	}
	if err := nfs.Validate(p.directories); err != nil {
		return nil, err
	}
	primary, err := c.open(ctx, p.primary)
	return p.mount(primary), err
}

func (p *params) mount(primary host.Host) *nfs.Mount {
	program, _ := os.Executable() // where it is unknown, it is not looked after
	return &nfs.Mount{PrimaryAddress: p.primary, Primary: primary, Directories: p.directories, Options: p.mountOptions, Within: mountTime, Program: program}
}

func buildRestart(_ context.Context, c *common, p *params) (step.Step, error) {
	when, err := stackstorm.ParseWhen(p.restart)
	if when == stackstorm.Later {
		err = fault.Usage("restart later is what restart_st2 makes up for: give auto, inline, deferred, others or idle")
	}
	if err == nil && p.delay < 0 {
		err = fault.Usage("delay must be a number of seconds, not %d", p.delay)
	}
	return &stackstorm.Restarter{Restart: when, Force: p.force, Delay: time.Duration(p.delay) * time.Second, Within: st2Time, Run: c.run}, err
}

func buildVerify(ctx context.Context, c *common, p *params) (step.Step, error) {
	s := &stackstorm.Verifier{Role: p.role, Within: st2Time}
	switch p.role {
	case stackstorm.RolePrimary:
		return s, nil
	case stackstorm.RoleSecondary:
	default:
		return nil, fault.Usage("role must be primary or secondary, not %q", p.role)
	}
	mount, err := buildMount(ctx, c, p)
	if err != nil {
		return nil, err
	}
	s.Mounts = mount
	s.Primary, err = c.open(ctx, p.primary)
	return s, err
}

// preflightCommand looks at all nodes of a join at once.
type preflightCommand struct{ params params }

func (p *preflightCommand) name() string { return "preflight" }
func (p *preflightCommand) summary() string {
	return "all nodes are looked at, and everything that stands against a join is said at once"
}

func (p *preflightCommand) flags(f *pflag.FlagSet) {
	joinFlags(&p.params, f)
	f.IntVar(&p.params.mongodbPort, "mongodb_port", 27017, "TCP port of mongod that the secondaries must reach")
}

// joinFlags are what all steps of a join take together.
func joinFlags(p *params, f *pflag.FlagSet) {
	for _, g := range []group{primaryFlags, secondariesFlags, mongodbFlags, rabbitmqFlags, rabbitmqAdminFlags, st2Flags, directoriesFlags, mountFlags} {
		g(p, f)
	}
}

func (p *preflightCommand) exec(ctx context.Context, c *common) (any, error) {
	q := p.params
	if q.mongodbPort < 1 || q.mongodbPort > 65535 {
		return c.result(p.name(), q.primary), fault.Usage("mongodb_port must be 1 to 65535, not %d", q.mongodbPort)
	}
	nodes, err := q.joinNodes(ctx, c)
	if err != nil {
		return c.result(p.name(), q.primary), err
	}
	ports := preflight.Ports{MongoDB: q.mongodbPort, RabbitMQ: q.rabbitmqPort, NFS: 2049}
	if primary := nodes[0].Host; primary != nil && ports.RabbitMQ == 0 {
		if ports.RabbitMQ, err = rabbitmq.Port(ctx, primary, q.primary); err != nil {
			ports.RabbitMQ = 0 // configure_rabbitmq's finding says why
		}
	}
	return c.found(p.name(), q.primary, preflight.Run(ctx, nodes, ports))
}

// joinNodes opens all nodes and gives each the steps it is in for. What
// cannot be reached is a finding; a parameter that is wrong is an error.
func (p params) joinNodes(ctx context.Context, c *common) ([]*preflight.Node, error) {
	addresses := append([]string{p.primary}, p.secondaries...)
	seen := map[string]bool{}
	for i, address := range addresses {
		name := "secondaries"
		if i == 0 {
			name = "primary"
		}
		if err := host.CheckAddress(name, address); err != nil {
			return nil, err
		}
		if seen[address] {
			return nil, fault.Usage("%s is given twice: each node joins once, and not to itself", address)
		}
		seen[address] = true
	}
	if len(p.secondaries) == 0 {
		return nil, fault.Usage("secondaries is missing: give the address of one or more, separated by commas")
	}
	broker, err := p.broker(c)
	if err != nil {
		return nil, err
	}
	rabbit := &rabbitmq.Configure{Address: p.primary, Port: broker.Port, User: broker.User, Password: broker.Password, VHost: broker.VHost,
		Permissions: p.rabbitmqPermissions, UpdatePassword: p.updatePassword, Within: rabbitmqTime, TLS: stackstorm.NodeTLS}
	if err := rabbit.Validate(); err != nil {
		return nil, err
	}
	if err := nfs.ValidateOptions(p.mountOptions); err != nil {
		return nil, err
	}
	if err := nfs.Validate(p.directories); err != nil {
		return nil, err
	}
	for _, address := range addresses {
		go c.open(ctx, address)
	}
	primary := &preflight.Node{Address: p.primary, Primary: true, Directories: p.directories}
	primary.Host, primary.Err = c.open(ctx, p.primary)
	primary.Steps = []step.Step{
		p.mongodb(c, p.primary),
		&stackstorm.Configure{Role: stackstorm.RolePrimary, PrimaryAddress: p.primary, Restart: stackstorm.Later, Run: c.run},
		rabbit,
		&nfs.Export{Directories: p.directories, Clients: p.secondaries},
	}
	nodes := []*preflight.Node{primary}
	for _, address := range p.secondaries {
		n := &preflight.Node{Address: address}
		n.Host, n.Err = c.open(ctx, address)
		if n.Host != nil {
			rabbit.From = append(rabbit.From, n.Host)
		}
		if primary.Host != nil {
			n.Steps = []step.Step{
				&stackstorm.Configure{Role: stackstorm.RoleSecondary, PrimaryAddress: p.primary, Primary: primary.Host, Broker: broker, KeepSensors: p.keepSensors, Restart: stackstorm.Later, Run: c.run},
				p.mount(primary.Host),
				&stackstorm.Restarter{Restart: stackstorm.Auto, Within: st2Time, Run: c.run},
			}
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// rollbackCommand undoes runs on one host.
type rollbackCommand struct {
	host   string
	only   string
	force  bool
	atOnce bool
}

// rollbackUnit is the transient unit of a rollback that an action hands over.
const rollbackUnit = "st2ha-rollback"

// handOverDelay gives the action that hands over time to end where it cannot be looked up.
const handOverDelay = 10 * time.Second

func (r *rollbackCommand) name() string    { return "rollback" }
func (r *rollbackCommand) summary() string { return "what st2ha did to a host is undone, newest first" }

func (r *rollbackCommand) flags(f *pflag.FlagSet) {
	f.StringVar(&r.host, "host", "", "address of the host to act on; this machine's own means locally, others are reached over SSH")
	f.StringVar(&r.only, "only", "", "name of the one run to undo (default: all of the host's runs)")
	f.BoolVar(&r.force, "force", false, "restore files that somebody else has changed since, too")
	f.BoolVar(&r.atOnce, "at_once", false, "undo at once also inside StackStorm, as a workflow does that undoes its own steps")
}

func (r *rollbackCommand) exec(ctx context.Context, c *common) (any, error) {
	failed := step.Result{Step: r.name(), Host: r.host, Run: c.run, DryRun: c.dryRun, Changes: []step.ChangeSummary{}, Findings: []step.Finding{}}
	if err := host.CheckAddress("host", r.host); err != nil {
		return failed, err
	}
	if r.only != "" && !regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`).MatchString(r.only) {
		return failed, fault.Usage("only must be the name of a run, not %q", r.only)
	}
	h, err := c.open(ctx, r.host)
	if err != nil {
		return failed, err
	}
	o := step.RollbackOptions{Options: c.options(), Only: strings.TrimSpace(r.only), Force: r.force, Kinds: kinds()}
	execution := c.getenv("ST2_ACTION_EXECUTION_ID")
	if execution == "" || o.DryRun || r.atOnce {
		return step.Rollback(ctx, h, o)
	}
	return r.handOver(ctx, c, h, o, execution)
}

// handOver has the host itself undo its runs once this action has ended. It may
// take from StackStorm's services the address that they know their database by,
// or unmount the directory that this very program lies in; so an action that
// did that itself could never have its result stored.
func (r *rollbackCommand) handOver(ctx context.Context, c *common, h host.Host, o step.RollbackOptions, execution string) (step.Result, error) {
	o.DryRun = true
	result, err := step.Rollback(ctx, h, o)
	result.DryRun = false
	if err != nil || len(result.Changes) == 0 {
		return result, err
	}
	args := []string{r.name(), "--host=127.0.0.1", "--deadline=7200", "--wait=600"}
	if o.Only != "" {
		args = append(args, "--only="+o.Only)
	}
	if o.Force {
		args = append(args, "--force")
	}
	if err = stackstorm.Defer(ctx, h, rollbackUnit, handOverDelay, execution, args...); err != nil {
		result.Fail(err, c.mask)
		return result, err
	}
	result.Findings = append(result.Findings, step.Finding{Severity: step.Warning, Host: h.Name(), Check: "handed_over",
		Message: "this is undone once the action has ended, by the unit " + rollbackUnit + " of the host: it may take away what StackStorm itself stands on",
		Fix:     "journalctl -u " + rollbackUnit + " on " + h.Name() + " says how it went, rollback with dry_run=true what is left"})
	return result, nil
}

// kinds are all changes a journal can hold.
func kinds() step.Kinds {
	return step.Kinds{
		"file":                 func() step.Change { return &step.FileChange{} },
		"start":                func() step.Change { return &service.Start{} },
		"package":              func() step.Change { return &service.Package{} },
		"daemon_reload":        func() step.Change { return &service.Reload{} },
		"restart":              func() step.Change { return &service.Restart{} },
		"restart_st2":          func() step.Change { return &stackstorm.Restart{} },
		"rabbitmq_vhost":       func() step.Change { return &rabbitmq.VHost{} },
		"rabbitmq_user":        func() step.Change { return &rabbitmq.User{} },
		"rabbitmq_password":    func() step.Change { return &rabbitmq.Password{} },
		"rabbitmq_permissions": func() step.Change { return &rabbitmq.Grant{} },
		"exportfs":             func() step.Change { return &nfs.Reexport{} },
		"aside":                func() step.Change { return &nfs.Aside{} },
		"directory":            func() step.Change { return &step.MakeDir{} },
		"mount":                func() step.Change { return &nfs.MountUnit{} },
	}
}
