package stackstorm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// st2api stands in for StackStorm's API over real HTTP, as far as a sweep uses
// it: pages, filters, and the rules of who may be cancelled or updated
// (st2api/controllers/v1/actionexecutions.py).
type st2api struct {
	*httptest.Server
	mu         sync.Mutex
	executions []map[string]any
	dispatched []map[string]any
	calls      []string
	broken     int // status of every answer, if set
}

const token = "t0ken"

func newST2API(t *testing.T, executions ...map[string]any) *st2api {
	a := &st2api{executions: executions}
	a.Server = httptest.NewServer(http.HandlerFunc(a.serve))
	t.Cleanup(a.Close)
	return a
}

func (a *st2api) api(t *testing.T) *API {
	api, err := NewAPI(a.URL+"/v1", token)
	require.NoError(t, err)
	return api
}

func (a *st2api) serve(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	refuse := func(status int, words string) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"faultstring": words})
	}
	switch {
	case a.broken != 0:
		refuse(a.broken, "MongoDB is away")
		return
	case r.Header.Get("X-Auth-Token") != token:
		refuse(http.StatusUnauthorized, "Unauthorized - Token not found")
		return
	}
	id := strings.TrimPrefix(r.URL.Path, "/v1/executions/")
	a.calls = append(a.calls, r.Method+" "+r.URL.Path)
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/v1/executions":
		a.list(w, r.URL.Query())
		return
	case r.Method == http.MethodPost && r.URL.Path == "/v1/webhooks/st2":
		var body map[string]any
		_ = json.NewDecoder(r.Body).Decode(&body)
		a.dispatched = append(a.dispatched, body)
		w.WriteHeader(http.StatusAccepted)
		_ = json.NewEncoder(w).Encode(body)
		return
	}
	i := slices.IndexFunc(a.executions, func(e map[string]any) bool { return e["id"] == id })
	if i < 0 {
		refuse(http.StatusNotFound, "Execution with id "+id+" not found.")
		return
	}
	e := a.executions[i]
	switch r.Method {
	case http.MethodDelete:
		e["status"] = "canceled"
	case http.MethodPut:
		if completed(e["status"].(string)) || e["half_ended"] != nil {
			refuse(http.StatusBadRequest, "Execution is already in completed state.")
			return
		}
		var body map[string]any
		_ = json.NewDecoder(r.Body).Decode(&body)
		for key, value := range body {
			if key != "status" && key != "result" {
				refuse(http.StatusBadRequest, "Additional properties are not allowed")
				return
			}
			e[key] = value
		}
	}
	_ = json.NewEncoder(w).Encode(e)
}

func (a *st2api) list(w http.ResponseWriter, q url.Values) {
	var found []map[string]any
	for _, e := range a.executions {
		action := e["action"].(map[string]any)["ref"]
		after, err := time.Parse(time.RFC3339, q.Get("timestamp_gt"))
		started, _ := time.Parse(time.RFC3339, e["start_timestamp"].(string))
		if (q.Get("status") == "" || q.Get("status") == e["status"]) &&
			(q.Get("parent") == "" || q.Get("parent") == e["parent"]) &&
			(q.Get("action") == "" || q.Get("action") == action) && (err != nil || started.After(after)) {
			found = append(found, e)
		}
	}
	limit, _ := strconv.Atoi(q.Get("limit"))
	offset, _ := strconv.Atoi(q.Get("offset"))
	w.Header().Set("X-Total-Count", strconv.Itoa(len(found)))
	page := found[min(offset, len(found)):min(offset+min(limit, 100), len(found))]
	_ = json.NewEncoder(w).Encode(append([]map[string]any{}, page...))
}

var sweepTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// execution was begun, and came into its status, some minutes ago.
func execution(id, status string, minutes int, more map[string]any) map[string]any {
	at := sweepTime.Add(-time.Duration(minutes) * time.Minute).Format("2006-01-02T15:04:05.000000Z")
	e := map[string]any{"id": id, "status": status, "start_timestamp": at,
		"action": map[string]any{"ref": "core.local"},
		"runner": map[string]any{"name": "local-shell-cmd"}, "liveaction": map[string]any{"id": "l" + id},
		"log": []map[string]any{{"status": "requested", "timestamp": at}, {"status": status, "timestamp": at}}}
	if completed(status) {
		e["end_timestamp"] = at
	}
	for key, value := range more {
		e[key] = value
	}
	return e
}

