package dns

import (
	"net/netip"
	"strconv"
	"strings"
)

// The addresses of nodes and devices (tailscale.com/net/tsaddr).
var (
	meshV4 = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10)
	meshV6 = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0}), 48)
)

const (
	arpaV4 = "in-addr.arpa"
	arpaV6 = "ip6.arpa"
)

// prefixOf reads a folded name below in-addr.arpa or ip6.arpa: an address, or the
// prefix that all names below it are in.
func prefixOf(name string) (netip.Prefix, bool) {
	if s, ok := strings.CutSuffix(name, "."+arpaV4); ok {
		return prefixOf4(s)
	}
	if s, ok := strings.CutSuffix(name, "."+arpaV6); ok {
		return prefixOf6(s)
	}
	return netip.Prefix{}, false
}

func prefixOf4(s string) (netip.Prefix, bool) {
	var b [4]byte
	n := 0
	for s != "" {
		at := strings.LastIndexByte(s, '.')
		label := s[at+1:]
		v, err := strconv.ParseUint(label, 10, 8)
		if err != nil || n == len(b) || at == 0 || label[0] == '0' && label != "0" || label[0] == '+' {
			return netip.Prefix{}, false
		}
		b[n] = byte(v)
		n++
		s = s[:max(at, 0)]
	}
	return netip.PrefixFrom(netip.AddrFrom4(b), 8*n), n > 0
}

func prefixOf6(s string) (netip.Prefix, bool) {
	var b [16]byte
	n := 0
	for i := len(s) - 1; i >= 0; i -= 2 { // one digit to a label
		v := strings.IndexByte("0123456789abcdef", s[i])
		if v < 0 || n == 2*len(b) || i > 0 && s[i-1] != '.' || i == 1 {
			return netip.Prefix{}, false
		}
		b[n/2] |= byte(v) << (4 * (1 - n%2))
		n++
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 4*n), n > 0
}

// isPrivate reports whether reverse names of that address are answered at home or
// nowhere: RFC 6303.
func isPrivate(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLinkLocalUnicast() || a.IsLoopback()
}
