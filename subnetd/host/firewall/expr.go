package firewall

import (
	"net"
	"net/netip"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// match is a part of a rule: expressions that either hold or end the rule.
type match []expr.Any

// rule joins matches and a verdict.
func rule(parts ...match) match {
	var out match
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func verdict(kind expr.VerdictKind, chain string) match {
	return match{&expr.Verdict{Kind: kind, Chain: chain}}
}

func accept() match             { return verdict(expr.VerdictAccept, "") }
func drop() match               { return verdict(expr.VerdictDrop, "") }
func back() match               { return verdict(expr.VerdictReturn, "") }
func jump(chain string) match   { return verdict(expr.VerdictJump, chain) }
func goTo(chain string) match   { return verdict(expr.VerdictGoto, chain) }
func masquerade() match         { return match{&expr.Masq{}} }
func iifname(name string) match { return ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, name) }
func oifname(name string) match { return ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, name) }

func notIifname(name string) match { return ifname(expr.MetaKeyIIFNAME, expr.CmpOpNeq, name) }
func notOifname(name string) match { return ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq, name) }

func ifname(key expr.MetaKey, op expr.CmpOp, name string) match {
	return match{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: ifnameKey(name)},
	}
}

// ifnameKey is a name as the kernel compares it: 16 bytes, zero padded.
func ifnameKey(name string) []byte {
	return append([]byte(name), make([]byte, 16)...)[:16]
}

// iifIn holds if the packet came in by an interface of the set.
func iifIn(set string) match {
	return match{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	}
}

// state holds if conntrack's state of the packet is one of the bits.
func state(bits uint32) match { return conntrack(expr.CtKeySTATE, bits) }

// translatedFlow holds if the flow got another destination.
func translatedFlow() match {
	const dstNAT = 1 << 5 // enum ip_conntrack_status
	return conntrack(expr.CtKeySTATUS, dstNAT)
}

func conntrack(key expr.CtKey, bits uint32) match {
	return match{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// Directions of a packet within its flow, enum ip_conntrack_dir.
const (
	original = 0
	reply    = 1
)

func direction(d byte) match {
	return match{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{d}},
	}
}

func metaIs(key expr.MetaKey, value byte) match {
	return match{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{value}},
	}
}

// own holds for the packets of our own sockets and of the kernel's WireGuard.
func own() match {
	return match{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(host.MarkMask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(host.Mark)},
	}
}

// family is what differs between IPv4 and IPv6.
type family struct {
	v6       bool
	digit    string // in names of sets and chains
	proto    byte   // NFPROTO_*
	addrType nftables.SetDatatype
	size     uint32 // bytes of an address
	src, dst uint32 // offsets in the header
	l4, port uint32 // registers after an address in register 1
	icmp     byte
	echo     byte // ICMP type of an echo request
}

func families() [2]family {
	return [2]family{
		{false, "4", unix.NFPROTO_IPV4, nftables.TypeIPAddr, 4, 12, 16,
			unix.NFT_REG32_01, unix.NFT_REG32_02, protoICMP, 8},
		{true, "6", unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 16, 8, 24,
			unix.NFT_REG32_04, unix.NFT_REG32_05, protoICMPv6, 128},
	}
}

// addr loads the address at an offset of the header into register 1.
func (f family) addr(offset uint32) match {
	return rule(metaIs(expr.MetaKeyNFPROTO, f.proto), match{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size},
	})
}

// addrIn holds if the address at the offset is in the set.
func (f family) addrIn(offset uint32, set string) match {
	return rule(f.addr(offset), match{&expr.Lookup{SourceRegister: 1, SetName: set}})
}

// among is addrIn for a set of these ranges, and whether there are any. One prefix is
// compared, which takes a fifth of a lookup.
func (f family) among(offset uint32, set string, ranges []mesh.Range) (m match, some bool) {
	if len(ranges) == 1 {
		if p, ok := prefixOf(ranges[0]); ok {
			return f.addrOf(offset, p), true
		}
	}
	return f.addrIn(offset, set), len(ranges) > 0
}

// addrOf holds if the address at the offset is the prefix's, which is of the family.
func (f family) addrOf(offset uint32, p netip.Prefix) match {
	if p.Bits() == 0 {
		return metaIs(expr.MetaKeyNFPROTO, f.proto)
	}
	m := f.addr(offset)
	if !p.IsSingleIP() {
		m = append(m, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.size,
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, f.size)})
	}
	return append(m, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()})
}

// addrNotIn holds if it is of the family and not in the set.
func (f family) addrNotIn(offset uint32, set string) match {
	return rule(f.addr(offset), match{&expr.Lookup{SourceRegister: 1, SetName: set, Invert: true}})
}

// addrMap takes the verdict that the map has for the address at the offset.
func (f family) addrMap(offset uint32, set string) match {
	return rule(f.addr(offset), match{&expr.Lookup{SourceRegister: 1, IsDestRegSet: true, SetName: set}})
}

// tripleIn holds if address . protocol . port is in the set. For protocols
// without ports the two bytes are something else; their boxes have all ports.
func (f family) tripleIn(addr, port uint32, set string) match {
	return rule(f.addr(addr), match{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: f.l4},
		&expr.Payload{DestRegister: f.port, Base: expr.PayloadBaseTransportHeader, Offset: port, Len: 2},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	})
}

// translated gives the packet the destination that the map has for its own.
func (f family) translated(set string) match {
	return rule(f.addr(f.dst), match{
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: set},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: 1},
	})
}

// toPort gives the packet another destination port and leaves the address, so
// that whoever listens sees which one was meant.
func toPort(port uint16) match {
	return match{
		&expr.Immediate{Register: 1, Data: []byte{byte(port >> 8), byte(port)}},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_INET, RegProtoMin: 1, Specified: true},
	}
}

// tcpPortIn holds for TCP to a port of the set.
func tcpPortIn(set string) match {
	const dport = 2
	return rule(metaIs(expr.MetaKeyL4PROTO, protoTCP), match{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: dport, Len: 2},
		&expr.Lookup{SourceRegister: 1, SetName: set},
	})
}

// notEcho holds for ICMP of the family other than an echo request.
func (f family) notEcho() match {
	return rule(metaIs(expr.MetaKeyNFPROTO, f.proto), metaIs(expr.MetaKeyL4PROTO, f.icmp), match{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{f.echo}},
	})
}

// maybeSYN holds for TCP SYNs and, as it does not look at the protocol, for some of what is
// no TCP.
func maybeSYN() match {
	return match{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlags, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpSYN | tcpRST}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{tcpSYN}},
	}
}

// Of TCP's header.
const (
	tcpFlags = 13 // offset
	tcpSYN   = 0x02
	tcpRST   = 0x04
)

// clampMSS sets the MSS of TCP SYNs to what the route's MTU carries, whatever
// the family; the kernel takes the smaller MTU of the routes there and back.
func clampMSS() match {
	const optMSS, mssOffset = 2, 2
	return rule(metaIs(expr.MetaKeyL4PROTO, protoTCP), maybeSYN(), match{
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: optMSS, Offset: mssOffset, Len: 2, Op: expr.ExthdrOpTcpopt},
	})
}
