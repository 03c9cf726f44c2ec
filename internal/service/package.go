package service

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/host"
)

// Package installs a distribution package: apt-get on the Debian family, dnf
// on the Red Hat family.
type Package struct {
	Debian string // name on the Debian family
	RedHat string // name on the Red Hat family

	before []byte // the packages that were installed, a line each; of the Debian family only
}

// PlanPackage returns the change that installs a package unless program, an
// absolute path or several of which one is enough, exists.
func PlanPackage(ctx context.Context, h host.Host, p Package, programs ...string) (*Package, error) {
	for _, program := range programs {
		if _, err := h.Stat(ctx, program); err == nil {
			return nil, nil
		}
	}
	if manager(ctx, h) != aptGet {
		return &p, nil
	}
	list, err := h.Run(ctx, nil, "dpkg-query", "--show", "--showformat=${db:Status-Abbrev} ${Package}\n")
	if err != nil {
		return nil, fmt.Errorf("%s: list the installed packages: %w", h.Name(), err)
	}
	for line := range strings.Lines(string(list)) {
		if state, name, _ := strings.Cut(line, " "); strings.HasPrefix(state, "ii") {
			p.before = append(p.before, strings.TrimSpace(name)+"\n"...)
		}
	}
	return &p, nil
}

// Kind is "package".
func (p *Package) Kind() string { return "package" }

// Target is the package's name on the Debian family.
func (p *Package) Target() string { return p.Debian }

// Diff says what is done.
func (p *Package) Diff() string {
	return fmt.Sprintf("install %s (Red Hat family: %s)", p.Debian, p.RedHat)
}

// Replans marks that packages bring configuration files.
func (p *Package) Replans() {}

// Image is the list of packages that were installed.
func (p *Package) Image() []byte { return p.before }

// SetImage gives back what Image returned.
func (p *Package) SetImage(b []byte) { p.before = b }

// Apply installs the package. Lists of packages that are out of date, or were
// never fetched, are a reason to fetch them and try again.
func (p *Package) Apply(ctx context.Context, h host.Host) error {
	var install, refresh []string
	name := p.Debian
	switch manager(ctx, h) {
	case aptGet:
		install, refresh = apt("install", "--no-install-recommends", p.Debian), apt("update")
	case dnf:
		name = p.RedHat
		install, refresh = []string{"dnf", "install", "--assumeyes", "--quiet", name}, []string{"dnf",
			"makecache", "--quiet"}
	default:
		return fault.Preflight("package_manager", "install "+p.Debian+" by hand",
			"%s: neither apt-get nor dnf is there to install %s", h.Name(), p.Debian)
	}
	_, err := h.Run(ctx, nil, install...)
	if err == nil {
		return nil
	}
	if _, failed := h.Run(ctx, nil, refresh...); failed == nil {
		_, err = h.Run(ctx, nil, install...)
	}
	if err != nil {
		return fault.Failed("package", "install it by hand, then run this again", "%s: install %s: %w", h.Name(),
			name, err)
	}
	return nil
}

// Undo removes the package again, and those that came with it, unless
// something needs them by now. dnf does the latter by itself
// (dnf.conf(5), clean_requirements_on_remove).
func (p *Package) Undo(ctx context.Context, h host.Host) error {
	argv := []string{"dnf", "remove", "--assumeyes", "--quiet", p.RedHat}
	if manager(ctx, h) == aptGet {
		more, err := p.company(ctx, h)
		if err != nil {
			return err
		}
		// purge: its files in /etc came with it.
		argv = apt("purge", append([]string{p.Debian}, more...)...)
	}
	if _, err := h.Run(ctx, nil, argv...); err != nil {
		return fmt.Errorf("%s: remove %s: %w", h.Name(), p.Debian, err)
	}
	return nil
}

// company is what was not installed before and what apt would remove with the
// package, as nothing needs it. apt alone would not do: it also knows packages
// that nothing needed all the time, and it keeps what is merely suggested.
func (p *Package) company(ctx context.Context, h host.Host) ([]string, error) {
	if len(p.before) == 0 {
		return nil, nil
	}
	out, err := h.Run(ctx, nil,
		apt("autoremove", "--simulate", "--purge", "--option=APT::AutoRemove::SuggestsImportant=false", p.Debian)...)
	if err != nil {
		return nil, fmt.Errorf("%s: list what was installed with %s: %w", h.Name(), p.Debian, err)
	}
	had := strings.Fields(string(p.before))
	var names []string
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "Purg" && fields[0] != "Remv" {
			continue
		}
		name, _, _ := strings.Cut(fields[1], ":") // its architecture, where that is another one
		if name != p.Debian && !slices.Contains(had, name) {
			names = append(names, fields[1])
		}
	}
	return names, nil
}

// Package managers, by the path of their program.
const (
	aptGet = "/usr/bin/apt-get"
	dnf    = "/usr/bin/dnf"
)

// manager is the host's package manager, or empty.
func manager(ctx context.Context, h host.Host) string {
	for _, program := range []string{aptGet, dnf} {
		if _, err := h.Stat(ctx, program); err == nil {
			return program
		}
	}
	return ""
}

// apt is a command line of apt-get that asks nothing, and waits for another one
// to end: unattended-upgrades, or that of a run that was killed. An apt older
// than 1.9.11 does not know the option, and fails at once.
func apt(verb string, more ...string) []string {
	return append([]string{"env", "DEBIAN_FRONTEND=noninteractive", "apt-get", verb, "--yes", "--quiet",
		"--option=DPkg::Lock::Timeout=120"}, more...)
}
