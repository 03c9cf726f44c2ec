package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestGate(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	g := &gate{to: &out}
	fmt.Fprintln(g, "one")
	g.open(t.Context()) // is open
	began := time.Now()
	asked := 0
	back := func(context.Context) error {
		if asked++; asked < 3 {
			return errors.New("not yet")
		}
		return nil
	}
	g.close(t.Context(), "mongodb", back)
	require.GreaterOrEqual(t, time.Since(began), storeTime-50*time.Millisecond, "what was printed is stored first")
	began = time.Now()
	g.close(t.Context(), "rabbitmq", func(context.Context) error { return nil })
	require.Less(t, time.Since(began), storeTime, "once")
	fmt.Fprintln(g, "two")
	require.Equal(t, "one\n", out.String())
	began = time.Now()
	g.open(t.Context())
	require.Equal(t, 3, asked)
	require.GreaterOrEqual(t, time.Since(began), quiet)
	require.Equal(t, "one\ntwo\n", out.String())

	// Bounded; and one that never comes back does not keep it.
	out.Reset()
	g.close(t.Context(), "mongodb", func(context.Context) error { return errors.New("away") })
	for range 3 * maxKept / 1024 {
		fmt.Fprintln(g, strings.Repeat("x", 1023))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	g.open(ctx)
	require.Less(t, out.Len(), maxKept+100)
	require.True(t, strings.HasSuffix(out.String(), "2048 more lines were not kept while a backend was away\n"))
	fmt.Fprintln(g, "three")
	require.True(t, strings.HasSuffix(out.String(), "three\n"))
}
