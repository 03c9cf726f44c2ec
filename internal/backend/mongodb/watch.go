package mongodb

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/bson"
	"go.mongodb.org/mongo-driver/event"
	"go.mongodb.org/mongo-driver/mongo"
	"go.mongodb.org/mongo-driver/mongo/options"

	client "st2ha/internal/mongodb"
	"st2ha/internal/probe"
	"st2ha/internal/secure"
)

// Settings is one server, alone or a member of a replica set, and how
// it is watched.
type Settings struct {
	client.Server                      // as [database] of st2.conf has it
	Addr          string               // host:port of this server
	Election      time.Duration        // without a primary until that is down: its set elects one within that time; 15 s
	Dialer        secure.ContextDialer // from where; this machine if nil
	Arbiter       bool                 // it holds no data, so no user can log in there
	Members       *Members             // learn what the server says of its set; may be nil
	probe.Timing
}

// ProbePrimary looks for a replica set that has a primary.
const ProbePrimary = "primary"

// ParseServers returns the servers that a URI names (host:port), one
// endpoint each. Its error holds no part of the URI.
func ParseServers(uri string) ([]string, error) {
	opts := options.Client().ApplyURI(uri)
	if opts.Validate() != nil {
		return nil, errors.New("the URI of MongoDB cannot be read: " +
			"special characters in user and password must be percent-encoded")
	}
	servers := opts.Hosts
	for i, h := range servers {
		if _, _, err := net.SplitHostPort(h); err != nil {
			servers[i] = net.JoinHostPort(strings.Trim(h, "[]"), strconv.Itoa(client.DefaultPort))
		}
	}
	return servers, nil
}

// ParseURI reads a URI whose options of TLS count, as MongoDB's own
// clients do (MongoDB manual, connection strings); read reads the files it names.
func ParseURI(uri string, read func(ctx context.Context, path string) ([]byte, error)) client.Server {
	before, query, _ := strings.Cut(uri, "?")
	var kept []string
	given := map[string]string{}
	for _, option := range strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' }) {
		key, value, _ := strings.Cut(option, "=")
		if key = strings.ToLower(key); !strings.HasPrefix(key, "tls") && !strings.HasPrefix(key, "ssl") {
			kept = append(kept, option)
			continue
		}
		given[key], _ = url.QueryUnescape(value)
	}
	s := client.Server{URI: before}
	if len(kept) > 0 {
		s.URI += "?" + strings.Join(kept, "&")
	}
	if yes := given["tls"] + given["ssl"]; yes == "" && strings.HasPrefix(uri, "mongodb+srv://") ||
		strings.Contains(yes, "true") {
		invalid := given["tlsinsecure"] == "true" || given["tlsallowinvalidcertificates"] == "true"
		s.TLS = &secure.TLS{Read: read, CA: given["tlscafile"], Cert: given["tlscertificatekeyfile"],
			Encrypted: given["tlscertificatekeyfilepassword"] != "",
			Verify:    !invalid, Hostname: !invalid && given["tlsallowinvalidhostnames"] != "true"}
	}
	return s
}

// Watch watches a server by a plain connection, whose end shows that
// the process has ended, by hello, which needs no login, and by fresh logins.
func Watch(s Settings) probe.Func {
	s.Timing = s.WithDefaults()
	if s.Election == 0 {
		s.Election = 15 * time.Second
	}
	if s.Dialer == nil {
		s.Dialer = &net.Dialer{}
	}
	return func(ctx context.Context, report func(probe.Observation)) {
		if _, err := ParseServers(s.URI); err != nil {
			report(probe.Observation{Probe: probe.Connection, Verdict: probe.Unknown, Reason: err.Error(), At: time.Now()})
			<-ctx.Done()
			return
		}
		probes := []func(report func(probe.Observation)){func(report func(probe.Observation)) { s.ping(ctx, report) }}
		if !s.Arbiter {
			probes = append(probes, func(report func(probe.Observation)) { probe.Logins(ctx, s.Timing, report, s.login) })
		}
		probe.Together(report, probes...)
	}
}

// login is a fresh one, for the driver's monitors and open connections know
// nothing of a password that has changed.
func (s *Settings) login(ctx context.Context) error {
	opts := client.Options(s.Dialer, s.Server, s.Addr)
	err := client.Login(ctx, s.Dialer, s.Server, s.Addr, "admin")
	if errors.Is(err, client.ErrRefused) {
		if opts.Auth == nil {
			return s.Refused("login refused: the URI names no user")
		}
		return s.Refused("login refused: user " + opts.Auth.Username)
	}
	return err
}

