package heal

import (
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"slices"
	"strings"

	"st2ha/internal/backend"
	"st2ha/internal/backend/all"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/stackstorm"
)

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
		return fault.Preflight("foreign_endpoint",
			"give the host that the endpoint is on, or restart by hand what runs there",
			"%s: %s at %s does not belong to this host: %s; nothing is restarted", h.Name(), s.Backend, s.Endpoint, why)
	}
	at, ok := mine.own(ctx, name)
	if !ok {
		return foreign(name + " is not one of its addresses")
	}
	b := all.Get(s.Backend)
	for _, addr := range named(ctx, h, b) {
		other, otherPort, err := net.SplitHostPort(addr)
		if err != nil || otherPort != port {
			continue
		}
		if _, ok := mine.own(ctx, other); ok {
			return nil
		}
	}
	ports := map[string]bool{}
	for _, l := range listeners(ctx, h, b) {
		ports[l.Port] = true
		if l.Port != port {
			continue
		}
		bound, parseErr := netip.ParseAddr(strings.Trim(l.Address, "[]"))
		if l.Address == "" || l.Address == name || parseErr == nil &&
			(bound.IsUnspecified() || slices.Contains(at, bound.Unmap())) ||
			parseErr != nil && mine.same(ctx, l.Address, at) {
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
func named(ctx context.Context, h host.Host, b backend.Backend) []string {
	conf, err := stackstorm.ReadConf(ctx, h)
	if err != nil || b.Servers == nil {
		return nil
	}
	return b.Servers(conf)
}

// listeners are those of a backend's own files, where they can be read; its
// port at all addresses where they say nothing.
func listeners(ctx context.Context, h host.Host, b backend.Backend) []backend.Listener {
	var found []backend.Listener
	if b.Listeners != nil {
		found = b.Listeners(func(path string) string {
			f, err := h.ReadFile(ctx, path)
			if err != nil {
				return ""
			}
			return string(f.Data)
		})
	}
	if len(found) == 0 {
		return []backend.Listener{{Port: b.Port}}
	}
	return found
}
