package nfs_test

import (
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"st2ha/internal/backend/nfs"
	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
	"st2ha/internal/rpcping/nfstest"
	"st2ha/internal/testenv"
)

const (
	packs = "/opt/stackstorm/packs"
	venvs = "/opt/stackstorm/virtualenvs"
)

func good(tb testing.TB, w *probetest.Record, from int, probes ...string) {
	tb.Helper()
	for _, name := range probes {
		w.Next(tb, from, name, probe.Good, "")
	}
}

func TestNFSServer(t *testing.T) {
	server := nfstest.Start(t, packs, venvs)
	w := probetest.Run(t, nfs.Watch(server.Addr, []string{packs, venvs}, nfs.DefaultSettings()))
	good(t, w, 0, "ping", "export "+packs, "export "+venvs)

	t.Run("withdrawn", func(t *testing.T) {
		from, at := w.Mark(), time.Now()
		server.Export(venvs)
		o := w.Next(t, from, "export "+packs, probe.Bad, "export "+packs+" withdrawn")
		t.Logf("found after %v", o.At.Sub(at))
		require.Equal(t, probe.Limit{Suspect: 1, Down: 2}, o.Limit)
		require.Eventually(t, func() bool {
			n := 0
			for _, o := range w.Since(from) {
				if o.Probe == "export "+packs && o.Verdict == probe.Bad {
					n++
				}
				require.False(t, o.Probe == "export "+venvs && o.Verdict != probe.Good)
			}
			return n >= 2
		}, 900*time.Millisecond, time.Millisecond, "looked at again probetest.Soon")
		server.Export(packs, venvs)
		good(t, w, w.Mark(), "export "+packs)
	})
	t.Run("frozen", func(t *testing.T) {
		from, at := w.Mark(), time.Now()
		server.Freeze()
		first := w.Next(t, from, "ping", probe.Silent, "no answer for")
		t.Logf("found after %v", first.At.Sub(at))
		require.Equal(t, probe.Limit{Suspect: 2, DownAfter: 2750 * time.Millisecond}, first.Limit)
		w.Next(t, from, "export "+packs, probe.Silent, "export "+packs+": no answer for 500 ms")
		require.Eventually(t, func() bool {
			seen := w.Since(from)
			o := seen[len(seen)-1]
			return o.Probe == "ping" && strings.HasPrefix(o.Reason, "no answer for 1.")
		}, probetest.Soon, time.Millisecond, "the reason grows")
		server.Thaw()
		good(t, w, w.Mark(), "ping", "export "+packs)
	})
	t.Run("killed", func(t *testing.T) {
		from, at := w.Mark(), time.Now()
		server.Kill()
		o := w.Next(t, from, "ping", probe.Bad, "connection refused")
		t.Logf("found after %v", o.At.Sub(at))
		require.Equal(t, probe.Limit{Suspect: 1, Down: 1}, o.Limit)
		server.Run()
		good(t, w, w.Mark(), "ping", "export "+packs, "export "+venvs)
	})
}

// Below a root of its own (exports(5): fsid=0) an export has another path by NFSv4 than by NFSv3: a mount by NFSv3 is
// whole, and the export not withdrawn.
func TestNFSServerOtherRoot(t *testing.T) {
	server := nfstest.Start(t, "/elsewhere")
	for version3, want := range map[bool]probe.Verdict{true: probe.Unknown, false: probe.Bad} {
		s := nfs.DefaultSettings()
		s.Version3 = func(export string) bool { return version3 && export == packs }
		w := probetest.Run(t, nfs.Watch(server.Addr, []string{packs, "/elsewhere", "/elsewhere/deeper"}, s))
		good(t, w, 0, "ping", "export /elsewhere")
		w.Next(t, 0, "export "+packs, want, "export "+packs)
		w.Next(t, 0, "export /elsewhere/deeper", probe.Bad, "export /elsewhere/deeper withdrawn")
		w.End()
	}
}

// Packets that vanish: a connection that goes on to wait as TCP does would see
// the end of a long cut much too late.
func TestNFSServerCut(t *testing.T) {
	server := nfstest.StartAway(t, packs)
	w := probetest.Run(t, nfs.Watch(server.Addr, []string{packs}, nfs.DefaultSettings()))
	good(t, w, 0, "ping", "export "+packs)
	from, at := w.Mark(), time.Now()
	server.Cut()
	t.Logf("found after %v", w.Next(t, from, "ping", probe.Silent, "no answer for").At.Sub(at))
	time.Sleep(8 * time.Second)
	for _, o := range w.Since(from) {
		require.True(t, o.Verdict != probe.Bad && o.Verdict != probe.Unknown, "%+v", o)
	}
	from, at = w.Mark(), time.Now()
	server.Heal()
	took := w.Next(t, from, "ping", probe.Good, "").At.Sub(at)
	t.Logf("well after %v", took)
	require.Less(t, took, 2*time.Second)
	good(t, w, from, "export "+packs)
}

