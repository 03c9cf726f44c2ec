package watch

import (
	"context"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/bson"
	"go.mongodb.org/mongo-driver/mongo"

	"st2ha/internal/backendtest"
	"st2ha/internal/mongodb"
)

func mongoURI(user string) string {
	u := url.URL{Scheme: "mongodb", Host: "primary.example:27017,secondary.example", Path: "/st2",
		User: url.UserPassword(user, backendtest.Password), RawQuery: "authSource=st2"}
	return u.String()
}

// newMongod starts a mongod with authorization and two users.
func newMongod(t testing.TB) *backendtest.Server {
	dir, mongod := t.TempDir(), shared.Mongod(t)
	s, err := backendtest.NewMongod(mongod, dir, false)
	require.NoError(t, err)
	for _, user := range []string{backendtest.User, "other"} {
		mongoRun(t, "mongodb://"+s.Addr, s.Addr, bson.D{{Key: "createUser", Value: user}, {Key: "pwd", Value: backendtest.Password}, {Key: "roles", Value: bson.A{}}})
	}
	s.Kill()
	s, err = backendtest.NewMongod(mongod, dir, true)
	require.NoError(t, err)
	t.Cleanup(func() { s.Kill() })
	return s
}

func mongoRun(t testing.TB, uri, addr string, command bson.D) {
	t.Helper()
	client, err := mongo.Connect(t.Context(), mongodb.Options(&net.Dialer{}, mongodb.Server{URI: uri}, addr))
	require.NoError(t, err)
	defer func() { _ = client.Disconnect(context.Background()) }()
	require.NoError(t, client.Database("st2").RunCommand(t.Context(), command).Err())
}

func TestMongoDBUserDropped(t *testing.T) {
	t.Parallel()
	s := newMongod(t)
	w := start(t, WatchMongoDB(MongoDBSettings{Server: mongodb.Server{URI: mongoURI("other")}, Addr: s.Addr, Timing: Timing{LoginEvery: 500 * time.Millisecond}}))
	w.is(ProbeLogin, Good, "")
	w.is(ProbePing, Good, "")
	mongoRun(t, mongoURI(backendtest.User), s.Addr, bson.D{{Key: "dropUser", Value: "other"}})
	w.is(ProbeLogin, Bad, "login refused: user other")
	o := w.is(ProbeLogin, Bad, "login refused: user other")
	require.Equal(t, Limit{Suspect: 1, Down: 2}, o.Limit)
	w.is(ProbePing, Good, "") // hello needs no login
}

func TestMongoDBServers(t *testing.T) {
	servers, err := MongoDBServers(mongoURI("u"))
	require.NoError(t, err)
	require.Equal(t, []string{"primary.example:27017", "secondary.example:27017"}, servers)
	servers, err = MongoDBServers("mongodb://[::1],a:1")
	require.NoError(t, err)
	require.Equal(t, []string{"[::1]:27017", "a:1"}, servers)
	for _, uri := range []string{"", "mongodb://", "http://a", "mongodb://u:" + backendtest.Password + "@a/st2"} {
		_, err := MongoDBServers(uri)
		require.Error(t, err, uri)
		require.NotContains(t, err.Error(), "p@ss")
		w := start(t, WatchMongoDB(MongoDBSettings{Server: mongodb.Server{URI: uri}, Addr: "127.0.0.1:1"}))
		w.is(ProbeConnection, Unknown, "the URI of MongoDB cannot be read…")
		w.end()
	}
}

// The replies are those of MongoDB's manual (hello): the lab's server knows
// no replica sets.
func TestMongoDBParts(t *testing.T) {
	for _, tc := range []struct {
		name, reply, fact, reason string
		limit                     Limit
	}{
		{"alone", `{"isWritablePrimary": true, "maxWireVersion": 21, "ok": 1}`, "", "", Limit{}},
		{"alone, read only", `{"isWritablePrimary": false}`, "", "it takes no writes, and belongs to no replica set", Limit{Suspect: 2, DownAfter: time.Minute}},
		{"primary", `{"isWritablePrimary": true, "setName": "rs0", "primary": "a:27017", "secondary": false}`, "primary of rs0", "", Limit{}},
		{"secondary", `{"isWritablePrimary": false, "setName": "rs0", "primary": "a:27017", "secondary": true}`, "secondary of rs0, whose primary is a:27017", "", Limit{}},
		{"arbiter", `{"isWritablePrimary": false, "setName": "rs0", "primary": "a:27017", "secondary": false, "arbiterOnly": true}`, "arbiter of rs0", "", Limit{}},
		{"no primary", `{"isWritablePrimary": false, "setName": "rs0", "secondary": true}`, "", "no primary in replica set rs0", Limit{Suspect: 2, DownAfter: time.Minute}},
		{"recovers", `{"isWritablePrimary": false, "setName": "rs0", "primary": "a:27017", "secondary": false}`, "", "neither primary nor secondary of rs0: it starts, recovers or was removed", Limit{Suspect: 2}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var h hello
			require.NoError(t, bson.UnmarshalExtJSON([]byte(tc.reply), false, &h))
			fact, err := h.judge(time.Minute)
			require.Equal(t, tc.fact, fact)
			if tc.reason == "" {
				require.NoError(t, err)
				return
			}
			require.Equal(t, &finding{ProbePrimary, tc.reason, tc.limit}, err)
		})
	}
}

// A member's part goes with what is reported of it.
func TestFactsGoWithReasons(t *testing.T) {
	var got []Observation
	h := &holder{Timing: Timing{}.withDefaults(), trouble: map[string]bool{}, report: func(o Observation) { got = append(got, o) }}
	h.take(outcome{fact: "secondary of rs0"}, time.Now())
	h.miss(time.Now().Add(-250 * time.Millisecond))
	h.take(outcome{err: &finding{ProbePrimary, "no primary", Limit{Suspect: 2}}}, time.Now())
	for i, want := range []Observation{
		{Probe: ProbePing, Verdict: Good, Reason: "secondary of rs0"},
		{Probe: ProbePing, Verdict: Silent, Reason: "no answer for 250ms (secondary of rs0)", Limit: Limit{Suspect: 2, DownAfter: 2750 * time.Millisecond}},
		{Probe: ProbePing, Verdict: Good, Reason: "secondary of rs0"}, // any answer ends a silence
		{Probe: ProbePrimary, Verdict: Bad, Reason: "no primary (secondary of rs0)", Limit: Limit{Suspect: 2}},
	} {
		got[i].At, got[i].Took = time.Time{}, 0
		require.Equal(t, want, got[i])
	}
}
