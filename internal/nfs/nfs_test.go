package nfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"st2ha/internal/confedit"
	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

// machine is a host below a temporary root whose programs are canned.
type machine struct {
	*host.Local
	root  string
	mutex sync.Mutex
	ran   []string
	run   func(argv string) (string, error)
	st2   string // what systemd says of the services that read the content; empty: it has none of them
}

func (m *machine) Run(_ context.Context, _ []byte, argv ...string) ([]byte, error) {
	line := strings.Join(argv, " ")
	m.mutex.Lock() // a step may run several at a time
	defer m.mutex.Unlock()
	if strings.HasPrefix(line, "systemctl show --property=LoadState,NeedDaemonReload st2") {
		return []byte(strings.Repeat(cmp.Or(m.st2, "LoadState=not-found\nNeedDaemonReload=no\n\n"), 4)), nil
	}
	m.ran = append(m.ran, line)
	if m.run == nil {
		return nil, nil
	}
	out, err := m.run(line)
	return []byte(out), err
}

// newMachine has files and, ending in a slash, directories.
func newMachine(t *testing.T, name string, files map[string]string) *machine {
	t.Helper()
	m := &machine{root: t.TempDir()}
	m.Local = host.NewLocalAt(name, m.root)
	require.NoError(t, os.MkdirAll(m.root+"/etc", 0o755))
	for file, data := range files {
		dir := m.root + file
		if !strings.HasSuffix(file, "/") {
			dir = filepath.Dir(dir)
		}
		require.NoError(t, os.MkdirAll(dir, 0o755))
		if !strings.HasSuffix(file, "/") {
			require.NoError(t, os.WriteFile(m.root+file, []byte(data), 0o644))
		}
	}
	return m
}

const listing = "/srv          \t<world>(sync,wdelay,hide,no_subtree_check,sec=sys,ro,secure,root_squash,no_all_squash)\n" +
	"/opt/a        \t192.168.0.101(sync,wdelay,hide,no_subtree_check,anonuid=0,anongid=999,sec=sys,rw,secure,root_squash,no_all_squash)\n" +
	"/opt/stackstorm/packs\n" +
	"\t\t192.168.0.101(sync,wdelay,hide,no_subtree_check,anonuid=0,anongid=999,sec=sys,rw,secure,root_squash,no_all_squash)\n" +
	"/opt/stackstorm/packs\n" +
	"\t\t192.168.0.102(sync,wdelay,hide,no_subtree_check,anonuid=0,anongid=999,sec=sys,ro,secure,root_squash,no_all_squash)\n" +
	"/opt/a b      \t2001:db8::65(rw,sync)\n" +
	"/opt/stackstorm/with space\n" +
	"\t\tnode2.example(sync,rw)\n"

func TestListing(t *testing.T) {
	have := exported(listing)
	require.Len(t, have, 6)
	for key, want := range map[[2]string]string{
		{"/srv", "<world>"}:                             "sync,wdelay,hide,no_subtree_check,sec=sys,ro,secure,root_squash,no_all_squash",
		{"/opt/a b", "2001:db8::65"}:                    "rw,sync",
		{"/opt/stackstorm/with space", "node2.example"}: "sync,rw",
	} {
		require.Equal(t, want, have[key])
	}
	require.Contains(t, have[[2]string{"/opt/stackstorm/packs", "192.168.0.102"}], ",ro,")
	require.Empty(t, exported(""))
	require.Empty(t, exported("\n\t\t\nexportfs: nothing\n"))
}

func TestExported(t *testing.T) {
	m := newMachine(t, "primary", nil)
	m.run = func(string) (string, error) { return listing, nil }
	s := &Export{Clients: []string{"192.168.0.101"}}
	require.NoError(t, s.exported(t.Context(), m, []string{"/opt/a", "/opt/stackstorm/packs"}))
	s.Clients = append(s.Clients, "192.168.0.102")
	err := s.exported(t.Context(), m, []string{"/opt/stackstorm/packs"})
	require.ErrorContains(t, err, "/opt/stackstorm/packs is not exported to 192.168.0.102 for reading and writing")
	require.Equal(t, "export", fault.Of(err).Code)
}

