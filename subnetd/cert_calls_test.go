package main

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"subnetd/subnetd/cert"
	"subnetd/subnetd/mesh"
)

func addresses(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestHostOf(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	nm := &mesh.Netmap{Self: mesh.Node{Name: "Home.mesh.internal."}, Peers: []mesh.Node{
		{Name: "Phone.mesh.internal.", Addresses: prefixes("100.64.0.2/32", "fd7a:115c:a1e0::2/128", "100.64.9.9/32")}, // the last is of a device behind it
		{Name: "gone.mesh.internal.", Addresses: prefixes("100.64.0.3/32"), KeyExpiry: now},
		{Name: "nas.mesh.internal.", Addresses: prefixes("100.64.0.4/32")},
	}}
	devices := []mesh.Device{
		{Name: "printer", Full: "printer.mesh.internal", LAN: addresses("192.168.1.50", "fd00::50")},
		{Name: "NAS", LAN: addresses("192.168.1.51")},
		{Full: "shared.example.com", LAN: addresses("192.168.1.52")},
		{Name: "page", LAN: addresses("192.168.1.53")},
	}
	self, none := cert.Host{Self: true}, cert.Host{}
	printer := cert.Host{Addrs: devices[0].LAN, Names: []string{"printer.home.mesh.internal", "printer.mesh.internal"}}
	for name, want := range map[string]cert.Host{
		"home.mesh.internal":         self,
		"page.home.mesh.internal":    self, // whatever a device is called
		"drop.home.mesh.internal":    self,
		"ca.home.mesh.internal":      self,
		"printer.home.mesh.internal": printer,
		"printer.mesh.internal":      printer,
		"nas.home.mesh.internal":     {Addrs: devices[1].LAN, Names: []string{"nas.home.mesh.internal"}},
		"nas.mesh.internal":          {Addrs: addresses("100.64.0.4")},
		"phone.mesh.internal":        {Addrs: addresses("100.64.0.2", "fd7a:115c:a1e0::2")},
		"gone.mesh.internal":         none,
		"shared.example.com":         none,
		"tv.home.mesh.internal":      none,
		"mesh.internal":              none,
		"page.mesh.internal":         none,
		"x.page.home.mesh.internal":  none,
		"":                           none,
		".home.mesh.internal":        none,
	} {
		got, ok := hostOf(name, nm, devices, now)
		if got.Self != want.Self || !slices.Equal(got.Addrs, want.Addrs) || !slices.Equal(got.Names, want.Names) || ok != (want.Self || want.Addrs != nil) {
			t.Errorf("%q: %+v, %v, want %+v", name, got, ok, want)
		}
	}
}
