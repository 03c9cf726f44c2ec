package watch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http/httptrace"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"st2ha/internal/reach"
	"st2ha/internal/secure"
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

func (t Timing) withDefaults() Timing {
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
	ProbeConnection = "connection" // a held one, whose end is followed by one new dial
	ProbePing       = "ping"       // a question that only a working server answers
	ProbeLogin      = "login"      // a fresh one, as a service that starts now would make
	ProbeAlarm      = "alarm"      // a server that answers, and refuses work
	ProbePrimary    = "primary"    // a replica set that has one
)

// finding is an error that says what to report of it. Any other error of a
// session is of its connection.
type finding struct {
	probe  string
	reason string
	limit  Limit
}

func (f *finding) Error() string { return f.reason }

// session is one connection to an endpoint, held for as long as it lasts.
type session interface {
	// ping asks once, and may learn a fact of the server's part that is worth
	// telling. When ctx ends, it does, and the connection may.
	ping(ctx context.Context) (fact string, err error)
	// ended is closed when the connection is seen to be no more.
	ended() <-chan struct{}
	close()
}

// holder watches one endpoint by a session: it pings, and makes a new session
// when the old one has ended. One attempt is on its way at a time; an answer
// that comes late is one. Where the held connection has no answer, a fresh one
// is tried beside it before the endpoint is down, once, for it takes the server's
// time: a flow may be lost in the network, and after a short cut TCP waits longer
// and longer before it tries again, while the server answers everybody else.
type holder struct {
	Timing
	open   func(ctx context.Context) (session, error)
	report func(Observation)

	session  session
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
func (h *holder) deadline() time.Duration {
	return max(h.PingDeadline, min(h.usual.p99()*3/2, h.DownAfter*2/3))
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
	session session // nil if the connection ended
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
func (h *holder) run(ctx context.Context) {
	h.trouble = map[string]bool{}
	var held, fresh *attempt // nil if none is on its way; fresh is only beside held
	begin := func() { held = h.begin(ctx, h.session, h.DownAfter) }
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
				o.session.close()
			}
		})
	}
	next := time.NewTimer(h.deadline())
	defer next.Stop()
	for {
		var ended <-chan struct{}
		if h.session != nil && held == nil {
			ended = h.session.ended()
		}
		select {
		case <-ctx.Done():
			if held == nil {
				h.drop()
			}
			end(held)
			end(fresh)
			return
		case <-ended:
			h.drop()
			if h.atOnce() {
				begin()
				next.Reset(h.deadline())
			}
		case o := <-held.outcome():
			if ctx.Err() != nil {
				held, h.session = nil, o.session
				continue
			}
			began := held.began
			held.giveUp()
			if o.late && fresh != nil {
				held, fresh, h.session = fresh, nil, nil // the younger one goes on
				continue
			}
			end(fresh)
			held, fresh = nil, nil
			if again := h.take(o, began); again {
				begin()
				if !o.late { // else the misses go on being counted
					next.Reset(h.deadline())
				}
				continue
			}
			next.Reset(time.Until(began.Add(h.pause(o.err))))
		case o := <-fresh.outcome():
			began := fresh.began
			fresh.giveUp()
			fresh = nil
			switch {
			case ctx.Err() != nil:
				if o.session != nil {
					o.session.close()
				}
				continue
			case o.late || isSilent(o.err):
				continue // no answer there either
			}
			end(held)
			held, h.session = nil, nil
			h.take(o, began)
			next.Reset(time.Until(began.Add(h.pause(o.err))))
		case <-next.C:
			if held == nil {
				begin()
				next.Reset(h.deadline())
				continue
			}
			if held.naming.Load() { // nothing has been asked of the server yet
				h.blind("its name is being resolved for "+time.Since(held.began).Round(10*time.Millisecond).String(), h.PingMisses)
				next.Reset(h.PingEvery * 4 / 5)
				continue
			}
			h.miss(held.began)
			// So early that TCP can try the connection a second time, after 1 s, before it is down.
			if silence := time.Since(h.silent); fresh == nil && silence >= h.DownAfter/3 && silence < h.DownAfter {
				fresh = h.begin(ctx, nil, h.DownAfter*2/3)
			}
			next.Reset(h.PingEvery * 4 / 5) // so that two are told in time on a busy machine as well
		}
	}
}

// begin pings, over a new session if there is none, for a time at most.
func (h *holder) begin(ctx context.Context, s session, limit time.Duration) *attempt {
	ctx, cancel := context.WithTimeout(ctx, limit)
	a := &attempt{began: time.Now(), giveUp: cancel, done: make(chan outcome, 1)}
	// A net.Dialer tells this trace, whatever is spoken over the connection.
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart: func(httptrace.DNSStartInfo) { a.naming.Store(true) },
		DNSDone:  func(httptrace.DNSDoneInfo) { a.naming.Store(false) },
	})
	go func() { a.done <- h.ping(ctx, s) }()
	return a
}

func (a *attempt) outcome() <-chan outcome {
	if a == nil {
		return nil
	}
	return a.done
}

func (h *holder) ping(ctx context.Context, s session) outcome {
	var o outcome
	if o.session = s; s == nil {
		o.session, o.err = h.open(ctx)
	}
	if o.err == nil {
		o.fact, o.err = o.session.ping(ctx)
	}
	var f *finding
	if o.err != nil && !errors.As(o.err, &f) {
		o.late = (ctx.Err() != nil || errors.Is(o.err, context.DeadlineExceeded)) && !unresolved(o.err)
		if o.session != nil {
			o.session.close()
			o.session = nil
		}
	}
	return o
}

