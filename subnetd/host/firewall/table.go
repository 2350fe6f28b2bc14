package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// table is the contents of an nftables table, as values. Without chains there is
// none.
type table struct {
	name   string
	sets   []set
	chains []chain
}

type set struct {
	name   string
	key    nftables.SetDatatype
	kind   setKind
	values []nftables.SetElement
}

type setKind int

// The kinds of set.
const (
	plain     setKind = iota // single keys
	interval                 // ranges of one key
	concat                   // ranges of several keys at once
	verdicts                 // ranges of one key, each with a verdict
	addresses                // single addresses, each with another of its family
	ports                    // single addresses with a port, each with another port
	cases                    // single keys, each with a verdict
	pairs                    // single addresses with a port
	counted                  // single keys with counters, which the kernel adds
)

type chain struct {
	name  string
	hook  *hook // nil: reached by jumps only
	rules []match
}

type hook struct {
	kind     nftables.ChainType
	num      nftables.ChainHook
	priority nftables.ChainPriority
}

// compile turns a policy into our tables. It is pure. Errors: names that are no
// interface names, ports that cannot be shared, access rules beyond the bounds.
//
// While a table is replaced, a packet may pass the new chain a moment before its
// rules count and the old one a moment after. The way to the coordinator and the
// sharing of the port have tables of their own, which no change of the mesh touches:
// else a node that calls at such a moment would be refused, or a path get lost.
//
// The base chains accept what is none of our business. A drop here is final; an
// accept is not: chains of others (fw4's) at later priorities may still drop.
// The UDP port of the underlay is therefore not opened here: an accept in our
// table would change nothing in anybody else's.
func compile(cfg host.Firewall) ([]*table, error) {
	port, err := sharing(cfg.Share)
	if err != nil {
		return nil, err
	}
	edge := &table{name: host.NftTable}
	all := []*table{redirection(cfg.Redirect), port, edge}
	if cfg.Interface == "" {
		return all, nil
	}
	names := append([]string{cfg.Interface}, cfg.LANs...)
	for _, e := range cfg.Exits {
		names = append(names, e.Interface)
	}
	for _, name := range names {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	if err := edge.guard(cfg); err != nil {
		return nil, err
	}
	if len(cfg.Devices) > 0 {
		edge.translate(cfg)
	}
	edge.answerer(cfg)
	if err := edge.front(cfg); err != nil {
		return nil, err
	}
	if cfg.SNAT || cfg.MasqueradeLAN || len(cfg.Exposed) > 0 || len(cfg.Devices) > 0 || cfg.Internet || len(cfg.Exits) > 0 {
		edge.chains = append(edge.chains, natChain(cfg, edge.counting(cfg)))
	}
	return all, nil
}

// guard adds the filter between mesh and home.
func (t *table) guard(cfg host.Firewall) error {
	t.sets = append(t.sets, ifaceSet("lans", cfg.LANs))
	t.meshes(cfg)
	if err := t.marking(cfg); err != nil {
		return err
	}
	var classes []chain
	var lists [2]acl
	for n, f := range families() {
		t.addressSets(f, cfg)
		list, err := compileACL(cfg.Rules, f.v6)
		if err != nil {
			return fmt.Errorf("firewall: IPv%s: %w", f.digit, err)
		}
		lists[n] = list
		t.sets = append(t.sets, sourceMap(f, "src", "acl", list.sources))
		for i, boxes := range list.classes {
			t.sets = append(t.sets, boxSet(f, className("acl", f, i), boxes))
			classes = append(classes, classChain(f, i, boxes))
		}
	}
	t.chains = append(t.chains, classes...)
	t.chains = append(t.chains, mssChain(), spoofedChain(), aclChain(lists), replyChain(lists), guardChain(), toMesh(cfg), fromMesh(cfg),
		inputMesh(cfg), ownChain(), forwardChain(cfg), inputChain(cfg))
	return nil
}

// addressSets adds the sets of addresses of one family.
func (t *table) addressSets(f family, cfg host.Firewall) {
	own, devices := singles(cfg.Own), names(cfg.Devices)
	ours := slices.Concat(own, cfg.LocalLANs, devices)
	t.sets = append(t.sets,
		rangeSet(f, "own", rangesOf(own, f.v6)),
		rangeSet(f, "ours", rangesOf(ours, f.v6)),
		rangeSet(f, "mesh", rangesOf(slices.Concat(cfg.Mesh, exitRoutes(cfg.Exits), devices), f.v6)),
		rangeSet(f, "exposed", exposed(cfg, f.v6)))
	if cfg.Internet {
		t.sets = append(t.sets, rangeSet(f, "internet", internet(cfg, f.v6)))
	}
	if cfg.MasqueradeLAN {
		t.sets = append(t.sets,
			rangeSet(f, "local", rangesOf(cfg.LocalLANs, f.v6)),
			rangeSet(f, "sites", rangesOf(cfg.Sites, f.v6)))
	}
}

// exposed is what the mesh may reach behind us if a rule allows it.
func exposed(cfg host.Firewall, v6 bool) []mesh.Range {
	return subtractRanges(rangesOf(cfg.Exposed, v6), unroutable(v6))
}

// unroutable is what is never reachable through us even if a default route is
// exposed: link-local, multicast, loopback, broadcast.
func unroutable(v6 bool) []mesh.Range {
	return rangesOf([]netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"),
		netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/4"),
		netip.MustParsePrefix("255.255.255.255/32"),
		netip.MustParsePrefix("::/127"), netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("ff00::/8"),
	}, v6)
}

