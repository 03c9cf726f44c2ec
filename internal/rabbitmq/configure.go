package rabbitmq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/secure"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

// Configure makes the broker reachable on the primary's address, with a user
// for the other nodes.
type Configure struct {
	Address        string // of the primary, as the other nodes reach it
	Port           int    // of the listener; 0: as the broker's files have it
	User           string
	Password       string
	VHost          string
	Permissions    Permissions
	UpdatePassword bool        // change the password of a user that exists
	From           []host.Host // the nodes a login must work from
	Within         time.Duration
	// TLS is how the broker's node speaks to it at Port; nil: without.
	TLS func(ctx context.Context, h host.Host, port int) (*secure.TLS, error)

	tls    *secure.TLS
	works  bool // when the last Plan tried, from the broker's own node
	opened bool // a Plan has the broker started with files that do not open it to every interface
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
	return Login{Addr: net.JoinHostPort(address, strconv.Itoa(s.Port)), User: s.User, Password: s.Password,
		VHost: s.VHost, TLS: s.tls}
}

// Validate refuses what RabbitMQ would, before anything is changed.
func (s *Configure) Validate() error {
	name := regexp.MustCompile(`^[A-Za-z0-9_.@-]{1,64}$`)
	switch {
	case !name.MatchString(s.User) || s.User[0] == '-':
		return fault.Usage("rabbitmq_user must consist of letters, digits and _.@-, which %q does not", s.User)
	case s.User == "guest":
		return fault.Usage("rabbitmq_user guest may log in from loopback only: choose another, such as st2")
	case s.Password == "":
		return fault.Usage("rabbitmq_password is missing: set it in the pack's configuration, or in the environment " +
			"as ST2HA_RABBITMQ_PASSWORD")
	case s.VHost == "" || strings.HasPrefix(s.VHost, "-") ||
		strings.ContainsFunc(s.VHost, func(r rune) bool { return r < ' ' }):
		return fault.Usage("rabbitmq_vhost %q cannot be the name of a vhost", s.VHost)
	}
	for _, pattern := range s.Permissions.list() {
		// Whether it is a regular expression is for the broker to say: see checkPatterns.
		if strings.HasPrefix(pattern, "-") || !utf8.ValidString(pattern) ||
			strings.ContainsFunc(pattern, unicode.IsControl) {
			return fault.Usage("permission must be a regular expression that does not begin with - and has no "+
				"control characters, not %q", pattern)
		}
	}
	return nil
}

// Check looks for the broker.
func (s *Configure) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	found, err := service.First(ctx, h, Unit)
	if err != nil || found != "" {
		return nil, err
	}
	return []step.Finding{{Severity: step.Error, Host: h.Name(), Check: "rabbitmq", Message: "there is no unit " + Unit,
		Fix: "install RabbitMQ on the primary, or check that this is the primary"}}, nil
}

