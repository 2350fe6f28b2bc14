package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
)

// What has to be open follows from what the owner wants the world to reach.
func TestOpenings(t *testing.T) {
	at := []host.WANAddr{{Interface: "wan", Addr: netip.MustParseAddr("198.51.100.2")}, {Interface: "wan", Addr: netip.MustParseAddr("2001:db8::2")}}
	for _, tt := range []struct {
		name         string
		control, url string
		port         uint16
		want         host.Openings
	}{
		{"a member", "https://headscale.example", "", 41001, host.Openings{At: at, UDP: []uint16{41001}}},
		{"a coordinator at home", "home", "", 41001, host.Openings{At: at, UDP: []uint16{41001}}},
		{"a coordinator for the world", "home", "http://home.example", 41001, host.Openings{At: at, UDP: []uint16{41001, 3478}, TCP: []uint16{8410}, Translated: true}},
		{"no socket yet", "https://headscale.example", "", 0, host.Openings{At: at}},
	} {
		in := travel(t)
		in.Config.Mesh.Control, in.Config.Home.URL = tt.control, tt.url
		in.Config.Home.Listen, in.Config.Home.STUN, in.Port = ":8410", ":3478", tt.port
		p := Compile(in)
		got := p.Host.Firewall.Openings
		for i := range got.At {
			got.At[i].Index = 0
		}
		if d := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}
}

// The owner reads what is shut by whom, and the line that opens it; nothing of openings of before.
func TestToldShut(t *testing.T) {
	s := func(udp bool, port uint16, table, chain, zone string) host.Shut {
		return host.Shut{UDP: udp, Port: port, Table: table, Chain: chain, Zone: zone}
	}
	for _, tt := range []struct {
		name string
		shut []host.Shut
		want []string // text and fix in turn
	}{
		{"nothing", nil, nil},
		{"of before", []host.Shut{s(true, 5, "inet fw4", "input", "wan"), s(false, 41001, "inet fw4", "input", "wan")}, nil},
		{"OpenWrt", []host.Shut{s(true, 41001, "inet fw4", "input", "wan"), s(true, 3478, "inet fw4", "input", "wan"), s(false, 8410, "inet fw4", "input", "wan"),
			{UDP: true, V6: true, Port: 41001, Table: "inet fw4", Chain: "input", Zone: "wan"}},
			[]string{"The firewall of this router (table inet fw4, chain input) drops what the internet sends to UDP 41001, 3478 and TCP 8410: " +
				"members behind difficult NATs reach this router only by relay, and nobody outside reaches the coordinator here.",
				"Open them there: uci set firewall.subnetd_udp=rule && uci set firewall.subnetd_udp.name=subnetd-udp && uci set firewall.subnetd_udp.src=wan && " +
					"uci set firewall.subnetd_udp.proto=udp && uci set firewall.subnetd_udp.target=ACCEPT && uci set firewall.subnetd_udp.dest_port='41001 3478' && " +
					"uci set firewall.subnetd_tcp=rule && uci set firewall.subnetd_tcp.name=subnetd-tcp && uci set firewall.subnetd_tcp.src=wan && " +
					"uci set firewall.subnetd_tcp.proto=tcp && uci set firewall.subnetd_tcp.target=ACCEPT && uci set firewall.subnetd_tcp.dest_port='8410' && " +
					"uci commit firewall && service firewall reload"}},
		{"OpenWrt, another zone", []host.Shut{s(true, 41001, "inet fw4", "input", "wwan")}, []string{"UDP 41001: members", "firewall.subnetd_udp.src=wwan &&"}},
		{"OpenWrt, by its policy", []host.Shut{s(true, 41001, "inet fw4", "input", "")}, []string{"UDP 41001: members", "firewall.subnetd_udp.src=wan &&"}},
		{"iptables", []host.Shut{s(false, 8410, "ip filter", "INPUT", ""), s(false, 8410, "ip6 filter", "INPUT", "")},
			[]string{"(table ip filter, chain INPUT)", ": iptables -I INPUT -p tcp -m multiport --dports 8410 -j ACCEPT", "(table ip6 filter", ": ip6tables -I INPUT -p tcp"}},
		{"nftables", []host.Shut{s(true, 41001, "inet filter", "input", ""), s(false, 8410, "inet filter", "input", "")},
			[]string{"UDP 41001 and TCP 8410", ": nft insert rule inet filter input udp dport '{ 41001 }' accept && nft insert rule inet filter input tcp dport '{ 8410 }' accept"}},
	} {
		in := travel(t)
		in.Config.Mesh.Control, in.Config.Home.URL = "home", "http://home.example"
		in.Config.Home.Listen, in.Config.Home.STUN, in.Port, in.Shut = ":8410", ":3478", 41001, tt.shut
		var got []string
		for _, p := range Compile(in).Problems {
			if p.Code == "wan-shut" {
				got = append(got, p.Text, p.Fix)
			}
		}
		ok := len(got) == len(tt.want)
		for i := range tt.want {
			ok = ok && strings.Contains(got[i], tt.want[i])
		}
		if !ok {
			t.Errorf("%s: %q", tt.name, got)
		}
		if slices.Contains(got, "") {
			t.Errorf("%s: no fix", tt.name)
		}
	}
}
