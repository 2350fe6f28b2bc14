package ingress

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// stub is one end of a connection that nobody talks over.
type stub struct {
	net.Conn
	from   net.Addr
	closed atomic.Bool
}

func (s *stub) RemoteAddr() net.Addr { return s.from }
func (s *stub) Close() error         { s.closed.Store(true); return nil }

func stubFrom(addr string) *stub {
	return &stub{from: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 1))}
}

func TestSources(t *testing.T) {
	for _, tt := range []struct{ addr, want string }{
		{"192.0.2.1", "192.0.2.1"},
		{"::ffff:192.0.2.1", "192.0.2.1"},
		{"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"},
		{"2001:db8:1:2::", "2001:db8:1:2::"},
		{"fe80::1%eth0", "fe80::"},
	} {
		a := addrOf(stubFrom(tt.addr))
		if got := sourceOf(a); got != netip.MustParseAddr(tt.want) {
			t.Errorf("%s: got %s, want %s", tt.addr, got, tt.want)
		}
	}
	if a := addrOf(&stub{from: &net.UnixAddr{}}); a.IsValid() {
		t.Errorf("a socket file has the address %s", a)
	}
}

// When there is no room, the source with the most loses its oldest.
func TestWhoMakesRoom(t *testing.T) {
	for _, tt := range []struct {
		name   string
		come   []string
		wait   time.Duration // before the last one
		last   string
		closed int // index in come; -1: the last one
	}{
		{"the heaviest", []string{"192.0.2.1", "192.0.2.2", "192.0.2.2"}, 0, "192.0.2.3", 1},
		{"the heaviest, not the oldest", []string{"192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.2"}, 0, "192.0.2.1", 1},
		{"the oldest of equals", []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}, 0, "192.0.2.4", 0},
		{"a site is one source", []string{"192.0.2.1", "2001:db8::1", "2001:db8::2"}, 0, "192.0.2.3", 1},
		{"neighbours are two", []string{"2001:db8:0:1::1", "2001:db8:0:2::1"}, 0, "192.0.2.3", 0},
		{"young ones of one's own stay", []string{"192.0.2.1", "192.0.2.1"}, 0, "192.0.2.1", -1},
		{"old ones of one's own go", []string{"192.0.2.1", "192.0.2.1"}, pendingSafe, "192.0.2.1", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGate(Bounds{Pending: len(tt.come)}, time.Now)
				defer g.shut()
				var stubs []*stub
				for _, from := range tt.come {
					stubs = append(stubs, stubFrom(from))
					if g.admit(stubs[len(stubs)-1]) == nil {
						t.Fatal("refused though there is room")
					}
				}
				time.Sleep(tt.wait)
				last := stubFrom(tt.last)
				if in := g.admit(last) != nil; in != (tt.closed >= 0) || in == last.closed.Load() {
					t.Errorf("the last one: in %t, closed %t", in, last.closed.Load())
				}
				for i, s := range stubs {
					if s.closed.Load() != (i == tt.closed) {
						t.Errorf("%d: closed %t", i, s.closed.Load())
					}
				}
			})
		})
	}
}

func TestEstablishedBounds(t *testing.T) {
	for _, tt := range []struct {
		name   string
		come   []string // the last one is one too many
		closed int
	}{
		{"all together: the heaviest", []string{"192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.3", "192.0.2.4"}, 1},
		{"one source", []string{"192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.2"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGate(Bounds{Established: 4, PerSource: 2}, time.Now)
				defer g.shut()
				var stubs []*stub
				for _, from := range tt.come {
					s := stubFrom(from)
					stubs = append(stubs, s)
					c := g.admit(s)
					c.Established()
					c.Established() // says nothing new
				}
				for i, s := range stubs {
					if s.closed.Load() != (i == tt.closed) {
						t.Errorf("%d: closed %t", i, s.closed.Load())
					}
				}
			})
		})
	}
}

