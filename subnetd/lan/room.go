package lan

import (
	"net/netip"
	"slices"
	"sort"
	"time"
)

// This file keeps the Book within its bounds. Who gives way to a newcomer: never what the
// owner speaks of; what was around for a day or has a lease only to that; all others to
// what has a lease, or to anybody after they were not heard for a while. So a flood of
// made-up MACs fills what is free, and then finds the door shut.

// admit returns the thing with the MAC, which may be a new one; nil if there is no room.
func (b *Book) admit(now time.Time, mac string, by Source) *thing {
	t := b.things[mac]
	if t != nil {
		return t
	}
	if len(b.things) >= maxThings && !b.makeRoom(now, by) {
		return nil
	}
	t = &thing{maker: Maker(mac)}
	t.guess()
	b.things[mac] = t
	return t
}

// makeRoom drops things until there is room for one, and reports whether there is.
func (b *Book) makeRoom(now time.Time, by Source) bool {
	if since := now.Sub(b.forgot); since < 0 || since >= fullRest {
		b.forgot = now
		b.forget(now)
	}
	return len(b.things) < maxThings || by >= Lease && b.dropLeast(now, by)
}

// forget drops everything that may be.
func (b *Book) forget(now time.Time) {
	for mac, t := range b.things {
		long := forgets
		switch {
		case t.pinned || t.leased(now, mac):
			continue
		case !t.settled():
			long = youth
		case private(mac):
			long = passing
		}
		if now.Sub(t.last) > long {
			b.drop(mac)
		}
	}
}

// dropLeast drops the thing that matters least, if it may give way to one that is known
// by the source.
func (b *Book) dropLeast(now time.Time, by Source) bool {
	least, rank := "", rankPinned
	for mac, t := range b.things {
		r, o := t.rank(now, mac), b.things[least]
		if r < rank || r == rank && o != nil && (t.last.Before(o.last) || t.last.Equal(o.last) && mac < least) {
			least, rank = mac, r
		}
	}
	if least == "" || by == Lease && rank > rankYoung {
		return false
	}
	b.drop(least)
	return true
}

// rank is how much a thing matters.
func (t *thing) rank(now time.Time, mac string) int {
	switch {
	case t.pinned:
		return rankPinned
	case t.settled():
		return rankSettled
	case t.leased(now, mac):
		return rankLeased
	}
	return rankYoung
}

const (
	rankYoung = iota
	rankLeased
	rankSettled
	rankPinned
)

// settled reports whether a thing was around for long enough not to be made up.
func (t *thing) settled() bool { return t.last.Sub(t.first) >= settled }

// leased reports whether a thing has a lease.
func (t *thing) leased(now time.Time, mac string) bool {
	return slices.ContainsFunc(t.places, func(p *place) bool { return p.holder == mac && p.valid(now) })
}

// drop forgets a thing and where it was.
func (b *Book) drop(mac string) {
	for _, p := range slices.Clone(b.things[mac].places) {
		if p.holder == mac {
			b.hold(p, "")
			p.file = ""
		}
		if p.mac == mac {
			b.move(p, "")
			p.known = false
		}
	}
	delete(b.things, mac)
}

// at returns the place with an address for the thing to be at; nil if
// there is no room for a new one. t may be nil.
func (b *Book) at(now time.Time, addr netip.Addr, t *thing) *place {
	p := b.places[addr]
	if t != nil && (p == nil || !slices.Contains(t.places, p)) && len(t.places) >= perThing && !b.leave(t.places) {
		return nil
	}
	if p != nil {
		return p
	}
	if len(b.places) >= maxPlaces {
		b.giveUp(now)
	}
	if len(b.places) >= maxPlaces {
		return nil
	}
	p = &place{addr: addr}
	b.places[addr] = p
	return p
}

// leave gives up the place that was seen the longest ago, of those without a lease.
func (b *Book) leave(places []*place) bool {
	var oldest *place
	for _, p := range places {
		if p.file == "" && (oldest == nil || worse(p, oldest)) {
			oldest = p
		}
	}
	if oldest == nil {
		return false
	}
	b.move(oldest, "")
	return true
}

func worse(p, o *place) bool {
	if p.known != o.known {
		return o.known
	}
	return p.seen.Before(o.seen)
}

// giveUp gives up the half of all places that were seen the longest ago and are neither
// leased nor known to the kernel.
func (b *Book) giveUp(now time.Time) {
	if since := now.Sub(b.gaveUp); since >= 0 && since < fullRest {
		return
	}
	b.gaveUp = now
	var old []*place
	for _, p := range b.places {
		if p.file == "" && !p.known {
			old = append(old, p)
		}
	}
	sort.Slice(old, func(i, j int) bool { return old[i].seen.Before(old[j].seen) })
	for _, p := range old[:(len(old)+1)/2] {
		b.move(p, "")
	}
}

// move says at which MAC the kernel has the address. A place that is neither there
// nor leased is given up.
func (b *Book) move(p *place, mac string) {
	p.mac = b.swap(p, p.mac, mac, p.holder)
}

// hold says which MAC has the lease of the address.
func (b *Book) hold(p *place, mac string) {
	p.holder = b.swap(p, p.holder, mac, p.mac)
}

// swap takes the place from the one thing to the other, unless it has it by its other
// role, too.
func (b *Book) swap(p *place, from, to, other string) string {
	if t := b.things[from]; t != nil && from != to && from != other {
		t.places = slices.DeleteFunc(t.places, func(q *place) bool { return q == p })
	}
	if t := b.things[to]; t != nil && !slices.Contains(t.places, p) {
		t.places = append(t.places, p)
	}
	if to == "" && other == "" {
		delete(b.places, p.addr)
	}
	return to
}
