// Command st2service stands in for StackStorm's services on a lab node. It takes its part from its name: as
// st2actionrunner it consumes the action runner's queues. Like the real ones it reads /etc/st2/st2.conf and holds
// connections to the database and the broker named there, and it ends as they do (docs/stackstorm.md, "Services and
// units"): before it was connected once, where a login is refused or nobody is reached; and the timers engine, with
// exit code 0, where the settings switch it off. As long as it is connected it listens at @st2service/NAME (a
// runner's NAME is st2actionrunner.1, and so on), for its unit of Type=simple says nothing about that.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/streadway/amqp"
	"go.mongodb.org/mongo-driver/bson"
	"go.mongodb.org/mongo-driver/mongo"
	"go.mongodb.org/mongo-driver/mongo/options"
	"go.mongodb.org/mongo-driver/x/mongo/driver"
)

const (
	// How long the first connection is tried for: [database] connection_retry_max_delay_m, and what the wrapper
	// around the broker's takes for its tries (st2common/transport/connection_retry_wrapper.py, measured). Later ones
	// are tried for ever.
	databasePatience = 3 * time.Minute
	brokerPatience   = 22 * time.Second
	retry            = 2 * time.Second // kombu's first pause
	heartbeat        = 15 * time.Second
)

// queue is one a service consumes; without a name it is the service's own and goes with it.
type queue struct{ name, exchange, key string }

// queues are the real ones: st2common/transport/queues.py, and the watchers of sensors and triggers.
var queues = map[string][]queue{
	"st2actionrunner": {
		{"st2.actionrunner.work", "st2.liveaction.status", "scheduled"},
		{"st2.actionrunner.cancel", "st2.liveaction.status", "canceling"},
		{"st2.actionrunner.pause", "st2.liveaction.status", "pausing"},
		{"st2.actionrunner.resume", "st2.liveaction.status", "resuming"},
	},
	"st2scheduler":   {{"st2.actionrunner.req", "st2.liveaction.status", "requested"}},
	"st2notifier":    {{"st2.notifiers.execution.work", "st2.execution", "update"}},
	"st2rulesengine": {{"st2.trigger_instances_dispatch.rules_engine", "st2.trigger_instances_dispatch", "#"}},
	"st2workflowengine": {
		{"st2.workflow.work", "st2.workflow.status", "requested"},
		{"st2.workflow.resume", "st2.workflow.status", "resuming"},
		{"st2.workflow.action.update", "st2.execution", "update"},
	},
	"st2stream": {
		{"", "st2.actionalias", "*"},
		{"", "st2.announcement", "*"},
		{"", "st2.execution", "*"},
		{"", "st2.liveaction", "*"},
		{"", "st2.execution.output", "create"},
	},
	"st2sensorcontainer":  {{"", "st2.sensor", "#"}, {"", "st2.trigger", "#"}},
	"st2timersengine":     {{"", "st2.trigger", "#"}},
	"st2api":              nil,
	"st2auth":             nil,
	"st2garbagecollector": nil,
}

func main() {
	log.SetFlags(0) // the journal has the time
	runtime.GOMAXPROCS(1)
	name := filepath.Base(os.Args[0])
	var names files
	flag.Var(&names, "config-file", "")
	flag.Parse()
	if len(names) == 0 {
		names = files{"/etc/st2/st2.conf"}
	}
	if _, known := queues[name]; !known {
		log.Fatalf("%s: not a StackStorm service", name)
	}
	c, err := readConfig(names...)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx, name, c); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

func serve(ctx context.Context, name string, c config) error {
	node, err := os.Hostname()
	if err != nil {
		return err
	}
	unit := name
	if worker := os.Getenv("WORKERID"); worker != "" {
		unit += "." + worker
	}
	id := unit + "@" + node
	p := &presence{address: "@st2service/" + unit}
	if name == "st2actionrunner" {
		o := newOutput(c)
		defer o.close()
		p.serve = func(conn net.Conn) { o.serve(ctx, conn) }
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2)
	ready := make(chan struct{}, 2)
	go func() { failed <- holdDatabase(ctx, id, c, p, ready) }()
	go func() { failed <- holdBroker(ctx, id, queues[name], c, p, ready) }()
	for range 2 {
		select {
		case err := <-failed:
			return err
		case <-ready:
		}
	}
	if name == "st2timersengine" && !c.timers {
		log.Print("Timer is disabled.")
		return nil
	}
	switch name {
	case "st2timersengine":
		go count(ctx, []string{"timers"})
	case "st2sensorcontainer":
		go count(ctx, c.sensors.own(labSensors()))
	}
	return <-failed
}

// presence is where a service that holds both its connections listens.
type presence struct {
	address string
	serve   func(net.Conn) // what it does for those who call, if anything

	mu       sync.Mutex
	held     [2]bool
	listener net.Listener
}

// The connections that a service holds.
const (
	database = iota
	broker
)

// holds says whether one of them is there.
func (p *presence) holds(which int, yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held[which] = yes
	both := p.held[database] && p.held[broker]
	switch {
	case both && p.listener == nil:
		l, err := net.Listen("unix", p.address)
		if err != nil {
			log.Fatal(err) // there is another one of the same name
		}
		p.listener = l
		go p.accept(l)
	case !both && p.listener != nil:
		p.listener.Close()
		p.listener = nil
	}
}

func (p *presence) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if p.serve == nil {
			conn.Close()
			continue
		}
		go p.serve(conn)
	}
}

