package firewall

import (
	"net/netip"
	"slices"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// What is meant for the listener of host.Front gets its address and port at the first
// packet of a flow, and conntrack keeps what was meant (SO_ORIGINAL_DST):
//
//	front       prerouting, before devices are translated: from the mesh, an access list
//	            of its own, asked by what was meant; what that does not let goes on as if
//	            there was no listener, to be refused where all else is
//	front_out   output: what the router itself sends
//	input_mesh  what was brought may enter
//	from_mesh   what the listener asks for the mesh is not forwarded
//
// A flow is asked once here: when a rule is withdrawn, the listener closes what it has.

// beforeDevices puts these translations before those of devices.
const beforeDevices = behindTheirs - 1

// front adds the ways to the listener.
func (t *table) front(cfg host.Firewall) error {
	if cfg.Front.Port == 0 {
		return nil
	}
	in := chain{name: "front", hook: &hook{nftables.ChainTypeNAT, *nftables.ChainHookPrerouting, beforeDevices}}
	out := chain{name: "front_out", hook: &hook{nftables.ChainTypeNAT, *nftables.ChainHookOutput, beforeDevices}}
	rules := toDoors(cfg.Rules, slices.Concat(cfg.Front.Doors, cfg.Front.Behind))
	for _, f := range families() {
		at := slices.IndexFunc(cfg.Own, func(a netip.Addr) bool { return a.Is6() == f.v6 })
		if at < 0 {
			continue
		}
		to := f.toAddrPort(netip.AddrPortFrom(cfg.Own[at], cfg.Front.Port))
		list, err := compileACL(rules, f.v6)
		if err != nil {
			return err
		}
		t.sets = append(t.sets, pairSet(f, "doors", cfg.Front.Doors), sourceMap(f, "callers", "front", list.sources))
		for i, boxes := range list.classes {
			name := className("front", f, i)
			t.sets = append(t.sets, boxSet(f, name, boxes))
			t.chains = append(t.chains, chain{name: name, rules: []match{rule(metaIs(expr.MetaKeyL4PROTO, protoTCP), f.tripleIn(f.dst, dport, name), to)}})
		}
		in.rules = append(in.rules,
			rule(iifIn("lans"), f.tcpToPair("doors"+f.digit), to),
			rule(iifMesh(cfg), f.addrMap(f.src, "callers"+f.digit)))
		out.rules = append(out.rules, rule(f.tcpToPair("doors"+f.digit), to))
	}
	for _, f := range families() {
		if len(cfg.Front.Behind) > 0 {
			t.sets = append(t.sets, pairSet(f, "behind", cfg.Front.Behind))
		}
	}
	t.chains = append(t.chains, in, out)
	return nil
}

// toDoors is what of rules lets TCP to one of the doors.
func toDoors(rules []mesh.Rule, doors []netip.AddrPort) (out []mesh.Rule) {
	for _, r := range rules {
		if len(r.Protos) > 0 && !slices.Contains(r.Protos, protoTCP) {
			continue
		}
		to := mesh.Rule{Srcs: r.Srcs, Protos: []uint8{protoTCP}}
		for _, d := range r.Dsts {
			for _, x := range doors {
				a := x.Addr()
				if inFamily(d.Range, a.Is6()) && !a.Less(d.Range.From) && !d.Range.To.Less(a) && d.Ports.First <= x.Port() && x.Port() <= d.Ports.Last {
					to.Dsts = append(to.Dsts, mesh.Dest{Range: mesh.Range{From: a, To: a}, Ports: mesh.PortRange{First: x.Port(), Last: x.Port()}})
				}
			}
		}
		if len(to.Dsts) > 0 {
			out = append(out, to)
		}
	}
	return out
}

// brought lets in what got the listener's address.
func brought(cfg host.Firewall) (out []match) {
	if cfg.Front.Port == 0 {
		return nil
	}
	for _, f := range families() {
		out = append(out, rule(toPortOf(protoTCP, cfg.Front.Port), f.addrIn(f.dst, "own"+f.digit), translatedFlow(), accept()))
	}
	return out
}

// behindFront keeps the mesh from what the listener asks for it.
func behindFront(cfg host.Firewall) (out []match) {
	if cfg.Front.Port == 0 || len(cfg.Front.Behind) == 0 {
		return nil
	}
	for _, f := range families() {
		out = append(out, rule(f.tcpToPair("behind"+f.digit), drop()))
	}
	return out
}

// pairSet holds those of the pairs that are of the family.
func pairSet(f family, name string, all []netip.AddrPort) set {
	s := set{name: name + f.digit, kind: pairs, key: nftables.MustConcatSetType(f.addrType, nftables.TypeInetService)}
	for _, x := range all {
		if a := x.Addr(); a.IsValid() && a.Is6() == f.v6 && a.Zone() == "" {
			s.values = append(s.values, nftables.SetElement{Key: append(a.AsSlice(), byte(x.Port()>>8), byte(x.Port()), 0, 0)})
		}
	}
	return s
}

// tcpToPair holds for TCP to an address and port of the set.
func (f family) tcpToPair(set string) match {
	return rule(metaIs(expr.MetaKeyL4PROTO, protoTCP), f.addr(f.dst), match{
		&expr.Payload{DestRegister: f.l4, Base: expr.PayloadBaseTransportHeader, Offset: dport, Len: 2},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	})
}

// toAddrPort gives the packet another destination.
func (f family) toAddrPort(to netip.AddrPort) match {
	return match{
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: []byte{byte(to.Port() >> 8), byte(to.Port())}},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}
}
