package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// message is one text that a person can meet, and what to do then.
type message struct {
	code, text string
	fixes      []string // several where the source chooses; none where the text says it all
}

// pack is one package's syntax.
type pack struct {
	consts  map[string]ast.Expr
	funcs   map[string]*function
	imports map[string]string // local name to directory, of all its files; the others' to their path
}

// function is one with a name, or a closure that a variable holds.
type function struct {
	pack     *pack
	outer    *function // of a closure
	params   []string  // a variadic one last
	variadic bool
	body     *ast.BlockStmt
	closures map[string]*function
}

// collect reads the packages below the directories, without their tests.
func collect(root string, dirs ...string) ([]message, error) {
	packs := map[string]*pack{}
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join(root, dir), func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			key, err := filepath.Rel(root, filepath.Dir(name))
			if err != nil {
				return err
			}
			if packs[key] == nil {
				packs[key] = &pack{consts: map[string]ast.Expr{}, funcs: map[string]*function{},
					imports: map[string]string{}}
			}
			packs[key].add(file)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	c := collector{packs: packs}
	for _, key := range slices.Sorted(maps.Keys(packs)) {
		p := packs[key]
		for _, name := range slices.Sorted(maps.Keys(p.funcs)) {
			c.function(p.funcs[name], nil)
		}
	}
	return c.messages, nil
}

// add takes what a file declares. A method's key has its receiver's type before
// its name, so that methods of one name do not replace each other.
func (p *pack) add(file *ast.File) {
	for _, i := range file.Imports {
		whole, _ := strconv.Unquote(i.Path.Value)
		name := path.Base(whole)
		if i.Name != nil {
			name = i.Name.Name
		}
		p.imports[name] = strings.TrimPrefix(whole, "st2ha/")
	}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if v, ok := s.(*ast.ValueSpec); ok && d.Tok == token.CONST {
					for i, name := range v.Names {
						if i < len(v.Values) {
							p.consts[name.Name] = v.Values[i]
						}
					}
				}
			}
		case *ast.FuncDecl:
			if d.Body == nil {
				continue
			}
			name := d.Name.Name
			if d.Recv != nil {
				name = receiver(d) + "." + name
			}
			p.funcs[name] = p.function(d.Type, d.Body, nil)
		}
	}
}

func receiver(d *ast.FuncDecl) string {
	t := d.Recv.List[0].Type
	for {
		switch e := t.(type) {
		case *ast.StarExpr:
			t = e.X
		case *ast.IndexExpr: // of a type with a parameter
			t = e.X
		case *ast.IndexListExpr:
			t = e.X
		case *ast.Ident:
			return e.Name
		default:
			return ""
		}
	}
}

func (p *pack) function(t *ast.FuncType, body *ast.BlockStmt, outer *function) *function {
	f := &function{pack: p, outer: outer, body: body, closures: map[string]*function{}}
	for _, field := range t.Params.List {
		_, f.variadic = field.Type.(*ast.Ellipsis)
		for _, name := range field.Names {
			f.params = append(f.params, name.Name)
		}
	}
	ast.Inspect(body, func(n ast.Node) bool {
		if a, ok := n.(*ast.AssignStmt); ok && len(a.Lhs) == 1 && len(a.Rhs) == 1 {
			name, isName := a.Lhs[0].(*ast.Ident)
			lit, isLit := a.Rhs[0].(*ast.FuncLit)
			if isName && isLit {
				f.closures[name.Name] = p.function(lit.Type, lit.Body, f)
				return false
			}
		}
		return true
	})
	return f
}

// callee is the function of the same package that a call means, or nil. What a
// method belongs to is not known here, so its name has to be the only one.
func (f *function) callee(call *ast.CallExpr) *function {
	switch fun := call.Fun.(type) {
	case *ast.Ident:
		for o := f; o != nil; o = o.outer {
			if c := o.closures[fun.Name]; c != nil {
				return c
			}
		}
		return f.pack.funcs[fun.Name]
	case *ast.SelectorExpr:
		var only *function
		for name, candidate := range f.pack.funcs {
			if strings.HasSuffix(name, "."+fun.Sel.Name) {
				if only != nil {
					return nil
				}
				only = candidate
			}
		}
		return only
	}
	return nil
}

