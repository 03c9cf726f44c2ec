package redis

import (
	"context"
	"errors"
	"net"
	"strings"

	"st2ha/internal/probe"
	client "st2ha/internal/redis"
	"st2ha/internal/secure"
)

// Settings is one Redis server, and how it is watched.
type Settings struct {
	client.Server
	Dialer secure.ContextDialer // from where; this machine if nil
	probe.Timing
}

// Watch watches a server by a held connection, with a PING on it, and by
// fresh logins that write a key.
func Watch(s Settings) probe.Func {
	s.Timing = s.WithDefaults()
	if s.Dialer == nil {
		s.Dialer = &net.Dialer{}
	}
	return func(ctx context.Context, report func(probe.Observation)) {
		probe.Together(report,
			func(report func(probe.Observation)) { probe.Sessions(ctx, s.Timing, report, s.open) },
			func(report func(probe.Observation)) { probe.Logins(ctx, s.Timing, report, s.login) })
	}
}

// login writes as StackStorm's locks do: a server that only reads answers PING.
func (s *Settings) login(ctx context.Context) error {
	conn, err := client.Dial(ctx, s.Dialer, s.Server)
	if err != nil {
		return s.finding(err)
	}
	defer conn.Close()
	_, err = conn.Ask(ctx, "SET", "st2ha:canary", "1", "PX", "1000")
	return s.finding(err)
}

// redisSession is a connection that is held.
type redisSession struct {
	*client.Conn
	settings *Settings
}

func (s *Settings) open(ctx context.Context) (probe.Session, error) {
	conn, err := client.Dial(ctx, s.Dialer, s.Server)
	if err != nil {
		return nil, s.finding(err)
	}
	return &redisSession{conn, s}, nil
}

// Ping sends PING.
func (r *redisSession) Ping(ctx context.Context) (string, error) {
	_, err := r.Ask(ctx, "PING")
	return "", r.settings.finding(err)
}

// finding puts an error that the server replied in words (client.conf; Redis,
// "Error replies"); any other error stays as it is.
func (s *Settings) finding(err error) error {
	var said *client.ReplyError
	if !errors.As(err, &said) {
		return err
	}
	reply := said.Text
	who := "user " + s.User
	if s.User == "" {
		who = "the default user"
	}
	alarm := probe.Limit{Suspect: s.PingMisses, DownAfter: s.DownAfter}
	switch said.Code() {
	case "NOAUTH":
		return s.Refused("login refused: Redis asks for a password, and none is configured")
	case "WRONGPASS":
		return s.Refused("login refused: " + who + " does not exist, is disabled, or has another password")
	case "NOPERM":
		return s.Refused("login refused: " + who + " has no permission: " + reply)
	case "LOADING":
		return &probe.Finding{Probe: probe.Alarm, Reason: "it loads its data into memory",
			Limit: probe.Limit{Suspect: s.PingMisses}}
	case "READONLY":
		return &probe.Finding{Probe: probe.Alarm, Reason: "read only: it is a replica", Limit: alarm}
	case "MASTERDOWN":
		return &probe.Finding{Probe: probe.Alarm, Reason: "a replica whose master is down", Limit: alarm}
	case "MISCONF":
		return &probe.Finding{Probe: probe.Alarm, Reason: "it cannot save to disk, and refuses writes", Limit: alarm}
	case "OOM":
		return &probe.Finding{Probe: probe.Alarm, Reason: "out of memory: it refuses writes", Limit: alarm}
	case "DENIED":
		return s.Refused("login refused: protected mode: Redis has no password, and answers its own machine only")
	}
	if strings.Contains(reply, "without any password configured") {
		return s.Refused("login refused: a password is configured, and Redis has none")
	}
	return &probe.Finding{Probe: probe.Alarm, Reason: reply, Limit: alarm}
}
