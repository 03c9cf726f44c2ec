package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/heal"
	"st2ha/internal/incident"
)

// Endpoints as the secondary sees them once it is joined.
const (
	mongo       = primary + ":27017"
	rabbit      = primary + ":5672"
	redis       = "127.0.0.1:6379"
	nfsServer   = primary + ":2049"
	packs       = "/opt/stackstorm/packs"
	virtualenvs = "/opt/stackstorm/virtualenvs"
	configs     = "/opt/stackstorm/configs"
)

const (
	manyKills   = 20               // or as KILLS says
	shortSoak   = 2 * time.Minute  // SOAK=1h makes it longer
	loginLimit  = 15 * time.Second // a fresh login every 10 s, and another to be sure
	closedLimit = time.Second      // a broker that ends its connections
)

// rows are the faults. Restarts of one backend are kept apart, for the watchdog
// leaves what has just started alone.
func rows(t *testing.T) []fault {
	kills := manyKills
	if text := os.Getenv("KILLS"); text != "" {
		var err error
		kills, err = strconv.Atoi(text)
		require.NoError(t, err, "KILLS")
		require.Positive(t, kills, "KILLS")
	}
	var parted time.Time
	all := []string{"mongodb", "rabbitmq", "redis", "nfs", "mount", "st2"}
	// reached is what the secondary sees of a primary that it cannot reach.
	reached := []want{
		{by: sensor, backend: "mongodb", endpoint: mongo, states: "suspect down up",
			suspect: suspectLimit, down: downLimit},
		{by: sensor, backend: "rabbitmq", endpoint: rabbit, states: "suspect down up",
			suspect: suspectLimit, down: downLimit},
		{by: sensor, backend: "nfs", endpoint: nfsServer, states: "suspect down up",
			suspect: suspectLimit, down: downLimit},
	}
	hung := want{by: sensor, backend: "mount", endpoint: packs, states: "suspect down up",
		down: hungLimit, reason: "mount hung"}
	// TCP doubles the time between its attempts, so that 2 s without a link may be 4 s without an answer on a
	// connection.
	doubted := []want{
		{by: sensor, backend: "mongodb", endpoint: mongo, states: "suspect up", suspect: suspectLimit},
		{by: sensor, backend: "rabbitmq", endpoint: rabbit, states: "suspect up", suspect: suspectLimit},
	}
	// A broker that starts takes the primary's one CPU for seconds, in which it and MongoDB answer now and then.
	const starved = "suspect? flapping? down … up"
	// So does a boot: what answers already, answers late for some seconds, which is no trigger.
	const booted = "suspect? down flapping? up"
	return []fault{
		{name: "MongoDB killed", inject: signalling("primary", "KILL", "mongod"), healer: "watchdog",
			wants: []want{
				{by: sensor, backend: "mongodb", endpoint: mongo, states: "suspect? down up", down: killedLimit,
					reason: "connection refused"},
				{by: onPrimary, backend: "mongodb", states: "suspect? down up"},
			}},
		{name: "Redis killed", beside: true, inject: signalling("secondary", "KILL", "redis-server"), healer: "itself",
			wants: []want{
				{by: sensor, backend: "redis", endpoint: redis, states: "suspect? down up", down: killedLimit,
					reason: "connection refused"},
				{by: onSecondary, backend: "redis", states: "suspect? down up"},
			}},
		{name: "export withdrawn", inject: running("primary", "exportfs -u "+secondary+":"+virtualenvs),
			healer: "rule export_withdrawn",
			wants: []want{
				{by: onSecondary, backend: "nfs", endpoint: nfsServer, states: "suspect? down up",
					down: withdrawnLimit, reason: "export " + virtualenvs + " withdrawn"},
			}, also: []string{"mount"}},
		{name: "exported directory deleted", healer: "people",
			inject: func(t *testing.T) time.Time {
				return moment(t, "primary", "cp -a "+configs+" "+configs+".kept", "rm -rf "+configs)
			},
			repair: func(t *testing.T) time.Time {
				at := running("primary", "mv "+configs+".kept "+configs+" && exportfs -ra")(t)
				r := st2ha(t, "primary", "recover_nfs_mount", "--host="+secondary, "--directory="+configs,
					"--detach", "--wait=60")
				require.Zero(t, r.exit, r.raw)
				return at
			},
			wants: []want{
				{by: onSecondary, backend: "nfs", endpoint: nfsServer, states: "suspect? down up",
					down: withdrawnLimit, reason: "export " + configs},
			},
			// Not at once: the server keeps a deleted directory as long as its export is cached.
			also: []string{"mount"}},
		{name: "NFS server stopped", healer: "watchdog",
			inject: func(t *testing.T) time.Time {
				return moment(t, "primary", startedLongAgo("nfs-server"), "rpc.nfsd 0")
			},
			wants: []want{
				{by: sensor, backend: "nfs", endpoint: nfsServer, states: "suspect? down up",
					reason: "connection refused"},
				{by: onPrimary, backend: "nfs", states: "suspect? down up"},
			}, also: []string{"mount"}},
		// Healed before the watchdog's patience ends.
		{name: "Redis frozen", inject: signalling("secondary", "STOP", "redis-server"), healer: "rule backend_down",
			wants: []want{
				{by: sensor, backend: "redis", endpoint: redis, states: "suspect down up",
					suspect: suspectLimit, down: downLimit},
				{by: onSecondary, backend: "redis", states: "suspect down up",
					suspect: suspectLimit, down: downLimit},
			}},
		{name: "mount unmounted by hand", beside: true, inject: running("secondary", "umount "+virtualenvs),
			healer: "rule mount_missing",
			wants: []want{
				{by: sensor, backend: "mount", endpoint: virtualenvs,
					states: "suspect? down up", reason: "not mounted"},
			}},
		{name: "watchdog killed in an outage", healer: "people",
			inject: func(t *testing.T) time.Time {
				on(t, "secondary", "touch "+heal.MaintenanceFile)
				at := signalling("secondary", "STOP", "redis-server")(t)
				time.Sleep(6 * time.Second)
				on(t, "secondary", "kill -KILL $(systemctl show --property=MainPID --value st2ha-watchdog)")
				return at
			},
			lasts: 12 * time.Second,
			repair: func(t *testing.T) time.Time {
				at := signalling("secondary", "CONT", "redis-server")(t)
				on(t, "secondary", "rm "+heal.MaintenanceFile)
				return at
			},
			wants: []want{
				{by: onSecondary, backend: "redis", states: "suspect down up"},
				{by: sensor, backend: "redis", endpoint: redis, states: "suspect down up"},
			}},
		{name: "MongoDB frozen", beside: true, inject: signalling("primary", "STOP", "mongod"), healer: "watchdog",
			wants: []want{
				{by: sensor, backend: "mongodb", endpoint: mongo, states: "suspect down up",
					suspect: suspectLimit, down: downLimit},
				{by: onPrimary, backend: "mongodb", states: "suspect down up"},
			}},
		{name: "RabbitMQ memory alarm", healer: "people",
			inject: erlang("vm_memory_monitor:set_vm_memory_high_watermark({absolute, 1000000})"),
			repair: erlang("vm_memory_monitor:set_vm_memory_high_watermark(0.4)"),
			wants: []want{
				{by: sensor, backend: "rabbitmq", endpoint: rabbit, states: "suspect? down up",
					down: alarmLimit, reason: "memory"},
			}},
		{name: "MongoDB user dropped", beside: true, healer: "people",
			inject: running("primary", mongocmd(`{"dropUser": "stackstorm"}`)),
			repair: running("primary", mongocmd(`{"createUser": "stackstorm", "pwd": "prim4ry-s3cret", "roles": []}`)),
			wants: []want{
				{by: sensor, backend: "mongodb", endpoint: mongo, states: "suspect? down up", down: loginLimit,
					reason: "login refused"},
			}, also: []string{"st2"}},
		{name: "RabbitMQ user deleted", healer: "people",
			inject: erlang(`rabbit_auth_backend_internal:delete_user(<<"st2">>, <<"lab">>)`), repair: configuring,
			wants: []want{
				{by: sensor, backend: "rabbitmq", endpoint: rabbit, states: "suspect? down up", down: closedLimit,
					reason: "login refused: user st2 deleted"},
			}, also: []string{"st2"}},
		{name: "RabbitMQ password changed", healer: "people",
			inject: erlang(`rabbit_auth_backend_internal:change_password(<<"st2">>, <<"another">>, <<"lab">>)`),
			repair: configuring,
			wants: []want{
				{by: sensor, backend: "rabbitmq", endpoint: rabbit, states: "suspect? down up", down: loginLimit,
					reason: "login refused"},
			}, also: []string{"st2"}},
		{name: "packets to the primary dropped", inject: dropping("secondary", "primary"), end: passing,
			healer: "itself", wants: reached, also: all},
		{name: "packets from the primary dropped", fresh: true, inject: dropping("primary", "secondary"), end: passing,
			healer: "itself", wants: reached, also: all},
		{name: "link down for 2 s", inject: scripted("part"), lasts: 2 * time.Second, end: ending("join"),
			healer: "itself", wants: doubted, also: all},
		{name: "link down for 20 s", fresh: true, inject: scripted("part"), lasts: 20 * time.Second,
			end: ending("join"), healer: "itself", wants: append(slices.Clone(reached), hung), also: all},
		{name: "link down for 60 s", fresh: true, lasts: 60 * time.Second,
			inject: func(t *testing.T) time.Time { parted = scripted("part")(t); return parted },
			end:    ending("join"), healer: "itself", wants: append(slices.Clone(reached), hung), also: all,
			check: func(v assert.TestingT, _ []seen) { noticed(t, v, parted) }},
		{name: "primary's kernel frozen", fresh: true, inject: scripted("freeze", "primary"), lasts: 10 * time.Second,
			end: ending("thaw", "primary"), healer: "itself",
			wants: append([]want{reached[2], hung}, reached[:2]...), also: all},
		{name: "sensor's watcher killed", custom: watcherKilled},
		{name: fmt.Sprintf("Redis killed %d times", kills), custom: killing("secondary", "redis-server", kills,
			want{by: sensor, backend: "redis", endpoint: redis, states: "suspect? down up", down: killedLimit})},
		{name: "RabbitMQ killed", inject: signalling("primary", "KILL", "beam.smp"), healer: "itself",
			within: 2 * time.Minute,
			wants: []want{
				{by: sensor, backend: "rabbitmq", endpoint: rabbit, states: "suspect? down up", down: killedLimit,
					reason: "connection refused"},
				{by: onPrimary, backend: "rabbitmq", states: "suspect? down up"},
			}, also: []string{"st2"}},
		{name: fmt.Sprintf("MongoDB killed %d times", kills), custom: killing("primary", "mongod", kills,
			want{by: sensor, backend: "mongodb", endpoint: mongo, states: "suspect? down up", down: killedLimit})},
		{name: "disk of the primary full", healer: "watchdog",
			inject: func(t *testing.T) time.Time {
				at := running("primary", `n=$(($(stat --file-system --format='%a*%S' /))); fallocate -l $((n - (4 << 20))) /var/lib/full`)(t)
				on(t, "primary", "kill -KILL $(pidof mongod)")
				return at
			},
			lasts:  15 * time.Second, // the broker looks at its disk every 10 s
			repair: running("primary", "rm /var/lib/full"),
			wants: []want{
				{by: sensor, backend: "rabbitmq", endpoint: rabbit, states: "suspect? down up", reason: "disk"},
				{by: onPrimary, backend: "mongodb", states: "suspect? down up", reason: "connection refused"},
			}, also: []string{"st2"}, within: 2 * time.Minute,
			check: func(t assert.TestingT, events []seen) {
				assert.True(t, slices.ContainsFunc(events, func(e seen) bool {
					return e.Heal.Event == heal.EventGaveUp && strings.Contains(e.Heal.Reason, "full")
				}), "that nothing can be healed for want of room is told")
			}},
		// away for longer than a slow server's answers may take, and not as long as until it is down
		{name: "Redis flapping", healer: "itself",
			inject: running("secondary",
				"p=$(pidof redis-server); for i in 1 2 3 4 5 6 7 8 9 10; do kill -STOP $p; sleep 2.2; kill -CONT $p; "+
					"sleep 0.4; done >/dev/null 2>&1 &"),
			wants: []want{{by: sensor, backend: "redis", endpoint: redis, states: "suspect? flapping up"}}},
		{name: "RabbitMQ frozen", beside: true, inject: signalling("primary", "STOP", "beam.smp"), healer: "watchdog",
			within: 3 * time.Minute,
			wants: []want{
				{by: sensor, backend: "rabbitmq", endpoint: rabbit, states: "suspect down up",
					suspect: suspectLimit, down: downLimit},
				{by: onPrimary, backend: "rabbitmq", states: "suspect down up"},
			}, also: []string{"st2"}},
		// Asked for, not waited for: the watchdog may have one started before its stop has ended, which cancels
		// systemd's job.
		{name: "broker and database down",
			inject: running("primary", "systemctl stop --no-block mongod rabbitmq-server"), healer: "watchdog",
			within: 3 * time.Minute,
			wants: []want{
				{by: sensor, backend: "mongodb", endpoint: mongo, states: starved},
				{by: sensor, backend: "rabbitmq", endpoint: rabbit, states: starved},
				{by: onPrimary, backend: "mongodb", states: starved},
				{by: onPrimary, backend: "rabbitmq", states: starved},
			}, also: []string{"st2"}},
		{name: "primary rebooted", fresh: true, inject: scripted("reboot", "primary"), healer: "itself",
			within: 3 * time.Minute,
			wants: []want{
				{by: sensor, backend: "nfs", endpoint: nfsServer, states: "suspect? down up"},
				{by: sensor, backend: "mongodb", endpoint: mongo, states: booted},
				{by: sensor, backend: "rabbitmq", endpoint: rabbit, states: booted},
			}, also: all},
		{name: "secondary boots without the primary", custom: rebootAlone},
		{name: "four busy loops beside it", custom: soak},
	}
}

