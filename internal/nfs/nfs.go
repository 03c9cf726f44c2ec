// Package nfs shares StackStorm's content: the primary exports it, the
// secondaries mount it.
package nfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/mountinfo"
	"st2ha/internal/step"
)

// Group owns StackStorm's content (StackStorm's packages create it, with a
// dynamic gid).
const Group = "st2packs"

// Directories returns the directories to share: the given ones, or the default
// list as far as the primary has them.
func Directories(ctx context.Context, primary host.Host, given []string) ([]string, error) {
	if len(given) > 0 {
		return given, Validate(given)
	}
	dirs := []string{"/opt/stackstorm/packs", "/opt/stackstorm/virtualenvs"}
	const configs = "/opt/stackstorm/configs" // older versions have none
	_, err := primary.Stat(ctx, configs)
	switch {
	case err == nil:
		return append(dirs, configs), nil
	case errors.Is(err, fs.ErrNotExist):
		return dirs, nil
	}
	return nil, err
}

// Validate refuses a list of directories that could not be shared.
func Validate(dirs []string) error {
	for i, dir := range dirs {
		switch {
		case !path.IsAbs(dir) || path.Clean(dir) != dir:
			return fault.Usage("directory must be an absolute path without . and .., not %q", dir)
		case strings.ContainsFunc(dir, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return fault.Usage("directory %q holds a control character", dir)
		}
		for _, system := range []string{"/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/proc", "/root",
			"/run", "/sbin", "/sys", "/tmp", "/usr", "/var/lib/st2ha"} {
			if dir == system || strings.HasPrefix(dir, system+"/") {
				return fault.Usage("directory %s is the system's own", dir)
			}
		}
		switch dir {
		case "/", "/mnt", "/opt", "/opt/stackstorm", "/opt/stackstorm/st2", "/srv", "/var", "/var/lib", "/var/log":
			// A mount there would hide what the node itself needs.
			return fault.Usage("directory %s is the system's own", dir)
		}
		for _, other := range dirs[:i] {
			if dir == other || strings.HasPrefix(dir, other+"/") || strings.HasPrefix(other, dir+"/") {
				return fault.Usage("directories %s and %s overlap", other, dir)
			}
		}
	}
	return nil
}

// checkLinks checks directories by where they lead to on the host, once their
// links are resolved.
func checkLinks(ctx context.Context, h host.Host, dirs []string) ([]step.Finding, error) {
	real := slices.Clone(dirs)
	for i, dir := range dirs {
		at, err := h.Resolve(ctx, dir)
		var refused *fault.Error
		if errors.As(err, &refused) { // a link that others can have made
			return nil, err
		}
		if err == nil { // else it will be made, or what it is on does not answer
			real[i] = at
		}
	}
	if err := Validate(real); err != nil {
		return []step.Finding{{Severity: step.Error, Host: h.Name(), Check: "directories",
			Message: fmt.Sprintf("%s: %v, once links are resolved", strings.Join(dirs, ", "), err),
			Fix:     "leave it out of the list of directories, or replace the link by a directory"}}, nil
	}
	return nil, nil
}

// groupID looks the gid of a group up (getent(1)).
func groupID(ctx context.Context, h host.Host, group string) (int, error) {
	out, err := h.Run(ctx, nil, "getent", "group", group)
	if err != nil {
		return 0, fault.Preflight("group", "install StackStorm on "+h.Name()+" first; its packages create the group",
			"%s: group %s: %w", h.Name(), group, err)
	}
	fields := strings.Split(strings.TrimSpace(string(out)), ":")
	if len(fields) < 3 {
		return 0, fmt.Errorf("%s: group %s: getent answered %q", h.Name(), group, out)
	}
	return strconv.Atoi(fields[2])
}

// mounts reads the mounts that PID 1 sees: an action's own mount namespace may
// differ (st2actionrunner runs with PrivateTmp).
func mounts(ctx context.Context, h host.Host) (map[string]mountinfo.Mount, error) {
	const table = "/proc/1/mountinfo"
	f, err := h.ReadFile(ctx, table)
	if err != nil {
		return nil, err
	}
	list, err := mountinfo.Parse(f.Data)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", h.Name(), table, err)
	}
	byPoint := map[string]mountinfo.Mount{}
	for _, m := range list { // a later one hides an earlier one
		byPoint[m.Point] = m
	}
	return byPoint, nil
}
