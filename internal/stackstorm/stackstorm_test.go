package stackstorm

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/mongo/options"

	"st2ha/internal/backendtest"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

var update = flag.Bool("update", false, "write the golden files anew")

// machine is a host below a temporary root whose programs are canned.
type machine struct {
	*host.Local
	root  string
	local bool
	ran   []string
	run   func(argv string) (string, error)
}

func (m *machine) IsLocal() bool { return m.local }

func (m *machine) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	line := strings.Join(argv, " ")
	m.ran = append(m.ran, line)
	if m.run == nil {
		return nil, nil
	}
	out, err := m.run(line)
	return []byte(out), err
}

// newMachine is a node with the given st2.conf; with none if it is empty.
func newMachine(t *testing.T, name, conf string) *machine {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"etc/st2", "proc/net", "var/lib", "usr/bin"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	m := &machine{Local: host.NewLocalAt(name, root), root: root}
	if conf != "" {
		m.put(t, ConfPath, conf)
	}
	return m
}

func (m *machine) put(t *testing.T, name, data string) {
	t.Helper()
	require.NoError(t, os.WriteFile(m.root+name, []byte(data), 0o640))
}

func read(t *testing.T, m *machine) *Conf {
	t.Helper()
	c, err := ReadConf(t.Context(), m)
	require.NoError(t, err)
	return c
}

func requireFault(t *testing.T, err error, exit int, code string) {
	t.Helper()
	require.Error(t, err)
	f := fault.Of(err)
	require.Equal(t, fmt.Sprint(exit, " ", code), fmt.Sprint(f.Exit, " ", f.Code), err.Error())
}

func TestDatabaseHost(t *testing.T) {
	const v4, v6 = "192.168.0.100", "2001:db8::64"
	for _, tc := range []struct{ current, address, want, err string }{
		{"", v4, v4, ""},
		{"127.0.0.1", v4, v4, ""},
		{"localhost", v4, v4, ""},
		{"0.0.0.0", v4, v4, ""},
		{"::1", v6, v6, ""},
		{v4, v4, v4, ""},
		{"192.168.0.9", v4, "", "/etc/st2/st2.conf:2: [database] host is 192.168.0.9, not this node"},
		{"db.example", v4, "", "host is db.example"},
		{"mongodb://127.0.0.1", v4, "mongodb://" + v4, ""},
		{"mongodb://127.0.0.1:27018/st2", v4, "mongodb://" + v4 + ":27018/st2", ""},
		{"mongodb://u:p%40w%2F:x@localhost:27017/st2?authSource=a%40b", v4,
			"mongodb://u:p%40w%2F:x@" + v4 + ":27017/st2?authSource=a%40b", ""},
		{"mongodb://u:p@ss@127.0.0.1/st2", v4, "mongodb://u:p@ss@" + v4 + "/st2", ""},
		{"mongodb://u:p@" + v4 + ":27017/st2", v4, "mongodb://u:p@" + v4 + ":27017/st2", ""},
		{"mongodb://127.0.0.1:27017,localhost:27018/?replicaSet=rs0", v4,
			"mongodb://" + v4 + ":27017," + v4 + ":27018/?replicaSet=rs0", ""},
		{"mongodb://127.0.0.1?ssl=true", v4, "mongodb://" + v4 + "?ssl=true", ""},
		{"mongodb://[::1]:27017/st2", v6, "mongodb://[" + v6 + "]:27017/st2", ""},
		{"mongodb://[::1]/st2", v6, "mongodb://[" + v6 + "]/st2", ""},
		{"mongodb://127.0.0.1/st2", v6, "mongodb://[" + v6 + "]/st2", ""},
		{"mongodb://127.0.0.1,db2.example/st2", v4, "", "host is db2.example, not this node"},
		{"mongodb://u:secret@db.example:27017/st2", v4, "", "host is db.example, not this node"},
		{"mongodb+srv://u:secret@cluster.example/st2", v4, "", "a mongodb+srv:// URI has no host"},
		{"mongodb://", v4, "", "has no host"},
		{"mongodb:///st2", v4, "", "has no host"},
		{"mongodb://u:secret@/st2", v4, "", "has no host"},
		{"mongodb://127.0.0.1,/st2", v4, "", "has no host"},
		{"mongodb://:27017/st2", v4, "", "has no host"},
		{"mongodb://u:se/cret@127.0.0.1/st2", v4, "", "a / that is not encoded"},
	} {
		t.Run(tc.current, func(t *testing.T) {
			c := read(t, newMachine(t, "node", "[database]\nhost = "+tc.current+"\n"))
			got, err := databaseHost(c, tc.address)
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				require.NotContains(t, err.Error(), "secret")
				require.NotContains(t, err.Error(), "cret@")
				require.Equal(t, fault.ExitPreflight, fault.Of(err).Exit)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.want, got)
		})
	}
}

