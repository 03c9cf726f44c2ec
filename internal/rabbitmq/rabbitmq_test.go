package rabbitmq

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

// machine is a host below a temporary root; its rabbitmqctl is canned.
type machine struct {
	*host.Local
	root string
	ran  []string // programs with, after a <, what they were given on stdin
	out  string
	eval string // what "rabbitmqctl eval" answers
	err  error

	authErr error // of authenticate_user
}

func (m *machine) Run(_ context.Context, stdin []byte, argv ...string) ([]byte, error) {
	line := strings.Join(argv, " ")
	if stdin != nil {
		line += " < " + string(stdin)
	}
	m.ran = append(m.ran, line)
	if len(argv) > 2 && argv[2] == "authenticate_user" {
		return nil, m.authErr
	}
	if strings.Contains(line, " eval ") {
		return []byte(m.eval), m.err
	}
	return []byte(m.out), m.err
}

func newMachine(t *testing.T, files map[string]string) *machine {
	t.Helper()
	m := &machine{root: t.TempDir()}
	m.Local = host.NewLocalAt("primary", m.root)
	require.NoError(t, os.MkdirAll(filepath.Join(m.root, "etc/rabbitmq"), 0o755))
	for name, data := range files {
		require.NoError(t, os.WriteFile(m.root+name, []byte(data), 0o644))
	}
	return m
}

func requireFault(t *testing.T, err error, exit int, code string) {
	t.Helper()
	require.Error(t, err)
	f := fault.Of(err)
	require.Equal(t, fmt.Sprint(exit, " ", code), fmt.Sprint(f.Exit, " ", f.Code), err.Error())
}

const address = "192.168.0.100"

const (
	confPath    = mainPath + ".conf"
	classicPath = mainPath + ".config"
)

var all = Permissions{".*", ".*", ".*"}

func configure() *Configure {
	return &Configure{Address: address, Port: 5672, User: "st2", Password: "p@/ w", VHost: "/", Permissions: all}
}

