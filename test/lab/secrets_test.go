package lab

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// The passwords that the nodes' own StackStorm has for MongoDB and RabbitMQ.
const (
	primaryPassword   = "prim4ry-s3cret"
	secondaryPassword = "second4ry-s3cret"
	// marker is a secret that the test itself shows, to see that it would be found.
	marker = "planted-where-all-can-see"
)

// forms are a secret as it is and as formats on its way would write it.
func forms(t *testing.T, secret string) []string {
	t.Helper()
	quoted, err := json.Marshal(secret)
	require.NoError(t, err)
	found := []string{secret, url.QueryEscape(secret), url.PathEscape(secret), string(quoted[1 : len(quoted)-1]),
		strings.Trim(strconv.Quote(secret), `"`), strings.ReplaceAll(secret, "'", `'\''`)}
	percent := ""
	for _, b := range []byte(secret) {
		percent += fmt.Sprintf("%%%02X", b)
	}
	found = append(found, percent, fmt.Sprintf("%x", secret))
	// Whatever stands before it, its base64 is one of three.
	for before := range 3 {
		text := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("x", before) + secret))
		text = text[(before*8+5)/6:]
		whole := (len(secret) + before) * 8 / 6 // characters that depend on nothing after it
		text = text[:whole-(before*8+5)/6]
		found = append(found, text, strings.NewReplacer("+", "-", "/", "_").Replace(text))
	}
	return found
}

func TestForms(t *testing.T) {
	for before := range 5 {
		for after := range 4 {
			whole := base64.StdEncoding.EncodeToString(
				[]byte(strings.Repeat("b", before) + password + strings.Repeat("a", after)))
			hit := false
			for _, f := range forms(t, password) {
				hit = hit || strings.Contains(whole, f)
			}
			require.True(t, hit, "%d before, %d after", before, after)
		}
	}
}

// secrets looks for the secrets where they must not be, while nodes are at work.
type secrets struct {
	all  []string
	stop map[string]func() []string

	mu   sync.Mutex
	said string // by all runs
}

// verbosely is where nodes have a launcher by which all is logged that can be.
const verbosely = "/usr/local/lib/lab-verbose"

// newSecrets puts that and the sampler on nodes.
func newSecrets(t *testing.T, nodes ...string) *secrets {
	t.Helper()
	provide(t, "/usr/local/bin/lab-sampler", "./sampler", nodes)
	for _, n := range nodes {
		on(t, n, fmt.Sprintf(`mkdir -p %[1]s/actions && echo '#!/bin/sh
exec %[2]s "$@" --verbose' > %[1]s/actions/st2ha && chmod 755 %[1]s/actions/st2ha`, verbosely, program))
		t.Cleanup(func() { on(t, n, "rm -rf /usr/local/bin/lab-sampler "+verbosely) })
	}
	s := &secrets{stop: map[string]func() []string{}}
	for _, secret := range []string{password, primaryPassword, secondaryPassword} {
		s.all = append(s.all, forms(t, secret)...)
	}
	return s
}

// action runs an action, verbosely, and keeps what was said.
func (s *secrets) action(t *testing.T, node, name string, params map[string]any) outcome {
	t.Helper()
	o := stackstorm{node: node, pack: verbosely}.action(t, name, params)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said += o.raw
	return o
}

// watch looks at the processes of nodes: of the secondary also at the
// environments of those that others start.
func (s *secrets) watch(t *testing.T, nodes ...string) {
	t.Helper()
	for _, n := range nodes {
		flags := ""
		if n == "secondary" {
			flags = "-all"
		}
		s.stop[n] = sample(t, n, append([]string{marker}, s.all...), flags)
		on(t, n, "sh -c 'sleep 0.5; exit 0' "+marker)
	}
}

// unseen fails if a process had one of the secrets, or a run said one.
func (s *secrets) unseen(t *testing.T) {
	t.Helper()
	for n, stop := range s.stop {
		found := stop()
		require.Contains(t, found, "argv 0 sh", "%s: the marker", n)
		for _, find := range found {
			require.True(t, strings.HasPrefix(find, "argv 0 "), "%s: %s", n, find)
		}
	}
	clear(s.stop)
	for i, secret := range s.all {
		require.NotContains(t, s.said, secret, "secret %d in what the runs said", i)
	}
}

// sample has a node's processes watched until stop, which returns the finds.
func sample(t *testing.T, node string, secrets []string, flags string) (stop func() []string) {
	t.Helper()
	c := command(nil, "./lab.sh", "ssh", node, "lab-sampler "+flags)
	in, out := io.Pipe()
	c.Stdin = in
	stdout, err := c.StdoutPipe()
	require.NoError(t, err)
	c.Stderr = os.Stderr
	require.NoError(t, c.Start())
	t.Cleanup(func() { out.Close(); c.Process.Kill() })
	_, err = io.WriteString(out, strings.Join(secrets, "\n")+"\n\n")
	require.NoError(t, err)
	lines := bufio.NewScanner(stdout)
	require.True(t, lines.Scan())
	require.Equal(t, "ready", lines.Text())
	return func() (found []string) {
		out.Close()
		for lines.Scan() {
			found = append(found, lines.Text())
		}
		require.NoError(t, c.Wait())
		require.NotEmpty(t, found)
		t.Log(node, found[len(found)-1])
		return found[:len(found)-1]
	}
}

// holding lists the files of a node that have one of the secrets in them, and
// "journal" if its log has.
func holding(t *testing.T, node string, secrets []string) (files []string) {
	t.Helper()
	c := command([]byte(strings.Join(secrets, "\n")), "./lab.sh", "ssh", node,
		`secrets=$(cat); look() { grep -aF -f <(printf '%s\n' "$secrets") "$@"; }
		look -rl --exclude-dir=journal /etc /home /root /opt /srv /tmp /var/tmp /dev/shm /run /var/lib/st2ha /var/log 2>/dev/null
		journalctl --no-pager --output=export | look -q && echo journal
		true`)
	out, err := c.Output()
	require.NoError(t, err, "%s", out)
	return strings.Fields(string(out))
}
