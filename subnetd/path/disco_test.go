package path

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
	"tailscale.com/types/key"
)

// TestPingIsAnswered: the source is answered, mapped and asked back, but only
// an answer to our own ping makes it the path.
func TestPingIsAnswered(t *testing.T) {
	b := node(2)
	r := localRig(t, b)
	src := "192.0.2.7:1234"
	out := r.step(Ping{From: at(src), Sender: b.Disco, TxID: foreign(1), Node: b.Key})
	pong := SendPong{Peer: b.Key, Disco: b.Disco, To: at(src), TxID: foreign(1), Src: addr(src)}
	if d := cmp.Diff([]SendPong{pong}, of[SendPong](out), byValue()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]Map{{addr(src), b.Key}}, of[Map](out), byValue()); d != "" {
		t.Error(d)
	}
	if got := pinged(out); !slices.Equal(got, addrs(src)) {
		t.Errorf("pinged %v, want the source", got)
	}
	r.wantPath(b, mesh.PathRelay, netip.AddrPort{})

	// Asking on and on does not change that, and does not make us shout.
	pings := 0
	for i := range uint32(100) {
		r.wait(10 * time.Millisecond)
		more := r.step(Ping{From: at(src), Sender: b.Disco, TxID: foreign(2 + i), Node: b.Key})
		pings += len(of[SendPing](more))
		if len(of[SendPong](more)) != 1 {
			t.Fatalf("ping %d was not answered once: %v", i, more)
		}
	}
	if pings > 0 {
		t.Errorf("a second of pings made %d of ours", pings)
	}
	r.wantPath(b, mesh.PathRelay, netip.AddrPort{})

	u := lastUse(t, r.answer(out, 0))
	if u.Addr != addr(src) || u.Region != 0 {
		t.Errorf("after our ping was answered: %+v", u)
	}
}

func TestPingIgnored(t *testing.T) {
	b, c := node(2, ownA), node(3, ownB)
	tests := []struct {
		name string
		ping Ping
	}{
		{"unknown disco key", Ping{From: at(ownA), Sender: discoKey(9), Node: b.Key}},
		{"zero disco key", Ping{From: at(ownA), Node: b.Key}},
		{"no source", Ping{Sender: b.Disco, Node: b.Key}},
		{"port 0", Ping{From: at("192.0.2.1:0"), Sender: b.Disco, Node: b.Key}},
		{"from the mesh", Ping{From: at("100.64.0.2:41641"), Sender: b.Disco, Node: b.Key}},
		{"from the mesh, v6", Ping{From: at("[fd7a:115c:a1e0::2]:41641"), Sender: b.Disco, Node: b.Key}},
		{"from the mesh, v4 in v6", Ping{From: at("[::ffff:100.64.0.2]:41641"), Sender: b.Disco, Node: b.Key}},
		{"mark of a relay", Ping{From: at("127.3.3.40:1"), Sender: b.Disco, Node: b.Key}},
		{"multicast", Ping{From: at("224.0.0.1:41641"), Sender: b.Disco, Node: b.Key}},
		{"relay: unknown sender", Ping{From: over(node(9), 1), Sender: b.Disco, Node: b.Key}},
		{"relay: the key of another", Ping{From: over(c, 1), Sender: b.Disco, Node: c.Key}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := localRig(t, b, c)
			tt.ping.TxID = foreign(1)
			if out := r.step(tt.ping); len(out) > 0 {
				t.Errorf("does %v", out)
			}
			if n := len(r.m.peers[b.Key].cands); n != 1 {
				t.Errorf("%d candidates, want what the coordinator said", n)
			}
		})
	}
}

func TestPingDuplicate(t *testing.T) {
	b := node(2)
	r := localRig(t, b)
	e := Ping{From: at(ownA), Sender: b.Disco, TxID: foreign(1), Node: b.Key}
	r.step(e)
	if out := r.step(e); len(out) > 0 {
		t.Errorf("the same packet again does %v", out)
	}
	e.From = at("[::ffff:198.51.100.2]:41641")
	if out := r.step(e); len(out) > 0 {
		t.Errorf("the same packet, v4 in v6, does %v", out)
	}
	e.From = at(ownB)
	if out := r.step(e); len(of[SendPong](out)) != 1 {
		t.Errorf("the same ping from elsewhere is not answered: %v", out)
	}
}

