package nfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"st2ha/internal/host"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

// guardFile is the drop-in's name, below the unit's directory in /etc/systemd/system (systemd.unit(5)).
const guardFile = "st2ha-mounts.conf"

// runnerUnit starts the action runners, each a unit of its own.
const runnerUnit = "st2actionrunner.service"

// guarded are the units whose services read packs, virtualenvs or configs (st2api's controllers/v1/pack_views.py,
// st2actions/container/base.py, st2common/util/sandboxing.py), and what each unit file is asked for by: a template
// has no state of its own.
func guarded() []struct{ unit, asked string } {
	return []struct{ unit, asked string }{
		{"st2api.service", "st2api.service"},
		{"st2sensorcontainer.service", "st2sensorcontainer.service"},
		{"st2actionrunner@.service", "st2actionrunner@1.service"},
		{runnerUnit, runnerUnit},
	}
}

// guard has a unit's service start on the mounts only. RequiresMountsFor= would do harm here: a mount that waits for
// its server (bg) is a job that does not end, so the boot, and each "systemctl start", would wait with it; a mount
// that failed would leave the service stopped for good; and a stop of the mount, which a rollback makes, would stop
// the services, and with the runner whoever does the rollback. A start that fails is tried again after 5 s, by the
// packages' own Restart=on-failure (packaging/deb/systemd/).
func guard(unit string, dirs []string) []byte {
	var b strings.Builder
	b.WriteString("# Written by st2ha mount_nfs; st2ha rollback removes it.\n")
	if unit == runnerUnit {
		b.WriteString("# The runners that it starts wait for the mounts themselves: that the first try failed is no failure.\n")
		b.WriteString("[Service]\nSuccessExitStatus=1\n")
		return []byte(b.String())
	}
	b.WriteString("# It must not start on the directories that lie below the mounts: it fails, and is tried again after 5 s.\n")
	b.WriteString("# The table of mounts is read, for a look at the mount itself could hang.\n[Service]\n")
	for _, dir := range dirs {
		fmt.Fprintf(&b, "ExecStartPre=/bin/grep -qE \"%s\" /proc/self/mountinfo\n", mountedPattern(dir))
	}
	return []byte(b.String())
}

// mountedPattern matches the line of /proc/self/mountinfo whose mount point, its fifth field, is the directory
// (proc(5)), in the form that a unit file's double quotes want (systemd.service(5), "Command lines").
func mountedPattern(dir string) string {
	inTable := strings.NewReplacer(`\`, `\134`, " ", `\040`).Replace(dir)
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(
		"^([^ ]+ ){4}" + regexp.QuoteMeta(inTable) + " ")
}

// planGuards returns what gives the guarded units that the host has their drop-ins, and whether PID 1 has still to
// read one of a run that was killed.
func planGuards(ctx context.Context, h host.Host, dirs []string) (changes []step.Change, reload bool, err error) {
	var asked []string
	for _, g := range guarded() {
		asked = append(asked, g.asked)
	}
	known, reload, err := service.Known(ctx, h, asked...)
	if err != nil {
		return nil, false, err
	}
	for i, g := range guarded() {
		if !known[i] {
			continue
		}
		dir := "/etc/systemd/system/" + g.unit + ".d"
		if _, err := h.Stat(ctx, dir); errors.Is(err, fs.ErrNotExist) {
			changes = append(changes, &step.MakeDir{Dir: dir, Mode: 0o755, Shared: true})
		} else if err != nil {
			return nil, false, err
		}
		f, existed, err := step.ReadOrEmpty(ctx, h, dir+"/"+guardFile, 0o644)
		if err != nil {
			return nil, false, err
		}
		if edit := step.EditFile(f, existed, guard(g.unit, dirs)); edit != nil {
			changes = append(changes, edit)
		}
	}
	return changes, reload, nil
}
