package cli

import (
	"context"
	"slices"

	"st2ha/internal/action"
	"st2ha/internal/host"
	"st2ha/internal/join"
	"st2ha/internal/step"
)

// command is one action: what is said of it, and what it does.
type command struct {
	action.Spec
	// exec runs the action. The result is printed also with an error.
	exec func(ctx context.Context, c *common, v action.Values) (step.Result, error)
	// page does, in the place of exec, for an action whose result is a page for people, too.
	page func(ctx context.Context, c *common, v action.Values) (page, error)
}

// do runs the command.
func (c command) do(ctx context.Context, common *common, v action.Values) (any, error) {
	if c.page != nil {
		return c.page(ctx, common, v)
	}
	return c.exec(ctx, common, v)
}

// settings are all that the command can be told.
func (c command) settings() []action.Setting {
	return action.Union(c.Settings, commonSettings(c.Heals))
}

// commands are the actions, in the order of enrolment and join, and then what mends its faults.
func commands() []command {
	all := []command{enrollCommand(), preflightCommand()}
	for _, s := range join.Steps() {
		all = append(all, stepCommand(s, runStep))
	}
	return slices.Concat(all, []command{driftCommand(), statusCommand(), rollbackCommand()}, healCommands())
}

// Actions are all actions of the pack, but for the workflows, with all that each can be told.
func Actions() []action.Spec {
	var all []action.Spec
	for _, cmd := range commands() {
		cmd.Settings = cmd.settings()
		all = append(all, cmd.Spec)
	}
	return all
}

// Settings are those that the pack's configuration has for actions, in its order.
func Settings() []action.Setting {
	kept := append(join.Settings(), statusSettings()...)
	for _, s := range commonSettings(false) {
		if s.Kept != "" {
			kept = append(kept, s)
		}
	}
	return kept
}

func hostSetting() action.Setting {
	return action.Setting{Name: "host", Default: "", Required: true,
		Help: `Address of the host to act on. The address of the machine that runs the action means locally;
others are reached over SSH.`}
}

// runner runs a step on a host.
type runner func(context.Context, *common, step.Step, host.Host, action.Values) (step.Result, error)

// stepCommand makes a step a command, which runs it on one host with do.
func stepCommand(s join.Spec, do runner) command {
	spec := s.Spec
	spec.Settings = action.Union([]action.Setting{hostSetting()}, s.Settings)
	return command{Spec: spec, exec: func(ctx context.Context, c *common, v action.Values) (step.Result, error) {
		address, failed := v.String("host"), c.result(s.Name, v.String("host"))
		if err := host.CheckAddress("host", address); err != nil {
			return failed, err
		}
		if s.Check != nil {
			if err := s.Check(v); err != nil {
				return failed, err
			}
		}
		go c.open(ctx, address) // beside those that the step needs, too
		built, err := s.Build(ctx, c.cluster(address), v)
		if err != nil {
			return failed, err
		}
		h, err := c.open(ctx, address)
		if err != nil {
			return failed, err
		}
		return do(ctx, c, built, h, v)
	}}
}

// runStep runs a step of the join.
func runStep(ctx context.Context, c *common, built step.Step, h host.Host, _ action.Values) (step.Result, error) {
	return step.Run(ctx, built, h, c.options())
}

// cluster is what a step for the node at an address is built with.
func (c *common) cluster(address string) join.Cluster {
	return join.Cluster{Node: address, Open: c.open, Run: c.run, InAction: c.getenv("ST2_ACTION_EXECUTION_ID") != ""}
}
