package rabbitmq

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/streadway/amqp"
	"github.com/stretchr/testify/require"

	"st2ha/internal/backendtest"
)

var shared = &backendtest.Shared{}

func TestMain(m *testing.M) { os.Exit(shared.Run(m)) }

func brokerLogin(addr string) Login {
	return Login{Addr: addr, User: backendtest.User, Password: backendtest.Password, VHost: "/"}
}

func proxy(t *testing.T) *backendtest.Proxy {
	broker := shared.Broker(t)
	p, err := backendtest.NewProxy(broker.Addr)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p
}

// dialBeat is Dial with another heartbeat.
func dialBeat(t *testing.T, l Login, beat time.Duration) *Connection {
	raw, err := net.Dial("tcp", l.Addr)
	require.NoError(t, err)
	conn, err := open(t.Context(), raw, l, beat)
	require.NoError(t, err)
	return conn
}

// The library sends the reason of an end while it holds the connection's lock.
// Fails if Closed has no room for it: then whatever asks the connection
// something, and the goroutine that reads it, hang for good.
func TestEndsThoughNobodyListens(t *testing.T) {
	p := proxy(t)
	check := backendtest.NoLeaks(t)
	conn, err := Dial(t.Context(), &net.Dialer{}, brokerLogin(p.Addr))
	require.NoError(t, err)
	p.Close()
	require.Eventually(t, conn.IsClosed, 5*time.Second, time.Millisecond)
	asked := make(chan error, 1)
	go func() {
		_, err := conn.Channel()
		asked <- err
	}()
	select {
	case err := <-asked:
		require.ErrorIs(t, err, amqp.ErrClosed)
	case <-time.After(5 * time.Second):
		t.Fatal("the connection's lock is held for good")
	}
	_ = conn.Close()
	check()
}

// The library clears the deadline after opening, until the next frame. Fails
// if SetDeadline passes the zero time on: then the cut is never seen.
func TestCutJustAfterOpening(t *testing.T) {
	p := proxy(t)
	conn := dialBeat(t, brokerLogin(p.Addr), time.Second)
	defer conn.Close()
	p.Hold()
	defer p.Release()
	began := time.Now()
	select {
	case err := <-conn.Closed:
		require.NotNil(t, err)
		t.Logf("seen after %s", time.Since(began).Round(time.Millisecond))
	case <-time.After(8 * time.Second):
		t.Fatal("not seen within 8 s at a heartbeat of 1 s")
	}
}

// Writes have no deadline in the library. Fails if Write sets none: a peer
// that does not read any more blocks the writer for good.
func TestWriteDeadline(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts by the kernel alone
	require.NoError(t, err)
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	raw := &rawConn{Conn: conn, silence: 200 * time.Millisecond}
	wrote := make(chan error, 1)
	go func() {
		_, err := raw.Write(make([]byte, 40<<20)) // more than the kernel takes in for both ends
		wrote <- err
	}()
	select {
	case err := <-wrote:
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	case <-time.After(5 * time.Second):
		t.Fatal("still writing after 5 s")
	}
}

// A dial that fails leaves its socket and the goroutine that reads it. Fails
// if open does not close the connection on each error: a broker without a
// common mechanism says nothing more, so the library waits for it for good.
func TestFailedDialsLeaveNothing(t *testing.T) {
	broker := shared.Broker(t)
	broker.MustCtl(t, "", "eval", `application:set_env(rabbit, auth_mechanisms, ['AMQPLAIN']).`)
	defer func() {
		broker.MustCtl(t, "", "eval", `application:set_env(rabbit, auth_mechanisms, ['PLAIN', 'AMQPLAIN']).`)
	}()
	check := backendtest.NoLeaks(t)
	for range 50 {
		_, err := Dial(t.Context(), &net.Dialer{}, brokerLogin(broker.Addr))
		require.ErrorIs(t, err, amqp.ErrSASL)
	}
	check()
}

