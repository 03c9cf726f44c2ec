// Package stackstorm configures StackStorm itself: st2.conf and the services
// that read it.
package stackstorm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"strconv"
	"strings"

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// ConfPath is StackStorm's configuration file, as its packages install it.
const ConfPath = "/etc/st2/st2.conf"

// Conf is a host's st2.conf, to be read and edited.
type Conf struct {
	*confedit.INI
	file host.File
	host host.Host
}

// ReadConf reads a host's st2.conf.
func ReadConf(ctx context.Context, h host.Host) (*Conf, error) {
	f, err := h.ReadFile(ctx, ConfPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Preflight("missing", "install StackStorm on "+h.Name()+" first", "%s: %s does not exist", h.Name(), ConfPath)
	}
	if err != nil {
		return nil, err
	}
	ini, err := confedit.ParseINI(f.Data, confedit.OSLO)
	if err != nil {
		return nil, step.Located(h, ConfPath, err)
	}
	f.Path = ConfPath
	return &Conf{INI: ini, file: f, host: h}, nil
}

// Change returns what was edited, or nil if nothing was.
func (c *Conf) Change() *step.FileChange { return step.EditFile(c.file, true, c.Bytes()) }

// Located puts host, file and the line of an option before an error about it.
func (c *Conf) located(section, key string, err error) error {
	if line := c.Line(section, key); line > 0 {
		return step.Located(c.host, fmt.Sprintf("%s:%d", ConfPath, line), err)
	}
	return step.Located(c.host, ConfPath, err)
}

// Database is where [database] points and how to log in there.
type Database struct {
	URI string // as a driver takes it; holds the password
	Via string // host:port, without a secret
}

// Database reads [database] as st2common/models/db does: host may be a whole URI.
func (c *Conf) Database() (Database, error) {
	get := func(key, otherwise string) string {
		if v, ok := c.Get("database", key); ok && v != "" {
			return unescape(v)
		}
		return otherwise
	}
	h, port, name := get("host", "127.0.0.1"), get("port", "27017"), get("db_name", "st2")
	if strings.Contains(h, "://") {
		hosts, err := uriHosts(h)
		if err != nil {
			return Database{}, c.located("database", "host", err)
		}
		first, _, _ := strings.Cut(hosts, ",") // a node's own mongod; others are refused (rehost)
		name, own := splitHost(first)
		if own == "" {
			own = port // as pymongo takes it
		}
		return Database{URI: h, Via: net.JoinHostPort(name, own)}, nil
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return Database{}, c.located("database", "port", fmt.Errorf("port %q is no number", port))
	}
	via := net.JoinHostPort(h, port)
	u := url.URL{Scheme: "mongodb", Host: via, Path: "/" + name}
	if user := get("username", ""); user != "" {
		u.User = url.UserPassword(user, get("password", ""))
	}
	return Database{URI: u.String(), Via: via}, nil
}

// unescape undoes oslo.config's "$$"; other interpolation is left as it is.
func unescape(value string) string { return strings.ReplaceAll(value, "$$", "$") }

// splitURI takes scheme://[userinfo@]hosts[/rest] apart. It works on the text,
// so that what is put together again is the same byte for byte.
func splitURI(uri string) (before, hosts, after string, err error) {
	i := strings.Index(uri, "://")
	if i < 0 {
		return "", "", "", errors.New("no URI")
	}
	if scheme := uri[:i]; scheme != "mongodb" {
		return "", "", "", fmt.Errorf("a %s:// URI names no host that could be changed", scheme)
	}
	end := len(uri)
	if k := strings.IndexAny(uri[i+3:], "/?"); k >= 0 {
		end = i + 3 + k
	}
	start := i + 3
	if k := strings.LastIndexByte(uri[start:end], '@'); k >= 0 {
		start += k + 1
	}
	// What follows would be taken for hosts, and shown in messages.
	if path, _, _ := strings.Cut(uri[end:], "?"); strings.Contains(path, "@") {
		return "", "", "", errors.New("the URI's credentials hold a / that is not encoded: it is %2F there")
	}
	for _, hp := range strings.Split(uri[start:end], ",") {
		if name, _ := splitHost(hp); name == "" {
			return "", "", "", errors.New("the URI names no host")
		}
	}
	return uri[:start], uri[start:end], uri[end:], nil
}

func uriHosts(uri string) (string, error) {
	_, hosts, _, err := splitURI(uri)
	return hosts, err
}

// rehost returns uri with each host that means "this machine" replaced by
// address; ports stay. elsewhere is the first host that means another machine.
func rehost(uri, address string) (changed, elsewhere string, err error) {
	before, hosts, after, err := splitURI(uri)
	if err != nil {
		return "", "", err
	}
	list := strings.Split(hosts, ",")
	for i, hp := range list {
		name, port := splitHost(hp)
		if name != address && !isLoopback(name) {
			return "", name, nil
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
	return before + strings.Join(list, ",") + after, "", nil
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
// (RabbitMQ URI specification). The vhost "/" is the empty path.
func MessagingURL(user, password, address string, port int, vhost string) string {
	// net/url leaves sub-delims such as $ and & in the userinfo as they are;
	// oslo.config would interpolate the first.
	text := "amqp://" + encode(user) + ":" + encode(password) + "@" + net.JoinHostPort(address, strconv.Itoa(port)) + "/"
	if vhost != "/" {
		text += encode(vhost)
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
