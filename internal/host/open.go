package host

import (
	"context"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"time"

	"st2ha/internal/fault"
)

// Open is the host at addr: this machine if the address is its own, another
// over SSH otherwise. cfg.Addr is taken from addr.
func Open(ctx context.Context, addr string, cfg SSHConfig) (Host, error) {
	if err := CheckAddress("host", addr); err != nil {
		return nil, err
	}
	local, err := IsLocal(ctx, addr)
	if err != nil {
		return nil, err
	}
	if local {
		if os.Geteuid() != 0 {
			return nil, fault.Preflight("not_root", "run it with sudo; an action has sudo: true",
				"%s is this machine, and only root can change it", addr)
		}
		return NewLocal(addr), nil
	}
	cfg.Addr = addr
	s, err := DialSSH(ctx, cfg)
	if err != nil {
		return nil, err // not s, which would be a Host that is not nil
	}
	return s, nil
}

var (
	label   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	numeric = regexp.MustCompile(`^[0-9]+$`)
)

// CheckAddress takes an IP address or a host name as RFC 1123 (section 2.1)
// has it. name is that of the parameter the address was given in.
func CheckAddress(name, addr string) error {
	if addr == "" {
		return fault.Usage("%s is missing", name)
	}
	if ip, err := netip.ParseAddr(addr); err == nil {
		if ip.IsUnspecified() || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return fault.Usage("%s %q is not the address of one host", name, addr)
		}
		if ip.Zone() != "" {
			return fault.Usage("%s %q has a zone, which means another network on each node: give it without the %% "+
				"and what follows", name, addr)
		}
		return nil
	}
	labels := strings.Split(addr, ".")
	ok := len(addr) <= 253 && !numeric.MatchString(labels[len(labels)-1]) // 192.168.0.300 is no name
	for _, l := range labels {
		ok = ok && label.MatchString(l)
	}
	if !ok {
		return fault.Usage("%s %q is neither an IP address nor a host name", name, addr)
	}
	return nil
}

// IsLocal says whether an address, or every address of a name, is this machine's.
func IsLocal(ctx context.Context, addr string) (bool, error) {
	if strings.EqualFold(addr, "localhost") {
		return true, nil
	}
	if name, err := os.Hostname(); err == nil {
		short, _, _ := strings.Cut(name, ".")
		if strings.EqualFold(addr, name) || strings.EqualFold(addr, short) {
			return true, nil
		}
	}
	var ips []netip.Addr
	if ip, err := netip.ParseAddr(addr); err == nil {
		ips = append(ips, ip)
	} else {
		// The attempt to connect reports a name that does not resolve.
		look, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		ips, _ = net.DefaultResolver.LookupNetIP(look, "ip", addr)
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false, fault.Failed("interfaces", "", "list this machine's addresses: %w", err)
	}
	mine := map[netip.Addr]bool{}
	for _, a := range own {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			mine[p.Addr().WithZone("")] = true
		}
	}
	for _, ip := range ips {
		ip = ip.Unmap().WithZone("")
		if !ip.IsLoopback() && !mine[ip] {
			return false, nil
		}
	}
	return len(ips) > 0, nil
}
