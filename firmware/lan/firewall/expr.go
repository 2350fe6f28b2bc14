package firewall

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Pieces of rules. Each compares or does one thing, by register 1.

func rule(pieces ...[]expr.Any) []expr.Any { return slices.Concat(pieces...) }

func accept() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept}}
}

func equal(value []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value} }

func from(name string) []expr.Any { return iface(expr.MetaKeyIIFNAME, name) }
func to(name string) []expr.Any   { return iface(expr.MetaKeyOIFNAME, name) }

// iface compares an interface's name; one that ends with "*" is how names begin.
func iface(key expr.MetaKey, name string) []expr.Any {
	value := []byte(strings.TrimSuffix(name, "*"))
	if !strings.HasSuffix(name, "*") {
		value = append(value, make([]byte, unix.IFNAMSIZ-len(value))...)
	}
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, equal(value)}
}

func proto(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{p})}
}

func port(p byte, number uint16) []expr.Any {
	return append(proto(p), transport(2, 2), equal(binary.BigEndian.AppendUint16(nil, number)))
}

func transport(offset, size uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: size}
}

func icmp4(kind byte) []expr.Any {
	return rule(family(unix.NFPROTO_IPV4), proto(unix.IPPROTO_ICMP), []expr.Any{transport(0, 1), equal([]byte{kind})})
}

func icmp6(kind byte) []expr.Any {
	return rule(family(unix.NFPROTO_IPV6), proto(unix.IPPROTO_ICMPV6), []expr.Any{transport(0, 1), equal([]byte{kind})})
}

func family(f byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{f})}
}

// linkLocal: the sender is on this link.
func linkLocal() []expr.Any {
	p := netip.MustParsePrefix("fe80::/10")
	return append(family(unix.NFPROTO_IPV6), sender(8, p)...)
}

// source compares the sender of IPv4.
func source(p netip.Prefix) []expr.Any { return append(family(unix.NFPROTO_IPV4), sender(12, p)...) }

// sender compares the address at a place of the header.
func sender(offset uint32, p netip.Prefix) []expr.Any {
	bits := p.Addr().BitLen()
	size := uint32(bits / 8)
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: net.CIDRMask(p.Bits(), bits), Xor: make([]byte, size)},
		equal(p.Masked().Addr().AsSlice())}
}

func state(bits uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}}
}

func atMost(perSecond uint64, burst uint32) []expr.Any {
	return []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: perSecond, Unit: expr.LimitTimeSecond, Burst: burst}}
}

// syn: the first segment of a connection, which says how large those of the other side
// may be.
func syn() []expr.Any {
	return append(proto(unix.IPPROTO_TCP), transport(13, 1),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x06}, Xor: []byte{0}}, equal([]byte{0x02}))
}

// clamp writes into it what the way can carry.
func clamp() []expr.Any {
	return []expr.Any{&expr.Rt{Register: 1, Key: expr.RtTCPMSS}, &expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt}}
}
