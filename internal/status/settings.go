package status

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"

	"st2ha/internal/stackstorm"
)

// setting is what one node has of what is compared.
type setting struct {
	order       int
	name, value string
}

// comparison is a setting that must be the same on all nodes.
type comparison struct {
	name  string
	value func(*look) (string, error) // in words without a secret
	fix   func(node, from string) string
}

// agreed are the settings that must agree (StackStorm's documentation, "High Availability Deployment"; for each,
// docs/stackstorm.md has the source).
func agreed() []comparison {
	plain := func(section, key, otherwise string) comparison {
		return comparison{name: "[" + section + "] " + key, fix: edited,
			value: func(l *look) (string, error) {
				value, _, err := l.conf.Value(section, key)
				return cmp.Or(value, otherwise), err
			}}
	}
	return []comparison{
		{"[database] host", databaseOf, joined},
		{"[messaging] url", brokersOf, joined},
		{"[messaging] prefix", func(l *look) (string, error) { return l.conf.Prefix(), nil }, edited},
		{"[coordination] url", coordinatorOf, edited},
		plain("coordination", "service_registry", "False"),
		{"the datastore's key", func(l *look) (string, error) { return l.sum(l.conf.EncryptionKey()) }, copied},
		plain("auth", "mode", "standalone"),
		{"the users of [auth] (htpasswd)", usersOf, copied},
		plain("system", "base_path", "/opt/stackstorm"),
		plain("content", "packs_base_paths", "none"),
		plain("system_user", "user", "stanley"),
		plain("system_user", "ssh_key_file", "/home/stanley/.ssh/stanley_rsa"),
		plain("actionrunner", "python_binary", "the default"),
		plain("webui", "webui_base_url", "the default"),
		plain("rbac", "enable", "False"),
	}
}

// The commands that mend a node, with the one that is right.

func joined(node, _ string) string { return "st2 run st2ha.join_secondary secondaries=" + node }

func edited(node, from string) string {
	return fmt.Sprintf("set it in %s of %s as on %s, then: st2 run st2ha.restart_st2 host=%s force=true",
		stackstorm.ConfPath, node, from, node)
}

func copied(node, from string) string {
	return fmt.Sprintf("st2 run st2ha.sync_keys host=%s primary=%s", node, from)
}

// databaseOf is where [database] points, whichever user it names.
func databaseOf(l *look) (string, error) {
	db, err := l.conf.Database()
	if err != nil {
		return "", err
	}
	servers := make([]string, len(db.Servers))
	for i, addr := range db.Servers {
		servers[i] = l.known(addr)
	}
	whole, _, _ := strings.Cut(db.URI, "?")
	name := whole[strings.LastIndexByte(whole, '/')+1:]
	return strings.Join(servers, ",") + "/" + cmp.Or(name, "st2") + withTLS(db.TLS != nil), nil
}

// brokersOf are the nodes of the broker and the vhost: users may differ.
func brokersOf(l *look) (string, error) {
	logins, err := l.conf.Brokers()
	if err != nil {
		return "", err
	}
	var all []string
	for _, login := range logins {
		all = append(all, l.known(login.Addr))
	}
	return strings.Join(all, ",") + " vhost " + logins[0].VHost + withTLS(logins[0].TLS != nil), nil
}

func withTLS(on bool) string {
	if on {
		return " with TLS"
	}
	return ""
}

// coordinatorOf is where the node's locks are.
func coordinatorOf(l *look) (string, error) {
	text := l.conf.Coordination()
	if text == "" {
		return "none", nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" {
		return "", errors.New(l.h.Name() + ": [coordination] url is no URL")
	}
	addr := u.Host
	if u.Hostname() != "" && u.Port() == "" && strings.HasPrefix(u.Scheme, "redis") {
		addr += ":6379"
	}
	return u.Scheme + "://" + l.known(addr) + strings.TrimSuffix(u.Path, "/"), nil
}

// usersOf is the file of [auth] backend_kwargs (st2auth's flat_file backend: file_path), by its fingerprint.
func usersOf(l *look) (string, error) {
	text, _, err := l.conf.Value("auth", "backend_kwargs")
	if err != nil {
		return "", err
	}
	var given struct {
		FilePath string `json:"file_path"`
	}
	if text != "" && json.Unmarshal([]byte(text), &given) != nil {
		return "", errors.New(l.h.Name() + ": [auth] backend_kwargs is no JSON object")
	}
	return l.sum(given.FilePath)
}

// sum is a file's fingerprint, which says nothing of its contents.
func (l *look) sum(name string) (string, error) {
	if name == "" {
		return "none", nil
	}
	f, err := l.h.ReadFile(l.ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return "missing: " + name, nil
	}
	if err != nil {
		return "", err
	}
	return "SHA-256 " + fingerprint(f.Data) + "…", nil
}
