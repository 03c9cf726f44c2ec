package preflight

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/account"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

// machine is a host below a temporary root whose programs are canned.
type machine struct {
	*host.Local
	root    string
	answers map[string]string // by the beginning of the command line
	remote  bool
	cut     int // programs until the connection ends; 0: never
	ran     int
}

func (m *machine) IsLocal() bool { return !m.remote }

func (m *machine) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	line := strings.Join(argv, " ")
	if m.ran++; m.cut > 0 && m.ran >= m.cut {
		return nil, fmt.Errorf("on %s: %w: no answer for 30s", m.Name(), host.ErrDisconnected)
	}
	for begin, answer := range m.answers {
		if strings.HasPrefix(line, begin) {
			return []byte(answer), nil
		}
	}
	return nil, &host.ExitError{Program: argv[0], Code: 2}
}

func newMachine(t *testing.T, name string) *machine {
	t.Helper()
	const version = "/opt/stackstorm/st2/lib/python3.10/site-packages/st2common/__init__.py"
	m := &machine{root: t.TempDir(), answers: map[string]string{
		"getent passwd st2":     "st2:x:998:998::/home/st2:/bin/false\nstanley:x:1000:1000::/home/stanley:/bin/bash\n",
		"getent group st2packs": "st2packs:x:999:st2\nst2:x:998:\nstanley:x:1000:\n",
		"ip -oneline": "1: lo    inet 127.0.0.1/8 scope host lo\n2: eth0    inet " + name + "/24 brd " +
			"192.168.0.255 scope global eth0\n2: eth0    inet6 2001:db8::" + name[len(name)-1:] + "/64 scope global\n",
		"df ": "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sda1 1000000 1 999999 " +
			"1% /\n/dev/sda1 1000000 1 999999 1% /\n",
		"date +%s.%N":            fmt.Sprintf("%d.%09d\n", time.Now().Unix(), time.Now().Nanosecond()),
		"getent ahosts node.one": name + " STREAM node.one\n",
	}}
	m.Local = host.NewLocalAt(name, m.root)
	require.NoError(t, os.MkdirAll(m.root+strings.TrimSuffix(version, "/__init__.py"), 0o755))
	require.NoError(t, os.MkdirAll(m.root+"/etc", 0o755))
	require.NoError(t, os.WriteFile(m.root+"/etc/os-release", []byte("ID=debian\nVERSION_ID=\"12\"\n"), 0o644))
	require.NoError(t, os.WriteFile(m.root+version, []byte("__version__ = '3.8.1'\n"), 0o644))
	return m
}

