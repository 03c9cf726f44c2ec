package host_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"st2ha/internal/fault"
	"st2ha/internal/host"
	"st2ha/internal/host/hosttest"
)

// person is somebody's login to a test's server.
func person(s *hosttest.Server) host.Login {
	s.Password = "p4ss'w\"ord"
	return host.Login{User: "admin", Password: s.Password, Fingerprint: ssh.FingerprintSHA256(s.HostKey.PublicKey())}
}

// All that a host can do works where sudo asks for a password.
func TestLogin(t *testing.T) {
	server := hosttest.NewServer(t)
	login := person(server)
	login.SudoPassword = "sudo's own"
	server.SudoAsks(`sudo'\''s own`)
	hosttest.Run(t, func(t *testing.T) (host.Host, string) {
		s, key, err := host.DialLogin(t.Context(), server.Config, login)
		require.NoError(t, err)
		require.Equal(t, server.HostKey.PublicKey().Marshal(), key.Marshal())
		return s, t.TempDir()
	})
}

func TestLoginWithKey(t *testing.T) {
	server := hosttest.NewServer(t)
	login := person(server)
	key, err := os.ReadFile(server.Config.KeyFile)
	require.NoError(t, err)
	login.Password, login.Key = "", string(key)
	s, _, err := host.DialLogin(t.Context(), server.Config, login)
	require.NoError(t, err)
	out, err := s.Run(t.Context(), []byte("in"), "cat")
	require.NoError(t, err)
	require.Equal(t, "in", string(out))
	require.NoError(t, s.Close())

	login.Password, login.Key = server.Password, "" // sudo asks for nothing
	s, _, err = host.DialLogin(t.Context(), server.Config, login)
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

func TestLoginRefused(t *testing.T) {
	server := hosttest.NewServer(t)
	login := person(server)
	server.SudoAsks("another")
	_, other := hosttest.NewKey(t, filepath.Join(t.TempDir(), "key"))
	before := hosttest.Goroutines()
	for name, tc := range map[string]struct {
		edit       func(*host.Login)
		code, says string
	}{
		"no fingerprint": {func(l *host.Login) { l.Fingerprint = "" }, "fingerprint",
			"offers these host keys, and nobody has said yet that they are its own: " + login.Fingerprint},
		"another fingerprint": {func(l *host.Login) { l.Fingerprint = ssh.FingerprintSHA256(other.PublicKey()) },
			"fingerprint", "no password was sent"},
		"no fingerprint at all": {func(l *host.Login) { l.Fingerprint = "SHA256:abc" }, "usage",
			"fingerprint must be SHA256:"},
		"another password":  {func(l *host.Login) { l.Password = "x" }, "login", "does not let admin in with this password"},
		"sudo's is another": {func(*host.Login) {}, "sudo", "sudo does not give admin root on 127.0.0.1: "},
		"no user":           {func(l *host.Login) { l.User = "" }, "usage", "user is missing"},
		"an odd user":       {func(l *host.Login) { l.User = "-o x" }, "usage", "is not the name of a user"},
		"nothing to let in": {func(l *host.Login) { l.Password = "" }, "usage", "password or private_key is missing"},
		"both":              {func(l *host.Login) { l.Key = "x" }, "usage", "both given"},
		"two lines":         {func(l *host.Login) { l.SudoPassword = "x\ny" }, "usage", "line break"},
		"no key": {func(l *host.Login) { l.Password, l.Key = "", "secret stuff" }, "usage",
			"not a private key"},
	} {
		t.Run(name, func(t *testing.T) {
			l := login
			tc.edit(&l)
			s, _, err := host.DialLogin(t.Context(), server.Config, l)
			require.Nil(t, s)
			var f *fault.Error
			require.True(t, errors.As(err, &f), "%v", err)
			require.Equal(t, tc.code, f.Code)
			require.ErrorContains(t, err, tc.says)
			for _, secret := range []string{login.Password, "secret stuff"} {
				require.NotContains(t, err.Error()+f.Hint, secret)
			}
			require.NotContains(t, strings.TrimSpace(err.Error()), "\n")
		})
	}
	require.Eventually(t, func() bool { return hosttest.Goroutines() <= before }, 5*time.Second, 50*time.Millisecond)
}

// The machine's own sshd, which has but the one kind of key and no passwords.
func TestLoginSSHD(t *testing.T) {
	cfg := hosttest.NewSSHD(t)
	key, err := os.ReadFile(cfg.KeyFile)
	require.NoError(t, err)
	_, _, err = host.DialLogin(t.Context(), cfg, host.Login{User: "root", Key: string(key)})
	var f *fault.Error
	require.True(t, errors.As(err, &f), "%v", err)
	_, print, found := strings.Cut(f.Hint, "fingerprint=")
	require.True(t, found, f.Hint)
	s, _, err := host.DialLogin(t.Context(), cfg, host.Login{User: "root", Key: string(key), Fingerprint: print})
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, _, err = host.DialLogin(t.Context(), cfg, host.Login{User: "root", Password: "x", Fingerprint: print})
	require.ErrorContains(t, err, "does not let root in with this password")
}
