package nfs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"st2ha/internal/probe"
	"st2ha/internal/reach"
	"st2ha/internal/rpcping"
	"st2ha/internal/wait"
)

// Settings are the paces of the probes of an NFS server.
type Settings struct {
	Interval       time.Duration // from one NULL call to the next
	Timeout        time.Duration // for the answer, and for a connection
	Limit          probe.Limit   // of NULL calls without an answer
	ExportInterval time.Duration // from one look at an export to the next, as long as it is there
	ExportTimeout  time.Duration // for the answer
	ExportLimit    probe.Limit   // of exports that are withdrawn or refused; Limit is that of no answer
	// Version3 says whether this node has the export mounted by NFSv3, whose
	// paths need not be NFSv4's; nil: never.
	Version3 func(export string) bool
}

// DefaultSettings answer for a server in the same data centre: an idle one
// takes a hundredth of Timeout.
func DefaultSettings() Settings {
	return Settings{
		Interval:       250 * time.Millisecond,
		Timeout:        250 * time.Millisecond,
		Limit:          probe.Limit{Suspect: 2, DownAfter: 3 * time.Second},
		ExportInterval: time.Second,
		ExportTimeout:  500 * time.Millisecond,
		ExportLimit:    probe.Limit{Suspect: 1, Down: 2},
	}
}

// Watch watches the NFS server at addr (host:port) over a connection that
// it holds. The probe "ping" is the NULL call, or the connection refused; the
// probe "export PATH" walks to each of the exports by NFSv4.0, on the same
// connection. One that ends is dialled anew at once: the server's host resets
// the connections of a process that ends, and refuses new ones.
func Watch(addr string, exports []string, s Settings) probe.Func {
	return func(ctx context.Context, report func(probe.Observation)) {
		w := &nfsServer{addr: addr, exports: exports, Settings: s, report: report}
		w.run(ctx)
	}
}

type nfsServer struct {
	Settings
	addr    string
	exports []string
	report  func(probe.Observation)

	silent time.Time // when the first ping was sent that has no answer; zero when the last one had
}

func (w *nfsServer) run(ctx context.Context) {
	var pause time.Duration
	for ctx.Err() == nil {
		started := time.Now()
		conn, err := w.dial(ctx)
		if err != nil {
			if ctx.Err() == nil {
				w.observe(started, err)
			}
			_ = wait.Sleep(ctx, time.Until(started.Add(w.Interval)))
			pause = 0
			continue
		}
		w.probeOver(ctx, conn)
		conn.Close()
		// One that was held is dialled anew at once. A process that is being
		// killed may take that for a moment still, so the next try is soon; but
		// not for ever where no connection lasts.
		if time.Since(started) >= w.Interval {
			pause = 0
		} else {
			pause = min(max(2*pause, firstPause), w.Interval)
		}
		_ = wait.Sleep(ctx, pause)
	}
}

// firstPause comes before a second connection where the first did not last.
const firstPause = 2 * time.Millisecond

func (w *nfsServer) dial(ctx context.Context) (*rpcping.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, w.Timeout)
	defer cancel()
	return rpcping.Dial(ctx, w.addr)
}

// probeOver probes over conn until it or ctx ends.
func (w *nfsServer) probeOver(ctx context.Context, conn *rpcping.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	exports := w.exports
	// To other ports Linux's server says PERM, and NFS-Ganesha hides the export.
	if !conn.Privileged() && len(exports) > 0 {
		exports = nil
		w.report(probe.Observation{Probe: "exports", Verdict: probe.Unknown, At: time.Now(),
			Reason: "exports are not checked: the server answers that only to source ports below 1024, which need root"})
	}
	for _, export := range exports {
		wg.Go(func() { w.watchExport(ctx, conn, export) })
	}
	pace := time.NewTicker(w.Interval)
	defer pace.Stop()
	for {
		w.ping(ctx, conn)
		select {
		case <-ctx.Done():
			return
		case <-conn.Done():
			return
		case <-pace.C:
		}
	}
}

func (w *nfsServer) ping(ctx context.Context, conn *rpcping.Conn) {
	const version = 4
	started := time.Now()
	call, cancel := context.WithTimeout(ctx, w.Timeout)
	defer cancel()
	err := conn.Null(call, version)
	var other *rpcping.MismatchError
	if errors.As(err, &other) {
		err = nil // a server of NFSv3 alone is one that answers
	}
	if ctx.Err() == nil {
		w.observe(started, err)
	}
}

