package heal_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/host/hosttest"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

const target = "redis-server.service"

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// node is a machine below a temporary root.
func node(t *testing.T) (h *host.Local, root string) {
	t.Helper()
	testenv.NeedsRoot(t)
	root = t.TempDir()
	require.NoError(t, os.MkdirAll(root+"/var/lib", 0o755))
	return host.NewLocalAt("node", root), root
}

// ask is one question at a time, in seconds after noon.
type ask struct {
	at        int
	recovered bool // not a question: the target is up
	want      heal.Verdict
	first     bool
	until     int
	heals     int
}

func TestAllow(t *testing.T) {
	for name, asks := range map[string][]ask{
		"back-off, then given up once": {
			{at: 0, want: heal.GoAhead, heals: 1},
			{at: 59, want: heal.Wait, until: 60, heals: 1},
			{at: 60, want: heal.GoAhead, heals: 2},
			{at: 100, want: heal.Wait, until: 180, heals: 2},
			{at: 180, want: heal.GoAhead, heals: 3},
			{at: 181, want: heal.GaveUp, first: true, heals: 3},
			{at: 182, want: heal.GaveUp, heals: 3},
			{at: 3780, want: heal.GaveUp, heals: 3},
			{at: 3781, want: heal.GoAhead, heals: 1},
		},
		"the window slides": {
			{at: 0, want: heal.GoAhead, heals: 1},
			{at: 300, want: heal.GoAhead, heals: 2},
			{at: 599, want: heal.GoAhead, heals: 3},
			{at: 600, want: heal.Wait, until: 719, heals: 2},
			{at: 719, want: heal.GoAhead, heals: 3},
			{at: 720, want: heal.GaveUp, first: true, heals: 3},
		},
		"given up until it was up": {
			{at: 0, want: heal.GoAhead, heals: 1},
			{at: 60, want: heal.GoAhead, heals: 2},
			{at: 180, want: heal.GoAhead, heals: 3},
			{at: 181, want: heal.GaveUp, first: true, heals: 3},
			{at: 200, recovered: true},
			{at: 201, want: heal.GaveUp, first: true, heals: 3}, // a flapping one stays within the limit
			{at: 601, recovered: true},
			{at: 602, want: heal.GoAhead, heals: 3},
			{at: 7200, recovered: true},
			{at: 7201, want: heal.GoAhead, heals: 1},
		},
		"the clock was set back": {
			{at: 86400, want: heal.GoAhead, heals: 1},
			{at: 0, want: heal.Wait, until: 60, heals: 1},
			{at: 30, want: heal.Wait, until: 60, heals: 1}, // it is not put off at each look
			{at: 60, want: heal.GoAhead, heals: 2},
		},
		"the clock was set back after it was given up": {
			{at: 86400, want: heal.GoAhead, heals: 1},
			{at: 86460, want: heal.GoAhead, heals: 2},
			{at: 86580, want: heal.GoAhead, heals: 3},
			{at: 86581, want: heal.GaveUp, first: true, heals: 3},
			{at: 0, want: heal.GaveUp, heals: 3},
			{at: 3599, want: heal.GaveUp, heals: 3},
			{at: 3600, want: heal.GoAhead, heals: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, _ := node(t)
			l := heal.Default()
			for _, a := range asks {
				now := noon.Add(time.Duration(a.at) * time.Second)
				if a.recovered {
					require.NoError(t, l.Recovered(t.Context(), h, target, now))
					continue
				}
				d, err := l.Allow(t.Context(), h, target, now)
				require.NoError(t, err)
				require.Equal(t, a.want, d.Verdict, "at %d", a.at)
				require.Equal(t, a.first, d.First, "at %d", a.at)
				require.Equal(t, a.heals, d.Heals, "at %d", a.at)
				require.Equal(t, a.want == heal.GoAhead, d.Reason == "", "at %d", a.at)
				if a.until > 0 {
					require.Equal(t, noon.Add(time.Duration(a.until)*time.Second), d.Until.UTC(), "at %d", a.at)
				}
			}
		})
	}
}

