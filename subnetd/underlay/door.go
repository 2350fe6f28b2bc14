package underlay

import (
	"net/netip"
	"slices"
	"sort"

	"tailscale.com/types/key"
)

// In kernel mode some peers have an interface of WireGuard's, and a port, to
// themselves: their door. What relays bring goes there straight; for what comes to
// the public port somebody else must know from where these peers send.

// Serve says on which port of its own the kernel's WireGuard takes what comes from
// these peers; from all others it takes it on the public one.
func (u *Underlay) Serve(ports map[key.NodePublic]uint16) {
	c := u.conduit
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doors = ports
	for k, p := range c.byKey {
		p.door.Store(uint32(ports[k]))
	}
}

// From is the addresses from which packets of the peer may come, sorted: those by
// which disco knows it, and that to which it is sent. Config's OnDoor tells of
// changes.
func (u *Underlay) From(k key.NodePublic) []netip.AddrPort {
	p := u.conduit.peer(k)
	all := []netip.AddrPort{*p.pin.Load()}
	if use := p.use.Load(); use != nil {
		all = append(all, use.Addr)
	}
	if !u.adopted.Load() {
		all = append(all, unmap(u.cfg.Adopted[k]))
	}
	for a, owner := range *u.addrs.Load() {
		if owner == p {
			all = append(all, a)
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Compare(all[j]) < 0 })
	return slices.Compact(slices.DeleteFunc(all, func(a netip.AddrPort) bool { return !a.IsValid() || a.Addr().IsLoopback() }))
}

// movedAt says that the addresses of peers may have changed, if it matters.
func (u *Underlay) movedAt(peers ...*peer) {
	for _, p := range peers {
		if p != nil && p.door.Load() != 0 {
			u.cfg.OnDoor()
			return
		}
	}
}

// listens is the port of the kernel's WireGuard that has the peer.
func (u *Underlay) listens(p *peer) uint16 {
	if door := p.door.Load(); door != 0 {
		return uint16(door)
	}
	return u.port
}

// is reports whether a packet to the peer's address on lo is WireGuard's: with its
// own port, or with the public one by which the world knows it.
func (c *conduit) is(from netip.AddrPort, p *peer) bool {
	return from == c.kernel || from.Addr() == c.kernel.Addr() && uint32(from.Port()) == p.door.Load()
}
