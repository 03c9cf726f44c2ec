// Package join is the join as data: its steps in their order, each with its settings and how it is made of them. The
// commands, what preflight and drift look at, what rollback can read back, and what go generate writes come from here.
package join

import (
	"context"
	"maps"
	"slices"

	"st2ha/internal/action"
	"st2ha/internal/enroll"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/preflight"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// Role says which nodes a step is for.
type Role string

// The roles of nodes, and both.
const (
	Primary   Role = stackstorm.RolePrimary
	Secondary Role = stackstorm.RoleSecondary
	Any       Role = "any"
)

// Has says whether nodes of a role are meant.
func (r Role) Has(role Role) bool { return r == Any || r == role }

// Spec is a step, before it is made for a node.
type Spec struct {
	action.Spec
	Role Role
	// Placed says that the workflows' templates have it where it belongs; else it follows the step before it. Of such
	// a step, Foreseen are the nodes for which preflight and drift look at it as they do at all others, and Proof says
	// that drift alone does.
	Placed   bool
	Foreseen Role
	Proof    bool
	// Given is what the join itself says of its settings.
	Given map[string]any
	// Check refuses values that do not go together. Nothing has been asked of any host by then.
	Check func(v action.Values) error
	// Build makes the step for a node, of values that have been checked.
	Build func(ctx context.Context, c Cluster, v action.Values) (step.Step, error)
	// Kinds are the changes that it can leave in a journal.
	Kinds []func() step.Change
}

// foreseen says whether preflight and drift look at it on nodes of a role.
func (s Spec) foreseen(role Role) bool {
	if s.Placed {
		return s.Foreseen.Has(role)
	}
	return s.Role.Has(role)
}

// Cluster is the node that a step is made for, and the way to the others.
type Cluster struct {
	Node     string // its address
	Open     func(ctx context.Context, address string) (host.Host, error)
	Run      string // the run's name
	InAction bool   // StackStorm runs this program
	// Whole says that all steps of all nodes are made, to be looked at. What cannot be reached is left out then, for
	// that is said of the node itself, and each step proves its own part only.
	Whole bool
}

// nodes opens the hosts at addresses, side by side.
func (c Cluster) nodes(ctx context.Context, addresses []string) ([]host.Host, error) {
	for _, address := range addresses {
		go c.Open(ctx, address)
	}
	var list []host.Host
	for _, address := range addresses {
		switch h, err := c.Open(ctx, address); {
		case err == nil:
			list = append(list, h)
		case !c.Whole:
			return nil, err
		}
	}
	return list, nil
}

// Kinds are all changes that a journal can hold.
func Kinds() step.Kinds {
	all := enroll.Kinds()
	for _, s := range Steps() {
		all = append(all, s.Kinds...)
	}
	kinds := step.Kinds{}
	for _, empty := range all {
		kinds[empty().Kind()] = empty
	}
	return kinds
}

// NodesSettings are those that Nodes reads: of all steps that preflight and drift look at, but for what the join gives
// itself.
func NodesSettings() []action.Setting {
	all := Kept("primary", "secondaries")
	for _, s := range Steps() {
		if !s.foreseen(Primary) && !s.foreseen(Secondary) {
			continue
		}
		for _, setting := range s.Settings {
			if _, given := s.Given[setting.Name]; !given && setting.Name != "role" {
				all = append(all, setting)
			}
		}
	}
	return action.Union(all)
}

// valuesFor are a step's values on a node of that role.
func (s Spec) valuesFor(role Role, v action.Values) action.Values {
	given := map[string]any{"role": string(role)}
	maps.Copy(given, s.Given)
	return v.For(s.Settings, given)
}

// Nodes opens all nodes of a join, the primary first, and makes the steps that each is in for, with those that only
// prove if proofs says so. What cannot be reached is noted in its node; a setting that is wrong is an error.
func Nodes(ctx context.Context, c Cluster, v action.Values, proofs bool) ([]*preflight.Node, error) {
	addresses, err := Addresses(v)
	if err == nil {
		err = someSecondaries(v)
	}
	if err != nil {
		return nil, err
	}
	if err := check(v); err != nil {
		return nil, err
	}
	for _, address := range addresses {
		go c.Open(ctx, address)
	}
	var nodes []*preflight.Node
	for i, address := range addresses {
		n := &preflight.Node{Address: address, Primary: i == 0, Directories: v.List("directories")}
		n.Host, n.Err = c.Open(ctx, address)
		nodes = append(nodes, n)
	}
	if nodes[0].Host == nil {
		return nodes, nil // the secondaries' steps read it, and its own cannot run
	}
	c.Whole = true
	for _, n := range nodes {
		role := Secondary
		if n.Primary {
			role = Primary
		}
		c.Node = n.Address
		if n.Steps, err = steps(ctx, c, role, v, proofs); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

// Addresses are those of all nodes, the primary's first. There need not be secondaries.
func Addresses(v action.Values) ([]string, error) {
	if err := somePrimary(v); err != nil {
		return nil, err
	}
	all := append([]string{v.String("primary")}, v.List("secondaries")...)
	for i, address := range all {
		if slices.Contains(all[:i], address) {
			return nil, fault.Usage("%s is given twice: each node joins once, and not to itself", address)
		}
	}
	return all, nil
}

// check refuses values that do not go together for a step on the nodes of any role.
func check(v action.Values) error {
	for _, s := range Steps() {
		for _, role := range []Role{Primary, Secondary} {
			if !s.foreseen(role) || s.Check == nil {
				continue
			}
			if err := s.Check(s.valuesFor(role, v)); err != nil {
				return err
			}
		}
	}
	return nil
}

// steps makes the steps that a node of that role is in for.
func steps(ctx context.Context, c Cluster, role Role, v action.Values, proofs bool) ([]step.Step, error) {
	var all []step.Step
	for _, s := range Steps() {
		if !s.foreseen(role) && !(proofs && s.Proof) {
			continue
		}
		built, err := s.Build(ctx, c, s.valuesFor(role, v))
		if err != nil {
			return nil, err
		}
		all = append(all, built)
	}
	return all, nil
}