func TestCompare(t *testing.T) {
	numbers := func(packs, st2 int, user int, stanley int) []account.ID {
		return []account.ID{{Database: account.Groups, Name: "st2packs", Number: packs},
			{Database: account.Groups, Name: "st2", Number: st2}, {Database: account.Users, Name: "st2", Number: user},
			{Database: account.Users, Name: "stanley", Number: stanley}}
	}
	same := facts{version: "3.8.1", python: "3.10", system: "debian 12", ids: numbers(999, 998, 998, 1000),
		settings: map[string]string{"[system_user] user": "stanley", "[actionrunner] python_binary": ""}}
	for _, tc := range []struct {
		name   string
		change func(*facts)
		want   string
	}{
		{"equal", func(*facts) {}, ""},
		{"version", func(f *facts) { f.version = "3.7.0" }, "version: StackStorm is 3.7.0 here and 3.8.1 on the primary"},
		{"version unknown", func(f *facts) { f.version = "" }, ""},
		{"python", func(f *facts) { f.python = "3.8" }, "python: StackStorm runs with Python 3.8 here and 3.10 on the primary: " +
			"the virtualenvs that they share are made for one of them"},
		{"distribution", func(f *facts) { f.system = "ubuntu 22.04" }, "os: the node is ubuntu 22.04 and the primary debian " +
			"12: programs in the virtualenvs that they share may not run on both"},
		{"distribution unknown", func(f *facts) { f.system = "" }, ""},
		{"system user", func(f *facts) { f.settings = map[string]string{"[system_user] user": "bob"} },
			"settings: [system_user] user of /etc/st2/st2.conf is bob here and stanley on the primary"},
		{"python_binary", func(f *facts) {
			f.settings = map[string]string{"[actionrunner] python_binary": "/usr/bin/python3"}
		}, "settings: [actionrunner] python_binary of /etc/st2/st2.conf is /usr/bin/python3 here and the default on the primary"},
		{"settings unknown", func(f *facts) { f.settings = nil }, ""},
		{"st2's group", func(f *facts) { f.ids = numbers(999, 997, 998, 1000) },
			"ids: group st2 has gid 997 here and 998 on the primary; NFS compares numbers"},
		{"stanley", func(f *facts) { f.ids = numbers(999, 998, 998, 1001) },
			"ids: user stanley has uid 1001 here and 1000 on the primary; NFS compares numbers"},
		{"uid", func(f *facts) { f.ids = numbers(999, 998, 997, 1000) }, "ids: user st2 has uid 997 here and 998 on the primary; NFS compares " +
			"numbers"},
		{"gid", func(f *facts) { f.ids = numbers(1000, 998, 998, 1000) }, "ids: group st2packs has gid 1000 here and 999 on the primary; NFS " +
			"compares numbers"},
		{"ids unknown", func(f *facts) { f.ids = nil }, ""},
		{"clock ahead", func(f *facts) { f.clock = 2100 * time.Millisecond }, "clock: the clock differs from the " +
			"primary's by 2.1s"},
		{"clock behind", func(f *facts) { f.clock = -time.Hour }, "clock: the clock differs from the primary's by 1h0m0s"},
		{"clock within", func(f *facts) { f.clock = 2 * time.Second }, ""},
		{"clock measured badly", func(f *facts) { f.clock, f.accuracy = 3*time.Second, 1500*time.Millisecond }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			second := same
			tc.change(&second)
			h := host.NewLocal("x")
			found := compare([]*Node{
				{Address: "a", Primary: true, Host: h},
				{Address: "b", Host: h},
				{Address: "c", Host: h},
			}, []facts{same, second, same})
			if tc.want == "" {
				require.Empty(t, found)
				return
			}
			require.Len(t, found, 1)
			require.Equal(t, tc.want, found[0].Check+": "+found[0].Message)
			require.Equal(t, "b", found[0].Host)
			severity := step.Error
			if slices.Contains([]string{"distribution", "system user", "python_binary", "st2's group", "stanley"}, tc.name) {
				severity = step.Warning
			}
			require.Equal(t, severity, found[0].Severity)
			require.NotEmpty(t, found[0].Fix)
		})
	}
	require.Empty(t, compare([]*Node{{Primary: true}, {Host: host.NewLocal("x")}}, make([]facts, 2)), "no primary to "+
		"compare with")
	require.Empty(t, compare([]*Node{{Primary: true, Host: host.NewLocal("x")}, {}}, make([]facts, 2)))
}

// fakeStep is a step as preflight sees it.
type fakeStep struct {
	findings     []step.Finding
	check, plan  error
	planned      bool
	verifyCalled bool
}

func (s *fakeStep) Name() string { return "fake" }
func (s *fakeStep) Check(context.Context, host.Host) ([]step.Finding, error) {
	return s.findings, s.check
}
func (s *fakeStep) Plan(context.Context, host.Host) ([]step.Change, error) {
	s.planned = true
	return nil, s.plan
}
func (s *fakeStep) Verify(context.Context, host.Host) error { s.verifyCalled = true; return nil }

func said(found []step.Finding) []string {
	var list []string
	for _, f := range found {
		list = append(list, fmt.Sprintf("%s %s %s: %s", f.Severity, f.Host, f.Check, f.Message))
	}
	return list
}