func TestNFSServerLeavesNothing(t *testing.T) {
	server := nfstest.Start(t, packs)
	first := probetest.Run(t, nfs.Watch(server.Addr, nil, nfs.DefaultSettings()))
	good(t, first, 0, "ping")
	first.End()
	before := probetest.NowLeft(t)
	for range 20 {
		w := probetest.Run(t, nfs.Watch(server.Addr, []string{packs}, nfs.DefaultSettings()))
		good(t, w, 0, "ping", "export "+packs)
		w.End()
	}
	server.Freeze()
	for range 5 {
		w := probetest.Run(t, nfs.Watch(server.Addr, []string{packs}, nfs.DefaultSettings()))
		at := time.Now()
		w.Next(t, 0, "ping", probe.Silent, "no answer for")
		w.End()
		require.Less(t, time.Since(at), time.Second)
	}
	before.Same(t)
}

// A proxy whose own backend is away takes connections and ends them.
func TestNFSServerEnds(t *testing.T) {
	var accepted atomic.Int64
	addr := testenv.Serve(t, func(net.Conn) { accepted.Add(1) })
	w := probetest.Run(t, nfs.Watch(addr, []string{packs}, nfs.DefaultSettings()))
	o := w.Next(t, 0, "ping", probe.Bad, "the server ended the connection")
	require.Equal(t, 2, o.Limit.Suspect)
	time.Sleep(time.Second)
	before := accepted.Load()
	time.Sleep(time.Second)
	require.LessOrEqual(t, accepted.Load()-before, int64(5), "no faster than the interval in the end")
}

func TestNFSServerElsewhere(t *testing.T) {
	w := probetest.Run(t, nfs.Watch("no-such-host.invalid:2049", nil, nfs.DefaultSettings()))
	require.Eventually(t, func() bool { return w.Mark() > 0 }, probetest.Soon, time.Millisecond)
	require.NotEqual(t, probe.Bad, w.Since(0)[0].Verdict, "%+v", w.Since(0)[0])

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	w = probetest.Run(t, nfs.Watch(l.Addr().String(), nil, nfs.DefaultSettings()))
	w.Next(t, 0, "ping", probe.Bad, "connection refused")
}

// BenchmarkNFSServerKilled prints how long after SIGKILL the end is reported.
func BenchmarkNFSServerKilled(b *testing.B) {
	server := nfstest.Start(b, packs)
	w := probetest.Run(b, nfs.Watch(server.Addr, []string{packs}, nfs.DefaultSettings()))
	var took []time.Duration
	for b.Loop() {
		good(b, w, w.Mark(), "ping")
		from, at := w.Mark(), time.Now()
		server.Kill()
		took = append(took, w.Next(b, from, "ping", probe.Bad, "connection refused").At.Sub(at))
		server.Run()
	}
	probetest.Quantiles(b, took)
}

// BenchmarkNFSServerWithdrawn prints how long after exportfs the loss is reported, with the second finding.
func BenchmarkNFSServerWithdrawn(b *testing.B) {
	server := nfstest.Start(b, packs, venvs)
	w := probetest.Run(b, nfs.Watch(server.Addr, []string{packs}, nfs.DefaultSettings()))
	var took []time.Duration
	for b.Loop() {
		good(b, w, w.Mark(), "export "+packs)
		from, at := w.Mark(), time.Now()
		server.Export(venvs)
		first := w.Next(b, from, "export "+packs, probe.Bad, "export "+packs+" withdrawn")
		for from++; ; from++ {
			if w.Next(b, from, "export "+packs, probe.Bad, "export "+packs+" withdrawn") != first {
				break
			}
		}
		took = append(took, w.Next(b, from, "export "+packs, probe.Bad, "export "+packs+" withdrawn").At.Sub(at))
		server.Export(packs, venvs)
	}
	probetest.Quantiles(b, took)
}

// BenchmarkNFSServers prints what watching many servers, each with one export,
// takes of one core.
func BenchmarkNFSServers(b *testing.B) {
	server := nfstest.Start(b, packs)
	for _, n := range []int{1, 10, 100} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			var all []*probetest.Record
			for range n {
				all = append(all, probetest.Run(b, nfs.Watch(server.Addr, []string{packs}, nfs.DefaultSettings())))
			}
			for _, w := range all {
				good(b, w, 0, "ping", "export "+packs)
			}
			const second = time.Second
			before := cpu(b)
			for b.Loop() {
				time.Sleep(second)
			}
			b.ReportMetric(100*float64(cpu(b)-before)/float64(time.Duration(b.N)*second), "%-of-a-core")
			for _, w := range all {
				w.End()
			}
		})
	}
}

// cpu is what this process has used so far.
func cpu(b *testing.B) time.Duration {
	var use unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &use))
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
