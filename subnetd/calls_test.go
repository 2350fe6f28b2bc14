package main

import (
	"fmt"
	"net/netip"
	"testing"

	"subnetd/subnetd/mesh"
)

// A peer is found by its name, short or whole, by its addresses, and by an address that it routes; among a thousand.
func TestFind(t *testing.T) {
	nm := &mesh.Netmap{}
	for i := range 1000 {
		v4 := netip.AddrFrom4([4]byte{100, 64, byte(i / 250), byte(1 + i%250)})
		v6 := netip.MustParseAddr(fmt.Sprintf("fd7a:115c:a1e0::%x", i+1))
		site := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 250), byte(i % 250), 0}), 24)
		nm.Peers = append(nm.Peers, mesh.Node{
			Name: fmt.Sprintf("node-%d.lab.test.", i), Addresses: []netip.Prefix{netip.PrefixFrom(v4, 32), netip.PrefixFrom(v6, 128)},
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(v4, 32), site, netip.MustParsePrefix("0.0.0.0/0")},
		})
	}
	for target, want := range map[string]string{
		"node-7": "node-7.lab.test.", "NODE-999": "node-999.lab.test.", "node-500.lab.test": "node-500.lab.test.", "node-500.lab.test.": "node-500.lab.test.",
		"100.64.1.1": "node-250.lab.test.", "fd7a:115c:a1e0::3e8": "node-999.lab.test.", "10.2.3.77": "node-503.lab.test.",
		"node": "", "": "", "192.0.2.1": "", "node-7.other": "",
	} {
		got := ""
		if n := find(nm, target); n != nil {
			got = n.Name
		}
		if got != want {
			t.Errorf("find(%q) = %q, want %q", target, got, want)
		}
	}
}
