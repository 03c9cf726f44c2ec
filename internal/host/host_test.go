package host_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/host/hosttest"
)

var (
	_ host.Host = (*host.Local)(nil)
	_ host.Host = (*host.SSH)(nil)
)

// connect opens SSH hosts that all have the same server.
func connect(cfg host.SSHConfig) func(t *testing.T) (host.Host, string) {
	return func(t *testing.T) (host.Host, string) {
		s, err := host.DialSSH(t.Context(), cfg)
		require.NoError(t, err)
		return s, t.TempDir()
	}
}

func TestLocal(t *testing.T) {
	hosttest.Run(t, func(t *testing.T) (host.Host, string) {
		return host.NewLocal("localhost"), t.TempDir()
	})
}

func TestLocalAt(t *testing.T) {
	root := t.TempDir()
	hosttest.Run(t, func(t *testing.T) (host.Host, string) {
		dir, err := os.MkdirTemp(root, "")
		require.NoError(t, err)
		return host.NewLocalAt("primary", root), "/" + filepath.Base(dir)
	})
}

func TestSSH(t *testing.T) {
	hosttest.Run(t, connect(hosttest.NewServer(t).Config))
}

func TestSSHD(t *testing.T) {
	hosttest.Run(t, connect(hosttest.NewSSHD(t)))
}

// The lock is one lock, however the host was reached.
func TestLockAcross(t *testing.T) {
	server := hosttest.NewServer(t)
	far, dir := connect(server.Config)(t)
	defer far.Close()
	local := host.NewLocal("localhost")
	hosttest.Exclude(t, local, far, dir+"/lock")
	hosttest.Exclude(t, far, local, dir+"/lock")
	t.Run("one at a time", func(t *testing.T) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		inside, got := 0, 0
		for i := range 8 {
			h := []host.Host{local, far}[i%2]
			wg.Go(func() {
				for range 5 {
					release, err := h.Lock(t.Context(), dir+"/lock", fmt.Sprint("run ", i))
					var locked *host.LockedError
					if errors.As(err, &locked) {
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					inside++
					got++
					if inside != 1 {
						t.Errorf("%d hold the lock", inside)
					}
					mu.Unlock()
					time.Sleep(5 * time.Millisecond)
					mu.Lock()
					inside--
					mu.Unlock()
					release()
				}
			})
		}
		wg.Wait()
		require.NotZero(t, got)
	})
	t.Run("cut", func(t *testing.T) {
		_, err := far.Lock(t.Context(), dir+"/lock", "far")
		require.NoError(t, err)
		_, err = local.Lock(t.Context(), dir+"/lock", "local")
		var locked *host.LockedError
		require.ErrorAs(t, err, &locked)
		server.Cut()
		require.Eventually(t, func() bool {
			release, err := local.Lock(t.Context(), dir+"/lock", "local")
			if err == nil {
				release()
			}
			return err == nil
		}, 3*time.Second, 10*time.Millisecond)
		_, err = far.ReadFile(t.Context(), dir+"/lock")
		require.ErrorContains(t, err, "connection ended")
	})
}

// A run that has lost its lock must not go on.
func TestLockLost(t *testing.T) {
	s, dir := connect(hosttest.NewServer(t).Config)(t)
	defer s.Close()
	release, err := s.Lock(t.Context(), dir+"/lock", "x")
	require.NoError(t, err)
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, p := range procs {
		if b, _ := os.ReadFile(p); strings.Contains(string(b), dir+"/lock") {
			exec.Command("kill", "-KILL", filepath.Base(filepath.Dir(p))).Run()
		}
	}
	require.Eventually(t, func() bool {
		_, err = s.ReadFile(t.Context(), "/etc/hostname")
		return err != nil
	}, 5*time.Second, 20*time.Millisecond)
	require.ErrorContains(t, err, "the lock was lost")
	release()
}

