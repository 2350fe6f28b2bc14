package config

import (
	"bytes"
	"slices"

	"github.com/pelletier/go-toml/v2/unstable"
)

// document is a file that is TOML: its values, and where each stands.
type document struct {
	src     []byte
	raw     map[string]any
	entries []entry // in order of the file
}

// entry is one `key = value` or one table header.
type entry struct {
	path   []string // from the root
	header bool     // a [table]
	inline bool     // within { }
	prefix int      // how many of path came from the table header above
	line   int      // from 1
	value  [2]int   // offsets of the value's first byte and of the one after its last; header: of its key
}

// scan understands src, and fails with an *Error if it is not TOML.
func scan(src []byte, file string) (document, error) {
	raw, err := decode(src, file)
	if err != nil {
		return document{}, err
	}
	doc := document{src: src, raw: raw}
	var p unstable.Parser
	p.Reset(src)
	var table []string
	for p.NextExpression() {
		switch n := p.Expression(); n.Kind {
		case unstable.Table, unstable.ArrayTable:
			path, end := keyPath(n)
			table = path
			doc.add(entry{path: path, header: n.Kind == unstable.Table, value: [2]int{end, end}})
		case unstable.KeyValue:
			doc.keyValue(n, table, false)
		}
	}
	return doc, p.Error()
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
	e.line = 1 + bytes.Count(d.src[:e.value[0]], []byte("\n"))
	d.entries = append(d.entries, e)
}

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
	d.add(entry{path: path, prefix: len(table), inline: inline, value: [2]int{start, int(n.Raw.Offset + n.Raw.Length)}})
	if n.Value().Kind != unstable.InlineTable {
		return
	}
	for it := n.Value().Children(); it.Next(); {
		if child := it.Node(); child.Kind == unstable.KeyValue {
			d.keyValue(child, path, true)
		}
	}
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
