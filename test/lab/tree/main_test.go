package main

import (
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A file that was written just now is read again, however alike it looks.
func TestContents(t *testing.T) {
	path := t.TempDir() + "/file"
	sumOf := func() string {
		var st syscall.Stat_t
		require.NoError(t, syscall.Lstat(path, &st))
		hash, err := contents(path, &st)
		require.NoError(t, err)
		return hash
	}
	require.NoError(t, os.WriteFile(path, []byte("one"), 0o600))
	one := sumOf()
	require.NoError(t, os.WriteFile(path, []byte("two"), 0o600))
	require.NotEqual(t, one, sumOf())
	require.Empty(t, sums)

	// An old one is read once.
	var st syscall.Stat_t
	require.NoError(t, syscall.Lstat(path, &st))
	st.Ctim.Sec -= 10
	two, err := contents(path, &st)
	require.NoError(t, err)
	require.Len(t, sums, 1)
	require.NoError(t, os.Remove(path))
	again, err := contents(path, &st)
	require.NoError(t, err)
	require.Equal(t, two, again)
}
