package rabbitmq

import (
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

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/service"
	"st2ha/internal/step"
)

const (
	// Unit is the broker's systemd unit.
	Unit = "rabbitmq-server.service"

	envPath      = "/etc/rabbitmq/rabbitmq-env.conf"
	mainPath     = "/etc/rabbitmq/rabbitmq" // without its ending, which says the format
	morePath     = "/etc/rabbitmq/conf.d/*.conf"
	advancedPath = "/etc/rabbitmq/advanced.config"

	// DefaultPort is the TCP port where nothing else is configured.
	DefaultPort = 5672
)

// files are what a broker reads when it starts, as it reads them
// (rabbit_env.erl, rabbit_prelaunch_conf.erl; tried with 3.10.8): listeners of
// a file in Erlang terms replace those of rabbitmq.conf and conf.d, these add
// up, and any of them replaces what the environment says.
type files struct {
	host host.Host
	unit map[string]setting // of the unit's environment

	env       *confedit.INI // rabbitmq-env.conf
	envFile   host.File
	envExists bool

	main       *confedit.INI // rabbitmq.conf; nil where one in Erlang terms is read instead
	mainFile   host.File
	mainExists bool
	more       []named // conf.d
	terms      string  // a file in Erlang terms that is read; empty if there is none
	decides    bool    // it names listeners

	address, port setting // NODE_IP_ADDRESS and NODE_PORT
}

// named is a file of rabbitmq.conf's format.
type named struct {
	path string
	ini  *confedit.INI
}

// setting is a variable's value.
type setting struct {
	value string
	at    string // file:line, and its name there
	odd   string // why its value cannot be told
	file  bool   // it is of rabbitmq-env.conf
}

// listener is an address that the broker binds to.
type listener struct {
	host string // empty: every interface
	port int
	at   string // file:line, and the setting
}

// reaches says whether a listener takes connections to address.
func (l listener) reaches(address string) bool { return covers(l.host, address) }

func (l listener) String() string {
	if l.host == "" {
		return "every interface, port " + strconv.Itoa(l.port)
	}
	return net.JoinHostPort(l.host, strconv.Itoa(l.port))
}

// refuse is about a file or variable that cannot be followed.
func (f *files) refuse(hint, format string, args ...any) error {
	return fault.Preflight("rabbitmq_listener", hint, "%s: %w", f.host.Name(), fmt.Errorf(format, args...))
}

// variables are those that say where the broker listens, or which files do,
// without RABBITMQ_, which each may have before it.
func variables() []string {
	return append(argumentVariables(), "CONF_ENV_FILE", "CONFIG_FILE", "CONFIG_FILES", "ADVANCED_CONFIG_FILE",
		"NODE_IP_ADDRESS", "NODE_PORT")
}

// argumentVariables hold arguments of the Erlang machine.
func argumentVariables() []string {
	return []string{"SERVER_ERL_ARGS", "SERVER_ADDITIONAL_ERL_ARGS", "SERVER_START_ARGS", "ERL_FLAGS",
		"ERL_AFLAGS", "ERL_ZFLAGS"}
}

// readFiles reads them.
func readFiles(ctx context.Context, h host.Host) (*files, error) {
	f := &files{host: h}
	var err error
	if f.unit, err = unitEnvironment(ctx, h); err != nil {
		return nil, err
	}
	env, err := f.path("CONF_ENV_FILE", envPath)
	if err != nil {
		return nil, err
	}
	if f.envFile, f.envExists, err = step.ReadOrEmpty(ctx, h, env, 0o644); err != nil {
		return nil, err
	}
	if f.env, err = confedit.ParseINI(f.envFile.Data, confedit.Env); err != nil {
		return nil, step.Located(h, env, err)
	}
	if f.address, err = f.variable("NODE_IP_ADDRESS"); err != nil {
		return nil, err
	}
	if f.port, err = f.variable("NODE_PORT"); err != nil {
		return nil, err
	}
	if err := f.readMain(ctx); err != nil {
		return nil, err
	}
	return f, f.readMore(ctx)
}

