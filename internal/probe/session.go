package probe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http/httptrace"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"st2ha/internal/reach"
	"st2ha/internal/secure"
	"st2ha/internal/wait"
)

// Timing is how often a backend's endpoint is probed, and what its findings
// count for. A zero field means the default.
type Timing struct {
	PingEvery     time.Duration // between the starts of two pings; 250 ms
	PingDeadline  time.Duration // an answer that takes longer is missed, unless the server usually takes longer; 250 ms
	PingMisses    int           // in a row until the endpoint is suspect; 2
	DownAfter     time.Duration // since the first missed ping was sent until it is down; 3 s
	LoginEvery    time.Duration // between two fresh logins; 10 s
	LoginDeadline time.Duration // of one; 4 s
	LoginMisses   int           // in a row until the endpoint is suspect; 2
}

// WithDefaults has the defaults where a field is zero.
func (t Timing) WithDefaults() Timing {
	or := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	or(&t.PingEvery, 250*time.Millisecond)
	or(&t.PingDeadline, 250*time.Millisecond)
	or(&t.DownAfter, 3*time.Second)
	or(&t.LoginEvery, 10*time.Second)
	or(&t.LoginDeadline, 4*time.Second)
	if t.PingMisses == 0 {
		t.PingMisses = 2
	}
	if t.LoginMisses == 0 {
		t.LoginMisses = 2
	}
	return t
}

// The probes of a backend that is reached over TCP.
const (
	Connection = "connection" // a held one, whose end is followed by one new dial
	Ping       = "ping"       // a question that only a working server answers
	Login      = "login"      // a fresh one, as a service that starts now would make
	Alarm      = "alarm"      // a server that answers, and refuses work
)

// Finding is an error that says what to report of it. Any other error of a
// session is of its connection.
type Finding struct {
	Probe  string
	Reason string
	Limit  Limit
}

func (f *Finding) Error() string { return f.Reason }

// Session is one connection to an endpoint, held for as long as it lasts.
type Session interface {
	// Ping asks once, and may learn a fact of the server's part that is worth
	// telling. When ctx ends, it does, and the connection may.
	Ping(ctx context.Context) (fact string, err error)
	// Ended is closed when the connection is seen to be no more.
	Ended() <-chan struct{}
	Close()
}

// Sessions watches one endpoint by a session until ctx ends: it pings, and has
// open make a new session when the old one has ended. An error of open or Ping
// that is no *Finding is of the connection.
func Sessions(ctx context.Context, t Timing, report func(Observation),
	open func(ctx context.Context) (Session, error)) {
	p := &pinger{Timing: t, report: report, open: open}
	p.run(ctx)
}

// pinger pings over one session after the other. One attempt is on its way at a time; an answer
// that comes late is one. Where the held connection has no answer, a fresh one
// is tried beside it before the endpoint is down, once, for it takes the server's
// time: a flow may be lost in the network, and after a short cut TCP waits longer
// and longer before it tries again, while the server answers everybody else.
type pinger struct {
	Timing
	open   func(ctx context.Context) (Session, error)
	report func(Observation)

	session  Session
	silent   time.Time       // since when there has been no answer; zero if there was one
	redialed time.Time       // the last time that was done at once
	fact     string          // of the last answer
	took     time.Duration   // the last attempt
	trouble  map[string]bool // probes whose last report was not Good
	usual    usual
}

// usual is what a server's answers take.
type usual struct {
	took [400]time.Duration // of the newest answers
	n    int
}

func (u *usual) add(took time.Duration) {
	u.took[u.n%len(u.took)] = took
	u.n++
}

// p99 is the time that 99 of 100 answers took at most; 0 as long as few are known.
func (u *usual) p99() time.Duration {
	n := min(u.n, len(u.took))
	if n < 20 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(u.took[:n]))
	return sorted[n*99/100-1]
}

// deadline is when an answer is missed: half as long again as this server
// usually takes, and before it would be down in any case.
func (p *pinger) deadline() time.Duration {
	return max(p.PingDeadline, min(p.usual.p99()*3/2, p.DownAfter*2/3))
}

// attempt is a ping on its way.
type attempt struct {
	began  time.Time
	giveUp context.CancelFunc
	done   chan outcome // gets the one there is
	naming atomic.Bool  // the server's name is being resolved
}

// outcome is an answer to one ping, or the lack of one.
type outcome struct {
	session Session // nil if the connection ended
	fact    string
	err     error
	late    bool // it was given up
}

// refusedPause is between logins that were refused: the second one is made
// soon, and no server's log is filled.
const refusedPause = time.Second

// dyingPause is between dials to a server whose held connection has just
// ended: a process that is killed may close its listener last.
const dyingPause = 5 * time.Millisecond

