package lab

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/incident"
)

// Who sees a fault.
const (
	sensor      = "sensor" // on the secondary
	onPrimary   = primary  // the primary's watchdog
	onSecondary = secondary
)

// The figures to reach, from the fault to the change of state.
const (
	killedLimit    = 25 * time.Millisecond // of 99 in 100
	suspectLimit   = 750 * time.Millisecond
	downLimit      = 3500 * time.Millisecond
	withdrawnLimit = 1500 * time.Millisecond
	hungLimit      = 7 * time.Second
	alarmLimit     = 500 * time.Millisecond
)

// want is what one observer has to see of one endpoint.
type want struct {
	by       string
	backend  string
	endpoint string // empty: any one
	states   string // in their order; those with a question mark may be missing, … is any
	suspect  time.Duration
	down     time.Duration
	reason   string // contained in that of down
}

// fault is a row of the table.
type fault struct {
	name  string
	fresh bool // with new watchers: what was out of reach in the rows before, too, would flap
	// made at the same time as the row before it: neither touches what the other does
	beside bool
	inject func(t *testing.T) time.Time // does it, and says when
	end    func(t *testing.T) time.Time // ends a fault that is none of the backend's own; says when
	repair func(t *testing.T) time.Time // what people do, where nothing heals by itself
	lasts  time.Duration                // before end or repair, if nothing has to be seen before
	wants  []want                       // the first one is the row's
	also   []string                     // others that may be down meanwhile
	healer string
	within time.Duration // all is well again by then; 90 s
	check  func(t assert.TestingT, events []seen)
	custom func(t *testing.T, v *verdict, f *faults, l *line) // in place of all that
}

// faults is the joined pair with all that watches it.
type faults struct {
	*observer
	writer   *writer
	table    *table
	repeated int      // rows that were made once more
	failed   []string // rows that were not as required, and why
}

// joined has the two nodes joined by today's program, and returns what proves
// that it was undone; nil if they were joined before.
func joined(t *testing.T) (untouched func(*testing.T)) {
	t.Helper()
	nodes := []string{"primary", "secondary"}
	if !strings.Contains(on(t, "secondary", "systemctl is-active st2ha-watchdog || true; mount -t nfs4"), packs) {
		untouched = installed(t, nodes...)
		o := action(t, "join_secondary", nil)
		require.Equal(t, "succeeded", o.Status, o.raw)
		settle(t, "primary")
	}
	for _, n := range nodes {
		on(t, n, "touch "+inUse)
		o := action(t, "install_watchdog",
			map[string]any{"host": map[string]string{"primary": primary, "secondary": secondary}[n]})
		require.Equal(t, "succeeded", o.Status, o.raw)
	}
	return untouched
}

// watched waits until the sensor's watcher has found that all is well; a new one
// tells so of each endpoint.
func (f *faults) watched(t *testing.T, mark int) {
	t.Helper()
	endpoints := map[string]string{mongo: "mongodb", rabbit: "rabbitmq", redis: "redis",
		nfsServer: "nfs", packs: "mount"}
	require.True(t, f.until(mark, 90*time.Second, func(events []seen) bool {
		for endpoint, backend := range endpoints {
			if (want{by: sensor, backend: backend, endpoint: endpoint}).first(events, incident.Up) == nil {
				return false
			}
		}
		return true
	}), "no watcher is there: %s", f.log())
	require.Empty(t, f.calm(3*time.Minute), "not all is well to begin with")
}

// run makes the faults of rows that go side by side, waits for what they ask
// for, and judges. What is not as required is made once more, three times in a
// table at most: in the lab several nodes share two cores, and any of them may
// stand still for seconds. The table has both attempts; with NO_REPEAT there is
// one. What is lost, or cannot be done, fails at once.
func (f *faults) run(t *testing.T, rows []fault) {
	for attempt := 1; ; attempt++ {
		if rows[0].fresh || attempt > 1 {
			require.Empty(t, f.calm(3*time.Minute), "not all is well before the fault")
			f.afresh(t, "primary", "secondary")
		}
		v := &verdict{T: t}
		f.once(t, v, rows)
		if len(v.not) == 0 || t.Failed() {
			break
		}
		t.Logf("not as required:%s", strings.Join(v.not, ""))
		if f.repeated++; attempt > 1 || f.repeated > 3 || os.Getenv("NO_REPEAT") != "" {
			f.failed = append(f.failed, names(rows)+strings.Join(v.not, ""))
			t.Fail()
			break
		}
	}
}

