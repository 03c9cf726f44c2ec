package stackstorm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"st2ha/internal/fault"
	"st2ha/internal/step"
	"st2ha/internal/testenv"
)

// A key, and what symmetric_encrypt of StackStorm 3.9.0 made with it.
const (
	madeKey = `{"hmacKey": {"hmacKeyString": "2gDjvs1c5Klzi516ztVDdd8adlWuBhnmBGrZJnjaWME", "size": 256}, ` +
		`"aesKeyString": "mwFL3hU6qttjtjy5mM-AthV41uvW6v9QoP2Em1tc0CQ", "mode": "CBC", "size": 256}`
	madeValue = "3030303030B71A4BF946CE01CFEB6C760CCA44429246095003FD51C13EC9C02A96C20C34C92515319E303C8F4A2A6DD64C51154CF5" +
		"76CE0D6B3C7AD1E753A568E93AD7F4A16F32AD31"
)

var anotherKey = strings.Replace(strings.Replace(madeKey, "2gDj", "3gDj", 1), "mwFL", "nwFL", 1)

func TestCrypto(t *testing.T) {
	k, err := parseKey([]byte(madeKey))
	require.NoError(t, err)
	text, err := k.decrypt(madeValue)
	require.NoError(t, err)
	require.Equal(t, "what the primary wrote: ä", text)
	other, err := parseKey([]byte(anotherKey))
	require.NoError(t, err)
	for _, text := range []string{"", "x", strings.Repeat("ä", 16)} {
		encrypted, err := k.encrypt(text)
		require.NoError(t, err)
		got, err := k.decrypt(encrypted)
		require.NoError(t, err)
		require.Equal(t, text, got)
		_, err = other.decrypt(encrypted)
		require.ErrorContains(t, err, "encrypted with another key")
	}
	for _, bad := range []string{"", "zz", madeValue[:60], madeValue[:len(madeValue)-2]} {
		_, err := k.decrypt(bad)
		require.Error(t, err, bad)
	}
	// Padding and blanks are passed over.
	_, err = parseKey([]byte(strings.Replace(madeKey, "tc0CQ", "tc 0CQ=\\n", 1)))
	require.NoError(t, err)
	for from, to := range map[string]string{`"CBC"`: `"ECB"`, `"mode": "CBC", "size": 256`: `"mode": "CBC", "size": 64`,
		`"aesKeyString"`: `"x"`, "mwFL": "", "2gDj": "2g!j", `"hmacKeyString"`: `"y"`, "{": "["} {
		_, err := parseKey([]byte(strings.Replace(madeKey, from, to, 1)))
		require.Error(t, err, from)
		require.NotContains(t, err.Error(), "hU6qttj")
	}
}

func FuzzKey(f *testing.F) {
	f.Add([]byte(madeKey), madeValue)
	f.Add([]byte(anotherKey), madeValue[:60])
	f.Add([]byte(`{"hmacKey": {}}`), "30")
	f.Fuzz(func(t *testing.T, file []byte, value string) {
		k, err := parseKey(file)
		if err != nil {
			return
		}
		_, _ = k.decrypt(value)
		encrypted, err := k.encrypt(value)
		require.NoError(t, err)
		got, err := k.decrypt(encrypted)
		require.NoError(t, err)
		require.Equal(t, value, got)
	})
}

// The files of the users, as [auth] names them.
func TestPasswords(t *testing.T) {
	for conf, want := range map[string]string{
		"":                                     "",
		`backend_kwargs = {"file_path": "/a"}`: "/a",
		"mode = standalone\nbackend = flat_file\n" + `backend_kwargs = {"file_path": "/a"}`: "/a",
		"mode = proxy\n" + `backend_kwargs = {"file_path": "/a"}`:                           "",
		"backend = ldap\n" + `backend_kwargs = {"file_path": "/a"}`:                         "",
		"backend_kwargs = {'file_path': '/a'}":                                              "",
	} {
		require.Equal(t, want, read(t, newMachine(t, "node", "[auth]\n"+conf+"\n")).Passwords(), conf)
	}
}

