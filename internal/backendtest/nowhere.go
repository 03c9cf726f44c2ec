package backendtest

import (
	"context"
	"net"
	"strconv"
	"testing"
)

// Closed is an address at which nobody listens.
func Closed(t testing.TB) string {
	t.Helper()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

// Resolver asks one name server, over udp or tcp.
func Resolver(network, addr string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
}

// SilentResolver asks a name server that takes questions and answers none.
func SilentResolver(t testing.TB) *net.Resolver {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return Resolver("udp", c.LocalAddr().String())
}
