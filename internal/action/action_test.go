package action

import (
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"st2ha/internal/fault"
)

func settings() []Setting {
	return []Setting{
		{Name: "role", Default: "", Enum: []string{"primary", "secondary"}, Help: "x"},
		{Name: "nodes", Default: []string{"a", "b"}, Help: "x"},
		{Name: "port", Default: 22, Unit: Port, Help: "x"},
		{Name: "any_port", Default: 0, Unit: Port, Help: "x", Only: "secondary"},
		{Name: "wait", Default: 0, Unit: Seconds, Help: "x"},
		{Name: "force", Default: false, Help: "two\nlines"},
		{Name: "some_password", Default: "", Secret: true},
		{Name: "path", Default: "/", Help: "x", Check: func(v Values) error {
			if v.String("path") == "" {
				return fault.Usage("path is missing")
			}
			return nil
		}},
	}
}

func TestValues(t *testing.T) {
	getenv := func(name string) string { return map[string]string{"ST2HA_SOME_PASSWORD": "hunter2"}[name] }
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	v := Flags(set, settings(), getenv)
	require.Nil(t, set.Lookup("some_password"), "a secret is no flag")
	require.Equal(t, "two lines", set.Lookup("force").Usage)
	require.Equal(t, "x One of primary, secondary.", set.Lookup("role").Usage)
	require.NoError(t, set.Parse([]string{"--nodes=c,d", "--force", "--port=23", "--path=/x"}))
	require.Equal(t, []string{"c", "d"}, v.List("nodes"))
	require.Equal(t, 23, v.Int("port"))
	require.True(t, v.Bool("force"))
	require.Equal(t, "hunter2", v.String("some_password"))

	require.Equal(t, 24, v.With("port", 24).Int("port"))
	require.Equal(t, 23, v.Int("port"))
	other := v.For([]Setting{{Name: "port", Default: 1}, {Name: "path", Default: "/"}, {Name: "new", Default: true}},
		map[string]any{"path": "/given"})
	require.Equal(t, 23, other.Int("port"))
	require.Equal(t, "/given", other.String("path"))
	require.True(t, other.Bool("new"))
	require.False(t, other.Has("force"))
	require.Panics(t, func() { other.Bool("force") })
	require.Panics(t, func() { v.Int("path") })
}

func TestCheck(t *testing.T) {
	for flag, want := range map[string]string{
		"--role=primary": "",
		"--role=arbiter": `role must be primary or secondary, not "arbiter"`,
		"--role=":        `role must be primary or secondary, not ""`,
		"--port=0":       "port must be 1 to 65535, not 0",
		"--port=65536":   "port must be 1 to 65535, not 65536",
		"--any_port=0":   "",
		"--any_port=-1":  "any_port must be 1 to 65535, or 0, not -1",
		"--wait=-1":      "wait must be a number of seconds, not -1",
		"--path=":        "path is missing",
	} {
		set := pflag.NewFlagSet("", pflag.ContinueOnError)
		v := Flags(set, settings(), func(string) string { return "" })
		require.NoError(t, set.Parse([]string{"--role=secondary", flag}))
		if err := v.Check(); want == "" {
			require.NoError(t, err, flag)
		} else {
			require.EqualError(t, err, want, flag)
		}
	}
	// What only a secondary needs does not matter on the primary.
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	v := Flags(set, settings(), func(string) string { return "" })
	require.NoError(t, set.Parse([]string{"--role=primary", "--any_port=-1"}))
	require.NoError(t, v.Check())
}

func TestWords(t *testing.T) {
	require.Equal(t, "on", Or([]string{"on"}))
	require.Equal(t, "on or off", Or([]string{"on", "off"}))
	require.Equal(t, "a, b or c", Or([]string{"a", "b", "c"}))
	both := Union([]Setting{{Name: "a", Help: "1"}, {Name: "b"}}, []Setting{{Name: "a", Help: "2"}, {Name: "c"}})
	require.Len(t, both, 3)
	require.Equal(t, "1", both[0].Help)
}
