package dns

import (
	"net/netip"
	"slices"
	"strings"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"golang.org/x/net/dns/dnsmessage"
)

// Asker says where a question comes from.
type Asker int

// The askers.
const (
	Stranger Asker = iota // gets no answer
	Home                  // this machine and its LANs
	Member                // a member of the mesh
)

// Names is all that a Zone is made of.
type Names struct {
	Netmap  *mesh.Netmap // nil: no mesh
	Domains []string     // that we answer for (host.DNS), in lower case, without dots at their ends
	// Devices are things on our LAN that have names: NAME.NODE.DOMAIN below the name
	// of this node. The LAN gets their LAN addresses, by the shortest way; members
	// those of the mesh, or LAN addresses where they reach them as such.
	Devices    []mesh.Device
	Translated []host.DeviceMap
	Exposed    []netip.Prefix // whose LAN addresses members reach as such
	Own        []netip.Addr   // of this machine, where its own resolver answers
	// Services are names below that of this node that lead to its mesh addresses.
	Services []string
	// Served is the LAN addresses of devices that this router answers for: the home gets
	// their addresses in the mesh, too, where it does.
	Served []netip.Addr
}

// Zone knows the names of the mesh. It is never changed.
type Zone struct {
	hosts   map[string]*hostAddrs // by folded name
	reverse map[netip.Addr]string // full name, not folded
	above   map[string]bool       // names that exist as something is below them: RFC 8020
	domains map[string]bool
	splits  map[string][]netip.AddrPort // suffix -> resolvers; none that we can ask: empty
	search  []string                    // where names of one label are looked for
	// upstream answers for everything else; empty: the system's resolvers do.
	upstream []netip.AddrPort
	closed   bool     // there is an upstream, but none that we can ask
	hidden   []string // what members may not ask here: names, or suffixes with a dot first
	unusable []string
}

type hostAddrs struct {
	home, member []netip.Addr
}

// NewZone gives the zone of those names. What cannot be a name is left out.
func NewZone(n Names) *Zone {
	z := &Zone{
		hosts: map[string]*hostAddrs{}, reverse: map[netip.Addr]string{}, above: map[string]bool{},
		domains: map[string]bool{}, splits: map[string][]netip.AddrPort{},
	}
	for _, d := range n.Domains {
		z.domains[fold(d)] = true
	}
	if n.Netmap == nil {
		return z
	}
	z.addRoutes(&n.Netmap.Names, n.Own)
	z.addNode(&n.Netmap.Self, &n.Netmap.Self)
	for i := range n.Netmap.Peers {
		z.addNode(&n.Netmap.Peers[i], &n.Netmap.Self)
	}
	z.addServices(&n)
	near := map[netip.Addr]netip.Addr{}
	far := map[netip.Addr]netip.Addr{}
	for _, d := range n.Translated {
		if near[d.Mesh], far[d.LAN] = d.LAN, d.Mesh; slices.Contains(n.Served, d.LAN) {
			near[d.Mesh] = d.Mesh
		}
	}
	for _, r := range n.Netmap.Names.Records {
		if n.isService(fold(r.Name)) {
			continue
		}
		home := r.Addr
		if lan, ok := near[r.Addr]; ok {
			home = lan
		}
		z.add(r.Name, home, r.Addr)
	}
	for _, d := range n.Devices {
		for _, lan := range d.LAN {
			member := far[lan]
			if !member.IsValid() && contains(n.Exposed, lan) {
				member = lan
			}
			home := lan
			if slices.Contains(n.Served, lan) && far[lan].IsValid() {
				home = far[lan]
			}
			if d.Name != "" && !slices.Contains(n.Services, d.Name) {
				z.add(d.Name+"."+n.Netmap.Self.Name, home, member)
			}
		}
	}
	return z
}

// Unusable is the resolvers of the coordinator that are named by URLs, which we
// do not ask.
func (z *Zone) Unusable() []string { return z.unusable }

// addRoutes adds the coordinator's resolvers. Those for names below one of our
// domains are not on this machine: its resolver asks us for them.
func (z *Zone) addRoutes(n *mesh.Names, own []netip.Addr) {
	for suffix, resolvers := range n.Routes {
		if len(resolvers) == 0 {
			continue
		}
		to, s := z.usable(resolvers), fold(suffix)
		if z.isOurs(s) {
			to = slices.DeleteFunc(to, func(at netip.AddrPort) bool { return at.Addr().IsLoopback() || slices.Contains(own, at.Addr()) })
		}
		z.splits[s] = to
	}
	z.upstream = z.usable(n.Upstream)
	z.closed = len(n.Upstream) > 0 && len(z.upstream) == 0
	for _, s := range n.Search {
		z.search = append(z.search, fold(s))
	}
	for _, h := range n.Hidden {
		z.hidden = append(z.hidden, fold(h))
	}
	slices.Sort(z.unusable)
	z.unusable = slices.Compact(z.unusable)
}

