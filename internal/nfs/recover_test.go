package nfs

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

// serve answers NFS's NULL calls; "silent" takes connections and says nothing,
// as a server that hangs does, and "closes" ends them.
func serve(t *testing.T, how string) string {
	t.Helper()
	return testenv.Serve(t, func(conn net.Conn) {
		call := make([]uint32, 11)
		if binary.Read(conn, binary.BigEndian, call) != nil || how == "closes" { // unread, it would be reset
			return
		}
		switch how {
		case "answers":
			// MSG_ACCEPTED, PROG_MISMATCH: a server of another version is one that answers.
			binary.Write(conn, binary.BigEndian, []uint32{1<<31 | 32, call[1], 1, 0, 0, 0, 2, 2, 3})
		case "http":
			io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}
		io.Copy(io.Discard, conn)
	})
}

func TestAnswers(t *testing.T) {
	h := host.NewLocal("localhost")
	require.NoError(t, Answers(t.Context(), h, serve(t, "answers")))
	require.ErrorContains(t, Answers(t.Context(), h, serve(t, "closes")), "connection ended")
	require.ErrorContains(t, Answers(t.Context(), h, serve(t, "http")), "not an NFS server")
	require.ErrorContains(t, Answers(t.Context(), h, serve(t, "silent")), "no answer within 3s")
	require.ErrorContains(t, Answers(t.Context(), h, "127.0.0.1:1"), "connection refused")
}

// node is a machine with a mount, whose programs are canned: statfs says how
// often it fails, and umount and systemctl do what the real ones do.
type node struct {
	*machine
	server string // where its NFS server really is
	hangs  int    // statfs calls that are killed; -1: all of them
	held   bool   // umount --lazy fails
}

const (
	fstab   = "192.168.0.100:/opt/a /opt/a nfs _netdev,nofail,bg,hard 0 0\n/dev/vda1 / ext4 defaults 0 1\n"
	mounted = "30 1 0:40 / /opt/a rw - nfs4 192.168.0.100:/opt/a rw,vers=4.2\n"
)

func newNode(t *testing.T, server, mountinfo string) *node {
	t.Helper()
	testenv.NeedsRoot(t)
	n := &node{machine: newMachine(t, "secondary",
		map[string]string{"/etc/fstab": fstab, "/proc/1/mountinfo": mountinfo}), server: server}
	n.run = func(argv string) (string, error) {
		switch {
		case strings.Contains(argv, " stat --file-system "):
			if n.hangs == 0 {
				return "1", nil
			}
			n.hangs--
			return "", &host.ExitError{Program: "timeout", Code: 137}
		case strings.Contains(argv, " umount --lazy "):
			if n.held {
				return "", &host.ExitError{Program: "timeout", Code: 137}
			}
			n.hangs = 0
			n.mountinfo(t, "")
		case argv == "systemctl start opt-a.mount":
			n.mountinfo(t, mounted)
		}
		return "", nil
	}
	return n
}

func (n *node) mountinfo(t *testing.T, data string) {
	require.NoError(t, n.WriteFile(t.Context(), host.File{Path: "/proc/1/mountinfo", Data: []byte(data), Mode: 0o644}))
}

func (n *node) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if addr != "192.168.0.100:2049" {
		return nil, errors.New("who is " + addr)
	}
	return n.Local.DialContext(ctx, network, n.server)
}

// apply does what step.Heal does, without its lock.
func apply(t *testing.T, s step.Step, h host.Host) ([]step.Change, error) {
	t.Helper()
	findings, err := s.Check(t.Context(), h)
	require.NoError(t, err)
	require.Empty(t, findings)
	changes, err := s.Plan(t.Context(), h)
	require.NoError(t, err)
	for _, c := range changes {
		require.NotEmpty(t, c.Diff())
		if err := c.Apply(t.Context(), h); err != nil {
			return changes, err
		}
	}
	return changes, s.Verify(t.Context(), h)
}

