package simnet_test

import (
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/simnet"
)

const second = time.Second

// easy is a place behind the usual router; its mappings die after 30 s.
func easy() place {
	k := simnet.Easy()
	k.Timeout = 30 * second
	return place{name: "easy", routers: []simnet.Kind{k}}
}

// cut loses every packet between the two nodes' networks on the internet, but
// not those of STUN.
func cut(p *pair) {
	p.Internet.Drop = func(k simnet.Packet) bool {
		return !strings.HasPrefix(k.To.String(), "192.0.2.") && !strings.HasPrefix(k.From.String(), "192.0.2.")
	}
}

// TestCutAndHealed: the direct way is gone, the relay takes over, and it comes
// back.
func TestCutAndHealed(t *testing.T) {
	p := meet(1, easy(), easy())
	const every = 100 * time.Millisecond
	p.a.Talk(p.b, every)
	p.becomesDirect(t, second)
	p.Run(30 * second)
	if f := p.a.Flow(p.b); f.Direct < f.Back-5 {
		t.Fatalf("%d of %d directly", f.Direct, f.Back)
	}
	p.losesNothing(t, every)

	cut(p)
	f := p.a.Flow(p.b)
	back := f.Back
	took, ok := p.Until(20*second, func() bool { return f.Back > back+10 })
	if !ok || took > noticed {
		t.Errorf("after the cut nothing came back for %v", took)
	}
	t.Logf("relay took over after %v", took)
	relayed, ok := p.Until(30*second, func() bool { return p.a.Path(p.b).Kind == mesh.PathRelay && p.b.Path(p.a).Kind == mesh.PathRelay })
	if !ok {
		t.Errorf("still not given up %v after the cut: %+v", took+relayed, p.a.Path(p.b))
	}
	lost := f.Sent - f.Back
	p.Run(5 * time.Minute)
	if now := f.Sent - f.Back; now > lost+5 {
		t.Errorf("%d more were lost over the relay", now-lost)
	}

	p.Internet.Drop = nil
	t.Logf("direct %v after healing", p.becomesDirect(t, 6*second))
	p.Run(10 * second)
	if now := f.Sent - f.Back; now > lost+5 {
		t.Errorf("%d were lost while coming back", now-lost)
	}
}

// TestOneWayCut: packets pass only one way. A path that is deaf is no path.
func TestOneWayCut(t *testing.T) {
	p := meet(1, easy(), easy())
	p.a.Talk(p.b, second/10)
	p.becomesDirect(t, second)
	p.Run(10 * second)
	p.Internet.Drop = func(k simnet.Packet) bool {
		return k.From.Addr().String() == "203.0.113.2" && k.To.Addr().String() == "203.0.113.1"
	}
	p.Run(30 * second)
	f := p.a.Flow(p.b)
	lost := f.Sent - f.Back
	p.Run(time.Minute)
	if now := f.Sent - f.Back; now > lost+5 || p.a.Direct(p.b) || p.b.Direct(p.a) {
		t.Errorf("%d lost in a minute, a->b %+v, b->a %+v", now-lost, p.a.Path(p.b), p.b.Path(p.a))
	}
}

// TestIdleThenTraffic: while nobody spoke, the routers forgot. The first
// packet arrives nevertheless, and the path is soon direct again.
func TestIdleThenTraffic(t *testing.T) {
	for _, idle := range []time.Duration{20 * second, time.Minute, 10 * time.Minute, 24 * time.Hour} {
		t.Run(idle.String(), func(t *testing.T) {
			p := meet(1, easy(), easy())
			stop := p.a.Talk(p.b, second)
			p.becomesDirect(t, second)
			p.Run(20 * second)
			stop()
			p.Run(idle)
			f := p.a.Flow(p.b)
			if f.Sent != f.Back {
				t.Fatalf("%d of %d came back before", f.Back, f.Sent)
			}
			p.a.Talk(p.b, second)
			took, ok := p.Until(second, func() bool { return f.Sent == f.Back && f.Sent > 0 && p.direct() })
			if !ok {
				t.Errorf("after %v idle: %d of %d came back, a->b %+v, b->a %+v", idle, f.Back, f.Sent, p.a.Path(p.b), p.b.Path(p.a))
			}
			t.Logf("direct after %v", took)
		})
	}
}

// TestShortMappings: traffic too rare for the routers still flows directly,
// because the path is kept warm.
func TestShortMappings(t *testing.T) {
	k := simnet.Easy()
	k.Timeout = 5 * second // the cruellest there are
	at := place{routers: []simnet.Kind{k}}
	p := meet(1, at, at)
	p.a.Talk(p.b, 20*second)
	p.Run(10 * time.Minute)
	if f := p.a.Flow(p.b); f.Direct < f.Back-1 || f.Back < f.Sent-1 || f.Moves > 2 {
		t.Errorf("%+v", f)
	}
}

// TestNewWAN: the provider gives another address. A router that is the node
// itself knows at once; a node behind it finds out by the silence, and then by
// STUN. The other side sends to the old address for as long as it trusts that,
// and no longer.
func TestNewWAN(t *testing.T) {
	for _, tt := range []struct {
		name  string
		tells bool
		mute  bool
		limit time.Duration
	}{
		{"noticed", true, false, noticed},
		{"noticed, no coordinator", true, true, noticed},
		{"unnoticed", false, false, noticed},
		{"unnoticed, no coordinator", false, true, noticed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := meet(1, easy(), easy())
			p.a.Talk(p.b, second/10)
			p.becomesDirect(t, second)
			p.Run(30 * second)
			p.Mute = tt.mute
			p.ra[0].SetWAN("203.0.113.77")
			if tt.tells {
				p.a.Rebind()
			}
			took, ok := p.Until(tt.limit, func() bool { return p.direct() && p.b.Path(p.a).Addr.Addr().String() == "203.0.113.77" })
			if !ok {
				t.Fatalf("after %v: a->b %+v, b->a %+v", tt.limit, p.a.Path(p.b), p.b.Path(p.a))
			}
			f := p.a.Flow(p.b)
			lost := f.Sent - f.Back
			p.Run(30 * second)
			if now := f.Sent - f.Back; now > lost+3 || f.Gap > noticed {
				t.Errorf("%d lost after it was direct again, longest silence %v", now-lost, f.Gap)
			}
			t.Logf("direct again after %v, longest silence %v", took, f.Gap)
		})
	}
}

