package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"tailscale.com/types/key"
)

var addrs4 = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func addresses(ss ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range ss {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// rented is inputs of a home that is its own coordinator, with a printer at
// addresses of its own and nothing else approved.
func rented() Inputs {
	in := inputs()
	in.Config.Mesh.Control = "home"
	in.Config.LAN = config.LAN{Expose: config.ExposeChosen, Devices: devices("192.168.77.50", "fd77:77::50"), SNAT: true}
	in.Devices = []mesh.Device{{Name: "printer", LAN: addresses("192.168.77.50", "fd77:77::50"), Mesh: addresses("100.64.5.5", "fd7a:115c:a1e0::5:5")}}
	in.Netmap.Self.AllowedIPs = prefixes("100.64.0.1/32", "fd7a:115c:a1e0::1/128", "100.64.5.5/32", "fd7a:115c:a1e0::5:5/128")
	return in
}

func TestDeviceIsServed(t *testing.T) {
	in := rented()
	p := Compile(in)
	f := p.Host.Firewall
	want := []host.DeviceMap{
		{Mesh: netip.MustParseAddr("100.64.5.5"), LAN: netip.MustParseAddr("192.168.77.50")},
		{Mesh: netip.MustParseAddr("fd7a:115c:a1e0::5:5"), LAN: netip.MustParseAddr("fd77:77::50")},
	}
	if d := cmp.Diff(want, f.Devices, addrs4); d != "" {
		t.Errorf("devices: %s", d)
	}
	if d := cmp.Diff(prefixes("192.168.77.50/32", "fd77:77::50/128"), f.Exposed, addrs4); d != "" {
		t.Errorf("exposed: %s", d)
	}
	if len(p.Approved) != 0 || len(f.LocalLANs) != 0 || len(f.Sites) != 1 {
		t.Errorf("a device's address is no approved route: approved %v, local %v, sites %v", p.Approved, f.LocalLANs, f.Sites)
	}
	if len(p.Problems) != 0 {
		t.Errorf("problems: %+v", p.Problems)
	}
	for _, r := range p.Host.Route.Routes {
		if r.Contains(want[0].Mesh) || r.Contains(want[1].Mesh) {
			t.Errorf("a route into the mesh for our own device: %v", r)
		}
	}
}

func TestDevicesNotServed(t *testing.T) {
	tests := []struct {
		name     string
		change   func(*Inputs)
		want     []string // mesh addresses that are served
		problems []string
	}{
		{"v6 not given", func(in *Inputs) { in.Netmap.Self.AllowedIPs = in.Netmap.Self.AllowedIPs[:3] }, []string{"100.64.5.5"}, []string{"routes-unapproved"}},
		{"covered by a wider route only", func(in *Inputs) { in.Netmap.Self.AllowedIPs = prefixes("100.64.0.0/10", "::/0") }, nil, []string{"routes-unapproved"}},
		{"nothing is exposed", func(in *Inputs) { in.Config.LAN.Expose = config.ExposeNone }, nil, nil},
		{"no LAN address of that family", func(in *Inputs) { in.Devices[0].LAN = in.Devices[0].LAN[:1] }, []string{"100.64.5.5"}, []string{"routes-unapproved"}},
		{"in no LAN", func(in *Inputs) {
			in.Config.LAN = config.LAN{Expose: config.ExposeAll, Devices: devices("10.9.9.9", "fd77:77::50")}
			in.Devices[0].LAN[0] = netip.MustParseAddr("10.9.9.9")
		}, []string{"fd7a:115c:a1e0::5:5"}, []string{"device-outside", "routes-unapproved"}},
		{"in no LAN, told once", func(in *Inputs) {
			in.Config.LAN.Devices[0].Addr = netip.MustParseAddr("10.9.9.9")
			in.Devices[0].LAN[0] = netip.MustParseAddr("10.9.9.9")
		}, []string{"fd7a:115c:a1e0::5:5"}, []string{"device-outside"}},
		{"an address of the router", func(in *Inputs) {
			in.Devices[0].Mesh[0] = netip.MustParseAddr("198.51.100.2")
			in.Netmap.Self.AllowedIPs = append(in.Netmap.Self.AllowedIPs, prefixes("198.51.100.2/32")...)
		}, []string{"fd7a:115c:a1e0::5:5"}, []string{"routes-unapproved"}},
		{"an address of the LAN", func(in *Inputs) {
			in.Devices[0].Mesh[0] = netip.MustParseAddr("192.168.77.60")
			in.Netmap.Self.AllowedIPs = append(in.Netmap.Self.AllowedIPs, prefixes("192.168.77.60/32")...)
		}, []string{"fd7a:115c:a1e0::5:5"}, []string{"routes-unapproved"}},
		{"the router's own mesh address", func(in *Inputs) {
			in.Devices[0].Mesh[0] = netip.MustParseAddr("100.64.0.1")
			in.Facts.Interfaces = in.Facts.Interfaces[:3] // as before the tunnel is up
		},
			[]string{"fd7a:115c:a1e0::5:5"}, []string{"routes-unapproved"}},
		{"one address for two", func(in *Inputs) {
			in.Devices = append(in.Devices, mesh.Device{Name: "tv", LAN: addresses("192.168.77.51"), Mesh: addresses("100.64.5.5")})
		}, []string{"100.64.5.5", "fd7a:115c:a1e0::5:5"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := rented()
			tt.change(&in)
			p := Compile(in)
			var got, problems []string
			for _, d := range p.Host.Firewall.Devices {
				got = append(got, d.Mesh.String())
				if !inAny(p.Host.Firewall.Exposed, d.LAN) {
					t.Errorf("%v is not exposed", d.LAN)
				}
			}
			for _, pr := range p.Problems {
				problems = append(problems, pr.Code)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(tt.problems, problems); d != "" {
				t.Errorf("problems: %s", d)
			}
		})
	}
}

// What a peer says of a device's address is not believed.
func TestDeviceAddressOfAPeer(t *testing.T) {
	in := rented()
	in.Netmap.Peers[0].AllowedIPs = append(in.Netmap.Peers[0].AllowedIPs, prefixes("100.64.5.5/32", "fd7a:115c:a1e0::5:5/128")...)
	p := Compile(in)
	for _, list := range [][]netip.Prefix{p.Host.Tunnel.Peers[0].AllowedIPs, p.Host.Route.Routes, p.Host.Firewall.Mesh, p.Host.Firewall.Sites} {
		if inAny(list, netip.MustParseAddr("100.64.5.5")) || inAny(list, netip.MustParseAddr("fd7a:115c:a1e0::5:5")) {
			t.Errorf("taken from a peer: %v", list)
		}
	}
}

func TestUnapprovedFix(t *testing.T) {
	in := inputs()
	in.Config.Mesh.Control = "home"
	p := Compile(in)
	if want := "Run `subnetd nodes routes home 192.168.77.0/24 fd77:77::/64`."; len(p.Problems) != 1 || p.Problems[0].Fix != want {
		t.Errorf("problems = %+v, want the fix %q", p.Problems, want)
	}
	in.Config.Mesh.Control = "https://control.example"
	if p = Compile(in); len(p.Problems) != 1 || strings.Contains(p.Problems[0].Fix, "subnetd") {
		t.Errorf("another coordinator knows no such command: %+v", p.Problems)
	}
}

// TestWithDevices judges completed rules by asking of every address, port by
// port, for each protocol: a device's LAN address is open exactly where one of its
// mesh addresses is, or, if its route is approved, where a rule says so itself; one
// with a limit, on its ports only.
func TestWithDevices(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 0)) // the same in every run: what is red is so because of a change
	const n = 16
	worlds := 500
	if testing.Short() { // on an emulated processor each takes as long as fifty here
		worlds = 40
	}
	for range worlds {
		v6 := r.IntN(2) == 0
		at := func(i int) netip.Addr {
			if v6 {
				return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(i)})
			}
			return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		}
		var ds []host.DeviceMap // mesh addresses 8 to 15, LAN addresses 0 to 7
		for i := range n / 2 {
			if r.IntN(3) == 0 {
				ds = append(ds, host.DeviceMap{Mesh: at(n/2 + i), LAN: at(r.IntN(n / 2))})
			}
		}
		var approved []netip.Prefix
		for range r.IntN(2) {
			approved = append(approved, netip.PrefixFrom(at(r.IntN(n/2)), at(0).BitLen()-r.IntN(3)).Masked())
		}
		only := limits{}
		for i := range n / 2 {
			if r.IntN(5) == 0 {
				first := uint16(r.IntN(4))
				only[at(i)] = []config.Ports{{Proto: "tcp", First: first, Last: first + uint16(r.IntN(2))}, {Proto: "udp", First: 2, Last: 2}}[r.IntN(2):]
			}
		}
		rules := randomRules(r, at, n)
		before := fmt.Sprint(rules)
		out := withDevices(rules, ds, approved, only)
		if fmt.Sprint(rules) != before {
			t.Fatal("the netmap's own rules were changed")
		}
		for src := range n {
			for dst := range n {
				for i := range 4 * len(protos) {
					f := flow{at(src), at(dst), protos[i%len(protos)], uint16(i / len(protos))}
					want := allowed(rules, f)
					if i := slices.IndexFunc(ds, func(d host.DeviceMap) bool { return d.LAN == f.dst }); i >= 0 {
						want = want && inAny(approved, f.dst)
						for _, d := range ds {
							want = want || d.LAN == f.dst && allowed(rules, flow{f.src, d.Mesh, f.proto, f.port})
						}
					}
					if ports := only[f.dst]; ports != nil {
						if !slices.ContainsFunc(ds, func(d host.DeviceMap) bool { return d.LAN == f.dst }) {
							want = want && inAny(approved, f.dst)
						}
						want = want && slices.ContainsFunc(ports, func(p config.Ports) bool {
							return map[string]uint8{"tcp": 6, "udp": 17}[p.Proto] == f.proto && p.First <= f.port && f.port <= p.Last
						})
					}
					if got := allowed(out, f); got != want {
						t.Fatalf("%v: %v, want %v\ndevices %v\napproved %v\nlimits %v\nrules %v\nout %v", f, got, want, ds, approved, only, rules, out)
					}
				}
			}
		}
	}
}

