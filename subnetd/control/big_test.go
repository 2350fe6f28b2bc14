package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"subnetd/subnetd/status"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const crowd = 1000

// crowded is a first map with many peers, each as full as they are in life.
func crowded(k key.NodePublic) *tailcfg.MapResponse {
	m := &tailcfg.MapResponse{Node: self(k), PacketFilters: map[string][]tailcfg.FilterRule{}}
	yes := true
	for i := range crowd {
		a := netip.AddrFrom4([4]byte{100, 64, byte(1 + i/250), byte(1 + i%250)})
		m.Peers = append(m.Peers, &tailcfg.Node{
			ID: tailcfg.NodeID(2 + i), Name: fmt.Sprintf("node-%d.mesh.", i), User: tailcfg.UserID(i % 20), Key: key.NewNode().Public(), DiscoKey: key.NewDisco().Public(),
			Addresses: []netip.Prefix{netip.PrefixFrom(a, 32)}, AllowedIPs: []netip.Prefix{netip.PrefixFrom(a, 32), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 250), byte(i % 250), 0}), 24)},
			Endpoints: []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 41641), netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 41641)},
			HomeDERP:  901, Online: &yes, Cap: 119, MachineAuthorized: true, CapMap: tailcfg.NodeCapMap{"https://example/cap/a": nil},
			Hostinfo: (&tailcfg.Hostinfo{OS: "linux", Hostname: fmt.Sprintf("node-%d", i)}).View(),
		})
		m.PacketFilters["base"] = append(m.PacketFilters["base"], tailcfg.FilterRule{
			SrcIPs: []string{a.String()}, DstPorts: []tailcfg.NetPortRange{{IP: "100.64.0.1", Ports: tailcfg.PortRange{First: 22, Last: 22}}},
		})
	}
	for i := range 20 {
		m.UserProfiles = append(m.UserProfiles, tailcfg.UserProfile{ID: tailcfg.UserID(i), LoginName: fmt.Sprintf("user-%d@example", i)})
	}
	return m
}

// A map of a thousand nodes fits into a router, and news of one peer are about
// that one.
func TestThousandNodes(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		say := make(chan *tailcfg.MapResponse)
		c.does(func(a *acts) {
			a.stream = func(p *poll) {
				p.say(crowded(p.req.NodeKey))
				for m := range say {
					p.say(m)
				}
			}
		})
		m := c.member(withKey).run()
		pass(0)
		m.expect(status.PhaseJoined)
		before := m.seenNetmaps()[0]
		if len(before.Peers) != crowd || len(before.Filter) != crowd || len(before.Users) != 20 {
			t.Fatalf("%d peers, %d rules, %d users", len(before.Peers), len(before.Filter), len(before.Users))
		}
		was := freeze(t, before)
		off := false
		say <- &tailcfg.MapResponse{PeersChangedPatch: []*tailcfg.PeerChange{{NodeID: 500, Online: &off}}}
		pass(0)
		close(say)
		nms := m.seenNetmaps()
		if len(nms) != 2 {
			t.Fatalf("%d netmaps told; want two", len(nms))
		}
		was.check(t)
		after, touched := nms[1], 0
		for i := range after.Peers {
			if !equalNodes(&before.Peers[i], &after.Peers[i]) {
				touched++
			}
		}
		if touched != 1 || *after.Peer(500).Online {
			t.Errorf("%d peers touched; want peer 500 only", touched)
		}
		if &after.Filter[0] != &before.Filter[0] || &after.Peers[7].AllowedIPs[0] != &before.Peers[7].AllowedIPs[0] {
			t.Error("what did not change was copied")
		}
	})
}

// The cost of a thousand nodes in memory, and of one delta.
func TestThousandNodesMemory(t *testing.T) {
	b, err := json.Marshal(crowded(nodeKey(1)))
	if err != nil {
		t.Fatal(err)
	}
	f := &frameReader{r: bytes.NewReader(framed(string(b)))}
	before := live()
	s := newSession(func() time.Time { return now }, nil)
	m, err := f.next()
	if err != nil {
		t.Fatal(err)
	}
	nm, err := s.apply(m)
	if err != nil {
		t.Fatal(err)
	}
	m = nil
	kept := live() - before
	t.Logf("%d nodes: %d KiB JSON, %d KiB kept", crowd, len(b)>>10, kept>>10)
	if kept > 6<<20 {
		t.Errorf("%d KiB kept for %d nodes", kept>>10, crowd)
	}
	on := false
	delta := &tailcfg.MapResponse{OnlineChange: map[tailcfg.NodeID]bool{500: on}}
	spent := allocated(func() { _, err = s.apply(delta) })
	t.Logf("a delta: %d KiB allocated", spent>>10)
	if err != nil || spent > 2<<20 {
		t.Errorf("a delta of one peer: %d KiB allocated, %v", spent>>10, err)
	}
	runtime.KeepAlive(nm)
	runtime.KeepAlive(s)
}
