package netns_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"

	"tailscale.com/tailcfg"
)

// TestHomeGone: without the coordinator, and without the relay, the mesh goes on, also for a router that restarts.
func TestHomeGone(t *testing.T) {
	s := openHome(t, netns.HomeOptions{})
	south := s.lab.NewHome(netns.HomeSpec{Name: "south", NAT: netns.Easy,
		LAN4: netip.MustParsePrefix("192.168.88.0/24"), LAN6: netip.MustParsePrefix("fd88:88::/64")})
	southD := s.lab.Subnetd(south.Router, daemonConfig)
	s.routerUp(southD, "south")
	s.mesh.ApproveRoutes("south", south.LAN4, south.LAN6)
	alice, bob := s.stock("alice", netns.Easy), s.stock("bob", netns.Public)
	for _, p := range []*netns.StockPeer{alice, bob} {
		if _, err := p.CLI(t.Context(), "set", "--accept-routes"); err != nil {
			t.Fatal(err)
		}
		if out, err := p.CLI(t.Context(), "debug", "netmap"); err != nil || !strings.Contains(out, string(tailcfg.NodeAttrCacheNetworkMaps)) {
			t.Errorf("%s was not granted to cache its netmap: %v", p.Host.Name, err)
		}
	}
	bobAt, southAt := s.addrs("bob"), s.addrs("south")
	mesh := func(t *testing.T) {
		t.Helper()
		wantReach(t, alice.Host, append(bobAt, south.LAN.Addr4, south.LAN.Addr6)...)
		wantReach(t, bob.Host, south.LAN.Addr4)
		wantReach(t, south.Router, bobAt...)
	}
	mesh(t)
	for _, a := range []netip.Addr{bobAt[0], southAt[0]} {
		if reach, out := alice.Ping(t.Context(), a, 20); reach != netns.Direct {
			t.Fatalf("no direct path to %v: %s", a, out)
		}
	}
	between := startFlow(t, alice.Host, bob.Host, netip.AddrPortFrom(bobAt[0], 5001))
	toLAN := startFlow(t, alice.Host, south.LAN, netip.AddrPortFrom(south.LAN.Addr4, 5001))

	s.mesh.Kill()
	mesh(t)
	between.goesOn(t)
	toLAN.goesOn(t)
	southD.Kill9()
	southD.Start()
	start := time.Now()
	mesh(t)
	t.Logf("the other router restarted: it is reached after %v", time.Since(start).Round(time.Millisecond))
	between.finish(t)
	toLAN.finish(t)

	// A stock client that restarts without any server has the mesh's members, but no way to tell them its new disco key:
	// neither stock peers nor we can do more for it than grant the cache.
	alice.Kill()
	alice.Start()
	start = time.Now()
	netns.Eventually(t, 20*time.Second, "a restarted stock client runs on its cache", func() error {
		st, err := alice.Status()
		if err == nil && (st.BackendState != "Running" || len(st.Peer) != 3) {
			err = fmt.Errorf("state %s, %d peers", st.BackendState, len(st.Peer))
		}
		return err
	})
	t.Logf("a restarted stock client runs on its cache after %v", time.Since(start).Round(time.Millisecond))
	if m, err := southD.StatusJSON(); err != nil || m["phase"] != "cached" {
		t.Errorf("the other router is %v (%v)", m["phase"], err)
	}
}

// routerUp lets another home's router join by a key.
func (s *homeScene) routerUp(d *netns.Subnetd, hostname string) {
	s.t.Helper()
	inv := s.mesh.Invite()
	if out, err := d.CLI("up", "--control", inv.URL, "--auth-key", inv.Key, "--hostname", hostname); err != nil {
		s.t.Fatalf("subnetd up: %v\n%s", err, out)
	}
	netns.Eventually(s.t, 20*time.Second, hostname+" is online", func() error {
		n, err := s.mesh.Node(hostname)
		if err == nil && !n.Online {
			err = errors.New("it is offline")
		}
		return err
	})
}
