package netns_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"subnetd/testbed/netns"
	"tailscale.com/tailcfg"
)

const (
	manyPeers   = 1000
	activePeers = 50
)

// wantManyPeers gives the guest's router a mesh of a thousand peers, fifty of which are alive and exchange a packet a
// second with it, and prints what that costs the daemon: while these speak WireGuard only, and nobody asks for counters, it
// sleeps; then it asks each every three seconds whether the path is alive.
func wantManyPeers(t *testing.T, s *guestScene) {
	t.Helper()
	crowd := s.lab.Crowd()
	derper := s.lab.Derper(s.lab.Client("derper", netns.Public))
	derp := &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{1: {RegionID: 1, RegionCode: "lab", RegionName: "Lab", Nodes: []*tailcfg.DERPNode{{
		Name: "1", RegionID: 1, HostName: derper.Addr.Addr().String(), IPv4: derper.Addr.Addr().String(), DERPPort: int(derper.Addr.Port()),
		STUNPort: -1, InsecureForTests: true}}}}}
	members, nodes := make([]*netns.Member, manyPeers), make([]*tailcfg.Node, manyPeers)
	for i := range members {
		addr := netip.AddrFrom4([4]byte{100, 64, byte(1 + i/200), byte(1 + i%200)})
		members[i] = netns.NewMember(addr, netip.AddrPortFrom(crowd.Addr(i), uint16(20000+i)))
		nodes[i] = members[i].Node(tailcfg.NodeID(10+i), 1)
	}
	self := netip.MustParseAddr("100.64.0.1")
	still := s.lab.Still(s.lab.Client("still", netns.Public), self, nodes, derp)

	if err := s.daemon.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	h := s.guest.Inner("many")
	s.lab.ClientAt(h, netns.Public)
	d := s.lab.Subnetd(h, "[lan]\nexpose = \"none\"\n[tunnel]\nengine = \"kernel\"\n")
	defer s.daemon.Start()
	defer func() { _ = d.Stop() }()
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // a slow router reads of a thousand peers first
	defer cancel()
	if out, err := d.CLIContext(ctx, "up", "--control", still.URL, "--auth-key", "any", "--hostname", "home"); err != nil {
		t.Fatalf("subnetd up: %v\n%s", err, out)
	}
	t.Logf("joined after %v", time.Since(start).Round(time.Millisecond))
	netns.Eventually(t, 3*time.Minute, "the kernel has all peers", func() error {
		all, err := wgDump(h)
		if err == nil && len(all) != manyPeers {
			err = fmt.Errorf("%d", len(all))
		}
		return err
	})
	t.Logf("the kernel has %d peers after %v, %.1f s of them CPU", manyPeers, time.Since(start).Round(time.Millisecond), d.CPUSeconds())
	cost(t, d, fmt.Sprintf("%d peers, none active", manyPeers), 10*time.Second)

	var at netip.AddrPort
	netns.Eventually(t, time.Minute, "the daemon says its port", func() error { // when it has time for that
		m, err := d.StatusJSON()
		port, _ := m["port"].(float64)
		at = netip.AddrPortFrom(h.Addr4, uint16(port))
		return err
	})
	stop := make(chan struct{})
	var chats sync.WaitGroup
	for _, m := range members[:activePeers] {
		m.Start(crowd.Host, still.Joined(), at, self)
		chats.Go(func() { chat(m, stop) })
	}
	defer func() { close(stop); chats.Wait() }()
	netns.Eventually(t, 3*time.Minute, "all active peers are direct", func() error { return activeDirect(h, members[:activePeers]) })
	cost(t, d, fmt.Sprintf("%d peers, %d active, of which it was told nothing", manyPeers, activePeers), 10*time.Second)
	netns.Eventually(t, 3*time.Minute, "the daemon knows the paths of the active", func() error { return knowsDirect(d, activePeers) })
	cost(t, d, fmt.Sprintf("%d peers, %d active, whose paths it tends", manyPeers, activePeers), 20*time.Second)
	if err := activeDirect(h, members[:activePeers]); err != nil {
		t.Error(err)
	}
}

// chat exchanges a packet a second until stop is closed.
func chat(m *netns.Member, stop chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		m.Ping(900 * time.Millisecond)
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

// activeDirect says nil if the kernel sends to each of the members directly, and did so lately.
func activeDirect(h *netns.Host, members []*netns.Member) error {
	all, err := wgDump(h)
	if err != nil {
		return err
	}
	at := map[string]bool{}
	for _, p := range all {
		if p.handshake > 0 {
			at[p.endpoint] = true
		}
	}
	direct := 0
	for _, m := range members {
		if at[m.Endpoint.String()] {
			direct++
		}
	}
	if direct < len(members) {
		return fmt.Errorf("%d of %d active peers are direct", direct, len(members))
	}
	return nil
}

// knowsDirect says nil if `status`, which has the daemon look, knows of so many direct paths.
func knowsDirect(d *netns.Subnetd, want int) error {
	m, err := d.StatusJSON()
	if err != nil {
		return err
	}
	direct := 0
	peers, _ := m["peers"].([]any)
	for _, p := range peers {
		if p, _ := p.(map[string]any); p["path"] == "direct" {
			direct++
		}
	}
	if direct < want {
		return fmt.Errorf("it knows of %d of %d", direct, want)
	}
	return nil
}

// cost prints what the daemon uses in a span of its host's time.
func cost(t *testing.T, d *netns.Subnetd, what string, span time.Duration) {
	t.Helper()
	begin := uptime(t, d.Host)
	share := daemonShare(t, d, func() {
		for uptime(t, d.Host) < begin+span.Seconds() {
			time.Sleep(time.Second) // idle is what is measured
		}
	})
	t.Logf("%s: %.1f ms CPU a second, RSS %.1f MB", what, 1000*share, d.Memory("VmRSS"))
}
