// Command writer uses a lab node's backends without a break, as a client that
// wants to lose nothing: lines into a file on an NFS mount, each fsynced; documents
// into MongoDB; durable messages into a queue of RabbitMQ, with confirms. What was
// acknowledged must be there after a fault.
//
//	writer FILE COPY
//
// COPY, on the node's own disk, gets the bytes whose fsync in FILE succeeded.
// For a line "check" on stdin it stops writing, reads the database and the queue
// back, prints one JSON object with what was acknowledged and what of it is
// missing, and goes on. For "answered KIND FROM TO" it says how many writes were
// begun and acknowledged in that time, in microseconds since 1970, since the last
// check. For "late" it says by how many milliseconds a sleep was
// late at most since the last time: the node's own slowness. For "hold ADDRESS" it
// connects there, and for "gone" it says when that was refused from then on, in
// microseconds since 1970: when the kernel had ended the server. It ends with stdin.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/streadway/amqp"
	"go.mongodb.org/mongo-driver/bson"
	"go.mongodb.org/mongo-driver/mongo"
	"go.mongodb.org/mongo-driver/mongo/options"

	"st2ha/internal/host"
	"st2ha/internal/rabbitmq"
	"st2ha/internal/stackstorm"
)

const (
	pace     = 400 * time.Millisecond // between two writes of one kind
	patience = 5 * time.Second        // for an answer of the database or the broker
	queue    = "lab.writer"
)

// kept is what one kind of writing came to since the last check.
type kept struct {
	Acknowledged int   `json:"acknowledged"`
	Missing      []int `json:"missing"`
}

// store is one of the places that are written to. Its methods are not called
// at the same time.
type store interface {
	write(n int) error // nil: it was acknowledged
	read() (map[int]bool, error)
}

// writing goes on until it is stopped for a check.
type writing struct {
	mu    sync.Mutex
	store store
	acked []acked
}

// acked is a write that was acknowledged.
type acked struct {
	n            int
	began, ended time.Time
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: writer FILE COPY")
	}
	ctx := context.Background()
	conf, err := stackstorm.ReadConf(ctx, host.NewLocal("localhost"))
	if err != nil {
		log.Fatal(err)
	}
	db, err := newDatabase(ctx, conf)
	if err != nil {
		log.Fatal(err)
	}
	login, err := conf.Broker()
	if err != nil {
		log.Fatal(err)
	}
	all := map[string]*writing{
		"file":     {store: &file{path: os.Args[1], copy: os.Args[2]}},
		"mongodb":  {store: db},
		"rabbitmq": {store: &broker{login: login}},
	}
	for _, w := range all {
		go w.run()
	}
	slow := &slowness{}
	go slow.run()
	gone := make(chan time.Time)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		switch question, about, _ := strings.Cut(lines.Text(), " "); question {
		case "answered":
			var kind string
			var from, to int64
			if _, err := fmt.Sscan(about, &kind, &from, &to); err != nil || all[kind] == nil {
				log.Fatalf("%q is no question", lines.Text())
			}
			fmt.Printf("{\"answered\": %d}\n", all[kind].answered(time.UnixMicro(from), time.UnixMicro(to)))
			continue
		case "late":
			fmt.Printf("{\"late\": %d}\n", slow.take().Milliseconds())
			continue
		case "hold":
			go hold(about, gone)
			fmt.Println("{}")
			continue
		case "gone":
			fmt.Printf("{\"gone\": %d}\n", (<-gone).UnixMicro())
			continue
		}
		out := map[string]kept{}
		for name, w := range all {
			k, err := w.check()
			if err != nil {
				log.Printf("%s: %v", name, err)
				k.Missing = append(k.Missing, -1)
			}
			out[name] = k
		}
		if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
			log.Fatal(err)
		}
	}
}

func (w *writing) run() {
	for n := 1; ; n++ {
		w.mu.Lock()
		began := time.Now()
		if w.store.write(n) == nil {
			w.acked = append(w.acked, acked{n, began, time.Now()})
		}
		w.mu.Unlock()
		time.Sleep(pace)
	}
}

// answered counts the writes that were begun and acknowledged in a time.
func (w *writing) answered(from, to time.Time) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	count := 0
	for _, a := range w.acked {
		if !a.began.Before(from) && !a.ended.After(to) {
			count++
		}
	}
	return count
}

// slowness is the most that a sleep was late.
type slowness struct {
	mu   sync.Mutex
	most time.Duration
}

func (s *slowness) run() {
	for {
		began := time.Now()
		time.Sleep(20 * time.Millisecond)
		late := time.Since(began) - 20*time.Millisecond
		s.mu.Lock()
		s.most = max(s.most, late)
		s.mu.Unlock()
	}
}

func (s *slowness) take() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	late := s.most
	s.most = 0
	return late
}

