package stackstorm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// Statuses of executions (st2common/constants/action.py).
const (
	statusRequested = "requested"
	statusScheduled = "scheduled"
	statusRunning   = "running"
	statusAbandoned = "abandoned"
	statusCanceled  = "canceled"
)

// completed says whether an execution has ended.
func completed(status string) bool {
	return slices.Contains([]string{"succeeded", "failed", "timeout", statusCanceled, statusAbandoned}, status)
}

// Sweeper is the step sweep_executions: executions that a fault left behind
// are ended, so that what waits for them goes on.
//
//   - running, and the runner's process is gone: abandoned at once, as the
//     runner itself does when it is stopped;
//   - a workflow that runs, and all of whose tasks ended some time ago:
//     cancelled, as StackStorm's garbage collector does;
//   - requested or scheduled for some time, while later ones were begun: its
//     message is lost; cancelled, for it never ran.
type Sweeper struct {
	API      *API
	Nodes    []host.Host   // of the cluster, as far as they can be reached: where runners can be
	Patience time.Duration // what is younger is left alone
	Own      string        // the execution that sweeps; it is none of them
	Now      func() time.Time
}

// Name is sweep_executions.
func (s *Sweeper) Name() string { return "sweep_executions" }

// Check says which executions cannot be judged, for their runner is on a node
// that is not among those given.
func (s *Sweeper) Check(ctx context.Context, _ host.Host) ([]step.Finding, error) {
	nodes, err := s.byHostname(ctx)
	if err != nil {
		return nil, err
	}
	running, err := s.old(ctx, statusRunning)
	if err != nil {
		return nil, err
	}
	var findings []step.Finding
	for _, e := range running {
		on := e.LiveAction.Runner.Hostname
		if isWorkflow(e) || on == "" || nodes[on] != nil {
			continue
		}
		findings = append(findings, step.Finding{Severity: step.Warning, Host: on, Check: "runner",
			Message: fmt.Sprintf("execution %s of %s runs on %s, which is none of the nodes: it is left alone", e.ID, e.Action.Ref, on),
			Fix:     "give that node's address as well"})
	}
	return findings, nil
}

// byHostname knows the nodes by the name that a runner gives its host.
func (s *Sweeper) byHostname(ctx context.Context) (map[string]host.Host, error) {
	nodes := map[string]host.Host{}
	for _, h := range s.Nodes {
		name, err := Hostname(ctx, h)
		if err != nil {
			return nil, err
		}
		nodes[name] = h
	}
	return nodes, nil
}

// Hostname is the name a host gives itself, and StackStorm calls it by
// (st2common/util/system_info.py).
func Hostname(ctx context.Context, h host.Host) (string, error) {
	f, err := h.ReadFile(ctx, "/proc/sys/kernel/hostname")
	return strings.TrimSpace(string(f.Data)), err
}

// old lists the executions that have been in a status for longer than Patience.
func (s *Sweeper) old(ctx context.Context, status string) ([]Execution, error) {
	list, err := s.API.Executions(ctx, url.Values{"status": {status}})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list, func(e Execution) bool {
		return e.ID == s.Own || s.Now().Sub(e.since()) < s.Patience && (status != statusRunning || isWorkflow(e) || s.Now().Sub(e.since()) < settled)
	}), nil
}

// settled is the age of what runs from which on its runner can be asked for:
// that a process is gone needs no more patience.
const settled = 30 * time.Second

func isWorkflow(e Execution) bool {
	return slices.Contains([]string{"orquesta", "action-chain"}, e.Runner.Name) // WORKFLOW_RUNNER_TYPES
}

// Plan finds them.
func (s *Sweeper) Plan(ctx context.Context, _ host.Host) ([]step.Change, error) {
	var changes []step.Change
	for _, find := range []func(context.Context) ([]step.Change, error){s.unclaimed, s.running} {
		found, err := find(ctx)
		if err != nil {
			return nil, err
		}
		changes = append(changes, found...)
	}
	return changes, nil
}

// unclaimed are those that no scheduler or runner will ever take.
func (s *Sweeper) unclaimed(ctx context.Context) ([]step.Change, error) {
	var changes []step.Change
	for _, status := range []string{statusRequested, statusScheduled} {
		list, err := s.old(ctx, status)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			later, err := s.overtaken(ctx, e)
			if err != nil {
				return nil, err
			}
			if later == "" {
				continue // the queue is long, or nobody runs at all: it may still be taken
			}
			changes = append(changes, &settle{Execution: e, API: s.API, to: statusCanceled,
				why: fmt.Sprintf("%s since %s, while the later %s was begun: its message is lost", e.Status, e.since().UTC().Format(time.RFC3339), later)})
		}
	}
	return changes, nil
}

