package underlay

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
)

func iface(name string, up bool, addrs ...string) host.Interface {
	i := host.Interface{Name: name, Up: up}
	for _, a := range addrs {
		i.Addrs = append(i.Addrs, netip.MustParsePrefix(a))
	}
	return i
}

func addrPort(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}

func TestLocalAddrs(t *testing.T) {
	netmap := &mesh.Netmap{Self: mesh.Node{Addresses: []netip.Prefix{
		netip.MustParsePrefix("100.64.0.1/32"), netip.MustParsePrefix("fd7a:115c:a1e0::1/128")}}}
	tests := []struct {
		name   string
		facts  []host.Interface
		netmap *mesh.Netmap
		want   string
	}{
		{"nothing", nil, nil, ""},
		{"LAN and WAN", []host.Interface{iface("br-lan", true, "192.168.1.1/24"), iface("wan", true, "203.0.113.7/24")}, netmap,
			"192.168.1.1 203.0.113.7"},
		{"both families", []host.Interface{iface("wan", true, "203.0.113.7/24", "2001:db8::7/64")}, netmap, "203.0.113.7 2001:db8::7"},
		{"unique local IPv6", []host.Interface{iface("br-lan", true, "fd00::1/64")}, netmap, "fd00::1"},
		{"down", []host.Interface{iface("wan", false, "203.0.113.7/24")}, netmap, ""},
		{"loopback", []host.Interface{iface("lo", true, "127.0.0.1/8", "::1/128")}, netmap, ""},
		{"link-local", []host.Interface{iface("wan", true, "169.254.1.1/16", "fe80::1/64")}, netmap, ""},
		{"our own interface", []host.Interface{iface(host.DefaultInterface, true, "100.99.0.1/32")}, nil, ""},
		{"an exit's interface", []host.Interface{iface("mesh-0123abcd", true, "100.99.0.1/32")}, nil, ""},
		{"tailscaled's interface", []host.Interface{iface("tailscale0", true, "100.99.0.1/32")}, nil, ""},
		{"our mesh address elsewhere", []host.Interface{iface("wg9", true, "100.64.0.1/32")}, netmap, ""},
		{"mesh IPv6 elsewhere, without a netmap", []host.Interface{iface("wg9", true, "fd7a:115c:a1e0::9/128")}, nil, ""},
		{"carrier's NAT is no mesh address", []host.Interface{iface("wan", true, "100.70.0.9/10")}, netmap, "100.70.0.9"},
		{"IPv4 in IPv6", []host.Interface{iface("wan", true, "::ffff:203.0.113.7/128")}, netmap, "203.0.113.7"},
		{"unspecified and multicast", []host.Interface{iface("wan", true, "0.0.0.0/0", "ff02::1/128")}, netmap, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, a := range localAddrs(host.Facts{Interfaces: tt.facts}, tt.netmap) {
				got = append(got, a.String())
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Fatalf("got %q, want %q", s, tt.want)
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	home := host.Facts{Interfaces: []host.Interface{iface("wan", true, "192.168.1.2/24", "2001:db8::7/64")}}
	direct := host.Facts{Interfaces: []host.Interface{iface("wan", true, "203.0.113.7/24")}}
	tests := []struct {
		name   string
		facts  host.Facts
		m      measurement
		mapped string
		v4, v6 bool
		want   []string
	}{
		{"nothing known", host.Facts{}, measurement{}, "", true, true, nil},
		{"the order: mapping, STUN, interfaces", home,
			measurement{v4: addrPort("203.0.113.7:900"), v6: addrPort("[2001:db8::7]:41651")}, "203.0.113.7:700", true, true,
			[]string{"3 203.0.113.7:700", "2 203.0.113.7:900", "2 [2001:db8::7]:41651", "1 192.168.1.2:41651"}},
		{"no address twice: we are the NAT", direct, measurement{v4: addrPort("203.0.113.7:41651")}, "", true, true,
			[]string{"2 203.0.113.7:41651"}},
		{"mapping and STUN agree", direct, measurement{v4: addrPort("203.0.113.7:700")}, "203.0.113.7:700", true, true,
			[]string{"3 203.0.113.7:700", "1 203.0.113.7:41651"}},
		{"hard NAT: our own port is a guess", home, measurement{v4: addrPort("203.0.113.7:900"), varies: true}, "", true, true,
			[]string{"2 203.0.113.7:900", "1 192.168.1.2:41651", "1 [2001:db8::7]:41651", "4 203.0.113.7:41651"}},
		{"hard NAT, but nobody told our address", home, measurement{varies: true}, "", true, true,
			[]string{"1 192.168.1.2:41651", "1 [2001:db8::7]:41651"}},
		{"no IPv6 socket", home, measurement{}, "", true, false, []string{"1 192.168.1.2:41651"}},
		{"no IPv4 socket", home, measurement{}, "", false, true, []string{"1 [2001:db8::7]:41651"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var mapped []netip.AddrPort
			if tt.mapped != "" {
				mapped = []netip.AddrPort{addrPort(tt.mapped)}
			}
			var got []string
			for _, e := range endpoints(tt.facts, nil, tt.m, mapped, 41651, tt.v4, tt.v6) {
				got = append(got, string(rune('0'+e.Type))+" "+e.Addr.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Fatal(diff)
			}
		})
	}
}

func TestEndpointsLimit(t *testing.T) {
	var f host.Facts
	for i := range 100 {
		f.Interfaces = append(f.Interfaces, host.Interface{Name: "vlan", Up: true,
			Addrs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 1}), 24)}})
	}
	all := endpoints(f, nil, measurement{v4: addrPort("203.0.113.7:900")}, nil, 700, true, true)
	if len(all) != maxEndpoints || all[0].Type != EndpointSTUN {
		t.Fatalf("%d endpoints, first %+v", len(all), all[0])
	}
}

