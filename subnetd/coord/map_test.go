package coord

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// What the first message has, also for who is alone.
func TestFirstMap(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		m.must(m.c.SetPlace(t.Context(), Place{Relays: relayMap(900), Inside: relayMap(901)}))
		c := m.member("c")
		for _, packing := range []string{"zstd", ""} {
			p := c.stream(func(r *tailcfg.MapRequest) { r.Compress = packing })
			pass(time.Second)
			fs := p.got()
			if len(fs) != 1 {
				t.Fatalf("%d messages", len(fs))
			}
			f := fs[0]
			switch {
			case f.Node == nil || f.Node.Key != c.node || f.Node.Name != "c."+domain+"." || !f.Node.MachineAuthorized || f.Node.CapMap == nil:
				t.Errorf("self %+v", f.Node)
			case f.DERPMap == nil || f.DERPMap.Regions[900] == nil || f.DNSConfig == nil || !f.DNSConfig.Proxied || f.Domain != domain || f.ControlTime == nil:
				t.Errorf("message %+v", f)
			case len(f.PacketFilters["base"]) == 0 || len(f.UserProfiles) != 1 || len(f.Peers) != 0:
				t.Errorf("message %+v", f)
			}
			c.check(p, packing)
		}
		home := m.client("router", "")
		home.mustRegister()
		p := home.stream()
		pass(time.Second)
		if r := p.now().Relays; r.Regions[901] == nil || len(p.now().Peers) != 1 {
			t.Errorf("the router's own node is told relays %+v, peers %v", r, p.now().Peers)
		}
	})
}

// Who may be reached by nobody is told so: an absent filter would say «as before».
func TestEmptyFilter(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.member("c")
		p := c.stream()
		pass(time.Second)
		m.setPolicy(`{"acls": []}`)
		q := m.member("d").stream()
		pass(time.Second)
		for what, p := range map[string]*poll{"a change": p, "a first map": q} {
			p.mu.Lock()
			if text := p.texts[len(p.texts)-1]; !strings.Contains(text, `"PacketFilters":{"base":[]}`) {
				t.Errorf("%s: %s", what, text)
			}
			p.mu.Unlock()
		}
	})
}

// However much happens that does not concern it, a client hears us each minute:
// after two it would give the connection up. And its poll lasts.
func TestKeepAlive(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		m.setPolicy(`{"acls": []}`)
		quiet, busy := m.member("quiet"), m.member("busy")
		p := quiet.stream()
		pass(time.Second)
		p.got()
		last, heard := time.Now(), 0
		for i := range 6 * 60 {
			pass(10 * time.Second)
			busy.endpoints = []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("192.0.2.7"), uint16(i+1))}
			busy.mustTell()
			for _, f := range p.got() {
				if !f.KeepAlive {
					t.Errorf("told %+v", f)
				}
				last, heard = time.Now(), heard+1
			}
			if d := time.Since(last); d > keepAliveFirst+keepAliveMore+10*time.Second {
				t.Fatalf("silence for %v", d)
			}
		}
		if p.over() || heard < 58 || heard > 75 {
			t.Errorf("%d keep-alives in an hour, over: %v", heard, p.over())
		}
	})
}

// The second long poll of a node ends the first, and the node stays online.
func TestSecondStream(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c, peer := m.member("c"), m.member("peer")
		w := peer.stream()
		p := c.stream()
		pass(time.Second)
		w.got()
		for range 5 {
			q := c.at(m).stream() // over another connection
			pass(time.Second)
			if !p.over() || q.over() {
				t.Fatalf("the first is over: %v, the second: %v", p.over(), q.over())
			}
			p = q
		}
		pass(time.Hour)
		if !m.node(c.node).Online || p.over() {
			t.Error("it counts as offline")
		}
		for _, f := range w.got() {
			if !f.KeepAlive {
				t.Errorf("its peer heard %+v", f)
			}
		}
	})
}