// run probes until ctx ends.
func (p *pinger) run(ctx context.Context) {
	p.trouble = map[string]bool{}
	var held, fresh *attempt // nil if none is on its way; fresh is only beside held
	begin := func() { held = p.begin(ctx, p.session, p.DownAfter) }
	begin()
	var ending sync.WaitGroup
	defer ending.Wait()
	end := func(a *attempt) {
		if a == nil {
			return
		}
		a.giveUp()
		ending.Go(func() {
			if o := <-a.done; o.session != nil {
				o.session.Close()
			}
		})
	}
	next := time.NewTimer(p.deadline())
	defer next.Stop()
	for {
		var ended <-chan struct{}
		if p.session != nil && held == nil {
			ended = p.session.Ended()
		}
		select {
		case <-ctx.Done():
			if held == nil {
				p.drop()
			}
			end(held)
			end(fresh)
			return
		case <-ended:
			p.drop()
			if p.atOnce() {
				begin()
				next.Reset(p.deadline())
			}
		case o := <-held.outcome():
			if ctx.Err() != nil {
				held, p.session = nil, o.session
				continue
			}
			began := held.began
			held.giveUp()
			if o.late && fresh != nil {
				held, fresh, p.session = fresh, nil, nil // the younger one goes on
				continue
			}
			end(fresh)
			held, fresh = nil, nil
			if again := p.conclude(o, began); again {
				begin()
				if !o.late { // else the misses go on being counted
					next.Reset(p.deadline())
				}
				continue
			}
			next.Reset(time.Until(began.Add(p.pause(o.err))))
		case o := <-fresh.outcome():
			began := fresh.began
			fresh.giveUp()
			fresh = nil
			switch {
			case ctx.Err() != nil:
				if o.session != nil {
					o.session.Close()
				}
				continue
			case o.late || isSilent(o.err):
				continue // no answer there either
			}
			end(held)
			held, p.session = nil, nil
			p.conclude(o, began)
			next.Reset(time.Until(began.Add(p.pause(o.err))))
		case <-next.C:
			if held == nil {
				begin()
				next.Reset(p.deadline())
				continue
			}
			if held.naming.Load() { // nothing has been asked of the server yet
				p.blind("its name is being resolved for "+time.Since(held.began).Round(10*time.Millisecond).String(), p.PingMisses)
				next.Reset(p.PingEvery * 4 / 5)
				continue
			}
			p.miss(held.began)
			// So early that TCP can try the connection a second time, after 1 s, before it is down.
			if silence := time.Since(p.silent); fresh == nil && silence >= p.DownAfter/3 && silence < p.DownAfter {
				fresh = p.begin(ctx, nil, p.DownAfter*2/3)
			}
			next.Reset(p.PingEvery * 4 / 5) // so that two are told in time on a busy machine as well
		}
	}
}

// begin pings, over a new session if there is none, for a time at most.
func (p *pinger) begin(ctx context.Context, s Session, limit time.Duration) *attempt {
	ctx, cancel := context.WithTimeout(ctx, limit)
	a := &attempt{began: time.Now(), giveUp: cancel, done: make(chan outcome, 1)}
	// A net.Dialer tells this trace, whatever is spoken over the connection.
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) { a.naming.Store(true) },
		DNSDone:  func(httptrace.DNSDoneInfo) { a.naming.Store(false) },
	})
	go func() { a.done <- p.ping(ctx, s) }()
	return a
}

func (a *attempt) outcome() <-chan outcome {
	if a == nil {
		return nil
	}
	return a.done
}

func (p *pinger) ping(ctx context.Context, s Session) outcome {
	var o outcome
	if o.session = s; s == nil {
		o.session, o.err = p.open(ctx)
	}
	if o.err == nil {
		o.fact, o.err = o.session.Ping(ctx)
	}
	var f *Finding
	if o.err != nil && !errors.As(o.err, &f) {
		o.late = (ctx.Err() != nil || errors.Is(o.err, context.DeadlineExceeded)) && !unresolved(o.err)
		if o.session != nil {
			o.session.Close()
			o.session = nil
		}
	}
	return o
}

// conclude makes findings of what an attempt came to, and says whether the next one is due at
// once: after one that was given up, and when a held connection has ended.
func (p *pinger) conclude(o outcome, began time.Time) (again bool) {
	lived := p.session != nil
	p.session, p.took = o.session, time.Since(began)
	if o.late {
		return true
	}
	p.silent = time.Time{}
	if o.err == nil {
		p.fact = o.fact
		p.usual.add(p.took)
	}
	p.judge(o.err)
	return lived && p.session == nil && p.atOnce()
}

// pause is the time between the starts of two attempts.
func (p *pinger) pause(err error) time.Duration {
	switch {
	case p.trouble[Login]:
		return refusedPause
	case p.session == nil && !errors.Is(err, syscall.ECONNREFUSED) && time.Since(p.redialed) < p.PingEvery:
		return dyingPause
	}
	return p.PingEvery
}

// atOnce says whether a new connection may be made before its time: not in a
// loop with a server that hangs up each time.
func (p *pinger) atOnce() bool {
	if time.Since(p.redialed) < p.PingEvery {
		return false
	}
	p.redialed = time.Now()
	return true
}

