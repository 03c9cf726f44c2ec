// Package backendtest runs real backends on loopback for tests: RabbitMQ,
// Redis and the lab's mongod, each with its own ports and files, and a proxy
// to cut them off. The packages' own services are left alone.
package backendtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"st2ha/internal/testenv"
)

// The login of every backend's user.
const (
	User     = "stackstorm"
	Password = "p@ss/w%rd"
)

// startTime is what a backend may take to start, on a busy machine.
const startTime = 60 * time.Second

// Server is a backend's process group.
type Server struct {
	Addr string // host:port
	Dir  string // of its files

	argv   []string
	env    []string
	ready  func() error
	output bytes.Buffer

	mu    sync.Mutex // a watchdog may start what a test has killed
	cmd   *exec.Cmd
	ended chan struct{}
}

// Start starts the server and waits until it answers.
func (s *Server) Start() error {
	s.output.Reset()
	cmd, ended := exec.Command(s.argv[0], s.argv[1:]...), make(chan struct{})
	cmd.Dir, cmd.Env = s.Dir, append(os.Environ(), s.env...)
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	// A group of its own, so that all of it can be signalled; it ends with the test, also with one that panics.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	s.mu.Lock()
	s.cmd, s.ended = cmd, ended
	s.mu.Unlock()
	for end := time.Now().Add(startTime); ; time.Sleep(20 * time.Millisecond) {
		err := s.ready()
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return fmt.Errorf("%s ended: %s", s.argv[0], s.output.String())
		default:
		}
		if time.Now().After(end) {
			s.Kill()
			return fmt.Errorf("%s is not ready after %s: %w: %s", s.argv[0], startTime, err, s.output.String())
		}
	}
}

// Signal goes to all processes of the server.
func (s *Server) Signal(number syscall.Signal) {
	cmd, _ := s.process()
	_ = syscall.Kill(-cmd.Process.Pid, number)
}

// process is the one that was started last, nil if none was, and its end.
func (s *Server) process() (*exec.Cmd, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd, s.ended
}

// Freeze stops the server as a machine without memory would: its sockets
// stay, and the kernel goes on accepting connections.
func (s *Server) Freeze() { s.Signal(syscall.SIGSTOP) }

// Thaw ends a Freeze.
func (s *Server) Thaw() { s.Signal(syscall.SIGCONT) }