func TestDatabase(t *testing.T) {
	for _, tc := range []struct{ conf, uri, via, err string }{
		{"", "mongodb://127.0.0.1:27017/st2", "127.0.0.1:27017", ""},
		{"host = 10.0.0.1\nport = 27018\ndb_name = x", "mongodb://10.0.0.1:27018/x", "10.0.0.1:27018", ""},
		{"host = ::1", "mongodb://[::1]:27017/st2", "[::1]:27017", ""},
		{"host = h\nusername = u\npassword = p@/$$w", "mongodb://u:p%40%2F%24w@h:27017/st2", "h:27017", ""},
		// What pymongo takes (tried with 4.6.3).
		{"host = 127.0.0.1:27018", "mongodb://127.0.0.1:27018/st2", "127.0.0.1:27018", ""},
		{"port = 27019\nhost = h1:27018, h2", "mongodb://h1:27018,h2:27019/st2", "h1:27018", ""},
		{"host = [::1]:3", "mongodb://[::1]:3/st2", "[::1]:3", ""},
		{"host = mongodb://u:a+b%2B@h/", "mongodb://u:a%20b%2B@h:27017/", "h:27017", ""},
		{"host = mongodb://u:p^|$$@h/", "mongodb://u:p%5E%7C%24@h:27017/", "h:27017", ""},
		{"host = mongodb://h/x?replicaSet=r\nusername = u\npassword = p",
			"mongodb://u:p@h:27017/x?replicaSet=r", "h:27017", ""},
		{"host = mongodb://u:p@h/x\nauthentication_mechanism = SCRAM-SHA-256",
			"mongodb://u:p@h:27017/x?authMechanism=SCRAM-SHA-256", "h:27017", ""},
		{"host = mongodb://h/x?tlsCAFile=/none&w=1&ssl=true", "mongodb://h:27017/x?w=1", "h:27017", ""},
		{"host = h\npassword = ${secret}\nsecret = s\\$x\nusername = $db_name\ndb_name = d",
			"mongodb://d:s%24x@h:27017/d", "h:27017", ""},
		{"host = h\nport = $nope", "", "",
			"/etc/st2/st2.conf:3: [database] port: it refers to $nope, which the file does not set"},
		{"host = mongodb://u:secret%zz@h/", "", "", "a % that is not encoded"},
		{"host = h:x", "", "", "[database] host must be HOST"},
		{"host = mongodb://u:p@10.0.0.1:27018/st2", "mongodb://u:p@10.0.0.1:27018/st2", "10.0.0.1:27018", ""},
		{"host = mongodb://u:p@10.0.0.1/st2", "mongodb://u:p@10.0.0.1:27017/st2", "10.0.0.1:27017", ""},
		{"port = 27018\nhost = mongodb://10.0.0.1,10.0.0.1:1/",
			"mongodb://10.0.0.1:27018,10.0.0.1:1/", "10.0.0.1:27018", ""},
		{"host = mongodb://[2001:db8::1]/", "mongodb://[2001:db8::1]:27017/", "[2001:db8::1]:27017", ""},
		{"port = many", "", "", "/etc/st2/st2.conf:2: port must be a number, not \"many\""},
		{"host = mongodb+srv://x/", "", "", "has no host"},
	} {
		c := read(t, newMachine(t, "node", "[database]\n"+tc.conf+"\n"))
		db, err := c.Database()
		if tc.err != "" {
			require.ErrorContains(t, err, tc.err)
			require.NotContains(t, err.Error(), "secret")
			continue
		}
		require.NoError(t, err, tc.conf)
		require.Equal(t, tc.uri, db.URI)
		require.Equal(t, tc.via, db.Via)
		require.NoError(t, options.Client().ApplyURI(db.URI).Validate())
	}
}

