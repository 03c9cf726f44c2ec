package confedit

import (
	"net/netip"
	"slices"
	"strings"
)

// Export is one directory exported to one client, its path unescaped.
type Export struct {
	Line    int      // of the client, counted from 1
	Path    string   // the directory
	Client  string   // host, address, network, wildcard or @netgroup; "*" also where the file names none
	Options []string // the line's default options (-rw,sync), then the client's own
}

// exportClient is an Export with the place of its word; a path without any
// client is exported to everybody and has an empty place.
type exportClient struct {
	Export
	start, end int
}

// exportLine is a logical line of exports: a path and its clients, spread over
// one or more physical lines.
type exportLine struct {
	path        string
	line        int
	start, next int // of the physical lines
	pathEnd     int // where the path, or the default options after it, end
	defaults    []string
	clients     []exportClient
}

// implied says that the line names no client and so exports to everybody.
func (l *exportLine) implied() bool {
	return l.clients[0].start == l.clients[0].end
}

// Exports reads /etc/exports as exports(5) and nfs-utils have it: a line is
// continued by a backslash, a path with spaces is quoted or has \040, a word
// that starts with a dash after the path holds default options, and
// "host (rw)", with a space, exports to host with the default options and to
// everybody with rw. A line that cannot be read costs that line alone: the error
// names it, and the others are returned.
func Exports(src []byte) ([]Export, error) {
	var out []Export
	var odd []*Error
	phys := lines(src)
	for n := 0; n < len(phys); n++ {
		l, last, err := parseExport(src, phys, n)
		if err == nil {
			for at := n; at <= last && err == nil; at++ {
				err = checkLine(src, at+1, phys[at])
			}
		}
		n = last
		if err != nil {
			odd = append(odd, err)
			continue
		}
		for _, c := range l.clients {
			out = append(out, c.Export)
		}
	}
	return out, oddLines(odd)
}

func parseExports(src []byte) ([]exportLine, error) {
	if err := checkText(src); err != nil {
		return nil, err
	}
	var out []exportLine
	phys := lines(src)
	for n := 0; n < len(phys); n++ {
		l, last, err := parseExport(src, phys, n)
		if err != nil {
			return nil, err
		}
		n = last
		if len(l.clients) > 0 {
			out = append(out, l)
		}
	}
	return out, nil
}

// parseExport reads the logical line that starts at physical line n, which has
// no clients if it is empty, and returns the number of its last physical line.
func parseExport(src []byte, phys []span, n int) (exportLine, int, *Error) {
	words, last, err := exportWords(src, phys, n)
	if err != nil || len(words) == 0 {
		return exportLine{}, last, err
	}
	l := exportLine{line: n + 1, start: phys[n].start, next: phys[last].next}
	return l, last, l.parse(words)
}

// exportWord is one word of a logical line.
type exportWord struct {
	start, end int
	line       int
	text       string // without quotes, unescaped
}

