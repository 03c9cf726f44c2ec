package mongodb

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/bson"

	"st2ha/internal/backend"
	"st2ha/internal/host"
	"st2ha/internal/incident"
	client "st2ha/internal/mongodb"
	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
	"st2ha/internal/secure"
	"st2ha/internal/testenv"
)

// setMember answers every command as a member of a replica set answers hello:
// the lab's server knows no sets (MongoDB wire protocol, OP_MSG and OP_QUERY).
func setMember(t testing.TB, reply func(addr string) bson.D) string {
	t.Helper()
	return testenv.Serve(t, func(conn net.Conn) {
		for {
			head := make([]byte, 16)
			if _, err := io.ReadFull(conn, head); err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, conn, int64(binary.LittleEndian.Uint32(head))-16); err != nil {
				return
			}
			body, err := bson.Marshal(append(reply(conn.LocalAddr().String()), bson.E{Key: "maxWireVersion", Value: 21},
				bson.E{Key: "minWireVersion", Value: 0}, bson.E{Key: "ok", Value: 1}))
			if err != nil {
				return
			}
			op, before := uint32(2013), make([]byte, 5)
			if binary.LittleEndian.Uint32(head[12:]) == 2004 {
				op, before = 1, make([]byte, 20)
				before[16] = 1 // document
			}
			out := make([]byte, 16)
			binary.LittleEndian.PutUint32(out, uint32(16+len(before)+len(body)))
			copy(out[8:], head[4:8]) // responseTo
			binary.LittleEndian.PutUint32(out[12:], op)
			if _, err := conn.Write(append(append(out, before...), body...)); err != nil {
				return
			}
		}
	})
}

// All members that hello names are watched, not only those of the URI.
func TestMembersAreWatched(t *testing.T) {
	second := setMember(t, func(addr string) bson.D {
		return bson.D{{Key: "setName", Value: "rs0"}, {Key: "secondary", Value: true}, {Key: "primary", Value: "x:1"},
			{Key: "me", Value: addr}}
	})
	first := setMember(t, func(addr string) bson.D {
		return bson.D{{Key: "setName", Value: "rs0"}, {Key: "isWritablePrimary", Value: true}, {Key: "primary", Value: addr},
			{Key: "me", Value: addr},
			{Key: "hosts", Value: bson.A{addr, second, "nobody.invalid:27017"}}, {Key: "arbiters", Value: bson.A{"127.0.0.1:1"}}}
	})
	c, members := backend.Config{MongoDB: "mongodb://" + first + "/st2"}, NewMembers()
	w := probetest.Start(t, Watch(Settings{Server: client.Server{URI: c.MongoDB}, Addr: first, Members: members}))
	w.Is(probe.Ping, probe.Good, "primary of rs0")
	w.End()
	require.Equal(t, []Member{{"127.0.0.1:1", true}, {second, false}, {"nobody.invalid:27017", false}},
		members.Of([]string{first}))

	found := &backend.Node{Host: host.NewLocalAt("n1", t.TempDir()), Config: c}
	endpoints(t.Context(), found, members)
	watched := map[string]probe.Func{}
	for _, e := range found.Endpoints {
		if e.Backend == "mongodb" {
			watched[e.Name] = e.Watch
		}
	}
	require.Len(t, watched, 4)
	w = probetest.Start(t, watched[second])
	w.Is(probe.Ping, probe.Good, "secondary of rs0…")
	w.End()
	w = probetest.Start(t, watched["127.0.0.1:1"])
	w.Is(probe.Connection, probe.Bad, "connection refused")
	w.End()
	w = probetest.Start(t, watched["nobody.invalid:27017"])
	w.Is(probe.Connection, probe.Unknown, "the replica set names this member, but its name cannot be resolved here: nobody.invalid")
	w.End()

	require.Empty(t, members.Of([]string{"another:27017"}), "what another set's servers have said is forgotten")
}

// One that cannot be resolved here is unknown, and not down.
func TestMemberUnknown(t *testing.T) {
	s := incident.NewSet("sensor", incident.DefaultRules())
	key := probe.Key{Backend: "mongodb", Name: "nobody.invalid:27017"}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	s.Replace("n1", []probe.Endpoint{{Backend: "mongodb", Name: key.Name, Host: "nobody.invalid"}}, time.Now())
	resolved(key.Name, func(secure.ContextDialer) probe.Func { panic("it is not known") })(ctx,
		func(o probe.Observation) { s.Observe(key, o) })
	require.Equal(t, incident.Unknown, s.Statuses()[0].State)
}

