package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sort"

	"subnetd/subnetd/host"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// perMAC bounds the addresses that one device may have: those of IPv6 that change
// every day, and whatever a hostile one makes up.
const perMAC = 32

// Neighbours takes one look at all devices on the networks of this machine that it
// has lately spoken with, sorted by address, then interface.
func Neighbours() ([]host.Neighbour, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	links, err := dump(c, unix.RTM_GETLINK, &rtnetlink.LinkMessage{}, parseLink)
	var out []host.Neighbour
	if err == nil {
		out, err = neighbours(c, links)
	}
	return out, errors.Join(err, c.Close())
}

// neighbours reads those whose MAC address is known. Link-local addresses are none
// by which anything leaves the network.
func neighbours(c *netlink.Conn, links []host.Interface) ([]host.Neighbour, error) {
	all, err := dump(c, unix.RTM_GETNEIGH, &rtnetlink.NeighMessage{}, parseNeighbour)
	if err != nil {
		return nil, err
	}
	var out []host.Neighbour
	for _, n := range all {
		i := slices.IndexFunc(links, func(l host.Interface) bool { return l.Index == n.link })
		if i >= 0 && n.mac != "" {
			out = append(out, host.Neighbour{Addr: n.addr, MAC: n.mac, Interface: links[i].Name})
		}
	}
	sort.Slice(out, func(i, j int) bool {
		if c := out[i].Addr.Compare(out[j].Addr); c != 0 {
			return c < 0
		}
		return out[i].Interface < out[j].Interface
	})
	return out, nil
}

// chosen is the neighbours with these MACs, at most perMAC of each.
func chosen(all []host.Neighbour, macs []string) []host.Neighbour {
	left := make(map[string]int, len(macs))
	for _, m := range macs {
		left[m] = perMAC
	}
	return slices.DeleteFunc(all, func(n host.Neighbour) bool {
		left[n.MAC]--
		return left[n.MAC] < 0
	})
}

// neighbour is one entry of the kernel's table.
type neighbour struct {
	link int
	addr netip.Addr
	mac  string // "": not known, or no longer
}

// parseNeighbour reads an ndmsg (12 bytes) and the attributes behind it.
func parseNeighbour(b []byte) (neighbour, error) {
	const header = 12
	if len(b) < header {
		return neighbour{}, fmt.Errorf("neighbour of %d bytes", len(b))
	}
	n := neighbour{link: int(int32(binary.NativeEndian.Uint32(b[4:])))}
	state := binary.NativeEndian.Uint16(b[8:])
	ad, err := netlink.NewAttributeDecoder(b[header:])
	if err != nil {
		return neighbour{}, err
	}
	var mac net.HardwareAddr
	for ad.Next() {
		switch ad.Type() {
		case unix.NDA_DST:
			n.addr, _ = netip.AddrFromSlice(ad.Bytes())
		case unix.NDA_LLADDR:
			mac = slices.Clone(ad.Bytes())
		}
	}
	const unusable = unix.NUD_INCOMPLETE | unix.NUD_FAILED | unix.NUD_NOARP
	if len(mac) == 6 && state&unusable == 0 && n.addr.IsValid() && !n.addr.IsLinkLocalUnicast() && !n.addr.IsMulticast() {
		n.mac = mac.String()
	}
	return n, ad.Err()
}
