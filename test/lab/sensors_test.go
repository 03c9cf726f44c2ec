package lab

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// away is the shortest that can be set, and takeover the longest that a part may stand still: the broker notices a cut,
// the node counts as lost, and a service stops and starts on a busy machine.
const (
	away     = 45 * time.Second
	takeover = 30*time.Second + away + 30*time.Second
)

// TestSensors shares sensors among three nodes, cuts two of them off in one direction each, has an agent stand still, and
// heals them again. Each sensor counts, and so do the timers: nobody counts twice, and nobody stands still for longer than
// a takeover takes. Undone, all is as before.
func TestSensors(t *testing.T) {
	needs(t)
	nodes := []string{"primary", "secondary", "secondary2"}
	hosts := []string{primary, secondary, secondary2}
	untouched := installed(t, nodes...)
	t.Cleanup(func() {
		for i := len(nodes) - 1; i >= 0; i-- {
			r := st2ha(t, "primary", "rollback", "--host="+hosts[i])
			require.Zero(t, r.exit, r.raw)
		}
		for _, node := range nodes {
			settle(t, node)
		}
		untouched(t)
		lab(t, append([]string{"./lab.sh", "ready"}, nodes...)...)
	})
	for _, node := range nodes {
		on(t, node, "install -d -m 777 /run/lab-sensors")
		t.Cleanup(func() { on(t, node, "rm -rf /run/lab-sensors") })
	}
	run := func(args ...string) result {
		t.Helper()
		r := st2ha(t, "primary", args...)
		require.Zero(t, r.exit, r.raw)
		return r
	}
	all := "--secondaries=" + secondary + "," + secondary2
	run("configure_mongodb", "--host="+primary)
	run("configure_st2", "--host="+primary, "--role=primary", "--primary="+primary, "--restart=inline")
	run("configure_rabbitmq", "--host="+primary, all)
	for _, host := range hosts[1:] {
		run("configure_st2", "--host="+host, "--role=secondary", "--primary="+primary, "--restart=inline")
	}
	began := time.Now()
	for _, host := range hosts {
		args := []string{"share_sensors", "--host=" + host, "--primary=" + primary, all, "--sensors=shared",
			fmt.Sprintf("--sensors_away=%d", int(away.Seconds()))}
		require.True(t, run(args...).Changed)
		require.False(t, run(args...).Changed, "a second run changes nothing")
	}
	home := func(since time.Time) map[string]string { return counted(t, nodes, since, 0) }
	shared := func() bool {
		owners := map[string]bool{}
		for _, node := range home(time.Now().Add(-5 * time.Second)) {
			owners[node] = true
		}
		return len(home(time.Now().Add(-5*time.Second))) == 25 && len(owners) == 3
	}
	require.Eventually(t, shared, 3*time.Minute, time.Second, "24 sensors and the timers, on three nodes")
	for _, node := range nodes { // what waits for its turn is neither ill nor started
		r := st2ha(t, "primary", "recover_st2_services", "--host="+hosts[slices.Index(nodes, node)])
		require.Zero(t, r.exit, r.raw)
		require.False(t, r.Changed, r.raw)
		on(t, node, "systemctl restart st2timersengine st2sensorcontainer")
	}
	before := home(time.Now().Add(-3 * time.Second))

	on(t, "secondary", "ip route add blackhole "+primary+"/32")  // nothing comes out
	on(t, "primary", "ip route add blackhole "+secondary2+"/32") // nothing goes back
	t.Cleanup(func() {
		on(t, "secondary", "ip route del blackhole "+primary+"/32 2>/dev/null || true")
		on(t, "primary", "ip route del blackhole "+secondary2+"/32 2>/dev/null || true")
	})
	require.Eventually(t, func() bool {
		owners := home(time.Now().Add(-3 * time.Second))
		return len(owners) == 25 && !slices.ContainsFunc(slices.Collect(maps.Values(owners)),
			func(node string) bool { return node != "primary" })
	}, takeover+time.Minute, time.Second, "the primary runs all")
	on(t, "secondary", "ip route del blackhole "+primary+"/32")
	on(t, "primary", "ip route del blackhole "+secondary2+"/32")
	require.Eventually(t, func() bool { return maps.Equal(before, home(time.Now().Add(-3*time.Second))) },
		2*takeover, time.Second, "all are back at home")

	// An agent that stands still is killed, and its node's sensors with it, before its lease is over.
	on(t, "secondary", "systemctl kill --signal=STOP st2ha-owner")
	eventually(t, "secondary", "! systemctl is-active --quiet st2sensorcontainer")
	require.Eventually(t, func() bool { return maps.Equal(before, home(time.Now().Add(-3*time.Second))) },
		2*takeover, time.Second, "its next run has them again")
	counted(t, nodes, began.Add(takeover), takeover)
}

// counted reads what sensors have counted since, by the nodes' one clock, and returns who counted last. With a longest
// gap it sees to it that none was longer, and that no two nodes counted at once.
func counted(t *testing.T, nodes []string, since time.Time, gap time.Duration) map[string]string {
	t.Helper()
	type tick struct {
		at   int64
		node string
	}
	ticks := map[string][]tick{}
	for _, node := range nodes {
		out := on(t, node, fmt.Sprintf("cat /run/lab-sensors/* 2>/dev/null | awk '$1 >= %d' || true", since.UnixMilli()))
		for line := range bytes.Lines([]byte(out)) {
			at, ref, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
			n, err := strconv.ParseInt(at, 10, 64)
			if err != nil || ref == "" {
				continue // half a line
			}
			ticks[ref] = append(ticks[ref], tick{n, node})
		}
	}
	last := map[string]string{}
	for ref, all := range ticks {
		slices.SortFunc(all, func(a, b tick) int { return cmp.Compare(a.at, b.at) })
		last[ref] = all[len(all)-1].node
		if gap == 0 {
			continue
		}
		changes := 0
		for i := 1; i < len(all); i++ {
			require.LessOrEqual(t, all[i].at-all[i-1].at, gap.Milliseconds(), "%s stood still", ref)
			if all[i].node != all[i-1].node {
				changes++
			}
		}
		// There and back for each of two losses; two nodes that count at once change with each tick.
		require.LessOrEqual(t, changes, 4, "%s was counted by two nodes at once", ref)
	}
	return last
}
