package nfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

const exportsPath = "/etc/exports"

// Export shares directories of the primary with secondaries.
type Export struct {
	Directories []string // empty: the default list
	Clients     []string // addresses of the secondaries

	exports bool // when the last Plan looked: nothing is left to prove
}

// Name is export_nfs.
func (s *Export) Name() string { return "export_nfs" }

// Check looks for the directories.
func (s *Export) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	dirs, err := Directories(ctx, h, s.Directories)
	if err != nil {
		return nil, err
	}
	findings, err := checkLinks(ctx, h, dirs)
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		info, err := h.Stat(ctx, dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			findings = append(findings,
				step.Finding{Severity: step.Error, Host: h.Name(), Check: "directory", Message: dir + " does not exist",
					Fix: "install StackStorm there first, or take it out of the list of directories"})
		case err != nil:
			return nil, err
		case !info.Mode.IsDir():
			findings = append(findings,
				step.Finding{Severity: step.Error, Host: h.Name(), Check: "directory",
					Message: dir + " is not a directory",
					Fix:     "take it out of the list of directories"})
		}
	}
	root, err := version4Root(ctx, h)
	if err != nil || root == nil {
		return findings, err
	}
	return append(findings, step.Finding{Severity: step.Warning, Host: h.Name(), Check: "fsid",
		Message: fmt.Sprintf("%s:%d makes %s the root of NFSv4 (fsid=0): clients do not find %s by NFSv4", exportsPath,
			root.Line, root.Path, strings.Join(dirs, ", ")),
		Fix: "take fsid=0 out of that line, if no client needs it; else mount.nfs falls back to NFSv3, which the " +
			"firewalls must let through"}), nil
}

// version4Root is the export that NFSv4 clients take for the server's root
// (exports(5), fsid=), unless it is the real root; nil if there is none.
func version4Root(ctx context.Context, h host.Host) (*confedit.Export, error) {
	f, _, err := step.ReadOrEmpty(ctx, h, exportsPath, 0o644)
	if err != nil {
		return nil, err
	}
	list, err := confedit.Exports(f.Data)
	if err != nil {
		return nil, step.Located(h, exportsPath, err)
	}
	for _, e := range list {
		if e.Path != "/" && (slices.Contains(e.Options, "fsid=0") || slices.Contains(e.Options, "fsid=root")) {
			return &e, nil
		}
	}
	return nil, nil
}

// options are those of every export: written to disk before it is answered,
// and root on a secondary owns what it creates as the pack management does.
func options(gid int) []string {
	return []string{"rw", "sync", "no_subtree_check", "anonuid=0", fmt.Sprintf("anongid=%d", gid)}
}

// Plan edits /etc/exports, has the server run and tells the kernel.
func (s *Export) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	s.exports = false
	dirs, err := Directories(ctx, h, s.Directories)
	if err != nil {
		return nil, err
	}
	var changes []step.Change
	pkg, err := service.PlanPackage(ctx, h, service.Package{Debian: "nfs-kernel-server", RedHat: "nfs-utils"},
		"/usr/sbin/exportfs", "/sbin/exportfs")
	if err != nil {
		return nil, err
	}
	if pkg != nil {
		changes = append(changes, pkg)
	}
	gid, start, shown, err := s.ask(ctx, h, dirs, pkg == nil)
	if err != nil {
		return nil, err
	}
	f, existed, err := step.ReadOrEmpty(ctx, h, exportsPath, 0o644)
	if err != nil {
		return nil, err
	}
	data := f.Data
	for _, dir := range dirs {
		for _, client := range s.Clients {
			if data, err = confedit.AddExport(data, dir, client, options(gid)); err != nil {
				return nil, step.Located(h, exportsPath, err)
			}
		}
	}
	edit := step.EditFile(f, existed, data)
	if edit != nil {
		changes = append(changes, edit)
	}
	if pkg != nil {
		return append(changes, &service.Start{Unit: serverUnit}, &Reexport{}), nil
	}
	if start != nil {
		changes = append(changes, start)
	}
	s.exports = edit == nil && start == nil && shown
	if !s.exports {
		changes = append(changes, &Reexport{})
	}
	return changes, nil
}

