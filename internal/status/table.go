package status

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"st2ha/internal/fault"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// The colours of terminals (ECMA-48, SGR). The words say the same without them.
const (
	plain  = ""
	bold   = "1"
	faint  = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
)

// Table writes the page for people's terminals. What comes from servers cannot steer the terminal.
func (r *Report) Table(w io.Writer, colours bool) error {
	t := &table{colours: colours}
	t.line(t.colour(bold, "Cluster: ")+t.state(r.State), t.colour(faint, fmt.Sprintf("  %s, in %.1f s",
		r.At.Format("2006-01-02 15:04:05 UTC"), float64(r.Millis)/1000)))
	t.heading("Nodes")
	grid := [][]cell{heads("node", "role", "state", "StackStorm", "Python", "st2ha", "services", "backends", "shares", "sensors",
		"timers", "watchdog", "clock")}
	for i := range r.Nodes {
		s := r.summary(&r.Nodes[i])
		grid = append(grid, []cell{{s.Address, plain}, {s.Role, plain}, {string(s.State), colourOf(s.State)},
			{s.StackStorm, plain}, {s.Python, plain}, {s.Pack, plain}, {s.Services, plain}, {s.Backends, plain},
			{s.Shares, plain}, {s.Sensors, plain}, {s.Timers, plain}, {s.Watchdog, plain}, {s.Clock, plain}})
	}
	t.grid(grid)
	if len(r.Findings) > 0 {
		t.heading("What is wrong")
		for _, f := range r.Findings {
			colour := yellow
			if f.Severity == step.Error {
				colour = red
			}
			t.line("  ", t.colour(colour, string(f.Severity)), "  ", fault.Printable(f.Host+": "+f.Message))
			t.line("    → ", fault.Printable(f.Fix))
		}
	}
	if len(r.Single) > 0 {
		t.heading("What there is once only")
		for _, s := range r.Single {
			t.line("  ", fault.Printable(s.Message))
		}
	}
	t.heading("Backends, seen from each node")
	grid = [][]cell{heads("node", "backend", "endpoint", "state", "latency", "reason")}
	for _, n := range r.Nodes {
		for _, b := range n.Backends {
			colour := red
			switch b.State {
			case Up:
				colour = green
			case Unknown:
				colour = yellow
			}
			grid = append(grid, []cell{{n.Address, plain}, {b.Name, plain}, {b.Endpoint, plain}, {b.State, colour},
				{fmt.Sprintf("%.1f ms", b.Millis), plain}, {b.Reason, plain}})
		}
	}
	t.grid(grid)
	if past := r.past(); len(past) > 0 {
		t.heading("Last runs and heals")
		grid = [][]cell{heads("node", "when", "what", "state")}
		for _, p := range past {
			grid = append(grid, []cell{{p.Node, plain}, {p.When, plain}, {p.What, plain}, {p.State, plain}})
		}
		t.grid(grid)
	}
	_, err := io.WriteString(w, t.text.String())
	return err
}

// table is a text that grows.
type table struct {
	text    strings.Builder
	colours bool
}

// cell is a text with its colour.
type cell struct{ text, colour string }

func heads(names ...string) []cell {
	var all []cell
	for _, name := range names {
		all = append(all, cell{strings.ToUpper(name), faint})
	}
	return all
}

func (t *table) line(parts ...string) {
	t.text.WriteString(strings.TrimRight(strings.Join(parts, ""), " ") + "\n")
}

func (t *table) heading(text string) { t.line("\n", t.colour(bold, text)) }

func (t *table) colour(colour, text string) string {
	if !t.colours || colour == plain {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (t *table) state(s State) string { return t.colour(colourOf(s), string(s)) }

func colourOf(s State) string {
	return map[State]string{Good: green, Warning: yellow, Trouble: red}[s]
}

// grid writes rows whose columns are as wide as they need to be; text/tabwriter would count the colours.
func (t *table) grid(rows [][]cell) {
	var widths []int
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			row[i].text = fault.Printable(c.text)
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
		}
	}
	for _, row := range rows {
		parts := []string{"  "}
		for i, c := range row {
			parts = append(parts, t.colour(c.colour, c.text))
			if i < len(row)-1 {
				parts = append(parts, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text)+2))
			}
		}
		t.line(parts...)
	}
}

