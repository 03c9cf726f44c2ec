// Package backend is what watching and healing know of one kind of server: one
// value a backend, made by a package of its own below this one. Package
// backend/all lists them.
package backend

import (
	"context"

	"st2ha/internal/host"
	"st2ha/internal/stackstorm"
)

// Backend is one kind of what StackStorm needs. A field that does not apply is empty.
type Backend struct {
	Name string // in events, rules and parameters of actions

	// A restart.
	Units    []string // systemd units that run it, as distributions call them; the first that is installed counts
	DataDirs []string // where distributions keep what it writes: without room there a restart makes things worse
	// Answers says whether anybody answers at host:port, seen from the host. It
	// logs in nowhere: a login that is refused is no fault that a restart would heal.
	Answers func(ctx context.Context, h host.Host, addr string) error

	// Where it listens.
	Port string // its usual TCP port
	// Servers are those that st2.conf names (host:port).
	Servers func(*stackstorm.Conf) []string
	// Listeners are those of the backend's own files; none where they say nothing.
	// read returns a file's contents, or the empty text if it cannot be read.
	Listeners func(read func(path string) string) []Listener

	// Watching.
	Endpoints func(ctx context.Context, n *Node) // adds those that the node uses
	// Learned is what endpoints have said since of others that belong to them, in a
	// form that tells one state from another; nil where they say nothing.
	Learned func() string

	// Needed says that no service of StackStorm runs without it, and that an
	// action's output is stored by it.
	Needed bool
}

// Listener is where a backend listens by its own configuration.
type Listener struct {
	Address string // empty: all addresses
	Port    string
}
