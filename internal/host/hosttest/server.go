package hosttest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

	"github.com/skeema/knownhosts"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"st2ha/internal/host"
	"st2ha/internal/testenv"
)

// Server is an SSH server on loopback whose programs are those of this machine.
type Server struct {
	Config  host.SSHConfig // logs in to it
	HostKey ssh.Signer
	Bin     string // a directory at the front of the programs' PATH; has sudo

	// Set before the first connection.
	NoForwarding bool
	NoAuth       bool   // refuses every key
	Password     string // lets the user in, too; empty: none does

	t        testing.TB
	config   *ssh.ServerConfig
	listener net.Listener
	wg       sync.WaitGroup
	mu       sync.Mutex
	conns    map[net.Conn]bool
}

// NewServer starts an SSH server in this process. Its sudo is a script that
// runs what it is given. The server ends with the test, which fails if a
// program it started is still running then.
func NewServer(t testing.TB) *Server {
	t.Helper()
	testenv.NeedsPrograms(t, "/usr/lib/openssh/sftp-server")
	dir := t.TempDir()
	_, hostKey := NewKey(t, filepath.Join(dir, "host_key"))
	keyFile := filepath.Join(dir, "id_ed25519")
	_, userKey := NewKey(t, keyFile)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{HostKey: hostKey, Bin: filepath.Join(dir, "bin"), t: t, listener: listener, conns: map[net.Conn]bool{}}
	s.Config = host.SSHConfig{
		Addr: "127.0.0.1", Port: listener.Addr().(*net.TCPAddr).Port, User: "stanley", KeyFile: keyFile,
		KnownHosts: []string{filepath.Join(dir, "known_hosts")}, ConnectTimeout: 10 * time.Second,
	}
	WriteKnownHosts(t, s.Config, hostKey.PublicKey())
	if err := os.Mkdir(s.Bin, 0o755); err != nil {
		t.Fatal(err)
	}
	s.Script("sudo", `[ "$1" = -n ] && [ "$2" = -- ] || { echo "sudo: $*: not as expected" >&2; exit 99; }
shift 2
exec "$@"`)
	config := &ssh.ServerConfig{
		PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
			if s.NoAuth || string(key.Marshal()) != string(userKey.PublicKey().Marshal()) {
				return nil, errors.New("not this key")
			}
			return nil, nil
		},
		PasswordCallback: func(_ ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			if s.Password == "" || string(password) != s.Password {
				return nil, errors.New("not this password")
			}
			return nil, nil
		},
	}
	config.AddHostKey(hostKey)
	s.config = config
	s.wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[conn] = true
			s.mu.Unlock()
			s.wg.Go(func() {
				s.mu.Lock()
				config := *config
				s.mu.Unlock()
				s.serve(conn, &config)
				s.mu.Lock()
				delete(s.conns, conn)
				s.mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		s.Cut()
		s.wg.Wait()
	})
	return s
}

// Script puts a shell script into the front of the programs' PATH.
func (s *Server) Script(name, body string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.Bin, name), []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// SudoAsks has sudo ask for a password, as often as not: that a rule without one may come or go meanwhile is shown by a
// program that is run without.
func (s *Server) SudoAsks(password string) {
	s.t.Helper()
	s.Script("sudo", `[ "$1" != -n ] || { echo "sudo: a password is required" >&2; exit 1; }
[ "$*" != "${*#-k -S -p  -- }" ] || { echo "sudo: $*: not as expected" >&2; exit 99; }
shift 5
if [ $(( $$ % 2 )) = 0 ] || [ "$1" = true ]; then
	IFS= read -r line || { echo "sudo: no password was provided" >&2; exit 1; }
	[ "$line" = '`+password+`' ] || { echo "Sorry, try again.
sudo: no password was provided
sudo: 1 incorrect password attempt" >&2; exit 1; }
fi
exec "$@"`)
}

// AddHostKey offers one more key, before the first connection.
func (s *Server) AddHostKey(key ssh.Signer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config.AddHostKey(key)
}