// forwardChain sorts out what passes between mesh and others. What begins
// elsewhere with a mesh address as its source is a lie, whether it goes to the mesh
// or not.
//
// What a packet of a running flow walks here, and in the input chain as one that
// WireGuard has wrapped, is what the kernel's data path costs more than WireGuard
// alone: a rule that fails takes a thousandth of it on a slow router, a lookup in a set
// five. So what most packets are comes first, and what begins a flow last.
func forwardChain(cfg host.Firewall) chain {
	return chain{"forward", filterHook(nftables.ChainHookForward), []match{
		rule(iifMesh(cfg), goTo("from_mesh")),
		rule(oifMesh(cfg), goTo("to_mesh")),
		rule(state(expr.CtStateBitNEW), goTo("spoofed")),
	}}
}

// spoofedChain drops what has a mesh address as its source. What the mesh interface
// brings does not get here.
func spoofedChain() chain {
	c := chain{name: "spoofed"}
	for _, f := range families() {
		c.rules = append(c.rules, rule(f.addrIn(f.src, "mesh"+f.digit), drop()))
	}
	return c
}

func filterHook(num *nftables.ChainHook) *hook {
	return &hook{nftables.ChainTypeFilter, *num, -10}
}

// fromMesh: what a rule allows may go to what we expose, and to the internet if we
// offer it; not back into the mesh.
func fromMesh(cfg host.Firewall) chain {
	c := chain{name: "from_mesh", rules: []match{rule(maybeSYN(), jump("mss")), rule(oifMesh(cfg), drop()), jump("guard")}}
	c.rules = append(c.rules, behindFront(cfg)...)
	for _, f := range families() {
		if to, some := f.among(f.dst, "exposed"+f.digit, exposed(cfg, f.v6)); some {
			c.rules = append(c.rules, rule(to, goTo("acl")))
		}
	}
	if cfg.Internet {
		for _, f := range families() {
			c.rules = append(c.rules, rule(notOifIn("lans"), f.addrIn(f.dst, "internet"+f.digit), goTo("acl")))
		}
	}
	c.rules = append(c.rules, drop())
	return c
}

