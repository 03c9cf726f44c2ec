package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	xknownhosts "golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/sys/unix"

	"st2ha/internal/fault"
)

// SSHConfig says how to reach a host. The zero value of a field is
// StackStorm's default.
type SSHConfig struct {
	Addr           string        // IP address or host name, without a port
	Port           int           // 22
	User           string        // stanley
	KeyFile        string        // /home/stanley/.ssh/stanley_rsa
	KnownHosts     []string      // that of stanley and /etc/ssh/ssh_known_hosts; missing ones are skipped
	ConnectTimeout time.Duration // 10 s, until the host is ready for use

	// A third of the silence that ends a connection; 10 s, for a small node that restarts
	// StackStorm's services was silent for 15 s (measured). Shorter in tests.
	keepalive time.Duration
}

func (c SSHConfig) withDefaults() SSHConfig {
	if c.Port == 0 {
		c.Port = 22
	}
	if c.User == "" {
		c.User = "stanley"
	}
	if c.KeyFile == "" {
		c.KeyFile = "/home/stanley/.ssh/stanley_rsa"
	}
	if len(c.KnownHosts) == 0 {
		c.KnownHosts = []string{"/home/stanley/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts"}
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = 10 * time.Second
	}
	if c.keepalive == 0 {
		c.keepalive = 10 * time.Second
	}
	return c
}

// SSH is another machine, reached by its sshd. Programs run and files are
// written as root, by sudo unless the user is root.
type SSH struct {
	name   string
	user   string
	client *ssh.Client
	tcp    net.Conn
	slots  chan struct{} // sshd takes ten sessions a connection (MaxSessions); files, locks and kills need some
	gone   chan struct{} // closed when the connection is
	wg     sync.WaitGroup

	starting sync.Mutex // one sftp session is started at a time

	mu     sync.Mutex
	cause  error // why the connection ended
	closed bool
	sftp   *files

	sudo *sudo // where sudo asks for a password
}

// DialSSH connects, checks the host's key and that sudo gives root. Its errors
// are *fault.Error with what to run.
func DialSSH(ctx context.Context, cfg SSHConfig) (*SSH, error) {
	cfg = cfg.withDefaults()
	signer, err := readKey(cfg.KeyFile)
	if err != nil {
		return nil, err
	}
	keys, err := readKnownHosts(cfg.KnownHosts)
	if err != nil {
		return nil, err
	}
	addr := net.JoinHostPort(cfg.Addr, strconv.Itoa(cfg.Port))
	dial, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout)
	defer cancel()
	s, err := handshake(dial, cfg, &ssh.ClientConfig{
		User:              cfg.User,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyAlgorithms: keys.HostKeyAlgorithms(addr),
		HostKeyCallback: func(host string, remote net.Addr, key ssh.PublicKey) error {
			return hostKeyError(cfg, key, keys.HostKeyCallback()(host, remote, key))
		},
	})
	var refused *fault.Error
	switch {
	case err == nil:
		if err := s.ready(dial, cfg); err != nil {
			return nil, err
		}
		return s, nil
	case errors.As(err, &refused):
		return nil, err
	case strings.Contains(err.Error(), "unable to authenticate"):
		return nil, fault.Preflight("ssh_auth",
			fmt.Sprintf("on %s append the output of ssh-keygen -y -f %s to %s's ~/.ssh/authorized_keys (mode 0600)",
				cfg.Addr, cfg.KeyFile, cfg.User),
			"log in to %s as %s with %s: %w", cfg.Addr, cfg.User, cfg.KeyFile, err)
	case strings.Contains(err.Error(), "no common algorithm for host key"):
		return nil, fault.Preflight("host_key_changed", keyscan(cfg, "its fingerprint"),
			"%s has no host key of a type that %s has for it: %w", cfg.Addr, strings.Join(cfg.KnownHosts, " or "), err)
	}
	return nil, unreachable(cfg, err)
}

