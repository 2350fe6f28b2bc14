package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// sources are the packages that are read. An empty list of names: all exported types.
var sources = []struct {
	folder string
	names  []string
}{
	{"subnetd/status", nil},
	{"subnetd/api", []string{"UpRequest", "PingResult"}},
	{"subnetd/mesh", []string{"Path", "PathKind"}},
}

const preamble = "// Made of the Go packages that the daemon answers with, by `make webui`: not to be edited.\n"

// generate is the whole file of declarations, in the order of the Go sources.
func generate(root string) (string, error) {
	var b strings.Builder
	b.WriteString(preamble)
	for _, s := range sources {
		files, err := parse(filepath.Join(root, filepath.FromSlash(s.folder)))
		if err != nil {
			return "", err
		}
		for _, f := range files {
			if err := declare(&b, f, s.names); err != nil {
				return "", err
			}
		}
	}
	return b.String(), nil
}

// parse reads the files of a folder but for its tests, sorted by name.
func parse(folder string) ([]*ast.File, error) {
	names, err := filepath.Glob(filepath.Join(folder, "*.go"))
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return strings.HasSuffix(n, "_test.go") })
	if len(names) == 0 {
		return nil, fmt.Errorf("%s: %w", folder, fs.ErrNotExist)
	}
	slices.Sort(names)
	var files []*ast.File
	for _, n := range names {
		f, err := parser.ParseFile(token.NewFileSet(), n, nil, parser.ParseComments)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// declare writes the types of one file that are wanted.
func declare(b *strings.Builder, f *ast.File, wanted []string) error {
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.TYPE {
			continue
		}
		for _, s := range g.Specs {
			t := s.(*ast.TypeSpec)
			if !t.Name.IsExported() || len(wanted) > 0 && !slices.Contains(wanted, t.Name.Name) {
				continue
			}
			doc := t.Doc
			if doc == nil {
				doc = g.Doc
			}
			if err := declareType(b, t, doc, f); err != nil {
				return fmt.Errorf("%s: %w", t.Name.Name, err)
			}
		}
	}
	return nil
}

func declareType(b *strings.Builder, t *ast.TypeSpec, doc *ast.CommentGroup, f *ast.File) error {
	comment(b, "", doc)
	s, ok := t.Type.(*ast.StructType)
	if !ok {
		as, err := typescript(t.Type)
		if err != nil {
			return err
		}
		if words := values(f, t.Name.Name); len(words) > 0 {
			as = strings.Join(words, " | ")
		}
		fmt.Fprintf(b, "export type %s = %s;\n", t.Name.Name, as)
		return nil
	}
	fmt.Fprintf(b, "export interface %s {\n", t.Name.Name)
	for _, field := range s.Fields.List {
		if err := declareField(b, field); err != nil {
			return err
		}
	}
	b.WriteString("}\n")
	return nil
}

// values are the constants of a string type that are in its file, quoted.
func values(f *ast.File, name string) []string {
	var words []string
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			if id, ok := v.Type.(*ast.Ident); !ok || id.Name != name {
				continue
			}
			for _, x := range v.Values {
				if lit, ok := x.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					words = append(words, lit.Value)
				}
			}
		}
	}
	return words
}

func declareField(b *strings.Builder, field *ast.Field) error {
	if field.Tag == nil || len(field.Names) == 0 {
		return fmt.Errorf("a field has no tag or no name: what is its name in JSON?")
	}
	tag, err := strconv.Unquote(field.Tag.Value)
	if err != nil {
		return err
	}
	name, options, _ := strings.Cut(reflect.StructTag(tag).Get("json"), ",")
	if name == "-" {
		return nil
	}
	as, err := typescript(field.Type)
	if err != nil {
		return fmt.Errorf("field %s: %w", field.Names[0].Name, err)
	}
	optional := ""
	if strings.Contains(options, "omit") {
		optional = "?"
	} else if nilIsNull(field.Type) {
		as += " | null"
	}
	doc := field.Doc
	if doc == nil {
		doc = field.Comment
	}
	comment(b, "  ", doc)
	fmt.Fprintf(b, "  %s%s: %s;\n", name, optional, as)
	return nil
}

// nilIsNull reports whether the zero value is written as null.
func nilIsNull(e ast.Expr) bool {
	switch t := e.(type) {
	case *ast.ArrayType:
		return t.Len == nil
	case *ast.StarExpr, *ast.MapType:
		return true
	}
	return false
}

// typescript is how JSON shows a Go type.
func typescript(e ast.Expr) (string, error) {
	switch t := e.(type) {
	case *ast.Ident:
		return plain(t.Name), nil
	case *ast.StarExpr:
		return typescript(t.X)
	case *ast.ArrayType:
		of, err := typescript(t.Elt)
		return of + "[]", err
	case *ast.MapType:
		of, err := typescript(t.Value)
		return "Record<string, " + of + ">", err
	case *ast.SelectorExpr:
		return foreign(t.X.(*ast.Ident).Name, t.Sel.Name)
	}
	return "", fmt.Errorf("%T is not known in TypeScript", e)
}

func plain(name string) string {
	switch name {
	case "string", "error":
		return "string"
	case "bool":
		return "boolean"
	case "any":
		return "unknown"
	case "int", "int8", "int16", "int32", "int64", "uint", "uint8", "uint16", "uint32", "uint64", "float32", "float64":
		return "number"
	}
	return name
}

func foreign(pkg, name string) (string, error) {
	switch pkg + "." + name {
	case "time.Time", "netip.Addr", "netip.Prefix", "netip.AddrPort":
		return "string", nil
	case "time.Duration":
		return "number", nil
	case "json.RawMessage":
		return "unknown", nil
	}
	if pkg == "status" || pkg == "mesh" || pkg == "api" {
		return name, nil
	}
	return "", fmt.Errorf("%s.%s is not known in TypeScript", pkg, name)
}

// comment writes a Go comment as one of TypeScript.
func comment(b *strings.Builder, indent string, c *ast.CommentGroup) {
	if c == nil {
		return
	}
	for line := range strings.Lines(c.Text()) {
		if line = strings.TrimSpace(line); line != "" {
			fmt.Fprintf(b, "%s// %s\n", indent, line)
		}
	}
}