// guardChain: neither spoofed nor invalid; replies to flows that we or our LANs
// began may enter. Packets in the original direction of an old flow are not
// accepted here but go through the access list again and again, so that a
// withdrawn rule cuts its flows at once.
func guardChain() chain {
	c := chain{name: "guard"}
	for _, f := range families() {
		c.rules = append(c.rules, rule(f.addrIn(f.src, "ours"+f.digit), drop()))
	}
	c.rules = append(c.rules,
		rule(direction(reply), accept()), // there is none but of a flow that conntrack knows
		rule(state(expr.CtStateBitNEW|expr.CtStateBitESTABLISHED), back()),
		rule(state(expr.CtStateBitRELATED), accept()),
		drop())
	return c
}

// toMesh: our LANs may begin flows; what others begin into the mesh is dropped.
// Replies to the mesh need the access list as their flow does: else a stream
// like a camera's would go on after its rule was withdrawn.
func toMesh(cfg host.Firewall) chain {
	c := chain{name: "to_mesh", rules: []match{
		rule(maybeSYN(), jump("mss")),
		rule(direction(reply), goTo("reply")),
	}}
	c.rules = append(c.rules, strandedFlows(cfg)...)
	c.rules = append(c.rules,
		rule(state(expr.CtStateBitESTABLISHED), iifLAN(cfg), accept()),
		rule(state(expr.CtStateBitINVALID), drop()),
		rule(state(expr.CtStateBitRELATED), accept()),
		jump("spoofed"),
		rule(iifIn("lans"), accept()),
		drop())
	return c
}

// iifLAN is iifIn("lans"); one LAN is compared.
func iifLAN(cfg host.Firewall) match {
	if s := ifaceSet("lans", cfg.LANs); len(s.values) == 1 {
		return iifname(cfg.LANs[0])
	}
	return iifIn("lans")
}

// inputChain: our mesh addresses answer to the mesh by the access list, to our
// LANs and to ourselves; anybody else who sends to them is lying.
func inputChain(cfg host.Firewall) chain {
	c := chain{"input", filterHook(nftables.ChainHookInput), []match{
		rule(iifMesh(cfg), goTo("input_mesh")),
	}}
	for _, f := range families() {
		if to, some := f.among(f.dst, "own"+f.digit, rangesOf(singles(cfg.Own), f.v6)); some {
			c.rules = append(c.rules, rule(to, goTo("own")))
		}
	}
	c.rules = append(c.rules, rule(state(expr.CtStateBitNEW), notIifname("lo"), goTo("spoofed")))
	return c
}

// ownChain is for what anybody but the mesh sends to our mesh addresses.
func ownChain() chain {
	return chain{name: "own", rules: []match{
		rule(iifname("lo"), accept()),
		rule(state(expr.CtStateBitNEW), jump("spoofed")),
		rule(iifIn("lans"), accept()),
		drop(),
	}}
}

// inputMesh: the router itself is reached by its mesh addresses and, where the
// LAN is exposed, by its address there, both by the access list.
func inputMesh(cfg host.Firewall) chain {
	c := chain{name: "input_mesh", rules: []match{jump("guard")}}
	c.rules = append(c.rules, memberServices(cfg)...)
	c.rules = append(c.rules, brought(cfg)...)
	for _, f := range families() {
		for _, set := range [...]string{"own", "exposed"} {
			c.rules = append(c.rules, rule(f.addrIn(f.dst, set+f.digit), goTo("acl")))
		}
	}
	c.rules = append(c.rules, drop())
	return c
}

// aclChain decides about packets in the original direction of their flow.
func aclChain(lists [2]acl) chain {
	c := chain{name: "acl"}
	for _, f := range families() {
		c.rules = append(c.rules, rule(f.notEcho(), drop()))
	}
	for i, f := range families() {
		c.rules = append(c.rules, f.toClass(f.src, lists[i].sources))
	}
	c.rules = append(c.rules, drop())
	return c
}

