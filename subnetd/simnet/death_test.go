package simnet_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/simnet"
)

const ms = time.Millisecond

const (
	noticed = 3 * second // that the direct way is dead
	moments = 6          // at which it dies
)

// poll is how often the kernel is looked at.
const poll = 600 * ms

// engines are who carries the data of the first and of the second node.
var engines = []struct {
	name          string
	first, second bool // in the kernel
}{
	{"userspace", false, false},
	{"kernel", true, true},
	{"kernel and userspace", true, false},
	{"userspace and kernel", false, true},
}

// fourAndSix are places of which two can meet only over one family.
func fourAndSix(t *testing.T, do func(t *testing.T, at place)) {
	six := place{name: "v6", routers: []simnet.Kind{simnet.Hard()}, v6: true}
	for _, at := range []place{easy(), six} {
		t.Run(map[bool]string{false: "v4", true: "v6"}[at.v6], func(t *testing.T) { do(t, at) })
	}
}

// isFirst reports whether the address is the first node's, as the internet sees it.
func isFirst(a netip.AddrPort) bool {
	s := a.Addr().String()
	return s == "203.0.113.1" || strings.HasPrefix(s, "2001:db8:1:")
}

func isSecond(a netip.AddrPort) bool {
	s := a.Addr().String()
	return s == "203.0.113.2" || strings.HasPrefix(s, "2001:db8:2:")
}

// deaf loses what one side sends to the other.
func deaf(forth, back bool) func(simnet.Packet) bool {
	return func(k simnet.Packet) bool {
		return forth && isFirst(k.From) && isSecond(k.To) || back && isSecond(k.From) && isFirst(k.To)
	}
}

// TestDeath: the direct way dies under every kind of traffic, both ways or one
// way, at every moment. Whoever sends into the dead soon sends over the relay.
func TestDeath(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			for _, tr := range []struct {
				name        string
				begin       func(*pair)
				forth, back bool // who sends
			}{
				{"questions", func(p *pair) { p.a.Talk(p.b, 50*ms) }, true, true},
				{"stream", func(p *pair) { p.a.Stream(p.b, 50*ms) }, true, false},
				{"two streams", func(p *pair) { p.a.Stream(p.b, 50*ms); p.b.Stream(p.a, 50*ms) }, true, true},
				{"transfer", func(p *pair) { p.a.Transfer(p.b) }, true, true},
			} {
				for _, dies := range []struct {
					name        string
					forth, back bool
				}{{"both ways", true, true}, {"forth", true, false}, {"back", false, true}} {
					t.Run(tr.name+"/"+dies.name, func(t *testing.T) {
						fourAndSix(t, func(t *testing.T, at place) {
							worst, stall := time.Duration(0), time.Duration(0)
							for i := range moments {
								p := meet(1, at, at)
								p.kernels(e.first, e.second)
								tr.begin(p)
								p.Run(6*second + time.Duration(i)*3400*ms/moments)
								knows := func() bool {
									return !(dies.forth && tr.forth && p.a.Direct(p.b)) && !(dies.back && tr.back && p.b.Direct(p.a))
								}
								if knows() && (tr.back || dies.forth) {
									t.Fatalf("not direct: a->b %+v, b->a %+v", p.a.Path(p.b), p.b.Path(p.a))
								}
								p.Internet.Drop = deaf(dies.forth, dies.back)
								took, ok := p.Until(10*second, knows)
								if !ok {
									t.Fatalf("still direct: a->b %+v, b->a %+v", p.a.Path(p.b), p.b.Path(p.a))
								}
								worst = max(worst, took)
								f := p.b.Flow(p.a)
								if tr.name == "questions" {
									f = p.a.Flow(p.b)
								}
								f.Gap = 0
								p.Run(10*second - took)
								stall = max(stall, f.Gap)
							}
							t.Logf("noticed after %v at most, longest silence %v", worst, stall)
							if worst > noticed {
								t.Errorf("noticed after %v, want %v at most", worst, noticed)
							}
						})
					})
				}
			}
		})
	}
}