// Cut ends all connections as a broken network does.
func (s *Server) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// NewKey writes an unencrypted private key.
func NewKey(t testing.TB, file string) (ed25519.PrivateKey, ssh.Signer) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, signer
}

// WriteKnownHosts makes the host of cfg known by key alone.
func WriteKnownHosts(t testing.TB, cfg host.SSHConfig, key ssh.PublicKey) {
	t.Helper()
	line := knownhosts.Line([]string{net.JoinHostPort(cfg.Addr, strconv.Itoa(cfg.Port))}, key)
	if err := os.WriteFile(cfg.KnownHosts[0], []byte(line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) serve(tcp net.Conn, config *ssh.ServerConfig) {
	defer tcp.Close()
	conn, chans, reqs, err := ssh.NewServerConn(tcp, config)
	if err != nil {
		return
	}
	defer conn.Close()
	s.wg.Go(func() { ssh.DiscardRequests(reqs) })
	for nc := range chans {
		switch nc.ChannelType() {
		case "session":
			s.wg.Go(func() { s.session(nc) })
		case "direct-tcpip":
			s.wg.Go(func() { s.forward(nc) })
		default:
			nc.Reject(ssh.UnknownChannelType, "unknown channel type")
		}
	}
}

func (s *Server) session(nc ssh.NewChannel) {
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	var m struct{ Command string }
	for r := range reqs {
		ok := r.Type == "exec" && ssh.Unmarshal(r.Payload, &m) == nil
		r.Reply(ok, nil)
		if ok {
			break
		}
	}
	s.wg.Go(func() {
		ssh.DiscardRequests(reqs) // ends with the channel
	})
	defer ch.Close()
	cmd := exec.Command("/bin/sh", "-c", m.Command)
	cmd.Env = append(os.Environ(), "PATH="+s.Bin+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return
	}
	// As sshd does, the status is sent when the program ends, and the channel
	// closed when nobody has its output open any more.
	outR, outW, err := os.Pipe()
	if err != nil {
		return
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return
	}
	cmd.Stdout, cmd.Stderr = outW, errW
	err = cmd.Start()
	outW.Close()
	errW.Close()
	defer outR.Close()
	defer errR.Close()
	if err != nil {
		s.t.Errorf("ssh server: start %q: %v", m.Command, err)
		return
	}
	s.wg.Go(func() {
		io.Copy(stdin, ch)
		stdin.Close()
	})
	var copies sync.WaitGroup
	copies.Go(func() {
		io.Copy(ch, outR)
		outR.Close() // SIGPIPE for whoever goes on writing
	})
	copies.Go(func() {
		io.Copy(ch.Stderr(), errR)
		errR.Close()
	})
	killed := time.AfterFunc(30*time.Second, func() {
		s.t.Errorf("ssh server: still running after 30 s: %q", m.Command)
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	})
	cmd.Wait()
	killed.Stop()
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		name := map[syscall.Signal]string{syscall.SIGKILL: "KILL", syscall.SIGTERM: "TERM",
			syscall.SIGPIPE: "PIPE"}[ws.Signal()]
		ch.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Signal    string
			Core      bool
			Err, Lang string
		}{Signal: name}))
	} else {
		ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(ws.ExitStatus())}))
	}
	copies.Wait()
	ch.CloseWrite()
}