// exportWords splits the logical line that starts at physical line n and
// returns the number of its last physical line.
func exportWords(src []byte, phys []span, n int) ([]exportWord, int, *Error) {
	var words []exportWord
	for {
		l := phys[n]
		continued, comment := false, false
		at := l.start
		for at < l.end {
			c := src[at]
			switch {
			case c == ' ' || c == '\t':
				at++
				continue
			case c == '\\' && at+1 == l.end && l.next > l.end:
				continued = true
				at++
				continue
			}
			if c == '#' {
				comment = true
				break
			}
			w := exportWord{start: at, line: n + 1}
			var text strings.Builder
			quoted := false
		word:
			for ; at < l.end; at++ {
				c := src[at]
				switch {
				case c == '"':
					quoted = !quoted
				case c == '\\' && at+1 == l.end && l.next == l.end:
					return nil, n, refuse(n+1, "backslash at the end of the file")
				case quoted && c == '\\' && at+1 == l.end:
					return nil, n, refuse(n+1, "quote that is not closed on its line")
				case !quoted && (c == ' ' || c == '\t'):
					break word
				case !quoted && c == '#':
					// Part of the word or a comment, as the version of nfs-utils has it.
					return nil, n, refuse(n+1, "# inside a word; put a space before a comment")
				case c == '\\' && at+1 == l.end:
					break word
				case c < ' ' && c != '\t' || c == 0x7f:
					return nil, n, refuse(n+1, "control character")
				default:
					text.WriteByte(c)
				}
			}
			if quoted {
				return nil, n, refuse(n+1, "quote that is not closed on its line")
			}
			w.end = at
			w.text = Unescape(text.String())
			if w.text == "" {
				return nil, n, refuse(n+1, "empty word")
			}
			words = append(words, w)
		}
		crlf := l.next-l.end == 2
		if continued && crlf {
			return nil, n, refuse(n+1, "CR LF after a backslash, which does not continue the line")
		}
		if crlf && len(words) == 0 && !comment {
			return nil, n, refuse(n+1, "empty line that ends in CR LF: exportfs stops reading here")
		}
		if !continued {
			return words, n, nil
		}
		if n+1 == len(phys) {
			return nil, n, refuse(n+1, "backslash at the end of the file")
		}
		n++
	}
}

func (l *exportLine) parse(words []exportWord) *Error {
	l.path, l.pathEnd = words[0].text, words[0].end
	if l.path[0] != '/' {
		return refuse(words[0].line, "%q is not an absolute path", l.path)
	}
	rest := words[1:]
	if len(rest) > 0 && rest[0].text[0] == '-' {
		l.defaults = exportOptions(rest[0].text[1:])
		l.pathEnd = rest[0].end
		rest = rest[1:]
	}
	for _, w := range rest {
		client, opts, has := strings.Cut(w.text, "(")
		if has {
			if !strings.HasSuffix(opts, ")") || strings.Contains(opts[:len(opts)-1], ")") {
				return refuse(w.line, "%q: options are host(option,option), without spaces", w.text)
			}
			opts = opts[:len(opts)-1]
		} else if strings.Contains(client, ")") {
			return refuse(w.line, "%q: options are host(option,option), without spaces", w.text)
		}
		if client == "" {
			client = "*"
		}
		l.add(exportClient{
			Export: Export{Line: w.line, Client: client, Options: exportOptions(opts)},
			start:  w.start, end: w.end,
		})
	}
	if len(rest) == 0 {
		l.add(exportClient{
			Export: Export{Line: l.line, Client: "*"},
			start:  l.pathEnd, end: l.pathEnd,
		})
	}
	return nil
}

func (l *exportLine) add(c exportClient) {
	c.Path = l.path
	c.Options = append(slices.Clone(l.defaults), c.Options...)
	l.clients = append(l.clients, c)
}

func exportOptions(s string) []string {
	var out []string
	for o := range strings.SplitSeq(s, ",") {
		if o = strings.Trim(o, " \t"); o != "" {
			out = append(out, o)
		}
	}
	return out
}

// sameClient compares client names: addresses by value, names without case.
func sameClient(a, b string) bool {
	if strings.EqualFold(a, b) {
		return true
	}
	x, err := netip.ParseAddr(a)
	if err != nil {
		return false
	}
	y, err := netip.ParseAddr(b)
	return err == nil && x == y
}

