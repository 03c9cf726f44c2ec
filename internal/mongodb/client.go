// Package mongodb opens a mongod to the other nodes, and asks it how it is.
package mongodb

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"go.mongodb.org/mongo-driver/bson"
	"go.mongodb.org/mongo-driver/bson/primitive"
	"go.mongodb.org/mongo-driver/mongo"
	"go.mongodb.org/mongo-driver/mongo/options"
	"go.mongodb.org/mongo-driver/x/mongo/driver"

	"st2ha/internal/secure"
)

const (
	answerTime = 5 * time.Second        // bounds one conversation with a server
	closeTime  = 300 * time.Millisecond // bounds its end
)

// ErrRefused is a login the server does not accept, or a user without rights.
var ErrRefused = errors.New("login refused")

// Server is how servers are spoken to, and logged in to.
type Server struct {
	URI      string      // as a driver takes it, without options of TLS; holds the password
	TLS      *secure.TLS // nil: without
	Fallback string      // the database that holds the user, if that of the URI does not; empty: none
}

// Options are those of a client that talks to exactly the server at addr
// (host:port). TLS is below the driver.
func Options(d options.ContextDialer, s Server, addr string) *options.ClientOptions {
	return options.Client().ApplyURI(s.URI).SetHosts([]string{addr}).SetDialer(bounded{s.TLS.Dialer(d)}).
		SetDirect(true).SetMaxPoolSize(1).
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

// run runs one command as the user, whichever database holds it.
func run(ctx context.Context, d options.ContextDialer, s Server, addr, database string,
	command bson.D, into any) error {
	opts := Options(d, s, addr)
	err := ask(ctx, opts, database, command, into)
	if refused(err) && s.Fallback != "" && opts.Auth != nil {
		opts.Auth.AuthSource = s.Fallback
		err = ask(ctx, opts, database, command, into)
	}
	return err
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
// hello, with TLS or without. That needs no login.
func Answers(ctx context.Context, d options.ContextDialer, addr string) error {
	return secure.Answers(ctx, d, addr, greet)
}

// Dial opens a connection on which the server has answered hello.
func Dial(ctx context.Context, d options.ContextDialer, s Server, addr string) (net.Conn, error) {
	conn, err := s.TLS.Dial(ctx, d, addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err = secure.Explain(greet(conn))
	if inTime := stop(); err == nil && inTime {
		return conn, nil
	}
	_ = conn.Close()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case s.TLS == nil:
		err = secure.ExplainEnd(ctx, d, addr, err)
	}
	return nil, err
}

// greet says hello, and reads the answer, whatever it is: one message of the
// wire protocol (MongoDB wire protocol, OP_MSG: 16 bytes of header, with the
// length first and the operation last, flags, and a section of kind 0).
func greet(conn net.Conn) error {
	body, err := bson.Marshal(bson.D{{Key: "hello", Value: 1}, {Key: "$db", Value: "admin"}})
	if err != nil {
		return err
	}
	const opMsg, opReply = 2013, 1
	message := make([]byte, 21, 21+len(body))
	binary.LittleEndian.PutUint32(message, uint32(cap(message)))
	binary.LittleEndian.PutUint32(message[12:], opMsg)
	if _, err := conn.Write(append(message, body...)); err != nil {
		return err
	}
	header := make([]byte, 16)
	if n, err := io.ReadFull(conn, header); err != nil {
		return cmp.Or(secure.ExplainAnswer(header[:n]), err)
	}
	size, operation := binary.LittleEndian.Uint32(header), binary.LittleEndian.Uint32(header[12:])
	if err := secure.ExplainAnswer(header); err != nil {
		return err
	}
	if size < 16 || size > maxAnswer || operation != opMsg && operation != opReply {
		return errors.New("what answers is not MongoDB")
	}
	_, err = io.CopyN(io.Discard, conn, int64(size)-16)
	return err
}

// Login logs in to the server at addr with what the URI holds; the password
// stays out of the error. A refused login is ErrRefused, a server that is away is not.
func Login(ctx context.Context, d options.ContextDialer, s Server, addr, database string) error {
	var reply bson.M
	// The driver reports that it could not connect, and not why.
	conn, err := Dial(ctx, d, s, addr)
	if err != nil {
		return err
	}
	_ = conn.Close()
	// ping needs no login, but the driver logs in before it sends anything.
	if err = run(ctx, d, s, addr, database, bson.D{{Key: "ping", Value: 1}}, &reply); refused(err) {
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

func refused(err error) bool {
	var said driver.Error // what a login ends with has no form in the driver's public packages
	// Unauthorized, AuthenticationFailed (MongoDB, error_codes.yml).
	return errors.As(err, &said) && (said.Code == 13 || said.Code == 18)
}

// AllowsAnonymous says whether the server at addr takes commands from a client that has not logged in.
func AllowsAnonymous(ctx context.Context, d options.ContextDialer, s Server, addr string) (bool, error) {
	var reply bson.M
	err := ask(ctx, Options(d, s, addr), "admin",
		bson.D{{Key: "listDatabases", Value: 1}, {Key: "nameOnly", Value: true}}, &reply)
	var refused mongo.CommandError
	if errors.As(err, &refused) {
		return false, nil
	}
	return err == nil, err
}

// Field reads one field of the document with an id, as text; empty if there is
// no such document or field.
func Field(ctx context.Context, d options.ContextDialer, s Server, addr, database, collection, id,
	field string) (string, error) {
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
		{Key: "projection", Value: bson.D{{Key: field, Value: 1}}}, {Key: "limit", Value: 1},
		{Key: "singleBatch", Value: true}}
	if err := run(ctx, d, s, addr, database, command, &reply); err != nil || len(reply.Cursor.FirstBatch) == 0 {
		return "", err
	}
	text, _ := reply.Cursor.FirstBatch[0][field].(string)
	return text, nil
}