// What a dead process held is free.
func TestLockOfTheDead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	cmd := exec.Command("flock", file, "sleep", "600")
	require.NoError(t, cmd.Start())
	local := host.NewLocal("localhost")
	require.Eventually(t, func() bool {
		release, err := local.Lock(t.Context(), file, "x")
		if err == nil {
			release()
		}
		return err != nil
	}, 3*time.Second, 10*time.Millisecond)
	_, err := local.Lock(t.Context(), file, "x")
	require.ErrorContains(t, err, "somebody who left no note")
	// The child has the lock's descriptor too; find it before its parent goes.
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
	require.NoError(t, err)
	cmd.Process.Kill()
	cmd.Wait()
	for _, pid := range strings.Fields(string(children)) {
		require.NoError(t, exec.Command("kill", "-KILL", pid).Run())
	}
	require.Eventually(t, func() bool {
		release, err := local.Lock(t.Context(), file, "x")
		if err == nil {
			release()
		}
		return err == nil
	}, 3*time.Second, 10*time.Millisecond)
}

func is(t *testing.T, err error, code string, words ...string) *fault.Error {
	t.Helper()
	var e *fault.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, code, e.Code, err.Error())
	require.Equal(t, fault.ExitPreflight, e.Exit)
	require.NotEmpty(t, e.Hint)
	require.NotContains(t, e.Error()+e.Hint, "\n")
	for _, w := range words {
		require.Contains(t, e.Error()+"\n"+e.Hint, w)
	}
	return e
}

