// Package host holds the nouns of the machine: Config is what this router
// shall be, Facts is what it is. The packages below it are the hands: each has
// a Set(ctx, part of Config) that is idempotent and corrects only differences.
package host

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"time"

	"subnetd/subnetd/mesh"

	"tailscale.com/types/key"
)

// Names and numbers of everything we own on the machine. The mark, table and
// rule priorities are disjoint from those of mwan3 (mark 0x3f00), pbr and
// tailscaled (mark 0xff0000, table 52, priorities 5210-5270).
const (
	DefaultInterface = "mesh0"
	NftTable         = "subnetd"
	NftHomeTable     = "subnetd_home"  // the way to a coordinator here
	NftPortTable     = "subnetd_port"  // one UDP port for WireGuard in the kernel and for us
	NftExitsTable    = "subnetd_exits" // the same port for the interfaces of exits
	NftGuardTable    = "subnetd_guard" // who may not use the internet but by an exit
	RouteTable       = 8410
	Mark             = 0x05000000 // on packets of our own sockets
	MarkMask         = 0x0f000000
	RuleMark         = 5180 // priority: our own marked packets use the main table
	RuleMesh         = 5181 // priority: everything else asks our table first
	MTU              = 1280 // bytes; the mesh's MTU on every node
)

// Ways out to the internet. Way i is what WayMark(i) marks and table RouteTable+1+i
// routes. Rules behind RuleMesh: RuleLocal asks the main table for everything but
// its default routes, so that the home wins over any exit; from RuleWay on the
// marks decide; RuleFrom and RuleInterface do by addresses and interfaces, for
// packets that lost their marks as somebody flushed nftables.
const (
	MaxWays       = 8
	RuleLocal     = 5182
	RuleWay       = 5183
	RuleDirect    = RuleWay + MaxWays // what DirectMark marks goes on at RuleEnd
	RuleFrom      = RuleDirect + 1
	RuleInterface = RuleFrom + 1
	RuleEnd       = RuleInterface + 1 // where those go on who do as if there were no exits
	RuleLast      = RuleEnd

	// RuleEarly is RuleMark where rules of others (mwan3's at 2001-3254) would decide
	// before us; it is clear of tailscaled's, which go to 1310-1370 then.
	RuleEarly = 1280

	// DirectMark is on packets of a source that uses the internet as if there were no
	// exits, in the bits of MarkMask.
	DirectMark = 0x06000000
)

// ServiceAddrs is where members ask for the mesh's names, on every node
// (tailscale.com/net/tsaddr).
func ServiceAddrs() [2]netip.Addr {
	return [2]netip.Addr{netip.AddrFrom4([4]byte{100, 100, 100, 100}), netip.MustParseAddr("fd7a:115c:a1e0::53")}
}

// WayMark is what packets of way i carry in the bits of MarkMask.
func WayMark(i int) uint32 { return 0x08000000 + uint32(i)<<24 }

// Config is what the router shall be. The zero Config is a router without us.
type Config struct {
	Tunnel   Tunnel
	Route    Route
	Firewall Firewall
	DNS      DNS
}

// Tunnel is the WireGuard interfaces.
type Tunnel struct {
	Name  string // interface; "" : none
	Key   key.NodePrivate
	Peers []Peer // sorted by key text
	// Exits are further interfaces, with the same key and the same port to the
	// world. WireGuard finds a peer by the destination, so that each interface has
	// but one way to the internet.
	Exits []ExitTunnel // sorted by name
}

// exitPrefix begins the name of an exit tunnel's interface; exitDigits are behind it.
const (
	exitPrefix = "mesh-"
	exitDigits = 8
)

// ExitInterface is the name of the interface of the exit tunnel to a node.
func ExitInterface(k key.NodePublic) string {
	h := sha256.Sum256(k.AppendTo(nil))
	return exitPrefix + hex.EncodeToString(h[:exitDigits/2])
}

// IsExitInterface reports whether an interface of that name is one of ours for an
// exit, also of an earlier life.
func IsExitInterface(name string) bool {
	digits, ok := strings.CutPrefix(name, exitPrefix)
	raw, err := hex.DecodeString(digits)
	return ok && err == nil && len(raw) == exitDigits/2 && digits == strings.ToLower(digits)
}

// ExitTunnel is an interface with one peer, whose allowed IPs are those that it
// would have on the main interface, and the internet.
type ExitTunnel struct {
	Name string
	Peer Peer
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
	// Exits are routes of RouteTable through exit tunnels: those of their peers.
	Exits []ExitRoute
	Ways  []Way // by number
	// Sources send packets without a mark their way. An address goes before an
	// interface; else no two of them fit the same packet.
	Sources []RouteSource
	// Priority is that of the first of our rules, which the others follow at their
	// distances from RuleMark. 0: RuleMark.
	Priority uint32
}

// ExitRoute is what goes through an exit tunnel as its peer's own.
type ExitRoute struct {
	Interface string
	Routes    []netip.Prefix
}

// Way is where the traffic of a way goes now: through an exit tunnel or, without
// one, nowhere, or as if there were no exits.
type Way struct {
	Interface string // exit tunnel; "": none is at hand
	Block     bool   // without one: unreachable; else: what the main table says
	// No4 and No6: the exit does not carry that family, which is unreachable then.
	No4, No6 bool
}

// RouteSource is whose traffic takes a way: either an address or an interface.
type RouteSource struct {
	From      netip.Addr
	Interface string // incoming; "lo": the router itself
	Way       int    // -1: what the main table says
}