func TestListener(t *testing.T) {
	testenv.NeedsRoot(t)
	const none = "-" // the file is not there
	for _, tc := range []struct {
		name              string
		env, conf         string
		classic           bool
		wantEnv, wantConf string // empty: as it was
		err               string
	}{
		{name: "all interfaces", env: none, conf: none},
		{name: "empty files", env: "", conf: ""},
		{name: "env to loopback", env: "NODENAME=rabbit@node\nNODE_IP_ADDRESS=127.0.0.1\n", conf: none,
			wantEnv:  "NODENAME=rabbit@node\n#NODE_IP_ADDRESS=127.0.0.1\n",
			wantConf: "listeners.tcp.local = 127.0.0.1:5672\nlisteners.tcp.st2ha = 192.168.0.100:5672\n"},
		{name: "env to loopback by the long name", env: "export RABBITMQ_NODE_IP_ADDRESS=\"localhost\"\n",
			conf:    "# mine\nvm_memory_high_watermark.relative = 0.4\n",
			wantEnv: "#export RABBITMQ_NODE_IP_ADDRESS=\"localhost\"\n",
			wantConf: "# mine\nvm_memory_high_watermark.relative = 0.4\n" +
				"listeners.tcp.local = 127.0.0.1:5672\nlisteners.tcp.st2ha = 192.168.0.100:5672\n"},
		{name: "env to IPv6 loopback", env: "NODE_IP_ADDRESS=::1\n", conf: none, wantEnv: "#NODE_IP_ADDRESS=::1\n",
			wantConf: "listeners.tcp.local = 127.0.0.1:5672\nlisteners.tcp.st2ha = 192.168.0.100:5672\n"},
		{name: "env to all", env: "NODE_IP_ADDRESS=0.0.0.0\n", conf: none},
		{name: "env to the address", env: "NODE_IP_ADDRESS=192.168.0.100\n", conf: none},
		{name: "env to nothing", env: "NODE_IP_ADDRESS=\n", conf: none},
		{name: "env to another", env: "A=1\nNODE_IP_ADDRESS=10.0.0.1\n", conf: none,
			err: "/etc/rabbitmq/rabbitmq-env.conf:2: NODE_IP_ADDRESS makes RabbitMQ listen on 10.0.0.1"},
		{name: "conf to loopback", env: none, conf: "listeners.tcp.1 = 127.0.0.1:5672\n",
			wantConf: "listeners.tcp.1 = 127.0.0.1:5672\nlisteners.tcp.st2ha = 192.168.0.100:5672\n"},
		{name: "conf to a port", env: none, conf: "listeners.tcp.default = 5672\n"},
		{name: "conf to all", env: none, conf: "listeners.tcp.default = 0.0.0.0:5672\n"},
		{name: "conf to all, IPv6", env: none, conf: "listeners.tcp.default = :::5672\n"},
		{name: "conf to all, IPv6 in brackets", env: none, conf: "listeners.tcp.default = [::]:5672\n"},
		{name: "conf to loopback, as in the networking guide", env: none,
			conf: "listeners.tcp.local    = 127.0.0.1:5672\nlisteners.tcp.local_v6 = ::1:5672\n",
			wantConf: "listeners.tcp.local    = 127.0.0.1:5672\n" +
				"listeners.tcp.local_v6 = ::1:5672\nlisteners.tcp.st2ha = 192.168.0.100:5672\n"},
		{name: "conf to the address", env: none,
			conf: "listeners.tcp.local = 127.0.0.1:5672\nlisteners.tcp.x = 192.168.0.100:5672\n"},
		{name: "both", env: "NODE_IP_ADDRESS=127.0.0.1\n", conf: "listeners.tcp.1 = 127.0.0.1:5672\n",
			wantEnv:  "#NODE_IP_ADDRESS=127.0.0.1\n",
			wantConf: "listeners.tcp.1 = 127.0.0.1:5672\nlisteners.tcp.st2ha = 192.168.0.100:5672\n"},
		{name: "TLS only", env: none, conf: "listeners.ssl.default = 5671\nlisteners.tcp = none\n",
			err: "/etc/rabbitmq/rabbitmq.conf:2: listeners.tcp = none"},
		{name: "env to another port", env: "NODE_PORT=5673\n", conf: none,
			err: "/etc/rabbitmq/rabbitmq-env.conf:1: NODE_PORT makes RabbitMQ listen on port 5673, not 5672"},
		{name: "env to another port by the long name", env: "NODE_IP_ADDRESS=127.0.0.1\nRABBITMQ_NODE_PORT=5673\n",
			conf: none, err: "rabbitmq-env.conf:2: RABBITMQ_NODE_PORT makes"},
		{name: "env to the port", env: "NODE_IP_ADDRESS=127.0.0.1\nNODE_PORT=5672\n", conf: none,
			wantEnv:  "#NODE_IP_ADDRESS=127.0.0.1\nNODE_PORT=5672\n",
			wantConf: "listeners.tcp.local = 127.0.0.1:5672\nlisteners.tcp.st2ha = 192.168.0.100:5672\n"},
		{name: "classic, to loopback", env: "NODE_IP_ADDRESS=127.0.0.1\n", conf: none, classic: true,
			err: "in Erlang terms"},
		{name: "classic, all interfaces", env: none, conf: none, classic: true},
		{name: "env is a script", env: "if true; then NODE_IP_ADDRESS=127.0.0.1; fi\n", conf: none,
			err: "/etc/rabbitmq/rabbitmq-env.conf: line 1"},
		{name: "conf is broken", env: none, conf: "\nlisteners.tcp.1\n", err: "/etc/rabbitmq/rabbitmq.conf: line 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			files := map[string]string{}
			for name, data := range map[string]string{envPath: tc.env, confPath: tc.conf} {
				if data != none {
					files[name] = data
				}
			}
			if tc.classic {
				files[classicPath] = "[]."
			}
			m := newMachine(t, files)
			changes, err := configure().listener(t.Context(), m)
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				require.Equal(t, fault.ExitPreflight, fault.Of(err).Exit)
				return
			}
			require.NoError(t, err)
			want := map[string]string{}
			if tc.wantEnv != "" {
				want[envPath] = tc.wantEnv
			}
			if tc.wantConf != "" {
				want[confPath] = tc.wantConf
			}
			got := map[string]string{}
			for i, c := range changes {
				require.NoError(t, c.Apply(t.Context(), m))
				rest, err := configure().listener(t.Context(), m)
				require.NoError(t, err)
				require.Len(t, rest, len(changes)-i-1, "a run that is killed here is gone on with")
				data, err := os.ReadFile(m.root + c.Target())
				require.NoError(t, err)
				got[c.Target()] = string(data)
			}
			require.Equal(t, want, got)
			changes, err = configure().listener(t.Context(), m)
			require.NoError(t, err)
			require.Empty(t, changes, "planned again")
		})
	}
}