// names are those of rows that go side by side.
func names(rows []fault) string {
	var all []string
	for _, r := range rows {
		all = append(all, r.name)
	}
	return strings.Join(all, " and ")
}

// verdict is what is not as required, of one attempt.
type verdict struct {
	*testing.T
	not []string
}

func (v *verdict) Errorf(format string, args ...any) {
	v.not = append(v.not, fmt.Sprintf(format, args...))
}

// made is a row whose fault is made.
type made struct {
	fault
	*line
	at, over time.Time
}

// once is one attempt.
func (f *faults) once(t *testing.T, v *verdict, rows []fault) {
	require.Empty(t, f.calm(3*time.Minute), "not all is well before the fault")
	for _, n := range []string{"primary", "secondary"} {
		forget(t, n)
	}
	var all []*made
	within := 90 * time.Second
	for _, r := range rows {
		m := &made{fault: r, line: &line{fault: r.name, reported: "NOT TO THE END"}}
		f.table.add(m.line)
		all, within = append(all, m), max(within, r.within)
	}
	f.writer.late(t)
	mark, began := f.mark(), time.Now()
	defer func() {
		ok := !t.Failed() && len(v.not) == 0
		for _, m := range all {
			m.ok = ok && m.lost != ""
			t.Logf("%+v", *m.line)
		}
		if !ok {
			f.show(t, mark, began)
		}
	}()
	if custom := rows[0].custom; custom != nil {
		custom(t, v, f, all[0].line)
		all[0].note, all[0].lost = notes(f.ranSince(began)), f.writer.check(t)
		return
	}
	// came says whether each want of the first n rows has had its first event in a state.
	came := func(n int, events []seen, s incident.State, of func(want) bool) bool {
		for _, m := range all[:n] {
			for _, w := range m.wants {
				if of(w) && w.first(after(events, m.at), s) == nil {
					return false
				}
			}
		}
		return true
	}
	for i, m := range all {
		killed := len(m.wants) > 0 && m.wants[0].down == killedLimit
		if killed {
			f.writer.hold(t, m.wants[0].endpoint)
		}
		m.at = m.inject(t)
		m.over = m.at
		if killed {
			m.gone = f.writer.gone(t).Sub(m.at)
		}
		// The next one follows once this one was seen: so much takes its time, and its rule is the first one's.
		seenDown := f.until(mark, within,
			func(events []seen) bool { return came(i+1, events, incident.Down, want.hasDown) })
		assert.True(v, seenDown, "%s: not all was seen that had to be", m.name)
	}
	for _, m := range all {
		time.Sleep(time.Until(m.at.Add(m.lasts)))
		if m.end != nil {
			m.over = m.end(t)
		}
		if m.repair != nil {
			m.over = m.repair(t)
		}
	}
	f.until(mark, within, func(events []seen) bool {
		return came(len(all), events, incident.Up, func(want) bool { return true })
	})
	assert.Empty(v, f.calm(within), "not all is well again")
	actions, late := f.ranSince(began), f.writer.late(t)
	var expected []string
	for _, m := range all {
		events := after(f.from(mark), m.at)
		m.late = late
		for i, w := range m.wants {
			w.judge(v, events, m.at, m.over, m.line, i == 0)
		}
		expected = append(expected, m.expected()...)
		m.line.healer = m.healedBy(events, actions)
		assert.Equal(v, m.fault.healer, m.line.healer, "%s: healed by", m.name)
		if m.check != nil {
			m.check(v, events)
		}
	}
	unexpected(v, after(f.from(mark), all[0].at), expected...)
	lost := f.writer.check(t)
	for _, m := range all {
		m.note, m.lost = notes(actions), lost
	}
}

// forget has a node forget what was healed on it.
func forget(t *testing.T, node string) {
	t.Helper()
	on(t, node, "rm -rf /var/lib/st2ha/heals /var/lib/st2ha/maintenance")
}

// show logs all that was seen and done, for people to find out why.
func (f *faults) show(t *testing.T, mark int, began time.Time) {
	for _, e := range f.from(mark) {
		t.Logf("%s %s", e.At.Format("05.000"), e.line)
	}
	for _, a := range f.ranSince(began) {
		t.Logf("rule: %+v", a)
	}
}

// within fails if something took longer than its limit and the time by which a
// process that only sleeps was late on the node.
func (f *faults) within(v *verdict, l *line, took, limit time.Duration, what string) {
	v.Helper()
	l.late = max(l.late, f.writer.late(v.T))
	assert.LessOrEqual(v, took, limit+l.late, what)
}