// noticed sees that a runner of the secondary missed the broker's heartbeats, ten seconds each, within 20 s of a cut.
func noticed(t *testing.T, v assert.TestingT, cut time.Time) {
	t.Helper()
	out := on(t, "secondary", fmt.Sprintf("journalctl --quiet --output=short-unix --unit=st2actionrunner@1 "+
		"--since=@%d | grep --max-count=1 --fixed-strings '[messaging]: ' || true", cut.Unix()))
	stamp, _, _ := strings.Cut(out, " ")
	at, err := strconv.ParseFloat(stamp, 64)
	if assert.NoError(v, err, "it never said that its connection was lost: %q", out) {
		assert.Less(v, at-float64(cut.UnixMilli())/1000, 20.0, "seconds until it noticed")
	}
}

// erlang has RabbitMQ do something, and returns when it did.
func erlang(expression string) func(*testing.T) time.Time {
	return func(t *testing.T) time.Time {
		t.Helper()
		out := on(t, "primary", "rabbitmqctl --quiet eval 'T = erlang:system_time(millisecond), "+expression+", T.'")
		ms, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
		require.NoError(t, err, out)
		return time.UnixMilli(ms)
	}
}

// mongocmd is a command of MongoDB's administrator.
func mongocmd(command string) string {
	return "mongocmd 'mongodb://admin:prim4ry-s3cret@" + mongo + "/st2?authSource=admin' '" + command + "'"
}

