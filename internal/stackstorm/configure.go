package stackstorm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/mongodb"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/secure"
	"st2ha/internal/step"
)

// The roles of a node.
const (
	RolePrimary   = "primary"
	RoleSecondary = "secondary"
)

// Configure makes st2.conf point to the primary's backends.
type Configure struct {
	Role           string
	PrimaryAddress string
	Primary        host.Host // read for the secondary's [database]
	Broker         Broker    // for the secondary's [messaging]
	KeepSensors    bool      // leave the secondary's sensors and timers running
	Restart        When
	Run            string // the run's name, which the restart may wait for
}

// Broker is how the secondary logs in to the primary's RabbitMQ.
type Broker struct {
	User     string
	Password string
	VHost    string
	Port     int // 0: as the primary's RabbitMQ has it
	// Heartbeat is the seconds of silence after which each side asks whether the other one is there, unless people
	// have said so in a URL of theirs; 0: it is not asked.
	Heartbeat int
}

// Name is configure_st2.
func (s *Configure) Name() string { return "configure_st2" }

// Check reports what Plan would refuse.
func (s *Configure) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	conf, err := ReadConf(ctx, h)
	if err != nil {
		return nil, err
	}
	if s.Role == RoleSecondary && s.Primary != nil {
		if err := s.port(ctx); err != nil {
			return nil, err
		}
		source, err := ReadConf(ctx, s.Primary)
		if err != nil {
			return nil, err
		}
		findings, err := s.missing(ctx, h, source)
		return append(findings, s.otherHeartbeat(source, conf)...), err
	}
	var findings []step.Finding
	if urls, _ := conf.Get("messaging", "cluster_urls"); len(list(urls)) > 1 && s.Role == RolePrimary {
		findings = append(findings, step.Finding{Severity: step.Error, Host: h.Name(), Check: "messaging",
			Message: fmt.Sprintf("%s:%d: [messaging] cluster_urls names a broker cluster", ConfPath,
				conf.Line("messaging", "cluster_urls")),
			Fix: "join works with the broker of an all-in-one primary; point the secondary's cluster_urls to the " +
				"cluster by hand"})
	}
	if s.Role == RolePrimary {
		findings = append(findings, s.certificate(ctx, conf)...)
	}
	return findings, nil
}

// certificate finds out whether the database can be asked at the primary's
// address as st2.conf says. A certificate is for names, so the one that mongod
// shows where it listens now is as good as after the edit.
func (s *Configure) certificate(ctx context.Context, conf *Conf) []step.Finding {
	db, err := conf.Database()
	if err != nil {
		return nil // Plan says so
	}
	if db.TLS != nil {
		t := *db.TLS
		t.Name = s.PrimaryAddress
		db.TLS = &t
	}
	conn, err := mongodb.Dial(ctx, conf.host, db.Server, db.Via)
	if err == nil {
		_ = conn.Close()
	}
	if !secure.Unaskable(err) {
		return nil // whether it answers is for others to say
	}
	return []step.Finding{{Severity: step.Error, Host: conf.host.Name(), Check: "database_tls",
		Message: fmt.Sprintf("MongoDB at %s cannot be asked as %s as [database] of %s says: %v", db.Via,
			s.PrimaryAddress, ConfPath, err),
		Fix: "give mongod a certificate that names " + s.PrimaryAddress +
			" (subjectAltName), and [database] the settings of TLS that mongod wants; or, with the certificate's " +
			"authority trusted, set tls_allow_invalid_hostnames = True there"}}
}

// Plan edits st2.conf and has the services restarted.
func (s *Configure) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	conf, err := ReadConf(ctx, h)
	if err != nil {
		return nil, err
	}
	switch s.Role {
	case RolePrimary:
		err = s.primary(conf)
	case RoleSecondary:
		err = s.secondary(ctx, conf)
	default:
		return nil, fault.Usage("role must be %s or %s, not %q", RolePrimary, RoleSecondary, s.Role)
	}
	if err != nil {
		return nil, err
	}
	var changes []step.Change
	edit := conf.Change()
	if edit != nil {
		changes = append(changes, edit)
	}
	restart, err := planRestart(ctx, h, s.Restart, edit != nil, s.Run)
	if err != nil {
		return nil, err
	}
	if restart != nil {
		changes = append(changes, restart)
	}
	return changes, nil
}