func TestSingle(t *testing.T) {
	testenv.NeedsRoot(t)
	ctx := t.Context()
	const a = "192.168.0.100"
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, m *machine, n *Node)
		want  []string
	}{
		{"all is well", func(*testing.T, *machine, *Node) {}, nil},
		{"by IPv6", func(_ *testing.T, _ *machine, n *Node) { n.Address = "2001:db8::0" }, []string{"error 2001:db8::0 " +
			"address: 2001:db8::0 is not one of the node's addresses (192.168.0.100, 2001:db8::0)"}[:0]},
		{"by name", func(_ *testing.T, _ *machine, n *Node) { n.Address = "node.one" }, nil},
		{"another's address", func(_ *testing.T, m *machine, n *Node) { n.Address = "192.168.0.9" },
			[]string{"error 192.168.0.9 address: 192.168.0.9 is not one of the node's addresses (192.168.0.100, 2001:db8::0)"}},
		{"loopback", func(_ *testing.T, m *machine, n *Node) { n.Address = "127.0.0.1" },
			[]string{"error 127.0.0.1 address: 127.0.0.1 is not one of the node's addresses (192.168.0.100, 2001:db8::0)"}},
		{"not reached", func(_ *testing.T, _ *machine, n *Node) {
			n.Host, n.Err = nil, fault.Preflight("unreachable", "try ssh", "no route")
		}, []string{"error 192.168.0.100 unreachable: no route"}},
		{"no StackStorm", func(t *testing.T, m *machine, _ *Node) {
			require.NoError(t, os.RemoveAll(m.root+"/opt/stackstorm/st2"))
		},
			[]string{"error 192.168.0.100 stackstorm: StackStorm is not installed in /opt/stackstorm/st2"}},
		{"no user", func(_ *testing.T, m *machine, _ *Node) { delete(m.answers, "getent passwd st2") },
			[]string{"error 192.168.0.100 ids: passwd has no entry st2"}},
		{"no group", func(_ *testing.T, m *machine, _ *Node) { delete(m.answers, "getent group st2packs") },
			[]string{"error 192.168.0.100 ids: group has no entry st2packs"}},
		{"disk full", func(_ *testing.T, m *machine, _ *Node) {
			m.answers["df "] = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sda1 1 1 51200 1% " +
				"/\n/dev/sda1 1 1 51200 1% /\n/dev/sdb1 1 1 999999 1% /opt\n"
		}, []string{"error 192.168.0.100 disk: / has 50 MiB left of the 100 MiB needed"}},
		{"several at once", func(_ *testing.T, m *machine, _ *Node) {
			delete(m.answers, "getent passwd st2")
			require.NoError(t, os.RemoveAll(m.root+"/opt/stackstorm/st2"))
		}, []string{"error 192.168.0.100 stackstorm: StackStorm is not installed in /opt/stackstorm/st2", "error " +
			"192.168.0.100 ids: passwd has no entry st2"}},
		{"no clock", func(_ *testing.T, m *machine, _ *Node) { delete(m.answers, "date +%s.%N") },
			[]string{"error 192.168.0.100 clock: clock: date ended with status 2"}},
		{"another run", func(t *testing.T, m *machine, _ *Node) {
			require.NoError(t, os.MkdirAll(m.root+"/var/lib", 0o755))
			release, err := step.Lock(ctx, m, "run other", 0)
			require.NoError(t, err)
			t.Cleanup(release)
		}, []string{"error 192.168.0.100 locked: another run is in progress: run other"}},
		{"a step that refuses", func(_ *testing.T, _ *machine, n *Node) {
			refused := []step.Finding{{Severity: step.Error, Host: a, Check: "x", Message: "y"}}
			n.Steps = []step.Step{&fakeStep{findings: refused, plan: errors.New("not planned")}, &fakeStep{}}
		}, []string{"error 192.168.0.100 x: y"}},
		{"a step that warns and cannot be planned", func(_ *testing.T, _ *machine, n *Node) {
			warned := []step.Finding{{Severity: step.Warning, Host: a, Check: "x", Message: "y"}}
			n.Steps = []step.Step{&fakeStep{findings: warned, plan: fault.Preflight("unparsable", "mend it", "line 3")}}
		}, []string{"warning 192.168.0.100 x: y", "error 192.168.0.100 unparsable: line 3"}},
		{"a step that cannot be checked", func(_ *testing.T, _ *machine, n *Node) {
			n.Steps = []step.Step{&fakeStep{check: errors.New("no")}}
		}, []string{"error 192.168.0.100 fake: no"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t, a)
			n := &Node{Address: a, Primary: true, Host: m}
			tc.spoil(t, m, n)
			known, found := single(ctx, n)
			if len(tc.want) == 0 {
				require.Empty(t, found)
				require.Equal(t, facts{version: "3.8.1", python: "3.10", system: "debian 12", ids: []account.ID{
					{Database: "group", Name: "st2packs", Number: 999}, {Database: "group", Name: "stanley", Number: 1000},
					{Database: "group", Name: "st2", Number: 998}, {Database: "passwd", Name: "st2", Number: 998},
					{Database: "passwd", Name: "stanley", Number: 1000},
				}, clock: known.clock, accuracy: known.accuracy}, known)
				require.NoDirExists(t, m.root+step.StateDir)
				return
			}
			require.Equal(t, tc.want, said(found))
			for _, f := range found {
				if f.Check != "x" {
					require.NotEmpty(t, f.Fix)
				}
			}
		})
	}
}

