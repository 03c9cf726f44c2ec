package stackstorm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/rabbitmq"
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
//   - a workflow that runs, and all of whose tasks ended some time ago;
//   - requested or scheduled for some time, while later ones were begun.
//
// The last two are only reported, unless Cancel asks for their end: a slow
// engine may still move them (st2#5275: a workflow stood for 8 minutes, and
// then ran). Even then they are ended only where nothing can: see movable.
type Sweeper struct {
	API      *API
	Nodes    []host.Host   // of the cluster, as far as they can be reached: where runners and engines can be
	Away     []string      // the nodes that cannot be reached
	Patience time.Duration // what is younger is left alone
	Cancel   bool          // end what nothing can move any more
	Own      string        // the execution that sweeps; it is none of them
	Now      func() time.Time

	seen *judgement // what Check has found, for the Plan that follows it
}

// judgement is what is to be ended, and what is only reported.
type judgement struct {
	changes  []step.Change
	findings []step.Finding
}

// Name is sweep_executions.
func (s *Sweeper) Name() string { return "sweep_executions" }

// Check reports what stands still and is not ended, and which executions
// cannot be judged, for their runner is on a node that is not among those given.
func (s *Sweeper) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	j, err := s.judge(ctx, h)
	if err != nil {
		return nil, err
	}
	s.seen = j
	return j.findings, nil
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
	list, _, err := s.API.Executions(ctx, url.Values{"status": {status}}) // the next sweep has the rest
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list, func(e Execution) bool {
		return e.ID == s.Own || s.Now().Sub(e.since()) < s.Patience &&
			(status != statusRunning || isWorkflow(e) || s.Now().Sub(e.since()) < settled)
	}), nil
}

// settled is the age of what runs from which on its runner can be asked for:
// that a process is gone needs no more patience.
const settled = 30 * time.Second

func isWorkflow(e Execution) bool {
	return slices.Contains([]string{"orquesta", "action-chain"}, e.Runner.Name) // WORKFLOW_RUNNER_TYPES
}

// Plan finds them.
func (s *Sweeper) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	j := s.seen
	s.seen = nil // another Plan looks again
	if j == nil {
		var err error
		if j, err = s.judge(ctx, h); err != nil {
			return nil, err
		}
	}
	return j.changes, nil
}

// judge looks at all executions that have not ended. h is a node whose st2.conf names the broker.
func (s *Sweeper) judge(ctx context.Context, h host.Host) (*judgement, error) {
	j := &judgement{}
	for _, look := range []func(context.Context, host.Host, *judgement) error{s.unclaimed, s.running} {
		if err := look(ctx, h, j); err != nil {
			return nil, err
		}
	}
	return j, nil
}

// addStuck notes an execution that makes no progress: as a change if nothing can
// move it any more and its end is asked for, else as a finding.
func (s *Sweeper) addStuck(ctx context.Context, h host.Host, j *judgement, c *endExecution, unit string,
	since time.Time) error {
	c.to = statusCanceled
	fix := "look at it; st2ha.sweep_executions with cancel=true ends it if nothing can move it any more, st2 " +
		"execution cancel " + c.ID + " in any case"
	if s.Cancel {
		mover, how, err := s.movable(ctx, h, unit, since)
		if err != nil {
			return err
		}
		if mover == "" {
			j.changes = append(j.changes, c)
			return nil
		}
		c.why, fix = c.why+"; it is not ended, for "+mover, how
	}
	j.findings = append(j.findings, step.Finding{Severity: step.Warning, Host: h.Name(), Check: "stands_still",
		Message: fmt.Sprintf("execution %s of %s is %s: %s", c.ID, c.Execution.Action.Ref, c.Status, c.why), Fix: fix})
	return nil
}