// clocks is by how much those of two nodes may differ: a kernel reads the time at its start, to some 10 ms.
const clocks = 50 * time.Millisecond

// after leaves out what was detected before a moment: a watchdog's spool may
// bring an earlier fault's events late.
func after(events []seen, at time.Time) []seen {
	return slices.DeleteFunc(slices.Clone(events),
		func(e seen) bool { return e.Event.Event != "" && e.DetectedAt.Before(at.Add(-clocks)) })
}

// of returns the events of a want's endpoint, by its observer.
func (w want) of(events []seen) []seen {
	var all []seen
	for _, e := range events {
		if e.Event.Event != "" && e.by() == w.by && e.Backend == w.backend &&
			(w.endpoint == "" || e.Endpoint == w.endpoint) {
			all = append(all, e)
		}
	}
	return all
}

// sequence is the states that were seen, each with a blank after it.
func (w want) sequence(events []seen) string {
	var states strings.Builder
	for _, e := range w.of(events) {
		states.WriteString(string(e.State) + " ")
	}
	return states.String()
}

func arrows(states string) string { return strings.ReplaceAll(strings.TrimSpace(states), " ", " → ") }

func (w want) hasDown() bool { return regexp.MustCompile(`\bdown( |$)`).MatchString(w.states) }

// first returns the first of a want's events in a state.
func (w want) first(events []seen, s incident.State) *seen {
	for _, e := range w.of(events) {
		if e.State == s {
			return &e
		}
	}
	return nil
}

// incident is the events of the incident that a fault made: the one with a down,
// if that is wanted. slow counts the others, in which nothing was down: on a node
// that is short of CPU an answer may be late at any time.
func (w want) incident(events []seen) (its []seen, slow int) {
	all := w.of(events)
	id := ""
	ids := map[string]bool{}
	for _, e := range all {
		ids[e.ID] = true
		if id == "" || w.hasDown() && e.State == incident.Down {
			id = e.ID
		}
	}
	return slices.DeleteFunc(all, func(e seen) bool { return e.ID != id }), max(0, len(ids)-1)
}

// judge compares what was seen with what is wanted; the first want of a row
// also makes its line.
func (w want) judge(t *verdict, events []seen, at, over time.Time, l *line, first bool) {
	downs, wantDowns := 0, 0
	for _, e := range w.of(events) {
		if e.State == incident.Down {
			downs++
		}
	}
	if w.hasDown() {
		wantDowns = 1
	}
	who := fmt.Sprintf("%s %s, seen by %s", w.backend, w.endpoint, w.by)
	pattern := "^" + regexp.MustCompile(`(\w+)(\??) ?`).ReplaceAllString(w.states, "(?:$1 )$2") + "$"
	pattern = strings.ReplaceAll(pattern, "… ", `(?:\w+ )*`)
	events, slow := w.incident(events)
	assert.Regexp(t, pattern, w.sequence(events), who)
	if !strings.Contains(w.states, "down?") && !strings.Contains(w.states, "…") {
		assert.Equal(t, wantDowns, downs, "%s: times it was down", who)
	}
	suspect, down := w.first(events, incident.Suspect), w.first(events, incident.Down)
	up := w.first(events, incident.Up)
	var after []string
	for _, c := range []struct {
		name  string
		e     *seen
		limit time.Duration
	}{{"suspect", suspect, w.suspect}, {"down", down, w.down}} {
		if c.e == nil {
			if c.limit > 0 && c.name == "down" {
				assert.Fail(t, "never down", who)
			}
			continue
		}
		took := c.e.DetectedAt.Sub(at)
		said := fmt.Sprintf("%s %s", c.name, human(took))
		if first && l.gone > 0 {
			took -= l.gone
			said += fmt.Sprintf(", of its end %s", human(took))
		}
		if c.limit > 0 {
			said += " ≤ " + human(c.limit)
			assert.LessOrEqual(t, took, c.limit+l.late, "%s: %s", who, c.name)
		}
		after = append(after, said)
	}
	if w.reason != "" && down != nil {
		assert.Contains(t, down.Reason, w.reason, who)
	}
	if !first {
		t.Logf("%s: %s; %s", who, arrows(w.sequence(events)), strings.Join(after, ", "))
		return
	}
	l.states, l.detected = arrows(w.sequence(events)), strings.Join(after, ", ")
	l.reported = fmt.Sprintf("1 incident, %d down", downs)
	if slow > 0 {
		l.reported += fmt.Sprintf("; %d slow moments", slow)
	}
	if up != nil {
		l.healed = human(max(0, up.Since.Sub(over)))
	}
}