type collector struct {
	packs    map[string]*pack
	messages []message
}

// function collects what its body reports. With a call, what the body reports
// by its parameters, itself or by what it passes them to; without one, all else.
func (c *collector) function(f *function, called *scope) {
	at := called
	if at == nil {
		at = &scope{function: f}
		for _, closure := range f.closures {
			c.function(closure, nil)
		}
	}
	bases := map[string]report{} // findings that variables hold
	ast.Inspect(f.body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit: // one that a variable holds is walked as a function
			for _, closure := range f.closures {
				if closure.body == n.Body {
					return false
				}
			}
		case *ast.CallExpr:
			if r, ok := faultCall(f, n); ok {
				c.report(at, r, called != nil)
			} else if r, ok := c.editorError(f, n); ok {
				c.report(at, r, called != nil)
			} else if g := f.callee(n); g != nil && !at.within(g) && (called == nil || at.passes(n)) {
				c.function(g, at.call(g, n))
			}
		case *ast.AssignStmt:
			for i, left := range n.Lhs {
				if name, ok := left.(*ast.Ident); ok && i < len(n.Rhs) {
					if r, ok := literal(n.Rhs[i]); ok {
						bases[name.Name] = r
					} else if _, isCall := n.Rhs[i].(*ast.CallExpr); isCall {
						bases[name.Name] = report{}
					}
				}
			}
		case *ast.CompositeLit:
			if r, ok := literal(n); ok {
				c.report(at, r, called != nil)
			}
		case *ast.BlockStmt:
			c.fields(at, bases, n.List, called != nil)
		case *ast.CaseClause:
			c.fields(at, bases, n.Body, called != nil)
		}
		return true
	})
}

// report is a fault or a finding before its texts are made.
type report struct {
	code, text, fix ast.Expr
	args            []ast.Expr
	spread          bool // the last of args is a variadic parameter
	formatted       bool
}

// faultCall is a call of fault's constructors.
func faultCall(f *function, call *ast.CallExpr) (report, bool) {
	fun, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return report{}, false
	}
	if p, ok := fun.X.(*ast.Ident); !ok || f.pack.imports[p.Name] != "internal/fault" || len(call.Args) == 0 {
		return report{}, false
	}
	r := report{formatted: true, spread: call.Ellipsis.IsValid()}
	switch fun.Sel.Name {
	case "Usage":
		r.code, r.text, r.args = &ast.BasicLit{Kind: token.STRING, Value: `"usage"`}, call.Args[0], call.Args[1:]
	case "Preflight", "Failed":
		r.code, r.fix, r.text, r.args = call.Args[0], call.Args[1], call.Args[2], call.Args[3:]
	default:
		return report{}, false
	}
	return r, true
}

// editorError is an error of the package confedit, which refuses an edit with
// refuse(line, format, …) or a method of that name; step.Located makes a fault of it.
func (c *collector) editorError(f *function, call *ast.CallExpr) (report, bool) {
	if f.pack != c.packs["internal/confedit"] {
		return report{}, false
	}
	switch fun := call.Fun.(type) {
	case *ast.Ident:
		if fun.Name != "refuse" {
			return report{}, false
		}
	case *ast.SelectorExpr:
		if fun.Sel.Name != "refuse" {
			return report{}, false
		}
	default:
		return report{}, false
	}
	text := func(s string) ast.Expr { return &ast.BasicLit{Kind: token.STRING, Value: strconv.Quote(s)} }
	for i, a := range call.Args {
		if !isText(a) {
			continue
		}
		where := "HOST: FILE: line NUMBER: "
		if line, ok := call.Args[0].(*ast.BasicLit); ok && line.Kind == token.INT { // it is about the request
			where = "HOST: FILE: "
		}
		return report{code: text("unparsable"),
			text: &ast.BinaryExpr{X: text(where), Op: token.ADD, Y: a}, args: call.Args[i+1:],
			formatted: true}, true
	}
	return report{}, false
}

