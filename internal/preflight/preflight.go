// Package preflight looks at all nodes before anything is changed on any of
// them, and reports everything it finds at once, each finding with its fix.
package preflight

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"st2ha/internal/account"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/nfs"
	st2 "st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// Node is a host with the steps that are going to be run on it.
type Node struct {
	Address string
	Primary bool
	Steps   []step.Step
	// Directories are those that are shared; empty: the default list.
	Directories []string

	// Host is nil where the connection failed, for the reason in Err.
	Host host.Host
	Err  error
}

// facts are what is compared between the nodes: what each look reads of its
// node, beside its findings.
type facts struct {
	version  string
	python   string // of StackStorm's virtualenv, e.g. 3.10
	system   string // what os-release calls it
	ids      []account.ID
	content  []st2.ContentSetting
	settings map[string]string // others of st2.conf that have to be the same, by their names
	conf     bool              // st2.conf was read
	locks    string            // where [coordination] url has the node's locks, without secrets; empty where there are none
	clock    time.Duration     // ahead of this machine's
	accuracy time.Duration     // half of the round trip that measured it
}

// Ports are those of the primary that the secondaries must reach; one that is
// not known is 0.
type Ports struct {
	MongoDB, RabbitMQ, NFS int
}

// list are those that are known.
func (p Ports) list() []int {
	return slices.DeleteFunc([]int{p.MongoDB, p.RabbitMQ, p.NFS}, func(port int) bool { return port == 0 })
}

// Limits of what is reported.
const (
	maxClockSkew = 2 * time.Second
	minFreeKiB   = 100 * 1024 // for before-images and packages
)

// Run looks at all nodes, side by side, and returns what it found, errors first.
func Run(ctx context.Context, nodes []*Node, ports Ports) []step.Finding {
	found, known := make([][]step.Finding, len(nodes)), make([]facts, len(nodes))
	var group sync.WaitGroup
	for i, n := range nodes {
		group.Add(1)
		go func() {
			defer group.Done()
			known[i], found[i] = single(ctx, n)
		}()
	}
	group.Wait()
	all := slices.Concat(found...)
	all = append(all, compare(nodes, known)...)
	all = append(all, reachable(ctx, nodes, ports)...)
	slices.SortStableFunc(all, func(a, b step.Finding) int {
		return strings.Compare(string(a.Severity), string(b.Severity))
	})
	return all
}

// of turns a check's own failure into a finding, so that the others are still made.
func of(n *Node, name string, err error) step.Finding {
	f := fault.Of(err)
	code := name
	if f.Code != "failed" {
		code = f.Code
	}
	fix := f.Hint
	if fix == "" {
		fix = "remove the cause, then run preflight again"
	}
	return n.finding(step.Error, code, strings.TrimPrefix(f.Error(), n.Address+": "), fix)
}

// finding is one of the node's.
func (n *Node) finding(severity step.Severity, check, message, fix string) step.Finding {
	return step.Finding{Severity: severity, Host: n.Address, Check: check, Message: message, Fix: fix}
}

// single makes the checks that need one node only. Where the connection is lost
// meanwhile that is said once, and the rest of the node is not looked at.
func single(ctx context.Context, n *Node) (f facts, all []step.Finding) {
	if n.Err != nil {
		return f, []step.Finding{of(n, "connect", n.Err)}
	}
	looks := []struct {
		name string
		look func() ([]step.Finding, error)
	}{
		{"address", func() (found []step.Finding, err error) { return address(ctx, n) }},
		{"stackstorm", func() (found []step.Finding, err error) { f.version, f.python, found, err = stackstorm(ctx, n); return }},
		{"os", func() (found []step.Finding, err error) { f.system, err = system(ctx, n); return }},
		{"ids", func() (found []step.Finding, err error) { f.ids, found, err = ids(ctx, n); return }},
		{"settings", func() (found []step.Finding, err error) { f.settings = settings(ctx, n); return }},
		{"coordination", func() (found []step.Finding, err error) { f.conf, f.locks, found = coordination(ctx, n); return }},
		{"content", func() (found []step.Finding, err error) { f.content, found, err = content(ctx, n); return }},
		{"clock", func() (found []step.Finding, err error) { f.clock, f.accuracy, err = host.Clock(ctx, n.Host); return }},
		{"disk", func() (found []step.Finding, err error) { return disk(ctx, n) }},
		{"lock", func() (found []step.Finding, err error) { return lock(ctx, n) }},
	}
	for _, s := range n.Steps {
		looks = append(looks, struct {
			name string
			look func() ([]step.Finding, error)
		}{s.Name(), func() ([]step.Finding, error) { return planned(ctx, n, s) }})
	}
	for _, l := range looks {
		found, err := l.look()
		if errors.Is(err, host.ErrDisconnected) {
			lost := of(n, "connection", err)
			lost.Check = "connection"
			lost.Fix = "see whether the node and its sshd are up, then run preflight again: not all of the node was checked"
			return f, append(all, lost)
		}
		all = append(all, found...)
		if err != nil {
			all = append(all, of(n, l.name, err))
		}
	}
	return f, all
}