// expected are the backends that may be down.
func (r fault) expected() []string {
	all := slices.Clone(r.also)
	for _, w := range r.wants {
		all = append(all, w.backend)
	}
	return all
}

// unexpected fails on whatever else was down.
func unexpected(t assert.TestingT, events []seen, expected ...string) {
	for _, e := range events {
		if e.State == incident.Down && !slices.Contains(expected, e.Backend) {
			assert.Fail(t, "false down", "%s", e.line)
		}
	}
}

// healedBy is who healed, as events and rules tell.
func (r fault) healedBy(events []seen, actions []ran) string {
	var by []string
	for _, w := range r.wants {
		for _, e := range w.of(events) {
			if e.HealedBy != "" && !slices.Contains(by, e.HealedBy) {
				by = append(by, e.HealedBy)
			}
		}
	}
	for _, a := range actions {
		if name := "rule " + a.Rule; a.Changed && strings.Contains(r.healer, name) && !slices.Contains(by, name) {
			by = append(by, name)
		}
	}
	switch {
	case len(by) > 0:
		return strings.Join(by, ", ")
	case r.repair != nil:
		return "people"
	}
	return "itself"
}

// notes are what rules did, for the end of a line.
func notes(actions []ran) string {
	count := map[string]int{}
	var order []string
	for _, a := range actions {
		key := a.Rule + ": no need"
		switch {
		case a.Failed != "":
			key = a.Rule + ": failed"
		case a.Changed:
			key = a.Rule + ": healed"
		}
		if count[key]++; count[key] == 1 {
			order = append(order, key)
		}
	}
	for i, key := range order {
		if count[key] > 1 {
			order[i] = fmt.Sprintf("%s (%d)", key, count[key])
		}
	}
	slices.Sort(order)
	return strings.Join(order, ", ")
}

