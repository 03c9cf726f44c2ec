package rabbitmq

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash"
	"strings"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
)

// definitions is the part of "rabbitmqctl export_definitions" that says who
// may do what.
type definitions struct {
	Users  []json.RawMessage `json:"users"`
	VHosts []struct {
		Name string `json:"name"`
	} `json:"vhosts"`
	Grants []grant `json:"permissions"`
}

type grant struct {
	User  string `json:"user"`
	VHost string `json:"vhost"`
	Permissions
}

// account is a user as the definitions hold it.
type account struct {
	Name      string `json:"name"`
	Hash      string `json:"password_hash"`
	Algorithm string `json:"hashing_algorithm"`
}

// access compares vhost, user and permissions with what is wanted.
func (s *Configure) access(ctx context.Context, h host.Host) ([]step.Change, error) {
	out, err := h.Run(ctx, nil, "rabbitmqctl", "--quiet", "export_definitions", "-")
	if err != nil {
		return nil, fault.Preflight("rabbitmqctl",
			"start RabbitMQ (3.8.2 or newer) on the primary: systemctl start "+Unit,
			"%s: ask RabbitMQ for its users: %w", h.Name(), err)
	}
	var defs definitions
	// Before the JSON some versions say what they are about to do.
	if start := strings.IndexByte(string(out), '{'); start > 0 {
		out = out[start:]
	}
	if err := json.Unmarshal(out, &defs); err != nil {
		return nil, fmt.Errorf("%s: definitions of RabbitMQ: %w", h.Name(), err)
	}
	var changes []step.Change
	if !defs.hasVHost(s.VHost) {
		changes = append(changes, &VHost{Name: s.VHost})
	}
	user, err := s.user(h, defs)
	if err != nil {
		return nil, err
	}
	if user != nil {
		changes = append(changes, user)
	}
	g := &Grant{User: s.User, VHost: s.VHost, Want: s.Permissions}
	for _, have := range defs.Grants {
		if have.User == s.User && have.VHost == s.VHost {
			g.Had = &have.Permissions
		}
	}
	if g.Had == nil || *g.Had != g.Want {
		if err := checkPatterns(ctx, h, s.Permissions); err != nil {
			return nil, err
		}
		changes = append(changes, g)
	}
	return changes, nil
}

// checkPatterns asks the broker whether it takes the patterns: its regular expressions
// are PCRE (Erlang's re), which Go's package cannot read all of. set_permissions
// would refuse them as well, but only after other changes.
func checkPatterns(ctx context.Context, h host.Host, p Permissions) error {
	if p == everything {
		return nil
	}
	patterns := p.list()
	terms := make([]string, len(patterns))
	for i, pattern := range patterns {
		// As numbers: whatever is in a pattern, it is data.
		terms[i] = "<<" + strings.ReplaceAll(strings.Trim(fmt.Sprint([]byte(pattern)), "[]"), " ", ",") + ">>"
	}
	out, err := h.Run(ctx, nil, "rabbitmqctl", "--quiet", "eval",
		"[case re:compile(P) of {ok, _} -> ok; {error, {_, At}} -> At end || P <- ["+strings.Join(terms, ", ")+"]].")
	if err != nil {
		return fault.Preflight("rabbitmqctl", "", "%s: ask RabbitMQ about the permission patterns: %w", h.Name(), err)
	}
	answers := strings.Split(strings.Trim(string(out), "[] \n"), ",")
	if len(answers) != len(patterns) {
		return fmt.Errorf("%s: RabbitMQ answered %q about the permission patterns", h.Name(), out)
	}
	for i, name := range []string{"permission_configure", "permission_write", "permission_read"} {
		if position := strings.TrimSpace(answers[i]); position != "ok" {
			return fault.Preflight("rabbitmq_permission",
				"see https://www.rabbitmq.com/access-control.html: the syntax is that of PCRE",
				"%s: %s %q is not a regular expression for RabbitMQ, from its character %s on", h.Name(), name,
				patterns[i], position)
		}
	}
	return nil
}

func (d definitions) hasVHost(name string) bool {
	for _, v := range d.VHosts {
		if v.Name == name {
			return true
		}
	}
	return false
}

// user returns the change that the user needs, or nil.
func (s *Configure) user(h host.Host, defs definitions) (step.Change, error) {
	for _, raw := range defs.Users {
		var a account
		if err := json.Unmarshal(raw, &a); err != nil {
			return nil, fmt.Errorf("%s: definitions of RabbitMQ: %w", h.Name(), err)
		}
		if a.Name != s.User {
			continue
		}
		if a.accepts(s.Password) {
			return nil, nil
		}
		if !s.UpdatePassword {
			return nil, fault.Preflight("rabbitmq_password",
				"give the user's password, or set it to the given one with update_password=true",
				"%s: RabbitMQ has a user %s already, with another password", h.Name(), s.User)
		}
		return &Password{User: s.User, password: s.Password, old: raw}, nil
	}
	return &User{Name: s.User, password: s.Password}, nil
}

// accepts compares a password with a salted hash (RabbitMQ, passwords guide:
// base64 of a 4-byte salt and the hash over salt and password).
func (a account) accepts(password string) bool {
	stored, err := base64.StdEncoding.DecodeString(a.Hash)
	if err != nil || len(stored) < 4 {
		return false
	}
	var sum hash.Hash
	switch a.Algorithm {
	case "rabbit_password_hashing_sha512":
		sum = sha512.New()
	default:
		sum = sha256.New()
	}
	sum.Write(stored[:4])
	sum.Write([]byte(password))
	return string(sum.Sum(nil)) == string(stored[4:])
}

