// Package relay carries packets between members who find no direct way to each
// other: a DERP server as stock clients expect it, and an answerer for STUN.
//
// How a packet goes: the reader of the sender's connection (read.go) takes a
// frame off the stream, finds the seat of the key it is for without a lock, and
// puts it into the outbox (outbox.go) of the connection that sits there. The
// writer of that connection (write.go) wakes up, takes what has gathered, as
// much as fits in one TLS record, and writes it at once.
//
// Nobody waits for anybody: a full outbox drops the oldest packet of the sender
// who has the most in it, so that neither a slow reader nor a flood harms more
// than the pair it is made of.
//
// A seat is the place of one key. It is there while the key has connections,
// and at most one of them is active and gets the key's packets.
package relay

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

const (
	defaultClients = 2048     // connections
	defaultQueued  = 32 << 20 // bytes in all outboxes together
	maxGreeting    = 1024     // connections whose handshake goes on; the port has its own, smaller bound
	maxPerKey      = 4        // connections of one key; one more, and the oldest is closed
)

// crowdedText is shown to its user by a client that gets it.
const crowdedText = "another device is connected to the relay with the same node key, and gets the packets; " +
	"if this node was copied from another, log out here and join again"

var (
	errClosed  = errors.New("the relay has been closed")
	errFull    = errors.New("the relay has all the connections it may have")
	errRefused = errors.New("not a member")
)

// Config is what a relay needs.
type Config struct {
	// Key is the relay's own key. It is not a node's.
	Key key.NodePrivate
	// Admit reports whether the key is a member's at this moment. It is asked
	// once before a connection has a seat and once after, so that a member who
	// is removed meanwhile, with Expel, has none.
	Admit func(key.NodePublic) bool
	// MaxClients bounds the connections. 0: 2048.
	MaxClients int
	// MaxQueued bounds the bytes that wait for all clients together, but for the
	// first 16 KiB of each. None has more than 160 KiB waiting. 0: 32 MiB.
	MaxQueued int
	Now       func() time.Time // nil: time.Now
	Log       *slog.Logger
}

// Server is a relay. It listens nowhere itself: connections come by its Handler.
type Server struct {
	cfg    Config
	public key.NodePublic
	budget budget
	pools  pools

	unknown atomic.Uint32 // packets for a key that is not here

	wg sync.WaitGroup // one for every client, from hijack to the end of both its goroutines

	mu       sync.RWMutex // guards what follows, and every seat's conns; may be held when an outbox is locked
	closed   bool
	open     map[*client]struct{} // all, those without a seat too
	greeting int                  // those of open whose handshake goes on
	seats    map[key.NodePublic]*seat
	past     Stats // of the connections that are no more
}

// seat is the place of one key.
type seat struct {
	key    key.NodePublic
	active atomic.Pointer[client] // nil: the seat is gone, and there may be a new one

	conns []*client // oldest first
	told  []*seat   // whom closed connections of this key have sent to; they are told when the last one leaves
}

// New makes a relay.
func New(cfg Config) *Server {
	if cfg.MaxClients <= 0 {
		cfg.MaxClients = defaultClients
	}
	if cfg.MaxQueued <= 0 {
		cfg.MaxQueued = defaultQueued
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{
		cfg:    cfg,
		public: cfg.Key.Public(),
		open:   map[*client]struct{}{},
		seats:  map[key.NodePublic]*seat{},
	}
	s.budget.limit = int32(min(cfg.MaxQueued, 1<<30))
	return s
}

func (s *Server) String() string { return "relay" }

// Run serves until ctx ends, then closes all connections.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	s.Close()
	return nil
}

// Close ends every connection and waits until nothing of the relay runs. It
// takes no more connections afterwards.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for c := range s.open {
		c.stop()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Expel closes the connections of a key that is no member any more. Admit must
// refuse it already.
func (s *Server) Expel(k key.NodePublic) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.seats[k]; st != nil {
		for _, c := range st.conns {
			c.stop()
		}
	}
}

// Stats is what a relay has done since it was made.
type Stats struct {
	Clients int // connections with a seat, now
	Home    int // those of them that call this relay their home
	Packets int64
	Bytes   int64 // of these packets, without framing
	Dropped int64 // packets: the queue was full, or nobody has the key
}

// Stats sums up.
func (s *Server) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	sum := s.past
	sum.Dropped += int64(s.unknown.Load())
	for _, st := range s.seats {
		for _, c := range st.conns {
			sum.Clients++
			if c.preferred.Load() {
				sum.Home++
			}
			c.out.count(&sum)
		}
	}
	return sum
}

// begin takes a connection in whose handshake has yet to come. The caller owes
// an end.
func (s *Server) begin(c *client) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	if s.greeting >= maxGreeting {
		return errFull
	}
	s.wg.Add(1)
	s.greeting++
	s.open[c] = struct{}{}
	return nil
}

// end is the last that happens to a connection.
func (s *Server) end(c *client) {
	c.stop()
	s.leave(c)
	s.wg.Done()
}

// take gives the connection, whose key is known now, its seat; the packets of
// the key go to it from now on.
func (s *Server) take(c *client) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	st := s.seats[c.key]
	full := len(s.open)-s.greeting >= s.cfg.MaxClients
	switch {
	case st == nil && full:
		return errFull
	case st == nil:
		st = &seat{key: c.key}
		s.seats[c.key] = st
	case len(st.conns) >= 2*maxPerKey:
		return errFull
	case full || len(st.conns) >= maxPerKey:
		st.conns[0].stop() // most likely it is dead; it leaves by itself
	}
	s.greeting--
	c.seat = st
	st.conns = append(st.conns, c)
	st.active.Store(c)
	for _, other := range st.conns[:len(st.conns)-1] {
		c.crowded.Store(true)
		other.crowded.Store(true)
		other.out.tell(crowdedText)
	}
	return nil
}

// spoke makes the connection the active one of its seat. Of several with one
// key, packets go to who spoke last, as he is certainly alive.
func (s *Server) spoke(c *client) {
	if c.seat.active.Load() == c {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(c.seat.conns, c) {
		return
	}
	c.seat.active.Store(c)
	for _, each := range c.seat.conns { // more than one is alive: they are all told
		each.out.tell(crowdedText)
	}
}

// leave takes the connection's seat away.
func (s *Server) leave(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, c)
	st := c.seat
	if st == nil {
		s.greeting--
		return
	}
	st.conns = slices.DeleteFunc(st.conns, func(each *client) bool { return each == c })
	c.out.count(&s.past)
	for _, to := range c.dests {
		if len(st.told) < maxDests && !slices.Contains(st.told, to) {
			st.told = append(st.told, to)
		}
	}
	if len(st.conns) == 0 {
		st.active.Store(nil)
		delete(s.seats, c.key)
		for _, to := range st.told {
			for _, each := range to.conns {
				each.out.gone(st.key, derp.PeerGoneReasonDisconnected)
			}
		}
		return
	}
	newest := st.conns[len(st.conns)-1]
	st.active.CompareAndSwap(c, newest)
	if len(st.conns) == 1 {
		newest.crowded.Store(false)
		newest.out.tell("")
	}
}

// find looks a key's seat up. nil: nobody has the key.
func (s *Server) find(k key.NodePublic) *seat {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.seats[k]
}

// below is the connection under TLS. To close it waits for nobody, while TLS
// wants to say farewell.
func below(c net.Conn) net.Conn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn()
	}
	return c
}