func workflow() map[string]any {
	return map[string]any{"runner": map[string]any{"name": "orquesta"}, "action": map[string]any{"ref": "deploy.all"}}
}

func task(parent string) map[string]any { return map[string]any{"parent": parent} }

func ranBy(hostname string, pid int) map[string]any {
	return map[string]any{"liveaction": map[string]any{"runner_info": map[string]any{"hostname": hostname, "pid": pid}}}
}

// newSweeper has two nodes; on each runs an action runner with the number 100,
// and something else with the number 200.
func newSweeper(t *testing.T, a *st2api) *Sweeper {
	var nodes []host.Host
	for _, name := range []string{"node1", "node2"} {
		m := newMachine(t, name, "")
		for file, data := range map[string]string{
			"/proc/sys/kernel/hostname": name + "\n",
			"/proc/100/cmdline":         "/opt/stackstorm/st2/bin/python\x00/opt/stackstorm/st2/bin/st2actionrunner\x00--config-file\x00/etc/st2/st2.conf\x00",
			"/proc/200/cmdline":         "/usr/sbin/cron\x00-f\x00",
		} {
			require.NoError(t, os.MkdirAll(m.root+file[:strings.LastIndex(file, "/")], 0o755))
			m.put(t, file, data)
		}
		nodes = append(nodes, m)
	}
	return &Sweeper{API: a.api(t), Nodes: nodes, Patience: 5 * time.Minute, Own: "own",
		Now: func() time.Time { return sweepTime }}
}

func TestSweep(t *testing.T) {
	executions := []map[string]any{
		execution("own-workflow", "running", 90, workflow()),
		execution("own", "running", 60,
			map[string]any{"parent": "own-workflow",
				"liveaction": map[string]any{"runner_info": map[string]any{"hostname": "node1", "pid": 999}}}),

		execution("gone", "running", 1, ranBy("node2", 300)),
		execution("recycled", "running", 60, ranBy("node2", 200)),
		execution("alive", "running", 600, ranBy("node2", 100)),
		execution("just begun", "running", 0, ranBy("node2", 300)),
		execution("elsewhere", "running", 600, ranBy("node3", 300)),
		execution("nobody's", "running", 600, nil),
		execution("ended", "succeeded", 600, ranBy("node2", 300)),

		execution("stuck", "running", 60, workflow()),
		execution("stuck-1", "succeeded", 50, task("stuck")),
		execution("stuck-2", "failed", 6, task("stuck")),
		execution("between", "running", 60, workflow()),
		execution("between-1", "succeeded", 4, task("between")),
		execution("busy", "running", 60, workflow()),
		execution("busy-1", "succeeded", 50, task("busy")),
		execution("busy-2", "running", 50,
			map[string]any{"parent": "busy",
				"liveaction": map[string]any{"runner_info": map[string]any{"hostname": "node1", "pid": 100}}}),
		execution("asks", "running", 600, workflow()),
		execution("asks-1", "pending", 600, task("asks")),
		execution("delays", "running", 600, workflow()),
		execution("delays-1", "delayed", 600, task("delays")),
		execution("empty", "running", 60, workflow()),
		execution("chain", "running", 60, map[string]any{"runner": map[string]any{"name": "action-chain"}}),
		execution("paused", "paused", 600, workflow()),

		execution("lost", "requested", 60, map[string]any{"action": map[string]any{"ref": "a.overtaken"}}),
		execution("lost later", "scheduled", 30, map[string]any{"action": map[string]any{"ref": "a.overtaken"}}),
		execution("overtook", "succeeded", 20, map[string]any{"action": map[string]any{"ref": "a.overtaken"}}),
		execution("waits", "requested", 60, map[string]any{"action": map[string]any{"ref": "a.held back"}}),
		execution("waits, too", "requested", 30, map[string]any{"action": map[string]any{"ref": "a.held back"}}),
		execution("fresh", "requested", 3, map[string]any{"action": map[string]any{"ref": "a.overtaken"}}),
		execution("has a delay", "requested", 60,
			map[string]any{"action": map[string]any{"ref": "a.overtaken"}, "delay": 3600_000}),
	}
	a := newST2API(t, executions...)
	s := newSweeper(t, a)
	node := s.Nodes[0]
	findings, err := s.Check(t.Context(), node)
	require.NoError(t, err)
	var reported []string
	for _, f := range findings {
		reported = append(reported, f.Check+": "+strings.Fields(f.Message)[1])
		require.NotEmpty(t, f.Fix)
	}
	slices.Sort(reported)
	require.Equal(t, []string{"runner: elsewhere", "stands_still: empty", "stands_still: lost", "stands_still: lost",
		"stands_still: stuck"}, reported)

	changes, err := s.Plan(t.Context(), node)
	require.NoError(t, err)
	want := map[string]string{"gone": "abandoned", "recycled": "abandoned"}
	got := map[string]string{}
	for _, c := range changes {
		got[c.Target()] = c.(*endExecution).to
		require.Equal(t, "execution", c.Kind())
		require.Contains(t, c.Diff(), " → "+got[c.Target()]+": ")
	}
	require.Equal(t, want, got)
	for _, call := range a.calls {
		require.True(t, strings.HasPrefix(call, "GET "), "a plan only reads: %s", call)
	}

	before := map[string]string{}
	for _, e := range a.executions {
		before[e["id"].(string)] = e["status"].(string)
	}
	for _, c := range changes {
		require.NoError(t, c.Apply(t.Context(), node))
	}
	for _, e := range a.executions {
		id := e["id"].(string)
		if want[id] == "" {
			require.Equal(t, before[id], e["status"], id)
		} else {
			require.Equal(t, want[id], e["status"], id)
		}
	}
	changes, err = s.Plan(t.Context(), node)
	require.NoError(t, err)
	require.Empty(t, changes)
	require.NoError(t, s.Verify(t.Context(), node))
}