// TestRoam: one side, or both at once, go to another network.
func TestRoam(t *testing.T) {
	for _, both := range []bool{false, true} {
		p := meet(1, easy(), easy())
		p.a.Talk(p.b, second/10)
		p.becomesDirect(t, second)
		p.Run(10 * second)
		for i, n := range []*simnet.Node{p.a, p.b} {
			if i == 1 && !both {
				break
			}
			wan := []string{"203.0.113.101", "203.0.113.102"}[i]
			n.Host.Move(p.Internet.Router(simnet.Easy(), wan).Inside, "172.16.0.9")
			n.Rebind()
		}
		p.Run(8 * second)
		if !p.direct() {
			t.Errorf("both: %v: a->b %+v, b->a %+v", both, p.a.Path(p.b), p.b.Path(p.a))
		}
		f := p.a.Flow(p.b)
		lost := f.Sent - f.Back
		p.Run(30 * second)
		if now := f.Sent - f.Back; now > lost+3 || f.Gap > noticed {
			t.Errorf("both: %v: %d lost after it, longest silence %v", both, now-lost, f.Gap)
		}
		t.Logf("both: %v: longest silence %v", both, f.Gap)
	}
}

// TestRoamBetweenKinds: from home to a hard place and back, the way follows.
func TestRoamBetweenKinds(t *testing.T) {
	p := meet(1, easy(), easy())
	p.a.Talk(p.b, second/10)
	p.becomesDirect(t, second)
	p.Run(10 * second)
	for round := range 3 {
		p.ra[0].SetKind(simnet.Hard())
		p.a.Rebind()
		p.Run(40 * second)
		if path := p.a.Path(p.b); path.Kind != mesh.PathRelay {
			t.Errorf("round %d, hard: %+v", round, path)
		}
		p.ra[0].SetKind(easy().routers[0])
		p.a.Rebind()
		p.becomesDirect(t, 12*second)
	}
	if f := p.a.Flow(p.b); f.Gap > noticed {
		t.Errorf("longest silence %v", f.Gap)
	}
}

// TestBlockedAndUnblocked: UDP goes, and comes back without a word. By then no
// side has an address worth telling, so STUN has to find that first.
func TestBlockedAndUnblocked(t *testing.T) {
	tests := []struct {
		name       string
		block, end func(*pair)
		limit      time.Duration
	}{
		{"by the provider", func(p *pair) { p.Internet.Drop = func(simnet.Packet) bool { return true } },
			func(p *pair) { p.Internet.Drop = nil }, 30 * second},
		{"by the router", func(p *pair) { p.ra[0].SetKind(simnet.Blocked()) },
			func(p *pair) { p.ra[0].SetKind(easy().routers[0]) }, 30 * second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := meet(1, easy(), easy())
			p.a.Talk(p.b, second/10)
			p.becomesDirect(t, second)
			tt.block(p)
			p.Run(time.Minute)
			path := p.a.Path(p.b)
			if path.Kind != mesh.PathRelay || !strings.HasPrefix(path.Reason, "no UDP here") {
				t.Errorf("blocked: %+v", path)
			}
			tt.end(p)
			t.Logf("direct %v after unblocking", p.becomesDirect(t, tt.limit))
		})
	}
}

// TestRestart: a node comes back with a new disco key.
func TestRestart(t *testing.T) {
	p := meet(1, easy(), easy())
	p.a.Talk(p.b, second/10)
	p.becomesDirect(t, second)
	p.Run(10 * second)
	p.b.Restart()
	p.Run(500 * time.Millisecond) // the coordinator tells a
	p.becomesDirect(t, 6*second)
	p.Run(10 * second)
	if f := p.a.Flow(p.b); f.Gap > 2*second {
		t.Errorf("%v passed without an answer", f.Gap)
	}
}

// TestNoCentre: coordinator and relays are gone; what is direct stays so.
func TestNoCentre(t *testing.T) {
	p := meet(1, easy(), easy())
	p.a.Talk(p.b, second)
	p.becomesDirect(t, second)
	p.Mute = true
	p.SetRelay(1, false)
	p.SetRelay(2, false)
	p.Run(time.Hour)
	if f := p.a.Flow(p.b); !p.direct() || f.Gap > 1100*time.Millisecond {
		t.Errorf("direct: %v, %+v", p.direct(), f)
	}
}

// TestRelayBack: where only a relay helps, its restart is survived.
func TestRelayBack(t *testing.T) {
	hard := place{routers: []simnet.Kind{simnet.Hard()}}
	p := meet(1, hard, hard)
	p.a.Talk(p.b, second/10)
	p.Run(10 * second)
	p.SetRelay(2, false)
	p.Run(10 * second)
	p.SetRelay(2, true)
	f := p.a.Flow(p.b)
	lost := f.Sent - f.Back
	p.Run(time.Minute)
	if now := f.Sent - f.Back; now > lost+5 {
		t.Errorf("%d lost with the relay back", now-lost)
	}
}
