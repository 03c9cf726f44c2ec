package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
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
	"go.mongodb.org/mongo-driver/bson"

	"st2ha/internal/backendtest"
	"st2ha/internal/testenv"
)

// store is a runner's connection to the database, by pymongo's rules: the one
// that was used last is used again; only if that was more than a second ago is it
// looked at first (pymongo 4.6.3, pool.py:1855), and an insert is not repeated.
type store struct {
	addr string
	mu   sync.Mutex
	conn net.Conn
	used time.Time
}

func (s *store) insert(line string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil && time.Since(s.used) > time.Second && closed(s.conn) {
		s.conn.Close()
		s.conn = nil
	}
	if s.conn == nil {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			return err
		}
		s.conn = conn
	}
	body, err := bson.Marshal(bson.D{{Key: "insert", Value: "action_execution_output_d_b"},
		{Key: "documents", Value: bson.A{bson.D{{Key: "data", Value: line}}}}, {Key: "$db", Value: "st2"}})
	if err != nil {
		return err
	}
	// OP_MSG of one body section (MongoDB, wire protocol).
	message := binary.LittleEndian.AppendUint32(nil, uint32(21+len(body)))
	message = append(message, 1, 0, 0, 0, 0, 0, 0, 0, 0xdd, 0x07, 0, 0, 0, 0, 0, 0, 0)
	if _, err := s.conn.Write(append(message, body...)); err != nil {
		return err
	}
	reply := make([]byte, 4)
	if _, err := io.ReadFull(s.conn, reply); err != nil {
		return fmt.Errorf("connection closed: %w", err)
	}
	_, err = io.CopyN(io.Discard, s.conn, int64(binary.LittleEndian.Uint32(reply))-4)
	s.used = time.Now()
	return err
}

// closed is what pymongo's SocketChecker asks: nothing can have come but the end.
func closed(conn net.Conn) bool {
	_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	defer func() { _ = conn.SetReadDeadline(time.Time{}) }()
	_, err := conn.Read(make([]byte, 1))
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// act is what StackStorm's runner does with an action: its status and each line
// that it prints are stored; an action whose lines cannot be stored has failed,
// whatever it did (contrib/runners/local_runner/local_runner/base.py:155).
func (s *store) act(t *testing.T, action *exec.Cmd) (stdout, stderr string, err error) {
	t.Helper()
	require.NoError(t, s.insert("running"))
	var out [2]bytes.Buffer
	failed := make(chan error, 2)
	for i, open := range []func() (io.ReadCloser, error){action.StdoutPipe, action.StderrPipe} {
		pipe, err := open()
		require.NoError(t, err)
		go func() {
			var failure error
			for lines := bufio.NewReaderSize(pipe, 4<<20); ; {
				line, err := lines.ReadString('\n')
				if line != "" && failure == nil {
					out[i].WriteString(line)
					failure = s.insert(line)
				}
				if err != nil {
					break
				}
			}
			failed <- failure
		}()
	}
	require.NoError(t, action.Start())
	err = errors.Join(<-failed, <-failed)
	return out[0].String(), out[1].String(), errors.Join(err, action.Wait(), s.insert("succeeded"))
}

// Actions that restart the database under their own runner succeed, and so
// does what they undo.
func TestTheRunnersDatabaseIsRestarted(t *testing.T) {
	t.Parallel()
	testenv.NeedsRoot(t)
	dir := t.TempDir()
	program, err := backendtest.BuildMongod(dir)
	require.NoError(t, err)
	for _, name := range []string{"etc/st2", "lib", "sbin"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	mongod, err := backendtest.NewMongod(program, dir+"/etc", false) // dir/etc/mongod.conf
	require.NoError(t, err)
	t.Cleanup(func() { mongod.Kill() })
	_, port, _ := net.SplitHostPort(mongod.Addr)
	conf := "[database]\nhost = 127.0.0.1\nport = " + port + "\n"
	require.NoError(t, os.WriteFile(dir+"/etc/st2/st2.conf", []byte(conf), 0o644))

	// systemctl of a unit of Type=simple: it returns before the server answers.
	for _, fifo := range []string{"ask", "told"} {
		require.NoError(t, syscall.Mkfifo(filepath.Join(dir, fifo), 0o600))
	}
	require.NoError(t, os.WriteFile(dir+"/sbin/systemctl", []byte(`#!/bin/sh
case "$*" in
"show --property=LoadState mongod.service mongodb.service") printf 'LoadState=loaded\n\nLoadState=not-found\n' ;;
"reset-failed mongod.service") ;;
"restart mongod.service") echo restart >`+dir+`/ask; read -r status <`+dir+`/told; exit "$status" ;;
*) exit 9 ;;
esac
`), 0o755))
	ask, err := os.OpenFile(dir+"/ask", os.O_RDWR, 0) // both ends, so that opening waits for nobody
	require.NoError(t, err)
	told, err := os.OpenFile(dir+"/told", os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { ask.Close(); told.Close() })
	statuses := make(chan string, 9)
	go func() {
		for asked := bufio.NewScanner(ask); asked.Scan(); {
			mongod.Kill()
			fmt.Fprintln(told, <-statuses)
			_ = mongod.Start()
		}
	}()

	action := func(line string) *exec.Cmd {
		cmd := exec.Command("unshare", append([]string{"--mount", "--propagation=private", "sh", "-euc",
			`mount --bind "$1/etc" /etc; mount --bind "$1/lib" /var/lib; mount --bind "$1/sbin" /usr/local/sbin
shift; exec st2ha "$@"`, "sh", dir},
			strings.Fields(line)...)...)
		cmd.Env = append(os.Environ(), "ST2_ACTION_EXECUTION_ID=6527242448d1e4e9ef404ebb")
		return cmd
	}
	runner := &store{addr: mongod.Addr}
	const configure = "configure_mongodb --host=127.0.0.2 --allow_unauthenticated --verbose"

	statuses <- "0"
	stdout, stderr, err := runner.act(t, action(configure+" --run=one"))
	require.NoError(t, err, stderr)
	require.Contains(t, stdout, `"changed":true`)
	require.Contains(t, stderr, "target=mongod.service")
	require.Contains(t, stderr, "level=DEBUG")

	statuses <- "0"
	stdout, stderr, err = runner.act(t, action("rollback --host=127.0.0.2 --at_once"))
	require.NoError(t, err, stderr)
	require.Contains(t, stdout, `"changed":true`)

	// The restart fails, and is undone by another one.
	statuses <- "1"
	statuses <- "0"
	stdout, stderr, err = runner.act(t, action(configure+" --run=two"))
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, stderr)
	require.Equal(t, exit.Error(), err.Error(), "nothing else went wrong")
	require.Contains(t, stdout, "what this step had changed is undone")
	require.Contains(t, stderr, "undo restart")
}
