package nfs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
	"golang.org/x/sync/errgroup"

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

const fstabPath = "/etc/fstab"

// DefaultMountOptions let a node boot while the primary is away and mount when
// it is back: systemd-fstab-generator turns bg into a mount that is tried for
// ever and that nothing waits for (systemd.mount(5)). hard, the kernel's
// default, keeps a writer's data through an outage.
const DefaultMountOptions = "_netdev,nofail,bg,hard"

// Mount has a secondary use the primary's directories.
type Mount struct {
	PrimaryAddress string
	Primary        host.Host // where a file written here must show up
	Directories    []string  // empty: the default list
	Options        string
	Within         time.Duration // one mount must be there by then
	Program        string        // the path of this program, which the mount must not hide for good
}

// Name is mount_nfs.
func (s *Mount) Name() string { return "mount_nfs" }

func (s *Mount) source(dir string) string {
	address := s.PrimaryAddress
	if strings.Contains(address, ":") {
		address = "[" + address + "]"
	}
	return address + ":" + dir
}

// ValidateOptions refuses mount options that fstab cannot hold.
func ValidateOptions(options string) error {
	if options == "" || strings.ContainsFunc(options, func(r rune) bool { return r <= ' ' || r == '#' || r == 0x7f }) {
		return fault.Usage("mount_options must be a comma-separated list without spaces (nfs(5)), not %q", options)
	}
	return nil
}

// Check looks for what is mounted where the content shall be.
func (s *Mount) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	dirs, err := Directories(ctx, s.Primary, s.Directories)
	if err != nil {
		return nil, err
	}
	mounted, err := mounts(ctx, h)
	if err != nil {
		return nil, err
	}
	findings, err := checkLinks(ctx, h, dirs)
	if err != nil {
		return nil, err
	}
	other, err := s.otherOptions(ctx, h, dirs)
	if err != nil {
		return nil, err
	}
	findings = append(findings, other...)
	for _, dir := range dirs {
		m, ok := mounted[dir]
		switch {
		case ok && m.Source != s.source(dir):
			findings = append(findings, step.Finding{Severity: step.Error, Host: h.Name(), Check: "mount",
				Message: fmt.Sprintf("%s is mounted from %s already", dir, m.Source),
				Fix:     "unmount it and take it out of " + fstabPath + ", or leave it out of the list of directories"})
		}
		if info, err := h.Stat(ctx, dir); err == nil && !info.Mode.IsDir() {
			findings = append(findings, step.Finding{Severity: step.Error, Host: h.Name(), Check: "mount",
				Message: dir + " is not a directory", Fix: "move it away"})
		}
		if hidden, err := s.hides(ctx, h, dir); err != nil {
			return nil, err
		} else if hidden && !ok {
			findings = append(findings, step.Finding{Severity: step.Error, Host: h.Name(), Check: "pack",
				Message: fmt.Sprintf("the mount on %s would hide this program, %s: the primary has none there",
					dir, s.Program),
				Fix: "install the pack on the primary, too; or start the join there"})
		}
	}
	return findings, nil
}

// otherOptions names the entries of /etc/fstab that are this step's but for
// their options: somebody chose those, and they are replaced.
func (s *Mount) otherOptions(ctx context.Context, h host.Host, dirs []string) ([]step.Finding, error) {
	f, _, err := step.ReadOrEmpty(ctx, h, fstabPath, 0o644)
	if err != nil {
		return nil, err
	}
	var findings []step.Finding
	for _, dir := range dirs {
		have, err := confedit.OtherOptions(f.Data, s.entry(dir))
		if err != nil {
			return nil, step.Located(h, fstabPath, err)
		}
		if have != nil {
			findings = append(findings, step.Finding{Severity: step.Warning, Host: h.Name(), Check: "mount_options",
				Message: fmt.Sprintf("%s:%d mounts %s with the options %s; they are replaced by %s, from the next "+
					"mount on", fstabPath, have.Line, dir,
					strings.Join(have.Options, ","), s.Options),
				Fix: "to keep them, give mount_options=" + strings.Join(have.Options, ",")})
		}
	}
	return findings, nil
}

// entry is a directory's in /etc/fstab.
func (s *Mount) entry(dir string) confedit.Mount {
	return confedit.Mount{Source: s.source(dir), Target: dir, Type: "nfs", Options: strings.Split(s.Options, ",")}
}

// hides says whether a mount on dir would take away the program that the
// steps to come are run by: on this machine, where the primary has no such.
func (s *Mount) hides(ctx context.Context, h host.Host, dir string) (bool, error) {
	if !h.IsLocal() || !strings.HasPrefix(s.Program, dir+"/") {
		return false, nil
	}
	_, err := s.Primary.Stat(ctx, s.Program)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return false, err
}

