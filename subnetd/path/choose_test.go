package path

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/mesh"

	"tailscale.com/types/key"
)

func TestBetter(t *testing.T) {
	const ms = time.Millisecond
	const pub4, pub4b, pub6 = "198.51.100.1:1", "198.51.100.2:1", "[2001:db8::1]:1"
	const priv4, priv6, ll4 = "192.168.1.1:1", "[fd00::1]:1", "169.254.1.1:1"
	tests := []struct {
		name   string
		a      string
		rttA   time.Duration
		b      string
		rttB   time.Duration
		better bool
	}{
		{"equal", pub4, 20 * ms, pub4b, 20 * ms, false},
		{"a little faster", pub4, 98 * ms, pub4b, 100 * ms, false},
		{"clearly faster", pub4, 90 * ms, pub4b, 100 * ms, true},
		{"slower", pub4, 100 * ms, pub4b, 90 * ms, false},
		{"much faster, but noise", pub4, 100 * time.Microsecond, pub4b, 500 * time.Microsecond, false},
		{"v6 before v4", pub6, 20 * ms, pub4, 20 * ms, true},
		{"v4 behind v6", pub4, 20 * ms, pub6, 20 * ms, false},
		{"v6 a little slower", pub6, 105 * ms, pub4, 100 * ms, true},
		{"v6 much slower", pub6, 130 * ms, pub4, 100 * ms, false},
		{"v4 much faster", pub4, 70 * ms, pub6, 100 * ms, true},
		{"private before public", priv4, 1 * ms, pub4, 1 * ms, true},
		{"private v6 before private v4", priv6, 1 * ms, priv4, 1 * ms, true},
		{"link-local before private", ll4, 1 * ms, priv4, 1 * ms, true},
		{"private much slower", priv4, 40 * ms, pub4, 10 * ms, false},
	}
	for _, tt := range tests {
		a, b := &candidate{addr: addr(tt.a), rtt: tt.rttA}, &candidate{addr: addr(tt.b), rtt: tt.rttB}
		if got := better(a, b); got != tt.better {
			t.Errorf("%s: better is %v, want %v", tt.name, got, tt.better)
		}
	}
}

// randomCandidate is of any kind, and as fast as anything may be.
func randomCandidate(rnd *rand.Rand) *candidate {
	kinds := addrs("127.0.0.1:1", "169.254.1.1:1", "192.168.1.1:1", "198.51.100.1:1", "[::1]:1", "[fe80::1]:1", "[fd00::1]:1", "[2001:db8::1]:1")
	rtt := time.Duration(1+rnd.IntN(1000)) * []time.Duration{time.Microsecond, 10 * time.Microsecond, time.Millisecond, 5 * time.Millisecond}[rnd.IntN(4)]
	return &candidate{addr: kinds[rnd.IntN(len(kinds))], rtt: rtt}
}

// TestBetterHasNoCircle: whatever the addresses and times, going on to a better
// one ends. Were there a circle, a path would change for ever.
func TestBetterHasNoCircle(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		set := make([]*candidate, 2+rnd.IntN(7))
		for i := range set {
			set[i] = randomCandidate(rnd)
		}
		at := set[0]
		for steps := 0; ; steps++ {
			var next []*candidate
			for _, c := range set {
				if better(c, at) {
					if better(at, c) {
						t.Fatalf("%v %v and %v %v are each better than the other", c.addr, c.rtt, at.addr, at.rtt)
					}
					next = append(next, c)
				}
			}
			if len(next) == 0 {
				break
			}
			if steps > len(set) {
				t.Fatalf("%d steps among %d candidates", steps, len(set))
			}
			at = next[rnd.IntN(len(next))]
		}
	}
}

// TestPrefers: of all that answer, the nearest kind of address becomes the path.
func TestPrefers(t *testing.T) {
	const pub4, pub6, priv4 = "198.51.100.1:1", "[2001:db8::1]:1", "192.168.1.1:1"
	tests := []struct {
		name   string
		silent []netip.AddrPort
		want   string
	}{
		{"all answer", nil, priv4},
		{"not private", addrs(priv4), pub6},
		{"only public v4", addrs(priv4, pub6), pub4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := node(2, pub4, pub6, priv4)
			r := newRig(t, b)
			r.step(SetLocal{Endpoints: addrs("203.0.113.1:1"), UDP: true, V6: true})
			r.talk(b.Key, 10*time.Second, 20*time.Millisecond, tt.silent...)
			r.wantPath(b, mesh.PathDirect, addr(tt.want))
		})
	}
}

