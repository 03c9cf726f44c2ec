package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// People search for the code that a failure prints: docs/operations.md has a line for each, with what to do.
func TestCodesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	_, table, found := strings.Cut(string(text), "## Error codes")
	require.True(t, found)
	codes := map[string]string{}
	for _, root := range []string{"../../internal", "."} {
		require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				var value ast.Expr
				switch n := n.(type) {
				case *ast.CallExpr: // fault.Failed("code", …)
					f, ok := n.Fun.(*ast.SelectorExpr)
					if !ok || len(n.Args) == 0 || !slices.Contains([]string{"Failed", "Preflight"}, f.Sel.Name) {
						return true
					}
					if p, ok := f.X.(*ast.Ident); ok && p.Name == "fault" {
						value = n.Args[0]
					}
				case *ast.KeyValueExpr: // fault.Error{Code: "code"}, step.Finding{Check: "code"}
					if k, ok := n.Key.(*ast.Ident); ok && (k.Name == "Code" || k.Name == "Check") {
						value = n.Value
					}
				}
				if l, ok := value.(*ast.BasicLit); ok && l.Kind == token.STRING {
					code, _ := strconv.Unquote(l.Value)
					codes[code] = path
				}
				return true
			})
			return nil
		}))
	}
	require.Greater(t, len(codes), 40)
	for code, path := range codes {
		assert.Contains(t, table, "`"+code+"`", "%s has this code, and docs/operations.md, Error codes, has not", path)
	}
}