// AddExport exports path to client. A line that exports path already gets
// " client(options)" after its last client; one with default options or
// without a client is left alone, since the new client would inherit the
// former and take the latter from everybody. Else a line is added at the end.
// The same path and client with the same options, in any order, is no change;
// with other options it is refused.
func AddExport(src []byte, path, client string, options []string) ([]byte, error) {
	if err := checkExport(path, client, options); err != nil {
		return nil, err
	}
	parsed, err := parseExports(src)
	if err != nil {
		return nil, err
	}
	if c := findExport(parsed, path, client); c != nil {
		if sameSet(c.Options, options) {
			return src, nil
		}
		return nil, refuse(c.Line, "already exports %s to %s with (%s), and (%s) is wanted",
			path, client, strings.Join(c.Options, ","), strings.Join(options, ","))
	}
	word := client + "(" + strings.Join(options, ",") + ")"
	e := appendLines(src, escapeOctal(path, " \"\\#")+" "+word)
	for _, l := range parsed {
		if trimSlash(l.path) == trimSlash(path) && len(l.defaults) == 0 && !l.implied() {
			at := l.clients[len(l.clients)-1].end
			e = edit{at, at, " " + word}
			break
		}
	}
	out := splice(src, e)
	after, err := parseExports(out)
	if err != nil {
		return nil, err
	}
	c := findExport(after, path, client)
	if c == nil || !sameSet(c.Options, options) ||
		!slices.Equal(others(after, path, client), others(parsed, path, client)) {
		return nil, refuse(lineAt(out, e.start), "the export of %s to %s cannot be written as wanted", path, client)
	}
	return out, nil
}

// RemoveExport takes the export of path from client: its word, or the whole
// line when there is no other client on it.
func RemoveExport(src []byte, path, client string) ([]byte, error) {
	for {
		parsed, err := parseExports(src)
		if err != nil {
			return nil, err
		}
		e, line, ok := removal(src, parsed, path, client)
		if !ok {
			return src, nil
		}
		out := splice(src, e)
		after, err := parseExports(out)
		if err != nil {
			return nil, err
		}
		if len(after) > len(parsed) || !slices.Equal(others(after, path, client), others(parsed, path, client)) {
			return nil, refuse(line, "cannot take %s from the exports of %s without changing the others", client, path)
		}
		src = out
	}
}

// removal is the edit that removes the first export of path to client.
func removal(src []byte, parsed []exportLine, path, client string) (e edit, line int, ok bool) {
	for _, l := range parsed {
		if trimSlash(l.path) != trimSlash(path) {
			continue
		}
		before := l.pathEnd
		for _, c := range l.clients {
			switch {
			case !sameClient(c.Client, client):
				before = c.end
			case len(l.clients) == 1:
				// A path without clients would be everybody's.
				return cutLines(src, l.start, l.next), c.Line, true
			default:
				return edit{before, c.end, ""}, c.Line, true
			}
		}
	}
	return edit{}, 0, false
}

func findExport(parsed []exportLine, path, client string) *exportClient {
	for i := range parsed {
		if trimSlash(parsed[i].path) != trimSlash(path) {
			continue
		}
		for j := range parsed[i].clients {
			if sameClient(parsed[i].clients[j].Client, client) {
				return &parsed[i].clients[j]
			}
		}
	}
	return nil
}

// others lists all exports but those of path to client, for comparison.
func others(parsed []exportLine, path, client string) []string {
	var out []string
	for _, l := range parsed {
		for _, c := range l.clients {
			if trimSlash(c.Path) != trimSlash(path) || !sameClient(c.Client, client) {
				out = append(out, c.Path+"\x00"+c.Client+"\x00"+strings.Join(c.Options, ","))
			}
		}
	}
	slices.Sort(out)
	return out
}

// checkExport refuses what would break the line or mean something else in it.
func checkExport(path, client string, options []string) error {
	const special = " \t\n\r\x00(),#\"\\"
	switch {
	case !strings.HasPrefix(path, "/"):
		return refuse(0, "export path %q is not absolute", path)
	case strings.ContainsAny(path, "\n\r\x00"):
		return refuse(0, "export path has a line break or a NUL byte")
	case client == "":
		return refuse(0, "no client to export %s to", path)
	case client[0] == '-':
		return refuse(0, "export client %q starts with a dash", client)
	case strings.ContainsAny(client, special) || checkValue("", client) != nil:
		return refuse(0, "export client %q has a character that /etc/exports cannot have", client)
	}
	for _, o := range options {
		if o == "" || strings.ContainsAny(o, special) || checkValue("", o) != nil {
			return refuse(0, "export option %q is empty or has a character that /etc/exports cannot have", o)
		}
	}
	return nil
}
