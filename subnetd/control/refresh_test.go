package control

import (
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
	"tailscale.com/tailcfg"
)

// approvals is a stream of a coordinator that tells a router of its approved
// routes only when asked anew; a filter without a word about it is all that comes.
func approvals(approved *atomic.Bool, filters <-chan struct{}) func(*poll) {
	return func(p *poll) {
		n := self(p.req.NodeKey)
		n.AllowedIPs = slices.Clone(n.Addresses)
		if approved.Load() {
			n.AllowedIPs = append(n.AllowedIPs, p.req.Hostinfo.RoutableIPs...)
		}
		p.say(&tailcfg.MapResponse{Node: n, PacketFilters: map[string][]tailcfg.FilterRule{"base": {}}})
		for {
			select {
			case <-filters:
				p.say(&tailcfg.MapResponse{PacketFilters: map[string][]tailcfg.FilterRule{"base": {}}})
			case <-time.After(50 * time.Second):
				p.say(&tailcfg.MapResponse{KeepAlive: true})
			case <-p.ctx.Done():
				return
			}
		}
	}
}

func TestRefresh(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		var approved atomic.Bool
		filters := make(chan struct{})
		c.does(func(a *acts) { a.stream = approvals(&approved, filters) })
		m := c.member(withKey)
		m.SetHost(Host{Routes: prefixes("10.0.0.0/24")})
		m.run()
		pass(time.Hour)
		c.expectCalls("stream", 1, 1)
		approved.Store(true)
		filters <- struct{}{}
		pass(0)
		m.expect(status.PhaseJoined)
		c.expectCalls("stream", 2, 2)
		c.expectCalls("upgrade", 1, 1) // on the same connection
		nms := m.seenNetmaps()
		if last := nms[len(nms)-1]; !slices.Contains(last.Self.AllowedIPs, prefixes("10.0.0.0/24")[0]) {
			t.Errorf("the route is not seen as approved: %v", last.Self.AllowedIPs)
		}
		// Withdrawn at once: found out after the shortest pause.
		approved.Store(false)
		filters <- struct{}{}
		pass(refreshFirst / 2)
		c.expectCalls("stream", 2, 2)
		pass(refreshFirst / 2)
		c.expectCalls("stream", 3, 3)
		nms = m.seenNetmaps()
		if last := nms[len(nms)-1]; len(last.Self.AllowedIPs) != 1 {
			t.Errorf("the route is still seen as approved: %v", last.Self.AllowedIPs)
		}
	})
}

// On a busy mesh the refreshes in vain become rare.
func TestRefreshInVain(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		var approved atomic.Bool
		filters := make(chan struct{})
		c.does(func(a *acts) { a.stream = approvals(&approved, filters) })
		m := c.member(withKey)
		m.SetHost(Host{Routes: prefixes("10.0.0.0/24")})
		m.run()
		pass(time.Second)
		for range 3600 {
			select {
			case filters <- struct{}{}:
			case <-time.After(time.Second): // between two streams
			}
			pass(time.Second)
		}
		for i, d := range gaps(c.got("stream"))[1:] {
			if want := min(refreshFirst<<i, refreshMost); d < want || d > want+2*time.Second {
				t.Errorf("refresh %d after %v; want %v", i+2, d, want)
			}
		}
		c.expectCalls("stream", 12, 24)
		if n := len(m.seenNetmaps()); n != 1 {
			t.Errorf("%d netmaps told; want one", n)
		}
	})
}

// However rare the refreshes have become: another route that is offered and approved is known at once.
func TestRefreshAfterOffer(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		var approved atomic.Bool
		filters := make(chan struct{})
		c.does(func(a *acts) { a.stream = approvals(&approved, filters) })
		m := c.member(withKey)
		m.SetHost(Host{Routes: prefixes("10.0.0.0/24")})
		m.run()
		for range 300 {
			pass(time.Second)
			select {
			case filters <- struct{}{}:
			case <-time.After(time.Second): // between two streams
			}
		}
		m.SetHost(Host{Routes: prefixes("10.0.0.0/24", "0.0.0.0/0")})
		approved.Store(true)
		pass(time.Second)
		filters <- struct{}{}
		pass(0)
		nms := m.seenNetmaps()
		if last := nms[len(nms)-1]; !slices.Contains(last.Self.AllowedIPs, prefixes("0.0.0.0/0")[0]) {
			t.Errorf("the route is not seen as approved: %v", last.Self.AllowedIPs)
		}
	})
}

// Who offers no routes has nothing to ask.
func TestNoRefreshWithoutRoutes(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		filters := make(chan struct{})
		c.does(func(a *acts) { a.stream = approvals(new(atomic.Bool), filters) })
		c.member(withKey).run()
		pass(time.Minute)
		filters <- struct{}{}
		pass(time.Hour)
		c.expectCalls("stream", 1, 1)
	})
}

