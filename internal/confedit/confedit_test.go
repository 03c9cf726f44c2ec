package confedit_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"st2ha/internal/confedit"
)

func TestErrorNamesTheLine(t *testing.T) {
	assert.Equal(t, "line 3: bad", (&confedit.Error{Line: 3, Msg: "bad"}).Error())
	assert.Equal(t, "bad", (&confedit.Error{Msg: "bad"}).Error())
}

// refused checks for an *Error with a line and a part of its message.
func refused(t *testing.T, err error, line int, msg string) {
	t.Helper()
	var e *confedit.Error
	require.True(t, errors.As(err, &e), "%v", err)
	assert.Equal(t, line, e.Line, e.Msg)
	assert.Contains(t, e.Msg, msg)
}

func TestYAMLGet(t *testing.T) {
	for _, c := range []struct {
		src, path, want string
		ok              bool
	}{
		{"net:\n  bindIp: 127.0.0.1 # x\n", "net bindIp", "127.0.0.1", true},
		{"net: {bindIp: '127.0.0.1,::1'}\n", "net bindIp", "127.0.0.1,::1", true},
		{"net:\n  bindIpAll: true\n", "net bindIpAll", "true", true},
		{"net.bindIp: localhost\n", "net bindIp", "localhost", true},
		{"net:\n  bindIp:\n", "net bindIp", "", true},
		{"net:\n  tls.mode: disabled\n", "net tls mode", "disabled", true},
		{"net:\n  port: 1\n", "net bindIp", "", false},
		{"net:\n", "net bindIp", "", false},
		{"", "net bindIp", "", false},
		{"security:\n  authorization: \"enabled\"\n", "security authorization", "enabled", true},
		{"networks: {bindIp: x}\n", "net bindIp", "", false},
	} {
		got, ok, err := confedit.YAMLGet([]byte(c.src), strings.Fields(c.path)...)
		require.NoError(t, err, c.src)
		assert.Equal(t, c.ok, ok, c.src)
		assert.Equal(t, c.want, got, c.src)
	}
	for _, c := range []struct {
		src  string
		line int
		msg  string
	}{
		{"net:\n  bindIp: [a, b]\n", 2, "list"},
		{"net:\n  bindIp:\n    value: x\n", 3, "section"},
		{"net: x\n", 1, "not a section"},
		{"- a\n", 1, "mapping"},
		{"a: *b\n", 1, "anchor"},
		{"# x\na: b\n---\na: c\n", 3, "second document"},
		{"a: b\u0085c: d\n", 1, "U+0085"},
		{"a: b\rnet:\n", 1, "carriage return"},
		{"\x00", 1, "NUL"},
	} {
		_, _, err := confedit.YAMLGet([]byte(c.src), "net", "bindIp")
		refused(t, err, c.line, c.msg)
	}
}

func TestYAMLSetQuotesWhereNeeded(t *testing.T) {
	for _, c := range []struct{ src, value, want string }{
		{"net:\n  bindIp: x\n", "::1", "net:\n  bindIp: \"::1\"\n"},
		{"net:\n  bindIp: x\n", "0.0.0.0,::", "net:\n  bindIp: \"0.0.0.0,::\"\n"},
		{"net:\n  bindIp: x\n", "localhost,::1", "net:\n  bindIp: localhost,::1\n"},
		{"net:\n  bindIp: x # y\n", "a #b", "net:\n  bindIp: \"a #b\" # y\n"},
		{"net:\n  bindIp: x\n", `a"b\`, "net:\n  bindIp: 'a\"b\\'\n"},
		{"net:\n  bindIp: \"x\"\n", `a"b\`, "net:\n  bindIp: \"a\\\"b\\\\\"\n"},
		{"net:\n  bindIp: 'x'\n", "it's", "net:\n  bindIp: 'it''s'\n"},
		{"net:\n  bindIp: x\n", "", "net:\n  bindIp: \"\"\n"},
		{"net:\n  bindIp: x\n", "null", "net:\n  bindIp: \"null\"\n"},
		{"net:\n  bindIp: x\n", "true", "net:\n  bindIp: true\n"},
		{"net: {bindIp: x}\n", "a,b", "net: {bindIp: \"a,b\"}\n"},
		{"net: {bindIp: 'it''s', port: 1}\n", "é", "net: {bindIp: 'é', port: 1}\n"},
		{"net: {\"é\": ü, bindIp: x}\n", "y", "net: {\"é\": ü, bindIp: y}\n"},
	} {
		got, err := confedit.YAMLSet([]byte(c.src), c.value, "net", "bindIp")
		require.NoError(t, err, c.src)
		assert.Equal(t, c.want, string(got))
	}
	_, err := confedit.YAMLSet(nil, "a\nb", "net", "bindIp")
	refused(t, err, 0, "line break")
	_, err = confedit.YAMLSet(nil, "a", "net", "bind Ip")
	refused(t, err, 0, "cannot be the name of an option")
	_, err = confedit.YAMLSet(nil, "a")
	refused(t, err, 0, "no key")
	_, err = confedit.YAMLSet(nil, "\xff", "net", "bindIp")
	refused(t, err, 0, "UTF-8")
}

