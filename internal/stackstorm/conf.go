// Package stackstorm configures StackStorm itself: st2.conf and the services
// that read it.
package stackstorm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/mongodb"
	"st2ha/internal/secure"
	"st2ha/internal/step"
)

// ConfPath is StackStorm's configuration file, as its packages install it.
const ConfPath = "/etc/st2/st2.conf"

// Conf is a host's st2.conf, to be read and edited.
type Conf struct {
	*confedit.INI
	file host.File
	host host.Host
	odd  bool // lines are left out: what is not set may be set there
}

// ReadConf reads a host's st2.conf. An odd line is an error, for StackStorm
// would not start with it, and no edit would be right.
func ReadConf(ctx context.Context, h host.Host) (*Conf, error) {
	conf, err := LookAtConf(ctx, h)
	if err != nil {
		return nil, err
	}
	if conf.INI, err = confedit.ParseINI(conf.file.Data, confedit.OSLO); err != nil {
		return nil, step.Located(h, ConfPath, err)
	}
	return conf, nil
}

// LookAtConf reads a host's st2.conf for those who only watch: an odd line, by
// which no running service is the worse, costs that line alone. With an error
// about such lines there is a Conf as well.
func LookAtConf(ctx context.Context, h host.Host) (*Conf, error) {
	f, err := h.ReadFile(ctx, ConfPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Preflight("missing", "install StackStorm on "+h.Name()+" first",
			"%s: %s does not exist", h.Name(), ConfPath)
	}
	if err != nil {
		return nil, err
	}
	f.Path = ConfPath
	ini, err := confedit.ReadOSLO(f.Data)
	return &Conf{INI: ini, file: f, host: h, odd: err != nil}, step.Located(h, ConfPath, err)
}

// errHidden is an option that has a default, which may not be what is meant.
var errHidden = errors.New("it is not set in any line that can be read")

// Change returns what was edited, or nil if nothing was.
func (c *Conf) Change() *step.FileChange { return step.EditFile(c.file, true, c.Bytes()) }

// Located puts host, file and the line of an option before an error about it.
func (c *Conf) located(section, key string, err error) error {
	if line := c.Line(section, key); line > 0 {
		return step.Located(c.host, fmt.Sprintf("%s:%d", ConfPath, line), err)
	}
	return step.Located(c.host, ConfPath, err)
}

// reference is what oslo.config replaces in a value: $$, \$, $option,
// ${option} and, with a group, ${group.option} (oslo_config/cfg.py, Template).
var reference = regexp.MustCompile(`(?i)\$\$|\\\$|\$([_a-z][._a-z0-9]*)|\$\{([_a-z][._a-z0-9]*)\}`)

// Value is an option's value as StackStorm gets it. One that refers to an
// option which the file does not set is an error: it may have a default.
func (c *Conf) Value(section, key string) (value string, ok bool, err error) {
	raw, ok := c.Get(section, key)
	if value, err = c.expand(section, raw, 8); err != nil {
		err = c.located(section, key, fmt.Errorf("[%s] %s: %w", section, key, err))
	}
	return value, ok, err
}

// expand replaces references, which may hold others.
func (c *Conf) expand(section, value string, depth int) (string, error) {
	var failed error
	return reference.ReplaceAllStringFunc(value, func(found string) string {
		m := reference.FindStringSubmatch(found)
		name := m[1] + m[2]
		if name == "" {
			return "$"
		}
		places := [][2]string{{section, name}, {"DEFAULT", name}}
		if group, option, dotted := strings.Cut(name, "."); dotted {
			places = [][2]string{{group, option}}
		}
		for _, p := range places {
			raw, ok := c.Get(p[0], p[1])
			if !ok || depth == 0 {
				continue
			}
			inner, err := c.expand(p[0], raw, depth-1)
			if err != nil {
				failed = err
			}
			return inner
		}
		failed = fmt.Errorf("it refers to %s, which the file does not set: write the value out, or $$ for a $", found)
		return found
	}), failed
}

// refers says whether a value is not the same in another file.
func refers(value string) bool {
	for _, m := range reference.FindAllStringSubmatch(value, -1) {
		if m[1]+m[2] != "" {
			return true
		}
	}
	return false
}

// Database is where [database] points and how to log in there.
type Database struct {
	mongodb.Server
	Via     string   // the first server, host:port, without a secret
	Servers []string // all of them
}

