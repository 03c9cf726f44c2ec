package nfs

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// Recover is the step recover_nfs_mount: a mount that /etc/fstab names works
// again. A hard mount that hangs heals itself when its server answers (0.6 to
// 1.7 s after, measured), and nothing its writers hold is lost, so that is
// waited for. It is never unmounted by force: umount -f loses such data.
type Recover struct {
	Directory string        // the mount point
	Patience  time.Duration // for a mount that hangs to heal itself
	Detach    bool          // detach one that does not, or whose file handle is stale, and mount it anew
	Within    time.Duration // a mount that is missing must be there by then
}

// Name is recover_nfs_mount.
func (s *Recover) Name() string { return "recover_nfs_mount" }

// Check looks for the mount in /etc/fstab, and for its server: with that away
// there is nothing to heal on this node.
func (s *Recover) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	source, err := s.source(ctx, h)
	if err != nil {
		return nil, err
	}
	finding := step.Finding{Severity: step.Error, Host: h.Name()}
	if source == "" {
		finding.Check, finding.Message = "fstab", fmt.Sprintf("%s names no NFS mount on %s", fstabPath, s.Directory)
		finding.Fix = "run mount_nfs on it"
		return []step.Finding{finding}, nil
	}
	server := Server(source)
	if err := Answers(ctx, h, server); err != nil {
		finding.Check, finding.Message = "nfs_server",
			fmt.Sprintf("the NFS server at %s does not answer: %v", server, err)
		finding.Fix = "bring the server back; the mount heals itself then"
		return []step.Finding{finding}, nil
	}
	return nil, nil
}

// source is what fstab mounts on the directory; empty if that is no NFS mount.
func (s *Recover) source(ctx context.Context, h host.Host) (string, error) {
	f, _, err := step.ReadOrEmpty(ctx, h, fstabPath, 0o644)
	if err != nil {
		return "", err
	}
	list, err := confedit.Fstab(f.Data)
	for _, m := range list {
		if m.Target == s.Directory && (m.Type == "nfs" || m.Type == "nfs4") {
			return m.Source, nil
		}
	}
	return "", step.Located(h, fstabPath, err) // it may be on a line that cannot be read
}

// Server is the address of the server of SERVER:/DIRECTORY (nfs(5)).
func Server(source string) string {
	name, _, _ := strings.Cut(source, ":/")
	return net.JoinHostPort(strings.Trim(name, "[]"), strconv.Itoa(Port))
}

// Port is that of NFS over TCP (RFC 7530).
const Port = 2049

// Plan mounts what is missing, and mends what does not answer.
func (s *Recover) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	source, err := s.source(ctx, h)
	if err != nil || source == "" {
		return nil, err
	}
	mounted, err := mounts(ctx, h)
	if err != nil {
		return nil, err
	}
	if _, ok := mounted[s.Directory]; !ok {
		return []step.Change{&MountUnit{Dir: s.Directory, Source: source, Within: s.Within}}, nil
	}
	if statfs(ctx, h, s.Directory) == nil {
		return nil, nil
	}
	return []step.Change{&unhang{Recover: *s, source: source}}, nil
}

// Verify asks the mount once more.
func (s *Recover) Verify(ctx context.Context, h host.Host) error {
	if err := statfs(ctx, h, s.Directory); err != nil {
		return fault.Failed("mount", "look at the kernel's log and at the server", "%s: %s: %w", h.Name(),
			s.Directory, err)
	}
	return nil
}

// inHost is what runs a program in PID 1's mounts, as a process that SIGKILL
// ends after some seconds also where it hangs in a system call.
func inHost(seconds int, argv ...string) []string {
	return append([]string{"timeout", "--signal=KILL", strconv.Itoa(seconds), "nsenter", "--target=1", "--mount", "--"},
		argv...)
}

// statfs asks the server of a mount for the file system's state: stat(2) could
// be answered from a cache with the server away.
func statfs(ctx context.Context, h host.Host, dir string) error {
	_, err := h.Run(ctx, nil, inHost(3, "stat", "--file-system", "--format=%i", "--", dir)...)
	return err
}

// unhang waits for a mount to answer again, and detaches it if that was asked for.
type unhang struct {
	Recover
	source string
}

// Kind is "unhang".
func (c *unhang) Kind() string { return "unhang" }

// Target is the mount point.
func (c *unhang) Target() string { return c.Directory }

// Diff says what is done.
func (c *unhang) Diff() string {
	text := fmt.Sprintf("wait up to %s for %s to answer by itself", c.Patience, c.Directory)
	if c.Detach {
		text += "; then umount --lazy, and mount " + c.source + " anew"
	}
	return text
}

// Apply waits, then detaches.
func (c *unhang) Apply(ctx context.Context, h host.Host) error {
	patience, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	err := step.Await(patience, 500*time.Millisecond, func(context.Context) (waiting, err error) {
		return statfs(ctx, h, c.Directory), nil // a look of its own end: patience does not cut it off
	}, func(seen error) error {
		return fault.Failed("mount_hangs",
			"run it with detach=true to detach the mount and mount it anew; what programs have not saved there may "+
				"be lost",
			"%s: %s does not answer %s after its server does: %w", h.Name(), c.Directory, c.Patience, seen)
	})
	if err == nil || !c.Detach || ctx.Err() != nil {
		return err
	}
	return c.remount(ctx, h)
}

// remount detaches and mounts. umount --lazy can detach and hang itself all
// the same, so the table of mounts says whether it did.
func (c *unhang) remount(ctx context.Context, h host.Host) error {
	_, umountErr := h.Run(ctx, nil, inHost(10, "umount", "--lazy", "--", c.Directory)...)
	mounted, err := mounts(ctx, h)
	if err != nil {
		return err
	}
	if m, ok := mounted[c.Directory]; ok {
		return fault.Failed("detach", "reboot the node", "%s: %s is still mounted from %s: %w", h.Name(),
			c.Directory, m.Source, umountErr)
	}
	return (&MountUnit{Dir: c.Directory, Source: c.source, Within: c.Within}).Apply(ctx, h)
}

// Undo does nothing: it is no configuration.
func (c *unhang) Undo(context.Context, host.Host) error { return nil }