func (s *Server) forward(nc ssh.NewChannel) {
	var m struct {
		Host       string
		Port       uint32
		OriginHost string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(nc.ExtraData(), &m); err != nil {
		nc.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	if s.NoForwarding {
		nc.Reject(ssh.Prohibited, "open failed")
		return
	}
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(m.Host, fmt.Sprint(m.Port)), 5*time.Second)
	if err != nil {
		words := err.Error()
		if errors.Is(err, syscall.ECONNREFUSED) {
			words = "Connection refused" // strerror(3), as sshd says it
		}
		nc.Reject(ssh.ConnectionFailed, words)
		return
	}
	defer conn.Close()
	ch, reqs, err := nc.Accept()
	if err != nil {
		return
	}
	s.wg.Go(func() { ssh.DiscardRequests(reqs) })
	var sent sync.WaitGroup
	sent.Go(func() {
		io.Copy(conn, ch)
		conn.(*net.TCPConn).CloseWrite()
	})
	io.Copy(ch, conn)
	ch.CloseWrite()
	sent.Wait()
	ch.Close()
}

// separation has the directory without which sshd takes no connection, and
// which its unit makes. Several tests, of several processes, may need it at
// once: each holds a lock on it, and the last one removes what they made.
func separation(t testing.TB) {
	t.Helper()
	const dir, ours = "/run/sshd", 0o711 // the unit's has 0755
	for {
		if err := os.Mkdir(dir, ours); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		held, err := os.Open(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed by the last one but this
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(held.Fd()), unix.LOCK_SH); err != nil {
			t.Fatal(err)
		}
		info, err := held.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if now, err := os.Stat(dir); err != nil || !os.SameFile(info, now) {
			held.Close()
			continue
		}
		t.Cleanup(func() {
			defer held.Close()
			if info.Mode().Perm() == ours && unix.Flock(int(held.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				os.Remove(dir)
			}
		})
		return
	}
}

// NewSSHD starts the machine's own sshd on loopback, for root and with keys of
// its own, and returns how to log in to it. It needs root and openssh-server;
// the test is skipped where they are missing.
func NewSSHD(t testing.TB) host.SSHConfig {
	t.Helper()
	const sshd = "/usr/sbin/sshd"
	testenv.NeedsRoot(t)
	testenv.NeedsPrograms(t, sshd)
	dir := t.TempDir()
	separation(t)
	hostFile, keyFile := filepath.Join(dir, "host_key"), filepath.Join(dir, "id_ed25519")
	_, hostKey := NewKey(t, hostFile)
	_, userKey := NewKey(t, keyFile)
	authorized := filepath.Join(dir, "authorized_keys")
	if err := os.WriteFile(authorized, ssh.MarshalAuthorizedKey(userKey.PublicKey()), 0o600); err != nil {
		t.Fatal(err)
	}
	// A port is free only until somebody takes it: try again.
	for range 5 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		config := filepath.Join(dir, "sshd_config")
		text := fmt.Sprintf("ListenAddress 127.0.0.1:%d\nHostKey %s\nAuthorizedKeysFile %s\n"+
			"PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\n"+
			"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\nSetEnv HOME=%s\n",
			port, hostFile, authorized, dir) // root's own .bashrc stays out of it
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		log := filepath.Join(dir, "log")
		cmd := exec.Command(sshd, "-D", "-E", log, "-f", config)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			cmd.Wait()
			close(ended)
		}()
		cfg := host.SSHConfig{
			Addr: "127.0.0.1", Port: port, User: "root", KeyFile: keyFile,
			KnownHosts: []string{filepath.Join(dir, "known_hosts")}, ConnectTimeout: 10 * time.Second,
		}
		WriteKnownHosts(t, cfg, hostKey.PublicKey())
		for range 100 {
			if c, err := net.Dial("tcp", net.JoinHostPort(cfg.Addr, strconv.Itoa(port))); err == nil {
				c.Close()
				t.Cleanup(func() {
					cmd.Process.Kill()
					<-ended
				})
				return cfg
			}
			select {
			case <-ended:
			case <-time.After(20 * time.Millisecond):
				continue
			}
			break
		}
		cmd.Process.Kill()
		<-ended
		said, _ := os.ReadFile(log)
		t.Logf("sshd: %s", said)
	}
	t.Fatal("sshd does not come up")
	return host.SSHConfig{}
}

// Goroutines counts those that a host's connection consists of.
func Goroutines() int {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	n := 0
	for _, g := range strings.Split(string(buf), "\n\n") {
		for _, part := range []string{"st2ha/internal/host.", "golang.org/x/crypto/ssh.", "github.com/pkg/sftp."} {
			// The frames; not where the goroutine was made.
			frames, _, _ := strings.Cut(g, "created by")
			if strings.Contains(frames, part) {
				n++
				break
			}
		}
	}
	return n
}
