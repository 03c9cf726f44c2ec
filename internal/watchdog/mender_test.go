package watchdog

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/backend"
	"st2ha/internal/backend/mount"
	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/incident"
	"st2ha/internal/probe"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

// content is a node that mounts a directory and exports one. Its systemd and
// its exportfs are canned, and its NFS server answers.
type content struct {
	*host.Local
	server string // where the NFS server of the mount really is

	mu       sync.Mutex
	ran      []string
	exported bool
}

func newContent(t *testing.T) *content {
	t.Helper()
	testenv.NeedsRoot(t)
	server := testenv.Serve(t, func(conn net.Conn) {
		call := make([]uint32, 11)
		if binary.Read(conn, binary.BigEndian, call) == nil {
			_ = binary.Write(conn, binary.BigEndian, []uint32{1<<31 | 32, call[1], 1, 0, 0, 0, 2, 2, 3})
		}
		_, _ = io.Copy(io.Discard, conn)
	})
	c := &content{Local: host.NewLocalAt("n1", t.TempDir()), server: server, exported: true}
	for _, dir := range []string{step.StateDir, "/proc/1", "/etc", "/srv/shared"} {
		require.NoError(t, os.MkdirAll(c.Path(dir), 0o755))
	}
	for name, text := range map[string]string{
		"/etc/fstab": "127.0.0.7:/packs /nowhere/packs nfs _netdev 0 0\n127.0.0.7:/packs /nowhere/byhand nfs " +
			"noauto 0 0\n",
		"/etc/exports":      "/srv/shared 192.0.2.1(rw)\n/srv/deleted 192.0.2.1(rw)\n",
		"/proc/1/mountinfo": "",
	} {
		require.NoError(t, os.WriteFile(c.Path(name), []byte(text), 0o644))
	}
	return c
}

func (c *content) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if addr == "127.0.0.7:2049" {
		addr = c.server
	}
	return c.Local.DialContext(ctx, network, addr)
}

func (c *content) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch line := strings.Join(argv, " "); {
	case argv[0] == "exportfs" && argv[1] == "-v":
		if c.exported {
			return []byte("/srv/shared\t192.0.2.1(rw,sync)\n"), nil
		}
		return nil, nil
	case argv[0] == "exportfs", strings.HasPrefix(line, "systemctl start"):
		c.ran = append(c.ran, line)
		c.exported = c.exported || argv[0] == "exportfs"
		if argv[0] == "systemctl" {
			return nil, os.WriteFile(c.Path("/proc/1/mountinfo"),
				[]byte("30 1 0:40 / /nowhere/packs rw - nfs4 127.0.0.7:/packs rw\n"), 0o644)
		}
	case argv[1] == "show":
		blocks := make([]string, len(argv)-3)
		for i := range blocks {
			blocks[i] = "LoadState=not-found\nActiveState=inactive\n"
		}
		return []byte(strings.Join(blocks, "\n")), nil
	}
	return nil, nil
}

func (c *content) withdraw() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.exported = false
}

func (c *content) did(line string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.ran, line)
}

const (
	mounts   = `systemctl start nowhere-packs.mount`
	exportfs = "exportfs -ra"
)

// A rules engine hung, and a mount was missing for 11 minutes: what no rule
// mends in time the watchdog does.
func TestWatchdogMendsContent(t *testing.T) {
	t.Parallel()
	c := newContent(t)
	began := time.Now()
	d := runWatchdog(t, c, backend.Config{}, func(w *Watchdog) { w.RuleTime = 3 * time.Second })
	defer func() { t.Log(d.said.String()) }()
	require.Eventually(t, func() bool { return c.did(mounts) }, 20*time.Second, 50*time.Millisecond)
	assert.Greater(t, time.Since(began), 3*time.Second, "a rule is given its time")
	assert.False(t, c.did(exportfs), "what is exported is left alone, and what was deleted, too")
	assert.NotContains(t, d.said.String(), "byhand")
	withdrawn := time.Now()
	c.withdraw()
	require.Eventually(t, func() bool { return c.did(exportfs) }, 20*time.Second, 50*time.Millisecond)
	assert.Greater(t, time.Since(withdrawn), 3*time.Second)
	assert.Contains(t, d.said.String(),
		"mount 127.0.0.7:/packs on /nowhere/packs: not mounted, and no rule has mended it within 3s")
	assert.Contains(t, d.said.String(), "exportfs -ra: /srv/shared withdrawn, and no rule has mended it within 3s")
	// One account with the rules: the next one waits.
	c.withdraw()
	time.Sleep(5 * time.Second)
	c.mu.Lock()
	defer c.mu.Unlock()
	assert.Len(t, c.ran, 2)
}

