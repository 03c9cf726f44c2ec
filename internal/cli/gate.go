package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"st2ha/internal/backend"
	"st2ha/internal/backend/all"
	"st2ha/internal/host"
	"st2ha/internal/join"
	"st2ha/internal/stackstorm"
	"st2ha/internal/wait"
)

const (
	// storeTime is what StackStorm's runner gets to store a line that it was
	// given before the backend goes away: each is inserted and published as it
	// comes (st2common/services/action.py:497).
	storeTime = time.Second
	// quiet is what the clients of a backend that is back get to notice that it
	// was away. pymongo does not look whether a pooled connection is closed if it
	// was used less than a second ago (pymongo 4.6.3, pool.py:1371 and :1855), and
	// does not repeat an insert on a standalone server. Measured: 1.5 s is enough.
	quiet = 1500 * time.Millisecond
	// backTime bounds the waiting for a backend: what was kept is printed then.
	backTime = join.RabbitMQTime
	// maxKept bounds what is kept meanwhile, in bytes.
	maxKept = 1 << 20
)

// gate is what the command prints through. StackStorm's runner stores each
// line of an action in the database, and fails the action if it cannot; one
// that cannot be published over the broker is lost to who follows the output.
// So the gate is shut before the command restarts one of them, and opens when
// what it restarted is back and its clients know.
type gate struct {
	to io.Writer

	mu      sync.Mutex
	last    time.Time // of what went through
	shut    bool
	kept    bytes.Buffer
	dropped int // lines

	away map[string]func(context.Context) error // asks what was restarted whether it is back
}

// Write prints, or keeps what is to be printed later.
func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case !g.shut:
		g.last = time.Now()
		return g.to.Write(p)
	case g.kept.Len()+len(p) > maxKept:
		g.dropped += bytes.Count(p, []byte("\n"))
	default:
		g.kept.Write(p)
	}
	return len(p), nil
}

// close keeps what is printed from now on, until back has nothing to say
// against it any more. It returns when what was printed before is stored.
func (g *gate) close(ctx context.Context, name string, back func(context.Context) error) {
	g.mu.Lock()
	g.shut = true
	if g.away == nil {
		g.away = map[string]func(context.Context) error{}
	}
	g.away[name] = back
	stored := g.last.Add(storeTime)
	g.mu.Unlock()
	_ = wait.Sleep(ctx, time.Until(stored))
}

// open waits until all that was away is back, and prints what was kept. What
// does not come back has its error in the result.
func (g *gate) open(ctx context.Context) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.shut {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, backTime)
	defer cancel()
	for _, back := range g.away {
		for back(ctx) != nil && ctx.Err() == nil {
			_ = wait.Sleep(ctx, 200*time.Millisecond)
		}
	}
	_ = wait.Sleep(ctx, quiet)
	g.shut = false
	_, _ = g.kept.WriteTo(g.to)
	if g.dropped > 0 {
		fmt.Fprintf(g.to, "st2ha: %d more lines were not kept while a backend was away\n", g.dropped)
	}
}

// hold shuts the gate if the unit is a backend that StackStorm stores an
// action's output with, and the command is such an action. Which host runs it is
// no matter: there is one of each for all nodes.
func (c *common) hold(ctx context.Context, h host.Host, unit string) {
	b := all.OfUnit(unit)
	if c.getenv("ST2_ACTION_EXECUTION_ID") == "" || !b.Needed {
		return
	}
	c.gate.close(ctx, h.Name()+" "+b.Name, func(ctx context.Context) error { return listens(ctx, h, b) })
}

// listens says whether a backend of a host listens: mongod and RabbitMQ open
// their ports when they are ready to serve. By which address depends on what
// was just configured or restored, so any of them will do.
func listens(ctx context.Context, h host.Host, b backend.Backend) error {
	addr := net.JoinHostPort(h.Name(), b.Port)
	if conf, err := stackstorm.ReadConf(ctx, h); err == nil {
		if servers := b.Servers(conf); len(servers) > 0 {
			addr = servers[0]
		}
	}
	name, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	var failed error
	for _, at := range []string{name, h.Name(), "127.0.0.1"} {
		attempt, cancel := context.WithTimeout(ctx, 3*time.Second)
		conn, err := h.DialContext(attempt, "tcp", net.JoinHostPort(at, port))
		cancel()
		if err == nil {
			return conn.Close()
		}
		failed = errors.Join(failed, err)
	}
	return failed
}