// usable is the resolvers that are addresses, and not where we are asked.
func (z *Zone) usable(resolvers []string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, r := range resolvers {
		at, err := netip.ParseAddrPort(r)
		if err != nil {
			a, err := netip.ParseAddr(r)
			if err != nil {
				z.unusable = append(z.unusable, r)
				continue
			}
			at = netip.AddrPortFrom(a, portOfResolvers)
		}
		if at = plain(at); askable(at) && !slices.Contains(out, at) {
			out = append(out, at)
		}
	}
	return out
}

// addNode adds a node's first address of each family that we have in the mesh, as
// stock clients do. Those behind it may be of things behind the node, which have names
// of their own.
func (z *Zone) addNode(n, self *mesh.Node) {
	had := map[bool]bool{}
	for _, p := range n.Addresses {
		a := p.Addr()
		if p.IsSingleIP() && !had[a.Is4()] && slices.ContainsFunc(self.Addresses, func(s netip.Prefix) bool { return s.Addr().Is4() == a.Is4() }) {
			had[a.Is4()] = true
			z.add(n.Name, a, a)
		}
	}
}

// addServices adds what this node itself answers for by names of their own.
func (z *Zone) addServices(n *Names) {
	for _, s := range n.Services {
		self := n.Netmap.Self
		self.Name = s + "." + self.Name
		z.addNode(&self, &n.Netmap.Self)
	}
}

// isService reports whether a folded name is that of a service here: nobody else's.
func (n *Names) isService(name string) bool {
	first, rest, _ := strings.Cut(name, ".")
	return rest == fold(n.Netmap.Self.Name) && slices.Contains(n.Services, first)
}

// add gives a name addresses, for the home and for members; an invalid one is
// none. The first name of an address is the one that it leads back to.
func (z *Zone) add(name string, home, member netip.Addr) {
	name = strings.TrimSuffix(name, ".")
	folded := fold(name)
	if !isName(folded) {
		return
	}
	h := z.hosts[folded]
	if h == nil {
		h = &hostAddrs{}
		z.hosts[folded] = h
		for up := parent(folded); up != ""; up = parent(up) {
			z.above[up] = true
		}
	}
	h.home, h.member = with(h.home, home), with(h.member, member)
	if _, ok := z.reverse[member]; !ok && member.IsValid() && isMesh(member) {
		z.reverse[member] = name
	}
}

func with(as []netip.Addr, a netip.Addr) []netip.Addr {
	if a = a.Unmap(); !a.IsValid() || slices.Contains(as, a) {
		return as
	}
	return append(as, a)
}

// isMesh reports whether an address is of those that nodes and devices have: others
// belong to whom they belong, whatever name the coordinator gave them.
func isMesh(a netip.Addr) bool { return meshV4.Contains(a) || meshV6.Contains(a) }

// kind is what becomes of a question.
type kind int

const (
	found    kind = iota // addresses, a name or the zone itself
	nodata               // the name exists, but nothing of that type
	nxdomain             // there is no such name
	forward              // others know
	refuse               // we do not say
)

// verdict is what the zone says to a question.
type verdict struct {
	kind  kind
	zone  string // found, nodata, nxdomain: whose SOA speaks for it
	addrs []netip.Addr
	ptr   string
	to    []netip.AddrPort // forward: whom to ask; empty and not system: nobody
	// system: the system's resolvers are asked. Never for a name below one of the
	// zone's domains, which they may bring back to us.
	system bool
}

// Types that dnsmessage has no names for.
const (
	typeDS     dnsmessage.Type = 43
	typeDNSKEY dnsmessage.Type = 48
	typeFirst  dnsmessage.Type = 128 // of the meta types, for transfers and the like: RFC 6895, 3.1
	typeLast   dnsmessage.Type = 254
)

// decide says what becomes of a question for a folded name.
func (z *Zone) decide(name string, t dnsmessage.Type, who Asker) verdict {
	if t == dnsmessage.TypeOPT || t >= typeFirst && t <= typeLast || who == Member && z.isHidden(name) {
		return verdict{kind: refuse}
	}
	if v, ok := special(name, t); ok {
		return v
	}
	if h := z.hosts[name]; h != nil {
		return z.ofHost(h, name, t, who)
	}
	suffix, ok := z.suffix(name)
	prefix, isReverse := prefixOf(name)
	if isReverse && prefix.IsSingleIP() && z.reverse[prefix.Addr()] != "" {
		return z.ofAddress(prefix.Addr(), name, t)
	}
	if to, split := z.splits[suffix]; ok && split {
		return verdict{kind: forward, to: to}
	}
	switch {
	case ok && (name == suffix || z.above[name] || isReverse && z.anyIn(prefix)):
		return apex(name, suffix, t)
	case ok:
		return verdict{kind: nxdomain, zone: suffix}
	case who == Member && isReverse && isPrivate(prefix.Addr()):
		return verdict{kind: nxdomain, zone: name} // who is on our LAN is not for everybody who leaves through it
	}
	if h := z.bare(name); h != nil && !ofDelegation(t) {
		return z.ofHost(h, name, t, who)
	}
	return verdict{kind: forward, to: z.upstream, system: len(z.upstream) == 0 && !z.closed}
}

