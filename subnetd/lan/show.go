package lan

import (
	"net/netip"
	"slices"
	"sort"
	"time"
)

// Things is all that is known, sorted by MAC.
func (b *Book) Things(now time.Time) []Thing {
	out := make([]Thing, 0, len(b.things))
	for mac, t := range b.things {
		out = append(out, t.show(now, mac))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].MAC < out[j].MAC })
	return out
}

// Next is the next moment at which the passing of time alone changes Things; zero: none.
func (b *Book) Next(now time.Time) time.Time {
	var next time.Time
	at := func(when time.Time) {
		if when.After(now) && (next.IsZero() || when.Before(next)) {
			next = when
		}
	}
	for mac, t := range b.things {
		if t.online(now, mac) {
			at(t.until(now, mac))
		}
	}
	for _, p := range b.places {
		if p.valid(now) {
			at(p.till)
		} else if p.addr.Is6() && !p.known {
			at(p.seen.Add(stays))
		}
	}
	return next
}

// show makes a Thing of what is known.
func (t *thing) show(now time.Time, mac string) Thing {
	out := Thing{
		MAC: mac, Private: private(mac), Maker: t.maker, Kind: t.kind, Services: slices.Clone(t.services),
		Interface: t.iface, Online: t.online(now, mac), FirstSeen: t.first, LastSeen: t.last, Pinned: t.pinned,
	}
	for s := Owner; s > None && out.Name == ""; s-- {
		if t.names[s] != "" {
			out.Name, out.NameFrom = t.names[s], s
		}
	}
	for _, p := range t.own(now, mac) {
		out.Addresses = append(out.Addresses, Address{
			Addr: p.addr, Interface: p.iface, Leased: p.valid(now) && p.holder == mac, Known: p.known, Silent: p.silent, Seen: p.seen,
		})
	}
	return out
}

// own is the places that are the thing's now, the best first. Of those of IPv4 that neither
// the kernel nor a lease knows any more, that is the last one, if it has no other.
func (t *thing) own(now time.Time, mac string) []*place {
	var out []*place
	for _, p := range t.places {
		gone := p.addr.Is6() && !p.known && !p.valid(now) && !now.Before(p.seen.Add(stays))
		if p.owner(now) == mac && !gone {
			out = append(out, p)
		}
	}
	sort.Slice(out, func(i, j int) bool { return better(now, mac, out[i], out[j]) })
	has := slices.ContainsFunc(out, func(p *place) bool { return p.addr.Is4() && (p.known || p.valid(now)) })
	return slices.DeleteFunc(out, func(p *place) bool {
		left := p.addr.Is4() && !p.known && !p.valid(now) && has
		has = has || p.addr.Is4()
		return left
	})
}

// online reports whether the thing gave a sign of life lately, and did not leave the
// kernel without an answer since.
func (t *thing) online(now time.Time, mac string) bool {
	return !t.until(now, mac).IsZero()
}

// until is when the thing is no longer online, if it gives no sign of life till then;
// zero: it is not.
func (t *thing) until(now time.Time, mac string) time.Time {
	var seen time.Time
	if t.spoke.After(t.quiet) {
		seen = t.spoke
	}
	for _, p := range t.places {
		if !p.silent && p.mac == mac && p.owner(now) == mac && p.seen.After(seen) {
			seen = p.seen
		}
	}
	if end := seen.Add(Fresh); !seen.IsZero() && now.Before(end) {
		return end
	}
	return time.Time{}
}

// better is the order of a thing's addresses: the first is the one to reach it by. That is
// one that stays: a daily address of IPv6 comes after the one it has for long.
func better(now time.Time, mac string, a, b *place) bool {
	if a.addr.Is4() != b.addr.Is4() {
		return a.addr.Is4()
	}
	for _, first := range []struct{ a, b bool }{
		{!a.addr.IsLinkLocalUnicast(), !b.addr.IsLinkLocalUnicast()},
		{!a.silent, !b.silent},
		{a.valid(now) && a.holder == mac, b.valid(now) && b.holder == mac},
		{ofMAC(a.addr, mac), ofMAC(b.addr, mac)},
		{a.known, b.known},
	} {
		if first.a != first.b {
			return first.a
		}
	}
	if a.valid(now) && a.holder == mac && !a.leased.Equal(b.leased) {
		return a.leased.After(b.leased)
	}
	if !a.since.Equal(b.since) {
		return a.since.After(b.since) == a.addr.Is4()
	}
	return a.addr.Less(b.addr)
}

// ofMAC reports whether an address of IPv6 was made of the MAC (RFC 4291, appendix A).
func ofMAC(a netip.Addr, mac string) bool {
	m, ok := macBytes(mac)
	if !ok || !a.Is6() {
		return false
	}
	b := a.As16()
	return [8]byte(b[8:]) == [8]byte{m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]}
}