func TestDialSSHErrors(t *testing.T) {
	server := hosttest.NewServer(t)
	dir := t.TempDir()
	try := func(change func(*host.SSHConfig)) error {
		cfg := server.Config
		change(&cfg)
		start := time.Now()
		s, err := host.DialSSH(t.Context(), cfg)
		if err == nil {
			s.Close()
		}
		require.Less(t, time.Since(start), 5*time.Second)
		return err
	}
	before := hosttest.Goroutines()
	_, strange := hosttest.NewKey(t, filepath.Join(dir, "strange"))
	known := filepath.Join(dir, "known_hosts")
	fingerprint := ssh.FingerprintSHA256(server.HostKey.PublicKey())

	is(t, try(func(c *host.SSHConfig) { c.KnownHosts = []string{known} }), "host_key_unknown", fingerprint,
		"ssh-keyscan -p", "-H 127.0.0.1 >> "+known)
	cfg := server.Config
	cfg.KnownHosts = []string{known}
	hosttest.WriteKnownHosts(t, cfg, strange.PublicKey())
	is(t, try(func(c *host.SSHConfig) { c.KnownHosts = []string{known} }), "host_key_changed", fingerprint,
		ssh.FingerprintSHA256(strange.PublicKey()), known+" line 1", "ssh-keygen -f "+known+" -R '[127.0.0.1]:")
	require.NoError(t, os.WriteFile(known, []byte("no such line\n"), 0o600))
	is(t, try(func(c *host.SSHConfig) { c.KnownHosts = []string{known} }), "host_key_unknown", known)
	rsa := "[127.0.0.1]:" + fmt.Sprint(server.Config.Port) +
		" ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQDCxbrbThbXZPyWJGTY48b7xKfKoQ7VUl8eK7JC9sbkzLJ1RYq0vbjJNBTGkmYHkZ0mbEhkpV7zmfyAzTrVkzlAoISVTfQmJhQPe2JvPUPAYgRjqVW9JhHf9jgUwkX4wa0VHKqHVSZwRRd7zWbQ8YVhHiC3ZFh6aJcbqDRr2uykmw==\n"
	require.NoError(t, os.WriteFile(known, []byte(rsa), 0o600))
	is(t, try(func(c *host.SSHConfig) { c.KnownHosts = []string{known} }), "host_key_changed", "no host key of a type")
	authority := fmt.Sprintf("@cert-authority [127.0.0.1]:%d %s", server.Config.Port,
		ssh.MarshalAuthorizedKey(strange.PublicKey()))
	require.NoError(t, os.WriteFile(known, []byte(authority), 0o600))
	is(t, try(func(c *host.SSHConfig) { c.KnownHosts = []string{known} }), "host_key_changed", "no host key of a type")
	// Missing files are skipped, as long as one knows the host.
	require.NoError(t, try(func(c *host.SSHConfig) {
		c.KnownHosts = append([]string{filepath.Join(dir, "missing")}, c.KnownHosts...)
	}))

	is(t, try(func(c *host.SSHConfig) { c.KeyFile = filepath.Join(dir, "missing") }), "ssh_key",
		"missing", "no such file")
	large, fifo := filepath.Join(dir, "large"), filepath.Join(dir, "fifo")
	require.NoError(t, os.WriteFile(large, make([]byte, 1<<20+1), 0o600))
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	is(t, try(func(c *host.SSHConfig) { c.KeyFile = large }), "ssh_key", large, "larger than 1 MiB")
	for _, odd := range []string{"/dev/zero", fifo, dir} {
		is(t, try(func(c *host.SSHConfig) { c.KeyFile = odd }), "ssh_key", odd, "not a regular file")
		is(t, try(func(c *host.SSHConfig) { c.KnownHosts = []string{odd} }), "host_key_unknown",
			odd, "not a regular file")
	}
	text := filepath.Join(dir, "text")
	require.NoError(t, os.WriteFile(text, []byte("not a key"), 0o600))
	is(t, try(func(c *host.SSHConfig) { c.KeyFile = text }), "ssh_key", text)
	locked := filepath.Join(dir, "locked")
	out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "passphrase", "-f", locked).CombinedOutput()
	require.NoError(t, err, string(out))
	is(t, try(func(c *host.SSHConfig) { c.KeyFile = locked }), "ssh_key", locked, "passphrase", "ssh-keygen -p")
	is(t, try(func(c *host.SSHConfig) { c.KeyFile = filepath.Join(dir, "strange") }), "ssh_auth",
		"stanley", "authorized_keys")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	silent := l.Addr().(*net.TCPAddr).Port
	is(t, try(func(c *host.SSHConfig) { c.Port, c.ConnectTimeout = silent, 200*time.Millisecond }),
		"unreachable", "deadline exceeded")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	cfg = server.Config
	cfg.Port = silent
	_, err = host.DialSSH(ctx, cfg)
	is(t, err, "unreachable", "canceled")
	require.ErrorIs(t, err, context.Canceled)
	l.Close()
	is(t, try(func(c *host.SSHConfig) { c.Port = silent }), "unreachable", "connection refused", "127.0.0.1")
	talker, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer talker.Close()
	go func() {
		for {
			c, err := talker.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			c.Close()
		}
	}()
	is(t, try(func(c *host.SSHConfig) { c.Port = talker.Addr().(*net.TCPAddr).Port }), "unreachable")

	for _, said := range []string{
		"sudo: a password is required",
		"sudo: a terminal is required to read the password; either use the -S option to read from standard input or " +
			"configure an askpass helper\nsudo: a password is required",
		"sudo: sorry, you must have a tty to run sudo",
		"stanley is not in the sudoers file.",
		"Sorry, user stanley is not allowed to execute '/bin/sh' as root on node2.",
	} {
		server.Script("sudo", "echo "+host.Quote(said)+" >&2; exit 1")
		first, _, _ := strings.Cut(said, "\n")
		e := is(t, try(func(*host.SSHConfig) {}), "sudo", first, "stanley ALL=(ALL) NOPASSWD: SETENV: ALL")
		require.Equal(t, strings.Contains(said, "a tty"), strings.Contains(e.Hint, "requiretty"))
	}
	server.Script("sudo", "echo sudo: not found >&2; exit 127")
	is(t, try(func(*host.SSHConfig) {}), "sudo")
	server.Script("sudo", "echo 'st2ha: no sftp-server' >&2; exit 69")
	is(t, try(func(*host.SSHConfig) {}), "sftp_server", "openssh-sftp-server")
	server.Script("sudo", "echo This account is currently not available.; exit 1")
	is(t, try(func(*host.SSHConfig) {}), "ssh_session")
	server.Script("sudo", "sleep 1")
	is(t, try(func(c *host.SSHConfig) { c.ConnectTimeout = 300 * time.Millisecond }),
		"unreachable", "deadline exceeded")
	require.Eventually(t, func() bool { return hosttest.Goroutines() <= before }, 5*time.Second, 50*time.Millisecond)
}