// A connection that ends is told as that, once, and never as what could not be asked any more.
func TestLostConnection(t *testing.T) {
	whole := newMachine(t, "192.168.0.100")
	_, found := single(t.Context(), &Node{Address: "192.168.0.100", Host: whole})
	require.Empty(t, found)
	require.Greater(t, whole.ran, 4)
	for cut := 1; cut <= whole.ran; cut++ {
		m := newMachine(t, "192.168.0.100")
		m.cut = cut
		_, found := single(t.Context(), &Node{Address: "192.168.0.100", Host: m, Steps: []step.Step{&fakeStep{}}})
		require.Len(t, found, 1, "at program %d", cut)
		require.Equal(t, "connection", found[0].Check, "at program %d", cut)
		require.Contains(t, found[0].Message, "the SSH connection ended: no answer for 30s", "at program %d", cut)
		require.NotEmpty(t, found[0].Fix)
	}
}

// Run finds all there is on all nodes, errors first, and asks no step to prove anything.
func TestRun(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	port := func(l net.Listener) int {
		_, p, err := net.SplitHostPort(l.Addr().String())
		require.NoError(t, err)
		n, err := strconv.Atoi(p)
		require.NoError(t, err)
		return n
	}
	ports := Ports{MongoDB: port(taken), RabbitMQ: port(free), NFS: port(taken)}
	require.NoError(t, free.Close())
	// On loopback, so that real connections can be made; which is the one finding.
	primary, secondary := newMachine(t, "192.168.0.100"), newMachine(t, "192.168.0.101")
	secondary.answers["getent group st2packs"] = "st2packs:x:1:\n"
	warn := &fakeStep{findings: []step.Finding{{Severity: step.Warning, Host: "127.0.0.1", Check: "w", Message: "m"}}}
	nodes := []*Node{
		{Address: "127.0.0.1", Primary: true, Host: primary, Steps: []step.Step{warn}},
		{Address: "192.168.0.101", Host: secondary},
		{Address: "192.168.0.102", Err: errors.New("no route")},
	}
	found := Run(t.Context(), nodes, ports)
	require.Equal(t, []string{
		"error 127.0.0.1 address: 127.0.0.1 is not one of the node's addresses (192.168.0.100, 2001:db8::0)",
		"error 192.168.0.102 connect: no route",
		"error 192.168.0.101 ids: group st2packs has gid 1 here and 999 on the primary; NFS compares numbers",
		"warning 127.0.0.1 w: m",
	}, said(found))
	require.True(t, warn.planned)
	require.False(t, warn.verifyCalled)
}

// A closed port of a primary that is not this machine refuses: packets arrive.
func TestRefusedIsReachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	_, p, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, l.Close())
	port, err := strconv.Atoi(p)
	require.NoError(t, err)
	primary, secondary := newMachine(t, "192.168.0.100"), newMachine(t, "192.168.0.101")
	primary.remote = true
	nodes := []*Node{{Address: "127.0.0.1", Primary: true, Host: primary}, {Address: "192.168.0.101", Host: secondary}}
	require.Empty(t, reachable(t.Context(), nodes, Ports{port, port, port}))
	require.Empty(t, reachable(t.Context(), []*Node{{Address: "127.0.0.1", Primary: true}}, Ports{}))

	nodes[1].Host = &walled{secondary}
	found := reachable(t.Context(), nodes, Ports{port, port, port})
	require.Len(t, found, 3)
	require.Equal(t, "firewall", found[0].Check)
	require.Contains(t, found[0].Message, "127.0.0.1:"+p+" is not reachable from here: no route to host")
}

// walled is behind a firewall.
type walled struct{ *machine }

func (walled) DialContext(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("no route to host")
}

