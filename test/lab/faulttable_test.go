package lab

import (
	"fmt"
	"os"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"
)

// line is a row of the table of faults, as it came out.
type line struct {
	fault, detected, states, reported, healer, healed, lost, note string

	ok   bool
	late time.Duration // by which the node's own kernel delayed things
	gone time.Duration // it took to end a process that was killed
}

// table is what make lab-faults prints.
type table struct{ lines []*line }

func newTable() *table { return &table{} }

func (t *table) add(l *line) { t.lines = append(t.lines, l) }

// print writes it to stdout, or to the file TABLE.
func (t *table) print(test *testing.T) {
	out := os.Stdout
	if path := os.Getenv("TABLE"); path != "" {
		file, err := os.Create(path)
		require.NoError(test, err)
		defer file.Close()
		out = file
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nFAULT\tDETECTED AFTER\tSTATES\tREPORTED\tHEALED BY\tHEALED AFTER\tDATA LOST\tNODE LATE\tAS "+
		"REQUIRED\tRULES")
	for _, l := range t.lines {
		ok := "yes"
		if !l.ok {
			ok = "NO"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.fault, l.detected, l.states, l.reported, l.healer,
			l.healed, l.lost, human(l.late), ok, l.note)
	}
	require.NoError(test, w.Flush())
}
