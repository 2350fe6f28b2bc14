// Package dns answers for the names of the mesh, and brings other questions to
// those who know. How one flows:
//
//	listen   a datagram, or a frame of a TCP connection, on an address of ours
//	limit    from the home or a member, and not more than its share; else silence
//	message  parsed, or refused in the protocol's words
//	zone     pure: an answer of our own, or who is to be asked
//	cache    what was asked a moment ago; who asks the same meanwhile, waits
//	forward  the resolvers in turn, by sockets that never go through the mesh
//	         unless the resolver is in it; their answers are checked, and passed
//	         on as they came but for identity, time to live and EDNS
//
// It recurses for nobody and validates nothing: that is what the resolvers do. A
// private address in an answer of theirs is passed on; whether it may be there
// is the owner's choice, made at his resolver. Resolvers are asked by UDP and TCP
// only: one that is known by a URL (DNS over HTTPS or TLS) is left out, in words.
package dns

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	"subnetd/subnetd/quota"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	mostForwards    = 256  // questions that wait for resolvers
	mostPerSource   = 64   // of them of one source; this machine asks for the whole home
	maxDatagram     = 1232 // bytes; fits every path, and the mesh's MTU of 1280 (DNS flag day 2020)
	smallDatagram   = 512  // bytes; without EDNS: RFC 1035, 2.3.4
	mostQuery       = 4096 // bytes of a question by TCP
	noLimit         = 65535
	portOfResolvers = 53
)

// Config is what a Server needs.
type Config struct {
	// ResolvConf are files that name the system's resolvers; the first that is
	// there counts.
	ResolvConf []string
	Mark       int // of the sockets to resolvers outside of the mesh; 0: none
	Now        func() time.Time
	Random     func() uint16 // identities of questions; strangers must not guess them
	// Trouble is told what is wrong with the listening, "" when nothing is any more.
	Trouble func(text string)
}

// Settings is what a Server shall do. The zero Settings: nothing.
type Settings struct {
	Zone   *Zone
	Listen []netip.AddrPort
	// Home and Mesh are who may ask, besides this machine by loopback.
	Home, Mesh []netip.Prefix
	Through    []netip.Prefix // resolvers in here are asked through the mesh
	// Unmarked: what this router itself sends takes a way of the owner's choice,
	// and so do our questions.
	Unmarked bool
}

// Server is the answerer.
type Server struct {
	cfg      Config
	limit    *limiter
	forwards *forwarder
	now      atomic.Pointer[inForce]
	wake     chan struct{} // one slot: look at now again
	conns    quota.Conns
}

// inForce is Settings prepared for looking things up.
type inForce struct {
	Settings
	sources sources
}

// New gives a Server that does nothing before Set.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, limit: newLimiter(cfg.Now), forwards: newForwarder(cfg), wake: make(chan struct{}, 1)}
	s.now.Store(&inForce{Settings: Settings{Zone: NewZone(Names{})}})
	return s
}

func (s *Server) String() string { return "names" }

// Set replaces what the Server shall do. It does not block.
func (s *Server) Set(set Settings) {
	if set.Zone == nil {
		set.Zone = NewZone(Names{})
	}
	s.now.Store(&inForce{Settings: set, sources: sourcesOf(set)})
	s.forwards.setTo(set)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Ask answers a question that a member sent by other means than a datagram; nil
// if it gets none. The answer has any size.
func (s *Server) Ask(ctx context.Context, msg []byte, from netip.Addr) []byte {
	t, ok := s.begin(msg, nil, from, Member, noLimit)
	if !ok || t.done != nil {
		return t.done
	}
	return s.wait(ctx, &t)
}

// turn is a question on its way to an answer.
type turn struct {
	query query
	from  netip.Addr
	size  int              // of the answer at most
	done  []byte           // the answer, if it needs nobody
	to    []netip.AddrPort // else: whom to ask
}

// begin does all that needs no waiting. Without ok there is no answer. It uses
// buf for the answer.
func (s *Server) begin(msg, buf []byte, from netip.Addr, who Asker, size int) (t turn, ok bool) {
	if who == Stranger || !from.IsLoopback() && !s.limit.allow(from) {
		return t, false
	}
	q, rcode, ok := parse(msg)
	if !ok {
		return t, false
	}
	t = turn{query: q, from: from, size: q.limit(size)}
	if rcode != dnsmessage.RCodeSuccess {
		t.done = q.refusal(buf, rcode)
		return t, true
	}
	v := s.now.Load().Zone.decide(q.name, q.question.Type, who)
	if v.kind != forward {
		t.done = q.answer(buf, &v, t.size)
		return t, true
	}
	if t.to = s.forwards.resolvers(&v); len(t.to) == 0 {
		t.done = q.refusal(buf, dnsmessage.RCodeServerFailure)
	} else if msg, age := s.forwards.cached(&q, t.to); msg != nil {
		t.done = q.told(buf, msg, age, t.size)
	}
	return t, true
}

// wait is finish for those who have no place to wait in yet.
func (s *Server) wait(ctx context.Context, t *turn) []byte {
	if !s.limit.begin(t.from) {
		return t.query.refusal(nil, dnsmessage.RCodeServerFailure)
	}
	defer s.limit.end(t.from)
	return s.finish(ctx, t)
}

// finish asks others.
func (s *Server) finish(ctx context.Context, t *turn) []byte {
	msg, age := s.forwards.ask(ctx, &t.query, t.to)
	return t.query.told(nil, msg, age, t.size)
}

// told is the answer by what a resolver said; nothing is a failure.
func (q *query) told(buf, msg []byte, age time.Duration, size int) []byte {
	if len(msg) == 0 {
		return q.refusal(buf, dnsmessage.RCodeServerFailure)
	}
	return q.pass(buf, msg, age, size)
}