// The same for logins that are refused; and each is told at once, which fails
// if authentication_failure_close is not advertised: the broker then waits.
func TestRefusedAtOnce(t *testing.T) {
	broker := shared.Broker(t)
	check := backendtest.NoLeaks(t)
	for _, tc := range []struct {
		spoil func(*Login)
		want  string
	}{
		{func(l *Login) { l.Password = "another" },
			"login refused: user stackstorm does not exist, or has another password"},
		{func(l *Login) { l.User = "nobody" }, "login refused: user nobody does not exist, or has another password"},
		{func(l *Login) { l.VHost = "gone" }, "login refused: vhost gone not found"},
	} {
		l := brokerLogin(broker.Addr)
		tc.spoil(&l)
		began := time.Now()
		for range 50 {
			_, err := Dial(t.Context(), &net.Dialer{}, l)
			require.ErrorIs(t, err, ErrRefused)
			require.EqualError(t, err, tc.want)
			require.NotContains(t, err.Error(), backendtest.Password)
		}
		each := time.Since(began) / 50
		t.Logf("%s: %s each", tc.want, each.Round(10*time.Microsecond))
		require.Less(t, each, 500*time.Millisecond)
	}
	check()
}

// A broker with an alarm does not answer that a connection ends. Fails if
// Close does not cut the connection after a while: it took over 8 s.
func TestCloseWhileBlocked(t *testing.T) {
	broker := shared.Broker(t)
	broker.MustCtl(t, "", "set_vm_memory_high_watermark", "0.00001")
	defer func() { broker.MustCtl(t, "", "set_vm_memory_high_watermark", "0.8") }()
	check := backendtest.NoLeaks(t)
	conn, err := Dial(t.Context(), &net.Dialer{}, brokerLogin(broker.Addr))
	require.NoError(t, err)
	canary, err := conn.NewCanary(t.Context())
	require.NoError(t, err)
	for range 3 {
		var blocked *BlockedError
		require.ErrorAs(t, canary.Publish(t.Context()), &blocked)
		require.EqualError(t, blocked, "memory alarm: publishers are blocked")
	}
	began := time.Now()
	_ = conn.Close()
	require.Less(t, time.Since(began), 2*time.Second)
	check()
	var blocked *BlockedError
	require.ErrorAs(t, Works(t.Context(), &net.Dialer{}, brokerLogin(broker.Addr)), &blocked)
	check()
}

// hookDialer does something before the client's second message, its login.
type hookDialer struct{ hook func() }

func (d hookDialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	return &hookConn{Conn: conn, hook: d.hook}, err
}

type hookConn struct {
	net.Conn
	writes int
	hook   func()
}

func (c *hookConn) Write(p []byte) (int, error) {
	if c.writes++; c.writes == 2 {
		c.hook()
	}
	return c.Conn.Write(p)
}

// Whatever goes wrong between the login and the broker's answer is a refused
// login to the library. Fails if a silent or killed broker is taken for one.
func TestLostWhileLoggingIn(t *testing.T) {
	p := proxy(t)
	check := backendtest.NoLeaks(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := Dial(ctx, hookDialer{p.Hold}, brokerLogin(p.Addr))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, ErrRefused)
	p.Release()
	_, err = Dial(t.Context(), hookDialer{p.Close}, brokerLogin(p.Addr))
	require.ErrorContains(t, err, "the connection ended while it was opened")
	require.NotErrorIs(t, err, ErrRefused)
	check()
}

// A heartbeat below one second means the broker's own, a minute, to the
// library. Fails if open passes it on.
func TestShortHeartbeat(t *testing.T) {
	broker := shared.Broker(t)
	conn := dialBeat(t, brokerLogin(broker.Addr), 200*time.Millisecond)
	defer conn.Close()
	require.Equal(t, time.Second, conn.Config.Heartbeat)
}

