// Package plan decides what this router shall be: Compile turns the owner's
// wishes, the netmap and what the machine is into one host.Config. It is pure.
package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"

	"subnetd/subnetd/config"
	"subnetd/subnetd/exit"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"

	"tailscale.com/types/key"
)

// Inputs is all that a plan depends on.
type Inputs struct {
	Config config.Config
	Down   bool         // the owner wants nothing of ours on the machine
	Netmap *mesh.Netmap // nil: not joined
	Key    key.NodePrivate
	// Devices are those of the configuration, as Resolve has found them, with their
	// mesh addresses.
	Devices []mesh.Device
	Facts   host.Facts
	Now     time.Time
	Port    uint16         // UDP, as the world knows it
	Share   host.PortShare // that port is WireGuard's in the kernel, too; zero: ours alone
	Exits   map[key.NodePublic]Exit
	Ways    []string // Plan.Ways of the plan before: numbers stay
	PeerAPI uint16   // TCP, where members ask this node itself
	Front   uint16   // TCP, where what is served for this router and for devices is brought to; 0: nowhere
	// Shut is what the firewall hand saw of the openings of the plan before.
	Shut []host.Shut
}

// Plan is what follows from Inputs.
type Plan struct {
	Host     host.Config
	LANs     []string       // interfaces that are the home
	Offer    []netip.Prefix // what we ask the coordinator to route to us
	Approved []netip.Prefix // the part of Offer that it accepted
	Exits    []status.ExitRow
	Sources  []host.ExitSource // of each of Exits
	There    []string          // names of the nodes that are exits
	Ways     []string          // the list of exits of each way; "": a number that is free
	Uses     []exit.Use        // the exits of each way that could be used
	Web      []Served          // what lan.web says, of devices that have addresses in the mesh
	Domains  []string          // that the mesh answers for, in lower case, without dots at their ends
	Problems []status.Problem
	Recheck  time.Time // when the passing of time alone changes the plan; zero: never
}

// Compile is the whole decision. Without a netmap the router is left as it
// would be without us, but Offer and LANs are still found, a coordinator in this
// router is still reachable: even this node joins by it, and the port is shared, if
// it is at all: whether that works is seen before there is a netmap.
func Compile(in Inputs) Plan {
	var p Plan
	lans := lanInterfaces(in.Config.LAN, in.Facts, &p)
	local := prefixesOf(lans)
	p.Offer = offer(in, local, &p)
	p.offerExit(in.Config.Exit)
	for _, l := range lans {
		p.LANs = append(p.LANs, l.Name)
	}
	if in.Down {
		return p
	}
	p.Host.Firewall = host.Firewall{Redirect: p.redirect(in.Config, in.Facts), Share: in.Share}
	if in.Netmap == nil || in.Key.IsZero() {
		return p.without(in, "this router is in no mesh")
	}
	self := &in.Netmap.Self
	now := in.Now.Add(in.Netmap.ClockSkew)
	if in.Netmap.Locked {
		p.problem("locked", "The mesh uses tailnet lock, which subnetd cannot verify.", "Turn tailnet lock off for this mesh.")
		return p.without(in, "this router does not take part in a mesh with tailnet lock")
	}
	if self.ExpiredAt(now) || len(self.Addresses) == 0 {
		return p.without(in, "this router must log in to the mesh again")
	}
	p.Recheck = self.KeyExpiry
	p.Approved = intersect(p.Offer, self.AllowedIPs)
	approved := lanOnly(p.Approved)
	devices := p.serve(in, local)
	p.warnUnapproved(in, devices)
	rows := in.Config.Exit.All()
	exits := p.findExits(in, rows, now)
	peers := p.peers(in, devices, exitKeys(exits), now)
	own := addrs(self.Addresses)
	p.Host.Tunnel = host.Tunnel{Name: host.DefaultInterface, Key: in.Key, Peers: peers.main, Exits: peers.exits}
	p.Host.Route = host.Route{
		Interface: host.DefaultInterface,
		Addresses: sortPrefixes(slices.Clone(self.Addresses)),
		Routes:    peers.routes,
		Forward:   len(p.LANs) > 0,
		Exits:     peers.exitRoutes,
		Priority:  p.priority(in),
	}
	p.Host.Firewall = host.Firewall{
		Interface:     host.DefaultInterface,
		Own:           own,
		Exposed:       expose(approved, devices),
		Rules:         withDevices(withoutJailed(in.Netmap.Filter, in.Netmap.Peers), devices, approved, limitsOf(in)),
		SNAT:          in.Config.LAN.SNAT,
		LANs:          p.LANs,
		MasqueradeLAN: len(p.LANs) > 0,
		Sites:         peers.sites,
		LocalLANs:     lanSources(approved),
		Mesh:          peers.all,
		Devices:       devices,
		Redirect:      p.Host.Firewall.Redirect,
		Share:         in.Share,
		Openings:      p.openings(in),
		Exits:         peers.exitRoutes,
	}
	p.There = peers.there
	p.wayOut(in, rows, exits, "")
	p.Host.Route.Sources = routeSources(p.Host.Firewall.Sources, p.LANs, in.Facts)
	p.serveExit(in)
	p.names(in)
	p.front(in, own)
	return p
}

// without is the plan of a router that is in no mesh. Whoever may use the internet
// by an exit only has none then.
func (p Plan) without(in Inputs, why string) Plan {
	p.wayOut(in, in.Config.Exit.All(), nil, why)
	p.Host.Route, p.Ways, p.Uses = host.Route{}, in.Ways, nil
	if !slices.ContainsFunc(p.Host.Firewall.Sources, func(s host.ExitSource) bool { return s.Block }) {
		p.Host.Firewall.Sources = nil
		return p
	}
	p.Host.Firewall.LANs = p.LANs
	return p
}

