package coord

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tailscale.com/tailcfg"
)

// Whatever a node says of itself is bounded, and what would do harm is left out.
func TestTellBounds(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.member("c")
		long := strings.Repeat("x", 1000)
		c.endpoints = endpoints("192.0.2.1:1", "192.0.2.1:1", "192.0.2.1:0", "[fe80::1%eth0]:1", "[fe80::1]:1")
		for i := range maxEndpoints {
			c.endpoints = append(c.endpoints, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.2"), uint16(i+1)))
		}
		c.host.Services = nil
		for range maxServices + 1 {
			c.host.Services = append(c.host.Services, tailcfg.Service{Proto: tailcfg.ServiceProto(long), Port: 1, Description: long})
		}
		for i := range maxOffers + 1 {
			c.host.RoutableIPs = append(c.host.RoutableIPs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
		}
		c.host.OS, c.host.IPNVersion, c.host.Hostname = long, long, strings.Repeat("ü", maxText)
		c.mustTell()
		n := m.node(c.node)
		if len(n.Endpoints) > maxEndpoints || fmt.Sprint(n.Endpoints[:3]) != "[192.0.2.1:1 [fe80::1]:1 192.0.2.2:1]" {
			t.Errorf("%d endpoints: %v", len(n.Endpoints), n.Endpoints[:3])
		}
		if len(n.Services) != maxServices || len(n.Services[0].Proto) != maxText || len(n.Services[0].Description) != maxText {
			t.Errorf("%d services: %v", len(n.Services), n.Services[0])
		}
		if len(n.Offers) != maxOffers || len(n.OS) != maxText || len(n.Client) != maxText || n.Hostname != strings.Repeat("ü", maxText/2) {
			t.Errorf("%d offers, %+v", len(n.Offers), n.record)
		}
		for region, want := range map[int]int{-5: 0, 0: 0, 900: 900, 1 << 20: maxRegion} {
			c.host.NetInfo = &tailcfg.NetInfo{PreferredDERP: region}
			c.mustTell()
			if got := m.node(c.node).Home; got != want {
				t.Errorf("relay %d became %d, want %d", region, got, want)
			}
		}
		for _, v := range []tailcfg.CapabilityVersion{-1, 0, minVersion - 1} {
			c.version = v
			c.mustTell()
			if got := m.node(c.node).Cap; got != 130 {
				t.Errorf("version %d became %d", v, got)
			}
		}
		m.invariants()
	})
}

// A node that says something new in a loop is slowed down: what must last soon,
// where it is later. Nothing of it is lost, and others are not concerned.
func TestPace(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c, other := m.member("c"), m.member("other")
		saves, began := m.disk.count(LedgerFile), time.Now()
		for i := 0; time.Since(began) < 10*time.Minute; i++ {
			c.host.IPNVersion = fmt.Sprint(i)
			c.mustTell()
			if got := m.node(c.node).Client; got != fmt.Sprint(i) {
				t.Fatalf("what it said is kept as %q, not %d", got, i)
			}
		}
		if n := m.disk.count(LedgerFile) - saves; n > 35 {
			t.Errorf("%d writes in ten minutes", n)
		}
		gen := m.c.snap.Load().gen
		began = time.Now()
		for i := 0; time.Since(began) < time.Minute; i++ {
			c.endpoints = endpoints(fmt.Sprintf("192.0.2.1:%d", i+1))
			if i%2 == 0 {
				c.mustTell()
			} else {
				p := c.stream()
				pass(0)
				p.cancel()
				<-p.done
			}
		}
		if n := m.c.snap.Load().gen - gen; n > 3*(50+5*60) {
			t.Errorf("%d snapshots in a minute", n)
		}
		began = time.Now()
		for i := range 10 {
			other.host.IPNVersion = fmt.Sprint(i)
			other.mustTell()
		}
		if d := time.Since(began); d > 0 {
			t.Errorf("another waited %v", d)
		}
		m.invariants()
	})
}
