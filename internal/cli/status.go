package cli

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"reflect"
	"time"

	"golang.org/x/sys/unix"

	"st2ha/internal/action"
	"st2ha/internal/fault"
	"st2ha/internal/heal"
	"st2ha/internal/join"
	"st2ha/internal/status"
	"st2ha/internal/step"
)

// The forms of a page.
const (
	asJSON  = "json"
	asTable = "table"
	asHTML  = "html"
)

// statusCommand shows all nodes at a glance.
func statusCommand() command {
	return command{page: clusterStatus, Spec: action.Spec{
		Name:    "cluster_status",
		Summary: "shows all nodes at a glance, who owns sensors and timers, what is wrong and what there is once only",
		Description: `Changes nothing: one page about the primary and the secondaries, each seen from itself: versions, services,
backends, sensors and timers, shares, watchdogs, clocks, last runs and heals; what there is once only, and
what differs between nodes, with the command that mends it.`,
		Settings: action.Union(join.Kept("primary", "secondaries"), []action.Setting{
			{Name: "format", Default: asJSON, Enum: []string{asJSON, asTable, asHTML},
				Help: `Form of the page: for rules, for people, or as one file for a browser.`},
		}, statusSettings()),
		Adds: []action.Field{{Name: "status", Of: reflect.TypeFor[status.Report](),
			Description: "The page as docs/status.md has it. Not there if a parameter was wrong."}},
		Rows: []action.Row{{Host: "all", Changes: "nothing. One page about all nodes at once, as JSON, a table or HTML: see " +
			"[Status](status.md)"}},
	}}
}

// statusSettings are those of the pack's configuration for cluster_status.
func statusSettings() []action.Setting {
	return []action.Setting{{
		Name: "node_timeout", Default: 5, Unit: action.Seconds,
		Help: `Seconds that each node has to answer.`,
		Kept: `Seconds that each node has to answer when cluster_status asks all of them.`,
		Docs: "seconds that each node has to answer `cluster_status`; a dead one costs no more",
		Check: func(v action.Values) error {
			if n := v.Int("node_timeout"); n < 1 || n > 300 {
				return fault.Usage("node_timeout must be 1 to 300 seconds, not %d", n)
			}
			return nil
		},
	}}
}

// clusterStatus looks at all nodes. It is an error only if none of them answers.
func clusterStatus(ctx context.Context, c *common, v action.Values) (page, error) {
	primary := v.String("primary")
	p := page{Result: c.result("cluster_status", primary), format: v.String("format"),
		colours: c.getenv("NO_COLOR") == "" && c.getenv("TERM") != "dumb"}
	addresses, err := join.Addresses(v)
	if err != nil {
		return p, err
	}
	program, _ := heal.WatchProgram() // without it the watchdogs' versions are not compared
	report := status.Look(ctx, status.Cluster{Primary: primary, Secondaries: addresses[1:], Open: c.open,
		Within: time.Duration(v.Int("node_timeout")) * time.Second, Mask: c.mask, Program: program, Now: c.start})
	p.Status = &report
	p.Findings, p.Millis = report.Findings, report.Millis
	for _, n := range report.Nodes {
		if n.Reached {
			return p, nil
		}
	}
	err = fault.Preflight("no_node", "see whether the nodes are up; each one's finding says what was tried",
		"none of the nodes answers: %s", report.Nodes[0].Error)
	p.Fail(err, c.mask)
	return p, err
}

// page is a result that is a page as well.
type page struct {
	step.Result
	Status *status.Report `json:"status,omitempty"`

	format  string
	colours bool
}

// print writes it in its form.
func (p page) print(w io.Writer) error {
	switch {
	case p.Status == nil || p.format == asJSON:
		return encode(w, p)
	case p.format == asHTML:
		return p.Status.HTML(w)
	}
	return p.Status.Table(w, p.colours && terminal(w))
}

// terminal says whether people read it there.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS) // isatty(3)
	return err == nil
}

// encode writes a result as one line of JSON.
func encode(w io.Writer, result any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(result)
}
