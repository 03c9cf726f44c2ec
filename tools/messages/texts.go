package main

import (
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// scope is where an expression stands: in a function, perhaps called from elsewhere.
type scope struct {
	function *function
	bound    map[string][]ast.Expr // what a call gives for the parameters; several for a variadic one
	from     *scope                // where those stand
}

// call is the scope within g, called by call.
func (s *scope) call(g *function, call *ast.CallExpr) *scope {
	in := &scope{function: g, bound: map[string][]ast.Expr{}, from: s}
	for i, name := range g.params {
		switch {
		case g.variadic && i == len(g.params)-1:
			in.bound[name] = call.Args[min(i, len(call.Args)):]
		case i < len(call.Args):
			in.bound[name] = call.Args[i : i+1]
		}
	}
	return in
}

// within says whether g is being called already.
func (s *scope) within(g *function) bool {
	return s != nil && (s.function == g || s.from.within(g))
}

// passes says whether a call is given texts that the function's own parameters are.
func (s *scope) passes(call *ast.CallExpr) bool { return slices.ContainsFunc(call.Args, s.given) }

// given says whether a parameter of the function is the text that an expression
// is, or its format. Which parameters are such texts shows from their names.
func (s *scope) given(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.Ident:
		if slices.Contains(s.function.params, e.Name) {
			return slices.Contains([]string{"code", "check", "name", "hint", "fix", "message", "format"}, e.Name)
		}
		return slices.ContainsFunc(s.assigned(e.Name), func(a ast.Expr) bool {
			name, ok := a.(*ast.Ident)
			return ok && name.Name != e.Name && s.given(name)
		})
	}
	return s.formatGiven(e)
}

// formatGiven says whether a parameter is the format of a text that is made.
func (s *scope) formatGiven(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	return ok && formats(call) && s.given(call.Args[0])
}

// formats is a call of fmt.Sprintf or fmt.Errorf.
func formats(call *ast.CallExpr) bool {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	p, ok := f.X.(*ast.Ident)
	return ok && p.Name == "fmt" && (f.Sel.Name == "Sprintf" || f.Sel.Name == "Errorf")
}

// assigned are the values that a local variable is given.
func (s *scope) assigned(name string) []ast.Expr {
	var all []ast.Expr
	for f := s.function; f != nil && all == nil; f = f.outer {
		ast.Inspect(f.body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for i, left := range n.Lhs {
					if l, ok := left.(*ast.Ident); ok && l.Name == name && len(n.Lhs) == len(n.Rhs) &&
						n.Tok != token.ADD_ASSIGN {
						all = append(all, n.Rhs[i])
					}
				}
			case *ast.ValueSpec:
				for i, l := range n.Names {
					if l.Name == name && i < len(n.Values) {
						all = append(all, n.Values[i])
					}
				}
			}
			return true
		})
	}
	return all
}

// texts makes of an expression what a person will read.
type texts struct {
	packs  map[string]*pack
	within []string // variables whose values are being looked at
}

// of are the texts that an expression can be; where only the program's run
// knows, a word in capitals stands for it.
func (t texts) of(at *scope, e ast.Expr) []string {
	if known := t.known(at, e); known != nil {
		return known
	}
	return []string{placeholder(e)}
}

// known are the texts of an expression that has some of its own, or nil.
func (t texts) known(at *scope, e ast.Expr) []string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind == token.STRING {
			s, _ := strconv.Unquote(e.Value)
			return []string{s}
		}
		return []string{e.Value}
	case *ast.ParenExpr:
		return t.known(at, e.X)
	case *ast.BinaryExpr:
		if e.Op != token.ADD || number(e.X) || number(e.Y) || t.known(at, e.X) == nil && t.known(at, e.Y) == nil {
			return nil
		}
		return product(t.of(at, e.X), t.of(at, e.Y))
	case *ast.Ident:
		if slices.Contains(t.within, e.Name) { // err = fmt.Errorf("…: %w", err)
			return nil
		}
		t.within = append(slices.Clone(t.within), e.Name)
		return t.name(at, e.Name)
	case *ast.SelectorExpr:
		if p, ok := e.X.(*ast.Ident); ok {
			if other := t.packs[at.function.pack.imports[p.Name]]; other != nil && other.consts[e.Sel.Name] != nil {
				return t.known(&scope{function: &function{pack: other, body: &ast.BlockStmt{}}},
					other.consts[e.Sel.Name])
			}
		}
	case *ast.CallExpr:
		return t.call(at, e)
	}
	return nil
}

func (t texts) name(at *scope, name string) []string {
	if bound, ok := at.bound[name]; ok && at.from != nil && len(bound) == 1 {
		t.within = nil
		return t.of(at.from, bound[0])
	}
	var all, others []string
	for _, value := range at.assigned(name) {
		if texts := t.known(at, value); texts != nil {
			all = append(all, texts...)
		} else {
			others = []string{capitals(name)}
		}
	}
	// That there may be nothing is not worth saying.
	all = slices.DeleteFunc(all, func(s string) bool { return s == "" })
	if len(all) > 0 {
		return append(all, others...)
	}
	if value := at.function.pack.consts[name]; value != nil {
		return t.known(&scope{function: &function{pack: at.function.pack, body: &ast.BlockStmt{}}}, value)
	}
	return nil
}

