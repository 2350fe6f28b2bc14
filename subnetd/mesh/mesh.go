// Package mesh holds the nouns of a mesh network: who is in it, at which
// addresses, and what may be sent to whom. They are values: once handed to
// another goroutine they are never changed.
package mesh

import (
	"net/netip"
	"slices"
	"time"

	"tailscale.com/types/key"
)

// NodeID is the coordinator's number of a node. It stays when keys change.
type NodeID int64

// Node is one member of the mesh, ourselves included.
type Node struct {
	ID         NodeID           `json:"id"`
	Name       string           `json:"name"` // fully qualified, with a trailing dot
	User       int64            `json:"user,omitempty"`
	Key        key.NodePublic   `json:"key"`   // WireGuard public key
	Disco      key.DiscoPublic  `json:"disco"` // zero if unknown
	Addresses  []netip.Prefix   `json:"addresses"`
	AllowedIPs []netip.Prefix   `json:"allowedIPs"` // addresses and approved routes
	Endpoints  []netip.AddrPort `json:"endpoints,omitempty"`
	HomeRelay  int              `json:"homeRelay,omitempty"` // region; 0: none
	Online     *bool            `json:"online,omitempty"`    // nil: unknown
	LastSeen   time.Time        `json:"lastSeen,omitzero"`
	KeyExpiry  time.Time        `json:"keyExpiry,omitzero"` // zero: never
	Expired    bool             `json:"expired,omitempty"`
	Authorized bool             `json:"authorized,omitempty"`
	Cap        int              `json:"cap,omitempty"` // capability version
	Caps       []string         `json:"caps,omitempty"`
	Jailed     bool             `json:"jailed,omitempty"` // may not open flows to us
	OS         string           `json:"os,omitempty"`
	Tags       []string         `json:"tags,omitempty"`
	// Router: a whole LAN may speak with its address; RouterService says so.
	Router bool `json:"router,omitempty"`
	// Masquerade addresses: the addresses under which this peer knows us, if
	// they are not our own (shared nodes); invalid otherwise.
	MasqueradeV4 netip.Addr `json:"masqueradeV4,omitzero"`
	MasqueradeV6 netip.Addr `json:"masqueradeV6,omitzero"`
	// PeerAPI4 and PeerAPI6 are the TCP ports at which it answers members, at its first
	// address of that family; 0: it does not.
	PeerAPI4 uint16 `json:"peerAPI4,omitempty"`
	PeerAPI6 uint16 `json:"peerAPI6,omitempty"`
	Unsigned bool   `json:"unsigned,omitempty"` // to a locked mesh: it may ask, and do nothing
}

// ExpiredAt reports whether the node's key is no longer valid at now.
func (n *Node) ExpiredAt(now time.Time) bool {
	return n.Expired || (!n.KeyExpiry.IsZero() && !now.Before(n.KeyExpiry))
}

// HasAddr reports whether a is one of the node's own mesh addresses.
func (n *Node) HasAddr(a netip.Addr) bool {
	return slices.ContainsFunc(n.Addresses, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Own reports whether a is the node's very own. To some clients, as we are, our
// coordinator shows the addresses of devices behind a node as further ones, last.
func (n *Node) Own(a netip.Addr) bool {
	i := slices.IndexFunc(n.Addresses, func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() })
	return i >= 0 && n.Addresses[i].Addr() == a
}

// RelayNode is one server of a relay region.
type RelayNode struct {
	Name     string `json:"name"`
	Host     string `json:"host"`
	IPv4     string `json:"ipv4,omitempty"` // literal; "none": off; empty: by DNS
	IPv6     string `json:"ipv6,omitempty"`
	Port     int    `json:"port,omitempty"`     // 0: 443
	STUNPort int    `json:"stunPort,omitempty"` // 0: 3478, -1: off
	STUNOnly bool   `json:"stunOnly,omitempty"`
	CertName string `json:"certName,omitempty"` // TLS name, or "sha256-raw:<hex>" pin
	Insecure bool   `json:"insecure,omitempty"` // set by tests of coordinators only
}

// RelayRegion is a set of relays that forward to each other.
type RelayRegion struct {
	ID        int         `json:"id"`
	Code      string      `json:"code"`
	Name      string      `json:"name"`
	NoMeasure bool        `json:"noMeasure,omitempty"` // never choose as home
	Nodes     []RelayNode `json:"nodes"`
}

// Range is an inclusive range of addresses of one family.
type Range struct {
	From netip.Addr `json:"from"`
	To   netip.Addr `json:"to"`
}

// PortRange is an inclusive range of ports; 0-65535 is every port.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// Dest is where a rule lets packets go.
type Dest struct {
	Range Range     `json:"range"`
	Ports PortRange `json:"ports"`
}

// Rule lets packets from any of Srcs to any of Dsts pass. Rules only allow; what
// no rule allows is refused. An empty Protos means TCP, UDP and ICMP (both).
type Rule struct {
	Srcs   []Range `json:"srcs"`
	Dsts   []Dest  `json:"dsts"`
	Protos []uint8 `json:"protos,omitempty"` // IANA protocol numbers
}

// Grant lets any of Srcs do at any of Dsts what Caps name: the capabilities that we
// know, CapSend and CapTarget.
type Grant struct {
	Srcs []Range  `json:"srcs"`
	Dsts []Range  `json:"dsts"`
	Caps []string `json:"caps"` // sorted
}

// Capabilities about files that are sent from member to member. CapSharing is of a node:
// it takes part at all. The others are granted to a peer, in the direction from it to us:
// CapSend lets it send to us, CapTarget lets us offer it as one who takes files.
const (
	CapSharing = "https://tailscale.com/cap/file-sharing"
	CapSend    = "https://tailscale.com/cap/file-send"
	CapTarget  = "https://tailscale.com/cap/file-sharing-target"
)

// Contains reports whether a is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.From.BitLen() == a.BitLen() && r.To.BitLen() == a.BitLen() && !a.Less(r.From) && !r.To.Less(a)
}

