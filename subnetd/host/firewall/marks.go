package firewall

import (
	"net/netip"
	"slices"
	"sort"
	"strconv"

	"subnetd/subnetd/host"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// What comes in by a LAN gets the mark of its way out, which the policy rules of
// host/route read; other bits of the mark are others'. What comes in by an exit tunnel
// has to be the peer's own, or an answer from the internet: WireGuard lets an exit
// send from any address.
//
//	marks    prerouting, before translation: lans -> to_way -> way0.., direct
//	                                         exits -> answers, or members
//
// Marks do not count for the home and the mesh, whose rules come first, so that no
// destination is looked at. What the router itself sends needs none.

// marking adds marks, and the check of what exits bring.
func (t *table) marking(cfg host.Firewall) error {
	inlets := set{name: "inlets", key: nftables.TypeIFName, kind: cases}
	seen := map[string]bool{}
	lead := func(to string, names ...string) {
		names = slices.Clone(names)
		slices.Sort(names)
		for _, name := range names {
			if !seen[name] {
				seen[name] = true
				inlets.values = append(inlets.values, nftables.SetElement{Key: ifnameKey(name), VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: to}})
			}
		}
	}
	for _, e := range cfg.Exits {
		lead("exits", e.Interface)
	}
	if len(cfg.Exits) > 0 {
		t.exits(cfg)
	}
	if len(cfg.Sources) > 0 {
		if err := t.ways(cfg); err != nil {
			return err
		}
		for _, s := range cfg.Sources {
			lead("to_way", s.Interfaces...)
		}
		lead("to_way", cfg.LANs...)
	}
	if len(inlets.values) == 0 {
		return nil
	}
	sortCases(inlets)
	t.sets = append(t.sets, inlets)
	t.chains = append(t.chains, chain{"marks", &hook{nftables.ChainTypeFilter, *nftables.ChainHookPrerouting, *nftables.ChainPriorityMangle},
		[]match{rule(iif(), verdictBy(inlets.name))}})
	return nil
}

// ways adds the chains that mark.
func (t *table) ways(cfg host.Firewall) error {
	name := func(way int) string {
		if way < 0 {
			return "direct"
		}
		return "way" + strconv.Itoa(way)
	}
	sources := slices.Clone(cfg.Sources)
	marks := map[string]uint32{name(-1): host.DirectMark}
	for i := range sources {
		s := &sources[i]
		if s.LAN {
			s.Interfaces = slices.Concat(s.Interfaces, cfg.LANs)
		}
		if s.Way >= 0 {
			marks[name(s.Way)] = host.WayMark(s.Way)
		}
	}
	toWay := chain{name: "to_way"}
	var err error
	toWay.rules, err = t.bySource(sources, func(s host.ExitSource) *expr.Verdict {
		return &expr.Verdict{Kind: expr.VerdictGoto, Chain: name(s.Way)}
	})
	if err != nil {
		return err
	}
	toWay.rules = append(toWay.rules, goTo(name(-1)))
	for way := -1; way < host.MaxWays; way++ {
		if mark, ok := marks[name(way)]; ok {
			t.chains = append(t.chains, chain{name: name(way), rules: []match{setMark(mark)}})
		}
	}
	t.chains = append(t.chains, toWay)
	return nil
}

// exits adds the chain for what exit tunnels bring. What has a member's address as its
// source is the peer's own, or a lie; all else is the internet, which answers.
func (t *table) exits(cfg host.Firewall) {
	c, members := chain{name: "exits"}, chain{name: "members"}
	for _, f := range families() {
		s := peersOf(f, cfg.Exits)
		t.sets = append(t.sets, s)
		members.rules = append(members.rules, rule(f.cameBy(s.name), accept()))
		c.rules = append(c.rules, rule(f.addrIn(f.src, "mesh"+f.digit), goTo(members.name)))
	}
	for _, f := range families() {
		c.rules = append(c.rules, rule(state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), direction(reply),
			f.addrIn(f.dst, "own"+f.digit), accept()))
	}
	members.rules, c.rules = append(members.rules, drop()), append(c.rules, drop())
	t.chains = append(t.chains, members, c)
}

// peersOf is what prefixes each exit tunnel may bring.
func peersOf(f family, exits []host.ExitRoute) set {
	s := set{name: "peers" + f.digit, kind: concat, key: nftables.MustConcatSetType(nftables.TypeIFName, f.addrType)}
	exits = slices.Clone(exits)
	sort.Slice(exits, func(i, j int) bool { return exits[i].Interface < exits[j].Interface })
	for _, e := range exits {
		for _, r := range rangesOf(e.Routes, f.v6) {
			s.values = append(s.values, nftables.SetElement{
				Key:    append(ifnameKey(e.Interface), r.From.AsSlice()...),
				KeyEnd: append(ifnameKey(e.Interface), r.To.AsSlice()...),
			})
		}
	}
	return s
}

// cameBy holds if interface . source address is in the set.
func (f family) cameBy(set string) match {
	return rule(metaIs(expr.MetaKeyNFPROTO, f.proto), match{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Payload{DestRegister: 2, Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.size},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	})
}

// strandedFlows ends flows that began before they were led to an exit, and with an
// address of the home's own, as IPv6 has: the exit would not take that, and the flow
// keeps it. Those that had been translated get another translation by themselves.
func strandedFlows(cfg host.Firewall) []match {
	if len(cfg.Exits) == 0 {
		return nil
	}
	var out []match
	for _, f := range families() {
		stranded := rule(oifTunnel(), notTranslated(), state(expr.CtStateBitESTABLISHED), f.addrNotIn(f.dst, "mesh"+f.digit))
		out = append(out,
			rule(stranded, metaIs(expr.MetaKeyL4PROTO, protoTCP), match{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}),
			rule(stranded, match{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_HOST_UNREACH}}))
	}
	return out
}

// notTranslated holds if the flow kept its source.
func notTranslated() match {
	const srcNAT = 1 << 4 // enum ip_conntrack_status
	m := conntrack(expr.CtKeySTATUS, srcNAT)
	m[len(m)-1].(*expr.Cmp).Op = expr.CmpOpEq
	return m
}

// exitRoutes are the prefixes of all exits' peers.
func exitRoutes(exits []host.ExitRoute) []netip.Prefix {
	var out []netip.Prefix
	for _, e := range exits {
		out = append(out, e.Routes...)
	}
	return out
}

// meshes adds the set of the mesh's interfaces where there is more than one.
func (t *table) meshes(cfg host.Firewall) {
	if len(cfg.Exits) > 0 {
		names := []string{cfg.Interface}
		for _, e := range cfg.Exits {
			names = append(names, e.Interface)
		}
		t.sets = append(t.sets, ifaceSet("meshes", names))
	}
}

// iifMesh holds if the packet came in by the mesh, oifMesh if it goes out there.
func iifMesh(cfg host.Firewall) match {
	if len(cfg.Exits) == 0 {
		return iifname(cfg.Interface)
	}
	return iifIn("meshes")
}

func oifMesh(cfg host.Firewall) match {
	if len(cfg.Exits) == 0 {
		return oifname(cfg.Interface)
	}
	return oifIn("meshes")
}

func notOifMesh(cfg host.Firewall) match {
	if len(cfg.Exits) == 0 {
		return notOifname(cfg.Interface)
	}
	return notOifIn("meshes")
}

// setMark writes our bits of the packet's mark.
func setMark(mark uint32) match {
	return match{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(^uint32(host.MarkMask)), Xor: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
	}
}
