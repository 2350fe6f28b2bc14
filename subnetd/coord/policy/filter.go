package policy

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"slices"
	"sort"

	"tailscale.com/tailcfg"
)

// grant is one filter rule, before it is written out.
type grant struct {
	src     *source
	protos  []int
	dst     []dest // packets: ascending by ports, then addresses
	caps    tailcfg.PeerCapMap
	capsKey string
	capsDst set
}

// dest is addresses with a range of ports.
type dest struct {
	ports tailcfg.PortRange
	addrs span
}

// grants are the rules for packets into n, in the order of the policy; those
// with the same sources and protocols are one.
func (c *Compiled) grants(n *compiledNode) []*grant {
	var out []*grant
	known := map[string]*grant{} // for packets, by source and protocols
	for i := range c.policy.rules {
		r := &c.policy.rules[i]
		of := ""
		if r.self {
			of = n.User
		}
		src := c.sources[i][of]
		if src == nil || len(src.addrs) == 0 {
			continue
		}
		for j := range r.allow {
			p := &r.allow[j]
			dst := c.part(n, p)
			if len(dst) == 0 {
				continue
			}
			if p.caps != nil {
				out = append(out, &grant{src: src, caps: p.caps, capsKey: p.capsKey, capsDst: dst})
				continue
			}
			key := src.key
			for _, proto := range p.protos {
				key += string(rune(proto))
			}
			g := known[key]
			if g == nil {
				g = &grant{src: src, protos: p.protos}
				known[key] = g
				out = append(out, g)
			}
			for _, ports := range p.ports {
				for _, s := range dst {
					g.dst = append(g.dst, dest{ports, s})
				}
			}
		}
	}
	for _, g := range out {
		g.dst = tidy(g.dst)
	}
	return out
}

// tidy sorts, and merges what has the same ports.
func tidy(ds []dest) []dest {
	byPorts := map[tailcfg.PortRange][]span{}
	for _, d := range ds {
		byPorts[d.ports] = append(byPorts[d.ports], d.addrs)
	}
	ports := slices.Collect(maps.Keys(byPorts))
	sort.Slice(ports, func(i, j int) bool {
		return cmp.Or(cmp.Compare(ports[i].First, ports[j].First), cmp.Compare(ports[i].Last, ports[j].Last)) < 0
	})
	var out []dest
	for _, p := range ports {
		for _, s := range union(byPorts[p]) {
			out = append(out, dest{p, s})
		}
	}
	return out
}

// Filter is the rules for packets into a node, in the order of the policy: never
// nil, and empty for a node that no one may reach. It shares parts with other
// filters and must not be changed.
func (c *Compiled) Filter(id tailcfg.NodeID) []tailcfg.FilterRule {
	out := []tailcfg.FilterRule{}
	i, ok := c.find(id)
	if !ok {
		return out
	}
	for _, g := range c.grants(c.nodes[i]) {
		r := tailcfg.FilterRule{SrcIPs: g.src.ips, IPProto: g.protos}
		for _, d := range g.dst {
			r.DstPorts = append(r.DstPorts, tailcfg.NetPortRange{IP: d.addrs.String(), Ports: d.ports})
		}
		if g.caps != nil {
			r.CapGrant = []tailcfg.CapGrant{{Dsts: g.capsDst.prefixes(), CapMap: g.caps}}
		}
		out = append(out, r)
	}
	return out
}

// FilterKey is a digest of what Filter returns: two nodes, or one node in two
// compilations, have equal keys if their rules are equal, and only then.
func (c *Compiled) FilterKey(id tailcfg.NodeID) string {
	var b []byte // each part with its length before it
	if i, ok := c.find(id); ok {
		for _, g := range c.grants(c.nodes[i]) {
			b = append(b, g.src.key...) // all of one length
			b = appendInt(b, len(g.protos))
			for _, n := range g.protos {
				b = appendInt(b, n)
			}
			b = appendInt(b, len(g.dst))
			for _, d := range g.dst {
				b = d.addrs.append(appendInt(appendInt(b, int(d.ports.First)), int(d.ports.Last)))
			}
			b = appendInt(b, len(g.capsDst))
			for _, s := range g.capsDst {
				b = s.append(b)
			}
			b = append(appendInt(b, len(g.capsKey)), g.capsKey...)
		}
	}
	sum := sha256.Sum256(b)
	return string(sum[:])
}
