// Command mongod stands in for MongoDB's server on a lab node: FerretDB over SQLite behind the real server's
// configuration file, listening addresses, authorization and way to fail. (Debian carries no MongoDB.)
//
//	mongod --config /etc/mongod.conf
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/FerretDB/FerretDB/ferretdb"
)

// The exit codes of the real server.
const (
	exitBadOptions = 2
	exitNetError   = 48
	exitUncaught   = 100
)

func main() {
	config := flag.String("config", "/etc/mongod.conf", "configuration `file`")
	flag.StringVar(config, "f", *config, "same as -config")
	flag.Parse()
	if flag.NArg() > 0 {
		fail(exitBadOptions, fmt.Errorf("too many positional options: %q", flag.Args()))
	}
	c, err := readConfig(*config)
	if err != nil {
		fail(exitBadOptions, err)
	}
	code, err := run(c)
	if err != nil {
		fail(code, err)
	}
}

func fail(code int, err error) {
	fmt.Fprintln(os.Stderr, "mongod:", err)
	os.Exit(code)
}

func run(c config) (int, error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	out := io.Writer(os.Stderr)
	if c.logPath != "" {
		f, err := os.OpenFile(c.logPath, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return exitUncaught, err
		}
		defer f.Close()
		out = f
	}
	// Errors only: FerretDB warns of every command it refuses, and a node is slow.
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelError}))

	if fi, err := os.Stat(c.dbPath); err != nil {
		return exitUncaught, fmt.Errorf("data directory: %w", err)
	} else if !fi.IsDir() {
		return exitUncaught, fmt.Errorf("data directory %s is none", c.dbPath)
	}
	l, err := listenAll(ctx, c)
	if err != nil {
		return exitNetError, err
	}
	db, err := ferretdb.New(&ferretdb.Config{
		Listener:  ferretdb.ListenerConfig{TCP: "127.0.0.1:0"}, // given up below for the real ones
		Logger:    log,
		Handler:   "sqlite",
		SQLiteURL: "file:" + filepath.Clean(c.dbPath) + "/",
	})
	if err != nil {
		return exitUncaught, err
	}
	if err := takeOver(db, l, c.authorization); err != nil {
		return exitUncaught, err
	}
	fmt.Fprintf(out, "mongod: waiting for connections on %v port %d, authorization %v\n", c.bindIP,
		c.port, c.authorization)

	ended := make(chan struct{})
	go func() { defer close(ended); db.Run(ctx) }()
	select {
	case <-ended:
		return exitUncaught, errors.New("the listener ended")
	case <-ctx.Done():
	}
	// FerretDB gives its clients several seconds to leave; the real server hangs up. The files are SQLite's and
	// survive any end.
	select {
	case <-ended:
	case <-time.After(300 * time.Millisecond):
	}
	return 0, nil
}

// listener accepts on several addresses at once.
type listener struct {
	all   []net.Listener
	conns chan accepted
	done  chan struct{}
	close sync.Once
}

type accepted struct {
	conn net.Conn
	err  error
}

// listenAll opens every address of bindIp. As with the real server one that cannot be had is the end.
func listenAll(ctx context.Context, c config) (*listener, error) {
	l := &listener{conns: make(chan accepted), done: make(chan struct{})}
	for _, ip := range c.bindIP {
		addr := net.JoinHostPort(ip, strconv.Itoa(c.port))
		tcp, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("failed to set up sockets during startup: %w", err)
		}
		l.all = append(l.all, tcp)
	}
	for _, tcp := range l.all {
		go func() {
			for {
				conn, err := tcp.Accept()
				select {
				case l.conns <- accepted{conn, err}:
				case <-l.done:
					if conn != nil {
						conn.Close()
					}
					return
				}
			}
		}()
	}
	return l, nil
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case a := <-l.conns:
		return a.conn, a.err
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.close.Do(func() {
		close(l.done)
		for _, tcp := range l.all {
			tcp.Close()
		}
	})
	return nil
}

func (l *listener) Addr() net.Addr { return l.all[0].Addr() }