// keyNodes are a primary and a secondary, on which st2 is who runs this test.
func keyNodes(t *testing.T, primary, secondary string) (*machine, *SyncKeys) {
	t.Helper()
	p, m := newMachine(t, "192.168.0.100", primary), newMachine(t, "192.168.0.101", secondary)
	for _, node := range []*machine{p, m} {
		require.NoError(t, os.MkdirAll(node.root+"/srv", 0o755))
	}
	p.put(t, "/srv/key", madeKey)
	p.put(t, "/srv/users", "st2admin:$apr1$x\n")
	m.run = func(argv string) (string, error) {
		switch {
		case argv == "getent passwd st2":
			return "st2:x:1980:1981::/nonexistent:/usr/sbin/nologin\n", nil
		case strings.HasPrefix(argv, "runuser -u st2 -- test -r "):
			return "", nil
		}
		return "", errors.New("not expected: " + argv)
	}
	return m, &SyncKeys{Primary: p, Restart: Later}
}

const bothNamed = "[keyvalue]\nencryption_key_path = /srv/key\n[auth]\nbackend_kwargs = {\"file_path\": \"/srv/users\"}\n"

// tree is what lies below a machine's root, with owner, mode and contents.
func tree(t *testing.T, m *machine) (all []string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(m.root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && d.Name() != "keys" {
			return err
		}
		info, err := d.Info()
		require.NoError(t, err)
		data, _ := os.ReadFile(name)
		stat := info.Sys().(*syscall.Stat_t)
		all = append(all, strings.Join([]string{strings.TrimPrefix(name, m.root), info.Mode().String(), string(data),
			strings.Repeat("u", int(stat.Uid%7)), strings.Repeat("g", int(stat.Gid%7))}, " "))
		return nil
	}))
	return all
}

func TestSyncKeys(t *testing.T) {
	testenv.NeedsRoot(t)
	elsewhere := strings.ReplaceAll(bothNamed, "/srv/", "/etc/st2/keys/")
	const aside = ".before-st2ha-"
	for _, tc := range []struct {
		name, conf string
		files      map[string]string // on the secondary
		changes    []string
		findings   []string
	}{
		{"others, kept aside", bothNamed, map[string]string{"/srv/key": anotherKey, "/srv/users": "mine:x\n"},
			[]string{"file /srv/key" + aside + "aa4fa618", "file /srv/key", "file /srv/users" + aside + "0a2350b2", "file /srv/users",
				"restart_st2 st2"}, []string{"datastore_key", "htpasswd"}},
		{"elsewhere, and missing", elsewhere, nil, []string{"directory /etc/st2/keys", "file /etc/st2/keys/key",
			"file /etc/st2/keys/users", "restart_st2 st2"}, nil},
		{"empty", bothNamed, map[string]string{"/srv/key": madeKey, "/srv/users": ""},
			[]string{"file /srv/key", "file /srv/users", "restart_st2 st2"}, nil},
		{"not named", "[api]\n", nil, []string{"file /srv/key", "file /etc/st2/st2.conf", "restart_st2 st2"},
			[]string{"htpasswd"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ctx := t.Context()
			m, s := keyNodes(t, bothNamed, tc.conf)
			for file, data := range tc.files {
				m.put(t, file, data)
			}
			before := tree(t, m)
			findings, err := s.Check(ctx, m)
			require.NoError(t, err)
			var checks []string
			for _, f := range findings {
				require.Equal(t, step.Warning, f.Severity)
				checks = append(checks, f.Check)
			}
			require.Equal(t, tc.findings, checks)
			changes, err := s.Plan(ctx, m)
			require.NoError(t, err)
			var planned []string
			for _, c := range changes {
				planned = append(planned, c.Kind()+" "+c.Target())
				for _, secret := range []string{"aesKeyString", "apr1", "mine"} {
					require.NotContains(t, c.Diff(), secret)
				}
			}
			require.Equal(t, tc.changes, planned)
			for _, c := range changes {
				require.NoError(t, c.Apply(ctx, m))
			}
			require.NoError(t, s.Verify(ctx, m))
			for file, want := range map[string]string{read(t, m).EncryptionKey(): madeKey, read(t, m).Passwords(): "st2admin:$apr1$x\n"} {
				if file == "" {
					continue
				}
				f, err := m.ReadFile(ctx, file)
				require.NoError(t, err)
				require.Equal(t, want, string(f.Data))
				require.Equal(t, []any{fs.FileMode(0o600), 1980, 1981}, []any{f.Mode, f.UID, f.GID}, file)
			}
			again, err := s.Plan(ctx, m)
			require.NoError(t, err)
			require.Empty(t, again)
			for _, c := range slices.Backward(changes[:len(changes)-1]) {
				require.NoError(t, c.Undo(ctx, m))
				require.NoError(t, c.Undo(ctx, m), "twice")
			}
			require.Equal(t, before, tree(t, m))
		})
	}
}

