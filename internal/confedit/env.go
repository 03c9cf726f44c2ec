package confedit

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
)

// parseEnv reads rabbitmq-env.conf as a POSIX shell splits it into commands
// and words. It understands assignments, exported or not, and plain commands
// such as ulimit. Anything that could set a variable in a way it does not see
// is refused.
func (f *INI) parseEnv() error {
	s := &shell{src: f.src, line: 1}
	bare := regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
	name := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)
	for s.pos < len(s.src) {
		start := s.pos
		words, err := s.command()
		if err != nil {
			return err
		}
		if len(words) == 0 {
			continue
		}
		// The physical lines of the command.
		sp := span{start: start, end: s.pos, next: s.pos}
		if s.pos > start && s.src[s.pos-1] == '\n' {
			sp.end--
		}
		line := s.lineOf(words[0].start)
		exported := words[0].raw(f.src) == "export"
		if exported {
			words = words[1:]
		}
		first := len(f.opts)
		for i, w := range words {
			raw := w.raw(f.src)
			eq := name.FindString(raw)
			switch {
			case eq == "" && exported && bare.MatchString(raw):
				continue // a variable set elsewhere, or an option of export
			case eq == "" && i == 0 && !exported:
				if err := s.plain(words, line); err != nil {
					return err
				}
			case eq == "":
				return refuse(line, "an assignment with another word after it")
			}
			if eq == "" {
				break
			}
			o := iniOption{
				span: sp, line: s.lineOf(w.start), key: eq[:len(eq)-1],
				keyEnd: w.start + len(eq) - 1, val: w.start + len(eq), end: w.end,
				value: w.text[len(eq):],
			}
			if w.odd || strings.HasPrefix(raw[len(eq):], "~") {
				o.odd = "only a shell can say its value"
				o.value = raw[len(eq):]
			}
			f.opts = append(f.opts, o)
		}
		for i := first; len(f.opts)-first > 1 && i < len(f.opts); i++ {
			f.opts[i].shared = true
		}
	}
	return nil
}

// shell splits a script into simple commands.
type shell struct {
	src []byte
	pos int

	counted, line int // src[:counted] has line-1 newlines
}

// lineOf counts the line of pos, which must not go backwards.
func (s *shell) lineOf(pos int) int {
	s.line += bytes.Count(s.src[s.counted:pos], []byte("\n"))
	s.counted = pos
	return s.line
}

// shellWord is a word with its quotes removed; odd when it has expansions.
type shellWord struct {
	start, end int
	text       string
	odd        bool
}

func (w shellWord) raw(src []byte) string { return string(src[w.start:w.end]) }

// plain refuses commands that may set variables, or that make the commands
// around them conditional.
func (s *shell) plain(words []shellWord, line int) error {
	if len(words) > 1 && strings.HasPrefix(words[1].text, "=") {
		return refuse(line, "spaces around the = of an assignment")
	}
	cmd := words[0]
	known := []string{"ulimit", "umask", "echo", "true", ":", "mkdir", "chown", "chmod", "logger"}
	if cmd.odd || !slices.Contains(known, cmd.text) {
		// The word itself is not shown: it may be the rest of a password.
		return refuse(line, "shell code, not an assignment")
	}
	return nil
}

// command reads the words up to the end of the line.
func (s *shell) command() ([]shellWord, error) {
	var words []shellWord
	for s.pos < len(s.src) {
		c := s.src[s.pos]
		switch {
		case c == '\n':
			s.pos++
			return words, nil
		case isBlank(c):
			s.pos++
		case c == '\\' && s.pos+1 < len(s.src) && s.src[s.pos+1] == '\n':
			s.pos += 2
		case c == '#':
			for s.pos < len(s.src) && s.src[s.pos] != '\n' {
				s.pos++
			}
		default:
			w, err := s.word()
			if err != nil {
				return nil, err
			}
			words = append(words, w)
		}
	}
	return words, nil
}