// handshake connects and logs in. What HostKeyCallback says is the error as it is; the library hides it.
func handshake(ctx context.Context, cfg SSHConfig, client *ssh.ClientConfig) (*SSH, error) {
	addr := net.JoinHostPort(cfg.Addr, strconv.Itoa(cfg.Port))
	tcp, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, unreachable(cfg, err)
	}
	tcp = prompt{tcp.(*net.TCPConn)}
	stop := context.AfterFunc(ctx, func() { tcp.Close() })
	var refused error // of the host's key
	check := client.HostKeyCallback
	client.HostKeyCallback = func(host string, remote net.Addr, key ssh.PublicKey) error {
		refused = check(host, remote, key)
		return refused
	}
	conn, chans, reqs, err := ssh.NewClientConn(tcp, addr, client)
	inTime := stop()
	switch {
	case refused != nil:
		return nil, refused
	case err != nil && ctx.Err() != nil, err == nil && !inTime:
		tcp.Close()
		return nil, unreachable(cfg, fmt.Errorf("ssh handshake: %w", ctx.Err()))
	case err != nil:
		return nil, err
	}
	s := &SSH{
		name: cfg.Addr, user: client.User, tcp: tcp,
		client: ssh.NewClient(conn, chans, reqs),
		slots:  make(chan struct{}, 6),
		gone:   make(chan struct{}),
	}
	s.wg.Go(func() {
		err := s.client.Wait()
		s.setCause(err)
		close(s.gone)
	})
	s.wg.Go(func() { s.keepAlive(cfg.keepalive) })
	return s, nil
}

// ready starts what gives files as root, which nearly every use needs: that
// finds a missing sudo once and early. With an error the connection is closed.
func (s *SSH) ready(ctx context.Context, cfg SSHConfig) error {
	_, err := s.files(ctx)
	if err == nil {
		return nil
	}
	s.Close()
	var f *fault.Error
	if errors.As(err, &f) {
		return f
	}
	return unreachable(cfg, err)
}

// prompt acknowledges what it has read at once. sshd sends small packets
// without TCP_NODELAY until the first program runs, so each would wait for the
// delayed acknowledgement of the one before: 40 ms of every connection.
type prompt struct{ *net.TCPConn }

func (p prompt) Read(b []byte) (int, error) {
	n, err := p.TCPConn.Read(b)
	if raw, e := p.SyscallConn(); e == nil { // not for good, tcp(7) says
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) })
	}
	return n, err
}

func unreachable(cfg SSHConfig, err error) error {
	return fault.Preflight("unreachable",
		fmt.Sprintf("try: ssh -p %d -i %s %s@%s true; check the address, that sshd runs there and that no firewall "+
			"is between", cfg.Port, cfg.KeyFile, cfg.User, cfg.Addr),
		"connect to %s port %d by SSH: %w", cfg.Addr, cfg.Port, err)
}

func readKey(file string) (ssh.Signer, error) {
	pem, err := readSmall(file, maxKey)
	if err != nil {
		hint := "name the system user's private key (ssh_key); StackStorm's is /home/stanley/.ssh/stanley_rsa"
		if errors.Is(err, fs.ErrPermission) {
			hint = "run as root: sudo, or the action's sudo: true"
		}
		return nil, fault.Preflight("ssh_key", hint, "read SSH key %s: %w", file, bare(err))
	}
	signer, err := ssh.ParsePrivateKey(pem)
	var locked *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &locked):
		return nil, fault.Preflight("ssh_key",
			fmt.Sprintf("use a key without a passphrase, or remove the passphrase: ssh-keygen -p -N '' -f %s", file),
			"SSH key %s is protected by a passphrase", file)
	case err != nil:
		return nil, fault.Preflight("ssh_key", fmt.Sprintf("see what the file is: ssh-keygen -l -f %s", file),
			"SSH key %s: %w", file, err)
	}
	return signer, nil
}

const (
	maxKey        = 1 << 20  // bytes; OpenSSH's own limit for a private key (authfile.c, MAX_KEY_FILE_SIZE)
	maxKnownHosts = 16 << 20 // bytes of the lines of some 100,000 hosts
)

// readSmall reads a regular file. A device may never end, and a pipe may have
// nobody to write to it.
func readSmall(file string, most int64) ([]byte, error) {
	fd, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer fd.Close()
	if fi, err := fd.Stat(); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, errNotRegular
	}
	data, err := io.ReadAll(io.LimitReader(fd, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("larger than %d MiB", most>>20)
	}
	return data, err
}