// planned checks and plans a step: what cannot be planned cannot be done, such
// as files that cannot be parsed, or conflicts.
func planned(ctx context.Context, n *Node, s step.Step) ([]step.Finding, error) {
	found, err := s.Check(ctx, n.Host)
	if err == nil && step.Refuse(found) == nil {
		_, err = s.Plan(ctx, n.Host)
	}
	return found, err
}

// address makes sure that the address is one of the node's own.
func address(ctx context.Context, n *Node) ([]step.Finding, error) {
	wanted := []string{n.Address}
	if net.ParseIP(n.Address) == nil {
		out, err := n.Host.Run(ctx, nil, "getent", "ahosts", n.Address)
		if err != nil {
			return nil, fmt.Errorf("%s: look up %s: %w", n.Address, n.Address, err)
		}
		wanted = nil
		for _, line := range strings.Split(string(out), "\n") {
			if fields := strings.Fields(line); len(fields) > 0 {
				wanted = append(wanted, fields[0])
			}
		}
	}
	out, err := n.Host.Run(ctx, nil, "ip", "-oneline", "address", "show")
	if err != nil {
		return nil, fmt.Errorf("%s: addresses: %w", n.Address, err)
	}
	var own []string
	for _, line := range strings.Split(string(out), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[2], "inet") {
			continue
		}
		ip, _, _ := strings.Cut(fields[3], "/")
		if parsed := net.ParseIP(ip); parsed == nil || parsed.IsLoopback() {
			continue
		}
		if slices.Contains(wanted, ip) {
			return nil, nil
		}
		own = append(own, ip)
	}
	return []step.Finding{n.finding(step.Error, "address",
		fmt.Sprintf("%s is not one of the node's addresses (%s)", n.Address, strings.Join(own, ", ")),
		"give an address that the node itself has and that the other nodes can reach")}, nil
}

// stackstorm reads the versions of StackStorm and, as two numbers, of its Python.
func stackstorm(ctx context.Context, n *Node) (version, python string, found []step.Finding, err error) {
	version, python, err = st2.Installed(ctx, n.Host)
	if err == nil && version == "" {
		found = []step.Finding{n.finding(step.Error, "stackstorm", "StackStorm is not installed in /opt/stackstorm/st2",
			"install StackStorm on it first: the same version on all nodes")}
	}
	if parts := strings.SplitN(python, ".", 3); len(parts) > 2 { // patches of a version fit together
		python = strings.Join(parts[:2], ".")
	}
	return version, python, found, err
}

// system reads which distribution it is (os-release(5)); one that does not say so has none.
func system(ctx context.Context, n *Node) (string, error) {
	f, err := n.Host.ReadFile(ctx, "/etc/os-release")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	said := map[string]string{}
	for line := range strings.Lines(string(f.Data)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			said[name] = strings.Trim(value, `"'`)
		}
	}
	return strings.TrimSpace(said["ID"] + " " + said["VERSION_ID"]), nil
}

