package watch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"

	"st2ha/internal/secure"
)

// RedisSettings is one Redis server, and how it is watched.
type RedisSettings struct {
	Addr     string // host:port
	User     string // empty for the default user
	Password string // empty for a server without
	DB       int
	TLS      *secure.TLS          // nil without
	Dialer   secure.ContextDialer // from where; this machine if nil
	Timing
}

// ParseRedisURL reads redis://[user:password@]host[:port][/db], or rediss://
// for TLS, with the options db, password and ssl as [coordination] url of
// st2.conf may have them (tooz, drivers/redis). Its error holds no part of the URL.
func ParseRedisURL(text string) (RedisSettings, error) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.Scheme != "redis" && u.Scheme != "rediss" {
		return RedisSettings{}, errors.New("the URL is none of Redis: redis://[user:password@]host[:port][/db], with what is special in a password percent-encoded")
	}
	s := RedisSettings{Addr: u.Host, User: u.User.Username()}
	if u.Port() == "" {
		s.Addr = net.JoinHostPort(u.Hostname(), "6379")
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
			return RedisSettings{}, errors.New("the database in the URL of Redis must be a number")
		}
	}
	if on(options.Get("ssl")) || u.Scheme == "rediss" {
		// redis-py verifies both by itself (redis/connection.py, SSLConnection).
		s.TLS = &secure.TLS{CA: options.Get("ssl_ca_certs"), Cert: options.Get("ssl_certfile"), Key: options.Get("ssl_keyfile"), Verify: true, Hostname: true}
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

// WatchRedis watches a server by a held connection, with a PING on it, and by
// fresh logins that write a key.
func WatchRedis(s RedisSettings) Func {
	s.Timing = s.withDefaults()
	if s.Dialer == nil {
		s.Dialer = &net.Dialer{}
	}
	return func(ctx context.Context, report func(Observation)) {
		h := &holder{Timing: s.Timing, report: report, open: func(ctx context.Context) (session, error) {
			r, err := s.open(ctx)
			if err != nil {
				return nil, err
			}
			return r, nil
		}}
		together(report,
			func(report func(Observation)) { h.run(ctx) },
			func(report func(Observation)) { logins(ctx, s.Timing, report, s.login) })
	}
}

// login writes as StackStorm's locks do: a server that only reads answers PING.
func (s *RedisSettings) login(ctx context.Context) error {
	conn, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer conn.close()
	_, err = conn.ask(ctx, "SET", "st2ha:canary", "1", "PX", "1000")
	return err
}

// redisSession speaks RESP, whose requests are arrays of bulk strings and
// whose replies to what is asked here are one line each (Redis serialization
// protocol specification).
type redisSession struct {
	net.Conn
	settings *RedisSettings
	replies  chan string // closed when the connection has ended
	over     chan struct{}
	heard    bool  // it has answered
	err      error // why; set before
}

// open connects, logs in and selects the database.
func (s *RedisSettings) open(ctx context.Context) (*redisSession, error) {
	conn, err := s.TLS.Dial(ctx, s.Dialer, s.Addr)
	if err != nil {
		return nil, err
	}
	r := &redisSession{Conn: conn, settings: s, replies: make(chan string, 1), over: make(chan struct{})}
	go r.read()
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
		if _, err := r.ask(ctx, command...); err != nil {
			r.close()
			return nil, err
		}
	}
	return r, nil
}

// read is blocked in the connection, so that its end is seen at once.
func (r *redisSession) read() {
	defer close(r.over)
	defer close(r.replies)
	lines := bufio.NewReader(r.Conn)
	for {
		line, err := lines.ReadSlice('\n') // a longer line than the buffer's is no reply to what is asked
		if err != nil {
			r.err = err
			return
		}
		select {
		case r.replies <- strings.TrimRight(string(line), "\r\n"):
		default:
			r.err = errors.New("what answers is no Redis")
			_ = r.Conn.Close()
			return
		}
	}
}

func (r *redisSession) ended() <-chan struct{} { return r.over }

func (r *redisSession) close() {
	_ = r.Conn.Close()
	<-r.over
}

func (r *redisSession) ping(ctx context.Context) (string, error) {
	_, err := r.ask(ctx, "PING")
	return "", err
}

// ask sends a command and waits for its reply. It must not be used again once
// ctx has ended.
func (r *redisSession) ask(ctx context.Context, command ...string) (string, error) {
	var request strings.Builder
	fmt.Fprintf(&request, "*%d\r\n", len(command))
	for _, word := range command {
		fmt.Fprintf(&request, "$%d\r\n%s\r\n", len(word), word)
	}
	deadline, _ := ctx.Deadline()
	_ = r.SetWriteDeadline(deadline)
	if _, err := r.Write([]byte(request.String())); err != nil {
		return "", err
	}
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case reply, ok := <-r.replies:
		r.heard = r.heard || ok
		switch {
		case !ok && r.settings.TLS == nil && !r.heard:
			return "", secure.ExplainEnd(ctx, r.settings.Dialer, r.settings.Addr, r.err)
		case !ok:
			return "", secure.Explain(r.err)
		case strings.HasPrefix(reply, "+"):
			return reply[1:], nil
		case strings.HasPrefix(reply, "-"):
			return "", r.settings.said(reply[1:])
		}
		return "", errors.New("what answers is no Redis")
	}
}

// said is an error of the server in words (redis.conf; Redis, "Error replies").
func (s *RedisSettings) said(reply string) *finding {
	who := "user " + s.User
	if s.User == "" {
		who = "the default user"
	}
	code, _, _ := strings.Cut(reply, " ")
	alarm := Limit{Suspect: s.PingMisses, DownAfter: s.DownAfter}
	switch code {
	case "NOAUTH":
		return s.refused("login refused: Redis asks for a password, and none is configured")
	case "WRONGPASS":
		return s.refused("login refused: " + who + " does not exist, is disabled, or has another password")
	case "NOPERM":
		return s.refused("login refused: " + who + " has no permission: " + reply)
	case "LOADING":
		return &finding{ProbeAlarm, "it loads its data into memory", Limit{Suspect: s.PingMisses}}
	case "READONLY":
		return &finding{ProbeAlarm, "read only: it is a replica", alarm}
	case "MASTERDOWN":
		return &finding{ProbeAlarm, "a replica whose master is down", alarm}
	case "MISCONF":
		return &finding{ProbeAlarm, "it cannot save to disk, and refuses writes", alarm}
	case "OOM":
		return &finding{ProbeAlarm, "out of memory: it refuses writes", alarm}
	case "DENIED":
		return s.refused("login refused: protected mode: Redis has no password, and answers its own machine only")
	}
	if strings.Contains(reply, "without any password configured") {
		return s.refused("login refused: a password is configured, and Redis has none")
	}
	return &finding{ProbeAlarm, reply, alarm}
}