// TestPingOfOldClient: without a node key nothing is mapped before our own
// ping proved who it is.
func TestPingOfOldClient(t *testing.T) {
	b := node(2)
	r := localRig(t, b)
	out := r.step(Ping{From: at(ownA), Sender: b.Disco, TxID: foreign(1)})
	if len(of[SendPong](out)) != 1 || len(of[Map](out)) > 0 {
		t.Errorf("does %v, want a pong and no Map", out)
	}
	out = r.answer(out, time.Millisecond)
	if d := cmp.Diff([]Map{{addr(ownA), b.Key}}, of[Map](out), byValue()); d != "" {
		t.Error(d)
	}
}

func TestPingOverRelay(t *testing.T) {
	b := node(2)
	r := localRig(t, b)
	out := r.step(Ping{From: over(b, 3), Sender: b.Disco, TxID: foreign(1), Node: b.Key})
	pong := SendPong{Peer: b.Key, Disco: b.Disco, To: over(b, 3), TxID: foreign(1), Src: addr("127.3.3.40:3")}
	if d := cmp.Diff([]Action{pong}, out, byValue()); d != "" {
		t.Error(d)
	}
	if n := len(r.m.peers[b.Key].cands); n != 0 {
		t.Errorf("a relay became %d candidates", n)
	}
}

// TestSharedDiscoKey: one machine may be two nodes. Pongs are told apart by
// TxID, pings by the node key they name.
func TestSharedDiscoKey(t *testing.T) {
	b, c := node(2), node(3)
	c.Disco = b.Disco
	src := at(ownA)
	t.Run("old client", func(t *testing.T) {
		r := localRig(t, b, c)
		out := r.step(Ping{From: src, Sender: b.Disco, TxID: foreign(1)})
		if len(of[SendPong](out)) != 1 || len(of[SendPing](out)) != 2 || len(of[Map](out)) > 0 {
			t.Fatalf("does %v, want one pong and a ping to each", out)
		}
		first := of[SendPing](out)[1]
		r.step(Pong{From: src, Sender: b.Disco, TxID: first.TxID})
		for _, n := range []mesh.Node{b, c} {
			if got := r.m.Path(n.Key).Kind == mesh.PathDirect; got != (n.Key == first.Peer) {
				t.Errorf("%s direct: %v", n.Key.ShortString(), got)
			}
		}
	})
	t.Run("named", func(t *testing.T) {
		r := localRig(t, b, c)
		out := r.step(Ping{From: src, Sender: b.Disco, TxID: foreign(1), Node: c.Key})
		if d := cmp.Diff([]Map{{addr(ownA), c.Key}}, of[Map](out), byValue()); d != "" {
			t.Error(d)
		}
		r.answer(out, time.Millisecond)
		r.wantPath(c, mesh.PathDirect, addr(ownA))
		r.wantPath(b, mesh.PathRelay, netip.AddrPort{})
	})
	t.Run("over relay", func(t *testing.T) {
		r := localRig(t, b, c)
		out := of[SendPong](r.step(Ping{From: over(c, 1), Sender: b.Disco, TxID: foreign(1), Node: c.Key}))
		if len(out) != 1 || out[0].Peer != c.Key {
			t.Errorf("answered %v, want the sender the relay names", out)
		}
	})
	t.Run("both at one address", func(t *testing.T) {
		r := localRig(t, b, c)
		r.step(SetPeers{Peers: []mesh.Node{withEndpoint(b, ownA), withEndpoint(c, ownA)}})
		for _, n := range []mesh.Node{b, c} {
			r.answer(r.step(Sent{Peer: n.Key}), time.Millisecond)
		}
		r.wantPath(b, mesh.PathDirect, addr(ownA))
		r.wantPath(c, mesh.PathDirect, addr(ownA))
	})
	t.Run("one leaves", func(t *testing.T) {
		r := localRig(t, b, c)
		r.step(SetPeers{Peers: []mesh.Node{c}})
		out := r.step(Ping{From: src, Sender: b.Disco, TxID: foreign(1)})
		if d := of[SendPong](out); len(d) != 1 || d[0].Peer != c.Key {
			t.Errorf("answered %v", out)
		}
	})
}

