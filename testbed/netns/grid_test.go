package netns_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// cell is one place of the grid: which NAT the target is behind, and which the phone.
type cell struct{ target, phone netns.NAT }

// grid says how each phone reached each target, and what the stock command printed on the way.
type grid struct {
	reach map[cell]netns.Reach
	out   map[cell]string
}

// TestNATGrid compares subnetd with stock tailscaled behind every kind of NAT, the other side being stock behind every
// kind: direct wherever stock gets direct in the same lab, reachable everywhere.
func TestNATGrid(t *testing.T) {
	lab := netns.New(t)
	hs := lab.Headscale()
	key := hs.PreAuthKey("ana", netns.KeyOptions{Reusable: true})
	phones := map[netns.NAT]*netns.StockPeer{}
	for _, kind := range netns.Kinds() {
		phones[kind] = joinStock(t, lab, hs, key, "phone-"+string(kind), kind)
	}
	stock := joinStockTargets(t, lab, hs, key)
	ours := map[netns.NAT]netip.Addr{}
	for _, kind := range netns.Kinds() {
		name := "ours-" + string(kind)
		d := lab.Subnetd(lab.Client(name, kind), "[lan]\nexpose = \"none\"\n[tunnel]\nengine = \"userspace\"\n")
		d.UpKey(hs, key, name)
		ours[kind] = meshAddr(t, hs, name)
	}
	wantAsGood(t, phones, ours, stock)
}

// joinStockTargets makes stock nodes behind every kind of NAT, for comparison.
func joinStockTargets(t *testing.T, lab *netns.Lab, hs *netns.Headscale, key string) map[netns.NAT]netip.Addr {
	t.Helper()
	stock := map[netns.NAT]netip.Addr{}
	for _, kind := range netns.Kinds() {
		joinStock(t, lab, hs, key, "stock-"+string(kind), kind)
		stock[kind] = meshAddr(t, hs, "stock-"+string(kind))
	}
	return stock
}

// wantAsGood: what the phones reach directly at stock, they do at subnetd; and nobody is unreachable.
func wantAsGood(t *testing.T, phones map[netns.NAT]*netns.StockPeer, ours, stock map[netns.NAT]netip.Addr) {
	t.Helper()
	grids := measure(t, phones, ours, stock)
	mine, theirs := grids[0], grids[1]
	t.Logf("stock tailscaled against stock tailscaled:\n%s", theirs)
	t.Logf("subnetd against stock tailscaled:\n%s", mine)
	for c, got := range mine.reach {
		want := theirs.reach[c]
		if got == netns.Unreachable || want == netns.Direct && got != netns.Direct {
			t.Errorf("target %s, phone %s: stock is %s, subnetd %s:\n%s", c.target, c.phone, want, got, mine.out[c])
		}
	}
}

func joinStock(t *testing.T, lab *netns.Lab, hs *netns.Headscale, key, name string, kind netns.NAT) *netns.StockPeer {
	t.Helper()
	p := lab.StockPeer(lab.Client(name, kind))
	p.Up(hs.URL, key)
	return p
}

func meshAddr(t *testing.T, hs *netns.Headscale, name string) netip.Addr {
	t.Helper()
	v4, _, err := hs.MeshAddrs(name)
	if err != nil {
		t.Fatal(err)
	}
	return v4
}

// measure pings every target of every set from every phone, all at the same time: most of the time is spent waiting for
// a direct path where there can be none. A grid for each set.
func measure(t *testing.T, phones map[netns.NAT]*netns.StockPeer, sets ...map[netns.NAT]netip.Addr) []*grid {
	t.Helper()
	for kind, p := range phones {
		for _, targets := range sets {
			for _, addr := range targets {
				netns.Eventually(t, 20*time.Second, fmt.Sprintf("phone-%s knows %v", kind, addr), func() error { return knows(p, addr) })
			}
		}
	}
	var grids []*grid
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, targets := range sets {
		g := &grid{reach: map[cell]netns.Reach{}, out: map[cell]string{}}
		grids = append(grids, g)
		for kind, p := range phones {
			for target, addr := range targets {
				wg.Go(func() {
					reach, out := p.Ping(context.Background(), addr, 8)
					mu.Lock()
					defer mu.Unlock()
					g.reach[cell{target, kind}], g.out[cell{target, kind}] = reach, out
				})
			}
		}
	}
	wg.Wait()
	return grids
}

// knows says nil if the peer's netmap has the address.
func knows(p *netns.StockPeer, addr netip.Addr) error {
	s, err := p.Status()
	if err != nil {
		return err
	}
	for _, n := range s.Peer {
		for _, a := range n.TailscaleIPs {
			if a == addr {
				return nil
			}
		}
	}
	return fmt.Errorf("not among its %d peers", len(s.Peer))
}

// String draws the grid: a line per NAT of the target, a column per NAT of the phone.
func (g *grid) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-18s", "target \\ phone")
	for _, k := range netns.Kinds() {
		fmt.Fprintf(&b, "%-13s", k)
	}
	for _, target := range netns.Kinds() {
		fmt.Fprintf(&b, "\n%-18s", target)
		for _, phone := range netns.Kinds() {
			fmt.Fprintf(&b, "%-13s", g.reach[cell{target, phone}])
		}
	}
	return b.String()
}