// An arbiter has no users: a login there would be refused, and is not made.
func TestArbiterIsNotLoggedInTo(t *testing.T) {
	addr := setMember(t, func(addr string) bson.D {
		return bson.D{{Key: "setName", Value: "rs0"}, {Key: "arbiterOnly", Value: true}, {Key: "primary", Value: "x:1"}}
	})
	w := probetest.Start(t, Watch(Settings{Server: client.Server{URI: "mongodb://u:p@" + addr}, Addr: addr, Arbiter: true,
		Timing: probe.Timing{LoginEvery: 50 * time.Millisecond}}))
	w.Is(probe.Ping, probe.Good, "arbiter of rs0")
	time.Sleep(500 * time.Millisecond)
	w.End()
	for _, o := range w.Reports() {
		require.NotEqual(t, probe.Login, o.Probe)
	}
}

// What a server says is text from a server.
func TestMembersHeard(t *testing.T) {
	heard := func(from string, h hello) []Member {
		m := NewMembers()
		m.heard(from, h)
		return m.Of([]string{from})
	}
	const from = "10.0.0.1:27017"
	require.Equal(t, []Member{{"10.0.0.2:27017", false}, {"10.0.0.3:27018", false}, {"[2001:db8::1]:27017", false},
		{"a.example:27017", false}, {"b:27017", true}},
		heard(from, hello{SetName: "rs0", Me: "10.0.0.1:27017",
			Hosts:    []string{"10.0.0.1:27017", "A.example:27017", "10.0.0.2:27017", "10.0.0.2:27017", "[2001:db8::1]:27017"},
			Passives: []string{"10.0.0.3:27018"}, Arbiters: []string{"b:27017"}}))
	require.Empty(t, heard(from, hello{Hosts: []string{"10.0.0.2:27017"}}), "it belongs to no set")
	require.Empty(t, heard(from, hello{SetName: "rs0", Hosts: []string{"", "a", "a:0", "a:99999", "a:+1", "a b:1",
		"a;id:1", "{{x}}:1", "-x:1", "a\n:1", "0.0.0.0:1", "fe80::1%eth0:1", "[::1%x]:1"}}))
	require.Empty(t, heard(from, hello{SetName: "rs0", Hosts: []string{"127.0.0.1:27017", "localhost:27017",
		"[::1]:27017"}}), "another machine to each who reads it")
	require.Len(t, heard("127.0.0.1:27017", hello{SetName: "rs0", Hosts: []string{"127.0.0.1:27018"}}), 1)
	require.Empty(t, heard("127.0.0.1:27017", hello{SetName: "rs0", Me: "10.0.0.1:27017",
		Hosts: []string{"10.0.0.1:27017"}}), "itself, by another name")
	both := NewMembers()
	both.heard(from, hello{SetName: "rs0", Me: "a:27017", Hosts: []string{"a:27017", "b:27017", "c:27017"}})
	both.heard("10.0.0.2:27017", hello{SetName: "rs0", Me: "b:27017", Hosts: []string{"a:27017", "b:27017", "c:27017"}})
	require.Equal(t, []Member{{"c:27017", false}}, both.Of([]string{from, "10.0.0.2:27017"}),
		"each is watched under one name")
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprintf("10.0.%d.%d:27017", i/250, i%250+1))
	}
	require.Len(t, heard(from, hello{SetName: "rs0", Hosts: many, Passives: many, Arbiters: many}), maxMembers-1,
		"without the one that says so")
	require.Empty(t, (*Members)(nil).Of([]string{from}))
}

func FuzzMembersHeard(f *testing.F) {
	f.Add("10.0.0.2:27017\na:1", "10.0.0.1:27017")
	f.Add("[::1]:27017\n{{ x }}:1", "b:2")
	f.Fuzz(func(t *testing.T, list, me string) {
		m := NewMembers()
		m.heard("10.0.0.1:27017", hello{SetName: "rs0", Me: me, Hosts: strings.Split(list, "\n"),
			Arbiters: strings.Split(me, ",")})
		all := m.Of([]string{"10.0.0.1:27017"})
		if len(all) > maxMembers {
			t.Fatal(len(all))
		}
		for _, member := range all {
			name, _, err := net.SplitHostPort(member.Addr)
			if err != nil || host.CheckAddress("member", name) != nil || strings.ContainsAny(member.Addr, "{}\n ;$") {
				t.Fatalf("%q", member.Addr)
			}
		}
	})
}
