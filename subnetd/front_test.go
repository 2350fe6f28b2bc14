package main

import (
	"net/netip"
	"testing"
	"time"

	"subnetd/subnetd/config"
	"subnetd/subnetd/coord"
	"subnetd/subnetd/front"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/plan"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// What the plan says is served at the home's names, to the home and this machine, and to
// whom the rules let.
func TestFrontSettings(t *testing.T) {
	eq := cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}, netip.AddrPort{})
	f := host.Facts{Interfaces: []host.Interface{
		{Name: "br-lan", Addrs: []netip.Prefix{prefix("192.168.1.1/24"), prefix("fd00::1/64")}}, {Name: "wan", Addrs: []netip.Prefix{prefix("203.0.113.5/24")}},
	}}
	nm := &mesh.Netmap{Self: mesh.Node{Name: "Home.mesh.internal."}}
	p := plan.Plan{LANs: []string{"br-lan"}, Web: []plan.Served{{
		Served: config.Served{Name: "nas", Scheme: "https", Port: 5001}, Names: []string{"nas.mesh.internal"},
		Maps:  []host.DeviceMap{{Mesh: ips("100.64.5.5")[0], LAN: ips("192.168.1.50")[0]}},
		Doors: []netip.AddrPort{netip.MustParseAddrPort("100.64.5.5:443")},
	}}}
	if d := cmp.Diff(front.Settings{}, frontSettings(p, f, nm), eq); d != "" {
		t.Errorf("nothing is brought: %s", d)
	}
	p.Host.Firewall.Front.Port, p.Host.Firewall.Own, p.Host.Firewall.Rules = 7443, ips("100.64.0.1"), []mesh.Rule{{Protos: []uint8{6}}}
	want := front.Settings{
		Port: 7443, Own: p.Host.Firewall.Own, Rules: p.Host.Firewall.Rules,
		Home:  []netip.Prefix{prefix("100.64.0.1/32"), prefix("192.168.1.0/24"), prefix("fd00::/64"), prefix("203.0.113.5/32")},
		Names: front.Names{Page: "page.home.mesh.internal", Drop: "drop.home.mesh.internal", CA: "ca.home.mesh.internal", Self: "home.mesh.internal"},
		Sites: []front.Site{{Names: p.Web[0].Names, Scheme: "https", Port: 5001, Maps: p.Web[0].Maps, Doors: p.Web[0].Doors}},
	}
	if d := cmp.Diff(want, frontSettings(p, f, nm), eq); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(front.Settings{}, frontSettings(p, f, nil), eq); d != "" {
		t.Errorf("there is no mesh: %s", d)
	}
}

// A user is told of by his own devices only.
func TestCallerAt(t *testing.T) {
	node := func(user int64, addr string, more ...string) mesh.Node {
		n := mesh.Node{User: user, Addresses: []netip.Prefix{prefix(addr + "/32")}, AllowedIPs: []netip.Prefix{prefix(addr + "/32")}}
		n.AllowedIPs = append(n.AllowedIPs, prefixes(more...)...)
		return n
	}
	tagged, jailed := node(1, "100.64.0.5"), node(1, "100.64.0.6")
	tagged.Tags, jailed.Jailed = []string{"tag:x"}, true
	nm := &mesh.Netmap{
		Peers: []mesh.Node{node(1, "100.64.0.2"), node(2, "100.64.0.3"), node(1, "100.64.0.4", "10.0.0.0/24"), tagged, jailed},
		Users: map[int64]string{1: "anna@", 2: "bob@example.org"}, People: map[int64]mesh.Person{2: {Name: "Bob", Picture: "https://example.org/bob.png"}},
	}
	for at, want := range map[string]front.Caller{
		"100.64.0.2": {Login: "anna"}, "100.64.0.3": {Login: "bob@example.org", Name: "Bob", Picture: "https://example.org/bob.png"},
		"100.64.0.4": {}, "100.64.0.5": {}, "100.64.0.6": {}, "100.64.0.9": {}, "192.168.1.2": {},
	} {
		got, ok := callerAt(nm, netip.MustParseAddr(at), time.Time{})
		if got != want || ok != (want != front.Caller{}) {
			t.Errorf("%s is %+v, %v", at, got, ok)
		}
	}
	if _, ok := callerAt(nil, netip.MustParseAddr("100.64.0.2"), time.Time{}); ok {
		t.Error("there is no mesh, and somebody is told of")
	}
}

func TestServiceRecords(t *testing.T) {
	nm := &mesh.Netmap{Self: mesh.Node{Name: "Home.mesh.", Addresses: []netip.Prefix{prefix("100.64.0.1/32"), prefix("fd7a::1/128"), prefix("100.64.5.5/32")}}}
	var want []coord.Record
	for _, s := range []string{"page", "drop", "ca"} {
		for _, a := range ips("100.64.0.1", "fd7a::1") {
			want = append(want, coord.Record{Name: s + ".home.mesh", Addr: a})
		}
	}
	if d := cmp.Diff(want, serviceRecords(nm), sameAddrs); d != "" {
		t.Error(d)
	}
	if serviceRecords(nil) != nil {
		t.Error("there is no mesh, and it has names")
	}
}