func TestRecover(t *testing.T) {
	s := &Recover{Directory: "/opt/a", Patience: 2 * time.Second, Within: 5 * time.Second}
	server := serve(t, "answers")

	// Nothing is touched that works.
	n := newNode(t, server, mounted)
	changes, err := apply(t, s, n)
	require.NoError(t, err)
	require.Empty(t, changes)

	// A missing one is mounted by PID 1.
	n = newNode(t, server, "")
	changes, err = apply(t, s, n)
	require.NoError(t, err)
	require.Equal(t, []step.Change{&MountUnit{Dir: "/opt/a", Source: "192.168.0.100:/opt/a", Within: 5 * time.Second}},
		changes)

	// One that hangs heals itself; it is neither unmounted nor mounted.
	n = newNode(t, server, mounted)
	n.hangs = 3
	changes, err = apply(t, s, n)
	require.NoError(t, err)
	require.Equal(t, "/opt/a", changes[0].Target())
	require.NotContains(t, strings.Join(n.ran, "\n"), "umount")
	require.NotContains(t, strings.Join(n.ran, "\n"), "systemctl")

	// One that does not is left alone unless it was asked for more.
	n = newNode(t, server, mounted)
	n.hangs = -1
	_, err = apply(t, s, n)
	require.Equal(t, "mount_hangs", fault.Of(err).Code)
	require.NotContains(t, strings.Join(n.ran, "\n"), "umount")

	s.Detach = true
	n.hangs = -1
	_, err = apply(t, s, n)
	require.NoError(t, err)
	all := strings.Join(n.ran, "\n")
	require.Contains(t, all, "timeout --signal=KILL 10 nsenter --target=1 --mount -- umount --lazy -- "+
		"/opt/a\nsystemctl start opt-a.mount")
	require.NotContains(t, all, "--force")
	require.NotContains(t, all, " -f")

	// What umount says does not count: the table of mounts does.
	n = newNode(t, server, mounted)
	n.hangs, n.held = -1, true
	_, err = apply(t, s, n)
	require.Equal(t, "detach", fault.Of(err).Code)
	require.NotContains(t, strings.Join(n.ran, "\n"), "systemctl")
}

func TestRecoverRefuses(t *testing.T) {
	s := &Recover{Directory: "/opt/b"}
	findings, err := s.Check(t.Context(), newNode(t, "", ""))
	require.NoError(t, err)
	require.Equal(t, "fstab", findings[0].Check)
	s.Directory = "/" // not NFS
	findings, err = s.Check(t.Context(), newNode(t, "", ""))
	require.NoError(t, err)
	require.Equal(t, "fstab", findings[0].Check)
	s.Directory = "/opt/a"
	for _, how := range []string{"closes", "silent"} {
		findings, err = s.Check(t.Context(), newNode(t, serve(t, how), mounted))
		require.NoError(t, err)
		require.Equal(t, "nfs_server", findings[0].Check, how)
	}
}

func TestServer(t *testing.T) {
	for source, want := range map[string]string{
		"192.168.0.100:/opt/a": "192.168.0.100:2049", "[2001:db8::1]:/opt/a": "[2001:db8::1]:2049",
		"nfs.example:/a:/b": "nfs.example:2049",
	} {
		require.Equal(t, want, Server(source), source)
	}
}

func TestRestore(t *testing.T) {
	const exports = "/srv *(ro)\n/opt/a 192.168.0.101(rw)\n\"/opt/with space\" node2(rw)\n"
	listing := "/srv          \t<world>(ro)\n"
	m := newMachine(t, "primary", map[string]string{"/etc/exports": exports})
	m.run = func(argv string) (string, error) {
		switch argv {
		case "exportfs -v":
			return listing, nil
		case "exportfs -ra":
			listing = "/srv          \t<world>(ro)\n/opt/a        \t192.168.0.101(rw)\n" +
				"/opt/with space\n\t\tnode2.example(rw)\n"
		}
		return "", nil
	}
	s := &Restore{Directory: "/opt/a"}
	require.Equal(t, "export", fault.Of(s.Verify(t.Context(), m)).Code)
	changes, err := apply(t, s, m)
	require.NoError(t, err)
	require.Equal(t, []step.Change{&Reexport{}}, changes)
	changes, err = apply(t, s, m)
	require.NoError(t, err)
	require.Empty(t, changes)
	s.Directory = "/opt/b" // taken out on purpose
	findings, err := s.Check(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, "exports", findings[0].Check)
}

// late is a host whose systemctl hangs until its context ends.
type late struct{ *host.Local }

func (late) Run(ctx context.Context, _ []byte, argv ...string) ([]byte, error) {
	if argv[0] == "systemctl" && argv[1] == "show" {
		return []byte("ActiveState=activating\nSubState=mounting\n"), nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

// Waits that end say what they waited for, and what they saw last.
func TestLate(t *testing.T) {
	h := late{host.NewLocal("node")}
	err := (&MountUnit{Dir: "/opt/a", Source: "192.168.0.100:/a", Within: 50 * time.Millisecond}).Apply(t.Context(), h)
	require.EqualError(t, err,
		"node: mount 192.168.0.100:/a on /opt/a: not done within 50ms: opt-a.mount is activating/mounting")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err = (&unhang{Recover: Recover{Directory: "/opt/a", Patience: time.Minute}}).Apply(ctx, h)
	require.Equal(t, "mount_hangs", fault.Of(err).Code)
	require.ErrorContains(t, err, "node: /opt/a does not answer")
}