func TestIsYAML(t *testing.T) {
	for src, want := range map[string]bool{
		"":                              true,
		"# only\n":                      true,
		"# x\nnet:\n  bindIp: a=b\n":    true,
		"\n# x\nbind_ip = ::1\n":        false,
		"dbpath=/var/lib/mongodb\n":     false,
		"---\nnet:\n":                   true,
		"\xef\xbb\xbfnet: {port: 1}\n":  true,
		"\r\n# x\r\nlogappend=true\r\n": false,
	} {
		assert.Equal(t, want, confedit.IsYAML([]byte(src)), "%q", src)
	}
}

func TestINIReads(t *testing.T) {
	src := "[DEFAULT]\na = 1\n[Database]\nhost = 'x y'\nport: 27017\nlist = a,\n  b\n\tc\nempty =\n[database]\n" +
		"host = last\n[messaging]\nurl = amqp://a:b#c;d@h/ # not a comment\n"
	f, err := confedit.ParseINI([]byte(src), confedit.OSLO)
	require.NoError(t, err)
	for _, c := range []struct {
		section, key, want string
		line               int
	}{
		{"DEFAULT", "a", "1", 2},
		{"database", "host", "last", 11},
		{"DATABASE", "port", "27017", 5},
		{"database", "list", "a,\nb\nc", 6},
		{"database", "empty", "", 9},
		{"messaging", "url", "amqp://a:b#c;d@h/ # not a comment", 13},
	} {
		got, ok := f.Get(c.section, c.key)
		assert.True(t, ok, c.key)
		assert.Equal(t, c.want, got)
		assert.Equal(t, c.line, f.Line(c.section, c.key))
	}
	_, ok := f.Get("default", "a")
	assert.False(t, ok, "DEFAULT is compared with case")
	assert.Equal(t, 0, f.Line("database", "none"))
	assert.Equal(t, []string{"DEFAULT", "Database", "messaging"}, f.Sections())
	assert.Equal(t, []string{"host", "port", "list", "empty"}, f.Keys("database"))
}

func TestEnvReads(t *testing.T) {
	f, err := confedit.ParseINI([]byte(
		"NODE_IP_ADDRESS=0.0.0.0\nexport RABBITMQ_NODENAME='rabbit'@\"host\" # x\nHOST=$(hostname -s)\n"+
			"A=1 B=2\nexport C\nLONG=\"a \\\n  b\"\nH=~/x\n"), confedit.Env)
	require.NoError(t, err)
	for key, want := range map[string]string{
		"RABBITMQ_NODE_IP_ADDRESS": "0.0.0.0", "NODENAME": "rabbit@host", "HOST": "$(hostname -s)",
		"A": "1", "B": "2", "LONG": "a   b",
	} {
		got, ok := f.Get("", key)
		assert.True(t, ok, key)
		assert.Equal(t, want, got, key)
	}
	_, ok := f.Get("", "C")
	assert.False(t, ok)
	for key, line := range map[string]int{"HOST": 3, "H": 8} {
		_, ok, err = f.Lookup("", key)
		assert.True(t, ok)
		refused(t, err, line, "only a shell")
		refused(t, f.Set("", key, "x"), line, "only a shell")
	}
	refused(t, f.Delete("", "A"), 4, "shares its line")

	f, err = confedit.ParseINI([]byte("RABBITMQ_NODE_PORT=1\nNODE_PORT=2\n"), confedit.Env)
	require.NoError(t, err)
	got, _ := f.Get("", "NODE_PORT")
	assert.Equal(t, "1", got, "the prefixed one counts")

	for src, msg := range map[string]string{
		"eval X=1\n": "shell code", "A=1 cmd\n": "another word", "unset A\n": "shell code",
		"A=1; B=2\n": "shell code", "cat <<X\nX\n": "shell code", "A='x\n": "not closed",
		"A=$(echo \"x\")\n": "does not read", "A=`x\n": "expansion", "A=\\": "backslash",
		"export $X\n": "another word", "export 'A=1'\n": "another word", "\"A\"=1\n": "shell code",
		"A=\x01\n": "control",
	} {
		_, err := confedit.ParseINI([]byte(src), confedit.Env)
		refused(t, err, 1, msg)
	}
}

