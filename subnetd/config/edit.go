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

// Edit sets one key in the text of a file and leaves every other byte as it is:
// comments, order, and keys it does not know. value is a string, bool, int,
// uint16 or []string, and must be one that Parse allows. If the file is not
// TOML, or is written so that the change cannot be made with certainty, there
// is an error and no result.
func Edit(src []byte, section, key string, value any) ([]byte, error) {
	want, text, err := literal(value)
	if err != nil {
		return nil, fmt.Errorf("config: %s.%s: %w", section, key, err)
	}
	if e := set(new(Config), section, key, want); e != nil {
		e.File = "config"
		return nil, e
	}
	doc, err := scan(src, "config")
	if err != nil {
		return nil, err
	}
	out := doc.edit(section, key, text)
	if err := verify(doc.raw, out, section, key, want); err != nil {
		return nil, err
	}
	return out, nil
}

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
		return items, "[" + strings.Join(texts, ", ") + "]", nil
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
func verify(before map[string]any, out []byte, section, key string, want any) error {
	after, err := scan(out, "config")
	if err == nil {
		table, ok := before[section].(map[string]any)
		if !ok {
			table = map[string]any{}
			if before[section] == nil {
				before[section] = table
			}
		}
		table[key] = want
		if reflect.DeepEqual(before, after.raw) {
			return nil
		}
		err = errors.New("it would change more than this")
	}
	return fmt.Errorf("config: %s.%s cannot be set in this file, set it by hand: %w", section, key, err)
}