// TestBetterIsFound: once a minute all are pinged for something better, but
// not when what we have is as good as it gets.
func TestBetterIsFound(t *testing.T) {
	const near = "192.168.1.1:1"
	for _, tt := range []struct {
		name string
		rtt  time.Duration
		want string
	}{
		{"far", 20 * time.Millisecond, near},
		{"good enough", goodEnough, ownA},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := node(2, ownA, near)
			r := localRig(t, b)
			r.talk(b.Key, 10*time.Second, tt.rtt, addr(near))
			r.wantPath(b, mesh.PathDirect, addr(ownA))
			r.talk(b.Key, repingEvery+5*time.Second, tt.rtt)
			r.wantPath(b, mesh.PathDirect, addr(tt.want))
		})
	}
}

// TestNoFlapping: two addresses alike, with round trips that jitter, do not
// take turns.
func TestNoFlapping(t *testing.T) {
	for seed := range turns(8, 1) {
		rnd := rand.New(rand.NewPCG(uint64(seed), 1))
		b := node(2, ownA, ownB)
		r := localRig(t, b)
		changes := 0
		for range 3600 {
			rtt := 50*time.Millisecond + time.Duration(rnd.IntN(4000))*time.Microsecond
			changes += len(of[Use](r.talk(b.Key, time.Second, rtt)))
		}
		if changes > 5 {
			t.Errorf("seed %d: %d changes of path in an hour", seed, changes)
		}
	}
}

// TestReasons: the owner reads why a peer is not reached directly.
func TestReasons(t *testing.T) {
	b := node(2, ownA)
	tests := []struct {
		name string
		do   func(*rig) mesh.Node
		want string
	}{
		{"unused", func(*rig) mesh.Node { return b }, "not in use: no direct path was tried"},
		{"no addresses", func(r *rig) mesh.Node {
			r.step(SetPeers{[]mesh.Node{node(2)}})
			return b
		}, "peer has no addresses"},
		{"just begun", func(r *rig) mesh.Node { r.step(Sent{b.Key}); return b }, "waiting for first answer"},
		{"silent", func(r *rig) mesh.Node { r.talk(b.Key, 20*time.Second, 0, addr(ownA)); return b },
			"peer did not answer on 1 address since 12:00:00"},
		{"silent on two", func(r *rig) mesh.Node {
			r.step(SetPeers{[]mesh.Node{node(2, ownA, ownB)}})
			r.talk(b.Key, 20*time.Second, 0, addr(ownA), addr(ownB))
			return b
		}, "peer did not answer on 2 addresses since 12:00:00"},
		{"v6 only", func(r *rig) mesh.Node {
			r.step(SetPeers{[]mesh.Node{node(2, "[2001:db8::1]:1")}})
			r.step(Sent{b.Key})
			return b
		}, "peer has only IPv6 addresses, and there is no IPv6 here"},
		{"no UDP", func(r *rig) mesh.Node {
			r.step(SetLocal{})
			r.step(Sent{b.Key})
			return b
		}, "no UDP here: it is blocked, or no STUN server answers"},
		{"no disco key", func(r *rig) mesh.Node {
			n := b
			n.Disco = key.DiscoPublic{}
			r.step(SetPeers{[]mesh.Node{n}})
			return n
		}, "the peer has no disco key, so no direct path can be tried"},
		{"doubt", func(r *rig) mesh.Node {
			r.direct(b, addr(ownA), 0)
			r.carry(b, 7*time.Second, flow{out: 50 * time.Millisecond, in: 50 * time.Millisecond, from: at(ownA), mute: true})
			return b
		}, "no answer from 198.51.100.2:41641 since 12:00:00: sent both ways"},
		{"silence", func(r *rig) mesh.Node {
			r.direct(b, addr(ownA), 0)
			r.carry(b, 3*time.Second, flow{out: 50 * time.Millisecond, mute: true})
			return b
		}, "data goes to 198.51.100.2:41641, but nothing came from there since 12:00:00: sent both ways"},
		{"deaf", func(r *rig) mesh.Node {
			r.direct(b, addr(ownA), 0)
			r.carry(b, 4*time.Second, flow{out: 50 * time.Millisecond, in: 50 * time.Millisecond, from: at(ownA)})
			r.carry(b, 4*time.Second, flow{out: 50 * time.Millisecond, in: 50 * time.Millisecond, from: at(ownA), relay: 1, mute: true})
			return b
		}, "the peer seems not to hear us at 198.51.100.2:41641, and did not answer since 12:00:03: sent both ways"},
		{"roamed", func(r *rig) mesh.Node {
			r.step(Roamed{b.Key, addr(ownB)})
			return b
		}, "WireGuard took data from 198.51.100.3:41641: it is asked whether it answers"},
		{"idle", func(r *rig) mesh.Node {
			r.direct(b, addr(ownA), 0)
			r.live(nil, time.Hour, 0)
			return b
		}, "idle: no answer was needed since 12:00:43"},
		{"direct", func(r *rig) mesh.Node { r.direct(b, addr(ownA), 0); return b }, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := localRig(t, b)
			n := tt.do(r)
			got := r.m.Path(n.Key)
			if got.Reason != tt.want {
				t.Errorf("reason %q, want %q", got.Reason, tt.want)
			}
			if strings.Contains(got.Reason, "%!") || (got.Reason == "") != (got.Kind == mesh.PathDirect && got.Relay == 0) {
				t.Errorf("%+v: a reason belongs to all but a direct path", got)
			}
		})
	}
}

