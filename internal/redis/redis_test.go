package redis

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
	"st2ha/internal/secure"
)

func TestParseURL(t *testing.T) {
	for text, want := range map[string]Server{
		"redis://127.0.0.1:6379":                  {Addr: "127.0.0.1:6379"},
		"redis://[::1]":                           {Addr: "[::1]:6379"},
		"redis://:p%40ss%2F@h/2":                  {Addr: "h:6379", Password: "p@ss/", DB: 2},
		"redis://u:p@h:1?db=3":                    {Addr: "h:1", User: "u", Password: "p", DB: 3},
		"redis://h?password=p":                    {Addr: "h:6379", Password: "p"},
		"redis://h?ssl=True":                      {Addr: "h:6379", TLS: &secure.TLS{Verify: true, Hostname: true}},
		"rediss://h:7":                            {Addr: "h:7", TLS: &secure.TLS{Verify: true, Hostname: true}},
		"redis://127.0.0.1:6379/?namespace=_st2_": {Addr: "127.0.0.1:6379"},
	} {
		got, err := ParseURL(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "redis://", "zookeeper://h", "redis://h/x", "redis://:" + backendtest.Password +
		"@h"} {
		_, err := ParseURL(text)
		require.Error(t, err, text)
		require.NotContains(t, err.Error(), "p@ss")
	}
}

// FuzzRedis is a server that says anything: the session ends, or goes on with
// what it asked for, and keeps no more than a line.
func FuzzRedis(f *testing.F) {
	for _, said := range []string{"+PONG\r\n", "-NOAUTH x\r\n+OK\r\n", "$-1\r\n", "*1000000000\r\n", "\r\n\r\n\r\n",
		"-MISCONF", "+OK", strings.Repeat("x", 5000)} {
		f.Add([]byte(said))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		near, far := net.Pipe()
		go func() {
			_, _ = io.CopyN(io.Discard, far, 1) // the question has begun
			go io.Copy(io.Discard, far)
			_, _ = far.Write(said)
			_ = far.Close()
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		r, err := Dial(ctx, dialed(func() (net.Conn, error) { return near, nil }), Server{})
		require.NoError(t, err)
		reply, err := r.Ask(ctx, "PING")
		require.NoError(t, ctx.Err(), "it ends")
		if err != nil {
			require.LessOrEqual(t, len(err.Error()), 5000)
		}
		require.LessOrEqual(t, len(reply), 4096)
		r.Close()
	})
}

// dialed is a dialer that has the connection already.
type dialed func() (net.Conn, error)

func (d dialed) DialContext(context.Context, string, string) (net.Conn, error) { return d() }