// hold is connected to a server until that is refused.
func hold(address string, gone chan<- time.Time) {
	for {
		c, err := net.DialTimeout("tcp", address, patience)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			gone <- time.Now()
			return
		case err != nil:
			time.Sleep(time.Millisecond)
			continue
		}
		_, _ = io.Copy(io.Discard, c)
		c.Close()
	}
}

// check reads back what was acknowledged since the last one.
func (w *writing) check() (kept, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := kept{Acknowledged: len(w.acked), Missing: []int{}}
	there, err := w.store.read()
	if err != nil {
		return k, err
	}
	for _, a := range w.acked {
		if !there[a.n] {
			k.Missing = append(k.Missing, a.n)
		}
	}
	w.acked = nil
	return k, nil
}

// file is on the mount. What is in it is compared by others, on the server.
type file struct {
	path, copy string
	size       int64 // of what is known to be written
	since      []int
}

func (f *file) write(n int) error {
	line := fmt.Appendf(nil, "%08d %s\n", n, time.Now().Format(time.RFC3339Nano))
	out, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := out.WriteAt(line, f.size); err != nil {
		return err
	}
	if err := out.Sync(); err != nil {
		return err
	}
	own, err := os.OpenFile(f.copy, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer own.Close()
	if _, err := own.Write(line); err != nil {
		return err
	}
	f.size += int64(len(line))
	f.since = append(f.since, n)
	return nil
}

// read ends what a write without an acknowledgement may have left.
func (f *file) read() (map[int]bool, error) {
	there := map[int]bool{}
	for _, n := range f.since {
		there[n] = true
	}
	f.since = nil
	return there, os.Truncate(f.path, f.size)
}

type database struct{ *mongo.Collection }

func newDatabase(ctx context.Context, conf *stackstorm.Conf) (*database, error) {
	uri, err := conf.Database()
	if err != nil {
		return nil, err
	}
	o := options.Client().ApplyURI(uri.URI).SetServerSelectionTimeout(patience).SetSocketTimeout(
		patience).SetConnectTimeout(patience)
	client, err := mongo.Connect(ctx, o)
	if err != nil {
		return nil, err
	}
	c := &database{client.Database("st2").Collection("lab_writer")}
	return c, c.Drop(ctx)
}

func (d *database) write(n int) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := d.InsertOne(ctx, bson.M{"_id": n})
	return err
}

func (d *database) read() (map[int]bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*patience)
	defer cancel()
	cursor, err := d.Find(ctx, bson.M{})
	if err != nil {
		return nil, err
	}
	var all []struct {
		ID int `bson:"_id"`
	}
	if err := cursor.All(ctx, &all); err != nil {
		return nil, err
	}
	there := map[int]bool{}
	for _, d := range all {
		there[d.ID] = true
	}
	_, err = d.DeleteMany(ctx, bson.M{})
	return there, err
}

// broker holds one connection for as long as it lasts.
type broker struct {
	login     rabbitmq.Login
	conn      *rabbitmq.Connection
	channel   *amqp.Channel
	confirmed chan amqp.Confirmation
}

func (b *broker) open() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := rabbitmq.Dial(ctx, &net.Dialer{}, b.login)
	if err != nil {
		return err
	}
	if b.channel, err = conn.Channel(); err != nil {
		return err
	}
	if err := b.channel.Confirm(false); err != nil {
		return err
	}
	b.confirmed = b.channel.NotifyPublish(make(chan amqp.Confirmation, 1))
	if _, err := b.channel.QueueDeclare(queue, true, false, false, false, nil); err != nil {
		return err
	}
	b.conn = conn
	return nil
}

// within gives the connection up if f takes too long or fails.
func (b *broker) within(limit time.Duration, f func() error) error {
	done := make(chan error, 1)
	go func() {
		if b.conn == nil {
			if err := b.open(); err != nil {
				done <- err
				return
			}
		}
		done <- f()
	}()
	var err error
	select {
	case err = <-done:
	case <-time.After(limit):
		err = context.DeadlineExceeded
		if b.conn != nil {
			b.conn.Close()
		}
		<-done // it ends with the connection, or with its dialling
	}
	if err != nil && b.conn != nil {
		b.conn.Close()
		b.conn = nil
	}
	return err
}

func (b *broker) write(n int) error {
	return b.within(2*patience, func() error {
		err := b.channel.Publish("", queue, true, false,
			amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(strconv.Itoa(n))})
		if err != nil {
			return err
		}
		if c, ok := <-b.confirmed; !ok || !c.Ack {
			return amqp.ErrClosed
		}
		return nil
	})
}

func (b *broker) read() (map[int]bool, error) {
	there := map[int]bool{}
	err := b.within(6*patience, func() error {
		for {
			m, ok, err := b.channel.Get(queue, false)
			if err != nil || !ok {
				return err
			}
			n, err := strconv.Atoi(string(m.Body))
			if err != nil {
				return err
			}
			there[n] = true
			if err := m.Ack(false); err != nil {
				return err
			}
		}
	})
	return there, err
}