func readKnownHosts(names []string) (*knownhosts.HostKeyDB, error) {
	var there []string
	for _, name := range names {
		if _, err := readSmall(name, maxKnownHosts); err == nil {
			there = append(there, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fault.Preflight("host_key_unknown", "make the file readable", "read %s: %w", name, bare(err))
		}
	}
	keys, err := knownhosts.NewDB(there...)
	if err != nil {
		return nil, fault.Preflight("host_key_unknown", "correct or remove the line", "read known hosts: %w", bare(err))
	}
	return keys, nil
}

// keyscan is how to make a host known.
func keyscan(cfg SSHConfig, fingerprint string) string {
	port := ""
	if cfg.Port != 22 {
		port = fmt.Sprintf("-p %d ", cfg.Port)
	}
	return fmt.Sprintf("compare %s with ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub run on the host itself, then: "+
		"ssh-keyscan %s-H %s >> %s", fingerprint, port, cfg.Addr, cfg.KnownHosts[0])
}

func hostKeyError(cfg SSHConfig, key ssh.PublicKey, err error) error {
	if err == nil {
		return nil
	}
	print := ssh.FingerprintSHA256(key)
	offered := fmt.Sprintf("%s (%s)", print, key.Type())
	var revoked *xknownhosts.RevokedError
	var known *xknownhosts.KeyError
	switch {
	case errors.As(err, &revoked):
		return fault.Preflight("host_key_changed", "give the host a new key",
			"%s offers the host key %s, which %s line %d revokes", cfg.Addr, offered,
			revoked.Revoked.Filename, revoked.Revoked.Line)
	case errors.As(err, &known) && len(known.Want) > 0:
		want := known.Want[0]
		return fault.Preflight("host_key_changed",
			fmt.Sprintf("only if the host was installed anew: ssh-keygen -f %s -R %s; %s", want.Filename,
				quote(knownhosts.Normalize(net.JoinHostPort(cfg.Addr, strconv.Itoa(cfg.Port)))), keyscan(cfg, print)),
			"%s offers the host key %s, but %s line %d has %s: another machine may answer in its place", cfg.Addr,
			offered, want.Filename, want.Line, ssh.FingerprintSHA256(want.Key))
	case errors.As(err, &known):
		return fault.Preflight("host_key_unknown", keyscan(cfg, print), "%s offers the host key %s, which is not in %s",
			cfg.Addr, offered, strings.Join(cfg.KnownHosts, " or "))
	}
	return fault.Preflight("host_key_unknown", keyscan(cfg, print), "host key %s of %s: %w", offered, cfg.Addr, err)
}

// Name is the address the host was asked for by.
func (s *SSH) Name() string { return s.name }

// IsLocal is false.
func (s *SSH) IsLocal() bool { return false }

// Close ends the connection and everything that waits on it.
func (s *SSH) Close() error {
	s.mu.Lock()
	s.closed = true
	if s.cause == nil {
		s.cause = net.ErrClosed
	}
	s.mu.Unlock()
	s.tcp.Close() // not through the mux, which can wait for a peer that is dead
	s.client.Close()
	s.wg.Wait()
	return nil
}

// begin counts a goroutine that Close has to wait for.
func (s *SSH) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.wg.Add(1)
	return nil
}

// background runs what nobody waits for but Close.
func (s *SSH) background(fn func()) {
	if s.begin() == nil {
		go func() {
			defer s.wg.Done()
			fn()
		}()
	}
}

func (s *SSH) setCause(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cause == nil {
		s.cause = err
	}
}

// ErrDisconnected is a connection to the host that ended while it was in use:
// nothing is known of what was asked over it.
var ErrDisconnected = errors.New("the SSH connection ended")

// errEnded is what the end of the connection looks like to one program on it.
var errEnded = errors.New("the SSH session ended before the program did")