// TestNATForgets: the router before one node takes another port. Whoever hears
// it from there follows; the kernel does by itself, and is let.
func TestNATForgets(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			for _, other := range []place{{name: "open"}, easy()} {
				worst, took := time.Duration(0), time.Duration(0)
				for i := range moments {
					p := meet(1, easy(), other)
					p.kernels(e.first, e.second)
					p.a.Talk(p.b, 20*ms)
					p.becomesDirect(t, 2*second)
					p.Run(10*second + time.Duration(i)*3400*ms/moments)
					f := p.a.Flow(p.b)
					old := p.b.Path(p.a).Addr
					f.Gap = 0
					p.ra[0].SetKind(easy().routers[0])
					d, ok := p.Until(10*second, func() bool { return p.direct() && p.b.Path(p.a).Addr != old })
					if !ok {
						t.Fatalf("to %s: a->b %+v, b->a %+v", other.name, p.a.Path(p.b), p.b.Path(p.a))
					}
					took = max(took, d)
					p.Run(20 * second)
					worst = max(worst, f.Gap)
				}
				t.Logf("other side %s: followed after %v, longest silence %v", other.name, took, worst)
				if lim := noticed + 200*ms; worst > lim || took > lim+5*second {
					t.Errorf("other side %s: followed after %v, longest silence %v", other.name, took, worst)
				}
			}
		})
	}
}

// kernels has the kernel carry data; the two are not looked at in step.
func (p *pair) kernels(first, other bool) {
	if first {
		p.a.Kernel(poll)
	}
	p.Run(137 * ms)
	if other {
		p.b.Kernel(poll)
	}
}

// TestTwoHomes: for ten minutes two homes have two direct ways and the relay,
// all alive, however times jump. The way stays.
func TestTwoHomes(t *testing.T) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			moves, said := 0, 0
			for seed := range uint64(4) {
				at := easy()
				at.v6 = true
				p := meet(seed, at, at)
				p.kernels(e.first, e.second)
				p.Internet.Link = simnet.Link{Delay: 15 * ms, Jitter: 10 * ms}
				p.a.Talk(p.b, 100*ms)
				p.b.Stream(p.a, 100*ms)
				p.becomesDirect(t, 2*second)
				p.Run(10 * time.Minute)
				for _, f := range []*simnet.Flow{p.a.Flow(p.b), p.b.Flow(p.a)} {
					moves, said = max(moves, f.Moves), max(said, f.Uses)
				}
				if f := p.a.Flow(p.b); f.Gap > second || f.Sent-f.Back > 10 {
					t.Errorf("seed %d: %d of %d came back, longest silence %v", seed, f.Back, f.Sent, f.Gap)
				}
			}
			t.Logf("in 10 minutes %d changes at most, said %d times", moves, said)
			if moves > 4 || said > 8 {
				t.Errorf("%d changes, said %d times", moves, said)
			}
		})
	}
}

// TestAdoption: the daemon restarts while the kernel carries data. Not a packet
// is lost, and the relay sees none.
func TestAdoption(t *testing.T) {
	fourAndSix(t, func(t *testing.T, at place) {
		p := meet(1, at, at)
		p.kernels(true, true)
		p.a.Talk(p.b, 20*ms)
		p.becomesDirect(t, 2*second)
		p.Run(10 * second)
		f := p.a.Flow(p.b)
		relayed, moves := f.Back-f.Direct, f.Moves
		p.a.Restart()
		p.Run(30 * second)
		if !p.direct() || f.Back-f.Direct > relayed || f.Sent-f.Back > 5 || f.Gap > 300*ms {
			t.Errorf("a->b %+v, b->a %+v; %d by relay, %d of %d back, longest silence %v", p.a.Path(p.b), p.b.Path(p.a), f.Back-f.Direct-relayed, f.Back, f.Sent, f.Gap)
		}
		t.Logf("%d changes, longest silence %v", f.Moves-moves, f.Gap)

		// What the kernel has is dead by now.
		p.a.Restart()
		p.Internet.Drop = deaf(true, true)
		f.Gap = 0
		p.Run(20 * second)
		t.Logf("dead meanwhile: longest silence %v", f.Gap)
		if f.Gap > 6*second {
			t.Errorf("longest silence %v", f.Gap)
		}
	})
}

// TestLossyStream: where one packet in a hundred is lost and nothing comes back,
// the way is doubted rarely all the same.
func TestLossyStream(t *testing.T) {
	for _, e := range engines[:2] {
		moves := 0
		for seed := range uint64(5) {
			p := meet(seed, easy(), easy())
			p.kernels(e.first, e.second)
			p.Internet.Loss = 0.01
			p.a.Stream(p.b, 50*ms)
			p.becomesDirect(t, 20*second)
			f := p.a.Flow(p.b)
			before := f.Moves
			p.Run(10 * time.Minute)
			moves += f.Moves - before
		}
		t.Logf("%s: %d changes in 50 minutes", e.name, moves)
		if moves > 10 {
			t.Errorf("%s: %d changes in 50 minutes", e.name, moves)
		}
	}
}
