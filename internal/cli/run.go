// Package cli is the program st2ha without its process: its commands, each an action of the pack, their flags, and what
// they print.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"st2ha/internal/action"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// common are the parameters that all actions share.
type common struct {
	run      string
	dryRun   bool
	verbose  bool
	wait     int // seconds
	deadline int // seconds
	ssh      host.SSHConfig

	getenv func(string) string
	gate   *gate // of stderr
	log    *slog.Logger
	mask   *step.Masker
	start  time.Time
	mutex  sync.Mutex
	opened map[string]func() (host.Host, error) // waits for the connection
}

// Run is main without the process: it returns the exit code.
func Run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	c := &common{getenv: getenv, start: time.Now(), opened: map[string]func() (host.Host, error){}}
	c.mask = step.NewMasker(secrets(getenv)...)
	report := func(result any, err error) int { return report(stdout, stderr, c.mask, result, err) }
	cmd, rest, err := find(args)
	if errors.Is(err, pflag.ErrHelp) {
		usage(stdout)
		return fault.ExitDone
	}
	if err != nil {
		return report(nil, err)
	}
	set, values := flags(cmd, getenv)
	set.SetOutput(stdout) // what --help prints; errors are reported
	if err := action.Given(set, cmd.Spec, cmd.settings(), getenv); err != nil {
		return report(nil, err)
	}
	if err := checkLists(set, rest); err != nil {
		return report(nil, err)
	}
	if err := set.Parse(rest); errors.Is(err, pflag.ErrHelp) {
		return fault.ExitDone
	} else if err != nil {
		return report(nil, fault.Usage("%s: %w", cmd.Name, err))
	}
	if err := checkNumbers(set); err != nil {
		return report(nil, err)
	}
	if set.NArg() > 0 {
		return report(nil, fault.Usage("%s: unexpected word %q: write parameters as --name=value", cmd.Name, set.Arg(0)))
	}
	if err := c.prepare(values, stderr); err != nil {
		return report(nil, err)
	}
	if err := values.Check(); err != nil {
		return report(c.result(cmd.Name, concerned(values)), err)
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.deadline)*time.Second)
	defer cancel()
	if id := getenv(stackstorm.AfterEnd); id != "" {
		if err := c.awaitEnd(ctx, id); err != nil {
			return report(nil, err)
		}
	}
	result, err := cmd.do(ctx, c, values)
	c.gate.open(context.WithoutCancel(ctx))
	return report(result, err)
}

// awaitEnd waits for an execution of this machine's StackStorm to end.
func (c *common) awaitEnd(ctx context.Context, id string) error {
	h, err := c.open(ctx, here)
	if err != nil {
		return err
	}
	return stackstorm.AwaitEnd(ctx, h, id)
}

// find takes the command out of the arguments. StackStorm's runner puts
// positional parameters last, people put them first.
func find(args []string) (cmd command, rest []string, err error) {
	for i, a := range args {
		if a == "-h" || a == "--help" {
			if i == 0 {
				return cmd, nil, pflag.ErrHelp
			}
			continue
		}
		if strings.HasPrefix(a, "-") {
			continue
		}
		for _, cmd := range commands() {
			if cmd.Name == a {
				return cmd, slices.Concat(args[:i], args[i+1:]), nil
			}
		}
		return cmd, nil, fault.Usage("there is no command %q: st2ha --help lists them", a)
	}
	return cmd, nil, fault.Usage("no command is given: st2ha --help lists the commands")
}

// flags are a command's, named as the action's parameters, and the values that they are given.
func flags(cmd command, getenv func(string) string) (*pflag.FlagSet, action.Values) {
	set := pflag.NewFlagSet(cmd.Name, pflag.ContinueOnError)
	set.SortFlags = false
	return set, action.Flags(set, cmd.settings(), getenv)
}

