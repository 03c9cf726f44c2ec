package cli

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/action"
	"st2ha/internal/backendtest"
	"st2ha/internal/host"
	"st2ha/internal/service"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

// People are told once that healing gave up, by a trigger.
func TestGuardTells(t *testing.T) {
	testenv.NeedsRoot(t)
	var told []map[string]any
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.Equal(t, "/v1/webhooks/st2", r.URL.Path)
		require.Equal(t, "t0ken", r.Header.Get("X-Auth-Token"))
		var body map[string]any
		require.NoError(t, json.NewDecoder(r.Body).Decode(&body))
		told = append(told, body)
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(api.Close)
	env := map[string]string{"ST2_ACTION_API_URL": api.URL + "/v1", "ST2_ACTION_AUTH_TOKEN": "t0ken"}
	c := &common{getenv: func(name string) string { return env[name] }, log: slog.New(slog.DiscardHandler),
		mask: step.NewMasker()}
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(root+"/var/lib/st2ha/heals", 0o755))
	h := host.NewLocalAt("node2", root)
	guard := c.guard("restart_backend")
	change := &service.Restart{Unit: "redis-server.service"}

	f, err := guard(t.Context(), h, change)
	require.NoError(t, err)
	require.Nil(t, f)
	f, err = guard(t.Context(), h, change)
	require.NoError(t, err)
	require.Equal(t, "healing_waits", f.Check)
	require.Empty(t, told)

	data, err := os.ReadFile(root + "/var/lib/st2ha/heals/redis-server.service.json")
	require.NoError(t, err)
	var account struct {
		Target string   `json:"target"`
		Heals  []string `json:"heals"`
	}
	require.NoError(t, json.Unmarshal(data, &account))
	account.Heals = []string{account.Heals[0], account.Heals[0], account.Heals[0]}
	data, err = json.Marshal(account)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(root+"/var/lib/st2ha/heals/redis-server.service.json", data, 0o600))
	for range 3 {
		f, err = guard(t.Context(), h, change)
		require.NoError(t, err)
		require.Equal(t, step.Error, f.Severity)
	}
	require.Len(t, told, 1)
	require.Equal(t, "st2ha.healing_gave_up", told[0]["trigger"])
	payload := told[0]["payload"].(map[string]any)
	require.Equal(t, "redis-server.service", payload["target"])
	require.Equal(t, "node2", payload["node"])
	require.Equal(t, "restart_backend", payload["by"])
}

// values are a command's with nothing given.
func values(cmd command) action.Values {
	_, v := flags(cmd, func(string) string { return "" })
	return v
}