// variable is a variable's value as the broker gets it: the shell that reads
// rabbitmq-env.conf overwrites what it was given, and RABBITMQ_NAME counts
// more than NAME. An empty one is none.
func (f *files) variable(name string) (setting, error) {
	for _, key := range []string{"RABBITMQ_" + name, name} {
		s, ok := f.unit[key]
		if f.env != nil && slices.Contains(f.env.Keys(""), key) {
			value, _, err := f.env.Lookup("", key)
			if err != nil {
				return s, step.Located(f.host, f.envFile.Path, err)
			}
			s, ok = setting{value: value,
				at: fmt.Sprintf("%s:%d: %s", f.envFile.Path, f.env.Line("", key), key), file: true}, true
		}
		switch {
		case ok && s.odd != "":
			return s, f.refuse("write it out in rabbitmq-env.conf, or make the change by hand", "%s %s", s.at, s.odd)
		case ok && s.value != "":
			return s, nil
		}
	}
	return setting{}, nil
}

// path is a file that a variable may move.
func (f *files) path(name, otherwise string) (string, error) {
	s, err := f.variable(name)
	if err != nil || s.value == "" {
		return otherwise, err
	}
	if !path.IsAbs(s.value) {
		return "", f.refuse("give its whole path", "%s: %s is relative to where RabbitMQ is started", s.at, s.value)
	}
	return path.Clean(s.value), nil
}

// readMain finds the main file and its format (find_actual_main_config_file).
func (f *files) readMain(ctx context.Context) error {
	base, err := f.path("CONFIG_FILE", mainPath)
	if err != nil {
		return err
	}
	name := base + ".conf"
	if exact, err := f.regular(ctx, base); err != nil {
		return err
	} else if exact {
		if name = base; path.Ext(base) != ".conf" && path.Ext(base) != ".config" {
			return f.refuse("give it a name that ends in .conf",
				"%s is RabbitMQ's configuration, and its name does not say in which format", base)
		}
	} else if classic, err := f.regular(ctx, base+".config"); err != nil {
		return err
	} else if classic {
		name = base + ".config"
	}
	if path.Ext(name) == ".config" {
		f.terms = name
		return nil
	}
	if advanced, err := f.path("ADVANCED_CONFIG_FILE", advancedPath); err != nil {
		return err
	} else if there, err := f.regular(ctx, advanced); err != nil {
		return err
	} else if there {
		f.terms = advanced
	}
	if f.mainFile, f.mainExists, err = step.ReadOrEmpty(ctx, f.host, name, 0o644); err != nil {
		return err
	}
	f.main, err = confedit.ParseINI(f.mainFile.Data, confedit.Rabbit)
	return step.Located(f.host, name, err)
}

func (f *files) regular(ctx context.Context, name string) (bool, error) {
	info, err := f.host.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.Mode.IsRegular(), err
}

