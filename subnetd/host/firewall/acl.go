package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"subnetd/subnetd/mesh"
)

// Bounds of one family's access list. What is bigger is refused as a whole, and
// the policy in the kernel stays as it is.
const (
	maxElements = 20_000 // set elements: sources and boxes together
	maxSources  = 50_000 // source ranges of all rules, before they are split
	maxClasses  = 2_000  // groups of sources with different rights
)

// errTooBig says that a policy exceeds the bounds above.
var errTooBig = errors.New("access rules need too many set elements")

// IANA protocol numbers that are treated specially.
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
	protoTSMP   = 99 // belongs inside the tunnel, never reaches the kernel
	protoSCTP   = 132
)

// acl is the access list of one address family in a form for two lookups: the
// source tells the class, the class's boxes tell what may be reached.
type acl struct {
	sources []source // disjoint, ascending
	classes [][]box
}

// source is a range of addresses with equal rights.
type source struct {
	mesh.Range
	class int // index into acl.classes
}

// box is a set of allowed (destination, protocol, port) triples. The boxes of
// one class do not overlap, as the kernel's concatenated interval sets demand.
// Protocols without ports have the full range of ports.
type box struct {
	dst   mesh.Range
	proto uint8
	ports mesh.PortRange
}

// anywhere reports whether the box has all addresses of its family and all ports.
func (b box) anywhere() bool {
	return b.dst.From.IsUnspecified() && !b.dst.To.Next().IsValid() && b.ports == mesh.PortRange{First: 0, Last: 65535}
}

// grant is what a set of sources may reach; its boxes may overlap.
type grant struct {
	srcs  []mesh.Range
	boxes []box
}

// compileACL turns rules into the access list of one family. Ranges that are
// not well-formed or belong to the other family allow nothing here.
func compileACL(rules []mesh.Rule, v6 bool) (acl, error) {
	grants := grantsOf(rules, v6)
	var ranges []mesh.Range
	var owner []int
	for i, g := range grants {
		for _, r := range g.srcs {
			ranges, owner = append(ranges, r), append(owner, i)
		}
	}
	if len(ranges) > maxSources {
		return acl{}, fmt.Errorf("%d source ranges: %w", len(ranges), errTooBig)
	}
	c := classer{grants: grants, byGrants: map[string]int{}, byBoxes: map[string]int{}}
	for atom, active := range sweep(ranges) {
		owners := make([]int, 0, len(active))
		for _, i := range active {
			owners = append(owners, owner[i])
		}
		slices.Sort(owners)
		class := c.classOf(slices.Compact(owners))
		c.out.sources = appendSource(c.out.sources, source{atom, class})
		if len(c.out.classes) > maxClasses || len(c.out.sources)+c.boxes > maxElements {
			return acl{}, fmt.Errorf("%d source ranges, %d destinations, %d classes: %w",
				len(c.out.sources), c.boxes, len(c.out.classes), errTooBig)
		}
	}
	return c.out, nil
}

// classer finds or makes the class for a combination of grants.
type classer struct {
	grants   []grant
	byGrants map[string]int
	byBoxes  map[string]int
	boxes    int
	out      acl
}

func (c *classer) classOf(owners []int) int {
	key := fmt.Sprint(owners)
	if class, ok := c.byGrants[key]; ok {
		return class
	}
	var all []box
	for _, i := range owners {
		all = append(all, c.grants[i].boxes...)
	}
	boxes := disjoint(all)
	text := boxesKey(boxes)
	class, ok := c.byBoxes[text]
	if !ok {
		class = len(c.out.classes)
		c.out.classes = append(c.out.classes, boxes)
		c.byBoxes[text] = class
		c.boxes += len(boxes)
	}
	c.byGrants[key] = class
	return class
}

func boxesKey(boxes []box) string {
	var b strings.Builder
	for _, x := range boxes {
		fmt.Fprintf(&b, "%v-%v/%d/%d-%d,", x.dst.From, x.dst.To, x.proto, x.ports.First, x.ports.Last)
	}
	return b.String()
}

// appendSource adds s, or extends the last one if it is adjacent and equal.
func appendSource(out []source, s source) []source {
	if n := len(out); n > 0 && out[n-1].class == s.class && out[n-1].To.Next() == s.From {
		out[n-1].To = s.To
		return out
	}
	return append(out, s)
}

