package confedit

import (
	"slices"
	"strconv"
	"strings"
)

// Mount is one entry of /etc/fstab, its fields unescaped.
type Mount struct {
	Line    int      // counted from 1; AddMount does not look at it
	Source  string   // device, or host:/path for NFS
	Target  string   // where it is mounted
	Type    string   // e.g. nfs
	Options []string // nil for "defaults"
	Dump    int
	Pass    int
}

// ByHand says whether it is mounted only when somebody does so (mount(8), noauto).
func (m Mount) ByHand() bool {
	return slices.Contains(m.Options, "noauto") && !slices.Contains(m.Options, "x-systemd.automount")
}

// mountLine is an entry with the places an edit needs.
type mountLine struct {
	Mount
	span              // of the line
	opts, optsEnd int // of the options field; at the end of the type when there is none
}

// Fstab reads /etc/fstab as fstab(5) and libmount have it: fields separated by
// blanks, \040 for a space, the options and the two numbers optional. A line
// that cannot be read costs that line alone: the error names it, and the others
// are returned. One whose first four fields are in order is returned as well,
// for systemd mounts it (getmntent(3) reads no numbers where there are none),
// and libmount skips it.
func Fstab(src []byte) ([]Mount, error) {
	var out []Mount
	var odd []*Error
	for n, l := range lines(src) {
		err := checkLine(src, n+1, l) // of comments too: an edit would refuse them
		fields := blankFields(src, l)
		if err == nil && (len(fields) == 0 || src[fields[0].start] == '#') {
			continue
		}
		var m mountLine
		if err == nil {
			if m, err = parseMount(src, n+1, fields); err != nil && len(fields) > 4 {
				odd = append(odd, err)
				m, err = parseMount(src, n+1, fields[:4])
			}
		}
		if err == nil {
			out = append(out, m.Mount)
		} else if len(odd) == 0 || odd[len(odd)-1].Line != n+1 {
			odd = append(odd, err)
		}
	}
	return out, oddLines(odd)
}

func parseFstab(src []byte) ([]mountLine, error) {
	if err := checkText(src); err != nil {
		return nil, err
	}
	var out []mountLine
	for n, l := range lines(src) {
		fields := blankFields(src, l)
		if len(fields) == 0 || src[fields[0].start] == '#' {
			continue
		}
		m, err := parseMount(src, n+1, fields)
		if err != nil {
			return nil, err
		}
		m.span = l
		out = append(out, m)
	}
	return out, nil
}

func parseMount(src []byte, line int, fields []span) (mountLine, *Error) {
	raw := func(i int) string { return string(src[fields[i].start:fields[i].end]) }
	// mount(8) ignores what follows the sixth field, which is where people put
	// comments; before that a comment is a parse error to it.
	for i := range min(len(fields), 6) {
		if raw(i)[0] == '#' && i > 1 {
			return mountLine{}, refuse(line,
				"a comment after field %d: fstab has comments on lines of their own only", i)
		}
	}
	if len(fields) < 3 {
		return mountLine{}, refuse(line, "%d fields, and fstab has 4 to 6", len(fields))
	}
	if len(fields) > 6 && raw(6)[0] != '#' {
		return mountLine{}, refuse(line,
			"%d fields, and fstab has 4 to 6; is there a space in one of them? (write \\040)", len(fields))
	}
	m := mountLine{Mount: Mount{
		Line:   line,
		Source: Unescape(raw(0)),
		Target: Unescape(raw(1)),
		Type:   Unescape(raw(2)),
	}}
	m.opts, m.optsEnd = fields[2].end, fields[2].end
	if len(fields) > 3 {
		m.opts, m.optsEnd = fields[3].start, fields[3].end
		for o := range strings.SplitSeq(raw(3), ",") {
			m.Options = append(m.Options, Unescape(o))
		}
		m.Options = mountOptions(m.Options)
	}
	for i, dst := range []*int{&m.Dump, &m.Pass} {
		if len(fields) <= 4+i {
			break
		}
		v, err := strconv.Atoi(raw(4 + i))
		if err != nil {
			return mountLine{}, refuse(line, "field %d is not a number", 5+i)
		}
		*dst = v
	}
	return m, nil
}

// mountOptions drops what says nothing: empty options and "defaults".
func mountOptions(options []string) []string {
	var out []string
	for _, o := range options {
		if o != "" && o != "defaults" {
			out = append(out, o)
		}
	}
	return out
}