// ofHost is what there is of a host.
func (z *Zone) ofHost(h *hostAddrs, name string, t dnsmessage.Type, who Asker) verdict {
	v := verdict{kind: nodata, zone: z.authority(name)}
	all := h.member
	if who == Home {
		all = h.home
	}
	for _, a := range all {
		if a.Is4() && t == dnsmessage.TypeA || a.Is6() && t == dnsmessage.TypeAAAA {
			v.addrs = append(v.addrs, a)
		}
	}
	if len(v.addrs) > 0 || t == dnsmessage.TypeALL {
		v.kind = found
	}
	if len(all) == 0 {
		v.kind = nxdomain
	}
	return v
}

// ofAddress is what there is of an address of a node or device.
func (z *Zone) ofAddress(a netip.Addr, name string, t dnsmessage.Type) verdict {
	v := verdict{kind: nodata, zone: z.authority(name)}
	switch t {
	case dnsmessage.TypePTR:
		v.kind, v.ptr = found, z.reverse[a]
	case dnsmessage.TypeALL:
		v.kind = found
	}
	return v
}

// apex is what there is of a zone itself, or of a name that has others below it.
func apex(name, zone string, t dnsmessage.Type) verdict {
	if t == dnsmessage.TypeALL || t == dnsmessage.TypeSOA && name == zone {
		return verdict{kind: found, zone: zone}
	}
	return verdict{kind: nodata, zone: zone}
}

// isOurs reports whether a name is one of our domains or below one.
func (z *Zone) isOurs(name string) bool {
	for ; name != ""; name = parent(name) {
		if z.domains[name] {
			return true
		}
	}
	return false
}

// suffix is the longest suffix of the name, the name included, that we answer for
// or know other resolvers for.
func (z *Zone) suffix(name string) (string, bool) {
	for s := name; ; s = parent(s) {
		if _, split := z.splits[s]; split || z.domains[s] {
			return s, true
		}
		if s == "" {
			return "", false
		}
	}
}

// authority is the zone that a host's name is in: a host outside of all is one of
// its own.
func (z *Zone) authority(name string) string {
	if s, ok := z.suffix(name); ok && z.domains[s] {
		return s
	}
	return name
}

// bare finds the host that a name of one label stands for. Some are never a
// member's to take: hosts at home send them their traffic unasked.
func (z *Zone) bare(name string) *hostAddrs {
	if name == "" || strings.Contains(name, ".") || name == "wpad" || name == "isatap" {
		return nil
	}
	for _, s := range z.search {
		if h := z.hosts[name+"."+s]; h != nil {
			return h
		}
	}
	return nil
}

// ofDelegation are types by which a resolver that validates asks for a top-level
// domain: no host of ours stands in its way.
func ofDelegation(t dnsmessage.Type) bool {
	return t == dnsmessage.TypeNS || t == dnsmessage.TypeSOA || t == typeDS || t == typeDNSKEY
}

func (z *Zone) isHidden(name string) bool {
	return slices.ContainsFunc(z.hidden, func(h string) bool {
		if strings.HasPrefix(h, ".") {
			return strings.HasSuffix(name, h)
		}
		return name == h
	})
}

// anyIn reports whether an address of ours lies in the prefix.
func (z *Zone) anyIn(p netip.Prefix) bool {
	for a := range z.reverse {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// special are the names that the protocol keeps for itself: RFC 6761, 7686.
func special(name string, t dnsmessage.Type) (verdict, bool) {
	top := name[strings.LastIndexByte(name, '.')+1:]
	switch {
	case top == "invalid", top == "onion":
		return verdict{kind: nxdomain, zone: top}, true
	case top != "localhost":
		return verdict{}, false
	case t == dnsmessage.TypeA:
		return verdict{kind: found, zone: top, addrs: []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}}, true
	case t == dnsmessage.TypeAAAA:
		return verdict{kind: found, zone: top, addrs: []netip.Addr{netip.IPv6Loopback()}}, true
	}
	return verdict{kind: nodata, zone: top}, true
}

// fold is a name in the form of the maps: lower case, without a dot at its end.
func fold(s string) string {
	b := []byte(strings.TrimSuffix(s, "."))
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// parent is the name without its first label.
func parent(name string) string {
	_, rest, _ := strings.Cut(name, ".")
	return rest
}

// isName reports whether a name fits into a message: RFC 1035, 2.3.4.
func isName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for l := range strings.SplitSeq(s, ".") {
		if l == "" || len(l) > 63 {
			return false
		}
	}
	return true
}

func contains(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

func plain(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// askable reports whether there can be a resolver: not at the service's addresses,
// which lead to ourselves.
func askable(at netip.AddrPort) bool {
	services := host.ServiceAddrs()
	a := at.Addr()
	return at.Port() != 0 && !a.IsUnspecified() && !a.IsMulticast() && !slices.Contains(services[:], a)
}