// What stands still is cancelled only where nothing can move it any more: st2#5275 was a healthy workflow that stood
// for eight minutes, and then ran. A real broker says what waits in the queues, and who consumes them.
func TestSweepCancel(t *testing.T) {
	broker, err := backendtest.NewBroker(t, t.TempDir())
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	stop := consume(t, broker.Addr, "st2scheduler", "st2workflowengine", runnerUnit)
	a := newST2API(t, execution("own", "running", 1, nil),
		execution("stuck", "running", 60, workflow()), execution("stuck-1", "succeeded", 50, task("stuck")),
		execution("lost", "requested", 60, map[string]any{"action": map[string]any{"ref": "a.b"}}),
		execution("unrun", "scheduled", 40, map[string]any{"action": map[string]any{"ref": "a.b"}}),
		execution("later", "succeeded", 30, map[string]any{"action": map[string]any{"ref": "a.b"}}))
	s := newSweeper(t, a)
	s.Cancel = true
	node := s.Nodes[0].(*machine)
	node.put(t, ConfPath, "[messaging]\nurl = "+MessagingURL(backendtest.User, backendtest.Password, "127.0.0.1",
		port(t, broker.Addr), "/", "")+"\n")
	// Since the services were started.
	minutes := map[string]int{"st2scheduler": 20, "st2workflowengine": 20, "st2actionrunner": 20}
	for _, n := range s.Nodes {
		n.(*machine).run = func(argv string) (string, error) {
			require.Equal(t, "ps -e -o etimes=,args=", argv)
			out := "99999 /sbin/init\n"
			for name, m := range minutes {
				out += fmt.Sprintf("%6d /opt/stackstorm/st2/bin/python /opt/stackstorm/st2/bin/%s --config-file "+
					"/etc/st2/st2.conf\n", m*60, name)
			}
			return out, nil
		}
	}
	sweep := func() (ended []string, why string) {
		findings, err := s.Check(t.Context(), node)
		require.NoError(t, err)
		changes, err := s.Plan(t.Context(), node)
		require.NoError(t, err)
		for _, c := range changes {
			ended = append(ended, c.Target())
		}
		slices.Sort(ended)
		for _, f := range findings {
			why += f.Message + " -> " + f.Fix + "\n"
		}
		return ended, why
	}
	ended, why := sweep()
	require.Equal(t, []string{"lost", "stuck", "unrun"}, ended)
	require.Empty(t, why)

	// A process that was there before may hold the message in its memory.
	for name, target := range map[string]string{"st2scheduler": "lost", "st2workflowengine": "stuck",
		"st2actionrunner": "unrun"} {
		minutes[name] = 65
		ended, why = sweep()
		require.NotContains(t, ended, target)
		require.Len(t, ended, 2)
		require.Contains(t, why, name+" on node1 runs since before that")
		require.Contains(t, why, "systemctl restart "+name+" on node1, then sweep again")
		minutes[name] = 20
	}
	// So may what runs on a node that cannot be reached.
	s.Away = []string{"192.0.2.3"}
	ended, why = sweep()
	require.Empty(t, ended)
	require.Contains(t, why, "192.0.2.3 cannot be reached")
	s.Away = nil
	// Nobody takes from the queues, and what waits there may be its own message.
	stop()
	require.Eventually(t, func() bool { ended, why = sweep(); return len(ended) == 0 },
		10*time.Second, 50*time.Millisecond)
	require.Contains(t, why, "nobody consumes the queue st2.workflow.work")
	conn, err := amqp.Dial(MessagingURL(backendtest.User, backendtest.Password, "127.0.0.1", port(t, broker.Addr), "/", ""))
	require.NoError(t, err)
	defer conn.Close()
	channel, err := conn.Channel()
	require.NoError(t, err)
	require.NoError(t, channel.Qos(1, 0, false))
	for _, unit := range []string{"st2scheduler", "st2workflowengine", runnerUnit} {
		for _, queue := range Queues(unit) {
			_, err = channel.Consume("st2."+queue, "", false, false, false, false, nil)
			require.NoError(t, err)
		}
	}
	for range 3 { // the consumer takes one and keeps it
		require.NoError(t, channel.Publish("", "st2.workflow.action.update", false, false, amqp.Publishing{}))
	}
	require.Eventually(t, func() bool {
		ended, why = sweep()
		return strings.Contains(why, "2 messages wait in the queue st2.workflow.action.update")
	}, 10*time.Second, 50*time.Millisecond, why)
	require.Equal(t, []string{"lost", "unrun"}, ended)
}