func withEndpoint(n mesh.Node, a string) mesh.Node {
	n.Endpoints = addrs(a)
	return n
}

func TestPong(t *testing.T) {
	b, c := node(2, ownA), node(3, ownB)
	tests := []struct {
		name string
		wait time.Duration
		pong func(SendPing) Pong
		ok   bool
	}{
		{"right", 0, func(p SendPing) Pong { return Pong{p.To, b.Disco, p.TxID, addr("203.0.113.1:1")} }, true},
		{"just in time", pingTimeout - 1, func(p SendPing) Pong { return Pong{p.To, b.Disco, p.TxID, addr("203.0.113.1:1")} }, true},
		{"late", pingTimeout, func(p SendPing) Pong { return Pong{p.To, b.Disco, p.TxID, addr("203.0.113.1:1")} }, false},
		{"very late", time.Hour, func(p SendPing) Pong { return Pong{p.To, b.Disco, p.TxID, addr("203.0.113.1:1")} }, false},
		{"unknown number", 0, func(p SendPing) Pong { return Pong{p.To, b.Disco, foreign(1), addr("203.0.113.1:1")} }, false},
		{"another's key", 0, func(p SendPing) Pong { return Pong{p.To, c.Disco, p.TxID, addr("203.0.113.1:1")} }, false},
		{"unknown key", 0, func(p SendPing) Pong { return Pong{p.To, discoKey(9), p.TxID, addr("203.0.113.1:1")} }, false},
		{"no key", 0, func(p SendPing) Pong { return Pong{p.To, key.DiscoPublic{}, p.TxID, addr("203.0.113.1:1")} }, false},
		{"over a relay", 0, func(p SendPing) Pong { return Pong{over(b, 1), b.Disco, p.TxID, addr("203.0.113.1:1")} }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := localRig(t, b, c)
			p := of[SendPing](r.step(Sent{Peer: b.Key}))[0]
			r.now = r.now.Add(tt.wait) // without a Tick: the pong itself must be judged
			r.step(tt.pong(p))
			if got := r.m.Path(b.Key).Kind == mesh.PathDirect; got != tt.ok {
				t.Errorf("direct: %v, want %v", got, tt.ok)
			}
			if !tt.ok {
				return
			}
			if rtt := r.m.Path(b.Key).RTT; rtt != max(tt.wait, time.Microsecond) {
				t.Errorf("round trip %v, want %v", rtt, tt.wait)
			}
			if out := r.step(tt.pong(p)); len(out) > 0 {
				t.Errorf("the same pong again does %v", out)
			}
		})
	}
}

// TestRelayPong: the answer to a ping over a relay counts only over a relay,
// and only if the relay names the right sender.
func TestRelayPong(t *testing.T) {
	b, c := node(2), node(3)
	c.Disco = b.Disco
	for _, tt := range []struct {
		name string
		from Source
		ok   bool
	}{
		{"right", over(b, 1), true},
		{"other region", over(b, 2), true},
		{"another sender", over(c, 1), false},
		{"over UDP", at(ownA), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := localRig(t, b, c)
			p := of[SendPing](r.step(Probe{Peer: b.Key, ID: 1}))[0]
			out := r.step(Pong{From: tt.from, Sender: b.Disco, TxID: p.TxID})
			if got := len(of[Answered](out)) == 1; got != tt.ok {
				t.Errorf("answered: %v, want %v", got, tt.ok)
			}
			r.wantPath(b, mesh.PathRelay, netip.AddrPort{})
		})
	}
}

// TestEqualTxID: numbers that repeat are no reason to mix up two pings.
func TestEqualTxID(t *testing.T) {
	b := node(2, ownA, ownB)
	m := New(Config{NewTxID: func() TxID { return foreign(7) }})
	m.Step(noon, SetPeers{Peers: []mesh.Node{b}})
	out := m.Step(noon, Sent{Peer: b.Key})
	check(t, m)
	if n := len(of[SendPing](out)); n != 1 {
		t.Errorf("%d pings under one number", n)
	}
}