// A host whose key an authority has signed needs no line of its own.
func TestHostCertificate(t *testing.T) {
	server := hosttest.NewServer(t)
	_, authority := hosttest.NewKey(t, filepath.Join(t.TempDir(), "ca"))
	cert := &ssh.Certificate{Key: server.HostKey.PublicKey(), CertType: ssh.HostCert,
		ValidPrincipals: []string{"127.0.0.1"}, ValidBefore: ssh.CertTimeInfinity}
	require.NoError(t, cert.SignCert(rand.Reader, authority))
	signer, err := ssh.NewCertSigner(cert, server.HostKey)
	require.NoError(t, err)
	server.AddHostKey(signer)
	line := fmt.Sprintf("@cert-authority [127.0.0.1]:%d %s", server.Config.Port,
		ssh.MarshalAuthorizedKey(authority.PublicKey()))
	require.NoError(t, os.WriteFile(server.Config.KnownHosts[0], []byte(line), 0o600))
	s, err := host.DialSSH(t.Context(), server.Config)
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

// A sudo that allows sh and nothing else shows at the first program.
func TestSudoOfSome(t *testing.T) {
	server := hosttest.NewServer(t)
	s, err := host.DialSSH(t.Context(), server.Config)
	require.NoError(t, err)
	defer s.Close()
	server.Script("sudo", "echo 'Sorry, user stanley is not allowed to execute '\\''/usr/bin/env'\\'' as root on "+
		"node2.' >&2; exit 1")
	_, err = s.Run(t.Context(), nil, "true")
	is(t, err, "sudo", "not allowed to execute")
	_, err = s.Lock(t.Context(), t.TempDir()+"/lock", "x")
	is(t, err, "sudo", "not allowed to execute")
	server.Script("sudo", `echo "sudo: unable to resolve host node2: Name or service not known" >&2; shift 2; exec "$@"`)
	_, err = s.Run(t.Context(), nil, "sh", "-c", "exit 1")
	var exit *host.ExitError
	require.ErrorAs(t, err, &exit, "a warning of sudo is no refusal")
	_, err = s.Run(t.Context(), nil, "a=b")
	require.ErrorContains(t, err, "no =")
}

func TestNoForwarding(t *testing.T) {
	server := hosttest.NewServer(t)
	server.NoForwarding = true
	s, err := host.DialSSH(t.Context(), server.Config)
	require.NoError(t, err)
	defer s.Close()
	_, err = s.DialContext(t.Context(), "tcp", "127.0.0.1:1")
	var e *fault.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, "forwarding", e.Code)
	require.Contains(t, e.Hint, "AllowTcpForwarding")
}

// A sftp-server that hangs is given up, and its temporary file swept.
func TestHungFiles(t *testing.T) {
	server := hosttest.NewServer(t)
	s, err := host.DialSSH(t.Context(), server.Config)
	require.NoError(t, err)
	defer s.Close()
	dir := t.TempDir()
	f := host.File{Path: dir + "/f", Data: make([]byte, 1<<20), Mode: 0o600, UID: os.Geteuid(), GID: os.Getegid()}
	require.NoError(t, s.WriteFile(t.Context(), f))
	servers := func() (pids []string) {
		procs, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, p := range procs {
			if exe, _ := os.Readlink(p); filepath.Base(exe) == "sftp-server" {
				// Ours only: its parent is this process.
				b, _ := os.ReadFile(filepath.Dir(p) + "/status")
				if strings.Contains(string(b), fmt.Sprintf("PPid:\t%d\n", os.Getpid())) {
					pids = append(pids, filepath.Base(filepath.Dir(p)))
				}
			}
		}
		return pids
	}
	pids := servers()
	require.NotEmpty(t, pids)
	signal := func(name string) {
		require.NoError(t, exec.Command("kill", append([]string{"-" + name}, pids...)...).Run())
	}
	signal("STOP")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err = s.ReadFile(ctx, f.Path)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(start), 3*time.Second)
	_, err = s.ReadFile(t.Context(), f.Path)
	require.NoError(t, err, "another server is started")
	signal("KILL") // a stopped process sees no end of its input
	require.NoError(t, s.WriteFile(t.Context(), f))
	names, err := s.ReadDir(t.Context(), dir)
	require.NoError(t, err)
	require.Equal(t, []string{"f"}, names)
}

