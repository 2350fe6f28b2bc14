package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// MaxSize bounds the file, in bytes.
const MaxSize = 1 << 20

// maxErrors bounds how many mistakes are told at once.
const maxErrors = 50

// Error is one mistake in the file.
type Error struct {
	File    string
	Line    int    // from 1; 0: unknown
	Key     string // like lan.expose; "": the file as a whole
	Problem string
	Allowed string // what would be right
	item    int    // of a list that begins at Line, from 1; 0: all of it
}

func (e *Error) Error() string {
	s := e.File
	if e.Line > 0 {
		s += fmt.Sprintf(":%d", e.Line)
	}
	s += ": "
	if e.Key != "" {
		s += e.Key + " "
	}
	s += e.Problem
	if e.Allowed != "" {
		s += "; allowed is " + e.Allowed
	}
	return s
}

// Load reads the file at path. A file that is not there means Default.
func Load(path string) (Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("config: %w", err)
	}
	defer f.Close()
	return Parse(f, path)
}

// Parse reads a file of the name given, which is for errors only. All mistakes
// are told at once: the error joins one *Error for each, by line.
func Parse(r io.Reader, file string) (Config, error) {
	src, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return Config{}, fmt.Errorf("config: %s: %w", file, err)
	}
	doc, err := read(src, file)
	if err != nil {
		return Config{}, err
	}
	c, mistakes := check(doc, file)
	if len(mistakes) > 0 {
		return Config{}, join(mistakes)
	}
	return c, nil
}

// check judges every key of the document.
func check(doc document, file string) (Config, []*Error) {
	c := Default()
	var mistakes []*Error
	for section, v := range doc.raw {
		table, isTable := v.(map[string]any)
		allowed := keysOf(section)
		switch {
		case doc.uci && ofService(section):
			continue
		case len(allowed) == 0:
			mistakes = append(mistakes, &Error{File: file, Line: doc.line(section), Key: quoteKey(section), Problem: "is no section", Allowed: "[" + strings.Join(sections(), "], [") + "]"})
			continue
		case !isTable:
			mistakes = append(mistakes, &Error{File: file, Line: doc.line(section), Key: quoteKey(section), Problem: "is " + show(v), Allowed: "a section [" + section + "]"})
			continue
		}
		for key, v := range table {
			if e := set(&c, section, key, v); e != nil {
				e.File, e.Line = file, doc.itemLine(e.item, section, key)
				mistakes = append(mistakes, e)
			}
		}
	}
	if len(mistakes) == 0 { // else what stands together is not known
		mistakes = finish(&c)
		for _, e := range mistakes {
			section, key, _ := strings.Cut(e.Key, ".")
			e.File, e.Line = file, doc.line(section, key)
		}
	}
	slices.SortFunc(mistakes, func(a, b *Error) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return strings.Compare(a.Key, b.Key)
	})
	return c, mistakes
}

// set puts one value into c, or tells what is wrong with it.
func set(c *Config, section, key string, v any) *Error {
	name := quoteKey(section) + "." + quoteKey(key)
	for _, k := range keys() {
		if k.section != section || k.key != key {
			continue
		}
		if k.set(c, v) {
			return nil
		}
		e := &Error{Key: name, Problem: "is " + show(v), Allowed: k.allowed}
		if texts, ok := textsOf(v); ok && name == "exit.rows" {
			_, item, err := parseRows(texts)
			e.Problem, e.item = err.Error(), item
		}
		return e
	}
	return &Error{Key: name, Problem: "is no key of this section", Allowed: strings.Join(keysOf(section), ", ")}
}

func join(mistakes []*Error) error {
	var all []error
	for _, e := range mistakes[:min(len(mistakes), maxErrors)] {
		all = append(all, e)
	}
	if rest := len(mistakes) - maxErrors; rest > 0 {
		all = append(all, fmt.Errorf("%s: and %d more mistakes", mistakes[0].File, rest))
	}
	return errors.Join(all...)
}

func sections() []string {
	var out []string
	for _, k := range keys() {
		if !slices.Contains(out, k.section) {
			out = append(out, k.section)
		}
	}
	return out
}

func keysOf(section string) []string {
	var out []string
	for _, k := range keys() {
		if k.section == section {
			out = append(out, k.key)
		}
	}
	return out
}

// quoteKey prints a key as it would stand in the file.
func quoteKey(s string) string {
	bare := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_'
	}
	if s != "" && strings.TrimFunc(s, bare) == "" {
		return clip(s)
	}
	return clip(quote(s))
}

// quote writes a TOML basic string.
func quote(s string) string {
	var b bytes.Buffer
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
