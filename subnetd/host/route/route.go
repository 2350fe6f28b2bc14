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

// Router sets a host.Route. What it owns: table host.RouteTable and those of the
// ways behind it, the rules that are like ours (see rules.go), the addresses of the
// mesh interface and of exit tunnels, and what it changed of the kernel's switches.
type Router struct {
	log      *slog.Logger
	mu       sync.Mutex
	last     []string // interfaces of the last Set, to clean up when they change
	ways     int      // whose tables may have something in them
	switches switches
	changes  int // netlink change messages sent since New
}

// New returns a Router; it touches nothing before the first Set.
func New(log *slog.Logger) *Router {
	return &Router{log: log, ways: host.MaxWays, switches: switches{root: "/proc/sys/net", before: map[string]string{}}}
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
		err = r.clear(k, want)
	} else {
		err = r.bring(k, want)
	}
	if k.changes > 0 {
		r.log.Debug("routes set", "interface", want.Interface, "changes", k.changes)
	}
	r.changes += k.changes
	return err
}

// bring sets links, addresses, routes and rules; new ones before old ones go. What
// can be done without an exit tunnel that is missing is done.
func (r *Router) bring(k *kernel, want host.Route) error {
	if len(want.Ways) > host.MaxWays {
		return fmt.Errorf("%d ways, there are %d tables", len(want.Ways), host.MaxWays)
	}
	for _, s := range want.Sources {
		if s.Way >= len(want.Ways) {
			return fmt.Errorf("a source takes way %d of %d", s.Way, len(want.Ways))
		}
	}
	names := interfaces(want)
	links := map[string]uint32{}
	var errs []error
	for _, name := range names {
		link, err := net.InterfaceByName(name)
		if err == nil {
			err = k.setLink(link)
		}
		if err != nil {
			err = fmt.Errorf("interface %s: %w", name, err)
			if name == want.Interface {
				return err
			}
			errs = append(errs, err)
			continue
		}
		links[name] = uint32(link.Index)
		errs = append(errs, k.setAddresses(name, want.Addresses))
		if name != want.Interface {
			errs = append(errs, r.switches.loose(name))
		}
	}
	for _, name := range r.last {
		if !slices.Contains(names, name) {
			errs = append(errs, k.setAddresses(name, nil))
		}
	}
	r.last = names
	r.ways = max(r.ways, len(want.Ways))
	routes := k.setRoutes(entries(want, links), r.ways)
	if routes == nil {
		r.ways = len(want.Ways)
	}
	errs = append(errs,
		routes,
		k.setRules(want),
		r.switches.set(want.Forward))
	return errors.Join(errs...)
}

// interfaces are the mesh interface and the exit tunnels.
func interfaces(want host.Route) []string {
	out := []string{want.Interface}
	for _, e := range want.Exits {
		out = append(out, e.Interface)
	}
	return out
}

// clear removes what is ours: rules first, so that nothing asks an empty table.
func (r *Router) clear(k *kernel, want host.Route) error {
	links, err := k.linksOfTables()
	errs := []error{err, k.setRules(want), k.setRoutes(nil, host.MaxWays)}
	for _, name := range r.last {
		if !slices.Contains(links, name) {
			links = append(links, name)
		}
	}
	for _, name := range links {
		errs = append(errs, k.setAddresses(name, nil))
	}
	errs = append(errs, r.switches.set(false))
	err = errors.Join(errs...)
	if err == nil {
		r.last = nil
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

func family(p netip.Prefix) uint8 {
	if p.Addr().Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
