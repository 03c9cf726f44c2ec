package status

import (
	"cmp"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"time"

	"st2ha/internal/nfs"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// maxSkew is how far the clocks of two nodes may be apart, beyond what the measuring leaves open.
const maxSkew = 2 * time.Second

// Judge makes of what was seen of the nodes what holds for the cluster, and what is wrong. It asks nobody.
func (r *Report) Judge() {
	r.Single, r.Differences, r.Timers, r.Findings = []Single{}, []Difference{}, []string{}, []step.Finding{}
	for i := range r.Nodes {
		r.judgeNode(&r.Nodes[i])
	}
	r.judgeSensors()
	r.judgeTimers()
	r.judgeClocks()
	r.compare()
	r.findSingle()
	slices.SortStableFunc(r.Findings, func(a, b step.Finding) int {
		return strings.Compare(string(a.Severity), string(b.Severity))
	})
	r.State = r.state("")
}

// found adds a finding.
func (r *Report) found(severity step.Severity, node, check, message, fix string) {
	r.Findings = append(r.Findings, step.Finding{Severity: severity, Host: node, Check: check, Message: message, Fix: fix})
}

// judgeNode says what is wrong with one node.
func (r *Report) judgeNode(n *Node) {
	if !n.Reached {
		r.found(step.Error, n.Address, "not_reached", "the node does not answer: "+n.Error,
			cmp.Or(n.Fix, "see whether it is up, on its console"))
		return
	}
	for _, s := range n.Services {
		if !s.Good {
			r.found(step.Error, n.Address, "service_down", fmt.Sprintf("%s is %s (%s)", s.Unit, s.State, s.Detail),
				"st2 run st2ha.recover_st2_services host="+n.Address+"; journalctl -u "+s.Unit+" there says why")
		}
	}
	if len(n.Services) == 0 {
		r.found(step.Error, n.Address, "no_services", "none of the st2 services is enabled",
			"install StackStorm on the node, or enable its services")
	}
	for _, b := range n.Backends {
		if b.State == Up {
			continue
		}
		severity := step.Error
		if b.State == Unknown {
			severity = step.Warning
		}
		r.found(severity, n.Address, "backend_not_up", fmt.Sprintf("%s at %s is %s, seen from here: %s", b.Name,
			b.Endpoint, b.State, b.Reason), "see whether it runs there, and the firewalls between: docs/healing.md")
	}
	for _, s := range n.Shares {
		if !s.Mounted {
			r.found(step.Error, n.Address, "not_mounted", s.Path+" is not mounted from "+s.Source,
				"st2 run st2ha.recover_nfs_mount host="+n.Address+" directory="+s.Path)
		}
	}
	for _, h := range n.Heals {
		if h.GaveUp != nil {
			r.found(step.Error, n.Address, "gave_up", "healing of "+h.Target+" was given up at "+
				h.GaveUp.UTC().Format(time.RFC3339), "find out why it does not stay up, and mend it")
		}
	}
	for _, o := range n.Incidents {
		r.found(step.Warning, n.Address, "incident", fmt.Sprintf("its watchdog has %s %s %s since %s", o.Backend, o.Endpoint,
			o.State, o.Began.UTC().Format(time.RFC3339)), "see docs/healing.md for what is healed by itself")
	}
	switch w := n.Watchdog; {
	case !w.Installed, !w.Active:
		what := "the watchdog is not installed"
		if w.Installed {
			what = "the watchdog does not run"
		}
		r.found(step.Warning, n.Address, "no_watchdog", what+": nothing heals the node while StackStorm cannot",
			"st2 run st2ha.install_watchdog host="+n.Address)
	case !w.Current:
		r.found(step.Warning, n.Address, "old_watchdog", "its watchdog is of another version of the pack",
			"st2 run st2ha.install_watchdog host="+n.Address)
	}
	if n.Maintenance != nil {
		r.found(step.Warning, n.Address, "in_maintenance", n.Maintenance.String()+": nothing is healed there",
			"st2 run st2ha.maintenance host="+n.Address+" mode=off ends it")
	}
	if n.RestartOwed {
		r.found(step.Warning, n.Address, "restart_owed", "its services do not run with its st2.conf as it is now",
			"st2 run st2ha.restart_st2 host="+n.Address)
	}
	for _, run := range n.Runs {
		if run.State == "open" {
			r.found(step.Warning, n.Address, "open_run", fmt.Sprintf("run %s is at %s, or was killed there", run.Run, run.Step),
				"if nobody is at work: the next run goes on from there, st2 run st2ha.rollback host="+n.Address+
					" only="+run.Run+" undoes it")
		}
	}
	for _, p := range n.Problems {
		r.found(step.Warning, n.Address, "not_seen", "some of it could not be seen: "+strings.TrimPrefix(p, n.Address+": "),
			"mend what the message names, and look again")
	}
}

// judgeSensors sees whether each hash has exactly one owner.
func (r *Report) judgeSensors() {
	s := Sensors{Known: true, Gaps: []stackstorm.Range{}, Doubles: []Double{}}
	owners := map[string][]stackstorm.Range{}
	for i := range r.Nodes {
		n := &r.Nodes[i]
		if !n.Reached || n.Sensors == nil || n.Sensors.Provider == "kvstore" || n.Sensors.Provider == "file" {
			s.Known = false
			continue
		}
		if _, enabled := n.service("st2sensorcontainer"); enabled {
			owners[n.Address] = n.Sensors.Ranges
		}
	}
	s.Gaps, s.Doubles = cover(owners)
	s.Complete = s.Known && len(s.Gaps)+len(s.Doubles) == 0
	r.Sensors = s
	for _, d := range s.Doubles {
		r.found(step.Error, d.Nodes[len(d.Nodes)-1], "sensors_twice", fmt.Sprintf("%s of the sensors (hashes %s) run on %s: "+
			"each of their events comes more than once", share(d.Range), span(d.Range), words(d.Nodes)),
			"give each range of [sensorcontainer] partition_provider to one node: st2 run st2ha.join_secondary")
	}
	for _, g := range s.Gaps {
		if s.Known { // else the one who was not asked may have it
			r.found(step.Error, r.Nodes[0].Address, "sensors_nowhere", fmt.Sprintf("%s of the sensors (hashes %s) run on no node",
				share(g), span(g)), "give the range to a node in [sensorcontainer] partition_provider of its "+stackstorm.ConfPath)
		}
	}
}

// cover are the ranges that nobody has, and those that several have, over all hashes.
func cover(owners map[string][]stackstorm.Range) (gaps []stackstorm.Range, doubles []Double) {
	gaps, doubles = []stackstorm.Range{}, []Double{}
	ends := []uint64{0, stackstorm.HashEnd}
	for _, ranges := range owners {
		for _, r := range ranges {
			ends = append(ends, r.From, r.To)
		}
	}
	slices.Sort(ends)
	ends = slices.Compact(ends)
	for i := range len(ends) - 1 {
		part := stackstorm.Range{From: ends[i], To: ends[i+1]}
		var have []string
		for node, ranges := range owners {
			for _, r := range ranges { // one node's own ranges may overlap, which makes its sensors no doubles
				if r.From <= part.From && part.To <= r.To && !slices.Contains(have, node) {
					have = append(have, node)
				}
			}
		}
		slices.Sort(have)
		switch {
		case len(have) == 0 && len(gaps) > 0 && gaps[len(gaps)-1].To == part.From:
			gaps[len(gaps)-1].To = part.To
		case len(have) == 0:
			gaps = append(gaps, part)
		case len(have) > 1:
			if k := len(doubles) - 1; k >= 0 && doubles[k].To == part.From && slices.Equal(doubles[k].Nodes, have) {
				doubles[k].To = part.To
			} else {
				doubles = append(doubles, Double{part, have})
			}
		}
	}
	return gaps, doubles
}

// share is how much of all hashes a range is.
func share(r stackstorm.Range) string {
	part := float64(r.To-r.From) / float64(stackstorm.HashEnd) * 100
	switch {
	case part == 100:
		return "all"
	case part < 1:
		return "less than 1 %"
	}
	return fmt.Sprintf("%.0f %%", part)
}

// span is a range as st2.conf has it.
func span(r stackstorm.Range) string {
	end := "MAX"
	if r.To < stackstorm.HashEnd {
		end = fmt.Sprint(r.To)
	}
	return fmt.Sprintf("%d..%s", r.From, end)
}

// judgeTimers sees whether exactly one node runs timers.
func (r *Report) judgeTimers() {
	all := true
	for _, n := range r.Nodes {
		all = all && n.Reached
		if n.Reached && n.Timers {
			r.Timers = append(r.Timers, n.Address)
		}
	}
	switch {
	case len(r.Timers) > 1:
		r.found(step.Error, r.Timers[len(r.Timers)-1], "timers_twice", "timers run on "+words(r.Timers)+": each fires more "+
			"than once", "set [timersengine] enable = False in "+stackstorm.ConfPath+" of all but one, and restart st2timersengine")
	case len(r.Timers) == 0 && all:
		r.found(step.Error, r.Nodes[0].Address, "timers_nowhere", "timers run on no node",
			"set [timersengine] enable = True in "+stackstorm.ConfPath+" of one node, and restart st2timersengine")
	}
}

// judgeClocks compares each node's clock with that of the first that was asked.
func (r *Report) judgeClocks() {
	var first *Clock
	for _, n := range r.reached() {
		switch {
		case n.Clock == nil:
		case first == nil:
			first = n.Clock
		default:
			apart := math.Abs(n.Clock.Ahead-first.Ahead) - n.Clock.Accuracy - first.Accuracy
			if apart > float64(maxSkew.Milliseconds()) {
				r.found(step.Warning, n.Address, "clock_skew", fmt.Sprintf("its clock differs from the first node's by %.1f s "+
					"(± %.0f ms)", (n.Clock.Ahead-first.Ahead)/1000, n.Clock.Accuracy+first.Accuracy),
					"run a time service (chrony, systemd-timesyncd) on all nodes")
			}
		}
	}
}

// compare finds what differs between nodes and must not, and the other way round.
func (r *Report) compare() {
	nodes := r.reached()
	if len(nodes) < 2 {
		return
	}
	add := func(d Difference, node string) {
		r.Differences = append(r.Differences, d)
		var values []string
		for _, v := range d.Values {
			values = append(values, v.Value+" on "+v.Node)
		}
		r.found(step.Warning, node, "setting", fmt.Sprintf("%s must %s: %s", d.Setting, d.Must, words(values)), d.Fix)
	}
	agree := func(name string, value func(*Node) string, fix func(node, from string) string) {
		d, odd, from := Difference{Setting: name, Must: "agree"}, []string{}, Value{}
		for _, n := range nodes {
			v := Value{n.Address, value(n)}
			if v.Value == "" {
				continue // it is not known; not_seen says why
			}
			if from.Node == "" {
				from = v
			}
			if v.Value != from.Value {
				odd = append(odd, v.Node)
			}
			d.Values = append(d.Values, v)
		}
		if len(odd) > 0 {
			d.Fix = fix(strings.Join(odd, ","), from.Node)
			add(d, odd[0])
		}
	}
	install := func(what string) func(node, from string) string {
		return func(node, from string) string { return "install the " + what + " of " + from + " on " + node }
	}
	agree("the version of StackStorm", func(n *Node) string { return n.Versions.StackStorm }, install("StackStorm"))
	agree("the version of Python", func(n *Node) string { return n.Versions.Python }, install("StackStorm and Python"))
	agree("the version of st2ha", func(n *Node) string { return n.Versions.Pack }, joined)
	for _, c := range agreed() {
		agree(c.name, func(n *Node) string {
			i := slices.IndexFunc(n.settings, func(s setting) bool { return s.name == c.name })
			if i < 0 {
				return ""
			}
			return n.settings[i].value
		}, c.fix)
	}
	names := map[string]*Node{}
	for _, n := range nodes {
		if n.Sensors == nil || len(n.Sensors.Ranges) == 0 {
			continue
		}
		if other := names[n.Sensors.Name]; other != nil {
			add(Difference{Setting: "[sensorcontainer] sensor_node_name", Must: "differ", Values: []Value{
				{other.Address, n.Sensors.Name}, {n.Address, n.Sensors.Name}}, Fix: "give " + n.Address + " another one in " +
				stackstorm.ConfPath + ", then: st2 run st2ha.restart_st2 host=" + n.Address + " force=true"}, n.Address)
		}
		names[n.Sensors.Name] = n
	}
}

// findSingle says in plain sentences what there is once only, so that its loss is felt.
func (r *Report) findSingle() {
	add := func(what, where, message string) { r.Single = append(r.Single, Single{what, where, message}) }
	nodes := r.reached()
	if len(nodes) == 1 {
		add("node", nodes[0].Address, "Only "+nodes[0].Address+" is there: if it fails, StackStorm is gone.")
	}
	for _, b := range []struct{ name, called, lost string }{
		{"mongodb", "MongoDB", "StackStorm stops on all nodes"},
		{"rabbitmq", "RabbitMQ", "nothing is scheduled or run on any node"},
		{"redis", "Redis", "the nodes no longer wait for each other, so that concurrency policies fail"},
	} {
		var servers []string
		for _, n := range nodes {
			for _, s := range n.Backends {
				if s.Name == b.name && !slices.Contains(servers, s.Endpoint) {
					servers = append(servers, s.Endpoint)
				}
			}
		}
		if len(servers) == 1 {
			add(b.name, servers[0], fmt.Sprintf("%s is at %s only: without it %s.", b.called, servers[0], b.lost))
		}
	}
	var sources []string
	for _, n := range nodes {
		for _, s := range n.Shares {
			if name, _, err := net.SplitHostPort(nfs.Server(s.Source)); err == nil && !slices.Contains(sources, name) {
				sources = append(sources, name)
			}
		}
	}
	if len(sources) == 1 {
		add("content", sources[0], "The packs come from "+sources[0]+" only: without it the nodes that mount them wait.")
	}
	r.singleServices(nodes, add)
	var owners []string
	for _, n := range nodes {
		if _, enabled := n.service("st2sensorcontainer"); enabled && n.Sensors != nil && len(n.Sensors.Ranges) > 0 {
			owners = append(owners, n.Address)
		}
	}
	if len(owners) == 1 && len(nodes) > 1 {
		add("sensors", owners[0], "All sensors run on "+owners[0]+" only: without it no sensor sees anything.")
	}
	if len(r.Timers) == 1 && len(nodes) > 1 {
		add("timers", r.Timers[0], "Timers run on "+r.Timers[0]+" only, as they must: without it none fires.")
	}
}

// singleServices are the services that run on one node, where others could run them, too.
func (r *Report) singleServices(nodes []*Node, add func(what, where, message string)) {
	only := map[string][]string{}
	for _, unit := range stackstorm.Services() {
		if unit == "st2sensorcontainer" || unit == "st2timersengine" {
			continue // they are shared out
		}
		var running []string
		for _, n := range nodes {
			if s, ok := n.service(unit); ok && s.State == "active" {
				running = append(running, n.Address)
			}
		}
		if len(running) == 1 && len(nodes) > 1 {
			only[running[0]] = append(only[running[0]], unit)
		}
	}
	for _, n := range nodes {
		if units := only[n.Address]; len(units) > 0 {
			verb := "runs"
			if len(units) > 1 {
				verb = "run"
			}
			add("services", n.Address, fmt.Sprintf("%s %s on %s only.", words(units), verb, n.Address))
		}
	}
}