func TestWorksAndInspect(t *testing.T) {
	broker := shared.Broker(t)
	check := backendtest.NoLeaks(t)
	require.NoError(t, Works(t.Context(), &net.Dialer{}, brokerLogin(broker.Addr)))
	conn, err := Dial(t.Context(), &net.Dialer{}, brokerLogin(broker.Addr))
	require.NoError(t, err)
	channel, err := conn.Channel()
	require.NoError(t, err)
	for _, q := range []string{"a", "b"} {
		_, err := channel.QueueDeclare(q, false, true, false, false, nil)
		require.NoError(t, err)
	}
	_, err = channel.Consume("a", "", true, false, false, false, nil)
	require.NoError(t, err)
	require.NoError(t, channel.Publish("", "b", false, false, amqp.Publishing{Body: []byte("waits")}))
	require.Eventually(t, func() bool {
		queues, err := Inspect(t.Context(), &net.Dialer{}, brokerLogin(broker.Addr), "a", "none", "b")
		require.NoError(t, err)
		require.Len(t, queues, 2)
		require.Equal(t, Queue{Consumers: 1}, queues["a"])
		return queues["b"] == Queue{Messages: 1}
	}, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, conn.Ask(t.Context()))
	require.NoError(t, conn.Close())
	check()
}

func TestCanaryCut(t *testing.T) {
	p := proxy(t)
	conn, err := Dial(t.Context(), &net.Dialer{}, brokerLogin(p.Addr))
	require.NoError(t, err)
	defer conn.Close()
	canary, err := conn.NewCanary(t.Context())
	require.NoError(t, err)
	require.NoError(t, canary.Publish(t.Context()))
	p.Hold()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, canary.Publish(ctx), context.DeadlineExceeded)
	require.True(t, errors.Is(ctx.Err(), context.DeadlineExceeded))
}

func frame(kind byte, payload string) string {
	return string(kind) + "\x00\x00" +
		string(binary.BigEndian.AppendUint32(nil, uint32(len(payload)))) + payload + "\xce"
}

func long(s string) string { return string(binary.BigEndian.AppendUint32(nil, uint32(len(s)))) + s }

// handshake is what a broker says until a connection is open.
func handshake(properties string) string {
	return frame(1, "\x00\x0a\x00\x0a\x00\x09"+long(properties)+long("PLAIN AMQPLAIN")+long("en_US")) +
		frame(1, "\x00\x0a\x00\x1e\x07\xff\xff\xff\xff\xff\x00\x3c") + // tune: no limit of its own
		frame(1, "\x00\x0a\x00\x29\x00")
}

// nested are n tables in each other.
func nested(n int) string {
	table := ""
	for range n {
		table = "\x01kF" + long(table)
	}
	return table
}

// hostile are brokers whose answers once took all memory.
var hostile = map[string]string{
	"a message of 2^40 bytes": handshake("") + frame(2,
		"\x00\x3c\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"),
	"a frame of 2^32 bytes":         handshake("") + "\x03\x00\x00\xff\xff\xff\xff",
	"63 KB of tables in each other": handshake(nested(9000)),
	"tables in each other in a message": handshake("") + frame(2,
		"\x00\x3c\x00\x00"+"\x00\x00\x00\x00\x00\x00\x00\x01"+"\x20\x00"+long(nested(9000))),
	"a string of 2 GB":                 frame(1, "\x00\x0a\x00\x0a\x00\x09"+long("")+"\x7f\xff\xff\xff"),
	"a field of -1 bytes":              handshake("\x01kx\xff\xff\xff\xff"),
	"a string in a table that goes on": handshake("\x01kS\x7f\xff\xff\xff"),
	"a method that takes of the next": handshake("") + frame(1,
		"\x00\x14\x00\x0b\x00") + "\xce\xce\xce\x03\x00\x00\xff\xff\xff\xff",
	"a method that leaves some of it": handshake("") + frame(1, "\x00\x0a\x00\x33\x03\x00\x00\xff\xff\xff\xff"),
	"a method that only clients send": handshake("") + frame(1, "\x00\x3c\x00\x14"),
	"an answer to no question":        handshake("") + frame(1, "\x00\x0a\x00\x33"),
	"a channel nobody opened": handshake("") + frame(1,
		"\x00\x3c\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00")[:1] + "\x00\x01" + frame(1,
		"\x00\x3c\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00")[3:],
	"a message on channel 0": handshake("") + frame(2,
		"\x00\x3c\x00\x00"+"\x00\x00\x00\x00\x00\x00\x00\x01"+"\x00\x00"),
	"no end of a frame": "\x01\x00\x00\x00\x00\x00\x04\x00\x0a\x00\x33\x00",
	"something else":    "HTTP/1.1 400 Bad Request\r\n\r\n",
}

