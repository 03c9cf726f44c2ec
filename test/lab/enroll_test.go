package lab

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Nodes that know nothing of each other are enrolled by a person's login, whose sudo asks for another password.
func TestEnroll(t *testing.T) {
	needs(t)
	nodes := []string{"primary", "secondary", "secondary2"}
	installed(t, nodes...) // they stay changed, and are installed anew for the next test
	const login, sudo = `p3rson's "own"`, "sud0-s3cret"
	before := map[string][]string{}
	for _, n := range nodes {
		// The image's last key is the lab's own.
		on(t, n, "rm -f /home/stanley/.ssh/known_hosts /etc/ssh/ssh_known_hosts; cd /home/stanley/.ssh; "+
			"{ cat stanley_rsa.pub; grep -v stanley@ authorized_keys; } > x && cat x > authorized_keys && rm x")
		if n != "primary" {
			// The last file is sudo's own note that it has lectured a member of the group admin.
			on(t, n, "rm /etc/sudoers.d/st2; useradd --create-home --shell /bin/bash admin; "+
				"install -o admin -g admin -m 644 /dev/null /home/admin/.sudo_as_admin_successful; "+
				"printf 'admin:%s\nroot:%s\n' '"+strings.ReplaceAll(login, "'", `'\''`)+"' "+sudo+" | chpasswd; "+
				"printf 'Defaults:admin rootpw\nadmin ALL=(ALL:ALL) ALL\n' > /etc/sudoers.d/admin; "+
				"printf 'PasswordAuthentication yes\nKbdInteractiveAuthentication no\n' > /etc/ssh/sshd_config.d/lab.conf; "+
				"systemctl reload ssh || systemctl reload sshd")
		}
		before[n] = tree(t, n)
	}
	enroll := func(address string, more ...string) result {
		t.Helper()
		line := "IFS= read -r ST2HA_PASSWORD; IFS= read -r ST2HA_USER_SUDO_PASSWORD; " +
			"export ST2HA_PASSWORD ST2HA_USER_SUDO_PASSWORD; exec " + program + " enroll --host=" + address + " --user=admin " +
			strings.Join(more, " ")
		r := printed(t, command([]byte(login+"\n"+sudo+"\n"), "./lab.sh", "ssh", "primary", line))
		for _, secret := range []string{login, sudo, "PRIVATE KEY"} {
			require.NotContains(t, r.raw, secret)
		}
		return r
	}
	unchanged := func() {
		t.Helper()
		for _, n := range nodes {
			require.Empty(t, difference(before[n], tree(t, n)), n)
		}
	}
	fingerprint := func(node string) string {
		return strings.Fields(on(t, node, "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"))[1]
	}

	r := enroll(secondary)
	require.Equal(t, 3, r.exit, r.raw)
	require.Equal(t, "fingerprint", r.Error.Code)
	require.Contains(t, r.Error.Message, fingerprint("secondary"))
	require.Contains(t, r.Error.Hint, "ssh-keygen -lf")
	r = enroll(secondary, "--fingerprint="+fingerprint("secondary2"))
	require.Equal(t, 3, r.exit, r.raw)
	require.Contains(t, r.Error.Message, "no password was sent")
	r = enroll(secondary, "--dry_run", "--fingerprint="+fingerprint("secondary"))
	require.Equal(t, 0, r.exit, r.raw)
	unchanged()

	// A proof that fails takes it back on all nodes.
	on(t, "secondary", "printf 'AllowUsers admin root\n' >> /etc/ssh/sshd_config.d/lab.conf; systemctl reload ssh")
	before["secondary"] = tree(t, "secondary")
	r = enroll(secondary, "--fingerprint="+fingerprint("secondary"))
	require.Equal(t, 1, r.exit, r.raw)
	require.Equal(t, "enroll_proof", r.Error.Code)
	unchanged()
	on(t, "secondary", "sed -i /AllowUsers/d /etc/ssh/sshd_config.d/lab.conf; systemctl reload ssh")
	before["secondary"] = tree(t, "secondary")

	r = enroll(secondary, "--fingerprint="+fingerprint("secondary"))
	require.Equal(t, 0, r.exit, r.raw)
	r = enroll(secondary2, "--secondaries="+secondary, "--fingerprint="+fingerprint("secondary2"))
	require.Equal(t, 0, r.exit, r.raw)
	for _, from := range nodes {
		for _, to := range []string{primary, secondary, secondary2} {
			require.Equal(t, "0\n", on(t, from, fmt.Sprintf("ssh -o BatchMode=yes -i /home/stanley/.ssh/stanley_rsa "+
				"-o UserKnownHostsFile=/dev/null stanley@%s sudo -n id -u", to)), "%s to %s", from, to)
		}
	}
	r = enroll(secondary2, "--secondaries="+secondary, "--fingerprint="+fingerprint("secondary2"))
	require.Equal(t, 0, r.exit, r.raw)
	require.Empty(t, r.Changes, r.raw)

	for _, address := range []string{secondary2, secondary, primary} {
		r := st2ha(t, "primary", "rollback", "--host="+address)
		require.Equal(t, 0, r.exit, r.raw)
		if address != primary { // by itself: with the enrolment go the rights by which it would be done from here
			require.Equal(t, "handed_over", r.Findings[0].Check, r.raw)
			handedOver(t, address)
		}
	}
	unchanged()
}