func TestListenerOnIPv6(t *testing.T) {
	m := newMachine(t, map[string]string{confPath: "listeners.tcp.1 = 127.0.0.1:5672\n"})
	s := configure()
	s.Address = "2001:db8::64"
	changes, err := s.listener(t.Context(), m)
	require.NoError(t, err)
	require.Len(t, changes, 1)
	require.Contains(t, changes[0].Diff(), "+listeners.tcp.st2ha = [2001:db8::64]:5672")
	require.NoError(t, changes[0].Apply(t.Context(), m))
	data, err := os.ReadFile(m.root + confPath)
	require.NoError(t, err)
	_, err = confedit.ParseINI(data, confedit.Rabbit)
	require.NoError(t, err)
}

func hashOf(algorithm, password string) string {
	salt := []byte{1, 2, 3, 255}
	salted := append(append([]byte{}, salt...), password...)
	var sum []byte
	if algorithm == "rabbit_password_hashing_sha512" {
		s := sha512.Sum512(salted)
		sum = s[:]
	} else {
		s := sha256.Sum256(salted)
		sum = s[:]
	}
	return base64.StdEncoding.EncodeToString(append(salt, sum...))
}

func TestAccepts(t *testing.T) {
	for _, algorithm := range []string{"rabbit_password_hashing_sha256", "rabbit_password_hashing_sha512", ""} {
		for _, password := range []string{"simple", `'"@/:$%`, "ä"} {
			a := account{Hash: hashOf(algorithm, password), Algorithm: algorithm}
			require.True(t, a.accepts(password))
			require.False(t, a.accepts(password+" "))
			require.False(t, a.accepts(""))
		}
	}
	// The example of RabbitMQ's passwords guide: test12 with the salt 908DC60A.
	guide := account{Hash: "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR",
		Algorithm: "rabbit_password_hashing_sha256"}
	require.True(t, guide.accepts("test12"))
	require.False(t, guide.accepts("test13"))
	for _, hash := range []string{"", "AA==", "not base64"} {
		require.False(t, account{Hash: hash}.accepts(""), hash)
	}
}

func TestAccess(t *testing.T) {
	user := func(name, password string) string {
		return fmt.Sprintf(`{"name":%q,"password_hash":%q,"hashing_algorithm":"rabbit_password_hashing_sha256","tags":""}`, name, hashOf("", password))
	}
	const granted = `{"user":"st2","vhost":"/","configure":".*","write":".*","read":".*"}`
	for _, tc := range []struct {
		name   string
		defs   string
		vhost  string
		update bool
		want   []string
		err    string
	}{
		{name: "nothing is there",
			defs: `{"users":[` + user("guest", "guest") + `],"vhosts":[{"name":"/"}],"permissions":[]}`,
			want: []string{"rabbitmq_user st2: + user st2", `rabbitmq_permissions st2 on /: + ".*" ".*" ".*"`}},
		{name: "with words before it",
			defs: "Exporting definitions in JSON to STDOUT ...\n" +
				`{"users":[],"vhosts":[{"name":"/"}],"permissions":[]}`,
			want: []string{"rabbitmq_user st2: + user st2", `rabbitmq_permissions st2 on /: + ".*" ".*" ".*"`}},
		{name: "all is there", defs: `{"users":[` + user("st2",
			"p@/ w") + `],"vhosts":[{"name":"/"}],"permissions":[` + granted + `]}`},
		{name: "fewer permissions",
			defs: `{"users":[` + user("st2",
				"p@/ w") + `],"vhosts":[{"name":"/"}],"permissions":[{"user":"st2","vhost":"/","configure":"","write":".*","read":".*"}]}`,
			want: []string{"rabbitmq_permissions st2 on /: - \"\" \".*\" \".*\"\n+ \".*\" \".*\" \".*\""}},
		{name: "others' permissions",
			defs: `{"users":[` + user("st2",
				"p@/ w") + `],"vhosts":[{"name":"/"}],"permissions":[{"user":"st2","vhost":"x","configure":"","write":"","read":""},{"user":"u","vhost":"/","configure":"","write":"","read":""}]}`,
			want: []string{`rabbitmq_permissions st2 on /: + ".*" ".*" ".*"`}},
		{name: "another vhost", vhost: "st2",
			defs: `{"users":[` + user("st2", "p@/ w") + `],"vhosts":[{"name":"/"}],"permissions":[` + granted + `]}`,
			want: []string{"rabbitmq_vhost st2: + vhost st2", `rabbitmq_permissions st2 on st2: + ".*" ".*" ".*"`}},
		{name: "another password",
			defs: `{"users":[` + user("st2", "other") + `],"vhosts":[{"name":"/"}],"permissions":[` + granted + `]}`,
			err:  "primary: RabbitMQ has a user st2 already, with another password"},
		{name: "another password, to be set", update: true,
			defs: `{"users":[` + user("st2", "other") + `],"vhosts":[{"name":"/"}],"permissions":[` + granted + `]}`,
			want: []string{"rabbitmq_password st2: ~ password of user st2"}},
		{name: "no JSON", defs: "Error: unknown command", err: "definitions of RabbitMQ"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t, nil)
			m.out = tc.defs
			s := configure()
			s.UpdatePassword = tc.update
			if tc.vhost != "" {
				s.VHost = tc.vhost
			}
			changes, err := s.access(t.Context(), m)
			if tc.err != "" {
				require.ErrorContains(t, err, tc.err)
				require.NotContains(t, err.Error(), s.Password)
				return
			}
			require.NoError(t, err)
			var got []string
			for _, c := range changes {
				got = append(got, c.Kind()+" "+c.Target()+": "+c.Diff())
				text, err := json.Marshal(c)
				require.NoError(t, err)
				require.NotContains(t, string(text), s.Password, "no secret goes to the journal")
				m.ran = nil
				require.NoError(t, c.Apply(t.Context(), m))
				for _, ran := range m.ran {
					argv, _, _ := strings.Cut(ran, " < ")
					require.NotContains(t, argv, s.Password, "no secret goes to ps")
				}
			}
			require.Equal(t, tc.want, got)
		})
	}
	m := newMachine(t, nil)
	m.err = errors.New("no such node")
	_, err := configure().access(t.Context(), m)
	requireFault(t, err, fault.ExitPreflight, "rabbitmqctl")
}