func TestCallMeMaybe(t *testing.T) {
	b, c := node(2), node(3, ownB)
	there := addrs(ownA)
	tests := []struct {
		name string
		call CallMeMaybe
		ok   bool
	}{
		{"right", CallMeMaybe{over(b, 1), b.Disco, there}, true},
		{"other region", CallMeMaybe{over(b, 9), b.Disco, there}, true},
		{"over UDP", CallMeMaybe{at(ownA), b.Disco, there}, false},
		{"from nowhere", CallMeMaybe{Source{Node: b.Key}, b.Disco, there}, false},
		{"UDP with a node key", CallMeMaybe{Source{Addr: addr(ownA), Region: 1, Node: b.Key}, b.Disco, there}, false},
		{"another's disco key", CallMeMaybe{over(b, 1), c.Disco, there}, false},
		{"sent by another", CallMeMaybe{over(c, 1), b.Disco, there}, false},
		{"unknown sender", CallMeMaybe{over(node(9), 1), b.Disco, there}, false},
		{"no key", CallMeMaybe{over(b, 1), key.DiscoPublic{}, there}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := localRig(t, b, c)
			out := r.step(tt.call)
			if got := slices.Equal(pinged(out), there); got != tt.ok {
				t.Fatalf("does %v; obeyed: %v, want %v", out, got, tt.ok)
			}
			if !tt.ok {
				if len(out) > 0 {
					t.Errorf("does %v", out)
				}
				return
			}
			r.answer(out, time.Millisecond)
			r.wantPath(b, mesh.PathDirect, addr(ownA))
		})
	}
}