func TestValidate(t *testing.T) {
	for _, ok := range [][]string{nil, {"/opt/stackstorm/packs"}, {"/opt/a", "/opt/ab"},
		{"/opt/a", "/srv/a b"}, {"/opt/ä"}} {
		require.NoError(t, Validate(ok), ok)
	}
	for _, bad := range [][]string{
		{""}, {"opt"}, {"/opt/"}, {"/opt//a"}, {"/opt/../etc"}, {"/opt/./a"}, {"/"}, {"/etc"}, {"/usr"}, {"/var"},
		{"/home"}, {"/home/stanley/x"}, {"/etc/x"}, {"/root/x"},
		{"/opt/a\nb"}, {"/opt/a\tb"}, {"/opt/a", "/opt/a"}, {"/opt/a", "/opt/a/b"}, {"/opt/a/b", "/srv", "/opt/a"},
	} {
		err := Validate(bad)
		require.Error(t, err, bad)
		require.Equal(t, fault.ExitUsage, fault.Of(err).Exit)
	}
	for _, ok := range []string{DefaultMountOptions, "rw", "sec=krb5,vers=4.2"} {
		require.NoError(t, ValidateOptions(ok))
	}
	for _, bad := range []string{"", "rw, hard", "rw\tx", "rw\n", "#rw", "rw\x7f"} {
		require.Equal(t, fault.ExitUsage, fault.Of(ValidateOptions(bad)).Exit, bad)
	}
}

func TestDirectories(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t, "primary", map[string]string{"/opt/stackstorm/packs/": ""})
	dirs, err := Directories(ctx, m, nil)
	require.NoError(t, err)
	require.Equal(t, []string{"/opt/stackstorm/packs", "/opt/stackstorm/virtualenvs"}, dirs)
	require.NoError(t, os.Mkdir(m.root+"/opt/stackstorm/configs", 0o755))
	dirs, err = Directories(ctx, m, nil)
	require.NoError(t, err)
	require.Equal(t, []string{"/opt/stackstorm/packs", "/opt/stackstorm/virtualenvs", "/opt/stackstorm/configs"}, dirs)
	dirs, err = Directories(ctx, m, []string{"/srv/x"})
	require.NoError(t, err)
	require.Equal(t, []string{"/srv/x"}, dirs)
	_, err = Directories(ctx, m, []string{"/etc"})
	require.Error(t, err)
}

func TestGroupID(t *testing.T) {
	for out, want := range map[string]int{"st2packs:x:999:st2,stanley\n": 999, "st2packs:x:1001:": 1001, "st2packs": -1,
		"": -1, "st2packs:x:many:\n": -1} {
		m := newMachine(t, "primary", nil)
		m.run = func(string) (string, error) { return out, nil }
		gid, err := groupID(t.Context(), m, Group)
		require.Equal(t, []string{"getent group st2packs"}, m.ran)
		if want < 0 {
			require.Error(t, err, out)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, want, gid)
	}
	m := newMachine(t, "primary", nil)
	m.run = func(string) (string, error) { return "", errors.New("status 2") }
	_, err := groupID(t.Context(), m, Group)
	require.Equal(t, fault.ExitPreflight, fault.Of(err).Exit)
}

func what(changes []step.Change) []string {
	var found []string
	for _, c := range changes {
		found = append(found, c.Kind()+" "+c.Target())
	}
	return found
}

