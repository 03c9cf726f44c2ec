package confedit_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"st2ha/internal/confedit"
)

// seeds returns the files of testdata for a kind, edited and not.
func seeds(f *testing.F, kind string) [][]byte {
	f.Helper()
	var out [][]byte
	for _, ext := range []string{"in", "golden"} {
		files, err := filepath.Glob(filepath.Join("testdata", kind, "*."+ext))
		if err != nil || len(files) == 0 {
			f.Fatal("no seeds: ", err)
		}
		for _, file := range files {
			src, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			out = append(out, src)
		}
	}
	return out
}

// cut returns what an edit took out of a and put in its place: all before and
// after is the same in both.
func cut(a, b []byte) (out, in []byte) {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	m := 0
	for m < len(a)-n && m < len(b)-n && a[len(a)-1-m] == b[len(b)-1-m] {
		m++
	}
	return a[n : len(a)-m], b[n : len(b)-m]
}

// oneEdit fails unless the edit only inserted text, or, where old is what it
// replaced, took out no more than that.
func oneEdit(t *testing.T, before, after, old []byte) {
	t.Helper()
	out, _ := cut(before, after)
	if len(out) > len(old) {
		t.Fatalf("took out %q, for %q\nbefore: %q\nafter:  %q", out, old, before, after)
	}
}

func FuzzYAML(f *testing.F) {
	for _, src := range seeds(f, "yaml") {
		f.Add(src, "127.0.0.1,::1", "bindIp")
		f.Add(src, "a: 'b' #", "port")
	}
	f.Fuzz(func(t *testing.T, src []byte, value, key string) {
		confedit.IsYAML(src)
		old, had, getErr := confedit.YAMLGet(src, "net", key)
		orig := bytes.Clone(src)
		out, err := confedit.YAMLSet(src, value, "net", key)
		if !bytes.Equal(orig, src) {
			t.Fatal("the argument was changed")
		}
		if err != nil {
			return
		}
		if getErr != nil {
			t.Fatalf("set what cannot be read: %v", getErr)
		}
		got, ok, err := confedit.YAMLGet(out, "net", key)
		if err != nil || !ok || got != value {
			t.Fatalf("set %q, got %q, %v, %v in %q", value, got, ok, err, out)
		}
		again, err := confedit.YAMLSet(out, value, "net", key)
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("not idempotent: %v\n%q\n%q", err, out, again)
		}
		raw := []byte(nil)
		if had {
			// Quotes and escapes make the text longer than the value.
			raw = bytes.Repeat([]byte("x"), 12*len(old)+4)
		}
		oneEdit(t, src, out, raw)
		if o, in := cut(src, out); bytes.ContainsAny(o, "\r\n") || had && bytes.ContainsAny(in, "\r\n") {
			t.Fatalf("changed more than a line: %q, %q", o, in)
		}
	})
}

