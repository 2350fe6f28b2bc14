package ingress

import (
	"cmp"
	"container/list"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	pendingLife = 30 * time.Second
	// A pending connection that is younger makes no room for another one of its
	// own source: when many clients behind one address come at once, after a
	// restart, those that came first get ahead.
	pendingSafe = 2 * time.Second
	maxIdle     = 4096 // sources without connections that are remembered
)

// Bounds are how much strangers may have of this router. A source is an IPv4
// address, or the 64 bits of IPv6 that a site has. 0 stands for the default.
type Bounds struct {
	Pending     int // connections that have not proved anything yet; 256
	Established int // connections that have; 4096
	PerSource   int // of these, from one source; half of them
	// New connections of one source: so many a second, and so many at once. A
	// client that has lost us opens four at most, so that after a restart five
	// hundred of them behind one address can all come back at once. 100, and
	// 2000. Loopback is not bounded.
	Rate  float64
	Burst int
}

func (b Bounds) orDefault() Bounds {
	b.Pending = cmp.Or(b.Pending, 256)
	b.Established = cmp.Or(b.Established, 4096)
	b.PerSource = cmp.Or(b.PerSource, max(1, b.Established/2))
	b.Rate = cmp.Or(b.Rate, 100)
	b.Burst = cmp.Or(b.Burst, 2000)
	return b
}

// Stats is how the port stands.
type Stats struct {
	Pending, Established int   // connections, now
	Refused              int64 // connections that came too fast, or found no room
	Evicted              int64 // connections closed to make room for others
}

// gate decides who may come in, and who has to leave for it.
type gate struct {
	bounds Bounds
	now    func() time.Time
	exempt func(netip.Addr) bool // from Rate and Burst

	mu       sync.Mutex // guards what follows, and what connections and sources say
	shutting bool
	rooms    [2]list.List // of *conn, oldest first, by conn.room
	sources  map[netip.Addr]*source
	idle     list.List // of *source without connections, the one that left first in front
	refused  int64
	evicted  int64
}

// source is where connections come from.
type source struct {
	addr   netip.Addr
	conns  [2]int // by conn.room
	tokens float64
	filled time.Time
	idle   *list.Element // nil: it has connections
}

const (
	pending = iota
	established
)

func newGate(b Bounds, now func() time.Time) *gate {
	return &gate{bounds: b.orDefault(), now: now, exempt: netip.Addr.IsLoopback, sources: map[netip.Addr]*source{}}
}

// admit makes a pending connection of raw. nil: it has been refused and closed.
func (g *gate) admit(raw net.Conn) *conn {
	c := &conn{Conn: raw, gate: g}
	victim, ok := g.enter(c, addrOf(raw))
	if victim != nil {
		victim.hangUp()
	}
	if !ok {
		c.hangUp()
		return nil
	}
	return c
}

func (g *gate) enter(c *conn, addr netip.Addr) (victim *conn, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.now()
	src := g.source(sourceOf(addr), now)
	defer g.rest(src)    // if it gets no connection
	src.conns[pending]++ // it counts already, so that who has the most is found with it
	if full := g.rooms[pending].Len() >= g.bounds.Pending; full {
		victim = g.heaviest(pending)
		ok = victim.src != src || now.Sub(victim.since) >= pendingSafe
	} else {
		ok = true
	}
	if !ok || g.shutting || !g.exempt(addr) && !src.spend(now, g.bounds) {
		src.conns[pending]--
		g.refused++
		return nil, false
	}
	if victim != nil {
		g.evict(victim)
	}
	c.src, c.since = src, now
	c.place = g.rooms[pending].PushBack(c)
	c.timer = time.AfterFunc(pendingLife, func() { c.Close() })
	return victim, true
}

// establish moves the connection to those that have proved who they are.
func (g *gate) establish(c *conn) (victim *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.place == nil || c.room == established {
		return nil
	}
	c.timer.Stop()
	g.rooms[pending].Remove(c.place)
	c.src.conns[pending]--
	c.src.conns[established]++
	switch {
	case c.src.conns[established] > g.bounds.PerSource:
		victim = g.oldest(established, c.src)
	case g.rooms[established].Len() >= g.bounds.Established:
		victim = g.heaviest(established)
	}
	if victim != nil {
		g.evict(victim)
	}
	c.room = established
	c.place = g.rooms[established].PushBack(c)
	return victim
}

// heaviest is the oldest connection in the room of the source that has the most
// there. The room is not empty.
func (g *gate) heaviest(room int) (c *conn) {
	for e := g.rooms[room].Front(); e != nil; e = e.Next() {
		if each := e.Value.(*conn); c == nil || each.src.conns[room] > c.src.conns[room] {
			c = each
		}
	}
	return c
}

// oldest is the oldest connection of the source in the room. nil: it has none.
func (g *gate) oldest(room int, src *source) *conn {
	for e := g.rooms[room].Front(); e != nil; e = e.Next() {
		if each := e.Value.(*conn); each.src == src {
			return each
		}
	}
	return nil
}

func (g *gate) evict(c *conn) {
	g.evicted++
	g.remove(c)
}

// leave forgets a connection, if it has not been forgotten yet.
func (g *gate) leave(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove(c)
}

func (g *gate) remove(c *conn) {
	if c.place == nil {
		return
	}
	c.timer.Stop()
	g.rooms[c.room].Remove(c.place)
	c.place = nil
	c.src.conns[c.room]--
	g.rest(c.src)
}

// source finds or begins a source. The caller gives it a connection, or rests it.
func (g *gate) source(addr netip.Addr, now time.Time) *source {
	src := g.sources[addr]
	if src == nil {
		src = &source{addr: addr, tokens: float64(g.bounds.Burst), filled: now}
		g.sources[addr] = src
	} else if src.idle != nil {
		g.idle.Remove(src.idle)
		src.idle = nil
	}
	return src
}

// rest notes that the source may have no connections now. Of those the ones that
// left last are remembered.
func (g *gate) rest(src *source) {
	if src.conns != [2]int{} || src.idle != nil {
		return
	}
	src.idle = g.idle.PushBack(src)
	if g.idle.Len() > maxIdle {
		first := g.idle.Remove(g.idle.Front()).(*source)
		delete(g.sources, first.addr)
	}
}

// spend lets one connection pass if the source has not had too many.
func (s *source) spend(now time.Time, b Bounds) bool {
	s.tokens = min(float64(b.Burst), s.tokens+max(0, now.Sub(s.filled).Seconds())*b.Rate)
	s.filled = now
	if s.tokens < 1 {
		return false
	}
	s.tokens--
	return true
}

// shut closes all connections and lets nobody in any more.
func (g *gate) shut() {
	g.mu.Lock()
	g.shutting = true
	var all []*conn
	for room := range g.rooms {
		for e := g.rooms[room].Front(); e != nil; e = e.Next() {
			all = append(all, e.Value.(*conn))
		}
	}
	g.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

func (g *gate) stats() Stats {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Stats{g.rooms[pending].Len(), g.rooms[established].Len(), g.refused, g.evicted}
}

// addrOf is the peer's address; zero, if it is no internet connection.
func addrOf(c net.Conn) netip.Addr {
	a, _ := c.RemoteAddr().(*net.TCPAddr)
	return a.AddrPort().Addr().Unmap().WithZone("")
}

func sourceOf(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.PrefixFrom(a, 64).Masked().Addr()
	}
	return a
}
