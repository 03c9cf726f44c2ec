package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"st2ha/internal/testenv"
)

// room is a mount namespace with an /etc and a /var/lib of its own, so that
// the binary runs on this machine and changes nothing of it; and two network
// namespaces: in the far one is an sshd, which to the binary is another host.
type room struct {
	binary string
	pid    string // of the process that keeps the namespaces
	far    string // of the one that keeps the far one
	ssh    string // flags that reach the sshd
}

// roomScript makes the namespaces, in which it has the directory $1 for keys.
const roomScript = `mount -t tmpfs st2ha-test /var/lib; mount -t tmpfs st2ha-test /run
mkdir "$1/etc" /run/sshd; cp -p /etc/passwd /etc/shadow /etc/group /etc/nsswitch.conf "$1/etc"
mount -t tmpfs st2ha-test /etc; cp -p "$1"/etc/* /etc; mkdir /etc/st2
unshare --net sh -c 'echo > "$1/far"; exec sleep infinity' sh "$1" & far=$!
trap 'kill $far' EXIT
until [ -e "$1/far" ]; do sleep 0.01; done
ip link add near type veth peer name far netns $far
ip address add 10.213.0.1/30 dev near; ip link set near up
nsenter --target=$far --net sh -euc 'ip address add 10.213.0.2/30 dev far; ip link set far up; ip link set lo up'
for key in host user; do ssh-keygen -q -t ed25519 -N '' -f "$1/$key"; done
printf '%s\n' "HostKey $1/host" "AuthorizedKeysFile $1/user.pub" 'PidFile none' 'StrictModes no' 'UsePAM no' \
  'ListenAddress 10.213.0.2' 'LogLevel QUIET' > "$1/sshd_config"
echo "10.213.0.2 $(cut -d' ' -f1,2 "$1/host.pub")" > "$1/known_hosts"
nsenter --target=$far --net /usr/sbin/sshd -D -f "$1/sshd_config" & sshd=$!
trap 'kill $far $sshd' EXIT
for try in $(seq 200); do bash -c ': </dev/tcp/10.213.0.2/22' 2>/dev/null && break; sleep 0.05; done
echo $far
cat`

const (
	st2conf = "[database]\nhost = 127.0.0.1\n\n[messaging]\nurl = amqp://guest:guest@127.0.0.1:5672/\n"
	step1   = "configure_st2 --host=127.0.0.1 --role=primary --primary=192.168.0.100 --restart=later"
	// The same machine, as another one.
	near, far = "--host=127.0.0.1", "--host=10.213.0.2"
)

func newRoom(t *testing.T) *room {
	t.Helper()
	testenv.NeedsRoot(t)
	r := &room{binary: filepath.Join(t.TempDir(), "st2ha-crash")}
	out, err := exec.Command("go", "build", "-tags", "crash", "-o", r.binary, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	dir := t.TempDir()
	keeper := exec.Command("unshare", "--mount", "--net", "--propagation=private", "sh", "-euc", roomScript, "sh", dir)
	keeper.Stderr = os.Stderr
	input, err := keeper.StdinPipe()
	require.NoError(t, err)
	output, err := keeper.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, keeper.Start())
	t.Cleanup(func() {
		input.Close()
		keeper.Wait()
	})
	far, err := bufio.NewReader(output).ReadString('\n')
	require.NoError(t, err)
	r.pid, r.far = strconv.Itoa(keeper.Process.Pid), strings.TrimSpace(far)
	r.ssh = fmt.Sprintf(" --ssh_user=root --ssh_key=%s/user --known_hosts=%s/known_hosts", dir, dir)
	r.reset(t)
	return r
}

// sh runs a command line in the room.
func (r *room) sh(t *testing.T, line string) string {
	t.Helper()
	out, err := exec.Command("nsenter", "--target="+r.pid, "--mount", "--net", "--", "sh", "-euc", line).CombinedOutput()
	require.NoError(t, err, "%s: %s", line, out)
	return string(out)
}