func TestMessagingURL(t *testing.T) {
	for _, password := range []string{"simple", `'"`, "@/:", "$$x$(y)", "100%", "a b+c&d=e", "ä€", "#?[]{}|\\^`",
		"%41", "-._~"} {
		for _, vhost := range []string{"/", "st2", "a/b c", "%2F"} {
			text := MessagingURL("st2", password, "192.168.0.100", 5672, vhost, "")
			require.NotContains(t, text, "$", "oslo.config would interpolate it")
			u, err := url.Parse(text)
			require.NoError(t, err, text)
			got, ok := u.User.Password()
			require.True(t, ok)
			require.Equal(t, password, got)
			require.Equal(t, "192.168.0.100:5672", u.Host)
			c := read(t, newMachine(t, "node", "[messaging]\nurl = "+text+"\n"))
			login, err := c.Broker()
			require.NoError(t, err)
			require.Equal(t, password, login.Password)
			require.Equal(t, "st2", login.User)
			require.Equal(t, vhost, login.VHost)
			masked := step.NewMasker(password).Mask("url = " + text)
			if len(password) > 3 {
				require.NotContains(t, masked, encode(password))
			}
		}
	}
	require.Equal(t, "amqp://st2:p@[2001:db8::1]:5672/", MessagingURL("st2", "p", "2001:db8::1", 5672, "/", ""))
	require.Equal(t, "amqp://st2:p%40%2F%3A%24@h:5673/a%2Fb", MessagingURL("st2", "p@/:$", "h", 5673, "a/b", ""))
	text := MessagingURL("st2", "p", "h", 5673, "a/b", "10")
	require.Equal(t, "amqp://st2:p@h:5673/a%2Fb?heartbeat=10", text)
	c := read(t, newMachine(t, "node", "[messaging]\nurl = "+text+"\n"))
	login, err := c.Broker()
	require.NoError(t, err)
	require.Equal(t, "a/b", login.VHost, "the query is none of its name")
}

func TestBroker(t *testing.T) {
	for conf, want := range map[string]string{
		"amqp://guest:guest@127.0.0.1:5672/": "127.0.0.1:5672 guest guest /",
		"amqp://guest:guest@127.0.0.1":       "127.0.0.1:5672 guest guest /",
		"amqp://guest:guest@127.0.0.1//":     "127.0.0.1:5672 guest guest /",
		"amqp://u:p%40@[::1]/v":              "[::1]:5672 u p@ v",
		"amqp://u:p$$@h:1/":                  "h:1 u p$ /",
		// What kombu takes (tried with 5.5.4).
		"":                                "127.0.0.1:5672 guest guest /",
		"h":                               "h:5672 guest guest /",
		"amqp://st2:pa^ss|w@127.0.0.1:1/": "127.0.0.1:1 st2 pa^ss|w /",
		"amqp://u:pa%ss@h/":               "h:5672 u pa%ss /",
		"amqp://u:pa%41%zzs@h/%2F":        "h:5672 u paA%zzs /",
		"amqp://u:p@a@H.Example:1/a/b":    "h.example:1 u p@a a/b",
		"amqp://u:p h@localhost/":         "127.0.0.1:5672 u p h /",
		"amqp://h/v?heartbeat=10":         "h:5672 guest guest v",
		"amqps://u:p@h/":                  "h:5671 u p /",
		"amqp://h?ssl=true":               "h:5671 guest guest /",
		"amqp://u:$${x}@h/":               "h:5672 u ${x} /",
		"amqp://u:secret#x@h/":            "error",
		"amqp://u:secret/x@h/":            "error",
		"amqp://u:secret@h:x/":            "error",
		"redis://u:secret@h/":             "error",
	} {
		login, err := read(t, newMachine(t, "node", "[messaging]\nurl = "+conf+"\n")).Broker()
		if want == "error" {
			require.ErrorContains(t, err, "/etc/st2/st2.conf:2: [messaging] url is not a URL", conf)
			require.NotContains(t, err.Error(), "secret")
			continue
		}
		require.NoError(t, err, conf)
		require.Equal(t, want, strings.Join([]string{login.Addr, login.User, login.Password, login.VHost}, " "))
	}
}

func TestReadConf(t *testing.T) {
	_, err := ReadConf(t.Context(), newMachine(t, "node", ""))
	requireFault(t, err, fault.ExitPreflight, "missing")
	_, err = ReadConf(t.Context(), newMachine(t, "node", "[database]\nhost = x\n= y\n"))
	requireFault(t, err, fault.ExitPreflight, "unparsable")
	require.ErrorContains(t, err, "node: /etc/st2/st2.conf: line 3")
}