// Who does not read holds up nobody else. If it reads on soon, it is told what it
// missed; if not, its poll is over.
func TestSlowReader(t *testing.T) {
	for name, tt := range map[string]struct {
		gap  time.Duration
		over bool
	}{"slow": {50 * time.Millisecond, false}, "stopped": {time.Second, true}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, m *mesh) {
				slow, good, busy := m.member("slow"), m.member("good"), m.member("busy")
				p := &poll{done: make(chan struct{}), read: make(chan struct{}), view: newView()}
				p.begin(slow, func(r *tailcfg.MapRequest) { r.Compress = "" })
				q := good.stream()
				pass(time.Second)
				id := m.node(busy.node).ID
				for i := range 200 { // what a client that does not read lets come is 4 MB, some 100 messages
					m.must(m.c.update(t.Context(), func(d *draft) error {
						n := d.edit(id)
						n.Services = []tailcfg.Service{{Proto: "tcp", Port: uint16(i), Description: strings.Repeat("x", 40<<10)}}
						return nil
					}))
					if pass(tt.gap); i%20 == 0 {
						pass(time.Second / 2) // all gaps between frames are over
						good.check(q, "beside a slow reader")
					}
				}
				close(p.read)
				if pass(time.Second); p.over() != tt.over {
					t.Fatalf("its poll is over: %v", p.over())
				}
				if !tt.over {
					slow.check(p, "after it has read on")
				}
				if n := p.bytes(); n < 4_000_000 {
					t.Errorf("it was told %d bytes only", n)
				}
			})
		})
	}
}

// A connection that takes nothing any more is closed, and its node offline then.
func TestDeadReader(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		dead, good := m.member("dead"), m.member("good")
		raw, _, err := m.dial(t.Context(), "192.0.2.1")
		m.must(err)
		conn, err := dead.upgrade(t.Context(), raw)
		m.must(err)
		stall := &stalling{Conn: conn, stop: make(chan struct{}), end: make(chan struct{})}
		defer close(stall.end)
		tr := &http.Transport{MaxConnsPerHost: 1, Protocols: new(http.Protocols), DialContext: stall.dial}
		tr.Protocols.SetUnencryptedHTTP2(true)
		dead.http, dead.conn = &http.Client{Transport: tr}, conn
		p := dead.stream()
		q := good.stream()
		pass(time.Second)
		if len(p.got()) == 0 || !m.node(dead.node).Online {
			t.Fatal("it did not begin well")
		}
		close(stall.stop)
		for range 12 {
			pass(10 * time.Second)
			good.check(q, "beside a dead reader")
		}
		if m.node(dead.node).Online {
			t.Error("after two minutes a dead connection counts as online")
		}
		m.must(raw.Close())
	})
}

// stalling reads no more once stop is closed, until end.
type stalling struct {
	net.Conn
	stop, end chan struct{}
}

func (s *stalling) dial(context.Context, string, string) (net.Conn, error) { return s, nil }

func (s *stalling) Read(b []byte) (int, error) {
	select {
	case <-s.stop:
		<-s.end
	default:
	}
	return s.Conn.Read(b)
}

// A node that nobody knows is told that it is expired: an error would have it go
// on with the mesh it remembers.
func TestUnknownNode(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.client("c", "192.0.2.1")
		p := c.stream()
		pass(time.Second)
		expectFarewell(t, p, c.node)
		if err := c.tell(); err != nil {
			t.Errorf("what it says of itself: %v", err)
		}
		pass(writeTimeout)
		if !p.over() {
			t.Error("its poll goes on for ever")
		}
		if n := m.c.snap.Load(); len(n.nodes) != 0 || len(m.c.sessions) != 0 {
			t.Errorf("%d nodes, %d sessions", len(n.nodes), len(m.c.sessions))
		}
	})
}

func expectFarewell(t *testing.T, p *poll, k key.NodePublic) {
	t.Helper()
	fs := p.got()
	if len(fs) == 0 {
		t.Fatal("it is told nothing")
	}
	n := fs[len(fs)-1].Node
	if n == nil || n.Key != k || !n.Expired || n.KeyExpiry.IsZero() || !n.KeyExpiry.Before(time.Now()) || len(n.Addresses) != 0 || fs[len(fs)-1].PacketFilters["base"] == nil {
		t.Errorf("it is told %+v", fs[len(fs)-1])
	}
}

func TestRemovedWhileStreaming(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c, peer := m.member("c"), m.member("peer")
		p, w := c.stream(), peer.stream()
		pass(time.Second)
		p.got()
		_, err := m.c.Remove(t.Context(), "c")
		m.must(err)
		pass(0)
		if w.now().peer(c.node) != nil || !m.isGone(c.node) || m.c.Admits(c.node) {
			t.Error("its peers, or the relay, do not hear of it")
		}
		expectFarewell(t, p, c.node)
		peer.check(w, "after a removal")
		if res := c.mustRegister(); res.AuthURL != "" || m.node(c.node) != nil {
			t.Errorf("it registers with the key that was removed, and is answered %+v", res)
		}
		pass(writeTimeout)
		if !p.over() {
			t.Error("its poll goes on for ever")
		}
		m.invariants()
	})
}

