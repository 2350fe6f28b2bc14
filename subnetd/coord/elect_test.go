package coord

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"tailscale.com/tailcfg"
)

// router is a client that offers a route, which is approved, and is online.
func (m *mesh) router(name, route string) (*client, *poll) {
	m.t.Helper()
	c := m.member(name)
	_, err := m.c.ApproveRoutes(m.t.Context(), name, prefixes(route))
	m.must(err)
	c.host.RoutableIPs = prefixes(route)
	p := c.stream()
	pass(time.Second)
	return c, p
}

// serves reports who serves a prefix as a peer sees it.
func (v *view) serves(p netip.Prefix) (names []string) {
	for _, n := range v.Peers {
		if slices.Contains(n.AllowedIPs, p) != slices.Contains(n.PrimaryRoutes, p) {
			names = append(names, "?")
		}
		if slices.Contains(n.AllowedIPs, p) {
			names = append(names, n.Name[:1])
		}
	}
	return names
}

// One of two routers serves their prefix; ten seconds after it left the other
// does, and goes on when the first is back.
func TestFailover(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		const route = "10.0.0.0/24"
		w := m.member("watcher").stream()
		a, p := m.router("a", route)
		b, _ := m.router("b", route)
		is := func(want, when string) {
			t.Helper()
			if got := fmt.Sprint(w.now().serves(netip.MustParsePrefix(route))); got != "["+want+"]" {
				t.Errorf("%s: %s serves, want %s", when, got, want)
			}
			m.invariants()
		}
		is("a", "at first")
		p.cancel()
		pass(offlineAfter - time.Second)
		is("a", "within the grace")
		p = a.stream()
		pass(time.Minute)
		is("a", "back within the grace")
		p.cancel()
		pass(offlineAfter + time.Second)
		is("b", "after the grace")
		a.stream()
		pass(time.Minute)
		is("b", "when the first is back")
		for range 3 {
			m = m.restart()
			if n := m.node(b.node); !m.node(a.node).Online || !n.Online || len(n.shown.node.PrimaryRoutes) != 1 {
				t.Errorf("after a restart of the coordinator: a online %v, b online %v and serves %v", m.node(a.node).Online, n.Online, n.shown.node.PrimaryRoutes)
			}
		}
	})
}

// The last one keeps the prefix: nobody else could serve it.
func TestLastRouter(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		_, p := m.router("a", "10.0.0.0/24")
		w := m.member("watcher").stream()
		p.cancel()
		pass(time.Hour)
		if got := w.now().serves(netip.MustParsePrefix("10.0.0.0/24")); len(got) != 1 {
			t.Errorf("%v serves", got)
		}
		_, err := m.c.ApproveRoutes(t.Context(), "a", nil)
		m.must(err)
		if pass(time.Second); len(w.now().serves(netip.MustParsePrefix("10.0.0.0/24"))) != 0 {
			t.Error("it serves though its approval was taken back")
		}
	})
}

// What is offered, approved and served, as the owner sees it.
func TestRoutes(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.member("c")
		c.host.RoutableIPs = prefixes("10.0.0.0/24", "0.0.0.0/0", "::/0", "100.64.0.0/10", "100.99.0.0/16", "fd7a:115c:a1e0::/48", "10.0.0.1/24", "0.0.0.0/1")
		c.mustTell()
		n, err := m.c.ApproveRoutes(t.Context(), "c", prefixes("10.0.0.0/24", "10.0.0.7/24", "::/0", "192.168.0.0/16"))
		m.must(err)
		got := map[string]string{}
		for _, r := range n.Routes {
			got[r.Prefix.String()] = fmt.Sprint(r.Offered, r.Approved, r.Primary)
		}
		want := map[string]string{"10.0.0.0/24": "true true true", "0.0.0.0/0": "true false false", "::/0": "true true false", "192.168.0.0/16": "false true false"}
		if !maps.Equal(got, want) {
			t.Errorf("routes %v, want %v", got, want)
		}
		if _, err := m.c.ApproveRoutes(t.Context(), "c", prefixes("100.99.0.0/16")); err == nil {
			t.Error("a part of the mesh's own pool is approved")
		}
		many := make([]netip.Prefix, 0, maxOffers+1)
		for i := range maxOffers + 1 {
			many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
		}
		if _, err := m.c.ApproveRoutes(t.Context(), "c", many); err == nil {
			t.Error("any number of routes is approved")
		}
		m.invariants()
	})
}

// claim is a node as the naive election knows it.
type claim struct {
	online, expired bool
	approved        map[netip.Prefix]bool
}

// naive says who may serve a prefix after a step, told in words as simple as can be.
func naive(nodes map[tailcfg.NodeID]*claim, p netip.Prefix, had tailcfg.NodeID) tailcfg.NodeID {
	var all, online []tailcfg.NodeID
	for id, c := range nodes {
		if c.approved[p] && !c.expired {
			all = append(all, id)
			if c.online {
				online = append(online, id)
			}
		}
	}
	slices.Sort(all)
	slices.Sort(online)
	switch {
	case slices.Contains(online, had):
		return had
	case len(online) > 0:
		return online[0]
	case slices.Contains(all, had):
		return had
	case len(all) > 0:
		return all[0]
	}
	return 0
}

// The election is what the naive one says, whatever happened before.
func TestElection(t *testing.T) {
	routes := prefixes("10.0.0.0/24", "10.0.1.0/24", "fd00::/64")
	rng := rand.New(rand.NewPCG(1, 0)) // the same in every run: what is red is so because of a change
	bubble(t, func(t *testing.T, m *mesh) {
		var ids []tailcfg.NodeID
		for i := range 5 {
			c := m.member(fmt.Sprint("r", i))
			c.host.RoutableIPs = routes
			c.mustTell()
			ids = append(ids, m.node(c.node).ID)
		}
		model := map[tailcfg.NodeID]*claim{}
		for _, id := range ids {
			model[id] = &claim{approved: map[netip.Prefix]bool{}}
		}
		had := map[netip.Prefix]tailcfg.NodeID{}
		for step := range 500 {
			if len(ids) == 0 {
				break
			}
			at := rng.IntN(len(ids))
			id := ids[at]
			what := rng.IntN(20)
			m.must(m.c.update(t.Context(), func(d *draft) error {
				switch c := model[id]; {
				case what < 9:
					c.online = !c.online
					d.edit(id).Online = c.online
				case what < 18:
					p := routes[rng.IntN(len(routes))]
					c.approved[p] = !c.approved[p]
					n := d.edit(id)
					n.Approved = nil
					for p, ok := range c.approved {
						if ok {
							n.Approved = append(n.Approved, p)
						}
					}
					d.lasting = true
				case what < 19:
					c.expired = !c.expired
					n := d.edit(id)
					if n.Expiry = (time.Time{}); c.expired {
						n.Expiry = d.now.Add(-time.Second)
					}
					d.lasting = true
				case step > 300:
					d.remove(id)
					delete(model, id)
					ids = slices.Delete(ids, at, at+1)
				}
				return nil
			}))
			for _, p := range routes {
				had[p] = naive(model, p, had[p])
				if got := m.c.snap.Load().primary[p]; got != had[p] {
					t.Fatalf("step %d: %v goes to %d, want %d", step, p, got, had[p])
				}
			}
			m.invariants()
		}
	})
}
