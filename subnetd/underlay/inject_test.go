package underlay

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
)

// onesComplement is the checksum as RFC 1071 writes it: b must sum to all ones.
func onesComplement(b []byte) uint16 {
	if len(b)%2 == 1 {
		b = append(bytes.Clone(b), 0)
	}
	var sum uint64
	for i := 0; i < len(b); i += 2 {
		sum += uint64(b[i])<<8 | uint64(b[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// The packets we make are what a sender at that address would have sent.
func TestForgedPackets(t *testing.T) {
	v4from, v4to := netip.MustParseAddrPort("203.0.113.7:700"), netip.MustParseAddrPort("127.0.0.1:41001")
	v6from, v6to := netip.MustParseAddrPort("[2001:db8::7]:700"), netip.MustParseAddrPort("[2001:db8::1]:41001")
	for size := range 300 {
		data := make([]byte, size+size%7*200)
		for i := range data {
			data[i] = byte(i*31 + size*17)
		}
		check(t, packetV4(nil, v4from, v4to, data), v4from, v4to, data)
		check(t, packetV6(nil, v6from, v6to, data), v6from, v6to, data)
	}
	// A sum of zero must not be said, for that would mean none.
	zero := []byte{0, 0}
	p := packetV4(nil, v4from, v4to, zero)
	copy(zero, p[headerV4+6:])
	p = packetV4(nil, v4from, v4to, zero)
	if got := binary.BigEndian.Uint16(p[headerV4+6:]); got != 0xffff {
		t.Errorf("checksum %#x, want 0xffff", got)
	}
	check(t, p, v4from, v4to, zero)
}

func check(t *testing.T, p []byte, from, to netip.AddrPort, data []byte) {
	t.Helper()
	src, dst := from.Addr().AsSlice(), to.Addr().AsSlice()
	header := headerV6
	if len(src) == 4 {
		header = headerV4
	}
	udp := p[header:]
	pseudo := append(append(bytes.Clone(src), dst...), 0, 17, byte(len(udp)>>8), byte(len(udp)))
	switch {
	case header == headerV4 && (p[0] != 0x45 || int(binary.BigEndian.Uint16(p[2:])) != len(p) || p[9] != 17 || !bytes.Equal(p[12:20], append(src, dst...))):
		t.Fatalf("IPv4 header %x", p[:header])
	case header == headerV6 && (p[0] != 0x60 || int(binary.BigEndian.Uint16(p[4:])) != len(udp) || p[6] != 17 || !bytes.Equal(p[8:40], append(src, dst...))):
		t.Fatalf("IPv6 header %x", p[:header])
	case binary.BigEndian.Uint16(udp) != from.Port(), binary.BigEndian.Uint16(udp[2:]) != to.Port(), int(binary.BigEndian.Uint16(udp[4:])) != len(udp):
		t.Fatalf("UDP header %x", udp[:8])
	case !bytes.Equal(udp[8:], data):
		t.Fatal("other data")
	case onesComplement(append(pseudo, udp...)) != 0xffff || binary.BigEndian.Uint16(udp[6:]) == 0:
		t.Fatalf("checksum of %d bytes is wrong", len(data))
	}
}
