package confedit

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" // what OpenSSH hashes names with
	"encoding/base64"
	"slices"
	"strings"
)

// PublicKey is an SSH key as OpenSSH's files have it.
type PublicKey struct {
	Type string // ssh-ed25519, ecdsa-sha2-nistp256, ssh-rsa…
	Blob string // base64
}

// ParsePublicKey reads the first two words of a line such as that of ssh_host_ed25519_key.pub.
func ParsePublicKey(line string) (PublicKey, error) {
	words := strings.Fields(line)
	if len(words) < 2 {
		return PublicKey{}, refuse(0, "it is no public key: a type and a key in base64 are wanted")
	}
	k := PublicKey{words[0], words[1]}
	return k, k.check()
}

func (k PublicKey) check() error {
	blob, err := base64.StdEncoding.DecodeString(k.Blob)
	// The blob begins with its type again, after four bytes of length (RFC 4253, section 6.6).
	if err != nil || k.Type == "" || len(blob) < 4+len(k.Type) || string(blob[4:4+len(k.Type)]) != k.Type {
		return refuse(0, "it is no public key: what follows %q is not such a key in base64", k.Type)
	}
	return nil
}

// knownHost is a line of known_hosts with the places of its words.
type knownHost struct {
	line   int
	marker string // @revoked, @cert-authority or nothing
	hosts  string
	key    PublicKey
	at     span // of the key's blob
}

// AddKnownHost has a known_hosts file name a host's keys (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT). name is as
// ssh looks it up: an address, or [address]:port for another port than 22. A key of a type that the file has for this
// host alone with another key takes its place; a line that names other hosts as well, or that revokes the key, is
// refused. Names are hashed if those that are there are.
func AddKnownHost(src []byte, name string, keys ...PublicKey) ([]byte, error) {
	name = strings.ToLower(name)
	if name == "" || strings.ContainsAny(name, " \t\r\n,*?!|#@") {
		return nil, refuse(0, "%q is not the name of one host", name)
	}
	out := src
	for _, key := range keys {
		if err := key.check(); err != nil {
			return nil, err
		}
		var err error
		if out, err = addKnownHost(out, name, key); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func addKnownHost(src []byte, name string, key PublicKey) ([]byte, error) {
	known, err := parseKnownHosts(src)
	if err != nil {
		return nil, err
	}
	hashed := false
	var stale *knownHost
	for i, k := range known {
		hashed = hashed || strings.HasPrefix(k.hosts, "|")
		switch {
		case k.marker == "@revoked" && k.key == key:
			return nil, refuse(k.line, "this very key is revoked: give the host a new one")
		case k.marker != "" || !k.names(name):
		case k.key == key:
			return src, nil
		case k.key.Type == key.Type && stale == nil:
			stale = &known[i]
		}
	}
	if stale == nil {
		return splice(src, appendLines(src, knownName(name, hashed)+" "+key.Type+" "+key.Blob)), nil
	}
	if strings.Contains(stale.hosts, ",") {
		return nil, refuse(stale.line, "another key of %s, in a line that names other hosts as well: take %s out of it "+
			"if that is the key it had before", name, name)
	}
	return splice(src, edit{stale.at.start, stale.at.end, key.Blob}), nil
}

// parseKnownHosts reads all lines but comments. One that cannot be read is refused, for programs differ in what they
// make of the rest of the file.
func parseKnownHosts(src []byte) ([]knownHost, error) {
	var all []knownHost
	for n, l := range lines(src) {
		words := wordsOf(src, l)
		if len(words) == 0 || src[words[0].start] == '#' {
			continue
		}
		k := knownHost{line: n + 1}
		text := func(w span) string { return string(src[w.start:w.end]) }
		if src[words[0].start] == '@' {
			k.marker, words = text(words[0]), words[1:]
		}
		if len(words) < 3 {
			return nil, refuse(n+1, "hosts, a type of key and a key are wanted")
		}
		k.hosts, k.key, k.at = text(words[0]), PublicKey{text(words[1]), text(words[2])}, words[2]
		all = append(all, k)
	}
	return all, nil
}

// wordsOf are the words of a line, which blanks and tabs separate. A carriage return is in none: it may become the end of
// its line.
func wordsOf(src []byte, l span) []span {
	var words []span
	blank := func(at int) bool { return strings.IndexByte(" \t\r", src[at]) >= 0 }
	for at := l.start; at < l.end; at++ {
		if blank(at) {
			continue
		}
		w := span{start: at}
		for at < l.end && !blank(at) {
			at++
		}
		w.end, w.next = at, at
		words = append(words, w)
	}
	return words
}

// names says whether the line is about a host by its very name. A pattern that takes it is somebody's own.
func (k knownHost) names(name string) bool {
	if !strings.HasPrefix(k.hosts, "|") {
		return slices.ContainsFunc(strings.Split(k.hosts, ","), func(h string) bool { return strings.EqualFold(h, name) })
	}
	parts := strings.Split(k.hosts, "|") // "", "1", salt, hash
	if len(parts) != 4 || parts[1] != "1" {
		return false
	}
	salt, err := base64.StdEncoding.DecodeString(parts[2])
	return err == nil && parts[3] == hashName(salt, name)
}

func hashName(salt []byte, name string) string {
	h := hmac.New(sha1.New, salt)
	h.Write([]byte(name))
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

// knownName is the first word of a new line.
func knownName(name string, hashed bool) string {
	if !hashed {
		return name
	}
	salt := make([]byte, sha1.Size)
	_, _ = rand.Read(salt) // never fails: crypto/rand ends the program first
	return "|1|" + base64.StdEncoding.EncodeToString(salt) + "|" + hashName(salt, name)
}

// AddAuthorizedKey has an authorized_keys file let a key in (sshd(8), AUTHORIZED_KEYS FILE FORMAT). A line that has the
// key already is left as it is, whatever its options say.
func AddAuthorizedKey(src []byte, key PublicKey, comment string) ([]byte, error) {
	if err := key.check(); err != nil {
		return nil, err
	}
	if strings.ContainsAny(comment, "\r\n") {
		return nil, refuse(0, "a comment is one line")
	}
	for _, l := range lines(src) {
		words := wordsOf(src, l)
		if len(words) == 0 || src[words[0].start] == '#' {
			continue
		}
		for i := range len(words) - 1 { // options, which may have blanks in quotes, stand before
			if string(src[words[i].start:words[i].end]) == key.Type &&
				string(src[words[i+1].start:words[i+1].end]) == key.Blob {
				return src, nil
			}
		}
	}
	return splice(src, appendLines(src, strings.TrimSpace(key.Type+" "+key.Blob+" "+comment))), nil
}
