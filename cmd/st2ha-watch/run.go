package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/pflag"

	"st2ha/internal/backend"
	"st2ha/internal/fault"
	"st2ha/internal/owner"
	"st2ha/internal/step"
	"st2ha/internal/watch"
	"st2ha/internal/watchdog"
)

// process is what main has of the process.
type process struct {
	getenv         func(string) string
	stdin          io.Reader
	stdout, stderr io.Writer
}

// options are the flags.
type options struct {
	once    bool
	heal    bool
	own     bool
	metrics string
	verbose bool
}

// run is main without the process: it returns the exit code.
func run(ctx context.Context, args []string, p process) int {
	var o options
	set := pflag.NewFlagSet("st2ha-watch", pflag.ContinueOnError)
	set.SortFlags = false
	set.BoolVar(&o.once, "once", false, "print one table of all endpoints and end: 0 if all are up, else 1")
	set.BoolVar(&o.heal, "heal", false,
		"be this node's watchdog: heal its own backends, and keep events in a spool until the broker takes them")
	set.BoolVar(&o.own, "own", false,
		"be this node's agent: run its share of the sensors, and the timers if they are its own ("+owner.ConfigPath+")")
	set.StringVar(&o.metrics, "metrics", "", "serve Prometheus metrics at this address, for example 127.0.0.1:9912")
	set.BoolVar(&o.verbose, "verbose", false, "log more to stderr")
	set.SetOutput(p.stderr)
	set.Usage = func() { usage(p.stdout, set) }
	err := set.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return fault.ExitDone
	case err == nil && set.NArg() > 0:
		err = fault.Usage("unexpected argument %q", set.Arg(0))
	case err == nil && (o.once && (o.heal || o.own) || o.heal && o.own):
		err = fault.Usage("--once, --heal and --own cannot be used together")
	case err != nil:
		err = fault.Usage("%w", err)
	}
	code := fault.ExitDone
	if err == nil {
		code, err = o.run(ctx, p)
	}
	if err != nil {
		f := fault.Of(err)
		line := "st2ha-watch: " + fault.Printable(f.Error())
		if f.Hint != "" {
			line += " → " + f.Hint
		}
		fmt.Fprintln(p.stderr, line)
		return f.Exit
	}
	return code
}

func (o options) run(ctx context.Context, p process) (int, error) {
	config, err := backend.ParseConfig(p.getenv("ST2HA_WATCH_CONFIG"))
	if err != nil {
		return 0, fault.Usage("ST2HA_WATCH_CONFIG: %w", err)
	}
	node, err := os.Hostname()
	if err != nil {
		return 0, fmt.Errorf("this node's name: %w", err)
	}
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: level}))
	if o.own {
		return 0, owner.Serve(ctx, log)
	}
	pr := watch.NewProber(node, config, log)
	if o.once {
		return once(ctx, pr, p.stdout)
	}
	if o.metrics != "" {
		stop, err := pr.ServeMetrics(o.metrics)
		if err != nil {
			return 0, err
		}
		defer stop()
	}
	if o.heal {
		return 0, (&watchdog.Watchdog{Prober: pr, Dir: step.StateDir}).Run(ctx)
	}
	return 0, sensor(ctx, pr, p)
}

func usage(w io.Writer, set *pflag.FlagSet) {
	fmt.Fprint(w, `st2ha-watch [--once | --heal | --own] [--metrics=ADDRESS] [--verbose]

Watches what this node's StackStorm uses, and prints one JSON object a line for each change of state, until stdin is
closed or SIGTERM comes. The next line comes when the one before is acknowledged, by a line on stdin: the first 24
hexadecimal digits of its SHA-256. Until then events wait in the directory ST2HA_STATE_DIR.

What is watched comes from the pack's configuration, one JSON object in the environment variable ST2HA_WATCH_CONFIG,
and as far as that says nothing from /etc/st2/st2.conf, /etc/fstab and /etc/exports.

`)
	fmt.Fprint(w, set.FlagUsages())
}
