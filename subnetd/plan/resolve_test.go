package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"subnetd/subnetd/config"
	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
)

const (
	printerMAC = "02:00:00:00:00:01"
	tvMAC      = "02:00:00:00:00:02"
)

// byMAC is the printer of rented, known by its MAC.
func byMAC(ports ...config.Ports) Inputs {
	in := rented()
	in.Config.LAN.Devices = []config.Device{{Name: "printer", MAC: printerMAC, Ports: ports}}
	in.Devices[0].MAC = printerMAC
	return in
}

func TestResolve(t *testing.T) {
	lans, own := prefixes("192.168.77.0/24", "fd77:77::/64", "2001:db8::/64"), addresses("192.168.77.1", "fd77:77::1")
	printer := config.Device{Name: "printer", MAC: printerMAC}
	was := []mesh.Device{{Name: "printer", MAC: printerMAC, LAN: addresses("192.168.77.50", "2001:db8::aaaa"), Mesh: addresses("100.64.5.5")}}
	tests := []struct {
		name string
		has  []netip.Addr // of the printer
		tv   []netip.Addr
		was  []mesh.Device
		want []netip.Addr
	}{
		{name: "never seen", want: nil},
		{name: "one address", has: addresses("192.168.77.9"), want: addresses("192.168.77.9")},
		{name: "the best comes first", has: addresses("192.168.77.9", "192.168.77.8"), want: addresses("192.168.77.9")},
		{name: "not what is no LAN, link-local or ours", has: addresses("10.0.0.9", "169.254.1.1", "192.168.77.1", "192.168.77.8", "fe80::9", "fd77:77::1", "fd99::9"),
			want: addresses("192.168.77.8")},
		{name: "it moved", has: addresses("192.168.77.9"), was: was, want: addresses("192.168.77.9", "2001:db8::aaaa")},
		{name: "it is off", was: was, want: addresses("192.168.77.50", "2001:db8::aaaa")},
		{name: "it is off and another has its address", was: was, tv: addresses("192.168.77.50"), want: addresses("2001:db8::aaaa")},
		{name: "the home's own prefix", has: addresses("2001:db8::1:1", "fd77:77::2:2"), want: addresses("fd77:77::2:2")},
		{name: "made of the MAC", has: addresses("fd77:77::2:2", "2001:db8::ff:fe00:1"), want: addresses("2001:db8::ff:fe00:1")},
		{name: "what it was stays", has: addresses("2001:db8::ff:fe00:1", "fd77:77::2:2", "2001:db8::aaaa"), was: was, want: addresses("192.168.77.50", "2001:db8::aaaa")},
		{name: "the prefix changed", has: addresses("2001:db8::1:1"), want: addresses("192.168.77.50", "2001:db8::1:1"),
			was: []mesh.Device{{Name: "printer", MAC: printerMAC, LAN: addresses("192.168.77.50", "2001:db9::aaaa")}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			at := map[string][]netip.Addr{printerMAC: tt.has, tvMAC: tt.tv}
			got := Resolve(config.LAN{Devices: []config.Device{printer}}, at, lans, own, tt.was)
			if len(got) != 1 || got[0].Name != "printer" || got[0].MAC != printerMAC {
				t.Fatalf("%+v", got)
			}
			if d := cmp.Diff(tt.want, got[0].LAN, addrs4); d != "" {
				t.Error(d)
			}
			if len(tt.was) > 0 && !slices.Equal(got[0].Mesh, tt.was[0].Mesh) {
				t.Errorf("the mesh address was lost: %v", got[0].Mesh)
			}
		})
	}
}

func TestResolveNames(t *testing.T) {
	c := config.LAN{
		Devices: []config.Device{{Addr: netip.MustParseAddr("192.168.77.5")}, {Name: "nas", Addr: netip.MustParseAddr("fd77:77::5")}, {MAC: printerMAC}, {MAC: tvMAC},
			{Name: "nas", Addr: netip.MustParseAddr("192.168.77.6")}},
		Names: []config.Named{{Name: "tv", MAC: tvMAC}},
	}
	want := []mesh.Device{
		{Name: "192-168-77-5", LAN: addresses("192.168.77.5")}, {Name: "nas", LAN: addresses("fd77:77::5", "192.168.77.6"), Mesh: addresses("100.64.1.1")},
		{Name: "02-00-00-00-00-01", MAC: printerMAC}, {Name: "tv", MAC: tvMAC, Mesh: addresses("100.64.1.2")},
	}
	was := []mesh.Device{{Name: "nas", Mesh: addresses("100.64.1.1")}, {Name: "set", MAC: tvMAC, Mesh: addresses("100.64.1.2")}, {Name: "gone", Mesh: addresses("100.64.1.3")}}
	if d := cmp.Diff(want, Resolve(c, nil, nil, nil, was), addrs4); d != "" {
		t.Error(d)
	}
}