func TestINISetWritesWhatTheStyleCanHold(t *testing.T) {
	for _, c := range []struct {
		style             confedit.Style
		src, value, want  string
		section, key, msg string
	}{
		{confedit.OSLO, "[a]\nk = v\n", ` x `, "[a]\nk = \" x \"\n", "a", "k", ""},
		{confedit.OSLO, "[a]\nk = v\n", `"x"`, "[a]\nk = \"\"x\"\"\n", "a", "k", ""},
		{confedit.OSLO, "[a]\nk = v\n", `"`, "[a]\nk = \"\"\"\n", "a", "k", ""},
		{confedit.OSLO, "[a]\nk = 'v'\n", `it's`, "[a]\nk = 'it's'\n", "a", "k", ""},
		{confedit.OSLO, "[a]\nk = v\n", ``, "[a]\nk = \n", "a", "k", ""},
		{confedit.OSLO, "[a]\nk:v\n", `x`, "[a]\nk:x\n", "a", "k", ""},
		{confedit.OSLO, "[a]\nk =\n", `x`, "[a]\nk = x\n", "a", "k", ""},
		{confedit.OSLO, "[a]\n", "x\ny", "", "a", "k", "line break"},
		{confedit.OSLO, "[a]\n", "x\x00", "", "a", "k", "control"},
		{confedit.OSLO, "[a]\n", "x", "", "", "k", "name of a section"},
		{confedit.OSLO, "[a]\n", "x", "", "a]", "k", "name of a section"},
		{confedit.OSLO, "[a]\n", "x", "", "a", "k=", "name of an option"},
		{confedit.Mongo, "k = v\n", "x#y", "", "", "k", "#"},
		{confedit.Mongo, "k = v\n", "x ", "", "", "k", "spaces"},
		{confedit.Rabbit, "k = v\n", "x#y", "", "", "k", "#"},
		{confedit.Rabbit, "k = v\n", "", "", "", "k", "empty"},
		{confedit.Rabbit, "k = v\n", "x", "", "a", "k", "no sections"},
		{confedit.Env, "K=v\n", "x y", "K=\"x y\"\n", "", "K", ""},
		{confedit.Env, "K=v\n", "$x", "K='$x'\n", "", "K", ""},
		{confedit.Env, "K='v'\n", "x", "K='x'\n", "", "K", ""},
		{confedit.Env, "K=\"v\" # c\n", "x", "K=\"x\" # c\n", "", "K", ""},
		{confedit.Env, "K=\n", "x", "K=x\n", "", "K", ""},
		{confedit.Env, "K=v\n", "$'", "", "", "K", "quotes"},
		{confedit.Env, "K=v\n", "x", "", "", "K-L", "name of an option"},
	} {
		f, err := confedit.ParseINI([]byte(c.src), c.style)
		require.NoError(t, err, c.src)
		err = f.Set(c.section, c.key, c.value)
		if c.msg != "" {
			refused(t, err, 0, c.msg)
			assert.Equal(t, c.src, string(f.Bytes()), "changed although refused")
			continue
		}
		require.NoError(t, err, c.src)
		assert.Equal(t, c.want, string(f.Bytes()))
	}
}

func TestINISetTwiceTheSame(t *testing.T) {
	f, err := confedit.ParseINI([]byte("[a]\nk = 1\nk = 2\n"), confedit.OSLO)
	require.NoError(t, err)
	require.NoError(t, f.Set("a", "k", "2"), "the last one counts and has the value")
	refused(t, f.Set("a", "k", "1"), 3, "line 2")
}

func TestINIDeleteAndComment(t *testing.T) {
	src := "[a]\r\nk = 1,\r\n  2\r\n# c\r\n[b]\r\nk = 3\r\n[A]\r\nk = 4"
	f, err := confedit.ParseINI([]byte(src), confedit.OSLO)
	require.NoError(t, err)
	require.NoError(t, f.Comment("a", "k"))
	assert.Equal(t, "[a]\r\n#k = 1,\r\n#  2\r\n# c\r\n[b]\r\nk = 3\r\n[A]\r\n#k = 4", string(f.Bytes()))
	require.NoError(t, f.Comment("a", "k"), "none is no error")

	f, err = confedit.ParseINI([]byte(src), confedit.OSLO)
	require.NoError(t, err)
	require.NoError(t, f.Delete("a", "k"))
	assert.Equal(t, "[a]\r\n# c\r\n[b]\r\nk = 3\r\n[A]", string(f.Bytes()))
	require.NoError(t, f.Delete("a", "k"), "none is no error")
}