// configuring gives the broker's user back what the join gave it.
func configuring(t *testing.T) time.Time {
	t.Helper()
	at := time.Now()
	o := action(t, "configure_rabbitmq", map[string]any{"host": primary, "update_password": true})
	require.Equal(t, "succeeded", o.Status, o.raw)
	return at
}

// ending runs one of the lab's verbs. It is over no later than is said.
func ending(argv ...string) func(*testing.T) time.Time {
	return func(t *testing.T) time.Time {
		t.Helper()
		lab(t, append([]string{"./lab.sh"}, argv...)...)
		return time.Now()
	}
}

// killing kills a process again and again while nothing heals it but systemd or
// the test: the time from the kill to its event is taken each time.
func killing(node, process string, kills int, w want) func(*testing.T, *verdict, *faults, *line) {
	return func(t *testing.T, v *verdict, f *faults, l *line) {
		f.enable(false) // what the rules do would take time from the node
		on(t, node, "touch "+heal.MaintenanceFile)
		defer f.enable(true)
		defer on(t, node, "rm "+heal.MaintenanceFile)
		var took, ofEnd []time.Duration
		for i := range kills {
			if i%3 == 0 {
				f.afresh(t, node) // or what is killed every few seconds flaps
			}
			f.writer.hold(t, w.endpoint)
			mark := f.mark()
			at := signalling(node, "KILL", process)(t)
			gone := f.writer.gone(t)
			require.True(t, f.until(mark, 10*time.Second,
				func(events []seen) bool { return w.first(events, incident.Down) != nil }), "the kill was not seen")
			if process == "mongod" {
				on(t, node, "systemctl start mongod")
			}
			require.True(t, f.until(mark, 30*time.Second,
				func(events []seen) bool { return w.first(events, incident.Up) != nil }), "it did not come back")
			events := f.from(mark)
			assert.Regexp(v, "^(suspect )?down up $", w.sequence(events))
			seen := w.first(events, incident.Down).DetectedAt
			took, ofEnd = append(took, seen.Sub(at)), append(ofEnd, seen.Sub(gone))
		}
		f.afresh(t, node)
		slices.Sort(took)
		slices.Sort(ofEnd)
		p99 := ofEnd[len(ofEnd)-1]
		l.detected = fmt.Sprintf("p50 %s, p99 %s; of its end p50 %s, p99 %s ≤ %s", human(took[len(took)/2]),
			human(took[len(took)-1]),
			human(ofEnd[len(ofEnd)/2]), human(p99), human(killedLimit))
		l.states, l.reported, l.healer = "down → up", fmt.Sprintf("%d times, once each", kills), "itself"
		if process == "mongod" {
			l.healer = "people"
		}
		f.within(v, l, p99, w.down, "99 in 100")
	}
}