// A workflow that moves between plan and apply is left alone.
func TestSweepMoves(t *testing.T) {
	a := newST2API(t, execution("own", "running", 1, nil), execution("stuck", "running", 60, workflow()),
		execution("stuck-1", "succeeded", 50, task("stuck")))
	s := newSweeper(t, a)
	e, err := s.API.Execution(t.Context(), "stuck")
	require.NoError(t, err)
	c := &endExecution{Execution: e, API: s.API, to: statusCanceled, again: func(ctx context.Context) (string, error) {
		why, _, err := s.idle(ctx, e)
		return why, err
	}}
	a.executions = append(a.executions, execution("stuck-2", "running", 0, task("stuck")))
	require.NoError(t, c.Apply(t.Context(), nil))
	require.Equal(t, "running", a.executions[1]["status"])
	a.executions[3]["status"], a.executions[3]["end_timestamp"] = "succeeded", a.executions[2]["end_timestamp"]
	require.NoError(t, c.Apply(t.Context(), nil))
	require.Equal(t, "canceled", a.executions[1]["status"])
}

// What moved on between plan and apply is left alone.
func TestSweepRace(t *testing.T) {
	a := newST2API(t, execution("own", "running", 1, nil), execution("1", "running", 60, ranBy("node1", 300)))
	s := newSweeper(t, a)
	changes, err := s.Plan(t.Context(), s.Nodes[0])
	require.NoError(t, err)
	require.Len(t, changes, 1)
	a.executions[1]["status"] = "succeeded"
	require.NoError(t, changes[0].Apply(t.Context(), nil))
	require.Equal(t, "succeeded", a.executions[1]["status"])
	require.Error(t, changes[0].Undo(t.Context(), nil))
}