// lost puts the reason for the connection's end in place of what its end
// looked like to one call.
func (s *SSH) lost(err error) error {
	if errors.Is(err, errEnded) || errors.Is(err, errServerEnded) || errors.Is(err, io.EOF) {
		// A call may hear of it a moment before the connection does.
		t := time.NewTimer(grace / 10)
		defer t.Stop()
		select {
		case <-s.gone:
		case <-t.C:
		}
	}
	select {
	case <-s.gone:
		s.mu.Lock()
		defer s.mu.Unlock()
		return fmt.Errorf("%w: %w", ErrDisconnected, s.cause)
	default:
		return err
	}
}

// keepAlive ends the connection when the peer has not answered three times.
func (s *SSH) keepAlive(every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	var pending chan struct{}
	missed := 0
	for {
		select {
		case <-s.gone:
			return
		case <-pending:
			pending, missed = nil, 0
		case <-t.C:
			if pending == nil {
				p := make(chan struct{})
				pending = p
				s.wg.Go(func() {
					s.client.SendRequest("keepalive@openssh.com", true, nil)
					close(p)
				})
				continue
			}
			if missed++; missed >= 3 {
				s.setCause(fmt.Errorf("no answer for %v", time.Duration(missed)*every))
				s.tcp.Close()
				return
			}
		}
	}
}

// session is one program on the far side.
type session struct {
	ssh.Channel
	ended  chan struct{} // closed when the status is known, or never will be
	status int           // -1 when the session ended without one
}

// start runs a command line in the user's login shell. When ctx ends before
// sshd has answered, late is called if the program starts all the same.
func (s *SSH) start(ctx context.Context, line string, late func()) (*session, error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	type result struct {
		ses *session
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer s.wg.Done()
		ses, err := s.open(ctx, line)
		done <- result{ses, err}
	}()
	select {
	case r := <-done:
		return r.ses, s.lost(r.err)
	case <-ctx.Done():
	}
	// A program that runs can be killed: better know whether it does.
	t := time.NewTimer(grace / 2)
	defer t.Stop()
	select {
	case r := <-done:
		return r.ses, s.lost(r.err)
	case <-t.C:
	}
	s.background(func() {
		if r := <-done; r.err == nil {
			late()
			r.ses.Channel.Close()
		}
	})
	return nil, ctx.Err()
}

// channel opens a session. sshd counts one that has ended for a moment more,
// so being at its limit (MaxSessions) is a reason to try again.
func (s *SSH) channel(ctx context.Context) (ssh.Channel, <-chan *ssh.Request, error) {
	for wait := 5 * time.Millisecond; ; wait *= 2 {
		ch, reqs, err := s.client.OpenChannel("session", nil)
		var open *ssh.OpenChannelError
		if err == nil || !errors.As(err, &open) || wait > 2*time.Second {
			return ch, reqs, err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-s.gone:
		case <-ctx.Done():
			t.Stop()
			return nil, nil, ctx.Err()
		}
		t.Stop()
	}
}

func (s *SSH) open(ctx context.Context, line string) (*session, error) {
	ch, reqs, err := s.channel(ctx)
	if err != nil {
		return nil, fmt.Errorf("open an SSH session: %w", err)
	}
	ses := &session{Channel: ch, ended: make(chan struct{}), status: -1}
	if err := s.begin(); err != nil {
		ch.Close()
		return nil, err
	}
	go func() {
		defer s.wg.Done()
		known := false
		for r := range reqs {
			if code, ok := exitCode(r); ok && !known {
				known, ses.status = true, code
				close(ses.ended)
			}
			if r.WantReply {
				r.Reply(false, nil)
			}
		}
		if !known {
			close(ses.ended)
		}
	}()
	ok, err := ch.SendRequest("exec", true, ssh.Marshal(struct{ Command string }{line}))
	if err == nil && !ok {
		err = errors.New("sshd refuses to run commands")
	}
	if err != nil {
		ch.Close()
		return nil, err
	}
	if s.sudo != nil {
		if _, err := ch.Write(s.sudo.preface()); err != nil {
			ch.Close()
			return nil, err
		}
	}
	return ses, nil
}

