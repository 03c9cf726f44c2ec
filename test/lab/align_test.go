package lab

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestAlignIDs: a secondary whose users and groups have other numbers than the primary's gets those, with its files;
// undone, it has its own again.
func TestAlignIDs(t *testing.T) {
	needs(t)
	unjoined(t)
	keep(t, "secondary", "/etc/passwd", "/etc/passwd-", "/etc/group", "/etc/group-", "/etc/shadow", "/etc/shadow-",
		"/etc/gshadow", "/etc/gshadow-")
	const (
		ids    = "id -u st2; getent group st2packs | cut -d: -f3"
		files  = `find / -xdev \( -uid 1778 -o -gid 1777 \) | wc -l`
		status = "systemctl is-active st2api st2scheduler st2sensorcontainer"
	)
	before := on(t, "secondary", ids)
	on(t, "secondary", `set -e
st2ctl stop >/dev/null
groupmod -g 1777 st2packs; usermod -u 1778 st2
find / -xdev -gid 1499 -exec chgrp -h 1777 {} +; find / -xdev -uid 980 -exec chown -h 1778 {} +
st2ctl start >/dev/null
install -o st2 -g st2packs -m 6755 /bin/true /var/log/st2/suid`)
	t.Cleanup(func() { on(t, "secondary", "rm -f /var/log/st2/suid /var/log/st2/late") })
	r := st2ha(t, "primary", "preflight", "--primary="+primary, "--secondaries="+secondary)
	require.Equal(t, 3, r.exit, r.raw)
	require.Equal(t, "ids", r.Error.Code, r.raw)
	require.Contains(t, r.Error.Hint, "st2 run st2ha.align_ids host="+secondary+" primary="+primary)

	align := []string{"align_ids", "--host=" + secondary, "--primary=" + primary}
	r = st2ha(t, "primary", append(align, "--dry_run")...)
	require.Zero(t, r.exit, r.raw)
	require.Len(t, r.Changes, 4, r.raw)
	require.Equal(t, "1778\n1777\n", on(t, "secondary", ids))

	// Somebody else has the number, or works as the user.
	on(t, "secondary", "groupadd -g 1499 theirs")
	r = st2ha(t, "primary", align...)
	require.Equal(t, "id_taken", r.Error.Code, r.raw)
	on(t, "secondary", "groupdel theirs; systemd-run --quiet --unit=lab-busy --uid=st2 sleep 600")
	r = st2ha(t, "primary", align...)
	require.Equal(t, "processes", r.Error.Code, r.raw)
	require.Contains(t, r.Error.Message, "(sleep) runs as st2")
	on(t, "secondary", "systemctl stop lab-busy")

	r = st2ha(t, "primary", append(align, "--run=align")...)
	require.Zero(t, r.exit, r.raw)
	require.True(t, r.Changed)
	require.Equal(t, before, on(t, "secondary", ids))
	require.Equal(t, "0\n", on(t, "secondary", files))
	require.Equal(t, "6755 st2 st2packs\n", on(t, "secondary", "stat -c '%a %U %G' /var/log/st2/suid"))
	on(t, "secondary", status)
	r = st2ha(t, "primary", align...)
	require.Zero(t, r.exit, r.raw)
	require.False(t, r.Changed, r.raw)

	on(t, "secondary", "install -o st2 -g st2packs -m 600 /dev/null /var/log/st2/late")
	r = st2ha(t, "primary", "rollback", "--host="+secondary, "--only=align")
	require.Zero(t, r.exit, r.raw)
	require.Equal(t, "1778\n1777\n", on(t, "secondary", ids))
	require.Equal(t, "6755 st2 st2packs\n600 st2 st2packs\n",
		on(t, "secondary", "stat -c '%a %U %G' /var/log/st2/suid /var/log/st2/late"))
	eventually(t, "secondary", status+" >/dev/null")

	r = st2ha(t, "primary", align...)
	require.Zero(t, r.exit, r.raw)
	require.Equal(t, before, on(t, "secondary", ids))
}