// What is right already is left as it is, and what there is nothing of is not copied.
func TestSyncKeysLeaves(t *testing.T) {
	testenv.NeedsRoot(t)
	ctx := t.Context()
	m, s := keyNodes(t, bothNamed, bothNamed)
	m.put(t, "/srv/key", madeKey) // 0640, of the group that StackStorm's installer gives it
	require.NoError(t, os.Chown(m.root+"/srv/key", 0, 1981))
	m.put(t, "/srv/users", "st2admin:$apr1$x\n")
	require.NoError(t, os.Chown(m.root+"/srv/users", 1980, 0))
	changes, err := s.Plan(ctx, m)
	require.NoError(t, err)
	require.Empty(t, changes)
	require.NoError(t, s.Verify(ctx, m))

	m.put(t, "/srv/key", anotherKey)
	err = s.Verify(ctx, m)
	requireFault(t, err, fault.ExitFailed, "datastore_key")
	require.ErrorContains(t, err, "compare /srv/key with the primary's /srv/key: it was encrypted with another key")
	m.put(t, "/srv/key", madeKey)
	m.put(t, "/srv/users", "")
	requireFault(t, s.Verify(ctx, m), fault.ExitFailed, "htpasswd")
	m.run = func(string) (string, error) { return "", errors.New("status 1") }
	requireFault(t, s.Verify(ctx, m), fault.ExitFailed, "datastore_key")
	_, err = s.Plan(ctx, m)
	requireFault(t, err, fault.ExitPreflight, "ids")

	for primary, want := range map[string]string{
		"[api]\n": "warning 192.168.0.101 datastore_key", // and the secondary names one
		"[keyvalue]\nencryption_key_path = /srv/none\n":                                   "warning 192.168.0.100 datastore_key",
		"[auth]\nbackend_kwargs = {\"file_path\": \"/srv/none\"}\n":                       "warning 192.168.0.100 htpasswd",
		"[keyvalue]\nencryption_key_path = /srv/users\n":                                  "error 192.168.0.100 datastore_key",
		strings.Replace(bothNamed, "[auth]\nbackend", "[auth]\nmode = proxy\nbackend", 1): "",
	} {
		m, s := keyNodes(t, primary, bothNamed)
		if primary == "[auth]\nbackend_kwargs = {\"file_path\": \"/srv/none\"}\n" {
			m.put(t, ConfPath, "[auth]\nbackend_kwargs = {\"file_path\": \"/srv/users\"}\n")
		}
		findings, err := s.Check(ctx, m)
		require.NoError(t, err)
		got := ""
		for _, f := range findings {
			got = string(f.Severity) + " " + f.Host + " " + f.Check
		}
		require.Equal(t, want, got, primary)
		changes, err := s.Plan(ctx, m)
		require.NoError(t, err)
		require.Equal(t, want == "", len(changes) > 0, primary)
	}
	m, s = keyNodes(t, bothNamed, strings.Replace(bothNamed, "/srv/key", "/srv/a/b/key", 1))
	_, err = s.Plan(ctx, m)
	requireFault(t, err, fault.ExitPreflight, "key_directory")
	m, s = keyNodes(t, bothNamed, strings.Replace(bothNamed, "/srv/key", "srv/key", 1))
	findings, err := s.Check(ctx, m)
	require.NoError(t, err)
	require.Contains(t, findings[0].Message, `names "srv/key", which is no absolute path`)
}
