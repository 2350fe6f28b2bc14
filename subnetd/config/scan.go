package config

import (
	"bytes"
	"errors"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// document is a file that is TOML or UCI: its values, and where each stands.
type document struct {
	src     []byte
	uci     bool
	raw     map[string]any
	entries []entry // in order of the file
}

// entry is one `key = value` or one table header.
type entry struct {
	path   []string // from the root
	header bool     // a [table]
	inline bool     // within { }
	single bool     // of UCI: an option, no list
	prefix int      // how many of path came from the table header above
	line   int      // from 1
	value  [2]int   // offsets of the value's first byte and of the one after its last; header: of its key
	items  [][2]int // the same of each value in a list
}

// scan understands src, and fails with an *Error if it is not TOML.
func scan(src []byte, file string) (document, error) {
	doc := document{src: src}
	root := newTable(headed)
	var p unstable.Parser
	p.Reset(src)
	in := root
	var path []string // of in
	for p.NextExpression() {
		n := p.Expression()
		key, end := keyPath(n)
		var err error
		switch n.Kind {
		case unstable.Table, unstable.ArrayTable:
			path = key
			doc.add(entry{path: path, header: n.Kind == unstable.Table, value: [2]int{end, end}})
			in, err = root.header(path, n.Kind == unstable.ArrayTable)
		case unstable.KeyValue:
			doc.keyValue(n, path, false)
			err = in.keyValue(n)
			key = slices.Concat(path, key)
		}
		if err != nil {
			return document{}, &Error{File: file, Line: doc.lineAt(end), Key: strings.Join(key, "."), Problem: "is not TOML: " + err.Error()}
		}
	}
	if err := p.Error(); err != nil {
		return document{}, notTOML(&p, err, doc, file)
	}
	doc.raw = root.plain()
	return doc, nil
}

// notTOML says where the parser stopped, and why.
func notTOML(p *unstable.Parser, err error, doc document, file string) error {
	out := &Error{File: file, Problem: "is not TOML: " + err.Error()}
	var pe *unstable.ParserError
	if errors.As(err, &pe) {
		out.Key = strings.Join(pe.Key, ".")
		if len(pe.Highlight) > 0 {
			out.Line = doc.lineAt(int(p.Range(pe.Highlight).Offset))
		}
	}
	return out
}

// keyPath is the key of a node and the offset after it.
func keyPath(n *unstable.Node) (path []string, end int) {
	for it := n.Key(); it.Next(); {
		k := it.Node()
		path = append(path, string(k.Data))
		end = int(k.Raw.Offset + k.Raw.Length)
	}
	return path, end
}

func (d *document) add(e entry) {
	e.line = d.lineAt(e.value[0])
	d.entries = append(d.entries, e)
}

// lineAt is the line of an offset, from 1.
func (d *document) lineAt(offset int) int { return 1 + bytes.Count(d.src[:offset], []byte("\n")) }

func (d *document) keyValue(n *unstable.Node, table []string, inline bool) {
	key, start := keyPath(n)
	path := slices.Concat(table, key)
	for d.src[start] != '=' {
		start++
	}
	start++
	for d.src[start] == ' ' || d.src[start] == '\t' {
		start++
	}
	d.add(entry{path: path, prefix: len(table), inline: inline, value: [2]int{start, int(n.Raw.Offset + n.Raw.Length)}, items: itemsOf(n.Value())})
	if n.Value().Kind != unstable.InlineTable {
		return
	}
	for it := n.Value().Children(); it.Next(); {
		if child := it.Node(); child.Kind == unstable.KeyValue {
			d.keyValue(child, path, true)
		}
	}
}

// itemsOf is where the texts and numbers of a list are; nil if it has others.
func itemsOf(n *unstable.Node) (out [][2]int) {
	if n.Kind != unstable.Array {
		return nil
	}
	for it := n.Children(); it.Next(); {
		raw := it.Node().Raw
		if raw.Length == 0 {
			return nil
		}
		out = append(out, [2]int{int(raw.Offset), int(raw.Offset + raw.Length)})
	}
	return out
}

// itemLine is the line of a list's value, from 1, or of all of it.
func (d *document) itemLine(item int, path ...string) int {
	for _, e := range d.entries {
		if slices.Equal(e.path, path) && item > 0 && item <= len(e.items) {
			return d.lineAt(e.items[item-1][0])
		}
	}
	return d.line(path...)
}

// line is where a path is first spoken of; 0 if nowhere.
func (d *document) line(path ...string) int {
	for _, e := range d.entries {
		if len(e.path) >= len(path) && slices.Equal(e.path[:len(path)], path) {
			return e.line
		}
	}
	return 0
}
