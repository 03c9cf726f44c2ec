package rabbitmq

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"

	"github.com/streadway/amqp"

	"st2ha/internal/probe"
	client "st2ha/internal/rabbitmq"
	"st2ha/internal/secure"
)

// Settings is one node of a broker, and how it is watched.
type Settings struct {
	Login  client.Login
	Dialer secure.ContextDialer // from where; this machine if nil
	probe.Timing
}

// Watch watches a node by a held connection, on which it publishes
// canaries, and by fresh logins that use the user's permissions.
func Watch(s Settings) probe.Func {
	s.Timing = s.WithDefaults()
	if s.Dialer == nil {
		s.Dialer = &net.Dialer{}
	}
	return func(ctx context.Context, report func(probe.Observation)) {
		probe.Together(report,
			func(report func(probe.Observation)) {
				farewell := &atomic.Value{} // what the broker said when it ended the last connection
				probe.Sessions(ctx, s.Timing, report, func(ctx context.Context) (probe.Session,
					error) {
					return s.open(ctx, farewell)
				})
			},
			func(report func(probe.Observation)) {
				allowed := false // the user has had all permissions
				probe.Logins(ctx, s.Timing, report, func(ctx context.Context) error { return s.login(ctx, &allowed) })
			})
	}
}

// login uses the permissions too: an open connection keeps on being served
// after they have been withdrawn.
func (s *Settings) login(ctx context.Context, allowed *bool) error {
	err := client.Works(ctx, s.Dialer, s.Login)
	var blocked *client.BlockedError
	switch {
	case err == nil:
		*allowed = true
	case errors.As(err, &blocked):
		return nil // the canary reports the alarm
	case errors.Is(err, client.ErrForbidden) && !*allowed:
		return nil // the user may be restricted to the names that StackStorm uses
	case errors.Is(err, client.ErrRefused):
		return s.Refused(err.Error())
	}
	return err
}

// open opens the connection that canaries are published on.
func (s *Settings) open(ctx context.Context, farewell *atomic.Value) (probe.Session, error) {
	conn, err := client.Dial(ctx, s.Dialer, s.Login)
	if errors.Is(err, client.ErrRefused) {
		said, _ := farewell.Load().(string)
		return nil, s.whyRefused(err, said)
	}
	if err != nil {
		return nil, err
	}
	held := &rabbitSession{conn: conn, over: make(chan struct{}), farewell: farewell}
	farewell.Store("")
	go held.read()
	held.canary, err = conn.NewCanary(ctx)
	if err != nil && !errors.Is(err, client.ErrForbidden) {
		held.Close()
		return nil, err
	}
	return held, nil
}

// whyRefused knows of a user who was deleted: that the broker tells only to
// connections that are open, when it ends them. Then there is no doubt.
func (s *Settings) whyRefused(err error, farewell string) *probe.Finding {
	if !strings.Contains(farewell, "user") || !strings.Contains(farewell, "deleted") {
		return s.Refused(err.Error())
	}
	return &probe.Finding{Probe: probe.Login, Reason: client.ErrRefused.Error() + ": user " + s.Login.User + " deleted",
		Limit: probe.Limit{Suspect: 1, Down: 1}}
}

type rabbitSession struct {
	conn     *client.Connection
	canary   *client.Canary // nil if the user may not have its queue
	over     chan struct{}
	farewell *atomic.Value // written before over is closed
}

// read waits for the end of the connection.
func (r *rabbitSession) read() {
	defer close(r.over)
	if err := <-r.conn.Closed; err != nil && err.Server {
		r.farewell.Store(client.Words(err))
	}
}

// Ended is closed when the connection is no more.
func (r *rabbitSession) Ended() <-chan struct{} { return r.over }

// Close ends the connection.
func (r *rabbitSession) Close() {
	_ = r.conn.Close()
	<-r.over
}

// Ping publishes a canary, or asks the broker anything where the user may not have a queue.
func (r *rabbitSession) Ping(ctx context.Context) (string, error) {
	if r.canary == nil {
		return "", r.conn.Ask(ctx)
	}
	err := r.canary.Publish(ctx)
	var blocked *client.BlockedError
	var said *amqp.Error
	switch {
	case errors.As(err, &blocked):
		return "", &probe.Finding{Probe: probe.Alarm, Reason: blocked.Error(), Limit: probe.Limit{Suspect: 1, Down: 1}}
	case errors.As(err, &said) && said.Server:
		return "", errors.New("the broker ended the connection: " + client.Words(said))
	}
	return "", err
}
