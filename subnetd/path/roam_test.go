package path

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"subnetd/subnetd/mesh"

	"tailscale.com/types/key"
)

const (
	ownB6 = "[2001:db8::3]:41641"
	ownC  = "203.0.113.9:999" // an address that nobody named
)

// pairs are two addresses of the peer, by family.
func pairs(t *testing.T, do func(t *testing.T, a, b string)) {
	t.Run("v4", func(t *testing.T) { do(t, ownA, ownB) })
	t.Run("v6", func(t *testing.T) { do(t, ownA6, ownB6) })
	t.Run("v4 to v6", func(t *testing.T) { do(t, ownA, ownB6) })
	t.Run("v6 to v4", func(t *testing.T) { do(t, ownA6, ownB) })
}

// TestRoamedIsFollowed: where the peer sends from and answers is the path at
// once, though the old one is trusted.
func TestRoamedIsFollowed(t *testing.T) {
	pairs(t, func(t *testing.T, a, to string) {
		r, b := directRig(t, a, 20*ms)
		out := r.step(Roamed{b.Key, addr(to)})
		if got := pinged(out); !slices.Equal(got, addrs(to)) || len(out) != 1 {
			t.Fatalf("does %v, want a ping of %s and no Use", out, to)
		}
		if more := r.step(Roamed{b.Key, addr(to)}); len(more) > 0 {
			t.Errorf("said again at once does %v", more)
		}
		u := lastUse(t, r.answer(out, 20*ms))
		if u.Addr != addr(to) || u.Region != 0 {
			t.Errorf("it answered: %+v", u)
		}
		r.wantPath(b, mesh.PathDirect, addr(to))
	})
}

// TestRoamedIsMapped: v4 in v6 is v4.
func TestRoamedIsMapped(t *testing.T) {
	r, b := directRig(t, ownA, 20*ms)
	out := r.step(Roamed{b.Key, addr("[::ffff:203.0.113.9]:999")})
	if got := pinged(out); !slices.Equal(got, addrs(ownC)) {
		t.Errorf("pinged %v", got)
	}
}

// TestRoamedSilent: an address that does not answer is left after 5 s, and for
// a minute the kernel is turned back from there at once.
func TestRoamedSilent(t *testing.T) {
	pairs(t, func(t *testing.T, a, to string) {
		r, b := directRig(t, a, 20*ms)
		turned := func(out []Action) bool {
			u := of[Use](out)
			return len(u) == 1 && u[0].Addr == addr(a) && u[0].Region == 0
		}
		said := r.now
		out := r.step(Roamed{b.Key, addr(to)})
		all := append([]Action{}, out...)
		for len(of[Use](all)) == 0 && r.now.Sub(said) < 10*time.Second {
			all = append(all, r.step(Sent{b.Key})...)
			all = append(all, r.step(Received{b.Key, at(to)})...)
			all = append(all, r.step(Roamed{b.Key, addr(to)})...) // as at every poll
			all = append(all, r.live(nil, 500*ms, 20*ms, addr(to))...)
		}
		if took := r.now.Sub(said); took < roamWait || took > roamWait+500*ms || !turned(all) {
			t.Fatalf("after %v: %v", took, of[Use](all))
		}
		if n := len(slices.DeleteFunc(pinged(all), func(x netip.AddrPort) bool { return x != addr(to) })); n > 2 {
			t.Errorf("%d pings of it", n)
		}
		if out := r.step(Roamed{b.Key, addr(to)}); !turned(out) {
			t.Errorf("there again: %v, want the same Use at once", out)
		}
		r.talk(b.Key, refuseFor+time.Second, 20*ms, addr(to))
		if out := r.step(Roamed{b.Key, addr(to)}); len(of[Use](out)) > 0 || len(pinged(out)) != 1 {
			t.Errorf("there a minute later: %v, want it asked", out)
		}
	})
}

