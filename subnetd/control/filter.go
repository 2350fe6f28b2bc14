package control

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"subnetd/subnetd/mesh"
	"tailscale.com/tailcfg"
)

var errSrcBits = errors.New("filter rule uses the SrcBits form of 2020")

// compileFilter turns the coordinator's rules into ours. A rule that cannot be
// read is left out, which only ever refuses more; the error tells the first.
func compileFilter(rules []tailcfg.FilterRule, peers []mesh.Node, unsigned map[mesh.NodeID]bool) ([]mesh.Rule, error) {
	var out []mesh.Rule
	var first error
	for i := range rules {
		r, err := compileRule(&rules[i], peers)
		if err != nil && first == nil {
			first = err
		}
		if len(r.Srcs) > 0 && len(r.Dsts) > 0 {
			out = append(out, r)
		}
	}
	if id, bad := admitsUnsigned(out, peers, unsigned); bad {
		return nil, fmt.Errorf("the filter admits node %d, which is not signed: nothing may enter", id)
	}
	return out, first
}

// compileRule returns a rule without sources if nothing of it can be used.
func compileRule(r *tailcfg.FilterRule, peers []mesh.Node) (mesh.Rule, error) {
	if len(r.SrcBits) > 0 {
		return mesh.Rule{}, errSrcBits
	}
	if len(r.DstPorts) == 0 {
		return mesh.Rule{}, nil // a grant of capabilities only
	}
	protos := protocols(r.IPProto)
	if len(r.IPProto) > 0 && len(protos) == 0 {
		return mesh.Rule{}, fmt.Errorf("filter rule names only unknown protocols: %v", r.IPProto)
	}
	var first error
	out := mesh.Rule{Protos: protos}
	out.Srcs, first = compileSources(r.SrcIPs, peers)
	for _, d := range r.DstPorts {
		rs, err := parseDest(d)
		if err != nil && first == nil {
			first = err
		}
		out.Dsts = append(out.Dsts, rs...)
	}
	return out, first
}

// compileSources gives what can be read of a rule's sources, and the first error.
func compileSources(texts []string, peers []mesh.Node) (out []mesh.Range, first error) {
	for _, s := range texts {
		if name, ok := strings.CutPrefix(s, "cap:"); ok {
			out = append(out, holders(peers, name)...)
			continue
		}
		rs, err := parseRanges(s)
		if err != nil && first == nil {
			first = fmt.Errorf("filter source %q: %w", s, err)
		}
		out = append(out, rs...)
	}
	return out, first
}

// compileGrants gives who is granted which of the capabilities that we know. What cannot
// be read grants nothing.
func compileGrants(rules []tailcfg.FilterRule, peers []mesh.Node) (out []mesh.Grant) {
	for i := range rules {
		for _, g := range rules[i].CapGrant {
			x := mesh.Grant{}
			for _, name := range []string{mesh.CapSend, mesh.CapTarget} {
				c := tailcfg.PeerCapability(name)
				if _, ok := g.CapMap[c]; ok || slices.Contains(g.Caps, c) {
					x.Caps = append(x.Caps, name)
				}
			}
			for _, p := range valid(g.Dsts) {
				x.Dsts = append(x.Dsts, prefixRange(p))
			}
			if len(x.Caps) == 0 || len(rules[i].SrcBits) > 0 {
				continue
			}
			if x.Srcs, _ = compileSources(rules[i].SrcIPs, peers); len(x.Srcs) > 0 && len(x.Dsts) > 0 {
				out = append(out, x)
			}
		}
	}
	return out
}

func parseDest(d tailcfg.NetPortRange) ([]mesh.Dest, error) {
	if d.Bits != nil {
		return nil, errSrcBits
	}
	if d.Ports.First > d.Ports.Last {
		return nil, fmt.Errorf("filter ports %d-%d are the wrong way round", d.Ports.First, d.Ports.Last)
	}
	rs, err := parseRanges(d.IP)
	if err != nil {
		return nil, fmt.Errorf("filter destination %q: %w", d.IP, err)
	}
	var out []mesh.Dest
	for _, r := range rs {
		out = append(out, mesh.Dest{Range: r, Ports: mesh.PortRange{First: d.Ports.First, Last: d.Ports.Last}})
	}
	return out, nil
}

func protocols(in []int) []uint8 {
	var out []uint8
	for _, n := range in {
		if n >= 0 && n <= 255 {
			out = append(out, uint8(n))
		}
	}
	return out
}

// holders are the addresses of the peers with the named capability.
func holders(peers []mesh.Node, name string) []mesh.Range {
	var out []mesh.Range
	for i := range peers {
		if _, ok := slices.BinarySearch(peers[i].Caps, name); !ok {
			continue
		}
		for _, p := range peers[i].Addresses {
			if p.IsSingleIP() {
				out = append(out, mesh.Range{From: p.Addr(), To: p.Addr()})
			}
		}
	}
	return out
}

// parseRanges reads an address, a prefix, a range a-b, or * for all of both families.
func parseRanges(s string) ([]mesh.Range, error) {
	if s == "*" {
		return []mesh.Range{
			prefixRange(netip.PrefixFrom(netip.IPv4Unspecified(), 0)),
			prefixRange(netip.PrefixFrom(netip.IPv6Unspecified(), 0)),
		}, nil
	}
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("bits set behind the prefix length")
		}
		return []mesh.Range{prefixRange(p)}, nil
	}
	from, to, isRange := strings.Cut(s, "-")
	a, err := netip.ParseAddr(from)
	if err != nil {
		return nil, err
	}
	if !isRange {
		return []mesh.Range{{From: a, To: a}}, nil
	}
	b, err := netip.ParseAddr(to)
	if err != nil {
		return nil, err
	}
	if a.BitLen() != b.BitLen() || b.Less(a) || a.Zone() != "" || b.Zone() != "" {
		return nil, fmt.Errorf("not a range of addresses")
	}
	return []mesh.Range{{From: a, To: b}}, nil
}

// prefixRange returns the first and the last address of p.
func prefixRange(p netip.Prefix) mesh.Range {
	p = p.Masked()
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	last, _ := netip.AddrFromSlice(b)
	return mesh.Range{From: p.Addr(), To: last}
}

// admitsUnsigned reports the first unsigned peer that some rule lets in.
func admitsUnsigned(rules []mesh.Rule, peers []mesh.Node, unsigned map[mesh.NodeID]bool) (mesh.NodeID, bool) {
	if len(unsigned) == 0 {
		return 0, false
	}
	for i := range peers {
		if unsigned[peers[i].ID] && admits(rules, peers[i].AllowedIPs) {
			return peers[i].ID, true
		}
	}
	return 0, false
}

func admits(rules []mesh.Rule, ps []netip.Prefix) bool {
	for _, p := range ps {
		r := prefixRange(p)
		for i := range rules {
			if slices.ContainsFunc(rules[i].Srcs, func(s mesh.Range) bool { return overlap(s, r) }) {
				return true
			}
		}
	}
	return false
}

func overlap(a, b mesh.Range) bool {
	return a.From.BitLen() == b.From.BitLen() && !a.To.Less(b.From) && !b.To.Less(a.From)
}

// hasCapSources reports whether some source depends on what the peers can do.
func hasCapSources(rules []tailcfg.FilterRule) bool {
	return slices.ContainsFunc(rules, func(r tailcfg.FilterRule) bool {
		return slices.ContainsFunc(r.SrcIPs, func(s string) bool { return strings.HasPrefix(s, "cap:") })
	})
}
