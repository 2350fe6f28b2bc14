package config

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Wrong rows are told with their own line, what is wrong, and what would be right.
func TestRowMistakes(t *testing.T) {
	tests := []struct{ row, want string }{
		{"lan", `has no "->" between sources and exits`},
		{"-> cabin", `has an empty source`},
		{"lan, -> cabin", `has an empty source`},
		{"lan ->", `has an empty exit; to block, write block`},
		{"lan -> cabin, direct, far", `has direct before other exits: it can only be the last`},
		{"lan -> block, far", `has block before other exits: it can only be the last`},
		{"lan -> cabin, Cabin.", `has the exit cabin twice`},
		{"lan -> a b", `has the exit "a b", which is no name of a node and no mesh address`},
		{"lan -> fe80::1%eth0", `has the exit "fe80::1%eth0", which is no name of a node and no mesh address`},
		{"lan, lan -> x", `has lan twice`},
		{"02:00:00:00:00:0A, 02-00-00-00-00-0a -> x", `has 02:00:00:00:00:0a twice`},
		{"01:00:5e:00:00:01 -> x", `has 01:00:5e:00:00:01, which is the address of a group, not of a device`},
		{"192.168.1.0/24 -> x", `has the source "192.168.1.0/24", which is no MAC address, no name of an interface, not lan and not router`},
		{"lan -> a,b,c,d,e,f,g,h,i", `has more than 8 exits`},
		{"lan -> x -> y", `has the exit "x -> y", which is no name of a node and no mesh address`},
		{"router -> y", `has router, which row 1 has already: the first that fits decides`},
		{"br-lan -> y", `has br-lan, but lan in row 2 takes all of that before: put this row before it`},
		{"02:00:00:00:00:01 -> y", `has 02:00:00:00:00:01, but lan in row 2 takes all of that before: put this row before it`},
	}
	for _, tt := range tests {
		before := []string{"br-guest -> x", "wlan0 -> x"}
		if tt.row == "router -> y" || strings.HasSuffix(tt.want, "put this row before it") {
			before = []string{"router -> x", "lan -> x"}
		}
		_, err := Parse(strings.NewReader(fmt.Sprintf("[exit]\nrows = [\n # one\n %q,\n %q,\n\n %q,\n]\n", before[0], before[1], tt.row)), "f")
		want := fmt.Sprintf("f:7: exit.rows %s %s; allowed is a list of rows", clip(quote(tt.row)), tt.want)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v\nwant\n%s...", err, want)
		}
	}
}

func TestRowBounds(t *testing.T) {
	many := func(n int, row func(int) string) string {
		var out []string
		for i := range n {
			out = append(out, quote(row(i)))
		}
		return "exit.rows = [" + strings.Join(out, ",\n") + "]"
	}
	mac := func(i int) string { return fmt.Sprintf("02:00:00:00:%02x:%02x", i>>8, i&255) }
	macs := func(n, from int) string {
		var out []string
		for i := range n {
			out = append(out, mac(from+i))
		}
		return strings.Join(out, ",")
	}
	tests := []struct{ src, want string }{
		{many(MaxRows, func(i int) string { return mac(i) + " -> x" }), ""},
		{many(MaxRows+1, func(i int) string { return mac(i) + " -> x" }), "f:1: exit.rows has 65 rows, more than 64; "},
		{many(MaxRows, func(i int) string { return mac(i) + " -> x" }) + "\nexit.use = \"x\"", "f:1: exit.rows with exit.use has 65 rows, more than 64; "},
		{many(2, func(i int) string { return macs(128, i*128) + " -> x" }), ""},
		{many(2, func(i int) string { return macs(128+i, i*128) + " -> x" }), "f:1: exit.rows with exit.use has 257 MAC addresses, more than 256; "},
		{many(MaxWays, func(i int) string { return fmt.Sprintf("eth%d -> x%d", i, i) }) + "\nexit.use = \"direct\"", ""},
		{many(MaxWays, func(i int) string { return fmt.Sprintf("eth%d -> x%d", i, i) }) + "\nexit.use = \"y\"",
			"f:1: exit.rows with exit.use has 9 different lists of exits, more than 8; "},
	}
	for _, tt := range tests {
		_, err := Parse(strings.NewReader(tt.src), "f")
		if got := fmt.Sprint(err); tt.want == "" && err != nil || !strings.HasPrefix(got, cmpOr(tt.want, "<nil>")) {
			t.Errorf("%.60s...: %v, want %q", tt.src, err, tt.want)
		}
	}
}

