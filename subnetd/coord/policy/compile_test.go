package policy

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"tailscale.com/tailcfg"
)

func TestSees(t *testing.T) {
	pairs := func(text string) string {
		c := parse(t, text).Compile(home())
		var out []string
		for a := tailcfg.NodeID(0); a <= 5; a++ {
			for b := tailcfg.NodeID(0); b <= 5; b++ {
				if c.Sees(a, b) != c.Sees(b, a) {
					t.Errorf("%s: only one of %d and %d sees the other", text, a, b)
				}
				if c.Sees(a, b) && a <= b {
					out = append(out, fmt.Sprintf("%d %d", int64(a), int64(b)))
				}
			}
		}
		return strings.Join(out, ", ")
	}
	acl := func(src, dst string) string {
		return `{` + defs + `"acls": [{"action": "accept", "src": ["` + src + `"], "dst": ["` + dst + `"]}]}`
	}
	for text, want := range map[string]string{
		`{"acls": []}`:                              "",
		DefaultText:                                 "1 2, 1 3, 1 4, 2 3, 2 4, 3 4",
		acl("tag:cam", "nas:631"):                   "1 4",
		acl("tag:cam", "device:printer:631"):        "1 4",
		acl("tag:cam", "autogroup:internet:*"):      "1 4",
		acl("autogroup:member", "autogroup:self:*"): "1 2",
		acl("192.168.1.7", "tag:cam:*"):             "1 4",
		acl("10.0.0.7", "tag:cam:*"):                "",
		acl("ben@", "tag:cam:*"):                    "3 4",
		acl("ben@", "tag:none:*"):                   "",
		`{` + defs + `"grants": [{"src": ["ben@"], "dst": ["tag:cam"], "app": {"a.b/c": []}}]}`: "3 4",
	} {
		if got := pairs(text); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestUnknownNode(t *testing.T) {
	c := Default().Compile(nil)
	if f := c.Filter(7); f == nil || len(f) != 0 || c.Sees(7, 8) || c.FilterKey(7) != c.FilterKey(8) {
		t.Error("a node that is not there has rights")
	}
}

// TestOddNodes: what the caller should not hand in opens nothing.
func TestOddNodes(t *testing.T) {
	c := Default().Compile([]Node{
		{ID: 1, User: "anna", Addrs: append(addrs("::ffff:100.64.0.1", "fe80::1%eth0"), addrs("100.64.0.1")[0].Prev().Next()), Routes: append(prefixes("0.0.0.0/0", "10.0.0.1/8"), prefixes("::/0")...)},
		{ID: 2, Addrs: addrs("100.64.0.2")},
		{ID: 3, User: "anna", Tags: []string{"tag:x"}, Addrs: addrs("100.64.0.3")},
	})
	if got, want := show(c.Filter(1)), "10.0.0.0/8 100.64.0.1 -> 10.0.0.0/8 *, 100.64.0.1 *"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if c.Sees(2, 3) {
		t.Error("nodes of no one and tagged nodes act as members")
	}
}

// big is many nodes, of many users, and rules.
func big(nodes, rules int) ([]Node, string) {
	rng := rand.New(rand.NewPCG(1, 2))
	var ns []Node
	for i := range nodes {
		a := addrs("100.64.0.0", "fd7a:115c:a1e0::")
		b4, b6 := a[0].As4(), a[1].As16()
		j := i * 3 // not next to one another
		b4[2], b4[3], b6[14], b6[15] = byte(j>>8), byte(j), byte(j>>8), byte(j)
		n := Node{ID: tailcfg.NodeID(i + 1), User: fmt.Sprintf("u%d", i%50)}
		n.Addrs = append(n.Addrs, addrs(fmt.Sprintf("%d.%d.%d.%d", b4[0], b4[1], b4[2], b4[3]), fmt.Sprintf("fd7a:115c:a1e0::%x", j))...)
		if i%4 == 0 {
			n.User, n.Tags = "", []string{fmt.Sprintf("tag:t%d", i/4%20)}
		}
		if i%10 == 1 {
			n.Routes = prefixes(fmt.Sprintf("10.%d.%d.0/24", i>>8, i&255))
		}
		ns = append(ns, n)
	}
	rng.Shuffle(len(ns), func(i, j int) { ns[i], ns[j] = ns[j], ns[i] })
	if rules == 0 {
		return ns, DefaultText
	}
	var b strings.Builder
	b.WriteString(`{"groups": {`)
	for g := range 10 {
		fmt.Fprintf(&b, `"group:g%d": [`, g)
		for u := range 20 {
			fmt.Fprintf(&b, `"u%d@",`, (g*7+u)%50)
		}
		b.WriteString("],")
	}
	b.WriteString(`}, "tagOwners": {`)
	for i := range 20 {
		fmt.Fprintf(&b, `"tag:t%d": [],`, i)
	}
	b.WriteString(`}, "acls": [`)
	src := []string{"group:g1", "group:g2", "group:g3", "autogroup:member", "autogroup:tagged", "tag:t3", "u7@", "10.0.0.0/16", "100.64.1.0/24"}
	dst := []string{"*:443", "autogroup:self:*", "tag:t4:22", "group:g5:80,443", "10.0.5.0/24:*", "autogroup:tagged:9100", "u9@:1-1000"}
	for i := range rules {
		s, d := src[rng.IntN(len(src))], dst[rng.IntN(len(dst))]
		if strings.Contains(d, "self") {
			s = src[rng.IntN(4)]
		}
		fmt.Fprintf(&b, `{"action": "accept", "src": ["%s"], "dst": ["%s"]},`, s, strings.Replace(d, "443", fmt.Sprint(444+i), 1))
	}
	b.WriteString("]}")
	return ns, b.String()
}

// TestOrder: neither the order of the nodes nor of their parts matters.
func TestOrder(t *testing.T) {
	nodes, text := big(60, 40)
	p := parse(t, text)
	first := p.Compile(nodes)
	slices.Reverse(nodes)
	for i := range nodes {
		slices.Reverse(nodes[i].Addrs)
	}
	second := p.Compile(nodes)
	for a := range nodes {
		id := nodes[a].ID
		if !reflect.DeepEqual(first.Filter(id), second.Filter(id)) || first.FilterKey(id) != second.FilterKey(id) {
			t.Errorf("node %d: %s\nbecame\n%s", id, show(first.Filter(id)), show(second.Filter(id)))
		}
		for b := range nodes {
			if first.Sees(id, nodes[b].ID) != second.Sees(id, nodes[b].ID) {
				t.Errorf("nodes %d and %d", id, nodes[b].ID)
			}
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for _, size := range []struct{ nodes, rules int }{{500, 0}, {1000, 100}} {
		nodes, text := big(size.nodes, size.rules)
		p, err := Parse([]byte(text))
		if err != nil {
			b.Fatal(err)
		}
		name := fmt.Sprintf("nodes=%d/rules=%d/", size.nodes, max(size.rules, 1))
		b.Run(name+"compile", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Compile(nodes)
			}
		})
		c := p.Compile(nodes)
		b.Run(name+"keys", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for _, n := range nodes {
					c.FilterKey(n.ID)
				}
			}
		})
		b.Run(name+"filters", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				for _, n := range nodes {
					c.Filter(n.ID)
				}
			}
		})
		b.Run(name+"sees", func(b *testing.B) {
			for b.Loop() {
				c.Sees(nodes[0].ID, nodes[1].ID)
			}
		})
	}
}
