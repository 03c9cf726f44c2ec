package confedit

import (
	"bytes"
	"cmp"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Style is a dialect of INI: whose file it is decides how it is read.
type Style int

const (
	// OSLO is st2.conf, as oslo.config's iniparser reads it: sections, "key =
	// value" or "key: value", comment lines that start with # or ;, no comments
	// after values, lines that start with a blank continue the value before.
	// Section names are compared without case, DEFAULT apart. Of an option
	// given twice, also in a section given twice, the last counts. A $ in a
	// value is interpolated by oslo.config: that is left to the caller.
	OSLO Style = iota
	// Mongo is the mongodb.conf of old, as boost's program_options reads it:
	// "key = value", # starts a comment anywhere, an option given twice is an
	// error to mongod. Its options are in section "".
	Mongo
	// Rabbit is rabbitmq.conf, as cuttlefish reads it: "dotted.key = value", #
	// starts a comment anywhere, a value may be in single quotes, the last
	// setting of a key counts. There are no sections: it is "".
	Rabbit
	// Env is rabbitmq-env.conf, which a shell reads: KEY=value, perhaps
	// exported or quoted. RABBITMQ_KEY and KEY are the same option, and the
	// former counts, wherever it stands; else the last does. Control structures,
	// and whatever else may set a variable, are refused. There are no sections.
	Env
)

// INI is a parsed file of one of the styles. Its editing methods change it only
// when they succeed.
type INI struct {
	style Style
	src   []byte
	heads []iniHead
	opts  []iniOption
}

// iniHead is a section's header line.
type iniHead struct {
	span
	name string // as written
	line int
}

// iniOption is one assignment.
type iniOption struct {
	span             // all its physical lines
	line             int
	section          string // as written
	key              string
	keyEnd, val, end int // the key's end, and the value with its quotes
	value            string
	odd              string // why the value cannot be known from the file
	shared           bool   // other assignments are on the same line
}

// ReadOSLO reads st2.conf to look at it, and never to edit it: an odd line costs
// that line only, or, if it is a section's header, what stands below it. The
// error, if any, is an *Error about all odd lines.
func ReadOSLO(src []byte) (*INI, error) {
	f := &INI{style: OSLO, src: src}
	return f, oddLines(f.parseOSLO())
}

// ParseINI reads a file of the given style. What its program would stumble
// over, or what this package cannot follow, is an *Error.
func ParseINI(src []byte, style Style) (*INI, error) {
	if err := checkText(src); err != nil {
		return nil, err
	}
	f := &INI{style: style, src: src}
	var err error
	switch style {
	case OSLO:
		if odd := f.parseOSLO(); len(odd) > 0 {
			err = odd[0]
		}
	case Mongo:
		err = f.parseMongo()
	case Rabbit:
		err = f.parseRabbit()
	case Env:
		err = f.parseEnv()
	default:
		err = refuse(0, "unknown INI style %d", style)
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Bytes returns the file as it is now.
func (f *INI) Bytes() []byte { return f.src }

// Sections returns the names of all sections as first written, in order.
func (f *INI) Sections() []string {
	var out []string
	seen := map[string]bool{}
	for _, h := range f.heads {
		if n := f.norm(h.name); !seen[n] {
			seen[n] = true
			out = append(out, h.name)
		}
	}
	return out
}

// Keys returns the keys that a section sets, each once, in order.
func (f *INI) Keys(section string) []string {
	var out []string
	seen := map[string]bool{}
	for _, o := range f.opts {
		if f.norm(o.section) == f.norm(section) && !seen[o.key] {
			seen[o.key] = true
			out = append(out, o.key)
		}
	}
	return out
}

// Get returns the value that counts, without its quotes. A value that cannot
// be known from the file ($(hostname) in Env) is returned as it is written; use
// Lookup where that matters.
func (f *INI) Get(section, key string) (value string, ok bool) {
	o := f.effective(section, key)
	if o == nil {
		return "", false
	}
	return o.value, true
}

// Lookup is Get for those who act on the value: one that cannot be known from
// the file is an *Error with its line.
func (f *INI) Lookup(section, key string) (value string, ok bool, err error) {
	all := f.find(section, key)
	if len(all) == 0 {
		return "", false, nil
	}
	for _, o := range all {
		if o.odd != "" {
			return "", true, refuse(o.line, "%s: %s", o.key, o.odd)
		}
	}
	if f.style == Mongo && len(all) > 1 {
		return "", true, f.twice(all)
	}
	return f.effective(section, key).value, true, nil
}

// Line returns the line, counted from 1, of the assignment that counts, or 0.
func (f *INI) Line(section, key string) int {
	if o := f.effective(section, key); o != nil {
		return o.line
	}
	return 0
}

// Set makes key have value. A value that is there is replaced in place, with
// its spacing, quotes and the comment after it kept. A key that is not is added
// after its commented-out example, if the section has one, else after the
// section's last option; a section that is not, at the end of the file. A key
// that is set twice is refused, unless the one that counts has the value: it
// is not for this package to say which of them is meant.
func (f *INI) Set(section, key, value string) error {
	if err := f.checkName(section, key); err != nil {
		return err
	}
	all := f.find(section, key)
	have, ok, err := f.Lookup(section, key)
	switch {
	case err != nil:
		return err
	case ok && have == value:
		return nil
	case len(all) > 1:
		return f.twice(all)
	}
	var e edit
	if ok {
		o := all[0]
		raw, err := f.format(key, value, f.src[o.val:o.end])
		if err != nil {
			return err
		}
		e = edit{o.val, o.end, raw}
		if e.start == e.end {
			e.text = f.separator(section)[1] + raw
			if isBlank(f.src[o.keyEnd]) {
				e.text = " " + raw
			}
		}
	} else {
		raw, err := f.format(key, value, nil)
		if err != nil {
			return err
		}
		e = f.insertion(section, key, raw)
	}
	return f.apply(section, key, func(g *INI) bool {
		got, ok, err := g.Lookup(section, key)
		return err == nil && ok && got == value
	}, e)
}

// Delete removes every assignment of key; none is no error.
func (f *INI) Delete(section, key string) error {
	return f.drop(section, key, func(src []byte, o *iniOption) []edit {
		return []edit{cutLines(src, o.start, o.next)}
	})
}

// Comment puts a # before every assignment of key; none is no error.
func (f *INI) Comment(section, key string) error {
	return f.drop(section, key, func(src []byte, o *iniOption) []edit {
		var out []edit
		for _, l := range lines(src[o.start:o.next]) {
			out = append(out, edit{o.start + l.start, o.start + l.start, "#"})
		}
		return out
	})
}

// drop takes the assignments of a key out of effect, one after the other.
func (f *INI) drop(section, key string, how func(src []byte, o *iniOption) []edit) error {
	g := *f
	for {
		all := g.find(section, key)
		if len(all) == 0 {
			*f = g
			return nil
		}
		o := all[len(all)-1]
		if o.shared {
			return refuse(o.line, "%s shares its line with other assignments", o.key)
		}
		if err := g.apply(section, key, func(h *INI) bool {
			return len(h.find(section, key)) == len(all)-1
		}, how(g.src, o)...); err != nil {
			return err
		}
	}
}

// apply splices, parses the result, and takes it if verify does and all other
// options are what they were.
func (f *INI) apply(section, key string, verify func(*INI) bool, edits ...edit) error {
	g, err := ParseINI(splice(f.src, edits...), f.style)
	if err != nil {
		return err
	}
	if !verify(g) || !f.sameOthers(g, section, key) {
		return refuse(lineAt(f.src, edits[0].start), "an edit of %s here would change more than that", key)
	}
	*f = *g
	return nil
}

func (f *INI) sameOthers(g *INI, section, key string) bool {
	i, j := 0, 0
	for {
		for i < len(f.opts) && f.is(&f.opts[i], section, key) {
			i++
		}
		for j < len(g.opts) && g.is(&g.opts[j], section, key) {
			j++
		}
		if i == len(f.opts) || j == len(g.opts) {
			return i == len(f.opts) && j == len(g.opts)
		}
		a, b := &f.opts[i], &g.opts[j]
		if a.section != b.section || a.key != b.key || a.value != b.value {
			return false
		}
		i++
		j++
	}
}

func (f *INI) twice(all []*iniOption) *Error {
	return refuse(all[1].line, "%s is set twice: also on line %d", all[1].key, all[0].line)
}

// norm is a section's name as it is compared.
func (f *INI) norm(section string) string {
	if f.style == OSLO && section != "DEFAULT" {
		return strings.ToLower(section)
	}
	return section
}

// bare is a key as it is compared.
func (f *INI) bare(key string) string {
	if f.style == Env {
		return strings.TrimPrefix(key, "RABBITMQ_")
	}
	return key
}

func (f *INI) is(o *iniOption, section, key string) bool {
	return f.bare(o.key) == f.bare(key) && f.norm(o.section) == f.norm(section)
}

func (f *INI) find(section, key string) []*iniOption {
	var out []*iniOption
	for i := range f.opts {
		if f.is(&f.opts[i], section, key) {
			out = append(out, &f.opts[i])
		}
	}
	return out
}

// effective is the assignment that counts.
func (f *INI) effective(section, key string) *iniOption {
	all := f.find(section, key)
	for _, o := range slices.Backward(all) {
		if f.style != Env || strings.HasPrefix(o.key, "RABBITMQ_") {
			return o
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[len(all)-1]
}

// checkName refuses names that would not come back as such.
func (f *INI) checkName(section, key string) error {
	plain := func(s, more string) bool {
		for i := 0; i < len(s); i++ {
			c := s[i]
			if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
				strings.IndexByte(more, c) >= 0) {
				return false
			}
		}
		return s != ""
	}
	more := "_-."
	if f.style == Env {
		more = "_"
	}
	if !plain(key, more) || f.style == Env && '0' <= key[0] && key[0] <= '9' {
		return refuse(0, "%q cannot be the name of an option", key)
	}
	switch {
	case f.style == OSLO && !plain(section, "_-."), f.style == Mongo && section != "" && !plain(section, "_-."):
		return refuse(0, "%q cannot be the name of a section", section)
	case (f.style == Rabbit || f.style == Env) && section != "":
		return refuse(0, "section %q in a file that has no sections", section)
	}
	return nil
}

// format writes a value, in the quotes that the old one had where they do.
func (f *INI) format(key, value string, old []byte) (string, error) {
	if err := checkValue("the value of "+key, value); err != nil {
		return "", err
	}
	quote := byte(0)
	if n := len(old); n > 1 && old[0] == old[n-1] && (old[0] == '"' || old[0] == '\'') &&
		bytes.IndexByte(old, '\n') < 0 {
		quote = old[0]
	}
	n := len(value)
	trimmed := strings.TrimSpace(value) == value
	switch f.style {
	case OSLO:
		// Only a value that oslo would unquote or trim needs quotes of its own.
		if quote == 0 && (!trimmed || n > 0 && value[0] == value[n-1] && (value[0] == '"' || value[0] == '\'')) {
			quote = '"'
		}
		if quote != 0 {
			value = string(quote) + value + string(quote)
		}
		return value, nil
	case Mongo:
		if !trimmed || strings.Contains(value, "#") {
			return "", refuse(0, "the value of %s has a # or spaces at an end, which mongod would drop", key)
		}
		return value, nil
	case Rabbit:
		// Releases before 3.13 take quotes literally, so none are added.
		if n == 0 || !trimmed || strings.ContainsAny(value, "#'") {
			return "", refuse(0, "the value of %s is empty, or has a #, a quote or spaces at an end, which RabbitMQ "+
				"would not read", key)
		}
		if quote == '\'' {
			value = "'" + value + "'"
		}
		return value, nil
	}
	return formatEnv(key, value, quote)
}

// separator is what stands before and after the equals sign of the nearest
// option, the last of the section or else of the file, with the sign between.
func (f *INI) separator(section string) [2]string {
	if f.style == Env {
		return [2]string{"=", ""}
	}
	pick := -1
	for i := range f.opts {
		// An empty value says nothing about what is after the sign.
		if f.opts[i].val == f.opts[i].end {
			continue
		}
		if same := f.norm(f.opts[i].section) == f.norm(section); same || pick < 0 ||
			f.norm(f.opts[pick].section) != f.norm(section) {
			pick = i
		}
	}
	if pick < 0 {
		return [2]string{" =", " "}
	}
	o := &f.opts[pick]
	raw := string(f.src[o.keyEnd:o.val])
	sep := [2]string{"=", ""}
	if strings.HasPrefix(strings.TrimLeft(raw, " \t"), ":") {
		sep[0] = ":"
	}
	// Aligned columns are not continued: one blank at most.
	if isBlank(raw[0]) {
		sep[0] = " " + sep[0]
	}
	if isBlank(raw[len(raw)-1]) {
		sep[1] = " "
	}
	return sep
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' }

// insertion is the edit that adds a key which is not there.
func (f *INI) insertion(section, key, raw string) edit {
	sep := f.separator(section)
	line := key + sep[0] + sep[1] + raw
	if raw == "" {
		line = key + sep[0]
	}
	if at, ok := f.place(section, key); ok {
		eol := eolOf(f.src)
		if at == len(f.src) {
			return appendLines(f.src, line)
		}
		return edit{at, at, line + eol}
	}
	add := []string{line}
	if section != "" {
		add = []string{"[" + section + "]", line}
		if n := len(f.src); n > 0 && !bytes.HasSuffix(f.src, []byte("\n\n")) &&
			!bytes.HasSuffix(f.src, []byte("\n\r\n")) {
			add = append([]string{""}, add...)
		}
	}
	return appendLines(f.src, add...)
}

// place finds the line before which a new key of a section that exists goes.
func (f *INI) place(section, key string) (at int, ok bool) {
	// The regions of the section: from its headers to the next ones.
	var regions []span
	if section == "" {
		end := len(f.src)
		if len(f.heads) > 0 {
			end = f.heads[0].start
		}
		regions = append(regions, span{next: end})
	}
	for i, h := range f.heads {
		if f.norm(h.name) != f.norm(section) {
			continue
		}
		end := len(f.src)
		if i+1 < len(f.heads) {
			end = f.heads[i+1].start
		}
		regions = append(regions, span{start: h.next, next: end})
	}
	if len(regions) == 0 {
		return 0, false
	}
	for _, r := range regions {
		if at, ok := f.example(r, key); ok {
			return at, true
		}
	}
	last := regions[len(regions)-1]
	for _, o := range slices.Backward(f.opts) {
		if o.start >= last.start && o.next <= last.next {
			return o.next, true
		}
	}
	if section == "" {
		return last.next, true
	}
	return last.start, true
}

// example finds a commented-out assignment of key and returns where the next
// line starts.
func (f *INI) example(r span, key string) (at int, ok bool) {
	mark, sign := `[#;]`, `[=:]`
	if f.style != OSLO {
		mark, sign = `[ \t]*#`, `=`
	}
	prefix := ""
	if f.style == Env {
		prefix = `(?:export[ \t]+)?(?:RABBITMQ_)?`
	}
	re := regexp.MustCompile(`(?m)^(?:` + mark + `)+[ \t]*` + prefix + regexp.QuoteMeta(f.bare(key)) + `[ \t]*` +
		sign + `.*(?:\n|\z)`)
	for _, m := range re.FindAllIndex(f.src[r.start:r.next], -1) {
		start, next := r.start+m[0], r.start+m[1]
		// Not within an assignment of several lines.
		if !slices.ContainsFunc(f.opts, func(o iniOption) bool { return o.start <= start && start < o.next }) {
			return next, true
		}
	}
	return 0, false
}

// parseOSLO follows oslo_config/iniparser.py, and returns the lines it would
// stumble over.
func (f *INI) parseOSLO() (odd []*Error) {
	section, inSection, lost := "", false, false
	var cur *iniOption
	stumble := func(e *Error) { odd, cur = append(odd, e), nil }
	for n, l := range lines(f.src) {
		text := strings.TrimRightFunc(string(f.src[l.start:l.end]), unicode.IsSpace)
		switch {
		case text == "":
			cur = nil
			continue
		case text[0] == '#' || text[0] == ';':
			cur = nil
			continue
		}
		if e := cmp.Or(checkLine(f.src, n+1, l), checkControl(n+1, text)); e != nil {
			stumble(e)
			continue
		}
		switch {
		case isBlank(text[0]):
			if cur == nil {
				stumble(refuse(n+1, "a line that starts with a space continues an option, but there is no option "+
					"before it"))
				continue
			}
			cur.value += "\n" + strings.TrimLeftFunc(text, unicode.IsSpace)
			cur.end, cur.next = l.start+len(text), l.next
		case text[0] == '[':
			if text[len(text)-1] != ']' || len(text) <= 2 {
				stumble(refuse(n+1, "section header without a name or its closing bracket"))
				inSection, lost = false, true // what follows is of a section that nobody knows
				continue
			}
			section, inSection, lost = text[1:len(text)-1], true, false
			f.heads = append(f.heads, iniHead{l, section, n + 1})
			cur = nil
		default:
			i := strings.IndexAny(text, ":=")
			if i < 0 {
				stumble(refuse(n+1, "neither an option, a section nor a comment"))
				continue
			}
			key := strings.TrimRightFunc(text[:i], unicode.IsSpace)
			if key == "" {
				stumble(refuse(n+1, "no name before the %c", text[i]))
				continue
			}
			if lost {
				cur = nil
				continue
			}
			if !inSection {
				stumble(refuse(n+1, "option %s before the first section", key))
				continue
			}
			value := strings.TrimLeftFunc(text[i+1:], unicode.IsSpace)
			o := iniOption{span: l, line: n + 1, section: section, key: key, keyEnd: l.start + len(key),
				end: l.start + len(text)}
			o.val = o.end - len(value)
			if v := len(value); v > 0 && value[0] == value[v-1] && (value[0] == '"' || value[0] == '\'') {
				value = value[1:max(v-1, 1)]
			}
			o.value = value
			f.opts = append(f.opts, o)
			cur = &f.opts[len(f.opts)-1]
		}
	}
	return odd
}

// parseMongo follows boost's common_config_file_iterator.
func (f *INI) parseMongo() error {
	section := ""
	for n, l := range lines(f.src) {
		line := string(f.src[l.start:l.end])
		line, _, _ = strings.Cut(line, "#")
		text := strings.Trim(line, " \t")
		if text == "" {
			continue
		}
		if err := checkControl(n+1, text); err != nil {
			return err
		}
		if text[0] == '[' && text[len(text)-1] == ']' {
			section = text[1 : len(text)-1]
			if section == "" {
				return refuse(n+1, "section header without a name")
			}
			f.heads = append(f.heads, iniHead{l, section, n + 1})
			continue
		}
		key, value, ok := strings.Cut(text, "=")
		key, value = strings.TrimRight(key, " \t"), strings.TrimLeft(value, " \t")
		if !ok || key == "" {
			return refuse(n+1, "neither an option nor a comment")
		}
		f.add(section, key, value, n+1, l, line)
	}
	return nil
}

// add records an assignment whose line, cut off before a comment, is line.
func (f *INI) add(section, key, value string, n int, l span, line string) *iniOption {
	start := l.start + strings.Index(line, key)
	end := l.start + len(strings.TrimRight(line, " \t"))
	f.opts = append(f.opts, iniOption{
		span: l, line: n, section: section, key: key,
		keyEnd: start + len(key), val: end - len(value), end: end, value: value,
	})
	return &f.opts[len(f.opts)-1]
}

// parseRabbit follows cuttlefish's conf_parse.peg.
func (f *INI) parseRabbit() error {
	for n, l := range lines(f.src) {
		whole := string(f.src[l.start:l.end])
		text := strings.Trim(whole, " \t")
		if text == "" || text[0] == '#' {
			continue
		}
		if err := checkControl(n+1, text); err != nil {
			return err
		}
		if text[0] == '[' || text[0] == '%' {
			return refuse(n+1, "Erlang terms (the classic rabbitmq.config) in a file of rabbitmq.conf's format")
		}
		key, value, ok := strings.Cut(text, "=")
		if strings.HasPrefix(text, "include ") || strings.HasPrefix(text, "include\t") {
			return refuse(n+1, "include of another file, which st2ha does not read")
		}
		key = strings.TrimRight(key, " \t")
		if !ok || !rabbitKey(key) {
			return refuse(n+1, "neither a setting (key = value) nor a comment")
		}
		value = strings.TrimLeft(value, " \t")
		if strings.HasPrefix(value, "'") {
			inner, rest, closed := strings.Cut(value[1:], "'")
			if rest = strings.TrimLeft(rest, " \t"); !closed || rest != "" && rest[0] != '#' {
				return refuse(n+1, "single quotes that are not around the whole value")
			}
			line := whole[:len(whole)-len(value)+len(inner)+2]
			o := f.add("", key, "'"+inner+"'", n+1, l, line)
			o.value = inner
			continue
		}
		// A quote or # before the equals sign is no key, so this is the comment.
		line, _, _ := strings.Cut(whole, "#")
		value, _, _ = strings.Cut(value, "#")
		value = strings.TrimRight(value, " \t")
		if value == "" {
			return refuse(n+1, "%s has no value", key)
		}
		f.add("", key, value, n+1, l, line)
	}
	return nil
}

func rabbitKey(key string) bool {
	for word := range strings.SplitSeq(strings.ReplaceAll(key, `\.`, "_"), ".") {
		if word == "" || strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
			return false
		}
	}
	return true
}

// checkControl refuses control characters in lines that mean something:
// readers differ on which of them are blanks.
func checkControl(line int, text string) *Error {
	for i := 0; i < len(text); i++ {
		if text[i] < ' ' && text[i] != '\t' || text[i] == 0x7f {
			return refuse(line, "control character 0x%02x", text[i])
		}
	}
	return nil
}