func cmpOr(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// The short form is one last row, of what no other row has.
func TestAll(t *testing.T) {
	tests := []struct{ src, want string }{
		{`exit.use = "far"`, "lan, router -> far"},
		{`exit.use = "far, cabin, direct"` + "\n" + `exit.devices = ["02:00:00:00:00:01"]`, "02:00:00:00:00:01 -> far, cabin, direct"},
		{`exit.devices = ["02:00:00:00:00:01"]`, ""},
		{`exit.rows = ["br-guest -> direct", "router -> x"]` + "\n" + `exit.use = "far"`, "br-guest -> direct; router -> x; lan -> far"},
		{`exit.rows = ["lan, router -> x"]` + "\n" + `exit.use = "far"`, "lan, router -> x"},
		{`exit.rows = ["lan -> block"]`, "lan -> block"},
	}
	for _, tt := range tests {
		c, err := Parse(strings.NewReader(tt.src), "f")
		var got []string
		for _, r := range c.Exit.All() {
			got = append(got, r.String())
		}
		if s := strings.Join(got, "; "); err != nil || s != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.src, s, err, tt.want)
		}
	}
}

// TestWishes: what `exit use` and `exit off` make of a file, comments kept.
func TestWishes(t *testing.T) {
	const file = `[exit]
offer = true
rows = [
  # the children
  "02:00:00:00:00:01 -> cabin", # the TV
  "br-guest -> far, direct",    # guests
]
use = "far" # all
`
	use := func(words, to string) func(Exit) (Exit, error) {
		return func(e Exit) (Exit, error) {
			s, err := ParseSources(strings.Split(words, ","))
			if err != nil {
				return e, err
			}
			exits, direct, err := ParseExits(to)
			if err != nil {
				return e, err
			}
			return e.Using(s, exits, direct)
		}
	}
	off := func(words string) func(Exit) (Exit, error) {
		return func(e Exit) (Exit, error) {
			s, err := ParseSources(strings.Split(words, ","))
			if err != nil {
				return e, err
			}
			return e.Off(s)
		}
	}
	tests := []struct {
		name, src string
		do        func(Exit) (Exit, error)
		want      string
	}{
		{"home into nothing", "", use("lan,router", "cabin"), "[exit]\nuse = \"cabin\"\n"},
		{"device into nothing", "# mine\n", use("02:00:00:00:00:01", "cabin"), "# mine\n\n[exit]\nrows = [\"02:00:00:00:00:01 -> cabin\"]\n"},
		{"home", file, use("lan,router", "cabin,direct"), strings.Replace(file, `"far" #`, `"cabin, direct" #`, 1)},
		{"its own row", file, use("02:00:00:00:00:01", "direct"), strings.Replace(file, "> cabin", "> direct", 1)},
		{"a device beside another", file, use("02:00:00:00:00:02", "cabin"), strings.Replace(file, ":01 ->", ":01, 02:00:00:00:00:02 ->", 1)},
		{"a device with an exit of its own", file, use("02:00:00:00:00:02", "block"),
			strings.Replace(file, "  \"br-g", "  \"02:00:00:00:00:02 -> block\",\n  \"br-g", 1)},
		{"an interface", file, use("wlan1", "block"), strings.Replace(file, "guests\n", "guests\n  \"wlan1 -> block\",\n", 1)},
		{"router alone", file, use("router", "direct"),
			strings.Replace(strings.Replace(file, "guests\n", "guests\n  \"lan -> far\",\n  \"router -> direct\",\n", 1), `"far" #`, `"" #`, 1)},
		{"off: a device goes direct under what is wider", file, off("02:00:00:00:00:01"), strings.Replace(file, "> cabin", "> direct", 1)},
		{"off: an interface", file, off("br-guest"), strings.Replace(file, "far, direct\",    #", "direct\",    #", 1)},
		{"off: the home", file, off("lan,router"), strings.Replace(file, `"far" #`, `"" #`, 1)},
		{"off: nothing wider", "[exit]\nrows = [\n \"02:00:00:00:00:01 -> x\", # a\n \"02:00:00:00:00:02 -> y\"]\n", off("02:00:00:00:00:02"),
			"[exit]\nrows = [\n \"02:00:00:00:00:01 -> x\", # a\n ]\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse(strings.NewReader(tt.src), "f")
			if err != nil {
				t.Fatal(err)
			}
			next, err := tt.do(c.Exit)
			if err != nil {
				t.Fatal(err)
			}
			got := edited(t, tt.src, c.Exit, next)
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Fatal(d)
			}
		})
	}
}