// A peer that is gone without a word ends the calls that wait for it.
func TestKeepalive(t *testing.T) {
	server := hosttest.NewServer(t)
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer proxy.Close()
	var mu sync.Mutex
	dead := false
	relay := func(to, from net.Conn) {
		defer to.Close()
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			drop := dead
			mu.Unlock()
			if !drop {
				to.Write(buf[:n])
			}
		}
	}
	go func() {
		near, err := proxy.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", server.Config.Port))
		if err != nil {
			return
		}
		go relay(far, near)
		relay(near, far)
	}()
	cfg := server.Config.WithKeepalive(50 * time.Millisecond)
	cfg.Port = proxy.Addr().(*net.TCPAddr).Port
	cfg.KnownHosts = []string{filepath.Join(t.TempDir(), "known_hosts")}
	hosttest.WriteKnownHosts(t, cfg, server.HostKey.PublicKey())
	s, err := host.DialSSH(t.Context(), cfg)
	require.NoError(t, err)
	time.Sleep(400 * time.Millisecond) // answered ones do no harm
	_, err = s.Run(t.Context(), nil, "true")
	require.NoError(t, err)
	conn, err := s.DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", server.Config.Port))
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := s.Run(t.Context(), nil, "sleep", "2")
		ended <- err
	}()
	time.Sleep(100 * time.Millisecond)
	mu.Lock()
	dead = true
	mu.Unlock()
	start := time.Now()
	_, err = s.ReadFile(t.Context(), "/etc/hostname")
	require.ErrorContains(t, err, "no answer for")
	require.ErrorContains(t, <-ended, "no answer for")
	require.NoError(t, conn.SetDeadline(time.Now().Add(time.Second)))
	_, err = io.Copy(io.Discard, conn)
	require.NoError(t, err, "the end of the connection is the end of the tunnel")
	require.Less(t, time.Since(start), 2*time.Second)
	_, err = s.Lock(t.Context(), "/nowhere/lock", "x")
	require.ErrorContains(t, err, "no answer for")
	require.NoError(t, s.Close())
}

