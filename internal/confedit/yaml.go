package confedit

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	yaml "go.yaml.in/yaml/v3"
)

// IsYAML says which of its two formats mongod.conf or mongodb.conf is written
// in, as the first line that says something shows: "key = value" is INI, all
// else, and an empty file, YAML.
func IsYAML(src []byte) bool {
	for _, l := range lines(src) {
		text := bytes.TrimSpace(bytes.TrimPrefix(src[l.start:l.end], []byte("\xef\xbb\xbf")))
		if len(text) == 0 || text[0] == '#' {
			continue
		}
		i := bytes.IndexAny(text, ":=")
		return i < 0 || text[i] == ':'
	}
	return true
}

// YAMLGet returns the scalar at path, e.g. net, bindIp, as mongod reads
// it: without quotes, null as "", and dotted keys (net.bindIp: x) understood.
// Not to be had from the file alone, and so an *Error, are aliases, merged
// keys, __exec and __rest expansions and keys that are there twice.
func YAMLGet(src []byte, path ...string) (value string, ok bool, err error) {
	d, err := parseYAML(src)
	if err != nil {
		return "", false, err
	}
	at, err := d.find(path)
	if err != nil || at.key == nil {
		return "", false, err
	}
	return scalarValue(at.value), true, nil
}

// YAMLSet makes the scalar at path have value. A value that is there is
// replaced in place, in its quotes if it has some; a key that is not is added
// to its section, after its commented-out example or at the section's end, with
// the indentation of the file; a section that is not, at the end of the file.
func YAMLSet(src []byte, value string, path ...string) ([]byte, error) {
	if len(path) == 0 {
		return nil, refuse(0, "no key to set")
	}
	for _, p := range path {
		if !isYAMLName(p) {
			return nil, refuse(0, "%q cannot be the name of an option", p)
		}
	}
	dotted := strings.Join(path, ".")
	if err := checkValue("the value of "+dotted, value); err != nil {
		return nil, err
	}
	if !utf8.ValidString(value) {
		return nil, refuse(0, "the value of %s is not UTF-8", dotted)
	}
	d, err := parseYAML(src)
	if err != nil {
		return nil, err
	}
	at, err := d.find(path)
	if err != nil {
		return nil, err
	}
	var tries []edit
	if at.key != nil {
		if scalarValue(at.value) == value {
			return src, nil
		}
		e, err := d.replacement(at, value)
		if err != nil {
			return nil, err
		}
		tries = []edit{e}
	} else if tries, err = d.insertions(at, path, value); err != nil {
		return nil, err
	}
	for _, e := range tries {
		out := splice(d.src, e)
		after, err := parseYAML(out)
		if err != nil || !sameBut(d.root, after.root, path) {
			continue
		}
		if got, err := after.find(path); err == nil && got.key != nil && scalarValue(got.value) == value {
			return append(slices.Clip(src[:d.bom]), out...), nil
		}
	}
	return nil, refuse(d.lineOf(tries[0].start), "cannot set %s here without changing more than that", dotted)
}

// yamlDoc is a parsed file.
type yamlDoc struct {
	bom   int    // length of the byte order mark before src
	src   []byte // without it
	lines []span
	root  *yaml.Node // a mapping; nil when the file says nothing
}

func parseYAML(whole []byte) (*yamlDoc, error) {
	d := &yamlDoc{src: whole}
	if bytes.HasPrefix(whole, []byte("\xef\xbb\xbf")) {
		d.bom = 3
		d.src = whole[3:]
	}
	// YAML 1.1 and 1.2 differ on these line breaks, and so would the lines here.
	for _, c := range []string{"\u0085", "\u2028", "\u2029"} {
		if i := bytes.Index(d.src, []byte(c)); i >= 0 {
			return nil, refuse(lineAt(d.src, i),
				"a character (U+%04X) that only some YAML readers take as a line break", []rune(c)[0])
		}
	}
	if err := checkText(d.src); err != nil {
		return nil, err
	}
	d.lines = lines(d.src)
	dec := yaml.NewDecoder(bytes.NewReader(d.src))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return d, nil
	case err != nil:
		return nil, d.parseError(err)
	}
	switch err := dec.Decode(&more); {
	case err == nil:
		return nil, refuse(more.Line, "a second document")
	case !errors.Is(err, io.EOF):
		return nil, d.parseError(err)
	}
	root := doc.Content[0]
	switch {
	case root.Kind == yaml.MappingNode:
		d.root = root
	case isNull(root) && root.Value == "" && root.Anchor == "" && root.Style == 0:
	default:
		return nil, refuse(root.Line, "not a mapping of options; is this the ini-style format?")
	}
	return d, nil
}

