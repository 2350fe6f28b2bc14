package plan

import (
	"net/netip"
	"testing"
	"time"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"tailscale.com/types/key"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func prefixes(ss ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range ss {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func devices(addrs ...string) []config.Device {
	var out []config.Device
	for _, a := range addrs {
		out = append(out, config.Device{Addr: netip.MustParseAddr(a)})
	}
	return out
}

func home() host.Facts {
	return host.Facts{
		Interfaces: []host.Interface{
			{Index: 1, Name: "lo", Up: true, Addrs: prefixes("127.0.0.1/8")},
			{Index: 2, Name: "wan", Up: true, Addrs: prefixes("198.51.100.2/24", "2001:db8::2/64")},
			{Index: 3, Name: "br-lan", Bridge: true, Up: true, Addrs: prefixes("192.168.77.1/24", "fd77:77::1/64", "fe80::1/64")},
			{Index: 4, Name: "docker0", Bridge: true, Up: true, Addrs: prefixes("172.17.0.1/16")},
			{Index: 5, Name: "mesh0", Up: true, Addrs: prefixes("100.64.0.1/32")},
		},
		Defaults: []host.Default{{Interface: "wan", Gateway: netip.MustParseAddr("198.51.100.1")}},
	}
}

func inputs() Inputs {
	disco := key.NewDisco().Public()
	return Inputs{
		Config: config.Config{LAN: config.LAN{Expose: config.ExposeAll, SNAT: true}},
		Key:    key.NewNode(),
		Facts:  home(),
		Now:    start,
		Netmap: &mesh.Netmap{
			Self: mesh.Node{ID: 1, Name: "home.mesh.", Addresses: prefixes("100.64.0.1/32", "fd7a:115c:a1e0::1/128"),
				AllowedIPs: prefixes("100.64.0.1/32", "fd7a:115c:a1e0::1/128", "192.168.77.0/24")},
			Peers: []mesh.Node{{ID: 2, Name: "cabin.mesh.", Key: key.NewNode().Public(), Disco: disco,
				Addresses:  prefixes("100.64.0.2/32", "fd7a:115c:a1e0::2/128"),
				AllowedIPs: prefixes("100.64.0.2/32", "fd7a:115c:a1e0::2/128", "192.168.88.0/24", "0.0.0.0/0", "::/0")}},
		},
	}
}

func TestOffer(t *testing.T) {
	tests := []struct {
		name     string
		lan      config.LAN
		change   func(*host.Facts)
		want     []netip.Prefix
		problems []string
	}{
		{name: "all", lan: config.LAN{Expose: config.ExposeAll}, want: prefixes("192.168.77.0/24", "fd77:77::/64")},
		{name: "none", lan: config.LAN{Expose: config.ExposeNone}},
		{name: "chosen", lan: config.LAN{Expose: config.ExposeChosen, Devices: devices("192.168.77.50", "fd77:77::50", "192.168.77.50")},
			want: prefixes("192.168.77.50/32", "fd77:77::50/128")},
		{name: "chosen outside", lan: config.LAN{Expose: config.ExposeChosen, Devices: devices("10.9.9.9", "fd99::9")},
			problems: []string{"device-outside", "device-outside"}},
		{name: "named", lan: config.LAN{Expose: config.ExposeAll, Interfaces: []string{"docker0", "gone"}},
			want: prefixes("172.17.0.0/16"), problems: []string{"lan-missing"}},
		{name: "private WAN is no LAN", lan: config.LAN{Expose: config.ExposeAll}, want: prefixes("192.168.77.0/24", "fd77:77::/64"),
			change: func(f *host.Facts) { f.Interfaces[1].Addrs = prefixes("192.168.1.7/24") }},
		{name: "a second private WAN of another table is no LAN", lan: config.LAN{Expose: config.ExposeAll}, want: prefixes("192.168.77.0/24", "fd77:77::/64"),
			change: func(f *host.Facts) {
				f.Interfaces = append(f.Interfaces, host.Interface{Index: 7, Name: "wwan0", Up: true, Uplink: true, Addrs: prefixes("192.168.8.2/24")})
			}},
		{name: "a LAN with a proxy in it stays one", lan: config.LAN{Expose: config.ExposeAll}, want: prefixes("192.168.77.0/24", "fd77:77::/64"),
			change: func(f *host.Facts) { f.Interfaces[2].Uplink = true }},
		{name: "an exit tunnel is no LAN", lan: config.LAN{Expose: config.ExposeAll}, want: prefixes("192.168.77.0/24", "fd77:77::/64"),
			change: func(f *host.Facts) {
				f.Interfaces = append(f.Interfaces, host.Interface{Index: 7, Name: "mesh-0123abcd", Up: true, Addrs: prefixes("10.64.0.1/24")})
			}},
		{name: "named, but the mesh's own", lan: config.LAN{Expose: config.ExposeAll, Interfaces: []string{"br-lan", "mesh0"}},
			want: prefixes("192.168.77.0/24", "fd77:77::/64"), problems: []string{"lan-missing"}},
		{name: "followed", lan: config.LAN{Expose: config.ExposeAll}, want: prefixes("192.168.5.0/24"),
			change: func(f *host.Facts) { f.Interfaces[2].Addrs = prefixes("192.168.5.1/24") }},
		{name: "down", lan: config.LAN{Expose: config.ExposeAll}, change: func(f *host.Facts) { f.Interfaces[2].Up = false }},
		{name: "WAN unknown, only bridges", lan: config.LAN{Expose: config.ExposeAll}, want: prefixes("192.168.77.0/24", "fd77:77::/64"),
			change: func(f *host.Facts) { f.Defaults = nil; f.Interfaces[1].Addrs = prefixes("192.168.1.7/24") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := home()
			if tt.change != nil {
				tt.change(&f)
			}
			p := Compile(Inputs{Config: config.Config{LAN: tt.lan}, Facts: f, Now: start})
			if diff := cmp.Diff(tt.want, p.Offer, cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("offer (-want +got):\n%s", diff)
			}
			var codes []string
			for _, pr := range p.Problems {
				codes = append(codes, pr.Code)
			}
			if diff := cmp.Diff(tt.problems, codes); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCompileJoined(t *testing.T) {
	in := inputs()
	p := Compile(in)
	eq := cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}, key.NodePublic{})
	peer := in.Netmap.Peers[0]
	want := []host.Peer{{Key: peer.Key, Session: peer.Disco.String(),
		AllowedIPs: prefixes("100.64.0.2/32", "192.168.88.0/24", "fd7a:115c:a1e0::2/128")}}
	if diff := cmp.Diff(want, p.Host.Tunnel.Peers, eq); diff != "" {
		t.Errorf("peers: an exit must be chosen, never taken (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(prefixes("192.168.77.0/24"), p.Host.Firewall.Exposed, eq); diff != "" {
		t.Errorf("exposed: only what is offered and approved (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(prefixes("192.168.88.0/24"), p.Host.Firewall.Sites, eq); diff != "" {
		t.Errorf("sites (-want +got):\n%s", diff)
	}
	if len(p.Problems) != 1 || p.Problems[0].Code != "routes-unapproved" {
		t.Errorf("problems = %+v, want the unapproved v6 subnet", p.Problems)
	}
}

// TestShare: the engines differ in the sharing of the port and in nothing else, and
// it is there until the owner says `down`.
func TestShare(t *testing.T) {
	share := host.PortShare{Outer: 41001, Inner: 7001}
	eq := cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}, netip.AddrPort{}, key.NodePublic{})
	for name, change := range map[string]func(*Inputs){
		"joined":       func(*Inputs) {},
		"no netmap":    func(in *Inputs) { in.Netmap = nil },
		"self expired": func(in *Inputs) { in.Netmap.Self.KeyExpiry = start },
		"coordinator": func(in *Inputs) {
			in.Config.Mesh.Control = "home"
			in.Config.Home = config.Home{URL: "http://home.example", Listen: ":8410"}
		},
		"down": func(in *Inputs) { in.Down = true },
	} {
		in := inputs()
		change(&in)
		want := Compile(in)
		if !in.Down {
			want.Host.Firewall.Share = share
		}
		in.Share = share
		if diff := cmp.Diff(want, Compile(in), eq); diff != "" {
			t.Errorf("%s (-userspace +kernel):\n%s", name, diff)
		}
	}
}

func TestCompileNeverShadowsHome(t *testing.T) {
	for _, overlap := range []string{"192.168.77.0/24", "192.168.77.128/25", "192.168.0.0/16", "198.51.100.0/25", "fd77:77::/48"} {
		in := inputs()
		in.Netmap.Peers[0].AllowedIPs = append(prefixes("100.64.0.2/32"), netip.MustParsePrefix(overlap))
		p := Compile(in)
		if diff := cmp.Diff(prefixes("100.64.0.2/32"), p.Host.Route.Routes, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", overlap, diff)
		}
	}
}

func TestCompileFailsClosed(t *testing.T) {
	for name, change := range map[string]func(*Inputs){
		"no netmap":    func(in *Inputs) { in.Netmap = nil },
		"no key":       func(in *Inputs) { in.Key = key.NodePrivate{} },
		"self expired": func(in *Inputs) { in.Netmap.Self.KeyExpiry = start },
		"locked":       func(in *Inputs) { in.Netmap.Locked = true },
		"skewed clock": func(in *Inputs) {
			in.Netmap.Self.KeyExpiry = start.Add(time.Hour)
			in.Netmap.ClockSkew = 2 * time.Hour
		},
	} {
		in := inputs()
		change(&in)
		if p := Compile(in); p.Host.Tunnel.Name != "" || p.Host.Route.Interface != "" {
			t.Errorf("%s: the plan still has a tunnel: %+v", name, p.Host)
		}
	}
}

func TestExpiredPeerLeavesAndRechecks(t *testing.T) {
	in := inputs()
	in.Netmap.Peers[0].KeyExpiry = start.Add(time.Minute)
	p := Compile(in)
	if len(p.Host.Tunnel.Peers) != 1 || !p.Recheck.Equal(start.Add(time.Minute)) {
		t.Fatalf("before: %d peers, recheck %v", len(p.Host.Tunnel.Peers), p.Recheck)
	}
	in.Now = p.Recheck
	if p = Compile(in); len(p.Host.Tunnel.Peers) != 0 || len(p.Host.Route.Routes) != 0 {
		t.Fatalf("an expired peer stays: %+v", p.Host)
	}
}

func TestJailedPeerMayNotBegin(t *testing.T) {
	in := inputs()
	in.Netmap.Filter = []mesh.Rule{{
		Srcs: []mesh.Range{{From: netip.MustParseAddr("100.64.0.0"), To: netip.MustParseAddr("100.64.0.255")}},
		Dsts: []mesh.Dest{{Ports: mesh.PortRange{Last: 65535}}},
	}}
	in.Netmap.Peers[0].Jailed = true
	got := Compile(in).Host.Firewall.Rules
	want := []mesh.Range{
		{From: netip.MustParseAddr("100.64.0.0"), To: netip.MustParseAddr("100.64.0.1")},
		{From: netip.MustParseAddr("100.64.0.3"), To: netip.MustParseAddr("100.64.0.255")},
	}
	if len(got) != 1 || !cmp.Equal(want, got[0].Srcs, cmpopts.EquateComparable(netip.Addr{})) {
		t.Fatalf("rules = %+v", got)
	}
}

// TestSubtract judges subtract by asking of every address one by one.
func TestSubtract(t *testing.T) {
	a := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, i}) }
	in := []mesh.Range{{From: a(0), To: a(7)}, {From: a(9), To: a(9)}, {From: a(16), To: a(255)}}
	for bits := 24; bits <= 32; bits++ {
		for i := 0; i < 256; i++ {
			p := netip.PrefixFrom(a(byte(i)), bits)
			out := subtract(in, p)
			for j := 0; j < 256; j++ {
				if want, got := within(in, a(byte(j))) && !p.Contains(a(byte(j))), within(out, a(byte(j))); want != got {
					t.Fatalf("%v - %v: %v is in: %v, want %v", in, p, a(byte(j)), got, want)
				}
			}
		}
	}
}

func within(rs []mesh.Range, a netip.Addr) bool {
	for _, r := range rs {
		if !a.Less(r.From) && !r.To.Less(a) {
			return true
		}
	}
	return false
}
