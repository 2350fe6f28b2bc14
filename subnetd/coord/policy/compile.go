package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"tailscale.com/tailcfg"
)

// Node is what a policy needs to know of a node.
type Node struct {
	ID      tailcfg.NodeID
	User    string // login name; "" if tagged
	Tags    []string
	Addrs   []netip.Addr
	Devices []Device       // things of its LAN that have mesh addresses of their own
	Routes  []netip.Prefix // approved subnets it is the primary router of; no default routes
	Exit    bool           // approved exit node
}

// Device is a thing behind a node.
type Device struct {
	Name  string // first label of its DNS name, lower case
	Addrs []netip.Addr
}

// compiledNode is a node with what follows from it.
type compiledNode struct {
	Node
	member bool
	addrs  set // its own
	own    set // and those of its devices
	serves set // and its routes; this is also what sends for it
	out    set // and, on an exit node, the internet
}

// identity is a node for questions about who it is, not where.
func identity(n Node) *compiledNode {
	n.User = canonical(n.User)
	return &compiledNode{Node: n, member: len(n.Tags) == 0 && n.User != ""}
}

func compileNode(n Node, public set) *compiledNode {
	c := identity(n)
	spans := appendAddrs(nil, n.Addrs)
	c.addrs = union(slices.Clone(spans))
	for _, d := range n.Devices {
		spans = appendAddrs(spans, d.Addrs)
	}
	c.own = union(slices.Clone(spans))
	for _, p := range n.Routes {
		if p.IsValid() && p.Bits() > 0 {
			spans = append(spans, spanOf(p))
		}
	}
	c.serves = union(spans)
	c.out = c.serves
	if n.Exit {
		c.out = union(slices.Concat(c.serves, public))
	}
	return c
}

func appendAddrs(spans []span, addrs []netip.Addr) []span {
	for _, a := range addrs {
		if a = a.Unmap(); a.IsValid() && a.Zone() == "" {
			spans = append(spans, one(a))
		}
	}
	return spans
}

// Compiled is a policy for the nodes there are. It is never changed: any number
// of goroutines may use it.
type Compiled struct {
	policy  *Policy
	public  set                  // what exit nodes reach
	nodes   []*compiledNode      // by ID
	sources []map[string]*source // of each rule; by user if it is for a user's own devices, else under ""
	// Bits of rules, words of 64 for each node: those it is a source of, and those
	// that reach something there. selfOnly are the rules for a user's own devices.
	words           int
	sender, reached []uint64
	selfOnly        []uint64
	// While compiling: all addresses, those there can be, and the sources by key.
	all, mesh set
	known     map[string]*source
}

// source is who may send by a rule.
type source struct {
	addrs set
	ips   []string // addrs in the form of a filter rule
	key   string   // digest of addrs
}

// Compile finds who may send what to whom. Its result does not depend on the
// order of nodes, whose IDs must differ. It keeps their slices.
//
// Where the sources of a rule are all nodes, filters name the whole ranges of the
// mesh instead of each address, so that they stay when one more joins. WireGuard
// lets a node send only with its own addresses; so a node must learn of a peer no
// sooner than of the filter that was compiled with it.
func (p *Policy) Compile(nodes []Node) *Compiled {
	c := &Compiled{
		policy: p, public: constant(publicText), mesh: constant(meshText),
		words: (len(p.rules) + 63) / 64, known: map[string]*source{},
	}
	var everything []span
	for _, n := range nodes {
		n := compileNode(n, c.public)
		c.nodes = append(c.nodes, n)
		everything = append(everything, n.own...)
	}
	slices.SortFunc(c.nodes, func(a, b *compiledNode) int { return cmp.Compare(a.ID, b.ID) })
	size := len(c.nodes) * c.words
	c.sender, c.reached, c.selfOnly = make([]uint64, size), make([]uint64, size), make([]uint64, c.words)
	c.all = union(everything)
	for i := range p.rules {
		c.compileRule(i)
	}
	c.all, c.known = nil, nil
	return c
}

