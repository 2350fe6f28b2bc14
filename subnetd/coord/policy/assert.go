package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/tailscale/hujson"
	"tailscale.com/tailcfg"
)

// maxProbes bounds the connections that the tests of a policy try.
const maxProbes = 10_000

// test is one destination of an entry of tests.
type test struct {
	src, dst selector
	protos   []int // one of them must pass
	port     uint16
	accept   bool
	said     string // src and dst as they are written
	at       int
}

func (r *reader) tests(p *Policy, v *hujson.Value) {
	for _, e := range r.list(v, "tests") {
		f := r.record(&e, "an entry of tests", "src", "proto accept allow deny srcPostureAttrs")
		if r.err != nil {
			return
		}
		src := r.text(f["src"], "src")
		t := test{src: r.selector(p, src.text, src.at, "test source")}
		r.single(t.src, src)
		var ported bool
		if t.protos, ported = r.proto(f["proto"]); t.protos == nil {
			t.protos = []int{6, 17}
		}
		before := len(p.tests)
		for _, name := range []string{"accept", "allow", "deny"} { // allow: older policies
			for _, w := range r.words(f[name], name) {
				t.at, t.accept, t.said = w.at, name != "deny", src.text+" -> "+w.text
				t.dst, t.port = r.testDest(p, w, ported)
				p.tests = append(p.tests, t)
			}
		}
		if len(p.tests) == before {
			r.fail(e.StartOffset, "a test needs accept or deny")
		}
	}
}

func (r *reader) testDest(p *Policy, w word, ported bool) (selector, uint16) {
	host, ports, err := splitPorts(w.text)
	port, notPort := strconv.ParseUint(ports, 10, 16)
	switch {
	case err != nil:
	case ported && (notPort != nil || port == 0):
		err = errors.New("a test names one port from 1 to 65535")
	case !ported && ports != "0" && ports != "*":
		err = errors.New("this protocol has no ports; write 0 for the port")
	}
	if err != nil {
		r.fail(w.at, "%q: %v", w.text, err)
	}
	s := r.selector(p, host, w.at, "test destination")
	r.single(s, w)
	return s, uint16(port)
}

func (r *reader) single(s selector, w word) {
	if s.kind == addresses && s.addrs[0].from != s.addrs[0].to {
		r.fail(w.at, "%q: a test names one address", w.text)
	}
}

// world is of nodes that stand for all of their kind: what is true in it does
// not depend on who has joined.
type world struct {
	nodes []Node // IDs from 1
	known map[string]tailcfg.NodeID
	mesh  set
	last  []netip.Addr // given out, of each family
	named set          // addresses that are given to no one
}

// Test runs the tests of the policy; its error is an *Error. A user stands for
// all untagged nodes of the user, a tag for nodes with only that tag, a group for
// each of its members, an address for a node of no user and no tag. Without proto
// TCP or UDP must pass. Parse has run them already.
func (p *Policy) Test() error {
	w := p.world()
	type pair struct {
		t        *test
		src, dst tailcfg.NodeID
	}
	var pairs []pair
	for i := range p.tests {
		t := &p.tests[i]
		srcs, dsts := w.stand(t.src), w.stand(t.dst)
		switch n := len(srcs) * len(dsts); {
		case n == 0:
			return p.failed(t, "an empty group proves nothing")
		case len(pairs)+n > maxProbes:
			return p.failed(t, fmt.Sprintf("up to here the tests try more than %d connections", maxProbes))
		}
		for _, src := range srcs {
			for _, dst := range dsts {
				pairs = append(pairs, pair{t, src, dst})
			}
		}
	}
	c := p.Compile(w.nodes)
	grants := make([][]*grant, len(c.nodes))
	for i, n := range c.nodes {
		grants[i] = c.grants(n)
	}
	for _, x := range pairs {
		from, to := c.nodes[x.src-1], c.nodes[x.dst-1]
		switch passes := x.t.passes(grants[x.dst-1], from.own, to.own); {
		case len(from.own)+len(to.own) == 2 && from.own[0].from.BitLen() != to.own[0].from.BitLen():
			return p.failed(x.t, "the addresses are of different families")
		case x.t.accept && !passes:
			return p.failed(x.t, "it must be let through, but no rule allows it")
		case !x.t.accept && passes:
			return p.failed(x.t, "it must be denied, but a rule allows it")
		}
	}
	return nil
}

func (p *Policy) failed(t *test, why string) error {
	return errorAt(p.text, t.at, "test "+t.said+": "+why)
}

// passes reports whether one of the protocols passes from an address of src to
// one of dst.
func (t *test) passes(grants []*grant, src, dst set) bool {
	for _, g := range grants {
		proto := func(n int) bool {
			return slices.Contains(g.protos, n) || g.protos == nil && slices.Contains([]int{1, 6, 17, 58}, n)
		}
		if g.caps != nil || !slices.ContainsFunc(t.protos, proto) {
			continue
		}
		for _, from := range intersect(g.src.addrs, src) {
			for _, d := range g.dst {
				port := t.port == 0 || d.ports.Contains(t.port) // 0: a protocol without ports
				if port && d.addrs.from.BitLen() == from.from.BitLen() && len(intersect(set{d.addrs}, dst)) > 0 {
					return true
				}
			}
		}
	}
	return false
}

func (p *Policy) world() *world {
	w := &world{known: map[string]tailcfg.NodeID{}, mesh: constant(meshText)}
	for _, m := range w.mesh {
		w.last = append(w.last, m.to)
	}
	// What names all of the mesh means whoever joins, so it gives no one away.
	w.named = union(slices.DeleteFunc(slices.Clone(p.named), func(s span) bool {
		return slices.ContainsFunc(w.mesh, func(m span) bool { return set{s}.covers(set{m}) })
	}))
	return w
}

// stand returns the nodes that stand for what s selects.
func (w *world) stand(s selector) []tailcfg.NodeID {
	switch s.kind {
	case byUser:
		var out []tailcfg.NodeID
		for _, name := range s.names {
			out = append(out, w.put("user "+name, Node{User: name, Addrs: w.next()}))
		}
		return out
	case byTag:
		return []tailcfg.NodeID{w.put(s.names[0], Node{Tags: s.names, Addrs: w.next()})}
	case members:
		return []tailcfg.NodeID{w.put("a member", Node{User: "a member whom no rule names", Addrs: w.next()})}
	case tagged:
		return []tailcfg.NodeID{w.put("a tag", Node{Tags: []string{"a tag that no rule names"}, Addrs: w.next()})}
	case device:
		return []tailcfg.NodeID{w.put("device "+s.names[0], Node{Devices: []Device{{s.names[0], w.next()}}})}
	}
	a := s.addrs[0].from // maybe on the internet
	return []tailcfg.NodeID{w.put(a.String(), Node{Addrs: []netip.Addr{a}, Exit: true})}
}

func (w *world) put(key string, n Node) tailcfg.NodeID {
	if id, ok := w.known[key]; ok {
		return id
	}
	n.ID = tailcfg.NodeID(len(w.nodes) + 1)
	w.nodes = append(w.nodes, n)
	w.known[key] = n.ID
	return n.ID
}

// next gives out an address of each family, from the end of the mesh down and,
// while there are any, only such that the policy does not name.
func (w *world) next() []netip.Addr {
	for i, a := range w.last {
		a = a.Prev()
		for sp, ok := w.named.find(a); ok && w.mesh.contains(sp.from.Prev()); sp, ok = w.named.find(a) {
			a = sp.from.Prev()
		}
		w.last[i] = a
	}
	return slices.Clone(w.last)
}