// readMore reads what is read beside the main file, sorted by name
// (find_additional_config_files): it counts more than the main file.
func (f *files) readMore(ctx context.Context) error {
	pattern, err := f.path("CONFIG_FILES", morePath)
	if err != nil {
		return err
	}
	if info, err := f.host.Stat(ctx, pattern); err == nil && info.Mode.IsDir() {
		pattern = path.Join(pattern, "*")
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir, base := path.Split(pattern)
	if strings.ContainsAny(dir, "*?[{") || strings.ContainsAny(base, "{}") || strings.Contains(base, "**") {
		return f.refuse("name a directory, or a pattern such as "+morePath,
			"RABBITMQ_CONFIG_FILES is %s, a pattern that st2ha does not read", pattern)
	}
	names, err := f.host.ReadDir(ctx, path.Clean(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range names {
		// Hidden files are among them (filelib:wildcard/1).
		if match, err := path.Match(base, name); err != nil || !match {
			continue
		}
		full := path.Join(dir, name)
		if there, err := f.regular(ctx, full); err != nil {
			return err
		} else if !there {
			continue
		}
		file, err := f.host.ReadFile(ctx, full)
		if err != nil {
			return err
		}
		ini, err := confedit.ParseINI(file.Data, confedit.Rabbit)
		if err != nil {
			return step.Located(f.host, full, err)
		}
		f.more = append(f.more, named{full, ini})
	}
	return nil
}

// listeners are where the broker listens, without TLS and with it. off is the
// line that switches the former off.
func (f *files) listeners(ctx context.Context) (plain, secured []listener, off string, err error) {
	if plain, err = f.conf("listeners.tcp"); err != nil {
		return
	}
	if secured, err = f.conf("listeners.ssl"); err != nil {
		return
	}
	for _, n := range f.all() {
		if value, ok := n.ini.Get("", "listeners.tcp"); ok {
			off = ""
			if value == "none" {
				off = fmt.Sprintf("%s:%d: listeners.tcp = none", n.path, n.ini.Line("", "listeners.tcp"))
			}
		}
	}
	if off != "" {
		plain = nil
	}
	terms := map[string]*[]listener{"tcp_listeners": &plain, "ssl_listeners": &secured}
	for key, into := range terms {
		found, given, err := f.erlang(ctx, key)
		if err != nil {
			return nil, nil, "", err
		}
		if given {
			*into = found
			if key == "tcp_listeners" {
				f.decides, off = true, ""
			}
		}
	}
	if len(plain) > 0 || f.decides || off != "" {
		return
	}
	// The environment counts where no file names a listener.
	l := listener{host: f.address.value, port: DefaultPort, at: f.address.at}
	if f.port.value != "" {
		if l.port, err = strconv.Atoi(f.port.value); err != nil {
			return nil, nil, "", f.refuse("make it a number", "%s is not a port", f.port.at)
		}
	}
	return []listener{l}, secured, "", nil
}

// all are the files of rabbitmq.conf's format, in the order in which they are read.
func (f *files) all() []named {
	var all []named
	if f.main != nil {
		all = append(all, named{f.mainFile.Path, f.main})
	}
	return append(all, f.more...)
}

// conf are the listeners of a kind in files of rabbitmq.conf's format: of a key
// that is set in several the last counts.
func (f *files) conf(kind string) ([]listener, error) {
	var keys []string
	found := map[string]listener{}
	for _, n := range f.all() {
		for _, key := range n.ini.Keys("") {
			if !strings.HasPrefix(key, kind+".") {
				continue
			}
			value, _ := n.ini.Get("", key)
			l := listener{at: fmt.Sprintf("%s:%d: %s", n.path, n.ini.Line("", key), key)}
			// HOST:PORT, where an IPv6 address may do without its brackets, or a
			// port alone: all interfaces.
			at := strings.LastIndexByte(value, ':')
			l.host = strings.Trim(value[:max(at, 0)], "[]")
			port, err := strconv.ParseUint(value[at+1:], 10, 16)
			if err != nil {
				return nil, f.refuse("make it PORT or ADDRESS:PORT", "%s is %s, which has no port", l.at, value)
			}
			l.port = int(port)
			if _, again := found[key]; !again {
				keys = append(keys, key)
			}
			found[key] = l
		}
	}
	var all []listener
	for _, key := range keys {
		all = append(all, found[key])
	}
	return all, nil
}

// erlang are the listeners that the file in Erlang terms names under a key.
func (f *files) erlang(ctx context.Context, key string) (found []listener, given bool, err error) {
	if f.terms == "" {
		return nil, false, nil
	}
	file, err := f.host.ReadFile(ctx, f.terms)
	if err != nil {
		return nil, false, err
	}
	all, err := confedit.ParseErlang(file.Data)
	if err != nil {
		return nil, false, step.Located(f.host, f.terms, err)
	}
	if len(all) != 1 {
		return nil, false, nil // RabbitMQ does not start with it, or has nothing in it
	}
	rabbit, _ := all[0].Find("rabbit")
	list, given := rabbit.Find(key)
	if !given {
		return nil, false, nil
	}
	at := fmt.Sprintf("%s:%d: %s", f.terms, list.Line, key)
	if list.Kind != confedit.List {
		return nil, true, f.refuse("", "%s is not a list", at)
	}
	for _, item := range list.Items {
		l, port := listener{at: at}, item
		if item.Kind == confedit.Tuple && len(item.Items) == 2 {
			port = item.Items[1]
			// {auto, PORT} is every interface.
			if where := item.Items[0]; where.Kind == confedit.String {
				l.host = where.Text
			} else if where.Text != "auto" {
				return nil, true, f.refuse("",
					"%s has an entry that is not a listener: {\"ADDRESS\", PORT} or PORT", at)
			}
		}
		if l.port, err = strconv.Atoi(port.Text); port.Kind != confedit.Number || err != nil {
			return nil, true, f.refuse("", "%s has an entry that is not a listener: {\"ADDRESS\", PORT} or PORT", at)
		}
		found = append(found, l)
	}
	return found, true, nil
}

// arguments refuses arguments of the Erlang machine that say where it listens,
// or name files that do (erl(1): -config, -APPLICATION KEY VALUE).
func (f *files) arguments() error {
	meant := regexp.MustCompile(`(^|\s)-(config|configfd|args_file|rabbit)\s|_listeners`)
	for _, name := range argumentVariables() {
		s, err := f.variable(name)
		if err != nil {
			return err
		}
		if meant.MatchString(s.value + " ") {
			return f.refuse("set it in rabbitmq.conf instead",
				"%s has arguments that may change where RabbitMQ listens", s.at)
		}
	}
	return nil
}

// unitEnvironment is what the broker's unit sets of the variables, with its
// drop-ins and environment files (systemd.exec(5): files count more).
func unitEnvironment(ctx context.Context, h host.Host) (map[string]setting, error) {
	names, err := service.Files(ctx, h, Unit)
	if err != nil {
		return nil, err
	}
	env := map[string]setting{}
	var sources []string
	for _, name := range names {
		f, err := h.ReadFile(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was removed since systemd has read it
		}
		if err != nil {
			return nil, err
		}
		for _, l := range confedit.Unit(f.Data) {
			if l.Section != "Service" {
				continue
			}
			switch at := fmt.Sprintf("%s:%d: ", name, l.Line); l.Key {
			case "Environment":
				if l.Value == "" {
					clear(env)
				}
				words, _ := confedit.UnitWords(l.Value)
				for _, word := range words {
					key, value, _ := strings.Cut(word, "=")
					set(env, key, value, at)
				}
			case "EnvironmentFile":
				if sources = append(sources, strings.TrimPrefix(l.Value, "-")); l.Value == "" {
					sources = nil
				}
			case "PassEnvironment", "UnsetEnvironment", "ExecStart":
				mention(env, l, at)
			}
		}
	}
	for _, name := range sources {
		f, err := h.ReadFile(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, l := range confedit.EnvironmentFile(f.Data) {
			set(env, l.Key, l.Value, fmt.Sprintf("%s:%d: ", name, l.Line))
		}
	}
	return env, nil
}

// set notes a variable, if it is one of those that matter.
func set(env map[string]setting, key, value, at string) {
	if !slices.Contains(variables(), strings.TrimPrefix(key, "RABBITMQ_")) {
		return
	}
	s := setting{value: value, at: at + key}
	if strings.Contains(strings.ReplaceAll(value, "%%", ""), "%") {
		s.odd = "has a value that is for systemd to say"
	}
	env[key] = s
}

// mention notes the variables that a line may set in another way.
func mention(env map[string]setting, l confedit.UnitLine, at string) {
	for _, word := range regexp.MustCompile(`[A-Z_]+`).FindAllString(l.Value, -1) {
		if slices.Contains(variables(), strings.TrimPrefix(word, "RABBITMQ_")) {
			env[word] = setting{at: at + word, odd: "is set by " + l.Key + ", which st2ha does not read"}
		}
	}
}

// Port is the port at which other nodes are to reach the broker of h, whose
// address that is: what its files say of listeners. Where they cannot be
// followed it is RabbitMQ's default.
func Port(ctx context.Context, h host.Host, address string) (int, error) {
	f, err := readFiles(ctx, h)
	var plain, secured []listener
	if err == nil {
		plain, secured, _, err = f.listeners(ctx)
	}
	if err != nil {
		// Whether that stands in the way is for configure_rabbitmq to say.
		if fault.Of(err).Exit == fault.ExitPreflight {
			return DefaultPort, nil
		}
		return 0, err
	}
	if len(plain) == 0 {
		plain = secured
	}
	if near := slices.DeleteFunc(slices.Clone(plain),
		func(l listener) bool { return !l.reaches(address) }); len(near) > 0 {
		plain = near
	}
	for _, l := range plain {
		if l.port == DefaultPort {
			return DefaultPort, nil
		}
	}
	switch {
	case len(plain) == 0:
		return DefaultPort, nil
	case slices.ContainsFunc(plain, func(l listener) bool { return l.port != plain[0].port }):
		return 0, f.refuse("give rabbitmq_port the one that the nodes are to use",
			"RabbitMQ listens on several ports: %s at %s, %s at %s", plain[0], plain[0].at, plain[1], plain[1].at)
	}
	return plain[0].port, nil
}