func TestExportPlan(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t, "primary",
		map[string]string{"/opt/stackstorm/packs/": "", "/usr/sbin/exportfs": "", "/etc/exports": "# mine\n"})
	exports := ""
	inactive := false
	m.run = func(argv string) (string, error) {
		switch {
		case strings.HasPrefix(argv, "getent"):
			return "st2packs:x:999:\n", nil
		case argv == "exportfs -v":
			return exports, nil
		case strings.HasPrefix(argv, "systemctl show") && !inactive:
			return "ActiveState=active\nUnitFileState=enabled\n", nil
		}
		return "", nil
	}
	s := &Export{Directories: []string{"/opt/stackstorm/packs"}, Clients: []string{"192.168.0.101", "192.168.0.102"}}
	findings, err := s.Check(ctx, m)
	require.NoError(t, err)
	require.Empty(t, findings)
	changes, err := s.Plan(ctx, m)
	require.NoError(t, err)
	require.Equal(t, []string{"file /etc/exports", "exportfs /etc/exports"}, what(changes))
	for _, c := range changes {
		require.NoError(t, c.Apply(ctx, m))
	}
	data, err := os.ReadFile(m.root + "/etc/exports")
	require.NoError(t, err)
	const options = "(rw,sync,no_subtree_check,anonuid=0,anongid=999)"
	require.Equal(t, "# mine\n/opt/stackstorm/packs 192.168.0.101"+options+" 192.168.0.102"+options+"\n", string(data))

	// The file is right: only what the kernel lacks is done.
	changes, err = s.Plan(ctx, m)
	require.NoError(t, err)
	require.Equal(t, []string{"exportfs /etc/exports"}, what(changes))
	exports = "/opt/stackstorm/packs\n\t\t192.168.0.101(rw)\n/opt/stackstorm/packs\n\t\t192.168.0.102(rw)\n"
	changes, err = s.Plan(ctx, m)
	require.NoError(t, err)
	require.Empty(t, changes)
	require.NoError(t, s.Verify(ctx, m))
	inactive = true
	changes, err = s.Plan(ctx, m)
	require.NoError(t, err)
	require.Equal(t, []string{"start nfs-server.service", "exportfs /etc/exports"}, what(changes))
	inactive = false

	require.NoError(t, os.Remove(m.root+"/usr/sbin/exportfs"))
	require.NoError(t, os.Remove(m.root+"/etc/exports"))
	changes, err = s.Plan(ctx, m)
	require.NoError(t, err)
	require.Equal(t, []string{"package nfs-kernel-server", "file /etc/exports", "start nfs-server.service",
		"exportfs /etc/exports"}, what(changes))

	s.Directories = []string{"/opt/none", "/opt/file"}
	require.NoError(t, os.WriteFile(m.root+"/opt/file", nil, 0o644))
	findings, err = s.Check(ctx, m)
	require.NoError(t, err)
	require.Len(t, findings, 2)
	require.Contains(t, findings[0].Message, "/opt/none does not exist")
	require.Contains(t, findings[1].Message, "/opt/file is not a directory")

	// What a link leads to is what would be shared.
	require.NoError(t, os.MkdirAll(m.root+"/root/own", 0o755))
	require.NoError(t, os.Symlink("/root/own", m.root+"/opt/link"))
	require.NoError(t, os.MkdirAll(m.root+"/proc/1", 0o755))
	require.NoError(t, os.WriteFile(m.root+"/proc/1/mountinfo", nil, 0o644))
	for _, s := range []step.Step{&Export{Directories: []string{"/opt/link"}},
		&Mount{Primary: m, Directories: []string{"/opt/link"}}} {
		findings, err = s.Check(ctx, m)
		require.NoError(t, err)
		require.Len(t, findings, 1, s.Name())
		require.Contains(t, findings[0].Message,
			"/opt/link: directory /root/own is the system's own, once links are resolved")
	}
	require.NoError(t, os.Remove(m.root+"/opt/link"))
}

// An export the administrator made otherwise is not repeated.
func TestExportConflict(t *testing.T) {
	m := newMachine(t, "primary",
		map[string]string{"/usr/sbin/exportfs": "", "/etc/exports": "\n/opt/a 192.168.0.101(ro)\n"})
	m.run = func(string) (string, error) { return "st2packs:x:999:\n", nil }
	_, err := (&Export{Directories: []string{"/opt/a"}, Clients: []string{"192.168.0.101"}}).Plan(t.Context(), m)
	require.ErrorContains(t, err, "primary: /etc/exports: line 2")
	require.Equal(t, fault.ExitPreflight, fault.Of(err).Exit)
}

const rootMounted = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"

