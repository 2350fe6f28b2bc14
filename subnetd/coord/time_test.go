package coord

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// A node whose poll ended is online for ten seconds more: reconnects are no news.
func TestOfflineGrace(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c, peer := m.member("c"), m.member("peer")
		w := peer.stream()
		p := c.stream()
		pass(time.Minute)
		w.got()
		for _, away := range []time.Duration{0, time.Second, offlineAfter - time.Millisecond} {
			p.cancel()
			pass(away)
			p = c.stream()
			pass(time.Second)
			if fs := w.got(); len(fs) != 0 {
				t.Errorf("away for %v its peer hears %+v", away, fs[0])
			}
		}
		p.cancel()
		pass(0)
		left := time.Now()
		pass(offlineAfter + 10*time.Millisecond)
		fs := w.got()
		if len(fs) != 1 || len(fs[0].PeersChangedPatch) != 1 {
			t.Fatalf("away for ten seconds its peer hears %+v", fs)
		}
		if p := fs[0].PeersChangedPatch[0]; *p.Online || !p.LastSeen.Equal(left) {
			t.Errorf("its peer hears of online %v, last seen %v; it left at %v", *p.Online, p.LastSeen, left)
		}
		if n := m.c.Nodes()[0]; n.Online || !n.LastSeen.Equal(left) {
			t.Errorf("the owner sees %+v", n)
		}
		peer.check(w, "offline")
		c.stream()
		pass(time.Second)
		peer.check(w, "online")
	})
}

func TestEphemeral(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		stays, e := m.member("stays"), m.member("e", ephemeral)
		p := e.stream()
		w := stays.stream()
		pass(time.Hour)
		if m.node(e.node) == nil {
			t.Fatal("removed while it was online")
		}
		p.cancel()
		pass(ephemeralAfter - time.Second)
		p = e.stream()
		pass(time.Hour)
		if m.node(e.node) == nil {
			t.Fatal("removed though it came back in time")
		}
		p.cancel()
		pass(ephemeralAfter + time.Second)
		if m.node(e.node) != nil || !m.isGone(e.node) || w.now().peer(e.node) != nil {
			t.Error("it is there for ever")
		}
		never := m.member("never", ephemeral) // registers, and does no more
		pass(returnWithin + ephemeralAfter)
		if m.node(never.node) != nil {
			t.Error("one that never came is there for ever")
		}
		if m.node(stays.node) == nil {
			t.Error("one that is not ephemeral was removed")
		}
		m.invariants()
	})
}

// A key ends at its time, with nobody asking: for its node, its peers and the relay.
func TestExpiry(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c, peer := m.member("c"), m.member("peer")
		p, w := c.stream(), peer.stream()
		pass(time.Second)
		_, err := m.c.Expire(t.Context(), "c", 10*time.Hour)
		m.must(err)
		pass(time.Second)
		end := m.node(c.node).Expiry
		if n := w.now().peer(c.node); !n.KeyExpiry.Equal(end) || n.Expired {
			t.Errorf("its peer sees %v, expired %v", n.KeyExpiry, n.Expired)
		}
		saves := m.disk.count(LedgerFile)
		pass(10*time.Hour - 2*time.Second)
		if !m.c.Admits(c.node) || m.isGone(c.node) || w.now().peer(c.node) == nil {
			t.Error("over too early")
		}
		pass(3 * time.Second)
		if m.c.Admits(c.node) || !m.isGone(c.node) || w.now().peer(c.node) != nil {
			t.Error("the relay or its peers do not hear of it")
		}
		if s := p.now(); !s.Self.Expired || len(s.Peers) != 0 || p.over() {
			t.Errorf("its own poll says %+v", s.Self)
		}
		if n := m.disk.count(LedgerFile) - saves; n != 0 {
			t.Errorf("%d writes because time passed", n)
		}
		if len(m.gone) != 1 {
			t.Errorf("the relay hears %d times", len(m.gone))
		}
		_, err = m.c.Expire(t.Context(), "c", 0)
		m.must(err)
		if _, err := m.c.Expire(t.Context(), "c", -1); !errors.As(err, new(BadRequest)) {
			t.Errorf("expiry in the past: %v", err)
		}
		_, err = m.c.Expire(t.Context(), "peer", 0)
		m.must(err)
		if pass(0); !m.isGone(peer.node) {
			t.Error("the relay does not hear of a key that is over at once")
		}
	})
}

