package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

// cause is what people wrote about a code, beyond what its messages say.
type cause struct{ why, what string }

// readCauses reads the tables of a file, with lines | `code`, `code` | cause | remedy |.
func readCauses(name string) (map[string]cause, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	all := map[string]cause{}
	for i, line := range strings.Split(string(data), "\n") {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		if len(cells) != 3 {
			return nil, fmt.Errorf("%s:%d: %d cells, not 3", name, i+1, len(cells))
		}
		for _, code := range regexp.MustCompile("[a-z0-9_]+").FindAllString(cells[0], -1) {
			if _, twice := all[code]; twice {
				return nil, fmt.Errorf("%s:%d: %s is there twice", name, i+1, code)
			}
			all[code] = cause{cells[1], cells[2]}
		}
	}
	return all, nil
}

// head begins the page.
const head = `<!-- Written by tools/messages from the Go sources and tools/messages/causes.md: go generate ./... -->
# Messages

Every code that a failure or a finding can have, what it means, its messages and what to do. The code is ` + "`error.code`" + `
of an action, ` + "`failure.code`" + ` of a workflow, ` + "`check`" +
	` of a finding. Words in capitals stand for what a message names: HOST
is the host it is about, FILE a file there. … stands for words of the system or of another program.

`

// format is the page: by code, and within it by message.
func format(messages []message, causes map[string]cause) []byte {
	of := map[string][]message{}
	for code := range causes {
		of[code] = nil
	}
	for _, m := range messages {
		of[m.code] = append(of[m.code], m)
	}
	var b bytes.Buffer
	b.WriteString(head)
	codes := slices.Sorted(maps.Keys(of))
	for i, code := range codes {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "## %s\n", code)
		if c, ok := causes[code]; ok {
			fmt.Fprintf(&b, "\n%s\n\nWhat to do: %s\n", sentence(c.why), ended(c.what))
		}
		list := of[code]
		slices.SortFunc(list, func(x, y message) int { return strings.Compare(x.text+x.fix(), y.text+y.fix()) })
		list = slices.CompactFunc(list, func(x, y message) bool { return x.text == y.text && x.fix() == y.fix() })
		list = slices.DeleteFunc(list, func(m message) bool { return m.fix() == "" && !saysSomething(m.text) })
		if len(list) > 0 {
			b.WriteString("\n")
		}
		for _, m := range list {
			fmt.Fprintf(&b, "- %s\n", quoted(m.text))
			if m.fix() != "" {
				fmt.Fprintf(&b, "  → %s\n", quoted(m.fix()))
			}
		}
	}
	return b.Bytes()
}

func (m message) fix() string { return strings.Join(m.fixes, "; or: ") }

// saysSomething is false for a text that is only placeholders.
func saysSomething(text string) bool { return regexp.MustCompile("[a-z]{2}").MatchString(text) }

// quoted keeps Markdown from changing a text.
func quoted(text string) string { return "`" + text + "`" }

// sentence begins with a capital, unless a name stands there that is written otherwise.
func sentence(s string) string {
	first, _, _ := strings.Cut(s, " ")
	if regexp.MustCompile("^[a-z]+[,:]?$").MatchString(first) {
		s = strings.ToUpper(s[:1]) + s[1:]
	}
	return ended(s)
}

// ended has a full stop, or a sign of its own.
func ended(s string) string {
	if strings.ContainsAny(s[len(s)-1:], ".?!") {
		return s
	}
	return s + "."
}
