package cli

import (
	"context"
	"time"

	"st2ha/internal/action"
	"st2ha/internal/join"
	"st2ha/internal/nfs"
	"st2ha/internal/preflight"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/step"
)

// preflightCommand looks at all nodes of a join at once.
func preflightCommand() command {
	return command{exec: checkNodes, Spec: action.Spec{
		Name:    "preflight",
		Summary: "checks all nodes, and reports at once whatever would make a join fail",
		Description: `Changes nothing: looks at the primary and the secondaries and says at once everything that stands
against a join, each finding with its fix.`,
		Settings: action.Union(join.NodesSettings(), join.Kept("mongodb_port")),
		Rows:     []action.Row{{Host: "all", Changes: "nothing. Looks at all nodes at once; every finding names its fix"}},
	}}
}

func checkNodes(ctx context.Context, c *common, v action.Values) (step.Result, error) {
	primary := v.String("primary")
	nodes, err := join.Nodes(ctx, c.cluster(""), v, false)
	if err != nil {
		return c.result("preflight", primary), err
	}
	ports := preflight.Ports{MongoDB: v.Int("mongodb_port"), RabbitMQ: v.Int("rabbitmq_port"), NFS: nfs.Port}
	if h := nodes[0].Host; h != nil && ports.RabbitMQ == 0 {
		if ports.RabbitMQ, err = rabbitmq.Port(ctx, h, primary); err != nil {
			ports.RabbitMQ = 0 // configure_rabbitmq's finding says why
		}
	}
	return c.found("preflight", primary, preflight.Run(ctx, nodes, ports))
}

// driftTime is how long what is in place may take to answer.
const driftTime = 15 * time.Second

// driftCommand compares all nodes with what the join brings about, and proves
// what is in place, over one connection a node.
func driftCommand() command {
	return command{exec: drift, Spec: action.Spec{
		Name:    "drift",
		Summary: "compares all nodes with what the join made of them, and checks again that all of it works",
		Description: "Changes nothing: compares the primary and the secondaries with what the join brought about, " +
			"proves all of it\nagain, and says at once what differs.",
		Settings: join.NodesSettings(),
		Rows: []action.Row{{Host: "all", Changes: "nothing. Compares all nodes with what the join brought about and proves " +
			"it again, in a fraction of a second; what differs is a finding, exit code 3"}},
	}}
}

func drift(ctx context.Context, c *common, v action.Values) (step.Result, error) {
	primary := v.String("primary")
	nodes, err := join.Nodes(ctx, c.cluster(""), v, true)
	if err != nil {
		return c.result("drift", primary), err
	}
	return c.found("drift", primary, preflight.Drift(ctx, nodes, driftTime))
}

// found is the result with findings, and the error that they amount to.
func (c *common) found(name, primary string, findings []step.Finding) (step.Result, error) {
	r := c.result(name, primary)
	for _, f := range findings {
		f.Message = c.mask.Mask(f.Message)
		r.Findings = append(r.Findings, f)
	}
	err := step.Refuse(r.Findings)
	r.Fail(err, c.mask)
	r.Millis = time.Since(c.start).Milliseconds()
	return r, err
}
