package firewall

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables/expr"
)

// edgeOf is the named table of the edge.
func edgeOf(t *testing.T, cfg host.Firewall) *named {
	t.Helper()
	tables, err := compile(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range tables {
		if x.name == host.NftTable {
			n, err := x.named()
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no edge")
	return nil
}

// contents is what a set or a sealed chain has inside, by its name in the kernel.
func contents(n *named) map[string]string {
	out := map[string]string{}
	for _, s := range n.sets {
		text := fmt.Sprintln(s.key.Name, s.kind)
		for _, v := range s.values {
			text += fmt.Sprintf("%x %x %x %v", v.Key, v.KeyEnd, v.Val, v.IntervalEnd)
			if v.VerdictData != nil {
				text += fmt.Sprint(*v.VerdictData)
			}
		}
		out[s.name] = text
	}
	for _, c := range n.chains {
		if !sealed(c.name) {
			continue
		}
		text := ""
		for _, r := range c.rules {
			for _, e := range r {
				b, _ := expr.Marshal(0, e)
				text += hex.EncodeToString(b) + " "
			}
		}
		out["chain "+c.name] = text
	}
	return out
}

// One name, one contents: of a hundred policies, what has the same name has the same
// inside, and the same inside of what is called the same gets the same name.
func TestNames(t *testing.T) {
	inside, name := map[string]string{}, map[string]string{}
	shared := 0
	for i := range 100 {
		cfg := joined(2, 3, byte(4+i%5), byte(10+i))
		cfg.Rules[i%3].Dsts[0].Ports.Last += uint16(i % 7)
		cfg.SNAT = i%2 == 0
		for as, text := range contents(edgeOf(t, cfg)) {
			base, _, _ := strings.Cut(as, "-")
			if was, ok := inside[as]; ok && was != text {
				t.Fatalf("%s is %q and %q", as, was, text)
			}
			if was, ok := name[base+text]; ok && was != as {
				t.Fatalf("%q is called %s and %s", text, was, as)
			} else if ok {
				shared++
			}
			inside[as], name[base+text] = text, as
		}
	}
	if len(inside) < 100 || shared < 100 {
		t.Errorf("%d contents, %d of them met again: the policies are too much alike, or too little", len(inside), shared)
	}
}

// A class keeps the name of its set and chain when members come whose class is counted
// before it, and all that names are used for leads to something.
func TestNamesOfClasses(t *testing.T) {
	cfg := home()
	before := edgeOf(t, cfg)
	cfg.Rules = append(cfg.Rules, allow("100.64.0.2 fd7a::2", "192.168.77.9 fd77::9", 9, 9, protoUDP))
	after := edgeOf(t, cfg)
	classes := func(n *named) (out []string) {
		for as := range maps.Keys(contents(n)) {
			if strings.Contains(as, "acl") {
				out = append(out, as)
			}
		}
		slices.Sort(out)
		return out
	}
	for _, as := range classes(before) {
		if !slices.Contains(classes(after), as) {
			t.Errorf("%s is not in %v", as, classes(after))
		}
	}
	if len(classes(after)) != 2*len(classes(before)) {
		t.Errorf("%v before, %v after", classes(before), classes(after))
	}
	known := map[string]bool{"": true}
	for _, s := range after.sets {
		known["@"+s.name] = true
	}
	for _, c := range after.chains {
		known[c.name] = true
	}
	var lost []string
	for _, s := range after.sets {
		for _, v := range s.values {
			if v.VerdictData != nil && !known[v.VerdictData.Chain] {
				lost = append(lost, v.VerdictData.Chain)
			}
		}
	}
	for _, c := range after.chains {
		for _, r := range c.rules {
			for _, e := range r {
				switch e := e.(type) {
				case *expr.Lookup:
					if !known["@"+e.SetName] {
						lost = append(lost, e.SetName)
					}
				case *expr.Verdict:
					if !known[e.Chain] {
						lost = append(lost, e.Chain)
					}
				}
			}
		}
	}
	if d := cmp.Diff([]string(nil), lost); d != "" {
		t.Errorf("there is none of these: %s", d)
	}
}