// TestRoamedNowhere: where nobody can be, the kernel is turned back at once.
func TestRoamedNowhere(t *testing.T) {
	r, b := directRig(t, ownA, 20*ms)
	mute := node(3, ownB)
	mute.Disco = key.DiscoPublic{}
	r.step(SetPeers{[]mesh.Node{b, mute}})
	for _, a := range []string{"127.64.0.1:5000", "[::1]:1", "[::ffff:127.64.0.1]:5000", "100.64.0.2:41641", "[fd7a:115c:a1e0::2]:1", "0.0.0.0:1", "224.0.0.1:1",
		"198.51.100.2:0", "[fe80::1%eth0]:1", "[fe80::1]:1", "127.3.3.40:1", ownA} {
		out := r.step(Roamed{b.Key, addr(a)})
		if u := of[Use](out); len(u) != 1 || u[0].Addr != addr(ownA) || len(out) != 1 {
			t.Errorf("%s: %v", a, out)
		}
	}
	if out := r.step(Roamed{b.Key, netip.AddrPort{}}); len(of[Use](out)) != 1 {
		t.Errorf("the zero address: %v", out)
	}
	if out := r.step(Roamed{mute.Key, addr(ownB)}); len(of[Use](out)) != 1 || len(out) != 1 {
		t.Errorf("a peer that cannot be asked: %v", out)
	}
	r.wantPath(b, mesh.PathDirect, addr(ownA))
}

// TestRoamedThenRestarted: a peer with a new disco key, or with none, is not
// where the kernel went; that address is asked only as any other.
func TestRoamedThenRestarted(t *testing.T) {
	for name, k := range map[string]key.DiscoPublic{"new key": discoKey(22), "no key": {}} {
		t.Run(name, func(t *testing.T) {
			r, b := directRig(t, ownA, 20*ms)
			r.step(Roamed{b.Key, addr(ownB)})
			b.Disco, b.Endpoints = k, addrs(ownB)
			out := r.step(SetPeers{[]mesh.Node{b}})
			if u := lastUse(t, out); u.Addr.IsValid() || u.Region != 1 {
				t.Errorf("%+v", u)
			}
			out = append(out, r.wait(time.Minute)...)
			checkAnswers(t, out)
			if k.IsZero() != (len(of[SendPing](out)) == 0) {
				t.Errorf("pinged %v", pinged(out))
			}
		})
	}
}

// TestRoamedToDoubted: the path in doubt is asked, and the kernel turned back
// to both ways until it has answered.
func TestRoamedToDoubted(t *testing.T) {
	families(t, func(t *testing.T, a string) {
		r, b := directRig(t, a, 20*ms)
		r.live(nil, time.Hour, 20*ms)
		out := r.step(Roamed{b.Key, addr(a)})
		if u := lastUse(t, out); u.Addr != addr(a) || u.Region != 1 || !slices.Equal(pinged(out), addrs(a)) {
			t.Fatalf("does %v", out)
		}
		if more := r.step(Roamed{b.Key, addr(a)}); len(of[Use](more)) != 1 || len(pinged(more)) > 0 {
			t.Errorf("again: %v, want Use only", more)
		}
		if u := lastUse(t, r.answer(out, 20*ms)); u.Addr != addr(a) || u.Region != 0 {
			t.Errorf("it answered: %+v", u)
		}
	})
}

// TestRoamedHolds: while the kernel may stay, nothing else turns it; a path
// that becomes trusted where none was does.
func TestRoamedHolds(t *testing.T) {
	t.Run("trust ends", func(t *testing.T) {
		r, b := directRig(t, ownA, 20*ms)
		r.talk(b.Key, 3*time.Second, 20*ms, addr(ownA))
		out := r.step(Roamed{b.Key, addr(ownB)})
		out = append(out, r.live(nil, roamWait-100*ms, 20*ms, addr(ownA), addr(ownB))...)
		if u := of[Use](out); len(u) > 0 {
			t.Errorf("while it may stay: %+v", u)
		}
		if p := r.m.Path(b.Key); p.Relay != 1 {
			t.Errorf("the trust is over, but the path is %+v", p)
		}
		out = r.live(nil, 200*ms, 20*ms, addr(ownA), addr(ownB))
		if u := lastUse(t, out); u.Addr != addr(ownA) || u.Region != 1 {
			t.Errorf("then: %+v", u)
		}
	})
	t.Run("another answers", func(t *testing.T) {
		b := node(2, ownA)
		r := localRig(t, b)
		out := r.step(Roamed{b.Key, addr(ownB)})
		out = append(out, r.step(Sent{b.Key})...)
		u := of[Use](r.answer(out, 20*ms, addr(ownB)))
		if len(u) != 1 || u[0].Addr != addr(ownA) || u[0].Region != 0 {
			t.Errorf("the other answered: %+v", u)
		}
	})
}