// Plan opens the listener and makes vhost, user and permissions. As long as a
// login works it does not call rabbitmqctl, which takes seconds.
func (s *Configure) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	s.works = false
	if s.Port == 0 {
		var err error
		if s.Port, err = Port(ctx, h, s.Address); err != nil {
			return nil, err
		}
	}
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
		changes = append(edits, &service.Restart{Unit: Unit})
		at = "127.0.0.1" // where it can be asked until then
	} else if owed, err := step.Owed(ctx, h, Unit); err != nil || owed {
		if err != nil {
			return nil, err
		}
		changes = append(changes, &service.Restart{Unit: Unit})
	}
	err := Works(ctx, h, s.login(at))
	if secure.Unaskable(err) {
		return nil, fault.Preflight("rabbitmq_tls",
			"give rabbitmq_port the port of a listener that [messaging] of the primary's st2.conf speaks to, or of "+
				"one without TLS",
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
	f, err := readFiles(ctx, h)
	if err != nil {
		return nil, err
	}
	plain, secured, off, err := f.listeners(ctx)
	if err != nil {
		return nil, err
	}
	here := func(l listener) bool { return l.port == s.Port && l.reaches(s.Address) }
	at := func(l listener) bool { return l.port == s.Port }
	reached := slices.ContainsFunc(plain, here) || slices.ContainsFunc(secured, here)
	environment := !f.decides && len(plain) == 1 && plain[0].host == f.address.value && plain[0].at == f.address.at
	switch {
	case reached:
	case off != "":
		return nil, f.refuse("take the line out: the nodes' services log in without TLS, which this line switches off",
			"%s", off)
	case slices.ContainsFunc(secured, at):
		l := secured[slices.IndexFunc(secured, at)]
		return nil, f.refuse(fmt.Sprintf(
			"add a listener for TLS at %s there by hand, restart RabbitMQ, then run this again",
			s.login(s.Address).Addr),
			"%s makes RabbitMQ listen for TLS on %s only", l.at, l)
	case f.decides:
		return nil, fault.Preflight("rabbitmq_classic_config",
			fmt.Sprintf("add {%q, %d} to tcp_listeners there by hand, restart RabbitMQ, then run this again",
				s.Address, s.Port),
			"%s: %s makes RabbitMQ listen on %s only, in Erlang terms, which st2ha does not edit", h.Name(),
			where(plain, f.terms+": tcp_listeners"), list(plain))
	case environment && plain[0].port != s.Port && f.port.value != "":
		return nil, f.refuse("leave rabbitmq_port out or set it to that port, or take the line out",
			"%s makes RabbitMQ listen on port %d, not %d", f.port.at, plain[0].port, s.Port)
	case environment && plain[0].port != s.Port:
		return nil, f.refuse("leave rabbitmq_port out", "RabbitMQ listens on port %d, not %d", plain[0].port, s.Port)
	case !slices.ContainsFunc(plain, at):
		return nil, f.refuse("leave rabbitmq_port out or set it to that port, or change the line",
			"%s makes RabbitMQ listen on port %d, not %d", plain[0].at, plain[0].port, s.Port)
	case environment && !isLoopback(plain[0].host):
		return nil, f.refuse("give that address as the primary's, or take the line out",
			"%s makes RabbitMQ listen on %s only", plain[0].at, plain[0].host)
	case f.main == nil:
		return nil, fault.Preflight("rabbitmq_classic_config",
			fmt.Sprintf("add {tcp_listeners, [{\"127.0.0.1\", %d}, {%q, %d}]} to the section rabbit there by hand, "+
				"restart RabbitMQ, then run this again", s.Port, s.Address, s.Port),
			"%s: %s is in Erlang terms, which st2ha does not edit", h.Name(), f.terms)
	}
	everywhere := func(l listener) bool { return l.port == s.Port && covers(l.host, "") }
	s.opened = !slices.ContainsFunc(plain, everywhere) && !slices.ContainsFunc(secured, everywhere)
	var changes []step.Change
	if !reached {
		if err := f.arguments(); err != nil {
			return nil, err
		}
		if changes, err = s.listen(ctx, f, environment); err != nil {
			return nil, err
		}
	}
	// rabbitmq.conf first: a run that is killed between the two must not leave a
	// broker that no file binds to anything.
	if f.address.file && !f.decides && f.main != nil && isLoopback(f.address.value) {
		if err := f.env.Comment("", "NODE_IP_ADDRESS"); err != nil {
			return nil, step.Located(h, f.envFile.Path, err)
		}
		changes = appendEdit(changes, step.EditFile(f.envFile, f.envExists, f.env.Bytes()))
	}
	return changes, nil
}

// where is the place of the first listener, or what stands for it.
func where(all []listener, otherwise string) string {
	if len(all) == 0 {
		return otherwise
	}
	return all[0].at
}

// list is listeners in words.
func list(all []listener) string {
	if len(all) == 0 {
		return "nothing"
	}
	var words []string
	for _, l := range all {
		words = append(words, l.String())
	}
	return strings.Join(words, ", ")
}

func appendEdit(changes []step.Change, edit *step.FileChange) []step.Change {
	if edit == nil {
		return changes
	}
	return append(changes, edit)
}

// listen adds the listeners that rabbitmq.conf lacks (RabbitMQ, networking
// guide): loopback too, where the environment named the only one.
func (s *Configure) listen(ctx context.Context, f *files, environment bool) ([]step.Change, error) {
	dir := path.Dir(f.mainFile.Path)
	if _, err := f.host.Stat(ctx, dir); errors.Is(err, fs.ErrNotExist) {
		return nil, f.refuse("make the directory, or take out the variable that names it",
			"RabbitMQ reads %s, and there is no directory %s", f.mainFile.Path, dir)
	} else if err != nil {
		return nil, err
	}
	add := [][2]string{{"listeners.tcp.st2ha", s.Address}}
	if environment {
		add = append([][2]string{{"listeners.tcp.local", "127.0.0.1"}}, add...)
	}
	for _, a := range add {
		if err := f.main.Set("", a[0], net.JoinHostPort(a[1], strconv.Itoa(s.Port))); err != nil {
			return nil, step.Located(f.host, f.mainFile.Path, err)
		}
	}
	plain, _, _, err := f.listeners(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range plain {
		if l.port == s.Port && l.reaches(s.Address) {
			return appendEdit(nil, step.EditFile(f.mainFile, f.mainExists, f.main.Bytes())), nil
		}
	}
	return nil, f.refuse("take the line out, or add the listener there by hand",
		"%s replaces what %s says, and makes RabbitMQ listen on %s only", plain[len(plain)-1].at,
		f.mainFile.Path, list(plain))
}

func isLoopback(name string) bool {
	ip := net.ParseIP(strings.Trim(name, "[]"))
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

// covers says whether a listener bound to name takes connections to address.
func covers(name, address string) bool {
	ip := net.ParseIP(strings.Trim(name, "[]"))
	return name == "" || name == address || ip != nil && ip.IsUnspecified()
}

// Verify proves a login from the primary and from each of the other nodes, and
// that the broker
// has not been opened to more.
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
		failed := func(seen error) error {
			return fault.Failed("rabbitmq_login",
				"look at /var/log/rabbitmq on "+h.Name()+" and at the firewalls between the nodes",
				"log in to RabbitMQ at %s as %s from %s: %w", s.login(s.Address).Addr, s.User, from.Name(), seen)
		}
		if err := step.Await(ctx, 500*time.Millisecond, func(ctx context.Context) (waiting, err error) {
			if err = prove(ctx, from); errors.Is(err, ErrRefused) {
				return nil, failed(err)
			}
			if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
				err = fmt.Errorf("no answer within %s", answerTime)
			}
			return err, nil
		}, failed); err != nil {
			return err
		}
	}
	if !s.opened {
		return nil
	}
	return s.bound(ctx, h)
}

// bound reads back from the running broker what it listens on after an edit.
func (s *Configure) bound(ctx context.Context, h host.Host) error {
	failed := func(seen error) error {
		return fault.Failed("rabbitmq_listener",
			"rabbitmq-diagnostics listeners and rabbitmq-diagnostics environment on "+h.Name()+" say more",
			"%s: RabbitMQ does not listen as its files say: %w", h.Name(), seen)
	}
	return step.Await(ctx, 500*time.Millisecond, func(ctx context.Context) (waiting, err error) {
		found, err := service.ListensOn(ctx, h, Unit, s.Port)
		if err != nil {
			return err, nil
		}
		own := net.ParseIP(s.Address)
		for _, a := range found {
			ip := net.ParseIP(a)
			if ip.IsUnspecified() {
				return nil, failed(fmt.Errorf("it listens on every interface, port %d", s.Port))
			}
			if own == nil || ip.Equal(own) { // a name has been logged in at
				return nil, nil
			}
		}
		return fmt.Errorf("it listens on %s, port %d, not on %s", cmp.Or(strings.Join(found, ", "), "nothing"),
			s.Port, s.Address), nil
	}, failed)
}