// testdata/*.txt: the secondary's st2.conf, the primary's, and what the
// secondary's becomes, parted by lines of five =.
func TestSecondaryGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			parts := bytes.SplitN(text, []byte("=====\n"), 3)
			require.GreaterOrEqual(t, len(parts), 2)
			secondary := newMachine(t, "192.168.0.101", string(parts[0]))
			primary := newMachine(t, "192.168.0.100", string(parts[1]))
			s := &Configure{Role: RoleSecondary, PrimaryAddress: "192.168.0.100", Primary: primary, Restart: Later,
				KeepSensors: strings.Contains(file, "keep_sensors"),
				Broker:      Broker{User: "st2", Password: "p@/:$%", VHost: "/", Port: 5672, Heartbeat: 10}}
			changes, err := s.Plan(t.Context(), secondary)
			require.NoError(t, err)
			require.Len(t, changes, 2)
			require.NoError(t, changes[0].Apply(t.Context(), secondary))
			require.True(t, changes[1].(step.Activator).Postponed())
			got, err := os.ReadFile(secondary.root + ConfPath)
			require.NoError(t, err)
			if *update {
				require.NoError(t, os.WriteFile(file,
					bytes.Join([][]byte{parts[0], parts[1], got}, []byte("=====\n")), 0o644))
				return
			}
			require.Equal(t, string(parts[2]), string(got))
			changes, err = s.Plan(t.Context(), secondary)
			require.NoError(t, err)
			require.Empty(t, changes, "a second run changes nothing")
			same, err := os.ReadFile(primary.root + ConfPath)
			require.NoError(t, err)
			require.Equal(t, string(parts[1]), string(same))
		})
	}
}

// What people wrote in a URL counts more than the setting, the secondary's
// own more than the primary's; what kombu cannot read says nothing.
func TestHeartbeat(t *testing.T) {
	for _, tc := range []struct {
		own, primary string
		setting      int
		want, kept   string
	}{
		{"amqp://h/", "amqp://h/", 10, "?heartbeat=10", ""},
		{"amqp://h/", "amqp://h/", 0, "", ""},
		{"amqp://h/?heartbeat=10", "amqp://h/", 10, "?heartbeat=10", ""},
		{"amqp://h/?heartbeat=0", "amqp://h/", 10, "?heartbeat=0", "heartbeat=0"},
		{"amqp://h/?ssl=false&heartbeat=7.5", "amqp://h/?heartbeat=30", 10, "?heartbeat=7.5",
			"(192.168.0.101) has heartbeat=7.5"},
		{"amqp://h/", "amqp://h/v?heartbeat=30&heartbeat=31", 10, "?heartbeat=31", "(192.168.0.100) has heartbeat=31"},
		{"amqp://h/", "amqp://h/v?heartbeat=30", 0, "?heartbeat=30", "the setting heartbeat is 0"},
		{"amqp://h/?heartbeat=soon", "amqp://h/?heartbeat=", 10, "?heartbeat=10", ""},
		{"nonsense://", "amqp://h/", 10, "?heartbeat=10", ""},
		{"amqp://h/\ncluster_urls = amqp://a/?heartbeat=5, amqp://b/", "amqp://h/", 10, "?heartbeat=5",
			"[messaging] cluster_urls of /etc/st2/st2.conf (192.168.0.101) has heartbeat=5"},
	} {
		t.Run(tc.own, func(t *testing.T) {
			secondary := newMachine(t, "192.168.0.101", "[messaging]\nurl = "+tc.own+"\n")
			primary := newMachine(t, "192.168.0.100", "[messaging]\nurl = "+tc.primary+"\n")
			s := &Configure{Role: RoleSecondary, PrimaryAddress: "192.168.0.100", Primary: primary, Restart: Later,
				Broker: Broker{User: "st2", Password: "x", VHost: "/", Port: 5672, Heartbeat: tc.setting}}
			findings, err := s.Check(t.Context(), secondary)
			require.NoError(t, err)
			if tc.kept == "" {
				require.Empty(t, findings)
			} else {
				require.Len(t, findings, 1)
				require.Equal(t, step.Warning, findings[0].Severity)
				require.Contains(t, findings[0].Message, tc.kept)
			}
			changes, err := s.Plan(t.Context(), secondary)
			require.NoError(t, err)
			require.NoError(t, changes[0].Apply(t.Context(), secondary))
			got, _ := read(t, secondary).Get("messaging", "url")
			require.Equal(t, "amqp://st2:x@192.168.0.100:5672/"+tc.want, got)
			changes, err = s.Plan(t.Context(), secondary)
			require.NoError(t, err)
			require.Empty(t, changes, "what was written is kept")
		})
	}
}