// human is a duration with three digits.
func human(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// moment runs a command on a node and returns when it began there, by the
// node's clock. before is done first.
func moment(t *testing.T, node, before, line string) time.Time {
	t.Helper()
	out := on(t, node, before+"\necho \"@$EPOCHREALTIME\"\n"+line)
	_, text, _ := strings.Cut(out, "@")
	text, _, _ = strings.Cut(text, "\n")
	seconds, micro, ok := strings.Cut(text, ".")
	require.True(t, ok, out)
	s, err := strconv.ParseInt(seconds, 10, 64)
	require.NoError(t, err)
	us, err := strconv.ParseInt(micro, 10, 64)
	require.NoError(t, err)
	return time.Unix(s, us*1000)
}

// signalling sends a signal to all processes of a name on a node.
func signalling(node, signal, process string) func(*testing.T) time.Time {
	return func(t *testing.T) time.Time {
		return moment(t, node, "p=$(pidof "+process+")", "kill -"+signal+" $p")
	}
}

// startedLongAgo waits on a node until a unit was started more than a minute ago: a
// watchdog leaves a younger one alone, since it may still be on its way up.
func startedLongAgo(unit string) string {
	return "until [ $(($(cut -d. -f1 /proc/uptime) - " +
		"$(systemctl show --property=ActiveEnterTimestampMonotonic --value " + unit + ") / 1000000)) -gt 61 ]; do sleep 1; done"
}

// running runs a command on a node.
func running(node, line string) func(*testing.T) time.Time {
	return func(t *testing.T) time.Time { return moment(t, node, "", line) }
}

// scripted runs one of the lab's verbs. It begins no sooner than is said.
func scripted(argv ...string) func(*testing.T) time.Time {
	return func(t *testing.T) time.Time {
		at := time.Now()
		lab(t, append([]string{"./lab.sh"}, argv...)...)
		return at
	}
}

// dropping drops all packets from one node to another, on the bridge between them.
func dropping(from, to string) func(*testing.T) time.Time {
	return func(t *testing.T) time.Time {
		t.Helper()
		table := fmt.Sprintf("table bridge faults { chain forward { type filter hook forward priority 0; iifname "+
			"\"tap-%s\" oifname \"tap-%s\" drop; }; }\n", from, to)
		at := time.Now()
		out, err := command([]byte(table), "./lab.sh", "exec", "nft", "-f", "-").CombinedOutput()
		require.NoError(t, err, string(out))
		return at
	}
}

// passing has packets pass again.
func passing(t *testing.T) time.Time {
	t.Helper()
	lab(t, "./lab.sh", "exec", "nft", "delete", "table", "bridge", "faults")
	return time.Now()
}

// writer uses the backends all the time, on the secondary.
type writer struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

const (
	written     = "/opt/stackstorm/packs/lab-writer" // on the mount
	writtenCopy = "/root/lab-writer-copy"
)

func newWriter(t *testing.T) *writer {
	t.Helper()
	on(t, "secondary", "pkill -x lab-writer || true")
	provide(t, "/usr/local/sbin/lab-writer", "./writer", []string{"secondary"})
	w := &writer{}
	w.start(t)
	t.Cleanup(func() {
		w.stop()
		on(t, "secondary", "timeout 60 rm -f "+written+" "+writtenCopy+" /usr/local/sbin/lab-writer")
	})
	return w
}

// stop ends it, as before a reboot.
func (w *writer) stop() {
	w.in.Close()
	_ = w.cmd.Wait()
}

// late is by how much a process that only sleeps has overslept on the node, at
// most, since it was asked last.
func (w *writer) late(t *testing.T) time.Duration {
	t.Helper()
	var answer struct{ Late int64 }
	w.ask(t, "late", &answer)
	return time.Duration(answer.Late) * time.Millisecond
}

// hold has it connected to a server, and gone returns when that had ended for
// all to see: a killed process's sockets close when the node's kernel is done
// with its memory.
func (w *writer) hold(t *testing.T, address string) {
	t.Helper()
	w.ask(t, "hold "+address, &struct{}{})
}

func (w *writer) gone(t *testing.T) time.Time {
	t.Helper()
	var answer struct{ Gone int64 }
	w.ask(t, "gone", &answer)
	return time.UnixMicro(answer.Gone)
}

// answered is how many writes a backend took, and acknowledged, in a time. ok is
// whether the writer uses that backend at all.
func (w *writer) answered(t *testing.T, b string, from, to time.Time) (count int, ok bool) {
	t.Helper()
	kind, ok := map[string]string{"mongodb": "mongodb", "rabbitmq": "rabbitmq",
		"nfs": "file", "mount": "file"}[b]
	if !ok {
		return 0, false
	}
	var answer struct{ Answered int }
	w.ask(t, fmt.Sprintf("answered %s %d %d", kind, from.UnixMicro(), to.UnixMicro()), &answer)
	return answer.Answered, true
}

func (w *writer) ask(t *testing.T, question string, answer any) {
	t.Helper()
	_, err := io.WriteString(w.in, question+"\n")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- w.out.Decode(answer) }()
	select {
	case err := <-done:
		require.NoError(t, err)
	case <-time.After(2 * time.Minute):
		require.Fail(t, "the writer does not answer", question)
	}
}

// start begins anew, as after a reboot.
func (w *writer) start(t *testing.T) {
	t.Helper()
	on(t, "secondary", "rm -f "+written+" "+writtenCopy)
	w.cmd = exec.Command("ssh", "-F", os.Getenv("LAB")+"/ssh_config", "-o", "ControlPath=none", "-o",
		"ServerAliveCountMax=40", "secondary", "exec lab-writer "+written+" "+writtenCopy)
	w.cmd.Stderr = os.Stderr
	var err error
	w.in, err = w.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := w.cmd.StdoutPipe()
	require.NoError(t, err)
	w.out = json.NewDecoder(out)
	require.NoError(t, w.cmd.Start())
}

// check compares what was acknowledged with what is there.
func (w *writer) check(t *testing.T) string {
	t.Helper()
	var all map[string]struct {
		Acknowledged int
		Missing      []int
	}
	w.ask(t, "check", &all)
	var total, lost int
	for kind, k := range all {
		total += k.Acknowledged
		lost += len(k.Missing)
		assert.Empty(t, k.Missing, "%s: acknowledged, and lost", kind)
		assert.NotZero(t, k.Acknowledged, "%s: nothing was written", kind)
	}
	own := on(t, "secondary", "cat "+writtenCopy) // first: it goes on being written
	if there := on(t, "primary", "cat "+written); !bytes.HasPrefix([]byte(there), []byte(own)) {
		assert.Fail(t, "the file on the primary is not what was written on the secondary")
		lost++
	}
	if lost > 0 {
		return fmt.Sprintf("%d of %d", lost, total)
	}
	return fmt.Sprintf("none of %d", total)
}
