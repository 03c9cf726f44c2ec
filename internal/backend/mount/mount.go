// Package mount is the NFS mounts of a node, which are watched one by one. A
// mount has no unit to restart: what is missing is mounted, and what hangs heals itself.
package mount

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"st2ha/internal/backend"
	"st2ha/internal/mountinfo"
	"st2ha/internal/nfs"
	"st2ha/internal/probe"
)

// Name is the backend's.
const Name = "mount"

// New describes NFS mounts.
func New() backend.Backend { return backend.Backend{Name: Name, Endpoints: endpoints} }

// endpoints are the mounts of the pack's configuration, or of /etc/fstab.
func endpoints(ctx context.Context, n *backend.Node) {
	sources := map[string]string{} // by mount point
	for _, point := range n.Config.Mounts {
		sources[point] = ""
	}
	for _, m := range n.Mounts(ctx) {
		if _, given := sources[m.Target]; given || len(n.Config.Mounts) == 0 && !m.ByHand() {
			sources[m.Target] = m.Source
		}
	}
	for point, source := range sources {
		s := DefaultSettings()
		s.Source = source
		e := probe.Endpoint{Backend: Name, Name: point, Watch: Watch(point, s)}
		if source != "" {
			e.Host = n.Machine(ctx, nfs.Server(source))
		}
		n.Endpoints = append(n.Endpoints, e)
	}
}

// Settings are what is expected of a mount, and the paces of its probes.
type Settings struct {
	Source   string        // host:/path as /etc/fstab has it; empty: any
	Interval time.Duration // from one statfs to the next, as long as they are answered
	Timeout  time.Duration // for the answer, then it is missed; also the pace after a fault
	Patience int           // time-outs after which the process is killed, and another one asks
	Limit    probe.Limit   // of a mount that hangs
	Child    []string      // argv of the process that calls Statfs with the argument that is appended, the mount point
	Stuck    *atomic.Int64 // counts processes that SIGKILL has not ended yet, of all mounts that share it; may be nil
}

// NotMounted is the reason of a mount that is not there.
const NotMounted = "not mounted"

// errorLimit is that of a mount that gives errors.
func errorLimit() probe.Limit { return probe.Limit{Suspect: 1, Down: 2} }

// DefaultSettings run this program again, as "PROGRAM statfs MOUNTPOINT".
// A mount that hangs is down after 3 s without an answer, as its server is: within
// 7 s, the interval, three time-outs, and what a process takes to start.
func DefaultSettings() Settings {
	return Settings{
		Interval: 3 * time.Second,
		Timeout:  time.Second,
		Patience: 3,
		// of the first time-out: at the third, however exact they are
		Limit: probe.Limit{Suspect: 1, DownAfter: 1500 * time.Millisecond},
		Child: []string{"/proc/self/exe", "statfs"},
	}
}

// Watch watches an NFS mount of this node. It reports as the probe "mount":
// whether it is mounted, and from where, the moment this changes; and whether
// statfs(2) is answered there, which is always asked of the server, where
// stat(2) may be answered from a cache. That is done in a process of its own:
// on a mount that hangs nothing less can be given up. An answer that comes late
// is one. Where even SIGKILL does not end the process, no other is started for
// this mount until it is gone.
func Watch(point string, s Settings) probe.Func {
	return func(ctx context.Context, report func(probe.Observation)) {
		if s.Stuck == nil {
			s.Stuck = new(atomic.Int64)
		}
		w := &nfsMount{Settings: s, point: point, report: report}
		w.run(ctx)
	}
}

type nfsMount struct {
	Settings
	point  string
	report func(probe.Observation)

	mounted *mountinfo.Mount // nil when nothing is
	stuck   *statfsChild     // one that SIGKILL did not end
	hung    time.Time        // when the first statfs began that has no answer; zero when the last one had
	calm    int              // answers in a row
}

// startTimeout is for a process to come to its statfs, which takes milliseconds:
// a node that is short of CPU or memory has no mount that hangs.
const startTimeout = 5 * time.Second

// calmAfter is how many answers in a row slacken the pace: a recovery is soon
// told from a moment's luck.
const calmAfter = 4

