package confedit

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestUnit(t *testing.T) {
	require.Equal(t, []UnitLine{
		{2, "Unit", "Description", "x"},
		{5, "Service", "Environment", `A=b   "C=d e"   'F=g'`},
		{9, "Service", "Environment", ""},
	}, Unit([]byte("[Unit]\nDescription = x\n[Service]\n# A=comment\nEnvironment=A=b \\\n \"C=d e\" \\\n; a comment "+
		"in between\n 'F=g'\nEnvironment=\nnothing\n")))
	require.Equal(t, []UnitLine{{1, "", "A", "b"}}, Unit([]byte("A=b\\")))
	words, ok := UnitWords(`A=b "C=d e"  'F="g' H=\" ""`)
	require.True(t, ok)
	require.Equal(t, []string{"A=b", "C=d e", `F="g`, `H="`, ""}, words)
	_, ok = UnitWords(`A="b`)
	require.False(t, ok)
}

func TestEnvironmentFile(t *testing.T) {
	require.Equal(t, []UnitLine{
		{Line: 3, Key: "A", Value: "b c"},
		{Line: 4, Key: "B", Value: "c d"},
		{Line: 6, Key: "C", Value: ""},
	}, EnvironmentFile([]byte("# X=1\nulimit -n 1024\nA=b c \nB=\"c \\\nd\"\nC=\nexport D=1\n")))
}

func FuzzUnit(f *testing.F) {
	f.Add([]byte("[Service]\nEnvironment=\"A=b\" \\\n C=d\n"))
	f.Add([]byte("A='b\\"))
	f.Fuzz(func(t *testing.T, src []byte) {
		for _, l := range append(Unit(src), EnvironmentFile(src)...) {
			require.Positive(t, l.Line)
			UnitWords(l.Value)
		}
	})
}