// The rule's action lies on the packs' mount: the watchdog waits less for it.
func TestPacksAreLeftToARuleForLess(t *testing.T) {
	c := newContent(t)
	require.NoError(t, os.MkdirAll(c.Path("/etc/st2"), 0o755))
	m := newHealer(c, nil, slog.New(slog.DiscardHandler)).mender
	mount := func(dir string) incident.Status {
		return incident.Status{Key: probe.Key{Backend: "mount", Name: dir}, State: incident.Down, Reason: mount.NotMounted}
	}
	for _, tc := range []struct {
		conf, dir string
		want      time.Duration
	}{
		{"", "/opt/stackstorm/packs", packsTime},
		{"", "/opt/stackstorm", packsTime},
		{"", "/opt/stackstorm/configs", ruleTime},
		{"", "/opt/stackstorm/packs/other", ruleTime},
		{"what is this\n[content]\npacks_base_paths = /srv/packs:/srv/more\n", "/srv/more", packsTime},
	} {
		require.NoError(t, os.WriteFile(c.Path("/etc/st2/st2.conf"), []byte(tc.conf), 0o644))
		require.Equal(t, tc.want, m.left(t.Context(), mount(tc.dir)), tc.dir)
		began := time.Now()
		require.False(t, m.overdue(t.Context(), mount(tc.dir), began))
		require.False(t, m.overdue(t.Context(), mount(tc.dir), began.Add(tc.want-time.Second)))
		require.True(t, m.overdue(t.Context(), mount(tc.dir), began.Add(tc.want)))
		delete(m.since, mount(tc.dir).Key)
	}
}

func TestWatchdogLeavesContentAlone(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*testing.T, *content){
		"in maintenance": func(t *testing.T, c *content) {
			require.NoError(t, os.WriteFile(c.Path(heal.MaintenanceFile), nil, 0o600))
		},
		"while a run is at work": func(t *testing.T, c *content) {
			release, err := step.Lock(t.Context(), c, "run one, step mount_nfs", 0)
			require.NoError(t, err)
			t.Cleanup(release)
		},
		"a rule has just tried": func(t *testing.T, c *content) {
			for _, target := range []string{"/nowhere/packs", "/etc/exports"} {
				d, err := heal.Default().Allow(t.Context(), c, target, time.Now())
				require.NoError(t, err)
				require.Equal(t, heal.GoAhead, d.Verdict)
			}
		},
		"it was given up": func(t *testing.T, c *content) {
			for _, target := range []string{"/nowhere/packs", "/etc/exports"} {
				for i := range 4 {
					_, err := heal.Ledger{Heals: 3, Window: time.Hour}.Allow(t.Context(), c, target, time.Now().Add(time.Duration(i)))
					require.NoError(t, err)
				}
			}
		},
		"the server is away": func(t *testing.T, c *content) {
			c.server = "127.0.0.1:1"
			c.exported = true
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newContent(t)
			c.withdraw()
			prepare(t, c)
			d := runWatchdog(t, c, backend.Config{}, func(w *Watchdog) { w.RuleTime = time.Second })
			time.Sleep(5 * time.Second)
			d.stop()
			c.mu.Lock()
			defer c.mu.Unlock()
			assert.Empty(t, c.ran, fmt.Sprint(d.said.String()))
		})
	}
}
