package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"

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

// command is one action: its flags, and what it does with them.
type command interface {
	name() string
	summary() string
	flags(*pflag.FlagSet)
	// exec runs the action. The result is printed also with an error.
	exec(ctx context.Context, c *common) (any, error)
}

// run is main without the process: it returns the exit code.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	c := &common{getenv: getenv, start: time.Now(), opened: map[string]func() (host.Host, error){}}
	c.mask = step.NewMasker(c.secret("RABBITMQ_PASSWORD"))
	report := func(result any, err error) int { return report(stdout, stderr, c.mask, result, err) }
	cmd, rest, err := find(args)
	if errors.Is(err, pflag.ErrHelp) {
		usage(stdout)
		return fault.ExitDone
	}
	if err != nil {
		return report(nil, err)
	}
	set := flagSet(cmd, c)
	set.SetOutput(stdout) // what --help prints; errors are reported
	if err := checkLists(set, rest); err != nil {
		return report(nil, err)
	}
	if err := set.Parse(rest); errors.Is(err, pflag.ErrHelp) {
		return fault.ExitDone
	} else if err != nil {
		return report(nil, fault.Usage("%s: %w", cmd.name(), err))
	}
	if err := checkNumbers(set); err != nil {
		return report(nil, err)
	}
	if set.NArg() > 0 {
		return report(nil, fault.Usage("%s: %q is one word too many: parameters are --name=value", cmd.name(), set.Arg(0)))
	}
	if err := c.prepare(stderr); err != nil {
		return report(nil, err)
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(ctx, time.Duration(c.deadline)*time.Second)
	defer cancel()
	if id := getenv(stackstorm.AfterEnd); id != "" {
		if err := c.awaitEnd(ctx, id); err != nil {
			return report(nil, err)
		}
	}
	result, err := cmd.exec(ctx, c)
	c.gate.open(context.WithoutCancel(ctx))
	return report(result, err)
}

// awaitEnd waits for an execution of this machine's StackStorm to end.
func (c *common) awaitEnd(ctx context.Context, id string) error {
	h, err := c.open(ctx, "127.0.0.1")
	if err != nil {
		return err
	}
	return stackstorm.AwaitEnd(ctx, h, id)
}

// find takes the command out of the arguments. StackStorm's runner puts
// positional parameters last, people put them first.
func find(args []string) (command, []string, error) {
	for i, a := range args {
		if a == "-h" || a == "--help" {
			if i == 0 {
				return nil, nil, pflag.ErrHelp
			}
			continue
		}
		if strings.HasPrefix(a, "-") {
			continue
		}
		for _, cmd := range commands() {
			if cmd.name() == a {
				rest := append([]string{}, args[:i]...)
				return cmd, append(rest, args[i+1:]...), nil
			}
		}
		return nil, nil, fault.Usage("there is no command %q: st2ha --help lists them", a)
	}
	return nil, nil, fault.Usage("no command is given: st2ha --help lists them")
}

// flagSet has the flags of a command, named as the action's parameters.
func flagSet(cmd command, c *common) *pflag.FlagSet {
	set := pflag.NewFlagSet(cmd.name(), pflag.ContinueOnError)
	set.SortFlags = false
	cmd.flags(set)
	set.StringVar(&c.run, "run", "", "name of the run; the steps of a workflow share it (default: made up)")
	set.BoolVar(&c.dryRun, "dry_run", false, "show what would be changed, and change nothing")
	set.BoolVar(&c.verbose, "verbose", false, "log more to stderr")
	set.IntVar(&c.wait, "wait", 0, "seconds to wait for another run on the host to end")
	set.IntVar(&c.deadline, "deadline", 600, "seconds after which the command gives up, and undoes what it changed")
	set.StringVar(&c.ssh.User, "ssh_user", "stanley", "user to reach other hosts as; it needs sudo without a password")
	set.IntVar(&c.ssh.Port, "ssh_port", 22, "port of the SSH servers")
	set.StringVar(&c.ssh.KeyFile, "ssh_key", "/home/stanley/.ssh/stanley_rsa", "that user's private key")
	set.StringSliceVar(&c.ssh.KnownHosts, "known_hosts", []string{"/home/stanley/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts"}, "files with the host keys to trust")
	return set
}

// checkLists refuses a line break in a list: pflag reads one line of it.
func checkLists(set *pflag.FlagSet, args []string) error {
	for i, arg := range args {
		name, value, given := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if !given && i+1 < len(args) {
			value = args[i+1]
		}
		flag := set.Lookup(name)
		if strings.HasPrefix(arg, "--") && flag != nil && flag.Value.Type() == "stringSlice" && strings.ContainsAny(value, "\r\n") {
			return fault.Usage("%s has a line break: it is a list with commas", name)
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

func (c *common) prepare(stderr io.Writer) error {
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
		return fault.Usage("wait %d and deadline %d are seconds: 0 or more, 1 or more", c.wait, c.deadline)
	}
	if c.ssh.Port < 1 || c.ssh.Port > 65535 {
		return fault.Usage("ssh_port must be 1 to 65535, not %d", c.ssh.Port)
	}
	if !step.ValidRun(c.run) {
		return fault.Usage("run must be at most 64 letters, digits, _ and -, not %q", c.run)
	}
	return nil
}

// secret reads a secret parameter: from the environment only, since a flag
// would be seen in ps and in sudo's log.
func (c *common) secret(name string) string { return c.getenv("ST2HA_" + name) }

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
	return step.Options{Run: c.run, DryRun: c.dryRun, Wait: time.Duration(c.wait) * time.Second, Log: c.log, Mask: c.mask, Started: c.start, Hold: c.hold}
}

// report prints the result, and an error for people, and returns the exit code.
// Neither has what mask knows to be secret.
func report(stdout, stderr io.Writer, mask *step.Masker, result any, err error) int {
	if result == nil {
		result = step.Result{Changes: []step.ChangeSummary{}, Findings: []step.Finding{}}
	}
	if r, ok := result.(step.Result); ok && err != nil && r.Error == nil {
		r.Fail(err, mask)
		result = r
	}
	encoder := json.NewEncoder(stdout)
	encoder.SetEscapeHTML(false)
	if encodeErr := encoder.Encode(result); encodeErr != nil && err == nil {
		err = &fault.Error{Exit: fault.ExitUnsaid, Code: "unsaid", Hint: "see /var/lib/st2ha/runs on the host for what was changed; run it again with a standard output that takes the result",
			Err: fmt.Errorf("all was done, what was changed is in place, and only its result could not be printed: %w", encodeErr)}
	}
	if err == nil {
		return fault.ExitDone
	}
	f := fault.Of(err)
	line := mask.Mask(f.Error())
	if r, ok := result.(step.Result); ok && r.Error != nil {
		line = r.Error.Message
	}
	if f.Hint != "" {
		line += " → " + mask.Mask(f.Hint)
	}
	fmt.Fprintln(stderr, "st2ha: "+strings.ReplaceAll(line, "\n", " "))
	return f.Exit
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "st2ha COMMAND [--parameter=value …]\n\nEach command is an action of the pack st2ha, with the same parameters:")
	for _, cmd := range commands() {
		fmt.Fprintf(w, "  %-19s %s\n", cmd.name(), cmd.summary())
	}
	fmt.Fprintln(w, "\nst2ha COMMAND --help lists the parameters. Secrets come in the environment:\nST2HA_RABBITMQ_PASSWORD. It prints one JSON object; logs go to stderr.\nExit codes: 0 done, 1 failed and undone, 2 usage, 3 preflight, 4 undo failed as well,\n5 done, but the result could not be printed.")
}
