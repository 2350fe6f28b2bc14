package underlay

import (
	"encoding/binary"
	"net/netip"
)

// The messages of NAT-PMP (RFC 6886) and PCP (RFC 6887), by which a router is
// asked to forward a UDP port to us. Both share one port of the router; the
// first byte tells them apart.

type mapProto byte

const (
	protoPMP mapProto = 0 // these two are the version bytes on the wire
	protoPCP mapProto = 2
)

const (
	opExternal = 0 // NAT-PMP: what is the router's outer address?
	opAnnounce = 0 // PCP: are you there, and since when?
	opMap      = 1 // both; in NAT-PMP it is "map UDP"
	opAnswer   = 128

	udpProtocol = 17

	resultOK             = 0
	resultUnsuppVersion  = 1  // both protocols
	resultPMPNetwork     = 3  // NAT-PMP: the router has no outer address now
	resultPMPResources   = 4  // NAT-PMP
	pmpErrorSize         = 8  // an answer that refuses may end after the epoch
	pmpExternalSize      = 12 // answer
	pmpMapSize           = 16 // answer
	pcpHeaderSize        = 24
	pcpMapSize           = 60 // header and MAP, both ways
	pcpLargest           = 1100
	pcpSuggestAnyAddress = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x00\x00\x00\x00"
)

// mapNonce is the number by which PCP knows whose a mapping is.
type mapNonce [12]byte

// mapRequest asks for a mapping. Lifetime 0 deletes it.
type mapRequest struct {
	nonce    mapNonce
	client   netip.Addr // our address as the router sees it; PCP only
	internal uint16
	external netip.AddrPort // what we would like; the address may be invalid
	lifetime uint32         // seconds
}

// mapAnswer is what a router says, in either protocol.
type mapAnswer struct {
	proto    mapProto
	op       byte
	result   uint16
	epoch    uint32 // seconds since the router began to remember
	lifetime uint32 // seconds; of a PCP refusal: how long it will last
	nonce    mapNonce
	internal uint16
	external netip.AddrPort // NAT-PMP gives address and port in two answers
}

// pmpExternal asks for the router's outer address.
func pmpExternal() []byte { return []byte{byte(protoPMP), opExternal} }

func (r mapRequest) pmp() []byte {
	b := []byte{byte(protoPMP), opMap, 0, 0}
	b = binary.BigEndian.AppendUint16(b, r.internal)
	port := r.external.Port()
	if r.lifetime == 0 {
		port = 0 // RFC 6886 3.4: a deletion names no outer port
	}
	b = binary.BigEndian.AppendUint16(b, port)
	return binary.BigEndian.AppendUint32(b, r.lifetime)
}

func (r mapRequest) pcp() []byte {
	b := pcpHeader(opMap, r.lifetime, r.client)
	b = append(b, r.nonce[:]...)
	b = append(b, udpProtocol, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, r.internal)
	if r.lifetime == 0 {
		b = append(b, 0, 0)
		return append(b, pcpSuggestAnyAddress...)
	}
	b = binary.BigEndian.AppendUint16(b, r.external.Port())
	if !r.external.Addr().Is4() {
		return append(b, pcpSuggestAnyAddress...)
	}
	a := r.external.Addr().As16()
	return append(b, a[:]...)
}

// pcpAnnounce asks a PCP router for nothing but its epoch.
func pcpAnnounce(client netip.Addr) []byte { return pcpHeader(opAnnounce, 0, client) }

func pcpHeader(op byte, lifetime uint32, client netip.Addr) []byte {
	b := make([]byte, 0, pcpMapSize)
	b = append(b, byte(protoPCP), op, 0, 0)
	b = binary.BigEndian.AppendUint32(b, lifetime)
	a := client.As16() // IPv4 goes as ::ffff:a.b.c.d
	return append(b, a[:]...)
}

// parseMapAnswer reads an answer; ok is false for everything else. What
// follows after the known fields is ignored, so that options do no harm.
func parseMapAnswer(b []byte) (a mapAnswer, ok bool) {
	if len(b) < pmpErrorSize || len(b) > pcpLargest || b[1]&opAnswer == 0 {
		return mapAnswer{}, false
	}
	switch mapProto(b[0]) {
	case protoPMP:
		return parsePMP(b)
	case protoPCP:
		return parsePCP(b)
	}
	return mapAnswer{}, false
}

func parsePMP(b []byte) (a mapAnswer, ok bool) {
	a = mapAnswer{proto: protoPMP, op: b[1] &^ opAnswer,
		result: binary.BigEndian.Uint16(b[2:]), epoch: binary.BigEndian.Uint32(b[4:])}
	switch {
	case a.op != opExternal && a.op != opMap:
		return mapAnswer{}, false
	case a.result != resultOK && (a.op == opExternal || len(b) < pmpMapSize):
		return a, true
	case a.op == opExternal && len(b) >= pmpExternalSize:
		a.external = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[8:12])), 0)
		return a, true
	case a.op == opMap && len(b) >= pmpMapSize:
		a.internal = binary.BigEndian.Uint16(b[8:])
		a.external = netip.AddrPortFrom(netip.Addr{}, binary.BigEndian.Uint16(b[10:]))
		a.lifetime = binary.BigEndian.Uint32(b[12:])
		return a, true
	}
	return mapAnswer{}, false
}

func parsePCP(b []byte) (a mapAnswer, ok bool) {
	if len(b) < pcpHeaderSize || len(b)%4 != 0 {
		return mapAnswer{}, false
	}
	a = mapAnswer{proto: protoPCP, op: b[1] &^ opAnswer, result: uint16(b[3]),
		lifetime: binary.BigEndian.Uint32(b[4:]), epoch: binary.BigEndian.Uint32(b[8:])}
	switch {
	case a.op == opAnnounce:
		return a, true
	case a.op != opMap || len(b) < pcpMapSize || b[36] != udpProtocol:
		return mapAnswer{}, false
	}
	a.nonce = mapNonce(b[24:36])
	a.internal = binary.BigEndian.Uint16(b[40:])
	addr := netip.AddrFrom16([16]byte(b[44:60])).Unmap()
	a.external = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[42:]))
	return a, true
}
