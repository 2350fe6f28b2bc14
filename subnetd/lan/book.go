package lan

import (
	"bytes"
	"net/netip"
	"slices"
	"sort"
	"time"
)

// Bounds. A hostile LAN may make up things and addresses as fast as its wire is.
const (
	maxThings   = 2000
	maxPlaces   = 4096
	perThing    = 16 // addresses
	maxLeases   = 2048
	maxFiles    = 16
	maxServices = 32
	maxParams   = 64
)

const (
	// Fresh is for how long a sign of life holds.
	Fresh = 5 * time.Minute

	settled  = 24 * time.Hour      // a thing that was around for so long does not give way to newcomers
	youth    = 10 * time.Minute    // a newcomer that was not heard for so long does
	forgets  = 30 * 24 * time.Hour // an unseen thing is dropped
	passing  = 3 * 24 * time.Hour  // the same with a made-up MAC
	stays    = 24 * time.Hour      // an IPv6 address that is no longer told of
	fullRest = time.Minute         // between two looks for things to drop
)

// State is what the kernel knows of a neighbour.
type State uint8

// The states of a neighbour.
const (
	Answers State = iota // it answered, or spoke
	Silent               // it was asked and did not answer
	Gone                 // the kernel's table no longer has it, for whatever reason
)

// Neighbour is an entry of the kernel's neighbour table.
type Neighbour struct {
	Addr      netip.Addr
	MAC       string // "" where the state is not Answers
	Interface string
	State     State
	Seen      time.Time // when it last gave a sign of life
}

// Heard is what one packet said of its sender. Empty fields say nothing.
type Heard struct {
	MAC         string
	Interface   string
	Source      Source // MDNS or DHCP
	Name        string
	Model       string // as mDNS tells it
	VendorClass string // DHCP option 60
	Params      []byte // DHCP option 55: what it asks for, in its order
	Services    []string
	Ended       []string // services that it no longer has
}

// Book is what is known of the LAN. It is not safe for concurrent use. Its methods
// report whether anything but the time at which a thing was seen may have changed.
type Book struct {
	things map[string]*thing
	places map[netip.Addr]*place
	files  map[string]bool // lease files that were read before

	forgot, gaveUp time.Time // when things, and places, were last looked through for some to drop
}

// thing is a Thing in the making.
type thing struct {
	first, last time.Time
	spoke       time.Time // last packet heard that names no address
	quiet       time.Time // last time that one of its addresses was silent
	iface       string
	names       [sources]string
	model       string
	vendorClass string
	params      []byte
	services    []string // sorted
	maker, kind string
	pinned      bool
	places      []*place // at which it is by the kernel's table or by a lease
}

// place is an address on the LAN.
type place struct {
	addr   netip.Addr
	mac    string // by the kernel's table, now or the last time; "": never
	iface  string
	known  bool // it is in the kernel's table
	silent bool
	since  time.Time // it is at mac
	seen   time.Time

	holder string // MAC that has the lease; "": none
	leased time.Time
	till   time.Time // zero: for good
	file   string    // "": no lease
}

// NewBook returns an empty one.
func NewBook() *Book {
	return &Book{things: map[string]*thing{}, places: map[netip.Addr]*place{}, files: map[string]bool{}}
}

// owner is the thing that an address is one of: that to which the kernel sends its
// packets, else that which has the lease, else that which had it last.
func (p *place) owner(now time.Time) string {
	if !p.known && p.holder != "" && p.valid(now) {
		return p.holder
	}
	return p.mac
}

// valid reports whether a lease gives the address.
func (p *place) valid(now time.Time) bool {
	return p.file != "" && (p.till.IsZero() || now.Before(p.till))
}