// The rabbitmqctl of a run that was killed may have added the user meanwhile;
// one that somebody else added, with another password, is not taken for it.
func TestUserAddedMeanwhile(t *testing.T) {
	m := newMachine(t, nil)
	m.err = &host.ExitError{Program: "rabbitmqctl", Code: 70, Stderr: "Error:\nUser \"st2\" already exists"}
	u := &User{Name: "st2", password: "secret"}
	require.NoError(t, u.Apply(t.Context(), m))
	require.Equal(t, "rabbitmqctl --quiet authenticate_user st2 < secret\n", m.ran[1])
	m.authErr = &host.ExitError{Program: "rabbitmqctl", Code: 65, Stderr: "Error: failed to authenticate user"}
	requireFault(t, u.Apply(t.Context(), m), fault.ExitFailed, "rabbitmqctl")
}

// The broker says whether it takes a pattern, and before anything is changed.
func TestJudge(t *testing.T) {
	m := newMachine(t, nil)
	m.out = `{"users":[],"vhosts":[{"name":"/"}],"permissions":[]}`
	s := configure()
	s.Permissions = Permissions{`^(?!amq\.)`, `"`, "ä"}
	m.eval = "[ok,ok,ok]\n"
	changes, err := s.access(t.Context(), m)
	require.NoError(t, err)
	require.Len(t, changes, 2)
	require.Equal(t, "rabbitmqctl --quiet eval [case re:compile(P) of {ok, _} -> ok; {error, {_, At}} -> At end || P "+
		"<- "+
		"[<<94,40,63,33,97,109,113,92,46,41>>, <<34>>, <<195,164>>]].", m.ran[1])
	m.eval = "[ok,3,ok]\n"
	_, err = s.access(t.Context(), m)
	requireFault(t, err, fault.ExitPreflight, "rabbitmq_permission")
	require.ErrorContains(t, err,
		`permission_write "\"" is not a regular expression for RabbitMQ, from its character 3 on`)
	m.eval = "something else"
	_, err = s.access(t.Context(), m)
	require.ErrorContains(t, err, "something else")

	// It is not asked where nothing is to be granted.
	m.out = fmt.Sprintf(`{"users":[{"name":"st2","password_hash":%q}],"vhosts":[{"name":"/"}],"permissions":[{"user":"st2","vhost":"/","configure":%q,"write":%q,"read":%q}]}`,
		hashOf("", s.Password), s.Permissions.Configure, s.Permissions.Write, s.Permissions.Read)
	m.ran = nil
	changes, err = s.access(t.Context(), m)
	require.NoError(t, err)
	require.Empty(t, changes)
	require.Len(t, m.ran, 1)
}

