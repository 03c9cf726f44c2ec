package cli

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"st2ha/internal/fault"
)

// What cannot be right ends before any host is asked, and with no secret in what is printed.
func TestEnrollUsage(t *testing.T) {
	const node, primary = "--host=198.51.100.2", "--primary=198.51.100.2"
	password := map[string]string{"ST2HA_PASSWORD": "hunter2"}
	key := map[string]string{"ST2HA_PRIVATE_KEY": "hunter2"}
	for name, tc := range map[string]struct {
		env  map[string]string
		args []string
		says string
	}{
		"no user":     {nil, []string{node}, "user is missing"},
		"no host":     {nil, []string{"--user=admin"}, "host is missing"},
		"no password": {nil, []string{node, "--user=admin"}, "password or private_key is missing"},
		"no key":      {key, []string{node, "--user=a"}, "private_key is not a private key"},
		"itself":      {password, []string{"--host=127.0.0.1", "--user=a"}, "host 127.0.0.1 is this machine"},
		"the primary": {password, []string{node, "--user=a", primary}, "host 198.51.100.2 is the primary"},
		"known_hosts": {password, []string{node, "--user=a", "--known_hosts=/x"},
			"known_hosts has to name /etc/ssh/ssh_known_hosts"},
		"by the environment, as an action": {map[string]string{"ST2HA_GIVEN_HOST": "198.51.100.2", "ST2HA_GIVEN_USER": "a",
			"ST2HA_PASSWORD": "hunter2", "ST2HA_GIVEN_FINGERPRINT": "SHA256:hunter2", "ST2HA_GIVEN_DRY_RUN": "True"}, nil,
			`fingerprint must be SHA256: and 43 characters, as ssh-keygen -l prints it, not "SHA256:********"`},
		"no number":            {map[string]string{"ST2HA_GIVEN_WAIT": "x"}, nil, `enroll: invalid argument "x"`},
		"a password as a flag": {nil, []string{"--password=hunter3"}, "unknown flag: --password"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, said bytes.Buffer
			code := Run(t.Context(), append([]string{"enroll"}, tc.args...), func(n string) string { return tc.env[n] },
				&out, &said)
			require.Equal(t, fault.ExitUsage, code, said.String())
			require.Contains(t, said.String(), tc.says)
			require.NotContains(t, out.String()+said.String(), "hunter2")
		})
	}
	// Other commands take no parameter from the environment: a variable of theirs would be another's.
	env := func(name string) string { return map[string]string{"ST2HA_GIVEN_WAIT": "x"}[name] }
	require.NotContains(t, run(t, env, "report"), "invalid argument")
}

func run(t *testing.T, getenv func(string) string, args ...string) string {
	t.Helper()
	var said bytes.Buffer
	Run(t.Context(), args, getenv, io.Discard, &said)
	return said.String()
}
