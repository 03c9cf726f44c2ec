package action

import (
	"fmt"
	"maps"

	"github.com/spf13/pflag"

	"st2ha/internal/fault"
)

// Values are what the settings of an action are given.
type Values struct {
	settings []Setting
	values   map[string]any // pointers, which the flags are read into
}

// Flags declares the settings as flags, and returns what they are given once the flags are parsed. Secrets are no
// flags, which would be seen in ps and in sudo's log: they are read from the environment.
func Flags(set *pflag.FlagSet, settings []Setting, getenv func(string) string) Values {
	v := Values{settings: settings, values: map[string]any{}}
	for _, s := range settings {
		switch d := s.Default.(type) {
		case string:
			if s.Secret {
				v.set(s.Name, getenv(s.Variable()))
				continue
			}
			v.values[s.Name] = set.String(s.Name, d, s.Usage())
		case bool:
			v.values[s.Name] = set.Bool(s.Name, d, s.Usage())
		case int:
			v.values[s.Name] = set.Int(s.Name, d, s.Usage())
		case []string:
			v.values[s.Name] = set.StringSlice(s.Name, d, s.Usage())
		default:
			panic(fmt.Sprintf("setting %s: a flag cannot be a %T", s.Name, d))
		}
	}
	return v
}

// Given sets the flags of an action that is Private as the environment has them.
func Given(set *pflag.FlagSet, spec Spec, settings []Setting, getenv func(string) string) error {
	if !spec.Private() {
		return nil
	}
	for _, s := range settings {
		if text := getenv(s.Variable()); text != "" && !s.Secret {
			if err := set.Set(s.Name, text); err != nil {
				return fault.Usage("%s: %w", spec.Name, err)
			}
		}
	}
	return nil
}

func (v *Values) set(name string, value any) {
	switch value := value.(type) {
	case string:
		v.values[name] = &value
	case bool:
		v.values[name] = &value
	case int:
		v.values[name] = &value
	case []string:
		v.values[name] = &value
	default:
		panic(fmt.Sprintf("setting %s cannot be a %T", name, value))
	}
}

// For are the values for other settings: those of the same name, except where given has one; else the defaults.
func (v Values) For(settings []Setting, given map[string]any) Values {
	other := Values{settings: settings, values: map[string]any{}}
	for _, s := range settings {
		other.set(s.Name, s.Default)
		if value, ok := v.values[s.Name]; ok {
			other.values[s.Name] = value
		}
		if value, ok := given[s.Name]; ok {
			other.set(s.Name, value)
		}
	}
	return other
}

// With are the values with another one in its place.
func (v Values) With(name string, value any) Values {
	other := Values{settings: v.settings, values: maps.Clone(v.values)}
	other.set(name, value)
	return other
}

// Check refuses the first value that its setting cannot have. What only nodes of another role need is not looked at.
func (v Values) Check() error {
	role := ""
	if v.Has("role") {
		role = v.String("role")
	}
	for _, s := range v.settings {
		if s.Only != "" && role != "" && s.Only != role {
			continue
		}
		if err := s.check(v); err != nil {
			return err
		}
	}
	return nil
}

// Has says whether there is a setting of that name.
func (v Values) Has(name string) bool { return v.values[name] != nil }

// String is a setting's text.
func (v Values) String(name string) string { return get[string](v, name) }

// Bool is a setting that is true or false.
func (v Values) Bool(name string) bool { return get[bool](v, name) }

// Int is a setting's number.
func (v Values) Int(name string) int { return get[int](v, name) }

// List is a setting's list.
func (v Values) List(name string) []string { return get[[]string](v, name) }

// get panics where an action reads what it has not declared: that is a mistake in the program.
func get[T any](v Values, name string) T {
	p, ok := v.values[name].(*T)
	if !ok {
		panic(fmt.Sprintf("setting %s is not declared as %T", name, *new(T)))
	}
	return *p
}
