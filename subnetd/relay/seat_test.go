package relay

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// Of two connections with one key the newer one gets the packets, and the older
// one is told; when the newer one leaves, the older one gets them again and is
// told that all is well. Peers notice nothing until the last one has left.
func TestTwins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{})
		defer s.Close()
		k := key.NewNode()
		peer, older := joinWire(t, s, key.NewNode()), joinWire(t, s, k)
		older.packet(peer.key.Public(), "I am the older one")
		peer.expectPacket(k, "I am the older one")
		newer := joinWire(t, s, k)
		older.expect(derp.FrameHealth, crowdedText)
		peer.packet(k.Public(), "to the newer one")
		newer.expectPacket(peer.key, "to the newer one")
		if st := s.Stats(); st.Clients != 3 {
			t.Errorf("%+v", st)
		}
		newer.Close()
		older.expect(derp.FrameHealth, "")
		peer.packet(k.Public(), "to the older one")
		older.expectPacket(peer.key, "to the older one")
		older.Close()
		peer.expect(derp.FramePeerGone, string(k.Public().AppendTo(nil))+"\x00")
	})
}

// The older one leaves: the newer one was never told anything, and is not now.
// What the older one has sent is not forgotten.
func TestOlderTwinLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{})
		defer s.Close()
		k := key.NewNode()
		peer, older := joinWire(t, s, key.NewNode()), joinWire(t, s, k)
		older.packet(peer.key.Public(), "hello")
		peer.expectPacket(k, "hello")
		newer := joinWire(t, s, k)
		older.Close()
		synctest.Wait()
		peer.packet(k.Public(), "still to the newer one")
		newer.expectPacket(peer.key, "still to the newer one")
		newer.Close()
		peer.expect(derp.FramePeerGone, string(k.Public().AppendTo(nil))+"\x00")
	})
}

// When both speak, packets go to who spoke last, and both are told, once.
func TestTwinsFight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{})
		defer s.Close()
		k := key.NewNode()
		peer, older := joinWire(t, s, key.NewNode()), joinWire(t, s, k)
		newer := joinWire(t, s, k)
		older.expect(derp.FrameHealth, crowdedText)
		for i := range 5 {
			for j, each := range []*wire{older, newer} {
				each.send(derp.FrameNotePreferred, []byte{1})
				if i == 0 && j == 0 {
					newer.expect(derp.FrameHealth, crowdedText)
				}
				synctest.Wait()
				peer.packet(k.Public(), fmt.Sprint("packet ", i))
				each.expectPacket(peer.key, fmt.Sprint("packet ", i))
			}
		}
		older.Close()
		newer.expect(derp.FrameHealth, "")
	})
}

// One key has few connections: the oldest makes room.
func TestManyTwins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{})
		defer s.Close()
		k := key.NewNode()
		var all []*wire
		for range 3 * maxPerKey {
			all = append(all, joinWire(t, s, k))
			synctest.Wait()
		}
		if st := s.Stats(); st.Clients != maxPerKey {
			t.Errorf("%+v", st)
		}
		all[0].endsSoon()
	})
}

// A full relay takes no newcomers, but members who come back.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{MaxClients: 3})
		defer s.Close()
		k := key.NewNode()
		first := joinWire(t, s, k)
		joinWire(t, s, key.NewNode())
		third := joinWire(t, s, key.NewNode())
		newcomer := dialWire(t, s, key.NewNode())
		newcomer.send(derp.FrameClientInfo, newcomer.info(`{"version":2}`))
		newcomer.ended()
		again := joinWire(t, s, k)
		first.endsSoon()
		synctest.Wait()
		third.packet(k.Public(), "hello")
		again.expectPacket(third.key, "hello")
		third.Close()
		synctest.Wait()
		joinWire(t, s, key.NewNode())
		if st := s.Stats(); st.Clients != 3 {
			t.Errorf("%+v", st)
		}
	})
}

// However many begin a handshake at once, few are in it.
func TestGreetingBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{})
		defer s.Close()
		for range maxGreeting {
			dialWire(t, s, key.NewNode())
		}
		ours, theirs := pipe()
		s.serve(theirs, nil, nil)
		if _, err := ours.Read(make([]byte, 1)); err == nil {
			t.Error("one more is greeted")
		}
		time.Sleep(greetTimeout + time.Second)
		joinWire(t, s, key.NewNode())
	})
}

// The set of those who are told is bounded; who is told, has been sent something.
func TestToldBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Config{})
		defer s.Close()
		a := joinWire(t, s, key.NewNode())
		told := 0
		done := make(chan bool)
		const n = maxDests + 50
		for range n {
			w := joinWire(t, s, key.NewNode())
			a.packet(w.key.Public(), "hello")
			w.expectPacket(a.key, "hello")
			go func() {
				typ, _ := w.frame()
				done <- typ == derp.FramePeerGone
			}()
		}
		a.Close()
		synctest.Wait()
		s.mu.RLock()
		for _, st := range s.seats {
			for _, c := range st.conns {
				go c.out.keepAlive() // for those who are not told
			}
		}
		s.mu.RUnlock()
		for range n {
			if <-done {
				told++
			}
		}
		if told != maxDests {
			t.Errorf("%d were told, want %d", told, maxDests)
		}
	})
}

// Members come, speak and leave in any order: afterwards the relay knows exactly
// those who are there, and everybody gets what is sent to him.
func TestWalk(t *testing.T) {
	for seed := range uint64(3) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			s := newServer(t, Config{})
			defer s.Close()
			keys := []key.NodePrivate{key.NewNode(), key.NewNode(), key.NewNode(), key.NewNode()}
			conns := map[key.NodePublic][]*wire{} // of a key, the active one last
			for step := range 80 {
				k := keys[rnd.IntN(len(keys))]
				mine := conns[k.Public()]
				switch {
				case len(mine) < maxPerKey && rnd.IntN(2) == 0:
					mine = append(mine, joinWire(t, s, k))
				case len(mine) > 0 && rnd.IntN(3) == 0:
					i := rnd.IntN(len(mine))
					mine[i].Close()
					active := i == len(mine)-1
					mine = append(mine[:i:i], mine[i+1:]...)
					if active && len(mine) > 1 { // the newest follows, which is not who spoke last
						synctest.Wait()
						who := s.find(k.Public()).active.Load().conn
						for j, w := range mine {
							if w.peer == who {
								mine = append(append(mine[:j:j], mine[j+1:]...), w)
								break
							}
						}
					}
				case len(mine) > 0:
					i := rnd.IntN(len(mine))
					w := mine[i]
					to := keys[rnd.IntN(len(keys))].Public()
					text := fmt.Sprint("step ", step)
					mine = append(append(mine[:i:i], mine[i+1:]...), w)
					conns[k.Public()] = mine
					w.packet(to, text)
					if there := conns[to]; len(there) > 0 {
						there[len(there)-1].skipTo(w.key, text)
					} else {
						w.skipNotHere(to)
					}
				}
				conns[k.Public()] = mine
				synctest.Wait()
				n := 0
				for _, k := range keys {
					n += len(conns[k.Public()])
					if known := s.find(k.Public()) != nil; known != (len(conns[k.Public()]) > 0) {
						t.Fatalf("seed %d, step %d: known %t", seed, step, known)
					}
				}
				if st := s.Stats(); st.Clients != n {
					t.Fatalf("seed %d, step %d: %+v, want %d clients", seed, step, st, n)
				}
			}
		})
	}
}
