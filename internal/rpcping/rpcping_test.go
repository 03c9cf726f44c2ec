package rpcping_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"st2ha/internal/rpcping"
	"st2ha/internal/rpcping/nfstest"
)

const (
	packs = "/opt/stackstorm/packs"
	venvs = "/opt/stackstorm/virtualenvs"
)

// within ends in time for any call that is answered at all.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func dial(t testing.TB, addr string) *rpcping.Conn {
	t.Helper()
	conn, err := rpcping.Dial(within(t), addr)
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	return conn
}

func status(t testing.TB, err error) rpcping.Status {
	t.Helper()
	var at *rpcping.StatusError
	require.ErrorAs(t, err, &at)
	return at.Status
}

func TestServer(t *testing.T) {
	server := nfstest.Start(t, packs, venvs)
	conn := dial(t, server.Addr)
	require.True(t, conn.Privileged())
	require.NoError(t, conn.Null(within(t), 4))
	require.Equal(t, &rpcping.MismatchError{Low: 4, High: 4}, conn.Null(within(t), 3), "alive without that version")
	for _, path := range []string{packs, venvs, "/", "/opt/stackstorm/packs/"} {
		require.NoError(t, conn.Export(within(t), path), path)
	}
	require.Equal(t, rpcping.NoEnt, status(t, conn.Export(within(t), "/opt/stackstorm/configs")))
	require.EqualError(t, conn.Export(within(t), "/no/such/thing"), "/no: NFS4ERR_NOENT")
	require.ErrorContains(t, conn.Export(within(t), "packs"), "must be an absolute path")
	require.ErrorContains(t, conn.Export(within(t), "/"+strings.Repeat("n", 256)), "no path")

	server.Export(venvs)
	require.Eventually(t, func() bool { return conn.Export(within(t), packs) != nil },
		10*time.Second, 10*time.Millisecond)
	require.Equal(t, rpcping.NoEnt, status(t, conn.Export(within(t), packs)))
	require.NoError(t, conn.Export(within(t), venvs))
	server.Export(packs, venvs)
	require.Eventually(t, func() bool { return conn.Export(within(t), packs) == nil },
		10*time.Second, 10*time.Millisecond)
}

// An answer that comes too late is no answer to what is asked next.
func TestFrozen(t *testing.T) {
	server := nfstest.Start(t, packs)
	conn := dial(t, server.Addr)
	server.Freeze()
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		require.ErrorIs(t, conn.Null(ctx, 4), context.DeadlineExceeded)
		require.ErrorIs(t, conn.Export(ctx, packs), context.DeadlineExceeded)
		cancel()
	}
	other := dial(t, server.Addr) // the kernel answers for it
	server.Thaw()
	require.NoError(t, conn.Null(within(t), 4))
	require.Equal(t, rpcping.NoEnt, status(t, conn.Export(within(t), "/elsewhere")))
	require.NoError(t, other.Export(within(t), packs))
}

func TestKilled(t *testing.T) {
	server := nfstest.Start(t, packs)
	conn := dial(t, server.Addr)
	require.NoError(t, conn.Null(within(t), 4))
	started := time.Now()
	server.Kill()
	select {
	case <-conn.Done():
	case <-within(t).Done():
		t.Fatal("the end is not seen")
	}
	t.Logf("seen after %v", time.Since(started))
	require.ErrorIs(t, conn.Null(within(t), 4), rpcping.ErrClosed)
	_, err := rpcping.Dial(within(t), server.Addr)
	require.ErrorIs(t, err, unix.ECONNREFUSED)
	server.Run()
	require.NoError(t, dial(t, server.Addr).Export(within(t), packs))
}

// A "secure" export tells who is not root.
func TestUnprivileged(t *testing.T) {
	server := nfstest.Start(t, packs)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread is of no use without its capability
		done <- func() error {
			if err := dropBind(); err != nil {
				return err
			}
			conn, err := rpcping.Dial(within(t), server.Addr)
			if err != nil {
				return err
			}
			defer conn.Close()
			if conn.Privileged() {
				return fmt.Errorf("from a privileged port")
			}
			if err := conn.Null(within(t), 4); err != nil {
				return err
			}
			if err := conn.Export(within(t), packs); err == nil {
				return fmt.Errorf("the export is seen")
			}
			return nil
		}()
	}()
	require.NoError(t, <-done)
}