// Kill ends the server at once and returns when it is gone. It returns the
// time when the signal was sent.
func (s *Server) Kill() time.Time {
	at := time.Now()
	cmd, ended := s.process()
	if cmd == nil {
		return at
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // by Signal it could be one that was started meanwhile
	<-ended
	return at
}

// freePort is a port that nobody listens on.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func answers(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}

// Broker is a RabbitMQ node with a user that may do everything on "/".
type Broker struct {
	Server
	Secured string // host:port of the listener for TLS, where there is one
	epmd    *exec.Cmd
}

// definitions are users with the password of this package, each with all
// permissions on the vhost of its name; User's is "/".
func definitions(users []string) ([]byte, error) {
	var d struct {
		Users       []map[string]string `json:"users"`
		VHosts      []map[string]string `json:"vhosts"`
		Permissions []map[string]string `json:"permissions"`
	}
	for _, user := range append([]string{User}, users...) {
		vhost := user
		if user == User {
			vhost = "/"
		}
		d.Users = append(d.Users, map[string]string{"name": user, "password": Password, "tags": ""})
		d.VHosts = append(d.VHosts, map[string]string{"name": vhost})
		d.Permissions = append(d.Permissions,
			map[string]string{"user": user, "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*"})
	}
	return json.Marshal(d)
}

// NewBroker starts a node with its files in dir, and users beside User, each
// with a vhost of its name. It takes some seconds.
func NewBroker(t testing.TB, dir string, users ...string) (*Broker, error) {
	t.Helper()
	return newBroker(t, dir, "", "", users)
}

// NewSecuredBroker is NewBroker with a listener for TLS beside the plain one,
// which asks for a client's certificate, and takes none as well.
func NewSecuredBroker(t testing.TB, dir string, c *Certificates) (*Broker, error) {
	t.Helper()
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	addr := "127.0.0.1:" + strconv.Itoa(port)
	conf := "listeners.ssl.default = " + addr + "\nssl_options.cacertfile = " + c.CA +
		"\nssl_options.certfile = " + c.Cert + "\nssl_options.keyfile = " + c.Key +
		"\nssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = false\n"
	return newBroker(t, dir, addr, conf, nil)
}

func newBroker(t testing.TB, dir, secured, more string, users []string) (*Broker, error) {
	t.Helper()
	testenv.NeedsPrograms(t, rabbitPrograms+"rabbitmq-server", "epmd")
	defs, err := definitions(users)
	if err != nil {
		return nil, err
	}
	var ports [3]int
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	port, dist, mapper := strconv.Itoa(ports[0]), strconv.Itoa(ports[1]), strconv.Itoa(ports[2])
	conf := "loopback_users = none\nload_definitions = " + dir + "/definitions.json" +
		"\ndisk_free_limit.absolute = 1MB\nvm_memory_high_watermark.relative = 0.8\nlog.console = false\n" + more
	files := map[string]string{
		"rabbitmq.conf": conf, "plugins": "[].", "env.conf": "", "definitions.json": string(defs),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	argv := []string{rabbitPrograms + "rabbitmq-server"}
	b := &Broker{Server: Server{Addr: "127.0.0.1:" + port, Dir: dir, argv: argv}, Secured: secured}
	b.ready = func() error {
		if err := answers(b.Addr); err != nil || secured == "" {
			return err
		}
		conn, err := net.Dial("tcp", secured) // its listener comes after the plain one
		if err != nil {
			return err
		}
		return conn.Close()
	}
	b.env = []string{"HOME=" + dir, "RABBITMQ_NODENAME=st2ha" + port + "@localhost",
		"RABBITMQ_NODE_IP_ADDRESS=127.0.0.1",
		"RABBITMQ_NODE_PORT=" + port, "RABBITMQ_DIST_PORT=" + dist, "RABBITMQ_MNESIA_BASE=" + dir + "/mnesia",
		"RABBITMQ_LOG_BASE=" + dir + "/log", "RABBITMQ_CONF_ENV_FILE=" + dir + "/env.conf",
		"RABBITMQ_CONFIG_FILE=" + dir + "/rabbitmq",
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + dir + "/plugins", "ERL_EPMD_PORT=" + mapper, "ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+sbwt none",
		"RUNNING_UNDER_SYSTEMD=true"} // then the script becomes the node instead of watching over it
	// Started here, or the node would start one that outlives it.
	b.epmd = exec.Command("epmd", "-port", mapper, "-address", "127.0.0.1")
	b.epmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := b.epmd.Start(); err != nil {
		return nil, err
	}
	if err := b.Start(); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// rabbitPrograms are RabbitMQ's own scripts; those in /usr/sbin change user
// and write where the package's service does.
const rabbitPrograms = "/usr/lib/rabbitmq/bin/"

// Ctl runs rabbitmqctl and returns what it prints; secrets go to its standard input.
func (b *Broker) Ctl(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, rabbitPrograms+"rabbitmqctl", append([]string{"--quiet"}, args...)...)
	cmd.Dir, cmd.Env, cmd.Stdin = b.Dir, append(os.Environ(), b.env...), strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("rabbitmqctl %s: %w: %s", args[0], err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// MustCtl is Ctl for what cannot fail.
func (b *Broker) MustCtl(t testing.TB, stdin string, args ...string) string {
	t.Helper()
	out, err := b.Ctl(stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Close ends the node and what was started with it.
func (b *Broker) Close() {
	b.Kill()
	_ = b.epmd.Process.Kill()
	_ = b.epmd.Wait()
}

// NewRedis starts a server with its files in dir; lines go to its configuration.
func NewRedis(t testing.TB, dir string, lines ...string) (*Server, error) {
	t.Helper()
	testenv.NeedsPrograms(t, "redis-server")
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(dir, "redis.conf")
	text := fmt.Sprintf("bind 127.0.0.1\nport %d\ndir %s\nsave \"\"\n%s\n", port, dir, strings.Join(lines, "\n"))
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	s := &Server{Addr: fmt.Sprintf("127.0.0.1:%d", port), Dir: dir, argv: []string{"redis-server", conf}}
	// Redis listens before it has read its files: a reply, and be it a refusal, comes after.
	s.ready = func() error {
		conn, err := net.DialTimeout("tcp", s.Addr, time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		if _, err := conn.Write([]byte("PING\r\n")); err != nil {
			return err
		}
		reply, err := bufio.NewReader(conn).ReadString('\n')
		if err == nil && strings.HasPrefix(reply, "-LOADING") {
			err = errors.New(reply)
		}
		return err
	}
	return s, s.Start()
}

// BuildMongod builds the lab's mongod into dir and returns the program.
func BuildMongod(dir string) (string, error) {
	_, self, _, _ := runtime.Caller(0)
	build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", dir, ".")
	build.Dir = filepath.Join(filepath.Dir(self), "../../test/lab/mongod")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build mongod: %w: %s", err, out)
	}
	return filepath.Join(dir, "mongod"), nil
}

// NewMongod starts a server with its files in dir, with authorization if that
// is asked for: the users must have been made before.
func NewMongod(program, dir string, authorization bool) (*Server, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	state := map[bool]string{true: "enabled", false: "disabled"}[authorization]
	conf := filepath.Join(dir, "mongod.conf")
	text := fmt.Sprintf("net:\n  port: %d\n  bindIp: 127.0.0.1\nstorage:\n  dbPath: %s\nsecurity:\n"+
		"  authorization: %s\n", port, dir, state)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return nil, err
	}
	s := &Server{Addr: fmt.Sprintf("127.0.0.1:%d", port), Dir: dir, argv: []string{program, "--config", conf}}
	s.ready = func() error { return answers(s.Addr) }
	return s, s.Start()
}

// Proxy forwards connections until it is told to hold them: then it keeps
// them open and forwards nothing, as a network that drops all packets.
type Proxy struct {
	Addr string // host:port

	to       string
	listener net.Listener
	mu       sync.Mutex
	held     chan struct{}              // closed when it forwards again; nil while it does
	lost     chan struct{}              // the same, for the connections that are lost
	conns    map[net.Conn]chan struct{} // lost, or nil
	opened   int
	all      sync.WaitGroup
}

// NewProxy forwards to an address.
func NewProxy(to string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{Addr: l.Addr().String(), to: to, listener: l, conns: map[net.Conn]chan struct{}{}}
	p.all.Go(p.accept)
	return p, nil
}

func (p *Proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.conns[conn] = nil
		p.opened++
		p.mu.Unlock()
		p.all.Go(func() { p.serve(conn) })
	}
}

func (p *Proxy) serve(conn net.Conn) {
	defer p.drop(conn)
	p.wait(conn)
	server, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	p.mu.Lock()
	p.conns[server] = nil
	p.mu.Unlock()
	defer p.drop(server)
	var both sync.WaitGroup
	both.Go(func() { defer p.drop(server); p.copy(server, conn) })
	both.Go(func() { defer p.drop(conn); p.copy(conn, server) })
	both.Wait()
}

func (p *Proxy) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.wait(from)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// wait waits until the proxy forwards what comes from a connection.
func (p *Proxy) wait(from net.Conn) {
	p.mu.Lock()
	held, lost := p.held, p.conns[from]
	p.mu.Unlock()
	for _, hold := range []chan struct{}{held, lost} {
		if hold != nil {
			<-hold
		}
	}
}

func (p *Proxy) drop(conn net.Conn) {
	p.mu.Lock()
	delete(p.conns, conn)
	p.mu.Unlock()
	_ = conn.Close()
}

// Hold stops forwarding; Release goes on with what was held.
func (p *Proxy) Hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = make(chan struct{})
	}
}

// Lose stops forwarding on the connections that are open, as a firewall that
// has forgotten them; new ones are forwarded.
func (p *Proxy) Lose() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost == nil {
		p.lost = make(chan struct{})
	}
	for conn := range p.conns {
		p.conns[conn] = p.lost
	}
}

// Release ends a Hold, and what was lost is forwarded.
func (p *Proxy) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, hold := range []*chan struct{}{&p.held, &p.lost} {
		if *hold != nil {
			close(*hold)
			*hold = nil
		}
	}
	for conn := range p.conns {
		p.conns[conn] = nil
	}
}