// exitCode reads how a program ended, a signal as shells do.
func exitCode(r *ssh.Request) (int, bool) {
	switch r.Type {
	case "exit-status":
		if len(r.Payload) >= 4 {
			return int(binary.BigEndian.Uint32(r.Payload)), true
		}
	case "exit-signal":
		var m struct {
			Signal string
			Core   bool
			Error  string
			Lang   string
		}
		if ssh.Unmarshal(r.Payload, &m) == nil {
			return 128 + map[string]int{"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "ABRT": 6, "FPE": 8, "KILL": 9,
				"USR1": 10, "SEGV": 11, "USR2": 12, "PIPE": 13, "ALRM": 14, "TERM": 15}[m.Signal], true
		}
	}
	return 0, false
}

// gate passes bytes on to a writer until it is closed, so that its owner can read that while others still copy to it.
type gate struct {
	mu   sync.Mutex
	w    io.Writer
	shut bool
}

func (g *gate) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return 0, io.ErrClosedPipe
	}
	return g.w.Write(p)
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = true
}

// exec runs a command line to its end or to that of ctx.
func (s *SSH) exec(ctx context.Context, line string, stdin []byte, stdout, stderr io.Writer, late func()) (int, error) {
	ses, err := s.start(ctx, line, late)
	if err != nil {
		return 0, err
	}
	defer ses.Channel.Close()
	out, errs := &gate{w: stdout}, &gate{w: stderr}
	defer out.close()
	defer errs.close()
	if err := s.begin(); err != nil {
		return 0, err
	}
	copied := make(chan struct{})
	go func() {
		defer s.wg.Done()
		var both sync.WaitGroup
		both.Go(func() { io.Copy(out, ses.Channel) })
		both.Go(func() { io.Copy(errs, ses.Channel.Stderr()) })
		both.Wait()
		close(copied)
	}()
	if err := s.begin(); err != nil {
		return 0, err
	}
	go func() {
		defer s.wg.Done()
		// A program may end without reading all of it.
		ses.Channel.Write(stdin)
		ses.Channel.CloseWrite()
	}()
	select {
	case <-ses.ended:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if ses.status < 0 {
		return 0, s.lost(errEnded)
	}
	// A child process that a program leaves behind may keep its output open for ever.
	t := time.NewTimer(grace / 2)
	defer t.Stop()
	select {
	case <-copied:
	case <-t.C:
	case <-ctx.Done():
	}
	return ses.status, nil
}

// asRoot is the beginning of a command line whose program gets root's rights.
// sudo's own messages are wanted in English.
func (s *SSH) asRoot() string {
	switch {
	case s.user == "root":
		return "cd / && exec "
	case s.sudo != nil:
		return s.sudo.asRoot()
	}
	return "cd / && exec env LC_ALL=C sudo -n -- "
}

// Run runs a program under sudo. When ctx ends it is killed, with all that
// inherited its environment.
func (s *SSH) Run(ctx context.Context, stdin []byte, argv ...string) ([]byte, error) {
	if err := checkArgv(argv); err != nil {
		return nil, fmt.Errorf("on %s: %w", s.name, err)
	}
	doing := fmt.Sprintf("run %s on %s", program(argv), s.name)
	if strings.Contains(argv[0], "=") { // env would take it for a variable
		return nil, fmt.Errorf("%s: a program's name has no =", doing)
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: %w", doing, ctx.Err())
	}
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	stdout := &headBuffer{limit: maxStdout, over: cancel}
	stderr := &endsBuffer{}
	mark := random()
	line := s.asRoot() + "env LC_ALL=C PATH=" + searchPath + " " + markName + "=" + mark + " " + quoteAll(argv)
	code, err := s.exec(run, line, stdin, stdout, stderr, func() { s.kill(mark) })
	if run.Err() != nil && err != nil {
		s.kill(mark)
	}
	said := stderr.String()
	switch {
	case stdout.full:
		return nil, fmt.Errorf("%s: it printed more than %d MiB and was stopped", doing, maxStdout>>20)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", doing, err)
	case code == 0:
		return stdout.Bytes(), nil
	case s.user != "root" && sudoRefused(code, said):
		return nil, s.sudoError(said)
	case code == 127 && strings.HasPrefix(said, "env: "):
		return nil, fmt.Errorf("%s: %s: %w", doing, argv[0], exec.ErrNotFound)
	case code == 126 && strings.HasPrefix(said, "env: "):
		return nil, fmt.Errorf("%s: %s: %w", doing, argv[0], fs.ErrPermission)
	}
	return stdout.Bytes(), fmt.Errorf("on %s: %w", s.name, &ExitError{Program: program(argv), Code: code, Stderr: said})
}

// markName is the variable by which the processes of one Run are found again.
const markName = "ST2HA_RUN"

// killScript kills what has the mark in its environment, or, not being so far
// yet, in its arguments, until nothing has. sshd may still be about to start
// it, so the first look is not the last. The mark comes by stdin: its own
// processes are not to be found.
const killScript = `read -r mark; tries=0; none=2
while [ $tries -lt 20 ]; do
	found=$(printf '%s\n' "$mark" | grep -lszF -f - /proc/[0-9]*/environ /proc/[0-9]*/cmdline)
	if [ -n "$found" ]; then none=0; elif [ $none = 0 ]; then exit 0; else none=$((none-1)); fi
	for f in $found; do f=${f#/proc/}; kill -KILL "${f%/*}" 2>/dev/null; done
	tries=$((tries+1)); sleep 0.05
done`

// kill ends a Run's processes: sshd does not when the session is closed, and
// its signals do not reach what sudo started.
func (s *SSH) kill(mark string) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	s.exec(ctx, s.asRoot()+quoteAll([]string{"sh", "-c", killScript}), []byte(mark+"\n"), io.Discard,
		io.Discard, func() {})
}