// A replica set gets the time that an election takes, unless people have said how long.
func TestConnectionTimeout(t *testing.T) {
	for _, tc := range []struct{ primary, secondary, onPrimary, onSecondary string }{
		{"host = 127.0.0.1", "", "", ""},
		{"host = mongodb://127.0.0.1/st2?authSource=st2", "", "", ""},
		{"host = mongodb://127.0.0.1/st2?replicaSet=", "", "", ""},
		{"host = mongodb://127.0.0.1/st2?authSource=st2&replicaset=rs0", "", "15000", "15000"},
		{"host = mongodb://127.0.0.1/?replicaSet=rs0\nconnection_timeout = 5000", "", "5000", "5000"},
		{"host = mongodb://127.0.0.1/?replicaSet=rs0\nconnection_timeout = 5000", "connection_timeout = 4000", "5000",
			"4000"},
		{"host = mongodb://127.0.0.1/?replicaSet=rs0", "connection_timeout = 4000", "15000", "4000"},
	} {
		primary := newMachine(t, "192.168.0.100", "[database]\n"+tc.primary+"\n")
		secondary := newMachine(t, "192.168.0.101", "[database]\n"+tc.secondary+"\n")
		for role, m := range map[string]*machine{RoleSecondary: secondary, RolePrimary: primary} {
			s := &Configure{Role: role, PrimaryAddress: "192.168.0.100", Primary: primary, Restart: Later,
				Broker: Broker{User: "st2", Password: "x", VHost: "/", Port: 5672}}
			changes, err := s.Plan(t.Context(), m)
			require.NoError(t, err)
			require.NoError(t, changes[0].Apply(t.Context(), m))
			changes, err = s.Plan(t.Context(), m)
			require.NoError(t, err)
			require.Empty(t, changes)
		}
		got, _ := read(t, primary).Get("database", "connection_timeout")
		require.Equal(t, tc.onPrimary, got, tc.primary)
		got, _ = read(t, secondary).Get("database", "connection_timeout")
		require.Equal(t, tc.onSecondary, got, tc.primary)
	}
}

func TestPrimary(t *testing.T) {
	m := newMachine(t, "192.168.0.100",
		"[database]\n# here\nhost = mongodb://u:p@127.0.0.1/st2\nusername = u\n[messaging]\n"+
			"url = amqp://guest:guest@127.0.0.1:5672/\n")
	s := &Configure{Role: RolePrimary, PrimaryAddress: "192.168.0.100", Restart: Later}
	changes, err := s.Plan(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, "--- a/etc/st2/st2.conf\n+++ b/etc/st2/st2.conf\n@@ -3 +3 @@\n"+
		"-host = mongodb://u:p@127.0.0.1/st2\n+host = mongodb://u:p@192.168.0.100/st2\n", changes[0].Diff())
	findings, err := s.Check(t.Context(), m)
	require.NoError(t, err)
	require.Empty(t, findings)

	m.put(t, ConfPath, "[messaging]\ncluster_urls = amqp://a,amqp://b\n")
	findings, err = s.Check(t.Context(), m)
	require.NoError(t, err)
	require.Len(t, findings, 1)
	require.Contains(t, findings[0].Message, "/etc/st2/st2.conf:2")
	s.Role = RoleSecondary
	findings, err = s.Check(t.Context(), m)
	require.NoError(t, err)
	require.Empty(t, findings)

	s.Role = "arbiter"
	_, err = s.Plan(t.Context(), m)
	requireFault(t, err, fault.ExitUsage, "usage")
}

func TestRestart(t *testing.T) {
	testenv.NeedsRoot(t)
	ctx := t.Context()
	refused := &host.ExitError{Program: "systemctl is-active", Code: 3}
	for _, tc := range []struct {
		name        string
		when        When
		local       bool
		needed      bool
		owed        bool
		scheduled   bool
		want        When // empty: none
		diff        string
		afterwards  bool // still owed
		mentionedIn string
	}{
		{name: "nothing", when: Auto},
		{name: "remote", when: Auto, needed: true, want: Inline, diff: "st2ctl restart",
			mentionedIn: "/usr/bin/st2ctl restart"},
		{name: "remote, owed", when: Inline, owed: true, want: Inline, mentionedIn: "/usr/bin/st2ctl restart"},
		{name: "local", when: Auto, local: true, needed: true, want: Deferred, afterwards: true,
			diff: "by the unit st2ha-restart-st2", mentionedIn: "systemd-run"},
		{name: "local, inline", when: Inline, local: true, needed: true, want: Inline,
			mentionedIn: "/usr/bin/st2ctl restart"},
		{name: "local, owed and scheduled", when: Auto, local: true, owed: true, scheduled: true},
		{name: "local, owed and forgotten", when: Auto, local: true, owed: true, want: Deferred, afterwards: true,
			mentionedIn: "systemd-run"},
		{name: "later", when: Later, needed: true, want: Later, afterwards: true, diff: "by the step restart_st2"},
		{name: "later, owed", when: Later, owed: true},
		{name: "others", when: Others, owed: true, want: Inline, mentionedIn: "/usr/bin/st2ctl restart"},
		{name: "others, not this one", when: Others, local: true, owed: true},
		{name: "others, this one changed", when: Others, local: true, needed: true, want: Later, afterwards: true,
			diff: "by the step restart_st2"},
		{name: "deferred elsewhere", when: Deferred, needed: true, want: Deferred, afterwards: true,
			mentionedIn: "systemd-run"},
		{name: "idle elsewhere", when: Idle, owed: true, want: Inline, mentionedIn: "/usr/bin/st2ctl restart"},
		{name: "idle here", when: Idle, local: true, needed: true, want: Later, afterwards: true,
			diff: "by the step restart_st2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t, "node", "")
			m.local = tc.local
			m.run = func(argv string) (string, error) {
				if strings.Contains(argv, "is-active") && !tc.scheduled {
					return "", refused
				}
				return "", nil
			}
			release, err := step.Lock(ctx, m, "x", 0)
			require.NoError(t, err)
			defer release()
			if tc.owed {
				require.NoError(t, step.Owe(ctx, m, owes))
			}
			c, err := planRestart(ctx, m, tc.when, tc.needed, "r")
			require.NoError(t, err)
			if tc.want == "" {
				require.Nil(t, c)
				return
			}
			require.NotNil(t, c)
			require.Equal(t, tc.want, c.When)
			require.Contains(t, c.Diff(), tc.diff)
			require.NoError(t, step.Owe(ctx, m, owes))
			m.ran = nil
			require.NoError(t, c.Apply(ctx, m))
			require.Contains(t, strings.Join(m.ran, "\n"), tc.mentionedIn)
			pending, err := Pending(ctx, m)
			require.NoError(t, err)
			require.Equal(t, tc.afterwards, pending)
		})
	}
	m := newMachine(t, "node", "")
	m.run = func(string) (string, error) { return "", errors.New("no") }
	requireFault(t, (&Restart{When: Inline}).Apply(ctx, m), fault.ExitFailed, "restart")
	_, err := ParseWhen("tomorrow")
	requireFault(t, err, fault.ExitUsage, "usage")
}

