// Package redis asks a Redis server: it logs in and sends one command at a time
// on a connection whose end is seen at once.
package redis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"st2ha/internal/secure"
)

// Port is the usual TCP port.
const Port = "6379"

// answerTime is what a server may take to say that it is there.
const answerTime = 3 * time.Second

// errNoRedis is a reply that no Redis gives to what is asked here.
var errNoRedis = errors.New("the server that answers is not Redis")

// Server is one server, and how to log in there.
type Server struct {
	Addr     string // host:port
	User     string // empty for the default user
	Password string // empty for a server without
	DB       int
	TLS      *secure.TLS // nil without
}

// ParseURL reads redis://[user:password@]host[:port][/db], or rediss:// for
// TLS, with the options db, password and ssl as [coordination] url of st2.conf
// may have them (tooz, drivers/redis). Its error holds no part of the URL.
func ParseURL(text string) (Server, error) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.Scheme != "redis" && u.Scheme != "rediss" {
		return Server{}, errors.New("the URL of Redis must be redis://[user:password@]host[:port][/db], " +
			"with special characters in a password percent-encoded")
	}
	s := Server{Addr: u.Host, User: u.User.Username()}
	if u.Port() == "" {
		s.Addr = net.JoinHostPort(u.Hostname(), Port)
	}
	s.Password, _ = u.User.Password()
	options := u.Query()
	if p := options.Get("password"); p != "" {
		s.Password = p
	}
	db := strings.Trim(u.Path, "/")
	if d := options.Get("db"); d != "" {
		db = d
	}
	if db != "" {
		if s.DB, err = strconv.Atoi(db); err != nil {
			return Server{}, errors.New("the database in the URL of Redis must be a number")
		}
	}
	if on(options.Get("ssl")) || u.Scheme == "rediss" {
		// redis-py verifies both by itself (redis/connection.py, SSLConnection).
		s.TLS = &secure.TLS{CA: options.Get("ssl_ca_certs"), Cert: options.Get("ssl_certfile"),
			Key:    options.Get("ssl_keyfile"),
			Verify: true, Hostname: true}
	}
	return s, nil
}

// on is oslo.utils' bool_from_string, by which tooz reads the options.
func on(text string) bool {
	switch strings.ToLower(strings.TrimSpace(text)) {
	case "1", "t", "true", "on", "y", "yes":
		return true
	}
	return false
}

// ReplyError is an error that the server replied: "NOAUTH Authentication required.".
type ReplyError struct{ Text string }

func (e *ReplyError) Error() string { return e.Text }

// Code is the first word, which names the error (Redis, "Error replies").
func (e *ReplyError) Code() string {
	code, _, _ := strings.Cut(e.Text, " ")
	return code
}

// Conn is a connection. It speaks RESP, whose requests are arrays of bulk
// strings and whose replies to what is asked here are one line each (Redis
// serialization protocol specification).
type Conn struct {
	conn    net.Conn
	replies chan string   // closed when the connection has ended
	over    chan struct{} // the same, for others
	err     error         // why; set before
	heard   bool          // it has answered
	explain func(ctx context.Context, err error, heard bool) error
}

// Dial connects, logs in and selects the database.
func Dial(ctx context.Context, d secure.ContextDialer, s Server) (*Conn, error) {
	raw, err := s.TLS.Dial(ctx, d, s.Addr)
	if err != nil {
		return nil, err
	}
	c := newConn(raw, func(ctx context.Context, err error, heard bool) error {
		if s.TLS == nil && !heard {
			return secure.ExplainEnd(ctx, d, s.Addr, err)
		}
		return secure.Explain(err)
	})
	var login [][]string
	switch {
	case s.User != "":
		login = append(login, []string{"AUTH", s.User, s.Password})
	case s.Password != "":
		login = append(login, []string{"AUTH", s.Password})
	}
	if s.DB != 0 {
		login = append(login, []string{"SELECT", strconv.Itoa(s.DB)})
	}
	for _, command := range login {
		if _, err := c.Ask(ctx, command...); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// Answers says whether a server answers at all, with TLS or without, and
// without a login. An error is an answer as well: a password that is asked for,
// or data that is still being loaded.
func Answers(ctx context.Context, d secure.ContextDialer, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return secure.Answers(ctx, d, addr, func(raw net.Conn) error {
		c := newConn(raw, func(_ context.Context, err error, _ bool) error { return err })
		defer c.Close()
		_, err := c.Ask(ctx, "PING")
		if said := (*ReplyError)(nil); errors.As(err, &said) {
			return nil
		}
		return err
	})
}

func newConn(raw net.Conn, explain func(context.Context, error, bool) error) *Conn {
	c := &Conn{conn: raw, replies: make(chan string, 1), over: make(chan struct{}), explain: explain}
	go c.read()
	return c
}

// read is blocked in the connection, so that its end is seen at once.
func (c *Conn) read() {
	defer close(c.over)
	defer close(c.replies)
	lines := bufio.NewReader(c.conn)
	for {
		line, err := lines.ReadSlice('\n') // a longer line than the buffer's is no reply to what is asked
		if err != nil {
			c.err = err
			return
		}
		select {
		case c.replies <- strings.TrimRight(string(line), "\r\n"):
		default:
			c.err = errNoRedis
			_ = c.conn.Close()
			return
		}
	}
}

// Ended is closed when the connection is no more.
func (c *Conn) Ended() <-chan struct{} { return c.over }

// Close ends the connection.
func (c *Conn) Close() {
	_ = c.conn.Close()
	<-c.over
}

// Ask sends a command and returns the reply; an error of the server is a
// *ReplyError. The connection must not be used again once ctx has ended.
func (c *Conn) Ask(ctx context.Context, command ...string) (string, error) {
	var request strings.Builder
	fmt.Fprintf(&request, "*%d\r\n", len(command))
	for _, word := range command {
		fmt.Fprintf(&request, "$%d\r\n%s\r\n", len(word), word)
	}
	deadline, _ := ctx.Deadline()
	_ = c.conn.SetWriteDeadline(deadline)
	if _, err := c.conn.Write([]byte(request.String())); err != nil {
		return "", err
	}
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case reply, ok := <-c.replies:
		if !ok {
			return "", c.explain(ctx, c.err, c.heard)
		}
		c.heard = true
		switch {
		case strings.HasPrefix(reply, "+"):
			return reply[1:], nil
		case strings.HasPrefix(reply, "-"):
			return "", &ReplyError{reply[1:]}
		}
		return "", errNoRedis
	}
}