// movable says what can still move an execution that stands still since a
// time, and what to do about that; empty if nothing can. StackStorm's services
// acknowledge a message when they take it into their memory, and work on it
// when they have a thread to spare (st2common/transport/consumers.py: process
// acknowledges whatever comes of it), so an empty queue alone proves nothing:
// each process that was there at that time may still hold the message.
func (s *Sweeper) movable(ctx context.Context, h host.Host, unit string,
	since time.Time) (what, how string, err error) {
	if len(s.Away) > 0 {
		return fmt.Sprintf("%s cannot be reached, and may be at work on it", strings.Join(s.Away, ", ")),
			"bring that node back, or take it out of nodes if it is gone for good", nil
	}
	conf, err := ReadConf(ctx, h)
	if err != nil {
		return "", "", err
	}
	login, err := conf.Broker()
	if err != nil {
		return "", "", err
	}
	prefix := conf.Prefix()
	var names []string
	for _, queue := range Queues(unit) {
		names = append(names, prefix+"."+queue)
	}
	queues, err := rabbitmq.Inspect(ctx, h, login, names...)
	if err != nil {
		return "", "", fmt.Errorf("%s: look at the queues of %s at RabbitMQ %s: %w", h.Name(), unit, login.Addr, err)
	}
	for _, name := range names {
		switch q := queues[name]; {
		case q.Consumers == 0:
			return "nobody consumes the queue " + name, "st2ha.recover_st2_services starts " + unit + " again", nil
		case q.Messages > 0:
			return fmt.Sprintf("%d messages wait in the queue %s", q.Messages, name),
				"wait until the queue is empty", nil
		}
	}
	for _, node := range s.Nodes {
		at, err := oldest(ctx, node, unit, s.Now())
		if err != nil {
			return "", "", err
		}
		if !at.IsZero() && !at.After(since) {
			return fmt.Sprintf("%s on %s runs since before that, and may hold it in its memory", unit, node.Name()),
				"systemctl restart " + unit + " on " + node.Name() + ", then sweep again", nil
		}
	}
	return "", "", nil
}

// oldest is when the service's process on a host that lives longest was begun,
// to the second; zero if there is none (ps(1): etimes).
func oldest(ctx context.Context, h host.Host, service string, now time.Time) (time.Time, error) {
	out, err := h.Run(ctx, nil, "ps", "-e", "-o", "etimes=,args=")
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: list the processes: %w", h.Name(), err)
	}
	var first time.Time
	for _, line := range strings.Split(string(out), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 2 || !slices.ContainsFunc(fields[1:],
			func(arg string) bool { return path.Base(arg) == service }) {
			continue
		}
		seconds, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return time.Time{}, fmt.Errorf("%s: ps answered %q", h.Name(), line)
		}
		// One second more, for ps rounds down.
		if at := now.Add(-time.Duration(seconds+1) * time.Second); first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first, nil
}

// unclaimed are those that no scheduler or runner seems to take.
func (s *Sweeper) unclaimed(ctx context.Context, h host.Host, j *judgement) error {
	for status, unit := range map[string]string{statusRequested: "st2scheduler", statusScheduled: runnerUnit} {
		list, err := s.old(ctx, status)
		if err != nil {
			return err
		}
		for _, e := range list {
			// One with a delay is requested until that is over (st2common/services/workflows.py).
			if s.Now().Before(e.since().Add(time.Duration(e.Delay)*time.Millisecond + s.Patience)) {
				continue
			}
			later, err := s.overtaken(ctx, e)
			if err != nil {
				return err
			}
			if later == "" {
				continue // the queue is long, or nobody runs at all: it may still be taken
			}
			c := &endExecution{Execution: e, API: s.API,
				why: fmt.Sprintf("%s since %s, while the later %s was begun: its message may be lost",
					e.Status, e.since().UTC().Format(time.RFC3339), later)}
			if err := s.addStuck(ctx, h, j, c, unit, e.since()); err != nil {
				return err
			}
		}
	}
	return nil
}

// overtaken returns an execution of the same action that was requested later
// and has run; empty if there is none. One of another action proves less: a
// policy may hold back all of this one.
func (s *Sweeper) overtaken(ctx context.Context, e Execution) (string, error) {
	for _, status := range []string{"succeeded", "failed", statusRunning} {
		later, found, err := s.API.First(ctx,
			url.Values{"action": {e.Action.Ref}, "status": {status},
				"timestamp_gt": {e.Started.UTC().Format(timestamp)}})
		if err != nil || found {
			return later.ID, err
		}
	}
	return "", nil
}

// timestamp is the form the API takes (openapi.yaml).
const timestamp = "2006-01-02T15:04:05.000000Z"