func TestRestarter(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t, "node", "")
	s := &Restarter{Restart: Inline}
	findings, err := s.Check(ctx, m)
	require.NoError(t, err)
	require.Len(t, findings, 1)
	m.put(t, st2ctl, "")
	findings, err = s.Check(ctx, m)
	require.NoError(t, err)
	require.Empty(t, findings)
	changes, err := s.Plan(ctx, m)
	require.NoError(t, err)
	require.Empty(t, changes)
	s.Force = true
	changes, err = s.Plan(ctx, m)
	require.NoError(t, err)
	require.Len(t, changes, 1)
}

const tcp4 = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 6400A8C0:6989 00000000:0000 0A 00000000:00000000 00:00000000 00000000   112        0 21 1 0 100 0 0 10 0
   1: 6400A8C0:6989 6500A8C0:D431 01 00000000:00000000 00:00000000 00000000   112        0 22 1 0 20 4 30 10 -1
   2: 6400A8C0:0016 6600A8C0:D431 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1
`

const tcp6 = `  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 0000000000000000FFFF00006400A8C0:1628 0000000000000000FFFF00006500A8C0:A3B2 01 00000000:00000000
   1: B80D0120000000000000000064000000:1628 B80D0120000000000000000065000000:A3B2 01 00000000:00000000
   2: broken
   3: zz:1628 zz:1 01 0
`

func TestEstablished(t *testing.T) {
	m := newMachine(t, "192.168.0.100", "")
	peers, err := established(t.Context(), m)
	require.NoError(t, err)
	require.Empty(t, peers)
	m.put(t, "/proc/net/tcp", tcp4)
	m.put(t, "/proc/net/tcp6", tcp6)
	peers, err = established(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, map[string]bool{
		"192.168.0.101 27017": true, // IPv4
		"192.168.0.101 5672":  true, // IPv4-mapped
		"2001:db8::65 5672":   true,
	}, peers)
}

func TestSeen(t *testing.T) {
	ctx := t.Context()
	primary := newMachine(t, "192.168.0.100", "")
	primary.put(t, "/proc/net/tcp", tcp4)
	primary.put(t, "/proc/net/tcp6", tcp6)
	primary.run = func(argv string) (string, error) {
		if argv == "getent ahosts node2.example" {
			return "192.168.0.7     STREAM node2.example\n192.168.0.101   STREAM\n", nil
		}
		return "", errors.New("no such name")
	}
	s := &Verifier{Primary: primary}
	for _, name := range []string{"192.168.0.101", "node2.example"} {
		require.NoError(t, s.seen(ctx, newMachine(t, name, ""), "192.168.0.100:27017", "192.168.0.100:5672"), name)
	}
	require.NoError(t, s.seen(ctx, newMachine(t, "2001:DB8:0::65", ""), "192.168.0.100:5672"))
	require.ErrorContains(t, s.seen(ctx, newMachine(t, "nowhere", ""), "192.168.0.100:5672"), "look up nowhere")
	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	err := s.seen(ctx, newMachine(t, "192.168.0.102", ""), "192.168.0.100:5672")
	requireFault(t, err, fault.ExitFailed, "connections")
	require.ErrorContains(t, err, "192.168.0.100 has no connection from it to 192.168.0.100:5672")
}

func TestValidate(t *testing.T) {
	for _, ok := range []string{"", `'"@/:$%`, "ä €"} {
		require.NoError(t, ValidateSecret("x", ok))
	}
	for _, bad := range []string{"a\nb", "\t", "\x00", "\x7f", "a\r"} {
		err := ValidateSecret("rabbitmq_password", bad)
		requireFault(t, err, fault.ExitUsage, "usage")
		require.NotContains(t, err.Error(), bad)
	}
}

