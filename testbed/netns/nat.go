package netns

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// NAT is what stands between a host and the internet.
type NAT string

// The kinds of NAT. All but Public give the host a private IPv4 address and no IPv6.
const (
	Public     NAT = "public"      // no NAT: a public IPv4 and IPv6 address
	Easy       NAT = "easy"        // one mapping per inside port for all destinations; only replies come back in
	Hard       NAT = "hard"        // a random port for every destination
	Double     NAT = "double"      // an easy NAT behind an easy NAT
	UDPBlocked NAT = "udp-blocked" // an easy NAT that forwards no UDP
)

// Kinds lists every kind, in the order of the grid.
func Kinds() []NAT { return []NAT{Public, Easy, Hard, Double, UDPBlocked} }

// uplink gives interface ifname of h a way to the internet through a NAT of the given kind.
func (l *Lab) uplink(h *Host, ifname string, kind NAT) {
	l.t.Helper()
	switch kind {
	case Public:
		l.public(h, ifname, l.freePublic())
	case Easy, Hard, UDPBlocked:
		box := l.newHost(h.Name + "nat")
		l.public(box, "wan", l.freePublic())
		l.behind(box, h, ifname, kind)
	case Double:
		outer, inner := l.newHost(h.Name+"cgn"), l.newHost(h.Name+"nat")
		l.public(outer, "wan", l.freePublic())
		l.behind(outer, inner, "wan", Easy)
		l.behind(inner, h, ifname, Easy)
	default:
		l.t.Fatalf("no NAT of kind %q", kind)
	}
}

// behind connects interface ifname of h to box, which translates for it.
func (l *Lab) behind(box, h *Host, ifname string, kind NAT) {
	l.t.Helper()
	n := strconv.Itoa(l.nextNet)
	l.nextNet++
	box.forward()
	l.link(box, "lan", h, ifname)
	box.ip("addr add 10.99." + n + ".1/24 dev lan")
	h.Addr4 = netip.MustParseAddr("10.99." + n + ".2")
	h.ip("addr add 10.99."+n+".2/24 dev "+ifname, "route add default via 10.99."+n+".1")
	box.nft(natRules(kind))
	h.box = box
}

// Behind is the NAT box before the host; nil: it has a public address.
func (h *Host) Behind() *Host { return h.box }

// mappedAddr is an outer address that a port-mapping router believes to be public: it refuses those for documentation.
const mappedAddr = "9.9.9.9"

// MapPorts makes the NAT box before h a router that forwards ports on request: Debian's miniupnpd, speaking NAT-PMP and
// PCP, or UPnP. The box stays as hard a NAT as it was. The address it forwards from is given.
func (l *Lab) MapPorts(h *Host, upnp bool) netip.Addr {
	l.t.Helper()
	box, yes, no := h.box, "enable_natpmp", "enable_upnp"
	if upnp {
		yes, no = no, yes
	}
	box.ip("addr add " + mappedAddr + "/32 dev wan")
	l.inet.ip(fmt.Sprintf("route add %s/32 via %s", mappedAddr, box.Addr4))
	box.nft("delete table inet nat")
	box.nft(strings.NewReplacer(
		"chain post {", "chain upnp_post { }\n\tchain upnp_pre { }\n\tchain upnp_forward { }\n"+
			"\tchain pre { type nat hook prerouting priority dstnat; jump upnp_pre; }\n\tchain post {",
		"iifname \"wan\" drop\n\t}\n}", "jump upnp_forward\n\t\tiifname \"wan\" drop\n\t}\n}",
	).Replace(natRules(Hard)))
	conf := l.write("miniupnpd-"+box.Name, fmt.Sprintf(`ext_ifname=wan
ext_ip=%s
listening_ip=lan
%s=yes
%s=no
upnp_table_name=nat
upnp_nat_table_name=nat
upnp_forward_chain=upnp_forward
upnp_nat_chain=upnp_pre
upnp_nat_postrouting_chain=upnp_post
secure_mode=yes
system_uptime=yes
uuid=00000000-0000-0000-0000-000000000001
allow 1024-65535 0.0.0.0/0 1024-65535
`, mappedAddr, yes, no))
	box.Start(peer(l.t, "miniupnpd", miniupnpdVersion, "miniupnpd"), "-d", "-f", conf, "-P", filepath.Join(l.dir, "miniupnpd.pid"))
	return netip.MustParseAddr(mappedAddr)
}

// EasyRules is the ruleset of an easy NAT, for tests in which a network changes.
func EasyRules() string { return natRules(Easy) }

// natRules is the ruleset of a NAT box. What comes to the box itself unasked is dropped before conntrack confirms it:
// otherwise a peer's first hole-punching packet would occupy the very mapping that the inside host is about to need.
func natRules(kind NAT) string {
	masquerade, block := "masquerade", ""
	if kind == Hard {
		masquerade = "masquerade fully-random"
	}
	if kind == UDPBlocked {
		block = "meta l4proto udp drop"
	}
	return fmt.Sprintf(`table inet nat {
	chain post { type nat hook postrouting priority srcnat; oifname "wan" %s; }
	chain input { type filter hook input priority filter;
		iifname "wan" ct state established,related accept
		iifname "wan" meta l4proto { icmp, ipv6-icmp } accept
		iifname "wan" drop
	}
	chain forward { type filter hook forward priority filter;
		%s
		iifname "wan" ct state established,related accept
		iifname "wan" drop
	}
}
`, masquerade, block)
}

// homeRules is what a plain home router does on its own: it masquerades its LAN and lets nobody into it from outside.
func homeRules(lan4, lan6 netip.Prefix) string {
	return fmt.Sprintf(`table inet home {
	chain post { type nat hook postrouting priority srcnat;
		oifname "wan0" ip saddr %s masquerade
		oifname "wan0" ip6 saddr %s masquerade
	}
	chain forward { type filter hook forward priority filter;
		iifname "wan0" ct state established,related accept
		iifname "wan0" drop
	}
}
`, lan4, lan6)
}
