// Package link is the hand on the kernel's interfaces, addresses and routes. All it does
// may be done twice.
package link

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jsimonetti/rtnetlink/v2"
	"golang.org/x/sys/unix"
)

// Link is an interface.
type Link struct {
	Index   uint32
	Name    string
	MAC     net.HardwareAddr
	Up      bool // by us
	Carrier bool // by cable and peer
	Bridge  uint32
	Port    bool // hardware, as against what the kernel makes up
}

// Conn is a conversation with the kernel. One at a time uses it.
type Conn struct{ c *rtnetlink.Conn }

// Dial opens it.
func Dial() (*Conn, error) {
	c, err := rtnetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &Conn{c}, nil
}

// Close ends it.
func (c *Conn) Close() { _ = c.c.Close() }

// Links are all interfaces, in the order in which the kernel found them.
func (c *Conn) Links() ([]Link, error) {
	msgs, err := c.c.Link.List()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var out []Link
	for _, m := range msgs {
		a := m.Attributes
		if a == nil || m.Flags&unix.IFF_LOOPBACK != 0 {
			continue
		}
		l := Link{Index: m.Index, Name: a.Name, MAC: a.Address, Up: m.Flags&unix.IFF_UP != 0, Carrier: m.Flags&unix.IFF_LOWER_UP != 0}
		if a.Master != nil {
			l.Bridge = *a.Master
		}
		_, err := os.Stat(filepath.Join("/sys/class/net", l.Name, "device"))
		l.Port = err == nil && m.Type == unix.ARPHRD_ETHER
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b Link) int { return cmp.Compare(a.Index, b.Index) })
	return out, nil
}

// Find gives the interface of a name.
func Find(links []Link, name string) (Link, bool) {
	i := slices.IndexFunc(links, func(l Link) bool { return l.Name == name })
	if i < 0 {
		return Link{}, false
	}
	return links[i], true
}

// Choose says which interface leads to the internet, and which are the home's. What is
// wished stands. Else the first port is the WAN, all others are the home's.
func Choose(links []Link, wan, lans string) (string, []string) {
	for _, l := range links {
		if wan == "" && l.Port && !slices.Contains(strings.Split(lans, ","), l.Name) {
			wan = l.Name
		}
	}
	if lans != "" {
		return wan, strings.Split(lans, ",")
	}
	var home []string
	for _, l := range links {
		if l.Port && l.Name != wan {
			home = append(home, l.Name)
		}
	}
	return wan, home
}

// SetUp brings an interface up.
func (c *Conn) SetUp(index uint32) error {
	return c.c.Link.Set(&rtnetlink.LinkMessage{Family: unix.AF_UNSPEC, Index: index, Flags: unix.IFF_UP, Change: unix.IFF_UP})
}

// Bridge makes a bridge, if there is none of that name.
func (c *Conn) Bridge(name string) error {
	err := c.c.Link.New(&rtnetlink.LinkMessage{Family: unix.AF_UNSPEC,
		Attributes: &rtnetlink.LinkAttributes{Name: name, Info: &rtnetlink.LinkInfo{Kind: "bridge"}}})
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	return nil
}

// Join makes an interface a port of a bridge.
func (c *Conn) Join(port, bridge uint32) error {
	return c.c.Link.Set(&rtnetlink.LinkMessage{Family: unix.AF_UNSPEC, Index: port, Attributes: &rtnetlink.LinkAttributes{Master: &bridge}})
}

// Addresses are those of an interface but link-local ones.
func (c *Conn) Addresses(index uint32) ([]netip.Prefix, error) {
	msgs, err := c.c.Address.List()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []netip.Prefix
	for _, m := range msgs {
		if m.Index != index || m.Attributes == nil {
			continue
		}
		ip := m.Attributes.Local
		if ip == nil {
			ip = m.Attributes.Address
		}
		if a, ok := netip.AddrFromSlice(ip); ok && !a.IsLinkLocalUnicast() {
			out = append(out, netip.PrefixFrom(a.Unmap(), int(m.PrefixLength)))
		}
	}
	return out, nil
}

