package heal

import (
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/redis"
	"st2ha/internal/stackstorm"
)

// listener is where a backend listens by its own configuration.
type listener struct {
	address string // empty: all addresses
	port    string
}

// own refuses an endpoint at which the host's backend does not listen by the
// host's own configuration. An endpoint comes from events, which may be
// anybody's: nobody answers at 10.0.0.1:9, and that is no reason to restart the
// Redis of 10.0.0.1. It is the host's own if its address is one of the host's,
// and st2.conf there, or the backend's own file, has it.
func (s *RestartBackend) own(ctx context.Context, h host.Host) error {
	if s.Endpoint == "" {
		return nil
	}
	name, port, err := net.SplitHostPort(s.Endpoint)
	if err != nil {
		return fault.Usage("endpoint must be host:port, with [] around an IPv6 address, not %q", s.Endpoint)
	}
	mine, err := newAddresses(ctx, h)
	if err != nil {
		return err
	}
	foreign := func(why string) error {
		return fault.Preflight("foreign_endpoint", "give the host that the endpoint is on, or restart by hand what runs at it",
			"%s: %s %s is none of this host's own: %s; nothing is restarted", h.Name(), s.Backend, s.Endpoint, why)
	}
	at, ok := mine.own(ctx, name)
	if !ok {
		return foreign(name + " is none of its addresses")
	}
	for _, addr := range named(ctx, h, s.Backend) {
		other, otherPort, err := net.SplitHostPort(addr)
		if err != nil || otherPort != port {
			continue
		}
		if _, ok := mine.own(ctx, other); ok {
			return nil
		}
	}
	ports := map[string]bool{}
	for _, l := range listeners(ctx, h, s.Backend) {
		ports[l.port] = true
		if l.port != port {
			continue
		}
		bound, parseErr := netip.ParseAddr(strings.Trim(l.address, "[]"))
		if l.address == "" || l.address == name || parseErr == nil && (bound.IsUnspecified() || slices.Contains(at, bound.Unmap())) ||
			parseErr != nil && mine.same(ctx, l.address, at) {
			return nil
		}
	}
	if !ports[port] {
		return foreign("neither " + stackstorm.ConfPath + " nor its own configuration there has port " + port)
	}
	return foreign("its configuration there has it listen on other addresses")
}

// addresses are a host's own.
type addresses struct {
	h     host.Host
	names []string
	ips   map[netip.Addr]bool
}

// newAddresses reads them as the kernel has them (proc(5): net/fib_trie, net/if_inet6).
func newAddresses(ctx context.Context, h host.Host) (*addresses, error) {
	a := &addresses{h: h, names: []string{"localhost", h.Name()}, ips: map[netip.Addr]bool{}}
	if name, err := stackstorm.Hostname(ctx, h); err == nil && name != "" {
		short, _, _ := strings.Cut(name, ".")
		a.names = append(a.names, name, short)
	}
	if ip, err := netip.ParseAddr(h.Name()); err == nil {
		a.ips[ip.Unmap()] = true
	}
	if f, err := h.ReadFile(ctx, "/proc/net/fib_trie"); err == nil {
		var last netip.Addr
		for _, line := range strings.Split(string(f.Data), "\n") {
			line = strings.TrimSpace(line)
			if text, ok := strings.CutPrefix(line, "|-- "); ok {
				last, _ = netip.ParseAddr(text)
			} else if line == "/32 host LOCAL" && last.IsValid() {
				a.ips[last] = true
			}
		}
	}
	if f, err := h.ReadFile(ctx, "/proc/net/if_inet6"); err == nil {
		for _, line := range strings.Split(string(f.Data), "\n") {
			if digits, _, ok := strings.Cut(line, " "); ok && len(digits) == 32 {
				if raw, err := hex.DecodeString(digits); err == nil {
					if ip, ok := netip.AddrFromSlice(raw); ok {
						a.ips[ip] = true
					}
				}
			}
		}
	}
	return a, nil
}

// own says whether a name or an address is the host's, and which addresses it has.
func (a *addresses) own(ctx context.Context, name string) ([]netip.Addr, bool) {
	if ip, err := netip.ParseAddr(name); err == nil {
		ip = ip.Unmap().WithZone("")
		return []netip.Addr{ip}, ip.IsLoopback() || a.ips[ip]
	}
	known := slices.ContainsFunc(a.names, func(n string) bool { return strings.EqualFold(n, name) })
	ips := a.resolve(ctx, name)
	for _, ip := range ips {
		if !ip.IsLoopback() && !a.ips[ip] {
			return ips, known
		}
	}
	return ips, known || len(ips) > 0
}

// same says whether a name that a listener is bound to is one of these addresses.
func (a *addresses) same(ctx context.Context, name string, at []netip.Addr) bool {
	return slices.ContainsFunc(a.resolve(ctx, name), func(ip netip.Addr) bool { return slices.Contains(at, ip) })
}

