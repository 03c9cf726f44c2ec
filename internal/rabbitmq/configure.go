package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/secure"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

const (
	envPath     = "/etc/rabbitmq/rabbitmq-env.conf"
	confPath    = "/etc/rabbitmq/rabbitmq.conf"
	classicPath = "/etc/rabbitmq/rabbitmq.config"
	unit        = "rabbitmq-server.service"
)

// Configure makes the broker reachable on the primary's address, with a user
// for the other nodes.
type Configure struct {
	Address        string // of the primary, as the other nodes reach it
	Port           int    // of the listener
	User           string
	Password       string
	VHost          string
	Permissions    Permissions
	UpdatePassword bool        // change the password of a user that exists
	From           []host.Host // the nodes a login must work from
	Within         time.Duration
	// TLS is how the broker's node speaks to it at Port; nil: without.
	TLS func(ctx context.Context, h host.Host, port int) (*secure.TLS, error)

	tls   *secure.TLS
	works bool // when the last Plan tried, from the broker's own node
}

// Permissions are the three patterns of RabbitMQ's access control.
type Permissions struct {
	Configure string `json:"configure"`
	Write     string `json:"write"`
	Read      string `json:"read"`
}

// everything is what Works uses, so that it can stand for the proof.
var everything = Permissions{".*", ".*", ".*"}

func (p Permissions) list() []string { return []string{p.Configure, p.Write, p.Read} }

// Name is configure_rabbitmq.
func (s *Configure) Name() string { return "configure_rabbitmq" }

func (s *Configure) login(address string) Login {
	return Login{Addr: net.JoinHostPort(address, strconv.Itoa(s.Port)), User: s.User, Password: s.Password, VHost: s.VHost, TLS: s.tls}
}

// Validate refuses what RabbitMQ would, before anything is changed.
func (s *Configure) Validate() error {
	name := regexp.MustCompile(`^[A-Za-z0-9_.@-]{1,64}$`)
	switch {
	case !name.MatchString(s.User) || s.User[0] == '-':
		return fault.Usage("rabbitmq_user %q is no name: letters, digits and _.@- only", s.User)
	case s.User == "guest":
		return fault.Usage("rabbitmq_user guest may log in from loopback only: choose another, such as st2")
	case s.Password == "":
		return fault.Usage("rabbitmq_password is missing: set it in the pack's configuration, or in the environment as ST2HA_RABBITMQ_PASSWORD")
	case s.VHost == "" || strings.HasPrefix(s.VHost, "-") || strings.ContainsFunc(s.VHost, func(r rune) bool { return r < ' ' }):
		return fault.Usage("rabbitmq_vhost %q is no vhost's name", s.VHost)
	}
	for _, pattern := range s.Permissions.list() {
		// Whether it is a regular expression is for the broker to say: see judge.
		if strings.HasPrefix(pattern, "-") || !utf8.ValidString(pattern) || strings.ContainsFunc(pattern, unicode.IsControl) {
			return fault.Usage("permission %q is none: a regular expression that begins with no -, without control characters", pattern)
		}
	}
	return nil
}

// Check looks for the broker.
func (s *Configure) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	found, err := service.First(ctx, h, unit)
	if err != nil || found != "" {
		return nil, err
	}
	return []step.Finding{{Severity: step.Error, Host: h.Name(), Check: "rabbitmq", Message: "there is no unit " + unit,
		Fix: "install RabbitMQ on the primary, or check that this is the primary"}}, nil
}

// Plan opens the listener and sees to vhost, user and permissions. As long as
// a login works it asks nothing of rabbitmqctl, which takes seconds.
func (s *Configure) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	s.works = false
	if s.TLS != nil {
		var err error
		if s.tls, err = s.TLS(ctx, h, s.Port); err != nil {
			return nil, err
		}
	}
	var changes []step.Change
	at := s.Address
	if err := Listens(ctx, h, s.login(at).Addr); err != nil {
		edits, err := s.listener(ctx, h)
		if err != nil {
			return nil, err
		}
		changes = append(edits, &service.Restart{Unit: unit})
		at = "127.0.0.1" // where it can be asked until then
	} else if owed, err := step.Owed(ctx, h, unit); err != nil || owed {
		if err != nil {
			return nil, err
		}
		changes = append(changes, &service.Restart{Unit: unit})
	}
	err := Works(ctx, h, s.login(at))
	if secure.Unaskable(err) {
		return nil, fault.Preflight("rabbitmq_tls", "give rabbitmq_port the port of a listener that [messaging] of the primary's st2.conf speaks to, or of one without TLS",
			"%s: RabbitMQ at %s cannot be asked: %w", h.Name(), s.login(at).Addr, err)
	}
	if s.Permissions == everything && err == nil {
		s.works = len(changes) == 0
		return changes, nil
	}
	access, err := s.access(ctx, h)
	// The restart is last: after it, all that was connected comes at once, and rabbitmqctl takes twice as long.
	return append(access, changes...), err
}

