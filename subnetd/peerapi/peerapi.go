// Package peerapi is what members ask of this node itself: plain HTTP on our mesh
// addresses, as stock clients speak it (tailscale.com/ipn/ipnlocal, peerapi.go).
// Whoever leaves to the internet through us asks here for names, DNS over HTTP as
// RFC 8484 has it: a member without an answer here could not leave at all.
//
// WireGuard vouches for the source of a connection, so that an address is a
// member. What a browser sends, led here by some page, is refused.
package peerapi

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"subnetd/subnetd/mesh"
	"subnetd/subnetd/quota"

	"golang.org/x/sys/unix"
)

const (
	mostConns     = 256
	mostPerMember = 64               // stock clients open one for each question under way
	mostQuery     = 4096             // bytes of a DNS question
	patience      = 10 * time.Second // with a request and its answer
	idle          = 2 * time.Minute  // that a connection may be without a request; stock clients give up after 90 s
	retry         = 10 * time.Second // after an address could not be had

	dnsType = "application/dns-message" // RFC 8484, 6
)

// Config is what a Server needs.
type Config struct {
	// Ask answers a DNS question of a member; nil: it gets no answer.
	Ask func(ctx context.Context, msg []byte, from netip.Addr) []byte
	// Files answers what a member asks below /v0/put/, as the files that it sends. It sees
	// to deadlines and to who may.
	Files func(w http.ResponseWriter, r *http.Request, from mesh.Node)
	// Taken is told that another program has the port: it should be another one.
	Taken func(port uint16)
	Log   *slog.Logger
}

// Settings is what a Server shall do. The zero Settings: nothing.
type Settings struct {
	Port  uint16
	Own   []netip.Addr // our mesh addresses; empty: no member reaches us
	Peers []mesh.Node
	// Exit: members that the rules let into the internet may leave through us.
	Exit  bool
	Rules []mesh.Rule
}

// Server serves members.
type Server struct {
	cfg   Config
	http  *http.Server
	now   atomic.Pointer[inForce]
	wake  chan struct{} // one slot: look at now again
	conns quota.Conns
}

type inForce struct {
	Settings
	members map[netip.Addr]*mesh.Node
}

// New gives a Server that does nothing before Set.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, wake: make(chan struct{}, 1)}
	s.now.Store(&inForce{})
	s.http = &http.Server{
		Handler: s, ReadTimeout: patience, WriteTimeout: 2 * patience, IdleTimeout: idle, MaxHeaderBytes: 8 << 10,
		ErrorLog: log.New(io.Discard, "", 0),
	}
	return s
}

func (s *Server) String() string { return "peer api" }

// Set replaces what the Server shall do. It does not block.
func (s *Server) Set(set Settings) {
	next := &inForce{Settings: set, members: map[netip.Addr]*mesh.Node{}}
	for i := range set.Peers {
		for _, p := range set.Peers[i].Addresses {
			if p.IsSingleIP() {
				next.members[p.Addr()] = &set.Peers[i]
			}
		}
	}
	s.now.Store(next)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	open := map[netip.AddrPort]net.Listener{}
	var served sync.WaitGroup
	defer func() {
		for _, ln := range open {
			_ = ln.Close()
		}
		_ = s.http.Close()
		served.Wait()
	}()
	var again <-chan time.Time
	told := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		case <-again:
		}
		again = nil
		err := s.listen(ctx, open, &served)
		if err != nil {
			again = time.After(retry)
		}
		if err != nil && !told {
			s.cfg.Log.Warn("members do not reach this node's services", "err", err)
		}
		told = err != nil
	}
}

// listen makes open what is wished now.
func (s *Server) listen(ctx context.Context, open map[netip.AddrPort]net.Listener, served *sync.WaitGroup) error {
	now := s.now.Load()
	for at, ln := range open {
		if at.Port() != now.Port || !slices.Contains(now.Own, at.Addr()) {
			_ = ln.Close()
			delete(open, at)
		}
	}
	for _, a := range now.Own {
		at := netip.AddrPortFrom(a, now.Port)
		if open[at] != nil || now.Port == 0 {
			continue
		}
		lc := net.ListenConfig{Control: early}
		ln, err := lc.Listen(ctx, "tcp", at.String())
		if errors.Is(err, syscall.EADDRINUSE) {
			s.cfg.Taken(now.Port)
		}
		if err != nil {
			return err
		}
		open[at] = ln
		served.Go(func() { _ = s.http.Serve(&members{Listener: ln, s: s}) })
	}
	return nil
}

// early lets a socket have an address that this machine is yet to get.
func early(_, _ string, c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) })
	return errors.Join(err, failed)
}

