// Package confedit edits configuration files: pure functions from bytes to
// bytes, for YAML (mongod.conf), INI in its dialects (st2.conf, mongodb.conf,
// rabbitmq.conf, rabbitmq-env.conf), exports(5), fstab(5), and OpenSSH's
// known_hosts and authorized_keys.
//
// An editor parses the file to find the place, splices the text there and
// parses the result again to see that it says what was asked for, and nothing
// else. So every byte outside the edit stays, and an edit that is in place
// already changes nothing. A file is read as the program it belongs to reads
// it; what an editor does not understand, or what versions of that program
// read differently, is refused with its line.
package confedit

import (
	"bytes"
	"fmt"
	"strings"
)

// Error says which line of a file could not be understood or edited, and why.
// The caller knows the host and the file.
type Error struct {
	Line int // counted from 1; 0 when it is the request, not the file
	Msg  string
}

// Error returns "line N: msg", or the message alone when it is about no line.
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Msg
	}
	return fmt.Sprintf("line %d: %s", e.Line, e.Msg)
}

// refuse makes an Error.
func refuse(line int, format string, args ...any) *Error {
	return &Error{Line: line, Msg: fmt.Sprintf(format, args...)}
}

// edit replaces src[start:end] with text.
type edit struct {
	start, end int
	text       string
}

// splice applies edits, which are in order and do not overlap, to a copy of src.
func splice(src []byte, edits ...edit) []byte {
	size := len(src)
	for _, e := range edits {
		size += len(e.text) - (e.end - e.start)
	}
	out := make([]byte, 0, size)
	at := 0
	for _, e := range edits {
		out = append(out, src[at:e.start]...)
		out = append(out, e.text...)
		at = e.end
	}
	return append(out, src[at:]...)
}

// span is a physical line: src[start:end] without its line end, which is
// src[end:next].
type span struct {
	start, end, next int
}

// lines splits src into its physical lines, ended by LF or CR LF.
func lines(src []byte) []span {
	out := make([]span, 0, bytes.Count(src, []byte("\n"))+1)
	for at := 0; at < len(src); {
		l := span{start: at, end: len(src), next: len(src)}
		if i := bytes.IndexByte(src[at:], '\n'); i >= 0 {
			l.end, l.next = at+i, at+i+1
			if l.end > at && src[l.end-1] == '\r' {
				l.end--
			}
		}
		out = append(out, l)
		at = l.next
	}
	return out
}

// lineAt counts the line, from 1, that the byte at pos is on.
func lineAt(src []byte, pos int) int {
	return 1 + bytes.Count(src[:pos], []byte("\n"))
}

// eolOf returns the line end that the file uses, by its first line.
func eolOf(src []byte) string {
	if i := bytes.IndexByte(src, '\n'); i > 0 && src[i-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}

// appendLines returns the edit that adds lines at the end of the file. A file
// without a final newline stays one.
func appendLines(src []byte, add ...string) edit {
	eol := eolOf(src)
	text := strings.Join(add, eol)
	if len(src) == 0 || src[len(src)-1] == '\n' {
		text += eol
	} else {
		text = eol + text
	}
	return edit{len(src), len(src), text}
}

// cutLines returns the edit that removes src[start:next], which are whole
// lines. When they are the last ones and have no final newline, the newline
// before them goes instead: it is the one appendLines has put there.
func cutLines(src []byte, start, next int) edit {
	if next == len(src) && start > 0 && next > start && src[next-1] != '\n' {
		start--
		if start > 0 && src[start-1] == '\r' {
			start--
		}
	}
	return edit{start, next, ""}
}

// checkText refuses what none of the line-based formats can hold: a byte order
// mark, which their readers take for part of the first word, NUL bytes, and
// carriage returns that do not belong to a line end, which some of them take
// for one.
func checkText(src []byte) error {
	if bytes.HasPrefix(src, []byte("\xef\xbb\xbf")) {
		return refuse(1, "the file starts with a byte order mark, which its reader takes for text; remove it")
	}
	if i := bytes.IndexByte(src, 0); i >= 0 {
		return refuse(lineAt(src, i), "NUL byte")
	}
	for at := 0; ; {
		i := bytes.IndexByte(src[at:], '\r')
		if i < 0 {
			return nil
		}
		at += i + 1
		if at == len(src) || src[at] != '\n' {
			return refuse(lineAt(src, at-1), "carriage return inside a line")
		}
	}
}

// checkLine is checkText of one line.
func checkLine(src []byte, line int, l span) *Error {
	if err := checkText(src[l.start:l.end]); err != nil {
		odd := err.(*Error)
		return &Error{Line: line, Msg: odd.Msg}
	}
	return nil
}

// oddLines is one error for all lines that could not be read.
func oddLines(odd []*Error) error {
	if len(odd) == 0 {
		return nil // not odd's own nil, which would be an error that is not nil
	}
	all := *odd[0]
	for i, e := range odd[1:] {
		if i == 9 {
			all.Msg += fmt.Sprintf("; and %d more lines", len(odd)-10)
			break
		}
		all.Msg += "; " + e.Error()
	}
	return &all
}

// checkValue refuses what cannot be written on one line of any format.
func checkValue(what, s string) error {
	for _, r := range s {
		if r < ' ' && r != '\t' || r == 0x7f || r == '\u0085' || r == '\u2028' || r == '\u2029' {
			return refuse(0, "%s has a line break or a control character", what)
		}
	}
	return nil
}

// sameSet says whether two option lists hold the same options, in any order.
func sameSet(a, b []string) bool {
	count := make(map[string]int, len(a))
	for _, s := range a {
		count[s] |= 1
	}
	for _, s := range b {
		count[s] |= 2
	}
	for _, n := range count {
		if n != 3 {
			return false
		}
	}
	return true
}

// Unescape decodes \ooo as exports(5), fstab(5) and proc(5) have it. A
// backslash before anything else is itself.
func Unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	octal := func(c byte) bool { return '0' <= c && c <= '7' }
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && '0' <= s[i+1] && s[i+1] <= '3' && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// escapeOctal encodes the bytes of special, and control characters, as \ooo.
func escapeOctal(s, special string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] == 0x7f || strings.IndexByte(special, s[i]) >= 0 {
			fmt.Fprintf(&b, `\%03o`, s[i])
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// trimSlash drops the slashes at the end of a path: /srv/ is /srv.
func trimSlash(path string) string {
	if t := strings.TrimRight(path, "/"); t != "" {
		return t
	}
	return path
}