// parseError gives the parser's error its line.
func (d *yamlDoc) parseError(err error) *Error {
	m := regexp.MustCompile(`(?s)^(?:yaml: )?(?:line (\d+): )?(.*)$`).FindStringSubmatch(err.Error())
	line, convErr := strconv.Atoi(m[1])
	if convErr != nil {
		line = 1
		// Only an unknown alias comes without a line on other lines than the first.
		if a := regexp.MustCompile(`^unknown anchor '(.*)' referenced`).FindStringSubmatch(m[2]); a != nil {
			if i := bytes.Index(d.src, []byte("*"+a[1])); i >= 0 {
				line = lineAt(d.src, i)
			}
		}
	}
	return refuse(line, "not YAML: %s", m[2])
}

// yamlPlace is where a path leads.
type yamlPlace struct {
	key, value *yaml.Node // nil when the path does not lead to the end
	section    *yaml.Node // the deepest section on the path: a mapping or null; nil for the root
	sectionKey *yaml.Node // its key; nil for the root
	depth      int        // how many elements of the path lead to section
	flow       bool       // section is written in braces, or within some
}

// find follows path from the root.
func (d *yamlDoc) find(path []string) (yamlPlace, error) {
	best := yamlPlace{section: d.root}
	if d.root == nil {
		return best, nil
	}
	best.flow = d.root.Style&yaml.FlowStyle != 0
	if d.root.Anchor != "" || d.root.Style&yaml.TaggedStyle != 0 {
		return best, refuse(d.root.Line, "an anchor or a tag on the whole file")
	}
	err := d.follow(best, path, &best)
	return best, err
}

// follow looks for path, or its beginnings, in the mapping at.section. best is
// the deepest place found so far.
func (d *yamlDoc) follow(at yamlPlace, path []string, best *yamlPlace) error {
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(at.section.Content); i += 2 {
		key, value := at.section.Content[i], at.section.Content[i+1]
		if key.Kind == yaml.AliasNode || key.Tag == "!!merge" {
			return refuse(key.Line, "a merged or aliased key, which st2ha does not read")
		}
		if key.Kind != yaml.ScalarNode {
			continue
		}
		if key.Value == "__exec" || key.Value == "__rest" {
			return refuse(key.Line, "%s: mongod gets this section from elsewhere", key.Value)
		}
		rest, ok := cutPath(path[at.depth:], key.Value)
		if !ok {
			continue
		}
		if first := seen[key.Value]; first != nil {
			return refuse(key.Line, "%s is there twice: also on line %d", key.Value, first.Line)
		}
		seen[key.Value] = key
		if value.Kind == yaml.AliasNode {
			return refuse(value.Line, "%s is an alias", key.Value)
		}
		if len(rest) == 0 {
			switch {
			case value.Kind == yaml.SequenceNode:
				return refuse(value.Line, "%s is a list; mongod takes a string, with commas in it", key.Value)
			case value.Kind == yaml.MappingNode && len(value.Content) > 0 &&
				strings.HasPrefix(value.Content[0].Value, "__"):
				return refuse(value.Line, "%s gets its value from elsewhere (%s)", key.Value, value.Content[0].Value)
			case value.Kind != yaml.ScalarNode:
				return refuse(value.Line, "%s is a section, not a value", key.Value)
			case best.key != nil:
				return refuse(key.Line, "%s is there twice: also on line %d", strings.Join(path, "."), best.key.Line)
			}
			*best = at
			best.key, best.value = key, value
			continue
		}
		next := yamlPlace{section: value, sectionKey: key, depth: len(path) - len(rest),
			flow: at.flow || value.Style&yaml.FlowStyle != 0}
		switch {
		case value.Anchor != "" || value.Style&yaml.TaggedStyle != 0:
			return refuse(value.Line, "%s has an anchor or a tag", key.Value)
		case value.Kind != yaml.MappingNode && !isNull(value):
			return refuse(value.Line, "%s is not a section", key.Value)
		}
		if best.key == nil && next.depth > best.depth {
			*best = next
		}
		if value.Kind == yaml.MappingNode {
			if err := d.follow(next, path, best); err != nil {
				return err
			}
		}
	}
	return nil
}