// A runner that could not publish its action's end: the API takes the live
// action for ended, and lists the execution as running. The others are swept.
func TestSweepHalfEnded(t *testing.T) {
	half := ranBy("node1", 300)
	half["half_ended"], half["parent"] = true, "workflow"
	a := newST2API(t, execution("own", "running", 1, nil), execution("1", "running", 60, half),
		execution("2", "running", 60, ranBy("node1", 300)))
	s := newSweeper(t, a)
	changes, err := s.Plan(t.Context(), s.Nodes[0])
	require.NoError(t, err)
	require.Len(t, changes, 2)
	var left *step.LeftError
	require.ErrorAs(t, changes[0].Apply(t.Context(), s.Nodes[0]), &left)
	require.Equal(t, "half_ended", left.Finding.Check)
	require.Contains(t, left.Finding.Message, "execution 1 of core.local stays running")
	require.Contains(t, left.Finding.Fix, "only workflow waits for it")
	require.NoError(t, changes[1].Apply(t.Context(), s.Nodes[0]))
	require.Equal(t, "abandoned", a.executions[2]["status"])
}

func TestSweepPages(t *testing.T) {
	executions := []map[string]any{execution("own", "running", 1, nil)}
	for i := range 250 {
		executions = append(executions, execution(fmt.Sprint(i), "running", 60, ranBy("node1", 300)))
	}
	a := newST2API(t, executions...)
	changes, err := newSweeper(t, a).Plan(t.Context(), nil)
	require.NoError(t, err)
	require.Len(t, changes, 250)
}

func TestAPI(t *testing.T) {
	for _, address := range []string{"", "127.0.0.1:9101", "ftp://x/", "http:///v1"} {
		_, err := NewAPI(address, token)
		require.Equal(t, fault.ExitUsage, fault.Of(err).Exit, address)
	}
	_, err := NewAPI("http://127.0.0.1/v1", "")
	require.ErrorContains(t, err, "ST2_ACTION_AUTH_TOKEN")

	a := newST2API(t)
	api := a.api(t)
	require.NoError(t, api.Trigger(t.Context(), "st2ha.healing_gave_up", map[string]string{"target": "x"}))
	require.Equal(t, []map[string]any{{"trigger": "st2ha.healing_gave_up", "payload": map[string]any{"target": "x"}}},
		a.dispatched)
	_, err = api.Execution(t.Context(), "../../etc")
	require.ErrorContains(t, err, "404 Not Found: Execution with id ../../etc not found.")
	require.Equal(t, "api", fault.Of(err).Code)
	require.NotContains(t, fault.Of(err).Hint, "RBAC")
	wrong := &API{URL: api.URL, Token: "wr0ng"}
	err = wrong.Cancel(t.Context(), "1")
	require.ErrorContains(t, err, "Token not found")
	require.NotContains(t, err.Error(), "wr0ng")
	require.Contains(t, fault.Of(err).Hint, "RBAC")
	a.broken = 500
	_, err = newSweeper(t, a).Plan(t.Context(), nil)
	require.ErrorContains(t, err, "MongoDB is away")
	a.Close()
	require.ErrorContains(t, api.Abandon(t.Context(), "1", "x"), "connection refused")
}

var _ step.Step = (*Sweeper)(nil)

// A list has an end, and says when that is not the whole.
func TestExecutionsEnd(t *testing.T) {
	pages := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		pages++
		w.Header().Set("X-Total-Count", "1000000000")
		_, _ = io.WriteString(w, "["+strings.Repeat(`{"id":"x"},`, 4999)+`{"id":"x"}]`)
	}))
	defer server.Close()
	list, whole, err := (&API{URL: server.URL, Token: "x"}).Executions(t.Context(), nil)
	require.NoError(t, err)
	require.False(t, whole)
	require.Len(t, list, maxList)
	require.Equal(t, 2, pages)
}
