package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tailscale/hujson"
	"tailscale.com/tailcfg"
)

// What a policy may have at most. Real ones are far below.
const (
	maxText  = 1 << 20 // bytes
	maxList  = 4096    // entries of one list or object
	maxRules = 1000    // acls and grants together
	maxDepth = 64      // brackets within brackets
	maxItems = 50_000  // commas; the tree of each item takes some hundred bytes
	maxPorts = 100     // ranges in one list of ports: each takes a line of a filter
)

// Error is the first mistake in a policy, or its first test that fails.
type Error struct {
	Line   int // from 1
	Column int // from 1, in bytes
	Text   string
}

func (e *Error) Error() string {
	return fmt.Sprintf("line %d, column %d: %s", e.Line, e.Column, e.Text)
}

func errorAt(src string, offset int, text string) *Error {
	before := src[:min(offset, len(src))]
	return &Error{
		Line:   1 + strings.Count(before, "\n"),
		Column: len(before) - strings.LastIndexByte(before, '\n'),
		Text:   text,
	}
}

// reader walks the syntax tree and keeps the first mistake. After it, what the
// methods return is of no use, but safe.
type reader struct {
	src string
	err *Error
}

// word is a string of the source.
type word struct {
	text string // without space around it
	at   int    // offset in the source
}

// field is a member of an object, in the order of the source.
type field struct {
	name  word
	value *hujson.Value
}

func (r *reader) fail(at int, format string, args ...any) {
	if r.err == nil {
		r.err = errorAt(r.src, at, fmt.Sprintf(format, args...))
	}
}

// tree parses the source. The parser recurses, so depth is checked before it.
func (r *reader) tree() *hujson.Value {
	if len(r.src) > maxText {
		r.fail(0, "the policy has %d bytes; at most %d are read", len(r.src), maxText)
		return nil
	}
	for i, c := range r.src {
		if c == utf8.RuneError && !strings.HasPrefix(r.src[i:], string(c)) {
			r.fail(i, "this is not UTF-8 text")
			return nil
		}
	}
	if at, what := tooMuch(r.src); what != "" {
		r.fail(at, "%s", what)
		return nil
	}
	v, err := hujson.Parse([]byte(r.src))
	if err == nil {
		return &v
	}
	_, rest, _ := strings.Cut(err.Error(), "line ")
	line, rest, _ := strings.Cut(rest, ", column ")
	column, why, _ := strings.Cut(rest, ": ")
	r.err = &Error{Text: "this is not HuJSON: " + why}
	r.err.Line, _ = strconv.Atoi(line)
	r.err.Column, _ = strconv.Atoi(column)
	return nil
}

// tooMuch finds the bracket that goes too deep, or the comma that is too many,
// outside of strings and comments.
func tooMuch(s string) (at int, what string) {
	depth, commas := 0, 0
	for i := 0; i < len(s); i++ {
		rest := s[i:]
		switch {
		case s[i] == '"':
			for i++; i < len(s) && s[i] != '"'; i++ {
				if s[i] == '\\' {
					i++
				}
			}
		case strings.HasPrefix(rest, "//"):
			i += len(upTo(rest, "\n"))
		case strings.HasPrefix(rest, "/*"):
			i += len(upTo(rest[2:], "*/")) + 3
		case s[i] == '{' || s[i] == '[':
			if depth++; depth > maxDepth {
				return i, fmt.Sprintf("more than %d brackets are open here", maxDepth)
			}
		case s[i] == '}' || s[i] == ']':
			depth--
		case s[i] == ',':
			if commas++; commas > maxItems {
				return i, fmt.Sprintf("up to here there are more than %d items", maxItems)
			}
		}
	}
	return 0, ""
}

func upTo(s, end string) string {
	s, _, _ = strings.Cut(s, end)
	return s
}