// Packs can lie in more places than are shared by default, and each node looks where its own st2.conf says.
func TestContent(t *testing.T) {
	primary, secondary := newMachine(t, "192.168.0.100"), newMachine(t, "192.168.0.101")
	for m, conf := range map[*machine]string{
		primary:   "[content]\npacks_base_paths = /opt/ours:/opt/gone:/opt/stackstorm/packs/more:\n",
		secondary: "[system]\nbase_path = /srv/st2\n",
	} {
		require.NoError(t, os.MkdirAll(m.root+"/etc/st2", 0o755))
		require.NoError(t, os.WriteFile(m.root+"/etc/st2/st2.conf", []byte(conf), 0o644))
	}
	for _, dir := range []string{"/opt/ours", "/opt/stackstorm/packs/more", "/opt/stackstorm/virtualenvs"} {
		require.NoError(t, os.MkdirAll(primary.root+dir, 0o755))
	}
	nodes := []*Node{{Address: "192.168.0.100", Primary: true, Host: primary}, {Address: "192.168.0.101", Host: secondary}}
	known := make([]facts, 2)
	var found []step.Finding
	var err error
	known[0].content, found, err = content(t.Context(), nodes[0])
	require.NoError(t, err)
	require.Equal(t, []string{"warning 192.168.0.100 content: [content] packs_base_paths of /etc/st2/st2.conf has " +
		"StackStorm use /opt/ours, " +
		"which is not shared: the other nodes do not see what lies there"}, said(found))
	require.Contains(t, found[0].Fix, "directories=/opt/stackstorm/packs,/opt/stackstorm/virtualenvs,/opt/ours")
	nodes[0].Directories = []string{"/opt/stackstorm/packs", "/opt/stackstorm/virtualenvs", "/opt/ours"}
	_, found, err = content(t.Context(), nodes[0])
	require.NoError(t, err)
	require.Empty(t, found)

	known[1].content, found, err = content(t.Context(), nodes[1])
	require.NoError(t, err)
	require.Empty(t, found)
	require.Equal(t, []string{
		"warning 192.168.0.101 content: [system] base_path of /etc/st2/st2.conf is not the primary's: content is looked " +
			"for in /srv/st2/virtualenvs, /srv/st2/configs here, and in /opt/stackstorm/virtualenvs, " +
			"/opt/stackstorm/configs there",
		"warning 192.168.0.101 content: [content] system_packs_base_path of /etc/st2/st2.conf is not the primary's: " +
			"content is looked for in /srv/st2/packs here, and in /opt/stackstorm/packs there",
		"warning 192.168.0.101 content: [content] packs_base_paths of /etc/st2/st2.conf is not the primary's: content is " +
			"looked for in no directory here, and in /opt/ours, /opt/gone, /opt/stackstorm/packs/more there",
	}, said(compare(nodes, known)))
}

// compared is what is found on each node, and between them.
func compared(t *testing.T, nodes []*Node) (all []step.Finding) {
	t.Helper()
	known := make([]facts, len(nodes))
	for i, n := range nodes {
		var found []step.Finding
		known[i], found = single(t.Context(), n)
		all = append(all, found...)
	}
	return append(all, compare(nodes, known)...)
}

// Without a coordinator that all nodes share, their services do not wait for each other.
func TestCoordination(t *testing.T) {
	const so = ": services of different nodes do not wait for each other, so that concurrency policies and workflows " +
		"may let too much run at once"
	for _, tc := range []struct{ primary, secondary, want string }{
		{"redis://:s3cret@192.168.0.5:6379/1", "redis://192.168.0.5:6379", ""},
		{"", "", "warning 192.168.0.100 coordination: [coordination] url is not set in /etc/st2/st2.conf" + so},
		{"redis://:s3cret@127.0.0.1:6379", "redis://127.0.0.1:6379", "warning 192.168.0.100 coordination: [coordination] " +
			"url of /etc/st2/st2.conf is redis://127.0.0.1:6379, which is each node's own" + so},
		{"file:///tmp", "", "warning 192.168.0.100 coordination: [coordination] url of /etc/st2/st2.conf is file://, " +
			"which is each node's own" + so},
		{"redis://:s3cret@192.168.0.5:6379", "redis://localhost", "warning 192.168.0.101 coordination: [coordination] " +
			"url of /etc/st2/st2.conf is redis://localhost here and redis://192.168.0.5:6379 on the primary: the nodes do " +
			"not wait for each other"},
		{"redis://192.168.0.5:6379", "", "warning 192.168.0.101 coordination: [coordination] url of /etc/st2/st2.conf is " +
			"not set here and redis://192.168.0.5:6379 on the primary: the nodes do not wait for each other"},
	} {
		nodes := []*Node{{Address: "192.168.0.100", Primary: true}, {Address: "192.168.0.101"}}
		for i, address := range []string{tc.primary, tc.secondary} {
			m := newMachine(t, nodes[i].Address)
			nodes[i].Host = m
			require.NoError(t, os.MkdirAll(m.root+"/etc/st2", 0o755))
			conf := "[coordination]\nurl = " + address + "\n"
			if address == "" {
				conf = "\n"
			}
			require.NoError(t, os.WriteFile(m.root+"/etc/st2/st2.conf", []byte(conf), 0o644))
		}
		found := compared(t, nodes)
		if tc.want == "" {
			require.Empty(t, found)
			continue
		}
		require.Equal(t, []string{tc.want}, said(found))
		require.NotContains(t, fmt.Sprint(found), "s3cret")
	}
}
