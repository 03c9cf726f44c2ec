package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// eventually waits until a command on a node succeeds.
func eventually(t *testing.T, node, line string) {
	t.Helper()
	on(t, node, fmt.Sprintf("timeout 90 sh -c 'until %s; do sleep 0.5; done'", line))
}

// unjoined gives the two nodes as they were installed, and sees to it that the
// test leaves them so.
func unjoined(t *testing.T) {
	t.Helper()
	untouched := installed(t, "primary", "secondary")
	t.Cleanup(func() { untouched(t) })
}

func checks(r result) []string {
	var names []string
	for _, f := range r.Findings {
		names = append(names, f.Check)
	}
	return names
}

// A backend that is down is restarted on its node, within limits, and not at
// all while people are at work there.
func TestHealBackend(t *testing.T) {
	needs(t)
	unjoined(t)
	heal := []string{"restart_backend", "--host=" + secondary, "--backend=redis", "--endpoint=127.0.0.1:6379"}
	runs := on(t, "secondary", "ls -A /var/lib/st2ha/runs 2>/dev/null || true")

	r := st2ha(t, "primary", heal...)
	require.Zero(t, r.exit, r.raw)
	require.False(t, r.Changed, "what works is left alone")

	on(t, "secondary", "systemctl stop redis-server")
	r = st2ha(t, "primary", append(heal, "--dry_run")...)
	require.Zero(t, r.exit, r.raw)
	require.Contains(t, r.Changes[0].Diff, "connection refused: systemctl restart redis-server.service")
	r = st2ha(t, "primary", heal...)
	require.Zero(t, r.exit, r.raw)
	require.True(t, r.Changed)
	require.Equal(t, "redis-server.service", r.Changes[0].Target)
	on(t, "secondary", "systemctl is-active redis-server")

	on(t, "secondary", "systemctl stop redis-server")
	r = st2ha(t, "primary", heal...)
	require.Zero(t, r.exit, r.raw)
	require.False(t, r.Changed)
	require.Equal(t, []string{"healing_waits"}, checks(r))

	r = st2ha(t, "primary", "maintenance", "--host="+secondary, "--mode=on", "--reason=a test", "--lasts=600")
	require.True(t, r.Changed, r.raw)
	r = st2ha(t, "primary", heal...)
	require.Equal(t, []string{"maintenance"}, checks(r))
	r = st2ha(t, "primary", "maintenance", "--host="+secondary, "--mode=off")
	require.True(t, r.Changed, r.raw)

	// As if it had been healed three times already.
	on(t, "secondary", `d=$(date -u +%FT%TZ); echo "{\"target\": \"redis-server.service\", \"heals\": [\"$d\", \"$d\", \"$d\"]}" > /var/lib/st2ha/heals/redis-server.service.json`)
	for range 2 {
		r = st2ha(t, "primary", heal...)
		require.Equal(t, 3, r.exit, r.raw)
		require.Equal(t, "healing_gave_up", r.Error.Code)
	}
	on(t, "secondary", "systemctl is-active redis-server && exit 1; systemctl start redis-server")
	require.Equal(t, runs, on(t, "secondary", "ls -A /var/lib/st2ha/runs 2>/dev/null || true"),
		"a heal is nothing that a rollback undoes")
}

// Exactly the service that is down is restarted.
func TestHealServices(t *testing.T) {
	needs(t)
	unjoined(t)
	on(t, "secondary", "systemctl stop st2notifier st2actionrunner@2")
	before := on(t, "secondary", "systemctl show --property=MainPID --value st2scheduler st2actionrunner@1")
	r := st2ha(t, "primary", "recover_st2_services", "--host="+secondary)
	require.Zero(t, r.exit, r.raw)
	var targets []string
	for _, c := range r.Changes {
		targets = append(targets, c.Target)
	}
	require.Contains(t, targets, "st2notifier", r.raw)
	for _, target := range targets { // a worker that was stopped may be unloaded, and then unknown
		require.Contains(t, []string{"st2notifier", "st2actionrunner@2"}, target)
	}
	on(t, "secondary", "systemctl is-active st2notifier; systemctl start st2actionrunner@2")
	require.Equal(t, before, on(t, "secondary",
		"systemctl show --property=MainPID --value st2scheduler st2actionrunner@1"))
	r = st2ha(t, "primary", "recover_st2_services", "--host="+secondary)
	require.Zero(t, r.exit, r.raw)
	require.False(t, r.Changed, r.raw)

	// One that the settings switch off has ended with exit code 0, and stays so.
	keep(t, "secondary", "/etc/st2/st2.conf")
	on(t, "secondary", "sed -i '/^.timersengine/a enable = False' /etc/st2/st2.conf; systemctl restart st2timersengine")
	eventually(t, "secondary", "! systemctl is-active --quiet st2timersengine")
	require.Equal(t, timersEnded, on(t, "secondary", timersState))
	r = st2ha(t, "primary", "recover_st2_services", "--host="+secondary)
	require.Zero(t, r.exit, r.raw)
	require.False(t, r.Changed, r.raw)
	t.Cleanup(func() { on(t, "secondary", "systemctl start st2timersengine") })
}