// ask runs the programs that Plan has to hear, side by side: the group's gid,
// and, where the server is installed, how to start it and whether it exports.
func (s *Export) ask(ctx context.Context, h host.Host, dirs []string,
	installed bool) (gid int, start *service.Start, shown bool, err error) {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		gid, err = groupID(ctx, h, Group)
		return err
	})
	if installed {
		group.Go(func() (err error) {
			start, err = service.PlanStart(ctx, h, serverUnit)
			return err
		})
		group.Go(func() error {
			shown = s.exported(ctx, h, dirs) == nil
			return nil
		})
	}
	err = group.Wait()
	return gid, start, shown, err
}

// serverUnit is the name that NFS's own package gives it; Debian keeps
// nfs-kernel-server as an alias.
const serverUnit = "nfs-server.service"

// Units are the names of the server's unit, the one that counts first.
func Units() []string { return []string{serverUnit, "nfs-kernel-server.service"} }

// Verify looks at what the kernel exports.
func (s *Export) Verify(ctx context.Context, h host.Host) error {
	if s.exports {
		return nil
	}
	dirs, err := Directories(ctx, h, s.Directories)
	if err != nil {
		return err
	}
	return s.exported(ctx, h, dirs)
}

// exported compares "exportfs -v" (exportfs(8)) with what shall be exported.
func (s *Export) exported(ctx context.Context, h host.Host, dirs []string) error {
	out, err := h.Run(ctx, nil, "exportfs", "-v")
	if err != nil {
		return fault.Failed("exportfs", "", "%s: %w", h.Name(), err)
	}
	have := exported(string(out))
	for _, dir := range dirs {
		for _, client := range s.Clients {
			if !strings.Contains(","+have[[2]string{dir, client}]+",", ",rw,") {
				return fault.Failed("export", "exportfs -v and journalctl -u "+serverUnit+" on "+h.Name()+" say more",
					"%s: %s is not exported to %s for reading and writing", h.Name(), dir, client)
			}
		}
	}
	return nil
}

// exported reads "exportfs -v" (exportfs(8)): the options of directories and
// clients. A path stands before a tab, or, if it is long, on a line of its own
// with its client on the next.
func exported(listing string) map[[2]string]string {
	have := map[[2]string]string{}
	dir := ""
	for _, line := range strings.Split(listing, "\n") {
		if line != "" && line[0] != '\t' && line[0] != ' ' {
			path, rest, _ := strings.Cut(line, "\t")
			dir, line = strings.ReplaceAll(strings.TrimRight(path, " "), `\040`, " "), rest
		}
		if client, opts, ok := strings.Cut(strings.TrimSuffix(strings.TrimSpace(line), ")"), "("); ok {
			have[[2]string{dir, client}] = opts
		}
	}
	return have
}

// Reexport makes the kernel's exports equal /etc/exports.
type Reexport struct{}

// Kind is "exportfs".
func (r *Reexport) Kind() string { return "exportfs" }

// Target is /etc/exports.
func (r *Reexport) Target() string { return exportsPath }

// Diff says what is done.
func (r *Reexport) Diff() string { return "exportfs -ra" }

// Owes is empty: Plan asks the kernel.
func (r *Reexport) Owes() string { return "" }

// Postponed is false.
func (r *Reexport) Postponed() bool { return false }

// Apply runs exportfs -ra (exportfs(8)).
func (r *Reexport) Apply(ctx context.Context, h host.Host) error {
	if _, err := h.Run(ctx, nil, "exportfs", "-ra"); err != nil {
		return fault.Failed("exportfs", "look at "+exportsPath, "%s: %w", h.Name(), err)
	}
	return nil
}

// Undo does it again with what was restored. Where the NFS server's package
// came with the join it is gone by then, and all exports with it.
func (r *Reexport) Undo(ctx context.Context, h host.Host) error {
	if err := r.Apply(ctx, h); !errors.Is(err, exec.ErrNotFound) {
		return err
	}
	return nil
}
