package config

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// On OpenWrt the file may be one of UCI, with the same sections and keys:
//
//	config lan
//		option expose 'chosen'
//		list devices 'printer=02:00:00:00:00:01'
//
// It is read as libuci reads it, but more strictly: what that would pass over, or let a
// later line overrule, is a mistake here.

// ofService are the sections about how OpenWrt starts the daemon, which it passes over.
func ofService(section string) bool { return section == "subnetd" || section == "firewall" }

// isUCI goes by where the file is, or by its first word.
func isUCI(src []byte, file string) bool {
	if filepath.Dir(file) == "/etc/config" {
		return true
	}
	for line := range bytes.Lines(src) {
		if f := bytes.Fields(line); len(f) > 0 && f[0][0] != '#' {
			return len(f) > 1 && (string(f[0]) == "config" || string(f[0]) == "package") && f[1][0] != '='
		}
	}
	return false
}

// read understands src as what it is.
func read(src []byte, file string) (document, error) {
	switch {
	case len(src) > MaxSize:
		return document{}, &Error{File: file, Problem: "is too big", Allowed: fmt.Sprintf("at most %d bytes", MaxSize)}
	case isUCI(src, file):
		return scanUCI(src, file)
	}
	return scan(src, file)
}

// word is one of a line, without its quotes.
type word struct {
	text string
	at   [2]int // with them
}

// scanUCI fails with an *Error if src is not UCI.
func scanUCI(src []byte, file string) (document, error) {
	doc := document{src: src, uci: true, raw: map[string]any{}}
	section := ""
	for at := 0; at < len(src); {
		words, next, err := uciLine(src, at)
		if err == nil && len(words) > 0 {
			section, err = doc.statement(section, words)
		}
		if err != nil {
			return document{}, &Error{File: file, Line: doc.lineAt(at), Problem: "is not UCI: " + err.Error()}
		}
		at = next
	}
	return doc, nil
}

// statement takes one line in, and gives the section of the next.
func (d *document) statement(section string, w []word) (string, error) {
	kind, last := w[0].text, w[len(w)-1].at
	switch {
	case kind == "package" && len(w) == 2 && len(d.entries) == 0:
	case kind == "config" && (len(w) == 2 || len(w) == 3):
		section = w[1].text
		if _, twice := d.raw[section]; twice {
			return "", fmt.Errorf("there are two sections %s", quoteKey(section))
		}
		d.raw[section] = map[string]any{}
		d.add(entry{path: []string{section}, header: true, value: [2]int{last[1], last[1]}})
	case (kind == "option" || kind == "list") && len(w) == 3 && section != "":
		return section, d.setting(section, kind == "list", w[1].text, w[2])
	default:
		return "", errors.New("a line is config TYPE ['NAME'], option KEY 'VALUE' or list KEY 'VALUE', the latter in a section")
	}
	return section, nil
}

func (d *document) setting(section string, list bool, key string, value word) error {
	path := []string{section, key}
	i := slices.IndexFunc(d.entries, func(e entry) bool { return !e.header && slices.Equal(e.path, path) })
	if i < 0 {
		d.add(entry{path: path, prefix: 1, single: !list, value: value.at, items: [][2]int{value.at}})
	} else if e := &d.entries[i]; list && !e.single {
		e.items = append(e.items, value.at)
		e.value[1] = value.at[1]
	} else {
		return fmt.Errorf("%s is there twice", quoteKey(key))
	}
	table := d.raw[section].(map[string]any)
	if !list {
		table[key] = typed(section, key, value.text)
		return nil
	}
	have, _ := table[key].([]any)
	table[key] = append(have, value.text)
	return nil
}

// typed is a text of UCI as the key wants it: all its values are texts. One that it
// does not want at all stays a text.
func typed(section, key, s string) any {
	all := []any{s}
	switch s {
	case "1", "on", "true", "yes", "enabled":
		all = append(all, true)
	case "0", "off", "false", "no", "disabled":
		all = append(all, false)
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		all = append(all, n)
	}
	for _, v := range append(all, []any{s}) {
		if set(new(Config), section, key, v) == nil {
			return v
		}
	}
	return s
}

// uciLine reads the words of the line that begins at the offset, and where the next
// one begins: in quotes a line may go on.
func uciLine(src []byte, at int) (words []word, next int, err error) {
	for at < len(src) {
		switch c := src[at]; {
		case c == '\n':
			return words, at + 1, nil
		case isUCISpace(c):
			at++
		case c == '#':
			for at < len(src) && src[at] != '\n' {
				at++
			}
		default:
			w, err := uciWord(src, at)
			if err != nil {
				return nil, 0, err
			}
			words, at = append(words, w), w.at[1]
		}
	}
	return words, at, nil
}

func isUCISpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

