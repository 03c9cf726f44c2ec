package status

import (
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"html/template"
	"io"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/step"
)

//go:embed page.html page.css
var assets embed.FS

// page is what the template is filled with.
type page struct {
	*Report
	CSS       template.CSS
	Policy    string
	Cards     []card
	Drawing   topology
	Past      []event
	Backs     []row
	Heading   string
	Partition string
}

// card is a node on the page.
type card struct {
	Address, Role string
	State         State
	Services      []Service
	Facts         []fact
}

// fact is a name with its value.
type fact struct{ Name, Value string }

// row is a backend as a node sees it.
type row struct {
	Node string
	Backend
	Mark State
}

// HTML writes the page as one file that needs no other, and no script.
func (r *Report) HTML(w io.Writer) error {
	css, err := assets.ReadFile("page.css")
	if err != nil {
		return err
	}
	sum := sha256.Sum256(css)
	p := page{Report: r, CSS: template.CSS(css), Drawing: r.topology(), Past: r.past(),
		// The style is the only thing that a browser may use, and only this one.
		Policy: "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'; " +
			"base-uri 'none'; form-action 'none'"}
	for i := range r.Nodes {
		n := &r.Nodes[i]
		s := r.summary(n)
		p.Cards = append(p.Cards, card{s.Address, s.Role, s.State, n.Services, facts(s, n)})
		for _, b := range n.Backends {
			mark := Trouble
			switch b.State {
			case Up:
				mark = Good
			case Unknown:
				mark = Warning
			}
			p.Backs = append(p.Backs, row{n.Address, b, mark})
		}
	}
	p.Heading = map[State]string{Good: "All is well", Warning: "It works, and somebody should look",
		Trouble: "Something does not work"}[r.State]
	p.Partition = r.partition()
	funcs := template.FuncMap{
		"text": fault.Printable, // what comes from servers may also not turn the page's words around
		"mark": func(s State) string { return map[State]string{Good: "✓", Warning: "!", Trouble: "✕"}[s] },
		"of": func(s step.Severity) State {
			if s == step.Error {
				return Trouble
			}
			return Warning
		},
	}
	t, err := template.New("page.html").Funcs(funcs).ParseFS(assets, "page.html")
	if err != nil {
		return err
	}
	return t.Execute(w, p)
}

// partition says in a sentence who has the sensors and the timers.
func (r *Report) partition() string {
	var own []string
	for i := range r.Nodes {
		if n := &r.Nodes[i]; n.Reached {
			if s := n.sensors(); s != none && s != "none" {
				own = append(own, n.Address+" has "+s)
			}
		}
	}
	sensors := "No node has sensors"
	if len(own) > 0 {
		sensors = "Sensors: " + words(own)
	}
	switch {
	case r.Sensors.Complete:
		sensors += ". Each one runs exactly once."
	case !r.Sensors.Known:
		sensors += ". Whether each one runs exactly once is not known."
	default:
		sensors += ". Not each one runs exactly once."
	}
	if len(r.Timers) == 0 {
		return sensors + " Timers run on no node that answered."
	}
	return sensors + " Timers run on " + words(r.Timers) + "."
}

// facts are what a node's card says of it.
func facts(s summary, n *Node) []fact {
	if !n.Reached {
		return []fact{{"Why", n.Error}, {"What to do", n.Fix}}
	}
	all := []fact{{"StackStorm", s.StackStorm}, {"Python", s.Python}, {"st2ha", s.Pack}, {"Services", s.Services},
		{"Backends", s.Backends}, {"Sensors", s.Sensors}, {"Timers", s.Timers}, {"Watchdog", s.Watchdog}, {"Clock", s.Clock}}
	var shares []string
	for _, share := range n.Shares {
		text := share.Path + " from " + share.Source
		if !share.Mounted {
			text += ", not mounted"
		}
		shares = append(shares, text)
	}
	if len(shares) > 0 {
		all = append(all, fact{"Shares", strings.Join(shares, "; ")})
	}
	if s.Maintenance != "" {
		all = append(all, fact{"Maintenance", s.Maintenance})
	}
	return all
}
