package firewall

import (
	"fmt"

	"subnetd/subnetd/host"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Ports are exchanged where both the host's firewall and conntrack know the outer
// one only:
//
//	in    input, behind the filters of others (0): what they do not let in to the
//	      outer port does not get here, and what is forwarded to a host behind us,
//	      which may use the same number, never does
//	out   output, before conntrack (-200): a hole punched by a packet of ours is
//	      open for WireGuard's, too
//
// WireGuard never sees what is taken out, and the checksums stay right.
const (
	behindFilters   nftables.ChainPriority = 200
	beforeConntrack nftables.ChainPriority = -310
)

// What is ours begins with one of these (tailscale.com/disco, RFC 8489); WireGuard's
// messages begin with their type and three zeros.
const (
	discoMagic = "TS\xf0\x9f\x92\xac"
	stunCookie = "\x21\x12\xa4\x42"
)

// sharing is the table that lets WireGuard and us have one port.
func sharing(s host.PortShare) (*table, error) {
	t := &table{name: host.NftPortTable}
	if s == (host.PortShare{}) {
		return t, nil
	}
	if s.Outer == 0 || s.Inner == 0 || s.Outer == s.Inner {
		return nil, fmt.Errorf("firewall: UDP ports %d and %d cannot be shared", s.Outer, s.Inner)
	}
	t.chains = []chain{
		{name: "ours", rules: ours(s.Inner)},
		{"in", &hook{nftables.ChainTypeFilter, *nftables.ChainHookInput, behindFilters}, inward(s)},
		{"out", &hook{nftables.ChainTypeFilter, *nftables.ChainHookOutput, beforeConntrack}, []match{
			rule(udpPort(sport, s.Inner), setUDP(sport, s.Outer)),
		}},
	}
	return t, nil
}

// inward. WireGuard's data leave after one comparison: each rule more costs a slow
// router a hundredth of what it carries. To the inner port they may come; the
// socket there does not care for them.
func inward(s host.PortShare) []match {
	return []match{
		rule(udpIs(payload, 4, 0, 0, 0), accept()),
		rule(udpPort(dport, s.Outer), goTo("ours")),
		rule(notIifname("lo"), udpPort(dport, s.Inner), drop()),
	}
}

// ours takes from what came to the outer port that which is not WireGuard's. The
// cookie of STUN alone does not tell: where it is, WireGuard's data have the
// receiver's number. A datagram without a checksum (IPv4 allows it) gets a wrong
// one with another port, so that goes again.
func ours(inner uint16) []match {
	disco := udpIs(payload, []byte(discoMagic)...)
	return []match{
		rule(isUDP(), udpIs(checksum, 0, 0), disco, setUDP(dport, inner), setUDP(checksum, 0), accept()),
		rule(isUDP(), disco, setUDP(dport, inner), accept()),
		rule(isUDP(), stunAnswer(), setUDP(dport, inner), accept()),
	}
}

// stunAnswer holds for success (0x0101) and error (0x0111).
func stunAnswer() match {
	return rule(match{
		loadUDP(payload, 2),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xef}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1, 1}},
	}, udpIs(payload+4, []byte(stunCookie)...))
}

// Offsets in a UDP datagram.
const (
	sport    = 0
	dport    = 2
	checksum = 6
	payload  = 8
)

func isUDP() match { return metaIs(expr.MetaKeyL4PROTO, protoUDP) }

// udpPort holds for UDP with the port at the offset.
func udpPort(offset uint32, port uint16) match {
	return rule(isUDP(), udpIs(offset, byte(port>>8), byte(port)))
}

// udpIs holds if those bytes are at the offset.
func udpIs(offset uint32, b ...byte) match {
	return match{loadUDP(offset, len(b)), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b}}
}

func loadUDP(offset uint32, n int) *expr.Payload {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: uint32(n)}
}

// setUDP writes two bytes at the offset and corrects the checksum.
func setUDP(offset uint32, value uint16) match {
	return match{
		&expr.Immediate{Register: 1, Data: []byte{byte(value >> 8), byte(value)}},
		writeUDP(offset),
	}
}

// writeUDP writes what register 1 has.
func writeUDP(offset uint32) *expr.Payload {
	return &expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader,
		Offset: offset, Len: 2, CsumType: expr.CsumTypeInet, CsumOffset: checksum}
}