// ping watches by one client of the driver, which lives as long as the watch,
// and one connection of its own after the other.
func (s *Settings) ping(ctx context.Context, report func(probe.Observation)) {
	var sessions sync.Map // that are open
	// What the driver sees by itself is a hint to look, and no more: its
	// monitor cannot tell a slow server from one that is gone.
	hintAll := func() {
		sessions.Range(func(held, _ any) bool {
			held.(*mongoSession).hint()
			return true
		})
	}
	opts := client.Options(s.Dialer, s.Server, s.Addr).SetHeartbeatInterval(500 * time.Millisecond).
		SetMaxPoolSize(2). // a ping that has no answer takes one
		SetServerMonitor(&event.ServerMonitor{ServerHeartbeatFailed: func(*event.ServerHeartbeatFailedEvent) { hintAll() }}).
		SetPoolMonitor(&event.PoolMonitor{Event: func(e *event.PoolEvent) {
			if e.Type == event.PoolCleared {
				hintAll()
			}
		}})
	opts.Auth = nil // hello is answered without
	driver, err := mongo.Connect(ctx, opts)
	if err != nil {
		report(probe.Observation{Probe: probe.Connection, Verdict: probe.Unknown,
			Reason: "the driver does not take the settings of the URI", At: time.Now()})
		<-ctx.Done()
		return
	}
	probe.Sessions(ctx, s.Timing, report, func(ctx context.Context) (probe.Session, error) {
		conn, err := client.Dial(ctx, s.Dialer, s.Server, s.Addr)
		if err != nil {
			return nil, err
		}
		held := &mongoSession{Conn: conn, over: make(chan struct{}), renew: make(chan struct{}), driver: driver,
			election: s.Election, heard: func(h hello) { s.Members.heard(s.Addr, h) }}
		held.hint = sync.OnceFunc(func() { close(held.renew) })
		sessions.Store(held, nil)
		go func() {
			held.read()
			sessions.Delete(held)
		}()
		return held, nil
	})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 300*time.Millisecond)
	defer cancel()
	_ = driver.Disconnect(ctx)
}

// mongoSession is a connection on which nothing more is said, beside the driver's.
type mongoSession struct {
	net.Conn
	over     chan struct{} // closed when the connection has ended
	renew    chan struct{} // closed when there is reason to make a new connection
	hint     func()        // closes renew
	driver   *mongo.Client
	election time.Duration
	heard    func(hello)
}

func (m *mongoSession) read() {
	defer m.hint()
	defer close(m.over)
	_, _ = m.Read(make([]byte, 1))
}

// Ended is closed when there is reason to make a new connection.
func (m *mongoSession) Ended() <-chan struct{} { return m.renew }

// Close ends the connection.
func (m *mongoSession) Close() {
	_ = m.Conn.Close()
	<-m.over
}

// Ping ends with the plain connection: the driver would wait for the server
// to come back.
func (m *mongoSession) Ping(ctx context.Context) (string, error) {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-m.over:
			cancel()
		case <-asking.Done():
		}
	}()
	var reply hello
	err := m.driver.Database("admin").RunCommand(asking, bson.D{{Key: "hello", Value: 1}}).Decode(&reply)
	var said mongo.ServerError
	switch {
	case err == nil:
		m.heard(reply)
		return reply.judge(m.election)
	case errors.As(err, &said) && said.HasErrorCode(59): // CommandNotFound: a server before 4.4.2, which answers too
		return "", nil
	case ctx.Err() == nil && asking.Err() != nil:
		return "", io.EOF
	case mongo.IsTimeout(err): // the driver ends before the deadline if the answer would come after it
		return "", context.DeadlineExceeded
	}
	return "", err
}

// hello is what a server says of its part (MongoDB manual, hello).
type hello struct {
	SetName           string   `bson:"setName"`
	IsWritablePrimary bool     `bson:"isWritablePrimary"`
	Secondary         bool     `bson:"secondary"`
	ArbiterOnly       bool     `bson:"arbiterOnly"`
	Primary           string   `bson:"primary"`
	Me                string   `bson:"me"`
	Hosts             []string `bson:"hosts"`
	Passives          []string `bson:"passives"`
	Arbiters          []string `bson:"arbiters"`
}

// judge says what part the server has in its set. To be no primary is fine, as
// long as there is one.
func (h hello) judge(election time.Duration) (string, error) {
	switch {
	case h.SetName == "" && h.IsWritablePrimary:
		return "", nil
	case h.SetName == "":
		return "", &probe.Finding{Probe: ProbePrimary, Reason: "it takes no writes, and belongs to no replica set",
			Limit: probe.Limit{Suspect: 2, DownAfter: election}}
	case h.IsWritablePrimary:
		return "primary of " + h.SetName, nil
	case h.Primary == "":
		return "", &probe.Finding{Probe: ProbePrimary, Reason: "no primary in replica set " + h.SetName,
			Limit: probe.Limit{Suspect: 2, DownAfter: election}}
	case h.ArbiterOnly:
		return "arbiter of " + h.SetName, nil
	case h.Secondary:
		return "secondary of " + h.SetName + ", whose primary is " + h.Primary, nil
	}
	return "", &probe.Finding{Probe: ProbePrimary, Reason: "neither primary nor secondary of " + h.SetName +
		": it starts, recovers or was removed", Limit: probe.Limit{Suspect: 2}}
}