// commonSettings are those of all commands.
func commonSettings(heals bool) []action.Setting {
	deadline := `Seconds after which the action gives up, and undoes what it changed.`
	if heals {
		deadline = `Seconds after which the action gives up.`
	}
	return []action.Setting{
		{Name: "run", Default: "", Help: `Name of the run; the steps of a workflow share it. Empty means a name of its own.`},
		{Name: "dry_run", Default: false, Help: `Show what would be changed, and change nothing.`},
		{Name: "verbose", Default: false, Help: `Log more to stderr.`},
		{Name: "wait", Default: 0, Unit: action.Seconds, Help: `Seconds to wait for another run on the host to end.`},
		{Name: "deadline", Default: 600, Unit: action.Seconds, Help: deadline},
		{
			Name: "ssh_user", Default: "stanley",
			Help: `User to reach other hosts as; it needs sudo without a password.`,
			Kept: `User to reach other hosts as. It needs sudo without a password.`,
			Docs: "user to reach other hosts as; needs sudo without a password",
		},
		{
			Name: "ssh_port", Default: 22, Unit: action.Port,
			Help: `TCP port of the SSH servers.`,
			Kept: `TCP port of the SSH servers.`,
			Docs: "port of the SSH servers",
		},
		{
			Name: "ssh_key", Default: "/home/stanley/.ssh/stanley_rsa",
			Help: `Path of that user's private key.`,
			Kept: `Path of that user's private key on the node that runs the workflow.`,
			Docs: "that user's private key, without a passphrase",
		},
		{
			Name: "known_hosts", Default: []string{"/home/stanley/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts"},
			Help: `Files with the host keys to trust, separated by commas.`,
			Kept: `Files with the host keys to trust. Hosts that are in none of them are refused.`,
			Docs: "files with the host keys to trust",
		},
	}
}

// secrets are the values of all secret settings.
func secrets(getenv func(string) string) []string {
	var all []string
	for _, cmd := range commands() {
		for _, s := range cmd.settings() {
			if s.Secret {
				all = append(all, getenv(s.Variable()))
			}
		}
	}
	return all
}

// concerned is the host that a command's result names: the one that it is to act on, the primary, or this machine.
func concerned(v action.Values) string {
	for _, name := range []string{"host", "primary"} {
		if v.Has(name) {
			return v.String(name)
		}
	}
	return here
}

// here is this machine.
const here = "127.0.0.1"

// checkLists refuses a line break in a list: pflag reads one line of it.
func checkLists(set *pflag.FlagSet, args []string) error {
	for i, arg := range args {
		name, value, given := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if !given && i+1 < len(args) {
			value = args[i+1]
		}
		flag := set.Lookup(name)
		list := strings.HasPrefix(arg, "--") && flag != nil && flag.Value.Type() == "stringSlice"
		if list && strings.ContainsAny(value, "\r\n") {
			return fault.Usage("%s has a line break: write a list in one line, with commas", name)
		}
	}
	return nil
}

// checkNumbers refuses what is more seconds than a time.Duration can have.
func checkNumbers(set *pflag.FlagSet) (err error) {
	set.Visit(func(f *pflag.Flag) {
		if n, e := set.GetInt(f.Name); e == nil && n != int(int32(n)) {
			err = fault.Usage("%s %d is too large", f.Name, n)
		}
	})
	return err
}

// prepare reads the settings that all commands share, and opens the log.
func (c *common) prepare(v action.Values, stderr io.Writer) error {
	c.run, c.dryRun, c.verbose = v.String("run"), v.Bool("dry_run"), v.Bool("verbose")
	c.wait, c.deadline = v.Int("wait"), v.Int("deadline")
	c.ssh = host.SSHConfig{User: v.String("ssh_user"), Port: v.Int("ssh_port"), KeyFile: v.String("ssh_key"),
		KnownHosts: v.List("known_hosts")}
	level := slog.LevelInfo
	if c.verbose {
		level = slog.LevelDebug
	}
	c.gate = &gate{to: stderr}
	c.log = slog.New(slog.NewTextHandler(c.gate, &slog.HandlerOptions{Level: level}))
	if c.run == "" {
		// An action's run is its execution, so that what must come after its end can be deferred until then.
		c.run = c.getenv("ST2_ACTION_EXECUTION_ID")
	}
	if c.run == "" {
		c.run = step.NewRun(c.start)
	}
	if c.wait < 0 || c.deadline < 1 {
		return fault.Usage("wait %d and deadline %d are seconds: wait must be 0 or more, deadline 1 or more",
			c.wait, c.deadline)
	}
	if !step.ValidRun(c.run) {
		return fault.Usage("run must be at most 64 letters, digits, _ and -, not %q", c.run)
	}
	return nil
}

