package watchdog

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	backends "st2ha/internal/backend/all"
	"st2ha/internal/backend/st2"
	"st2ha/internal/heal"
	"st2ha/internal/host"
	"st2ha/internal/incident"
	"st2ha/internal/probe"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

const (
	source      = "watchdog"
	healEvery   = time.Second      // a look at what is down
	healTime    = 5 * time.Minute  // for a restart: RabbitMQ takes half a minute on a slow node
	startupTime = 60 * time.Second // a unit that systemd calls active may still be recovering its data
	patience    = 30 * time.Second // what is silent may be slow, and a restart of what is slow makes an outage of it
)

// endpoints are a node's, as a prober sees them (watch.Watcher).
type endpoints interface {
	Statuses() []incident.Status
	CutOff() bool // from all other nodes
	Healed(key probe.Key, by string) (incident string)
	Node() string
}

// healer restarts what is down on this node, within the limits that actions
// are held to as well.
type healer struct {
	host      host.Host
	endpoints endpoints
	log       *slog.Logger
	ledger    heal.Ledger
	report    func(heal.Event)       // has StackStorm and people know
	count     func(probe.Key, error) // counts a heal
	gaveUp    func(probe.Key, bool)  // notes whether a person is needed for an endpoint
	mender    *mender

	mu       sync.Mutex
	busy     map[probe.Key]bool   // a restart is under way, or its decision
	refused  map[probe.Key]string // why an endpoint is not healed, as it was said last
	restarts map[probe.Key]string // the unit that was restarted, until it is up
	wait     sync.WaitGroup

	withdrawn time.Time               // since when this node exports less than it should
	silent    map[probe.Key]time.Time // since when an endpoint is down without an answer; of healAll alone
}

func newHealer(h host.Host, e endpoints, log *slog.Logger) *healer {
	healer := &healer{host: h, endpoints: e, log: log, ledger: heal.Default(),
		report: func(heal.Event) {}, count: func(probe.Key, error) {}, gaveUp: func(probe.Key, bool) {},
		busy: map[probe.Key]bool{}, refused: map[probe.Key]string{}, restarts: map[probe.Key]string{},
		silent: map[probe.Key]time.Time{}}
	healer.mender = newMender(healer)
	return healer
}

// run heals until ctx ends, and then waits for a restart that is under way. It
// looks at once whenever kicked says so.
func (h *healer) run(ctx context.Context, kicked <-chan struct{}) {
	defer h.wait.Wait()
	tick := time.NewTicker(healEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-kicked:
		}
		h.healAll(ctx)
	}
}

// healAll begins what there is to do for each endpoint.
func (h *healer) healAll(ctx context.Context) {
	// A switch that is over is taken away. What keeps that from being done is said when something is to be healed.
	_, _ = heal.Silence(ctx, h.host, time.Now())
	all := h.endpoints.Statuses()
	h.mender.mendAll(ctx, all, time.Now())
	for _, s := range all {
		patient := h.patient(s, time.Now())
		switch {
		case s.State == incident.Up:
			h.begin(s.Key, func() { h.recovered(ctx, s.Key) })
		case s.State == incident.Down && !patient && healable(s, all) && !h.endpoints.CutOff() && !h.starved(s, all):
			h.begin(s.Key, func() { h.heal(ctx, s) })
		}
	}
}

// patient says whether an endpoint that is down by silence alone is to be
// waited for. One that refuses is not: nobody is there.
func (h *healer) patient(s incident.Status, now time.Time) bool {
	if s.State != incident.Down || !s.Silent {
		delete(h.silent, s.Key)
		return false
	}
	if h.silent[s.Key].IsZero() {
		h.silent[s.Key] = now
	}
	return now.Sub(h.silent[s.Key]) < patience
}

// begin does something for an endpoint unless something is being done.
func (h *healer) begin(key probe.Key, f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.busy[key] {
		return
	}
	h.busy[key] = true
	h.wait.Go(func() {
		f()
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.busy, key)
	})
}

// healable says whether a restart of a unit of this node could help. A login
// that is refused, an alarm, an export or a set without primary it does not.
func healable(s incident.Status, all []incident.Status) bool {
	if s.Host != "" || s.Answers {
		return false
	}
	if s.Backend != st2.Name {
		restartable := len(backends.Get(s.Backend).Units) > 0
		return restartable && (s.Probe == probe.Connection || s.Probe == probe.Ping)
	}
	// One worker that cannot publish is restarted by the rule's action; the unit is all of them, with what they do.
	if s.Probe == st2.ProbeJournal && s.Name == "st2actionrunner" {
		return false
	}
	// Without its backends a service cannot run, and comes back when they do.
	for _, b := range backends.Backends() {
		if b.Needed && !answers(b.Name, all) {
			return false
		}
	}
	return true
}

// starved says whether several backends of this node are silent together: then
// the node has no CPU or disk for them, which a restart would take more of.
func (h *healer) starved(s incident.Status, all []incident.Status) bool {
	for _, other := range all {
		if s.Silent && other.Silent && other.Host == "" && other.Key != s.Key {
			h.refuse(s, "", fmt.Sprintf("%s is silent too: this node is overloaded", other.Key), false)
			return true
		}
	}
	return false
}

