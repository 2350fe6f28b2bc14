// Package leases is who has which address of the home's network: pure, told the time.
//
// A device that is new gets its address for a short time only, and for a long one once it
// has renewed: then it is known, and keeps the address for good, on disk, too, until that is
// needed for another. So a stranger who invents devices fills what nobody uses for minutes,
// writes nothing to the flash, and cannot take a known device's address while it lasts. An offer
// reserves nothing: each device has its place in the pool by its MAC address, and who comes
// second to the same place is told so when it asks for it (RFC 2131, 4.3.2).
package leases

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Times of leases.
const (
	Short      = 10 * time.Minute // of a device that is new
	Long       = 12 * time.Hour   // of one that has renewed
	quarantine = 10 * time.Minute // of an address that somebody else uses
)

// MAC is the hardware address of Ethernet.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// ParseMAC reads a MAC address.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil {
		return MAC{}, err
	}
	if len(hw) != 6 {
		return MAC{}, fmt.Errorf("%q is no MAC address of Ethernet", s)
	}
	return MAC(hw), nil
}

// Config is what the pool may give.
type Config struct {
	Router      netip.Prefix // the router's own address and the network's size
	First, Last netip.Addr   // of the pool, inside of the network
	Static      map[MAC]netip.Addr
}

// Lease is one device's address.
type Lease struct {
	MAC   MAC
	Addr  netip.Addr
	Name  string    // that the device gave itself; "": none
	Until time.Time // it may be over: the address stays the device's as long as nobody needs it
	Known bool      // it has renewed
}

// Pool is all leases. The zero value gives nothing.
type Pool struct {
	cfg    Config
	byMAC  map[MAC]*Lease
	byAddr map[netip.Addr]*Lease
	bad    map[netip.Addr]time.Time // used by somebody else, until then
	owned  map[netip.Addr]bool      // of cfg.Static
	kept   uint64                   // see Version
	full   time.Time                // no address is free for a new device until then
}

// New makes a pool of the devices that were known. They may have had their addresses
// until just now, so these are kept for them as long as a lease lasts.
func New(cfg Config, known []Lease, now time.Time) *Pool {
	p := &Pool{cfg: cfg, byMAC: map[MAC]*Lease{}, byAddr: map[netip.Addr]*Lease{}, bad: map[netip.Addr]time.Time{}, owned: map[netip.Addr]bool{}}
	for _, a := range cfg.Static {
		p.owned[a] = true
	}
	for _, l := range known {
		if p.byMAC[l.MAC] == nil && p.byAddr[l.Addr] == nil && p.allowed(l.MAC, l.Addr) {
			l.Known, l.Until = true, now.Add(Long)
			p.put(&l)
		}
	}
	return p
}

// Size is the number of addresses in the pool.
func (p *Pool) Size() int { return int(number(p.cfg.Last)-number(p.cfg.First)) + 1 }

// Offer is the address that a device may ask for: its own, the one it wishes, or a free
// one. false: the pool is exhausted.
func (p *Pool) Offer(mac MAC, wish netip.Addr, now time.Time) (netip.Addr, bool) {
	if a, ok := p.cfg.Static[mac]; ok {
		return a, true
	}
	if l := p.byMAC[mac]; l != nil && p.allowed(mac, l.Addr) && !p.isBad(l.Addr, now) {
		return l.Addr, true
	}
	if p.free(mac, wish, now) {
		return wish, true
	}
	if now.Before(p.full) { // a flood of new devices costs little
		return netip.Addr{}, false
	}
	size := uint32(p.Size())
	for i := range size {
		if a := p.at((place(mac)%size + i) % size); p.byAddr[a] == nil && p.free(mac, a, now) {
			return a, true
		}
	}
	return p.oldest(mac, now)
}

// oldest is the address of the device that is missed least: unknown before known ones,
// then the one whose lease has been over for longest.
func (p *Pool) oldest(mac MAC, now time.Time) (netip.Addr, bool) {
	var best *Lease
	next := now.Add(quarantine) // by then one that was put aside is back
	for _, l := range p.byAddr {
		if p.allowed(mac, l.Addr) && l.Until.After(now) && l.Until.Before(next) {
			next = l.Until
		}
		if p.free(mac, l.Addr, now) && (best == nil || lessMissed(l, best)) {
			best = l
		}
	}
	if best == nil {
		p.full = next
		return netip.Addr{}, false
	}
	return best.Addr, true
}

func lessMissed(a, b *Lease) bool {
	if a.Known != b.Known {
		return !a.Known
	}
	return cmp.Or(a.Until.Compare(b.Until), a.Addr.Compare(b.Addr)) < 0
}

// Take leases an address to a device that asks for it; false: it is somebody else's, or
// not of this network.
func (p *Pool) Take(mac MAC, addr netip.Addr, name string, now time.Time) (time.Duration, bool) {
	l := p.byMAC[mac]
	if (l == nil || l.Addr != addr) && !p.free(mac, addr, now) || !p.allowed(mac, addr) {
		return 0, false
	}
	if l == nil || l.Addr != addr {
		p.drop(p.byAddr[addr])
		p.drop(l)
		l = &Lease{MAC: mac, Addr: addr, Name: name, Until: now.Add(Short)}
		p.put(l)
		return Short, true
	}
	if !l.Known && name != "" {
		l.Name = name // what is on disk is not written anew for a name
	}
	// Who asks again at once has not lived with it yet.
	if _, static := p.cfg.Static[mac]; static || l.Known || l.Until.Sub(now) < Short*3/4 {
		if !l.Known {
			l.Known = true
			p.kept++
		}
		l.Until = now.Add(Long)
		return Long, true
	}
	l.Until = now.Add(Short)
	return Short, true
}

