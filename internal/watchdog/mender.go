package watchdog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"st2ha/internal/backend/mount"
	nfsserver "st2ha/internal/backend/nfs"
	"st2ha/internal/fault"
	"st2ha/internal/heal"
	"st2ha/internal/incident"
	"st2ha/internal/nfs"
	"st2ha/internal/probe"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

const (
	ruleTime    = 60 * time.Second // that a rule of StackStorm has to mend what needs no watchdog
	packsTime   = 10 * time.Second // the same for packs, without which this node's runners fail every action
	exportsLook = 15 * time.Second // at what this node exports
	mendTime    = 90 * time.Second // for a mount
)

// mender mends what StackStorm's rules mend while it runs: a mount that is
// missing, and an export that is withdrawn. It waits for a rule to do so, for
// the rules are what people see and switch off, and then acts itself: a rules
// engine that hung left a mount missing for 11 minutes. Both are held to one
// account, so what a rule has just tried is not tried again at once.
type mender struct {
	*healer
	after time.Duration // that rules have
	every time.Duration // is looked at the exports

	since  map[probe.Key]time.Time // when it was first seen to be missing; of mendAll alone, as all here
	looked time.Time               // at the exports
}

func newMender(h *healer) *mender {
	return &mender{healer: h, after: ruleTime, every: exportsLook, since: map[probe.Key]time.Time{}}
}

// ruleTime is what rules have, unless it is 0.
func (m *mender) ruleTime(after time.Duration) {
	if after > 0 {
		m.after, m.every = after, min(exportsLook, after)
	}
}

// exportsKey is the account of what this node exports; it is no endpoint.
func exportsKey() probe.Key { return probe.Key{Backend: nfsserver.Name, Name: "exports"} }

// mendAll begins what is overdue.
func (m *mender) mendAll(ctx context.Context, all []incident.Status, now time.Time) {
	for _, s := range all {
		if m.overdue(ctx, s, now) && !m.endpoints.CutOff() {
			m.begin(s.Key, func() {
				m.mend(ctx, s, &nfs.Recover{Directory: s.Name, Within: mendTime})
			})
		}
	}
	if now.Sub(m.looked) >= m.every {
		m.looked = now
		m.begin(exportsKey(), func() { m.exports(ctx, now) })
	}
}

// overdue says whether a mount has been missing for so long that no rule mends
// it. One that hangs is not touched: it heals itself.
func (m *mender) overdue(ctx context.Context, s incident.Status, now time.Time) bool {
	if s.Backend != mount.Name || s.State != incident.Down || s.Reason != mount.NotMounted {
		delete(m.since, s.Key)
		return false
	}
	if m.since[s.Key].IsZero() {
		m.since[s.Key] = now
	}
	missing := now.Sub(m.since[s.Key])
	return missing >= min(m.after, packsTime) && missing >= m.left(ctx, s)
}

// left is how long an endpoint is left to a rule. Packs are left for less: the
// rule's own action lies there, so this node's runners cannot run it.
func (m *mender) left(ctx context.Context, s incident.Status) time.Duration {
	if s.Backend == mount.Name {
		if conf, _ := stackstorm.LookAtConf(ctx, m.host); conf != nil { // an odd line costs that line
			for _, packs := range conf.PackDirs() {
				if rel, err := filepath.Rel(s.Name, packs); err == nil && filepath.IsLocal(rel) {
					return min(m.after, packsTime)
				}
			}
		}
	}
	return m.after
}

// exports looks whether all directories that /etc/exports names, and that are
// there, are exported by a server that runs. One that does not run is an
// endpoint of its own; a directory that was deleted is not made anew.
func (m *mender) exports(ctx context.Context, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, healTime)
	defer cancel()
	withdrawn, err := nfs.Withdrawn(ctx, m.host)
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
		return // no NFS server is installed here
	case err != nil:
		m.refuse(incident.Status{Key: exportsKey()}, "", err.Error(), false)
		return
	}
	m.mu.Lock()
	since := m.withdrawn
	if len(withdrawn) == 0 {
		since = time.Time{}
	} else if since.IsZero() {
		since = now
	}
	m.withdrawn = since
	m.mu.Unlock()
	s := incident.Status{Key: exportsKey(), Reason: strings.Join(withdrawn, ", ") + " withdrawn"}
	switch {
	case len(withdrawn) == 0:
		m.recovered(ctx, s.Key)
	case now.Sub(since) >= m.after:
		m.mend(ctx, s, &nfs.Restore{})
	}
}

// mend brings a step about as an action of the pack would, if it is allowed to.
func (m *mender) mend(ctx context.Context, s incident.Status, what step.Step) {
	ctx, cancel := context.WithTimeout(ctx, healTime)
	defer cancel()
	findings, err := what.Check(ctx, m.host)
	if err == nil {
		err = step.Refuse(findings)
	}
	if err != nil {
		m.refuse(s, "", fault.Of(err).Error(), false) // its server is away, for example
		return
	}
	release, err := step.TryLock(ctx, m.host, source+", step "+what.Name())
	if err != nil {
		m.refuse(s, "", err.Error(), false)
		return
	}
	defer release()
	changes, err := what.Plan(ctx, m.host)
	if err != nil {
		m.refuse(s, "", err.Error(), false)
		return
	}
	for _, c := range changes {
		switch c.(type) {
		case *nfs.MountUnit, *nfs.Reexport:
			m.apply(ctx, s, c)
		}
	}
}

func (m *mender) apply(ctx context.Context, s incident.Status, c step.Change) {
	target := c.Target()
	m.mu.Lock()
	m.restarts[s.Key] = target
	m.mu.Unlock()
	d, err := m.ledger.Allow(ctx, m.host, target, time.Now())
	if err == nil {
		m.gaveUp(s.Key, d.Verdict == heal.GaveUp)
	}
	switch {
	case err != nil:
		m.refuse(s, target, err.Error(), false)
		return
	case d.Verdict == heal.Wait: // it is decided anew at the next look
		return
	case d.Verdict != heal.GoAhead:
		m.refuse(s, target, d.Reason, d.First)
		return
	}
	m.endpoints.Healed(s.Key, source)
	m.announce(heal.Event{Event: heal.EventHealed, Target: target, Heals: d.Heals,
		Reason: fmt.Sprintf("%s: %s, and no rule has mended it within %s", c.Diff(), s.Reason, m.left(ctx, s))})
	err = c.Apply(ctx, m.host)
	m.count(s.Key, err)
	if err != nil {
		m.log.Error("heal", "endpoint", s.Key.String(), "error", err)
	}
}