// afresh has watchers that know nothing of what was: the sensor's, and nodes' watchdogs.
func (f *faults) afresh(t *testing.T, nodes ...string) {
	t.Helper()
	for _, node := range nodes {
		on(t, node, "systemctl restart st2ha-watchdog")
	}
	mark := f.mark()
	f.stop() // the sensor with it: one whose watcher is killed again and again starts it later and later
	f.watchFrom("secondary")
	f.watched(t, mark)
}

// watcherKilled kills the sensor's watcher, which the sensor starts again.
func watcherKilled(t *testing.T, v *verdict, f *faults, l *line) {
	mark := f.mark()
	at := moment(t, "secondary", "p=$(pgrep -u st2 st2ha-watch)", "kill -KILL $p")
	f.watched(t, mark)
	back := want{by: sensor, backend: "redis", endpoint: redis}
	l.detected, l.states, l.reported, l.healer = "-", "up", "no down", "the sensor"
	l.healed = human(back.first(f.from(mark), incident.Up).DetectedAt.Sub(at))
	unexpected(v, after(f.from(mark), at))
}

// soak watches beside four busy loops on this machine. A down is false unless
// the writer had no answer either: loops take the CPU from a node's backends, too,
// which share one.
func soak(t *testing.T, v *verdict, f *faults, l *line) {
	long := shortSoak
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		long, err = time.ParseDuration(text)
		require.NoError(t, err, "SOAK, such as 10m")
	}
	mark, began := f.mark(), time.Now()
	var loops []*exec.Cmd
	for range 4 {
		c := exec.Command("sh", "-c", "while :; do :; done")
		require.NoError(t, c.Start())
		loops = append(loops, c)
	}
	time.Sleep(long)
	for _, c := range loops {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	for _, b := range []string{"mongodb", "rabbitmq", "nfs"} {
		answered, _ := f.writer.answered(t, b, began, time.Now())
		assert.NotZero(v, answered, "writes to %s that were acknowledged", b)
	}
	events := after(f.from(mark), began)
	count := map[incident.State]int{}
	for _, e := range events {
		count[e.State]++
		if e.State != incident.Down {
			continue
		}
		silence := strings.Contains(e.Reason, "no answer") || strings.Contains(e.Reason, "hung")
		answered, known := f.writer.answered(t, e.Backend, e.Since.Time, e.DetectedAt.Time)
		if !silence || !known || answered > 0 {
			assert.Fail(v, "false down", "%d writes were acknowledged meanwhile: %s", answered, e.line)
		}
	}
	l.detected, l.healer, l.healed = "-", "-", "-"
	l.states = fmt.Sprintf("%d suspect", count[incident.Suspect])
	l.reported = fmt.Sprintf("%d down in %s", count[incident.Down], long)
	if count[incident.Down] > 0 && len(v.not) == 0 {
		l.reported += ", and the writer had no answer either"
	}
}