// AddMount adds an entry at the end of /etc/fstab. An entry of the same source,
// target and type gets its options replaced in place when they are not the
// same (their order, dump and pass do not count); another source or type on
// that target is refused. Spaces in fields are escaped.
func AddMount(src []byte, m Mount) ([]byte, error) {
	entry, err := formatMount(m)
	if err != nil {
		return nil, err
	}
	parsed, err := parseFstab(src)
	if err != nil {
		return nil, err
	}
	want := mountOptions(m.Options)
	var found []mountLine
	for _, have := range parsed {
		if trimSlash(have.Target) != trimSlash(m.Target) {
			continue
		}
		if trimSlash(have.Source) != trimSlash(m.Source) || have.Type != m.Type {
			return nil, refuse(have.Line, "already mounts %s (%s) on %s", have.Source, have.Type, have.Target)
		}
		found = append(found, have)
	}
	var e edit
	switch {
	case len(found) == 0:
		e = appendLines(src, strings.Join(entry, " "))
	case len(found) > 1:
		return nil, refuse(found[1].Line, "mounts %s on %s again, as line %d does", m.Source, m.Target, found[0].Line)
	case sameSet(found[0].Options, want):
		return src, nil
	default:
		e = edit{found[0].opts, found[0].optsEnd, entry[3]}
		if e.start == e.end {
			e.text = " " + e.text
		}
	}
	out := splice(src, e)
	after, err := parseFstab(out)
	if err != nil {
		return nil, err
	}
	for _, have := range after {
		if trimSlash(have.Target) == trimSlash(m.Target) && have.Type == m.Type && sameSet(have.Options, want) {
			return out, nil
		}
	}
	return nil, refuse(0, "the entry for %s cannot be written as wanted", m.Target)
}

// OtherOptions returns the entry whose options AddMount would replace, or nil.
func OtherOptions(src []byte, m Mount) (*Mount, error) {
	parsed, err := parseFstab(src)
	if err != nil {
		return nil, err
	}
	for _, have := range parsed {
		if trimSlash(have.Target) == trimSlash(m.Target) &&
			trimSlash(have.Source) == trimSlash(m.Source) && have.Type == m.Type &&
			!sameSet(have.Options, mountOptions(m.Options)) {
			return &have.Mount, nil
		}
	}
	return nil, nil
}

// formatMount checks a Mount and writes its six fields.
func formatMount(m Mount) ([]string, error) {
	options := mountOptions(m.Options)
	for _, o := range options {
		if strings.Contains(o, ",") {
			return nil, refuse(0, "mount option %q has a comma", o)
		}
	}
	if len(options) == 0 {
		options = []string{"defaults"}
	}
	fields := []string{m.Source, m.Target, m.Type, strings.Join(options, ",")}
	for i, name := range []string{"source", "target", "type", "options"} {
		f := fields[i]
		if f == "" {
			return nil, refuse(0, "mount %s is empty", name)
		}
		// '#' would start a comment, in libmount or in one of its elders.
		if f[0] == '#' {
			return nil, refuse(0, "mount %s %q starts with #", name, f)
		}
		if strings.ContainsAny(f, "\n\r\x00") {
			return nil, refuse(0, "mount %s has a line break or a NUL byte", name)
		}
		fields[i] = escapeOctal(f, " \t\\")
	}
	if m.Target[0] != '/' {
		return nil, refuse(0, "mount target %q is not an absolute path", m.Target)
	}
	if m.Dump < 0 || m.Pass < 0 {
		return nil, refuse(0, "dump or pass of %s is negative", m.Target)
	}
	return append(fields, strconv.Itoa(m.Dump), strconv.Itoa(m.Pass)), nil
}

// RemoveMount removes every entry that mounts on target.
func RemoveMount(src []byte, target string) ([]byte, error) {
	parsed, err := parseFstab(src)
	if err != nil {
		return nil, err
	}
	for _, m := range parsed {
		if trimSlash(m.Target) == trimSlash(target) {
			// Again, since two of them may share a newline.
			return RemoveMount(splice(src, cutLines(src, m.start, m.next)), target)
		}
	}
	return src, nil
}

// blankFields returns the fields of a line that are separated by blanks and tabs.
func blankFields(src []byte, l span) []span {
	var out []span
	for at := l.start; at < l.end; {
		if src[at] == ' ' || src[at] == '\t' {
			at++
			continue
		}
		f := span{start: at}
		for at < l.end && src[at] != ' ' && src[at] != '\t' {
			at++
		}
		f.end = at
		out = append(out, f)
	}
	return out
}