// A source may come often, but not always; others do not notice, loopback may.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(Bounds{Rate: 10, Burst: 100}, time.Now)
		defer g.shut()
		come := func(from string, n int) (in int) {
			for range n {
				if c := g.admit(stubFrom(from)); c != nil {
					in++
					c.Close()
				}
			}
			return in
		}
		if in := come("192.0.2.1", 1000); in != 100 {
			t.Errorf("%d at once", in)
		}
		if in := come("192.0.2.2", 1); in != 1 {
			t.Error("another one is refused")
		}
		if in := come("2001:db8::1", 70) + come("2001:db8::2", 70); in != 100 {
			t.Errorf("%d from one site", in)
		}
		time.Sleep(3 * time.Second)
		if in := come("192.0.2.1", 1000); in != 30 {
			t.Errorf("%d after three seconds", in)
		}
		time.Sleep(time.Hour)
		if in := come("192.0.2.1", 1000); in != 100 {
			t.Errorf("%d after an hour", in)
		}
		if in := come("127.0.0.1", 1000) + come("::1", 1000) + come("::ffff:127.0.0.1", 1000); in != 3000 {
			t.Errorf("%d from ourselves", in)
		}
	})
}

// However many sources there are, few are remembered, and those in use always.
func TestSourcesBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(Bounds{Burst: 1}, time.Now)
		defer g.shut()
		stays := g.admit(stubFrom("192.0.2.1"))
		for i := range 3 * maxIdle {
			c := g.admit(stubFrom(fmt.Sprintf("2001:db8:%x:%x::1", i>>8, i&0xff)))
			c.Close()
		}
		if n := len(g.sources); n != maxIdle+1 {
			t.Errorf("%d sources are remembered", n)
		}
		if g.admit(stubFrom("192.0.2.1")) != nil {
			t.Error("who is here was forgotten")
		}
		if g.admit(stubFrom(fmt.Sprintf("2001:db8:%x:%x::1", (3*maxIdle-1)>>8, (3*maxIdle-1)&0xff))) != nil {
			t.Error("who has just left was forgotten")
		}
		stays.Close()
	})
}

// After any walk the books are right: a slow count says the same.
func TestWalk(t *testing.T) {
	for seed := range uint64(5) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			b := Bounds{Pending: 8, Established: 10, PerSource: 4, Rate: 5, Burst: 20}
			g := newGate(b, time.Now)
			var conns []*conn
			for range 500 {
				switch k := rnd.IntN(10); {
				case k < 5:
					if c := g.admit(stubFrom(fmt.Sprintf("192.0.2.%d", rnd.IntN(6)))); c != nil {
						conns = append(conns, c)
					}
				case k < 7 && len(conns) > 0:
					conns[rnd.IntN(len(conns))].Established()
				case k < 9 && len(conns) > 0:
					conns[rnd.IntN(len(conns))].Close()
				default:
					time.Sleep(time.Duration(rnd.Int64N(int64(5 * time.Second))))
					synctest.Wait()
				}
				audit(t, g, conns, b)
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
			g.shut()
			for _, c := range conns {
				if !c.Conn.(*stub).closed.Load() {
					t.Error("not closed at the end")
				}
			}
			if s := g.stats(); s.Pending+s.Established != 0 {
				t.Errorf("%+v at the end", s)
			}
		})
	}
}

func audit(t *testing.T, g *gate, conns []*conn, b Bounds) {
	s := g.stats()
	g.mu.Lock()
	defer g.mu.Unlock()
	counts := map[netip.Addr]*[2]int{}
	var all [2]int
	for _, c := range conns {
		if open := !c.Conn.(*stub).closed.Load(); open != (c.place != nil) {
			t.Errorf("a connection is open %t, and has a place %t", open, c.place != nil)
		} else if open {
			a := sourceOf(addrOf(c.Conn))
			if counts[a] == nil {
				counts[a] = new([2]int)
			}
			counts[a][c.room]++
			all[c.room]++
		}
	}
	if s.Pending != all[pending] || s.Established != all[established] {
		t.Errorf("%+v, counted %v", s, all)
	}
	if all[pending] > b.Pending || all[established] > b.Established {
		t.Errorf("over the bounds: %v", all)
	}
	for a, src := range g.sources {
		n := counts[a]
		if n == nil {
			n = new([2]int)
		}
		if src.conns != *n {
			t.Errorf("%s has %v, counted %v", a, src.conns, *n)
		}
		if idle := *n == [2]int{}; idle != (src.idle != nil) {
			t.Errorf("%s with %v is idle %t", a, *n, src.idle != nil)
		}
		if n[established] > b.PerSource {
			t.Errorf("%s has %v", a, *n)
		}
	}
}