func (p *pinger) drop() {
	if p.session != nil {
		p.session.Close()
		p.session = nil
	}
}

// miss reports that an attempt which began then has not been answered yet.
func (p *pinger) miss(began time.Time) {
	if p.silent.IsZero() {
		p.silent = began
	}
	p.observe(Ping, Silent, fmt.Sprintf("no answer for %s", time.Since(p.silent).Round(10*time.Millisecond)),
		Limit{Suspect: p.PingMisses, DownAfter: p.DownAfter - p.deadline()})
}

// judge reports what an attempt came to.
func (p *pinger) judge(err error) {
	var f *Finding
	if err == nil {
		for _, other := range slices.Sorted(maps.Keys(p.trouble)) {
			if other != Ping {
				p.recovered(other)
			}
		}
		p.trouble[Ping] = false
		p.report(Observation{Probe: Ping, Reason: p.fact, At: time.Now(), Took: p.took})
		return
	}
	if errors.As(err, &f) {
		p.recovered(Connection) // it is an answer
		p.recovered(Ping)
		p.observe(f.Probe, Bad, f.Reason, f.Limit)
		return
	}
	verdict, reason := reach.Classify(err)
	switch {
	case secure.Unaskable(err):
		p.blind(reason, 0)
	case verdict == Unknown: // a resolver may fail once
		p.blind(reason, p.PingMisses)
	case errors.Is(err, syscall.ECONNREFUSED):
		p.observe(Connection, verdict, reason, Limit{Suspect: 1, Down: 1})
	default:
		p.observe(Connection, verdict, reason, Limit{Suspect: p.PingMisses, DownAfter: p.DownAfter})
	}
}

// blind reports that nothing can be found out; after so many times in a row it counts.
func (p *pinger) blind(reason string, times int) {
	p.trouble[Connection] = true
	for probe, bad := range p.trouble {
		if bad {
			p.observe(probe, Unknown, reason, Limit{Suspect: times})
		}
	}
}

// recovered takes back what was reported of a probe.
func (p *pinger) recovered(probe string) {
	if p.trouble[probe] {
		p.observe(probe, Good, "", Limit{})
	}
}

func (p *pinger) observe(probe string, v Verdict, reason string, limit Limit) {
	p.trouble[probe] = v != Good
	switch {
	case p.fact == "":
	case v == Good:
		reason = p.fact
	default:
		reason += " (" + p.fact + ")"
	}
	p.report(Observation{Probe: probe, Verdict: v, Reason: reason, At: time.Now(), Limit: limit})
}

// isSilent says whether nothing of the server itself was heard.
func isSilent(err error) bool {
	verdict, _ := reach.Classify(err)
	return verdict == Silent
}

// unresolved says whether the server's name could not be resolved.
func unresolved(err error) bool {
	var name *net.DNSError
	return errors.As(err, &name)
}

// Logins makes a fresh login again and again. One that went wrong is made
// again soon, so that two say so before long. login returns nil, a *Finding, or
// another error, which is the held connection's matter unless it is a timeout.
func Logins(ctx context.Context, t Timing, report func(Observation), login func(ctx context.Context) error) {
	trouble := map[string]bool{} // probes whose last report was not Good
	failed := 0
	observe := func(o Observation) {
		o.At, trouble[o.Probe] = time.Now(), o.Verdict != Good
		report(o)
	}
	for {
		lctx, cancel := context.WithTimeout(ctx, t.LoginDeadline)
		began := time.Now()
		err := login(lctx)
		late := lctx.Err() != nil
		cancel()
		if ctx.Err() != nil {
			return
		}
		var f *Finding
		switch {
		case err == nil:
			failed = 0
			for probe, bad := range trouble {
				if bad && probe != Login {
					observe(Observation{Probe: probe})
				}
			}
			observe(Observation{Probe: Login})
		case errors.As(err, &f):
			failed++
			observe(Observation{Probe: f.Probe, Verdict: Bad, Reason: f.Reason, Limit: f.Limit})
		case late && !unresolved(err):
			failed++
			observe(Observation{Probe: Login, Verdict: Silent, Limit: Limit{Suspect: t.LoginMisses},
				Reason: fmt.Sprintf("no answer to a login for %s", time.Since(began).Round(100*time.Millisecond))})
		}
		pause := t.LoginEvery
		if failed == 1 {
			pause = min(pause, refusedPause)
		}
		if wait.Sleep(ctx, pause) != nil {
			return
		}
	}
}

// Refused is a login that the server does not accept.
func (t Timing) Refused(reason string) *Finding {
	return &Finding{Login, reason, Limit{Suspect: 1, Down: t.LoginMisses}}
}

// Together runs probes of one endpoint side by side until all have ended. What
// they report goes out one at a time.
func Together(report func(Observation), probes ...func(report func(Observation))) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, p := range probes {
		all.Go(func() {
			p(func(o Observation) {
				mu.Lock()
				defer mu.Unlock()
				report(o)
			})
		})
	}
	all.Wait()
}
