package main

import (
	"context"
	"time"

	"github.com/spf13/pflag"

	"st2ha/internal/preflight"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// driftTime is how long what is in place may take to answer.
const driftTime = 15 * time.Second

// driftCommand compares all nodes with what the join brings about, and proves
// what is in place, over one connection a node.
type driftCommand struct{ params params }

func (d *driftCommand) name() string { return "drift" }
func (d *driftCommand) summary() string {
	return "all nodes are compared with what the join brought about, and all of it is proved again"
}

func (d *driftCommand) flags(f *pflag.FlagSet) { joinFlags(&d.params, f) }

func (d *driftCommand) exec(ctx context.Context, c *common) (any, error) {
	nodes, err := d.params.joinNodes(ctx, c)
	if err != nil {
		return c.result(d.name(), d.params.primary), err
	}
	primary := nodes[0]
	for _, n := range nodes {
		if n.Primary {
			n.Steps = append(n.Steps, &stackstorm.Verifier{Role: stackstorm.RolePrimary, Within: driftTime})
		} else if primary.Host != nil {
			n.Steps = append(n.Steps, &stackstorm.Verifier{Role: stackstorm.RoleSecondary, Primary: primary.Host, Within: driftTime})
		}
	}
	return c.found(d.name(), d.params.primary, preflight.Drift(ctx, nodes, driftTime))
}

// result is that of a command that looks at several hosts and changes none.
func (c *common) result(name, primary string) step.Result {
	return step.Result{Step: name, Host: primary, Run: c.run, DryRun: c.dryRun, Changes: []step.ChangeSummary{}, Findings: []step.Finding{}}
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