// sudoRefused distinguishes sudo's refusal from a program that failed.
func sudoRefused(code int, stderr string) bool {
	switch code {
	case 1:
		for _, words := range []string{
			"sudo: a password is required", "sudo: a terminal is required", "sudo: no tty present",
			"sudo: sorry, you must have a tty", "is not in the sudoers file", "is not allowed to execute",
			"is not allowed to run sudo", "may not run sudo", "sudo: no valid sudoers", "sudo: parse error",
			"sudo: The \"no new privileges\" flag", "sudo: effective uid is not 0", "sudo: /etc/sudo",
			"sudo: account validation failure", "sudo: PAM ", "sudo: unable to open /etc/sudoers",
			"incorrect password attempt", "sudo: no password was provided",
			"sudo: /usr/bin/sudo must be owned by uid 0",
		} {
			if strings.Contains(stderr, words) {
				return true
			}
		}
	case 127:
		return strings.Contains(stderr, "sudo: No such file") || strings.Contains(stderr, "'sudo'") ||
			strings.Contains(stderr, "‘sudo’")
	}
	return false
}

func (s *SSH) sudoError(stderr string) error {
	said, _, _ := strings.Cut(strings.TrimSpace(stderr), "\n")
	hint := fmt.Sprintf("as root on %s write to /etc/sudoers.d/st2 (mode 0440), as StackStorm's installer does: %s "+
		"ALL=(ALL) NOPASSWD: SETENV: ALL", s.name, s.user)
	if strings.Contains(stderr, "tty") {
		hint += fmt.Sprintf(" and: Defaults:%s !requiretty", s.user)
	}
	return fault.Preflight("sudo", hint, "sudo does not give %s root on %s: %s", s.user, s.name,
		strings.TrimSpace(said))
}

// lockScript runs under flock(1): it notes the holder, says that the lock is
// taken, and ends when it is released, which empties the note, when its input
// does or when nothing came for a while, as after a power cut over there that
// no FIN followed.
const lockScript = `printf '%s\n' "$2" >"$1" && sync -- "$1" && echo held || exit 1
while b=$(timeout 30 head -c 1); [ "$b" = . ]; do :; done
[ "$b" != r ] || : >"$1"`

