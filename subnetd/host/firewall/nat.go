package firewall

import (
	"net/netip"
	"slices"
	"sort"

	"subnetd/subnetd/host"

	"github.com/google/nftables"
)

// Translations happen once for a flow, at its first packet:
//
//	prerouting   what is for a listener of ours becomes its port (front), else a
//	             device's mesh address becomes its LAN address (to_device), and 80
//	             and 443 of the WAN become the coordinator's port (to_home)
//	output       to_home, for what the router itself sends
//	postrouting  whose address a packet leaves with
//
// The filter sees addresses of after prerouting and of before postrouting.

// behindTheirs puts our destination NAT after that of others, who are at
// NF_IP_PRI_NAT_DST (-100): the first to translate a flow wins, and a port that
// the owner forwards elsewhere stays his.
const behindTheirs nftables.ChainPriority = -90

func redirects(r host.Redirect) bool { return len(r.Addrs) > 0 && len(r.Ports) > 0 && r.To != 0 }

// redirection is the table that leads to a coordinator here.
func redirection(r host.Redirect) *table {
	t := &table{name: host.NftHomeTable}
	if !redirects(r) {
		return t
	}
	c := chain{name: "to_home"}
	t.sets = append(t.sets, portSet("ports", r.Ports))
	for _, f := range families() {
		t.sets = append(t.sets, rangeSet(f, "wan", rangesOf(singles(r.Addrs), f.v6)))
		c.rules = append(c.rules, rule(f.addrIn(f.dst, "wan"+f.digit), tcpPortIn("ports"), toPort(r.To)))
	}
	t.chains = append(t.chains, c,
		chain{"prerouting", dstNATHook(nftables.ChainHookPrerouting), []match{jump(c.name)}},
		chain{"output", dstNATHook(nftables.ChainHookOutput), []match{jump(c.name)}})
	return t
}

// translate adds the sets and chains that lead to devices.
func (t *table) translate(cfg host.Firewall) {
	c := chain{name: "to_device"}
	for _, f := range families() {
		t.sets = append(t.sets, deviceMap(f, cfg.Devices), rangeSet(f, "hosts", rangesOf(hosts(cfg.Devices), f.v6)))
		c.rules = append(c.rules, f.translated("device"+f.digit))
	}
	t.chains = append(t.chains, c, chain{"prerouting", dstNATHook(nftables.ChainHookPrerouting), []match{
		rule(iifMesh(cfg), jump(c.name)), rule(iifIn("lans"), jump(c.name))}})
}

func dstNATHook(num *nftables.ChainHook) *hook {
	return &hook{nftables.ChainTypeNAT, *num, behindTheirs}
}

// natChain. What comes from the mesh, and a neighbour on the LAN that was
// translated to a device, get our address, so that the answer comes back through
// us; so does what goes to the internet for the mesh, or by an exit. Towards other
// sites our LANs keep their addresses if the sites know them; all else that our LANs
// begin in the mesh gets our mesh address. A packet that the kernel's WireGuard has
// wrapped seems to come in by the mesh interface still: it is nobody's to translate,
// least of all on its way to us on lo. count is what comes before all translation.
func natChain(cfg host.Firewall, count []match) chain {
	c := chain{name: "postrouting",
		hook:  &hook{nftables.ChainTypeNAT, *nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource},
		rules: append([]match{rule(own(), accept())}, count...)}
	if cfg.SNAT {
		c.rules = append(c.rules, rule(iifMesh(cfg), notOifMesh(cfg), masquerade()))
	} else if cfg.Internet {
		c.rules = append(c.rules, rule(iifMesh(cfg), notOifMesh(cfg), notOifIn("lans"), masquerade()))
	}
	if len(cfg.Devices) > 0 {
		for _, f := range families() {
			c.rules = append(c.rules, rule(iifIn("lans"), translatedFlow(), f.addrIn(f.dst, "hosts"+f.digit), masquerade()))
		}
	}
	if cfg.MasqueradeLAN {
		for _, f := range families() {
			c.rules = append(c.rules, rule(oifMesh(cfg),
				f.addrIn(f.src, "local"+f.digit), f.addrIn(f.dst, "sites"+f.digit), accept()))
		}
		c.rules = append(c.rules, rule(iifIn("lans"), oifMesh(cfg), masquerade()))
	}
	if len(cfg.Exits) > 0 { // the exit takes the internet's packets from our address alone
		for _, f := range families() {
			c.rules = append(c.rules, rule(oifTunnel(), f.addrNotIn(f.dst, "mesh"+f.digit), masquerade()))
		}
	}
	return c
}

// deviceMap translates mesh addresses into LAN addresses. Pairs that are none of
// the family, both of them, translate nothing.
func deviceMap(f family, devices []host.DeviceMap) set {
	s := set{name: "device" + f.digit, key: f.addrType, kind: addresses}
	ok := func(a netip.Addr) bool { return a.IsValid() && a.Is6() == f.v6 && !a.Is4In6() && a.Zone() == "" }
	devices = slices.Clone(devices)
	sort.Slice(devices, func(i, j int) bool {
		a, b := devices[i], devices[j]
		return a.Mesh.Less(b.Mesh) || a.Mesh == b.Mesh && a.LAN.Less(b.LAN)
	})
	var last netip.Addr
	for _, d := range devices {
		if ok(d.Mesh) && ok(d.LAN) && d.Mesh != last {
			s.values = append(s.values, nftables.SetElement{Key: d.Mesh.AsSlice(), Val: d.LAN.AsSlice()})
			last = d.Mesh
		}
	}
	return s
}

func portSet(name string, ports []uint16) set {
	s := set{name: name, key: nftables.TypeInetService, kind: plain}
	ports = slices.Clone(ports)
	sort.Slice(ports, func(i, j int) bool { return ports[i] < ports[j] })
	for _, p := range slices.Compact(ports) {
		s.values = append(s.values, nftables.SetElement{Key: []byte{byte(p >> 8), byte(p)}})
	}
	return s
}

// hosts is the LAN addresses of devices.
func hosts(devices []host.DeviceMap) []netip.Prefix {
	var out []netip.Addr
	for _, d := range devices {
		out = append(out, d.LAN)
	}
	return singles(out)
}

// names is the mesh addresses of devices: ours, and nobody's as a source.
func names(devices []host.DeviceMap) []netip.Prefix {
	var out []netip.Addr
	for _, d := range devices {
		out = append(out, d.Mesh)
	}
	return singles(out)
}

func singles(addrs []netip.Addr) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(addrs))
	for _, a := range addrs {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return out
}