// running are those whose runner is gone, and workflows that wait for nothing.
func (s *Sweeper) running(ctx context.Context, h host.Host, j *judgement) error {
	nodes, err := s.byHostname(ctx)
	if err != nil {
		return err
	}
	list, err := s.old(ctx, statusRunning)
	if err != nil {
		return err
	}
	own, err := s.ancestors(ctx)
	if err != nil {
		return err
	}
	for _, e := range list {
		on := e.LiveAction.Runner.Hostname
		switch {
		case own[e.ID]:
		case isWorkflow(e):
			c := &endExecution{Execution: e, API: s.API, again: func(ctx context.Context) (string, error) {
				why, _, err := s.idle(ctx, e)
				return why, err
			}}
			var since time.Time
			if c.why, since, err = s.idle(ctx, e); err != nil {
				return err
			}
			if c.why != "" {
				err = s.addStuck(ctx, h, j, c, "st2workflowengine", since)
			}
		case on != "" && nodes[on] == nil:
			j.findings = append(j.findings, step.Finding{Severity: step.Warning, Host: on, Check: "runner",
				Message: fmt.Sprintf("execution %s of %s runs on %s, which is not one of the nodes: it is left alone",
					e.ID, e.Action.Ref, on),
				Fix: "give that node's address as well"})
		default:
			c := &endExecution{Execution: e, API: s.API, to: statusAbandoned}
			if c.why, err = runnerGone(ctx, e, nodes[on]); err == nil && c.why != "" {
				j.changes = append(j.changes, c)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
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

// idle says why a workflow seems to wait for nothing, and since when; empty if
// it may wait. Between the end of one task and the start of the next there are
// milliseconds, or what a task's retry says: Patience is meant to be longer. A
// task that has a delay, is paused or is asked about has not ended.
func (s *Sweeper) idle(ctx context.Context, e Execution) (string, time.Time, error) {
	last := e.since()
	if e.Runner.Name != "orquesta" {
		return "", last, nil // an action-chain is its runner's process; its tasks end with it
	}
	tasks, whole, err := s.API.Executions(ctx, url.Values{"parent": {e.ID}})
	if err != nil || !whole { // one that is left out may be what it waits for
		return "", last, err
	}
	for _, t := range tasks {
		if !completed(t.Status) {
			return "", last, nil
		}
		if t.Ended.After(last) {
			last = t.Ended
		}
	}
	if s.Now().Sub(last) < s.Patience {
		return "", last, nil
	}
	if len(tasks) == 0 {
		return fmt.Sprintf("no task was begun since %s", last.UTC().Format(time.RFC3339)), last, nil
	}
	return fmt.Sprintf("all %d tasks have ended, the last at %s", len(tasks),
		last.UTC().Format(time.RFC3339)), last, nil
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

// endExecution ends one execution.
type endExecution struct {
	Execution
	API *API
	to  string
	why string
	// again looks once more right before the end: empty if it moves after all.
	again func(context.Context) (why string, err error)
}

// Kind is "execution".
func (c *endExecution) Kind() string { return "execution" }

// Target is the execution's id.
func (c *endExecution) Target() string { return c.ID }

// Diff says why, and what becomes of it.
func (c *endExecution) Diff() string {
	return fmt.Sprintf("%s: %s → %s: %s", c.Execution.Action.Ref, c.Status, c.to, c.why)
}

// Apply ends it, unless it has moved on since.
func (c *endExecution) Apply(ctx context.Context, h host.Host) error {
	now, err := c.API.Execution(ctx, c.ID)
	if err != nil {
		return err
	}
	if now.Status != c.Status {
		return nil
	}
	if c.again != nil {
		if why, err := c.again(ctx); err != nil || why == "" {
			return err
		}
	}
	if c.to == statusCanceled {
		return c.API.Cancel(ctx, c.ID)
	}
	err = c.API.Abandon(ctx, c.ID, "st2ha: "+c.why)
	var refused *refusal
	if !errors.As(err, &refused) || refused.code != http.StatusBadRequest {
		return err
	}
	// It may have ended a moment ago. But a runner that cannot publish stores an action's end in the live action
	// only, and then no call ends the execution (st2api/controllers/v1/actionexecutions.py: put looks at the former).
	if now, again := c.API.Execution(ctx, c.ID); again != nil || now.Status != c.Status {
		return again
	}
	fix := "nothing waits for it"
	if c.Parent != "" {
		fix = "only " + c.Parent + " waits for it: st2 execution cancel " + c.Parent + " ends that"
	}
	return &step.LeftError{Finding: step.Finding{Severity: step.Warning, Host: h.Name(), Check: "half_ended",
		Message: fmt.Sprintf("execution %s of %s stays %s: %s, and its live action has ended (%v)", c.ID,
			c.Execution.Action.Ref, c.Status, c.why, refused),
		Fix: fix + "; no call of StackStorm's API ends this one: it stays until its status is changed in the database"}}
}

// Undo cannot bring it back.
func (c *endExecution) Undo(context.Context, host.Host) error {
	return fault.Failed("execution", "", "execution %s has ended, and cannot be started again", c.ID)
}