// A node is found by what it calls itself.
func TestAddressOf(t *testing.T) {
	opened := map[string]func() (host.Host, error){}
	for address, name := range map[string]string{"192.0.2.1": "node1", "192.0.2.2": "node2"} {
		root := t.TempDir()
		require.NoError(t, os.MkdirAll(root+"/proc/sys/kernel", 0o755))
		require.NoError(t, os.WriteFile(root+"/proc/sys/kernel/hostname", []byte(name+"\n"), 0o644))
		opened[address] = func() (host.Host, error) { return host.NewLocalAt(address, root), nil }
	}
	c := &common{opened: opened}
	nodes := []string{"", "192.0.2.1", "192.0.2.2"}
	for name, want := range map[string]string{"node2": "192.0.2.2", "NODE1": "192.0.2.1", "192.0.2.9": "192.0.2.9",
		"localhost": "localhost", "node3.invalid": "node3.invalid"} {
		got, err := c.addressOf(t.Context(), name, nodes)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err := c.addressOf(t.Context(), "node3.invalid", []string{"a b"})
	require.Error(t, err)
}

// While people, or a run, are at work on a node, its executions are left alone: StackStorm's API is not even asked.
func TestSweepInMaintenance(t *testing.T) {
	opened := map[string]func() (host.Host, error){}
	for address, silent := range map[string]bool{"192.0.2.1": false, "192.0.2.2": true} {
		root := t.TempDir()
		require.NoError(t, os.MkdirAll(root+"/var/lib/st2ha", 0o755))
		if silent {
			require.NoError(t, os.WriteFile(root+"/var/lib/st2ha/maintenance", []byte(`{"reason": "new disk"}`), 0o644))
		}
		opened[address] = func() (host.Host, error) { return host.NewLocalAt(address, root), nil }
	}
	env := map[string]string{"ST2_ACTION_API_URL": "http://127.0.0.1:1/v1", "ST2_ACTION_AUTH_TOKEN": "t0ken"}
	c := &common{opened: opened, getenv: func(name string) string { return env[name] }, start: time.Now()}
	r, err := sweep(t.Context(), c, values(sweepCommand()).With("nodes", []string{"192.0.2.1", "192.0.2.2"}))
	require.NoError(t, err)
	require.False(t, r.Changed)
	require.Len(t, r.Findings, 1)
	require.Equal(t, "192.0.2.2", r.Findings[0].Host)
	require.Equal(t, "nothing is swept: maintenance is on (new disk)", r.Findings[0].Message)
}

// Seven sweeps at once are one, and the next waits for a minute; the others say so and are no failures.
func TestSweepOneAtATime(t *testing.T) {
	broker, err := backendtest.NewBroker(t, t.TempDir())
	require.NoError(t, err)
	t.Cleanup(broker.Close)
	asked := make(chan bool, 100)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- true
		time.Sleep(500 * time.Millisecond)
		_, _ = io.WriteString(w, "[]")
	}))
	t.Cleanup(api.Close)
	root := t.TempDir()
	for name, text := range map[string]string{
		"/etc/st2/st2.conf": "[messaging]\nurl = amqp://" + backendtest.User + ":" +
			url.QueryEscape(backendtest.Password) + "@" + broker.Addr + "/\n",
		"/proc/sys/kernel/hostname": "node1\n",
		"/var/lib/st2ha/lock":       "",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(root+name), 0o755))
		require.NoError(t, os.WriteFile(root+name, []byte(text), 0o644))
	}
	local := func() (host.Host, error) { return host.NewLocalAt("127.0.0.1", root), nil }
	env := map[string]string{"ST2_ACTION_API_URL": api.URL + "/v1", "ST2_ACTION_AUTH_TOKEN": "t0ken"}
	once := func(dry bool) step.Result {
		c := &common{opened: map[string]func() (host.Host, error){"127.0.0.1": local},
			getenv: func(name string) string { return env[name] }, start: time.Now(),
			log: slog.New(slog.DiscardHandler), mask: step.NewMasker(), run: "r1", dryRun: dry}
		result, err := sweep(t.Context(), c, values(sweepCommand()))
		if err != nil {
			t.Error(err)
		}
		return result
	}
	var wg sync.WaitGroup
	results := make(chan step.Result, 7)
	for range 7 {
		wg.Go(func() { results <- once(false) })
	}
	wg.Wait()
	close(results)
	waits := 0
	for r := range results {
		require.False(t, r.Changed)
		require.NotNil(t, r.Findings, "the schema has a list")
		for _, f := range r.Findings {
			if f.Check == "sweep_waits" {
				waits++
				require.Regexp(t, "^nothing is swept: .* it may be tried again at 20", f.Message)
			}
		}
	}
	require.Equal(t, 6, waits)
	r := once(false)
	require.Contains(t, r.Findings[0].Message, "the last sweep was a moment ago (run r1 on node1, ")
	require.Empty(t, once(true).Findings, "a dry run changes nothing, and needs no turn")
	broker.Kill()
	c := &common{opened: map[string]func() (host.Host, error){"127.0.0.1": local},
		getenv: func(name string) string { return env[name] }, start: time.Now(),
		log: slog.New(slog.DiscardHandler), mask: step.NewMasker(), run: "r1"}
	_, err = sweep(t.Context(), c, values(sweepCommand()))
	require.ErrorContains(t, err,
		"127.0.0.1: it could not be found out whether another sweep is running: RabbitMQ at "+broker.Addr)
}