// A node that got another key while its poll went on, and never came back, is
// offline like any other.
func TestRekeyedAndGone(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.member("c", ephemeral)
		p := c.stream()
		pass(time.Second)
		old := c.node
		c.node = key.NewNode().Public()
		c.mustRegister(withAuth(m.invite(ephemeral)))
		pass(0)
		expectFarewell(t, p, old)
		c.hangUp()
		pass(writeTimeout + offlineAfter + time.Second)
		if n := m.node(c.node); n.Online {
			t.Error("it is online for ever")
		}
		pass(ephemeralAfter)
		if m.node(c.node) != nil {
			t.Error("it is a member for ever")
		}
	})
}

// An update with nothing new is no write and wakes nobody, and one with news
// does not disturb the node's own poll.
func TestUpdates(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c, peer := m.member("c"), m.member("peer")
		c.endpoints = endpoints("192.0.2.1:41641", "[2001:db8::1]:41641")
		p, w := c.stream(), peer.stream()
		pass(time.Second)
		p.got()
		w.got()
		gen, saves, changes := m.c.snap.Load().gen, m.disk.count(LedgerFile), m.changes.Load()
		for range 10 {
			c.mustTell()
			c.mustRegister()
			m.client("stranger", "192.0.2.9").ask()
		}
		pass(time.Second)
		if g := m.c.snap.Load().gen; g != gen || m.disk.count(LedgerFile) != saves || m.changes.Load() != changes+10 {
			t.Errorf("%d snapshots, %d writes, %d changes for nothing", g-gen, m.disk.count(LedgerFile)-saves, m.changes.Load()-changes)
		}
		c.endpoints = c.endpoints[:1]
		c.mustTell()
		pass(time.Second)
		if fs := p.got(); len(fs) != 0 || p.over() {
			t.Errorf("its own poll: %d messages, over %v", len(fs), p.over())
		}
		if fs := w.got(); len(fs) != 1 || len(fs[0].PeersChangedPatch) != 1 || m.disk.count(LedgerFile) != saves {
			t.Errorf("its peer heard %d messages; %d writes", len(fs), m.disk.count(LedgerFile)-saves)
		}
		c.host.Hostname = "other"
		c.mustTell()
		pass(time.Second)
		if fs := p.got(); len(fs) != 1 || fs[0].Node == nil || fs[0].Node.Name != "other."+domain+"." {
			t.Errorf("its own poll: %+v", fs)
		}
		if m.disk.count(LedgerFile) != saves+1 {
			t.Errorf("%d writes for a name", m.disk.count(LedgerFile)-saves)
		}
		m.invariants()
	})
}

// An update whose client has gone on meanwhile is old news.
func TestStaleUpdate(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.member("c")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r := c.about()
		r.OmitPeers, r.Endpoints = true, endpoints("192.0.2.1:1")
		for range 20 {
			if err := m.c.lite(ctx, httptest.NewRecorder(), m.node(c.node), r); err == nil {
				t.Error("it was taken")
			}
		}
		synctest.Wait()
		if n := m.node(c.node); len(n.Endpoints) != 0 {
			t.Errorf("endpoints %v", n.Endpoints)
		}
	})
}

// Nobody speaks for another's node.
func TestForeignMap(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c, thief := m.member("c"), m.client("thief", "192.0.2.9")
		p := c.stream()
		pass(time.Second)
		thief.node = c.node
		for _, edit := range []func(*tailcfg.MapRequest){
			func(r *tailcfg.MapRequest) { r.Stream = true }, func(r *tailcfg.MapRequest) { r.OmitPeers = true }, func(*tailcfg.MapRequest) {},
		} {
			r := thief.about()
			edit(r)
			if code, body, err := thief.call(context.Background(), "/machine/map", r); err != nil || code != http.StatusForbidden {
				t.Errorf("%d %s %v", code, body, err)
			}
		}
		if m.node(c.node).Disco != c.disco || p.over() {
			t.Error("the thief was heard")
		}
	})
}
