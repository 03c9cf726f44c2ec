package mongodb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/secure"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

// Configure makes mongod listen on the primary's address beside loopback.
type Configure struct {
	Address              string // of the primary, as the other nodes reach it
	Replace              bool   // listen on Address only
	AllowUnauthenticated bool   // expose it also if it asks for no login
	Within               time.Duration

	// Clients are the addresses, host:port, at which StackStorm has to reach mongod
	// afterwards, so that it can store this step's result; nil if nobody waits for it.
	Clients func(ctx context.Context, h host.Host) ([]string, error)

	answered bool // when the last Plan asked: nothing is left to prove
}

// Name is configure_mongodb.
func (s *Configure) Name() string { return "configure_mongodb" }

// config is mongod's configuration file, in either of its formats.
type config struct {
	file host.File
	ini  *confedit.INI // nil for YAML
}

// DefaultPort is mongod's TCP port where its configuration names none.
const DefaultPort = 27017

// Files are where mongod's configuration may be; the first that exists counts.
func Files() []string { return []string{"/etc/mongod.conf", "/etc/mongodb.conf"} }

// read finds the file. /etc/mongod.conf is YAML since MongoDB 2.6, but Red
// Hat's packages kept the name for the ini style before; Debian's own package
// called that /etc/mongodb.conf.
func read(ctx context.Context, h host.Host) (*config, error) {
	for _, path := range Files() {
		f, err := h.ReadFile(ctx, path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f.Path = path
		c := &config{file: f}
		if iniStyle(f.Data) {
			if c.ini, err = confedit.ParseINI(f.Data, confedit.Mongo); err != nil {
				return nil, step.Located(h, path, err)
			}
		}
		return c, nil
	}
	return nil, fault.Preflight("missing", "install MongoDB on the primary, or check that this is the primary",
		"%s: neither /etc/mongod.conf nor /etc/mongodb.conf exists", h.Name())
}

// iniStyle recognizes the format by the first line that sets something.
func iniStyle(data []byte) bool {
	option := regexp.MustCompile(`^\s*[A-Za-z][A-Za-z0-9_.]*\s*=`)
	for _, line := range bytes.Split(data, []byte("\n")) {
		if trimmed := bytes.TrimSpace(line); len(trimmed) > 0 && trimmed[0] != '#' {
			return option.Match(line)
		}
	}
	return false
}

// get reads an option by its names in the two formats.
func (c *config) get(ini string, yaml ...string) (string, error) {
	if c.ini != nil {
		v, _ := c.ini.Get("", ini)
		return v, nil
	}
	v, _, err := confedit.YAMLGet(c.file.Data, yaml...)
	return v, err
}

func (c *config) setBindIP(value string) ([]byte, error) {
	if c.ini == nil {
		return confedit.YAMLSet(c.file.Data, value, "net", "bindIp")
	}
	if err := c.ini.Set("", "bind_ip", value); err != nil {
		return nil, err
	}
	return c.ini.Bytes(), nil
}

// setIPv6 switches IPv6 on in data, which is what the file becomes, where the
// address needs it: mongod binds no IPv6 address without (mongod manual, net.ipv6).
func (s *Configure) setIPv6(c *config, data []byte) ([]byte, error) {
	if !s.sixth() {
		return data, nil
	}
	if c.ini == nil {
		return confedit.YAMLSet(data, "true", "net", "ipv6")
	}
	if err := c.ini.Set("", "ipv6", "true"); err != nil {
		return nil, err
	}
	return c.ini.Bytes(), nil
}

// sixth says whether the address is one of IPv6.
func (s *Configure) sixth() bool {
	ip := net.ParseIP(s.Address)
	return ip != nil && ip.To4() == nil
}

// port is net.port; mongod's default is 27017.
func (c *config) port() (int, error) {
	v, err := c.get("port", "net", "port")
	if err != nil || v == "" {
		return DefaultPort, err
	}
	port, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("port must be a number, not %q", v)
	}
	return int(port), nil
}