// TestSecondMove: the peer's NAT moves twice within a minute.
func TestSecondMove(t *testing.T) {
	r, b := directRig(t, ownA, 20*ms)
	r.answer(r.step(Roamed{b.Key, addr(ownB)}), 20*ms)
	r.wantPath(b, mesh.PathDirect, addr(ownB))
	r.talk(b.Key, 10*time.Second, 20*ms, addr(ownA))

	start := r.now
	for r.m.Path(b.Key).Addr != addr(ownC) && r.now.Sub(start) < 10*time.Second {
		out := r.step(Roamed{b.Key, addr(ownC)})
		out = append(out, r.step(Received{b.Key, at(ownC)})...)
		out = append(out, r.step(Sent{b.Key})...)
		r.live(out, time.Second, 20*ms, addr(ownA), addr(ownB))
	}
	if took := r.now.Sub(start); took > 4*time.Second {
		t.Errorf("followed after %v", took)
	}
	r.wantPath(b, mesh.PathDirect, addr(ownC))
}

// TestNoTurns: a peer that sends from two addresses in turn, or three, which
// all answer, does not make us change for ever. The kernel is told rarely.
func TestNoTurns(t *testing.T) {
	for name, list := range map[string][]string{"two": {ownA, ownB}, "two families": {ownB, ownA6}, "three": {ownA, ownB, ownC}} {
		t.Run(name, func(t *testing.T) {
			r, b := directRig(t, list[0], 20*ms)
			moves, said := 0, 0
			at0 := addr(list[0])
			for i := range 600 {
				from := addr(list[i%len(list)])
				out := append(r.step(Sent{b.Key}), r.step(Received{b.Key, Source{Addr: from}})...)
				if from != r.m.Path(b.Key).Addr {
					out = append(out, r.step(Roamed{b.Key, from})...)
				}
				out = r.live(out, time.Second, 20*ms)
				said += len(of[Use](out))
				if a := r.m.Path(b.Key).Addr; a != at0 {
					moves, at0 = moves+1, a
				}
			}
			t.Logf("%d changes and %d Use in 10 minutes", moves, said)
			if moves > 11 || said > 130 {
				t.Errorf("%d changes and %d Use in 10 minutes", moves, said)
			}
		})
	}
}

// TestTasteWaits: the peer's choice is not left for what we like better for ten
// minutes, then it is.
func TestTasteWaits(t *testing.T) {
	b := node(2, ownA, ownA6)
	r := newRig(t, b)
	r.step(SetLocal{Endpoints: addrs("203.0.113.1:41641"), UDP: true, V6: true})
	r.talk(b.Key, 10*time.Second, 20*ms)
	r.wantPath(b, mesh.PathDirect, addr(ownA6))
	r.answer(r.step(Roamed{b.Key, addr(ownA)}), 20*ms)
	r.wantPath(b, mesh.PathDirect, addr(ownA))
	if out := r.talk(b.Key, settledFor-10*time.Second, 20*ms); len(of[Use](out)) > 0 {
		t.Errorf("left it: %v", of[Use](out))
	}
	r.talk(b.Key, 2*repingEvery, 20*ms)
	r.wantPath(b, mesh.PathDirect, addr(ownA6))
}

