package config

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Edit sets one key in the text of the file of that name and leaves every other
// byte as it is: comments, order, and keys it does not know. value is a string,
// bool, int, uint16 or []string, and must be one that Parse allows. If the file
// is neither TOML nor UCI, or is written so that the change cannot be made with
// certainty, there is an error and no result.
func Edit(src []byte, file, section, key string, value any) ([]byte, error) {
	want, text, err := literal(value)
	if err != nil {
		return nil, fmt.Errorf("config: %s.%s: %w", section, key, err)
	}
	if e := set(new(Config), section, key, want); e != nil {
		e.File = file
		return nil, e
	}
	doc, err := read(src, file)
	if err != nil {
		return nil, err
	}
	items, list := value.([]string)
	if doc.uci && list && len(items) == 0 && doc.line(section, key) == 0 {
		return src, nil // UCI has no empty lists
	}
	if list && !doc.uci {
		if out := doc.editList(section, key, items); out != nil && verify(doc.raw, out, file, section, key, want) == nil {
			return out, nil
		}
		if doc, err = read(src, file); err != nil { // verify writes into it
			return nil, err
		}
	}
	out := doc.edit(section, key, text)
	if doc.uci {
		out = doc.editUCI(section, key, value)
	}
	if err := verify(doc.raw, out, file, section, key, want); err != nil {
		return nil, err
	}
	return out, nil
}

// longLine is how long a list may be, in bytes, and stand in one line.
const longLine = 72

// literal gives a value as Parse sees it, and as it stands in the file.
func literal(value any) (want any, text string, err error) {
	switch v := value.(type) {
	case string:
		return v, quote(v), nil
	case bool:
		return v, strconv.FormatBool(v), nil
	case int:
		return int64(v), strconv.Itoa(v), nil
	case uint16:
		return int64(v), strconv.Itoa(int(v)), nil
	case []string:
		items, texts := []any{}, []string{}
		for _, s := range v {
			items, texts = append(items, s), append(texts, quote(s))
		}
		text = "[" + strings.Join(texts, ", ") + "]"
		if len(text) > longLine {
			text = "[\n  " + strings.Join(texts, ",\n  ") + ",\n]"
		}
		return items, text, nil
	}
	return nil, "", fmt.Errorf("a %T is no value for the file", value)
}

// edit finds the place, from the best to the last resort: the value that is
// there; the end of the section; beside a dotted key of the section; a new section.
func (d *document) edit(section, key, text string) []byte {
	path := []string{section, key}
	var header, dotted *entry
	for i := range d.entries {
		e := &d.entries[i]
		switch {
		case !e.header && slices.Equal(e.path, path):
			return slices.Concat(d.src[:e.value[0]], []byte(text), d.src[e.value[1]:])
		case e.header && len(e.path) == 1 && e.path[0] == section,
			!e.header && !e.inline && e.prefix == 1 && e.path[0] == section:
			header = e // of its own keys, the last
		case !e.header && !e.inline && e.prefix == 0 && len(e.path) > 1 && e.path[0] == section:
			dotted = e
		}
	}
	switch {
	case header != nil:
		return d.insert(header.value[1], key+" = "+text)
	case dotted != nil:
		return d.insert(dotted.value[1], section+"."+key+" = "+text)
	}
	nl := d.newline()
	out := slices.Clone(d.src)
	if len(out) > 0 && !bytes.HasSuffix(out, []byte("\n")) {
		out = append(out, nl...)
	}
	if len(out) > 0 {
		out = append(out, nl...)
	}
	return append(out, "["+section+"]"+nl+key+" = "+text+nl...)
}

// editList changes a list that stands in several lines value by value, so that the
// lines of those that stay, and all comments, stay. Nil: it cannot.
func (d *document) editList(section, key string, want []string) []byte {
	i := slices.IndexFunc(d.entries, func(e entry) bool { return !e.header && slices.Equal(e.path, []string{section, key}) })
	if i < 0 {
		return nil
	}
	e := d.entries[i]
	have, ok := textsOf(d.raw[section].(map[string]any)[key])
	if !ok || len(have) != len(e.items) || !bytes.ContainsAny(d.src[e.value[0]:e.value[1]], "\n#") {
		return nil
	}
	out, done := d.src[e.value[1]:], e.value[1] // what is behind done is in out
	put := func(from, to int, text string) {
		out = slices.Concat([]byte(text), d.src[min(to, done):done], out)
		done = from
	}
	steps := differences(have, want)
	for i := len(steps) - 1; i >= 0; i-- {
		s := steps[i]
		switch {
		case s.add && s.drop:
			put(e.items[s.have][0], e.items[s.have][1], quote(want[s.want]))
		case s.drop:
			put(d.around(e.items[s.have]))
		case s.add:
			at, text := d.place(e, s.have, quote(want[s.want]))
			put(at, at, text)
		}
	}
	return slices.Concat(d.src[:done], out)
}

