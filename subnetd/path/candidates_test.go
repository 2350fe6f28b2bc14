package path

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
)

func candidates(m *Machine, n mesh.Node) []netip.AddrPort {
	var all []netip.AddrPort
	for _, c := range m.peers[n.Key].cands {
		all = append(all, c.addr)
	}
	return all
}

// TestNeverCandidates: addresses that lead nowhere, or into the tunnel itself,
// are not taken from anyone.
func TestNeverCandidates(t *testing.T) {
	never := []struct {
		addr string
		why  string
	}{
		{"127.3.3.40:1", "the mark of a relay"},
		{"[::ffff:127.3.3.40]:1", "the mark of a relay, v4 in v6"},
		{"100.64.0.2:41641", "the peer's mesh address"},
		{"[::ffff:100.64.0.2]:41641", "the same, v4 in v6"},
		{"[fd7a:115c:a1e0::77]:41641", "inside any mesh"},
		{"[fd00:aaaa::2]:41641", "the peer's own mesh prefix"},
		{"0.0.0.0:41641", "unspecified"},
		{"[::]:41641", "unspecified"},
		{"224.0.0.1:41641", "multicast"},
		{"[ff02::1]:41641", "multicast"},
		{"198.51.100.2:0", "no port"},
		{"[fe80::1]:41641", "link-local v6 says nothing of which link"},
		{"[fe80::1%eth0]:41641", "a zone is a name of another machine"},
	}
	const good = "198.51.100.9:9"
	for _, tt := range never {
		t.Run(tt.why, func(t *testing.T) {
			b := node(2, tt.addr, good)
			b.Addresses = append(b.Addresses, netip.MustParsePrefix("fd00:aaaa::/64"))
			r := localRig(t, b)
			r.step(SetLocal{UDP: true, V6: true})
			r.step(CallMeMaybe{over(b, 1), b.Disco, addrs(tt.addr)})
			if d := cmp.Diff(addrs(good), candidates(r.m, b), byValue()); d != "" {
				t.Error(d)
			}
		})
	}
	b := node(2, "[::]:1")
	b.Endpoints = append(b.Endpoints, netip.AddrPort{})
	if r := localRig(t, b); len(candidates(r.m, b)) != 0 {
		t.Errorf("the zero address became a candidate")
	}
}

// TestMeshAddressLater: a candidate that turns out to be in the mesh goes.
func TestMeshAddressLater(t *testing.T) {
	b := node(2, "100.99.0.1:1", ownA)
	r := localRig(t, b)
	r.direct(b, addr("100.99.0.1:1"), time.Millisecond)
	b.Addresses = append(b.Addresses, netip.MustParsePrefix("100.99.0.0/16"))
	b.Endpoints = slices.Clone(b.Endpoints)
	u := lastUse(t, r.step(SetPeers{Peers: []mesh.Node{b}}))
	if u.Addr.IsValid() || u.Region != 1 {
		t.Errorf("the tunnel runs in itself: %+v", u)
	}
	if d := cmp.Diff(addrs(ownA), candidates(r.m, b), byValue()); d != "" {
		t.Error(d)
	}
}

// TestCandidateBounds floods one peer's candidates from every side.
func TestCandidateBounds(t *testing.T) {
	b := node(2)
	b.Endpoints = many(10, 500)
	r := localRig(t, b)
	want := func(step string, n int) {
		t.Helper()
		if got := len(candidates(r.m, b)); got != n {
			t.Errorf("after %s: %d candidates, want %d", step, got, n)
		}
	}
	want("netmap", 16)
	if d := cmp.Diff(b.Endpoints[:maxNetmap], candidates(r.m, b), byValue()); d != "" {
		t.Errorf("the first are the best: %s", d)
	}
	r.step(CallMeMaybe{over(b, 1), b.Disco, many(11, 500)})
	want("call", 24)
	for i, a := range many(12, 500) {
		r.step(Ping{From: Source{Addr: a}, Sender: b.Disco, TxID: foreign(uint32(i)), Node: b.Key})
		r.wait(time.Millisecond)
	}
	want("pings", 32)
	got := candidates(r.m, b)
	if last := many(12, 500)[499]; !slices.Contains(got, last) {
		t.Errorf("the newest is not among %v", got)
	}
	for _, a := range append(many(10, maxNetmap), many(11, maxStatic-maxNetmap)...) {
		if !slices.Contains(got, a) {
			t.Errorf("pings drove out %v, which is named", a)
		}
	}
	r.wait(learnedFor + time.Second)
	r.step(Sent{Peer: b.Key})
	want("forgetting what was only seen", maxStatic)

	r.step(CallMeMaybe{over(b, 1), b.Disco, nil})
	want("a call without addresses", maxNetmap)
	b.Endpoints = nil
	r.step(SetPeers{Peers: []mesh.Node{b}})
	want("a netmap without addresses", 0)
}