// rebootAlone boots the secondary while the primary is off: it comes up, and
// mounts when the primary is back.
// reading are services that read what is shared.
const reading = "st2api st2sensorcontainer st2actionrunner@1"

func rebootAlone(t *testing.T, v *verdict, f *faults, l *line) {
	f.writer.stop()
	mark := f.mark()
	on(t, "primary", "systemctl --no-block poweroff")
	reached := want{by: sensor, backend: "nfs", endpoint: nfsServer}
	at := time.Now()
	assert.True(v, f.until(mark, time.Minute,
		func(events []seen) bool { return reached.first(events, incident.Down) != nil }),
		"the primary was not missed")
	if e := reached.first(f.from(mark), incident.Down); e != nil {
		l.detected = "down " + human(e.DetectedAt.Sub(at))
	}
	require.Eventually(t, func() bool {
		out, _ := command(nil, "./lab.sh", "status").Output() // it fails when a node is off
		return bytes.Contains(out, []byte("primary "+primary+" off"))
	}, time.Minute, time.Second, "the primary does not go off")
	began := time.Now()
	lab(t, "./lab.sh", "kill", "secondary") // in order it would wait for its mounts
	lab(t, "env", "WAIT=ssh", "./lab.sh", "start", "secondary")
	booted := time.Since(began)
	require.Empty(t, on(t, "secondary", "grep ' nfs4 ' /proc/mounts || true"))
	// The boot does not wait for the mounts, and the services that read what is on them do not start without.
	on(t, "secondary", "timeout 120 sh -c 'until systemctl is-active --quiet multi-user.target; do sleep 1; done'; "+
		"sleep 6")
	require.Empty(t, on(t, "secondary", "systemctl is-active "+reading+" | grep -x active || true"))
	require.Empty(t, on(t, "secondary",
		"pgrep -a -f '^/opt/stackstorm/st2/bin/(st2api|st2sensorcontainer|st2actionrunner)' || true"))
	lab(t, "env", "WAIT=ssh", "./lab.sh", "start", "primary")
	back := time.Now()
	on(t, "secondary", "timeout 180 sh -c 'until [ $(grep -c \" nfs4 \" /proc/mounts) = 3 ]; do sleep 1; done'")
	l.healed, l.healer = human(time.Since(back)), "itself"
	on(t, "secondary", "timeout 60 sh -c 'until [ $(systemctl is-active "+reading+" | grep -cx active) = 3 ]; do "+
		"sleep 1; done'")
	l.states = "booted in " + human(booted)
	require.Empty(t, f.calm(3*time.Minute))
	l.reported = "-"
	f.writer.start(t)
	time.Sleep(3 * time.Second)
}