func (t texts) call(at *scope, call *ast.CallExpr) []string {
	if formats(call) {
		return t.format(at, call.Args[0], call.Args[1:], call.Ellipsis.IsValid())
	}
	g := at.function.callee(call)
	if _, method := call.Fun.(*ast.SelectorExpr); g == nil || method {
		return nil
	}
	in := at.call(g, call)
	var all []string
	unknown := false
	ast.Inspect(g.body, func(n ast.Node) bool {
		if _, closure := n.(*ast.FuncLit); closure {
			return false
		}
		if r, ok := n.(*ast.ReturnStmt); ok && len(r.Results) == 1 {
			texts := t.known(in, r.Results[0])
			all, unknown = append(all, texts...), unknown || texts == nil
		}
		return true
	})
	if unknown {
		return nil
	}
	return all
}

// number is a sum's operand that makes it none of texts.
func number(e ast.Expr) bool {
	l, ok := e.(*ast.BasicLit)
	return ok && l.Kind != token.STRING
}

// format are a format's texts with its arguments in the verbs' places.
func (t texts) format(at *scope, format ast.Expr, args []ast.Expr, spread bool) []string {
	type argument struct {
		at *scope
		e  ast.Expr
	}
	var list []argument
	for i, a := range args {
		name, ok := a.(*ast.Ident)
		if !ok || !spread || i < len(args)-1 {
			list = append(list, argument{at, a})
			continue
		}
		for _, e := range at.bound[name.Name] {
			list = append(list, argument{at.from, e})
		}
	}
	verb := regexp.MustCompile(`%[-+# 0]*\d*(\.\d+)?[a-zA-Z%]`)
	var all []string
	for _, f := range t.of(at, format) {
		done, next, rest := []string{""}, 0, f
		for place := verb.FindStringIndex(rest); place != nil; place = verb.FindStringIndex(rest) {
			words := []string{"%"}
			if kind := rest[place[1]-1]; kind != '%' {
				words = []string{"…"}
				if next < len(list) {
					words = t.of(list[next].at, list[next].e)
				}
				next++
				for i, w := range words {
					switch {
					case kind == 'q':
						words[i] = `"` + w + `"`
					case kind == 'd' && (w == "…" || w == "HOST"):
						words[i] = "NUMBER"
					}
				}
			}
			done = product(product(done, []string{rest[:place[0]]}), words)
			rest = rest[place[1]:]
		}
		all = append(all, product(done, []string{rest})...)
	}
	return all
}

func product(heads, tails []string) []string {
	var all []string
	for _, h := range heads {
		for _, t := range tails {
			all = append(all, h+t)
		}
	}
	return all
}

// placeholder stands for what only the program's run knows, by its name.
func placeholder(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return capitals(e.Name)
	case *ast.SelectorExpr:
		switch e.Sel.Name {
		case "name":
			return "HOST"
		case "at":
			return "FILE:LINE"
		case "Value": // of a node of a parsed file
			return placeholder(e.X)
		}
		return capitals(e.Sel.Name)
	case *ast.StarExpr:
		return placeholder(e.X)
	case *ast.ParenExpr:
		return placeholder(e.X)
	case *ast.IndexExpr: // one of several
		return strings.TrimSuffix(placeholder(e.X), "S")
	case *ast.SliceExpr:
		return placeholder(e.X)
	case *ast.CallExpr:
		f, ok := e.Fun.(*ast.SelectorExpr)
		switch {
		case ok && f.Sel.Name == "Name" && len(e.Args) == 0:
			return "HOST"
		case ok && f.Sel.Name == "name":
			return "COMMAND"
		case ok && len(e.Args) == 0 && f.Sel.Name != "String":
			return placeholder(f)
		case ok && len(e.Args) == 0:
			return placeholder(f.X)
		case ok && f.Sel.Name == "Dir":
			return "DIRECTORY"
		case len(e.Args) > 0:
			return placeholder(e.Args[0])
		}
	}
	return "…"
}

// capitals is a variable's name as a placeholder.
func capitals(name string) string {
	if lower := strings.ToLower(name); strings.HasPrefix(lower, "err") || strings.HasSuffix(lower, "err") {
		return "…"
	}
	switch name {
	case "cause", "seen", "said", "so", "suffix", "off", "odd", "now":
		return "…" // words of another program, or a list
	case "h", "n", "host", "here", "Host":
		return "HOST"
	case "addr", "Addr", "Via":
		return "ADDRESS"
	case "path", "Path", "file", "Filename", "KeyFile":
		return "FILE"
	case "dir", "Dir", "Directory", "base":
		return "DIRECTORY"
	case "KnownHosts":
		return "KNOWN_HOSTS_FILE"
	case "print":
		return "FINGERPRINT"
	case "first":
		return "UNIT"
	}
	if len(name) == 1 {
		return "VALUE"
	}
	var b strings.Builder
	lower := false
	for _, r := range name {
		if unicode.IsUpper(r) && lower {
			b.WriteByte('_')
		}
		lower = unicode.IsLower(r)
		b.WriteRune(unicode.ToUpper(r))
	}
	return b.String()
}
