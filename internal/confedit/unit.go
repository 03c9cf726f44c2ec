package confedit

import (
	"bytes"
	"strings"
)

// UnitLine is an assignment of a systemd unit file.
type UnitLine struct {
	Line    int // counted from 1, where it begins
	Section string
	Key     string
	Value   string
}

// Unit reads a unit file (systemd.syntax(7)). Like systemd it passes over
// lines that say nothing.
func Unit(src []byte) []UnitLine {
	var all []UnitLine
	section := ""
	for l := range logical(src, " ") {
		text := strings.TrimSpace(l.Value)
		if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
			section = text[1 : len(text)-1]
			continue
		}
		if key, value, ok := strings.Cut(text, "="); ok {
			all = append(all, UnitLine{l.Line, section, strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	return all
}

// logical yields the lines with what a backslash at their end continues them
// by, without comments. glue takes the backslash's place: a blank in a unit file,
// nothing in an environment file.
func logical(src []byte, glue string) func(yield func(UnitLine) bool) {
	return func(yield func(UnitLine) bool) {
		n := 0
		open := UnitLine{}
		for line := range bytes.Lines(src) {
			n++
			text := strings.TrimRight(string(line), "\r\n")
			if t := strings.TrimSpace(text); t == "" && open.Line == 0 || strings.HasPrefix(t, "#") ||
				strings.HasPrefix(t, ";") {
				continue
			}
			if open.Line == 0 {
				open.Line = n
			}
			if kept, more := strings.CutSuffix(text, `\`); more {
				open.Value += kept + glue
				continue
			}
			open.Value += text
			if !yield(open) {
				return
			}
			open = UnitLine{}
		}
		if open.Line != 0 {
			yield(open)
		}
	}
}

// UnitWords splits a value of a unit file at its blanks, quotes removed
// (systemd.syntax(7), "Quoting"). ok is false where systemd would skip it.
func UnitWords(value string) (words []string, ok bool) {
	var word strings.Builder
	quote, inWord := byte(0), false
	for i := 0; i < len(value); i++ {
		c := value[i]
		switch {
		case c == '\\' && i+1 < len(value):
			i++
			word.WriteByte(value[i])
			inWord = true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, inWord = c, true
		case quote == 0 && isBlank(c):
			if inWord {
				words = append(words, word.String())
				word.Reset()
				inWord = false
			}
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		words = append(words, word.String())
	}
	return words, quote == 0
}

// EnvironmentFile reads a file that a unit's EnvironmentFile names
// (systemd.exec(5)). Lines that are no assignments, such as those of a shell,
// are passed over, as systemd does.
func EnvironmentFile(src []byte) []UnitLine {
	var all []UnitLine
	for l := range logical(src, "") {
		key, value, ok := strings.Cut(l.Value, "=")
		if key = strings.TrimSpace(key); !ok || key == "" || strings.ContainsAny(key, " \t\"'") {
			continue
		}
		// Blanks inside stay, quotes go.
		value = strings.TrimSpace(value)
		if words, ok := UnitWords(value); ok && strings.ContainsAny(value, "\"'\\") {
			value = strings.Join(words, " ")
		}
		all = append(all, UnitLine{Line: l.Line, Key: key, Value: value})
	}
	return all
}