// grantsOf gathers the rules of one family; rules with equal sources become one.
func grantsOf(rules []mesh.Rule, v6 bool) []grant {
	var grants []grant
	bySrc := map[string]int{}
	for _, r := range rules {
		var srcs []mesh.Range
		for _, s := range r.Srcs {
			if inFamily(s, v6) {
				srcs = append(srcs, s)
			}
		}
		var boxes []box
		for _, d := range r.Dsts {
			boxes = append(boxes, boxesOf(d, r.Protos, v6)...)
		}
		if len(srcs) == 0 || len(boxes) == 0 {
			continue
		}
		srcs = mergeRanges(srcs)
		key := fmt.Sprint(srcs)
		i, ok := bySrc[key]
		if !ok {
			i = len(grants)
			bySrc[key] = i
			grants = append(grants, grant{srcs: srcs})
		}
		grants[i].boxes = append(grants[i].boxes, boxes...)
	}
	return grants
}

// boxesOf gives what one destination of a rule allows: TCP, UDP and SCTP by
// port; other protocols only if the rule names them with every port. Echo
// requests need no port, but a rule that names protocols without ICMP does not
// allow them: tailscale's filter lets them pass wherever any port is open,
// which is more than the rule says.
func boxesOf(d mesh.Dest, protos []uint8, v6 bool) []box {
	if !inFamily(d.Range, v6) || d.Ports.First > d.Ports.Last {
		return nil
	}
	all := mesh.PortRange{First: 0, Last: 65535}
	icmp := uint8(protoICMP)
	if v6 {
		icmp = protoICMPv6
	}
	var boxes []box
	if len(protos) == 0 {
		protos = []uint8{protoTCP, protoUDP, icmp}
	}
	for _, p := range protos {
		switch p {
		case protoTCP, protoUDP, protoSCTP:
			boxes = append(boxes, box{d.Range, p, d.Ports})
		case icmp:
			boxes = append(boxes, box{d.Range, p, all})
		case protoICMP, protoICMPv6, protoTSMP:
		default:
			if d.Ports == all {
				boxes = append(boxes, box{d.Range, p, all})
			}
		}
	}
	return boxes
}

// inFamily reports whether r is a well-formed range of that family.
func inFamily(r mesh.Range, v6 bool) bool {
	ok := func(a netip.Addr) bool {
		return a.IsValid() && a.Is6() == v6 && !a.Is4In6() && a.Zone() == ""
	}
	return ok(r.From) && ok(r.To) && r.From.Compare(r.To) <= 0
}

// disjoint returns boxes that allow exactly what the given ones allow, without
// overlap, in a canonical order.
func disjoint(boxes []box) []box {
	byProto := map[uint8][]box{}
	var protos []uint8
	for _, b := range boxes {
		if byProto[b.proto] == nil {
			protos = append(protos, b.proto)
		}
		byProto[b.proto] = append(byProto[b.proto], b)
	}
	sort.Slice(protos, func(i, j int) bool { return protos[i] < protos[j] })
	var out []box
	for _, p := range protos {
		out = append(out, disjointProto(byProto[p])...)
	}
	return out
}

// disjointProto is disjoint for boxes of one protocol: strips of destinations
// with the same ports.
func disjointProto(boxes []box) []box {
	ranges := make([]mesh.Range, len(boxes))
	for i, b := range boxes {
		ranges[i] = b.dst
	}
	type strip struct {
		dst   mesh.Range
		ports []mesh.PortRange
	}
	var strips []strip
	for atom, active := range sweep(ranges) {
		ports := make([]mesh.PortRange, 0, len(active))
		for _, i := range active {
			ports = append(ports, boxes[i].ports)
		}
		ports = mergePorts(ports)
		if n := len(strips); n > 0 && strips[n-1].dst.To.Next() == atom.From && slices.Equal(strips[n-1].ports, ports) {
			strips[n-1].dst.To = atom.To
			continue
		}
		strips = append(strips, strip{atom, ports})
	}
	var out []box
	for _, s := range strips {
		for _, p := range s.ports {
			out = append(out, box{s.dst, boxes[0].proto, p})
		}
	}
	return out
}

// mergePorts returns the same ports as ascending ranges with gaps between them.
func mergePorts(in []mesh.PortRange) []mesh.PortRange {
	sort.Slice(in, func(i, j int) bool { return in[i].First < in[j].First })
	var out []mesh.PortRange
	for _, p := range in {
		if n := len(out); n > 0 && int(p.First) <= int(out[n-1].Last)+1 {
			out[n-1].Last = max(out[n-1].Last, p.Last)
			continue
		}
		out = append(out, p)
	}
	return out
}
