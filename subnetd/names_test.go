package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/plan"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// joined is the plan of a home router with a LAN and a WAN, and its facts.
func joined() (plan.Plan, host.Facts) {
	own := []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd7a:115c:a1e0::1")}
	p := plan.Plan{LANs: []string{"br-lan"}}
	p.Host.Firewall = host.Firewall{
		Interface: "mesh0", Own: own, Mesh: prefixes("100.64.0.2/32", "10.9.0.0/24"), Names: 5335, PeerAPI: 23456,
		Rules: []mesh.Rule{{}}, Exposed: prefixes("192.168.1.0/24"),
	}
	f := host.Facts{Interfaces: []host.Interface{
		{Name: "lo", Addrs: prefixes("127.0.0.1/8", "::1/128")},
		{Name: "br-lan", Addrs: prefixes("192.168.1.1/24", "fd00::1/64", "fe80::1/64")},
		{Name: "wan", Addrs: prefixes("203.0.113.7/24", "2001:db8::7/64")},
		{Name: "mesh0", Addrs: prefixes("100.64.0.1/32")},
	}}
	return p, f
}

func TestAnswersOf(t *testing.T) {
	p, f := joined()
	s := answersOf(p, f, config.Config{}, &mesh.Netmap{}, nil)
	var listen []string
	for _, at := range s.Listen {
		listen = append(listen, at.String())
	}
	slices.Sort(listen)
	want := "100.64.0.1:5335 127.0.0.1:5335 192.168.1.1:5335 [::1]:5335 [fd00::1]:5335 [fd7a:115c:a1e0::1]:5335"
	if got := strings.Join(listen, " "); got != want {
		t.Errorf("listens on %s, want %s", got, want)
	}
	for _, in := range prefixes("192.168.1.0/24", "fd00::/64", "203.0.113.7/32", "2001:db8::7/128", "100.64.0.1/32") {
		if !slices.Contains(s.Home, in) {
			t.Errorf("%v is not home: %v", in, s.Home)
		}
	}
	for _, h := range s.Home {
		if h.Contains(netip.MustParseAddr("203.0.113.8")) || h.Contains(netip.MustParseAddr("fe80::9")) || h.Contains(netip.MustParseAddr("100.64.0.2")) {
			t.Errorf("%v is home, with strangers in it", h)
		}
	}
	if !slices.Equal(s.Mesh, p.Host.Firewall.Mesh) || !slices.Equal(s.Through, p.Host.Firewall.Mesh) || s.Unmarked {
		t.Errorf("members %v, through %v, unmarked %v", s.Mesh, s.Through, s.Unmarked)
	}
	for what, c := range map[string]struct {
		source host.ExitSource
		want   bool
	}{
		"the LAN's way":            {host.ExitSource{Interfaces: []string{"br-lan"}, Way: 0}, false},
		"the router's way":         {host.ExitSource{Router: true, Way: 1}, true},
		"the router stays outside": {host.ExitSource{Router: true, Way: -1}, false},
	} {
		q := p
		q.Host.Firewall.Sources = []host.ExitSource{c.source}
		if got := answersOf(q, f, config.Config{}, &mesh.Netmap{}, nil).Unmarked; got != c.want {
			t.Errorf("%s: our questions are unmarked: %v", what, got)
		}
	}
	q := p
	q.Host.Firewall.Names = 0
	if s := answersOf(q, f, config.Config{}, &mesh.Netmap{}, nil); len(s.Listen) > 0 || s.Zone == nil {
		t.Errorf("off: listens on %v, and those who leave through us are answered: %v", s.Listen, s.Zone != nil)
	}
	if s := answersOf(plan.Plan{LANs: p.LANs}, f, config.Config{DNS: config.DNS{Port: 5335}}, &mesh.Netmap{}, nil); s.Listen != nil || s.Home != nil || s.Mesh != nil {
		t.Errorf("without a mesh: %+v", s)
	}
}

func TestPeersOf(t *testing.T) {
	p, _ := joined()
	nm := &mesh.Netmap{Peers: []mesh.Node{{ID: 1}}}
	if s := peersOf(p, nm); s.Port != 23456 || len(s.Own) != 2 || len(s.Peers) != 1 || len(s.Rules) != 1 || s.Exit {
		t.Errorf("before the exit is approved: %+v", s)
	}
	p.Host.Firewall.Internet = true
	if !peersOf(p, nm).Exit {
		t.Error("the exit does not answer")
	}
	p.Host.Firewall.PeerAPI = 0
	if s := peersOf(p, nm); s.Port != 0 || s.Own != nil {
		t.Errorf("without an exit: %+v", s)
	}
}