// edited is the file after the change, which says what was wished.
func edited(t *testing.T, src string, was, next Exit) string {
	t.Helper()
	out := []byte(src)
	for _, key := range []string{"offer", "rows", "use", "devices"} {
		v, changed := was.Changes(next)[key]
		if !changed {
			continue
		}
		var err error
		if out, err = Edit(out, "f", "exit", key, v); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
	}
	c, err := Parse(strings.NewReader(string(out)), "f")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if d := cmp.Diff(texts(next.All()), texts(c.Exit.All())); d != "" {
		t.Fatalf("the file says something else: %s\n%s", d, out)
	}
	return string(out)
}

func texts(rows []ExitRow) (out []string) {
	for _, r := range rows {
		out = append(out, r.String())
	}
	return out
}

// TestWishesAlways: after any wishes each source goes where the last wish that was
// about it, or about something wider, told it to: a simple oracle remembers that.
func TestWishesAlways(t *testing.T) {
	macs, interfaces := []string{"02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"}, []string{"br-a", "br-b"}
	exits := []string{"x", "x, y", "direct", "block", "y, direct"}
	seeds := uint64(120)
	if testing.Short() { // on an emulated processor each takes as long as fifty here
		seeds = 20
	}
	for seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 1))
		src, oracle := "[exit]\nrows = [\n # keep\n]\n", map[string]string{}
		for range 12 {
			c, err := Parse(strings.NewReader(src), "f")
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			var s Sources
			for _, m := range macs {
				if rng.IntN(4) == 0 {
					s.MACs = append(s.MACs, m)
				}
			}
			for _, i := range interfaces {
				if rng.IntN(5) == 0 {
					s.Interfaces = append(s.Interfaces, i)
				}
			}
			s.LAN, s.Router = rng.IntN(5) == 0, rng.IntN(5) == 0
			if s.Empty() {
				continue
			}
			to := exits[rng.IntN(len(exits))]
			var next Exit
			if rng.IntN(3) == 0 {
				to = ""
				next, err = c.Exit.Off(s)
			} else {
				list, direct, _ := ParseExits(to)
				next, err = c.Exit.Using(s, list, direct)
			}
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			src = edited(t, src, c.Exit, next)
			told(oracle, s, interfaces, to)
			if !strings.Contains(src, "# keep") {
				t.Fatalf("seed %d: the comment is lost\n%s", seed, src)
			}
			for _, m := range append(macs, "02:00:00:00:00:09") {
				for _, i := range append(interfaces, "br-c") {
					if got, want := goes(next.All(), m, i), expected(oracle, m, i); got != want {
						t.Fatalf("seed %d: after %v -> %q, %s on %s goes %q, want %q\n%s", seed, s.List(), to, m, i, got, want, src)
					}
				}
			}
			if got, want := goes(next.All(), "", "router"), expected(oracle, "", "router"); got != want {
				t.Fatalf("seed %d: the router goes %q, want %q\n%s", seed, got, want, src)
			}
		}
	}
}