// replyChain decides about packets to the mesh in the reply direction. At the
// forward hook both directions show the same addresses, whatever NAT does.
func replyChain(lists [2]acl) chain {
	c := chain{name: "reply"}
	for i, f := range families() {
		c.rules = append(c.rules, f.toClass(f.dst, lists[i].sources))
	}
	c.rules = append(c.rules, drop())
	return c
}

// toClass goes where the source map sends the address at the offset. Sources that are
// one prefix are compared.
func (f family) toClass(offset uint32, sources []source) match {
	if len(sources) == 1 {
		if p, ok := prefixOf(sources[0].Range); ok {
			return rule(f.addrOf(offset, p), goTo(className("acl", f, sources[0].class)))
		}
	}
	return f.addrMap(offset, "src"+f.digit)
}

func className(list string, f family, i int) string { return list + f.digit + "_" + strconv.Itoa(i) }

// classChain is where the source map sends a source of class i. What may go anywhere,
// by a policy that allows all, is told by its protocol: a lookup of three fields takes
// ten times as long, for each packet.
func classChain(f family, i int, boxes []box) chain {
	const sport, dport = 0, 2
	name := className("acl", f, i)
	c := chain{name: name}
	for _, b := range boxes {
		if b.anywhere() {
			c.rules = append(c.rules, rule(metaIs(expr.MetaKeyL4PROTO, b.proto), accept()))
		}
	}
	c.rules = append(c.rules,
		rule(direction(original), f.tripleIn(f.dst, dport, name), accept()),
		rule(direction(reply), f.tripleIn(f.src, sport, name), accept()),
		rule(state(expr.CtStateBitRELATED), accept()), // an error in the reply direction
		drop())
	return c
}

// mssChain is passed by what may begin a connection.
func mssChain() chain { return chain{name: "mss", rules: []match{clampMSS()}} }

func ifaceSet(name string, ifaces []string) set {
	s := set{name: name, key: nftables.TypeIFName, kind: plain}
	ifaces = slices.Clone(ifaces)
	slices.Sort(ifaces)
	for _, i := range slices.Compact(ifaces) {
		s.values = append(s.values, nftables.SetElement{Key: ifnameKey(i)})
	}
	return s
}

func rangeSet(f family, name string, ranges []mesh.Range) set {
	s := set{name: name + f.digit, key: f.addrType, kind: interval}
	for _, r := range ranges {
		s.values = appendInterval(s.values, r, nil)
	}
	return s
}

// appendInterval adds the two elements of a range; the one that ends it is the
// first address behind it, and is missing at the end of the address space.
func appendInterval(out []nftables.SetElement, r mesh.Range, v *expr.Verdict) []nftables.SetElement {
	out = append(out, nftables.SetElement{Key: r.From.AsSlice(), VerdictData: v})
	if next := r.To.Next(); next.IsValid() {
		out = append(out, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
	}
	return out
}

// sourceMap leads sources to the chains of their classes in a list.
func sourceMap(f family, name, list string, sources []source) set {
	s := set{name: name + f.digit, key: f.addrType, kind: verdicts}
	for _, x := range sources {
		s.values = appendInterval(s.values, x.Range,
			&expr.Verdict{Kind: expr.VerdictGoto, Chain: className(list, f, x.class)})
	}
	return s
}

func boxSet(f family, name string, boxes []box) set {
	s := set{name: name, kind: concat,
		key: nftables.MustConcatSetType(f.addrType, nftables.TypeInetProto, nftables.TypeInetService)}
	for _, b := range boxes {
		s.values = append(s.values, nftables.SetElement{
			Key:    tripleKey(b.dst.From, b.proto, b.ports.First),
			KeyEnd: tripleKey(b.dst.To, b.proto, b.ports.Last),
		})
	}
	return s
}

// tripleKey is address . protocol . port, each padded to 32 bits.
func tripleKey(a netip.Addr, proto uint8, port uint16) []byte {
	return append(a.AsSlice(), proto, 0, 0, 0, byte(port>>8), byte(port), 0, 0)
}