// open connects to a host once for the process. Several can be opened side by
// side: go c.open(ctx, address), and who needs the host calls it again.
func (c *common) open(ctx context.Context, address string) (host.Host, error) {
	c.mutex.Lock()
	wait, ok := c.opened[address]
	if !ok {
		wait = sync.OnceValues(func() (host.Host, error) { return c.connect(ctx, address) })
		c.opened[address] = wait
	}
	c.mutex.Unlock()
	return wait()
}

func (c *common) connect(ctx context.Context, address string) (host.Host, error) {
	h, err := host.Open(ctx, address, c.ssh)
	if err != nil {
		return nil, err
	}
	c.log.Debug("connected", "host", address, "local", h.IsLocal(), "after", time.Since(c.start))
	return crashing(h), nil
}

func (c *common) close() {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, wait := range c.opened {
		if h, err := wait(); err == nil {
			_ = h.Close()
		}
	}
}

func (c *common) options() step.Options {
	return step.Options{Run: c.run, DryRun: c.dryRun, Wait: time.Duration(c.wait) * time.Second, Log: c.log, Mask: c.mask,
		Started: c.start, BeforeInterrupt: c.hold}
}

// result is that of a command which has not changed anything yet.
func (c *common) result(name, address string) step.Result {
	return step.Result{Step: name, Host: address, Run: c.run, DryRun: c.dryRun,
		Changes: []step.ChangeSummary{}, Findings: []step.Finding{}}
}

// report prints the result, and an error for people, and returns the exit code.
// Neither has what mask knows to be secret.
func report(stdout, stderr io.Writer, mask *step.Masker, result any, err error) int {
	p := page{Result: step.Result{Changes: []step.ChangeSummary{}, Findings: []step.Finding{}}}
	switch r := result.(type) {
	case page:
		p = r
	case step.Result:
		p.Result = r
	}
	if err != nil && p.Error == nil {
		p.Fail(err, mask)
	}
	if encodeErr := p.print(stdout); encodeErr != nil && err == nil {
		err = &fault.Error{Exit: fault.ExitUnsaid, Code: "unsaid",
			Hint: "see /var/lib/st2ha/runs on the host for what was changed; " +
				"run it again with a standard output that takes the result",
			Err: fmt.Errorf("all was done, what was changed is in place, and only its result could not be printed: %w",
				encodeErr)}
	}
	if err == nil {
		return fault.ExitDone
	}
	f := fault.Of(err)
	line := mask.Mask(f.Error())
	if p.Error != nil {
		line = p.Error.Message
	}
	if f.Hint != "" {
		line += " → " + mask.Mask(f.Hint)
	}
	fmt.Fprintln(stderr, "st2ha: "+strings.ReplaceAll(line, "\n", " "))
	return f.Exit
}

func usage(w io.Writer) {
	fmt.Fprint(w, `st2ha COMMAND [--parameter=value …]

Each command is an action of the pack st2ha, with the same parameters:
`)
	for _, cmd := range commands() {
		fmt.Fprintf(w, "  %-20s %s\n", cmd.Name, cmd.Summary)
	}
	fmt.Fprint(w, `
st2ha COMMAND --help lists the parameters. Secrets come in the environment:
ST2HA_RABBITMQ_PASSWORD; of enroll ST2HA_PASSWORD, ST2HA_PRIVATE_KEY,
ST2HA_USER_SUDO_PASSWORD. It prints one JSON object; logs go to stderr.
Exit codes: 0 done, 1 failed and undone, 2 usage, 3 preflight, 4 undo failed as well,
5 done, but the result could not be printed.
`)
}