// DNS is how this machine's own resolver learns the names of the mesh. The zero
// DNS leaves it as it was before us.
type DNS struct {
	Server  netip.AddrPort // our answerer
	Domains []string       // suffixes it knows, reverse zones included; sorted, without dots at their ends
	Link    string         // the mesh interface
	// DnsmasqDir and DnsmasqRestart are the owner's word where dnsmasq reads files
	// and how it is restarted; empty: found.
	DnsmasqDir     string
	DnsmasqRestart []string
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
	// Internet: the Rules may let the mesh reach the internet through here, which
	// is what neither Local has nor is private or special; and never by LANs.
	Internet bool
	Local    []netip.Prefix // of all our interfaces
	// Exits are the interfaces of exit tunnels. They count as the mesh interface,
	// but what begins there comes from the peer's own prefixes.
	Exits []ExitRoute
	// Sources mark what goes a way, in this order: the first that fits decides.
	Sources []ExitSource
	// Names is the port of the answerer, to which DNS to ServiceAddrs is brought;
	// PeerAPI the TCP port of ours that every member may call. 0: none.
	Names, PeerAPI uint16
	Front          Front
	// Openings are left to the host's own rules: nftables cannot open them from a table of ours, as a drop
	// elsewhere is final. The firewall hand says where they are shut.
	Openings Openings
}

// Front is TCP that is brought to a listener of ours, at our mesh address of its family.
// From the mesh comes what Rules let to the port that was meant, the LANs and the router
// itself may all. Where nobody listens, nobody gets anywhere.
type Front struct {
	Port  uint16           // of the listener; 0: nothing is brought
	Doors []netip.AddrPort // what is brought, from the mesh, the LANs and the router itself; sorted
	// Behind is what the listener asks on the LANs for the mesh, which itself is brought to
	// it from there, and never forwarded: who asks is told by the listener alone. Sorted.
	Behind []netip.AddrPort
}

// Openings is where the world calls this router itself.
type Openings struct {
	At         []WANAddr
	UDP, TCP   []uint16
	Translated bool // to TCP the world comes by Redirect, which some firewalls let in as such
}

// Equal reports whether both are the same.
func (o Openings) Equal(p Openings) bool {
	return slices.Equal(o.At, p.At) && slices.Equal(o.UDP, p.UDP) && slices.Equal(o.TCP, p.TCP) && o.Translated == p.Translated
}

// WANAddr is an address of this router towards the internet.
type WANAddr struct {
	Interface string
	Index     int // of the interface
	Addr      netip.Addr
}

// Shut is an opening through which nobody comes, as a chain of another program drops
// what strangers send there.
type Shut struct {
	UDP, V6      bool
	Port         uint16
	Table, Chain string // "inet fw4", "input": the base chain
	Zone         string // of fw4 that drops it; "": none was seen
}

// DeviceMap is a translation of a device's address, both of one family.
type DeviceMap struct {
	Mesh netip.Addr // where the mesh sends to
	LAN  netip.Addr // where the device is
}

// Reach is how often somebody of the mesh began a flow to something on the LAN.
type Reach struct {
	From  netip.Addr // in the mesh
	To    netip.Addr // on the LAN
	Flows uint64
	Ago   time.Duration // since the last of them
}

// ExitSource is whose traffic to the internet takes a way.
type ExitSource struct {
	MACs       []string // in lower case with colons; on LAN interfaces
	Interfaces []string // incoming
	LAN        bool     // every LAN interface
	Router     bool     // what the router itself sends
	Way        int      // -1: as if there were no exits
	// Block: it never leaves but by LANs, the mesh and exit tunnels, whatever
	// routes and marks say, also while the daemon is not there (see Guard).
	Block bool
}

// Redirect sends TCP to some ports of the router's addresses to another port of
// the same address, from wherever it comes, the router itself included. The zero
// Redirect sends nothing. The port To is open only where the host's own rules leave
// it so: see Openings.
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

// ShareExit is a further WireGuard interface behind the outer port (NftExitsTable):
// what comes from its peer is brought to it, and what it sends says Outer. It is no
// part of Config: where a peer is changes by itself, as endpoints in the kernel do.
type ShareExit struct {
	Port uint16           // where it listens
	From []netip.AddrPort // of the peer; sorted
}

// Facts is what the machine is, as far as we look.
type Facts struct {
	Hostname   string
	Interfaces []Interface // sorted by index
	Defaults   []Default   // default routes of the main table
	Neighbours []Neighbour // those that were asked for; sorted by address, then interface
	Rules      []PolicyRule
}

// Neighbour is where a device on a network of ours is: at most one for an address
// and an interface.
type Neighbour struct {
	Addr      netip.Addr
	MAC       string // in lower case with colons
	Interface string
}

// PolicyRule is what we look at of a policy rule of the kernel, ours included.
type PolicyRule struct {
	V6         bool
	Priority   uint32
	Table      uint32
	Mark, Mask uint32 // of packets it is for; Mask 0: of all
}

// Interface is one network interface.
type Interface struct {
	Index  int
	Name   string
	Bridge bool
	Up     bool
	// Uplink: it has a default route of some table, as a second WAN has one for the
	// rules of mwan3 or pbr only.
	Uplink bool
	Addrs  []netip.Prefix // address with its prefix length, not masked
}

// Default is one default route.
type Default struct {
	Interface string
	Gateway   netip.Addr // invalid: on link
	V6        bool
}
