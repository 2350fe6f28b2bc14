package coord

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"tailscale.com/tailcfg"
)

// Addresses are a digest of who asks, not the next free number: were an old
// backup restored, a counter would give out once more what newer nodes have,
// while a digest gives each machine of then the address it had. Within one
// ledger none is given twice, see draft.numbers.

var (
	pool4 = netip.MustParsePrefix("100.64.0.0/10")
	pool6 = netip.MustParsePrefix("fd7a:115c:a1e0::/48")

	// Parts of the pool that clients take for something else.
	taken4 = []netip.Prefix{
		netip.MustParsePrefix("100.64.0.0/24"), netip.MustParsePrefix("100.127.255.0/24"),
		netip.MustParsePrefix("100.100.0.0/24"), netip.MustParsePrefix("100.100.100.0/24"), // services of Tailscale
		netip.MustParsePrefix("100.115.92.0/23"), // ChromeOS
	}
)

var errFull = errors.New("the mesh has no free address any more")

// number4 is the address of that number in the IPv4 pool.
func number4(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(pool4.Addr().AsSlice())+n)
	return netip.AddrFrom4(b)
}

// addressesOf is a node's own addresses.
func addressesOf(r record) []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(number4(r.Number), 32), netip.PrefixFrom(r.V6, 128)}
}

// addresses gives a device's: v4 always, v6 if it has one.
func (d device) addresses() []netip.Addr {
	out := []netip.Addr{number4(d.Number)}
	if d.V6.IsValid() {
		out = append(out, d.V6)
	}
	return out
}

// allocate finds addresses that are not of the used ones for the holder of the seed.
func allocate(used map[uint32]bool, seed []byte) (number uint32, v6 netip.Addr, err error) {
	for try := uint32(0); try < 1<<16; try++ {
		sum := sha256.Sum256(binary.BigEndian.AppendUint32(slices.Clone(seed), try))
		number := binary.BigEndian.Uint32(sum[:]) % (1 << (32 - pool4.Bits()))
		if used[number] || reserved(number4(number)) {
			continue
		}
		return number, address6(sum[4:12]), nil
	}
	return 0, netip.Addr{}, errFull
}

func reserved(a netip.Addr) bool {
	return slices.ContainsFunc(taken4, func(p netip.Prefix) bool { return p.Contains(a) })
}

// address6 puts eight random bytes behind the pool's prefix and a zero group,
// so that it is none of the service (::53) and translation (b1a:) addresses.
func address6(random []byte) netip.Addr {
	b := pool6.Addr().As16()
	copy(b[8:], random)
	b[8] |= 0x80
	return netip.AddrFrom16(b)
}

// numbers is every number that is or was somebody's.
func (d *draft) numbers() map[uint32]bool {
	used := make(map[uint32]bool, len(d.nodes)+len(d.spent))
	for _, n := range d.nodes {
		used[n.Number] = true
		for _, dev := range n.Devices {
			used[dev.Number] = true
		}
	}
	for _, n := range d.spent {
		used[n] = true
	}
	return used
}

// newID gives a node a number that no backup, however old, may give again: 52
// random bits, which JavaScript can hold too.
func (d *draft) newID() tailcfg.NodeID {
	for {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails (crypto/rand)
		id := tailcfg.NodeID(binary.BigEndian.Uint64(b[:]) >> 12)
		if id > 0 && d.nodes[id] == nil {
			return id
		}
	}
}