// holdDatabase keeps a connection to the database. It returns when there is none to begin with.
func holdDatabase(ctx context.Context, id string, c config, p *presence, ready chan<- struct{}) error {
	o := options.Client().ApplyURI(c.databaseURI()).SetMaxPoolSize(2).SetAppName(id).
		SetServerSelectionTimeout(2 * time.Second).SetConnectTimeout(2 * time.Second).SetSocketTimeout(5 * time.Second)
	client, err := mongo.Connect(ctx, o)
	if err != nil {
		return fmt.Errorf("[database]: %w", err)
	}
	defer client.Disconnect(context.WithoutCancel(ctx))
	beat := func() error {
		beats := client.Database(c.dbName).Collection("lab_heartbeat")
		_, err := beats.UpdateByID(ctx, id, bson.M{"$set": bson.M{"pid": os.Getpid(), "at": time.Now()}},
			options.Update().SetUpsert(true))
		return err
	}
	begun, wait := time.Now(), retry
	for {
		err := beat()
		p.holds(database, err == nil)
		switch refused := (driver.Error{}); {
		case err == nil:
			wait = heartbeat
			if ready != nil {
				ready <- struct{}{}
				ready = nil
			}
		// login refused; unauthorized
		case ready != nil && (errors.As(err, &refused) && (refused.Code == 18 || refused.Code == 13) ||
			time.Since(begun) > databasePatience):
			return fmt.Errorf("[database]: %w", err)
		default:
			if wait != retry {
				log.Printf("[database]: %v", err)
			}
			wait = retry
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// holdBroker keeps a connection to the broker and the queues consumed. It returns when there is none to begin with.
func holdBroker(ctx context.Context, id string, all []queue, c config, p *presence, ready chan<- struct{}) error {
	begun, said := time.Now(), ""
	for i := 0; ; i++ {
		lost, conn, err := connect(c.brokers[i%len(c.brokers)], id, all)
		if err == nil {
			p.holds(broker, true)
			said = ""
			if ready != nil {
				ready <- struct{}{}
				ready = nil
			}
			select {
			case <-ctx.Done():
				return conn.Close()
			case err = <-lost:
			}
			p.holds(broker, false)
			conn.Close()
		}
		var refused *amqp.Error
		if ready != nil && (errors.Is(err, amqp.ErrCredentials) || errors.Is(err, amqp.ErrVhost) ||
			errors.As(err, &refused) && (refused.Code == amqp.AccessRefused || refused.Code == amqp.NotAllowed) ||
			time.Since(begun) > brokerPatience) {
			return fmt.Errorf("[messaging]: %w", err)
		}
		if err.Error() != said {
			said = err.Error()
			log.Printf("[messaging]: %s", said)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retry):
		}
	}
}

// patience is what gives the Go library, which waits for three heartbeats, py-amqp's two (amqp/connection.py,
// heartbeat_tick). Where the URL names none, kombu has none; the library then takes the broker's 60 s, and needs 180 s
// to miss one, which is as good as never.
func patience(heartbeat string) time.Duration {
	seconds, err := strconv.ParseFloat(heartbeat, 64)
	if err != nil {
		return 0
	}
	return time.Duration(seconds * float64(time.Second) * 2 / 3)
}

// connect returns a connection that consumes the queues, and where its loss is told.
func connect(broker, id string, all []queue) (<-chan error, *amqp.Connection, error) {
	u, err := url.Parse(broker)
	if err != nil {
		return nil, nil, errors.New("not a URL") // the error would show the password
	}
	if u.Path == "/" {
		u.Path = "" // kombu takes a bare / for the vhost /, the Go library for the vhost with the empty name
	}
	conn, err := amqp.DialConfig(u.String(), amqp.Config{
		Heartbeat:  patience(u.Query().Get("heartbeat")),
		Properties: amqp.Table{"connection_name": id, "product": "st2"},
		Dial: func(network, addr string) (net.Conn, error) {
			c, err := net.DialTimeout(network, addr, 3*time.Second)
			if err != nil {
				return nil, err
			}
			return c, c.SetDeadline(time.Now().Add(15 * time.Second)) // the library takes it off after the login
		},
	})
	if err != nil {
		return nil, nil, err
	}
	lost := make(chan error, 2)
	tell := func(closed chan *amqp.Error) {
		go func() {
			if err := <-closed; err != nil {
				lost <- err
			} else {
				lost <- amqp.ErrClosed
			}
		}()
	}
	tell(conn.NotifyClose(make(chan *amqp.Error, 1)))
	ch, err := conn.Channel()
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	tell(ch.NotifyClose(make(chan *amqp.Error, 1)))
	for _, q := range all {
		if err := consume(ch, q); err != nil {
			conn.Close()
			return nil, nil, err
		}
	}
	return lost, conn, nil
}

func consume(ch *amqp.Channel, q queue) error {
	if err := ch.ExchangeDeclare(q.exchange, "topic", true, false, false, false, nil); err != nil {
		return err
	}
	own := q.name == ""
	declared, err := ch.QueueDeclare(q.name, true, own, own, false, nil)
	if err != nil {
		return err
	}
	if err := ch.QueueBind(declared.Name, q.key, q.exchange, false, nil); err != nil {
		return err
	}
	messages, err := ch.Consume(declared.Name, "", true, own, false, false, nil)
	if err != nil {
		return err
	}
	go func() {
		for range messages {
		}
	}()
	return nil
}