func (w *nfsMount) run(ctx context.Context) {
	changed := make(chan *mountinfo.Mount, 1)
	ended := make(chan error, 1)
	watching, cancel := context.WithCancel(ctx)
	go func() { ended <- watchMounts(watching, w.point, changed) }()
	defer func() { <-ended }()
	defer cancel()
	next := time.NewTimer(time.Hour) // the first look is at the table
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case err := <-ended:
			ended <- nil
			if err == nil { // with ctx
				return
			}
			w.observe(probe.Unknown, "the table of mounts cannot be read: "+err.Error(), w.Limit)
			return
		case m := <-changed:
			w.moved(m)
		case <-next.C:
		}
		stuck := w.stuck
		for w.probe(ctx, changed) {
		}
		pace := w.Timeout
		switch {
		case !w.hung.IsZero() && (w.stuck == nil || w.stuck != stuck):
			pace = 0 // the time-out was pause enough, and so was the wait for the process's end
		case w.calm >= calmAfter:
			pace = w.Interval
		}
		next.Reset(pace)
	}
}

// probe looks once, and says whether the table changed meanwhile.
func (w *nfsMount) probe(ctx context.Context, changed <-chan *mountinfo.Mount) (again bool) {
	if reason := w.misplaced(); reason != "" {
		w.observe(probe.Bad, reason, probe.Certain())
		return false
	}
	started := time.Now()
	if w.stuck != nil {
		if !w.stuck.gone(ctx, 0) {
			w.observe(probe.Silent, w.hungFor(started), w.Limit)
			return false
		}
		w.stuck = nil
	}
	child, err := startStatfs(w.Child, w.point)
	if err != nil {
		w.observe(probe.Unknown, "statfs cannot be tried: "+err.Error(), w.Limit)
		return false
	}
	deadline := time.NewTimer(startTimeout)
	defer deadline.Stop()
	entered, missed := child.entered, 0
wait:
	for {
		select {
		case <-entered:
			entered, started = nil, time.Now()
			deadline.Reset(w.Timeout)
		case <-child.done:
			verdict, reason := child.verdict()
			w.observe(verdict, reason, errorLimit())
			return false
		case <-deadline.C:
			if entered != nil {
				w.observe(probe.Unknown, "statfs cannot be tried: this node is too slow to start a process", w.Limit)
				break wait
			}
			w.observe(probe.Silent, w.hungFor(started), w.Limit)
			if missed++; missed >= w.Patience {
				break wait
			}
			deadline.Reset(w.Timeout)
		case m := <-changed:
			w.moved(m)
			again = true
			break wait
		case <-ctx.Done():
			break wait
		}
	}
	if !w.end(ctx, child) && !again {
		w.stuck = child
	}
	return again
}

// moved takes note of what is mounted now. A process that is stuck is so on
// what was mounted before.
func (w *nfsMount) moved(m *mountinfo.Mount) { w.mounted, w.stuck = m, nil }

// misplaced says what is wrong with what is mounted, if anything is.
func (w *nfsMount) misplaced() string {
	switch {
	case w.mounted == nil:
		return NotMounted
	case w.mounted.FSType == "autofs": // mounted by its first use, which statfs is
		return ""
	case w.Source != "" && strings.TrimRight(w.mounted.Source, "/") != strings.TrimRight(w.Source, "/"):
		return fmt.Sprintf("%s is mounted there, not %s", w.mounted.Source, w.Source)
	}
	return ""
}

func (w *nfsMount) hungFor(started time.Time) string {
	if w.hung.IsZero() {
		w.hung = started
	}
	return "mount hung for " + probe.Span(time.Since(w.hung))
}

func (w *nfsMount) observe(v probe.Verdict, reason string, limit probe.Limit) {
	if v != probe.Silent {
		w.hung = time.Time{}
	}
	w.calm++
	if v != probe.Good {
		w.calm = 0
	}
	w.report(probe.Observation{Probe: "mount", Verdict: v, Reason: reason, At: time.Now(), Limit: limit})
}

// end kills child and says whether it is gone. One that waits for a file system
// in a way that no signal breaks is counted, and reaped whenever it ends.
func (w *nfsMount) end(ctx context.Context, child *statfsChild) bool {
	child.kill()
	if child.gone(ctx, w.Timeout) || child.gone(context.WithoutCancel(ctx), 200*time.Millisecond) {
		return true
	}
	w.Stuck.Add(1)
	go func() {
		<-child.done
		w.Stuck.Add(-1)
	}()
	return false
}
