// Package monitoring holds no code: these tests ask promtool what it says of the alerts and of the dashboard's queries,
// and compare both with the metrics of a watcher that runs.
package monitoring

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"st2ha/internal/backend"
	"st2ha/internal/backendtest"
	"st2ha/internal/incident"
	"st2ha/internal/probe"
	"st2ha/internal/testenv"
	"st2ha/internal/watch"
)

// promtool runs it, with text on its standard input.
func promtool(t *testing.T, stdin string, args ...string) (said string, err error) {
	t.Helper()
	testenv.NeedsPrograms(t, "promtool")
	cmd := exec.Command("promtool", args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

type rule struct {
	Alert       string            `yaml:"alert,omitempty"`
	Record      string            `yaml:"record,omitempty"`
	Expr        string            `yaml:"expr"`
	Annotations map[string]string `yaml:"annotations,omitempty"`
}

type group struct {
	Name  string `yaml:"name"`
	Rules []rule `yaml:"rules"`
}

// alerts are those of alerts.yaml.
func alerts(t *testing.T) []rule {
	t.Helper()
	var file struct{ Groups []group }
	readYAML(t, "alerts.yaml", &file)
	require.Len(t, file.Groups, 1)
	return file.Groups[0].Rules
}

func readYAML(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(name)
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(data, into))
}

// Each alert fires on what it is for, and not on what is only a restart; each of them is shown both ways.
func TestAlerts(t *testing.T) {
	said, err := promtool(t, "", "check", "rules", "alerts.yaml")
	require.NoError(t, err, said)
	said, err = promtool(t, "", "test", "rules", "tests.yaml")
	require.NoError(t, err, said)

	var tests struct {
		Tests []struct {
			Alerts []struct {
				Name string `yaml:"alertname"`
				Want []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	readYAML(t, "tests.yaml", &tests)
	fired, silent := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, a := range test.Alerts {
			if len(a.Want) > 0 {
				fired[a.Name] = true
			} else {
				silent[a.Name] = true
			}
		}
	}
	for _, a := range alerts(t) {
		assert.True(t, fired[a.Alert] && silent[a.Alert], "%s is shown to fire, and not to", a.Alert)
		assert.NotEmpty(t, a.Annotations["summary"], a.Alert)
		assert.NotEmpty(t, a.Annotations["description"], a.Alert)
	}
}

// dashboard is what Grafana reads of dashboard.json, as far as it is looked at here.
type dashboard struct {
	Title      string
	UID        string
	Panels     []panel
	Templating struct {
		List []struct{ Name, Query, Definition string }
	}
}

type panel struct {
	ID          int
	Title, Type string
	Description string
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ Expr, RefID string }
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	data, err := os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var d dashboard
	require.NoError(t, json.Unmarshal(data, &d))
	return d
}

// queries are those of the dashboard, with what Grafana puts in for its variables.
func queries(d dashboard) []string {
	var all []string
	put := strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h", "$job", "st2ha", "$instance", ".*")
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			all = append(all, put.Replace(target.Expr))
		}
	}
	return all
}

// Prometheus takes each query of the dashboard.
func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	require.NotEmpty(t, d.Title)
	require.NotEmpty(t, d.UID, "so that it is imported once, and found by links")
	ids := map[int]bool{}
	for i, p := range d.Panels {
		assert.False(t, ids[p.ID], "%s has a number of its own", p.Title)
		ids[p.ID] = true
		assert.NotEmpty(t, p.Description, p.Title)
		assert.NotEmpty(t, p.Targets, p.Title)
		assert.LessOrEqual(t, p.GridPos.X+p.GridPos.W, 24, p.Title)
		for _, other := range d.Panels[:i] {
			a, b := p.GridPos, other.GridPos
			apart := a.X >= b.X+b.W || b.X >= a.X+a.W || a.Y >= b.Y+b.H || b.Y >= a.Y+a.H
			assert.True(t, apart, "%s lies over %s", p.Title, other.Title)
		}
	}
	require.Empty(t, refused(t, queries(d)...))
	require.NotEmpty(t, refused(t, "sum by (instance"), "what is no query is seen")
	for _, q := range queries(d) {
		require.NotContains(t, q, "$", "a variable that the dashboard does not have")
	}
}