func TestRunEnvironment(t *testing.T) {
	got := host.Environment([]string{"HOME=/root", "PATH=/evil", "LC_ALL=de_DE", "ST2HA_PASSWORD=x",
		"ST2_ACTION_AUTH_TOKEN=x", "ST2_ACTION_API_URL=u"})
	require.Equal(t, []string{"HOME=/root", "ST2_ACTION_API_URL=u", "LC_ALL=C",
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PWD=/"}, got)
}

func TestTempName(t *testing.T) {
	require.Regexp(t, `^/etc/\.mongod\.conf\.st2ha-[0-9a-f]{16}$`, host.TempName("/etc/mongod.conf"))
	require.NotEqual(t, host.TempName("/a"), host.TempName("/a"))
}

func TestOpen(t *testing.T) {
	for _, addr := range []string{"", " ", "192.168.0.300", "1.2.3", "1", "a b", "a,b", "a:b", "amqp://a", "a\n", "-a",
		"a-", "a_b", "a..b", "a.", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "host:22", "[::1]", "fe80::1%eth0",
		"fe80::1%a b\n", "::1%$(id)", "user@host", "$(id)", "a/b", "é", strings.Repeat("a", 64),
		strings.Repeat("a.", 127) + "a"} {
		_, err := host.Open(t.Context(), addr, host.SSHConfig{})
		var e *fault.Error
		require.ErrorAs(t, err, &e, addr)
		require.Equal(t, fault.ExitUsage, e.Exit, addr)
		require.ErrorContains(t, host.CheckAddress("primary", addr), "primary", "the parameter is named")
	}
	for _, addr := range []string{"192.168.0.100", "::1", "2001:db8::1", "a", "node", "node1", "node-1.example.com",
		"3com.com", strings.Repeat("a", 63)} {
		require.NoError(t, host.CheckAddress("host", addr), addr)
	}
	name, err := os.Hostname()
	require.NoError(t, err)
	for addr, want := range map[string]bool{"127.0.0.1": true, "127.1.2.3": true, "::1": true, "::ffff:127.0.0.1": true,
		"localhost": true, "LocalHost": true, name: true, "192.0.2.1": false, "2001:db8::1": false} {
		local, err := host.IsLocal(t.Context(), addr)
		require.NoError(t, err)
		require.Equal(t, want, local, addr)
	}
	addrs, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, a := range addrs {
		local, err := host.IsLocal(t.Context(), a.(*net.IPNet).IP.String())
		require.NoError(t, err)
		require.True(t, local, a)
	}
	h, err := host.Open(t.Context(), "127.0.0.1", host.SSHConfig{})
	if os.Geteuid() != 0 {
		is(t, err, "not_root", "sudo")
		return
	}
	require.NoError(t, err)
	require.True(t, h.IsLocal())
	require.Equal(t, "127.0.0.1", h.Name())
	// Another machine's address goes by SSH: without a key it gets no further.
	h, err = host.Open(t.Context(), "192.0.2.1", host.SSHConfig{KeyFile: filepath.Join(t.TempDir(), "missing")})
	is(t, err, "ssh_key")
	require.Nil(t, h)
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{"": "''", "a b": "'a b'", "it's": `'it'\''s'`, "'": `''\'''`} {
		require.Equal(t, want, host.Quote(in))
	}
}

func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "'", "''", "\n", "\\", "a'b\"c$d`e", "\xff\x81\x88", "!!", "~/*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ReplaceAll(s, "\x00", "") // refused before it is quoted
		out, err := exec.Command("/bin/sh", "-c", "printf '%s.' "+host.Quote(s)+" end").Output()
		if err != nil || string(out) != s+".end." {
			t.Fatalf("%q became %q, %v", s, out, err)
		}
	})
}

func benchmark(b *testing.B, cfg host.SSHConfig) {
	s, err := host.DialSSH(b.Context(), cfg)
	require.NoError(b, err)
	defer s.Close()
	f := host.File{Path: b.TempDir() + "/f", Data: make([]byte, 4000), Mode: 0o640,
		UID: os.Geteuid(), GID: os.Getegid()}
	require.NoError(b, s.WriteFile(b.Context(), f))
	for _, one := range []struct {
		name string
		fn   func() error
	}{
		{"connect", func() error {
			c, err := host.DialSSH(b.Context(), cfg)
			if err == nil {
				c.Close()
			}
			return err
		}},
		{"ReadFile", func() error { _, err := s.ReadFile(b.Context(), f.Path); return err }},
		{"Stat", func() error { _, err := s.Stat(b.Context(), f.Path); return err }},
		{"WriteFile", func() error { return s.WriteFile(b.Context(), f) }},
		{"Run", func() error { _, err := s.Run(b.Context(), nil, "true"); return err }},
		{"Lock", func() error {
			release, err := s.Lock(b.Context(), f.Path+".lock", "x")
			if err == nil {
				release()
			}
			return err
		}},
	} {
		b.Run(one.name, func(b *testing.B) {
			for b.Loop() {
				require.NoError(b, one.fn())
			}
		})
	}
}

func BenchmarkSSHD(b *testing.B) { benchmark(b, hosttest.NewSSHD(b)) }

// A file that an NFS client has a delegation of is called back first: knfsd holds a lease on it (fcntl(2), F_SETLEASE).
func TestReadFileUnderLease(t *testing.T) {
	name := filepath.Join(t.TempDir(), "leased")
	require.NoError(t, os.WriteFile(name, []byte("data"), 0o600))
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	require.NoError(t, err)
	_, err = os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	require.ErrorIs(t, err, unix.EAGAIN, "as open(2) answers without waiting")
	returned := make(chan error, 1)
	time.AfterFunc(300*time.Millisecond, func() {
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		returned <- err
	})
	file, err := host.NewLocal("x").ReadFile(t.Context(), name)
	require.NoError(t, err)
	require.Equal(t, "data", string(file.Data))
	require.NoError(t, <-returned) // before the file is closed
}