// Plan edits /etc/fstab, has the services that read the directories wait for the mounts, keeps aside what a mount
// would hide, and mounts.
func (s *Mount) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	dirs, err := Directories(ctx, s.Primary, s.Directories)
	if err != nil {
		return nil, err
	}
	var changes []step.Change
	pkg, err := service.PlanPackage(ctx, h, service.Package{Debian: "nfs-common", RedHat: "nfs-utils"},
		"/usr/sbin/mount.nfs", "/sbin/mount.nfs")
	if err != nil {
		return nil, err
	}
	if pkg != nil {
		changes = append(changes, pkg)
	}
	f, existed, err := step.ReadOrEmpty(ctx, h, fstabPath, 0o644)
	if err != nil {
		return nil, err
	}
	data := f.Data
	for _, dir := range dirs {
		if data, err = confedit.AddMount(data, s.entry(dir)); err != nil {
			return nil, step.Located(h, fstabPath, err)
		}
	}
	edit := step.EditFile(f, existed, data)
	if edit != nil {
		changes = append(changes, edit)
	}
	guards, reload, err := planGuards(ctx, h, dirs)
	if err != nil {
		return nil, err
	}
	changes = append(changes, guards...)
	mounted, err := mounts(ctx, h)
	if err != nil {
		return nil, err
	}
	var missing []step.Change
	var units []string
	for _, dir := range dirs {
		if _, ok := mounted[dir]; ok {
			continue
		}
		aside, err := s.aside(ctx, h, dir)
		if err != nil {
			return nil, err
		}
		if aside != nil {
			missing = append(missing, aside)
		}
		mount := &MountUnit{Dir: dir, Source: s.source(dir), Within: s.Within}
		missing, units = append(missing, mount), append(units, mount.unit())
	}
	reload = reload || edit != nil || len(guards) > 0
	if !reload && len(units) > 0 {
		if reload, err = service.ReloadNeeded(ctx, h, units...); err != nil {
			return nil, err
		}
	}
	if reload {
		changes = append(changes, &service.Reload{})
	}
	return append(changes, missing...), nil
}

// aside returns the change that makes dir an empty directory, or nil if it is one.
func (s *Mount) aside(ctx context.Context, h host.Host, dir string) (step.Change, error) {
	names, err := h.ReadDir(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		info, err := s.Primary.Stat(ctx, dir)
		if err != nil {
			return nil, err
		}
		return &step.MakeDir{Dir: dir, Mode: info.Mode.Perm(), UID: info.UID, GID: info.GID}, nil
	}
	if err != nil || len(names) == 0 {
		return nil, err
	}
	info, err := h.Stat(ctx, dir)
	if err != nil {
		return nil, err
	}
	kept := dir + ".before-st2ha"
	for i := 2; ; i++ {
		if _, err := h.Stat(ctx, kept); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return nil, err
		}
		kept = fmt.Sprintf("%s.before-st2ha-%d", dir, i)
	}
	return &Aside{Dir: dir, Kept: kept, Entries: len(names),
		Mode: info.Mode & (fs.ModePerm | fs.ModeSetgid | fs.ModeSticky), UID: info.UID, GID: info.GID}, nil
}

