package status

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/heal"
	"st2ha/internal/incident"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

var update = flag.Bool("update", false, "write the golden files anew")

// at is when all fixed pages are of.
var at = time.Date(2026, 11, 28, 5, 0, 0, 0, time.UTC)

const (
	first, second, third = "192.168.0.100", "192.168.0.101", "192.168.0.102"
	middle               = stackstorm.HashEnd / 2
)

// node is one that is as it should be.
func node(address, role string) Node {
	n := Node{Address: address, Role: role, Reached: true, Versions: Versions{"3.9.0", "3.11.2", "0.1.0"},
		Watchdog: Watchdog{Installed: true, Active: true, Program: "0123456789ab", Current: true},
		Clock:    &Clock{Ahead: 0.4, Accuracy: 1.2}, Shares: []Share{}, Heals: []heal.Record{},
		Incidents: []incident.Incident{}, Problems: []string{},
		Runs: []step.Recent{{Run: "66f0", Step: "install_watchdog", State: "done", Started: at.Add(-time.Hour), Changes: 4}},
		Sensors: &Partition{Name: "sensornode-" + address, Provider: "hash", Active: true,
			Ranges: []stackstorm.Range{{From: 0, To: middle}}},
		Backends: []Backend{{Name: "mongodb", Endpoint: first + ":27017", State: Up, Millis: 4.2},
			{Name: "rabbitmq", Endpoint: first + ":5672", State: Up, Millis: 6.1},
			{Name: "redis", Endpoint: first + ":6379", State: Up, Millis: 0.9}},
	}
	for _, unit := range stackstorm.Services() {
		n.Services = append(n.Services, Service{Unit: unit, State: "active", Good: true})
	}
	for i, c := range agreed() {
		n.settings = append(n.settings, setting{order: i, name: c.name, value: "x"})
	}
	return n
}

// healthy is a pair that is as it should be.
func healthy() Report {
	r := Report{At: at, Millis: 412, Nodes: []Node{node(first, "primary"), node(second, "secondary")}}
	r.Nodes[0].Timers = true
	r.Nodes[1].Sensors.Ranges = []stackstorm.Range{{From: middle, To: stackstorm.HashEnd}}
	r.Nodes[1].Backends = append(r.Nodes[1].Backends, Backend{Name: "nfs", Endpoint: first + ":2049", State: Up, Millis: 1.3})
	r.Nodes[1].Shares = []Share{{"/opt/stackstorm/packs", first + ":/opt/stackstorm/packs", true}}
	r.Judge()
	return r
}

// troubled has one of everything that can be wrong.
func troubled() Report {
	r := healthy()
	r.Millis = 5012
	gaveUp := at.Add(-9 * time.Minute)
	a, b := &r.Nodes[0], &r.Nodes[1]
	a.Maintenance = &heal.Maintenance{On: true, Since: at, Until: at.Add(time.Hour), Reason: "new \x1b[31mdisk\u202e <script>"}
	a.Heals = []heal.Record{{Target: "redis-server.service", Heals: []time.Time{at.Add(-10 * time.Minute)}, GaveUp: &gaveUp}}
	b.Backends[2].State, b.Backends[2].Reason = Down, "connection refused"
	b.Services[6].State, b.Services[6].Detail, b.Services[6].Good = "failed", "failed", false
	b.Sensors.Ranges[0].From = middle - 1<<28
	b.Shares[0].Mounted, b.Timers, b.RestartOwed = false, true, true
	b.Watchdog.Current = false
	b.Clock.Ahead = 7300
	b.Versions.StackStorm = "3.8.1"
	b.settings[5].value = "y"
	b.Incidents = []incident.Incident{{Backend: "redis", Endpoint: first + ":6379", State: incident.Down,
		Began: at.Add(-10 * time.Minute)}}
	b.Runs = append([]step.Recent{{Run: "66f1", Step: "mount_nfs", State: "open", Started: at.Add(-time.Minute), Changes: 1}},
		b.Runs...)
	b.Problems = []string{second + ": /opt/stackstorm/packs does not answer: does its mount hang?"}
	r.Nodes = append(r.Nodes, Node{Address: third, Role: "secondary", Error: "connect to " + third +
		" port 22 by SSH: i/o timeout", Fix: "try: ssh " + third, Services: []Service{}, Backends: []Backend{}, Shares: []Share{},
		Runs: []step.Recent{}, Heals: []heal.Record{}, Incidents: []incident.Incident{}, Problems: []string{}})
	r.Judge()
	return r
}

// pages are the fixed inputs, by the names of their files.
func pages() map[string]Report {
	return map[string]Report{"healthy": healthy(), "troubled": troubled()}
}

