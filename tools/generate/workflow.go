package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"st2ha/internal/action"
	"st2ha/internal/cli"
	"st2ha/internal/join"
)

// workflow is what the template of a workflow is filled with.
type workflow struct{ action.Spec }

// task is one of a workflow's that runs a step, for the templates of what follows it.
type task struct {
	Step       string
	Hosts      string // that it runs on: an expression
	Each       bool   // they are a list
	Then, Else string // the tasks after it
}

// place is a step in the order of a workflow.
type place struct {
	Name string
	Next string // empty: none of the steps
}

// text fills the workflow's template. The list of tasks is made from what it comes to without one.
func (w workflow) text() (string, error) {
	from := []string{"workflows/common.yaml", "workflows/" + w.Name + ".yaml"}
	without, err := fill(nil, w.funcs(""), from...)
	if err != nil {
		return "", err
	}
	undoing, _, _ := strings.Cut(without, "\n  report:\n") // what comes then is not the join's work
	var names []string
	named := regexp.MustCompile(`(?m)^  (\w+):\n(?:    with: .*\n)?    action: `)
	for _, found := range named.FindAllStringSubmatch(undoing, -1) {
		names = append(names, found[1])
	}
	return fill(nil, w.funcs(fold(names)), from...)
}

func (w workflow) funcs(tasks string) template.FuncMap {
	return template.FuncMap{"inputs": w.inputs, "passes": w.passes, "settings": w.settings, "steps": steps,
		"task": newTask, "tasks": func() string { return tasks }}
}

// fold are names with commas, in the lines of the expression that has them.
func fold(names []string) string {
	const before, after, width = "      true => dict(host => ctx().get(primary, ''), step => [", "].where(", 136
	text, column := "", len(before)
	for i, name := range names {
		room := width
		if i == len(names)-1 {
			room -= len(after)
		} else {
			name += ","
		}
		switch {
		case i == 0:
		case column+1+len(name) > room:
			text, column = text+"\n      ", 6
		default:
			text, column = text+" ", column+1
		}
		text, column = text+name, column+len(name)
	}
	return text
}

// steps are those that are done on the nodes of a role, one after the other.
func steps(role join.Role) []place {
	var all []place
	for _, s := range join.Steps() {
		if s.Placed || !s.Role.Has(role) {
			continue
		}
		if len(all) > 0 {
			all[len(all)-1].Next = s.Name
		}
		all = append(all, place{Name: s.Name})
	}
	return all
}

func newTask(step, hosts, then string, otherwise ...string) task {
	t := task{Step: step, Hosts: hosts, Each: hosts != "ctx(primary)", Then: then, Else: "undo"}
	if len(otherwise) > 0 {
		t.Else = otherwise[0]
	}
	return t
}

// settings are the names of the workflow's own.
func (w workflow) settings() []string {
	var names []string
	for _, s := range w.Settings {
		names = append(names, s.Name)
	}
	return names
}

// inputs are what a step on the nodes of a role is given: what the join itself says, and the workflow's own settings.
func (w workflow) inputs(name string, role join.Role) (string, error) {
	all := join.Steps()
	i := slices.IndexFunc(all, func(s join.Spec) bool { return s.Name == name })
	if i < 0 {
		return "", fmt.Errorf("the join has no step %s", name)
	}
	var lines []string
	for _, s := range all[i].Settings {
		given, ok := all[i].Given[s.Name]
		switch {
		case s.Only != "" && s.Only != string(role):
		case s.Name == "role":
			lines = append(lines, s.Name+": "+string(role))
		case ok:
			lines = append(lines, s.Name+": "+scalar(given))
		default:
			lines = append(lines, w.passed(s.Name, false)...)
		}
	}
	return ended(lines), nil
}

// passes are all of the workflow's settings that another action has, which is given the value of one more, if any.
func (w workflow) passes(name string, given ...string) (string, error) {
	all := append(cli.Actions(), join.Workflows()...)
	i := slices.IndexFunc(all, func(a action.Spec) bool { return a.Name == name })
	if i < 0 {
		return "", fmt.Errorf("there is no action %s", name)
	}
	order, theirs := w.Settings, all[i].Settings
	if all[i].Workflow {
		order = theirs
	}
	var lines []string
	for _, s := range order {
		switch {
		case s.Name == "run" || s.Name == "dry_run":
		case len(given) == 2 && s.Name == given[0]:
			lines = append(lines, s.Name+": "+given[1])
		case slices.ContainsFunc(theirs, func(other action.Setting) bool { return other.Name == s.Name }):
			lines = append(lines, w.passed(s.Name, all[i].Workflow)...)
		}
	}
	return ended(lines), nil
}

// passed is the line that gives on a setting of the workflow, if it has one of that name.
func (w workflow) passed(name string, list bool) []string {
	i := slices.IndexFunc(w.Settings, func(s action.Setting) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	value := "ctx(" + name + ")"
	if kind(w.Settings[i]) == "array" && !list {
		value += `.join(",")` // a command's list is a string
	}
	return []string{name + ": <% " + value + " %>"}
}

// ended are the lines of a task's input, with what all of them end with.
func ended(lines []string) string {
	return strings.Join(append(lines, "run: <% ctx(name) %>", "dry_run: <% ctx(dry_run) %>"), "\n      ")
}
