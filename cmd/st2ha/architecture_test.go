package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Packages that tests alone import.
var forTests = []string{"backendtest", "host/hosttest", "probe/probetest", "rpcping/nfstest", "testenv"}

// Who may import whom stands in docs/architecture.md, and is so.
func TestArchitecture(t *testing.T) {
	text, err := os.ReadFile("../../docs/architecture.md")
	require.NoError(t, err)
	said, order := map[string][]string{}, []string{}
	for _, line := range regexp.MustCompile(`(?m)^    (\S+) +[^\n]*->(.*)$`).FindAllStringSubmatch(string(text), -1) {
		order = append(order, line[1])
		said[line[1]] = strings.Fields(line[2])
	}
	require.NotEmpty(t, order)
	imported := map[string][]string{}
	for _, root := range []string{"internal", "cmd"} {
		require.NoError(t, filepath.WalkDir("../../"+root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			name := strings.TrimPrefix(strings.TrimPrefix(filepath.Dir(path), "../../"), "internal/")
			if slices.Contains(forTests, name) {
				return nil
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
			if err != nil {
				return err
			}
			all := imported[name]
			for _, i := range file.Imports {
				whole, _ := strconv.Unquote(i.Path.Value)
				if p, ours := strings.CutPrefix(whole, "st2ha/internal/"); ours && !slices.Contains(all, p) {
					all = append(all, p)
				}
			}
			imported[name] = all
			return nil
		}))
	}
	for name, all := range imported {
		slices.Sort(all)
		require.Contains(t, order, name, "a package that the map does not have")
		require.Equal(t, strings.Join(all, " "), strings.Join(said[name], " "),
			"what %s imports, and what the map says", name)
		for _, below := range all {
			require.NotContains(t, forTests, below, "%s imports what is for tests", name)
			require.Less(t, slices.Index(order, name), slices.Index(order, below),
				"%s imports %s: imports go downwards", name, below)
		}
	}
	require.Len(t, imported, len(order), "the map has packages that are no more")
}
