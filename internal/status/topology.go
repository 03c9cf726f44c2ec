package status

import (
	"fmt"
	"slices"
	"strings"
)

// topology is the drawing: nodes on the left, the servers that they use on the right, and what each reaches.
type topology struct {
	Width, Height int
	Nodes         []box
	Servers       []box
	Links         []link
	Description   string
}

// box is one thing in it. Its places are those of SVG's units.
type box struct {
	X, Y, Width, Height, Middle int
	Title, Line, More           string
	Whole                       string // what the lines may have no room for
	State                       State
}

// link is a line from a node to a server.
type link struct {
	X1, Y1, X2, Y2, MX, MY int
	Good                   bool
}

// Measures that are read on a phone, where 400 units are some 330 pixels.
const (
	drawing   = 400
	boxWidth  = 168
	boxHeight = 66
	boxGap    = 14
	edge      = 2
	letters   = 19 // of a line of a box, of digits and dots
)

// topology draws the nodes and the servers.
func (r *Report) topology() topology {
	t := topology{Width: drawing}
	names := map[string]string{"mongodb": "MongoDB", "rabbitmq": "RabbitMQ", "redis": "Redis", "nfs": "Content (NFS)"}
	var keys []string
	worst, up, all := map[string]State{}, map[string]int{}, map[string]int{}
	for _, n := range r.Nodes {
		for _, b := range n.Backends {
			key := b.Name + " " + b.Endpoint
			if !slices.Contains(keys, key) {
				keys, worst[key] = append(keys, key), Good
			}
			all[key]++
			switch {
			case b.State == Up:
				up[key]++
			case b.State == Unknown && worst[key] == Good:
				worst[key] = Warning
			case b.State != Unknown:
				worst[key] = Trouble
			}
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		order := []string{"mongodb", "rabbitmq", "redis", "nfs"}
		of := func(key string) int {
			name, _, _ := strings.Cut(key, " ")
			return slices.Index(order, name)
		}
		if of(a) != of(b) {
			return of(a) - of(b)
		}
		return strings.Compare(a, b)
	})
	rows := max(len(r.Nodes), len(keys))
	t.Height = rows*(boxHeight+boxGap) - boxGap + 2*edge
	place := func(i, of, x int) box { // the shorter column stands in the middle of the other
		top := (t.Height - of*(boxHeight+boxGap) + boxGap) / 2
		y := top + i*(boxHeight+boxGap)
		return box{X: x, Y: y, Width: boxWidth, Height: boxHeight, Middle: y + boxHeight/2}
	}
	for i, key := range keys {
		name, addr, _ := strings.Cut(key, " ")
		b := place(i, len(keys), drawing-boxWidth-edge)
		b.Title, b.Line, b.Whole, b.State = names[name], short(addr), names[name]+" at "+addr, worst[key]
		b.More = fmt.Sprintf("%d of %d reach it", up[key], all[key])
		t.Servers = append(t.Servers, b)
	}
	var said []string
	for i := range r.Nodes {
		n := &r.Nodes[i]
		b := place(i, len(r.Nodes), edge)
		b.Title, b.Whole, b.State = short(n.Address), n.Address, r.state(n.Address)
		b.Line = n.Role + ", " + string(b.State)
		does := []string{}
		if p := n.sensors(); p != none && p != "none" {
			does = append(does, p+" sensors")
		}
		if n.Timers {
			does = append(does, "timers")
		}
		b.More = strings.Join(does, ", ")
		if !n.Reached {
			b.Line, b.More = n.Role, "does not answer"
		}
		t.Nodes = append(t.Nodes, b)
		said = append(said, t.connect(n, b, keys))
	}
	t.Description = strings.Join(said, " ")
	return t
}

// connect draws a node's links, and says what they show.
func (t *topology) connect(n *Node, b box, keys []string) string {
	if !n.Reached {
		return fmt.Sprintf("%s, %s, does not answer.", n.Address, n.Role)
	}
	var good, bad []string
	for _, s := range n.Backends {
		to := t.Servers[slices.Index(keys, s.Name+" "+s.Endpoint)]
		l := link{X1: b.X + b.Width, Y1: b.Middle, X2: to.X, Y2: to.Middle, Good: s.State == Up}
		l.MX, l.MY = (l.X1+l.X2)/2, (l.Y1+l.Y2)/2
		t.Links = append(t.Links, l)
		if l.Good {
			good = append(good, to.Whole)
		} else {
			bad = append(bad, to.Whole+" ("+s.State+")")
		}
	}
	text := fmt.Sprintf("%s, %s, is %s.", n.Address, n.Role, b.State)
	if b.State == Warning || b.State == Trouble {
		text = fmt.Sprintf("%s, %s: %s.", n.Address, n.Role, b.State)
	}
	if len(good) > 0 {
		text += " It reaches " + words(good) + "."
	}
	if len(bad) > 0 {
		text += " It does not reach " + words(bad) + "."
	}
	return text
}

// short is a text that fits into a box.
func short(text string) string {
	if r := []rune(text); len(r) > letters {
		return string(r[:letters/2-1]) + "…" + string(r[len(r)-letters/2:])
	}
	return text
}