// settings reads what each node's st2.conf has to have alike, beside what the steps write.
func settings(ctx context.Context, n *Node) map[string]string {
	conf, err := st2.ReadConf(ctx, n.Host)
	if err != nil {
		return nil // configure_st2 says what is wrong with the file
	}
	return map[string]string{"[system_user] user": conf.SystemUser(), "[actionrunner] python_binary": conf.PythonBinary()}
}

// compareSettings reports what a node's st2.conf has otherwise than the first's.
func compareSettings(n *Node, first, own facts) (found []step.Finding) {
	for _, name := range slices.Sorted(maps.Keys(own.settings)) {
		here, there := own.settings[name], first.settings[name]
		if first.settings == nil || here == there {
			continue
		}
		message := fmt.Sprintf("%s of %s is %s here and %s on the primary", name, st2.ConfPath,
			cmp.Or(here, "the default"), cmp.Or(there, "the default"))
		found = append(found, n.finding(step.Warning, "settings", message,
			"set it as on the primary, and restart the st2 services"))
	}
	return found
}

// ids reads what NFS compares by number.
func ids(ctx context.Context, n *Node) (all []account.ID, found []step.Finding, err error) {
	wanted := account.Wanted(account.SystemUser(ctx, n.Host))
	if all, err = account.Read(ctx, n.Host, wanted); err != nil {
		return nil, nil, err
	}
	for _, id := range wanted {
		if _, ok := account.Get(all, id.Database, id.Name); !ok && id.Needed() {
			found = append(found, n.finding(step.Error, "ids", fmt.Sprintf("%s has no entry %s", id.Database, id.Name),
				"install StackStorm on the node first; its packages create it"))
		}
	}
	return all, found, nil
}

// compareIDs reports users and groups whose numbers differ from the first's. What belongs to the system user, and to the
// group st2, is not shared as StackStorm is installed.
func compareIDs(n, first *Node, theirs, own facts) (found []step.Finding) {
	for _, a := range theirs.ids {
		b, ok := account.Get(own.ids, a.Database, a.Name)
		if !ok || a.Number == b.Number {
			continue
		}
		severity := step.Warning
		if a.Needed() {
			severity = step.Error
		}
		message := fmt.Sprintf("%s %s has %s %d here and %d on the primary; NFS compares numbers", a.Noun(), a.Name, a.Kind(),
			b.Number, a.Number)
		found = append(found, n.finding(severity, "ids", message, fmt.Sprintf(
			"st2 run st2ha.align_ids host=%s primary=%s gives it the primary's number, and its files; system_user=true for the "+
				"system user", n.Address, first.Address)))
	}
	return found
}

// coordination reads where StackStorm's services have their locks, if st2.conf
// can be read.
func coordination(ctx context.Context, n *Node) (read bool, locks string, found []step.Finding) {
	conf, err := st2.ReadConf(ctx, n.Host)
	if err != nil {
		return false, "", nil // configure_st2 says what is wrong with the file
	}
	if u, err := url.Parse(conf.Coordination()); err == nil && u.Scheme != "" {
		locks = u.Scheme + "://" + u.Host
	}
	if !n.Primary {
		return true, locks, nil
	}
	const fix = "install a Redis that all nodes can reach, and set [coordination] url to it on all nodes; " +
		"until then do not rely on concurrency policies"
	const so = "services of different nodes do not wait for each other, " +
		"so that concurrency policies and workflows may let too much run at once"
	warn := func(message string) []step.Finding {
		return []step.Finding{n.finding(step.Warning, "coordination", message+": "+so, fix)}
	}
	switch {
	case locks == "":
		found = warn("[coordination] url is not set in " + st2.ConfPath)
	case ownLocks(locks):
		found = warn(fmt.Sprintf("[coordination] url of %s is %s, which is each node's own", st2.ConfPath, locks))
	}
	return true, locks, found
}

// ownLocks says whether a coordinator is another one on each node: on
// loopback, or of tooz's drivers for one machine.
func ownLocks(locks string) bool {
	u, err := url.Parse(locks)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return slices.Contains([]string{"file", "ipc", "zake"}, u.Scheme) || u.Hostname() == "localhost" ||
		ip != nil && ip.IsLoopback()
}

