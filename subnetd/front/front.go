// Package front is the one listener for the web of this router and of the devices that
// it serves: the firewall brings there what is meant for the ports of the web at their
// addresses in the mesh (host.Front). It knows no plan and no engine: it is told.
//
//	a connection  listen.go    what was meant, from whom, TLS or not; bounds
//	              certs.go     a certificate for the names that are called
//	a request     route.go     by what was meant and by Host: page, drop, ca, a device
//	              proxy.go     a device is asked, and told who calls
//
// The kernel has asked the policy when a connection began; here it is asked again, and
// what it does not let any more is closed.
package front

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/quota"
)

const (
	mostConns   = 256 // at once
	connsEach   = 64  // of them from one address
	headTimeout = 10 * time.Second
	idleTimeout = 2 * time.Minute
	mostHeader  = 64 << 10         // bytes
	retry       = 10 * time.Second // after an address could not be had
)

// Config is what a Server needs.
type Config struct {
	// Page answers for this router itself, Drop and CA for their names below its own. Nil:
	// there is none. Who sent them a request they learn by From.
	Page, Drop, CA http.Handler
	// Leaf makes a certificate for names, with its key, for so long.
	Leaf func(names []string, life time.Duration) (*tls.Certificate, error)
	// Who is the user behind an address of the mesh; not ok: nobody that can be told.
	Who func(netip.Addr) (Caller, bool)
	// Taken is told that another program has the port: it should be another one.
	Taken func(port uint16)
	// Trouble is told what is wrong now; "": nothing.
	Trouble func(text string)
	Now     func() time.Time
	Log     *slog.Logger
}

// Caller is a user of the mesh.
type Caller struct {
	Login   string
	Name    string // as people say it
	Picture string // URL; "": none
}

// Settings is what a Server shall do. The zero Settings: nothing.
type Settings struct {
	Port uint16       // where it is brought to
	Own  []netip.Addr // our mesh addresses
	// Home is who may call whatever the rules say: the LANs, and this machine.
	Home  []netip.Prefix
	Rules []mesh.Rule // what members may, by what was meant
	// Names are those of this router, fully qualified: of its page, its drop, its CA, and
	// its own.
	Names Names
	Sites []Site
}

// Names of this router, in lower case without dots at their ends.
type Names struct{ Page, Drop, CA, Self string }

// all are those of one certificate.
func (n Names) all() []string {
	return slices.DeleteFunc([]string{n.Page, n.Drop, n.CA, n.Self}, func(s string) bool { return s == "" })
}

// Site is a device that this router serves.
type Site struct {
	Names  []string         // the first one is its address in a browser
	Scheme string           // "http" or "https", as it speaks itself
	Port   uint16           // at which it does
	Maps   []host.DeviceMap // where it is, by family
	Doors  []netip.AddrPort // where it is called
}

func (s *Site) equal(o *Site) bool {
	return slices.Equal(s.Names, o.Names) && s.Scheme == o.Scheme && s.Port == o.Port && slices.Equal(s.Maps, o.Maps)
}

// Server is the listener, a task.
type Server struct {
	cfg  Config
	http *http.Server
	tls  *tls.Config
	ways *http.Transport // to devices
	// buffers are of what is on its way from them.
	buffers sync.Pool
	certs   certs
	meant   func(*net.TCPConn) (netip.AddrPort, error) // by conntrack, but for tests
	now     atomic.Pointer[inForce]
	wake    chan struct{} // one slot: look at now again
	conns   quota.Conns

	mu    sync.Mutex // guards all below
	open  map[*conn]struct{}
	asked map[netip.Addr]time.Time // when a device was last connected to for somebody
}

type inForce struct {
	Settings
	doors map[netip.AddrPort]*Site // nil: this router itself
}

// New gives a Server that does nothing before Set.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, meant: meant, wake: make(chan struct{}, 1), open: map[*conn]struct{}{}, asked: map[netip.Addr]time.Time{}}
	s.now.Store(&inForce{})
	s.certs = certs{leaf: cfg.Leaf, now: cfg.Now, trouble: cfg.Trouble, have: map[string]kept{}}
	s.tls = &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: s.certificate}
	s.ways = s.transport()
	s.http = &http.Server{
		Handler: s, ConnContext: connected,
		ReadHeaderTimeout: headTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: mostHeader,
		ErrorLog: log.New(io.Discard, "", 0), // strangers shall not fill the log
	}
	return s
}

func (s *Server) String() string { return "front" }

// Set replaces what the Server shall do, and closes what shall not be any more. It does
// not block.
func (s *Server) Set(set Settings) {
	next := &inForce{Settings: set, doors: map[netip.AddrPort]*Site{}}
	for _, a := range set.Own {
		next.doors[netip.AddrPortFrom(a, portHTTP)], next.doors[netip.AddrPortFrom(a, portHTTPS)] = nil, nil
	}
	for i := range set.Sites {
		for _, at := range set.Sites[i].Doors {
			next.doors[at] = &set.Sites[i]
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.now.Swap(next)
	for c := range s.open {
		if site, ok := next.lets(c.from, c.at); !ok || !same(site, c.site) {
			_ = c.Conn.Close() // its Close follows from that
		}
	}
	if !slices.EqualFunc(was.Sites, next.Sites, func(a, b Site) bool { return a.equal(&b) }) {
		s.ways.CloseIdleConnections()
		clear(s.asked)
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Asked reports whether somebody's request was the reason to call a device at an address
// of the LAN within that time: it may sleep.
func (s *Server) Asked(at netip.Addr, within time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.asked[at]
	return ok && s.cfg.Now().Sub(last) <= within
}

func (s *Server) asks(at netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[at] = s.cfg.Now()
}

func same(a, b *Site) bool { return a == nil && b == nil || a != nil && b != nil && a.equal(b) }

// lets says whom somebody calls, and whether he may.
func (f *inForce) lets(from netip.Addr, at netip.AddrPort) (*Site, bool) {
	site, ok := f.doors[at]
	if !ok {
		return nil, false
	}
	home := slices.ContainsFunc(f.Home, func(p netip.Prefix) bool { return p.Contains(from) })
	return site, home || may(f.Rules, from, at)
}

// may reports whether rules let TCP pass.
func may(rules []mesh.Rule, from netip.Addr, to netip.AddrPort) bool {
	const tcp = 6
	return slices.ContainsFunc(rules, func(r mesh.Rule) bool {
		return (len(r.Protos) == 0 || slices.Contains(r.Protos, tcp)) &&
			slices.ContainsFunc(r.Srcs, func(s mesh.Range) bool { return s.Contains(from) }) &&
			slices.ContainsFunc(r.Dsts, func(d mesh.Dest) bool {
				return d.Range.Contains(to.Addr()) && d.Ports.First <= to.Port() && to.Port() <= d.Ports.Last
			})
	})
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	return s.serve(ctx)
}
