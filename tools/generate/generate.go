package main

import (
	"embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"st2ha/internal/action"
	"st2ha/internal/cli"
	"st2ha/internal/join"
	"st2ha/internal/watch"
)

// The templates read like the files that they make. What stands between << and >> comes from the program.
//
//go:embed templates
var templates embed.FS

// generate returns the text of each file below the pack's directory, by its name there.
func generate(pack string) (map[string]string, error) {
	g := &generator{files: map[string]string{}}
	actions := append(cli.Actions(), join.Workflows()...)
	for _, w := range join.Workflows() {
		name := "workflows/" + w.Name + ".yaml"
		if g.files[name], g.err = (workflow{w}).text(); g.err != nil {
			return nil, fmt.Errorf("make %s: %w", name, g.err)
		}
	}
	for _, a := range actions {
		g.file("actions/"+a.Name+".yaml", "action.yaml", newPage(a))
	}
	kept, watching := newRows(cli.Settings()), newRows(watch.Settings())
	g.file("config.schema.yaml", "config.schema.yaml", slices.Concat(kept, watching))
	g.tables(pack, "docs/reference.md", map[string]any{"actions": actions, "settings": kept})
	g.tables(pack, "docs/watching.md", map[string]any{"watching": watching})
	return g.files, g.err
}

// generator keeps what was made, and the first error.
type generator struct {
	files map[string]string
	err   error
}

// file makes a file of a template.
func (g *generator) file(name, from string, data any) {
	if g.err != nil {
		return
	}
	if g.files[name], g.err = fill(data, nil, from); g.err != nil {
		g.err = fmt.Errorf("make %s: %w", name, g.err)
	}
}

// tables makes the parts of a page of the documentation that stand between <!-- generated: NAME --> and <!-- end -->,
// each of the template NAME.md and its data.
func (g *generator) tables(pack, name string, data map[string]any) {
	if g.err != nil {
		return
	}
	old, err := os.ReadFile(filepath.Join(pack, name))
	if err != nil {
		g.err = err // it names the file
		return
	}
	text := string(old)
	for table, rows := range data {
		begin := "<!-- generated: " + table + " -->\n"
		before, rest, found := strings.Cut(text, begin)
		_, after, ended := strings.Cut(rest, "<!-- end -->\n")
		if !found || !ended {
			g.err = fmt.Errorf("%s has no lines %q and, after it, %q", name, strings.TrimSpace(begin), "<!-- end -->")
			return
		}
		made, err := fill(rows, nil, table+".md")
		if err != nil {
			g.err = fmt.Errorf("make the table %s of %s: %w", table, name, err)
			return
		}
		text = before + begin + made + "<!-- end -->\n" + after
	}
	g.files[name] = text
}

// fill is the text that templates, one after the other, make of data.
func fill(data any, funcs template.FuncMap, names ...string) (string, error) {
	all := template.New(names[0]).Delims("<<", ">>").Option("missingkey=error").
		Funcs(template.FuncMap{"indent": indent, "join": strings.Join, "schema": schema}).Funcs(funcs)
	var source, made strings.Builder
	for _, name := range names {
		text, err := templates.ReadFile("templates/" + name)
		if err != nil {
			return "", err // it names the file
		}
		source.Write(text)
	}
	if _, err := all.Parse(source.String()); err != nil {
		return "", err
	}
	err := all.Execute(&made, data)
	return made.String(), err
}

// indent begins each line but the first with n spaces.
func indent(n int, text string) string {
	return strings.ReplaceAll(text, "\n", "\n"+strings.Repeat(" ", n))
}

// page is an action as its template has it.
type page struct {
	action.Spec
	Parameters []parameter
	Secrets    []action.Setting
}

// parameter is a setting as StackStorm has it in an action.
type parameter struct {
	Name, Type, Help        string
	Enum                    []string
	Default                 string // in YAML; empty: none
	Required, Array, Secret bool
	Variable                string // where a program that is told in its environment finds it
}

func newPage(a action.Spec) page {
	p := page{Spec: a}
	for _, s := range a.Settings {
		if s.Secret && s.Help == "" {
			p.Secrets = append(p.Secrets, s)
			continue
		}
		p.Parameters = append(p.Parameters, newParameter(s, a.Workflow))
	}
	return p
}

func newParameter(s action.Setting, workflow bool) parameter {
	p := parameter{Name: s.Name, Type: kind(s), Help: s.Help, Required: s.Required, Secret: s.Secret,
		Variable: s.Variable()}
	for _, value := range s.Enum {
		p.Enum = append(p.Enum, scalar(value))
	}
	if workflow && s.InWorkflow != "" {
		p.Help = s.InWorkflow
	}
	// A command's list is a string with commas, for StackStorm passes arrays as Python's repr.
	text := ""
	if p.Type == "array" {
		p.Array = workflow
		if !workflow {
			p.Type, text = "string", " | join(',')"
		}
	}
	switch {
	case s.Required:
	case s.Template != "":
		p.Default = strconv.Quote(s.Template)
	case s.Kept != "":
		p.Default = strconv.Quote("{{ config_context." + s.Name + text + " }}")
	case s.Default != "" || workflow: // a workflow has nothing in its context for what is left out
		p.Default = scalar(s.Default)
	}
	return p
}

// row is a setting as the pack's configuration and the documentation have it.
type row struct {
	action.Setting
	Type    string
	Lines   bool     // more than one, of what is said of it
	List    []string // the default, of a list
	Default string   // else
	Shown   string   // the default in a table
	Joins   bool     // join_secondary has a parameter of that name
}

func newRows(settings []action.Setting) []row {
	workflows := join.Workflows()
	whole := workflows[len(workflows)-1].Settings
	var rows []row
	for _, s := range settings {
		r := row{Setting: s, Type: kind(s), Lines: strings.Contains(s.Kept, "\n"),
			Default: scalar(s.Default), Shown: fmt.Sprint(s.Default),
			Joins: slices.ContainsFunc(whole, func(other action.Setting) bool { return other.Name == s.Name })}
		if list, ok := s.Default.([]string); ok {
			r.List, r.Default, r.Shown = list, "[]", "[]"
			if len(list) > 0 {
				r.Shown = strings.Join(list, "`, `")
			}
		}
		rows = append(rows, r)
	}
	return rows
}

// Meaning is what config.schema.yaml says, in one line.
func (r row) Meaning() string { return strings.ReplaceAll(r.Kept, "\n", " ") }

// kind is a setting's type as JSON schemas have it.
func kind(s action.Setting) string {
	switch s.Default.(type) {
	case bool:
		return "boolean"
	case int:
		return "integer"
	case float64:
		return "number"
	case []string:
		return "array"
	}
	return "string"
}

// scalar is a value that is no list, in YAML.
func scalar(value any) string {
	text := fmt.Sprint(value)
	if _, ok := value.(string); ok && text == "" {
		return `""`
	} else if ok && slices.Contains([]string{"on", "off", "yes", "no", "true", "false", "null"}, text) {
		return "'" + text + "'"
	}
	return text
}
