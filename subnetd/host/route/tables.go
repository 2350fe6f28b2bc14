package route

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"subnetd/subnetd/host"

	"github.com/jsimonetti/rtnetlink/v2"
	"golang.org/x/sys/unix"
)

// lastResort is the metric of what a way's table says when there is no way out: it
// stays beneath the way, so that the kernel, which takes a tunnel's routes away with
// the tunnel, leaves no gap.
const lastResort = 0x7fffffff

// routerResort is the metric of what comes before that in the router's own way, of
// IPv6: it leads into the mesh, which drops what is for none of its members. A socket
// without an address that meets an unreachable route gets that of the WAN, and the
// kernel asks again with it: then it is like those that are bound to the WAN.
const routerResort = lastResort - 1

// entry is a route as we write it: on link, or to nowhere.
type entry struct {
	table  uint32
	to     netip.Prefix
	kind   uint8  // RTN_UNICAST, RTN_UNREACHABLE; RTN_THROW: ask the next rule
	link   uint32 // 0: none
	metric uint32
}

// entries are the routes of all our tables. Routes through a link that is not there
// are left out.
func entries(want host.Route, links map[string]uint32) []entry {
	var out []entry
	through := func(table uint32, name string, to ...netip.Prefix) {
		for _, p := range to {
			e := entry{table, p, unix.RTN_UNICAST, links[name], metric(family(p))}
			if e.link != 0 && !slices.ContainsFunc(out, func(o entry) bool { return o.table == table && o.to == p }) {
				out = append(out, e)
			}
		}
	}
	through(host.RouteTable, want.Interface, want.Routes...)
	for _, e := range want.Exits {
		through(host.RouteTable, e.Interface, e.Routes...)
	}
	for i, w := range want.Ways {
		for _, all := range [...]netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)} {
			closed := w.Block
			if w.Interface != "" && !carries(w, all, want.Addresses) {
				closed = true
			} else {
				through(tableOf(i), w.Interface, all)
			}
			last := entry{tableOf(i), all, unix.RTN_THROW, 0, lastResort}
			if closed {
				last.kind = unix.RTN_UNREACHABLE
			}
			if closed && all.Addr().Is6() && slices.Contains(want.Sources, host.RouteSource{Interface: "lo", Way: i}) {
				out = append(out, entry{tableOf(i), all, unix.RTN_UNICAST, links[want.Interface], routerResort})
			}
			out = append(out, last)
		}
	}
	return out
}

// carries reports whether the family of all goes through the exit of w: not where we
// have no address to send from.
func carries(w host.Way, all netip.Prefix, own []netip.Prefix) bool {
	v4 := all.Addr().Is4()
	return !(v4 && w.No4 || !v4 && w.No6) &&
		slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Addr().Is4() == v4 })
}

// setRoutes makes want the content of our tables, of which those of so many ways may
// have something in them.
func (k *kernel) setRoutes(want []entry, ways int) error {
	have, err := k.routes(ways)
	if err != nil {
		return err
	}
	var errs []error
	kept := map[entry]bool{}
	var old []rtnetlink.RouteMessage
	for _, m := range have {
		e, plain := entryOf(&m)
		if plain && slices.Contains(want, e) && !kept[e] {
			kept[e] = true
			continue
		}
		old = append(old, m)
	}
	for _, e := range want {
		if !kept[e] {
			errs = append(errs, k.addRoute(e))
		}
	}
	for _, m := range old {
		if !replaced(&m, want) {
			errs = append(errs, k.deleteRoute(&m))
		}
	}
	return errors.Join(errs...)
}

// replaced reports whether a route to nowhere has given way to one of want. IPv6 does
// not tell the two apart where one is deleted.
func replaced(m *rtnetlink.RouteMessage, want []entry) bool {
	e, _ := entryOf(m)
	return m.Type != unix.RTN_UNICAST && slices.ContainsFunc(want, func(w entry) bool {
		return w.link == 0 && w.table == e.table && w.to == e.to && w.metric == e.metric
	})
}

// entryOf reads a route; plain: that is all there is to say about it.
func entryOf(m *rtnetlink.RouteMessage) (e entry, plain bool) {
	a := &m.Attributes
	e = entry{a.Table, prefixOf(m), m.Type, a.OutIface, a.Priority}
	if m.Type != unix.RTN_UNICAST {
		e.link = 0 // lo, by the word of IPv6
	}
	return e, e.to.IsValid() && a.Gateway == nil && a.Src == nil && len(a.Multipath) == 0 && m.Tos == 0 && m.SrcLength == 0
}

func prefixOf(m *rtnetlink.RouteMessage) netip.Prefix {
	addr := netip.IPv4Unspecified()
	if m.Family == unix.AF_INET6 {
		addr = netip.IPv6Unspecified()
	}
	if m.Attributes.Dst != nil {
		addr, _ = netip.AddrFromSlice(m.Attributes.Dst)
	}
	return netip.PrefixFrom(addr, int(m.DstLength))
}

// linksOfTables names the interfaces our tables lead to.
func (k *kernel) linksOfTables() ([]string, error) {
	all, err := k.routes(host.MaxWays)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range all {
		e, plain := entryOf(&m)
		if !plain || e.link == 0 || e.metric != metric(m.Family) {
			continue
		}
		link, err := net.InterfaceByIndex(int(e.link))
		if err == nil && !slices.Contains(out, link.Name) {
			out = append(out, link.Name)
		}
	}
	return out, nil
}

// metric is the priority the kernel gives to routes added without one.
func metric(family uint8) uint32 {
	if family == unix.AF_INET6 {
		return 1024
	}
	return 0
}

func (k *kernel) addRoute(e entry) error {
	m := &rtnetlink.RouteMessage{
		Family: family(e.to), DstLength: uint8(e.to.Bits()), Protocol: unix.RTPROT_STATIC, Type: e.kind,
		Attributes: rtnetlink.RouteAttributes{OutIface: e.link, Table: e.table, Priority: e.metric},
	}
	if e.kind == unix.RTN_UNICAST {
		m.Scope = unix.RT_SCOPE_LINK
	}
	if e.to.Bits() > 0 {
		m.Attributes.Dst = e.to.Addr().AsSlice()
	}
	// Without NLM_F_EXCL a route of the same prefix over another link (ours,
	// from before) does not stand in the way; it is deleted afterwards.
	flags := create(true) &^ flagExcl
	if e.to.Addr().Is6() && e.link != 0 {
		flags |= flagAppend
	} else {
		flags |= flagReplace
	}
	if err := k.change(unix.RTM_NEWROUTE, flags, m); err != nil && !done(err) {
		return fmt.Errorf("route %s of table %d: %w", e.to, e.table, err)
	}
	return nil
}

func (k *kernel) deleteRoute(old *rtnetlink.RouteMessage) error {
	m := &rtnetlink.RouteMessage{
		Family: old.Family, DstLength: old.DstLength, Tos: old.Tos, Scope: unix.RT_SCOPE_NOWHERE, Type: old.Type,
		Attributes: rtnetlink.RouteAttributes{
			Dst: old.Attributes.Dst, OutIface: old.Attributes.OutIface, Table: old.Attributes.Table, Priority: old.Attributes.Priority,
		},
	}
	if err := k.change(unix.RTM_DELROUTE, 0, m); err != nil && !done(err) {
		return fmt.Errorf("delete route %s: %w", prefixOf(old), err)
	}
	return nil
}