// wan must change with everything that breaks our mappings at NATs, and with
// nothing else: a change costs every direct path.
func TestWAN(t *testing.T) {
	via := func(dev, gw string) host.Default {
		d := host.Default{Interface: dev}
		if gw != "" {
			d.Gateway = netip.MustParseAddr(gw)
			d.V6 = d.Gateway.Is6()
		}
		return d
	}
	base := host.Facts{
		Interfaces: []host.Interface{iface("wan", true, "203.0.113.7/24", "fe80::1/64"), iface("br-lan", true, "192.168.1.1/24")},
		Defaults:   []host.Default{via("wan", "203.0.113.1")},
	}
	tests := []struct {
		name   string
		change func(*host.Facts)
		moved  bool
	}{
		{"nothing", func(*host.Facts) {}, false},
		{"a LAN address", func(f *host.Facts) { f.Interfaces[1] = iface("br-lan", true, "192.168.9.1/24") }, false},
		{"a new interface", func(f *host.Facts) { f.Interfaces = append(f.Interfaces, iface("usb0", true, "10.0.0.1/24")) }, false},
		{"a link-local address", func(f *host.Facts) { f.Interfaces[0] = iface("wan", true, "203.0.113.7/24", "fe80::2/64") }, false},
		{"the hostname", func(f *host.Facts) { f.Hostname = "x" }, false},
		{"the order", func(f *host.Facts) { slices.Reverse(f.Interfaces) }, false},
		{"the same default twice", func(f *host.Facts) { f.Defaults = append(f.Defaults, f.Defaults[0]) }, false},
		{"the WAN address", func(f *host.Facts) { f.Interfaces[0] = iface("wan", true, "203.0.113.8/24") }, true},
		{"a second WAN address", func(f *host.Facts) {
			f.Interfaces[0] = iface("wan", true, "203.0.113.7/24", "2001:db8::1/64")
		}, true},
		{"the gateway", func(f *host.Facts) { f.Defaults = []host.Default{via("wan", "203.0.113.2")} }, true},
		{"the uplink", func(f *host.Facts) { f.Defaults = []host.Default{via("wwan0", "")} }, true},
		{"a second uplink", func(f *host.Facts) { f.Defaults = append(f.Defaults, via("wwan0", "")) }, true},
		{"no uplink", func(f *host.Facts) { f.Defaults = nil }, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := host.Facts{Interfaces: slices.Clone(base.Interfaces), Defaults: slices.Clone(base.Defaults)}
			tt.change(&f)
			if moved := !slices.Equal(wan(base), wan(f)); moved != tt.moved {
				t.Fatalf("moved: %t, want %t: %v", moved, tt.moved, wan(f))
			}
		})
	}
}

func TestGatewayOf(t *testing.T) {
	gw := func(dev, addr string, v6 bool) host.Default {
		d := host.Default{Interface: dev, V6: v6}
		if addr != "" {
			d.Gateway = netip.MustParseAddr(addr)
		}
		return d
	}
	tests := []struct {
		name     string
		defaults []host.Default
		want     string
	}{
		{"none", nil, "invalid IP"},
		{"IPv4", []host.Default{gw("wan", "192.168.1.1", false)}, "192.168.1.1"},
		{"the first of two", []host.Default{gw("wan", "192.168.1.1", false), gw("wwan0", "10.0.0.1", false)}, "192.168.1.1"},
		{"IPv6 only", []host.Default{gw("wan", "fe80::1", true)}, "invalid IP"},
		{"IPv6 first", []host.Default{gw("wan", "fe80::1", true), gw("wan", "192.168.1.1", false)}, "192.168.1.1"},
		{"point to point", []host.Default{gw("ppp0", "", false)}, "invalid IP"},
		{"point to point first", []host.Default{gw("ppp0", "", false), gw("wan", "192.168.1.1", false)}, "192.168.1.1"},
		{"an exit node is no router", []host.Default{gw(host.DefaultInterface, "100.64.0.9", false)}, "invalid IP"},
		{"IPv4 route by IPv6", []host.Default{gw("wan", "fe80::1", false)}, "invalid IP"},
	}
	for _, tt := range tests {
		if got := gatewayOf(host.Facts{Defaults: tt.defaults}).String(); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}