func TestExportsReads(t *testing.T) {
	got, err := confedit.Exports([]byte(`# x
"/a b" h1(rw,sync) h2
/c\040d -ro,sync @grp *.ex(rw) \
   fd00::/64(rw)
/e host (rw)   # pitfall
/f
`))
	require.NoError(t, err)
	assert.Equal(t, []confedit.Export{
		{Line: 2, Path: "/a b", Client: "h1", Options: []string{"rw", "sync"}},
		{Line: 2, Path: "/a b", Client: "h2"},
		{Line: 3, Path: "/c d", Client: "@grp", Options: []string{"ro", "sync"}},
		{Line: 3, Path: "/c d", Client: "*.ex", Options: []string{"ro", "sync", "rw"}},
		{Line: 4, Path: "/c d", Client: "fd00::/64", Options: []string{"ro", "sync", "rw"}},
		{Line: 5, Path: "/e", Client: "host"},
		{Line: 5, Path: "/e", Client: "*", Options: []string{"rw"}},
		{Line: 6, Path: "/f", Client: "*"},
	}, got)
}

func TestAddExportRefusesBadInput(t *testing.T) {
	for _, c := range []struct{ path, client, option, msg string }{
		{"srv", "h", "rw", "absolute"},
		{"/s\nrv", "h", "rw", "line break"},
		{"/srv", "", "rw", "no client"},
		{"/srv", "-h", "rw", "dash"},
		{"/srv", "h h", "rw", "client"},
		{"/srv", "h(", "rw", "client"},
		{"/srv", "h#", "rw", "client"},
		{"/srv", "h", "rw,sync", "option"},
		{"/srv", "h", "", "option"},
		{"/srv", "h", "rw)", "option"},
		{"/srv", "h", "rw\n", "option"},
	} {
		_, err := confedit.AddExport(nil, c.path, c.client, []string{c.option})
		refused(t, err, 0, c.msg)
	}
	got, err := confedit.AddExport(nil, `/my "disk" #1`, "h", []string{"rw"})
	require.NoError(t, err)
	assert.Equal(t, `/my\040\042disk\042\040\0431 h(rw)`+"\n", string(got))
}

func TestRemoveExport(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"/p a(rw) h(rw) b(ro) # c\n", "/p a(rw) b(ro) # c\n"},
		{"/p h(rw) # c\n/q h(rw)\n", "/q h(rw)\n"},
		{"/p a(rw) \\\n  h(rw)\n", "/p a(rw)\n"},
		{"/p a(rw) \\\n  h(rw) \\\n b(rw)\n", "/p a(rw) \\\n b(rw)\n"},
		{"/p \\\n  h(rw)\n/q *(ro)\n", "/q *(ro)\n"},
		{"/p -ro h\n", ""},
		{"/q *(ro)\n/p h(rw)", "/q *(ro)"},
		{"/p h(rw)\n/p a(rw) h(ro)\n", "/p a(rw)\n"},
		{"/p a(rw)\n", "/p a(rw)\n"},
		{"/p H(rw) b(rw)\n", "/p b(rw)\n"},
	} {
		got, err := confedit.RemoveExport([]byte(c.src), "/p/", "h")
		require.NoError(t, err)
		assert.Equal(t, c.want, string(got))
	}
	// Without h, -b would be default options.
	_, err := confedit.RemoveExport([]byte("/p h(rw) -b\n"), "/p", "h")
	refused(t, err, 1, "without changing the others")
}

func TestFstabReads(t *testing.T) {
	got, err := confedit.Fstab([]byte("# x\n\n/dev/a\t/mnt/my\\040disk  ext4\tdefaults,ro 1 2 # data\nh:/x /y nfs\n"))
	require.NoError(t, err)
	assert.Equal(t, []confedit.Mount{
		{Line: 3, Source: "/dev/a", Target: "/mnt/my disk", Type: "ext4", Options: []string{"ro"}, Dump: 1, Pass: 2},
		{Line: 4, Source: "h:/x", Target: "/y", Type: "nfs"},
	}, got)
}

