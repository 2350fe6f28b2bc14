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
	// Devices are the things on the LAN with mesh addresses of their own.
	Devices []mesh.Device
	Facts   host.Facts
	Now     time.Time
	Port    uint16         // UDP, as the world knows it
	Share   host.PortShare // that port is WireGuard's in the kernel, too; zero: ours alone
}

// Plan is what follows from Inputs.
type Plan struct {
	Host     host.Config
	LANs     []string       // interfaces that are the home
	Offer    []netip.Prefix // what we ask the coordinator to route to us
	Approved []netip.Prefix // the part of Offer that it accepted
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
	p.Offer = offer(in.Config.LAN, local, &p)
	for _, l := range lans {
		p.LANs = append(p.LANs, l.Name)
	}
	if in.Down {
		return p
	}
	p.Host.Firewall = host.Firewall{Redirect: p.redirect(in.Config, in.Facts), Share: in.Share}
	if in.Netmap == nil || in.Key.IsZero() {
		return p
	}
	self := &in.Netmap.Self
	now := in.Now.Add(in.Netmap.ClockSkew)
	if in.Netmap.Locked {
		p.problem("locked", "The mesh uses tailnet lock, which subnetd cannot verify.", "Turn tailnet lock off for this mesh.")
		return p
	}
	if self.ExpiredAt(now) || len(self.Addresses) == 0 {
		return p
	}
	p.Recheck = self.KeyExpiry
	p.Approved = intersect(p.Offer, self.AllowedIPs)
	devices := p.serve(in, local)
	p.warnUnapproved(in, devices)
	peers, routes, sites := p.peers(in, devices, now)
	own := addrs(self.Addresses)
	p.Host.Tunnel = host.Tunnel{Name: host.DefaultInterface, Key: in.Key, Peers: peers}
	p.Host.Route = host.Route{
		Interface: host.DefaultInterface,
		Addresses: sortPrefixes(slices.Clone(self.Addresses)),
		Routes:    routes,
		Forward:   len(p.LANs) > 0,
	}
	p.Host.Firewall = host.Firewall{
		Interface:     host.DefaultInterface,
		Own:           own,
		Exposed:       expose(p.Approved, devices),
		Rules:         withDevices(withoutJailed(in.Netmap.Filter, in.Netmap.Peers), devices, p.Approved),
		SNAT:          in.Config.LAN.SNAT,
		LANs:          p.LANs,
		MasqueradeLAN: len(p.LANs) > 0,
		Sites:         sites,
		LocalLANs:     lanSources(p.Approved),
		Mesh:          routes,
		Devices:       devices,
		Redirect:      p.Host.Firewall.Redirect,
		Share:         in.Share,
		Port:          in.Port,
	}
	return p
}

func (p *Plan) problem(code, text, fix string) {
	p.Problems = append(p.Problems, status.Problem{Code: code, Text: text, Fix: fix})
}

// peers turns the netmap's peers into WireGuard peers and routes. What overlaps
// a subnet of our own is refused: the home always wins over the mesh. So is the
// mesh address of a device of ours.
func (p *Plan) peers(in Inputs, devices []host.DeviceMap, now time.Time) (out []host.Peer, routes, sites []netip.Prefix) {
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
			peer.AllowedIPs = append(peer.AllowedIPs, a)
			routes = append(routes, a)
			if !n.HasAddr(a.Addr()) {
				sites = append(sites, a)
			}
		}
		sortPrefixes(peer.AllowedIPs)
		out = append(out, peer)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key.Less(out[j].Key) })
	return out, sortPrefixes(routes), sortPrefixes(sites)
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