// Undo is called on what the journal gives back, also if it was never applied.
func TestUndo(t *testing.T) {
	ctx := t.Context()
	had := Permissions{"a", "b", "c"}
	old := []byte(`{"name":"st2","password_hash":"x"}`)
	for _, tc := range []struct {
		change, empty step.Change
		image         []byte
		want          string
	}{
		{&VHost{Name: "v"}, &VHost{}, nil, "rabbitmqctl --quiet delete_vhost v"},
		{&User{Name: "st2", password: "secret"}, &User{}, nil, "rabbitmqctl --quiet delete_user st2"},
		{&Password{User: "st2", password: "secret", old: old}, &Password{}, old,
			"rabbitmqctl --quiet import_definitions < {\"users\":[{\"name\":\"st2\",\"password_hash\":\"x\"}]}\n"},
		{&Grant{User: "st2", VHost: "/", Want: all}, &Grant{}, nil, "rabbitmqctl --quiet clear_permissions -p / st2"},
		{&Grant{User: "st2", VHost: "/", Want: all, Had: &had}, &Grant{}, nil,
			"rabbitmqctl --quiet set_permissions -p / st2 a b c"},
	} {
		text, err := json.Marshal(tc.change)
		require.NoError(t, err)
		require.NotContains(t, string(text), "secret")
		require.NoError(t, json.Unmarshal(text, tc.empty))
		if imager, ok := tc.empty.(step.Imager); ok {
			imager.SetImage(tc.image)
			require.Equal(t, tc.image, tc.change.(step.Imager).Image())
		}
		m := newMachine(t, nil)
		require.NoError(t, tc.empty.Undo(ctx, m))
		require.Equal(t, []string{tc.want}, m.ran)
		if tc.image != nil {
			continue
		}
		m.err = &host.ExitError{Program: "rabbitmqctl", Code: 70, Stderr: "Error:\nUser \"st2\" does not exist"}
		require.NoError(t, tc.empty.Undo(ctx, m), "what is gone is gone")
		m.err = &host.ExitError{Program: "rabbitmqctl", Code: 69, Stderr: "unable to connect"}
		requireFault(t, tc.empty.Undo(ctx, m), fault.ExitFailed, "rabbitmqctl")
	}
}

func TestValidate(t *testing.T) {
	require.NoError(t, configure().Validate())
	for name, spoil := range map[string]func(*Configure){
		"no user":              func(s *Configure) { s.User = "" },
		"option":               func(s *Configure) { s.User = "-n" },
		"space":                func(s *Configure) { s.User = "a b" },
		"guest":                func(s *Configure) { s.User = "guest" },
		"no password":          func(s *Configure) { s.Password = "" },
		"no vhost":             func(s *Configure) { s.VHost = "" },
		"vhost option":         func(s *Configure) { s.VHost = "--x" },
		"vhost line":           func(s *Configure) { s.VHost = "a\nb" },
		"pattern of two lines": func(s *Configure) { s.Permissions.Read = "a\nb" },
		"pattern not in UTF-8": func(s *Configure) { s.Permissions.Configure = "\xff" },
		"pattern as an option": func(s *Configure) {
			s.Permissions.Write = "-p"
		},
	} {
		s := configure()
		spoil(s)
		err := s.Validate()
		require.Error(t, err, name)
		requireFault(t, err, fault.ExitUsage, "usage")
		require.NotContains(t, err.Error(), "p@/ w")
	}
}

// Listens tells a broker from what else may listen there.
func TestListens(t *testing.T) {
	for answer, want := range map[string]string{
		"\x01\x00\x00\x00\x00": "",
		"AMQP\x00\x00\x09\x01": "no AMQP 0-9-1 broker",
		"":                     "EOF",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			header := make([]byte, 8)
			if _, err := conn.Read(header); err == nil {
				_, _ = conn.Write([]byte(answer))
			}
		}()
		err = Listens(t.Context(), host.NewLocal("localhost"), l.Addr().String())
		require.NoError(t, l.Close())
		if want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, want)
	}
}
