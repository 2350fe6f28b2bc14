package apply

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"subnetd/subnetd/host"
)

// What the rows cost a forwarded packet: none, one device, a hundred; of one that is in
// no row, too; and what the second layer costs it once the marks are gone.
func BenchmarkRows(b *testing.B) {
	many := func(n int) host.Config {
		c := home()
		s := host.ExitSource{MACs: []string{macs["tv"]}, Way: 0, Block: true}
		c.Route.Sources = nil
		for i := range n - 1 {
			s.MACs = append(s.MACs, fmt.Sprintf("02:00:00:01:00:%02x", i))
			c.Route.Sources = append(c.Route.Sources, host.RouteSource{From: netip.AddrFrom4([4]byte{192, 168, 77, byte(100 + i)}), Way: 0})
		}
		c.Route.Sources = append(c.Route.Sources, host.RouteSource{From: netip.MustParseAddr("192.168.77.50"), Way: 0})
		c.Firewall.Sources = []host.ExitSource{s}
		return c
	}
	none := home()
	none.Firewall.Sources, none.Route.Sources, none.Route.Ways = nil, nil, nil
	cases := []struct {
		name  string
		c     host.Config
		flush bool
		from  string
	}{
		{"none", none, false, "pc"},
		{"row-of-1/another", many(1), false, "pc"}, {"row-of-100/another", many(100), false, "pc"},
		{"row-of-1/its-own", many(1), false, "tv"}, {"row-of-100/its-own", many(100), false, "tv"},
		{"row-of-1/flushed", many(1), true, "pc"}, {"row-of-100/flushed", many(100), true, "pc"},
	}
	world(b)
	load(b, "world", `table inet sink { chain in { type filter hook input priority filter; udp dport 9 drop; }; }`)
	load(b, "x", `table inet sink { chain in { type filter hook forward priority filter; udp dport 9 drop; }; }`)
	best := make([]float64, len(cases))
	word := make([]byte, 1000)
	a := hands()
	for b.Loop() {
		for i, x := range cases {
			set(b, a, x.c)
			if x.flush {
				run(b, "nft flush ruleset")
				load(b, "", theirs)
			}
			f := dial(b, x.from, "", web4+":9", 0)
			for range 40 { // the best of many short ones: others work on this machine, too
				const burst = 100
				start := time.Now()
				for range burst {
					_, _ = f.Write(word)
				}
				if ns := float64(time.Since(start)) / burst; best[i] == 0 || ns < best[i] {
					best[i] = ns
				}
			}
		}
	}
	for i, x := range cases {
		b.ReportMetric(best[i], x.name+"-ns/packet")
	}
	b.ReportMetric(0, "ns/op")
}
