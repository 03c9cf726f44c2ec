package confedit

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseErlang(t *testing.T) {
	src := "%% mine\n[{kernel, [{inet_dist_listen_min, 16#ff}]},\n {rabbit,\n" +
		"  [{vm_memory_high_watermark, 0.4}, {'tcp_listeners', [{\"127.0.\" \"0.1\", 5672}, 5673, {\"\\x\\061\", " +
		"$a}]},\n" +
		"   {default_pass, <<\"a>>\\\"%\">>}, {x, -1.5e-3}, {tcp_listeners, []}]}\n].\n"
	terms, err := ParseErlang([]byte(src))
	require.NoError(t, err)
	require.Len(t, terms, 1)
	rabbit, ok := terms[0].Find("rabbit")
	require.True(t, ok)
	listeners, ok := rabbit.Find("tcp_listeners")
	require.True(t, ok)
	require.Equal(t, 4, listeners.Line)
	require.Equal(t, []Term{
		{Line: 4, Kind: Tuple, Items: []Term{{4, String, "127.0.0.1", nil}, {4, Number, "5672", nil}}},
		{Line: 4, Kind: Number, Text: "5673"},
		{Line: 4, Kind: Tuple, Items: []Term{{4, String, "x1", nil}, {4, Number, "", nil}}},
	}, listeners.Items)
	_, ok = terms[0].Find("mnesia")
	require.False(t, ok)
	_, ok = listeners.Find("tcp_listeners")
	require.False(t, ok)

	for src, want := range map[string]string{
		"[]":                        "line 1: a term that does not end with a dot",
		"[].x":                      "line 1: a term that does not end with a dot",
		"[\n{a, b}\n{c, d}].":       "line 3: neither a comma nor a ] after an item",
		"[{a, \"b}].":               "line 1: a quote that is not closed",
		"[{a, <<1}].":               "line 1: a binary that is not closed",
		"\n[{a, #{}}].":             "line 2: a map, which st2ha does not read",
		"[A].":                      "line 1: not an Erlang term",
		"[$":                        "line 1: a $ without its character",
		strings.Repeat("[", 100000): "line 1: Erlang terms that are not closed, or nest too deeply",
	} {
		_, err := ParseErlang([]byte(src))
		require.EqualError(t, err, want, "%.50s", src)
	}
	terms, err = ParseErlang([]byte("% nothing\n"))
	require.NoError(t, err)
	require.Empty(t, terms)
}

func FuzzErlang(f *testing.F) {
	for _, seed := range []string{"[{rabbit,[{tcp_listeners,[{\"127.0.0.1\",5672}]}]}].", "[$\\", "'a\\",
		"1.5e-3. [].", "<<\"", "[[[["} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		terms, err := ParseErlang(src)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		// What is read does not depend on what stands around it.
		again, err := ParseErlang(append([]byte("% a comment\n"), src...))
		require.NoError(t, err)
		require.Len(t, again, len(terms))
	})
}