// TestSince: the path knows since when it is as it is.
func TestSince(t *testing.T) {
	b := node(2, ownA)
	r := localRig(t, b)
	since := func() time.Duration { return r.m.Path(b.Key).Since.Sub(noon) }
	r.talk(b.Key, 10*time.Second, 0, addr(ownA))
	if got := since(); got != 0 {
		t.Errorf("relay since %v, want the beginning: only the reason changed", got)
	}
	r.talk(b.Key, time.Minute, time.Millisecond)
	if got := since(); got < 10*time.Second || got > 16*time.Second {
		t.Errorf("direct since %v, want when the first pong came", got)
	}
}

// TestSlowFirstAnswer: the first answer over a better family is slow, since the neighbour had to be found; it is asked
// once more, and not passed over for ever.
func TestSlowFirstAnswer(t *testing.T) {
	const v4, v6 = "198.51.100.1:1", "[2001:db8::1]:1"
	b := node(2, v4, v6)
	r := newRig(t, b)
	r.step(SetLocal{Endpoints: addrs("203.0.113.1:1"), UDP: true, V6: true})
	pings := of[SendPing](r.step(Sent{Peer: b.Key}))
	pong := func(p SendPing) []Action {
		return r.step(Pong{From: p.To, Sender: b.Disco, TxID: p.TxID})
	}
	by := func(pings []SendPing, a string) SendPing {
		for _, p := range pings {
			if p.To.Addr == addr(a) {
				return p
			}
		}
		t.Fatalf("%s is not pinged: %+v", a, pings)
		return SendPing{}
	}
	r.wait(time.Millisecond)
	pong(by(pings, v4))
	r.wait(20 * time.Millisecond)
	again := of[SendPing](pong(by(pings, v6)))
	r.wantPath(b, mesh.PathDirect, addr(v4))
	r.wait(time.Millisecond)
	more := of[SendPing](pong(by(again, v6)))
	r.wantPath(b, mesh.PathDirect, addr(v6))
	if len(more) != 0 {
		t.Errorf("pinged once more: %+v", more)
	}
}

// TestSlowMoment: where the second answer is slow as well, the heartbeats ask a few times more; what stays slow is let be.
func TestSlowMoment(t *testing.T) {
	const v4, v6 = "198.51.100.1:1", "[2001:db8::1]:1"
	for _, tt := range []struct {
		name string
		slow int // answers over IPv6
		want string
		asks int
	}{{"a moment", 4, v6, 5}, {"for good", 100, v4, 6}} {
		b := node(2, v4, v6)
		r := newRig(t, b)
		r.step(SetLocal{Endpoints: addrs("203.0.113.1:1"), UDP: true, V6: true})
		asked := 0
		for end := r.now.Add(40 * time.Second); r.now.Before(end); {
			out := append(r.wait(100*time.Millisecond), r.step(Sent{Peer: b.Key})...)
			for pings := of[SendPing](out); len(pings) > 0; pings = of[SendPing](out) {
				out = r.wait(time.Millisecond)
				for _, p := range pings {
					if p.To.Addr == addr(v4) {
						out = append(out, r.step(Pong{From: p.To, Sender: b.Disco, TxID: p.TxID})...)
					}
				}
				for _, p := range pings {
					if p.To.Addr != addr(v6) {
						continue
					}
					if asked++; asked <= tt.slow {
						out = append(out, r.wait(4*time.Millisecond)...)
					}
					out = append(out, r.step(Pong{From: p.To, Sender: b.Disco, TxID: p.TxID})...)
				}
			}
			if r.m.Path(b.Key).Addr == addr(v6) {
				break
			}
		}
		r.wantPath(b, mesh.PathDirect, addr(tt.want))
		if asked != tt.asks {
			t.Errorf("%s: asked %d times, want %d", tt.name, asked, tt.asks)
		}
	}
}

// TestNewlyNamed: an address that the coordinator names while another path works is tried too.
func TestNewlyNamed(t *testing.T) {
	const v4, v6 = "198.51.100.1:1", "[2001:db8::1]:1"
	b := node(2, v4)
	r := newRig(t, b)
	r.step(SetLocal{Endpoints: addrs("203.0.113.1:1"), UDP: true, V6: true})
	r.talk(b.Key, 2*time.Second, time.Millisecond)
	r.wantPath(b, mesh.PathDirect, addr(v4))
	b.Endpoints = addrs(v4, v6)
	r.answer(r.step(SetPeers{Peers: []mesh.Node{b}}), time.Millisecond)
	r.wantPath(b, mesh.PathDirect, addr(v6))
}
