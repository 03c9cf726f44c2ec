package stackstorm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"st2ha/internal/host"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/secure"
)

// defaultMessagingURL is where nothing is set (st2common/config.py, messaging).
const defaultMessagingURL = "amqp://guest:guest@127.0.0.1:5672//"

// Broker is the login at the broker's first node.
func (c *Conf) Broker() (rabbitmq.Login, error) {
	all, err := c.Brokers()
	if err != nil {
		return rabbitmq.Login{}, err
	}
	return all[0], nil
}

// Brokers reads the logins of all nodes of the broker: [messaging]
// cluster_urls, or else url, with the section's settings of TLS
// (st2common/transport/utils.py, get_messaging_urls and get_connection).
func (c *Conf) Brokers() ([]rabbitmq.Login, error) {
	urls, key, err := c.messagingURLs()
	if err != nil {
		return nil, err
	}
	all, err := c.MessagingLogins(urls)
	if err != nil {
		return nil, c.located("messaging", key, fmt.Errorf("[messaging] %s is not a URL of a broker: %w", key, err))
	}
	return all, nil
}

// messagingURLs are the URLs of the broker's nodes, and the option that has them.
func (c *Conf) messagingURLs() (urls []string, key string, err error) {
	text, _, err := c.Value("messaging", "cluster_urls")
	if err != nil {
		return nil, "", err
	}
	if urls = list(text); len(urls) > 0 {
		return urls, "cluster_urls", nil
	}
	text, ok, err := c.Value("messaging", "url")
	switch {
	case err != nil:
		return nil, "", err
	case !ok && c.odd:
		return nil, "", c.located("messaging", "url", fmt.Errorf("[messaging] url: %w", errHidden))
	case !ok:
		text = defaultMessagingURL
	}
	return []string{text}, "url", nil
}

// seconds are a heartbeat's as kombu reads it, a float (connection.py, _init_params).
var seconds = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)

// heartbeat is what the broker's URL says of heartbeats, and the option that it stands in; empty if it says nothing
// that StackStorm could read. Of several URLs the first one's holds (kombu's connection.py, Connection.__init__).
func (c *Conf) heartbeat() (text, key string) {
	urls, key, err := c.messagingURLs()
	if err != nil {
		return "", "" // whoever needs the login says so
	}
	u, err := splitMessagingURL(urls[0])
	if err != nil {
		return "", ""
	}
	given := u.options["heartbeat"] // of several the last one counts (kombu's utils/url.py, a dict of parse_qsl)
	if len(given) == 0 || !seconds.MatchString(given[len(given)-1]) {
		return "", ""
	}
	return given[len(given)-1], key
}

// list is oslo.config's ListOpt (oslo_config/types.py, List).
func list(text string) []string {
	var all []string
	for _, item := range strings.Split(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			all = append(all, item)
		}
	}
	return all
}

// MessagingLogins are those of URLs together with what else [messaging] says;
// c may be nil. As in kombu (connection.py, Connection.__init__ and switch)
// what the first URL says of TLS holds for the others as well, and an URL's
// word counts more than the section's.
func (c *Conf) MessagingLogins(urls []string) ([]rabbitmq.Login, error) {
	var t *secure.TLS
	method := ""
	read := func(context.Context, string) ([]byte, error) { return nil, errors.New("no host to read it on") }
	if c != nil {
		var err error
		if t, method, err = c.messagingTLS(); err != nil {
			return nil, err
		}
		read = c.readFile
	}
	var all []rabbitmq.Login
	for i, text := range urls {
		u, err := splitMessagingURL(text)
		if err != nil {
			return nil, err
		}
		here := t
		for key := range u.options {
			if key == "ssl" || strings.HasPrefix(key, "ssl_") {
				here = &secure.TLS{Read: read, CA: u.options.Get("ssl_ca_certs"), Cert: u.options.Get("ssl_certfile"),
					Key:    u.options.Get("ssl_keyfile"),
					Verify: !strings.HasSuffix(strings.ToLower(u.options.Get("ssl_cert_reqs")), "none")}
			}
		}
		if i == 0 {
			t = here
		}
		if u.scheme == "amqps" && here == nil {
			here = &secure.TLS{Verify: true}
		}
		port := u.port
		if port == "" {
			port = map[bool]string{true: "5671", false: "5672"}[here != nil]
		}
		l := u.login
		l.Addr, l.TLS, l.Method = net.JoinHostPort(u.host, port), here, method
		if m := u.options.Get("login_method"); m != "" {
			l.Method = m
		}
		all = append(all, l)
	}
	return all, nil
}