// observe reports what came of a ping that began at started.
func (w *nfsServer) observe(started time.Time, err error) {
	o := probe.Observation{Probe: "ping", At: time.Now(), Limit: w.Limit}
	o.Verdict, o.Reason = reach.Classify(err)
	switch o.Verdict {
	case probe.Good:
		w.silent, o.Took = time.Time{}, o.At.Sub(started)
	case probe.Silent:
		if w.silent.IsZero() {
			w.silent = started
		}
		if o.Reason == reach.NoAnswer {
			o.Reason += " for " + probe.Span(o.At.Sub(w.silent))
		}
		o.Limit.DownAfter -= w.Timeout // it counts from when the first one was sent
	default:
		w.silent = time.Time{}
		if errors.Is(err, unix.ECONNREFUSED) {
			o.Limit = probe.Certain()
		}
	}
	w.report(o)
}

// watchExport looks at one export until conn or ctx ends.
func (w *nfsServer) watchExport(ctx context.Context, conn *rpcping.Conn, export string) {
	for {
		call, cancel := context.WithTimeout(ctx, w.ExportTimeout)
		err := conn.Export(call, export)
		cancel()
		pause := w.ExportInterval
		select {
		case <-ctx.Done():
			return
		case <-conn.Done(): // the ping's business
			return
		default:
		}
		o := probe.Observation{Probe: "export " + export, At: time.Now(), Limit: w.ExportLimit}
		o.Verdict, o.Reason = exportFault(err, export, w.ExportTimeout)
		if atRoot(err, export) && w.Version3 != nil && w.Version3(export) {
			o.Verdict, o.Reason = probe.Unknown,
				fmt.Sprintf("export %s is mounted by NFSv3 and is not below the root that the server shows to NFSv4 (fsid=0): "+
					"it cannot be checked", export)
		}
		if o.Verdict == probe.Silent {
			o.Limit = w.Limit
		}
		w.report(o)
		if err != nil { // seen again soon, so that one finding is not all there is
			pause = w.Interval
		}
		_ = wait.Sleep(ctx, pause)
	}
}

// atRoot says whether the server's root of NFSv4 does not know even the first
// directory of the way to the export.
func atRoot(err error, export string) bool {
	var at *rpcping.StatusError
	first, _, _ := strings.Cut(strings.TrimPrefix(export, "/"), "/")
	return errors.As(err, &at) && at.Status == rpcping.NoEnt && at.At == "/"+first
}

// exportFault are the words for what a look at an export brought.
func exportFault(err error, export string, timeout time.Duration) (probe.Verdict, string) {
	var at *rpcping.StatusError
	var other *rpcping.MismatchError
	var rejected *rpcping.RejectedError
	switch {
	case err == nil:
		return probe.Good, ""
	case errors.As(err, &rejected) && rejected.NoExport:
		return probe.Bad, fmt.Sprintf("export %s withdrawn: the server exports nothing to this node", export)
	case errors.As(err, &at):
		return statusFault(at, export)
	case errors.As(err, &other):
		return probe.Unknown, fmt.Sprintf("export %s cannot be checked: %v", export, err)
	}
	verdict, reason := reach.Classify(err)
	if reason == reach.NoAnswer {
		reason += " for " + probe.Span(timeout)
	}
	return verdict, "export " + export + ": " + reason
}

// statusFault puts NFSv4's statuses (RFC 7530, section 13.1) in words.
func statusFault(at *rpcping.StatusError, export string) (probe.Verdict, string) {
	switch at.Status {
	case rpcping.NoEnt:
		return probe.Bad, "export " + export + " withdrawn"
	case rpcping.Stale:
		return probe.Bad, fmt.Sprintf("export %s: its directory was deleted or replaced on the server", export)
	case rpcping.NotDir:
		return probe.Bad, fmt.Sprintf("export %s: %s is no directory", export, at.At)
	case rpcping.Access:
		return probe.Bad, fmt.Sprintf("export %s: access to %s denied", export, at.At)
	case rpcping.Perm:
		return probe.Bad, fmt.Sprintf("export %s: the server does not permit this node", export)
	case rpcping.WrongSec:
		return probe.Unknown, fmt.Sprintf("export %s cannot be checked: the server wants another security flavor, such "+
			"as Kerberos", export)
	case rpcping.Delay:
		return probe.Silent, fmt.Sprintf("export %s: the server puts off its answer", export)
	case rpcping.IO:
		return probe.Bad, fmt.Sprintf("export %s: input/output error on the server", export)
	}
	return probe.Bad, fmt.Sprintf("export %s: the server answers %s at %s", export, at.Status, at.At)
}
