package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"go.mongodb.org/mongo-driver/bson"
	"go.mongodb.org/mongo-driver/bson/primitive"
	"go.mongodb.org/mongo-driver/mongo"
	"go.mongodb.org/mongo-driver/mongo/options"
)

const (
	// unchecked is how long after its last use a pooled connection is taken for good without a look (pymongo 4.6.3,
	// pool.py:1371 and :1855).
	unchecked = time.Second
	// connectionTimeout is the default of [database] connection_timeout.
	connectionTimeout = 3 * time.Second
	// operationTimeout is for the lab not to hang: pymongo waits for ever.
	operationTimeout = 2 * time.Minute
)

// output is what an action runner stores while its actions run: each execution's status, and each line of its output
// as it comes (contrib/runners/local_runner/local_runner/base.py:155). It knows the database by the st2.conf with
// which the service began, and by one connection for all, which it keeps. By pymongo's rule: one that was used less
// than a second ago is not looked at before it is used, and what fails on it is not repeated, as on a standalone
// server.
type output struct {
	c config

	mu     sync.Mutex
	client *mongo.Client
	used   time.Time

	connsMu sync.Mutex
	conns   []syscall.RawConn // the client's
}

func newOutput(c config) *output { return &output{c: c} }

// stored is one thing to store: a line, if that is set, else a status.
type stored struct {
	Execution, Action, Runner string
	Stream, Line              string
	Status                    string
}

// serve stores what comes over a connection, an object a line, and answers each with what was wrong, or nothing.
func (o *output) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	for {
		var s stored
		if in.Decode(&s) != nil {
			return
		}
		answer := map[string]string{}
		if err := o.store(ctx, s); err != nil {
			answer["error"] = err.Error()
		}
		if out.Encode(answer) != nil {
			return
		}
	}
}

func (o *output) store(ctx context.Context, s stored) error {
	id, err := primitive.ObjectIDFromHex(s.Execution)
	if err != nil {
		return fmt.Errorf("execution %q: %w", s.Execution, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, operationTimeout)
	defer cancel()
	db, err := o.database(ctx)
	if err != nil {
		return err
	}
	if s.Stream != "" { // services/action.py:510
		_, err = db.Collection("action_execution_output_d_b").InsertOne(ctx, bson.D{
			{Key: "execution_id", Value: s.Execution}, {Key: "action_ref", Value: s.Action},
			{Key: "runner_ref", Value: s.Runner},
			{Key: "timestamp", Value: time.Now().UnixMicro()}, {Key: "output_type", Value: s.Stream},
			{Key: "data", Value: s.Line}})
	} else {
		_, err = db.Collection("action_execution_d_b").UpdateByID(ctx, id, bson.M{"$set": bson.M{"status": s.Status}},
			options.Update().SetUpsert(true))
	}
	o.used = time.Now()
	if err != nil {
		o.drop()
	}
	return err
}

// database is there by the connection that is kept, or by a new one.
func (o *output) database(ctx context.Context) (*mongo.Database, error) {
	if o.client != nil && time.Since(o.used) > unchecked && o.closed() {
		o.drop()
	}
	if o.client == nil {
		client, err := mongo.Connect(ctx,
			options.Client().ApplyURI(o.c.databaseURI()).SetMaxPoolSize(1).SetRetryWrites(false).
				SetServerSelectionTimeout(connectionTimeout).SetConnectTimeout(connectionTimeout).
				// The driver's monitor must not find out before the connection is used.
				SetServerMonitoringMode(options.ServerMonitoringModePoll).SetHeartbeatInterval(time.Hour).
				SetDialer(dialer(o.dial)))
		if err != nil {
			return nil, err
		}
		o.client = client
	}
	return o.client.Database(o.c.dbName), nil
}

// dial remembers the connections, so that they can be looked at.
func (o *output) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: connectionTimeout}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	o.connsMu.Lock()
	defer o.connsMu.Unlock()
	o.conns = append(o.conns, raw)
	return conn, nil
}

// closed says whether the server has closed a connection. They all are the same server's, the monitor's among them.
func (o *output) closed() bool {
	o.connsMu.Lock()
	defer o.connsMu.Unlock()
	for _, raw := range o.conns {
		gone := false
		err := raw.Control(func(fd uintptr) {
			n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
			gone = err == nil && n == 0 || err != nil && err != syscall.EAGAIN
		})
		if err == nil && gone { // one that the driver itself has closed says nothing
			return true
		}
	}
	return false
}

func (o *output) drop() {
	client := o.client
	o.client = nil
	if client != nil {
		go client.Disconnect(context.Background()) // which waits for its monitor
	}
	o.connsMu.Lock()
	defer o.connsMu.Unlock()
	o.conns = nil
}

func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drop()
}

// dialer makes a function the driver's dialer.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// DialContext calls it.
func (d dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return d(ctx, network, address)
}