// isText is a string that is written out, perhaps in parts.
func isText(e ast.Expr) bool {
	if sum, ok := e.(*ast.BinaryExpr); ok {
		return isText(sum.X)
	}
	l, ok := e.(*ast.BasicLit)
	return ok && l.Kind == token.STRING
}

// literal is a step.Finding{…} or fault.Error{…}.
func literal(e ast.Expr) (report, bool) {
	if address, ok := e.(*ast.UnaryExpr); ok {
		e = address.X
	}
	lit, ok := e.(*ast.CompositeLit)
	if !ok {
		return report{}, false
	}
	r := report{}
	for _, element := range lit.Elts {
		kv, ok := element.(*ast.KeyValueExpr)
		if !ok {
			return report{}, false
		}
		key, ok := kv.Key.(*ast.Ident)
		if ok {
			r.set(key.Name, kv.Value)
		}
	}
	if t := lit.Type; t != nil { // no type: an element of a list of findings
		if s, ok := t.(*ast.SelectorExpr); ok {
			t = s.Sel
		}
		if name, ok := t.(*ast.Ident); !ok || name.Name != "Finding" && name.Name != "Error" {
			return report{}, false
		}
	}
	return r, r.code != nil || r.text != nil || len(lit.Elts) > 0 && lit.Type != nil
}

func (r *report) set(field string, value ast.Expr) bool {
	switch field {
	case "Check", "Code":
		r.code = value
	case "Message", "Err":
		r.text = value
	case "Fix", "Hint":
		r.fix = value
	default:
		return false
	}
	return true
}

// fields are assignments to a finding's fields: those of one block belong together.
func (c *collector) fields(at *scope, bases map[string]report, block []ast.Stmt, called bool) {
	changed := map[string]report{}
	for _, s := range block {
		a, ok := s.(*ast.AssignStmt)
		if !ok || len(a.Lhs) != len(a.Rhs) {
			continue
		}
		for i, left := range a.Lhs {
			field, ok := left.(*ast.SelectorExpr)
			if !ok {
				continue
			}
			name, ok := field.X.(*ast.Ident)
			if !ok {
				continue
			}
			base, known := bases[name.Name]
			if r, again := changed[name.Name]; again {
				base = r
			}
			if known && base.set(field.Sel.Name, a.Rhs[i]) {
				changed[name.Name] = base
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(changed)) {
		c.report(at, changed[name], called)
	}
}

// report makes the texts. In a called function only those are of interest that
// its parameters decide: the others were collected before.
func (c *collector) report(at *scope, r report, called bool) {
	decided := at.given(r.code) || at.given(r.fix) || at.given(r.text) || slices.ContainsFunc(r.args, at.formatGiven)
	if r.code == nil || decided != called {
		return
	}
	t := texts{packs: c.packs}
	for _, code := range t.of(at, r.code) {
		if !regexp.MustCompile(`^[a-z0-9_]+$`).MatchString(code) {
			continue
		}
		lines := []string{""}
		if r.formatted {
			lines = t.format(at, r.text, r.args, r.spread)
		} else if r.text != nil {
			lines = t.of(at, r.text)
		}
		for _, line := range lines {
			m := message{code: code, text: tidy(line)}
			if r.fix != nil {
				for _, fix := range t.of(at, r.fix) {
					if fix = tidy(fix); saysSomething(fix) {
						m.fixes = append(m.fixes, fix)
					}
				}
			}
			c.messages = append(c.messages, m)
		}
	}
}

// tidy takes away what a placeholder of nothing leaves.
func tidy(s string) string { return strings.Join(strings.Fields(s), " ") }