func TestMountPlan(t *testing.T) {
	ctx := t.Context()
	primary := newMachine(t, "primary", map[string]string{"/opt/a/": "", "/opt/b/": "", "/opt/c/": ""})
	require.NoError(t, os.Chmod(primary.root+"/opt/c", 0o770))
	m := newMachine(t, "secondary", map[string]string{
		"/sbin/mount.nfs": "", "/proc/1/mountinfo": rootMounted, "/etc/fstab": "/dev/sda1 / ext4 defaults 0 1\n",
		"/opt/a/pack/": "", "/opt/a.before-st2ha/": "", "/opt/b/": "",
	})
	s := &Mount{PrimaryAddress: "192.168.0.100", Primary: primary, Directories: []string{"/opt/a", "/opt/b", "/opt/c"},
		Options: DefaultMountOptions}
	findings, err := s.Check(ctx, m)
	require.NoError(t, err)
	require.Empty(t, findings)
	changes, err := s.Plan(ctx, m)
	require.NoError(t, err)
	require.Equal(t, []string{"file /etc/fstab", "daemon_reload systemd", "aside /opt/a", "mount /opt/a",
		"mount /opt/b", "directory /opt/c", "mount /opt/c"}, what(changes))
	require.Contains(t, changes[0].Diff(), "+192.168.0.100:/opt/a /opt/a nfs _netdev,nofail,bg,hard 0 0\n")

	// The mount would take this very program away, unless the primary has it.
	s.Program = "/opt/a/pack/bin/st2ha"
	findings, err = s.Check(ctx, m)
	require.NoError(t, err)
	require.Len(t, findings, 1)
	require.Equal(t, "the mount on /opt/a would hide this program, /opt/a/pack/bin/st2ha: the primary has none there",
		findings[0].Message)
	require.NoError(t, os.MkdirAll(primary.root+"/opt/a/pack/bin/st2ha", 0o755))
	findings, err = s.Check(ctx, m)
	require.NoError(t, err)
	require.Empty(t, findings)

	// A run that was killed before its reload left the file as it shall be, and systemd as it was.
	killed := changes[0]
	before, err := os.ReadFile(m.root + "/etc/fstab")
	require.NoError(t, err)
	require.NoError(t, killed.Apply(ctx, m))
	for answer, want := range map[string]bool{"not-found no": true, "loaded yes": true, "loaded no": false} {
		m.run = func(argv string) (string, error) {
			require.Equal(t, "systemctl show --property=LoadState,NeedDaemonReload opt-a.mount opt-b.mount opt-c.mount",
				argv)
			state, need, _ := strings.Cut(answer, " ")
			return strings.Repeat("LoadState=loaded\nNeedDaemonReload=no\n\n",
				2) + "LoadState=" + state + "\nNeedDaemonReload=" + need + "\n", nil
		}
		again, err := s.Plan(ctx, m)
		require.NoError(t, err)
		require.Equal(t, want, what(again)[0] == "daemon_reload systemd", answer)
	}
	m.run = nil
	require.NoError(t, os.WriteFile(m.root+"/etc/fstab", before, 0o644))

	aside := changes[2].(*Aside)
	require.Equal(t, "/opt/a.before-st2ha-2", aside.Kept)
	require.Equal(t, 1, aside.Entries)
	require.Equal(t, fs.FileMode(0o770), changes[5].(*step.MakeDir).Mode)

	// All is mounted.
	require.NoError(t, changes[0].Apply(ctx, m))
	table := rootMounted
	for _, dir := range s.Directories {
		table += "30 22 0:1 / " + dir + " rw - nfs4 192.168.0.100:" + dir + " rw\n"
	}
	require.NoError(t, os.WriteFile(m.root+"/proc/1/mountinfo", []byte(table), 0o644))
	changes, err = s.Plan(ctx, m)
	require.NoError(t, err)
	require.Empty(t, changes)

	// Something else is, and what shall be a directory is none.
	require.NoError(t, os.WriteFile(m.root+"/proc/1/mountinfo",
		[]byte(rootMounted+"30 22 0:1 / /opt/a rw - nfs4 10.0.0.1:/x rw\n"), 0o644))
	require.NoError(t, os.WriteFile(m.root+"/opt/c", nil, 0o644))
	findings, err = s.Check(ctx, m)
	require.NoError(t, err)
	require.Len(t, findings, 2)
	require.Equal(t, "/opt/a is mounted from 10.0.0.1:/x already", findings[0].Message)
	require.Equal(t, "/opt/c is not a directory", findings[1].Message)
}

