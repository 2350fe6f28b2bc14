package firewall

import (
	"net/netip"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// What the mesh gets of this router besides its LANs: the internet, if it offers an
// exit, and answers of its own.
//
//	from_mesh    to the internet and not by a LAN: the access list decides
//	postrouting  what leaves so gets our address, in both families
//	input_mesh   the answerer, and what every member may call, before the access list
//	names        DNS to the mesh's service addresses is brought to the answerer

// publicRanges are the internet: what is neither private nor special (RFC 6890), in IPv6 what
// is assigned at all (RFC 4291).
func publicRanges(v6 bool) []mesh.Range {
	all := rangesOf([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("2000::/3")}, v6)
	return subtractRanges(all, rangesOf([]netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"),
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("198.18.0.0/15"),
		netip.MustParsePrefix("224.0.0.0/3"),
	}, v6))
}

// internet is what the mesh reaches through here of the world outside.
func internet(cfg host.Firewall, v6 bool) []mesh.Range {
	if !cfg.Internet {
		return nil
	}
	return subtractRanges(publicRanges(v6), rangesOf(cfg.Local, v6))
}

// memberServices are what members may call whatever the access list says.
func memberServices(cfg host.Firewall) []match {
	var out []match
	for _, proto := range [...]byte{protoUDP, protoTCP} {
		if cfg.Names != 0 {
			out = append(out, rule(translatedFlow(), toPortOf(proto, cfg.Names), accept()))
		}
	}
	for _, f := range families() {
		if cfg.PeerAPI != 0 {
			out = append(out, rule(f.addrIn(f.dst, "own"+f.digit), toPortOf(protoTCP, cfg.PeerAPI), accept()))
		}
	}
	return out
}

// answerer adds the way of questions to the answerer, which hears them at an address of
// the interface they came by.
func (t *table) answerer(cfg host.Firewall) {
	if cfg.Names == 0 {
		return
	}
	const dns = 53
	c := chain{name: "to_names"}
	for i, f := range families() {
		to := host.ServiceAddrs()[i].AsSlice()
		for _, proto := range [...]byte{protoUDP, protoTCP} {
			c.rules = append(c.rules, rule(f.addr(f.dst), match{&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: to}},
				toPortOf(proto, dns), redirect(cfg.Names)))
		}
	}
	t.chains = append(t.chains, c,
		chain{"names", dstNATHook(nftables.ChainHookPrerouting), []match{
			rule(iifMesh(cfg), jump(c.name)), rule(iifIn("lans"), jump(c.name))}},
		chain{"names_out", dstNATHook(nftables.ChainHookOutput), []match{jump(c.name)}})
}

// toPortOf holds for a protocol with ports, and that destination port.
func toPortOf(proto byte, port uint16) match {
	return rule(metaIs(expr.MetaKeyL4PROTO, proto), udpIs(dport, byte(port>>8), byte(port)))
}

// redirect brings the packet to a port of this machine.
func redirect(port uint16) match {
	return match{
		&expr.Immediate{Register: 1, Data: []byte{byte(port >> 8), byte(port)}},
		&expr.Redir{RegisterProtoMin: 1},
	}
}
