// Package action describes the pack's actions: what each is called, what is said of it, and what it can be told. The
// flags of the program, actions/*.yaml, config.schema.yaml and the tables of the documentation are made from it.
package action

import (
	"reflect"
	"slices"
	"strings"

	"st2ha/internal/fault"
)

// Spec is one action, as people meet it.
type Spec struct {
	Name        string
	Summary     string // a line, for --help
	Description string // for StackStorm, with the line breaks of the file; it says where something is changed
	Settings    []Setting
	Heals       bool // it mends a fault, and of that nothing is undone
	Workflow    bool // it is a workflow of others, and no command
	Rows        []Row
	Adds        []Field // to what each action returns
}

// Field is a part of what an action returns, as JSON has it.
type Field struct {
	Name, Description string
	Of                reflect.Type
}

// Row is a line of the documentation's table of actions.
type Row struct {
	With    string // the settings that it is about, where an action has more than one row
	Host    string // whose host it is for
	Changes string // what it changes there
}

// Setting is one thing that an action can be told, and all that is said of it.
type Setting struct {
	Name string
	// Default is also the setting's type: a string, bool, int, float64 or []string.
	Default any
	// Help is for the flag and for the action's parameter, with the line breaks of the file. A setting without it is
	// none of them: it is a secret, which comes in the environment, or only in the pack's configuration. A secret with
	// it is a parameter of the action, but no flag.
	Help string
	// InWorkflow takes the place of Help in a workflow, whose lists are no strings with commas.
	InWorkflow string
	// Kept is what config.schema.yaml says of a setting that people keep there; empty: it is of one run only.
	Kept string
	// Docs is its meaning in docs/reference.md.
	Docs string
	// Only is the role (what the setting of that name says) of the nodes that need it; empty: any.
	Only string

	Secret   bool
	Required bool
	Unit     Unit
	Enum     []string // what it may be
	// Template is the parameter's default, where that is made from more than the setting that is kept.
	Template string
	// Check refuses a value, in the place of what Enum says.
	Check func(Values) error
}

// Unit is what a whole number counts.
type Unit string

// The units, as a parameter's description begins.
const (
	Seconds Unit = "Seconds"
	Port    Unit = "TCP port"
)

// Usage is the help of the flag, in one line.
func (s Setting) Usage() string {
	text := strings.ReplaceAll(s.Help, "\n", " ")
	if s.Enum != nil {
		text += " One of " + strings.Join(s.Enum, ", ") + "."
	}
	return text
}

// Variable is where a secret comes from, and in an action that is Private any setting.
func (s Setting) Variable() string {
	if s.Secret {
		return "ST2HA_" + strings.ToUpper(s.Name)
	}
	return "ST2HA_GIVEN_" + strings.ToUpper(s.Name)
}

// Private says that a secret is among the action's parameters. StackStorm puts those of a script into its command line,
// which all users of a machine can see. So the environment has all of them: the runner is local-shell-cmd, which gives
// a program what its metadata says, and no more.
func (s Spec) Private() bool {
	return slices.ContainsFunc(s.Settings, func(s Setting) bool { return s.Secret && s.Help != "" })
}

// Union are the settings of more than one list, each once, in the order of the lists.
func Union(lists ...[]Setting) []Setting {
	var all []Setting
	for _, s := range slices.Concat(lists...) {
		if !slices.ContainsFunc(all, func(other Setting) bool { return other.Name == s.Name }) {
			all = append(all, s)
		}
	}
	return all
}

// check refuses a value that the setting cannot have.
func (s Setting) check(v Values) error {
	switch {
	case s.Check != nil:
		return s.Check(v)
	case s.Enum != nil:
		if value := v.String(s.Name); !slices.Contains(s.Enum, value) {
			return fault.Usage("%s must be %s, not %q", s.Name, Or(s.Enum), value)
		}
	case s.Unit == Seconds:
		if n := v.Int(s.Name); n < 0 {
			return fault.Usage("%s must be a number of seconds, not %d", s.Name, n)
		}
	case s.Unit == Port:
		n, unset, or := v.Int(s.Name), s.Default == 0, ""
		if unset {
			or = ", or 0"
		}
		if n > 65535 || n < 0 || n == 0 && !unset {
			return fault.Usage("%s must be 1 to 65535%s, not %d", s.Name, or, n)
		}
	}
	return nil
}

// Or are choices in words: a, b or c.
func Or(choices []string) string {
	last := len(choices) - 1
	if last < 1 {
		return strings.Join(choices, "")
	}
	return strings.Join(choices[:last], ", ") + " or " + choices[last]
}