// authorization says whether the file asks for logins. A key file for the
// members of a replica set switches them on too (mongod manual, security).
func (c *config) authorization() (bool, error) {
	for _, option := range []struct {
		ini  string
		yaml []string
		on   func(string) bool
	}{
		{"auth", []string{"security", "authorization"}, func(v string) bool { return v == "enabled" || v == "true" }},
		{"keyFile", []string{"security", "keyFile"}, func(v string) bool { return v != "" }},
		{"clusterAuthMode", []string{"security", "clusterAuthMode"}, func(v string) bool { return v != "" }},
	} {
		v, err := c.get(option.ini, option.yaml...)
		if err != nil {
			return false, err
		}
		if option.on(strings.ToLower(v)) {
			return true, nil
		}
	}
	return false, nil
}

// bindIP returns the addresses mongod listens on by the file, and those it shall.
func (s *Configure) bindIP(c *config) (now, want string, err error) {
	if now, err = c.get("bind_ip", "net", "bindIp"); err != nil {
		return "", "", err
	}
	all, err := c.get("bind_ip_all", "net", "bindIpAll")
	if err != nil {
		return "", "", err
	}
	if s.Replace {
		if all == "true" {
			return "", "", errors.New("net.bindIpAll is true: take it out, then bindIp can be replaced")
		}
		return now, s.Address, nil
	}
	if all == "true" {
		return now, now, nil
	}
	var list []string
	for _, a := range strings.Split(now, ",") {
		switch a = strings.TrimSpace(a); {
		case a == s.Address, a == "*", a == "0.0.0.0" && !s.sixth(), a == "::" && s.sixth():
			return now, now, nil
		case a == "":
		default:
			list = append(list, a)
		}
	}
	if len(list) == 0 {
		list = []string{"127.0.0.1"} // what mongod binds without the option, since 3.6
	}
	return now, strings.Join(append(list, s.Address), ","), nil
}

// Check refuses to expose a mongod that asks for no login.
func (s *Configure) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	c, err := read(ctx, h)
	if err != nil {
		return nil, err
	}
	now, want, err := s.bindIP(c)
	if err != nil {
		return nil, step.Located(h, c.file.Path, err)
	}
	if s.Replace && now != want && s.Clients != nil {
		if err := s.keepsClients(ctx, h); err != nil {
			return nil, err
		}
	}
	secured, err := c.authorization()
	if err != nil {
		return nil, step.Located(h, c.file.Path, err)
	}
	port, err := c.port()
	if err != nil {
		return nil, step.Located(h, c.file.Path, err)
	}
	finding := step.Finding{Severity: step.Error, Host: h.Name(), Check: "mongodb_authorization",
		Message: fmt.Sprintf("%s: authorization is not enabled: everybody who reaches %s could read and change "+
			"StackStorm's data", c.file.Path, s.Address),
		Fix: "create users and set security.authorization: enabled, or accept it with allow_unauthenticated=true"}
	if secured {
		// The file may say so, and the process not know it yet.
		open, err := s.open(ctx, h, c, now, port)
		if err != nil || !open {
			return nil, nil //nolint:nilerr // one that does not answer is Plan's and Verify's concern
		}
		finding.Message = fmt.Sprintf("%s enables authorization, but the running mongod still takes commands from "+
			"clients that have not logged in", c.file.Path)
		finding.Fix = "restart mongod, then run this again; or accept it with allow_unauthenticated=true"
	}
	if s.AllowUnauthenticated || now == want {
		finding.Severity = step.Warning
	}
	return []step.Finding{finding}, nil
}

// keepsClients refuses to take mongod from an address that the runner of this
// very step uses: its result could not be stored, and it would run for ever.
func (s *Configure) keepsClients(ctx context.Context, h host.Host) error {
	servers, err := s.Clients(ctx, h)
	if err != nil {
		return err
	}
	for _, server := range servers {
		if name, _, _ := net.SplitHostPort(server); name != s.Address {
			return fault.Preflight("replace_bind_ip",
				"start it on a secondary, run the steps of the primary from a shell, or leave replace_bind_ip out",
				"%s: StackStorm uses mongod at %s, where it would no longer listen: the result of this action could "+
					"not be stored", h.Name(), server)
		}
	}
	return nil
}