// Names is what the coordinator says about DNS.
type Names struct {
	MagicDNS bool                `json:"magicDNS,omitempty"`
	Search   []string            `json:"search,omitempty"`
	Records  []Record            `json:"records,omitempty"`
	Routes   map[string][]string `json:"routes,omitempty"` // suffix -> resolvers; empty list: answered here
	Upstream []string            `json:"upstream,omitempty"`
	// Hidden is what an exit does not resolve for those who leave through it: names,
	// or suffixes with a dot first.
	Hidden []string `json:"hidden,omitempty"`
}

// Record is one extra DNS record.
type Record struct {
	Name string     `json:"name"`
	Addr netip.Addr `json:"addr"`
}

// Person is who a user is to other people.
type Person struct {
	Name    string `json:"name,omitempty"`    // as people say it; "": the login
	Picture string `json:"picture,omitempty"` // URL
}

// Netmap is everything a coordinator has told this node, deltas applied.
type Netmap struct {
	Self   Node             `json:"self"`
	Peers  []Node           `json:"peers"` // sorted by ID
	Relays []RelayRegion    `json:"relays"`
	Names  Names            `json:"names"`
	Filter []Rule           `json:"filter"` // nil or empty: nothing may enter
	Grants []Grant          `json:"grants,omitempty"`
	Users  map[int64]string `json:"users,omitempty"` // logins
	// People is what else is told of those of Users of whom there is more.
	People    map[int64]Person `json:"people,omitempty"`
	Domain    string           `json:"domain,omitempty"`
	Health    []string         `json:"health,omitempty"`
	ClockSkew time.Duration    `json:"clockSkew,omitempty"` // coordinator's clock minus ours
	Locked    bool             `json:"locked,omitempty"`    // tailnet lock is on: unsupported
	// Devices is what this node's things have in the mesh: Name, MAC, Full and Mesh of
	// each; nil: the coordinator gives them nothing.
	Devices []Device `json:"devices"`
}

// Peer returns the peer with that ID, or nil.
func (m *Netmap) Peer(id NodeID) *Node {
	i, ok := slices.BinarySearchFunc(m.Peers, id, func(n Node, id NodeID) int { return int(n.ID - id) })
	if !ok {
		return nil
	}
	return &m.Peers[i]
}

// Granted reports whether a peer is granted a capability at this node: in one family, as
// a connection has one.
func (m *Netmap) Granted(from *Node, capability string) bool {
	for _, p := range from.Addresses {
		src := p.Addr()
		if !from.Own(src) {
			continue
		}
		for _, own := range m.Self.Addresses {
			if own.Addr().Is4() == src.Is4() && m.Self.Own(own.Addr()) && m.grants(src, own.Addr(), capability) {
				return true
			}
		}
	}
	return false
}

func (m *Netmap) grants(src, dst netip.Addr, capability string) bool {
	return slices.ContainsFunc(m.Grants, func(g Grant) bool {
		return slices.Contains(g.Caps, capability) &&
			slices.ContainsFunc(g.Srcs, func(r Range) bool { return r.Contains(src) }) &&
			slices.ContainsFunc(g.Dsts, func(r Range) bool { return r.Contains(dst) })
	})
}

// Device is a thing on the LAN that has addresses of its own in the mesh, which
// the router translates one to one, where both have one of a family. LAN and Mesh
// hold at most one of each.
type Device struct {
	Name string       `json:"name"`           // one label; "": none
	MAC  string       `json:"mac,omitempty"`  // in lower case with colons; "": known by its addresses
	Full string       `json:"full,omitempty"` // its name in the mesh, without a dot at its end; "": it has none
	LAN  []netip.Addr `json:"lan"`
	Mesh []netip.Addr `json:"mesh"`
}

// A coordinator of ours gives addresses to the devices behind any member. It says so by
// a capability of the node; the member tells of its devices among its services, where
// nobody else hears of them, and hears of their addresses by that capability.
const (
	DevicesCap     = "subnetd/cap/devices" // each of its values is a Device
	DevicesService = "subnetd-devices"     // all devices are told of; Port is how many
	DeviceService  = "subnetd-device"      // one; Description is "NAME MAC" or "NAME", Port 1 that it has IPv6
)

// RouterService is told among its services by a node that lets its LAN into the mesh by
// its own address: what comes from there need not be of its user.
const RouterService = "subnetd-router"

// PathKind says how packets reach a peer.
type PathKind string

// The kinds of path.
const (
	PathNone   PathKind = "none"
	PathRelay  PathKind = "relay"
	PathDirect PathKind = "direct"
)

// Path is the way packets to a peer take now, and why.
type Path struct {
	Kind   PathKind       `json:"kind"`
	Addr   netip.AddrPort `json:"addr,omitzero"`    // direct: the peer's endpoint
	Relay  int            `json:"relay,omitempty"`  // relay: region
	RTT    time.Duration  `json:"rtt,omitempty"`    // last measured, 0: unknown
	Reason string         `json:"reason,omitempty"` // why not direct, in plain words
	Since  time.Time      `json:"since,omitzero"`
}