// Neighbour takes in one entry of the kernel's table.
func (b *Book) Neighbour(now time.Time, n Neighbour) (changed bool) {
	p := b.places[n.Addr]
	if n.State != Answers {
		if p == nil || n.Interface != "" && p.iface != "" && p.iface != n.Interface {
			return false
		}
		return b.lost(now, p, n.State)
	}
	if !valid(n.MAC) || !usable(n.Addr) {
		return false
	}
	t := b.admit(now, n.MAC, None)
	if t == nil {
		return false
	}
	online := t.online(now, n.MAC)
	if p = b.at(now, n.Addr, t); p == nil {
		b.alive(now, t, n.Seen, n.Interface)
		return true
	}
	same := p.known && p.mac == n.MAC && !p.silent && p.iface == n.Interface
	if p.mac != n.MAC {
		b.move(p, n.MAC)
		p.since, p.seen = now, time.Time{}
	}
	if p.file != "" && p.addr.Is6() { // whose it is, a lease of IPv6 only guesses
		b.hold(p, n.MAC)
	}
	p.known, p.silent, p.iface = true, false, n.Interface
	if p.seen.Before(n.Seen) {
		p.seen = n.Seen
	}
	b.alive(now, t, n.Seen, n.Interface)
	return !same || online != t.online(now, n.MAC)
}

// lost takes in that the kernel does not, or no longer, reach an address.
func (b *Book) lost(now time.Time, p *place, s State) bool {
	was := *p
	p.known = false
	if s != Silent {
		return was.known
	}
	p.silent = true
	mac := p.owner(now)
	t := b.things[mac]
	if t == nil {
		return true
	}
	online := t.online(now, mac)
	t.quiet = now
	return was != *p || online != t.online(now, mac)
}

// Neighbours takes in the whole of the kernel's table: what is not in it is gone.
func (b *Book) Neighbours(now time.Time, all []Neighbour) (changed bool) {
	there := make(map[netip.Addr]bool, len(all))
	for _, n := range all {
		there[n.Addr] = n.State == Answers
		changed = b.Neighbour(now, n) || changed
	}
	for addr, p := range b.places {
		if p.known && !there[addr] {
			changed = b.lost(now, p, Gone) || changed
		}
	}
	return changed
}

// Interfaces says which interfaces are those of the LAN: what the kernel's table had on
// others is gone.
func (b *Book) Interfaces(now time.Time, names []string) (changed bool) {
	for _, p := range b.places {
		if p.known && !slices.Contains(names, p.iface) {
			changed = b.lost(now, p, Gone) || changed
		}
	}
	return changed
}

// Heard takes in what a packet said of its sender.
func (b *Book) Heard(now time.Time, h Heard) (changed bool) {
	if !valid(h.MAC) || h.Source != MDNS && h.Source != DHCP {
		return false
	}
	t := b.admit(now, h.MAC, h.Source)
	if t == nil {
		return false
	}
	online := t.online(now, h.MAC)
	changed = t.first.IsZero() || h.Interface != "" && t.iface != h.Interface
	b.alive(now, t, now, h.Interface)
	t.spoke = now
	changed = set(&t.names[h.Source], text(h.Name)) || changed
	changed = set(&t.model, text(h.Model)) || changed
	changed = set(&t.vendorClass, text(h.VendorClass)) || changed
	if p := h.Params[:min(len(h.Params), maxParams)]; len(p) > 0 && !bytes.Equal(t.params, p) {
		t.params, changed = slices.Clone(p), true
	}
	changed = t.offers(h.Services, h.Ended) || changed
	if changed {
		t.guess()
	}
	return changed || online != t.online(now, h.MAC)
}

// set overwrites what was known with what is news.
func set(old *string, said string) bool {
	if said == "" || *old == said {
		return false
	}
	*old = said
	return true
}

// offers adds and takes away services.
func (t *thing) offers(more, ended []string) (changed bool) {
	for _, s := range more {
		i, found := slices.BinarySearch(t.services, s)
		if !found && serviceType(s) && len(t.services) < maxServices {
			t.services, changed = slices.Insert(t.services, i, s), true
		}
	}
	for _, s := range ended {
		if i, found := slices.BinarySearch(t.services, s); found {
			t.services, changed = slices.Delete(t.services, i, i+1), true
		}
	}
	return changed
}

