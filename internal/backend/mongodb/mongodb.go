// Package mongodb is the backend MongoDB: StackStorm's database.
package mongodb

import (
	"context"
	"strconv"
	"strings"
	"time"

	"st2ha/internal/backend"
	"st2ha/internal/confedit"
	"st2ha/internal/host"
	client "st2ha/internal/mongodb"
	"st2ha/internal/probe"
	"st2ha/internal/secure"
	"st2ha/internal/stackstorm"
)

// Name is the backend's.
const Name = "mongodb"

// New describes MongoDB.
func New() backend.Backend {
	members := NewMembers()
	return backend.Backend{
		Name:      Name,
		Units:     client.Units(),
		DataDirs:  []string{"/var/lib/mongodb", "/var/lib/mongo", "/var/log/mongodb"},
		Answers:   func(ctx context.Context, h host.Host, addr string) error { return client.Answers(ctx, h, addr) },
		Port:      strconv.Itoa(client.DefaultPort),
		Servers:   servers,
		Listeners: listeners,
		Endpoints: func(ctx context.Context, n *backend.Node) { endpoints(ctx, n, members) },
		Learned:   members.String,
		Needed:    true,
	}
}

// servers are those of [database].
func servers(conf *stackstorm.Conf) []string {
	db, err := conf.Database()
	if err != nil {
		return nil
	}
	return db.Servers
}

// endpoints are the servers of the pack's configuration, or of [database], and
// the members that those have named.
func endpoints(ctx context.Context, n *backend.Node, members *Members) {
	var server client.Server
	var servers []string
	switch {
	case n.Config.MongoDB != "":
		var err error
		server = ParseURI(n.Config.MongoDB, n.Contents)
		servers, err = ParseServers(server.URI)
		n.Problem(err)
	case n.Conf != nil:
		db, err := n.Conf.Database()
		if err != nil {
			n.Problem(err)
			return
		}
		server, servers = db.Server, db.Servers
	}
	timing := n.Config.Timing()
	for _, addr := range servers {
		n.Add(ctx, Name, addr, Watch(Settings{Server: server, Addr: addr, Timing: timing, Members: members}))
	}
	for _, m := range members.Of(servers) {
		looking, cancel := context.WithTimeout(ctx, time.Second) // its name may be known to nobody here
		n.Add(looking, Name, m.Addr, resolved(m.Addr, func(d secure.ContextDialer) probe.Func {
			return Watch(Settings{Server: server, Addr: m.Addr, Arbiter: m.Arbiter, Dialer: d, Timing: timing})
		}))
		cancel()
	}
}

// listeners reads mongod's configuration, in either of its formats.
func listeners(read func(string) string) []backend.Listener {
	for _, path := range client.Files() {
		text := []byte(read(path))
		if len(text) == 0 {
			continue
		}
		get := func(key string, yaml ...string) string {
			if !confedit.IsYAML(text) {
				conf, err := confedit.ParseINI(text, confedit.Mongo)
				if err != nil {
					return ""
				}
				value, _ := conf.Get("", key)
				return value
			}
			value, _, _ := confedit.YAMLGet(text, yaml...)
			return value
		}
		port := get("port", "net", "port")
		if port == "" {
			port = strconv.Itoa(client.DefaultPort)
		}
		bound := strings.FieldsFunc(get("bind_ip", "net", "bindIp"), func(r rune) bool { return r == ',' || r == ' ' })
		if len(bound) == 0 || get("bind_ip_all", "net", "bindIpAll") == "true" {
			return []backend.Listener{{Port: port}}
		}
		var all []backend.Listener
		for _, address := range bound {
			all = append(all, backend.Listener{Address: address, Port: port})
		}
		return all
	}
	return nil
}
