package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// People search for the code or the words that a failure prints.
func TestPageIsNotStale(t *testing.T) {
	want, err := generate()
	require.NoError(t, err)
	have, err := os.ReadFile(page)
	require.NoError(t, err)
	assert.Equal(t, string(want), string(have), "docs/messages.md is stale: run go generate ./...")
}

// Nobody who looks for a code is left without what to do.
func TestEachCodeSaysWhatToDo(t *testing.T) {
	messages, err := collect(root, "cmd", "internal")
	require.NoError(t, err)
	causes, err := readCauses("causes.md")
	require.NoError(t, err)
	codes := map[string]bool{}
	for _, m := range messages {
		codes[m.code] = true
		if _, ok := causes[m.code]; !ok {
			assert.NotEmpty(t, m.fixes, "%s: %q has no hint, so causes.md needs a line for its code", m.code, m.text)
		}
	}
	assert.Greater(t, len(codes), 70)

	// Codes that are not written out in a constructor: in a workflow, in the launcher, in a table.
	sources := text(t, "cmd", "internal", "actions", "workflows")
	for _, code := range slices.Sorted(maps.Keys(causes)) {
		if !codes[code] {
			assert.Regexp(t, `\b`+code+`\b`, sources, "causes.md has a code that nothing reports")
		}
	}
}

func text(t *testing.T, dirs ...string) string {
	var all strings.Builder
	for _, dir := range dirs {
		require.NoError(t, filepath.WalkDir(filepath.Join(root, dir),
			func(path string, d os.DirEntry, err error) error {
				if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, "_test.go") {
					return err
				}
				data, err := os.ReadFile(path)
				all.Write(data)
				return err
			}))
	}
	return all.String()
}

func TestCollect(t *testing.T) {
	messages, err := collect("testdata", "sample")
	require.NoError(t, err)
	var have []string
	for _, m := range messages {
		have = append(have, m.code+": "+m.text+" -> "+m.fix())
	}
	assert.ElementsMatch(t, []string{
		`usage: role must be primary or secondary, not "ROLE" -> `,
		`plain: HOST: read /etc/x: … -> look at /etc/x on HOST`,
		`choice: SERVER_NAME is 100% away -> start it; or: wait for it`,
		`wrapped: HOST: FILE, line NUMBER -> mend the line`,
		`wrapped: HOST: nothing is there -> make it`,
		`closure: VALUE differs -> make it equal`,
		`literal: DIRECTORY is no directory -> move it away`,
		`listed: of a list -> `,
		`base: TARGET waits -> one`,
		`base: TARGET waits -> two`,
		`late: it is away: … -> bring it back`,
		`pointer: … -> `,
	}, have)
}