// listener edits the files that bind the broker to loopback. What it binds
// afterwards is loopback and the primary's address, not every interface.
func (s *Configure) listener(ctx context.Context, h host.Host) ([]step.Change, error) {
	envFile, envExists, err := step.ReadOrEmpty(ctx, h, envPath, 0o644)
	if err != nil {
		return nil, err
	}
	env, err := confedit.ParseINI(envFile.Data, confedit.Env)
	if err != nil {
		return nil, step.Located(h, envPath, err)
	}
	if port, ok := env.Get("", "NODE_PORT"); ok && port != "" && port != strconv.Itoa(s.Port) {
		return nil, fault.Preflight("rabbitmq_listener", "set rabbitmq_port to that port, or take the line out",
			"%s: %s:%d: NODE_PORT has the broker listen on port %s, not %d", h.Name(), envPath, env.Line("", "NODE_PORT"), port, s.Port)
	}
	loopback := false
	for _, key := range []string{"NODE_IP_ADDRESS", "RABBITMQ_NODE_IP_ADDRESS"} {
		bound, ok := env.Get("", key)
		switch {
		case !ok || bound == "" || covers(bound, s.Address):
			continue
		case !covers(bound, "127.0.0.1") && bound != "::1" && bound != "localhost":
			return nil, fault.Preflight("rabbitmq_listener", "give that address as the primary's, or take the line out",
				"%s: %s:%d: %s binds the broker to %s", h.Name(), envPath, env.Line("", key), key, bound)
		}
		loopback = true
		if err := env.Comment("", key); err != nil {
			return nil, step.Located(h, envPath, err)
		}
	}
	confFile, confExists, err := step.ReadOrEmpty(ctx, h, confPath, 0o644)
	if err != nil {
		return nil, err
	}
	conf, err := confedit.ParseINI(confFile.Data, confedit.Rabbit)
	if err != nil {
		return nil, step.Located(h, confPath, err)
	}
	if value, _ := conf.Get("", "listeners.tcp"); value == "none" {
		return nil, fault.Preflight("rabbitmq_listener", "take the line out: the nodes' services log in without TLS, which this line switches off",
			"%s: %s:%d: listeners.tcp = none", h.Name(), confPath, conf.Line("", "listeners.tcp"))
	}
	edited, err := s.listen(conf, loopback)
	if err != nil {
		return nil, step.Located(h, confPath, err)
	}
	envEdit := step.EditFile(envFile, envExists, env.Bytes())
	if !edited {
		return appendEdit(nil, envEdit), nil
	}
	if _, err := h.Stat(ctx, classicPath); err == nil && !confExists {
		return nil, fault.Preflight("rabbitmq_classic_config", fmt.Sprintf("add {%q, %d} to tcp_listeners there by hand, restart RabbitMQ, then run this again", s.Address, s.Port),
			"%s: %s is in Erlang terms, which are not edited", h.Name(), classicPath)
	}
	// rabbitmq.conf first: a run that is killed between the two must not leave a
	// broker that no file binds to anything.
	return appendEdit(appendEdit(nil, step.EditFile(confFile, confExists, conf.Bytes())), envEdit), nil
}

func appendEdit(changes []step.Change, edit *step.FileChange) []step.Change {
	if edit == nil {
		return changes
	}
	return append(changes, edit)
}

// listen adds the listeners that rabbitmq.conf lacks (RabbitMQ, networking guide).
func (s *Configure) listen(conf *confedit.INI, loopback bool) (edited bool, err error) {
	listeners := 0
	for _, key := range conf.Keys("") {
		if !strings.HasPrefix(key, "listeners.tcp") {
			continue
		}
		value, _ := conf.Get("", key)
		listeners++
		// HOST:PORT, where an IPv6 address may do without its brackets, or a
		// port alone: all interfaces.
		name := strings.Trim(value[:max(strings.LastIndexByte(value, ':'), 0)], "[]")
		if covers(name, s.Address) {
			return false, nil
		}
	}
	add := map[string]string{}
	switch {
	case listeners == 0 && !loopback:
		return false, nil // all interfaces is the default
	case listeners == 0:
		add["listeners.tcp.local"] = "127.0.0.1"
	}
	add["listeners.tcp.st2ha"] = s.Address
	for _, key := range []string{"listeners.tcp.local", "listeners.tcp.st2ha"} {
		if address, ok := add[key]; ok {
			if err := conf.Set("", key, net.JoinHostPort(address, strconv.Itoa(s.Port))); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// covers says whether a listener bound to name takes connections to address.
func covers(name, address string) bool {
	ip := net.ParseIP(strings.Trim(name, "[]"))
	return name == "" || name == address || ip != nil && ip.IsUnspecified()
}

// Verify proves a login from the primary and from each of the other nodes.
func (s *Configure) Verify(ctx context.Context, h host.Host) error {
	prove := func(ctx context.Context, from host.Host) error {
		if s.Permissions == everything {
			return Works(ctx, from, s.login(s.Address))
		}
		conn, err := Dial(ctx, from, s.login(s.Address))
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.Within)
	defer cancel()
	hosts := s.From
	if !s.works {
		hosts = append([]host.Host{h}, hosts...)
	}
	for _, from := range hosts {
		for {
			err := prove(ctx, from)
			if err == nil {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
				if !errors.Is(err, ErrRefused) {
					continue
				}
			}
			return fault.Failed("rabbitmq_login", "look at /var/log/rabbitmq on "+h.Name()+" and at the firewalls between the nodes",
				"log in to RabbitMQ at %s as %s from %s: %w", s.login(s.Address).Addr, s.User, from.Name(), err)
		}
	}
	return nil
}