func (c *Compiled) compileRule(i int) {
	r := &c.policy.rules[i]
	bit := uint64(1) << (i % 64)
	named := r.named()
	spans := map[string][]span{"": named}
	for at, n := range c.nodes {
		word, of := at*c.words+i/64, ""
		if r.self {
			of = n.User
		}
		if anyOwns(r.src, n) {
			spans[of] = append(spans[of], n.serves...)
			c.sender[word] |= bit
		} else if len(intersect(named, n.serves)) > 0 {
			c.sender[word] |= bit
		}
		if slices.ContainsFunc(r.allow, func(p permit) bool { return len(c.part(n, &p)) > 0 }) {
			c.reached[word] |= bit
		}
	}
	if r.self {
		c.selfOnly[i/64] |= bit
	}
	sources := map[string]*source{}
	for of, spans := range spans {
		sources[of] = c.source(spans)
	}
	c.sources = append(c.sources, sources)
}

// named is the addresses that the sources of r name as such.
func (r *rule) named() set {
	var spans []span
	for _, s := range r.src {
		spans = append(spans, s.addrs...)
	}
	return union(spans)
}

func (c *Compiled) source(spans []span) *source {
	addrs := union(spans)
	if len(addrs) > 0 && addrs.covers(c.all) {
		addrs = union(slices.Concat(addrs, c.mesh))
	}
	key := addrs.key()
	if c.known[key] == nil {
		c.known[key] = &source{addrs, addrs.strings(), key}
	}
	return c.known[key]
}

// part is what of node n a permit reaches.
func (c *Compiled) part(n *compiledNode, p *permit) set {
	out := n.out
	if p.caps != nil {
		out = n.serves // no one on the internet holds capabilities
	}
	var got set
	var spans []span
	for i := range p.dst {
		switch s := &p.dst[i]; {
		case s.kind == anyone:
			return out
		case s.kind == self && n.member:
			return n.addrs
		case s.kind == internet && n.Exit:
			got = c.public
		case s.kind == addresses:
			got = intersect(s.addrs, out)
		case s.kind == device:
			got = n.devices(s.names[0])
		case s.owns(n):
			got = n.own
		default:
			continue
		}
		spans = append(spans, got...)
	}
	if len(spans) == len(got) {
		return got // the usual case: one selector hit
	}
	return union(spans)
}

func (n *compiledNode) devices(name string) set {
	var spans []span
	for _, d := range n.Devices {
		if d.Name == name {
			spans = appendAddrs(spans, d.Addrs)
		}
	}
	return union(spans)
}

func (c *Compiled) find(id tailcfg.NodeID) (int, bool) {
	return slices.BinarySearchFunc(c.nodes, id, func(n *compiledNode, id tailcfg.NodeID) int { return cmp.Compare(n.ID, id) })
}

// Sees reports whether two nodes are peers: some rule lets one of them reach the
// other, or something behind it.
func (c *Compiled) Sees(a, b tailcfg.NodeID) bool {
	i, ok := c.find(a)
	j, ok2 := c.find(b)
	return ok && ok2 && i != j && (c.reaches(i, j) || c.reaches(j, i))
}

func (c *Compiled) reaches(from, to int) bool {
	a, b := c.nodes[from], c.nodes[to]
	sameUser := a.member && b.member && a.User == b.User
	for w := range c.words {
		by := c.sender[from*c.words+w] & c.reached[to*c.words+w]
		if by&^c.selfOnly[w] != 0 || sameUser && by != 0 {
			return true
		}
	}
	return false
}

// Attrs are the attributes of a node, nil if it has none. The map is the caller's.
func (c *Compiled) Attrs(id tailcfg.NodeID) tailcfg.NodeCapMap {
	i, ok := c.find(id)
	if !ok {
		return nil
	}
	n := c.nodes[i]
	var out tailcfg.NodeCapMap
	for _, a := range c.policy.attrs {
		if !slices.ContainsFunc(a.target, func(s selector) bool { return s.owns(n) || len(intersect(s.addrs, n.addrs)) > 0 }) {
			continue
		}
		if out == nil {
			out = tailcfg.NodeCapMap{}
		}
		for name, values := range a.caps {
			out[name] = append(out[name], values...)
		}
	}
	return out
}