// Opened is how many connections were made through the proxy so far.
func (p *Proxy) Opened() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opened
}

// Close ends all connections.
func (p *Proxy) Close() {
	_ = p.listener.Close()
	p.mu.Lock()
	for conn := range p.conns {
		_ = conn.Close()
	}
	p.mu.Unlock()
	p.Release()
	p.all.Wait()
}

// Leaks counts what this process has open: goroutines, and descriptors.
func Leaks() (goroutines, descriptors int) {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return runtime.NumGoroutine(), len(open)
}

// NoLeaks remembers what is open, and returns a check that, after some time
// for what is just ending, no more is.
func NoLeaks(t testing.TB) (check func()) {
	goroutines, descriptors := Leaks()
	return func() {
		t.Helper()
		g, d := Leaks()
		end := time.Now().Add(3 * time.Second)
		for ; (g > goroutines || d > descriptors) && time.Now().Before(end); g, d = Leaks() {
			time.Sleep(10 * time.Millisecond)
		}
		if g > goroutines || d > descriptors {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines and %d descriptors, %d and %d before:\n%s", g, d, goroutines, descriptors,
				stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// Shared is what all tests of a package use together, for it takes seconds to
// start or to build: done when the first one asks for it.
type Shared struct {
	Users []string // of the broker, beside User

	mu     sync.Mutex
	dir    string
	broker *Broker
	mongod string
}

// Run runs the tests of a package, and returns the status to exit with.
func (s *Shared) Run(m *testing.M) int {
	defer func() {
		if s.broker != nil {
			s.broker.Close()
		}
		if s.dir != "" {
			_ = os.RemoveAll(s.dir)
		}
	}()
	return m.Run()
}

func (s *Shared) get(t testing.TB, missing func() bool, make func() error) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.dir == "" {
		s.dir, err = os.MkdirTemp("", "st2ha-test-")
	}
	if err == nil && missing() {
		err = make()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Broker returns the broker.
func (s *Shared) Broker(t testing.TB) *Broker {
	t.Helper()
	s.get(t, func() bool { return s.broker == nil },
		func() (err error) { s.broker, err = NewBroker(t, s.dir, s.Users...); return err })
	return s.broker
}

// Mongod returns the program.
func (s *Shared) Mongod(t testing.TB) string {
	t.Helper()
	s.get(t, func() bool { return s.mongod == "" },
		func() (err error) { s.mongod, err = BuildMongod(s.dir); return err })
	return s.mongod
}
