package lab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/heal"
	"st2ha/internal/incident"
)

// TestFaults makes all kinds of faults on a joined pair, one after the other, or
// side by side where a row says so, and shows how each is seen and healed. What
// healing did leaves nothing behind: the join can be undone as if none of it had
// been. In a lab that was up before, the nodes stay joined.
func TestFaults(t *testing.T) {
	needs(t, kernelNFS, ownDisk, standstill)
	untouched := joined(t)
	var failed []string
	t.Run("faults", func(t *testing.T) { failed = seenAndHealed(t) })
	if !given {
		t.Run("undone", func(t *testing.T) { undone(t, untouched) })
	}
	for _, row := range failed { // last, where people look first
		t.Logf("fault %s", row)
	}
}

// undone rolls the pair back, and proves that it is as it was.
func undone(t *testing.T, untouched func(*testing.T)) {
	t.Helper()
	for _, host := range []string{secondary, primary} {
		r := st2ha(t, "primary", "rollback", "--host="+host)
		require.Zero(t, r.exit, r.raw)
	}
	settle(t, "secondary")
	settle(t, "primary")
	untouched(t)
}

// seenAndHealed makes the rows' faults. It returns what was not as required.
func seenAndHealed(t *testing.T) (failed []string) {
	f := &faults{observer: newObserver(t), table: newTable()}
	t.Cleanup(func() { f.table.print(t) })
	f.enable(false) // the queue may hold what happened before
	for _, node := range []string{"primary", "secondary"} {
		on(t, node, "rm -f /var/lib/st2ha/maintenance") // the join silences healing for a minute more
	}
	f.watchFrom("secondary")
	t.Cleanup(func() {
		f.stop()
		on(t, "secondary", "rm -rf "+spool)
		if t.Failed() {
			t.Log(f.log())
		}
	})
	f.watched(t, 0)
	f.enable(true)
	f.writer = newWriter(t)
	for all := rows(t); len(all) > 0; {
		n := 1
		for n < len(all) && all[n].beside {
			n++
		}
		t.Run(names(all[:n]), func(t *testing.T) { f.run(t, all[:n]) })
		all = all[n:]
	}
	return f.failed
}

// spool is where the sensor of a user without a home keeps its events and builds.
const spool = "/opt/stackstorm/exports/st2ha"

// seen is one trigger that the sensor dispatched.
type seen struct {
	incident.Event            // zero unless it is a change of state
	Heal           heal.Event // zero unless it is about healing
	Trigger        string
	At             time.Time // when the line was read on this machine
	line           []byte
}

// by says who saw it: the sensor, or a node's watchdog.
func (s seen) by() string {
	if s.Source == "sensor" {
		return s.Source
	}
	return s.Node
}

// ran is one action that a rule began.
type ran struct {
	Rule    string
	Host    string
	Began   time.Time
	Took    time.Duration
	Changed bool
	Failed  string
}

// observer reads what the pack's sensor dispatches on a node, and has the
// pack's rules run their actions, as long as StackStorm could.
type observer struct {
	t     *testing.T
	dir   string
	rules *rules

	mu      sync.Mutex
	all     []seen
	news    chan struct{} // closed and made anew with each trigger
	states  map[string]incident.State
	waiting []seen // for StackStorm to be able to act
	busy    int    // actions and decisions under way
	ran     []ran
	off     bool // the rules are disabled
	runner  sync.Mutex
	queued  sync.Map // actions that wait for runner, with their parameters

	stop func()
}

func newObserver(t *testing.T) *observer {
	t.Helper()
	return &observer{t: t, dir: t.TempDir(), rules: newRules(t), news: make(chan struct{}),
		states: map[string]incident.State{}}
}

