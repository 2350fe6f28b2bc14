package config

import (
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
)

var documents = []string{
	"", "a = 1", "a = 1\na = 2", "a.b = 1\na.b = 2", "a.b = 1\na.c = 2", "[a]\nb = 1\n[a]\nc = 1", "[a.b]\nc = 1\n[a]\nd = 1",
	"[a]\nb.c = 1\n[a.b]\nd = 1", "[a]\nb.c = 1\n[a.b.d]\ne = 1", "a = {b = 1}\na.c = 1", "a = {b = 1}\n[a]", "a = {b = 1}\n[a.c]",
	"a = {b.c = 1, b.d = 2}", "a = {b.c = 1, b = 2}", "a = {b = {}, b.c = 1}", "[[a]]\nb = 1\n[[a]]\nb = 2", "[[a]]\n[a.b]\nc = 1\n[[a]]\n[a.b]\nc = 2",
	"a = []\n[[a]]", "[a]\n[[a]]", "[[a]]\n[a]", "a = 1\n[a]", "a = 1\n[a.b]", "a = 1\na.b = 2", "[a.b]\n[a]\nb.c = 1", "[a.b.c]\n[a]\nb.d = 1",
	"[a.b]\nc.d = 1\n[a]\nb.c.e = 1", "a.b.c = 1\na.b.d = 2\n[a.b]", "a.b.c = 1\n[a]", "a.b = 1\n[a.c]", "[a]\n[a.b]\n[a.b.c]\n[a.b]", "[[a.b]]\n[a]\nc = 1\n[[a.b]]", "[[a.b]]\n[a.b.c]\n[[a.b.c]]",
	"a = [{b = 1}, {b = 2}]", "a = [[1, 2], [\"x\"]]", "a = [1, {b = [true]}]", "a = {b = 1, b = 2}", "a = [{b.c = 1}]\n[[a]]", "[a]\nb = {}\n[a.b]",
	"a = 0x1F", "a = 0X1F", "a = 0o17", "a = 017", "a = 0b101", "a = 1_000", "a = _1", "a = 1_", "a = 1__0", "a = 0x_1", "a = +0x1", "a = -0", "a = +1", "a = 0_1", "a = 00", "a = -9223372036854775808",
	"a = 9223372036854775808", "a = 0xFFFFFFFFFFFFFFFF", "a = \"\\u00e9\\n\"", "a = '''\nx\n'''", "a = \"\"\"x\\\n  y\"\"\"", "\"a.b\".c = 1", "\"\" = 1", "'a' = 1\na = 2", "a = \"\xff\"",
	"a\n", "a = ", "[", "[]", "[a", "[[a]", "a = {b = 1,}", "a = {\nb = 1}", "a = [1,\n]", "a = tru", "a = \"\\x\"", "# c", "a = 1 # c\r\n", "a = 1\rb = 2",
}

// agrees reports whether the library's decoder makes the same of src. It knows
// nothing of floats and dates, which we do not read but keep.
func agrees(t *testing.T, src string) {
	t.Helper()
	doc, err := scan([]byte(src), "f")
	var want map[string]any
	wantErr := toml.Unmarshal([]byte(src), &want)
	if wantErr == nil && unread(want) {
		if err != nil {
			t.Errorf("%q is refused: %v", src, err)
		}
		return
	}
	if err == nil && unread(doc.raw) {
		return
	}
	if (err == nil) != (wantErr == nil) {
		t.Errorf("%q: we say %v, the library %v", src, err, wantErr)
	}
	if err == nil && len(want)+len(doc.raw) > 0 && !reflect.DeepEqual(doc.raw, want) {
		t.Errorf("%q: %#v, want %#v", src, doc.raw, want)
	}
}

// unread reports whether v holds a value that we do not read.
func unread(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		for _, x := range v {
			if unread(x) {
				return true
			}
		}
	case []any:
		for _, x := range v {
			if unread(x) {
				return true
			}
		}
	case float64:
		return math.Abs(v) >= 0 || math.IsNaN(v)
	case time.Time, toml.LocalDate, toml.LocalTime, toml.LocalDateTime, bare:
		return true
	}
	return false
}

func TestValuesAsTheLibrary(t *testing.T) {
	for _, src := range documents {
		agrees(t, src)
	}
}

func FuzzValues(f *testing.F) {
	for _, src := range documents {
		f.Add(src)
	}
	f.Fuzz(func(t *testing.T, src string) {
		if !strings.Contains(src, "\x00") {
			agrees(t, src)
		}
	})
}

func TestErrorsOfTables(t *testing.T) {
	for src, want := range map[string]string{
		"\n[lan]\n\n[lan]":                      "f:4: lan is not TOML: the table is there already",
		"[lan]\nsnat = true\nsnat = false":      "f:3: lan.snat is not TOML: the key is there already",
		"lan = {}\nlan.snat = true":             "f:2: lan.snat is not TOML: nothing can be added to lan",
		"[tunnel]\nport = 99999999999999999999": "f:2: tunnel.port is not TOML: 99999999999999999999 is no integer of 64 bits",
	} {
		if _, err := scan([]byte(src), "f"); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", src, err, want)
		}
	}
}