// One target's heals are no other's, however the names look.
func TestTargets(t *testing.T) {
	h, root := node(t)
	l := heal.Ledger{Heals: 1, Window: time.Minute}
	long := "mount /" + strings.Repeat("a", 400)
	for _, e := range []string{target, "mount /opt/stackstorm/packs", "mount ../../etc", "mount /a%2Fb", "mount /a/b",
		"..", long + "1", long + "2"} {
		d, err := l.Allow(t.Context(), h, e, noon)
		require.NoError(t, err, e)
		require.Equal(t, heal.GoAhead, d.Verdict, e)
		d, err = l.Allow(t.Context(), h, e, noon)
		require.NoError(t, err, e)
		require.Equal(t, heal.GaveUp, d.Verdict, e)
	}
	files, err := filepath.Glob(root + heal.Dir + "/*")
	require.NoError(t, err)
	require.Len(t, files, 8)
	for _, f := range files {
		info, err := os.Stat(f)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
	// Up for longer than the window, a target leaves nothing behind.
	require.NoError(t, l.Recovered(t.Context(), h, target, noon.Add(time.Hour)))
	require.NoFileExists(t, root+heal.Dir+"/redis-server.service.json")
	require.NoError(t, l.Recovered(t.Context(), h, "never seen", noon))
}

// A file that a power cut left torn or empty is no reason never to heal again.
func TestTorn(t *testing.T) {
	h, root := node(t)
	l := heal.Default()
	_, err := l.Allow(t.Context(), h, target, noon)
	require.NoError(t, err)
	files, err := filepath.Glob(root + heal.Dir + "/*.json")
	require.NoError(t, err)
	require.Len(t, files, 1)
	whole, err := os.ReadFile(files[0])
	require.NoError(t, err)
	for n := range len(whole) - 2 { // without the closing brace and the line's end
		require.NoError(t, os.WriteFile(files[0], whole[:n], 0o600))
		d, err := l.Allow(t.Context(), h, target, noon)
		require.NoError(t, err)
		require.Equal(t, heal.GoAhead, d.Verdict, "%d bytes", n)
		d, err = l.Allow(t.Context(), h, target, noon)
		require.NoError(t, err)
		require.Equal(t, heal.Wait, d.Verdict, "%d bytes", n)
	}
}

func TestMaintenance(t *testing.T) {
	h, root := node(t)
	l := heal.Default()
	set := func(data string) {
		require.NoError(t, os.MkdirAll(root+"/var/lib/st2ha", 0o700))
		require.NoError(t, os.WriteFile(root+heal.MaintenanceFile, []byte(data), 0o600))
	}
	timed, err := heal.Maintenance{Since: noon, Until: noon.Add(time.Hour), Reason: "new disk"}.Encode()
	require.NoError(t, err)
	for _, tc := range []struct {
		data string
		at   time.Duration
		want heal.Verdict
		says string
	}{
		{"", 0, heal.InMaintenance, "maintenance is on"},
		{"since Tuesday, Jo", 0, heal.InMaintenance, "maintenance is on"},
		{string(timed[:len(timed)-10]), 2 * time.Hour, heal.InMaintenance, "maintenance is on"},
		{string(timed), 59 * time.Minute, heal.InMaintenance, "maintenance is on until 2026-03-01T13:00:00Z (new disk)"},
		{string(timed), time.Hour, heal.GoAhead, ""},
	} {
		set(tc.data)
		d, err := l.Allow(t.Context(), h, target, noon.Add(tc.at))
		require.NoError(t, err)
		require.Equal(t, tc.want, d.Verdict, tc.data)
		require.Equal(t, tc.says, d.Reason)
	}
	// Silenced heals were not counted.
	require.NoFileExists(t, root+heal.MaintenanceFile, "it is over")
	d, err := l.Allow(t.Context(), h, target, noon.Add(3*time.Hour))
	require.NoError(t, err)
	require.Equal(t, heal.Decision{Verdict: heal.GoAhead, Heals: 1}, d)
	m, err := heal.ReadMaintenance(t.Context(), h, noon)
	require.NoError(t, err)
	require.Equal(t, "no maintenance", m.String())
}

// under has a host's files below a directory.
type under struct {
	host.Host
	root string
}

func (u under) ReadFile(ctx context.Context, path string) (host.File, error) {
	return u.Host.ReadFile(ctx, u.root+path)
}

func (u under) WriteFile(ctx context.Context, f host.File) error {
	f.Path = u.root + f.Path
	return u.Host.WriteFile(ctx, f)
}

func (u under) Mkdir(ctx context.Context, path string, info host.Info) error {
	return u.Host.Mkdir(ctx, u.root+path, info)
}

func (u under) Lock(ctx context.Context, path, note string) (func(), error) {
	return u.Host.Lock(ctx, u.root+path, note)
}

// The watchdog, local, and an action, over SSH, see the same fault at once.
func TestTogether(t *testing.T) {
	testenv.NeedsRoot(t)
	server := hosttest.NewServer(t)
	far, err := host.DialSSH(t.Context(), server.Config)
	require.NoError(t, err)
	defer far.Close()
	near, root := node(t)
	var allowed, told atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		h := []host.Host{near, under{far, root}}[i%2]
		wg.Go(func() {
			d, err := heal.Ledger{Heals: 3, Window: time.Minute}.Allow(t.Context(), h, target, noon)
			if err != nil {
				t.Error(err)
				return
			}
			if d.Verdict == heal.GoAhead {
				allowed.Add(1)
			}
			if d.First {
				told.Add(1)
			}
		})
	}
	wg.Wait()
	require.Equal(t, int32(3), allowed.Load())
	require.Equal(t, int32(1), told.Load())
}

func TestFinding(t *testing.T) {
	h, _ := node(t)
	require.Nil(t, heal.Decision{Verdict: heal.GoAhead}.Finding(h, target))
	for verdict, check := range map[heal.Verdict]string{heal.Wait: "healing_waits", heal.GaveUp: "healing_gave_up",
		heal.InMaintenance: "maintenance"} {
		f := heal.Decision{Verdict: verdict, Reason: "because"}.Finding(h, target)
		require.Equal(t, check, f.Check)
		require.Equal(t, verdict == heal.GaveUp, f.Severity == step.Error)
		require.Equal(t, target+" is not healed: because", f.Message)
		require.NotEmpty(t, f.Fix)
	}
}