// cutPath takes a key off the front of a path. mongod joins the keys on the
// way to an option with dots, so "net.bindIp" is as good as net and bindIp.
func cutPath(path []string, key string) (rest []string, ok bool) {
	for i, p := range path {
		if key == p {
			return path[i+1:], true
		}
		after, found := strings.CutPrefix(key, p+".")
		if !found {
			return nil, false
		}
		key = after
	}
	return nil, false
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

// scalarValue is a scalar's text as mongod sees it.
func scalarValue(n *yaml.Node) string {
	if isNull(n) {
		return ""
	}
	return n.Value
}

// offset is the place of a node's first byte. The parser counts columns in
// characters.
func (d *yamlDoc) offset(n *yaml.Node) int {
	if n.Line < 1 || n.Line > len(d.lines) {
		return len(d.src)
	}
	l := d.lines[n.Line-1]
	at := l.start
	for range n.Column - 1 {
		if at >= l.end {
			break
		}
		_, size := utf8.DecodeRune(d.src[at:l.end])
		at += size
	}
	return at
}

func (d *yamlDoc) lineOf(pos int) int { return lineAt(d.src, pos) }

// extent is the place of a scalar on one line, quotes included. A scalar over
// several lines has none.
func (d *yamlDoc) extent(n *yaml.Node) (start, end int, ok bool) {
	start = d.offset(n)
	if n.Kind != yaml.ScalarNode || n.Line < 1 || n.Line > len(d.lines) {
		return start, start, false
	}
	text := d.src[start:d.lines[n.Line-1].end]
	switch n.Style {
	case 0:
		return start, start + len(n.Value), bytes.HasPrefix(text, []byte(n.Value))
	case yaml.SingleQuotedStyle, yaml.DoubleQuotedStyle:
		if len(text) == 0 || text[0] != '\'' && text[0] != '"' {
			return start, start, false
		}
		quote := text[0]
		for i := 1; i < len(text); i++ {
			switch {
			case text[i] == '\\' && quote == '"':
				i++
			case text[i] == quote && quote == '\'' && i+1 < len(text) && text[i+1] == quote:
				i++
			case text[i] == quote:
				return start, start + i + 1, true
			}
		}
	}
	return start, start, false
}

// replacement is the edit that gives a scalar another value.
func (d *yamlDoc) replacement(at yamlPlace, value string) (edit, error) {
	n := at.value
	if n.Anchor != "" || n.Style&yaml.TaggedStyle != 0 {
		return edit{}, refuse(n.Line, "%s has an anchor or a tag", at.key.Value)
	}
	start, end, ok := d.extent(n)
	if !ok {
		return edit{}, refuse(n.Line, "the value of %s goes over several lines", at.key.Value)
	}
	text := yamlScalar(value, n.Style, at.flow)
	if start == end {
		if start == 0 || d.src[start-1] != ':' {
			return edit{}, refuse(n.Line, "%s has neither a value nor a colon", at.key.Value)
		}
		text = " " + text
	}
	return edit{start, end, text}, nil
}

// insertions are the edits that add what is missing of path, the best first.
func (d *yamlDoc) insertions(at yamlPlace, path []string, value string) ([]edit, error) {
	missing := path[at.depth:]
	if at.flow {
		return d.flowInsertions(at.section, missing, value)
	}
	step := strings.Repeat(" ", d.step())
	section := at.section
	if section == nil || section.Kind != yaml.MappingNode {
		// Nothing in it: the file has no root, or the section no keys.
		indent, line := "", 0
		if at.sectionKey != nil {
			if section.Value != "" {
				return nil, refuse(section.Line, "%s is null", at.sectionKey.Value)
			}
			in, ok := d.indentOf(at.sectionKey)
			if !ok {
				return nil, refuse(at.sectionKey.Line, "%s is not at the start of its line", at.sectionKey.Value)
			}
			indent, line = in+step, at.sectionKey.Line
		}
		add := yamlLines(indent, step, missing, value)
		if line == 0 {
			return []edit{d.atEnd(add)}, nil
		}
		return append(d.afterExample(line, line, missing, add), d.after(line, add)), nil
	}
	first := section.Content[0]
	indent, ok := d.indentOf(first)
	if !ok {
		return nil, refuse(first.Line, "%s is not at the start of its line", first.Value)
	}
	add := yamlLines(indent, step, missing, value)
	last, known := d.lastLine(section)
	var tries []edit
	if at.sectionKey == nil {
		tries = append(tries, d.atEnd(add))
	} else if known {
		tries = d.afterExample(at.sectionKey.Line, last, missing, add)
	}
	if known {
		tries = append(tries, d.after(last, add))
	}
	return append(tries, d.after(first.Line-1, add)), nil
}

// flowInsertions are those into a mapping in braces.
func (d *yamlDoc) flowInsertions(section *yaml.Node, missing []string, value string) ([]edit, error) {
	quote := ""
	if of := append(slices.Clone(section.Content), d.root.Content...); len(of) > 0 &&
		of[0].Style == yaml.DoubleQuotedStyle {
		quote = `"` // JSON stays JSON
	}
	text := yamlScalar(value, 0, true)
	for i, name := range slices.Backward(missing) {
		text = quote + name + quote + ": " + text
		if i > 0 {
			text = "{" + text + "}"
		}
	}
	open := d.offset(section)
	if section.Kind != yaml.MappingNode || open >= len(d.src) || d.src[open] != '{' {
		return nil, refuse(section.Line, "a section in braces that does not begin with a brace")
	}
	if len(section.Content) == 0 {
		return []edit{{open + 1, open + 1, text}}, nil
	}
	var tries []edit
	last := section.Content[len(section.Content)-1]
	if _, end, ok := d.extent(last); ok && last.Anchor == "" {
		tries = append(tries, edit{end, end, ", " + text})
	}
	first := d.offset(section.Content[0])
	return append(tries, edit{first, first, text + ", "}), nil
}

// step is the indentation that the file uses.
func (d *yamlDoc) step() int {
	if d.root != nil {
		for i := 0; i+1 < len(d.root.Content); i += 2 {
			key, value := d.root.Content[i], d.root.Content[i+1]
			if value.Kind == yaml.MappingNode && value.Style&yaml.FlowStyle == 0 && value.Column > key.Column {
				return value.Column - key.Column
			}
		}
	}
	return 2
}

// indentOf is the blanks before a key that is the first word on its line.
func (d *yamlDoc) indentOf(key *yaml.Node) (string, bool) {
	indent := d.src[d.lines[key.Line-1].start:d.offset(key)]
	return string(indent), len(bytes.Trim(indent, " ")) == 0
}

// lastLine is the line a node ends on, if that can be known.
func (d *yamlDoc) lastLine(n *yaml.Node) (int, bool) {
	for len(n.Content) > 0 && n.Style&yaml.FlowStyle == 0 {
		n = n.Content[len(n.Content)-1]
	}
	_, _, ok := d.extent(n)
	return n.Line, ok
}

// after is the edit that adds lines after a line.
func (d *yamlDoc) after(line int, add []string) edit {
	at := 0
	if line > 0 {
		at = d.lines[line-1].next
	}
	if at == len(d.src) {
		return appendLines(d.src, add...)
	}
	eol := eolOf(d.src)
	return edit{at, at, strings.Join(add, eol) + eol}
}

// atEnd is the edit that adds a section at the end of the file, after an empty
// line.
func (d *yamlDoc) atEnd(add []string) edit {
	if n := len(d.lines); n > 0 && len(bytes.TrimSpace(d.src[d.lines[n-1].start:d.lines[n-1].end])) > 0 {
		add = append([]string{""}, add...)
	}
	return appendLines(d.src, add...)
}

// afterExample is the edit after a commented-out line of the one key that is
// missing, which is looked for from the section's first line to its last and
// in the comments that follow.
func (d *yamlDoc) afterExample(first, last int, missing, add []string) []edit {
	if len(missing) != 1 {
		return nil
	}
	re := regexp.MustCompile(`^ *#+ *` + regexp.QuoteMeta(missing[0]) + ` *:`)
	for n := first + 1; n <= len(d.lines); n++ {
		l := d.lines[n-1]
		text := d.src[l.start:l.end]
		if n > last && !bytes.HasPrefix(bytes.TrimLeft(text, " "), []byte("#")) {
			return nil
		}
		if re.Match(text) {
			return []edit{d.after(n, add)}
		}
	}
	return nil
}

// yamlLines are the lines of the keys in missing, one within the other.
func yamlLines(indent, step string, missing []string, value string) []string {
	var out []string
	for i, name := range missing {
		line := indent + strings.Repeat(step, i) + name + ":"
		if i == len(missing)-1 {
			line += " " + yamlScalar(value, 0, false)
		}
		out = append(out, line)
	}
	return out
}

func isYAMLName(s string) bool {
	return regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]*$`).MatchString(s)
}

// yamlScalar writes a value in the given quotes, or in some when it needs them.
func yamlScalar(value string, style yaml.Style, flow bool) string {
	plain := `^[A-Za-z0-9_./]([A-Za-z0-9_./:,@%+= -]*[A-Za-z0-9_./,@%+=-])?$`
	if flow {
		plain = `^[A-Za-z0-9_./]([A-Za-z0-9_./@%+= -]*[A-Za-z0-9_./@%+=-])?$`
	}
	if style == 0 && (!regexp.MustCompile(plain).MatchString(value) ||
		strings.Contains(value, ": ") || strings.EqualFold(value, "null")) {
		style = yaml.DoubleQuotedStyle
		if strings.ContainsAny(value, `"\`) {
			style = yaml.SingleQuotedStyle
		}
	}
	switch style {
	case yaml.DoubleQuotedStyle:
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(value) + `"`
	case yaml.SingleQuotedStyle:
		return `'` + strings.ReplaceAll(value, `'`, `''`) + `'`
	}
	return value
}

