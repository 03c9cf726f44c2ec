package join

import (
	"context"
	"errors"
	"net"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/stackstorm"
)

// here is this machine.
const here = "127.0.0.1"

// Primary is the primary's address: the one given; or, on a secondary, the one that its st2.conf names; or, on the
// primary itself, the one by which it reaches the others.
func (c Cluster) Primary(ctx context.Context, given string, others []string) (string, error) {
	if given != "" {
		return given, host.CheckAddress("primary", given)
	}
	h, err := c.Open(ctx, here)
	if err != nil {
		return "", err
	}
	conf, err := stackstorm.ReadConf(ctx, h)
	if err != nil {
		return "", err
	}
	broker, err := conf.Broker()
	if err != nil {
		return "", err
	}
	elsewhere, _, err := net.SplitHostPort(broker.Addr)
	if err != nil {
		return "", err
	}
	if local, err := host.IsLocal(ctx, elsewhere); err != nil || !local {
		return elsewhere, err
	}
	own, by := "", ""
	for _, other := range others {
		address, err := source(ctx, other)
		switch {
		case err != nil:
			return "", fault.Preflight("address", "give primary, the address by which the secondaries reach it",
				"find the primary's address: there is no way to %s: %w", other, err)
		case own == "":
			own, by = address, other
		case own != address:
			return "", fault.Preflight("address", "give primary, the one address by which all secondaries reach it",
				"find the primary's address: it reaches %s from %s, but %s from %s", by, own, other, address)
		}
	}
	if own == "" {
		return "", fault.Usage("primary is missing, and so are secondaries that would show which address it has for them")
	}
	return own, nil
}

// source is the address that this machine sends from to another. Nothing is sent.
func source(ctx context.Context, to string) (string, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(to, "22"))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	from := conn.LocalAddr().(*net.UDPAddr).IP
	if from.IsLoopback() {
		return "", errors.New("it is this machine itself")
	}
	return from.String(), nil
}