// compareLocks reports a node whose services have their locks elsewhere than those of the first.
func compareLocks(n *Node, first, own facts) []step.Finding {
	if !first.conf || !own.conf || first.locks == "" || ownLocks(first.locks) || own.locks == first.locks {
		return nil
	}
	here := own.locks
	if here == "" {
		here = "not set"
	}
	message := fmt.Sprintf("[coordination] url of %s is %s here and %s on the primary: "+
		"the nodes do not wait for each other", st2.ConfPath, here, first.locks)
	return []step.Finding{n.finding(step.Warning, "coordination", message,
		"set it as on the primary, and restart the st2 services")}
}

// content reads where StackStorm looks for packs and what belongs to them; of
// the primary's it names what the other nodes will not have.
func content(ctx context.Context, n *Node) (settings []st2.ContentSetting, found []step.Finding, err error) {
	conf, err := st2.ReadConf(ctx, n.Host)
	if err != nil {
		return nil, nil, nil // configure_st2 says what is wrong with the file
	}
	settings = conf.Content()
	if !n.Primary {
		return settings, nil, nil
	}
	shared, err := nfs.Directories(ctx, n.Host, n.Directories)
	if err != nil {
		return settings, nil, err
	}
	for _, setting := range settings {
		for _, dir := range setting.Directories {
			if slices.ContainsFunc(shared, func(s string) bool { return dir == s || strings.HasPrefix(dir, s+"/") }) {
				continue
			}
			if _, err := n.Host.Stat(ctx, dir); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return settings, nil, err
			}
			message := fmt.Sprintf("%s of %s has StackStorm use %s, which is not shared: "+
				"the other nodes do not see what lies there", setting.Name, st2.ConfPath, dir)
			found = append(found, n.finding(step.Warning, "content", message, "give directories="+
				strings.Join(append(slices.Clone(shared), dir), ",")+", or keep its content the same on all nodes by other means"))
		}
	}
	return settings, found, nil
}

// disk looks at the file systems that are written to.
func disk(ctx context.Context, n *Node) ([]step.Finding, error) {
	out, err := n.Host.Run(ctx, nil, "df", "--portability", "--block-size=1K", "/etc", "/var/lib", "/opt")
	if err != nil {
		return nil, fmt.Errorf("%s: disk space: %w", n.Address, err)
	}
	var found []step.Finding
	seen := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n")[1:] {
		fields := strings.Fields(line)
		if len(fields) < 6 || seen[fields[5]] {
			continue
		}
		seen[fields[5]] = true
		if free, err := strconv.ParseInt(fields[3], 10, 64); err == nil && free < minFreeKiB {
			message := fmt.Sprintf("%s has %d MiB left of the %d MiB needed", fields[5], free/1024, minFreeKiB/1024)
			found = append(found, n.finding(step.Error, "disk", message, "remove files there, or make the file system larger"))
		}
	}
	return found, nil
}

// lock sees whether another run is at work; it leaves nothing behind.
func lock(ctx context.Context, n *Node) ([]step.Finding, error) {
	release, err := step.TryLock(ctx, n.Host, "preflight")
	var held *host.LockedError
	if errors.As(err, &held) {
		message := "another run is in progress: " + held.Holder
		return []step.Finding{n.finding(step.Error, "locked", message, "wait for it to end")}, nil
	}
	if err != nil {
		return nil, err
	}
	release()
	return nil, nil
}

// primaryOf is the primary, if it was reached.
func primaryOf(nodes []*Node) *Node {
	i := slices.IndexFunc(nodes, func(n *Node) bool { return n.Primary && n.Host != nil })
	if i < 0 {
		return nil
	}
	return nodes[i]
}

