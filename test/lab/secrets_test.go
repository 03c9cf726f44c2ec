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
			whole := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("b", before) + password + strings.Repeat("a", after)))
			hit := false
			for _, f := range forms(t, password) {
				hit = hit || strings.Contains(whole, f)
			}
			require.True(t, hit, "%d before, %d after", before, after)
		}
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
	c := command([]byte(strings.Join(secrets, "\n")), "./lab.sh", "ssh", node, `secrets=$(cat); look() { grep -aF -f <(printf '%s\n' "$secrets") "$@"; }
		look -rl --exclude-dir=journal /etc /home /root /opt /srv /tmp /var/tmp /dev/shm /run /var/lib/st2ha /var/log 2>/dev/null
		journalctl --no-pager --output=export | look -q && echo journal
		true`)
	out, err := c.Output()
	require.NoError(t, err, "%s", out)
	return strings.Fields(string(out))
}

// TestSecrets runs everything, also what fails, as verbosely as it can, and
// looks for the secrets where they must not be: arguments and environments of
// processes, output, logs, the journal but for its before-images, other files.
func TestSecrets(t *testing.T) {
	nodes := []string{"primary", "secondary"}
	installed(t, nodes...)
	provide(t, "/usr/local/bin/lab-sampler", "./sampler", nodes)
	for _, n := range nodes {
		t.Cleanup(func() { on(t, n, "rm -f /usr/local/bin/lab-sampler") })
	}
	secrets := append(forms(t, password), append(forms(t, primaryPassword), forms(t, secondaryPassword)...)...)
	said := ""
	say := func(o outcome) outcome { said += o.raw; return o }

	stops := map[string]func() []string{}
	for n, flags := range map[string]string{"primary": "", "secondary": "-all"} {
		stops[n] = sample(t, n, append([]string{marker}, secrets...), flags)
		on(t, n, "sh -c 'sleep 0.5; exit 0' "+marker)
	}
	// A workflow has no such parameter, so the launcher adds it to each step.
	on(t, "primary", `sed -i 's/"$program" "$@"$/& --verbose/' `+program)
	t.Cleanup(func() { on(t, "primary", "sed -i 's/ --verbose$//' "+program) })
	verbose := say(action(t, "preflight", nil))
	require.Contains(t, verbose.raw, "level=DEBUG")
	say(action(t, "join_secondary", map[string]any{"dry_run": true}))
	on(t, "secondary", "chattr +i /etc/fstab")
	o := say(action(t, "join_secondary", nil))
	on(t, "secondary", "chattr -i /etc/fstab")
	require.Equal(t, "failed", o.Status, o.raw)
	settle(t, "primary")
	on(t, "primary", "rabbitmqctl --quiet add_user st2 another-one")
	o = say(action(t, "join_secondary", nil))
	require.Equal(t, "failed", o.Status, o.raw)
	require.Contains(t, o.raw, "rabbitmq_password")
	o = say(action(t, "join_secondary", map[string]any{"update_password": true}))
	require.Equal(t, "succeeded", o.Status, o.raw)
	settle(t, "primary")
	for _, n := range nodes {
		for _, file := range holding(t, n, secrets) {
			require.True(t, file == "/etc/st2/st2.conf" || strings.HasPrefix(file, "/var/lib/st2ha/runs/") && strings.HasSuffix(file, ".image"), "%s: %s", n, file)
			require.Contains(t, []string{"600\n", "640\n", "660\n"}, on(t, n, "stat -c %a "+file), "%s: %s", n, file)
		}
	}
	for _, address := range []string{secondary, primary} {
		o = say(action(t, "rollback", map[string]any{"host": address}))
		require.Equal(t, "succeeded", o.Status, o.raw)
	}
	settle(t, "primary")
	on(t, "primary", "rabbitmqctl --quiet delete_user st2")
	for _, n := range nodes {
		for _, file := range holding(t, n, secrets) {
			require.Equal(t, "/etc/st2/st2.conf", file, n)
		}
		require.Empty(t, holding(t, n, forms(t, password)), n)
		found := stops[n]()
		require.Contains(t, found, "argv 0 sh", "%s: the marker", n)
		for _, find := range found {
			require.True(t, strings.HasPrefix(find, "argv 0 "), "%s: %s", n, find)
		}
	}
	for i, secret := range secrets {
		require.NotContains(t, said, secret, "secret %d in what the runs said", i)
	}
}