// Lock holds flock(2) through a program on the far side, which ends with the
// connection, or half a minute after it was cut without a word. If that
// program ends unasked, the connection is closed, and with it all that the
// lock was to protect.
func (s *SSH) Lock(ctx context.Context, name, note string) (func(), error) {
	if err := absolute(name); err != nil {
		return nil, fileError(s.name, "lock", name, err)
	}
	// flock(1) goes by the name, so only root may be able to swap it.
	real, err := there(ctx, s, "lock", name, true, func(_ *files, p farPlace) (string, error) {
		if !p.firm() {
			return "", errors.New("users other than root can write to its directory")
		}
		return p.real, nil
	})
	if err != nil {
		return nil, err
	}
	note = strings.ReplaceAll(note, "\x00", "")
	argv := []string{"sh", "-c", `umask 077; PATH=` + searchPath + `; LC_ALL=C; export PATH LC_ALL
exec flock --exclusive --nonblock --conflict-exit-code 75 "$1" sh -c "$3" sh "$1" "$2"`, "sh", real, note, lockScript}
	ses, err := s.start(ctx, s.asRoot()+quoteAll(argv), func() {})
	if err != nil {
		return nil, fileError(s.name, "lock", name, err)
	}
	if err := s.begin(); err != nil {
		ses.Channel.Close()
		return nil, fileError(s.name, "lock", name, err)
	}
	errs := &endsBuffer{}
	stderr := &gate{w: errs}
	held := make(chan bool, 1)
	drained := make(chan struct{})
	go func() {
		defer s.wg.Done()
		var both sync.WaitGroup
		both.Go(func() { io.Copy(stderr, ses.Channel.Stderr()) })
		buf := make([]byte, len("held\n"))
		n, _ := io.ReadFull(ses.Channel, buf)
		held <- string(buf[:n]) == "held\n"
		io.Copy(io.Discard, ses.Channel)
		both.Wait()
		close(drained)
	}()
	select {
	case ok := <-held:
		if ok {
			return s.holdLock(ses), nil
		}
	case <-ctx.Done():
		ses.Channel.Close()
		return nil, fileError(s.name, "lock", name, ctx.Err())
	}
	// Nobody waits long for a session that has printed something else.
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-ses.ended:
		select {
		case <-drained:
		case <-t.C:
		}
	case <-t.C:
	case <-ctx.Done():
	}
	ses.Channel.Close()
	stderr.close()
	said := errs.String()
	switch {
	case ses.statusNow() == 75:
		return nil, fileError(s.name, "lock", name, &LockedError{Path: name, Holder: s.noteOf(ctx, name)})
	case s.user != "root" && sudoRefused(ses.statusNow(), said):
		return nil, s.sudoError(said)
	case strings.Contains(said, "No such file"):
		return nil, fileError(s.name, "lock", name, fs.ErrNotExist)
	case ses.statusNow() < 0:
		return nil, fileError(s.name, "lock", name, s.lost(errEnded))
	}
	return nil, fileError(s.name, "lock", name, &ExitError{Program: "flock", Code: ses.statusNow(), Stderr: said})
}

// statusNow is the status if the program has ended, -1 otherwise.
func (ses *session) statusNow() int {
	select {
	case <-ses.ended:
		return ses.status
	default:
		return -1
	}
}

// holdLock keeps the lock's program running and returns what ends it.
func (s *SSH) holdLock(ses *session) func() {
	stop := make(chan struct{})
	beat := func() {
		t := time.NewTicker(5 * time.Second)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				ses.Channel.Write([]byte("."))
			case <-stop:
				ses.Channel.Write([]byte("r"))
				ses.Channel.CloseWrite()
				return
			case <-ses.ended:
				// Without the lock nothing may go on: another run may have it.
				// (A session without a status went with its connection.)
				if ses.status >= 0 {
					s.setCause(errors.New("the lock was lost"))
					s.tcp.Close()
				}
				return
			}
		}
	}
	s.background(beat)
	var once sync.Once
	return func() {
		once.Do(func() {
			close(stop)
			t := time.NewTimer(5 * time.Second)
			defer t.Stop()
			select {
			case <-ses.ended: // the far side has ended, and with it the lock
			case <-t.C:
			}
			ses.Channel.Close()
		})
	}
}

func (s *SSH) noteOf(ctx context.Context, name string) string {
	for range 10 {
		f, err := s.ReadFile(ctx, name)
		if err == nil && len(f.Data) > 0 {
			return holder(f.Data[:min(len(f.Data), maxNote)])
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return holder(nil)
}
