package preflight

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"st2ha/internal/step"
)

// Drift compares the nodes with what their steps want, all side by side, and
// proves what is in place, which may take as long as within. It returns what
// differs in the order of nodes and steps.
func Drift(ctx context.Context, nodes []*Node, within time.Duration) []step.Finding {
	found := make([][][]step.Finding, len(nodes))
	var group sync.WaitGroup
	for i, n := range nodes {
		if n.Err != nil {
			found[i] = [][]step.Finding{{of(n, "connect", n.Err)}}
			continue
		}
		found[i] = make([][]step.Finding, len(n.Steps))
		for j, s := range n.Steps {
			group.Go(func() { found[i][j] = differs(ctx, n, s, within) })
		}
	}
	group.Wait()
	return slices.Concat(slices.Concat(found...)...)
}

// differs is what stands between a node and what a step wants.
func differs(ctx context.Context, n *Node, s step.Step, within time.Duration) []step.Finding {
	found, err := s.Check(ctx, n.Host)
	var changes []step.Change
	if err == nil && step.Refuse(found) == nil {
		changes, err = s.Plan(ctx, n.Host)
		for _, c := range changes {
			found = append(found, n.finding(step.Error, "drift",
				fmt.Sprintf("%s: %s %s: %s", s.Name(), c.Kind(), c.Target(), c.Diff()),
				"find out who changed it; st2 run st2ha.join_secondary sets it again"))
		}
		if err == nil && len(changes) == 0 {
			ctx, cancel := context.WithTimeout(ctx, within)
			defer cancel()
			err = s.Verify(ctx, n.Host)
		}
	}
	if err != nil {
		found = append(found, of(n, s.Name(), err))
	}
	return found
}
