// Package mongodb opens a mongod to the other nodes, and asks it how it is.
package mongodb

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/bson"
	"go.mongodb.org/mongo-driver/mongo"
	"go.mongodb.org/mongo-driver/mongo/options"
)

// answerTime bounds one conversation with a server.
const answerTime = 5 * time.Second

// connect makes a client of exactly the server that uri names. Nothing is
// sent before the first command.
func connect(ctx context.Context, d options.ContextDialer, uri string) (*mongo.Client, error) {
	opts := options.Client().ApplyURI(uri).SetDialer(d).SetDirect(true).SetMaxPoolSize(1).
		SetServerSelectionTimeout(answerTime).SetConnectTimeout(answerTime).SetTimeout(answerTime)
	return mongo.Connect(ctx, opts)
}

// ask runs one command and closes the connection.
func ask(ctx context.Context, d options.ContextDialer, uri, database string, command bson.D, into any) error {
	client, err := connect(ctx, d, uri)
	if err != nil {
		return err
	}
	defer func() { _ = client.Disconnect(context.WithoutCancel(ctx)) }()
	return plain(client.Database(database).RunCommand(ctx, command).Decode(into))
}

// plain takes the driver's description of its own view of the cluster off an error.
func plain(err error) error {
	var selection interface{ Unwrap() error }
	if mongo.IsTimeout(err) && errors.As(err, &selection) {
		return fmt.Errorf("no answer within %s", answerTime)
	}
	return err
}

// Answers says whether the server at addr (host:port), seen from d, answers
// hello. That needs no login.
func Answers(ctx context.Context, d options.ContextDialer, addr string) error {
	var reply bson.M
	return ask(ctx, d, "mongodb://"+addr, "admin", bson.D{{Key: "hello", Value: 1}}, &reply)
}

// Login logs in with the given URI, whose password stays out of the error.
func Login(ctx context.Context, d options.ContextDialer, uri, database string) error {
	var reply bson.M
	// ping needs no login, but the driver logs in before it sends anything.
	return ask(ctx, d, uri, database, bson.D{{Key: "ping", Value: 1}}, &reply)
}

// Open says whether the server at addr obeys somebody who has not logged in.
func Open(ctx context.Context, d options.ContextDialer, addr string) (bool, error) {
	var reply bson.M
	err := ask(ctx, d, "mongodb://"+addr, "admin", bson.D{{Key: "listDatabases", Value: 1}, {Key: "nameOnly", Value: true}}, &reply)
	var refused mongo.CommandError
	if errors.As(err, &refused) {
		return false, nil
	}
	return err == nil, err
}