// take takes what an attempt came to, and says whether the next one is due at
// once: after one that was given up, and when a held connection has ended.
func (h *holder) take(o outcome, began time.Time) (again bool) {
	lived := h.session != nil
	h.session, h.took = o.session, time.Since(began)
	if o.late {
		return true
	}
	h.silent = time.Time{}
	if o.err == nil {
		h.fact = o.fact
		h.usual.add(h.took)
	}
	h.judge(o.err)
	return lived && h.session == nil && h.atOnce()
}

// pause is the time between the starts of two attempts.
func (h *holder) pause(err error) time.Duration {
	switch {
	case h.trouble[ProbeLogin]:
		return refusedPause
	case h.session == nil && !errors.Is(err, syscall.ECONNREFUSED) && time.Since(h.redialed) < h.PingEvery:
		return dyingPause
	}
	return h.PingEvery
}

// atOnce says whether a new connection may be made before its time: not in a
// loop with a server that hangs up each time.
func (h *holder) atOnce() bool {
	if time.Since(h.redialed) < h.PingEvery {
		return false
	}
	h.redialed = time.Now()
	return true
}

func (h *holder) drop() {
	if h.session != nil {
		h.session.close()
		h.session = nil
	}
}

// miss reports that an attempt which began then has not been answered yet.
func (h *holder) miss(began time.Time) {
	if h.silent.IsZero() {
		h.silent = began
	}
	h.tell(ProbePing, Silent, fmt.Sprintf("no answer for %s", time.Since(h.silent).Round(10*time.Millisecond)),
		Limit{Suspect: h.PingMisses, DownAfter: h.DownAfter - h.deadline()})
}

// judge reports what an attempt came to.
func (h *holder) judge(err error) {
	var f *finding
	if err == nil {
		h.well(ProbeConnection, ProbeLogin, ProbeAlarm, ProbePrimary)
		h.trouble[ProbePing] = false
		h.report(Observation{Probe: ProbePing, Reason: h.fact, At: time.Now(), Took: h.took})
		return
	}
	if errors.As(err, &f) {
		h.well(ProbeConnection, ProbePing) // it is an answer
		h.tell(f.probe, Bad, f.reason, f.limit)
		return
	}
	verdict, reason := reach.Classify(err)
	switch {
	case secure.Unaskable(err):
		h.blind(reason, 0)
	case verdict == Unknown: // a resolver may fail once
		h.blind(reason, h.PingMisses)
	case errors.Is(err, syscall.ECONNREFUSED):
		h.tell(ProbeConnection, verdict, reason, Limit{Suspect: 1, Down: 1})
	default:
		h.tell(ProbeConnection, verdict, reason, Limit{Suspect: h.PingMisses, DownAfter: h.DownAfter})
	}
}

// blind reports that nothing can be found out; after so many times in a row it counts.
func (h *holder) blind(reason string, times int) {
	h.trouble[ProbeConnection] = true
	for p, bad := range h.trouble {
		if bad {
			h.tell(p, Unknown, reason, Limit{Suspect: times})
		}
	}
}

// well takes back what was reported of these probes.
func (h *holder) well(probes ...string) {
	for _, p := range probes {
		if h.trouble[p] {
			h.tell(p, Good, "", Limit{})
		}
	}
}

func (h *holder) tell(probe string, v Verdict, reason string, limit Limit) {
	h.trouble[probe] = v != Good
	switch {
	case h.fact == "":
	case v == Good:
		reason = h.fact
	default:
		reason += " (" + h.fact + ")"
	}
	h.report(Observation{Probe: probe, Verdict: v, Reason: reason, At: time.Now(), Limit: limit})
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

// logins makes a fresh login again and again. One that went wrong is made
// again soon, so that two say so before long. login returns nil, a *finding, or
// another error, which is the held connection's matter unless it is a timeout.
func logins(ctx context.Context, t Timing, report func(Observation), login func(ctx context.Context) error) {
	trouble := map[string]bool{} // probes whose last report was not Good
	failed := 0
	tell := func(o Observation) {
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
		var f *finding
		switch {
		case err == nil:
			failed = 0
			for probe, bad := range trouble {
				if bad && probe != ProbeLogin {
					tell(Observation{Probe: probe})
				}
			}
			tell(Observation{Probe: ProbeLogin})
		case errors.As(err, &f):
			failed++
			tell(Observation{Probe: f.probe, Verdict: Bad, Reason: f.reason, Limit: f.limit})
		case late && !unresolved(err):
			failed++
			tell(Observation{Probe: ProbeLogin, Verdict: Silent, Limit: Limit{Suspect: t.LoginMisses},
				Reason: fmt.Sprintf("no answer to a login for %s", time.Since(began).Round(100*time.Millisecond))})
		}
		wait := t.LoginEvery
		if failed == 1 {
			wait = min(wait, refusedPause)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// refused is a login that the server does not accept.
func (t Timing) refused(reason string) *finding {
	return &finding{ProbeLogin, reason, Limit{Suspect: 1, Down: t.LoginMisses}}
}

// together runs probes of one endpoint side by side until all have ended. What
// they report goes out one at a time.
func together(report func(Observation), probes ...func(report func(Observation))) {
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