// TestFloodKeepsPath: no flood drives out the address that works.
func TestFloodKeepsPath(t *testing.T) {
	b := node(2)
	r := localRig(t, b)
	out := r.step(Ping{From: at(ownA), Sender: b.Disco, TxID: foreign(1), Node: b.Key})
	r.step(Sent{Peer: b.Key})
	r.answer(out, time.Millisecond)
	for i, a := range many(12, 200) {
		r.step(Ping{From: Source{Addr: a}, Sender: b.Disco, TxID: foreign(uint32(i + 2)), Node: b.Key})
	}
	r.step(CallMeMaybe{over(b, 1), b.Disco, many(13, 200)})
	b.Endpoints = many(14, 200)
	r.step(SetPeers{Peers: []mesh.Node{b}})
	r.wantPath(b, mesh.PathDirect, addr(ownA))
	r.talk(b.Key, time.Minute, time.Millisecond, append(many(12, 200), many(14, 200)...)...)
	r.wantPath(b, mesh.PathDirect, addr(ownA))
}

// TestNetmapWhileDirect: a netmap that no longer names the address in use does
// not cut what works.
func TestNetmapWhileDirect(t *testing.T) {
	b := node(2, ownA)
	r := localRig(t, b)
	r.direct(b, addr(ownA), time.Millisecond)
	r.step(SetPeers{Peers: []mesh.Node{withEndpoint(b, ownB)}})
	r.wantPath(b, mesh.PathDirect, addr(ownA))
	if d := cmp.Diff(addrs(ownA, ownB), candidates(r.m, b), byValue()); d != "" {
		t.Error(d)
	}
}

// TestNamedTwice: an address that both the coordinator and a call name is one
// candidate, and stays until neither does.
func TestNamedTwice(t *testing.T) {
	b := node(2, ownA)
	r := localRig(t, b)
	for _, s := range []struct {
		name  string
		event Event
		want  []netip.AddrPort
	}{
		{"call", CallMeMaybe{over(b, 1), b.Disco, addrs("[::ffff:198.51.100.2]:41641", ownA)}, addrs(ownA)},
		{"gone from the netmap", SetPeers{[]mesh.Node{withEndpoint(b, ownB)}}, addrs(ownA, ownB)},
		{"gone from the call", CallMeMaybe{over(b, 1), b.Disco, nil}, addrs(ownB)},
	} {
		r.step(s.event)
		if d := cmp.Diff(s.want, candidates(r.m, b), byValue()); d != "" {
			t.Errorf("%s: %s", s.name, d)
		}
		r.wait(2 * callWait)
	}
}

// TestV6Reachable: v6 addresses are pinged only if something can reach them.
func TestV6Reachable(t *testing.T) {
	const six = "[2001:db8::2]:41641"
	b := node(2, ownA, six)
	for _, tt := range []struct {
		name  string
		local SetLocal
		want  []netip.AddrPort
	}{
		{"v4 only", SetLocal{Endpoints: addrs("203.0.113.1:1"), UDP: true}, addrs(ownA)},
		{"STUN says v6", SetLocal{Endpoints: addrs("203.0.113.1:1"), UDP: true, V6: true}, addrs(ownA, six)},
		{"an own v6 address", SetLocal{Endpoints: addrs("[2001:db8::1]:1"), UDP: true}, addrs(ownA, six)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, b)
			r.step(tt.local)
			if d := cmp.Diff(tt.want, pinged(r.step(Sent{Peer: b.Key})), byValue()); d != "" {
				t.Error(d)
			}
		})
	}
	r := newRig(t, b)
	if got := pinged(r.step(Ping{From: at(six), Sender: b.Disco, TxID: foreign(1), Node: b.Key})); !slices.Equal(got, addrs(six)) {
		t.Errorf("heard over v6, pinged %v", got)
	}
}

// TestPingPace: while looking, no candidate is pinged more often than agreed.
func TestPingPace(t *testing.T) {
	b := node(2)
	b.Endpoints = many(10, 16)
	r := localRig(t, b)
	last := map[netip.AddrPort]time.Time{}
	n := 0
	for end := r.now.Add(time.Minute); r.now.Before(end); {
		out := append(r.step(Sent{Peer: b.Key}), r.wait(50*time.Millisecond)...)
		for _, a := range pinged(out) {
			if since := r.now.Sub(last[a]); since < pingEvery-50*time.Millisecond {
				t.Fatalf("%v pinged again after %v", a, since)
			}
			last[a] = r.now
			n++
		}
	}
	if n < 16*12 || n > 16*13 {
		t.Errorf("%d pings in a minute of looking", n)
	}
}
