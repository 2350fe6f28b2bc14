package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// The library's parser gives a file expression by expression; values makes the
// whole of them. Its own decoder does so by reflection, for any Go type, which
// is a hundredth of this program's size.

// bare is a value of a kind that no key of ours takes (a float, a date), as it
// stands in the file.
type bare string

// table is a TOML table under construction. How it came to be says who may still
// add to it (TOML 1.0, "Table" and "Keys").
type table struct {
	made   origin
	values map[string]any // *table, []any, []*table or a plain value
}

type origin int

const (
	implied  origin = iota // as part of a longer header: its own may follow
	headed                 // by a header
	dotted                 // by a dotted key: only more of those may add
	complete               // by { }
)

func newTable(made origin) *table { return &table{made, map[string]any{}} }

// header opens the table that [path] or, for a list, [[path]] names.
func (t *table) header(path []string, list bool) (*table, error) {
	last := len(path) - 1
	for i, key := range path[:last] {
		switch v := t.values[key].(type) {
		case nil:
			next := newTable(implied)
			t.values[key], t = next, next
		case *table:
			t = v
		case []*table:
			t = v[len(v)-1]
		default:
			return nil, fmt.Errorf("%s has a value already", strings.Join(path[:i+1], "."))
		}
		if t.made == complete {
			return nil, fmt.Errorf("nothing can be added to %s", strings.Join(path[:i+1], "."))
		}
	}
	return t.open(path[last], list)
}

func (t *table) open(key string, list bool) (*table, error) {
	next := newTable(headed)
	switch v := t.values[key].(type) {
	case nil:
		if list {
			t.values[key] = []*table{next}
		} else {
			t.values[key] = next
		}
		return next, nil
	case *table:
		if !list && v.made == implied {
			v.made = headed
			return v, nil
		}
	case []*table:
		if list {
			t.values[key] = append(v, next)
			return next, nil
		}
	}
	return nil, errors.New("the table is there already")
}

// put adds what stands behind a key.
func (t *table) put(path []string, v any) error {
	last := len(path) - 1
	for i, key := range path[:last] {
		next, isTable := t.values[key].(*table)
		switch {
		case t.values[key] == nil:
			next = newTable(dotted)
			t.values[key] = next
		case !isTable || next.made != dotted:
			return fmt.Errorf("nothing can be added to %s", strings.Join(path[:i+1], "."))
		}
		t = next
	}
	if _, taken := t.values[path[last]]; taken {
		return errors.New("the key is there already")
	}
	t.values[path[last]] = v
	return nil
}

// valueOf is what the node stands for.
func valueOf(n *unstable.Node) (any, error) {
	switch n.Kind {
	case unstable.String:
		return string(n.Data), nil
	case unstable.Bool:
		return string(n.Data) == "true", nil
	case unstable.Integer:
		return integer(string(n.Data))
	case unstable.Array:
		items := []any{}
		for it := n.Children(); it.Next(); {
			v, err := valueOf(it.Node())
			if err != nil {
				return nil, err
			}
			items = append(items, v)
		}
		return items, nil
	case unstable.InlineTable:
		t := newTable(complete)
		for it := n.Children(); it.Next(); {
			if err := t.keyValue(it.Node()); err != nil {
				return nil, err
			}
		}
		t.close()
		return t, nil
	}
	return bare(n.Data), nil
}

// close ends the tables that dotted keys began within { }.
func (t *table) close() {
	t.made = complete
	for _, v := range t.values {
		if inner, ok := v.(*table); ok && inner.made != complete {
			inner.close()
		}
	}
}

func (t *table) keyValue(n *unstable.Node) error {
	v, err := valueOf(n.Value())
	if err != nil {
		return err
	}
	path, _ := keyPath(n)
	return t.put(path, v)
}

// integer reads a TOML integer, which is less than what Go allows.
func integer(s string) (int64, error) {
	digits := strings.TrimLeft(s, "+-")
	base := 10
	if len(digits) > 1 && digits[0] == '0' {
		i := slices.Index([]string{"0x", "0o", "0b"}, digits[:2])
		if i < 0 || len(digits) != len(s) {
			return 0, fmt.Errorf("%s is no integer", s)
		}
		base, digits = [...]int{16, 8, 2}[i], digits[2:]
		s = digits
	}
	if strings.HasPrefix(digits, "_") || strings.HasSuffix(digits, "_") || strings.Contains(digits, "__") {
		return 0, fmt.Errorf("%s is no integer: an underscore must stand between digits", s)
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(s, "_", ""), base, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is no integer of 64 bits", s)
	}
	return n, nil
}

// plain is the table as Go's maps and slices.
func (t *table) plain() map[string]any {
	out := make(map[string]any, len(t.values))
	for k, v := range t.values {
		out[k] = plain(v)
	}
	return out
}

func plain(v any) any {
	switch v := v.(type) {
	case *table:
		return v.plain()
	case []*table:
		all := make([]any, 0, len(v))
		for _, t := range v {
			all = append(all, t.plain())
		}
		return all
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	}
	return v
}
