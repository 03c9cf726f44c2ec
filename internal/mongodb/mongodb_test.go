package mongodb

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/bson"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

// machine is a host below a temporary root with no mongod; it has the unit
// mongod.service.
type machine struct {
	*host.Local
	root   string
	dialed func() // called when somebody connects
}

// until is a context that ends with the first attempt to connect: the driver
// would go on for its five seconds.
func (m *machine) until(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	m.dialed = cancel
	return ctx
}

func (m *machine) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	if strings.Join(argv, " ") == "systemctl show --property=LoadState mongod.service mongodb.service" {
		return []byte("LoadState=loaded\n\nLoadState=not-found\n"), nil
	}
	return nil, fmt.Errorf("not expected: %s", argv)
}

func (m *machine) DialContext(context.Context, string, string) (net.Conn, error) {
	m.dialed()
	return nil, fmt.Errorf("nothing listens")
}

func newMachine(t *testing.T, files map[string]string) *machine {
	t.Helper()
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(root+"/etc", 0o755))
	for name, data := range files {
		require.NoError(t, os.WriteFile(root+name, []byte(data), 0o644))
	}
	return &machine{Local: host.NewLocalAt("primary", root), root: root}
}

const address = "192.168.0.100"

func TestBindIP(t *testing.T) {
	for _, tc := range []struct {
		name    string
		conf    string
		replace bool
		want    string // the file afterwards; empty: as it was
		err     string
	}{
		{"loopback", "net:\n  port: 27017\n  bindIp: 127.0.0.1  # here only\n", false,
			"net:\n  port: 27017\n  bindIp: 127.0.0.1,192.168.0.100  # here only\n", ""},
		{"loopback, replaced", "net:\n  bindIp: 127.0.0.1\n", true, "net:\n  bindIp: 192.168.0.100\n", ""},
		{"several", "net:\n  bindIp: 127.0.0.1, 10.0.0.1\n", false,
			"net:\n  bindIp: 127.0.0.1,10.0.0.1,192.168.0.100\n", ""},
		{"there already", "net:\n  bindIp: 127.0.0.1, 192.168.0.100\n", false, "", ""},
		{"there already, replaced", "net:\n  bindIp: 192.168.0.100\n", true, "", ""},
		{"there among others, replaced", "net:\n  bindIp: 127.0.0.1,192.168.0.100\n", true,
			"net:\n  bindIp: 192.168.0.100\n", ""},
		{"all", "net:\n  bindIp: 0.0.0.0\n", false, "", ""},
		{"all, by a star", "net:\n  bindIp: \"*\"\n", false, "", ""},
		{"all, replaced", "net:\n  bindIp: 0.0.0.0\n", true, "net:\n  bindIp: 192.168.0.100\n", ""},
		{"bindIpAll", "net:\n  bindIpAll: true\n", false, "", ""},
		{"bindIpAll, replaced", "net:\n  bindIpAll: true\n", true, "", "bindIpAll is true"},
		{"bindIpAll off", "net:\n  bindIpAll: false\n  bindIp: 127.0.0.1\n", false,
			"net:\n  bindIpAll: false\n  bindIp: 127.0.0.1,192.168.0.100\n", ""},
		{"no bindIp", "net:\n  port: 27017\n", false, "net:\n  port: 27017\n  bindIp: 127.0.0.1,192.168.0.100\n", ""},
		{"no net", "storage:\n  dbPath: /var/lib/mongodb\n", false,
			"storage:\n  dbPath: /var/lib/mongodb\n\nnet:\n  bindIp: 127.0.0.1,192.168.0.100\n", ""},
		{"similar address", "net:\n  bindIp: 192.168.0.10\n", false,
			"net:\n  bindIp: 192.168.0.10,192.168.0.100\n", ""},
		{"ini", "# mine\nbind_ip = 127.0.0.1\nport = 27017\n", false,
			"# mine\nbind_ip = 127.0.0.1,192.168.0.100\nport = 27017\n", ""},
		{"ini, replaced", "bind_ip = 127.0.0.1\n", true, "bind_ip = 192.168.0.100\n", ""},
		{"ini, there", "bind_ip = 192.168.0.100\n", false, "", ""},
		{"ini, all", "bind_ip_all = true\n", false, "", ""},
		{"ini, none", "port = 27017\n", false, "port = 27017\nbind_ip = 127.0.0.1,192.168.0.100\n", ""},
		{"broken", "net:\n  bindIp: [\n", false, "", "line "},
		{"port", "net:\n  port: many\n", false, "", `port must be a number, not "many"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newMachine(t, map[string]string{"/etc/mongod.conf": tc.conf})
			s := &Configure{Address: address, Replace: tc.replace}
			changes, err := s.Plan(m.until(t), m)
			if tc.err != "" {
				require.ErrorContains(t, err, "primary: /etc/mongod.conf: ")
				require.ErrorContains(t, err, tc.err)
				require.Equal(t, fault.ExitPreflight, fault.Of(err).Exit)
				return
			}
			require.NoError(t, err)
			// It does not answer, so it is restarted in any case.
			require.Equal(t, "restart mongod.service",
				changes[len(changes)-1].Kind()+" "+changes[len(changes)-1].Target())
			if tc.want == "" {
				require.Len(t, changes, 1)
				return
			}
			require.Len(t, changes, 2)
			require.NoError(t, changes[0].Apply(t.Context(), m))
			got, err := os.ReadFile(m.root + "/etc/mongod.conf")
			require.NoError(t, err)
			require.Equal(t, tc.want, string(got))
			changes, err = s.Plan(m.until(t), m)
			require.NoError(t, err)
			require.Len(t, changes, 1)
		})
	}
}

// An IPv6 address is bound only with net.ipv6.
func TestIPv6(t *testing.T) {
	for _, tc := range [][2]string{
		{"net:\n  bindIp: 127.0.0.1\n", "net:\n  bindIp: 127.0.0.1,2001:db8::64\n  ipv6: true\n"},
		{"net:\n  bindIp: 127.0.0.1,2001:db8::64\n  ipv6: false\n",
			"net:\n  bindIp: 127.0.0.1,2001:db8::64\n  ipv6: true\n"},
		{"net:\n  bindIp: 0.0.0.0\n", "net:\n  bindIp: 0.0.0.0,2001:db8::64\n  ipv6: true\n"},
		{"net:\n  bindIpAll: true\n", "net:\n  bindIpAll: true\n  ipv6: true\n"},
		{"net:\n  bindIp: \"::\"\n  ipv6: true\n", ""},
		{"bind_ip = 127.0.0.1\n", "bind_ip = 127.0.0.1,2001:db8::64\nipv6 = true\n"},
	} {
		m := newMachine(t, map[string]string{"/etc/mongod.conf": tc[0]})
		s := &Configure{Address: "2001:db8::64"}
		changes, err := s.Plan(m.until(t), m)
		require.NoError(t, err)
		if tc[1] == "" {
			require.Len(t, changes, 1, "it is restarted, for it does not answer")
			continue
		}
		require.Len(t, changes, 2)
		require.NoError(t, changes[0].Apply(t.Context(), m))
		got, err := os.ReadFile(m.root + "/etc/mongod.conf")
		require.NoError(t, err)
		require.Equal(t, tc[1], string(got))
	}
	// One that answers is left as it is, whatever it was started with.
	m := newMachine(t, map[string]string{"/etc/mongod.conf": "net:\n  bindIp: \"*\"\n"})
	changes, err := (&Configure{Address: "2001:db8::64"}).Plan(t.Context(), &answers{machine: m})
	require.NoError(t, err)
	require.Empty(t, changes)
}

// The runner of this very step loses its database: refused before anything is changed.
func TestReplaceUnderARunner(t *testing.T) {
	m := newMachine(t, map[string]string{
		"/etc/mongod.conf": "net:\n  bindIp: 127.0.0.1\nsecurity:\n  authorization: enabled\n"})
	for server, refused := range map[string]bool{"127.0.0.1:27017": true, "localhost:27017": true,
		address + ":27017": false} {
		s := &Configure{Address: address, Replace: true,
			Clients: func(context.Context, host.Host) ([]string, error) { return []string{server}, nil }}
		_, err := s.Check(m.until(t), m)
		if !refused {
			require.NoError(t, err, server)
			continue
		}
		require.ErrorContains(t, err, server)
		require.Equal(t, "replace_bind_ip", fault.Of(err).Code)
		s.Replace = false
		_, err = s.Check(m.until(t), m)
		require.NoError(t, err)
	}
}

func TestFiles(t *testing.T) {
	ctx := t.Context()
	s := &Configure{Address: address}
	_, err := s.Plan(ctx, newMachine(t, nil))
	require.Equal(t, "missing", fault.Of(err).Code)
	require.Equal(t, fault.ExitPreflight, fault.Of(err).Exit)
	changes, err := s.Plan(ctx, newMachine(t, map[string]string{"/etc/mongodb.conf": "bind_ip=127.0.0.1\n"}))
	require.NoError(t, err)
	require.Equal(t, "/etc/mongodb.conf", changes[0].Target())
	changes, err = s.Plan(ctx,
		newMachine(t, map[string]string{"/etc/mongodb.conf": "bind_ip=127.0.0.1\n",
			"/etc/mongod.conf": "net:\n  bindIp: 127.0.0.1\n"}))
	require.NoError(t, err)
	require.Equal(t, "/etc/mongod.conf", changes[0].Target())
}

func TestINIStyle(t *testing.T) {
	for data, want := range map[string]bool{
		"":                                false,
		"# bind_ip = 127.0.0.1\nnet:\n":   false,
		"net:\n  bindIp: a\n":             false,
		"bind_ip = 127.0.0.1":             true,
		"\n# x: y\n\n  port=1\n":          true,
		"net.bindIp = 127.0.0.1":          true,
		"{net: {bindIp: a}}":              false,
		"setParameter: {a: b}\n":          false,
		"systemLog:\n  path: /var/x=y\n":  false,
		"storage: # = \n  dbPath: /x\n":   false,
		"dbpath=/var/lib/mongodb\r\n#x\n": true,
	} {
		require.Equal(t, want, iniStyle([]byte(data)), data)
	}
}

func TestAuthorization(t *testing.T) {
	ctx := t.Context()
	for conf, want := range map[string]bool{
		"net:\n  port: 1\n":                                false,
		"security:\n  authorization: enabled\n":            true,
		"security:\n  authorization: \"enabled\"\n":        true,
		"security:\n  authorization: disabled\n":           false,
		"security:\n  keyFile: /etc/key\n":                 true,
		"security:\n  clusterAuthMode: x509\n":             true,
		"# security:\n#   authorization: enabled\nnet:\n ": false,
		"auth = true\n":                                    true,
		"auth = false\n":                                   false,
		"#auth = true\nport = 1\n":                         false,
		"port = 1\nkeyFile = /etc/key\n":                   true,
	} {
		t.Run(conf, func(t *testing.T) {
			m := newMachine(t, map[string]string{"/etc/mongod.conf": conf})
			c, err := read(ctx, m)
			require.NoError(t, err)
			got, err := c.authorization()
			require.NoError(t, err)
			require.Equal(t, want, got)

			findings, err := (&Configure{Address: address}).Check(m.until(t), m)
			require.NoError(t, err)
			if want {
				require.Empty(t, findings)
				return
			}
			require.Len(t, findings, 1)
			require.Equal(t, step.Error, findings[0].Severity)
			require.Contains(t, findings[0].Message, "/etc/mongod.conf: authorization is not enabled")
			findings, err = (&Configure{Address: address, AllowUnauthenticated: true}).Check(ctx, m)
			require.NoError(t, err)
			require.Equal(t, step.Warning, findings[0].Severity)
		})
	}
	// What is exposed already is not exposed by this run.
	m := newMachine(t, map[string]string{"/etc/mongod.conf": "net:\n  bindIp: 0.0.0.0\n"})
	findings, err := (&Configure{Address: address}).Check(ctx, m)
	require.NoError(t, err)
	require.Equal(t, step.Warning, findings[0].Severity)
}

// A run that was killed before the restart: mongod answers as before, by the
// file as it was.
func TestOwed(t *testing.T) {
	testenv.NeedsRoot(t)
	ctx := t.Context()
	m := newMachine(t, map[string]string{"/etc/mongod.conf": "net:\n  bindIp: 192.168.0.100\n"})
	answering := &answers{machine: m}
	s := &Configure{Address: address, Replace: true}
	changes, err := s.Plan(ctx, answering)
	require.NoError(t, err)
	require.Empty(t, changes)
	require.NoError(t, os.MkdirAll(m.root+"/var/lib", 0o755))
	release, err := step.Lock(ctx, m, "x", 0)
	require.NoError(t, err)
	defer release()
	require.NoError(t, step.Owe(ctx, m, "mongod.service"))
	changes, err = s.Plan(ctx, answering)
	require.NoError(t, err)
	require.Len(t, changes, 1)
	require.Equal(t, "mongod.service", changes[0].Target())
}

// answers has a mongod that says hello to everything (OP_MSG, and OP_QUERY as
// the driver begins with).
type answers struct{ *machine }

func (answers) DialContext(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		for {
			header := make([]byte, 16)
			if _, err := io.ReadFull(server, header); err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, server, int64(binary.LittleEndian.Uint32(header))-16); err != nil {
				return
			}
			body, err := bson.Marshal(bson.D{{Key: "ok", Value: 1}, {Key: "isWritablePrimary", Value: true},
				{Key: "minWireVersion", Value: 0},
				{Key: "maxWireVersion", Value: 21}, {Key: "helloOk", Value: true},
				{Key: "maxBsonObjectSize", Value: 1 << 24},
				{Key: "maxMessageSizeBytes", Value: 48000000}, {Key: "maxWriteBatchSize", Value: 1000}})
			if err != nil {
				return
			}
			prefix := make([]byte, 5) // OP_MSG: flags, and a section of kind 0
			opcode := uint32(2013)
			if binary.LittleEndian.Uint32(header[12:]) == 2004 { // OP_QUERY, answered by OP_REPLY with one document
				opcode = 1
				prefix = make([]byte, 20)
				prefix[16] = 1
			}
			reply := binary.LittleEndian.AppendUint32(nil, uint32(16+len(prefix)+len(body)))
			reply = binary.LittleEndian.AppendUint32(reply, 1)
			reply = append(reply, header[4:8]...)
			reply = binary.LittleEndian.AppendUint32(reply, opcode)
			if _, err := server.Write(append(append(reply, prefix...), body...)); err != nil {
				return
			}
		}
	}()
	return client, nil
}

func TestNoUnit(t *testing.T) {
	m := &noUnit{newMachine(t, map[string]string{"/etc/mongod.conf": "net:\n  bindIp: 127.0.0.1\n"})}
	_, err := (&Configure{Address: address}).Plan(t.Context(), m)
	require.Equal(t, "mongod_unit", fault.Of(err).Code)
}

type noUnit struct{ *machine }

func (noUnit) Run(context.Context, []byte, ...string) ([]byte, error) {
	return []byte("LoadState=not-found\n\nLoadState=not-found\n"), nil
}