// answers says whether an endpoint of a backend is up.
func answers(b string, all []incident.Status) bool {
	for _, s := range all {
		if s.Backend == b && s.State == incident.Up {
			return true
		}
	}
	return false
}

// recovered gives back what was held against an endpoint that is up.
func (h *healer) recovered(ctx context.Context, key probe.Key) {
	h.mu.Lock()
	unit := h.restarts[key]
	delete(h.restarts, key)
	delete(h.refused, key)
	h.mu.Unlock()
	h.gaveUp(key, false)
	if unit == "" {
		return
	}
	if err := h.ledger.Recovered(ctx, h.host, unit, time.Now()); err != nil {
		h.log.Error("note a recovery", "unit", unit, "error", err)
	}
}

// heal restarts the unit of an endpoint that is down, if it is allowed to.
func (h *healer) heal(ctx context.Context, s incident.Status) {
	ctx, cancel := context.WithTimeout(ctx, healTime)
	defer cancel()
	unit, err := h.unit(ctx, s.Key)
	if err != nil {
		h.refuse(s, "", err.Error(), false)
		return
	}
	h.mu.Lock()
	h.restarts[s.Key] = unit
	h.mu.Unlock()
	if wait := settling(ctx, h.host, unit); wait != "" {
		h.refuse(s, unit, wait, false)
		return
	}
	release, err := step.TryLock(ctx, h.host, source+", "+unit)
	if err != nil {
		h.refuse(s, unit, err.Error(), false) // a run is at work here, and restarts what it changes
		return
	}
	defer release()
	if h.answersAgain(s.Key) {
		return
	}
	full, err := heal.DiskFull(ctx, h.host, s.Backend)
	if err != nil {
		h.log.Error("find out how full a disk is", "error", err)
	}
	if full != "" {
		h.gaveUp(s.Key, true)
		h.refuse(s, unit, "not restarted: "+full, true)
		return
	}
	d, err := h.ledger.Allow(ctx, h.host, unit, time.Now())
	if err == nil {
		h.gaveUp(s.Key, d.Verdict == heal.GaveUp)
	}
	switch {
	case err != nil:
		h.refuse(s, unit, err.Error(), false)
	case d.Verdict == heal.Wait: // it is decided anew at the next look
	case d.Verdict == heal.GaveUp:
		h.refuse(s, unit, d.Reason, d.First)
	case d.Verdict != heal.GoAhead:
		h.refuse(s, unit, d.Reason, false)
	default:
		h.restart(ctx, s, unit, d.Heals)
	}
}

// answersAgain is asked last before a restart: on a node that is short of CPU,
// what comes before it takes seconds.
func (h *healer) answersAgain(key probe.Key) bool {
	for _, s := range h.endpoints.Statuses() {
		if s.Key == key {
			return s.Answers
		}
	}
	return true // it is not watched any more
}

func (h *healer) unit(ctx context.Context, key probe.Key) (string, error) {
	if key.Backend == st2.Name {
		return key.Name, nil
	}
	return heal.Unit(ctx, h.host, key.Backend)
}

// settling says why a unit is to be left to systemd for now: it is on its way
// up, or down; whoever stops it need not be disturbed in the middle of that.
func settling(ctx context.Context, h host.Host, unit string) (why string) {
	state, since, err := service.Activity(ctx, h, unit)
	switch {
	case err != nil:
		return err.Error()
	case state == "activating" || state == "reloading" || state == "deactivating":
		return "systemd says that it is " + state
	case state == "active" && since < startupTime:
		return fmt.Sprintf("it was started less than %s ago", startupTime)
	}
	return ""
}

// restart restarts the unit, and reports it.
func (h *healer) restart(ctx context.Context, s incident.Status, unit string, heals int) {
	h.endpoints.Healed(s.Key, source)
	h.announce(heal.Event{Event: heal.EventHealed, Target: unit, Heals: heals,
		Reason: fmt.Sprintf("restarting %s: %s: %s", unit, s.Key, s.Reason)})
	err := (&service.Restart{Unit: unit}).Apply(ctx, h.host)
	h.count(s.Key, err)
	if err != nil {
		h.log.Error("heal", "endpoint", s.Key.String(), "error", err)
	}
}

// refuse says once why an endpoint is not healed; people hear of it too if they
// have to act.
func (h *healer) refuse(s incident.Status, unit, reason string, people bool) {
	h.mu.Lock()
	said := h.refused[s.Key] == reason
	h.refused[s.Key] = reason
	h.mu.Unlock()
	if said {
		return
	}
	h.log.Warn("not healed", "endpoint", s.Key.String(), "reason", reason)
	if people {
		h.announce(heal.Event{Event: heal.EventGaveUp, Target: unit, Reason: fmt.Sprintf("%s: %s", s.Key, reason)})
	}
}

// announce reports what is done, or that nothing can be done, in the node's name.
func (h *healer) announce(e heal.Event) {
	e.Node, e.By, e.At = h.endpoints.Node(), source, time.Now()
	h.log.Info(e.Event, "target", e.Target, "reason", e.Reason)
	h.report(e)
}
