package tunnel

import (
	"cmp"
	"net/netip"
	"slices"
	"sort"

	"subnetd/subnetd/host"

	"tailscale.com/types/key"
)

const (
	// batchPeers bounds the peers of one message. The kernel holds the lock of
	// all its interfaces for as long as it works on a message, and a new peer
	// costs it a curve multiplication: 10 ms on a small router.
	batchPeers = 4
	// batchPins is the same for mere endpoints, which cost little.
	batchPins = 64
	// maxAllowed bounds the addresses told of a peer at once: 40 bytes each, and
	// the peers of a message must fit into 64 kB.
	maxAllowed = 256
)

// changes is what must be said so that the peers the kernel has become those
// that are wanted: first who goes, then who changes or comes. Allowed IPs
// that move to another peer need no more than that: the kernel takes them from
// the old one. renewed tells peers whose session must end; endpoint is where to
// send to a peer.
func changes(have []wgPeer, want []host.Peer, renewed func(*host.Peer) bool, endpoint func(key.NodePublic) netip.AddrPort) []wgChange {
	stays := keys(want)
	was := make(map[key.NodePublic]*wgPeer, len(have))
	var all []wgChange
	for i := range have {
		was[have[i].key] = &have[i]
		if !stays[have[i].key] {
			all = append(all, wgChange{key: have[i].key, remove: true})
		}
	}
	for i := range want {
		p := &want[i]
		old := was[p.Key]
		c := wgChange{key: p.Key, session: p.Session}
		switch {
		case old == nil:
			c.add, c.aim, c.replace = true, true, true
		case old.foreign || renewed(p):
			c.remove, c.add, c.aim, c.replace = true, true, true, true
		default:
			// An endpoint of the internet is the kernel's or the underlay's choice;
			// one of ours may be of an earlier life.
			c.aim = !direct(old.endpoint) && old.endpoint != endpoint(p.Key)
			c.replace = !samePrefixes(old.allowed, p.AllowedIPs)
		}
		if c.aim || c.replace {
			all = appendChange(all, c, p.AllowedIPs)
		}
	}
	return all
}

func keys(peers []host.Peer) map[key.NodePublic]bool {
	all := make(map[key.NodePublic]bool, len(peers))
	for i := range peers {
		all[peers[i].Key] = true
	}
	return all
}

// appendChange adds c, in several parts if there is much to say.
func appendChange(all []wgChange, c wgChange, allowed []netip.Prefix) []wgChange {
	if !c.replace {
		return append(all, c)
	}
	n := min(len(allowed), maxAllowed)
	c.allowed = allowed[:n]
	all = append(all, c)
	for allowed = allowed[n:]; len(allowed) > 0; allowed = allowed[n:] {
		n = min(len(allowed), maxAllowed)
		all = append(all, wgChange{key: c.key, allowed: allowed[:n]})
	}
	return all
}

// direct reports whether the endpoint is one of the internet, not ours on
// loopback.
func direct(a netip.AddrPort) bool { return a.IsValid() && !a.Addr().IsLoopback() }

// plainAddr is the address as the kernel tells it: IPv4 is not mapped into IPv6.
func plainAddr(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// samePrefixes compares without regard to order.
func samePrefixes(a, b []netip.Prefix) bool {
	if len(a) != len(b) {
		return false
	}
	return slices.Equal(a, b) || slices.Equal(sorted(a), sorted(b))
}

func sorted(ps []netip.Prefix) []netip.Prefix {
	ps = slices.Clone(ps)
	sort.Slice(ps, func(i, j int) bool {
		return cmp.Or(ps[i].Addr().Compare(ps[j].Addr()), cmp.Compare(ps[i].Bits(), ps[j].Bits())) < 0
	})
	return ps
}