// Verify has nothing to prove: whether the services reach what the file names
// is seen once they are restarted.
func (s *Configure) Verify(context.Context, host.Host) error { return nil }

// primary makes [database] host the primary's own address, so that both
// nodes' files name the same place.
func (s *Configure) primary(conf *Conf) error {
	value, err := databaseHost(conf, s.PrimaryAddress)
	if err != nil {
		return err
	}
	if err := conf.Set("database", "host", value); err != nil {
		return conf.located("database", "host", err)
	}
	return patient(conf, value, electionTime)
}

// electionTime is how long a client of a replica set may need for a new primary, in ms: elections take up to 12 s,
// and StackStorm gives up after 3, whatever the URI says (st2common/models/db/__init__.py:190).
const electionTime = "15000"

// patient sets [database] connection_timeout where its host, as the file has
// it, names a replica set, and nobody has set the option.
func patient(conf *Conf, host, timeout string) error {
	u, err := splitURI(host)
	if err != nil { // hosts alone
		return nil
	}
	named := slices.ContainsFunc(strings.Split(u.options, "&"), func(option string) bool {
		key, value, _ := strings.Cut(option, "=")
		return strings.EqualFold(key, "replicaSet") && value != ""
	})
	if _, set := conf.Get("database", "connection_timeout"); set || !named {
		return nil
	}
	if err := conf.Set("database", "connection_timeout", timeout); err != nil {
		return conf.located("database", "connection_timeout", err)
	}
	return nil
}

// databaseHost returns what [database] host has to be for the database of
// conf's node to be found at address from elsewhere.
func databaseHost(conf *Conf, address string) (string, error) {
	current, _ := conf.Get("database", "host")
	if refers(current) {
		value, _, err := conf.Value("database", "host")
		if err != nil {
			return "", err
		}
		current = escape(value)
	}
	elsewhere := ""
	switch {
	case strings.Contains(current, "://"):
		changed, other, err := rehost(current, address)
		if err != nil {
			return "", conf.located("database", "host", err)
		}
		if other == "" {
			return changed, nil
		}
		elsewhere = other
	case current == "" || current == address || isLoopback(current):
		return address, nil
	default:
		changed, other := rehosted(current, address)
		if other == "" {
			return changed, nil
		}
		elsewhere = other
	}
	return "", fault.Preflight("database_elsewhere",
		"if that is this node's other name, give it as the primary's address; if not, the database is already "+
			"outside this node",
		"%s: %s:%d: [database] host is %s, not this node", conf.host.Name(), ConfPath,
		conf.Line("database", "host"), elsewhere)
}

// databaseKeys are the options that say where the database is and how to log
// in; they must be equal on all nodes.
func databaseKeys(keys []string) []string {
	var found []string
	for _, key := range keys {
		switch key {
		case "host", "port", "db_name", "username", "password", "authentication_mechanism":
			found = append(found, key)
		default:
			if strings.HasPrefix(key, "tls") || strings.HasPrefix(key, "ssl") {
				found = append(found, key)
			}
		}
	}
	return found
}

// port finds out the broker's port, unless it was given.
func (s *Configure) port(ctx context.Context) (err error) {
	if s.Broker.Port == 0 {
		s.Broker.Port, err = rabbitmq.Port(ctx, s.Primary, s.PrimaryAddress)
	}
	return err
}

