package lab

import (
	"fmt"
	"os"
	"text/tabwriter"
)

// line is a row of the table of faults, as it came out.
type line struct {
	fault, detected, states, reported, healer, healed, lost, note string
	ok                                                            bool
}

// table is what make lab-faults prints.
type table struct{ lines []*line }

func newTable() *table { return &table{} }

func (t *table) add(l *line) { t.lines = append(t.lines, l) }

// print writes it to stdout.
func (t *table) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nFAULT\tDETECTED AFTER\tSTATES\tREPORTED\tHEALED BY\tHEALED AFTER\tDATA LOST\tAS REQUIRED\tRULES")
	for _, l := range t.lines {
		ok := "yes"
		if !l.ok {
			ok = "NO"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.fault, l.detected, l.states, l.reported, l.healer, l.healed, l.lost, ok, l.note)
	}
	_ = w.Flush()
}