// compare reports where nodes differ that must not.
func compare(nodes []*Node, known []facts) []step.Finding {
	first := primaryOf(nodes)
	if first == nil {
		return nil
	}
	theirs := known[slices.Index(nodes, first)]
	var found []step.Finding
	for i, n := range nodes {
		own := known[i]
		if n == first || n.Host == nil {
			continue
		}
		add := func(check, fix, format string, args ...any) {
			found = append(found, n.finding(step.Error, check, fmt.Sprintf(format, args...), fix))
		}
		if a, b := theirs.version, own.version; a != "" && b != "" && a != b {
			add("version", "install StackStorm "+a+" on it", "StackStorm is %s here and %s on the primary", b, a)
		}
		if a, b := theirs.python, own.python; a != "" && b != "" && a != b {
			add("python", "install StackStorm's package for the same distribution on all nodes",
				"StackStorm runs with Python %s here and %s on the primary: the virtualenvs that they share are made for one of them",
				b, a)
		}
		if a, b := theirs.system, own.system; a != "" && b != "" && a != b {
			found = append(found, n.finding(step.Warning, "os", fmt.Sprintf("the node is %s and the primary %s: programs in the "+
				"virtualenvs that they share may not run on both", b, a), "use the same distribution in the same version on all nodes"))
		}
		found = append(found, compareIDs(n, first, theirs, own)...)
		found = append(found, compareSettings(n, theirs, own)...)
		found = append(found, compareLocks(n, theirs, own)...)
		for i, here := range own.content {
			if len(theirs.content) == 0 || slices.Equal(here.Directories, theirs.content[i].Directories) {
				continue
			}
			message := fmt.Sprintf("%s of %s is not the primary's: content is looked for in %s here, and in %s there",
				here.Name, st2.ConfPath, list(here.Directories), list(theirs.content[i].Directories))
			found = append(found, n.finding(step.Warning, "content", message,
				"set it as on the primary, and restart the st2 services"))
		}
		skew := (own.clock - theirs.clock).Abs() - own.accuracy - theirs.accuracy
		if skew > maxClockSkew {
			add("clock", "run a time service (chrony, systemd-timesyncd) on both nodes",
				"the clock differs from the primary's by %s", skew.Round(10*time.Millisecond))
		}
	}
	return found
}

// list are directories in words.
func list(dirs []string) string {
	if len(dirs) == 0 {
		return "no directory"
	}
	return strings.Join(dirs, ", ")
}

// reachable sees from each secondary whether the primary's ports are free of
// firewalls. Where nothing listens yet, a refusal says that packets arrive.
func reachable(ctx context.Context, nodes []*Node, ports Ports) []step.Finding {
	primary := primaryOf(nodes)
	if primary == nil {
		return nil
	}
	listening := listen(ctx, primary, ports)
	defer func() {
		for _, l := range listening {
			_ = l.Close()
		}
	}()
	var mutex sync.Mutex
	var group sync.WaitGroup
	var found []step.Finding
	for _, n := range nodes {
		if n.Primary || n.Host == nil {
			continue
		}
		for _, port := range ports.list() {
			group.Add(1)
			go func() {
				defer group.Done()
				addr := net.JoinHostPort(primary.Address, strconv.Itoa(port))
				ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
				defer cancel()
				conn, err := n.Host.DialContext(ctx, "tcp", addr)
				if err == nil {
					_ = conn.Close()
					return
				}
				if _, held := listening[port]; !held && errors.Is(err, syscall.ECONNREFUSED) {
					return
				}
				mutex.Lock()
				defer mutex.Unlock()
				found = append(found, n.finding(step.Error, "firewall", fmt.Sprintf("%s is not reachable from here: %v", addr, err),
					fmt.Sprintf("let TCP from %s to port %d through the firewalls between the nodes and on the primary",
						n.Address, port)))
			}()
		}
	}
	group.Wait()
	slices.SortFunc(found, func(a, b step.Finding) int { return strings.Compare(a.Message, b.Message) })
	return found
}

// listen opens the primary's ports that nothing listens on yet for the moment
// of the check: a firewall that rejects looks like a closed port otherwise.
// That can be done from the primary itself only.
func listen(ctx context.Context, primary *Node, ports Ports) map[int]net.Listener {
	open := map[int]net.Listener{}
	if !primary.Host.IsLocal() {
		return open
	}
	for _, port := range ports.list() {
		var config net.ListenConfig
		if l, err := config.Listen(ctx, "tcp", net.JoinHostPort(primary.Address, strconv.Itoa(port))); err == nil {
			open[port] = l
		}
	}
	return open
}