func (s *Configure) secondary(ctx context.Context, conf *Conf) error {
	if err := s.port(ctx); err != nil {
		return err
	}
	source, err := ReadConf(ctx, s.Primary)
	if err != nil {
		return err
	}
	value, err := databaseHost(source, s.PrimaryAddress)
	if err != nil {
		return err
	}
	if err := conf.Set("database", "host", value); err != nil {
		return conf.located("database", "host", err)
	}
	theirs := map[string]bool{"host": true}
	for _, key := range databaseKeys(source.Keys("database")) {
		theirs[key] = true
		if key == "host" {
			continue
		}
		value, _ := source.Get("database", key)
		if refers(value) { // to what is another value here
			value, _, err = source.Value("database", key)
			if err != nil {
				return err
			}
			value = escape(value)
		}
		if err := conf.Set("database", key, value); err != nil {
			return conf.located("database", key, err)
		}
	}
	for _, key := range databaseKeys(conf.Keys("database")) {
		if theirs[key] {
			continue
		}
		// A user of its own database would be sent to the primary's.
		if err := conf.Delete("database", key); err != nil {
			return conf.located("database", key, err)
		}
	}
	timeout, ok, err := source.Value("database", "connection_timeout")
	if err != nil {
		return err
	}
	if !ok {
		timeout = electionTime
	}
	if err := patient(conf, value, escape(timeout)); err != nil {
		return err
	}
	if err := s.messaging(source, conf); err != nil {
		return err
	}
	return s.own(conf)
}

// escape writes a value so that oslo.config reads it as it is.
func escape(value string) string { return strings.ReplaceAll(value, "$", "$$") }

// messaging sets the secondary's own login at the broker. The names of queues
// and TLS are the primary's; TLS only if the port is the one that the primary
// speaks it to.
func (s *Configure) messaging(source, conf *Conf) error {
	login, err := source.Broker()
	if err != nil {
		return err
	}
	heartbeat, _ := s.heartbeat(source, conf)
	want := map[string]string{"url": MessagingURL(s.Broker.User, s.Broker.Password, s.PrimaryAddress,
		s.Broker.Port, s.Broker.VHost, heartbeat)}
	if prefix, ok, err := source.Value("messaging", "prefix"); err != nil {
		return err
	} else if ok {
		want["prefix"] = escape(prefix)
	}
	if t := TLSAt(login, s.Broker.Port); t != nil {
		want["ssl"] = "True"
		for key, value := range map[string]string{"ssl_ca_certs": t.CA, "ssl_certfile": t.Cert, "ssl_keyfile": t.Key} {
			if value != "" {
				want[key] = escape(value)
			}
		}
		if !t.Verify {
			want["ssl_cert_reqs"] = "none"
		}
	}
	// cluster_urls replaces url; ssl and login_method would be its own broker's
	// (st2common/transport/utils.py).
	for _, key := range []string{"url", "cluster_urls", "prefix", "ssl", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile",
		"ssl_cert_reqs", "login_method"} {
		value, wanted := want[key]
		current, ok := conf.Get("messaging", key)
		var err error
		switch {
		case wanted && (!ok || current != value):
			err = conf.Set("messaging", key, value)
		case !wanted && ok:
			err = conf.Delete("messaging", key)
		}
		if err != nil {
			return conf.located("messaging", key, err)
		}
	}
	return nil
}

// heartbeat is the secondary's, and whose file has it, if one has: its own URL
// before the primary's.
func (s *Configure) heartbeat(source, conf *Conf) (text string, from *Conf) {
	for _, c := range []*Conf{conf, source} {
		if text, _ := c.heartbeat(); text != "" {
			return text, c
		}
	}
	if s.Broker.Heartbeat == 0 {
		return "", nil
	}
	return strconv.Itoa(s.Broker.Heartbeat), nil
}

// otherHeartbeat names a heartbeat that people chose, and that is kept.
func (s *Configure) otherHeartbeat(source, conf *Conf) []step.Finding {
	text, from := s.heartbeat(source, conf)
	if from == nil || text == strconv.Itoa(s.Broker.Heartbeat) {
		return nil
	}
	_, key := from.heartbeat()
	return []step.Finding{{Severity: step.Warning, Host: conf.host.Name(), Check: "heartbeat",
		Message: fmt.Sprintf("[messaging] %s of %s (%s) has heartbeat=%s, which is kept: the setting heartbeat is %d", key,
			ConfPath, from.host.Name(), text, s.Broker.Heartbeat),
		Fix: "take it out of the URL, or have the setting say the same"}}
}