func FuzzINI(f *testing.F) {
	for kind, style := range map[string]confedit.Style{
		"mongo": confedit.Mongo, "oslo": confedit.OSLO, "rabbit": confedit.Rabbit, "env": confedit.Env,
	} {
		section, key := "", "NODE_IP_ADDRESS"
		switch style {
		case confedit.OSLO:
			section, key = "messaging", "url"
		case confedit.Mongo:
			key = "bind_ip"
		case confedit.Rabbit:
			key = "listeners.tcp.default"
		}
		for _, src := range seeds(f, kind) {
			f.Add(src, int(style), section, key, "192.168.0.1")
			f.Add(src, int(style), section, key, ` "a' #$`)
			f.Add(src, int(style), section, "other", "x")
		}
	}
	f.Fuzz(func(t *testing.T, src []byte, style int, section, key, value string) {
		parse := func(src []byte) (*confedit.INI, error) { return confedit.ParseINI(src, confedit.Style(style)) }
		orig := bytes.Clone(src)
		a, err := parse(src)
		if err != nil {
			return
		}
		for _, s := range a.Sections() {
			a.Keys(s)
		}
		_, had := a.Get(section, key)
		if (a.Line(section, key) > 0) != had {
			t.Fatal("Line and Get differ")
		}
		if err := a.Set(section, key, value); err == nil {
			b, err := parse(a.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			if got, ok := b.Get(section, key); !ok || got != value {
				t.Fatalf("set %q, got %q in %q", value, got, a.Bytes())
			}
			if err := b.Set(section, key, value); err != nil || !bytes.Equal(a.Bytes(), b.Bytes()) {
				t.Fatalf("not idempotent: %v\n%q\n%q", err, a.Bytes(), b.Bytes())
			}
			if !had {
				oneEdit(t, src, a.Bytes(), nil)
				// What was added can be deleted again.
				if err := b.Delete(section, key); err != nil {
					t.Fatal(err)
				}
				if out, in := cut(src, b.Bytes()); len(out) > 0 ||
					len(in) > 0 && !strings.Contains(string(in), "["+section+"]") {
					t.Fatalf("delete left %q in the place of %q", in, out)
				}
			}
		} else if !bytes.Equal(a.Bytes(), src) {
			t.Fatal("changed although refused")
		}
		for _, drop := range []func(*confedit.INI) error{
			func(f *confedit.INI) error { return f.Delete(section, key) },
			func(f *confedit.INI) error { return f.Comment(section, key) },
		} {
			c, err := parse(src)
			if err != nil {
				t.Fatal(err)
			}
			if err := drop(c); err != nil {
				continue
			}
			d, err := parse(c.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := d.Get(section, key); ok {
				t.Fatalf("still there: %q", c.Bytes())
			}
			if !had && !bytes.Equal(c.Bytes(), src) {
				t.Fatalf("changed without need: %q", c.Bytes())
			}
		}
		if !bytes.Equal(orig, src) {
			t.Fatal("the argument was changed")
		}
	})
}

// FuzzReadOSLO: what can be read strictly is read the same, and nothing is a panic.
func FuzzReadOSLO(f *testing.F) {
	f.Add([]byte("[a]\nb = c\n d\n[\nx\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		loose, err := confedit.ReadOSLO(src)
		strict, refused := confedit.ParseINI(src, confedit.OSLO)
		if refused != nil {
			return
		}
		if err != nil || !slices.Equal(strict.Sections(), loose.Sections()) {
			t.Fatal(err)
		}
		for _, section := range strict.Sections() {
			if !slices.Equal(strict.Keys(section), loose.Keys(section)) {
				t.Fatal(section)
			}
		}
	})
}

func FuzzExports(f *testing.F) {
	for _, src := range seeds(f, "exports") {
		f.Add(src, "/opt/stackstorm/packs", "192.168.0.101", "rw,sync")
		f.Add(src, "/srv/with space", "@grp", "ro")
	}
	f.Fuzz(func(t *testing.T, src []byte, path, client, options string) {
		orig := bytes.Clone(src)
		before, err := confedit.Exports(src)
		if err != nil {
			return
		}
		removed, err := confedit.RemoveExport(src, path, client)
		if err == nil {
			left, err := confedit.Exports(removed)
			if err != nil || len(left) > len(before) {
				t.Fatalf("%v: %q", err, removed)
			}
		}
		untouched := err == nil && bytes.Equal(removed, src)
		out, err := confedit.AddExport(src, path, client, strings.Split(options, ","))
		if err != nil {
			return
		}
		after, err := confedit.Exports(out)
		if err != nil || !bytes.Equal(out, src) && len(after) != len(before)+1 {
			t.Fatalf("%v: %q", err, out)
		}
		again, err := confedit.AddExport(out, path, client, strings.Split(options, ","))
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("not idempotent: %v\n%q\n%q", err, out, again)
		}
		oneEdit(t, src, out, nil)
		if untouched {
			back, err := confedit.RemoveExport(out, path, client)
			if err != nil || !bytes.Equal(back, src) {
				t.Fatalf("not taken back: %v\n%q\n%q\n%q", err, src, out, back)
			}
		}
		if !bytes.Equal(orig, src) {
			t.Fatal("the argument was changed")
		}
	})
}

func FuzzFstab(f *testing.F) {
	for _, src := range seeds(f, "fstab") {
		f.Add(src, "192.168.0.100:/opt/stackstorm/packs", "/opt/stackstorm/packs", "nfs", "_netdev,nofail")
		f.Add(src, "/dev/sdb1", "/mnt/my disk", "ext4", "")
	}
	f.Add([]byte("# a\x00comment\n"), "/dev/sdb1", "/mnt", "ext4", "")
	f.Fuzz(func(t *testing.T, src []byte, source, target, fstype, options string) {
		orig := bytes.Clone(src)
		before, err := confedit.Fstab(src)
		if err != nil {
			return
		}
		removed, err := confedit.RemoveMount(src, target)
		if err != nil {
			t.Fatal(err)
		}
		untouched := bytes.Equal(removed, src)
		m := confedit.Mount{Source: source, Target: target, Type: fstype, Options: strings.Split(options, ",")}
		out, err := confedit.AddMount(src, m)
		if err != nil {
			return
		}
		after, err := confedit.Fstab(out)
		if err != nil || len(after) > len(before)+1 {
			t.Fatalf("%v: %q", err, out)
		}
		again, err := confedit.AddMount(out, m)
		if err != nil || !bytes.Equal(again, out) {
			t.Fatalf("not idempotent: %v\n%q\n%q", err, out, again)
		}
		if untouched {
			oneEdit(t, src, out, nil)
			back, err := confedit.RemoveMount(out, target)
			if err != nil || !bytes.Equal(back, src) {
				t.Fatalf("not taken back: %v\n%q\n%q\n%q", err, src, out, back)
			}
		} else if o, in := cut(src, out); bytes.ContainsAny(o, " \t\n") || bytes.ContainsAny(in, "\n") {
			t.Fatalf("changed more than a field: %q, %q", o, in)
		}
		if !bytes.Equal(orig, src) {
			t.Fatal("the argument was changed")
		}
	})
}