var protos = [...]uint8{6, 17, 1}

type flow struct {
	src, dst netip.Addr
	proto    uint8
	port     uint16
}

func randomRules(r *rand.Rand, at func(int) netip.Addr, n int) []mesh.Rule {
	span := func() mesh.Range {
		a, b := r.IntN(n), r.IntN(n)
		if r.IntN(20) > 0 { // now and then one that is no range
			a, b = min(a, b), max(a, b)
		}
		return mesh.Range{From: at(a), To: at(b)}
	}
	var out []mesh.Rule
	for range r.IntN(4) {
		x := mesh.Rule{Srcs: []mesh.Range{span()}, Protos: [][]uint8{nil, {6}, {17, 1}}[r.IntN(3)]}
		for range r.IntN(4) {
			first := uint16(r.IntN(4))
			x.Dsts = append(x.Dsts, mesh.Dest{Range: span(), Ports: mesh.PortRange{First: first, Last: first + uint16(r.IntN(2))}})
		}
		out = append(out, x)
	}
	return out
}

// allowed is the meaning of rules, said as plainly as possible.
func allowed(rules []mesh.Rule, f flow) bool {
	for _, r := range rules {
		if len(r.Protos) > 0 && !slices.Contains(r.Protos, f.proto) {
			continue
		}
		for _, d := range r.Dsts {
			if within(r.Srcs, f.src) && within([]mesh.Range{d.Range}, f.dst) && d.Ports.First <= f.port && f.port <= d.Ports.Last {
				return true
			}
		}
	}
	return false
}

