package probetest

import (
	"context"
	"net"
	"net/url"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/bson"
	"go.mongodb.org/mongo-driver/mongo"

	"st2ha/internal/backendtest"
	"st2ha/internal/mongodb"
	"st2ha/internal/rabbitmq"
)

// MongoURI is that of a replica set, for one of NewMongod's users.
func MongoURI(user string) string {
	u := url.URL{Scheme: "mongodb", Host: "primary.example:27017,secondary.example", Path: "/st2",
		User: url.UserPassword(user, backendtest.Password), RawQuery: "authSource=st2"}
	return u.String()
}

// NewMongod starts a mongod with authorization and two users.
func NewMongod(t testing.TB, shared *backendtest.Shared) *backendtest.Server {
	dir, mongod := t.TempDir(), shared.Mongod(t)
	s, err := backendtest.NewMongod(mongod, dir, false)
	require.NoError(t, err)
	for _, user := range []string{backendtest.User, "other"} {
		MongoRun(t, "mongodb://"+s.Addr, s.Addr, bson.D{{Key: "createUser", Value: user},
			{Key: "pwd", Value: backendtest.Password},
			{Key: "roles", Value: bson.A{}}})
	}
	s.Kill()
	s, err = backendtest.NewMongod(mongod, dir, true)
	require.NoError(t, err)
	t.Cleanup(func() { s.Kill() })
	return s
}

// MongoRun runs a command on the server at addr.
func MongoRun(t testing.TB, uri, addr string, command bson.D) {
	t.Helper()
	client, err := mongo.Connect(t.Context(), mongodb.Options(&net.Dialer{}, mongodb.Server{URI: uri}, addr))
	require.NoError(t, err)
	defer func() { _ = client.Disconnect(context.Background()) }()
	require.NoError(t, client.Database("st2").RunCommand(t.Context(), command).Err())
}

// BrokerLogin is the usual user's at a broker.
func BrokerLogin(addr string) rabbitmq.Login {
	return rabbitmq.Login{Addr: addr, User: backendtest.User, Password: backendtest.Password, VHost: "/"}
}

// NewRedis starts a Redis with these lines in its configuration.
func NewRedis(t testing.TB, lines ...string) *backendtest.Server {
	s, err := backendtest.NewRedis(t, t.TempDir(), lines...)
	require.NoError(t, err)
	t.Cleanup(func() { s.Kill() })
	return s
}

// NewProxy passes on to a server, and can be cut.
func NewProxy(t testing.TB, to string) *backendtest.Proxy {
	p, err := backendtest.NewProxy(to)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p
}

// ReadFile reads a file of this machine, as secure.TLS has it.
func ReadFile(_ context.Context, path string) ([]byte, error) { return os.ReadFile(path) }
