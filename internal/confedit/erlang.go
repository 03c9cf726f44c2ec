package confedit

import (
	"bytes"
	"strconv"
	"strings"
)

// Term is a term of a file that Erlang reads with file:consult, such as
// rabbitmq.config and advanced.config. Those files are read, and never edited.
type Term struct {
	Line  int // counted from 1
	Kind  TermKind
	Text  string // an atom's name, a string, a number as written
	Items []Term // of a list or tuple
}

// TermKind is what a Term is.
type TermKind int

// The kinds of terms.
const (
	Atom TermKind = iota
	Number
	String
	List
	Tuple
	Other // a binary or a map, whose contents nobody needs
)

// maxTermDepth is more than any configuration nests.
const maxTermDepth = 100

// ParseErlang reads a file of terms, each of which ends with a dot.
func ParseErlang(src []byte) ([]Term, error) {
	if err := checkText(src); err != nil {
		return nil, err
	}
	p := &erlang{src: src}
	var all []Term
	for {
		p.blanks()
		if p.pos == len(p.src) {
			return all, nil
		}
		t, err := p.term(0)
		if err != nil {
			return nil, err
		}
		p.blanks()
		// The dot is one only before a blank, a comment or the end.
		if !p.next('.') || p.pos < len(p.src) && !isSpace(p.src[p.pos]) && p.src[p.pos] != '%' {
			return nil, p.refuse("a term that does not end with a dot")
		}
		all = append(all, t)
	}
}

// Find returns what a list of {key, value} holds under the key; of several the
// first counts, as in proplists:get_value.
func (t Term) Find(key string) (Term, bool) {
	for _, item := range t.Items {
		if t.Kind == List && item.Kind == Tuple && len(item.Items) == 2 && item.Items[0].Kind == Atom &&
			item.Items[0].Text == key {
			return item.Items[1], true
		}
	}
	return Term{}, false
}

type erlang struct {
	src []byte
	pos int

	counted, lines int // src[:counted] has that many newlines
}

func (p *erlang) line() int {
	p.lines += bytes.Count(p.src[p.counted:p.pos], []byte("\n"))
	p.counted = p.pos
	return p.lines + 1
}

func (p *erlang) refuse(format string, args ...any) error { return refuse(p.line(), format, args...) }

func isSpace(c byte) bool {
	return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v'
}

// blanks skips blanks and comments.
func (p *erlang) blanks() {
	for ; p.pos < len(p.src) && (isSpace(p.src[p.pos]) || p.src[p.pos] == '%'); p.pos++ {
		if p.src[p.pos] != '%' {
			continue
		}
		for p.pos+1 < len(p.src) && p.src[p.pos+1] != '\n' {
			p.pos++
		}
	}
}

// next takes a character, if it is that one.
func (p *erlang) next(c byte) bool {
	if p.pos == len(p.src) || p.src[p.pos] != c {
		return false
	}
	p.pos++
	return true
}

func (p *erlang) term(depth int) (Term, error) {
	p.blanks()
	t := Term{Line: p.line()}
	if depth > maxTermDepth || p.pos == len(p.src) {
		return t, p.refuse("Erlang terms that are not closed, or nest too deeply")
	}
	var err error
	switch c := p.src[p.pos]; {
	case c == '[':
		t.Kind = List
		t.Items, err = p.items(']', depth)
	case c == '{':
		t.Kind = Tuple
		t.Items, err = p.items('}', depth)
	case c == '\'':
		t.Text, err = p.quoted('\'')
	case c == '"':
		t.Kind = String
		// Strings beside each other are one.
		for err == nil && p.pos < len(p.src) && p.src[p.pos] == '"' {
			var part string
			part, err = p.quoted('"')
			t.Text += part
			p.blanks()
		}
	case bytes.HasPrefix(p.src[p.pos:], []byte("<<")):
		t.Kind = Other
		err = p.binary()
	case bytes.HasPrefix(p.src[p.pos:], []byte("#{")):
		return t, p.refuse("a map, which st2ha does not read")
	case c == '$':
		t.Kind = Number
		if p.pos++; p.pos == len(p.src) {
			return t, p.refuse("a $ without its character")
		}
		if p.next('\\') {
			p.escape()
		} else {
			p.pos++
		}
	case c == '-' || c == '+' || '0' <= c && c <= '9':
		t.Kind = Number
		start := p.pos
		for p.pos++; p.pos < len(p.src) && p.inNumber(); p.pos++ {
		}
		t.Text = string(p.src[start:p.pos])
	case 'a' <= c && c <= 'z':
		start := p.pos
		for p.pos++; p.pos < len(p.src) && inAtom(p.src[p.pos]); p.pos++ {
		}
		t.Text = string(p.src[start:p.pos])
	default:
		return t, p.refuse("not an Erlang term")
	}
	return t, err
}

// inNumber says whether the next character goes on with a number: 1, 1.5, 2.0e-3, 16#ff, 1_000.
func (p *erlang) inNumber() bool {
	c := p.src[p.pos]
	switch {
	case c == '.':
		return p.pos+1 < len(p.src) && '0' <= p.src[p.pos+1] && p.src[p.pos+1] <= '9'
	case c == '-' || c == '+':
		return p.src[p.pos-1] == 'e' || p.src[p.pos-1] == 'E'
	}
	return c == '#' || c != '@' && inAtom(c)
}

func inAtom(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '@'
}

// items are those of a list or tuple, whose bracket is next.
func (p *erlang) items(end byte, depth int) ([]Term, error) {
	p.pos++
	p.blanks()
	if p.next(end) {
		return nil, nil
	}
	var all []Term
	for {
		t, err := p.term(depth + 1)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
		p.blanks()
		if p.next(end) {
			return all, nil
		}
		if !p.next(',') {
			return nil, p.refuse("neither a comma nor a %c after an item", end)
		}
	}
}

// quoted reads a quoted atom or a string.
func (p *erlang) quoted(quote byte) (string, error) {
	var text strings.Builder
	for p.pos++; p.pos < len(p.src); {
		c := p.src[p.pos]
		p.pos++
		switch c {
		case quote:
			return text.String(), nil
		case '\\':
			text.WriteString(p.escape())
		default:
			text.WriteByte(c)
		}
	}
	return "", p.refuse("a quote that is not closed")
}

// escape reads what follows a backslash. Only characters that stand for
// themselves, and octal numbers, are told apart: no address has others.
func (p *erlang) escape() string {
	if p.pos == len(p.src) {
		return ""
	}
	start := p.pos
	for p.pos < len(p.src) && p.pos < start+3 && '0' <= p.src[p.pos] && p.src[p.pos] <= '7' {
		p.pos++
	}
	if n, err := strconv.ParseUint(string(p.src[start:p.pos]), 8, 16); err == nil {
		return string(rune(n))
	}
	p.pos++
	return string(p.src[start:p.pos])
}

// binary skips <<…>>, in which strings may hold anything.
func (p *erlang) binary() error {
	for p.pos += 2; p.pos < len(p.src); {
		switch {
		case bytes.HasPrefix(p.src[p.pos:], []byte(">>")):
			p.pos += 2
			return nil
		case p.src[p.pos] == '"':
			if _, err := p.quoted('"'); err != nil {
				return err
			}
		default:
			p.pos++
		}
	}
	return p.refuse("a binary that is not closed")
}