func TestMountPlanWithoutPackage(t *testing.T) {
	primary := newMachine(t, "primary", map[string]string{"/opt/a/": ""})
	m := newMachine(t, "secondary", map[string]string{"/proc/1/mountinfo": rootMounted, "/opt/a/": ""})
	s := &Mount{PrimaryAddress: "2001:db8::64", Primary: primary, Directories: []string{"/opt/a"}, Options: "rw"}
	changes, err := s.Plan(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, []string{"package nfs-common", "file /etc/fstab", "daemon_reload systemd", "mount /opt/a"},
		what(changes))
	require.Contains(t, changes[1].Diff(), "+[2001:db8::64]:/opt/a /opt/a nfs rw 0 0\n")
}

// The services that read what is mounted start on the mounts only.
func TestGuards(t *testing.T) {
	ctx := t.Context()
	primary := newMachine(t, "primary", map[string]string{"/opt/a/": ""})
	m := newMachine(t, "secondary", map[string]string{"/sbin/mount.nfs": "", "/opt/a/": "",
		"/proc/1/mountinfo": rootMounted + "30 22 0:1 / /opt/a rw - nfs4 192.168.0.100:/opt/a rw\n",
		"/etc/fstab":        "192.168.0.100:/opt/a /opt/a nfs rw 0 0\n",
		"/etc/systemd/system/st2api.service.d/own.conf": ""})
	m.st2 = "LoadState=loaded\nNeedDaemonReload=no\n\n"
	s := &Mount{PrimaryAddress: "192.168.0.100", Primary: primary, Directories: []string{"/opt/a"}, Options: "rw"}
	changes, err := s.Plan(ctx, m)
	require.NoError(t, err)
	const dir = "/etc/systemd/system/"
	require.Equal(t, []string{
		"file " + dir + "st2api.service.d/st2ha-mounts.conf",
		"directory " + dir + "st2sensorcontainer.service.d",
		"file " + dir + "st2sensorcontainer.service.d/st2ha-mounts.conf",
		"directory " + dir + "st2actionrunner@.service.d",
		"file " + dir + "st2actionrunner@.service.d/st2ha-mounts.conf",
		"directory " + dir + "st2actionrunner.service.d",
		"file " + dir + "st2actionrunner.service.d/st2ha-mounts.conf",
		"daemon_reload systemd"}, what(changes))
	for _, c := range changes {
		require.NoError(t, c.Apply(ctx, m))
	}
	again, err := s.Plan(ctx, m)
	require.NoError(t, err)
	require.Empty(t, again)

	// A run that was killed before its reload.
	m.st2 = "LoadState=loaded\nNeedDaemonReload=yes\n\n"
	again, err = s.Plan(ctx, m)
	require.NoError(t, err)
	require.Equal(t, []string{"daemon_reload systemd"}, what(again))

	// What somebody else put beside it stays, with its directory.
	require.NoError(t, os.WriteFile(m.root+dir+"st2actionrunner.service.d/override.conf", nil, 0o644))
	for _, c := range slices.Backward(changes) {
		require.NoError(t, c.Undo(ctx, m))
	}
	names, err := filepath.Glob(m.root + dir + "*/*")
	require.NoError(t, err)
	require.Equal(t, []string{m.root + dir + "st2actionrunner.service.d/override.conf",
		m.root + dir + "st2api.service.d/own.conf"}, names)
	require.NoDirExists(t, m.root+dir+"st2sensorcontainer.service.d")
}

