package underlay

import (
	"net/netip"
	"slices"
	"strings"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
)

// maxEndpoints is how many endpoints we tell others of.
const maxEndpoints = 32

// meshV6 is the range from which meshes take their IPv6 addresses.
var meshV6 = netip.MustParsePrefix("fd7a:115c:a1e0::/48") // constant; Go has no constant of this type

// endpoints are the addresses at which we may be reached, best first: port
// mapping, STUN (IPv4, IPv6), then those of the interfaces. No address twice.
func endpoints(f host.Facts, nm *mesh.Netmap, m measurement, mapped []netip.AddrPort, port uint16, v4, v6 bool) []Endpoint {
	var all []Endpoint
	add := func(a netip.AddrPort, typ int) {
		known := slices.ContainsFunc(all, func(e Endpoint) bool { return e.Addr == a })
		if a.IsValid() && !known && len(all) < maxEndpoints {
			all = append(all, Endpoint{a, typ})
		}
	}
	for _, a := range mapped {
		add(a, EndpointPortMap)
	}
	add(m.v4, EndpointSTUN)
	add(m.v6, EndpointSTUN)
	for _, a := range localAddrs(f, nm) {
		if a.Is4() && v4 || a.Is6() && v6 {
			add(netip.AddrPortFrom(a, port), EndpointLocal)
		}
	}
	if m.varies && m.v4.IsValid() { // a hard NAT may still forward our port on purpose
		add(netip.AddrPortFrom(m.v4.Addr(), port), EndpointGuess)
	}
	return all
}

// localAddrs are the interfaces' addresses that others may be able to reach.
func localAddrs(f host.Facts, nm *mesh.Netmap) []netip.Addr {
	var all []netip.Addr
	for _, i := range f.Interfaces {
		if isMesh(i.Name) || !i.Up || strings.HasPrefix(i.Name, "tailscale") {
			continue
		}
		for _, p := range i.Addrs {
			a := p.Addr().Unmap().WithZone("")
			self := nm != nil && nm.Self.HasAddr(a)
			if a.IsValid() && a.IsGlobalUnicast() && !meshV6.Contains(a) && !self {
				all = append(all, a)
			}
		}
	}
	return all
}

// isMesh reports whether the interface is one of the mesh's.
func isMesh(name string) bool { return name == host.DefaultInterface || host.IsExitInterface(name) }

// wan is what of the facts must stay for our mappings at NATs to stay: the
// default routes and the addresses of their interfaces.
func wan(f host.Facts) []string {
	var all []string
	for _, d := range f.Defaults {
		all = append(all, "route "+d.Interface+" "+d.Gateway.String())
		for _, i := range f.Interfaces {
			if i.Name != d.Interface {
				continue
			}
			for _, p := range i.Addrs {
				if p.Addr().IsGlobalUnicast() {
					all = append(all, "addr "+p.String())
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// gatewayOf is the router to ask for a port mapping; invalid: none.
func gatewayOf(f host.Facts) netip.Addr {
	for _, d := range f.Defaults {
		if !d.V6 && d.Gateway.Is4() && !isMesh(d.Interface) {
			return d.Gateway
		}
	}
	return netip.Addr{}
}
