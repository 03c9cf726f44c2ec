package join

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"st2ha/internal/action"
	"st2ha/internal/fault"
	"st2ha/internal/host"
)

// cluster opens machines that are not there, and none of those that are away.
func cluster(t *testing.T, away ...string) Cluster {
	t.Helper()
	root := t.TempDir()
	return Cluster{Node: "192.0.2.1", Run: "r1", Open: func(_ context.Context, address string) (host.Host, error) {
		if slices.Contains(away, address) {
			return nil, errors.New(address + " is away")
		}
		return host.NewLocalAt(address, root), nil
	}}
}

// values are those of settings, with what a line of flags gives.
func values(t *testing.T, settings []action.Setting, flags ...string) action.Values {
	t.Helper()
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	v := action.Flags(set, settings, func(string) string { return "hunter2" })
	require.NoError(t, set.Parse(flags))
	require.NoError(t, v.Check())
	return v
}

// A step is made of its own settings alone: it reads no other, for either role, alone or with the whole join.
func TestStepsAreMadeOfTheirSettings(t *testing.T) {
	for _, s := range Steps() {
		if s.Name == "install_watchdog" {
			continue // it looks for a program beside this one
		}
		for _, role := range []Role{Primary, Secondary} {
			for _, whole := range []bool{false, true} {
				v := values(t, NodesSettings(), "--primary=192.0.2.1", "--secondaries=192.0.2.2,192.0.2.3")
				own := s.valuesFor(role, v)
				require.NoError(t, own.Check(), s.Name)
				if s.Check != nil {
					require.NoError(t, s.Check(own), s.Name)
				}
				c := cluster(t)
				c.Whole = whole
				built, err := s.Build(t.Context(), c, own)
				require.NoError(t, err, s.Name)
				require.Equal(t, s.Name, built.Name())
			}
		}
	}
}

// What preflight and drift look at is what runs, in the order in which it runs.
func TestNodes(t *testing.T) {
	v := values(t, NodesSettings(), "--primary=192.0.2.1", "--secondaries=192.0.2.2,192.0.2.3")
	names := func(c Cluster, proofs bool) (all [][]string) {
		nodes, err := Nodes(t.Context(), c, v, proofs)
		require.NoError(t, err)
		for _, n := range nodes {
			var own []string
			for _, s := range n.Steps {
				own = append(own, s.Name())
			}
			all = append(all, own)
		}
		return all
	}
	foreseen := func(role Role) (all []string) {
		for _, s := range Steps() {
			if s.foreseen(role) {
				all = append(all, s.Name)
			}
		}
		return all
	}
	primary, secondary := foreseen(Primary), foreseen(Secondary)
	require.Subset(t, primary, []string{"configure_mongodb", "configure_st2", "configure_rabbitmq", "export_nfs"})
	require.Subset(t, secondary, []string{"configure_st2", "mount_nfs", "restart_st2"})
	require.NotContains(t, primary, "restart_st2", "it is the last act of a join, and verify_node says that it is to come")
	require.Equal(t, [][]string{primary, secondary, secondary}, names(cluster(t), false))
	require.Equal(t, [][]string{primary, secondary, secondary}, names(cluster(t, "192.0.2.3"), false),
		"a node that is away is left out of the logins")
	require.Equal(t, [][]string{nil, nil, nil}, names(cluster(t, "192.0.2.1"), true))
	for _, steps := range names(cluster(t), true) {
		require.Equal(t, []string{"verify_node", "share_sensors"}, steps[len(steps)-2:])
	}
}

// What is wrong is said before any host is asked.
func TestNodesAreNotAskedInVain(t *testing.T) {
	c := Cluster{Open: func(context.Context, string) (host.Host, error) { panic("a host was opened") }}
	for _, flags := range [][]string{
		{"--secondaries=192.0.2.2"},
		{"--primary=192.0.2.1"},
		{"--primary=192.0.2.1", "--secondaries=192.0.2.1"},
		{"--primary=192.0.2.1", "--secondaries=192.0.2.2,192.0.2.2"},
		{"--primary=192.0.2.1", "--secondaries=192.0.2.2", "--rabbitmq_user=guest"},
		{"--primary=192.0.2.1", "--secondaries=192.0.2.2", "--sensors=shared", "--sensors_away=44"},
	} {
		_, err := Nodes(t.Context(), c, values(t, NodesSettings(), flags...), true)
		var f *fault.Error
		require.ErrorAs(t, err, &f, flags)
		require.Equal(t, fault.ExitUsage, f.Exit, flags)
	}
}

// What a journal can hold can be read back: all changes that other packages can see. The others heal, and no journal
// has them.
func TestKinds(t *testing.T) {
	kinds := Kinds()
	for kind, empty := range kinds {
		require.Equal(t, kind, empty().Kind())
	}
	files, err := filepath.Glob("../*/*.go")
	require.NoError(t, err)
	found := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		change := regexp.MustCompile(`(?m)^func \(\w+ \*([A-Z]\w*)\) Kind\(\) string \{ return "(\w+)" \}`)
		for _, m := range change.FindAllStringSubmatch(string(text), -1) {
			found++
			require.Contains(t, kinds, m[2], "%s of %s is in no step's Kinds", m[1], file)
		}
	}
	require.Equal(t, len(kinds), found)
}