// Database reads [database] as st2common/models/db and pymongo do: host may be
// a whole URI, or hosts with or without ports.
func (c *Conf) Database() (Database, error) {
	values := map[string]string{"host": "127.0.0.1", "port": "27017", "db_name": "st2", "username": "", "password": "",
		"authentication_mechanism": ""}
	for key := range values {
		value, _, err := c.Value("database", key)
		if err != nil {
			return Database{}, err
		}
		if value != "" {
			values[key] = value
		}
	}
	if _, ok := c.Get("database", "host"); !ok && c.odd {
		return Database{}, c.located("database", "host", fmt.Errorf("[database] host: %w", errHidden))
	}
	if _, err := strconv.ParseUint(values["port"], 10, 16); err != nil {
		return Database{}, c.located("database", "port", fmt.Errorf("port must be a number, not %q", values["port"]))
	}
	user, password, hosts, path := values["username"], values["password"], values["host"], "/"+values["db_name"]
	var d Database
	options := ""
	if strings.Contains(hosts, "://") {
		u, err := splitURI(hosts)
		if err != nil {
			return Database{}, c.located("database", "host", err)
		}
		if u.odd {
			return Database{}, c.located("database", "host",
				errors.New("the user or the password in the URI of MongoDB has a : or @ that is not encoded: write "+
					"%3A and %40"))
		}
		if u.user != "" {
			user, password = u.user, u.password // mongoengine: those of the URI count
		}
		hosts, path, options = u.hosts, u.path, u.options
	} else {
		d.Fallback = "admin" // pymongo 4 looks there, mongoengine of StackStorm 3.8 in db_name
		if ip := net.ParseIP(hosts); ip != nil && ip.To4() == nil {
			hosts = "[" + hosts + "]"
		}
	}
	for _, hp := range strings.Split(hosts, ",") {
		name, port := splitHost(strings.TrimSpace(hp))
		if port == "" {
			port = values["port"]
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil || name == "" {
			return Database{}, c.located("database", "host",
				errors.New("[database] host must be HOST, HOST:PORT, several of them with commas, or mongodb://…"))
		}
		d.Servers = append(d.Servers, net.JoinHostPort(name, port))
	}
	d.Via = d.Servers[0]
	login := ""
	if user != "" {
		login = encode(user) + ":" + encode(password) + "@"
	}
	if mechanism := values["authentication_mechanism"]; mechanism != "" {
		options = strings.TrimPrefix(options+"&authMechanism="+encode(mechanism), "&")
	}
	if options != "" {
		options = "?" + options
	}
	d.URI = "mongodb://" + login + strings.Join(d.Servers, ",") + cmp.Or(path, "/") + options
	var err error
	d.TLS, err = c.databaseTLS(values["authentication_mechanism"] != "")
	return d, err
}

// databaseTLS are the settings of both generations, tls* since 3.9 and ssl*
// before (st2common/config.py, models/db/__init__.py _get_tls_kwargs;
// pymongo/ssl_support.py). Those of a URI do not count: StackStorm passes
// tls=False beside it. forced: authentication_mechanism alone switches TLS on.
func (c *Conf) databaseTLS(forced bool) (*secure.TLS, error) {
	o := &optionReader{conf: c, section: "database"}
	t := &secure.TLS{Read: c.readFile, CA: o.text("tls_ca_file", "ssl_ca_certs"),
		Cert: o.text("tls_certificate_key_file")}
	t.Encrypted = o.text("tls_certificate_key_file_password") != ""
	if t.Cert == "" { // 3.8; 3.9 reads them no more
		t.Cert, t.Key = o.text("ssl_certfile"), o.text("ssl_keyfile")
	}
	invalid, given := o.truth("tls_allow_invalid_certificates")
	if !given {
		invalid = o.text("ssl_cert_reqs") == "none"
	}
	anyName, given := o.truth("tls_allow_invalid_hostnames")
	if match, set := o.truth("ssl_match_hostname"); !given && set {
		anyName = !match
	}
	t.Verify, t.Hostname = !invalid, !invalid && !anyName
	enabled, _ := o.truth("tls", "ssl")
	if o.err != nil || !enabled && !forced && t.CA == "" && t.Cert == "" {
		return nil, o.err
	}
	return t, nil
}

// readFile reads a file of the host that st2.conf is of.
func (c *Conf) readFile(ctx context.Context, path string) ([]byte, error) {
	f, err := c.host.ReadFile(ctx, path)
	return f.Data, err
}

// optionReader reads options of a section and keeps the first error.
type optionReader struct {
	conf    *Conf
	section string
	err     error
}

// text is the first of the options that is set: a new name comes before the old one.
func (o *optionReader) text(keys ...string) string {
	for _, key := range keys {
		value, ok, err := o.conf.Value(o.section, key)
		if err != nil && o.err == nil {
			o.err = err
		}
		if ok {
			return value
		}
	}
	return ""
}

// truth is text for a BoolOpt (oslo_config/types.py, Boolean).
func (o *optionReader) truth(keys ...string) (on, given bool) {
	value := o.text(keys...)
	switch strings.ToLower(value) {
	case "true", "1", "on", "yes":
		return true, true
	case "false", "0", "off", "no":
		return false, true
	case "":
		return false, false
	}
	if o.err == nil {
		o.err = o.conf.located(o.section, keys[0],
			fmt.Errorf("[%s] %s is %q, neither true nor false", o.section, keys[0], value))
	}
	return false, false
}

// uriParts are those of mongodb://[userinfo@]hosts[/path][?options], user and
// password decoded as pymongo does (uri_parser.py, parse_userinfo).
type uriParts struct {
	before, hosts, after string // as written; before ends and after begins where the hosts do
	user, password       string
	odd                  bool   // pymongo refuses the credentials
	path, options        string // options without those of TLS
}

// splitURI takes a URI apart. It works on the text, so that what is put
// together again is the same byte for byte.
func splitURI(uri string) (u uriParts, err error) {
	i := strings.Index(uri, "://")
	if i < 0 {
		return u, errors.New("it is not a URI")
	}
	if scheme := uri[:i]; scheme != "mongodb" {
		return u, fmt.Errorf("a %s:// URI has no host that could be changed", scheme)
	}
	end := len(uri)
	if k := strings.IndexAny(uri[i+3:], "/?"); k >= 0 {
		end = i + 3 + k
	}
	start := i + 3
	if k := strings.LastIndexByte(uri[start:end], '@'); k >= 0 {
		name, password, _ := strings.Cut(uri[start:start+k], ":")
		u.odd = strings.ContainsAny(password, ":@")
		var nameErr, passwordErr error
		u.user, nameErr = url.QueryUnescape(name)
		u.password, passwordErr = url.QueryUnescape(password)
		if nameErr != nil || passwordErr != nil {
			return u, errors.New("the user or the password in the URI has a % that is not encoded: write %25")
		}
		start += k + 1
	}
	// What follows would be taken for hosts, and shown in messages.
	path, options, _ := strings.Cut(uri[end:], "?")
	if strings.Contains(path, "@") {
		return u, errors.New("the user or the password in the URI has a / that is not encoded: write %2F")
	}
	for _, hp := range strings.Split(uri[start:end], ",") {
		if name, _ := splitHost(hp); name == "" {
			return u, errors.New("the URI has no host")
		}
	}
	u.before, u.hosts, u.after, u.path = uri[:start], uri[start:end], uri[end:], path
	var kept []string
	for _, option := range strings.FieldsFunc(options, func(r rune) bool { return r == '&' || r == ';' }) {
		if key := strings.ToLower(option); !strings.HasPrefix(key, "tls") && !strings.HasPrefix(key, "ssl") {
			kept = append(kept, option)
		}
	}
	u.options = strings.Join(kept, "&")
	return u, nil
}

// rehost returns uri with each host that means "this machine" replaced by
// address; ports stay. elsewhere is the first host that means another machine.
func rehost(uri, address string) (changed, elsewhere string, err error) {
	u, err := splitURI(uri)
	if err != nil {
		return "", "", err
	}
	hosts, elsewhere := rehosted(u.hosts, address)
	return u.before + hosts + u.after, elsewhere, nil
}

// rehosted is rehost for HOST[:PORT],… alone.
func rehosted(hosts, address string) (changed, elsewhere string) {
	list := strings.Split(hosts, ",")
	for i, hp := range list {
		name, port := splitHost(strings.TrimSpace(hp))
		if name != address && !isLoopback(name) {
			return "", name
		}
		switch {
		case port != "":
			list[i] = net.JoinHostPort(address, port)
		case strings.Contains(address, ":"):
			list[i] = "[" + address + "]"
		default:
			list[i] = address
		}
	}
	return strings.Join(list, ","), ""
}

// splitHost takes HOST or HOST:PORT apart; port is empty if there is none.
func splitHost(hp string) (name, port string) {
	name, port, err := net.SplitHostPort(hp)
	if err != nil {
		return strings.Trim(hp, "[]"), ""
	}
	return name, port
}

func isLoopback(name string) bool {
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && (ip.IsLoopback() || ip.IsUnspecified())
}

// MessagingURL builds the URL of a broker with encoded credentials
// (RabbitMQ URI specification). The vhost "/" is the empty path; heartbeat is
// the seconds of kombu's option of that name, and is left out if empty.
func MessagingURL(user, password, address string, port int, vhost, heartbeat string) string {
	// net/url leaves sub-delims such as $ and & in the userinfo as they are;
	// oslo.config would interpolate the first.
	text := "amqp://" + encode(user) + ":" + encode(password) + "@" +
		net.JoinHostPort(address, strconv.Itoa(port)) + "/"
	if vhost != "/" {
		text += encode(vhost)
	}
	if heartbeat != "" {
		text += "?heartbeat=" + heartbeat
	}
	return text
}

func encode(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