// object returns the members of v, whose names differ also without regard to
// case; nil stands for an object that is not there.
func (r *reader) object(v *hujson.Value, what string) []field {
	if v == nil {
		return nil
	}
	o, ok := v.Value.(*hujson.Object)
	if !ok {
		r.fail(v.StartOffset, "%s must be an object in { }", what)
		return nil
	}
	if len(o.Members) > maxList {
		r.fail(v.StartOffset, "%s has more than %d entries", what, maxList)
		return nil
	}
	seen := make(map[string]bool, len(o.Members))
	out := make([]field, 0, len(o.Members))
	for i := range o.Members {
		m := &o.Members[i]
		f := field{name: r.text(&m.Name, "a name"), value: &m.Value}
		if k := strings.ToLower(f.name.text); seen[k] {
			r.fail(f.name.at, "%s has %q twice", what, f.name.text)
		} else {
			seen[k] = true
		}
		out = append(out, f)
	}
	return out
}

// record returns the members of v by their names, for which case does not matter
// (older policies write ACLs). Those in need, a list with spaces, must be there.
func (r *reader) record(v *hujson.Value, what, need, may string) map[string]*hujson.Value {
	out, known := map[string]*hujson.Value{}, strings.Fields(need+" "+may)
	for _, f := range r.object(v, what) {
		i := slices.IndexFunc(known, func(k string) bool { return strings.EqualFold(k, f.name.text) })
		switch {
		case i < 0:
			r.fail(f.name.at, "%s has no %q; it knows %s", what, f.name.text, strings.Join(known, ", "))
		case out[known[i]] != nil:
			r.fail(f.name.at, "%s has %q twice", what, known[i])
		default:
			out[known[i]] = f.value
		}
	}
	for _, n := range strings.Fields(need) {
		if out[n] == nil {
			r.fail(v.StartOffset, "%s needs %q", what, n)
		}
	}
	return out
}

// refuse fails if v holds something, because without it more would be allowed.
func (r *reader) refuse(v *hujson.Value, why string) {
	if v == nil {
		return
	}
	if a, ok := v.Value.(*hujson.Array); v.Value.Kind() != 'n' && (!ok || len(a.Elements) > 0) {
		r.fail(v.StartOffset, "%s", why)
	}
}

// list returns the elements of v; nil stands for a list that is not there.
func (r *reader) list(v *hujson.Value, what string) []hujson.Value {
	if v == nil {
		return nil
	}
	a, ok := v.Value.(*hujson.Array)
	if !ok {
		r.fail(v.StartOffset, "%s must be a list in [ ]", what)
		return nil
	}
	if len(a.Elements) > maxList {
		r.fail(v.StartOffset, "%s has more than %d entries", what, maxList)
		return nil
	}
	return a.Elements
}

func (r *reader) words(v *hujson.Value, what string) []word {
	var out []word
	for _, e := range r.list(v, what) {
		out = append(out, r.text(&e, "an entry of "+what))
	}
	return out
}

func (r *reader) text(v *hujson.Value, what string) word {
	l, ok := v.Value.(hujson.Literal)
	if !ok || l.Kind() != '"' {
		r.fail(v.StartOffset, `%s must be a string in " "`, what)
		return word{at: v.StartOffset}
	}
	return word{strings.TrimSpace(l.String()), v.StartOffset}
}

// values reads a list of any JSON. It is written anew, so that whatever a client
// decodes it with meets no oddity.
func (r *reader) values(v *hujson.Value, what string) []tailcfg.RawMessage {
	out := []tailcfg.RawMessage{}
	for _, e := range r.list(v, what) {
		std, err := hujson.Standardize([]byte(r.src[e.StartOffset:e.EndOffset]))
		d := json.NewDecoder(bytes.NewReader(std))
		d.UseNumber()
		var x any
		if err = errors.Join(err, d.Decode(&x)); err == nil {
			std, err = json.Marshal(x)
		}
		if err != nil {
			r.fail(e.StartOffset, "%s: %v", what, err)
			return nil
		}
		out = append(out, tailcfg.RawMessage(std))
	}
	return out
}