// timersState prints how it is with the timers engine's unit; where settings
// switch that off it is timersEnded, as the packages' unit leaves it.
const (
	timersState = "systemctl show --property=Type,Restart,ActiveState,Result,ExecMainStatus,UnitFileState " +
		"st2timersengine | sort | tr '\n' ' '"
	timersEnded = "ActiveState=inactive ExecMainStatus=0 Restart=on-failure Result=success Type=simple " +
		"UnitFileState=enabled "
)

// What is exported and mounted is so again after somebody took it away.
func TestHealMount(t *testing.T) {
	needs(t, kernelNFS)
	unjoined(t)
	const dir = "/srv/shared"
	on(t, "primary", "mkdir -p "+dir+" && chgrp st2packs "+dir)
	t.Cleanup(func() { on(t, "primary", "rm -rf "+dir) })
	for _, args := range [][]string{
		{"export_nfs", "--host=" + primary, "--secondaries=" + secondary},
		{"mount_nfs", "--host=" + secondary, "--primary=" + primary},
	} {
		r := st2ha(t, "primary", append(args, "--directories="+dir, "--run=heal-mount")...)
		require.Zero(t, r.exit, r.raw)
	}
	t.Cleanup(func() {
		for _, host := range []string{secondary, primary} {
			r := st2ha(t, "primary", "rollback", "--host="+host, "--only=heal-mount")
			require.Zero(t, r.exit, r.raw)
		}
		on(t, "secondary", "rmdir "+dir+" 2>/dev/null || true")
	})
	heal := []string{"recover_nfs_mount", "--host=" + secondary, "--directory=" + dir}

	r := st2ha(t, "primary", heal...)
	require.Zero(t, r.exit, r.raw)
	require.False(t, r.Changed)
	on(t, "secondary", "umount "+dir)
	r = st2ha(t, "primary", heal...)
	require.Zero(t, r.exit, r.raw)
	require.True(t, r.Changed)
	on(t, "secondary", "findmnt --target "+dir+" --types nfs4")
	on(t, "primary", "touch "+dir+"/seen")
	on(t, "secondary", "ls "+dir+"/seen")

	on(t, "primary", "exportfs -u "+secondary+":"+dir)
	require.NotContains(t, on(t, "primary", "exportfs -v"), dir)
	r = st2ha(t, "primary", "re_export", "--host="+primary, "--directory="+dir)
	require.Zero(t, r.exit, r.raw)
	require.True(t, r.Changed)
	require.Contains(t, on(t, "primary", "exportfs -v"), dir)

	// With the server away there is nothing to heal on this side.
	on(t, "primary", "systemctl stop nfs-server")
	r = st2ha(t, "primary", heal...)
	require.Equal(t, 3, r.exit, r.raw)
	require.Equal(t, "nfs_server", r.Error.Code)
	r = st2ha(t, "primary", "restart_backend", "--host="+primary, "--backend=nfs")
	require.Zero(t, r.exit, r.raw)
	require.True(t, r.Changed)
	on(t, "secondary", "timeout 60 ls "+dir+"/seen") // the mount has healed itself
}

// The watchdog runs from outside the pack, heals, and leaves no trace once undone.
func TestWatchdog(t *testing.T) {
	needs(t)
	unjoined(t)
	list := "find /usr/local/lib /etc/systemd -printf '%p %m %u %g %l\\n' | sort"
	files := on(t, "secondary", list)
	install := []string{"install_watchdog", "--host=" + secondary, "--run=watchdog"}
	t.Cleanup(func() {
		r := st2ha(t, "primary", "rollback", "--host="+secondary, "--only=watchdog")
		require.Zero(t, r.exit, r.raw)
		require.Equal(t, files, on(t, "secondary", list))
		require.Contains(t, on(t, "secondary",
			"systemctl show --property=LoadState st2ha-watchdog; pgrep -x st2ha-watch || true"),
			"LoadState=not-found\n")
	})

	began := time.Now()
	r := st2ha(t, "primary", install...)
	require.Zero(t, r.exit, r.raw)
	require.True(t, r.Changed)
	t.Logf("installed after %.1f s", time.Since(began).Seconds())
	require.Equal(t, "active\nenabled\n",
		on(t, "secondary", "systemctl is-active st2ha-watchdog; systemctl is-enabled st2ha-watchdog"))
	require.Contains(t, on(t, "secondary",
		"readlink /proc/$(systemctl show --property=MainPID --value st2ha-watchdog)/exe"),
		"/usr/local/lib/st2ha/st2ha-watch")
	t.Log(strings.TrimSpace(on(t, "secondary", "systemd-analyze security --no-pager st2ha-watchdog 2>&1 | tail -1")))
	r = st2ha(t, "primary", install...)
	require.Zero(t, r.exit, r.raw)
	require.False(t, r.Changed)

	on(t, "secondary", "systemctl stop redis-server")
	began = time.Now()
	eventually(t, "secondary", "systemctl is-active --quiet redis-server")
	t.Logf("redis healed after %.1f s", time.Since(began).Seconds())
	pid := on(t, "secondary", "systemctl show --property=MainPID --value st2ha-watchdog")
	on(t, "secondary", "kill -KILL "+strings.TrimSpace(pid))
	eventually(t, "secondary", "systemctl is-active --quiet st2ha-watchdog")
}
