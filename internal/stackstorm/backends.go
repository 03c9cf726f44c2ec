package stackstorm

import (
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"

	"st2ha/internal/rabbitmq"
)

// Broker reads the login of [messaging] url.
func (c *Conf) Broker() (rabbitmq.Login, error) {
	value, _ := c.Get("messaging", "url")
	l, err := ParseMessagingURL(unescape(value))
	if err != nil {
		return l, c.located("messaging", "url", errors.New("[messaging] url is no URL"))
	}
	return l, nil
}

// Brokers reads the logins of all nodes of the broker: [messaging]
// cluster_urls, or else url (st2common/transport/utils.py, get_messaging_urls).
func (c *Conf) Brokers() ([]rabbitmq.Login, error) {
	var logins []rabbitmq.Login
	for _, text := range strings.Split(c.option("messaging", "cluster_urls"), ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		l, err := ParseMessagingURL(text)
		if err != nil {
			return nil, c.located("messaging", "cluster_urls", errors.New("one of [messaging] cluster_urls is no URL"))
		}
		logins = append(logins, l)
	}
	if len(logins) > 0 {
		return logins, nil
	}
	l, err := c.Broker()
	return []rabbitmq.Login{l}, err
}

// BrokerTLS says whether the broker is spoken to by TLS, and which file holds
// the authorities to trust; empty: its certificate is not checked, as with the
// library that StackStorm uses.
func (c *Conf) BrokerTLS() (on bool, authorities string) {
	on, _ = strconv.ParseBool(c.option("messaging", "ssl"))
	authorities = c.option("messaging", "ssl_ca_certs")
	return on || authorities != "", authorities
}

// BrokerPrefix is what the names of StackStorm's queues begin with.
func (c *Conf) BrokerPrefix() string { return c.option("messaging", "prefix") }

// Coordination is [coordination] url, of Redis or of another coordinator;
// empty if there is none.
func (c *Conf) Coordination() string { return c.option("coordination", "url") }

func (c *Conf) option(section, key string) string {
	value, _ := c.Get(section, key)
	return unescape(value)
}

// ParseMessagingURL reads amqp://user:password@host:port/vhost as kombu does.
// Its error holds no part of the URL.
func ParseMessagingURL(text string) (rabbitmq.Login, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return rabbitmq.Login{}, errors.New("no URL of a broker: amqp://user:password@host:port/vhost, with what is special in a password percent-encoded")
	}
	password, _ := u.User.Password()
	l := rabbitmq.Login{Addr: u.Host, User: u.User.Username(), Password: password, VHost: "/"}
	if u.Port() == "" {
		l.Addr = net.JoinHostPort(u.Hostname(), "5672")
	}
	// kombu: no path, "/" and "//" are the vhost "/".
	if vhost := strings.TrimPrefix(u.Path, "/"); vhost != "" {
		l.VHost = vhost
	}
	return l, nil
}