func uciWord(src []byte, from int) (word, error) {
	var text []byte
	quote := byte(0)
	at := from
	for ; at < len(src); at++ {
		c := src[at]
		switch {
		case c == 0:
			return word{}, errors.New("there is a NUL in it")
		case quote == 0 && (isUCISpace(c) || c == '#'):
			return word{string(text), [2]int{from, at}}, nil
		case quote == 0 && c == ';':
			return word{}, errors.New(`a ";" stands in quotes only`)
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		case quote == c:
			quote = 0
		case c == '\\' && quote != '\'':
			if at++; at == len(src) || src[at] == '\n' || src[at] == '\r' || src[at] == 0 {
				return word{}, errors.New("a line ends in a backslash")
			}
			text = append(text, src[at])
		default:
			text = append(text, c)
		}
	}
	if quote != 0 {
		return word{}, fmt.Errorf("a %c has no other", quote)
	}
	return word{string(text), [2]int{from, at}}, nil
}

// uciQuote writes a value as libuci does.
func uciQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// uciValue is a value of Edit, but for a list, as it stands in the file.
func uciValue(v any) string {
	switch v := v.(type) {
	case bool:
		if v {
			return "'1'"
		}
		return "'0'"
	default:
		return uciQuote(fmt.Sprint(v))
	}
}

// editUCI changes the value that is there, or adds a line behind the last of its
// section, or a section behind all.
func (d *document) editUCI(section, key string, value any) []byte {
	items, list := value.([]string)
	i := slices.IndexFunc(d.entries, func(e entry) bool { return !e.header && slices.Equal(e.path, []string{section, key}) })
	switch {
	case i >= 0 && list:
		return d.editUCIList(d.entries[i], key, items)
	case i >= 0:
		e := d.entries[i]
		return slices.Concat(d.src[:e.value[0]], []byte(uciValue(value)), d.src[e.value[1]:])
	}
	lines := []string{"\toption " + key + " " + uciValue(value)}
	if list {
		lines = uciList(key, items)
	}
	if len(lines) == 0 {
		return d.src
	}
	text := strings.Join(lines, d.newline())
	last := -1
	for _, e := range d.entries {
		if e.path[0] == section {
			last = max(last, e.value[1])
		}
	}
	if last >= 0 {
		return d.insert(last, text)
	}
	nl := d.newline()
	out := slices.Clone(d.src)
	if len(out) > 0 && !bytes.HasSuffix(out, []byte("\n")) {
		out = append(out, nl...)
	}
	if len(out) > 0 {
		out = append(out, nl...)
	}
	return append(out, "config "+section+" "+uciQuote(section)+nl+text+nl...)
}

func uciList(key string, items []string) []string {
	var lines []string
	for _, s := range items {
		lines = append(lines, "\tlist "+key+" "+uciQuote(s))
	}
	return lines
}

// editUCIList changes a list line by line, so that those of values that stay, stay.
func (d *document) editUCIList(e entry, key string, want []string) []byte {
	nl := d.newline()
	lines := func(items []string) []byte {
		var b []byte
		for _, line := range uciList(key, items) {
			b = append(b, line+nl...)
		}
		return b
	}
	if e.single { // that was `option`
		from, to := d.linesOf(e.items[0])
		return slices.Concat(d.src[:from], lines(want), d.src[to:])
	}
	have, _ := textsOf(d.raw[e.path[0]].(map[string]any)[key])
	out, done := []byte(nil), len(d.src) // what is behind done is in out
	steps := differences(have, want)
	for i := len(steps) - 1; i >= 0; i-- {
		s := steps[i]
		from, to, text := 0, 0, []byte(nil)
		switch {
		case s.add && s.drop:
			from, to, text = e.items[s.have][0], e.items[s.have][1], []byte(uciQuote(want[s.want]))
		case s.drop:
			from, to = d.linesOf(e.items[s.have])
		case s.have < len(have):
			from, _ = d.linesOf(e.items[s.have])
			to, text = from, lines(want[s.want:s.want+1])
		default:
			_, from = d.linesOf(e.items[s.have-1])
			to, text = from, lines(want[s.want:s.want+1])
			if d.src[from-1] != '\n' {
				text = append([]byte(nl), text...)
			}
		}
		from, to = min(from, done), min(to, done)
		out, done = slices.Concat(text, d.src[to:done], out), from
	}
	return slices.Concat(d.src[:done], out)
}

// linesOf is where the lines of a value begin and end.
func (d *document) linesOf(value [2]int) (from, to int) {
	from = bytes.LastIndexByte(d.src[:value[0]], '\n') + 1
	if i := bytes.IndexByte(d.src[value[1]:], '\n'); i >= 0 {
		return from, value[1] + i + 1
	}
	return from, len(d.src)
}