func (s *shell) word() (shellWord, error) {
	w := shellWord{start: s.pos}
	var text strings.Builder
	for s.pos < len(s.src) {
		c := s.src[s.pos]
		switch {
		case c == '\n' || isBlank(c):
			w.end, w.text = s.pos, text.String()
			return w, nil
		case strings.IndexByte(";&|()<>", c) >= 0:
			return w, s.refuse(s.pos, "shell code (%c) that st2ha does not read", c)
		case c == '\r':
			return w, s.refuse(s.pos, "CR LF: the shell takes the CR for part of the value")
		case c < ' ' || c == 0x7f:
			return w, s.refuse(s.pos, "control character 0x%02x", c)
		case c == '\'':
			n := bytes.IndexByte(s.src[s.pos+1:], '\'')
			if n < 0 {
				return w, s.refuse(s.pos, "quote that is not closed")
			}
			text.Write(s.src[s.pos+1 : s.pos+1+n])
			s.pos += n + 2
		case c == '"':
			if err := s.double(&w, &text); err != nil {
				return w, err
			}
		case c == '\\':
			if s.pos+1 == len(s.src) {
				return w, s.refuse(s.pos, "backslash at the end of the file")
			}
			if s.src[s.pos+1] != '\n' {
				text.WriteByte(s.src[s.pos+1])
			}
			s.pos += 2
		case c == '$' || c == '`':
			w.odd = true
			if err := s.expansion(); err != nil {
				return w, err
			}
		default:
			text.WriteByte(c)
			s.pos++
		}
	}
	w.end, w.text = s.pos, text.String()
	return w, nil
}

// double reads a double-quoted string.
func (s *shell) double(w *shellWord, text *strings.Builder) error {
	open := s.pos
	for s.pos++; s.pos < len(s.src); {
		c := s.src[s.pos]
		switch {
		case c == '"':
			s.pos++
			return nil
		case c == '$' || c == '`':
			w.odd = true
			if err := s.expansion(); err != nil {
				return err
			}
		case c == '\\' && s.pos+1 < len(s.src):
			switch next := s.src[s.pos+1]; next {
			case '\n':
			case '$', '`', '"', '\\':
				text.WriteByte(next)
			default:
				text.Write([]byte{c, next})
			}
			s.pos += 2
		default:
			text.WriteByte(c)
			s.pos++
		}
	}
	return s.refuse(open, "quote that is not closed")
}

// expansion skips $name and ${name}; command substitution and what else has a
// syntax of its own inside is refused unless it is closed in the plainest way.
func (s *shell) expansion() error {
	open := s.pos
	closing := byte(0)
	switch {
	case s.src[s.pos] == '`':
		closing = '`'
		s.pos++
	case s.pos+1 < len(s.src) && s.src[s.pos+1] == '(':
		closing = ')'
		s.pos += 2
	case s.pos+1 < len(s.src) && s.src[s.pos+1] == '{':
		closing = '}'
		s.pos += 2
	default:
		s.pos++
		return nil
	}
	for ; s.pos < len(s.src) && s.src[s.pos] != closing; s.pos++ {
		if strings.IndexByte("\n\r'\"\\({`$", s.src[s.pos]) >= 0 {
			return s.refuse(open, "an expansion that st2ha does not read")
		}
	}
	if s.pos == len(s.src) {
		return s.refuse(open, "an expansion that is not closed")
	}
	s.pos++
	return nil
}

func (s *shell) refuse(pos int, format string, args ...any) error {
	return refuse(lineAt(s.src, pos), format, args...)
}

// formatEnv quotes a value for the shell where it needs it.
func formatEnv(key, value string, quote byte) (string, error) {
	plain := regexp.MustCompile(`^[A-Za-z0-9_./:@,+%=-]*$`).MatchString(value)
	double := !strings.ContainsAny(value, "\"$`\\")
	single := !strings.Contains(value, "'")
	switch {
	case quote == '"' && double, quote == 0 && !plain && double:
		return `"` + value + `"`, nil
	case quote == '\'' && single, !plain && single:
		return "'" + value + "'", nil
	case plain:
		return value, nil
	}
	return "", refuse(0, "the value of %s has quotes of both kinds or a $", key)
}