// refused is what promtool says against queries.
func refused(t *testing.T, queries ...string) string {
	t.Helper()
	g := group{Name: "dashboard"}
	for i, q := range queries {
		g.Rules = append(g.Rules, rule{Record: "query:" + strings.Repeat("x", i+1), Expr: q})
	}
	data, err := yaml.Marshal(map[string][]group{"groups": {g}})
	require.NoError(t, err)
	name := filepath.Join(t.TempDir(), "queries.yaml")
	require.NoError(t, os.WriteFile(name, data, 0o600))
	said, err := promtool(t, "", "check", "rules", name)
	if err == nil {
		return ""
	}
	return said
}

// scrape is what a watcher of a real Redis serves.
func scrape(t *testing.T) string {
	t.Helper()
	redis, err := backendtest.NewRedis(t, t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { redis.Kill() })
	var said testenv.Buffer
	p := watch.NewProber("n1", backend.Config{Redis: "redis://" + redis.Addr}, slog.New(slog.NewTextHandler(&said, nil)))
	stop, err := p.ServeMetrics("127.0.0.1:0")
	require.NoError(t, err)
	defer stop()
	up := make(chan struct{}, 100)
	p.Begin("watchdog", nil, func(e incident.Event) {
		if e.Backend == "redis" && e.State == incident.Up {
			up <- struct{}{}
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := p.Follow(ctx)
	defer func() { cancel(); <-ended }()
	select {
	case <-up:
	case <-time.After(30 * time.Second):
		t.Fatal("Redis was not seen up within 30 s")
	}
	p.Metrics.GaveUp(probe.Key{Backend: "redis", Name: redis.Addr}, false) // as the watchdog's healer says at each look
	addr := regexp.MustCompile(`serving metrics" address=(\S+)`).FindStringSubmatch(said.String())
	require.NotNil(t, addr)
	answer, err := http.Get("http://" + addr[1] + "/metrics")
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return string(body)
}

// What alerts and dashboard ask for exists in the program, with the labels that they ask by; and the metrics are named
// as Prometheus wants them.
func TestMetricsExist(t *testing.T) {
	served := scrape(t)
	said, err := promtool(t, served, "check", "metrics")
	require.NoError(t, err, said)
	require.Empty(t, said)

	labels := map[string]string{} // of each metric, those that were seen
	for _, line := range regexp.MustCompile(`(?m)^([a-z0-9_]+)(?:\{(.*)\})? `).FindAllStringSubmatch(served, -1) {
		labels[line[1]] += line[2]
	}
	d := readDashboard(t)
	asked := queries(d)
	for _, v := range d.Templating.List {
		asked = append(asked, v.Query)
	}
	for _, a := range alerts(t) {
		asked = append(asked, a.Expr)
	}
	named := regexp.MustCompile(`\b((?:st2ha|go|process)_[a-z0-9_]+)(?:\{([^}]*)\})?`)
	label := regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`)
	var used []string
	for _, query := range asked {
		for _, m := range named.FindAllStringSubmatch(query, -1) {
			used = append(used, m[1])
			have, ok := labels[m[1]]
			require.True(t, ok, "%s, of %s, is served", m[1], query)
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains([]string{"job", "instance"}, l[1]) { // Prometheus' own
					require.Contains(t, have, l[1]+"=", "%s of %s", l[1], m[1])
				}
			}
		}
	}
	for name := range labels {
		base := regexp.MustCompile(`_(sum|count)$`).ReplaceAllString(name, "_bucket")
		if strings.HasPrefix(name, "st2ha_") && name != "st2ha_events_merged_total" {
			assert.True(t, slices.Contains(used, name) || slices.Contains(used, base), "%s is looked at somewhere", name)
		}
	}
}