// The guard's program finds a mount, whatever its name, and takes nothing else for it.
func TestGuardFindsMounts(t *testing.T) {
	for _, dir := range []string{"/opt/stackstorm/packs", "/opt/a b", `/opt/a\b`, "/opt/50%$x", `/opt/"it"`,
		"/opt/a.b+(c)[d]{2}^|*?", "/ä"} {
		var argv []string
		for _, l := range confedit.Unit(guard("st2api.service", []string{dir})) {
			require.Equal(t, "Service ExecStartPre", l.Section+" "+l.Key)
			words, ok := confedit.UnitWords(l.Value)
			require.True(t, ok, l.Value)
			for _, w := range words {
				argv = append(argv, strings.NewReplacer("%%", "%", "$$", "$").Replace(w))
			}
		}
		require.Len(t, argv, 4)
		require.Equal(t, "/proc/self/mountinfo", argv[3])
		point := strings.NewReplacer(`\`, `\134`, " ", `\040`).Replace(dir)
		for line, want := range map[string]bool{
			"30 22 0:1 / " + point + " rw,relatime shared:1 - nfs4 192.168.0.100:/x rw":           true,
			"30 22 0:1 / " + point + " rw - autofs systemd-1 rw":                                  true,
			"30 22 0:1 / " + point + "2 rw - nfs4 192.168.0.100:/x rw":                            false,
			"30 22 0:1 / /elsewhere rw - nfs4 192.168.0.100:" + point + " rw":                     false,
			"30 22 8:1 " + point + " /var/lib/container rw,relatime shared:1 - ext4 /dev/sda1 rw": false,
		} {
			grep := exec.CommandContext(t.Context(), argv[0], argv[1:3]...)
			grep.Stdin = strings.NewReader(rootMounted + line + "\n")
			require.Equal(t, want, grep.Run() == nil, "%s: %s", argv[2], line)
		}
	}
}

func TestFstabConflict(t *testing.T) {
	primary := newMachine(t, "primary", map[string]string{"/opt/a/": ""})
	m := newMachine(t, "secondary",
		map[string]string{"/sbin/mount.nfs": "", "/proc/1/mountinfo": rootMounted, "/opt/a/": "",
			"/etc/fstab": "#\n/dev/sdb1 /opt/a ext4 defaults 0 2\n"})
	s := &Mount{PrimaryAddress: "192.168.0.100", Primary: primary, Directories: []string{"/opt/a"}, Options: "rw"}
	_, err := s.Plan(t.Context(), m)
	require.ErrorContains(t, err, "secondary: /etc/fstab: line 2")
	require.Equal(t, fault.ExitPreflight, fault.Of(err).Exit)
}

// Options that somebody chose are not replaced without a word.
func TestOtherOptions(t *testing.T) {
	primary := newMachine(t, "primary", map[string]string{"/opt/a/": "", "/opt/b/": ""})
	m := newMachine(t, "secondary",
		map[string]string{"/sbin/mount.nfs": "", "/proc/1/mountinfo": rootMounted, "/opt/a/": "", "/opt/b/": "",
			"/etc/fstab": "#\n192.168.0.100:/opt/a /opt/a nfs ro,vers=4.1 0 0\n" +
				"192.168.0.100:/opt/b/ /opt/b nfs hard,rw 0 0\n"})
	s := &Mount{PrimaryAddress: "192.168.0.100", Primary: primary,
		Directories: []string{"/opt/a", "/opt/b"}, Options: "rw,hard"}
	findings, err := s.Check(t.Context(), m)
	require.NoError(t, err)
	require.Len(t, findings, 1)
	require.Equal(t, step.Warning, findings[0].Severity)
	require.Equal(t, "/etc/fstab:2 mounts /opt/a with the options ro,vers=4.1; they are replaced by rw,hard, from "+
		"the next mount on", findings[0].Message)
	require.Equal(t, "to keep them, give mount_options=ro,vers=4.1", findings[0].Fix)
	changes, err := s.Plan(t.Context(), m)
	require.NoError(t, err)
	require.Contains(t, changes[0].Diff(),
		"-192.168.0.100:/opt/a /opt/a nfs ro,vers=4.1 0 0\n+192.168.0.100:/opt/a /opt/a nfs rw,hard 0 0\n")
}

// An export that NFSv4 takes for the root hides all others from it.
func TestExportBesideARoot(t *testing.T) {
	for line, want := range map[string]string{
		"/srv *(ro,fsid=0)\n": "/etc/exports:1 makes /srv the root of NFSv4 (fsid=0): clients do not find /opt/a " +
			"by NFSv4",
		"#\n/srv -fsid=root *\n": "/etc/exports:2 makes /srv the root of NFSv4 (fsid=0): clients do not find /opt/a " +
			"by NFSv4",
		"/ *(ro,fsid=0)\n": "", "/srv *(fsid=1)\n": "",
	} {
		m := newMachine(t, "primary", map[string]string{"/opt/a/": "", "/etc/exports": line})
		findings, err := (&Export{Directories: []string{"/opt/a"}}).Check(t.Context(), m)
		require.NoError(t, err)
		if want == "" {
			require.Empty(t, findings)
			continue
		}
		require.Len(t, findings, 1)
		require.Equal(t, want, findings[0].Message)
		require.Equal(t, step.Warning, findings[0].Severity)
	}
}

func TestAside(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t, "secondary", map[string]string{"/opt/a/x": "data"})
	require.NoError(t, os.Chmod(m.root+"/opt/a", 0o750))
	a := &Aside{Dir: "/opt/a", Kept: "/opt/a.before-st2ha", Entries: 1, Mode: 0o750,
		UID: os.Geteuid(), GID: os.Getegid()}
	require.NoError(t, a.Undo(ctx, m), "never applied")
	require.FileExists(t, m.root+"/opt/a/x")
	require.NoError(t, a.Apply(ctx, m))
	require.FileExists(t, m.root+"/opt/a.before-st2ha/x")
	info, err := os.Stat(m.root + "/opt/a")
	require.NoError(t, err)
	require.Equal(t, fs.ModeDir|0o750, info.Mode())
	require.NoError(t, a.Undo(ctx, m))
	require.FileExists(t, m.root+"/opt/a/x")
	require.NoError(t, a.Undo(ctx, m), "twice")

	// Somebody removed what was kept: before and after the unmount.
	lost := func() []string {
		findings, err := a.CheckUndo(ctx, m)
		require.NoError(t, err)
		var said []string
		for _, f := range findings {
			require.Equal(t, step.Warning, f.Severity)
			said = append(said, f.Message)
		}
		return said
	}
	table := func(data string) { require.NoError(t, os.WriteFile(m.root+"/proc/1/mountinfo", []byte(data), 0o644)) }
	require.NoError(t, os.MkdirAll(m.root+"/proc/1", 0o755))
	table(rootMounted)
	require.Empty(t, lost(), "put back by a rollback that was killed")
	require.NoError(t, a.Apply(ctx, m))
	require.Empty(t, lost())
	require.NoError(t, os.Rename(m.root+"/opt/a.before-st2ha", m.root+"/elsewhere"))
	gone := []string{"/opt/a.before-st2ha, which kept what the mount hid, is gone: /opt/a is left empty"}
	require.Equal(t, gone, lost())
	require.NoError(t, os.WriteFile(m.root+"/opt/a/shared", nil, 0o644))
	table(rootMounted + "30 22 0:1 / /opt/a rw - nfs4 192.168.0.100:/opt/a rw\n")
	require.Equal(t, gone, lost())
	table(rootMounted)
	require.Empty(t, lost())
	require.NoError(t, os.RemoveAll(m.root+"/opt/a"))
	require.Equal(t, gone, lost())
	require.NoError(t, a.Undo(ctx, m), "nothing to put back")
	require.NoError(t, os.Rename(m.root+"/elsewhere", m.root+"/opt/a"))

	// Killed between its two halves.
	require.NoError(t, os.Rename(m.root+"/opt/a", m.root+"/opt/a.before-st2ha"))
	require.NoError(t, a.Undo(ctx, m))
	require.FileExists(t, m.root+"/opt/a/x")

	// What was written there since is not lost.
	require.NoError(t, a.Apply(ctx, m))
	require.NoError(t, os.WriteFile(m.root+"/opt/a/new", nil, 0o644))
	require.ErrorContains(t, a.Undo(ctx, m), "move away what was written there since")
	require.FileExists(t, m.root+"/opt/a/new")
	require.FileExists(t, m.root+"/opt/a.before-st2ha/x")
}

func TestMountUnit(t *testing.T) {
	ctx := t.Context()
	m := newMachine(t, "secondary", map[string]string{"/proc/1/mountinfo": rootMounted, "/opt/a-b/": ""})
	mounted := rootMounted + "30 22 0:1 / /opt/a-b rw - nfs4 192.168.0.100:/opt/a-b rw\n"
	busy := false
	m.run = func(argv string) (string, error) {
		table := rootMounted
		switch {
		case strings.Contains(argv, " start "):
			table = mounted
		case busy && strings.Contains(argv, " stop "):
			return "", &host.ExitError{Program: "systemctl stop", Code: 1, Stderr: "target is busy"}
		}
		return "", os.WriteFile(m.root+"/proc/1/mountinfo", []byte(table), 0o644)
	}
	u := &MountUnit{Dir: "/opt/a-b", Source: "192.168.0.100:/opt/a-b", Within: mountWait}
	require.NoError(t, u.Apply(ctx, m))
	require.Equal(t, []string{`systemctl start opt-a\x2db.mount`}, m.ran)
	m.ran = nil
	busy = true
	require.NoError(t, u.Undo(ctx, m))
	require.Equal(t, []string{`systemctl stop opt-a\x2db.mount`, "nsenter --target=1 --mount -- umount --lazy /opt/a-b",
		`systemctl reset-failed opt-a\x2db.mount`}, m.ran)
	m.ran = nil
	require.NoError(t, u.Undo(ctx, m), "twice")
	require.Len(t, m.ran, 1)

	m.run = func(string) (string, error) { return "", nil }
	require.ErrorContains(t, u.Apply(ctx, m), "is not mounted on /opt/a-b")
	m.run = func(string) (string, error) { return "", errors.New("timed out") }
	require.ErrorContains(t, u.Apply(ctx, m), "mount 192.168.0.100:/opt/a-b on /opt/a-b: timed out")
}

const mountWait = 60e9

// Both nodes see the same files only where they share them.
func TestShared(t *testing.T) {
	testenv.NeedsRoot(t)
	ctx := t.Context()
	primary := newMachine(t, "primary", map[string]string{"/opt/a/": ""})
	same := newMachine(t, "secondary", nil)
	require.NoError(t, os.Mkdir(same.root+"/opt", 0o755))
	require.NoError(t, os.MkdirAll(same.root+primary.root+"/opt", 0o755))
	s := &Mount{Primary: primary, Directories: []string{"/opt/a"}}
	same.Local = host.NewLocalAt("secondary", primary.root)
	for _, name := range []string{".st2ha-secondary-0123456789abcdef",
		"..st2ha-secondary-0123456789abcdef.st2ha-0123456789abcdef"} {
		require.NoError(t, os.WriteFile(primary.root+"/opt/a/"+name, nil, 0o600), "of a run that was killed")
	}
	require.NoError(t, s.Verify(ctx, same))
	names, err := os.ReadDir(primary.root + "/opt/a")
	require.NoError(t, err)
	require.Empty(t, names, "nothing is left behind")

	other := newMachine(t, "secondary", map[string]string{"/opt/a/": ""})
	require.ErrorContains(t, s.Verify(ctx, other), "is not seen on")
	names, err = os.ReadDir(other.root + "/opt/a")
	require.NoError(t, err)
	require.Empty(t, names)
}

// A rollback that removed the NFS server with its exports ends well all the same.
func TestReexportUndo(t *testing.T) {
	m := newMachine(t, "primary", nil)
	m.run = func(string) (string, error) { return "", fmt.Errorf("run exportfs: %w", exec.ErrNotFound) }
	r := &Reexport{}
	require.NoError(t, r.Undo(t.Context(), m))
	require.Equal(t, []string{"exportfs -ra"}, m.ran)
	require.ErrorIs(t, r.Apply(t.Context(), m), exec.ErrNotFound)
	m.run = func(string) (string, error) { return "", errors.New("no such host") }
	require.ErrorContains(t, r.Undo(t.Context(), m), "no such host")
}
