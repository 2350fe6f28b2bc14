package plan

import (
	"net/netip"

	"subnetd/subnetd/mesh"
)

// withoutJailed takes the addresses of jailed peers out of what rules allow as
// source: such a peer may answer us, but not begin.
func withoutJailed(rules []mesh.Rule, peers []mesh.Node) []mesh.Rule {
	var jail []netip.Prefix
	for i := range peers {
		for _, p := range peers[i].AllowedIPs {
			if peers[i].Jailed && p.Bits() > 0 { // WireGuard takes nothing else from it: see peers
				jail = append(jail, p)
			}
		}
	}
	if len(jail) == 0 {
		return rules
	}
	var out []mesh.Rule
	for _, r := range rules {
		for _, j := range jail {
			r.Srcs = subtract(r.Srcs, j)
		}
		if len(r.Srcs) > 0 {
			out = append(out, r)
		}
	}
	return out
}

// subtract takes the prefix out of the ranges.
func subtract(rs []mesh.Range, p netip.Prefix) []mesh.Range {
	first, last := p.Masked().Addr(), lastAddr(p)
	var out []mesh.Range
	for _, r := range rs {
		if r.From.BitLen() != first.BitLen() || r.To.Less(first) || last.Less(r.From) {
			out = append(out, r)
			continue
		}
		if r.From.Less(first) {
			out = append(out, mesh.Range{From: r.From, To: first.Prev()})
		}
		if last.Less(r.To) {
			out = append(out, mesh.Range{From: last.Next(), To: r.To})
		}
	}
	return out
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