// messagingTLS are [messaging] ssl* and login_method (st2common/transport/
// utils.py, _get_ssl_kwargs). A name is never verified, and the certificate
// always unless it is said (amqp/transport.py, _wrap_socket_sni).
func (c *Conf) messagingTLS() (*secure.TLS, string, error) {
	o := &optionReader{conf: c, section: "messaging"}
	t := &secure.TLS{Read: c.readFile, CA: o.text("ssl_ca_certs"), Cert: o.text("ssl_certfile"),
		Key: o.text("ssl_keyfile")}
	t.Verify = o.text("ssl_cert_reqs") != "none"
	method := o.text("login_method")
	if on, _ := o.truth("ssl"); o.err != nil || !on && t.CA == "" && t.Cert == "" && t.Key == "" {
		return nil, method, o.err
	}
	return t, method, nil
}

// Prefix is what the names of StackStorm's queues and exchanges begin with,
// instead of st2 (st2common/transport/kombu.py).
func (c *Conf) Prefix() string {
	return cmp.Or(c.option("messaging", "prefix"), "st2")
}

// Coordination is [coordination] url, of Redis or of another coordinator;
// empty if there is none.
func (c *Conf) Coordination() string { return c.option("coordination", "url") }

// option is a value in which references that cannot be resolved stay as they are.
func (c *Conf) option(section, key string) string {
	value, _ := c.Get(section, key)
	value, _ = c.expand(section, value, 8)
	return value
}

// messagingURL is one that is taken apart.
type messagingURL struct {
	scheme, host, port string
	login              rabbitmq.Login // user, password and vhost
	options            url.Values
}

// splitMessagingURL reads amqp://user:password@host:port/vhost?options as kombu
// does (utils/url.py, by urllib, and transport/pyamqp.py for what is left out).
// Its error holds no part of the URL.
func splitMessagingURL(text string) (messagingURL, error) {
	wrong := errors.New("amqp://user:password@host:port/vhost, with #, /, ? and @ in a password percent-encoded")
	u := messagingURL{host: "127.0.0.1", login: rabbitmq.Login{User: "guest", Password: "guest", VHost: "/"}}
	scheme, rest, found := strings.Cut(text, "://")
	if !found { // a host alone
		u.host = cmp.Or(text, u.host)
		if strings.ContainsAny(text, ":/@ ") {
			return u, wrong
		}
		return u, nil
	}
	switch u.scheme = strings.ToLower(scheme); u.scheme {
	case "amqp", "amqps", "pyamqp", "librabbitmq":
	default:
		return u, wrong
	}
	rest, _, _ = strings.Cut(rest, "#")
	place := rest
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		place = rest[:i]
	}
	path, query, _ := strings.Cut(rest[len(place):], "?")
	if i := strings.LastIndexByte(place, '@'); i >= 0 {
		user, password, _ := strings.Cut(place[:i], ":")
		u.login.User, u.login.Password = cmp.Or(unquote(user), "guest"), cmp.Or(unquote(password), "guest")
		place = place[i+1:]
	}
	name, port := splitHost(place)
	if port != "" {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return u, wrong
		}
	}
	if strings.ContainsAny(name, "[]") || strings.Contains(name, ":") && net.ParseIP(name) == nil {
		return u, wrong
	}
	u.host, u.port = cmp.Or(strings.ToLower(unquote(name)), u.host), port
	if u.host == "localhost" {
		u.host = "127.0.0.1"
	}
	u.login.VHost = cmp.Or(unquote(strings.TrimPrefix(path, "/")), "/")
	u.options, _ = url.ParseQuery(query)
	return u, nil
}

// unquote is urllib's: a % that begins no escape is itself.
func unquote(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '%' && i+2 < len(text) {
			if c, err := strconv.ParseUint(text[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// NodeTLS is the TLS that a host's st2.conf speaks to the broker at the port.
func NodeTLS(ctx context.Context, h host.Host, port int) (*secure.TLS, error) {
	conf, err := ReadConf(ctx, h)
	if err != nil {
		return nil, err
	}
	login, err := conf.Broker()
	return TLSAt(login, port), err
}
