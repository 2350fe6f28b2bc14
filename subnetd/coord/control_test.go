package coord

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"subnetd/subnetd/control"
	nouns "subnetd/subnetd/mesh"
	"subnetd/subnetd/status"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// good is the project's own client, and what it was last told.
type good struct {
	*control.Client
	cfg  control.Config
	end  context.CancelFunc
	done chan error

	mu     sync.Mutex // guards all below
	m      *mesh      // where it connects to
	state  control.State
	netmap *nouns.Netmap
	id     control.Identity
}

// good makes a client that connects from an address of the world; "" is inside.
func (m *mesh) good(hostname, from, authKey string) *good {
	g := &good{m: m, done: make(chan error, 1)}
	g.cfg = control.Config{
		URL: "http://home.test:8410", Machine: key.NewMachine(), Disco: key.NewDisco().Public(), Version: "1.2.3", AuthKey: authKey,
		Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			g.mu.Lock()
			at := g.m
			g.mu.Unlock()
			conn, _, err := at.dial(ctx, from)
			return conn, err
		},
		Save:     func(id control.Identity) error { g.set(func() { g.id = id }); return nil },
		OnNetmap: func(nm *nouns.Netmap, _ key.NodePrivate) { g.set(func() { g.netmap = nm }) },
		OnState:  func(s control.State) { g.set(func() { g.state = s }) },
	}
	g.Client = control.New(g.cfg)
	g.SetHost(control.Host{Hostname: hostname, HomeRelay: 900, UDP: true})
	ctx, cancel := context.WithCancel(context.Background())
	g.end = cancel
	go func() { g.done <- g.Run(ctx) }()
	m.t.Cleanup(g.stop)
	return g
}

func (g *good) stop() {
	g.end()
	if err := <-g.done; err != nil {
		g.m.t.Errorf("Run: %v", err)
	}
	g.done <- nil // for the next stop
}

func (g *good) set(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

func (g *good) key() key.NodePublic {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.id.Node.Public()
}

// expect asserts where the client stands.
func (g *good) expect(p status.Phase, when string) {
	g.m.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state.Phase != p {
		g.m.t.Fatalf("%s: phase %q, want %q: %s", when, g.state.Phase, p, g.state.Error)
	}
}

// fresh is what a new session of a member would be told.
func (m *mesh) fresh(k key.NodePublic) *view {
	m.t.Helper()
	n := m.node(k)
	if n == nil {
		m.t.Fatal("it is no member")
	}
	s := &session{c: m.c, id: n.ID, key: k, self: n.Self, users: map[tailcfg.UserID]bool{}}
	texts, err := s.first(m.c.snap.Load()).texts()
	m.must(err)
	v := newView()
	v.apply(bytes.Join(texts, nil))
	return v
}

// check asserts that the client has made of all messages what a new session would be told.
func (g *good) check(when string) {
	g.m.t.Helper()
	want := g.m.fresh(g.key())
	g.mu.Lock()
	defer g.mu.Unlock()
	nm := g.netmap
	if nm == nil || nm.Self.Name != want.Self.Name || !slices.Equal(nm.Self.AllowedIPs, want.Self.AllowedIPs) || len(nm.Peers) != len(want.Peers) ||
		(len(nm.Filter) == 0) != (len(want.Filters["base"]) == 0) || len(nm.Names.Records) != len(want.DNS.ExtraRecords) || nm.Domain != want.Domain {
		g.m.t.Fatalf("%s: it knows %+v, want %+v", when, nm, want)
	}
	for _, p := range nm.Peers {
		n := want.Peers[tailcfg.NodeID(p.ID)]
		if n == nil || p.Name != n.Name || p.Key != n.Key || p.Disco != n.DiscoKey || p.HomeRelay != n.HomeDERP || *p.Online != *n.Online ||
			!slices.Equal(p.AllowedIPs, n.AllowedIPs) || !slices.Equal(p.Endpoints, n.Endpoints) || !slices.Equal(p.Tags, n.Tags) || !p.KeyExpiry.Equal(n.KeyExpiry) {
			g.m.t.Fatalf("%s: of a peer it knows %+v, want %+v", when, p, n)
		}
	}
}

func TestGoodClients(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		m.must(m.c.SetPlace(t.Context(), Place{Relays: relayMap(900), Inside: relayMap(900)}))
		home := m.good("router", "", "")
		a, b := m.good("a", "192.0.2.1", m.invite()), m.good("b", "2001:db8::1", m.invite(tagged))
		all := []*good{home, a, b}
		check := func(when string) {
			t.Helper()
			pass(2 * time.Second)
			for _, g := range all {
				g.expect(status.PhaseJoined, when)
				g.check(when)
			}
			m.invariants()
		}
		check("at first")
		if !m.node(home.key()).Self || m.node(a.key()).Self {
			t.Error("who is the router?")
		}
		a.SetHost(control.Host{Hostname: "a", HomeRelay: 900, Routes: prefixes("10.0.0.0/24", "0.0.0.0/0", "::/0"), Endpoints: []control.Endpoint{{Addr: endpoints("192.0.2.1:9")[0], Type: 1}}})
		check("endpoints")
		_, err := m.c.ApproveRoutes(t.Context(), "a", prefixes("10.0.0.0/24", "::/0"))
		m.must(err)
		check("routes")
		_, err = m.c.SetDevices(t.Context(), home.key(), []Device{{Name: "tv", V6: true}, {Name: "nas"}})
		m.must(err)
		check("devices")
		for i, p := range walkPolicies {
			m.setPolicy(p)
			check(fmt.Sprint("policy ", i))
		}
		m.setPolicy(walkPolicies[0])
		_, err = m.c.Rename(t.Context(), "a", "renamed")
		m.must(err)
		check("rename")
		took, err := m.c.Probe(t.Context(), "renamed")
		if err != nil || took > time.Second {
			t.Errorf("probe: %v, %v", took, err)
		}
		pass(time.Hour)
		check("an hour later")
		old, saves := m, m.disk.count(LedgerFile)
		m.stop()
		m = start(t, old.disk)
		for _, g := range all {
			g.set(func() { g.m = m })
		}
		pass(time.Minute)
		check("after a restart")
		if n := m.disk.count(LedgerFile) - saves; n != 0 {
			t.Errorf("%d writes for a restart", n)
		}
	})
}