func (p *Plan) problem(code, text, fix string) {
	p.Problems = append(p.Problems, status.Problem{Code: code, Text: text, Fix: fix})
}

// peers is the netmap's peers as WireGuard peers and routes.
type peers struct {
	main       []host.Peer
	exits      []host.ExitTunnel // those with interfaces of their own
	routes     []netip.Prefix    // through the main interface
	exitRoutes []host.ExitRoute
	all        []netip.Prefix // what is routed to peers, exits among them
	sites      []netip.Prefix // the part of it that is no address of a peer
	there      []string       // who offers an exit
}

// peers finds what goes to each peer. What overlaps a subnet of our own is
// refused: the home always wins over the mesh. So is the mesh address of a device
// of ours.
func (p *Plan) peers(in Inputs, devices []host.DeviceMap, exits map[key.NodePublic]*exitNode, now time.Time) (out peers) {
	nm, local := in.Netmap, blocked(in.Facts)
	claimed := map[netip.Prefix]bool{}
	for _, d := range devices {
		claimed[single(d.Mesh)] = true
	}
	for i := range nm.Peers {
		n := &nm.Peers[i]
		if n.ExpiredAt(now) || n.Key.IsZero() {
			continue
		}
		if !n.KeyExpiry.IsZero() && (p.Recheck.IsZero() || n.KeyExpiry.Before(p.Recheck)) {
			p.Recheck = n.KeyExpiry
		}
		peer := host.Peer{Key: n.Key}
		if !n.Disco.IsZero() {
			peer.Session = n.Disco.String()
		}
		if slices.Contains(n.AllowedIPs, all4) || slices.Contains(n.AllowedIPs, all6) {
			out.there = append(out.there, strings.TrimSuffix(n.Name, "."))
		}
		peer.AllowedIPs = p.allowed(n, local, claimed)
		out.add(n, peer, exits[n.Key])
	}
	sort.Slice(out.main, func(i, j int) bool { return out.main[i].Key.Less(out.main[j].Key) })
	sort.Slice(out.exits, func(i, j int) bool { return out.exits[i].Name < out.exits[j].Name })
	sort.Slice(out.exitRoutes, func(i, j int) bool { return out.exitRoutes[i].Interface < out.exitRoutes[j].Interface })
	sort.Strings(out.there)
	sortPrefixes(out.routes)
	sortPrefixes(out.all)
	sortPrefixes(out.sites)
	return out
}

// allowed is what goes to a peer as its own, sorted, and by that claimed.
func (p *Plan) allowed(n *mesh.Node, local []netip.Prefix, claimed map[netip.Prefix]bool) (out []netip.Prefix) {
	for _, a := range n.AllowedIPs {
		a = a.Masked()
		if a.Bits() == 0 || claimed[a] {
			continue // exits are chosen, not taken
		}
		if i := slices.IndexFunc(local, a.Overlaps); i >= 0 && !(a.IsSingleIP() && n.HasAddr(a.Addr())) {
			p.problem("route-overlap", fmt.Sprintf("%s offers %s, which overlaps %s of this router: not used.", strings.TrimSuffix(n.Name, "."), a, local[i]),
				"Use another subnet in one of the two homes.")
			continue
		}
		claimed[a] = true
		out = append(out, a)
	}
	return sortPrefixes(out)
}

// add puts a peer on the main interface or, as an exit, on one of its own.
func (ps *peers) add(n *mesh.Node, peer host.Peer, x *exitNode) {
	ps.all = append(ps.all, peer.AllowedIPs...)
	for _, a := range peer.AllowedIPs {
		if !n.HasAddr(a.Addr()) {
			ps.sites = append(ps.sites, a)
		}
	}
	if x == nil {
		ps.main, ps.routes = append(ps.main, peer), append(ps.routes, peer.AllowedIPs...)
		return
	}
	ps.exitRoutes = append(ps.exitRoutes, host.ExitRoute{Interface: x.link, Routes: peer.AllowedIPs})
	peer.AllowedIPs = x.withInternet(peer.AllowedIPs)
	ps.exits = append(ps.exits, host.ExitTunnel{Name: x.link, Peer: peer})
}

// lanSources is what hosts behind us may send from: only whole LANs count, a
// single chosen device among them is reached through the router's address.
func lanSources(approved []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(approved), netip.Prefix.IsSingleIP)
}

func addrs(ps []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, 0, len(ps))
	for _, p := range ps {
		out = append(out, p.Addr())
	}
	return sortAddrs(out)
}

func sortAddrs(as []netip.Addr) []netip.Addr {
	sort.Slice(as, func(i, j int) bool { return as[i].Less(as[j]) })
	return as
}

func sortPrefixes(ps []netip.Prefix) []netip.Prefix {
	sort.Slice(ps, func(i, j int) bool {
		return cmp.Or(ps[i].Addr().Compare(ps[j].Addr()), cmp.Compare(ps[i].Bits(), ps[j].Bits())) < 0
	})
	return ps
}

func intersect(offer, allowed []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, o := range offer {
		if slices.Contains(allowed, o) {
			out = append(out, o)
		}
	}
	return out
}

// Redacted is the plan without secrets, for people.
func (p Plan) Redacted() Plan {
	p.Host.Tunnel.Key = key.NodePrivate{}
	return p
}
