package lab

import (
	"encoding/json"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/status"
	"st2ha/internal/step"
)

// statusLimit is what cluster_status may take where all nodes answer.
const statusLimit = time.Second

// page is what cluster_status prints as JSON.
type page struct {
	step.Result
	Status status.Report
	raw    string
}

// statusOf asks for the page of nodes, the first one as the primary.
func statusOf(t *testing.T, args ...string) page {
	t.Helper()
	out, err := remote(password, "primary", append([]string{"cluster_status"}, args...)...).Output()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), password)
	var p page
	require.NoError(t, json.Unmarshal(out, &p), "%s", out)
	p.raw = string(out)
	return p
}

// TestStatus: a pair before the join, after it, with a service that is down, and with nodes that do not answer; each time
// the page says so, in time, and leaves nothing on any node.
func TestStatus(t *testing.T) {
	needs(t)
	untouched := installed(t, "primary", "secondary", "secondary2")
	three := []string{"--primary=" + primary, "--secondaries=" + secondary + "," + secondary2}

	// Four looks at three nodes, and at the primary under its other name: the quickest counts, for others use this machine.
	var best time.Duration
	for range 4 {
		p := statusOf(t, "--primary="+primary, "--secondaries="+secondary+","+secondary2+",primary")
		for _, n := range p.Status.Nodes {
			require.True(t, n.Reached, p.raw)
		}
		if took := time.Duration(p.Millis) * time.Millisecond; best == 0 || took < best {
			best = took
		}
	}
	t.Logf("four nodes: %s", best)
	require.Less(t, best, statusLimit, "what four nodes take")

	p := statusOf(t, three...)
	require.Equal(t, status.Trouble, p.Status.State, "three that are each their own")
	codes := p.codes()
	require.Contains(t, codes, "sensors_twice")
	require.Contains(t, codes, "timers_twice")
	for _, n := range p.Status.Nodes {
		require.NotEmpty(t, n.Versions.StackStorm, p.raw)
		require.Len(t, n.Services, 11, p.raw)
		require.Len(t, n.Backends, 3, p.raw)
		for _, b := range n.Backends {
			require.Equal(t, status.Up, b.State, p.raw)
		}
		require.InDelta(t, 0, n.Clock.Ahead, n.Clock.Accuracy+5, "one kernel has one clock")
	}
	untouched(t) // it changes nothing

	o := action(t, "join_secondary", nil)
	require.Equal(t, "succeeded", o.Status, o.raw)
	settle(t, "primary")
	two := []string{"--primary=" + primary, "--secondaries=" + secondary}
	// The services connect again after their restart.
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		if p = statusOf(t, two...); len(p.wrong()) == 0 {
			break
		}
		require.True(t, time.Now().Before(end), p.raw)
	}
	require.True(t, p.Status.Sensors.Complete, p.raw)
	require.Equal(t, []string{primary}, p.Status.Timers, p.raw)
	require.Contains(t, singles(p), "mongodb", p.raw)
	require.NotEmpty(t, p.Status.Nodes[1].Shares, p.raw)
	for _, s := range p.Status.Nodes[1].Shares {
		require.True(t, s.Mounted, p.raw)
	}
	require.NotContains(t, settings(p), "[database] host", p.raw)
	require.NotContains(t, settings(p), "[messaging] url", p.raw)

	on(t, "secondary", "systemctl stop st2notifier")
	require.Contains(t, statusOf(t, two...).codes(), "service_down")
	on(t, "secondary", "systemctl start st2notifier")

	// A node whose cable is pulled takes its time, and no more; the others are as before.
	lab(t, "./lab.sh", "cut", "secondary")
	began := time.Now()
	p = statusOf(t, append(slices.Clone(two), "--node_timeout=2")...)
	took := time.Since(began)
	lab(t, "./lab.sh", "heal", "secondary")
	require.False(t, p.Status.Nodes[1].Reached, p.raw)
	require.True(t, p.Status.Nodes[0].Reached, p.raw)
	require.Less(t, took, 4*time.Second)
	require.Contains(t, p.codes(), "not_reached")

	for _, host := range []string{secondary, primary} {
		r := st2ha(t, "primary", "rollback", "--host="+host)
		require.Zero(t, r.exit, r.raw)
	}
	settle(t, "secondary")
	settle(t, "primary")
	untouched(t)
}

// TestStatusPage: a file for a browser, and a table without an escape in a pipe.
func TestStatusPage(t *testing.T) {
	needs(t)
	args := []string{"cluster_status", "--primary=" + primary, "--secondaries=" + secondary, "--format=table"}
	out, err := remote(password, "primary", args...).Output()
	require.NoError(t, err, exitOf(err))
	require.Contains(t, string(out), "Cluster: ")
	require.NotContains(t, string(out), "\x1b")
	args[3] = "--format=html"
	out, err = remote(password, "primary", args...).Output()
	require.NoError(t, err, exitOf(err))
	require.True(t, strings.HasPrefix(string(out), "<!DOCTYPE html>"))
	require.NotContains(t, string(out), "<script")
	require.NotContains(t, string(out), password)
}

func exitOf(err error) string {
	if exit, ok := err.(*exec.ExitError); ok {
		return string(exit.Stderr)
	}
	return ""
}

// codes are those of what is wrong.
func (p page) codes() (all []string) {
	for _, f := range p.Findings {
		all = append(all, f.Check)
	}
	return all
}

// wrong are the errors, but for those of NFS: fast nodes have sshfs in its place, and nothing listens at its port.
func (p page) wrong() (all []step.Finding) {
	for _, f := range p.Findings {
		if f.Severity == step.Error && !strings.HasPrefix(f.Message, "nfs at ") {
			all = append(all, f)
		}
	}
	return all
}

func singles(p page) (all []string) {
	for _, s := range p.Status.Single {
		all = append(all, s.What)
	}
	return all
}

func settings(p page) (all []string) {
	for _, d := range p.Status.Differences {
		all = append(all, d.Setting)
	}
	return all
}
