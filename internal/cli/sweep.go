package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"st2ha/internal/action"
	"st2ha/internal/fault"
	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// sweepCommand ends executions that a fault left behind.
func sweepCommand() command {
	return command{exec: sweep, Spec: action.Spec{
		Name: "sweep_executions",
		Summary: "ends executions whose runner is gone, so that what waits for them goes on; " +
			"reports what else stands still",
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
			{
				Name: "cancel", Default: false,
				Help: `Cancel what stands still and nothing can move any more. False only reports it.`,
			},
			maintenanceSetting(),
		},
		Heals: true,
		Rows: []action.Row{{Host: "all", Changes: "nothing on the hosts: executions whose runner is gone are ended; what " +
			"else stands still is reported, and ended with `cancel` if nothing can move it any more"}},
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
			r.Findings = []step.Finding{{Severity: step.Warning, Host: n.Name(), Check: "maintenance",
				Message: "nothing is swept: " + m.String(), Fix: "st2ha.maintenance with mode=off on that node ends it"}}
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
	return nil, nil, fault.Failed("sweep_turn",
		"nothing was swept; bring the broker back, or let its user have queues named st2ha.sweep.*",
		"%s: it could not be found out whether another sweep is running: %w", h.Name(), errors.Join(all...))
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