// ctl runs rabbitmqctl. A secret goes to its standard input.
func ctl(ctx context.Context, h host.Host, stdin string, args ...string) error {
	var in []byte
	if stdin != "" {
		in = []byte(stdin + "\n")
	}
	_, err := h.Run(ctx, in, append([]string{"rabbitmqctl", "--quiet"}, args...)...)
	if err != nil {
		return fault.Failed("rabbitmqctl", "", "%s: %w", h.Name(), err)
	}
	return nil
}

// missing says whether rabbitmqctl failed because what was to be deleted is
// not there: undoing it again is no error.
func missing(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "no_such") || strings.Contains(err.Error(), "does not exist"))
}

func unlessMissing(err error) error {
	if missing(err) {
		return nil
	}
	return err
}

// VHost adds a virtual host.
type VHost struct{ Name string }

// Kind is "rabbitmq_vhost".
func (v *VHost) Kind() string { return "rabbitmq_vhost" }

// Target is the vhost's name.
func (v *VHost) Target() string { return v.Name }

// Diff says what is added.
func (v *VHost) Diff() string { return "+ vhost " + v.Name }

// Apply adds it.
func (v *VHost) Apply(ctx context.Context, h host.Host) error {
	return ctl(ctx, h, "", "add_vhost", v.Name)
}

// Undo deletes it.
func (v *VHost) Undo(ctx context.Context, h host.Host) error {
	return unlessMissing(ctl(ctx, h, "", "delete_vhost", v.Name))
}

// User adds a user.
type User struct {
	Name     string
	password string
}

// Kind is "rabbitmq_user".
func (u *User) Kind() string { return "rabbitmq_user" }

// Target is the user's name.
func (u *User) Target() string { return u.Name }

// Diff says what is added.
func (u *User) Diff() string { return "+ user " + u.Name }

// Apply adds it. Without a password argument rabbitmqctl reads it from its
// standard input (rabbitmqctl(8)).
func (u *User) Apply(ctx context.Context, h host.Host) error {
	err := ctl(ctx, h, u.password, "add_user", u.Name)
	// A run that was killed here left its rabbitmqctl at work, which may come first.
	if err != nil && strings.Contains(err.Error(), "already exists") &&
		ctl(ctx, h, u.password, "authenticate_user", u.Name) == nil {
		return nil
	}
	return err
}

// Undo deletes it.
func (u *User) Undo(ctx context.Context, h host.Host) error {
	return unlessMissing(ctl(ctx, h, "", "delete_user", u.Name))
}

// Password changes the password of a user.
type Password struct {
	User     string
	password string
	old      []byte // the user's definition, with the hash
}

// Kind is "rabbitmq_password".
func (p *Password) Kind() string { return "rabbitmq_password" }

// Target is the user's name.
func (p *Password) Target() string { return p.User }

// Diff says what is changed.
func (p *Password) Diff() string { return "~ password of user " + p.User }

// Image is the user as it was.
func (p *Password) Image() []byte { return p.old }

// SetImage gives back what Image returned.
func (p *Password) SetImage(b []byte) { p.old = b }

// Apply changes it.
func (p *Password) Apply(ctx context.Context, h host.Host) error {
	return ctl(ctx, h, p.password, "change_password", p.User)
}

// Undo puts the user's former definition back. rabbitmqctl reads it from its
// standard input if no file is named; it takes "-" for a file's name, whatever
// its usage line says (3.10.8).
func (p *Password) Undo(ctx context.Context, h host.Host) error {
	defs := append([]byte(`{"users":[`), p.old...)
	return ctl(ctx, h, string(append(defs, "]}"...)), "import_definitions")
}

// Grant sets a user's permissions on a vhost; those on others stay.
type Grant struct {
	User  string
	VHost string
	Had   *Permissions // nil if there were none
	Want  Permissions
}

// Kind is "rabbitmq_permissions".
func (g *Grant) Kind() string { return "rabbitmq_permissions" }

// Target is user and vhost.
func (g *Grant) Target() string { return g.User + " on " + g.VHost }

// Diff shows the patterns before and after.
func (g *Grant) Diff() string {
	before := ""
	if g.Had != nil {
		before = fmt.Sprintf("- %q %q %q\n", g.Had.Configure, g.Had.Write, g.Had.Read)
	}
	return before + fmt.Sprintf("+ %q %q %q", g.Want.Configure, g.Want.Write, g.Want.Read)
}

// Apply sets them.
func (g *Grant) Apply(ctx context.Context, h host.Host) error { return g.set(ctx, h, g.Want) }

func (g *Grant) set(ctx context.Context, h host.Host, p Permissions) error {
	return ctl(ctx, h, "", "set_permissions", "-p", g.VHost, g.User, p.Configure, p.Write, p.Read)
}

// Undo sets the former ones.
func (g *Grant) Undo(ctx context.Context, h host.Host) error {
	if g.Had != nil {
		return unlessMissing(g.set(ctx, h, *g.Had))
	}
	return unlessMissing(ctl(ctx, h, "", "clear_permissions", "-p", g.VHost, g.User))
}
