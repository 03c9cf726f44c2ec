package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"

	"golang.org/x/crypto/ssh"

	"st2ha/internal/fault"
)

// Login is a login that people have, for a host that knows no key of ours yet.
// It is held in memory, and nowhere else.
type Login struct {
	User         string
	Password     string // where there is no key
	Key          string // private key as OpenSSH writes it
	SudoPassword string // empty: the user's
	Fingerprint  string // SHA256:…, of one of the host's keys
}

var (
	fingerprint = regexp.MustCompile(`^SHA256:[A-Za-z0-9+/]{43}$`)
	userName    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*[$]?$`) // useradd(8)
)

// CheckUser takes the name of a system's user. name is that of the parameter.
func CheckUser(name, user string) error {
	if !userName.MatchString(user) {
		return fault.Usage("%s %q is not the name of a user", name, user)
	}
	return nil
}

// Check refuses a login that cannot be one, before any host is asked.
func (l Login) Check() error {
	switch {
	case l.User == "":
		return fault.Usage("user is missing: a user of the host who may use sudo, or root")
	case l.Password == "" && l.Key == "":
		return fault.Usage("password or private_key is missing: one of them lets the user in")
	case l.Password != "" && l.Key != "":
		return fault.Usage("password and private_key are both given: give the one that lets the user in; " +
			"what sudo asks for is user_sudo_password")
	case strings.ContainsAny(l.Password+l.SudoPassword, "\r\n\x00"):
		return fault.Usage("a password has a line break: give it as it is typed")
	case l.Fingerprint != "" && !fingerprint.MatchString(l.Fingerprint):
		return fault.Usage("fingerprint must be SHA256: and 43 characters, as ssh-keygen -l prints it, not %q", l.Fingerprint)
	}
	if err := CheckUser("user", l.User); err != nil {
		return err
	}
	_, err := l.signer()
	return err
}

func (l Login) signer() (ssh.Signer, error) {
	if l.Key == "" {
		return nil, nil
	}
	signer, err := ssh.ParsePrivateKey([]byte(strings.TrimSpace(l.Key) + "\n"))
	var locked *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &locked):
		return nil, fault.Usage("private_key is protected by a passphrase: give one that is not, or a password")
	case err != nil: // not the library's words, which may quote the key
		return nil, fault.Usage("private_key is not a private key: give the whole file, its first and last line too")
	}
	return signer, nil
}

func (l Login) auth() ([]ssh.AuthMethod, error) {
	signer, err := l.signer()
	if err != nil {
		return nil, err
	}
	if signer != nil {
		return []ssh.AuthMethod{ssh.PublicKeys(signer)}, nil
	}
	asked := false
	return []ssh.AuthMethod{
		ssh.Password(l.Password),
		// What sshd calls keyboard-interactive is the same password, where PAM asks for one thing only.
		ssh.KeyboardInteractive(func(_, _ string, questions []string, echos []bool) ([]string, error) {
			if len(questions) == 0 {
				return nil, nil
			}
			if asked || len(questions) > 1 || echos[0] {
				return nil, errors.New("it asks for more than a password")
			}
			asked = true
			return []string{l.Password}, nil
		}),
	}, nil
}

// hostKeyAlgorithms are the kinds of host key that sshd has by default, each with how it may sign.
func hostKeyAlgorithms() [][]string {
	return [][]string{
		{ssh.KeyAlgoED25519},
		{ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521},
		{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256},
	}
}

// offered is a key of a host that nobody has proved to be its own.
type offered struct {
	key        ssh.PublicKey
	algorithms []string
}

// errSeen ends a connection that was only to show the host's key.
var errSeen = errors.New("seen")

// look asks a host for its keys, one kind after the other, and logs in nowhere.
func look(ctx context.Context, cfg SSHConfig) ([]offered, error) {
	var all []offered
	for _, algorithms := range hostKeyAlgorithms() {
		var found ssh.PublicKey
		_, err := handshake(ctx, cfg, &ssh.ClientConfig{User: "nobody", HostKeyAlgorithms: algorithms,
			HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
				found = key
				return errSeen
			}})
		switch {
		case errors.Is(err, errSeen):
			all = append(all, offered{found, algorithms})
		case !strings.Contains(err.Error(), "no common algorithm for host key"):
			return nil, unreachable(cfg, err)
		}
	}
	if len(all) == 0 {
		return nil, unreachable(cfg, errors.New("it offers no host key of a usual type: ED25519, ECDSA or RSA"))
	}
	return all, nil
}

// prints are the fingerprints of keys, for people.
func prints(keys []offered) string {
	var list []string
	for _, k := range keys {
		list = append(list, fmt.Sprintf("%s (%s)", ssh.FingerprintSHA256(k.key), k.key.Type()))
	}
	return strings.Join(list, ", ")
}

// DialLogin connects with a login that people have. The host's key has to be the
// one of the fingerprint, else nothing is sent to it; without one the error says
// which keys the host offers. It also returns that key.
func DialLogin(ctx context.Context, cfg SSHConfig, l Login) (*SSH, ssh.PublicKey, error) {
	if err := l.Check(); err != nil {
		return nil, nil, err
	}
	cfg = cfg.withDefaults()
	dial, cancel := context.WithTimeout(ctx, 3*cfg.ConnectTimeout) // several connections
	defer cancel()
	keys, err := look(dial, cfg)
	if err != nil {
		return nil, nil, err
	}
	console := "for f in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $f; done"
	if l.Fingerprint == "" {
		return nil, nil, fault.Preflight("fingerprint",
			fmt.Sprintf("on the console of %s run: %s; if it shows one of these, run the same again with fingerprint=%s",
				cfg.Addr, console, ssh.FingerprintSHA256(keys[0].key)),
			"%s offers these host keys, and nobody has said yet that they are its own: %s", cfg.Addr, prints(keys))
	}
	for _, k := range keys {
		if ssh.FingerprintSHA256(k.key) == l.Fingerprint {
			s, err := l.dial(dial, cfg, k)
			return s, k.key, err
		}
	}
	return nil, nil, fault.Preflight("fingerprint",
		fmt.Sprintf("compare with what this says on the console of %s: %s", cfg.Addr, console),
		"%s offers the host keys %s, none of which is %s: another machine may answer in its place; "+
			"no password was sent", cfg.Addr, prints(keys), l.Fingerprint)
}

func (l Login) dial(ctx context.Context, cfg SSHConfig, k offered) (*SSH, error) {
	auth, err := l.auth()
	if err != nil {
		return nil, err
	}
	s, err := handshake(ctx, cfg, &ssh.ClientConfig{User: l.User, Auth: auth, HostKeyAlgorithms: k.algorithms,
		HostKeyCallback: ssh.FixedHostKey(k.key)})
	var known *fault.Error
	switch {
	case errors.As(err, &known):
		return nil, err
	case err != nil && strings.Contains(err.Error(), "unable to authenticate"):
		what := "password"
		if l.Key != "" {
			what = "private key"
		}
		return nil, fault.Preflight("login",
			fmt.Sprintf("try it: ssh -p %d %s@%s; sshd's settings may allow keys only (private_key), or not this user",
				cfg.Port, l.User, cfg.Addr),
			"%s does not let %s in with this %s", cfg.Addr, l.User, what)
	case err != nil:
		return nil, unreachable(cfg, err)
	}
	if err := l.becomeRoot(ctx, s); err != nil {
		s.Close()
		return nil, err
	}
	if err := s.ready(ctx, cfg); err != nil {
		return nil, err
	}
	return s, nil
}

// becomeRoot finds out whether sudo asks for a password, and proves that the one given is right: sudo takes whatever
// comes next for another try.
func (l Login) becomeRoot(ctx context.Context, s *SSH) error {
	if l.User == "root" {
		return nil
	}
	try := func(options, stdin string) (int, string, error) {
		said := &endsBuffer{}
		code, err := s.exec(ctx, "cd / && exec env LC_ALL=C sudo "+options+" -- true", []byte(stdin), io.Discard, said,
			func() {})
		return code, strings.TrimSpace(said.String()), err
	}
	code, said, err := try("-n", "")
	if err != nil || code == 0 {
		return err
	}
	password := l.SudoPassword
	if password == "" {
		password = l.Password
	}
	hint := "give the password that sudo asks for as user_sudo_password, or use root or another user"
	if password != "" {
		if code, said, err = try("-k -S -p ''", password+"\n"); err != nil {
			return err
		}
		if code == 0 {
			s.sudo = &sudo{password: password, mark: random()}
			return nil
		}
	}
	_, last, several := strings.Cut(said, "\n")
	if several {
		said = strings.TrimSpace(last)
	}
	return fault.Preflight("sudo", hint, "sudo does not give %s root on %s: %s", l.User, s.name,
		strings.ReplaceAll(said, "\n", "; "))
}

// sudo is how a program gets root's rights where sudo asks for a password.
type sudo struct{ password, mark string }

// asRoot is the beginning of a command line. sudo takes the password from the standard input if it asks for one;
// whether it does may change at any time, so the program begins after the mark. -k remembers no password.
func (s *sudo) asRoot() string {
	return "cd / && exec env LC_ALL=C sudo -k -S -p '' -- sh -c " + quote(`while IFS= read -r line
do [ "$line" != `+s.mark+` ] || exec "$@"; done; exit 70`) + " sh "
}

// preface is what each program's standard input begins with.
func (s *sudo) preface() []byte { return []byte(s.password + "\n" + s.mark + "\n") }