// Ranges that are none open nothing, whatever stands at their ends.
func TestWithDevicesMalformed(t *testing.T) {
	ds := []host.DeviceMap{
		{Mesh: netip.MustParseAddr("100.64.5.5"), LAN: netip.MustParseAddr("10.0.0.50")},
		{Mesh: netip.MustParseAddr("fd7a::5:5"), LAN: netip.MustParseAddr("fd77::50")},
	}
	for _, r := range []mesh.Range{
		{}, {From: netip.MustParseAddr("100.64.0.0"), To: netip.MustParseAddr("ffff::")}, {From: netip.MustParseAddr("100.64.0.0")},
		{To: netip.MustParseAddr("ffff::")}, {From: netip.MustParseAddr("fd7a::%x"), To: netip.MustParseAddr("fd7b::%x")}, {From: netip.MustParseAddr("200.0.0.0"), To: netip.MustParseAddr("10.0.0.0")},
		{From: netip.MustParseAddr("::ffff:100.64.0.0"), To: netip.MustParseAddr("::ffff:100.65.0.0")},
	} {
		in := []mesh.Rule{{Dsts: []mesh.Dest{{Range: r}}}}
		if out := withDevices(in, ds, nil, nil); len(out[0].Dsts) != 1 || out[0].Dsts[0].Range != r {
			t.Errorf("%v became %v", r, out[0].Dsts)
		}
	}
}