// sameBut says whether two trees differ in nothing but what path leads to. A
// section that is there only for path may be missing, or null, in a.
func sameBut(a, b *yaml.Node, path []string) bool {
	if len(path) > 0 && (a == nil || isNull(a) && a.Value == "" && a.Anchor == "") {
		a = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		if b != nil {
			a.Style = b.Style
		}
	}
	if a == nil || b == nil {
		return a == b
	}
	if a.Kind != b.Kind || a.Tag != b.Tag || a.Style != b.Style || a.Value != b.Value || a.Anchor != b.Anchor {
		return false
	}
	if a.Kind != yaml.MappingNode || len(path) == 0 {
		return slices.EqualFunc(a.Content, b.Content, func(x, y *yaml.Node) bool { return sameBut(x, y, nil) })
	}
	x, xOn := onPath(a, path)
	y, yOn := onPath(b, path)
	if !slices.EqualFunc(x, y, func(x, y *yaml.Node) bool { return sameBut(x, y, nil) }) || len(xOn) > len(yOn) {
		return false
	}
	for i, section := range yOn {
		var before *yaml.Node
		if i < len(xOn) {
			before = xOn[i].node
			if len(xOn[i].rest) != len(section.rest) {
				return false
			}
		}
		if !sameBut(before, section.node, section.rest) {
			return false
		}
	}
	return true
}

type yamlSection struct {
	node *yaml.Node
	rest []string
}

// onPath splits a mapping's keys and values into those that are not on path and
// the sections that are. The value that path leads to is in neither.
func onPath(m *yaml.Node, path []string) (off []*yaml.Node, on []yamlSection) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		key, value := m.Content[i], m.Content[i+1]
		rest, ok := []string(nil), false
		if key.Kind == yaml.ScalarNode {
			rest, ok = cutPath(path, key.Value)
		}
		switch {
		case !ok:
			off = append(off, key, value)
		case len(rest) > 0:
			on = append(on, yamlSection{value, rest})
		}
	}
	return off, on
}
