// Package sample has each way in which a fault or a finding is made.
package sample

import (
	"fmt"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

const path = "/etc/" + "x"

func usage(role string) error {
	return fault.Usage("role must be primary or secondary, not %q", role)
}

func plain(h host.Host, err error) error {
	return fault.Failed("plain", "look at "+path+" on "+h.Name(), "%s: read %s: %w", h.Name(), path, err)
}

func choice(serverName string, down bool) error {
	hint := "start it"
	if !down {
		hint = "wait for it"
	}
	return fault.Preflight("choice", hint, "%s is 100%% away", serverName)
}

type files struct{ host host.Host }

func (f files) refuse(hint, format string, args ...any) error {
	return fault.Preflight("wrapped", hint, "%s: %w", f.host.Name(), fmt.Errorf(format, args...))
}

func (f files) wrapped(file string, line int) error {
	if line == 0 {
		return f.refuse("make it", "nothing is there")
	}
	return f.refuse("mend the line", "%s, line %d", file, line+1)
}

func closure(a string) (found []step.Finding) {
	add := func(check, fix, format string, args ...any) {
		found = append(found, step.Finding{Check: check, Message: fmt.Sprintf(format, args...), Fix: fix})
	}
	add("closure", "make it equal", "%s differs", a)
	return found
}

func literals(dir string) []step.Finding {
	return []step.Finding{
		step.Finding{Check: "literal", Message: dir + " is no directory", Fix: "move it away"},
		{Check: "listed", Message: "of a list"},
	}
}

func base(target string, first bool) *step.Finding {
	f := &step.Finding{Message: target + " waits"}
	if first {
		f.Check, f.Fix = "base", "one"
	} else {
		f.Check, f.Fix = "base", "two"
	}
	return f
}

func late(err error) step.Finding {
	finding := step.Finding{Severity: step.Error}
	if err != nil {
		finding.Check, finding.Message = "late", fmt.Sprintf("it is away: %v", err)
		finding.Fix = "bring it back"
	}
	return finding
}

func pointer(err error) error { return &fault.Error{Code: "pointer", Err: err} }
