package stackstorm

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/bson"
	"go.mongodb.org/mongo-driver/bson/primitive"
	"go.mongodb.org/mongo-driver/mongo"

	"st2ha/internal/backendtest"
	"st2ha/internal/mongodb"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

const execution1, execution2 = "6527242448d1e4e9ef404eb1", "6527242448d1e4e9ef404eb2"

// storedExecutions is a node with a database of its own, and how to set the
// status of an execution in it.
func storedExecutions(t *testing.T) (*machine, *backendtest.Server, func(id, status string)) {
	program, err := backendtest.BuildMongod(t.TempDir())
	require.NoError(t, err)
	mongod, err := backendtest.NewMongod(program, t.TempDir(), false)
	require.NoError(t, err)
	t.Cleanup(func() { mongod.Kill() })
	client, err := mongo.Connect(t.Context(),
		mongodb.Options(&net.Dialer{}, mongodb.Server{URI: "mongodb://" + mongod.Addr}, mongod.Addr))
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Disconnect(context.Background()) })
	m := newMachine(t, "primary", fmt.Sprintf("[database]\nhost = mongodb://%s/stacks\n", mongod.Addr))
	return m, mongod, func(id, status string) {
		object, err := primitive.ObjectIDFromHex(id)
		require.NoError(t, err)
		collection := client.Database("stacks").Collection("action_execution_d_b")
		_, err = collection.DeleteOne(t.Context(), bson.M{"_id": object})
		require.NoError(t, err)
		_, err = collection.InsertOne(t.Context(),
			bson.M{"_id": object, "status": status, "action": bson.M{"ref": "st2ha.join_secondary"}})
		require.NoError(t, err)
	}
}

// Any runner takes any action: where the restart would end the wait for a result, it is deferred on that host,
// whoever asks for it; where nobody waits it is made at once.
func TestRestartWhereSomebodyWaits(t *testing.T) {
	testenv.NeedsRoot(t)
	m, mongod, set := storedExecutions(t) // another machine than this
	m.run = func(argv string) (string, error) {
		if strings.Contains(argv, "is-active") {
			return "", os.ErrNotExist
		}
		return "", nil
	}
	set(execution1, "running")
	set(execution2, "succeeded")
	for _, tc := range []struct {
		when When
		run  string
		want When
	}{
		{Auto, execution1, Deferred}, {Idle, execution1, Later}, {Others, execution1, Inline},
		{Inline, execution1, Inline},
		{Auto, execution2, Inline}, {Idle, execution2, Inline},
		{Auto, "6527242448d1e4e9ef404eb3", Inline}, {Auto, "20260301T120000Z-abcd", Inline}, {Idle, "", Inline},
	} {
		require.Equal(t, tc.want, tc.when.on(t.Context(), m, tc.run), "%s %s", tc.when, tc.run)
	}
	r := &Restart{When: Deferred, Delay: 15 * time.Second, Run: execution1}
	release, err := step.Lock(t.Context(), m, "x", 0)
	require.NoError(t, err)
	defer release()
	require.NoError(t, step.Owe(t.Context(), m, owes))
	m.ran = nil
	require.NoError(t, r.Apply(t.Context(), m))
	require.Equal(t, "systemd-run --quiet --collect --unit=st2ha-restart-st2 --timer-property=AccuracySec=1s "+
		"--on-active=1 --setenv=ST2HA_AFTER="+execution1+
		" -- /var/lib/st2ha/st2ha restart_st2 --host=127.0.0.1 --restart=inline --deadline=7200 --run="+
		execution1, m.ran[len(m.ran)-1])
	require.Equal(t, "st2ctl restart, 10s after this execution has ended, by the unit st2ha-restart-st2", r.Diff())
	// What is no execution cannot be looked up.
	r = &Restart{When: Deferred, Delay: 15 * time.Second, Run: "20260301T120000Z-abcd"}
	require.NoError(t, r.Apply(t.Context(), m))
	require.Contains(t, m.ran[len(m.ran)-1], "--on-active=15 -- /var/lib/st2ha/st2ha restart_st2 ")
	require.Equal(t, "st2ctl restart, 15s after this action, by the unit st2ha-restart-st2", r.Diff())
	info, err := os.Stat(m.root + "/var/lib/st2ha/st2ha")
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode())

	// A database that does not answer cannot say that nobody waits.
	mongod.Kill()
	require.Equal(t, Deferred, Auto.on(t.Context(), m, execution1))
	require.Equal(t, Inline, Auto.on(t.Context(), m, "20260301T120000Z-abcd"))
}

// The end is waited for until it is stored and could be fetched; what is no execution has ended.
func TestAwaitEnd(t *testing.T) {
	m, mongod, set := storedExecutions(t)
	set(execution1, "running")
	ended := make(chan time.Time, 1)
	go func() {
		if AwaitEnd(t.Context(), m, execution1) == nil {
			ended <- time.Now()
		}
	}()
	time.Sleep(time.Second)
	require.Empty(t, ended)
	at := time.Now()
	set(execution1, "failed")
	select {
	case end := <-ended:
		require.GreaterOrEqual(t, end.Sub(at), fetchTime)
	case <-time.After(30 * time.Second):
		require.Fail(t, "the end was not seen")
	}
	require.NoError(t, AwaitEnd(t.Context(), m, "6527242448d1e4e9ef404eb3"))

	set(execution2, "paused")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.ErrorContains(t, AwaitEnd(ctx, m, execution2),
		"waited for the end of execution "+execution2+", and gave up: it is paused")
	mongod.Kill()
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.ErrorContains(t, AwaitEnd(ctx, m, execution2), "gave up: primary: look up execution "+execution2)
}