// Leases takes in the whole of one lease file: leases that are not in it have ended.
func (b *Book) Leases(now time.Time, file string, leases []Given) (changed bool) {
	given := make(map[netip.Addr]bool, len(leases))
	for _, l := range leases[:min(len(leases), maxLeases)] {
		if !usable(l.Addr) || given[l.Addr] {
			continue
		}
		given[l.Addr] = true
		changed = b.lease(now, file, l) || changed
	}
	if len(b.files) < maxFiles {
		b.files[file] = true
	}
	for addr, p := range b.places {
		if p.file == file && !given[addr] {
			p.file = ""
			b.hold(p, "")
			changed = true
		}
	}
	return changed
}

// lease takes in one. One that is new or renewed is a sign of life, unless it is from
// before we looked.
func (b *Book) lease(now time.Time, file string, l Given) (changed bool) {
	p := b.places[l.Addr]
	mac := b.holder(p, l)
	if mac == "" && p == nil {
		return false
	}
	t := b.things[mac]
	if mac != "" && t == nil {
		if t = b.admit(now, mac, Lease); t == nil {
			return false
		}
	}
	if p = b.at(now, l.Addr, t); p == nil {
		return false
	}
	if p.file != file || p.holder != mac {
		b.hold(p, mac)
		p.file, p.leased, changed = file, now, true
	}
	if !p.till.Equal(l.Expires) {
		p.till, changed = l.Expires, true
	}
	if p.iface == "" {
		p.iface = l.Interface
	}
	if t == nil {
		return changed
	}
	if set(&t.names[Lease], text(l.Name)) {
		t.guess()
		changed = true
	}
	switch {
	case changed && b.files[file]:
		b.alive(now, t, now, l.Interface)
		t.spoke = now
	case t.first.IsZero():
		t.first, changed = now, true
	}
	return changed
}

// holder is the MAC to which a lease was given. A lease of IPv6 names its client by a
// DUID, which may hold the MAC of another of the client's interfaces (RFC 8415, section
// 11): the kernel's table knows better, and no thing is made up for it.
func (b *Book) holder(p *place, l Given) string {
	switch {
	case !l.Guess:
		if valid(l.MAC) {
			return l.MAC
		}
	case p != nil && p.known:
		return p.mac
	case b.things[l.MAC] != nil:
		return l.MAC
	}
	return ""
}

// Names says what the owner calls things, by MAC; an empty name only pins one. What was
// said before no longer holds. Such things are known even if they were never seen.
func (b *Book) Names(now time.Time, names map[string]string) (changed bool) {
	for mac, t := range b.things {
		if _, ok := names[mac]; !ok && t.pinned {
			t.pinned, t.names[Owner], changed = false, "", true
			if t.first.IsZero() {
				b.drop(mac)
			}
		}
	}
	macs := make([]string, 0, len(names))
	for mac := range names {
		macs = append(macs, mac)
	}
	sort.Strings(macs)
	for _, mac := range macs {
		if !valid(mac) {
			continue
		}
		t := b.admit(now, mac, Owner)
		if t == nil {
			continue
		}
		name := text(names[mac])
		changed = changed || !t.pinned || t.names[Owner] != name
		t.pinned, t.names[Owner] = true, name
		t.guess()
	}
	return changed
}

// Foreign reports whether one of the addresses is another thing's than that with the
// MAC. A packet that speaks of others was passed on, and says nothing of its sender.
func (b *Book) Foreign(now time.Time, mac string, addrs []netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		owner := b.Owner(now, a)
		return owner != "" && owner != mac
	})
}

// Owner is the MAC of the thing that has the address, "" if none has.
func (b *Book) Owner(now time.Time, addr netip.Addr) string {
	if p := b.places[addr]; p != nil {
		return p.owner(now)
	}
	return ""
}

// usable reports whether a thing can have the address.
func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && !a.Is4In6() && a.Zone() == ""
}

// alive notes a sign of life; a zero time: it is there, but gave none.
func (b *Book) alive(now time.Time, t *thing, seen time.Time, iface string) {
	if iface != "" {
		t.iface = iface
	}
	if seen.IsZero() {
		if t.first.IsZero() {
			t.first = now
		}
		return
	}
	if t.first.IsZero() || seen.Before(t.first) {
		t.first = seen
	}
	if t.last.Before(seen) {
		t.last = seen
	}
}
