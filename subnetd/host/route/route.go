// Package route is the hand for addresses, routes, policy rules and IP
// forwarding of the mesh interface. It compares with the kernel's own tables on
// every Set and sends only the differences.
package route

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	"subnetd/subnetd/host"

	"github.com/jsimonetti/rtnetlink/v2"
	"golang.org/x/sys/unix"
)

// Router sets a host.Route. What it owns: table host.RouteTable, the rules of
// priority host.RuleMark and host.RuleMesh, the addresses of the mesh interface
// and what it changed of the forwarding switches.
type Router struct {
	log      *slog.Logger
	mu       sync.Mutex
	last     string // interface of the last Set, to clean up when it changes
	switches switches
	changes  int // netlink change messages sent since New
}

// New returns a Router; it touches nothing before the first Set.
func New(log *slog.Logger) *Router {
	return &Router{log: log, switches: switches{root: "/proc/sys/net", before: map[string]string{}}}
}

// Set makes the machine what want says. The zero Route removes everything of
// ours. It does as much as it can; the error joins what failed.
func (r *Router) Set(ctx context.Context, want host.Route) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	k, err := dial(ctx)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer k.close()
	if want.Interface == "" {
		err = r.clear(k)
	} else {
		err = r.bring(k, want)
	}
	if k.changes > 0 {
		r.log.Debug("routes set", "interface", want.Interface, "changes", k.changes)
	}
	r.changes += k.changes
	return err
}

// bring sets link, addresses, routes and rules; new ones before old ones go.
func (r *Router) bring(k *kernel, want host.Route) error {
	link, err := net.InterfaceByName(want.Interface)
	if err != nil {
		return fmt.Errorf("interface %s: %w", want.Interface, err)
	}
	if err := k.setLink(link); err != nil {
		return fmt.Errorf("interface %s: %w", want.Interface, err)
	}
	var errs []error
	if r.last != "" && r.last != want.Interface {
		errs = append(errs, k.setAddresses(r.last, nil))
	}
	r.last = want.Interface
	errs = append(errs,
		k.setAddresses(want.Interface, want.Addresses),
		k.setRoutes(uint32(link.Index), want.Routes),
		k.setRules(true),
		r.switches.set(want.Forward))
	return errors.Join(errs...)
}

// clear removes what is ours: rules first, so that nothing asks an empty table.
func (r *Router) clear(k *kernel) error {
	links, err := k.linksOfTable()
	errs := []error{err, k.setRules(false), k.setRoutes(0, nil)}
	if r.last != "" && !slices.Contains(links, r.last) {
		links = append(links, r.last)
	}
	for _, name := range links {
		errs = append(errs, k.setAddresses(name, nil))
	}
	errs = append(errs, r.switches.set(false))
	err = errors.Join(errs...)
	if err == nil {
		r.last = ""
	}
	return err
}

// setLink brings the link up with the mesh's MTU.
func (k *kernel) setLink(link *net.Interface) error {
	if link.MTU == host.MTU && link.Flags&net.FlagUp != 0 {
		return nil
	}
	m := &rtnetlink.LinkMessage{Index: uint32(link.Index), Flags: unix.IFF_UP, Change: unix.IFF_UP}
	if link.MTU != host.MTU {
		m.Attributes = &rtnetlink.LinkAttributes{MTU: host.MTU}
	}
	return k.change(unix.RTM_NEWLINK, 0, m)
}

// setAddresses makes want the addresses of the interface, IPv6 link-local ones
// (the kernel's own) aside. An interface that is gone has none.
func (k *kernel) setAddresses(name string, want []netip.Prefix) error {
	link, err := net.InterfaceByName(name)
	if err != nil {
		if len(want) == 0 {
			return nil
		}
		return fmt.Errorf("interface %s: %w", name, err)
	}
	have, err := addresses(link)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", name, err)
	}
	var errs []error
	for _, p := range want {
		if !slices.Contains(have, p) {
			errs = append(errs, k.address(unix.RTM_NEWADDR, link.Index, p))
		}
	}
	for _, p := range have {
		if !slices.Contains(want, p) {
			errs = append(errs, k.address(unix.RTM_DELADDR, link.Index, p))
		}
	}
	return errors.Join(errs...)
}