func (r *room) reset(t *testing.T) {
	t.Helper()
	r.sh(t, "rm -rf /var/lib/st2ha; rm -f /etc/st2/* /etc/st2/.*conf*; printf '%s' '"+st2conf+"' > /etc/st2/st2.conf; "+
		"chown 1:2 /etc/st2/st2.conf; chmod 640 /etc/st2/st2.conf")
}

// files are those of /etc with modes, owners and sums.
func (r *room) files(t *testing.T) string {
	t.Helper()
	return r.sh(t, "find /etc -type f -printf '%p %m %U %G ' -exec sha256sum {} +")
}

// owed are the restarts that are still to come.
func (r *room) owed(t *testing.T) string {
	t.Helper()
	return r.sh(t, "ls -A /var/lib/st2ha/owed")
}

// running is the binary at work.
type running struct {
	*exec.Cmd
	stdout, stderr bytes.Buffer
}

func (r *room) start(t *testing.T, env, line string) *running {
	t.Helper()
	run := &running{}
	run.Cmd = exec.Command("nsenter", append([]string{"--target=" + r.pid, "--mount", "--net", "--", r.binary},
		strings.Fields(line)...)...)
	run.Env = append(os.Environ(), strings.Fields(env)...)
	run.Stdout, run.Stderr = &run.stdout, &run.stderr
	require.NoError(t, run.Start())
	t.Cleanup(func() { run.Process.Kill() })
	return run
}

// run ends by itself, or is killed.
func (r *room) run(t *testing.T, env, line string) (died bool) {
	t.Helper()
	run := r.start(t, env, line)
	err := run.Wait()
	status, ok := run.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
		return true
	}
	require.NoError(t, err, "%s: %s", line, &run.stderr)
	return false
}

// A process that is killed, at each change it makes: what it did can be gone
// on with, and undone, by the next one.
func TestKilledAtEachChange(t *testing.T) {
	t.Parallel()
	for name, host := range map[string]string{"locally": near, "over SSH": far} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRoom(t)
			flags := ""
			if host == far {
				flags = r.ssh
			}
			r.killed(t, strings.Replace(step1, near, host, 1)+flags, "rollback "+host+flags)
		})
	}
}

func (r *room) killed(t *testing.T, configure, rollback string) {
	first := r.files(t)
	r.run(t, "", configure)
	joined := r.files(t)
	require.NotEqual(t, first, joined)
	isFirst := func(where string) {
		t.Helper()
		require.Equal(t, first, r.files(t), where)
		require.Empty(t, r.owed(t), where)
		require.Empty(t, r.sh(t, "find /var/lib/st2ha -name '*.image' -o -name '.*'"), where)
	}
	isJoined := func(where string) {
		t.Helper()
		require.Equal(t, joined, r.files(t), where)
		require.Equal(t, "st2\n", r.owed(t), where)
	}
	dies := func(n int, line, where string) bool {
		t.Helper()
		died := r.run(t, fmt.Sprintf("ST2HA_CRASH_AT=%d", n), line)
		require.Eventually(t, func() bool { return r.left() == "" }, 10*time.Second, 10*time.Millisecond,
			"%s: %s goes on", where, r.left())
		require.Contains(t, []string{first, joined}, r.files(t), where)
		r.sh(t, "test ! -e /var/lib/st2ha/lock || flock --nonblock /var/lib/st2ha/lock true")
		return died
	}
	loop := func(name string, once func(n int, where string) (died bool)) {
		n := 1
		for r.reset(t); once(n, fmt.Sprintf("%s, at %d", name, n)); r.reset(t) {
			n++
		}
		t.Logf("%s: killed at %d points", name, n-1)
		require.Greater(t, n, 5)
	}
	loop("the step, then again", func(n int, where string) bool {
		died := dies(n, configure, where)
		r.run(t, "", configure)
		isJoined(where)
		r.run(t, "", rollback)
		isFirst(where)
		return died
	})
	loop("the step, then rolled back", func(n int, where string) bool {
		died := dies(n, configure, where)
		r.run(t, "", rollback)
		if n > 2 { // the journal's own directories are there
			isFirst(where)
		}
		return died
	})
	loop("the rollback, then again", func(n int, where string) bool {
		r.run(t, "", configure)
		died := dies(n, rollback, where)
		r.run(t, "", rollback)
		isFirst(where)
		return died
	})
	loop("the rollback, then the step", func(n int, where string) bool {
		r.run(t, "", configure)
		died := dies(n, rollback, where)
		r.run(t, "", configure)
		isJoined(where)
		return died
	})
}