func TestRefreshTimes(t *testing.T) {
	at := func(s int) time.Time { return now.Add(time.Duration(s) * time.Second) }
	nm := func(routes ...string) *mesh.Netmap {
		return &mesh.Netmap{Self: mesh.Node{AllowedIPs: prefixes(routes...)}}
	}
	var r refresh
	if d := r.wait(now); d != 0 {
		t.Errorf("the first waits %v", d)
	}
	r.answered(nil, nm()) // not asked: says nothing of refreshes
	if r.pause != 0 {
		t.Errorf("pause %v before the first refresh", r.pause)
	}
	for i := range 12 {
		r.begin(at(1000 * i))
		r.answered(nm("10.0.0.0/24"), nil) // a keep-alive is no answer
		r.answered(nm("10.0.0.0/24"), nm("10.0.0.0/24"))
		r.answered(nm("10.0.0.0/24"), nm()) // what comes later is no answer to it
		if want := min(refreshFirst<<i, refreshMost); r.pause != want {
			t.Errorf("pause %v after %d in vain; want %v", r.pause, i+1, want)
		}
	}
	if d := r.wait(at(11_000 + 100)); d != refreshMost-100*time.Second {
		t.Errorf("wait %v", d)
	}
	if d := r.wait(at(60_000)); d != 0 {
		t.Errorf("wait %v, long after", d)
	}
	if d := r.wait(at(0)); d != r.pause {
		t.Errorf("wait %v, by a clock that was put back", d)
	}
	r.begin(at(12_000))
	r.answered(nm(), nm("10.0.0.0/24"))
	if r.pause != refreshFirst {
		t.Errorf("pause %v after news; want %v", r.pause, refreshFirst)
	}
}

// A change of the host is told beside the stream, once.
func TestSetHost(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		m := c.member(withKey)
		m.SetHost(Host{Hostname: "box"})
		m.run()
		pass(time.Second)
		c.expectCalls("lite", 0, 0) // the stream's request said it
		host := someHost()
		m.SetHost(host)
		pass(0)
		m.SetHost(someHost()) // the same
		pass(time.Second)
		c.expectCalls("lite", 1, 1)
		q := c.got("lite")[0].req
		checkMapRequest(t, q, host)
		if q.Stream || !q.OmitPeers || q.NodeKey != c.got("stream")[0].req.NodeKey || q.DiscoKey != m.cfg.Disco {
			t.Errorf("update told by %+v", q)
		}
		host.Endpoints[0].Type = 3 // the client must have its own copy
		c.hangUp()
		pass(time.Second)
		c.expectCalls("stream", 2, 2)
		checkMapRequest(t, c.got("stream")[1].req, someHost())
		c.expectCalls("lite", 1, 1)
	})
}

// Updates come one after another, and the last state is always told.
func TestSetHostInOrder(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		var open atomic.Int32
		c.does(func(a *acts) {
			a.lite = func(http.ResponseWriter, *http.Request) {
				if open.Add(1) > 1 {
					t.Error("two updates at once")
				}
				time.Sleep(300 * time.Millisecond)
				open.Add(-1)
			}
		})
		m := c.member(withKey).run()
		pass(time.Second)
		for i := range 50 {
			m.SetHost(Host{Endpoints: []Endpoint{{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(1000+i)), 1}}})
			pass(20 * time.Millisecond)
		}
		pass(time.Second)
		c.expectCalls("lite", 3, 6)
		calls := c.got("lite")
		for i := 1; i < len(calls); i++ {
			if a, b := calls[i-1].req.Endpoints[0], calls[i].req.Endpoints[0]; a.Port() >= b.Port() {
				t.Errorf("%v told after %v", b, a)
			}
		}
		if last := calls[len(calls)-1].req.Endpoints[0]; last.Port() != 1049 {
			t.Errorf("told last: %v", last)
		}
	})
}

// An update that the coordinator does not take is told again, with pauses, as
// it then is.
func TestSetHostAgain(t *testing.T) {
	bubble(t, func(t *testing.T, c *coordinator) {
		c.does(func(a *acts) { a.lite = status502 })
		m := c.member(withKey).run()
		pass(time.Second)
		m.SetHost(Host{Hostname: "a"})
		pass(10 * time.Minute)
		c.expectCalls("lite", 20, 60)
		m.expect(status.PhaseJoined)
		c.does(func(a *acts) { a.lite = nil })
		m.SetHost(Host{Hostname: "b"})
		pass(longestPause)
		calls := c.got("lite")
		if last := calls[len(calls)-1].req.Hostinfo.Hostname; last != "b" {
			t.Errorf("told last: %q", last)
		}
		pass(time.Hour)
		c.expectCalls("lite", len(calls), len(calls))
		c.expectCalls("stream", 1, 1)
	})
}
