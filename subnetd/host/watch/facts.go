// Package watch looks at the machine: its interfaces, addresses, default routes,
// policy rules and neighbours. It only reads.
package watch

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sort"

	"subnetd/subnetd/host"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Facts takes one look at the machine. Interfaces are sorted by index, their
// addresses by value; default routes by family (IPv4 first), then metric; rules by
// family, then priority. Neighbours are those with the MACs.
func Facts(macs []string) (host.Facts, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return host.Facts{}, fmt.Errorf("netlink: %w", err)
	}
	f, err := look(c, macs)
	return f, errors.Join(err, c.Close())
}

func look(c *netlink.Conn, macs []string) (host.Facts, error) {
	name, err := os.Hostname()
	if err != nil {
		return host.Facts{}, fmt.Errorf("hostname: %w", err)
	}
	links, err := dump(c, unix.RTM_GETLINK, &rtnetlink.LinkMessage{}, parseLink)
	if err != nil {
		return host.Facts{}, fmt.Errorf("links: %w", err)
	}
	addrs, err := dump(c, unix.RTM_GETADDR, &rtnetlink.AddressMessage{}, parse[rtnetlink.AddressMessage])
	if err != nil {
		return host.Facts{}, fmt.Errorf("addresses: %w", err)
	}
	routes, err := dump(c, unix.RTM_GETROUTE, &rtnetlink.RouteMessage{}, parse[rtnetlink.RouteMessage])
	if err != nil {
		return host.Facts{}, fmt.Errorf("routes: %w", err)
	}
	f := facts(name, links, addrs, routes)
	if f.Rules, err = rules(c); err != nil {
		return host.Facts{}, fmt.Errorf("rules: %w", err)
	}
	if len(macs) == 0 {
		return f, nil
	}
	all, err := neighbours(c, f.Interfaces)
	if err != nil {
		return host.Facts{}, fmt.Errorf("neighbours: %w", err)
	}
	f.Neighbours = chosen(all, macs)
	return f, nil
}

// facts puts the three dumps together.
func facts(name string, links []host.Interface, addrs []rtnetlink.AddressMessage, routes []rtnetlink.RouteMessage) host.Facts {
	sort.Slice(links, func(i, j int) bool { return links[i].Index < links[j].Index })
	byIndex := make(map[uint32]*host.Interface, len(links))
	for i := range links {
		byIndex[uint32(links[i].Index)] = &links[i]
	}
	for _, a := range addrs {
		link := byIndex[a.Index]
		if p := addressOf(&a); link != nil && p.IsValid() {
			link.Addrs = append(link.Addrs, p)
		}
	}
	for i := range links {
		addrs := links[i].Addrs
		sort.Slice(addrs, func(i, j int) bool { return addrs[i].Compare(addrs[j]) < 0 })
	}
	return host.Facts{Hostname: name, Interfaces: links, Defaults: defaults(routes, byIndex)}
}

// addressOf is the interface's own address: on point-to-point links that is
// the local one, not the peer's.
func addressOf(a *rtnetlink.AddressMessage) netip.Prefix {
	if a.Attributes == nil {
		return netip.Prefix{}
	}
	raw := a.Attributes.Local
	if raw == nil {
		raw = a.Attributes.Address
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(addr, int(a.PrefixLength))
}

// defaults are the default routes of the main table, one for each next hop. Links
// that have one of any table become uplinks.
func defaults(routes []rtnetlink.RouteMessage, byIndex map[uint32]*host.Interface) []host.Default {
	type ranked struct {
		host.Default
		metric uint32
	}
	var found []ranked
	add := func(m *rtnetlink.RouteMessage, index uint32, gateway []byte) {
		link := byIndex[index]
		if link != nil {
			link.Uplink = true
		}
		if link != nil && m.Attributes.Table == unix.RT_TABLE_MAIN {
			gw, _ := netip.AddrFromSlice(gateway)
			d := host.Default{Interface: link.Name, Gateway: gw, V6: m.Family == unix.AF_INET6}
			found = append(found, ranked{d, m.Attributes.Priority})
		}
	}
	for _, m := range routes {
		if m.DstLength != 0 || m.Type != unix.RTN_UNICAST ||
			(m.Family != unix.AF_INET && m.Family != unix.AF_INET6) {
			continue
		}
		if len(m.Attributes.Multipath) == 0 {
			add(&m, m.Attributes.OutIface, m.Attributes.Gateway)
		}
		for _, hop := range m.Attributes.Multipath {
			add(&m, hop.Hop.IfIndex, hop.Gateway)
		}
	}
	sort.Slice(found, func(i, j int) bool {
		a, b := found[i], found[j]
		if a.V6 != b.V6 {
			return b.V6
		}
		return cmp.Or(cmp.Compare(a.metric, b.metric), cmp.Compare(a.Interface, b.Interface), a.Gateway.Compare(b.Gateway)) < 0
	})
	var out []host.Default
	for _, r := range found {
		out = append(out, r.Default)
	}
	return out
}

// dump reads one kernel table.
func dump[T any](c *netlink.Conn, kind int, req encoding.BinaryMarshaler, parse func([]byte) (T, error)) ([]T, error) {
	data, err := req.MarshalBinary()
	if err != nil {
		return nil, err
	}
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | netlink.Dump}, Data: data,
	})
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(msgs))
	for _, m := range msgs {
		v, err := parse(m.Data)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func parse[T any, P interface {
	*T
	encoding.BinaryUnmarshaler
}](b []byte) (T, error) {
	var v T
	err := P(&v).UnmarshalBinary(b)
	return v, err
}

// parseLink reads an ifinfomsg (16 bytes) and the attributes behind it: only
// the few we need, as links of other kinds carry attributes of any shape.
func parseLink(b []byte) (host.Interface, error) {
	var m rtnetlink.LinkMessage
	if len(b) < unix.SizeofIfInfomsg {
		return host.Interface{}, fmt.Errorf("link message of %d bytes", len(b))
	}
	if err := m.UnmarshalBinary(b[:unix.SizeofIfInfomsg]); err != nil {
		return host.Interface{}, err
	}
	out := host.Interface{Index: int(m.Index), Up: m.Flags&unix.IFF_UP != 0}
	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return host.Interface{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			out.Name = ad.String()
		case unix.IFLA_LINKINFO:
			ad.Nested(func(info *netlink.AttributeDecoder) error {
				for info.Next() {
					if info.Type() == unix.IFLA_INFO_KIND {
						out.Bridge = info.String() == "bridge"
					}
				}
				return info.Err()
			})
		}
	}
	return out, ad.Err()
}
