// Package host holds the nouns of the machine: Config is what this router
// shall be, Facts is what it is. The packages below it are the hands: each has
// a Set(ctx, part of Config) that is idempotent and corrects only differences.
package host

import (
	"net/netip"

	"subnetd/subnetd/mesh"

	"tailscale.com/types/key"
)

// Names and numbers of everything we own on the machine. The mark, table and
// rule priorities are disjoint from those of mwan3 (mark 0x3f00), pbr and
// tailscaled (mark 0xff0000, table 52, priorities 5210-5270).
const (
	DefaultInterface = "mesh0"
	NftTable         = "subnetd"
	NftHomeTable     = "subnetd_home" // the way to a coordinator here
	NftPortTable     = "subnetd_port" // one UDP port for WireGuard in the kernel and for us
	RouteTable       = 8410
	Mark             = 0x05000000 // on packets of our own sockets
	MarkMask         = 0x0f000000
	RuleMark         = 5180 // priority: our own marked packets use the main table
	RuleMesh         = 5181 // priority: everything else asks our table first
	MTU              = 1280 // bytes; the mesh's MTU on every node
)

// Config is what the router shall be. The zero Config is a router without us.
type Config struct {
	Tunnel   Tunnel
	Route    Route
	Firewall Firewall
}

// Tunnel is the WireGuard interface.
type Tunnel struct {
	Name  string // interface; "" : none
	Key   key.NodePrivate
	Peers []Peer // sorted by key text
}

// Peer is one WireGuard peer.
type Peer struct {
	Key        key.NodePublic
	AllowedIPs []netip.Prefix // sorted, masked
	// Session changes when the peer restarted (its disco key changed): the
	// tunnel drops the old session keys then, so that no packet is lost to them.
	Session string
}

// Route is addresses and routes of the mesh interface.
type Route struct {
	Interface string
	Addresses []netip.Prefix // /32 and /128
	Routes    []netip.Prefix // through Interface, in RouteTable
	Forward   bool           // IP forwarding, v4 and v6, shall be on
}

// Firewall is the packet policy at the edge between mesh and home (NftTable), the
// way to a coordinator here (NftHomeTable) and the sharing of a port with the
// kernel (NftPortTable). The zero Firewall means: no table of ours.
type Firewall struct {
	// Interface is the mesh interface; "": there is none, and of all the rest
	// only Redirect and Share count.
	Interface string
	Own       []netip.Addr   // our mesh addresses
	Exposed   []netip.Prefix // what lies behind us and may be reached at all
	Rules     []mesh.Rule    // which flows from the mesh may begin
	SNAT      bool           // mesh -> LAN leaves with the router's address
	LANs      []string       // LAN interfaces: they may begin flows into the mesh
	// MasqueradeLAN: LAN -> mesh leaves with our mesh address, except towards
	// the prefixes of Sites, whose routers know the way back.
	MasqueradeLAN bool
	Sites         []netip.Prefix // other homes' LANs
	LocalLANs     []netip.Prefix // our LANs' prefixes that other sites accept as source
	Mesh          []netip.Prefix // peers' addresses and Sites: as a source, only the mesh interface may bring them
	// Devices are reached by their addresses in the mesh, too. What lies behind
	// us (Exposed) and the Rules speak of their LAN addresses.
	Devices  []DeviceMap
	Redirect Redirect
	Share    PortShare
	// Port is our UDP port, as the world knows it. nftables cannot open it from a table of ours (a drop
	// elsewhere is final), so the firewall hand leaves it to the host's own rules.
	Port uint16
}

// DeviceMap is a translation of a device's address, both of one family.
type DeviceMap struct {
	Mesh netip.Addr // where the mesh sends to
	LAN  netip.Addr // where the device is
}

// Redirect sends TCP to some ports of the router's addresses to another port of
// the same address, from wherever it comes, the router itself included. The zero
// Redirect sends nothing. Like Port, the port To is open only where the host's
// own rules leave it so.
type Redirect struct {
	Addrs []netip.Addr // of this router, v4 and v6
	Ports []uint16
	To    uint16
}

// PortShare lets WireGuard in the kernel and a socket of ours have one UDP port: to
// the world there is Outer only. What comes to Outer and is no WireGuard but ours
// (disco, answers of STUN servers) is brought to Inner, and what leaves from Inner
// says Outer. The zero PortShare shares nothing.
type PortShare struct {
	Outer uint16 // WireGuard listens here, and the host's own rules leave it open
	Inner uint16 // our socket is bound here; nothing from outside gets there directly
}

// Facts is what the machine is, as far as we look.
type Facts struct {
	Hostname   string
	Interfaces []Interface // sorted by index
	Defaults   []Default   // default routes of the main table
}

// Interface is one network interface.
type Interface struct {
	Index  int
	Name   string
	Bridge bool
	Up     bool
	Addrs  []netip.Prefix // address with its prefix length, not masked
}

// Default is one default route.
type Default struct {
	Interface string
	Gateway   netip.Addr // invalid: on link
	V6        bool
}
