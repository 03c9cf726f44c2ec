// Package enroll makes nodes known to each other: each has the host keys of all, and the system user of StackStorm with
// one key and root's rights. What it makes is what StackStorm's installer makes on one node (st2-packages,
// templates/funcs_st2.jinja, st2_configure_user).
package enroll

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/stackstorm"
	"st2ha/internal/step"
)

// KnownHosts is the file of host keys that is for all users of a node.
const KnownHosts = "/etc/ssh/ssh_known_hosts"

// SudoersPath is the file of the system user's rights, as StackStorm's installer has it.
const SudoersPath = "/etc/sudoers.d/st2"

// System is the user as whom nodes reach each other, and what has to be the same on all of them.
type System struct {
	User    string
	KeyFile string
	Key     []byte // the private key's file
	Public  []byte // the public key's file, where there is one
	Version string // of the primary's StackStorm

	line confedit.PublicKey
}

// ReadSystem reads of the primary's st2.conf who that is ([system_user], st2common/st2common/config.py), and its key.
func ReadSystem(ctx context.Context, primary host.Host) (*System, error) {
	conf, err := stackstorm.ReadConf(ctx, primary)
	if err != nil {
		return nil, err
	}
	s := &System{User: "stanley", KeyFile: "/home/stanley/.ssh/stanley_rsa"}
	for option, into := range map[string]*string{"user": &s.User, "ssh_key_file": &s.KeyFile} {
		value, set, err := conf.Value("system_user", option)
		if err != nil {
			return nil, err
		}
		if set {
			*into = value
		}
	}
	if host.CheckUser("user", s.User) != nil || !path.IsAbs(s.KeyFile) {
		return nil, fault.Preflight("system_user", "correct [system_user] user and ssh_key_file in "+stackstorm.ConfPath,
			"%s: %s: the user %q or the path %q of its key is none", primary.Name(), stackstorm.ConfPath, s.User,
			s.KeyFile)
	}
	if s.Version, _, err = stackstorm.Installed(ctx, primary); err != nil {
		return nil, err
	}
	if s.Version == "" {
		return nil, fault.Preflight("stackstorm", "give primary, the node that has StackStorm",
			"%s: StackStorm is not installed in /opt/stackstorm/st2", primary.Name())
	}
	return s, s.readKey(ctx, primary)
}

func (s *System) readKey(ctx context.Context, primary host.Host) error {
	f, err := primary.ReadFile(ctx, s.KeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.Preflight("ssh_key", fmt.Sprintf("make it, as StackStorm's installer does: sudo -u %s ssh-keygen "+
			"-m PEM -N '' -f %s", s.User, s.KeyFile), "%s: %s, the key of %s, does not exist", primary.Name(), s.KeyFile, s.User)
	}
	if err != nil {
		return err
	}
	s.Key = f.Data
	signer, err := ssh.ParsePrivateKey(s.Key)
	if err != nil { // not the library's words, which may quote the key
		return fault.Preflight("ssh_key", "see what the file is: ssh-keygen -y -P '' -f "+s.KeyFile,
			"%s: %s is no private key, or one with a passphrase", primary.Name(), s.KeyFile)
	}
	if s.line, err = confedit.ParsePublicKey(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))); err != nil {
		return err
	}
	f, err = primary.ReadFile(ctx, s.KeyFile+".pub")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.Public = f.Data
	return nil
}

// Peer is a node as the others know it.
type Peer struct {
	Name string // in known_hosts: its address, or [address]:port
	Keys []confedit.PublicKey
}

