package plan

import (
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"

	"subnetd/subnetd/host"
)

// mostDomains bounds what the resolver of this machine is told.
const mostDomains = 1024

// names says where this machine answers for the mesh's names, and for which.
func (p *Plan) names(in Inputs) {
	p.Host.Firewall.PeerAPI = in.PeerAPI
	p.Domains = domains(in)
	p.Host.Firewall.Names = in.Config.DNS.Port
	if c := in.Config.DNS; c.Port != 0 && c.Hook && len(p.Domains) > 0 {
		p.Host.DNS = host.DNS{
			Server: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), c.Port), Domains: p.Domains,
			Link: p.Host.Tunnel.Name, DnsmasqDir: c.DnsmasqDir, DnsmasqRestart: c.DnsmasqRestart,
		}
	}
}

// domains is the suffixes that the mesh knows. What the resolver of this machine
// itself answers for others is none of them: it would ask us for what we ask it.
// Nor is the reverse zone of a subnet that we are on.
func domains(in Inputs) []string {
	known := map[string]bool{}
	add := func(d string) {
		if d != "" && len(known) < mostDomains {
			known[d] = true
		}
	}
	n, own := &in.Netmap.Names, ownAddrs(in)
	if n.MagicDNS {
		_, domain, _ := strings.Cut(folded(in.Netmap.Self.Name), ".")
		add(domain)
	}
	local := blocked(in.Facts)
	foreign := map[string]bool{}
	for zone, of := range reverseZones() {
		foreign[zone] = slices.ContainsFunc(local, of.Overlaps)
		if n.MagicDNS && !foreign[zone] {
			add(zone)
		}
	}
	for suffix, resolvers := range n.Routes {
		if s := folded(suffix); !foreign[s] && !slices.ContainsFunc(resolvers, func(r string) bool { return here(r, own) }) {
			add(s)
		}
	}
	if n.MagicDNS {
		for i := range in.Netmap.Peers { // those that others share with us
			if name := folded(in.Netmap.Peers[i].Name); !below(name, known) {
				add(name)
			}
		}
	}
	out := make([]string, 0, len(known))
	for d := range known {
		out = append(out, d)
	}
	sort.Strings(out)
	return out
}

// below reports whether a name is one of the domains or below one.
func below(name string, domains map[string]bool) bool {
	for ; name != ""; _, name, _ = strings.Cut(name, ".") {
		if domains[name] {
			return true
		}
	}
	return false
}

func folded(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }

// ownAddrs is every address of this machine.
func ownAddrs(in Inputs) []netip.Addr {
	out := addrs(in.Netmap.Self.Addresses)
	for _, i := range in.Facts.Interfaces {
		for _, a := range i.Addrs {
			out = append(out, a.Addr())
		}
	}
	return out
}

// here reports whether a resolver is on this machine.
func here(resolver string, own []netip.Addr) bool {
	a, err := netip.ParseAddr(resolver)
	if err != nil {
		at, err := netip.ParseAddrPort(resolver)
		if err != nil {
			return false
		}
		a = at.Addr()
	}
	a = a.Unmap()
	return a.IsLoopback() || slices.Contains(own, a)
}

// reverseZones are those of the mesh's addresses (tailscale.com/net/tsaddr):
// 100.64.0.0/10 makes sixty-four of them.
func reverseZones() map[string]netip.Prefix {
	out := map[string]netip.Prefix{
		"0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa": netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x7a, 0x11, 0x5c, 0xa1, 0xe0}), 48),
	}
	for b := 64; b < 128; b++ {
		out[strconv.Itoa(b)+".100.in-addr.arpa"] = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, byte(b)}), 16)
	}
	return out
}
