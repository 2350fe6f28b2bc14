package lan

import (
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Given is one lease of a DHCP server.
type Given struct {
	MAC       string
	Guess     bool // the MAC is from a DUID, or not known
	Addr      netip.Addr
	Name      string    // "": none was told
	Interface string    // "": the file does not say
	Expires   time.Time // zero: never
}

// ParseLeases reads a lease file of dnsmasq or odhcpd. Lines that are not as theirs are,
// and a last one that is not ended, are passed over: the file may be half written, and
// clients' names are in it.
//
//	dnsmasq: 1700000000 02:00:00:00:00:01 192.168.1.50 printer 01:02:00:00:00:00:01
//	         1700000000 12345678 fd00::50 printer 00:03:00:01:02:00:00:00:00:01
//	odhcpd:  # br-lan 020000000001 ipv4 printer 1700000000 c0a80132 32 192.168.1.50/32
//	         # br-lan 00030001020000000001 1 printer 1700000000 50 128 fd00::50/128
func ParseLeases(data string) []Given {
	var out []Given
	for len(out) < maxLeases {
		line, rest, ended := strings.Cut(data, "\n")
		if !ended {
			break
		}
		data = rest
		f := strings.Fields(line)
		switch {
		case len(f) >= 9 && f[0] == "#":
			out = odhcpd(out, f)
		case len(f) == 5 || len(f) == 4: // clients without an identifier have "*" there
			out = dnsmasq(out, f)
		}
	}
	return out[:min(len(out), maxLeases)]
}

// dnsmasq reads: expiry, MAC or IAID, address, name, client identifier or DUID.
func dnsmasq(out []Given, f []string) []Given {
	addr, err := netip.ParseAddr(f[2])
	till, ok := expiry(f[0])
	if err != nil || !ok || !usable(addr) {
		return out
	}
	g := Given{Addr: addr, Name: leaseName(f[3], "*"), Expires: till}
	if addr.Is4() {
		if g.MAC = mac(f[1]); g.MAC == "" {
			return out
		}
	} else if g.Guess = true; len(f) == 5 {
		g.MAC = ofDUID(strings.ReplaceAll(f[4], ":", ""))
	}
	return append(out, g)
}

// odhcpd reads: #, interface, MAC or DUID, "ipv4" or IAID, name, expiry, number, length,
// addresses with their lengths. A whole prefix was given to a router, not to a thing.
func odhcpd(out []Given, f []string) []Given {
	till, ok := expiry(f[5])
	if !ok {
		return out
	}
	g := Given{Name: leaseName(f[4], "-"), Interface: f[1], Expires: till}
	if v4 := f[3] == "ipv4"; v4 {
		g.MAC = mac(f[2])
	} else {
		g.MAC, g.Guess = ofDUID(f[2]), true
	}
	for _, s := range f[8:] {
		p, err := netip.ParsePrefix(s)
		if err != nil || !p.IsSingleIP() || p.Addr().Is4() != !g.Guess || !usable(p.Addr()) || !g.Guess && g.MAC == "" {
			continue
		}
		g.Addr = p.Addr()
		out = append(out, g)
	}
	return out
}

// expiry reads a moment in seconds since 1970. 0 of dnsmasq and -1 of odhcpd are never;
// small ones are lengths, by a dnsmasq that has no clock.
func expiry(s string) (time.Time, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	const clock = 1 << 30 // 2004
	if err != nil || n < -1 || n > 1<<40 {
		return time.Time{}, false
	}
	if n < clock {
		return time.Time{}, true
	}
	return time.Unix(n, 0), true
}

// leaseName reads a name. odhcpd marks one that it does not trust, and quotes bytes.
func leaseName(s, none string) string {
	if s == none || strings.Contains(s, `\x`) {
		return ""
	}
	return text(s)
}

// mac reads a MAC as the two write it: with colons or without, older ones of odhcpd
// without leading zeros.
func mac(s string) string {
	if b, err := hex.DecodeString(s); err == nil {
		return MAC(b)
	}
	parts := strings.Split(s, ":")
	b := make([]byte, 0, 6)
	for _, p := range parts[:min(len(parts), 7)] {
		n, err := strconv.ParseUint(p, 16, 8)
		if err != nil {
			return ""
		}
		b = append(b, byte(n))
	}
	return MAC(b)
}

// ofDUID is the MAC in a DUID in hex: that of type 1 has a time before it, type 3 has not
// (RFC 8415, section 11). Both are followed by nothing.
func ofDUID(s string) string {
	b, err := hex.DecodeString(s)
	switch {
	case err != nil || len(b) < 4 || b[0] != 0 || b[2] != 0 || b[3] != 1:
		return ""
	case b[1] == 1 && len(b) == 14:
		return MAC(b[8:])
	case b[1] == 3 && len(b) == 10:
		return MAC(b[4:])
	}
	return ""
}