// Verify proves that both nodes see the same files: what is written on one is
// read on the other, and then removed.
func (s *Mount) Verify(ctx context.Context, h host.Host) error {
	dirs, err := Directories(ctx, s.Primary, s.Directories)
	if err != nil {
		return err
	}
	prefix := ".st2ha-" + h.Name() + "-"
	group, both := errgroup.WithContext(ctx)
	for _, dir := range dirs {
		group.Go(func() error { return seen(both, h, s.Primary, path.Join(dir, prefix)) })
		group.Go(func() error { return seen(both, s.Primary, h, path.Join(dir, prefix)) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	group, each := errgroup.WithContext(ctx)
	for _, dir := range dirs {
		group.Go(func() error { return sweep(each, h, dir, prefix) })
	}
	return group.Wait()
}

// seen writes a file with this prefix on one host and reads it on another.
func seen(ctx context.Context, from, to host.Host, prefix string) error {
	random := make([]byte, 8)
	_, _ = rand.Read(random)
	token := hex.EncodeToString(random)
	name := prefix + token
	if err := from.WriteFile(ctx, host.File{Path: name, Data: []byte(token), Mode: 0o600}); err != nil {
		return fault.Failed("share", "look at the export's options and at the directory's owner",
			"write to the shared %s on %s: %w", path.Dir(name), from.Name(), err)
	}
	f, err := to.ReadFile(ctx, name)
	if removeErr := from.Remove(context.WithoutCancel(ctx), name); removeErr != nil && err == nil {
		err = removeErr
	}
	if err == nil && string(f.Data) != token {
		err = errors.New("it holds something else")
	}
	if err != nil {
		return fault.Failed("share", "compare /proc/1/mountinfo on the secondary with exportfs -v on the primary",
			"%s written on %s is not seen on %s: %w", name, from.Name(), to.Name(), err)
	}
	return nil
}

// sweep removes what killed runs for this host left of such files.
func sweep(ctx context.Context, h host.Host, dir, prefix string) error {
	names, err := h.ReadDir(ctx, dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		temporary := strings.HasPrefix(name, "."+prefix)
		if !strings.HasPrefix(name, prefix) && !temporary {
			continue
		}
		if err := h.Remove(ctx, path.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Aside renames a directory whose contents a mount would hide, and puts an
// empty one in its place.
type Aside struct {
	Dir     string
	Kept    string // its new name
	Entries int
	Mode    fs.FileMode
	UID     int
	GID     int
}

// Kind is "aside".
func (a *Aside) Kind() string { return "aside" }

// Target is the directory.
func (a *Aside) Target() string { return a.Dir }

// Diff says where the contents are kept.
func (a *Aside) Diff() string {
	return fmt.Sprintf("its %d entries, which the mount would hide, are kept in %s", a.Entries, a.Kept)
}

// Apply renames.
func (a *Aside) Apply(ctx context.Context, h host.Host) error {
	if err := h.Rename(ctx, a.Dir, a.Kept); err != nil {
		return err
	}
	return h.Mkdir(ctx, a.Dir, host.Info{Mode: a.Mode, UID: a.UID, GID: a.GID})
}

// CheckUndo warns that the kept contents are gone, so that Undo leaves the
// directory empty.
func (a *Aside) CheckUndo(ctx context.Context, h host.Host) ([]step.Finding, error) {
	if _, err := h.Stat(ctx, a.Kept); !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	mounted, err := mounts(ctx, h)
	if err != nil {
		return nil, err
	}
	if _, ok := mounted[a.Dir]; !ok {
		// A rollback that was killed may have put them back already.
		names, err := h.ReadDir(ctx, a.Dir)
		if len(names) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return []step.Finding{{Severity: step.Warning, Host: h.Name(), Check: "kept_aside",
		Message: fmt.Sprintf("%s, which kept what the mount hid, is gone: %s is left empty", a.Kept, a.Dir),
		Fix:     "put back a backup of " + a.Dir + " after the rollback, or install StackStorm anew on the node"}}, nil
}

// Undo renames back.
func (a *Aside) Undo(ctx context.Context, h host.Host) error {
	if _, err := h.Stat(ctx, a.Kept); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := h.Remove(ctx, a.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: put %s back: %w: move away what was written there since", h.Name(), a.Dir, err)
	}
	return h.Rename(ctx, a.Kept, a.Dir)
}

// MountUnit has PID 1 mount what /etc/fstab names: a mount by an action would
// stay in the action runner's own mount namespace.
type MountUnit struct {
	Dir    string
	Source string
	Within time.Duration
}

// Kind is "mount".
func (m *MountUnit) Kind() string { return "mount" }

// Target is the directory.
func (m *MountUnit) Target() string { return m.Dir }

// Diff says what is mounted.
func (m *MountUnit) Diff() string { return "mount " + m.Source + " on " + m.Dir }

func (m *MountUnit) unit() string { return unit.UnitNamePathEscape(m.Dir) + ".mount" }

// Apply starts the mount's unit and looks for it among PID 1's mounts.
func (m *MountUnit) Apply(ctx context.Context, h host.Host) error {
	whole := ctx
	ctx, cancel := context.WithTimeout(ctx, m.Within)
	defer cancel()
	const hint = "look at showmount -e and exportfs -v on the primary, and at firewalls for port 2049"
	if _, err := h.Run(ctx, nil, "systemctl", "start", m.unit()); err != nil {
		if ctx.Err() != nil {
			err = m.late(whole, h)
		}
		return fault.Failed("mount", hint, "%s: mount %s on %s: %w", h.Name(), m.Source, m.Dir, err)
	}
	mounted, err := mounts(ctx, h)
	if err != nil {
		return err
	}
	if mounted[m.Dir].Source != m.Source {
		return fault.Failed("mount", hint, "%s: %s is active, but %s is not mounted on %s", h.Name(),
			m.unit(), m.Source, m.Dir)
	}
	return nil
}

// late says of a mount that did not come about in time what systemd makes of it.
func (m *MountUnit) late(ctx context.Context, h host.Host) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTime)
	defer cancel()
	state := "it does not say what it is doing"
	if down, err := service.Inactive(ctx, h, m.unit()); err == nil && len(down) > 0 {
		state = down[0]
	}
	return fmt.Errorf("not done within %s: %s", m.Within, state)
}

// Undo unmounts. Where processes still use it, it is detached: the server is
// there, so nothing they write is lost, and they keep it until they restart.
func (m *MountUnit) Undo(ctx context.Context, h host.Host) error {
	_, stopErr := h.Run(ctx, nil, "systemctl", "stop", m.unit())
	mounted, err := mounts(ctx, h)
	if err != nil {
		return err
	}
	if mounted[m.Dir].Source != m.Source {
		return nil
	}
	if _, err := h.Run(ctx, nil, "nsenter", "--target=1", "--mount", "--", "umount", "--lazy", m.Dir); err != nil {
		return fmt.Errorf("%s: unmount %s: %w, after %w", h.Name(), m.Dir, err, stopErr)
	}
	// Because of the failed stop, systemd would list the unit as failed for ever.
	_, err = h.Run(ctx, nil, "systemctl", "reset-failed", m.unit())
	var exit *host.ExitError
	if errors.As(err, &exit) { // it is not loaded any more
		return nil
	}
	return err
}