// Release ends a lease before its time. The address stays the device's while nobody needs
// it.
func (p *Pool) Release(mac MAC, addr netip.Addr, now time.Time) {
	if l := p.byMAC[mac]; l != nil && l.Addr == addr && l.Until.After(now) {
		l.Until, p.full = now, time.Time{}
	}
}

// Decline keeps an address from all for a while, as the device that got it has found it
// in use. Nobody can have more than a quarter of the pool put aside.
func (p *Pool) Decline(mac MAC, addr netip.Addr, now time.Time) bool {
	l := p.byMAC[mac]
	if l == nil || l.Addr != addr {
		return false
	}
	maps.DeleteFunc(p.bad, func(_ netip.Addr, until time.Time) bool { return !until.After(now) })
	if len(p.bad) >= max(1, p.Size()/4) {
		return false
	}
	p.drop(l)
	p.bad[addr] = now.Add(quarantine)
	return true
}

// free reports whether a device may take an address that is not its own yet.
func (p *Pool) free(mac MAC, addr netip.Addr, now time.Time) bool {
	if !p.allowed(mac, addr) || p.isBad(addr, now) {
		return false
	}
	l := p.byAddr[addr]
	return l == nil || l.MAC == mac || !l.Until.After(now)
}

func (p *Pool) isBad(addr netip.Addr, now time.Time) bool { return p.bad[addr].After(now) }

// allowed reports whether the owner lets a device have an address.
func (p *Pool) allowed(mac MAC, addr netip.Addr) bool {
	if own, ok := p.cfg.Static[mac]; ok {
		return addr == own
	}
	if !addr.Is4() || addr.Less(p.cfg.First) || p.cfg.Last.Less(addr) || addr == p.cfg.Router.Addr() {
		return false
	}
	return !p.owned[addr]
}

// Version is another whenever Kept would be.
func (p *Pool) Version() uint64 { return p.kept }

func (p *Pool) put(l *Lease) { p.byMAC[l.MAC], p.byAddr[l.Addr] = l, l }

func (p *Pool) drop(l *Lease) {
	if l != nil {
		p.full = time.Time{}
		if l.Known {
			p.kept++
		}
		delete(p.byMAC, l.MAC)
		delete(p.byAddr, l.Addr)
	}
}

func (p *Pool) at(i uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, number(p.cfg.First)+i)))
}

func number(a netip.Addr) uint32 {
	if !a.Is4() {
		return 0
	}
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// place spreads devices over the pool; MAC addresses of one maker follow one another.
func place(mac MAC) uint32 {
	h := fnv.New32a()
	_, _ = h.Write(mac[:])
	return h.Sum32()
}

// All are the leases, in the order of addresses.
func (p *Pool) All() []Lease {
	out := make([]Lease, 0, len(p.byAddr))
	for _, l := range p.byAddr {
		out = append(out, *l)
	}
	slices.SortFunc(out, func(a, b Lease) int { return a.Addr.Compare(b.Addr) })
	return out
}

// Kept is the text of the known devices, for the disk: no times, so that it changes only
// when a device comes or goes.
func Kept(all []Lease) []byte {
	var b bytes.Buffer
	for _, l := range all {
		if l.Known {
			fmt.Fprintf(&b, "%v %v %s\n", l.MAC, l.Addr, cmp.Or(l.Name, "*"))
		}
	}
	return b.Bytes()
}

// Running is the text of the leases that run, as dnsmasq writes it.
func Running(all []Lease, now time.Time) []byte {
	var b bytes.Buffer
	for _, l := range all {
		if l.Until.After(now) {
			until := now.Add(l.Until.Sub(now)) // by a clock that may have been set since
			fmt.Fprintf(&b, "%d %v %v %s *\n", until.Unix(), l.MAC, l.Addr, cmp.Or(l.Name, "*"))
		}
	}
	return b.Bytes()
}

// ParseKept reads what Kept has written. A line that is damaged is a device less, not none
// at all.
func ParseKept(text string) (out []Lease, err error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			err = errors.Join(err, fmt.Errorf("%q is no lease", line))
			continue
		}
		mac, noMAC := ParseMAC(f[0])
		addr, noAddr := netip.ParseAddr(f[1])
		if bad := errors.Join(noMAC, noAddr); bad != nil {
			err = errors.Join(err, bad)
			continue
		}
		out = append(out, Lease{MAC: mac, Addr: addr, Name: Name(strings.TrimPrefix(f[2], "*")), Known: true})
	}
	return out, err
}

// Name is the first label of what a device calls itself, if a host may be called that
// (RFC 1123, 2.1), else "".
func Name(s string) string {
	s, _, _ = strings.Cut(s, ".")
	if len(s) > 63 || strings.Trim(s, "-") != s {
		return ""
	}
	for _, c := range s {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return ""
		}
	}
	return s
}
