// Package mongodb opens a mongod to the other nodes, and asks it how it is.
package mongodb

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.mongodb.org/mongo-driver/bson"
	"go.mongodb.org/mongo-driver/bson/primitive"
	"go.mongodb.org/mongo-driver/mongo"
	"go.mongodb.org/mongo-driver/mongo/options"
	"go.mongodb.org/mongo-driver/x/mongo/driver"
)

const (
	answerTime = 5 * time.Second        // bounds one conversation with a server
	closeTime  = 300 * time.Millisecond // bounds its end
)

// ErrRefused is a login the server does not accept, or a user without rights.
var ErrRefused = errors.New("login refused")

// Options are those of a client that talks to exactly the server at addr
// (host:port), by what else uri says.
func Options(d options.ContextDialer, uri, addr string) *options.ClientOptions {
	return options.Client().ApplyURI(uri).SetHosts([]string{addr}).SetDialer(bounded{d}).SetDirect(true).SetMaxPoolSize(1).
		SetServerSelectionTimeout(answerTime).SetConnectTimeout(answerTime).SetTimeout(answerTime)
}

// ask runs one command and closes the connection.
func ask(ctx context.Context, opts *options.ClientOptions, database string, command bson.D, into any) error {
	client, err := mongo.Connect(ctx, opts)
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
		defer cancel()
		_ = client.Disconnect(ctx)
	}()
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
	return ask(ctx, Options(d, "mongodb://"+addr, addr), "admin", bson.D{{Key: "hello", Value: 1}}, &reply)
}

// Login logs in to the server at addr with what the URI holds; the password
// stays out of the error. ErrRefused is told from a server that is away.
func Login(ctx context.Context, d options.ContextDialer, uri, addr, database string) error {
	var reply bson.M
	// ping needs no login, but the driver logs in before it sends anything.
	err := ask(ctx, Options(d, uri, addr), database, bson.D{{Key: "ping", Value: 1}}, &reply)
	var said driver.Error // what a login ends with has no form in the driver's public packages
	// Unauthorized, AuthenticationFailed (MongoDB, error_codes.yml).
	if errors.As(err, &said) && (said.Code == 13 || said.Code == 18) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

// Open says whether the server at addr obeys somebody who has not logged in.
func Open(ctx context.Context, d options.ContextDialer, addr string) (bool, error) {
	var reply bson.M
	err := ask(ctx, Options(d, "mongodb://"+addr, addr), "admin", bson.D{{Key: "listDatabases", Value: 1}, {Key: "nameOnly", Value: true}}, &reply)
	var refused mongo.CommandError
	if errors.As(err, &refused) {
		return false, nil
	}
	return err == nil, err
}

// Field reads one field of the document with an id, as text; empty if there is
// no such document or field.
func Field(ctx context.Context, d options.ContextDialer, uri, addr, database, collection, id, field string) (string, error) {
	object, err := primitive.ObjectIDFromHex(id)
	if err != nil {
		return "", err
	}
	var reply struct {
		Cursor struct {
			FirstBatch []bson.M `bson:"firstBatch"`
		} `bson:"cursor"`
	}
	command := bson.D{{Key: "find", Value: collection}, {Key: "filter", Value: bson.D{{Key: "_id", Value: object}}},
		{Key: "projection", Value: bson.D{{Key: field, Value: 1}}}, {Key: "limit", Value: 1}, {Key: "singleBatch", Value: true}}
	if err := ask(ctx, Options(d, uri, addr), database, command, &reply); err != nil || len(reply.Cursor.FirstBatch) == 0 {
		return "", err
	}
	text, _ := reply.Cursor.FirstBatch[0][field].(string)
	return text, nil
}
