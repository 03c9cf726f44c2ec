// Package mongodb is the backend MongoDB: StackStorm's database.
package mongodb

import (
	"context"
	"strconv"
	"strings"

	"st2ha/internal/backend"
	"st2ha/internal/confedit"
	"st2ha/internal/host"
	client "st2ha/internal/mongodb"
	"st2ha/internal/stackstorm"
)

// Name is the backend's.
const Name = "mongodb"

// New describes MongoDB.
func New() backend.Backend {
	return backend.Backend{
		Name:      Name,
		Units:     client.Units(),
		DataDirs:  []string{"/var/lib/mongodb", "/var/lib/mongo", "/var/log/mongodb"},
		Answers:   func(ctx context.Context, h host.Host, addr string) error { return client.Answers(ctx, h, addr) },
		Port:      strconv.Itoa(client.DefaultPort),
		Servers:   servers,
		Listeners: listeners,
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
