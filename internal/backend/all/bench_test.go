package all_test

import (
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
)

// percentiles prints those of what was measured.
func percentiles(b *testing.B, what string, took []time.Duration) {
	slices.Sort(took)
	for name, share := range map[string]float64{"p50": 0.5, "p99": 0.99, "max": 1} {
		i := int(math.Ceil(share*float64(len(took)))) - 1
		b.ReportMetric(float64(took[i].Microseconds())/1000, what+"-"+name+"-ms")
	}
	b.ReportMetric(0, "ns/op")
}

func benchEach(b *testing.B, f func(b *testing.B, s backend)) {
	b.Run("MongoDB", func(b *testing.B) { f(b, mongoBackend(b)) })
	b.Run("RabbitMQ", func(b *testing.B) { f(b, rabbitBackend(b)) })
	b.Run("Redis", func(b *testing.B) { f(b, redisBackend(b)) })
}

// settle waits until the endpoint is watched, and a random part of a cadence.
func settle(w *probetest.Watched) {
	w.Is(probe.Ping, probe.Good, "")
	time.Sleep(rand.N(time.Second))
}

// BenchmarkKilled is the time from SIGKILL to the report that is down at once,
// and the part of it after the server's kernel has closed its connections:
// what comes before is the time that a big process takes to die.
func BenchmarkKilled(b *testing.B) {
	benchEach(b, func(b *testing.B, s backend) {
		var took, closed []time.Duration
		for range b.N {
			w := probetest.Start(b, s.watch(s.addr, probe.Timing{}))
			settle(w)
			conn, err := net.Dial("tcp", s.addr)
			require.NoError(b, err)
			ended := make(chan time.Time)
			go func() {
				_, _ = conn.Read(make([]byte, 1))
				ended <- time.Now()
			}()
			at := s.kill()
			seen := w.Is(probe.Connection, probe.Bad, "connection refused").At
			took, closed = append(took, seen.Sub(at)), append(closed, seen.Sub(<-ended))
			w.End()
			require.NoError(b, conn.Close())
			require.NoError(b, s.start())
		}
		percentiles(b, "killed", took)
		percentiles(b, "closed", closed)
	})
}

// BenchmarkFrozen is the time from SIGSTOP to suspect and to down.
func BenchmarkFrozen(b *testing.B) {
	benchEach(b, func(b *testing.B, s backend) {
		var suspect, down []time.Duration
		for range b.N {
			w := probetest.Start(b, s.watch(s.addr, probe.Timing{}))
			settle(w)
			at := time.Now()
			s.freeze()
			first, last := w.Trouble()
			s.thaw()
			suspect, down = append(suspect, first.At.Sub(at)), append(down, last.At.Sub(at))
			w.End()
		}
		percentiles(b, "suspect", suspect)
		percentiles(b, "down", down)
	})
}

// BenchmarkAlarm is the time from RabbitMQ's own memory alarm to the report.
func BenchmarkAlarm(b *testing.B) {
	broker := shared.Broker(b)
	w := probetest.Start(b, rabbitBackend(b).watch(broker.Addr, probe.Timing{}))
	var took []time.Duration
	for range b.N {
		settle(w)
		began := broker.MustCtl(b, "", "eval",
			"T = erlang:system_time(microsecond), rabbit_alarm:set_alarm({{resource_limit, memory, node()}, []}), T.")
		o := w.Is(probe.Alarm, probe.Bad, "memory alarm: publishers are blocked")
		us, err := strconv.ParseInt(began, 10, 64)
		require.NoError(b, err)
		took = append(took, o.At.Sub(time.UnixMicro(us)))
		broker.MustCtl(b, "", "eval", "rabbit_alarm:clear_alarm({resource_limit, memory, node()}).")
		w.Is(probe.Alarm, probe.Good, "")
	}
	percentiles(b, "alarm", took)
}

// BenchmarkWatching is what ten endpoints of a backend cost while all is well.
func BenchmarkWatching(b *testing.B) {
	benchEach(b, func(b *testing.B, s backend) {
		for range 10 {
			w := probetest.Start(b, s.watch(s.addr, probe.Timing{}))
			w.Is(probe.Ping, probe.Good, "")
		}
		cpu := func() time.Duration {
			var u syscall.Rusage
			require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
			return time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
		before, began := cpu(), time.Now()
		for range b.N {
			time.Sleep(time.Second)
		}
		b.ReportMetric(100*float64(cpu()-before)/float64(time.Since(began)), "%core")
		b.ReportMetric(0, "ns/op")
	})
}
