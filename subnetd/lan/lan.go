// Package lan knows who is on the LAN. It is pure: a Book merges what the hands in
// lan/sense hear, by MAC address, and tells what is known of each thing.
//
//	lease file   ─ Leases ─┐
//	DHCP, mDNS   ─ ParseDHCP, ParseMDNS ─ Heard ─┼─> Book ─> Things
//	kernel's neighbour table   ─ Neighbour ──────┘
//
// Packets give names and kinds, never addresses: anybody can send them. An address is
// a thing's by the kernel's neighbour table, or by a lease.
package lan

import (
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Source says who gave a name. The order is the priority.
type Source uint8

// The sources, the least trusted first.
const (
	None  Source = iota
	MDNS         // the thing, to everybody
	DHCP         // the thing, to a DHCP server
	Lease        // the DHCP server
	Owner        // the owner of this router
	sources
)

func (s Source) String() string {
	return [...]string{"", "mdns", "dhcp", "lease", "owner"}[s]
}

// Thing is what is known of one device on the LAN.
type Thing struct {
	MAC       string // its identity, in lower case with colons
	Private   bool   // a made-up MAC (RFC 9542, section 2.1.1): it may come back under another
	Name      string // the best known: printable text of at most 63 bytes, not always a DNS label
	NameFrom  Source
	Maker     string    // by the first half of the MAC
	Kind      string    // one of the kinds below; "": no telling
	Services  []string  // types of DNS-SD, such as _ipp._tcp, sorted
	Addresses []Address // IPv4 first; within a family the one to reach it by first
	Interface string    // where it was seen last
	Online    bool
	FirstSeen time.Time // zero: never, but the owner speaks of it
	LastSeen  time.Time
	Pinned    bool // the owner speaks of it
}

// Address is one of a thing's addresses.
type Address struct {
	Addr      netip.Addr
	Interface string    // "": known by a lease only
	Leased    bool      // by a lease that has not run out
	Known     bool      // the kernel's neighbour table has it at this MAC
	Silent    bool      // the kernel asked, and nobody answered: where the thing was last
	Seen      time.Time // zero: never, a lease says so
}

// Addrs are the thing's addresses but those that are valid on one link only.
func (t Thing) Addrs() []netip.Addr {
	out := []netip.Addr{}
	for _, a := range t.Addresses {
		if !a.Addr.IsLinkLocalUnicast() {
			out = append(out, a.Addr)
		}
	}
	return out
}

// SameButSeen reports whether nothing but the times at which it was seen differs.
func (t Thing) SameButSeen(o Thing) bool {
	return t.MAC == o.MAC && t.Private == o.Private && t.Name == o.Name && t.NameFrom == o.NameFrom &&
		t.Maker == o.Maker && t.Kind == o.Kind && t.Interface == o.Interface && t.Online == o.Online &&
		t.Pinned == o.Pinned && t.FirstSeen.Equal(o.FirstSeen) && slices.Equal(t.Services, o.Services) &&
		slices.EqualFunc(t.Addresses, o.Addresses, func(a, b Address) bool {
			b.Seen = a.Seen
			return a == b
		})
}

// MAC is the text of an address of one thing on Ethernet, in lower case with colons;
// "" for a group's address, for none, and for those of other links.
func MAC(b []byte) string {
	if len(b) != 6 || b[0]&1 != 0 || b[0]|b[1]|b[2]|b[3]|b[4]|b[5] == 0 {
		return ""
	}
	const digits = "0123456789abcdef"
	var out [17]byte
	for i, c := range b {
		out[3*i], out[3*i+1] = digits[c>>4], digits[c&15]
		if i < 5 {
			out[3*i+2] = ':'
		}
	}
	return string(out[:])
}

// macBytes reads what MAC wrote.
func macBytes(mac string) (b [6]byte, ok bool) {
	if len(mac) != 17 {
		return b, false
	}
	for i := range b {
		hi, lo := hexDigit(mac[3*i]), hexDigit(mac[3*i+1])
		if hi > 15 || lo > 15 || i < 5 && mac[3*i+2] != ':' {
			return b, false
		}
		b[i] = hi<<4 | lo
	}
	return b, true
}

func hexDigit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// valid reports whether the text is as MAC writes it.
func valid(mac string) bool {
	b, ok := macBytes(mac)
	return ok && MAC(b[:]) == mac
}

// private reports whether a MAC was made up by its device, not by a maker.
func private(mac string) bool {
	b, _ := macBytes(mac)
	return b[0]&2 != 0
}

const maxText = 63 // bytes of a name or a vendor class that are kept

// text makes what a stranger said fit to be shown: printable, one line, bounded.
func text(s string) string {
	var out strings.Builder
	for _, r := range strings.TrimSpace(s) {
		if out.Len()+utf8.RuneLen(r) > maxText {
			break
		}
		if r != utf8.RuneError && unicode.IsPrint(r) {
			out.WriteRune(r)
		}
	}
	return strings.TrimSpace(out.String())
}
