package uplink

import (
	"encoding/binary"
	"math"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/ndp"
)

// announced is a resolver that a router's advertisements name (RFC 8106, 5.1).
type announced struct {
	addr  netip.Addr
	until time.Duration
}

const (
	optionRDNSS   = 25
	mostAnnounced = 4 // RFC 8106, 5.3.1: three are enough
)

// hear takes an option of an advertisement; another than RDNSS changes nothing. Addresses of
// the link are those of the named interface. The ones that run out first make room.
func hear(have []announced, option []byte, name string, now time.Duration) []announced {
	if len(option) < 24 || option[0] != optionRDNSS || int(option[1])*8 != len(option) || len(option)%16 != 8 {
		return have
	}
	until := now + time.Duration(binary.BigEndian.Uint32(option[4:]))*time.Second
	if binary.BigEndian.Uint32(option[4:]) == math.MaxUint32 {
		until = never
	}
	out := slices.Clone(have)
	for b := option[8:]; len(b) > 0; b = b[16:] {
		a := netip.AddrFrom16([16]byte(b))
		if a.IsLinkLocalUnicast() {
			a = a.WithZone(name)
		}
		if !a.Is6() || a.Is4In6() || !a.IsGlobalUnicast() && !a.IsLinkLocalUnicast() {
			continue
		}
		out = slices.DeleteFunc(out, func(o announced) bool { return o.addr == a })
		if until > now {
			out = append(out, announced{a, until})
		}
	}
	for len(out) > mostAnnounced {
		first := slices.MinFunc(out, func(a, b announced) int { return int(min(1, max(-1, a.until-b.until))) })
		out = slices.DeleteFunc(out, func(o announced) bool { return o == first })
	}
	return out
}

// lasting are those that may be asked at a time, and when the first of them may not any more.
func lasting(all []announced, now time.Duration) (addrs []netip.Addr, next time.Duration) {
	next = never
	for _, a := range all {
		if a.until > now {
			addrs, next = append(addrs, a.addr), min(next, a.until)
		}
	}
	return addrs, next
}

// solicit asks for an advertisement, as the kernel does when a link comes; this program may
// have come after it. An address that is still being checked cannot ask: then the kernel will.
func solicit(index uint32) {
	ifi, err := net.InterfaceByIndex(int(index))
	if err != nil {
		return
	}
	c, _, err := ndp.Listen(ifi, ndp.LinkLocal)
	if err != nil {
		return
	}
	defer c.Close()
	_ = c.WriteTo(&ndp.RouterSolicitation{}, nil, netip.IPv6LinkLocalAllRouters())
}
