package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backend"
	"st2ha/internal/backend/mongodb"
	"st2ha/internal/backend/rabbitmq"
	"st2ha/internal/backend/redis"
	"st2ha/internal/backendtest"
	"st2ha/internal/incident"
	mongoclient "st2ha/internal/mongodb"
	"st2ha/internal/probe"
	rabbitclient "st2ha/internal/rabbitmq"
	redisclient "st2ha/internal/redis"
	"st2ha/internal/watch"
)

const (
	settle  = 4 * time.Second  // until all connections are made
	measure = 10 * time.Second // time enough for one fresh login of each endpoint
)

// footprintMain watches as many endpoints as it is told, and then says what it
// took: the time on a CPU in the end, and memory.
func footprintMain() {
	n, _ := strconv.Atoi(os.Getenv("ST2HA_TEST_ENDPOINTS"))
	coordinator, broker, mongod := os.Getenv("ST2HA_TEST_REDIS"), os.Getenv("ST2HA_TEST_BROKER"),
		os.Getenv("ST2HA_TEST_MONGOD")
	p := watch.NewProber("n1", backend.Config{}, slog.New(slog.DiscardHandler))
	p.Begin("sensor", nil, func(incident.Event) {})
	var endpoints []probe.Endpoint
	for i := range n {
		e := probe.Endpoint{Backend: "redis", Name: fmt.Sprint(i),
			Watch: redis.Watch(redis.Settings{Server: redisclient.Server{Addr: coordinator}})}
		switch { // a mix if there are others
		case broker != "" && i%3 == 0:
			e.Backend = "rabbitmq"
			e.Watch = rabbitmq.Watch(rabbitmq.Settings{Login: rabbitclient.Login{Addr: broker, User: backendtest.User,
				Password: backendtest.Password, VHost: "/"}})
		case mongod != "" && i%3 == 1:
			e.Backend, e.Watch = "mongodb", mongodb.Watch(mongodb.Settings{Server: mongoclient.Server{URI: "mongodb://" +
				mongod + "/"}, Addr: mongod})
		}
		endpoints = append(endpoints, e)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.Watcher.Watch(ctx, "n1", endpoints)
	time.Sleep(settle)
	before := onCPU()
	time.Sleep(measure)
	used := onCPU() - before
	up := 0
	for _, s := range p.Watcher.Statuses() {
		if s.State == incident.Up {
			up++
		}
	}
	fmt.Println(used.Seconds()/measure.Seconds()*100, rss(), up)
	cancel()
	os.Exit(0)
}

// onCPU is the time this process has had on a CPU (getrusage(2)).
func onCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rss is this process's memory in MB, as the kernel counts it at this moment (proc(5)).
func rss() float64 {
	data, _ := os.ReadFile("/proc/self/statm")
	var size, resident float64
	_, _ = fmt.Sscan(string(data), &size, &resident)
	return resident * float64(os.Getpagesize()) / (1 << 20)
}

// footprint prints the share of one core and the memory that n endpoints take.
func footprint(b *testing.B, n int, env ...string) {
	for b.Loop() {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(append(os.Environ(), "ST2HA_TEST_MAIN=footprint", fmt.Sprintf("ST2HA_TEST_ENDPOINTS=%d", n)), env...)
		out, err := cmd.Output()
		require.NoError(b, err)
		var cpu, memory float64
		var up int
		_, err = fmt.Sscan(string(out), &cpu, &memory, &up)
		require.NoError(b, err)
		// Beside a machine's other work a thousand first logins at once may take longer than their deadline.
		b.ReportMetric(float64(up)/float64(n)*100, "%up")
		b.ReportMetric(cpu, "%core")
		b.ReportMetric(memory, "MB")
	}
	b.ReportMetric(0, "ns/op") // says nothing
}

// BenchmarkFootprint is the curve over the number of endpoints, at the default
// intervals: pings every 250 ms, fresh logins every 10 s.
func BenchmarkFootprint(b *testing.B) {
	coordinator, err := backendtest.NewRedis(b, b.TempDir(), "maxclients 5000")
	require.NoError(b, err)
	defer coordinator.Kill()
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("redis=%d", n), func(b *testing.B) { footprint(b, n, "ST2HA_TEST_REDIS="+coordinator.Addr) })
	}
	broker, err := backendtest.NewBroker(b, b.TempDir())
	require.NoError(b, err)
	defer broker.Close()
	dir := b.TempDir()
	program, err := backendtest.BuildMongod(dir)
	require.NoError(b, err)
	mongod, err := backendtest.NewMongod(program, dir, false)
	require.NoError(b, err)
	defer mongod.Kill()
	b.Run("mixed=10", func(b *testing.B) {
		footprint(b, 10, "ST2HA_TEST_REDIS="+coordinator.Addr, "ST2HA_TEST_BROKER="+broker.Addr,
			"ST2HA_TEST_MONGOD="+mongod.Addr)
	})
}