// After our own restart, who was online counts as it for half a minute, and its
// peers go on using it; who then is not back was offline all the time.
func TestRestartGrace(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c, peer, off := m.member("c"), m.member("peer"), m.member("off", ephemeral)
		c.endpoints = endpoints("192.0.2.1:41641")
		c.stream()
		peer.stream()
		pass(time.Minute / 2)
		m = m.restart()
		w := peer.at(m).stream()
		pass(time.Second)
		got := w.now().peer(c.node)
		if got == nil || !*got.Online || got.DiscoKey != c.disco || got.HomeDERP != 900 || len(got.Endpoints) != 1 {
			t.Errorf("its peer is told %+v", got)
		}
		w.got()
		back := c.at(m)
		p := back.stream()
		pass(returnWithin)
		if fs := w.got(); len(fs) != 0 {
			t.Errorf("its return is news: %+v", fs[0])
		}
		p.cancel()
		m = m.restart()
		w = peer.at(m).stream()
		if pass(returnWithin - time.Second); !*w.now().peer(c.node).Online {
			t.Error("offline too early")
		}
		if pass(2 * time.Second); *w.now().peer(c.node).Online {
			t.Error("online for ever")
		}
		pass(ephemeralAfter)
		if m.node(off.node) != nil {
			t.Error("an ephemeral node outlived two restarts")
		}
		m.invariants()
	})
}

// Hints are written soon for what peers need, seldom else, and at the end.
func TestHints(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.member("c")
		c.stream()
		pass(time.Minute)
		n := m.disk.count(hintsFile)
		if n == 0 || n > 2 {
			t.Errorf("%d writes for one that joined", n)
		}
		for i := range 50 { // the address changes
			c.endpoints = endpoints("192.0.2.1:41641", "192.0.2.2:41641")[i%2 : i%2+1]
			c.mustTell()
			pass(time.Minute)
		}
		if got := m.disk.count(hintsFile); got != n {
			t.Errorf("%d writes for addresses", got-n)
		}
		for range 600 { // a client in a loop
			c.disco = key.NewDisco().Public()
			c.mustTell()
			pass(time.Second)
		}
		if got := m.disk.count(hintsFile) - n; got < hintsBurst/2 || got > hintsBurst+3 {
			t.Errorf("%d writes in ten minutes", got)
		}
		n = m.disk.count(hintsFile)
		c.mustTell()
		pass(time.Second)
		m.stop()
		if got := m.disk.count(hintsFile) - n; got != 1 {
			t.Errorf("%d writes at the end", got)
		}
		m = start(t, m.disk)
		if n := m.node(c.node); n.Disco != c.disco || len(n.Endpoints) != 1 {
			t.Errorf("after a restart it is at %v with %v", n.Endpoints, n.Disco)
		}
		n = m.disk.count(hintsFile)
		pass(time.Second)
		m.stop()
		if got := m.disk.count(hintsFile) - n; got != 0 {
			t.Errorf("%d writes though nothing was new", got)
		}
	})
}

// due and settle agree, whatever the state: else the clock's goroutine would spin.
func TestDueIsSettled(t *testing.T) {
	now := time.Now()
	for _, n := range []node{
		{live: live{Online: true, left: now.Add(-offlineAfter)}},
		{live: live{Online: true, left: now.Add(-ephemeralAfter)}, record: record{Ephemeral: true}},
		{live: live{left: now.Add(-ephemeralAfter)}, record: record{Ephemeral: true, Expiry: now}},
		{live: live{Online: true, left: now.Add(-time.Hour)}, record: record{Expiry: now.Add(-time.Second)}},
		{live: live{Online: true}, record: record{Expiry: now}},
	} {
		n.ID, n.shown = 1, &shown{node: &tailcfg.Node{}}
		s := &snapshot{nodes: map[tailcfg.NodeID]*node{1: &n}, byKey: map[key.NodePublic]*node{}}
		if due, _ := s.due(now); !due {
			t.Fatalf("nothing is due of %+v", n)
		}
		d := s.draft(now)
		if err := errors.Join(d.settle(), d.clear()); err != nil {
			t.Fatal(err)
		}
		for _, n := range d.nodes {
			d.show(n, nil, domain)
		}
		if due, _ := d.due(now); due {
			t.Errorf("something is due of %+v after it was settled", n)
		}
	}
}

// The clock was wrong and is set right: what then is over is seen soon.
func TestClockJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var behind clock
		behind.by.Store(int64(50 * 365 * 24 * time.Hour))
		m := startAt(t, newDisk(), behind.now)
		c := m.member("c")
		_, err := m.c.Expire(t.Context(), "c", 24*time.Hour)
		m.must(err)
		pass(time.Minute)
		behind.by.Store(0)
		pass(time.Minute + time.Second)
		if !m.isGone(c.node) {
			t.Error("a key is good though its time is long over")
		}
	})
}