func addresses(link *net.Interface) ([]netip.Prefix, error) {
	all, err := link.Addrs()
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range all {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p)
		}
	}
	return out, nil
}

func (k *kernel) address(kind int, index int, p netip.Prefix) error {
	ip := net.IP(p.Addr().AsSlice())
	a := &rtnetlink.AddressAttributes{Address: ip, Flags: unix.IFA_F_NODAD}
	if p.Addr().Is4() {
		a.Local, a.Flags = ip, 0
	}
	m := &rtnetlink.AddressMessage{Family: family(p), PrefixLength: uint8(p.Bits()), Index: uint32(index), Attributes: a}
	if err := k.change(kind, create(kind == unix.RTM_NEWADDR), m); err != nil && !done(err) {
		return fmt.Errorf("address %s: %w", p, err)
	}
	return nil
}

// setRoutes makes want the content of our table, all through the link.
func (k *kernel) setRoutes(link uint32, want []netip.Prefix) error {
	have, err := k.routes()
	if err != nil {
		return fmt.Errorf("read routes: %w", err)
	}
	var errs []error
	var kept []netip.Prefix
	var old []rtnetlink.RouteMessage
	for _, m := range have {
		p, plain := plainRoute(&m, link)
		if plain && slices.Contains(want, p) && !slices.Contains(kept, p) {
			kept = append(kept, p)
			continue
		}
		old = append(old, m)
	}
	for _, p := range want {
		if !slices.Contains(kept, p) {
			kept = append(kept, p)
			errs = append(errs, k.addRoute(link, p))
		}
	}
	for _, m := range old {
		errs = append(errs, k.deleteRoute(&m))
	}
	return errors.Join(errs...)
}

// plainRoute gives the prefix of a route as we write them: on link, unicast.
func plainRoute(m *rtnetlink.RouteMessage, link uint32) (netip.Prefix, bool) {
	a := &m.Attributes
	p := prefixOf(m)
	return p, p.IsValid() && m.Type == unix.RTN_UNICAST && a.OutIface == link && a.Gateway == nil &&
		len(a.Multipath) == 0 && m.Tos == 0 && m.SrcLength == 0 && a.Priority == metric(m.Family)
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

// metric is the priority the kernel gives to routes added without one.
func metric(family uint8) uint32 {
	if family == unix.AF_INET6 {
		return 1024
	}
	return 0
}

func (k *kernel) addRoute(link uint32, p netip.Prefix) error {
	m := &rtnetlink.RouteMessage{
		Family: family(p), DstLength: uint8(p.Bits()), Protocol: unix.RTPROT_STATIC, Scope: unix.RT_SCOPE_LINK, Type: unix.RTN_UNICAST,
		Attributes: rtnetlink.RouteAttributes{OutIface: link, Table: host.RouteTable, Priority: metric(family(p))},
	}
	if p.Bits() > 0 {
		m.Attributes.Dst = p.Addr().AsSlice()
	}
	// Without NLM_F_EXCL a route of the same prefix over another link (ours,
	// from before) does not stand in the way; it is deleted afterwards.
	flags := create(true) &^ flagExcl
	if p.Addr().Is6() {
		flags |= flagAppend
	} else {
		flags |= flagReplace
	}
	if err := k.change(unix.RTM_NEWROUTE, flags, m); err != nil && !done(err) {
		return fmt.Errorf("route %s: %w", p, err)
	}
	return nil
}

func (k *kernel) deleteRoute(old *rtnetlink.RouteMessage) error {
	m := &rtnetlink.RouteMessage{
		Family: old.Family, DstLength: old.DstLength, Tos: old.Tos, Scope: unix.RT_SCOPE_NOWHERE, Type: old.Type,
		Attributes: rtnetlink.RouteAttributes{
			Dst: old.Attributes.Dst, OutIface: old.Attributes.OutIface, Table: host.RouteTable, Priority: old.Attributes.Priority,
		},
	}
	if err := k.change(unix.RTM_DELROUTE, 0, m); err != nil && !done(err) {
		return fmt.Errorf("delete route %s: %w", prefixOf(old), err)
	}
	return nil
}

func family(p netip.Prefix) uint8 {
	if p.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
