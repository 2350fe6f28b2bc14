package main

import (
	"net"
	"net/netip"
	"strconv"

	"subnetd/subnetd/config"
	"subnetd/subnetd/coord"
	"subnetd/subnetd/plan"

	"tailscale.com/tailcfg"
)

// homeRegion is the number of our relay's region, from those that are free for
// private ones.
const homeRegion = 900

// placeOf says how members find coordinator and relay. pin is that of the
// relay's certificate; members verify the ordinary way where it is known by a
// name with a real one.
func placeOf(r plan.Reach, pin, stun string, answers bool) coord.Place {
	stunPort := -1
	if _, port, err := net.SplitHostPort(stun); err == nil && answers {
		stunPort, _ = strconv.Atoi(port)
	}
	out := coord.Place{URL: r.URL, Inside: relayMap(r.Inside, pin, stunPort)}
	if r.TLS && r.Name != "" {
		pin = ""
	}
	out.Relays = relayMap(r.Relay, pin, stunPort)
	return out
}

func relayMap(at plan.RelayAt, pin string, stunPort int) *tailcfg.DERPMap {
	n := &tailcfg.DERPNode{
		Name: "home", RegionID: homeRegion, HostName: at.Host, CertName: pin, DERPPort: int(at.Port), STUNPort: stunPort,
		IPv4: literal(at.V4), IPv6: literal(at.V6),
	}
	if !at.V4.IsValid() && !at.V6.IsValid() {
		n.IPv4, n.IPv6 = "", "" // by name
	}
	return &tailcfg.DERPMap{
		OmitDefaultRegions: true,
		Regions: map[int]*tailcfg.DERPRegion{
			homeRegion: {RegionID: homeRegion, RegionCode: "home", RegionName: "Home", Nodes: []*tailcfg.DERPNode{n}},
		},
	}
}

func literal(a netip.Addr) string {
	if !a.IsValid() {
		return "none"
	}
	return a.String()
}

// namesOf is the owner's further names.
func namesOf(c config.Home) coord.Names {
	n := coord.Names{Split: map[string][]netip.AddrPort{}}
	for _, r := range c.Records {
		n.Records = append(n.Records, coord.Record{Name: r.Name, Addr: r.Addr})
	}
	for _, s := range c.SplitDNS {
		at, err := netip.ParseAddrPort(s.Resolver)
		if err != nil {
			a, err := netip.ParseAddr(s.Resolver)
			if err != nil {
				continue // it was checked with the configuration
			}
			at = netip.AddrPortFrom(a, 53)
		}
		n.Split[s.Domain] = append(n.Split[s.Domain], at)
	}
	return n
}
