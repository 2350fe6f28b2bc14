package main

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write build/inline.txt anew")

// inlined are the calls that build/inline.txt tells the compiler to replace by what they call, in functions of a package of
// golang.org/x/crypto. They are all but the whole of ChaCha20-Poly1305 where it has no assembly, as on MIPS and 32-bit
// ARM: each quarter of a round is a call there, with eight words on the stack.
var inlined = []struct {
	pkg, caller string
	callees     []string
}{
	{"chacha20", "xorKeyStreamBlocksGeneric", []string{"quarterRound"}},
	{"internal/poly1305", "updateGeneric", []string{"mul64", "add128"}},
}

// TestInline: build/inline.txt, in the form of `go tool preprofile`, names these calls, in Go's own copy of the package
// (TLS) and in the module (WireGuard). A call is told by its line, so another Go or another module may need another
// file, which -update writes: until it has one all that is lost is speed.
func TestInline(t *testing.T) {
	want := "GO PREPROFILE V1\n"
	for _, at := range []string{"golang.org/x/crypto/", "vendor/golang.org/x/crypto/"} {
		for _, f := range inlined {
			want += callsIn(t, at+f.pkg, f.caller, f.callees)
		}
	}
	const file = "../build/inline.txt"
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != want {
		t.Errorf("build/inline.txt does not fit (%v): go test ./subnetd -run TestInline -update", err)
	}
}

// callsIn is an edge of the profile for each call that a function makes of some others: the two names, and how many lines
// after its beginning.
func callsIn(t *testing.T, pkg, caller string, callees []string) (edges string) {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-f", "{{.Dir}}", pkg).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", pkg, err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "*_generic.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, file := range files {
		set := token.NewFileSet()
		parsed, err := parser.ParseFile(set, file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Name.Name != caller {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				c, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				for _, callee := range callees {
					if name, ok := c.Fun.(*ast.Ident); ok && name.Name == callee {
						found[callee] = true
						edges += fmt.Sprintf("%s.%s\n%s.%s\n%d 1\n", pkg, symbol(f), pkg, callee, set.Position(c.Pos()).Line-set.Position(f.Pos()).Line)
					}
				}
				return true
			})
		}
	}
	if len(found) != len(callees) {
		t.Errorf("in package %s %s calls %v, not %v", pkg, caller, found, callees)
	}
	return edges
}

// symbol is the linker's name of a function within its package.
func symbol(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	if p, ok := f.Recv.List[0].Type.(*ast.StarExpr); ok {
		return fmt.Sprintf("(*%s).%s", p.X, f.Name.Name)
	}
	return fmt.Sprintf("%s.%s", f.Recv.List[0].Type, f.Name.Name)
}
