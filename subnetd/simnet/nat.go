package simnet

import (
	"net/netip"
	"time"
)

// Part is how much of the other side's address counts, in the words of
// RFC 4787, sections 4.1 and 5.
type Part int

// The parts of an address.
const (
	Nothing        Part = iota // endpoint-independent
	Address                    // address-dependent
	AddressAndPort             // address- and port-dependent
)

// of returns the part of a that counts.
func (p Part) of(a netip.AddrPort) netip.AddrPort {
	switch p {
	case Nothing:
		return netip.AddrPort{}
	case Address:
		return netip.AddrPortFrom(a.Addr(), 0)
	}
	return a
}

// Kind says how a router treats what passes. IPv6 is never translated, but
// filtered like the rest.
type Kind struct {
	Name      string
	Mapping   Part          // when a new port is taken
	Filtering Part          // who may answer
	Plain     bool          // IPv4 is not translated either: only a firewall
	Hairpin   bool          // inside may speak to inside by outside addresses
	NoUDP     bool          // nothing passes
	Timeout   time.Duration // of a mapping through which nothing goes out; 0: never
}

// FullCone lets everybody in through a mapping.
func FullCone() Kind { return Kind{Name: "full cone"} }

// Restricted lets in every port of an address that was sent to.
func Restricted() Kind { return Kind{Name: "restricted", Filtering: Address} }

// Easy is the usual home router: one port per socket, and only those that were
// sent to may answer.
func Easy() Kind { return Kind{Name: "easy", Filtering: AddressAndPort} }

// Hard takes another port for each address and port that is sent to.
func Hard() Kind { return Kind{Name: "hard", Mapping: AddressAndPort, Filtering: AddressAndPort} }

// Firewall does not translate, but only those that were sent to may answer.
func Firewall() Kind { return Kind{Name: "firewall", Filtering: AddressAndPort, Plain: true} }

// Blocked lets no UDP pass.
func Blocked() Kind { return Kind{Name: "blocked", NoUDP: true} }

// NAT is the memory of a router. It has no clock: time is given to it.
type NAT struct {
	Kind

	wan  netip.Addr
	out  map[flow]*mapping
	in   map[netip.AddrPort]*mapping
	port uint16 // last one taken
}

// flow is what one mapping is for.
type flow struct{ inner, to netip.AddrPort }

type mapping struct {
	flow  flow
	outer netip.AddrPort
	used  time.Time                    // something went out last
	sent  map[netip.AddrPort]time.Time // when, to whom it matters for filtering
}

// NewNAT returns a NAT of that kind whose outer address is wan.
func NewNAT(k Kind, wan netip.Addr) *NAT {
	n := &NAT{Kind: k, port: 1024}
	n.Reset(wan)
	return n
}

// Reset forgets every mapping, as after a restart, and sets the outer address.
func (n *NAT) Reset(wan netip.Addr) {
	n.wan, n.out, n.in = wan, map[flow]*mapping{}, map[netip.AddrPort]*mapping{}
}

// Out returns the address under which what from sends to to goes out.
func (n *NAT) Out(now time.Time, from, to netip.AddrPort) (netip.AddrPort, bool) {
	if n.NoUDP {
		return netip.AddrPort{}, false
	}
	plain := n.Plain || from.Addr().Is6()
	f := flow{inner: from}
	if !plain {
		f.to = n.Mapping.of(to)
	}
	m := n.out[f]
	if m == nil || n.over(now, m.used) {
		if m != nil {
			delete(n.in, m.outer)
		}
		m = &mapping{flow: f, outer: from, sent: map[netip.AddrPort]time.Time{}}
		if !plain {
			m.outer = n.free()
		}
		n.out[f], n.in[m.outer] = m, m
	}
	m.used = now
	m.sent[n.Filtering.of(to)] = now
	return m.outer, true
}

// In returns who gets what from sends to the outer address to. What comes in
// does not keep a mapping alive: RFC 4787 leaves that open, and this is worse.
func (n *NAT) In(now time.Time, from, to netip.AddrPort) (netip.AddrPort, bool) {
	m := n.in[to]
	if n.NoUDP || m == nil || n.over(now, m.used) {
		return netip.AddrPort{}, false
	}
	sent, ok := m.sent[n.Filtering.of(from)]
	return m.flow.inner, ok && !n.over(now, sent)
}

func (n *NAT) over(now, used time.Time) bool {
	return n.Timeout > 0 && now.Sub(used) >= n.Timeout
}

// free takes the next port that nobody has.
func (n *NAT) free() netip.AddrPort {
	for {
		n.port = max(n.port+1, 1024)
		if a := netip.AddrPortFrom(n.wan, n.port); n.in[a] == nil {
			return a
		}
	}
}