// resolve looks a name up as the host does (getent(1), ahosts).
func (a *addresses) resolve(ctx context.Context, name string) []netip.Addr {
	if host.CheckAddress("endpoint", name) != nil {
		return nil
	}
	out, err := a.h.Run(ctx, nil, "getent", "ahosts", name)
	if err != nil {
		return nil
	}
	var ips []netip.Addr
	for _, line := range strings.Split(string(out), "\n") {
		text, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if ip, err := netip.ParseAddr(text); err == nil && !slices.Contains(ips, ip.Unmap()) {
			ips = append(ips, ip.Unmap())
		}
	}
	return ips
}

// named are the servers of a backend (host:port) that st2.conf of a host names;
// none where it has no st2.conf, or one that cannot be read.
func named(ctx context.Context, h host.Host, backend string) []string {
	conf, err := stackstorm.ReadConf(ctx, h)
	if err != nil {
		return nil
	}
	var all []string
	switch backend {
	case "mongodb":
		if db, err := conf.Database(); err == nil {
			all = db.Servers
		}
	case "rabbitmq":
		logins, err := conf.Brokers()
		if err != nil {
			return nil
		}
		for _, l := range logins {
			all = append(all, l.Addr)
		}
	case "redis":
		if server, err := redis.ParseURL(conf.Coordination()); err == nil {
			all = []string{server.Addr}
		}
	}
	return all
}

// listeners are those of a backend's own files, where they can be read; its
// port at all addresses where they say nothing.
func listeners(ctx context.Context, h host.Host, backend string) []listener {
	var all []listener
	read := func(path string) string {
		f, err := h.ReadFile(ctx, path)
		if err != nil {
			return ""
		}
		return string(f.Data)
	}
	switch backend {
	case "mongodb":
		all = mongod(read)
	case "rabbitmq":
		all = broker(read)
	case "redis":
		for _, path := range []string{"/etc/redis/redis.conf", "/etc/redis.conf"} {
			all = append(all, redisListeners(read(path))...)
		}
	}
	if len(all) == 0 {
		all = []listener{{port: Port(backend)}}
	}
	return all
}

func mongod(read func(string) string) []listener {
	for _, path := range []string{"/etc/mongod.conf", "/etc/mongodb.conf"} {
		text := []byte(read(path))
		if len(text) == 0 {
			continue
		}
		get := func(key string, yaml ...string) string {
			if !confedit.IsYAML(text) {
				conf, err := confedit.ParseINI(text, confedit.Mongo)
				if err != nil {
					return ""
				}
				value, _ := conf.Get("", key)
				return value
			}
			value, _, _ := confedit.YAMLGet(text, yaml...)
			return value
		}
		port := get("port", "net", "port")
		if port == "" {
			port = Port("mongodb")
		}
		bound := strings.FieldsFunc(get("bind_ip", "net", "bindIp"), func(r rune) bool { return r == ',' || r == ' ' })
		if len(bound) == 0 || get("bind_ip_all", "net", "bindIpAll") == "true" {
			return []listener{{port: port}}
		}
		var all []listener
		for _, address := range bound {
			all = append(all, listener{address, port})
		}
		return all
	}
	return nil
}

func broker(read func(string) string) []listener {
	var all []listener
	if conf, err := confedit.ParseINI([]byte(read("/etc/rabbitmq/rabbitmq.conf")), confedit.Rabbit); err == nil {
		for _, key := range conf.Keys("") {
			if !strings.HasPrefix(key, "listeners.tcp") && !strings.HasPrefix(key, "listeners.ssl") {
				continue
			}
			value, _ := conf.Get("", key)
			i := strings.LastIndexByte(value, ':')
			if _, err := strconv.ParseUint(value[i+1:], 10, 16); err == nil {
				all = append(all, listener{strings.Trim(value[:max(i, 0)], "[]"), value[i+1:]})
			}
		}
	}
	env, err := confedit.ParseINI([]byte(read("/etc/rabbitmq/rabbitmq-env.conf")), confedit.Env)
	if err != nil {
		return all
	}
	l := listener{port: Port("rabbitmq")}
	if port, ok := env.Get("", "NODE_PORT"); ok && port != "" {
		l.port = port
	}
	l.address, _ = env.Get("", "NODE_IP_ADDRESS")
	if len(all) == 0 || l != (listener{port: Port("rabbitmq")}) {
		all = append(all, l)
	}
	return all
}

// redisListeners reads redis.conf: "port N", "tls-port N", "bind ADDRESS…",
// where - before an address lets it be missing, and * is all (redis.conf's own comments).
func redisListeners(text string) []listener {
	var ports, bound []string
	for _, line := range strings.Split(text, "\n") {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch strings.ToLower(words[0]) {
		case "port", "tls-port":
			if words[1] != "0" {
				ports = append(ports, words[1])
			}
		case "bind":
			bound = nil
			for _, address := range words[1:] {
				bound = append(bound, strings.TrimPrefix(strings.Trim(address, `"`), "-"))
			}
		}
	}
	if text != "" && len(ports) == 0 {
		ports = []string{Port("redis")}
	}
	if len(bound) == 0 || slices.Contains(bound, "*") || slices.Contains(bound, "::*") {
		bound = []string{""}
	}
	var all []listener
	for _, port := range ports {
		for _, address := range bound {
			all = append(all, listener{address, port})
		}
	}
	return all
}
