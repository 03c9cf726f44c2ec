package join

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"st2ha/internal/host"
	"st2ha/internal/stackstorm"
)

func TestPrimary(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(root+filepath.Dir(stackstorm.ConfPath), 0o755))
	conf := func(url string) {
		t.Helper()
		require.NoError(t, os.WriteFile(root+stackstorm.ConfPath, []byte("[messaging]\nurl = "+url+"\n"), 0o600))
	}
	c := Cluster{Open: func(_ context.Context, address string) (host.Host, error) {
		require.Equal(t, here, address)
		return host.NewLocalAt(address, root), nil
	}}
	got, err := c.Primary(t.Context(), "192.0.2.7", nil)
	require.NoError(t, err)
	require.Equal(t, "192.0.2.7", got)
	_, err = c.Primary(t.Context(), "a b", nil)
	require.ErrorContains(t, err, "primary")

	conf("amqp://st2:x@192.0.2.9:5672/") // this is a secondary
	got, err = c.Primary(t.Context(), "", []string{"192.0.2.2"})
	require.NoError(t, err)
	require.Equal(t, "192.0.2.9", got)

	conf("amqp://st2:x@127.0.0.1:5672/")
	_, err = c.Primary(t.Context(), "", nil)
	require.ErrorContains(t, err, "primary is missing")
	_, err = c.Primary(t.Context(), "", []string{"127.0.0.5"})
	require.ErrorContains(t, err, "there is no way to 127.0.0.5: it is this machine itself")
}