// played is a connection on which a broker says frame by frame what it will
// say: the first three when it was asked, as a handshake has it, and the rest
// when the connection is open.
type played struct {
	net.Conn // nil: nothing else is called
	said     string
	turn     int
	part     string
	wrote    chan struct{} // one for each write
	open     chan struct{}
	over     chan struct{}
	end      func()
}

func play(said string) *played {
	p := &played{said: said, wrote: make(chan struct{}, 1000), open: make(chan struct{}), over: make(chan struct{})}
	p.end = sync.OnceFunc(func() { close(p.over) })
	return p
}

func (p *played) Read(b []byte) (int, error) {
	if p.part == "" {
		// Tune-Ok has no answer, Open has
		waits := [][]chan struct{}{{p.wrote}, {p.wrote}, {p.wrote, p.wrote}, {p.open}}[min(p.turn, 3)]
		for _, c := range waits {
			select {
			case <-c:
			case <-p.over:
				return 0, net.ErrClosed
			}
		}
		size := len(p.said)
		if p.turn < 3 && size >= 8 {
			size = min(size, 8+int(binary.BigEndian.Uint32([]byte(p.said[3:]))))
		}
		p.part, p.said = p.said[:size], p.said[size:]
		p.turn++
		if size == 0 {
			return 0, io.EOF
		}
	}
	n := copy(b, p.part)
	p.part = p.part[n:]
	return n, nil
}

func (p *played) Write(b []byte) (int, error) {
	select {
	case p.wrote <- struct{}{}:
	default:
	}
	return len(b), nil
}

func (p *played) Close() error                     { p.end(); return nil }
func (p *played) SetDeadline(time.Time) error      { return nil }
func (p *played) SetReadDeadline(time.Time) error  { return nil }
func (p *played) SetWriteDeadline(time.Time) error { return nil }

// listen opens a connection to a played broker, hears it out, and returns why
// it ended, with the memory that was taken meanwhile. One that says too little
// is waited for as long as patience.
func listen(t *testing.T, said string, patience time.Duration) (took uint64, reason error) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p := play(said)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := open(ctx, p, Login{User: "u", VHost: "/"}, heartbeat)
	close(p.open)
	if err == nil {
		if end := <-conn.Closed; end != nil {
			err = end
		}
		closed := time.AfterFunc(5*time.Second, func() { panic("Close hangs") })
		_ = conn.Close()
		closed.Stop()
	}
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc, err
}

// Whatever a broker says, it takes little memory and ends with a reason.
func TestHostileBroker(t *testing.T) {
	for name, said := range hostile {
		t.Run(name, func(t *testing.T) {
			took, err := listen(t, said, 50*time.Millisecond)
			require.ErrorContains(t, err, "no AMQP 0-9-1 broker")
			require.NotContains(t, err.Error(), "\n")
			require.Less(t, took, uint64(8<<20))
		})
	}
	conn, err := open(t.Context(), play(handshake("\x01kF"+long("\x01aA"+long("VVS"+long("x"))))),
		Login{User: "u", VHost: "/"}, heartbeat)
	require.NoError(t, err, "three levels are in order")
	_ = conn.Close()
}

// FuzzBroker is a broker that says anything.
func FuzzBroker(f *testing.F) {
	for _, said := range hostile {
		f.Add([]byte(said))
	}
	f.Add([]byte(handshake("\x01kF" + long("\x01aA"+long("VVS"+long("x"))))))
	f.Add([]byte(handshake("") + frame(1, "\x00\x3c\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00") +
		frame(2, "\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\xff\xfc"+"\x00\x00"+long("")+
			"\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00") + frame(3, "x")))
	f.Fuzz(func(t *testing.T, said []byte) {
		took, _ := listen(t, string(said), 10*time.Millisecond)
		require.Less(t, took, uint64(16<<20+100*len(said)))
	})
}

func TestFarewell(t *testing.T) {
	said := closeReason([]byte(frame(1, "\x00\x0a\x00\x32\x02\x12\x03abc\x00\x00\x00\x00")))
	require.Equal(t, &amqp.Error{Code: 530, Reason: "abc", Server: true}, said)
	require.Nil(t, closeReason([]byte(frame(8, ""))))
}