// told takes a wish, "" being `exit off`: that leaves nothing, but for what is
// narrower than other wishes.
func told(wishes map[string]string, s Sources, interfaces []string, to string) {
	for _, w := range s.List() {
		if wishes[w] = to; to == "" {
			delete(wishes, w)
		}
	}
	if to != "" {
		return
	}
	_, wider := wishes["lan"]
	for _, i := range s.Interfaces {
		if wider {
			wishes[i] = "direct"
		}
	}
	for _, i := range interfaces {
		_, other := wishes[i]
		wider = wider || other
	}
	for _, m := range s.MACs {
		if wider {
			wishes[m] = "direct"
		}
	}
}

// goes is the first row that fits, as the file's format says.
func goes(rows []ExitRow, mac, in string) string {
	for _, r := range rows {
		l := r.List()
		if in != "router" && (slices.Contains(l, mac) || slices.Contains(l, in) || slices.Contains(l, "lan")) || in == "router" && r.Router {
			return strings.Join(r.To(), ", ")
		}
	}
	return "direct"
}

// expected: the narrowest wish there is.
func expected(wishes map[string]string, mac, in string) string {
	words := []string{mac, in, "lan"}
	if in == "router" {
		words = words[1:2]
	}
	for _, w := range words {
		if to, ok := wishes[w]; ok {
			return to
		}
	}
	return "direct"
}

func FuzzRow(f *testing.F) {
	for _, s := range []string{"lan, router -> cabin, direct", "02:00:00:00:00:0A,br-lan->100.64.0.7", "a->b->c", "lan -> block", "- -> -", ",->,", "x->fd7a::1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRow(s)
		if err != nil {
			return
		}
		// What was understood says the same when it is written.
		again, err := ParseRow(r.String())
		if d := cmp.Diff(r, again); err != nil || d != "" {
			t.Fatalf("%q -> %q: %v %s", s, r, err, d)
		}
		if r.Empty() || len(r.Exits) > MaxExits {
			t.Fatalf("%q: %+v", s, r)
		}
	})
}

// FuzzEditRows: whatever the list looks like, after the edit it is what was asked
// for, and no comment is lost.
func FuzzEditRows(f *testing.F) {
	f.Add("[\n \"lan -> a\", # x\n \"router -> b\"]", "lan -> b", "router -> b")
	f.Add("[ # c\n \"br-a -> a\"\n , \"br-b -> a\" # d\n]", "br-b -> a", "lan -> c")
	f.Add("[\r\n\"lan -> a\",]", "router -> a", "lan -> a")
	f.Add("['lan -> a', # only\n]", "router -> x", "lan -> y")
	f.Add("[\n\"\"\"lan -> a\"\"\",\n# last\n]", "router -> x", "lan -> y")
	f.Fuzz(func(t *testing.T, list, one, two string) {
		src := "[exit]\nrows = " + list + "\nuse = ''\n"
		doc, err := scan([]byte(src), "f")
		if err != nil || len(doc.entries) != 3 {
			return
		}
		want := []string{one, two}
		out, err := Edit([]byte(src), "f", "exit", "rows", want)
		if err != nil {
			var e *Error
			if _, _, bad := parseRows(want); bad == nil && !errors.As(err, &e) {
				t.Fatalf("%q: %v", src, err)
			}
			return
		}
		after, err := scan(out, "f")
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := textsOf(after.raw["exit"].(map[string]any)["rows"]); !slices.Equal(got, want) {
			t.Fatalf("%q", out)
		}
	})
}
