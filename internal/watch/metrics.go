package watch

import (
	"fmt"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"st2ha/internal/fault"
	"st2ha/internal/incident"
	"st2ha/internal/probe"
)

// Metrics are what Prometheus is told; they are kept also when nobody asks.
type Metrics struct {
	registry *prometheus.Registry
	up       *prometheus.GaugeVec
	duration *prometheus.HistogramVec
	changes  *prometheus.CounterVec
	heals    *prometheus.CounterVec
	gaveUp   *prometheus.GaugeVec
	LeftOut  prometheus.Counter // events that became no trigger, for there were too many
	Merged   prometheus.Counter // events that were another observer's, too

	mu   sync.Mutex
	took map[probe.Key]time.Duration // of the newest answer
}

// What came of a heal, as a label has it.
const (
	healDone   = "done"
	healFailed = "failed"
)

func newMetrics() *Metrics {
	of := []string{"backend", "endpoint"}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		up: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "st2ha_up",
			Help: "Whether the endpoint is up: 1, else 0."}, of),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "st2ha_probe_duration_seconds",
			Help: "Time until a probe was answered.", Buckets: prometheus.ExponentialBuckets(0.0002, 2.5, 12)}, of),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "st2ha_state_changes_total",
			Help: "Changes of an endpoint's state, by the state that was entered."}, []string{"backend", "endpoint", "state"}),
		heals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "st2ha_heals_total",
			Help: "Heals of an endpoint by this watchdog, by what came of the attempt."},
			[]string{"backend", "endpoint", "result"}),
		gaveUp: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "st2ha_healing_gave_up",
			Help: "Whether this watchdog heals the endpoint no more, for a person is needed: 1, else 0."}, of),
		LeftOut: prometheus.NewCounter(prometheus.CounterOpts{Name: "st2ha_events_left_out_total",
			Help: "Events that became no trigger, for there were too many in a short time."}),
		Merged: prometheus.NewCounter(prometheus.CounterOpts{Name: "st2ha_events_merged_total",
			Help: "Events that became no trigger, for another observer had told of the same fault."}),
		took: map[probe.Key]time.Duration{},
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "st2ha_build_info", Help: "The program that runs; always 1.",
		ConstLabels: prometheus.Labels{"revision": revision(), "goversion": runtime.Version()}})
	build.Set(1)
	m.registry.MustRegister(m.up, m.duration, m.changes, m.heals, m.gaveUp, m.LeftOut, m.Merged, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// revision is the commit the program was built from.
func revision() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

// watching begins with endpoints that are not known to be up, and forgets others. Counters begin at 0, or Prometheus
// would not see the first that is counted as an increase.
func (m *Metrics) watching(endpoints []probe.Endpoint) {
	m.up.Reset()
	m.gaveUp.Reset()
	for _, e := range endpoints {
		m.up.WithLabelValues(e.Backend, e.Name).Set(0)
		for _, state := range []incident.State{incident.Down, incident.Flapping} {
			m.changes.WithLabelValues(e.Backend, e.Name, string(state))
		}
		for _, result := range []string{healDone, healFailed} {
			m.heals.WithLabelValues(e.Backend, e.Name, result)
		}
	}
}

func (m *Metrics) changed(e incident.Event) {
	up := 0.0
	if e.State == incident.Up {
		up = 1
	}
	m.up.WithLabelValues(e.Backend, e.Endpoint).Set(up)
	m.changes.WithLabelValues(e.Backend, e.Endpoint, string(e.State)).Inc()
}

func (m *Metrics) seen(k probe.Key, o probe.Observation) {
	if o.Took <= 0 || o.Verdict != probe.Good {
		return
	}
	m.duration.WithLabelValues(k.Backend, k.Name).Observe(o.Took.Seconds())
	m.mu.Lock()
	defer m.mu.Unlock()
	m.took[k] = o.Took
}

// Healed counts a heal of an endpoint, and what came of it.
func (m *Metrics) Healed(k probe.Key, err error) {
	result := healDone
	if err != nil {
		result = healFailed
	}
	m.heals.WithLabelValues(k.Backend, k.Name, result).Inc()
}

// GaveUp says whether an endpoint is healed no more.
func (m *Metrics) GaveUp(k probe.Key, gaveUp bool) {
	value := 0.0
	if gaveUp {
		value = 1
	}
	m.gaveUp.WithLabelValues(k.Backend, k.Name).Set(value)
}

// Latency is the time the newest answer took, for people.
func (m *Metrics) Latency(k probe.Key) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	took, ok := m.took[k]
	if !ok {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", float64(took.Microseconds())/1000)
}

// ServeMetrics answers at addr until stop is called.
func (p *Prober) ServeMetrics(addr string) (stop func(), err error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fault.Failed("metrics", "give an address of this machine that is free", "serve metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.Metrics.registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second}
	go func() { _ = server.Serve(l) }()
	p.Log.Info("serving metrics", "address", l.Addr().String())
	return func() { _ = server.Close() }, nil
}