func TestEverySensor(t *testing.T) {
	for provider, want := range map[string]bool{
		"": true, "name:default": true, " name : Default ": true, "x:1": true,
		"name:hash, hash_ranges:0..0": false, "hash_ranges:MIN..MAX, name:hash": false, "name:kvstore": false,
		"name:file, partition_file:/x": false,
	} {
		require.Equal(t, want, everySensor(provider), provider)
	}
}

// Without [messaging] url it is StackStorm's default; cluster_urls replaces it.
func TestBrokers(t *testing.T) {
	for conf, want := range map[string]string{
		"":               "127.0.0.1:5672 false",
		"x = y":          "127.0.0.1:5672 false",
		"ssl = True":     "127.0.0.1:5672 true",
		"cluster_urls =": "127.0.0.1:5672 false",
		"url = amqp://a/\ncluster_urls = amqp://b/":                     "b:5672 false",
		"cluster_urls = amqp://b/ , amqp://c:1/,":                       "b:5672 false, c:1 false",
		"cluster_urls = amqp://b/?ssl=true, amqp://c/":                  "b:5671 true, c:5671 true",
		"cluster_urls = amqps://b/, amqp://c/":                          "b:5671 true, c:5672 false",
		"url = amqp://b/\nssl_cert_reqs = required":                     "b:5672 false",
		"url = amqp://b/\nssl_ca_certs = /ca.pem\nssl_cert_reqs = none": "b:5671 true unverified",
		"url = amqp://b/?ssl=false":                                     "b:5671 true", // to Python a text is true
	} {
		all, err := read(t, newMachine(t, "node", "[messaging]\n"+conf+"\n")).Brokers()
		require.NoError(t, err, conf)
		var got []string
		for _, l := range all {
			text := fmt.Sprint(l.Addr, " ", l.TLS != nil)
			if l.TLS != nil && !l.TLS.Verify {
				text += " unverified"
			}
			got = append(got, text)
		}
		require.Equal(t, want, strings.Join(got, ", "), conf)
	}
	_, err := read(t, newMachine(t, "node", "[messaging]\nssl = maybe\n")).Brokers()
	require.ErrorContains(t, err, `/etc/st2/st2.conf:2: [messaging] ssl is "maybe", neither true nor false`)
}

// The settings of both generations (st2common/models/db/__init__.py).
func TestDatabaseTLS(t *testing.T) {
	for conf, want := range map[string]string{
		"":           "none",
		"ssl = True": "ca= cert= key= verify=true name=true",
		"tls = 1":    "ca= cert= key= verify=true name=true",
		"ssl = True\nssl_ca_certs = /etc/ssl/mongo-ca.pem\nssl_match_hostname = False": "ca=/etc/ssl/mongo-ca.pem " +
			"cert= key= verify=true name=false",
		"tls = False\nssl = True":             "none",
		"tls_ca_file = /a\nssl_ca_certs = /b": "ca=/a cert= key= verify=true name=true",
		"ssl_cert_reqs = none\nssl = True":    "ca= cert= key= verify=false name=false",
		"ssl_cert_reqs = required":            "none",
		"ssl_certfile = /c\nssl_keyfile = /k": "ca= cert=/c key=/k verify=true name=true",
		"tls_certificate_key_file = /c\ntls_allow_invalid_hostnames = True\nssl_match_hostname = True": "ca= cert=/c key= verify=true name=false",
		"tls = True\ntls_allow_invalid_certificates = True\nssl_cert_reqs = required":                  "ca= cert= key= verify=false name=false",
		"authentication_mechanism = SCRAM-SHA-256":                                                     "ca= cert= key= verify=true name=true",
		"host = mongodb://h/?tls=true":                                                                 "none",
	} {
		db, err := read(t, newMachine(t, "node", "[database]\n"+conf+"\n")).Database()
		require.NoError(t, err, conf)
		got := "none"
		if s := db.TLS; s != nil {
			got = fmt.Sprintf("ca=%s cert=%s key=%s verify=%v name=%v", s.CA, s.Cert, s.Key, s.Verify, s.Hostname)
		}
		require.Equal(t, want, got, conf)
	}
}

