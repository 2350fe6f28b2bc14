package simnet_test

import (
	"fmt"
	"testing"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/simnet"
)

// TestV6: behind the worst routers IPv6 is direct, because it is only filtered.
func TestV6(t *testing.T) {
	hard := place{routers: []simnet.Kind{simnet.Hard()}, v6: true}
	p := meet(1, hard, hard)
	p.a.Talk(p.b, second)
	p.becomesDirect(t, second)
	p.Run(time.Minute)
	if a := p.a.Path(p.b).Addr; !a.Addr().Is6() {
		t.Errorf("direct to %v", a)
	}
	// One side loses its IPv6: the relay is left, and nobody is stuck.
	p.a.Host.Move(p.ra[0].Inside, "192.168.1.2")
	p.a.Rebind()
	p.Run(30 * second)
	if path := p.a.Path(p.b); path.Kind != mesh.PathRelay {
		t.Errorf("without IPv6: %+v", path)
	}
}

// TestPrefersV6: where both families work alike, IPv6 is used by both sides.
func TestPrefersV6(t *testing.T) {
	at := easy()
	at.v6 = true
	p := meet(1, at, at)
	p.a.Talk(p.b, second)
	p.Run(3 * time.Minute)
	for _, path := range []mesh.Path{p.a.Path(p.b), p.b.Path(p.a)} {
		if !path.Addr.Addr().Is6() {
			t.Errorf("uses %+v", path)
		}
	}
	if f := p.a.Flow(p.b); f.Moves > 3 {
		t.Errorf("the way changed %d times", f.Moves)
	}
}

// TestSameNetwork: two nodes of one home speak over its network, not around it.
func TestSameNetwork(t *testing.T) {
	for _, hairpin := range []bool{false, true} {
		s := simnet.New(1)
		s.Relay(1)
		k := simnet.Easy()
		k.Hairpin = hairpin
		home := s.Internet.Router(k, "203.0.113.1").Inside
		a, b := s.Node("a", home.Host("192.168.1.2"), 1), s.Node("b", home.Host("192.168.1.3"), 1)
		s.Run(second)
		a.Meet(b)
		a.Talk(b, second)
		s.Run(10 * second)
		if got := a.Path(b).Addr.String(); got != "192.168.1.3:41641" {
			t.Errorf("hairpin %v: %+v", hairpin, a.Path(b))
		}
	}
}

// TestSameCarrier: two homes behind one carrier's NAT meet only if that lets
// them turn round in it.
func TestSameCarrier(t *testing.T) {
	for _, hairpin := range []bool{false, true} {
		s := simnet.New(1)
		s.Relay(1)
		k := simnet.Easy()
		k.Hairpin = hairpin
		carrier := s.Internet.Router(k, "203.0.113.1").Inside
		// Both homes use the same addresses, as homes do.
		a := s.Node("a", carrier.Router(simnet.Easy(), "10.0.0.1").Inside.Host("192.168.1.2"), 1)
		b := s.Node("b", carrier.Router(simnet.Easy(), "10.0.0.2").Inside.Host("192.168.1.2"), 1)
		s.Run(second)
		a.Meet(b)
		a.Talk(b, second/10)
		s.Run(20 * second)
		if a.Direct(b) != hairpin || b.Direct(a) != hairpin {
			t.Errorf("hairpin %v: a->b %+v, b->a %+v", hairpin, a.Path(b), b.Path(a))
		}
		if f := a.Flow(b); f.Sent-f.Back > 10 {
			t.Errorf("hairpin %v: %d of %d came back", hairpin, f.Back, f.Sent)
		}
	}
}

// TestLoss: with every third packet lost the path still becomes direct, and
// mostly is.
func TestLoss(t *testing.T) {
	for seed := range uint64(20) {
		p := meet(seed, easy(), easy())
		p.Internet.Loss = 0.3
		p.a.Talk(p.b, second/5)
		p.becomesDirect(t, 40*second)
		direct := 0
		for range 300 {
			p.Run(second)
			if p.a.Path(p.b).Kind == mesh.PathDirect {
				direct++
			}
		}
		f := p.a.Flow(p.b)
		if direct < 200 || f.Back < f.Sent*4/10 || f.Gap > 10*second {
			t.Errorf("seed %d: direct in %d of 300 s; %d of %d came back, longest silence %v", seed, direct, f.Back, f.Sent, f.Gap)
		}
	}
}

