package mongodb

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/bson"

	"st2ha/internal/backendtest"
	client "st2ha/internal/mongodb"
	"st2ha/internal/probe"
	"st2ha/internal/probe/probetest"
)

var shared = &backendtest.Shared{}

// TestMain ends the tests' servers.
func TestMain(m *testing.M) { os.Exit(shared.Run(m)) }

func TestMongoDBUserDropped(t *testing.T) {
	t.Parallel()
	s := probetest.NewMongod(t, shared)
	w := probetest.Start(t, Watch(Settings{Server: client.Server{URI: probetest.MongoURI("other")}, Addr: s.Addr,
		Timing: probe.Timing{LoginEvery: 500 * time.Millisecond}}))
	w.Is(probe.Login, probe.Good, "")
	w.Is(probe.Ping, probe.Good, "")
	probetest.MongoRun(t, probetest.MongoURI(backendtest.User), s.Addr, bson.D{{Key: "dropUser", Value: "other"}})
	w.Is(probe.Login, probe.Bad, "login refused: user other")
	o := w.Is(probe.Login, probe.Bad, "login refused: user other")
	require.Equal(t, probe.Limit{Suspect: 1, Down: 2}, o.Limit)
	w.Is(probe.Ping, probe.Good, "") // hello needs no login
}

func TestMongoDBServers(t *testing.T) {
	servers, err := ParseServers(probetest.MongoURI("u"))
	require.NoError(t, err)
	require.Equal(t, []string{"primary.example:27017", "secondary.example:27017"}, servers)
	servers, err = ParseServers("mongodb://[::1],a:1")
	require.NoError(t, err)
	require.Equal(t, []string{"[::1]:27017", "a:1"}, servers)
	for _, uri := range []string{"", "mongodb://", "http://a", "mongodb://u:" + backendtest.Password + "@a/st2"} {
		_, err := ParseServers(uri)
		require.Error(t, err, uri)
		require.NotContains(t, err.Error(), "p@ss")
		w := probetest.Start(t, Watch(Settings{Server: client.Server{URI: uri}, Addr: "127.0.0.1:1"}))
		w.Is(probe.Connection, probe.Unknown, "the URI of MongoDB cannot be read…")
		w.End()
	}
}

// The replies are those of MongoDB's manual (hello): the lab's server knows
// no replica sets.
func TestMongoDBParts(t *testing.T) {
	for _, tc := range []struct {
		name, reply, fact, reason string
		limit                     probe.Limit
	}{
		{"alone", `{"isWritablePrimary": true, "maxWireVersion": 21, "ok": 1}`, "", "", probe.Limit{}},
		{"alone, read only", `{"isWritablePrimary": false}`, "", "it takes no writes, and belongs to no replica set",
			probe.Limit{Suspect: 2, DownAfter: time.Minute}},
		{"primary", `{"isWritablePrimary": true, "setName": "rs0", "primary": "a:27017", "secondary": false}`,
			"primary of rs0", "", probe.Limit{}},
		{"secondary", `{"isWritablePrimary": false, "setName": "rs0", "primary": "a:27017", "secondary": true}`,
			"secondary of rs0, whose primary is a:27017", "", probe.Limit{}},
		{"arbiter", `{"isWritablePrimary": false, "setName": "rs0", "primary": "a:27017", "secondary": false, "arbiterOnly": true}`, "arbiter of rs0", "", probe.Limit{}},
		{"no primary", `{"isWritablePrimary": false, "setName": "rs0", "secondary": true}`, "",
			"no primary in replica set rs0", probe.Limit{Suspect: 2, DownAfter: time.Minute}},
		{"recovers", `{"isWritablePrimary": false, "setName": "rs0", "primary": "a:27017", "secondary": false}`, "",
			"neither primary nor secondary of rs0: it starts, recovers or was removed", probe.Limit{Suspect: 2}},
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
			require.Equal(t, &probe.Finding{Probe: ProbePrimary, Reason: tc.reason, Limit: tc.limit}, err)
		})
	}
}
