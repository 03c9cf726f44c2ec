package watch

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"

	"github.com/streadway/amqp"

	"st2ha/internal/rabbitmq"
	"st2ha/internal/secure"
)

// RabbitMQSettings is one node of a broker, and how it is watched.
type RabbitMQSettings struct {
	Login  rabbitmq.Login
	Dialer secure.ContextDialer // from where; this machine if nil
	Timing
}

// WatchRabbitMQ watches a node by a held connection, on which it publishes
// canaries, and by fresh logins that use the user's permissions.
func WatchRabbitMQ(s RabbitMQSettings) Func {
	s.Timing = s.withDefaults()
	if s.Dialer == nil {
		s.Dialer = &net.Dialer{}
	}
	return func(ctx context.Context, report func(Observation)) {
		together(report,
			func(report func(Observation)) {
				farewell := &atomic.Value{} // what the broker said when it ended the last connection
				h := &holder{Timing: s.Timing, report: report, open: func(ctx context.Context) (session, error) {
					return s.open(ctx, farewell)
				}}
				h.run(ctx)
			},
			func(report func(Observation)) {
				allowed := false // the user has had all permissions
				logins(ctx, s.Timing, report, func(ctx context.Context) error { return s.login(ctx, &allowed) })
			})
	}
}

// login uses the permissions too: an open connection keeps on being served
// after they have been withdrawn.
func (s *RabbitMQSettings) login(ctx context.Context, allowed *bool) error {
	err := rabbitmq.Works(ctx, s.Dialer, s.Login)
	var blocked *rabbitmq.BlockedError
	switch {
	case err == nil:
		*allowed = true
	case errors.As(err, &blocked):
		return nil // the alarm is told by the canary
	case errors.Is(err, rabbitmq.ErrForbidden) && !*allowed:
		return nil // the user may be restricted to the names that StackStorm uses
	case errors.Is(err, rabbitmq.ErrRefused):
		return s.refused(err.Error())
	}
	return err
}

// open opens the connection that canaries are published on.
func (s *RabbitMQSettings) open(ctx context.Context, farewell *atomic.Value) (session, error) {
	conn, err := rabbitmq.Dial(ctx, s.Dialer, s.Login)
	if errors.Is(err, rabbitmq.ErrRefused) {
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
	if err != nil && !errors.Is(err, rabbitmq.ErrForbidden) {
		held.close()
		return nil, err
	}
	return held, nil
}

// whyRefused knows of a user who was deleted: that the broker tells only to
// connections that are open, when it ends them. Then there is no doubt.
func (s *RabbitMQSettings) whyRefused(err error, farewell string) *finding {
	if !strings.Contains(farewell, "user") || !strings.Contains(farewell, "deleted") {
		return s.refused(err.Error())
	}
	return &finding{ProbeLogin, rabbitmq.ErrRefused.Error() + ": user " + s.Login.User + " deleted", Limit{Suspect: 1, Down: 1}}
}

type rabbitSession struct {
	conn     *rabbitmq.Connection
	canary   *rabbitmq.Canary // nil if the user may not have its queue
	over     chan struct{}
	farewell *atomic.Value // written before over is closed
}

// read waits for the end of the connection.
func (r *rabbitSession) read() {
	defer close(r.over)
	if err := <-r.conn.Closed; err != nil && err.Server {
		r.farewell.Store(rabbitmq.Words(err))
	}
}

func (r *rabbitSession) ended() <-chan struct{} { return r.over }

func (r *rabbitSession) close() {
	_ = r.conn.Close()
	<-r.over
}

func (r *rabbitSession) ping(ctx context.Context) (string, error) {
	if r.canary == nil {
		return "", r.conn.Ask(ctx)
	}
	err := r.canary.Publish(ctx)
	var blocked *rabbitmq.BlockedError
	var said *amqp.Error
	switch {
	case errors.As(err, &blocked):
		return "", &finding{ProbeAlarm, blocked.Error(), Limit{Suspect: 1, Down: 1}}
	case errors.As(err, &said) && said.Server:
		return "", errors.New("the broker ended the connection: " + rabbitmq.Words(said))
	}
	return "", err
}