// Whatever things come, go and move to, the mesh is led to nobody but who has the MAC,
// or had the address last while nobody else has it; and it is stable: the same things
// give the same again.
func TestResolveIsTrue(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 0)) // the same in every run: what is red is so because of a change
	macs := []string{printerMAC, tvMAC, "02:00:00:00:00:03", "02:00:00:00:00:04"}
	lans, own := prefixes("192.168.77.0/29", "fd77:77::/64"), addresses("192.168.77.1", "fd77:77::1")
	c := config.LAN{Devices: []config.Device{{Name: "printer", MAC: macs[0]}, {Name: "tv", MAC: macs[1]}}}
	var was []mesh.Device
	turns := 5000
	if testing.Short() { // on an emulated processor each takes as long as fifty here
		turns = 500
	}
	for range turns {
		at := map[string][]netip.Addr{}
		for _, i := range r.Perm(10) { // .0 to .9: some in no LAN
			a := netip.AddrFrom4([4]byte{192, 168, 77, byte(i)})
			if i%2 == 0 {
				a = netip.MustParseAddr(fmt.Sprintf("fd77:77::%d", i))
			}
			if m := r.IntN(len(macs) + 3); m < len(macs) {
				at[macs[m]] = append(at[macs[m]], a)
			}
		}
		out := Resolve(c, at, lans, own, was)
		for i, d := range out {
			for _, a := range d.LAN {
				if !inAny(lans, a) || slices.Contains(own, a) {
					t.Fatalf("%v of %v", a, d)
				}
				for mac, has := range at {
					if slices.Contains(has, a) && mac != d.MAC {
						t.Fatalf("%s is led to %s: %v", d.MAC, mac, at)
					}
				}
				if !slices.Contains(at[d.MAC], a) && !slices.Contains(was[i].LAN, a) {
					t.Fatalf("%v was never there", a)
				}
			}
		}
		if again := Resolve(c, at, lans, own, out); cmp.Diff(out, again, addrs4) != "" {
			t.Fatalf("%v, then %v", out, again)
		}
		was = out
	}
}

func TestDeviceByMAC(t *testing.T) {
	p := Compile(byMAC())
	if len(p.Host.Firewall.Devices) != 2 || len(p.Problems) != 0 {
		t.Errorf("%v, %v", p.Host.Firewall.Devices, p.Problems)
	}
	if d := cmp.Diff(prefixes("192.168.77.50/32", "fd77:77::50/128"), p.Offer, addrs4); d != "" {
		t.Errorf("offer: %s", d)
	}
	in := byMAC()
	in.Devices[0].LAN = addresses("192.168.77.99")
	p = Compile(in)
	if len(p.Host.Firewall.Devices) != 1 || p.Host.Firewall.Devices[0].LAN != in.Devices[0].LAN[0] {
		t.Errorf("moved: %v", p.Host.Firewall.Devices)
	}
	if d := cmp.Diff(prefixes("192.168.77.99/32"), p.Offer, addrs4); d != "" { // what other coordinators route follows it
		t.Errorf("offer: %s", d)
	}
	in = byMAC()
	in.Config.LAN.Devices[0].MAC = tvMAC // hidden, and another chosen: the list of devices is still the old one
	p = Compile(in)
	if len(p.Host.Firewall.Devices)+len(p.Host.Firewall.Exposed)+len(p.Offer) != 0 {
		t.Errorf("hidden: %v, %v, %v", p.Host.Firewall.Devices, p.Host.Firewall.Exposed, p.Offer)
	}
}

// A limit holds on every way to a device: its mesh address, a route that was approved
// for it, and all of the LAN.
func TestDeviceLimit(t *testing.T) {
	limit := config.Ports{Proto: "tcp", First: 80, Last: 81}
	peer := netip.MustParseAddr("100.64.0.2")
	lan, other := netip.MustParseAddr("192.168.77.50"), netip.MustParseAddr("192.168.77.51")
	everything := []mesh.Rule{{Srcs: []mesh.Range{{From: peer, To: peer}}, Dsts: []mesh.Dest{
		{Range: mesh.Range{From: netip.MustParseAddr("0.0.0.0"), To: netip.MustParseAddr("255.255.255.255")}, Ports: mesh.PortRange{Last: 65535}}}}}
	for _, tt := range []struct {
		name   string
		change func(*Inputs)
	}{
		{"its mesh address", func(*Inputs) {}},
		{"approved", func(in *Inputs) {
			in.Devices[0].Mesh = nil
			in.Netmap.Self.AllowedIPs = append(in.Netmap.Self.AllowedIPs, prefixes("192.168.77.50/32")...)
		}},
		{"all of the LAN", func(in *Inputs) {
			in.Config.LAN.Expose = config.ExposeAll
			in.Netmap.Self.AllowedIPs = append(in.Netmap.Self.AllowedIPs, prefixes("192.168.77.0/24")...)
		}},
	} {
		in := byMAC(limit)
		in.Netmap.Filter = everything
		tt.change(&in)
		fw := Compile(in).Host.Firewall
		if !inAny(fw.Exposed, lan) {
			t.Errorf("%s: not exposed", tt.name)
		}
		for port := range uint16(200) {
			for _, proto := range protos {
				want := proto == 6 && port >= 80 && port <= 81
				if got := allowed(fw.Rules, flow{peer, lan, proto, port}); got != want {
					t.Errorf("%s: protocol %d port %d: %v", tt.name, proto, port, got)
				}
				if !allowed(fw.Rules, flow{peer, other, proto, port}) { // that it is not exposed is another matter
					t.Errorf("%s: the neighbour, protocol %d port %d is closed", tt.name, proto, port)
				}
			}
		}
	}
}