// step is what becomes of one value of a list: have is dropped, want is added before
// it or, with both, in its place.
type step struct {
	have, want int
	add, drop  bool
}

// differences finds what leads from a to b and leaves most as it is.
func differences(a, b []string) []step {
	same := make([][]int, len(a)+1) // how much of a[i:] and b[j:] can stay
	for i := range same {
		same[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if same[i][j] = max(same[i+1][j], same[i][j+1]); a[i] == b[j] {
				same[i][j] = same[i+1][j+1] + 1
			}
		}
	}
	var out []step
	for i, j := 0, 0; i < len(a) || j < len(b); {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			i, j = i+1, j+1
		case i < len(a) && j < len(b) && same[i][j] == same[i+1][j+1]:
			out = append(out, step{have: i, want: j, add: true, drop: true})
			i, j = i+1, j+1
		case i < len(a) && (j == len(b) || same[i+1][j] >= same[i][j+1]):
			out = append(out, step{have: i, drop: true})
			i++
		default:
			out = append(out, step{have: i, want: j, add: true})
			j++
		}
	}
	return out
}

// around is a value with its comma, and with its line if that holds nothing else.
func (d *document) around(item [2]int) (from, to int, text string) {
	from, to = item[0], item[1]
	rest := bytes.TrimLeft(d.src[to:], " \t")
	if bytes.HasPrefix(rest, []byte(",")) {
		to = len(d.src) - len(rest) + 1
	}
	line := bytes.LastIndexByte(d.src[:from], '\n') + 1
	end := to
	for end < len(d.src) && strings.IndexByte(" \t\r", d.src[end]) >= 0 {
		end++
	}
	if len(bytes.TrimSpace(d.src[line:from])) == 0 && line > 0 && end < len(d.src) && d.src[end] == '\n' {
		return line, end + 1, ""
	}
	return from, to, ""
}

// place is where a value goes that is to stand before the one with that number, or
// behind all, and how it is written there: in a line of its own.
func (d *document) place(e entry, before int, text string) (at int, line string) {
	nl := d.newline()
	if before < len(e.items) {
		at = e.items[before][0]
		return at, text + "," + nl + d.indent(at)
	}
	if before == 0 { // only comments are in it
		at = bytes.LastIndexByte(d.src[:e.value[1]], '\n') + 1
		return at, "  " + text + "," + nl
	}
	last := e.items[before-1]
	comma := bytes.TrimLeft(d.src[last[1]:], " \t")
	if !bytes.HasPrefix(comma, []byte(",")) {
		return last[1], "," + nl + d.indent(last[0]) + text
	}
	at = len(d.src) - len(comma) + 1
	if i := bytes.IndexAny(d.src[at:], "\n]"); i >= 0 && d.src[at+i] == '\n' {
		return at + i + 1, d.indent(last[0]) + text + "," + nl // behind a comment of the last
	}
	return at, nl + d.indent(last[0]) + text
}

// indent is the space before what begins its line at the offset.
func (d *document) indent(at int) string {
	line := d.src[bytes.LastIndexByte(d.src[:at], '\n')+1 : at]
	if len(bytes.TrimSpace(line)) > 0 {
		return "  "
	}
	return string(line)
}

// insert puts a line after the one in which the offset lies.
func (d *document) insert(offset int, line string) []byte {
	nl := d.newline()
	if i := bytes.IndexByte(d.src[offset:], '\n'); i >= 0 {
		at := offset + i + 1
		return slices.Concat(d.src[:at], []byte(line+nl), d.src[at:])
	}
	return slices.Concat(d.src, []byte(nl+line+nl))
}

func (d *document) newline() string {
	if bytes.Contains(d.src, []byte("\r\n")) {
		return "\r\n"
	}
	return "\n"
}

// verify proves that out differs from before in that one value only.
func verify(before map[string]any, out []byte, file, section, key string, want any) error {
	after, err := read(out, file)
	if err == nil {
		table, ok := before[section].(map[string]any)
		if !ok {
			table = map[string]any{}
			if before[section] == nil {
				before[section] = table
			}
		}
		if table[key] = want; after.uci && reflect.DeepEqual(want, []any{}) {
			delete(table, key)
		}
		if reflect.DeepEqual(before, after.raw) {
			return nil
		}
		err = errors.New("it would change more than this")
	}
	return fmt.Errorf("config: %s.%s cannot be set in this file, set it by hand: %w", section, key, err)
}