// watchFrom runs the sensor on a node, as the user whom StackStorm's sensor
// container has, who has no home, and with the environment that systemd gives
// that. After a reboot it is there again.
func (o *observer) watchFrom(node string) {
	o.t.Helper()
	archive, err := command(nil, "tar", "-c", "-C", "../sensor", "st2reactor", "-C", "../lab", "container.py").Output()
	require.NoError(o.t, err)
	out, err := command(archive, "./lab.sh", "ssh", node,
		"mkdir -p /usr/local/lib/lab-sensor && tar -x -C /usr/local/lib/lab-sensor").CombinedOutput()
	require.NoError(o.t, err, string(out))
	stopped, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			o.run(node, stopped)
			select {
			case <-stopped:
				return
			case <-time.After(time.Second):
			}
		}
	}()
	o.stop = func() {
		close(stopped)
		<-ended
		for o.working() {
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// run runs the sensor until it ends or is stopped. It has an ssh connection of
// its own, which ends soon when the node does.
func (o *observer) run(node string, stopped <-chan struct{}) {
	c := exec.Command("ssh", "-F", os.Getenv("LAB")+"/ssh_config", "-o", "ControlPath=none", "-o", "ConnectTimeout=5",
		"-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=40", node,
		"test -e /opt/stackstorm/packs/st2ha/sensors/backend_sensor.py && cd / && exec setpriv --reuid=st2 "+
			"--regid=st2 --init-groups --reset-env python3 -B /usr/local/lib/lab-sensor/container.py")
	log, err := os.OpenFile(filepath.Join(o.dir, "sensor.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		o.t.Error(err)
		return
	}
	defer log.Close()
	c.Stderr = log
	in, _ := c.StdinPipe()
	out, _ := c.StdoutPipe()
	if err := c.Start(); err != nil {
		o.t.Error(err)
		return
	}
	ended := make(chan struct{})
	go func() {
		select {
		case <-stopped:
			in.Close()
		case <-ended:
		}
	}()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		o.take(slices.Clone(lines.Bytes()))
	}
	close(ended)
	_ = c.Wait()
}

// log is what the sensor has logged.
func (o *observer) log() string {
	data, _ := os.ReadFile(filepath.Join(o.dir, "sensor.log"))
	return string(data)
}

func (o *observer) take(line []byte) {
	s := seen{At: time.Now(), line: line}
	var l struct {
		Trigger string
		Payload json.RawMessage
	}
	if err := json.Unmarshal(line, &l); err != nil {
		o.t.Errorf("the sensor printed %q", line)
		return
	}
	s.Trigger = l.Trigger
	var err error
	if l.Trigger == "st2ha."+incident.Changed {
		err = json.Unmarshal(l.Payload, &s.Event)
	} else {
		err = json.Unmarshal(l.Payload, &s.Heal)
	}
	if err != nil {
		o.t.Errorf("%s: %v", line, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = append(o.all, s)
	if s.Event.Event != "" {
		o.states[fmt.Sprintf("%s %s %s", s.by(), s.Backend, s.Endpoint)] = s.State
	}
	close(o.news)
	o.news = make(chan struct{})
	o.waiting = append(o.waiting, s)
	if !o.able() {
		return
	}
	for _, w := range o.waiting {
		o.busy++
		go o.decide(w, !o.off)
	}
	o.waiting = nil
}

// able says whether StackStorm can act: without its broker or database no
// trigger is dispatched and no rule runs.
func (o *observer) able() bool {
	for key, state := range o.states {
		if state == incident.Down && (strings.Contains(key, " mongodb ") || strings.Contains(key, " rabbitmq ")) {
			return false // whoever was the first to see it
		}
	}
	return true
}

// decide runs the actions of the rules that take a trigger. One whose payload
// StackStorm refuses fails the test.
func (o *observer) decide(s seen, enabled bool) {
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.busy--
	}()
	matches, err := o.rules.matching(s.line)
	if err != nil {
		o.t.Errorf("rules: %v", err)
		return
	}
	if !enabled {
		return
	}
	for _, m := range matches {
		if strings.HasPrefix(m.Rule, "sweep_") {
			continue // it asks StackStorm's API, which the lab has not
		}
		// One at a time, for the lab has two CPUs. One that is still to begin does it for all that are alike.
		what := fmt.Sprint(m.Action, m.Parameters)
		if _, waits := o.queued.LoadOrStore(what, true); waits {
			continue
		}
		o.runner.Lock()
		o.queued.Delete(what)
		r := ran{Rule: m.Rule, Began: time.Now()}
		r.Host, _ = m.Parameters["host"].(string)
		out, err := stackstorm{node: "primary"}.try(o.t, strings.TrimPrefix(m.Action, "st2ha."), m.Parameters)
		r.Took = time.Since(r.Began)
		switch {
		case err != nil:
			r.Failed = err.Error()
		case out.Status != "succeeded":
			r.Failed = out.Output.Stdout.Error.Code + ": " + out.Output.Stdout.Error.Message
		default:
			r.Changed = out.Output.Stdout.Changed
		}
		o.runner.Unlock()
		o.mu.Lock()
		o.ran = append(o.ran, r)
		o.mu.Unlock()
	}
}

// mark is where the triggers to come begin.
func (o *observer) mark() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.all)
}

// from returns the triggers since a mark.
func (o *observer) from(mark int) []seen {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.all[mark:])
}