// members is a listener that only members get through.
type members struct {
	net.Listener
	s *Server
}

func (l *members) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
		if l.s.now.Load().members[from] != nil && l.s.conns.Take(from, mostConns, mostPerMember) {
			return &conn{Conn: c, end: sync.OnceFunc(func() { l.s.conns.Return(from) })}, nil
		}
		_ = c.Close()
	}
}

// conn counts until it is closed.
type conn struct {
	net.Conn
	end func()
}

func (c *conn) Close() error {
	c.end()
	return c.Conn.Close()
}

// ServeHTTP answers one request of a member.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !ours(r) {
		http.Error(w, "this is for members of the mesh only", http.StatusForbidden)
		return
	}
	switch {
	case strings.HasPrefix(r.URL.Path, "/dns-query"):
		s.names(w, r, at.Addr())
	case strings.HasPrefix(r.URL.Path, "/v0/put/"):
		s.files(w, r, at.Addr())
	case r.URL.Path == "/" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		w.WriteHeader(http.StatusOK) // clients look whether we are there
	default:
		http.NotFound(w, r)
	}
}

// ours reports whether a request was made for this node. A page that makes a
// browser send one says so in a header, or calls us by a name of its own.
func ours(r *http.Request) bool {
	if r.Header.Get("Referer") != "" || r.Header.Get("Origin") != "" {
		return false
	}
	if r.Host == "peer" {
		return true
	}
	at, err := netip.ParseAddrPort(r.Host)
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return err == nil && ok && at.Addr().Unmap() == local.AddrPort().Addr().Unmap()
}

// files is for members themselves: what stands behind one has addresses among its, and
// is no user's.
func (s *Server) files(w http.ResponseWriter, r *http.Request, from netip.Addr) {
	n := s.now.Load().members[from]
	if n == nil || !n.Own(from) {
		http.Error(w, "this is for members of the mesh only", http.StatusForbidden)
		return
	}
	s.cfg.Files(w, r, *n)
}

// names is RFC 8484 for who may leave through us.
func (s *Server) names(w http.ResponseWriter, r *http.Request, from netip.Addr) {
	now := s.now.Load()
	if !now.Exit || !MayLeave(now.Rules, from) {
		http.Error(w, "the policy does not let you into the internet through this node", http.StatusForbidden)
		return
	}
	q, status := question(r)
	if status != http.StatusOK {
		http.Error(w, http.StatusText(status), status)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	out := s.cfg.Ask(ctx, q, from)
	if out == nil {
		http.Error(w, "no answer", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", dnsType)
	w.Header().Set("Content-Length", strconv.Itoa(len(out)))
	_, _ = w.Write(out)
}

// question is what a request asks: RFC 8484, 4.1.
func question(r *http.Request) (q []byte, status int) {
	switch r.Method {
	case http.MethodGet:
		text := r.URL.Query().Get("dns")
		if len(text) > base64.RawURLEncoding.EncodedLen(mostQuery) {
			return nil, http.StatusRequestURITooLong
		}
		q, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil || len(q) == 0 {
			return nil, http.StatusBadRequest
		}
		return q, http.StatusOK
	case http.MethodPost:
		if r.Header.Get("Content-Type") != dnsType {
			return nil, http.StatusUnsupportedMediaType
		}
		q, err := io.ReadAll(io.LimitReader(r.Body, mostQuery+1))
		switch {
		case err != nil || len(q) == 0:
			return nil, http.StatusBadRequest
		case len(q) > mostQuery:
			return nil, http.StatusRequestEntityTooLarge
		}
		return q, http.StatusOK
	}
	return nil, http.StatusMethodNotAllowed
}

// MayLeave reports whether rules let a member into the internet, for which the
// first address of each family stands, as with stock clients: 0.0.0.0 and 2000::.
func MayLeave(rules []mesh.Rule, from netip.Addr) bool {
	internet := netip.AddrFrom4([4]byte{})
	if from.Is6() {
		internet = netip.AddrFrom16([16]byte{0x20})
	}
	const dns, tcp = 53, 6
	return slices.ContainsFunc(rules, func(r mesh.Rule) bool {
		return (len(r.Protos) == 0 || slices.Contains(r.Protos, tcp)) &&
			slices.ContainsFunc(r.Srcs, func(s mesh.Range) bool { return s.Contains(from) }) &&
			slices.ContainsFunc(r.Dsts, func(d mesh.Dest) bool {
				return d.Range.Contains(internet) && d.Ports.First <= dns && dns <= d.Ports.Last
			})
	})
}