// dropBind takes CAP_NET_BIND_SERVICE from this thread (capabilities(7)).
func dropBind() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1 << unix.CAP_NET_BIND_SERVICE
	return unix.Capset(&head, &data[0])
}

// answer is a server of one connection that says data to the first call.
func answer(t *testing.T, data func(xid [4]byte) []byte) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		call := make([]byte, 512)
		if n, err := conn.Read(call); err != nil || n < 8 {
			return
		}
		conn.Write(data([4]byte(call[4:8])))
		conn.Read(call) // until the other side ends it
	}()
	return l.Addr().String()
}

// words are the XDR words of a record of one fragment, after its xid.
func words(w ...uint32) func(xid [4]byte) []byte {
	return func(xid [4]byte) []byte {
		b := be(1<<31 | uint32(4+4*len(w)))
		b = append(b, xid[:]...)
		for _, v := range w {
			b = append(b, be(v)...)
		}
		return b
	}
}

func be(w uint32) []byte { return []byte{byte(w >> 24), byte(w >> 16), byte(w >> 8), byte(w)} }

// Answers that no server in reach gives.
func TestAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		data func(xid [4]byte) []byte
		want string
	}{
		"success":       {words(1, 0, 0, 0, 0), ""},
		"other program": {words(1, 0, 0, 0, 1), "the program there is not NFS"},
		"system error":  {words(1, 0, 0, 0, 5), "the server has an internal error (SYSTEM_ERR)"},
		"rpc version":   {words(1, 1, 0, 3, 4), "the server speaks RPC versions 3 to 4 only"},
		"weak": {words(1, 1, 1, 5),
			"credentials too weak: the server wants another security flavor, or a source port below 1024"},
		"bad":  {words(1, 1, 1, 1), "bad credentials"},
		"auth": {words(1, 1, 1, 14), "credentials refused (auth_stat 14)"},
		"a call": {words(0, 2, 100003, 4, 0),
			"the server ended the connection: the answer is not one of an NFS server: not a reply"},
		"cut short": {words(1, 0, 0),
			"the server ended the connection: the answer is not one of an NFS server: it is cut short"},
		"another protocol": {func([4]byte) []byte { return []byte("HTTP/1.1 400 Bad Request\r\n\r\n") },
			"the server ended the connection: the answer is not one of an NFS server: a record of more than 4096 bytes"},
		"no end": {func([4]byte) []byte { return make([]byte, 4*17) },
			"the server ended the connection: the answer is not one of an NFS server: a record of more than 16 " +
				"fragments"},
		"fragments": {func(xid [4]byte) []byte {
			b := append(be(6), xid[:]...)
			b = append(b, 0, 0)
			b = append(b, be(1<<31|18)...)
			return append(append(b, 0, 1), make([]byte, 16)...)
		}, ""},
		"an older answer first": {func(xid [4]byte) []byte {
			return append(words(1, 0, 0, 0, 1)([4]byte{}), words(1, 0, 0, 0, 0)(xid)...)
		}, ""},
		"end": {func([4]byte) []byte { return be(1<<31 | 24)[:2] }, "context deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, answer(t, test.data))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			if err := conn.Null(ctx, 4); test.want == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, test.want)
			}
		})
	}
}

func BenchmarkNull(b *testing.B) {
	conn := dial(b, nfstest.Start(b, packs).Addr)
	for b.Loop() {
		require.NoError(b, conn.Null(b.Context(), 4))
	}
}

func BenchmarkExport(b *testing.B) {
	conn := dial(b, nfstest.Start(b, packs).Addr)
	for b.Loop() {
		require.NoError(b, conn.Export(b.Context(), packs))
	}
}

func BenchmarkDial(b *testing.B) {
	addr := nfstest.Start(b, packs).Addr
	for b.Loop() {
		conn, err := rpcping.Dial(b.Context(), addr)
		require.NoError(b, err)
		conn.Close()
	}
}