// overtaken returns an execution of the same action that was requested later
// and has run; empty if there is none. One of another action proves less: a
// policy may hold back all of this one.
func (s *Sweeper) overtaken(ctx context.Context, e Execution) (string, error) {
	list, err := s.API.Executions(ctx, url.Values{"action": {e.Action.Ref}, "timestamp_gt": {e.Started.UTC().Format(timestamp)}})
	if err != nil {
		return "", err
	}
	for _, later := range list {
		if later.ID != e.ID && (later.Status == statusRunning || later.Status == "succeeded" || later.Status == "failed") {
			return later.ID, nil
		}
	}
	return "", nil
}

// timestamp is the form the API takes (openapi.yaml).
const timestamp = "2006-01-02T15:04:05.000000Z"

// running are those whose runner is gone, and workflows that wait for nothing.
func (s *Sweeper) running(ctx context.Context) ([]step.Change, error) {
	nodes, err := s.byHostname(ctx)
	if err != nil {
		return nil, err
	}
	list, err := s.old(ctx, statusRunning)
	if err != nil {
		return nil, err
	}
	own, err := s.ancestors(ctx)
	if err != nil {
		return nil, err
	}
	var changes []step.Change
	for _, e := range list {
		if own[e.ID] {
			continue
		}
		c := &settle{Execution: e, API: s.API}
		if isWorkflow(e) {
			c.to = statusCanceled
			c.why, err = s.idle(ctx, e)
		} else {
			c.to = statusAbandoned
			c.why, err = runnerGone(ctx, e, nodes[e.LiveAction.Runner.Hostname])
		}
		if err != nil {
			return nil, err
		}
		if c.why != "" {
			changes = append(changes, c)
		}
	}
	return changes, nil
}

// ancestors are the workflows that the sweep is a task of: they wait for it.
func (s *Sweeper) ancestors(ctx context.Context) (map[string]bool, error) {
	own := map[string]bool{}
	for id := s.Own; id != "" && !own[id]; {
		own[id] = true
		e, err := s.API.Execution(ctx, id)
		if err != nil {
			return nil, err
		}
		id = e.Parent
	}
	return own, nil
}

// idle says why a workflow waits for nothing; empty if it may wait. Between
// the end of one task and the start of the next there are milliseconds, or
// what a task's delay says: Patience is meant to be longer.
func (s *Sweeper) idle(ctx context.Context, e Execution) (string, error) {
	if e.Runner.Name != "orquesta" {
		return "", nil // an action-chain is its runner's process; its tasks end with it
	}
	tasks, err := s.API.Executions(ctx, url.Values{"parent": {e.ID}})
	if err != nil {
		return "", err
	}
	last := e.since()
	for _, t := range tasks {
		if !completed(t.Status) {
			return "", nil
		}
		if t.Ended.After(last) {
			last = t.Ended
		}
	}
	if s.Now().Sub(last) < s.Patience {
		return "", nil
	}
	if len(tasks) == 0 {
		return fmt.Sprintf("no task was begun since %s", last.UTC().Format(time.RFC3339)), nil
	}
	return fmt.Sprintf("all %d tasks have ended, the last at %s", len(tasks), last.UTC().Format(time.RFC3339)), nil
}

// runnerGone says why nobody runs an execution any more; empty if somebody
// may. The process that took it has put its number into it; a number that is
// another program's now does not count.
func runnerGone(ctx context.Context, e Execution, h host.Host) (string, error) {
	r := e.LiveAction.Runner
	if h == nil || r.PID == 0 {
		return "", nil
	}
	f, err := h.ReadFile(ctx, "/proc/"+strconv.Itoa(r.PID)+"/cmdline")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err == nil && strings.Contains(string(f.Data), runnerUnit) {
		return "", nil
	}
	return fmt.Sprintf("its runner, process %d on %s, is gone", r.PID, r.Hostname), nil
}

// Verify has nothing to prove: the API has taken each change.
func (s *Sweeper) Verify(context.Context, host.Host) error { return nil }

// settle ends one execution.
type settle struct {
	Execution
	API *API
	to  string
	why string
}

// Kind is "execution".
func (c *settle) Kind() string { return "execution" }

// Target is the execution's id.
func (c *settle) Target() string { return c.ID }

// Diff says why, and what becomes of it.
func (c *settle) Diff() string {
	return fmt.Sprintf("%s: %s → %s: %s", c.Execution.Action.Ref, c.Status, c.to, c.why)
}

// Apply ends it, unless it has moved on since.
func (c *settle) Apply(ctx context.Context, _ host.Host) error {
	now, err := c.API.Execution(ctx, c.ID)
	if err != nil {
		return err
	}
	if now.Status != c.Status {
		return nil
	}
	if c.to == statusCanceled {
		return c.API.Cancel(ctx, c.ID)
	}
	return c.API.Abandon(ctx, c.ID, "st2ha: "+c.why)
}

// Undo cannot bring it back.
func (c *settle) Undo(context.Context, host.Host) error {
	return fault.Failed("execution", "", "execution %s has ended for good", c.ID)
}
