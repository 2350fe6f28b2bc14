package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
)

// notLAN are name prefixes of interfaces that carry private addresses and are
// no home network: tunnels, containers, virtual machines.
var notLAN = [...]string{"lo", "docker", "br-docker", "veth", "virbr", "vnet", "tailscale", "wg", "tun", "tap", "zt", "wt", "ppp", host.DefaultInterface}

// lanInterfaces gives the interfaces of the home: those the owner named, or
// those found: a private address, up, and not the way to the internet, of whichever
// table. Where no default route tells which is the WAN, only bridges are taken; these
// also if some table has one there, as for a proxy in the LAN.
func lanInterfaces(c config.LAN, f host.Facts, p *Plan) []host.Interface {
	if len(c.Interfaces) > 0 {
		return named(c.Interfaces, f, p)
	}
	var out []host.Interface
	for _, i := range f.Interfaces {
		if i.Up && !excluded(i.Name) && !isOurs(i.Name) && !isWAN(f, i.Name) && (i.Bridge || len(f.Defaults) > 0 && !i.Uplink) && len(prefixesOf([]host.Interface{i})) > 0 && hasPrivate(i) {
			out = append(out, i)
		}
	}
	return out
}

func named(names []string, f host.Facts, p *Plan) []host.Interface {
	var out []host.Interface
	for _, name := range names {
		if isOurs(name) {
			p.problem("lan-missing", fmt.Sprintf("The interface %q of lan.interfaces is the mesh's own.", name), "Correct lan.interfaces.")
			continue
		}
		i := slices.IndexFunc(f.Interfaces, func(i host.Interface) bool { return i.Name == name })
		if i < 0 {
			p.problem("lan-missing", fmt.Sprintf("The LAN interface %q of lan.interfaces does not exist on this router.", name), "Correct lan.interfaces or plug the interface in.")
			continue
		}
		out = append(out, f.Interfaces[i])
	}
	return out
}

func excluded(name string) bool {
	return slices.ContainsFunc(notLAN[:], func(p string) bool { return strings.HasPrefix(name, p) })
}

func isWAN(f host.Facts, name string) bool {
	return slices.ContainsFunc(f.Defaults, func(d host.Default) bool { return d.Interface == name })
}

func hasPrivate(i host.Interface) bool {
	return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr().IsPrivate() })
}

// prefixesOf is the subnets of those interfaces, without link-local ones and
// single addresses, sorted, each once.
func prefixesOf(is []host.Interface) []netip.Prefix {
	var out []netip.Prefix
	for _, i := range is {
		for _, a := range i.Addrs {
			if m := a.Masked(); !a.Addr().IsLinkLocalUnicast() && !a.IsSingleIP() && !slices.Contains(out, m) {
				out = append(out, m)
			}
		}
	}
	return sortPrefixes(out)
}

// blocked is every subnet this machine itself is on: no route of a peer may
// take packets away from it.
func blocked(f host.Facts) []netip.Prefix {
	var own []host.Interface
	for _, i := range f.Interfaces {
		if !isOurs(i.Name) && i.Name != "lo" {
			own = append(own, i)
		}
	}
	return prefixesOf(own)
}

// offer is what the owner lets the mesh reach.
func offer(in Inputs, local []netip.Prefix, p *Plan) []netip.Prefix {
	switch in.Config.LAN.Expose {
	case config.ExposeAll:
		return local
	case config.ExposeChosen:
		return chosen(in, local, p)
	}
	return nil
}

func chosen(in Inputs, local []netip.Prefix, p *Plan) []netip.Prefix {
	var out []netip.Prefix
	for _, d := range in.Config.LAN.Devices {
		for _, a := range placesOf(d, in.Devices) {
			if !inAny(local, a) {
				if d.MAC == "" { // of others is told where they are listed
					p.outside(d.Name, a)
				}
				continue
			}
			if s := single(a); !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return sortPrefixes(out)
}