// open asks the running mongod on the first of its addresses.
func (s *Configure) open(ctx context.Context, h host.Host, c *config, bound string, port int) (bool, error) {
	first, _, _ := strings.Cut(bound, ",")
	if first = strings.TrimSpace(first); first == "" || first == "0.0.0.0" || first == "*" {
		first = "127.0.0.1"
	}
	addr := net.JoinHostPort(first, strconv.Itoa(port))
	server := Server{URI: "mongodb://" + addr}
	only, err := c.tlsOnly()
	if err != nil {
		return false, err
	}
	if only {
		server.TLS = &secure.TLS{}
	}
	return AllowsAnonymous(ctx, h, server, addr)
}

// tlsOnly says whether mongod speaks nothing but TLS; net.ssl is what net.tls
// was called before MongoDB 4.2 (mongod manual, net.tls.mode).
func (c *config) tlsOnly() (bool, error) {
	for _, option := range [][]string{{"tlsMode", "net", "tls", "mode"}, {"sslMode", "net", "ssl", "mode"}} {
		mode, err := c.get(option[0], option[1:]...)
		if err != nil || mode == "requireTLS" || mode == "requireSSL" {
			return err == nil, err
		}
	}
	return false, nil
}

// Units are the names that MongoDB's packages and Debian's own give the service.
func Units() []string { return []string{"mongod.service", "mongodb.service"} }

// Plan edits the file and restarts mongod; only the restart if the file is
// right and mongod does not answer on the address.
func (s *Configure) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	s.answered = false
	c, err := read(ctx, h)
	if err != nil {
		return nil, err
	}
	now, want, err := s.bindIP(c)
	if err != nil {
		return nil, step.Located(h, c.file.Path, err)
	}
	port, err := c.port()
	if err != nil {
		return nil, step.Located(h, c.file.Path, err)
	}
	var changes []step.Change
	data := c.file.Data
	answers := now == want && Answers(ctx, h, net.JoinHostPort(s.Address, strconv.Itoa(port))) == nil
	if now != want {
		data, err = c.setBindIP(want)
	}
	if err == nil && !answers {
		data, err = s.setIPv6(c, data)
	}
	if err != nil {
		return nil, step.Located(h, c.file.Path, err)
	}
	if edit := step.EditFile(c.file, true, data); edit != nil {
		changes = append(changes, edit)
	}
	if answers {
		// It may answer by what the file said before, where a run was killed.
		for _, unit := range Units() {
			if owed, err := step.Owed(ctx, h, unit); err != nil {
				return nil, err
			} else if owed {
				return []step.Change{&service.Restart{Unit: unit}}, nil
			}
		}
		s.answered = true
		return nil, nil
	}
	unit, err := service.First(ctx, h, Units()...)
	if err != nil {
		return nil, err
	}
	if unit == "" {
		return nil, fault.Preflight("mongod_unit", "install MongoDB's packages, which bring the unit",
			"%s: there is no unit mongod.service", h.Name())
	}
	return append(changes, &service.Restart{Unit: unit}), nil
}

// Verify waits until mongod answers on the address.
func (s *Configure) Verify(ctx context.Context, h host.Host) error {
	if s.answered {
		return nil
	}
	c, err := read(ctx, h)
	if err != nil {
		return err
	}
	port, err := c.port()
	if err != nil {
		return step.Located(h, c.file.Path, err)
	}
	addr := net.JoinHostPort(s.Address, strconv.Itoa(port))
	ctx, cancel := context.WithTimeout(ctx, s.Within)
	defer cancel()
	return step.Await(ctx, 200*time.Millisecond, func(ctx context.Context) (waiting, err error) {
		return Answers(ctx, h, addr), nil
	}, func(seen error) error {
		return fault.Failed("mongodb", "journalctl -u mongod says why",
			"%s: mongod does not answer on %s: %w", h.Name(), addr, seen)
	})
}