// A run silences healing for itself: what people have set it neither shortens nor ends.
func TestMaintenanceOfARun(t *testing.T) {
	h, root := node(t)
	require.NoError(t, os.MkdirAll(root+"/var/lib/st2ha", 0o700))
	turn := func(m heal.Maintenance, own bool) string {
		t.Helper()
		s := &heal.SetMaintenance{To: m, Own: own}
		changes, err := s.Plan(t.Context(), h)
		require.NoError(t, err)
		for _, c := range changes {
			require.NoError(t, c.Apply(t.Context(), h))
		}
		require.NoError(t, s.Verify(t.Context(), h))
		now, err := heal.ReadMaintenance(t.Context(), h, noon)
		require.NoError(t, err)
		return now.String()
	}
	of := func(run string, minutes int) heal.Maintenance {
		return heal.Maintenance{On: true, Since: noon, Until: noon.Add(time.Duration(minutes) * time.Minute), Reason: run,
			Run: run}
	}
	off := func(run string) heal.Maintenance { return heal.Maintenance{Since: noon, Run: run} }
	people := heal.Maintenance{On: true, Since: noon, Reason: "new disk"}

	require.Equal(t, "maintenance is on until 2026-03-01T13:00:00Z (one)", turn(of("one", 60), true))
	require.Equal(t, "maintenance is on until 2026-03-01T13:00:00Z (one)", turn(of("two", 1), true), "another run's")
	require.Equal(t, "maintenance is on until 2026-03-01T13:00:00Z (one)", turn(off("two"), true))
	require.Equal(t, "maintenance is on until 2026-03-01T12:01:00Z (one)", turn(of("one", 1), true), "its own")
	require.Equal(t, "no maintenance", turn(off("one"), true))
	require.Equal(t, "maintenance is on (new disk)", turn(people, false))
	require.Equal(t, "maintenance is on (new disk)", turn(of("one", 60), true))
	require.Equal(t, "maintenance is on (new disk)", turn(off("one"), true))
	require.Equal(t, "no maintenance", turn(off(""), false))
	require.Equal(t, "maintenance is on until 2026-03-01T13:00:00Z (one)", turn(of("one", 60), true))
	require.Equal(t, "no maintenance", turn(off(""), false), "people may end a run's")
}

// touch(1) switches it on also where one that a run had set has been, and is over.
func TestMaintenanceTouched(t *testing.T) {
	h, root := node(t)
	require.NoError(t, os.MkdirAll(root+"/var/lib/st2ha", 0o700))
	data, err := heal.Maintenance{Since: noon, Until: noon.Add(time.Minute), Run: "one"}.Encode()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(root+heal.MaintenanceFile, data, 0o644))
	m, err := heal.Silence(t.Context(), h, noon.Add(59*time.Second))
	require.NoError(t, err)
	require.True(t, m.On)
	require.FileExists(t, root+heal.MaintenanceFile)
	m, err = heal.Silence(t.Context(), h, noon.Add(time.Minute))
	require.NoError(t, err)
	require.False(t, m.On)
	require.NoFileExists(t, root+heal.MaintenanceFile)
	out, err := exec.Command("touch", root+heal.MaintenanceFile).CombinedOutput()
	require.NoError(t, err, string(out))
	m, err = heal.Silence(t.Context(), h, noon.Add(time.Hour))
	require.NoError(t, err)
	require.True(t, m.On)
}

// A clock that was set back neither cuts a silence short nor makes it last until
// the clock has caught up.
func TestMaintenanceClockSetBack(t *testing.T) {
	h, root := node(t)
	require.NoError(t, os.MkdirAll(root+"/var/lib/st2ha", 0o700))
	ahead := noon.AddDate(1, 0, 0)
	set := func(m heal.Maintenance) {
		t.Helper()
		data, err := m.Encode()
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(root+heal.MaintenanceFile, data, 0o600))
	}
	on := func(at time.Duration) bool {
		t.Helper()
		m, err := heal.Silence(t.Context(), h, noon.Add(at))
		require.NoError(t, err)
		return m.On
	}
	set(heal.Maintenance{Since: ahead, Until: ahead.Add(time.Hour), Reason: "new disk"})
	m, err := heal.ReadMaintenance(t.Context(), h, noon)
	require.NoError(t, err)
	require.Equal(t, "maintenance is on until 2026-03-01T13:00:00Z (new disk)", m.String())
	require.True(t, on(0))
	require.True(t, on(59*time.Minute))
	require.False(t, on(time.Hour))

	set(heal.Maintenance{Since: ahead, Reason: "until it is switched off"})
	require.True(t, on(0))
	require.True(t, on(1000*time.Hour))
	set(heal.Maintenance{Since: noon.Add(30 * time.Second), Until: noon.Add(30*time.Second + time.Hour)})
	require.True(t, on(0))
	require.True(t, on(time.Hour+29*time.Second), "another node's clock is a little ahead: its end stays")
	require.False(t, on(time.Hour+30*time.Second))
}