// A key that ends is followed by another if the client has an auth key, and by a
// login page if not.
func TestGoodClientRekeys(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		a, b := m.good("a", "192.0.2.1", m.invite(reusable)), m.good("b", "192.0.2.2", m.invite())
		home := m.good("router", "", "")
		pass(time.Second)
		was := map[*good]*node{a: m.node(a.key()), b: m.node(b.key())}
		for _, name := range []string{"a", "b"} {
			_, err := m.c.Expire(t.Context(), name, time.Hour)
			m.must(err)
		}
		pass(time.Hour + 2*time.Minute)
		a.expect(status.PhaseJoined, "expired, with a key that is good")
		b.expect(status.PhaseNeedsLogin, "expired, with a key that was used")
		b.Login("")
		pass(time.Minute)
		b.mu.Lock()
		url := b.state.LoginURL
		b.mu.Unlock()
		_, err := m.c.Approve(t.Context(), code(url), "")
		m.must(err)
		pass(time.Minute)
		for _, g := range []*good{a, b, home} {
			g.expect(status.PhaseJoined, "in the end")
			g.check("in the end")
		}
		for g, n := range was {
			if now := m.node(g.key()); now == nil || now.ID != n.ID || now.Number != n.Number || now.Key == n.Key {
				t.Errorf("%+v became %+v", n.record, now)
			}
		}
		m.invariants()
	})
}

func TestGoodClientLeaves(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		a, b := m.good("a", "192.0.2.1", m.invite()), m.good("b", "192.0.2.2", m.invite())
		c := m.good("c", "192.0.2.3", "")
		pass(time.Second)
		c.expect(status.PhaseNeedsLogin, "without a key")
		if ps := m.c.Pending(); len(ps) != 1 || ps[0].Hostname != "c" {
			t.Fatalf("there wait %+v", ps)
		}
		_, err := m.c.Approve(t.Context(), m.c.Pending()[0].Code, "anna")
		m.must(err)
		pass(time.Second)
		c.expect(status.PhaseJoined, "approved")
		_, err = m.c.Remove(t.Context(), "a")
		m.must(err)
		pass(time.Minute)
		a.expect(status.PhaseNeedsLogin, "removed")
		m.must(b.Logout(t.Context()))
		pass(time.Minute)
		if n := m.c.Nodes(); len(n) != 2 || !n[0].Expired || n[1].User != "anna" {
			t.Errorf("nodes %+v", n)
		}
		c.check("all others have left")
		b.Login(m.invite())
		pass(time.Minute)
		b.expect(status.PhaseJoined, "after a logout and a login")
		c.check("one is back")
	})
}