// What the primary's settings of TLS name has to be on the secondary as well.
func TestSecondaryCertificates(t *testing.T) {
	secondary := newMachine(t, "192.168.0.101", "[database]\nhost = x\n")
	primary := newMachine(t, "192.168.0.100",
		"[database]\ntls_ca_file = /etc/mongo.pem\n[messaging]\nurl = amqps://127.0.0.1\nssl_ca_certs = /etc/ca.pem\n")
	secondary.put(t, "/etc/mongo.pem", "")
	s := &Configure{Role: RoleSecondary, PrimaryAddress: "192.168.0.100", Primary: primary, Broker: Broker{Port: 5671}}
	findings, err := s.Check(t.Context(), secondary)
	require.NoError(t, err)
	require.Len(t, findings, 1)
	require.Equal(t, step.Error, findings[0].Severity)
	require.Equal(t, "/etc/ca.pem does not exist here, and [messaging] of the primary's /etc/st2/st2.conf names it",
		findings[0].Message)
	s.Broker.Port = 5672 // another listener, without TLS
	findings, err = s.Check(t.Context(), secondary)
	require.NoError(t, err)
	require.Empty(t, findings)
}

// Where no port is given, the secondary uses the one that the primary's RabbitMQ has.
func TestSecondaryBrokerPort(t *testing.T) {
	primary := newMachine(t, "192.168.0.100", "[database]\nhost = 127.0.0.1\n")
	require.NoError(t, os.MkdirAll(primary.root+"/etc/rabbitmq", 0o755))
	primary.put(t, "/etc/rabbitmq/rabbitmq.conf", "listeners.tcp.default = 5673\n")
	secondary := newMachine(t, "192.168.0.101", "[messaging]\nurl = amqp://127.0.0.1\n")
	s := &Configure{Role: RoleSecondary, PrimaryAddress: "192.168.0.100", Primary: primary, Restart: Later,
		Broker: Broker{User: "st2", Password: "x", VHost: "/"}}
	changes, err := s.Plan(t.Context(), secondary)
	require.NoError(t, err)
	require.NoError(t, changes[0].Apply(t.Context(), secondary))
	got, err := os.ReadFile(secondary.root + ConfPath)
	require.NoError(t, err)
	require.Contains(t, string(got), "url = amqp://st2:x@192.168.0.100:5673/\n")
}

// What mongod shows must be for the primary's address, at which it will be asked.
func TestDatabaseCertificate(t *testing.T) {
	c := backendtest.NewCertificates(t, t.TempDir())
	for _, tc := range []struct {
		name, address, more string
		want                string
	}{
		{"its name", "127.0.0.1", "ssl = True\nssl_ca_certs = " + c.CA, ""},
		{"another name", "192.168.0.100", "ssl = True\nssl_ca_certs = " + c.CA,
			"certificate is valid for 127.0.0.1, not 192.168.0.100"},
		{"another name, and 3.9's options", "192.168.0.100", "tls = True\ntls_ca_file = " + c.CA, "not 192.168.0.100"},
		{"another name, which nobody asks for", "192.168.0.100",
			"ssl = True\nssl_match_hostname = False\nssl_ca_certs = " + c.CA, ""},
		{"another authority", "127.0.0.1", "ssl = True\nssl_ca_certs = " + c.Other, "its certificate is not trusted"},
		{"asked without TLS", "127.0.0.1", "", "it speaks TLS, and the settings ask without"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			addr := c.Secured(t, "127.0.0.1:1", false) // nobody is behind it
			host, port, err := net.SplitHostPort(addr)
			require.NoError(t, err)
			m := newMachine(t, tc.address, "[database]\nhost = "+host+"\nport = "+port+"\n"+tc.more+"\n")
			// Certificates lie outside of the node's root.
			for _, file := range []string{c.CA, c.Other} {
				data, err := os.ReadFile(file)
				require.NoError(t, err)
				require.NoError(t, os.MkdirAll(filepath.Dir(m.root+file), 0o755))
				m.put(t, file, string(data))
			}
			findings, err := (&Configure{Role: RolePrimary, PrimaryAddress: tc.address}).Check(t.Context(), m)
			require.NoError(t, err)
			if tc.want == "" {
				require.Empty(t, findings)
				return
			}
			require.Len(t, findings, 1)
			require.Equal(t, step.Error, findings[0].Severity)
			require.Contains(t, findings[0].Message, tc.want)
		})
	}
}