// SetAddresses gives an interface these addresses; of those it has, it loses what ours
// says is ours.
func (c *Conn) SetAddresses(index uint32, want []netip.Prefix, ours func(netip.Prefix) bool) error {
	have, err := c.Addresses(index)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range want { // first what is new: connections may move over
		if err := c.c.Address.New(addressMessage(index, p)); err != nil && !errors.Is(err, os.ErrExist) {
			errs = append(errs, fmt.Errorf("add address %v: %w", p, err))
		}
	}
	for _, p := range have {
		if slices.Contains(want, p) || !ours(p) {
			continue
		}
		if err := c.c.Address.Delete(addressMessage(index, p)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove address %v: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

func addressMessage(index uint32, p netip.Prefix) *rtnetlink.AddressMessage {
	m := &rtnetlink.AddressMessage{Family: family(p.Addr()), PrefixLength: uint8(p.Bits()), Index: index,
		Attributes: &rtnetlink.AddressAttributes{Address: p.Addr().AsSlice(), Local: p.Addr().AsSlice()}}
	if p.Addr().Is4() && p.Bits() < 31 {
		m.Attributes.Broadcast = lastOf(p).AsSlice()
	}
	return m
}

// lastOf is the highest address of a network of IPv4.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// SetDefault leads to the internet of IPv4 by a gateway, which may be outside of the
// interface's network, as some providers have it; no gateway: nowhere. It is the one of
// our protocol number; others are not touched.
func (c *Conn) SetDefault(index uint32, gateway, source netip.Addr) error {
	msgs, err := c.c.Route.List()
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, m := range msgs {
		old, _ := netip.AddrFromSlice(m.Attributes.Gateway)
		if m.Family != unix.AF_INET || m.DstLength != 0 || m.Protocol != unix.RTPROT_DHCP || m.Attributes.OutIface != index {
			continue
		}
		if src, _ := netip.AddrFromSlice(m.Attributes.Src); old == gateway && src == source {
			return nil
		}
		if err := c.c.Route.Delete(&m); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove default route: %w", err)
		}
	}
	if !gateway.IsValid() {
		return nil
	}
	err = c.c.Route.Replace(&rtnetlink.RouteMessage{
		Family: unix.AF_INET, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_DHCP, Type: unix.RTN_UNICAST, Flags: unix.RTNH_F_ONLINK,
		Attributes: rtnetlink.RouteAttributes{Gateway: gateway.AsSlice(), Src: source.AsSlice(), OutIface: index, Table: unix.RT_TABLE_MAIN}})
	if err != nil {
		return fmt.Errorf("default route by %v: %w", gateway, err)
	}
	return nil
}

// SetUnreachable has the kernel refuse what is for these networks and has no better
// route; ours are the only ones of our protocol number. Without it what is for an unused part
// of a delegated prefix goes round between us and the provider (RFC 7084, WPD-5).
func (c *Conn) SetUnreachable(want []netip.Prefix) error {
	msgs, err := c.c.Route.List()
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	var errs []error
	for _, m := range msgs {
		a, ok := netip.AddrFromSlice(m.Attributes.Dst)
		if !ok || m.Type != unix.RTN_UNREACHABLE || m.Protocol != unix.RTPROT_DHCP || slices.Contains(want, netip.PrefixFrom(a, int(m.DstLength))) {
			continue
		}
		if err := c.c.Route.Delete(&m); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	for _, p := range want {
		errs = append(errs, c.c.Route.Replace(&rtnetlink.RouteMessage{
			Family: family(p.Addr()), Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_DHCP, Type: unix.RTN_UNREACHABLE, DstLength: uint8(p.Bits()),
			Attributes: rtnetlink.RouteAttributes{Dst: p.Addr().AsSlice(), Table: unix.RT_TABLE_MAIN, Priority: 1 << 16}}))
	}
	return errors.Join(errs...)
}

// Sysctl writes a value below /proc/sys/net.
func Sysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0)
}
