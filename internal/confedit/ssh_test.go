package confedit_test

import (
	"bytes"
	"crypto/ed25519"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"st2ha/internal/confedit"
)

// hostKey is a key that is the same in each run.
func hostKey(t testing.TB, seed byte) (confedit.PublicKey, ssh.PublicKey) {
	t.Helper()
	private := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	public, err := ssh.NewPublicKey(private.Public())
	require.NoError(t, err)
	key, err := confedit.ParsePublicKey(string(ssh.MarshalAuthorizedKey(public)))
	require.NoError(t, err)
	return key, public
}

// accepted says what the library that logs in makes of a file.
func accepted(t testing.TB, text []byte, addr string, key ssh.PublicKey) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "known_hosts")
	require.NoError(t, os.WriteFile(file, text, 0o600))
	check, err := knownhosts.New(file)
	require.NoError(t, err)
	return check(addr, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 22}, key)
}

func TestAddKnownHost(t *testing.T) {
	a, public := hostKey(t, 1)
	b, _ := hostKey(t, 2)
	line := func(hosts string, k confedit.PublicKey) string { return hosts + " " + k.Type + " " + k.Blob }
	const address = "192.168.0.101"
	hashed := knownhosts.HashHostname(address)
	other := line(knownhosts.HashHostname("192.168.0.7"), b)
	here, before := line(address, a)+"\n", line(address, b)+"\n"
	elsewhere, authority := line("["+address+"]:23", b)+"\n", "@cert-authority "+line(address, b)+"\n"
	foreign := "# mine\n" + line("other", b) + "\n"
	for name, tc := range map[string]struct{ src, want string }{
		"none":                 {"", here},
		"others":               {foreign, foreign + here},
		"no newline":           {line("other", b), line("other", b) + "\n" + line(address, a)},
		"there":                {line("x,"+address, a) + " comment\n", line("x,"+address, a) + " comment\n"},
		"there, hashed":        {line(hashed, a) + "\n", line(hashed, a) + "\n"},
		"installed anew":       {line(address, b) + " old\n", line(address, a) + " old\n"},
		"and hashed":           {line(hashed, b) + "\n", line(hashed, a) + "\n"},
		"another port":         {elsewhere, elsewhere + here},
		"authority":            {authority, authority + here},
		"new key, old one too": {before + here, before + here},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := confedit.AddKnownHost([]byte(tc.src), address, a)
			require.NoError(t, err)
			require.Equal(t, tc.want, string(got))
			require.NoError(t, accepted(t, got, address+":22", public))
		})
	}
	// Where names are hashed, so is the new one, and it is found again.
	got, err := confedit.AddKnownHost([]byte(other+"\n"), address, a)
	require.NoError(t, err)
	require.NotContains(t, string(got), address)
	require.NoError(t, accepted(t, got, address+":22", public))
	again, err := confedit.AddKnownHost(got, address, a)
	require.NoError(t, err)
	require.Equal(t, string(got), string(again))

	several := "#\n" + line("x,"+address, b) + "\n"
	for src, want := range map[string]string{
		"a b\n": "line 1: hosts, a type of key and a key are wanted",
		several: "line 2: another key of " + address + ", in a line that names other hosts as well",
		"@revoked " + line("elsewhere", a) + "\n": "line 1: this very key is revoked",
	} {
		_, err := confedit.AddKnownHost([]byte(src), address, a)
		require.ErrorContains(t, err, want)
	}
	_, err = confedit.AddKnownHost(nil, "a,b", a)
	require.ErrorContains(t, err, `"a,b" is not the name of one host`)
	_, err = confedit.AddKnownHost(nil, address, confedit.PublicKey{Type: "ssh-rsa", Blob: a.Blob})
	require.ErrorContains(t, err, "it is no public key")
}

func TestAddAuthorizedKey(t *testing.T) {
	a, _ := hostKey(t, 1)
	b, _ := hostKey(t, 2)
	mine := a.Type + " " + a.Blob
	for src, want := range map[string]string{
		"":                                     mine + " stanley\n",
		"# x\n" + b.Type + " " + b.Blob + "\n": "# x\n" + b.Type + " " + b.Blob + "\n" + mine + " stanley\n",
		mine + "\n":                            mine + "\n",
		`command="a b" ` + mine + " c\n":       `command="a b" ` + mine + " c\n",
		"#" + mine + "\n":                      "#" + mine + "\n" + mine + " stanley\n",
	} {
		got, err := confedit.AddAuthorizedKey([]byte(src), a, "stanley")
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	_, err := confedit.AddAuthorizedKey(nil, a, "two\nlines")
	require.Error(t, err)
	_, err = confedit.ParsePublicKey("ssh-ed25519")
	require.ErrorContains(t, err, "it is no public key")
}

func FuzzKnownHosts(f *testing.F) {
	a, _ := hostKey(f, 1)
	b, _ := hostKey(f, 2)
	for _, src := range []string{"", "# x", "h " + a.Type + " " + b.Blob, "|1|c2FsdA==|eA== ssh-rsa AAAA\r\n",
		"@revoked * " + a.Type + " " + a.Blob, "x,h " + a.Type + " " + b.Blob + "\n", "[h]:22\tssh-rsa\tAAAA c\n"} {
		f.Add([]byte(src), "h")
	}
	f.Fuzz(func(t *testing.T, src []byte, name string) {
		before := bytes.Clone(src)
		out, err := confedit.AddKnownHost(src, name, a)
		require.Equal(t, before, src, "the argument was changed")
		if err != nil {
			return
		}
		took, _ := cut(src, out)
		require.NotContains(t, string(took), "\n", "what was there in other lines stays")
		again, err := confedit.AddKnownHost(out, name, a)
		require.NoError(t, err)
		require.Equal(t, out, again, "a second edit changes nothing")
	})
}

func FuzzAuthorizedKeys(f *testing.F) {
	a, _ := hostKey(f, 1)
	for _, src := range []string{"", "# x", a.Type + " " + a.Blob, `from="a b" ` + a.Type + " " + a.Blob + " c\r\n"} {
		f.Add([]byte(src))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		out, err := confedit.AddAuthorizedKey(src, a, "c")
		require.NoError(t, err)
		oneEdit(t, src, out, nil)
		again, err := confedit.AddAuthorizedKey(out, a, "c")
		require.NoError(t, err)
		require.Equal(t, out, again, "a second edit changes nothing")
	})
}