// The page in each of its forms, of fixed inputs.
func TestGolden(t *testing.T) {
	for name, r := range pages() {
		var js, table, colours, html bytes.Buffer
		encoder := json.NewEncoder(&js)
		encoder.SetIndent("", "  ")
		require.NoError(t, encoder.Encode(struct {
			Findings []step.Finding
			Status   Report
		}{r.Findings, r}))
		require.NoError(t, r.Table(&table, false))
		require.NoError(t, r.Table(&colours, true))
		require.NoError(t, r.HTML(&html))
		golden(t, name+".json", js.Bytes())
		golden(t, name+".txt", table.Bytes())
		golden(t, name+".html", html.Bytes())
		require.NotContains(t, table.String(), "\x1b", "no colours, and no escapes of others")
		require.Contains(t, colours.String(), "\x1b[3")
		require.NotContains(t, colours.String(), "\x1b[31mdisk", "a text from a node steers no terminal")
		require.NotContains(t, html.String(), "<script", "a text from a node is no element")
		require.NotContains(t, html.String(), "\u202e", "a text from a node turns no words around")
		require.NotRegexp(t, `\b(src|href)=|url\(|@import`, html.String(), "the page needs no other")
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(file, got, 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err, "go test ./internal/status -update writes it")
	require.Equal(t, string(want), string(got), name)
}

func TestHealthy(t *testing.T) {
	r := healthy()
	require.Equal(t, Good, r.State, "%+v", r.Findings)
	require.True(t, r.Sensors.Complete)
	require.Equal(t, []string{first}, r.Timers)
	require.Empty(t, r.Differences)
}

// Each thing that can be wrong has a finding of its own, with what to do.
func TestFindings(t *testing.T) {
	r := troubled()
	require.Equal(t, Trouble, r.State)
	var checks []string
	for _, f := range r.Findings {
		require.NotEmpty(t, f.Fix, f.Message)
		require.NotEmpty(t, f.Host, f.Message)
		checks = append(checks, f.Check)
	}
	for _, check := range strings.Fields("not_reached service_down backend_not_up not_mounted gave_up incident old_watchdog " +
		"in_maintenance restart_owed open_run not_seen sensors_twice timers_twice clock_skew setting") {
		require.Contains(t, checks, check)
	}
	require.False(t, r.Sensors.Complete)
	require.Equal(t, step.Error, r.Findings[0].Severity, "the worst first")
}

// What cannot be known is not said to be wrong: a node that does not answer may have what nobody else has.
func TestUnknown(t *testing.T) {
	r := healthy()
	r.Nodes[1].Reached = false
	r.Judge()
	require.False(t, r.Sensors.Known)
	require.Len(t, r.Findings, 1, "%+v", r.Findings)
	require.Equal(t, "not_reached", r.Findings[0].Check)
	r = healthy()
	r.Nodes[0].Sensors.Ranges[0].To = middle - 5
	r.Nodes[0].Timers = false
	r.Judge()
	require.Equal(t, []stackstorm.Range{{From: middle - 5, To: middle}}, r.Sensors.Gaps)
	require.Len(t, r.Findings, 2, "%+v", r.Findings)
	require.Equal(t, "less than 1 % of the sensors (hashes 2147483643..2147483648) run on no node", r.Findings[0].Message)
	require.Equal(t, "timers run on no node", r.Findings[1].Message)
}

// Shares that cover all once, for any number of nodes, are complete; moved by one, they are not.
func TestCover(t *testing.T) {
	for n := uint64(1); n < 12; n++ {
		owners := map[string][]stackstorm.Range{}
		for i := range n {
			owners[string(rune('a'+i))] = []stackstorm.Range{{From: stackstorm.HashEnd * i / n, To: stackstorm.HashEnd * (i + 1) / n}}
		}
		gaps, doubles := cover(owners)
		require.Empty(t, gaps)
		require.Empty(t, doubles)
		owners["a"][0].To--
		gaps, _ = cover(owners)
		require.Len(t, gaps, 1)
		require.EqualValues(t, 1, gaps[0].To-gaps[0].From)
		owners["a"][0].To += 3
		if n > 1 {
			_, doubles = cover(owners)
			require.Len(t, doubles, 1)
			require.EqualValues(t, 2, doubles[0].To-doubles[0].From)
			require.Equal(t, []string{"a", "b"}, doubles[0].Nodes)
		}
	}
	gaps, _ := cover(nil)
	require.Equal(t, []stackstorm.Range{{From: 0, To: stackstorm.HashEnd}}, gaps)
	_, doubles := cover(map[string][]stackstorm.Range{"a": {{From: 0, To: 8}, {From: 4, To: stackstorm.HashEnd}}})
	require.Empty(t, doubles, "a node's own ranges may overlap")
}

func TestSingle(t *testing.T) {
	messages := func(r Report) (all []string) {
		for _, s := range r.Single {
			all = append(all, s.What)
		}
		return all
	}
	r := healthy()
	require.Equal(t, []string{"mongodb", "rabbitmq", "redis", "content", "timers"}, messages(r))
	r.Nodes[0].Backends = append(r.Nodes[0].Backends, Backend{Name: "rabbitmq", Endpoint: second + ":5672", State: Up})
	r.Nodes[1].Services = r.Nodes[1].Services[4:]
	r.Nodes[1].Sensors.Ranges = nil
	r.Judge()
	require.Equal(t, []string{"mongodb", "redis", "content", "services", "sensors", "timers"}, messages(r))
	require.Equal(t, "st2actionrunner, st2api, st2stream and st2auth run on "+first+" only.", r.Single[3].Message)
}