// TestCallReplaces: what an earlier call said is gone with the next, unless it
// is the path or was heard from.
func TestCallReplaces(t *testing.T) {
	b := node(2, ownA)
	r := localRig(t, b)
	call := func(list ...string) []netip.AddrPort {
		r.wait(2 * callWait)
		got := pinged(r.step(CallMeMaybe{over(b, 1), b.Disco, addrs(list...)}))
		slices.SortFunc(got, netip.AddrPort.Compare)
		return got
	}
	if d := cmp.Diff(addrs("192.0.2.1:1", "192.0.2.2:2", ownA), call("192.0.2.1:1", "192.0.2.2:2", "[fe80::1]:1"), byValue()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(addrs("192.0.2.2:2", "192.0.2.3:3", ownA), call("192.0.2.3:3", "192.0.2.2:2"), byValue()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(addrs(ownA), call(), byValue()); d != "" {
		t.Error(d)
	}
}

// TestCallFlood: a peer that calls without end does not make us shout.
func TestCallFlood(t *testing.T) {
	b := node(2)
	r := localRig(t, b)
	call := CallMeMaybe{over(b, 1), b.Disco, many(198, 100)}
	pings := 0
	for range 1000 {
		pings += len(of[SendPing](r.step(call)))
		r.wait(10 * time.Millisecond)
	}
	if lim := 11 * maxStatic; pings > lim {
		t.Errorf("10 s of calls made %d pings, want %d at most", pings, lim)
	}
}

// TestCallsOut: we call once per try, with fresh endpoints if they can be had.
func TestCallsOut(t *testing.T) {
	b := node(2, ownA)
	own := addrs("203.0.113.1:41641")
	t.Run("fresh", func(t *testing.T) {
		r := localRig(t, b)
		out := r.step(Sent{Peer: b.Key})
		want := []SendCallMeMaybe{{Peer: b.Key, Disco: b.Disco, Region: 1, Endpoints: own}}
		if d := cmp.Diff(want, of[SendCallMeMaybe](out), byValue()); d != "" || len(of[Restun](out)) > 0 {
			t.Errorf("%v\n%s", out, d)
		}
		out = r.talk(b.Key, 20*time.Second, 0, addr(ownA))
		if n := len(of[SendCallMeMaybe](out)); n < 3 || n > 4 {
			t.Errorf("%d calls in 20 s, want one every %v", n, pingEvery)
		}
	})
	t.Run("moved", func(t *testing.T) {
		r := localRig(t, b)
		r.step(Sent{Peer: b.Key})
		r.wait(time.Second)
		if out := r.step(SetLocal{Endpoints: own, UDP: true}); len(out) > 0 {
			t.Errorf("the same endpoints do %v", out)
		}
		out := r.step(SetLocal{Endpoints: addrs("203.0.113.1:5"), UDP: true})
		if c := of[SendCallMeMaybe](out); len(c) != 1 || c[0].Endpoints[0] != addr("203.0.113.1:5") {
			t.Errorf("new endpoints while looking do %v, want them told", out)
		}
	})
	t.Run("stale, then fresh", func(t *testing.T) {
		r := localRig(t, b)
		r.wait(freshFor)
		out := r.step(Sent{Peer: b.Key})
		if len(of[Restun](out)) != 1 || len(of[SendCallMeMaybe](out)) > 0 {
			t.Fatalf("stale endpoints: %v", out)
		}
		r.wait(100 * time.Millisecond)
		out = r.step(SetLocal{Endpoints: addrs("203.0.113.1:5"), UDP: true})
		if c := of[SendCallMeMaybe](out); len(c) != 1 || c[0].Endpoints[0] != addr("203.0.113.1:5") {
			t.Errorf("fresh endpoints: %v", out)
		}
		if out := r.wait(3 * time.Second); len(of[SendCallMeMaybe](out)) > 0 {
			t.Errorf("called twice: %v", out)
		}
	})
	t.Run("stale, and no answer", func(t *testing.T) {
		r := localRig(t, b)
		r.wait(freshFor)
		r.step(Sent{Peer: b.Key})
		out := r.wait(restunWait)
		if c := of[SendCallMeMaybe](out); len(c) != 1 || !slices.Equal(c[0].Endpoints, own) {
			t.Errorf("without an answer of STUN: %v, want the old ones told", out)
		}
	})
	t.Run("nothing to tell", func(t *testing.T) {
		r := newRig(t, b)
		out := r.talk(b.Key, 30*time.Second, 0, addr(ownA))
		if n := len(of[SendCallMeMaybe](out)); n > 0 {
			t.Errorf("%d calls without endpoints", n)
		}
		if n := len(of[Restun](out)); n < 3 || n > 7 {
			t.Errorf("%d Restun in 30 s", n)
		}
	})
	t.Run("one Restun for all", func(t *testing.T) {
		c := node(3, ownB)
		r := newRig(t, b, c)
		out := append(r.step(Sent{Peer: b.Key}), r.step(Sent{Peer: c.Key})...)
		if n := len(of[Restun](out)); n != 1 {
			t.Errorf("%d Restun, want 1", n)
		}
		out = r.step(SetLocal{Endpoints: own, UDP: true})
		if n := len(of[SendCallMeMaybe](out)); n != 2 {
			t.Errorf("%d calls, want one to each", n)
		}
	})
}

// TestRelayOnlyPeer: a peer without a disco key is never pinged nor called.
func TestRelayOnlyPeer(t *testing.T) {
	b := node(2, ownA)
	b.Disco = key.DiscoPublic{}
	r := localRig(t, b)
	if out := r.step(Sent{Peer: b.Key}); len(out) > 0 || !r.m.Wake().IsZero() {
		t.Errorf("does %v, wake %v", out, r.m.Wake())
	}
	if out := r.step(CallMeMaybe{From: over(b, 1), Endpoints: addrs(ownB)}); len(out) > 0 {
		t.Errorf("called: %v", out)
	}
}

// TestStranger: data from an address that is nobody's, as after our restart, makes us ask the peer that is said to be
// there, and nobody else, and not at every packet.
func TestStranger(t *testing.T) {
	const there = "198.51.100.1:1"
	b, c := node(2, there, "198.51.100.2:1"), node(3, "198.51.100.3:1")
	r := localRig(t, b, c)
	out := r.step(Stranger{From: addr(there)})
	if got := pinged(out); !slices.Equal(got, addrs(there)) {
		t.Fatalf("pinged %v, want only %s", got, there)
	}
	if got := pinged(r.step(Stranger{From: addr(there)})); len(got) != 0 {
		t.Errorf("pinged again at once: %v", got)
	}
	if got := r.step(Stranger{From: addr("203.0.113.77:7")}); len(got) != 0 {
		t.Errorf("an address that nobody named leads to %v", got)
	}
	r.answer(out, time.Millisecond)
	r.wantPath(b, mesh.PathDirect, addr(there))
	r.wantPath(c, mesh.PathRelay, netip.AddrPort{})
}