// HostKeys are the keys that a host's sshd offers, read from its files.
func HostKeys(ctx context.Context, h host.Host) ([]confedit.PublicKey, error) {
	const dir = "/etc/ssh"
	names, err := h.ReadDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	var keys []confedit.PublicKey
	for _, name := range names {
		if ok, _ := path.Match("ssh_host_*_key.pub", name); !ok {
			continue
		}
		file := path.Join(dir, name)
		f, err := h.ReadFile(ctx, file)
		if err != nil {
			return nil, err
		}
		key, err := confedit.ParsePublicKey(string(f.Data))
		if err != nil {
			return nil, step.Located(h, file, err)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fault.Preflight("host_keys", "make them on it: ssh-keygen -A; systemctl restart ssh",
			"%s: no file ssh_host_*_key.pub is in %s", h.Name(), dir)
	}
	return keys, nil
}

// Admit is the step enroll, on one node: it knows all nodes, and lets the system user in.
type Admit struct {
	System *System
	Peers  []Peer // all nodes, this one too
}

// Name is "enroll".
func (s *Admit) Name() string { return "enroll" }

// Check wants the primary's StackStorm on the node.
func (s *Admit) Check(ctx context.Context, h host.Host) ([]step.Finding, error) {
	version, _, err := stackstorm.Installed(ctx, h)
	if err != nil {
		return nil, err
	}
	install := "on " + h.Name() + ", as root: bash <(curl -sSL https://stackstorm.com/packages/install.sh) " +
		"--user=st2admin --password=… --version=" + s.System.Version
	f := step.Finding{Severity: step.Error, Host: h.Name(), Check: "stackstorm", Fix: install}
	switch version {
	case s.System.Version:
		return s.ownKey(ctx, h)
	case "":
		f.Message = "StackStorm is not installed; the primary has " + s.System.Version
	default:
		f.Check = "version"
		f.Message = fmt.Sprintf("StackStorm is %s here and %s on the primary", version, s.System.Version)
		f.Fix = "install the primary's version; on a new node " + install
	}
	return []step.Finding{f}, nil
}

// ownKey names a key that is going to be replaced.
func (s *Admit) ownKey(ctx context.Context, h host.Host) ([]step.Finding, error) {
	f, existed, err := step.ReadOrEmpty(ctx, h, s.System.KeyFile, 0o600)
	if err != nil || !existed || slices.Equal(f.Data, s.System.Key) {
		return nil, err
	}
	return []step.Finding{{Severity: step.Warning, Host: h.Name(), Check: "own_key",
		Message: fmt.Sprintf("%s has a key of its own at %s, which the primary's takes the place of", s.System.User,
			s.System.KeyFile),
		Fix: "nothing, unless others let that key in; rollback brings it back"}}, nil
}

// entry is a user as passwd(5) has it.
type entry struct {
	uid, gid int
	home     string
}

// lookUp asks a host for a user. One that it does not have is nil.
func lookUp(ctx context.Context, h host.Host, user string) (*entry, error) {
	out, err := h.Run(ctx, nil, "getent", "passwd", user)
	var exit *host.ExitError
	if errors.As(err, &exit) && exit.Code == 2 { // getent(1)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: look up the user %s: %w", h.Name(), user, err)
	}
	f := strings.Split(strings.TrimSpace(string(out)), ":")
	if len(f) == 7 && path.IsAbs(f[5]) {
		uid, uidErr := strconv.Atoi(f[2])
		gid, gidErr := strconv.Atoi(f[3])
		if uidErr == nil && gidErr == nil {
			return &entry{uid: uid, gid: gid, home: f[5]}, nil
		}
	}
	return nil, fault.Preflight("system_user", "correct its entry: vipw",
		"%s: the user %s has no usable entry in passwd", h.Name(), user)
}

// rights says whether the user is root by sudo without a password. What that sudo says must not be heard: it would be taken
// for the answer of the one by which this host runs programs.
func rights(ctx context.Context, h host.Host, user string) (bool, error) {
	_, err := h.Run(ctx, nil, "runuser", "-u", user, "--", "sh", "-c", "exec sudo -n true 2>/dev/null")
	if errors.As(err, new(*host.ExitError)) {
		return false, nil
	}
	return err == nil, err
}

// Plan has the sudoers file first, so that it is undone last: until then the system user can undo the rest.
func (s *Admit) Plan(ctx context.Context, h host.Host) ([]step.Change, error) {
	user, err := lookUp(ctx, h, s.System.User)
	if err != nil {
		return nil, err
	}
	changes, err := s.sudoers(ctx, h)
	if err != nil {
		return nil, err
	}
	if user == nil {
		account, err := planAccount(ctx, h, s.System.User)
		if err != nil {
			return nil, err
		}
		changes = append(changes, account) // the rest is planned once it is there
	} else {
		files, err := s.files(ctx, h, user)
		if err != nil {
			return nil, err
		}
		changes = append(changes, files...)
	}
	known, err := s.knownHosts(ctx, h)
	if known != nil {
		changes = append(changes, known)
	}
	return changes, err
}

func (s *Admit) sudoers(ctx context.Context, h host.Host) ([]step.Change, error) {
	has, err := rights(ctx, h, s.System.User)
	if err != nil || has {
		return nil, err
	}
	f, existed, err := step.ReadOrEmpty(ctx, h, SudoersPath, 0o440)
	if err != nil {
		return nil, err
	}
	line := s.System.User + "    ALL=(ALL)       NOPASSWD: SETENV: ALL" // as the installer writes it
	for have := range strings.Lines(string(f.Data)) {
		if strings.Join(strings.Fields(have), " ") == strings.Join(strings.Fields(line), " ") {
			return nil, nil // something else is in the way, and Verify says so
		}
	}
	text := string(f.Data)
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	if edit := step.EditFile(f, existed, []byte(text+line+"\n")); edit != nil {
		return []step.Change{edit}, nil
	}
	return nil, nil
}

// files are the user's: its directory, the key, and whom it lets in.
func (s *Admit) files(ctx context.Context, h host.Host, user *entry) ([]step.Change, error) {
	var changes []step.Change
	home := path.Join(user.home, ".ssh")
	for _, dir := range slices.Compact([]string{path.Dir(s.System.KeyFile), home}) {
		if _, err := h.Stat(ctx, dir); errors.Is(err, fs.ErrNotExist) {
			changes = append(changes, &step.MakeDir{Dir: dir, Mode: 0o700, UID: user.uid, GID: user.gid})
		} else if err != nil {
			return nil, err
		}
	}
	for _, want := range []struct {
		file   string
		mode   fs.FileMode
		secret bool
		text   func(old []byte) ([]byte, error)
	}{
		{s.System.KeyFile, 0o600, true, func([]byte) ([]byte, error) { return s.System.Key, nil }},
		{s.System.KeyFile + ".pub", 0o644, false, func(old []byte) ([]byte, error) {
			if s.System.Public == nil {
				return old, nil
			}
			return s.System.Public, nil
		}},
		{path.Join(home, "authorized_keys"), 0o600, false, func(old []byte) ([]byte, error) {
			return confedit.AddAuthorizedKey(old, s.System.line, s.System.User)
		}},
	} {
		f, existed, err := step.ReadOrEmpty(ctx, h, want.file, want.mode)
		if err != nil {
			return nil, err
		}
		if !existed {
			f.UID, f.GID = user.uid, user.gid
		}
		text, err := want.text(f.Data)
		if err != nil {
			return nil, step.Located(h, want.file, err)
		}
		if edit := step.EditFile(f, existed, text); edit != nil {
			edit.Secret = want.secret
			changes = append(changes, edit)
		}
	}
	return changes, nil
}

// knownHosts is the edit that makes all nodes known, or nil.
func (s *Admit) knownHosts(ctx context.Context, h host.Host) (*step.FileChange, error) {
	f, existed, err := step.ReadOrEmpty(ctx, h, KnownHosts, 0o644)
	if err != nil {
		return nil, err
	}
	text := f.Data
	for _, p := range s.Peers {
		if text, err = confedit.AddKnownHost(text, p.Name, p.Keys...); err != nil {
			return nil, step.Located(h, KnownHosts, err)
		}
	}
	return step.EditFile(f, existed, text), nil
}

// Verify proves that the user is root by sudo. That it can log in is for Prove, once all nodes are done.
func (s *Admit) Verify(ctx context.Context, h host.Host) error {
	has, err := rights(ctx, h, s.System.User)
	if err == nil && !has {
		err = fault.Failed("sudo", fmt.Sprintf("on %s see what this says: runuser -u %s -- sudo -n true; /etc/sudoers has "+
			"to include /etc/sudoers.d", h.Name(), s.System.User),
			"%s: sudo does not give %s root without a password, although %s says so", h.Name(), s.System.User, SudoersPath)
	}
	return err
}

// Prove logs in from each host to each other one as the system user does, and has sudo give it root.
func Prove(ctx context.Context, s *System, port int, hosts []host.Host) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, from := range hosts {
		group.Go(func() error {
			for _, to := range hosts {
				if to == from {
					continue
				}
				argv := []string{"ssh", "-F", "none", "-p", strconv.Itoa(port), "-i", s.KeyFile, "-l", s.User}
				for _, option := range []string{"BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=yes",
					"UserKnownHostsFile=/dev/null", "GlobalKnownHostsFile=" + KnownHosts, "ConnectTimeout=10"} {
					argv = append(argv, "-o", option)
				}
				argv = append(argv, "--", to.Name(), "sudo", "-n", "true")
				if _, err := from.Run(ctx, nil, argv...); err != nil {
					return fault.Failed("enroll_proof", fmt.Sprintf("remove the cause and run it again; by hand, on %s: sudo %s",
						from.Name(), strings.Join(argv, " ")), "from %s log in to %s as %s: %w", from.Name(), to.Name(), s.User, err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// Kinds are the changes that an enrolment can leave in a journal, beside those of the join.
func Kinds() []func() step.Change {
	return []func() step.Change{func() step.Change { return &Account{} }}
}