// left are the programs on the far side, but for the sshd that listens and the
// one that keeps the namespace.
func (r *room) left() string {
	own, _ := os.Readlink("/proc/" + r.far + "/ns/net")
	var found []string
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		if net, _ := os.Readlink(p + "/ns/net"); net != own || p == "/proc/"+r.far {
			continue
		}
		argv, _ := os.ReadFile(p + "/cmdline")
		line := strings.ReplaceAll(string(argv), "\x00", " ")
		if line != "" && !strings.Contains(line, "sshd -D") && !strings.Contains(line, "[listener]") {
			found = append(found, line)
		}
	}
	return strings.Join(found, "; ")
}

// stopped waits until a process has stopped itself.
func stopped(t *testing.T, run *running) {
	t.Helper()
	require.Eventually(t, func() bool { return state(run) == "T" }, 30*time.Second, 5*time.Millisecond, "it did not stop")
}

// state is that of proc(5): T is stopped, Z has ended.
func state(run *running) string {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", run.Process.Pid))
	_, rest, _ := strings.Cut(string(status), "State:\t")
	return rest[:min(1, len(rest))]
}

// Two runs at once: the second says who is at work, or waits; what a dead run
// held is free.
func TestTwoRuns(t *testing.T) {
	t.Parallel()
	r := newRoom(t)
	first := r.start(t, "ST2HA_CRASH_AT=7 ST2HA_CRASH_STOP=1", step1+" --run=first")
	stopped(t, first)

	second := r.start(t, "", step1+" --run=second")
	require.Error(t, second.Wait())
	require.Equal(t, 3, second.ProcessState.ExitCode(), second.stderr.String())
	var result struct {
		Error struct{ Code, Message, Hint string }
	}
	require.NoError(t, json.Unmarshal(second.stdout.Bytes(), &result))
	require.Equal(t, "locked", result.Error.Code)
	require.Contains(t, result.Error.Message, "run first, step configure_st2")
	require.NotEmpty(t, result.Error.Hint)

	waiting := r.start(t, "", step1+" --run=third --wait=60")
	time.Sleep(300 * time.Millisecond)
	require.NotContains(t, state(waiting), "Z", "it waits")
	require.NoError(t, first.Process.Signal(syscall.SIGCONT))
	require.NoError(t, first.Wait(), first.stderr.String())
	require.NoError(t, waiting.Wait(), waiting.stderr.String())
	require.Contains(t, first.stdout.String(), `"changed":true`)
	require.Contains(t, waiting.stdout.String(), `"changed":false`, "the first has done it")

	r.reset(t)
	dead := r.start(t, "ST2HA_CRASH_AT=7 ST2HA_CRASH_STOP=1", step1+" --run=dead")
	stopped(t, dead)
	require.Contains(t, r.sh(t, "cat /var/lib/st2ha/lock"), "run dead")
	require.NoError(t, dead.Process.Kill())
	dead.Wait()
	next := r.start(t, "", step1+" --run=next")
	require.NoError(t, next.Wait(), next.stderr.String())
	require.Contains(t, next.stdout.String(), `"changed":true`)
	require.Empty(t, r.sh(t, "cat /var/lib/st2ha/lock"))
}
