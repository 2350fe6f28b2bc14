package control

import (
	"encoding/json"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"subnetd/subnetd/mesh"
	"tailscale.com/tailcfg"
	"tailscale.com/types/dnstype"
)

// nodeOf brings a coordinator's node into our form. It takes over its slices.
func nodeOf(n *tailcfg.Node) mesh.Node {
	//lint:ignore SA1019 older coordinators send Capabilities only
	caps := capsOf(n.Capabilities, n.CapMap)
	out := mesh.Node{
		ID: mesh.NodeID(n.ID), Name: n.Name, User: int64(n.User), Key: n.Key, Disco: n.DiscoKey,
		Addresses: valid(n.Addresses), AllowedIPs: allowedIPs(n), Endpoints: validEndpoints(n.Endpoints),
		HomeRelay: homeRelay(n), Online: n.Online, KeyExpiry: n.KeyExpiry, Expired: n.Expired,
		Authorized: n.MachineAuthorized, Cap: int(n.Cap), Caps: caps,
		Jailed: n.IsJailed, Tags: n.Tags, Unsigned: n.UnsignedPeerAPIOnly,
	}
	if n.LastSeen != nil {
		out.LastSeen = *n.LastSeen
	}
	if n.Hostinfo.Valid() {
		out.OS = n.Hostinfo.OS()
		for _, s := range n.Hostinfo.Services().All() {
			switch s.Proto {
			case mesh.RouterService:
				out.Router = true
			case tailcfg.PeerAPI4:
				out.PeerAPI4 = s.Port
			case tailcfg.PeerAPI6:
				out.PeerAPI6 = s.Port
			}
		}
	}
	if a := n.SelfNodeV4MasqAddrForThisPeer; a != nil {
		out.MasqueradeV4 = *a
	}
	if a := n.SelfNodeV6MasqAddrForThisPeer; a != nil {
		out.MasqueradeV6 = *a
	}
	return out
}

// maxDevices is how many devices of ours are heard of.
const maxDevices = 1000

// devicesOf is what the coordinator gave to the devices behind us; nil: it gives them
// nothing. What is no device is left out.
func devicesOf(caps tailcfg.NodeCapMap) []mesh.Device {
	values, ok := caps[mesh.DevicesCap]
	if !ok {
		return nil
	}
	out := []mesh.Device{}
	for _, v := range values[:min(len(values), maxDevices)] {
		var d mesh.Device
		if json.Unmarshal([]byte(v), &d) == nil {
			d.LAN = nil // it is for us to say where that is
			out = append(out, d)
		}
	}
	return out
}

// allowedIPs: nil means the node's addresses; an unsigned node gets no more
// than these, whatever was said.
func allowedIPs(n *tailcfg.Node) []netip.Prefix {
	if n.AllowedIPs == nil || n.UnsignedPeerAPIOnly {
		return valid(n.Addresses)
	}
	return valid(n.AllowedIPs)
}

func valid(ps []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		if p.IsValid() {
			out = append(out, p.Masked())
		}
	}
	return out
}

func validEndpoints(es []netip.AddrPort) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range es {
		if e.IsValid() && e.Port() != 0 {
			out = append(out, e)
		}
	}
	return out
}

// homeRelay also reads the old form, an address 127.3.3.40 with the region as port.
func homeRelay(n *tailcfg.Node) int {
	if n.HomeDERP != 0 {
		return n.HomeDERP
	}
	//lint:ignore SA1019 coordinators of today still send it
	if s, ok := strings.CutPrefix(n.LegacyDERPString, tailcfg.DerpMagicIP+":"); ok {
		if region, err := strconv.ParseUint(s, 10, 16); err == nil {
			return int(region)
		}
	}
	return 0
}

// capsOf returns the names, sorted and each once.
func capsOf(list []tailcfg.NodeCapability, m tailcfg.NodeCapMap) []string {
	var out []string
	for _, c := range list {
		out = append(out, string(c))
	}
	for c := range m {
		out = append(out, string(c))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// relaysOf returns the regions sorted by number. Nil regions and nodes, which
// some coordinators send, are left out.
func relaysOf(m map[int]*tailcfg.DERPRegion) []mesh.RelayRegion {
	var out []mesh.RelayRegion
	for _, id := range slices.Sorted(maps.Keys(m)) {
		r := m[id]
		if r == nil {
			continue
		}
		//lint:ignore SA1019 older coordinators say it this way
		region := mesh.RelayRegion{ID: id, Code: r.RegionCode, Name: r.RegionName, NoMeasure: r.NoMeasureNoHome || r.Avoid}
		for _, n := range r.Nodes {
			if n != nil {
				region.Nodes = append(region.Nodes, relayNodeOf(n))
			}
		}
		out = append(out, region)
	}
	return out
}

func relayNodeOf(n *tailcfg.DERPNode) mesh.RelayNode {
	return mesh.RelayNode{
		Name: n.Name, Host: n.HostName, IPv4: n.IPv4, IPv6: n.IPv6, Port: n.DERPPort, STUNPort: n.STUNPort,
		STUNOnly: n.STUNOnly, CertName: n.CertName, Insecure: n.InsecureForTests,
	}
}

func namesOf(c *tailcfg.DNSConfig) mesh.Names {
	out := mesh.Names{MagicDNS: c.Proxied, Search: c.Domains, Upstream: resolvers(c.Resolvers), Hidden: c.ExitNodeFilteredSet}
	for _, r := range c.ExtraRecords {
		a, err := netip.ParseAddr(r.Value)
		if err == nil && (r.Type == "" || r.Type == "A" && a.Is4() || r.Type == "AAAA" && a.Is6()) {
			out.Records = append(out.Records, mesh.Record{Name: r.Name, Addr: a})
		}
	}
	for suffix, rs := range c.Routes {
		if out.Routes == nil {
			out.Routes = make(map[string][]string)
		}
		out.Routes[suffix] = resolvers(rs)
	}
	return out
}

func resolvers(rs []*dnstype.Resolver) []string {
	var out []string
	for _, r := range rs {
		if r != nil && r.Addr != "" {
			out = append(out, r.Addr)
		}
	}
	return out
}

// maxPicture bounds the URL of a picture, in bytes.
const maxPicture = 1024

// personOf is what a profile says beyond the login.
func personOf(u tailcfg.UserProfile) (p mesh.Person) {
	if u.DisplayName != userName(u) {
		p.Name = u.DisplayName
	}
	if len(u.ProfilePicURL) <= maxPicture {
		p.Picture = u.ProfilePicURL
	}
	return p
}

func userName(u tailcfg.UserProfile) string {
	if u.LoginName != "" {
		return u.LoginName
	}
	return u.DisplayName
}
