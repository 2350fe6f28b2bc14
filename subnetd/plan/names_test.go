package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
)

func TestDomains(t *testing.T) {
	v6 := "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"
	for what, c := range map[string]struct {
		names mesh.Names
		wan   string
		want  []string
		zones int // of 100.64.0.0/10 besides
	}{
		"nothing": {mesh.Names{}, "203.0.113.7/24", nil, 0},
		"names":   {mesh.Names{MagicDNS: true}, "203.0.113.7/24", []string{v6, "friend.other.net", "mesh.internal"}, 64},
		"the provider's addresses are like ours": {mesh.Names{MagicDNS: true, Routes: map[string][]string{"70.100.in-addr.arpa": {}}},
			"100.70.1.2/15", []string{v6, "friend.other.net", "mesh.internal"}, 62},
		"routes": {mesh.Names{Routes: map[string][]string{
			"Corp.example.": {"10.9.9.9"}, "lan": {"192.168.1.1"}, "lo": {"10.9.9.9", "[::1]:5353"}, "self": {"100.64.0.1:53"},
			"mesh.internal": {}, "": {"9.9.9.9"}, "7.in-addr.arpa": {}, "doh.example": {"https://x"}, "four6": {"::ffff:192.168.1.1"},
		}}, "203.0.113.7/24", []string{"7.in-addr.arpa", "corp.example", "doh.example", "mesh.internal"}, 0},
	} {
		in := Inputs{
			Netmap: &mesh.Netmap{
				Self:  mesh.Node{Name: "home.Mesh.internal.", Addresses: []netip.Prefix{netip.MustParsePrefix("100.64.0.1/32")}},
				Peers: []mesh.Node{{Name: "phone.mesh.internal."}, {Name: "Friend.other.net."}, {}}, Names: c.names,
			},
			Facts: host.Facts{Interfaces: []host.Interface{
				{Name: "wan", Addrs: []netip.Prefix{netip.MustParsePrefix(c.wan)}},
				{Name: "br-lan", Addrs: []netip.Prefix{netip.MustParsePrefix("192.168.1.1/24")}},
			}},
			Config: config.Config{DNS: config.DNS{Port: 5335, Hook: true}}, PeerAPI: 40000,
		}
		var p Plan
		p.names(in)
		var got []string
		zones := 0
		for _, d := range p.Host.DNS.Domains {
			if strings.HasSuffix(d, ".100.in-addr.arpa") {
				zones++
			} else {
				got = append(got, d)
			}
		}
		if !slices.Equal(got, c.want) || zones != c.zones || !slices.IsSorted(p.Host.DNS.Domains) {
			t.Errorf("%s: got %q and %d reverse zones, want %q and %d", what, got, zones, c.want, c.zones)
		}
		if want := (len(got) > 0); p.Host.DNS.Server.IsValid() != want {
			t.Errorf("%s: server %v", what, p.Host.DNS.Server)
		}
		if p.Host.Firewall.Names != 5335 || p.Host.Firewall.PeerAPI != 40000 {
			t.Errorf("%s: ports %d and %d", what, p.Host.Firewall.Names, p.Host.Firewall.PeerAPI)
		}
		in.Config.DNS.Port, in.Config.Exit.Offer = 0, true
		p = Plan{}
		p.names(in)
		if p.Host.DNS.Domains != nil || (len(p.Domains) > 0) != (len(got) > 0) || p.Host.Firewall.Names != 0 || p.Host.Firewall.PeerAPI != 40000 {
			t.Errorf("%s: with the answerer off and an exit: %+v", what, p.Host)
		}
	}
}