// ranSince returns the rules' actions that began after a moment.
func (o *observer) ranSince(at time.Time) []ran {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(o.ran), func(r ran) bool { return r.Began.Before(at) })
}

// until waits for what is asked of the triggers since a mark.
func (o *observer) until(mark int, limit time.Duration, met func([]seen) bool) bool {
	end := time.NewTimer(limit)
	defer end.Stop()
	for {
		o.mu.Lock()
		news := o.news
		o.mu.Unlock()
		if met(o.from(mark)) {
			return true
		}
		select {
		case <-news:
		case <-end.C:
			return false
		}
	}
}

// calm waits until all is up and no rule is at work, and returns what is not.
func (o *observer) calm(limit time.Duration) []string {
	for end := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		var not []string
		o.mu.Lock()
		for key, state := range o.states {
			if state != incident.Up {
				not = append(not, key+" "+string(state))
			}
		}
		if o.busy > 0 {
			not = append(not, fmt.Sprintf("%d rules at work", o.busy))
		}
		o.mu.Unlock()
		if len(not) == 0 || time.Now().After(end) {
			slices.Sort(not)
			return not
		}
	}
}

// working says whether an action of a rule is under way.
func (o *observer) working() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.busy > 0
}

// enable switches the rules off or on.
func (o *observer) enable(on bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.off = !on
}

// rules is the pack's rules at work.
type rules struct {
	mu  sync.Mutex
	in  io.WriteCloser
	out *bufio.Scanner
}

type match struct {
	Rule, Action string
	Parameters   map[string]any
}

func newRules(t *testing.T) *rules {
	t.Helper()
	python, err := command(nil, "../workflow/setup.sh").Output()
	require.NoError(t, err)
	c := exec.Command(strings.TrimSpace(string(python)), "../workflow/rules.py", "--pack", "../..")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	in, err := c.StdinPipe()
	require.NoError(t, err)
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		in.Close()
		require.NoError(t, c.Wait(), stderr.String())
	})
	return &rules{in: in, out: bufio.NewScanner(out)}
}

func (r *rules) matching(line []byte) ([]match, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, err := r.in.Write(append(slices.Clone(line), '\n')); err != nil {
		return nil, err
	}
	if !r.out.Scan() {
		return nil, io.ErrUnexpectedEOF
	}
	var refused struct{ Refused string }
	if json.Unmarshal(r.out.Bytes(), &refused) == nil {
		return nil, errors.New(refused.Refused)
	}
	var all []match
	return all, json.Unmarshal(r.out.Bytes(), &all)
}