// TLSAt is the TLS that a node speaks to its broker, if that is at the port.
func TLSAt(l rabbitmq.Login, port int) *secure.TLS {
	if strings.HasSuffix(l.Addr, ":"+strconv.Itoa(port)) {
		return l.TLS
	}
	return nil
}

// missing are the files of certificates that the primary's settings name and
// the secondary has not.
func (s *Configure) missing(ctx context.Context, h host.Host, source *Conf) ([]step.Finding, error) {
	db, err := source.Database()
	if err != nil {
		return nil, err
	}
	login, err := source.Broker()
	if err != nil {
		return nil, err
	}
	var findings []step.Finding
	for section, t := range map[string]*secure.TLS{"database": db.TLS, "messaging": TLSAt(login, s.Broker.Port)} {
		if t == nil {
			continue
		}
		for _, path := range []string{t.CA, t.Cert, t.Key} {
			if path == "" {
				continue
			}
			if _, err := h.Stat(ctx, path); errors.Is(err, fs.ErrNotExist) {
				findings = append(findings, step.Finding{Severity: step.Error, Host: h.Name(), Check: "certificates",
					Message: fmt.Sprintf("%s does not exist here, and [%s] of the primary's %s names it", path,
						section, ConfPath),
					Fix: "copy it from the primary, readable for the user st2"})
			} else if err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(findings, func(a, b step.Finding) int { return strings.Compare(a.Message, b.Message) })
	return findings, nil
}

// own sets what a secondary has for itself: no sensors and timers, which the
// primary runs already.
func (s *Configure) own(conf *Conf) error {
	set := func(section, key, value string) error {
		if current, ok := conf.Get(section, key); ok && current == value {
			return nil
		}
		if err := conf.Set(section, key, value); err != nil {
			return conf.located(section, key, err)
		}
		return nil
	}
	if s.KeepSensors {
		return nil
	}
	if provider, _ := conf.Get("sensorcontainer", "partition_provider"); everySensor(provider) {
		if name, _ := conf.Get("sensorcontainer", "sensor_node_name"); name == "" || name == "sensornode1" {
			if err := set("sensorcontainer", "sensor_node_name",
				"sensornode-"+strings.NewReplacer(".", "-", ":", "-").Replace(conf.host.Name())); err != nil {
				return err
			}
		}
		// The empty hash range: every sensor would otherwise run on both nodes
		// and fire each event twice (st2reactor/container/hash_partitioner.py).
		if err := set("sensorcontainer", "partition_provider", noSensors); err != nil {
			return err
		}
	}
	if _, ok := conf.Get("timer", "enable"); ok {
		// Either of the two runs them (st2reactor/cmd/timersengine.py:71).
		if err := set("timer", "enable", "False"); err != nil {
			return err
		}
	}
	return set("timersengine", "enable", "False")
}

// everySensor says whether a partition_provider leaves all sensors to the
// node: what StackStorm takes where nothing is set is name:default, in
// whatever case (st2reactor/container/partitioner_lookup.py:53-57).
func everySensor(provider string) bool {
	for _, item := range strings.Split(provider, ",") {
		if key, value, _ := strings.Cut(item, ":"); strings.TrimSpace(key) == "name" {
			return strings.EqualFold(strings.TrimSpace(value), "default")
		}
	}
	return true
}

// ValidateSecret refuses what no configuration file and no command's standard
// input can carry on one line.
func ValidateSecret(name, value string) error {
	for _, r := range value {
		if r < ' ' || r == 0x7f {
			return fault.Usage("%s holds a control character such as a newline: choose one without", name)
		}
	}
	return nil
}