func TestWANAddrs(t *testing.T) {
	f := host.Facts{
		Interfaces: []host.Interface{
			{Name: "lo", Addrs: prefixes("127.0.0.1/8", "::1/128")},
			{Name: "wan", Addrs: prefixes("198.51.100.2/24", "2001:db8::2/64", "fe80::2/64", "169.254.3.4/16")},
			{Name: "lte", Addrs: prefixes("10.1.1.2/30", "fd00:1::2/64")},
			{Name: "br-lan", Addrs: prefixes("192.168.77.1/24", "2001:db8:1::1/64")},
			{Name: "eth7", Addrs: prefixes("192.168.9.1/24")},
			{Name: host.DefaultInterface, Addrs: prefixes("100.64.0.1/32")},
		},
		Defaults: []host.Default{{Interface: "wan"}, {Interface: "wan", V6: true}, {Interface: "lte"}, {Interface: "eth7"}, {Interface: host.DefaultInterface}},
	}
	want := addresses("10.1.1.2", "198.51.100.2", "2001:db8::2", "fd00:1::2")
	if d := cmp.Diff(want, WANAddrs(f, []string{"br-lan", "eth7"}), addrs4); d != "" {
		t.Error(d)
	}
}

func TestRedirect(t *testing.T) {
	both := addresses("198.51.100.2", "2001:db8::2")
	tests := []struct {
		name    string
		home    config.Home
		change  func(*Inputs)
		want    host.Redirect
		problem string // a part of its text
	}{
		{name: "no URL", home: config.Home{Listen: ":8410"}},
		{name: "by name", home: config.Home{URL: "https://home.example", Listen: ":8410"}, want: host.Redirect{Addrs: both, Ports: []uint16{80, 443}, To: 8410}},
		{name: "not joined", home: config.Home{URL: "http://home.example", Listen: "0.0.0.0:8410"}, change: func(in *Inputs) { in.Netmap = nil },
			want: host.Redirect{Addrs: both, Ports: []uint16{80, 443}, To: 8410}},
		{name: "own key expired", home: config.Home{URL: "http://home.example", Listen: ":8410"}, change: func(in *Inputs) { in.Netmap.Self.KeyExpiry = start },
			want: host.Redirect{Addrs: both, Ports: []uint16{80, 443}, To: 8410}},
		{name: "on 443 itself", home: config.Home{URL: "https://home.example", Listen: "[::]:443"}, want: host.Redirect{Addrs: both, Ports: []uint16{80}, To: 443}},
		{name: "one address", home: config.Home{URL: "https://home.example", Listen: "[2001:db8::2]:8410"},
			want: host.Redirect{Addrs: both[1:], Ports: []uint16{80, 443}, To: 8410}},
		{name: "on the LAN only", home: config.Home{URL: "https://home.example", Listen: "192.168.77.1:8410"}, problem: "home.listen answers on 192.168.77.1 only"},
		{name: "no WAN", home: config.Home{URL: "https://home.example", Listen: ":8410"}, change: func(in *Inputs) { in.Facts.Defaults = nil }, problem: "no address towards the internet"},
		{name: "the WAN is the LAN", home: config.Home{URL: "https://home.example", Listen: ":8410"},
			change: func(in *Inputs) { in.Config.LAN.Interfaces = []string{"wan"} }, problem: "no address towards the internet"},
		{name: "another coordinator", home: config.Home{URL: "https://home.example", Listen: ":8410"},
			change: func(in *Inputs) { in.Config.Mesh.Control = "https://control.example" }},
		{name: "nonsense", home: config.Home{URL: "https://home.example", Listen: "8410"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := rented()
			in.Config.Home = tt.home
			if tt.change != nil {
				tt.change(&in)
			}
			p := Compile(in)
			if d := cmp.Diff(tt.want, p.Host.Firewall.Redirect, addrs4); d != "" {
				t.Error(d)
			}
			var got string
			for _, pr := range p.Problems {
				if pr.Code == "home-unreachable" {
					got = pr.Text
				}
			}
			if (got != "") != (tt.problem != "") || !strings.Contains(got, tt.problem) {
				t.Errorf("problem %q, want %q", got, tt.problem)
			}
		})
	}
}

// Devices without a key or a netmap open nothing, and nothing at all stays
// where the owner wants nothing.
func TestDevicesFailClosed(t *testing.T) {
	for _, change := range []func(*Inputs){func(in *Inputs) {
		in.Down, in.Config.Home = true, config.Home{URL: "https://home.example", Listen: ":8410"}
	}, func(in *Inputs) { in.Netmap = nil }, func(in *Inputs) { in.Key = key.NodePrivate{} }, func(in *Inputs) { in.Netmap.Locked = true }} {
		in := rented()
		change(&in)
		if d := cmp.Diff(host.Firewall{}, Compile(in).Host.Firewall, addrs4); d != "" {
			t.Error(d)
		}
	}
}