// TestJitter: two ways of nearly one worth do not take turns, however the times
// jump.
func TestJitter(t *testing.T) {
	for _, jitter := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		t.Run(jitter.String(), func(t *testing.T) {
			worst := 0
			for seed := range uint64(5) {
				at := place{v6: true}
				p := meet(seed, at, at)
				p.Internet.Link = simnet.Link{Delay: 20 * time.Millisecond, Jitter: jitter}
				p.a.Talk(p.b, second)
				p.Run(time.Hour)
				worst = max(worst, p.a.Flow(p.b).Moves)
				p.losesNothing(t, second)
			}
			t.Logf("%d changes at most in an hour", worst)
			if worst > 6 {
				t.Errorf("the way changed %d times in an hour", worst)
			}
		})
	}
}

// hub is a node that knows n others, at places of all kinds.
func hub(s *simnet.Sim, n int) (*simnet.Node, []*simnet.Node) {
	s.Relay(1)
	middle := s.Node("hub", s.Internet.Router(simnet.Easy(), "203.0.113.254").Inside.Host("192.168.0.2"), 1)
	kinds := []simnet.Kind{simnet.Easy(), simnet.Hard(), simnet.Restricted(), simnet.FullCone()}
	var all []*simnet.Node
	for i := range n {
		r := s.Internet.Router(kinds[i%len(kinds)], fmt.Sprintf("203.1.%d.%d", i/250, i%250))
		all = append(all, s.Node(fmt.Sprint(i), r.Inside.Host("192.168.1.2"), 1))
	}
	s.Run(2 * second)
	for _, o := range all {
		middle.Meet(o)
	}
	return middle, all
}

// TestHub: 200 peers that nobody speaks to cost nothing at all, and those that
// were spoken to are quiet again soon.
func TestHub(t *testing.T) {
	s := simnet.New(1)
	middle, all := hub(s, 200)
	idle := func(when string) {
		t.Helper()
		before := middle.Actions()
		s.Run(time.Hour)
		if n := middle.Actions() - before; n > 0 || !middle.Wake().IsZero() {
			t.Errorf("%s: %d actions in an idle hour, wake %v", when, n, middle.Wake())
		}
		for _, o := range all {
			if !o.Wake().IsZero() {
				t.Fatalf("%s: %s wants to be woken", when, o.Name)
			}
		}
	}
	s.Run(10 * second)
	idle("before")

	before := middle.Actions()
	var stops []func()
	for _, o := range all {
		stops = append(stops, middle.Talk(o, second))
	}
	s.Run(time.Minute)
	relayed := 0
	for i, o := range all {
		hard := i%4 == 1
		if middle.Direct(o) == hard {
			t.Errorf("%s, hard %v: %+v", o.Name, hard, middle.Path(o))
		}
		if hard {
			relayed++
		}
	}
	// A heartbeat and a pong every 3 s each, and for those that are relayed
	// pings and a call every 5 s.
	if n, lim := middle.Actions()-before, 60*(150+5*relayed)+200*20; n > lim {
		t.Errorf("%d actions in a busy minute, want %d at most", n, lim)
	}
	for _, stop := range stops {
		stop()
	}
	s.Run(2 * time.Minute)
	idle("after")
}

// TestSameSeed: one seed gives one history, or a failure could not be looked at
// twice.
func TestSameSeed(t *testing.T) {
	history := func(seed uint64) string {
		p := meet(seed, easy(), easy())
		p.Internet.Link = simnet.Link{Delay: 20 * time.Millisecond, Jitter: 10 * time.Millisecond, Loss: 0.2}
		p.a.Talk(p.b, second/10)
		p.Run(2 * time.Minute)
		f := p.a.Flow(p.b)
		return fmt.Sprint(f.Sent, f.Back, f.Direct, f.Gap, f.Moves, p.a.Actions(), p.b.Actions(), p.a.Path(p.b))
	}
	if one, two := history(7), history(7); one != two {
		t.Errorf("%s\nand then\n%s", one, two)
	}
	if history(7) == history(8) {
		t.Error("the seed changes nothing")
	}
}
