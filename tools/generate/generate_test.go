package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const pack = "../.."

// The files are what the program says, and there is no action beside them.
func TestGenerated(t *testing.T) {
	files, err := generate(pack)
	require.NoError(t, err)
	for name, text := range files {
		old, err := os.ReadFile(filepath.Join(pack, name))
		require.NoError(t, err)
		assert.True(t, string(old) == text, "%s is not what the program says: run go generate ./...", name)
	}
	for _, kind := range []string{"actions", "workflows"} {
		found, err := filepath.Glob(pack + "/" + kind + "/*.yaml")
		require.NoError(t, err)
		require.NotEmpty(t, found)
		for _, path := range found {
			name, err := filepath.Rel(pack, path)
			require.NoError(t, err)
			assert.Contains(t, files, name, "nothing of the program has this name")
		}
	}
}
