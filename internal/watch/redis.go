package watch

import (
	"context"
	"errors"
	"net"
	"strings"

	"st2ha/internal/redis"
	"st2ha/internal/secure"
)

// RedisSettings is one Redis server, and how it is watched.
type RedisSettings struct {
	redis.Server
	Dialer secure.ContextDialer // from where; this machine if nil
	Timing
}

// WatchRedis watches a server by a held connection, with a PING on it, and by
// fresh logins that write a key.
func WatchRedis(s RedisSettings) Func {
	s.Timing = s.withDefaults()
	if s.Dialer == nil {
		s.Dialer = &net.Dialer{}
	}
	return func(ctx context.Context, report func(Observation)) {
		h := &holder{Timing: s.Timing, report: report, open: s.open}
		together(report,
			func(report func(Observation)) { h.run(ctx) },
			func(report func(Observation)) { logins(ctx, s.Timing, report, s.login) })
	}
}

// login writes as StackStorm's locks do: a server that only reads answers PING.
func (s *RedisSettings) login(ctx context.Context) error {
	conn, err := redis.Dial(ctx, s.Dialer, s.Server)
	if err != nil {
		return s.finding(err)
	}
	defer conn.Close()
	_, err = conn.Ask(ctx, "SET", "st2ha:canary", "1", "PX", "1000")
	return s.finding(err)
}

// redisSession is a connection that is held.
type redisSession struct {
	*redis.Conn
	settings *RedisSettings
}

func (s *RedisSettings) open(ctx context.Context) (session, error) {
	conn, err := redis.Dial(ctx, s.Dialer, s.Server)
	if err != nil {
		return nil, s.finding(err)
	}
	return &redisSession{conn, s}, nil
}

func (r *redisSession) ended() <-chan struct{} { return r.Ended() }

func (r *redisSession) close() { r.Close() }

func (r *redisSession) ping(ctx context.Context) (string, error) {
	_, err := r.Ask(ctx, "PING")
	return "", r.settings.finding(err)
}

// finding puts an error that the server replied in words (redis.conf; Redis,
// "Error replies"); any other error stays as it is.
func (s *RedisSettings) finding(err error) error {
	var said *redis.ReplyError
	if !errors.As(err, &said) {
		return err
	}
	reply := said.Text
	who := "user " + s.User
	if s.User == "" {
		who = "the default user"
	}
	alarm := Limit{Suspect: s.PingMisses, DownAfter: s.DownAfter}
	switch said.Code() {
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
