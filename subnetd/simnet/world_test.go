package simnet_test

import (
	"fmt"
	"testing"
	"time"

	"subnetd/subnetd/simnet"
)

// place is a way to be connected to the internet.
type place struct {
	name string
	// routers between the node and the internet, the outermost first
	routers []simnet.Kind
	v6      bool
}

// kinds are all kinds of places. What they can do follows from the last three
// fields, and only theory uses those.
func kinds() []struct {
	place
	noUDP    bool
	hard     bool // another port for every peer
	lets     int  // who may answer: 0 all, 1 the address, 2 the address and port
	wellSeen bool // STUN shows where the peers can reach it
} {
	type row = struct {
		place
		noUDP    bool
		hard     bool
		lets     int
		wellSeen bool
	}
	at := func(name string, routers ...simnet.Kind) place { return place{name: name, routers: routers} }
	return []row{
		{place: at("open"), wellSeen: true},
		{place: at("firewall", simnet.Firewall()), lets: 2, wellSeen: true},
		{place: at("full cone", simnet.FullCone()), wellSeen: true},
		{place: at("restricted", simnet.Restricted()), lets: 1, wellSeen: true},
		{place: at("easy", simnet.Easy()), lets: 2, wellSeen: true},
		{place: at("hard", simnet.Hard()), hard: true, lets: 2},
		{place: at("easy in easy", simnet.Easy(), simnet.Easy()), lets: 2, wellSeen: true},
		{place: at("easy in hard", simnet.Hard(), simnet.Easy()), hard: true, lets: 2},
		{place: at("hard in full", simnet.FullCone(), simnet.Hard()), hard: true, lets: 2},
		{place: at("blocked", simnet.Blocked()), noUDP: true},
	}
}

// settle puts a host at the place; number tells hosts apart.
func settle(s *simnet.Sim, p place, number int) (*simnet.Host, []*simnet.Router) {
	n := s.Internet
	var routers []*simnet.Router
	for i, k := range p.routers {
		wan := fmt.Sprintf("203.0.113.%d", number)
		if i > 0 {
			wan = fmt.Sprintf("10.%d.0.%d", i, number)
		}
		r := n.Router(k, wan)
		routers, n = append(routers, r), r.Inside
	}
	addrs := []string{fmt.Sprintf("192.168.%d.2", number)}
	if len(routers) == 0 || p.routers[0].Plain {
		addrs[0] = fmt.Sprintf("198.51.100.%d", number)
	}
	if len(routers) > 0 && p.routers[0].Plain {
		s.Internet.Route(addrs[0], routers[0])
	}
	if p.v6 {
		addrs = append(addrs, fmt.Sprintf("2001:db8:%d::2", number))
	}
	return n.Host(addrs...), routers
}

// pair is two nodes that know each other, each at its place.
type pair struct {
	*simnet.Sim
	a, b   *simnet.Node
	ra, rb []*simnet.Router
	met    time.Time
}

// meet lets the nodes find their feet before they meet.
func meet(seed uint64, pa, pb place) *pair {
	p := &pair{Sim: simnet.New(seed)}
	p.Relay(1)
	p.Relay(2)
	var ha, hb *simnet.Host
	ha, p.ra = settle(p.Sim, pa, 1)
	hb, p.rb = settle(p.Sim, pb, 2)
	p.a, p.b = p.Node("a", ha, 1), p.Node("b", hb, 2)
	p.Run(2 * time.Second)
	p.a.Meet(p.b)
	p.met = p.Now()
	return p
}

// direct reports whether both ways are direct.
func (p *pair) direct() bool { return p.a.Direct(p.b) && p.b.Direct(p.a) }

// becomesDirect fails the test if the pair is not direct within limit.
func (p *pair) becomesDirect(t *testing.T, limit time.Duration) time.Duration {
	t.Helper()
	took, ok := p.Until(limit, p.direct)
	if !ok {
		t.Fatalf("not direct after %v: a->b %+v, b->a %+v", limit, p.a.Path(p.b), p.b.Path(p.a))
	}
	return took
}

// losesNothing fails the test if data is missing that had time to come back.
func (p *pair) losesNothing(t *testing.T, every time.Duration) {
	t.Helper()
	if f := p.a.Flow(p.b); f.Sent-f.Back > int(time.Second/every)+1 {
		t.Errorf("%d of %d came back", f.Back, f.Sent)
	}
}