func TestAddMountRefusesBadInput(t *testing.T) {
	good := confedit.Mount{Source: "h:/x", Target: "/y", Type: "nfs"}
	for _, c := range []struct {
		spoil func(*confedit.Mount)
		msg   string
	}{
		{func(m *confedit.Mount) { m.Source = "" }, "empty"},
		{func(m *confedit.Mount) { m.Source = "#x" }, "starts with #"},
		{func(m *confedit.Mount) { m.Source = "h:/x\n/dev/a" }, "line break"},
		{func(m *confedit.Mount) { m.Target = "y" }, "absolute"},
		{func(m *confedit.Mount) { m.Type = "" }, "empty"},
		{func(m *confedit.Mount) { m.Options = []string{"ro,rw"} }, "comma"},
		{func(m *confedit.Mount) { m.Pass = -1 }, "negative"},
	} {
		m := good
		c.spoil(&m)
		_, err := confedit.AddMount(nil, m)
		refused(t, err, 0, c.msg)
	}
	m := good
	m.Target, m.Options = `/a b\c`, []string{"x=a b"}
	got, err := confedit.AddMount(nil, m)
	require.NoError(t, err)
	assert.Equal(t, `h:/x /a\040b\134c nfs x=a\040b 0 0`+"\n", string(got))
	back, err := confedit.Fstab(got)
	require.NoError(t, err)
	m.Line = 1
	assert.Equal(t, []confedit.Mount{m}, back)
}

func TestRemoveMount(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"/dev/a / ext4\nh:/x /y nfs\n# end\n", "/dev/a / ext4\n# end\n"},
		{"/dev/a / ext4\nh:/x /y/ nfs", "/dev/a / ext4"},
		{"h:/x /y nfs\nh:/x /y nfs", ""},
		{"/dev/a / ext4\n", "/dev/a / ext4\n"},
	} {
		got, err := confedit.RemoveMount([]byte(c.src), "/y")
		require.NoError(t, err)
		assert.Equal(t, c.want, string(got))
	}
}

// TestLargeFiles edits files of 10 MB. The limit is wide, for slow machines; it
// is there to catch what is quadratic.
func TestLargeFiles(t *testing.T) {
	fill := func(line string) []byte { return bytes.Repeat([]byte(line), 10<<20/len(line)) }
	for _, e := range editors() {
		line := map[string]string{
			"yaml": "  someOption: a value of some length\n", "mongo": "some_option = a value of some length\n",
			"oslo": "some_option = a value of some length\n", "rabbit": "some.option = a value of some length\n",
			"env": "SOME_OPTION=\"a value of some length\"\n", "exports": "/srv/x host(rw,sync) other(ro)\n",
			"fstab": "/dev/sdb1 /mnt/disk ext4 defaults 0 2\n",
		}[e.kind]
		head := map[string]string{"yaml": "setParameter:\n", "oslo": "[api]\n"}[e.kind]
		for _, body := range [][]byte{fill(line), fill("# a comment, as configuration files have many of\n")} {
			src := append([]byte(head), body...)
			start := time.Now()
			out, err := e.edit(src)
			took := time.Since(start)
			require.NoError(t, err, e.kind)
			assert.Greater(t, len(out), len(src))
			assert.Less(t, took, 2*time.Minute, e.kind)
			t.Logf("%s %.12q: %d ms", e.kind, body, took.Milliseconds())
		}
	}
}

// An odd line of st2.conf costs that line only, an odd header what is below it.
func TestReadOSLO(t *testing.T) {
	f, err := confedit.ReadOSLO([]byte(
		"stray = 1\n[database]\nhost = a\nwhat is this\n  more of it\nport = 1\nnul\x00 = 1\n = 2\n[messaging\n" +
			"url = x\nnonsense\n[timer]\nenable = False\n"))
	require.EqualError(t, err,
		"line 1: option stray before the first section; line 4: neither an option, a section nor a comment; "+
			"line 5: a line that starts with a space continues an option, but there is no option before it; line 7: "+
			"NUL byte; "+
			"line 8: a line that starts with a space continues an option, but there is no option before it; "+
			"line 9: section header without a name or its closing bracket; line 11: neither an option, a section nor "+
			"a comment")
	require.Equal(t, []string{"host", "port"}, f.Keys("database"))
	require.Equal(t, []string{"enable"}, f.Keys("timer"))
	require.Empty(t, f.Keys("messaging"))
	require.Error(t, f.Set("database", "host", "b"), "it is not edited")
	_, err = confedit.ReadOSLO([]byte("[a]\nb = c\n"))
	require.NoError(t, err)
}
