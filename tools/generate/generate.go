package main

import (
	"embed"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"st2ha/internal/action"
	"st2ha/internal/cli"
	"st2ha/internal/join"
)

// The templates read like the files that they make. What stands between << and >> comes from the program.
//
//go:embed templates
var templates embed.FS

// generate returns the text of each file below the pack's directory, by its name there.
func generate(pack string) (map[string]string, error) {
	g := &generator{files: map[string]string{}}
	for _, a := range append(cli.Actions(), join.Workflows()...) {
		g.file("actions/"+a.Name+".yaml", "action.yaml", newPage(a))
	}
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
	if g.files[name], g.err = fill(from, nil, data); g.err != nil {
		g.err = fmt.Errorf("make %s: %w", name, g.err)
	}
}

// fill is the text that a template makes of data.
func fill(name string, funcs template.FuncMap, data any) (string, error) {
	all := template.New(name).Delims("<<", ">>").Option("missingkey=error").
		Funcs(template.FuncMap{"indent": indent, "join": strings.Join}).Funcs(funcs)
	if _, err := all.ParseFS(templates, "templates/"+name); err != nil {
		return "", err
	}
	var b strings.Builder
	err := all.Execute(&b, data)
	return b.String(), err
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
	Name, Type, Help string
	Enum             []string
	Default          string // in YAML; empty: none
	Required, Array  bool
}

func newPage(a action.Spec) page {
	p := page{Spec: a}
	for _, s := range a.Settings {
		if s.Secret {
			p.Secrets = append(p.Secrets, s)
			continue
		}
		p.Parameters = append(p.Parameters, newParameter(s, a.Workflow))
	}
	return p
}

func newParameter(s action.Setting, workflow bool) parameter {
	p := parameter{Name: s.Name, Type: kind(s), Help: s.Help, Required: s.Required}
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