// TestAdoption: what the kernel had from our last life stays until it is known
// whether it is good.
func TestAdoption(t *testing.T) {
	b, c, d := node(2), node(3, ownC), node(4)
	begin := func() (*rig, []Action) {
		r := newRig(t)
		r.step(Roamed{b.Key, addr(ownA)})
		r.step(Roamed{c.Key, addr(ownB6)})
		r.step(Roamed{nodeKey(9), addr(ownA)})
		return r, r.step(SetPeers{[]mesh.Node{b, c, d}})
	}
	uses := func(out []Action) map[key.NodePublic]Use {
		all := map[key.NodePublic]Use{}
		for _, u := range of[Use](out) {
			all[u.Peer] = u
		}
		return all
	}
	r, out := begin()
	if u := uses(out); len(u) != 1 || u[d.Key].Region != 1 {
		t.Fatalf("says %v, want only what the kernel had nothing of", u)
	}
	if got := pinged(out); !slices.Equal(got, addrs(ownA, ownB6)) {
		t.Errorf("pinged %v", got)
	}
	if r.m.early != nil {
		t.Error("what the coordinator does not know is kept")
	}
	t.Run("answers", func(t *testing.T) {
		r, out := begin()
		u := uses(r.answer(out, 20*ms))
		if u[b.Key].Addr != addr(ownA) || u[b.Key].Region != 0 || u[c.Key].Addr != addr(ownB6) || u[c.Key].Region != 0 {
			t.Errorf("both answered: %+v", u)
		}
	})
	t.Run("silent", func(t *testing.T) {
		r, _ := begin()
		r.step(SetLocal{Endpoints: addrs("203.0.113.1:1"), UDP: true}) // and again netmaps
		r.step(SetPeers{[]mesh.Node{b, c, d}})
		if out := r.wait(roamWait - 1); len(of[Use](out)) > 0 {
			t.Errorf("too early: %v", out)
		}
		if u := uses(r.wait(1)); len(u) != 2 || u[b.Key].Region != 1 || u[b.Key].Addr.IsValid() {
			t.Errorf("5 s later: %+v", u)
		}
	})
	t.Run("another answers first", func(t *testing.T) {
		r, out := begin()
		out = append(out, r.step(Sent{c.Key})...)
		if u := uses(r.answer(out, 20*ms, addr(ownA), addr(ownB6))); len(u) != 1 || u[c.Key].Addr != addr(ownC) {
			t.Errorf("%+v, want what answered", u)
		}
	})
	t.Run("data goes on", func(t *testing.T) {
		r, out := begin()
		out = append(out, r.step(Sent{b.Key})...)
		out = append(out, r.step(Received{b.Key, at(ownA)})...)
		if u := of[Use](out); len(u) > 1 {
			t.Errorf("%+v", u)
		}
	})
	t.Run("restarted since", func(t *testing.T) {
		r, _ := begin()
		again := b
		again.Disco = discoKey(22)
		if u := uses(r.step(SetPeers{[]mesh.Node{again, c, d}})); u[b.Key].Region != 1 {
			t.Errorf("the peer has another key: %+v", u)
		}
	})
	t.Run("goes", func(t *testing.T) {
		r, _ := begin()
		r.step(SetPeers{[]mesh.Node{d}})
		if out := r.wait(time.Hour); len(out) > 0 || !r.m.Wake().IsZero() {
			t.Errorf("%v, wake %v", out, r.m.Wake())
		}
	})
}

// TestEarlyIsBounded: nobody can have us remember without end.
func TestEarlyIsBounded(t *testing.T) {
	r := newRig(t)
	for i := range 2 * maxEarly {
		var k key.NodePublic
		b := [32]byte{byte(i), byte(i >> 8), 1}
		mustText(k.UnmarshalText(fmt.Appendf(nil, "nodekey:%x", b)))
		r.m.Step(r.now, Roamed{k, addr(ownA)})
	}
	check(t, r.m)
	if n := len(r.m.early); n != maxEarly {
		t.Errorf("%d kept", n)
	}
}

// TestRoamedFlood: addresses without end neither grow anything nor shout.
func TestRoamedFlood(t *testing.T) {
	r, b := directRig(t, ownA, 20*ms)
	pings, said := 0, 0
	for _, a := range append(many(12, 500), many(13, 500)...) {
		out := append(r.step(Roamed{b.Key, a}), r.wait(20*ms)...)
		pings += len(of[SendPing](out))
		said += len(of[Use](out))
	}
	if pings > 1010 {
		t.Errorf("%d pings for 1000 addresses", pings)
	}
	t.Logf("%d pings, %d Use", pings, said)
	r.talk(b.Key, 20*time.Second, 20*ms)
	r.wantPath(b, mesh.PathDirect, addr(ownA))
}