// summary is a node in a line.
type summary struct {
	Address, Role                string
	State                        State
	StackStorm, Python, Pack     string
	Services, Backends, Shares   string // how many of how many are well
	Sensors, Timers              string
	Watchdog, Clock, Maintenance string
}

const none = "–"

// summary makes it; what is not known is a dash.
func (r *Report) summary(n *Node) summary {
	s := summary{Address: n.Address, Role: n.Role, State: r.state(n.Address), StackStorm: none, Python: none, Pack: none,
		Services: none, Backends: none, Shares: none, Sensors: none, Timers: none, Watchdog: none, Clock: none}
	if !n.Reached {
		return s
	}
	or := func(text string) string {
		if text == "" {
			return none
		}
		return text
	}
	s.StackStorm, s.Python, s.Pack = or(n.Versions.StackStorm), or(n.Versions.Python), or(n.Versions.Pack)
	s.Services = count(n.Services, func(s Service) bool { return s.Good })
	s.Backends = count(n.Backends, func(b Backend) bool { return b.State == Up })
	s.Shares = count(n.Shares, func(s Share) bool { return s.Mounted })
	s.Sensors, s.Timers = n.sensors(), "no"
	if n.Timers {
		s.Timers = "yes"
	}
	switch w := n.Watchdog; {
	case !w.Installed:
		s.Watchdog = "none"
	case !w.Active:
		s.Watchdog = "stopped"
	case !w.Current:
		s.Watchdog = "other version"
	default:
		s.Watchdog = "active"
	}
	if c := n.Clock; c != nil {
		s.Clock = fmt.Sprintf("%+.1f ± %.1f ms", c.Ahead, c.Accuracy)
		if c.Ahead > 5000 || c.Ahead < -5000 {
			s.Clock = fmt.Sprintf("%+.1f ± %.1f s", c.Ahead/1000, c.Accuracy/1000)
		}
	}
	if m := n.Maintenance; m != nil {
		s.Maintenance = m.String()
	}
	return s
}

// count is how many of a list are good.
func count[T any](list []T, good func(T) bool) string {
	if len(list) == 0 {
		return none
	}
	n := 0
	for _, e := range list {
		if good(e) {
			n++
		}
	}
	return fmt.Sprintf("%d of %d", n, len(list))
}

// sensors is the node's share of them in a word.
func (n *Node) sensors() string {
	p := n.Sensors
	if p == nil {
		return none
	}
	if p.Provider == "kvstore" || p.Provider == "file" {
		return "by " + p.Provider
	}
	if _, enabled := n.service("st2sensorcontainer"); !enabled || len(p.Ranges) == 0 {
		return "none"
	}
	if len(p.Ranges) == 1 {
		return share(p.Ranges[0])
	}
	var whole uint64
	for _, r := range p.Ranges {
		whole += r.To - r.From
	}
	return share(stackstorm.Range{To: min(whole, stackstorm.HashEnd)})
}

// event is a run or a heal of the past.
type event struct{ Node, When, What, State string }

// past are the last runs and heals of all nodes.
func (r *Report) past() []event {
	var all []event
	when := func(t time.Time) string {
		if t.IsZero() {
			return none
		}
		return t.UTC().Format("2006-01-02 15:04:05")
	}
	for _, n := range r.Nodes {
		for _, run := range n.Runs {
			changes := fmt.Sprintf("%d changes", run.Changes)
			if run.Changes == 1 {
				changes = "1 change"
			}
			all = append(all, event{n.Address, when(run.Started), run.Step + " of run " + run.Run + ", " + changes, run.State})
		}
		for _, h := range n.Heals {
			state, at := "healed", time.Time{}
			if len(h.Heals) > 0 {
				at = h.Heals[len(h.Heals)-1]
			}
			if h.GaveUp != nil {
				state, at = "given up", *h.GaveUp
			}
			times := fmt.Sprintf("%d times", len(h.Heals))
			if len(h.Heals) == 1 {
				times = "once"
			}
			all = append(all, event{n.Address, when(at), "healing of " + h.Target + ", " + times + " of late", state})
		}
	}
	return all
}
