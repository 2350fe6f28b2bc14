// Package web is the page's way into the daemon: HTTP for browsers at home and in the
// mesh. It knows no engine: it is given the functions of the local API.
//
//	a connection  listen.go   only at our LAN, mesh and loopback addresses, only from those
//	a request     request.go  Host, origin, kind and size of what is sent
//	who asks      session.go  a password (secret.go, tries.go) or an identity of the mesh
//	              page.go     setup, login, logout
//	answers       files.go    the page itself, to anybody who got here
//	              events.go   what the page shows, live; log.go: the daemon's log
//	              api         everything else
package web

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/quota"
	"subnetd/subnetd/status"
)

const (
	mostConns   = 128 // at once
	connsEach   = 32  // of them from one address
	headTimeout = 5 * time.Second
	readTimeout = 30 * time.Second // a backup comes in by slow radio
	idleTimeout = time.Minute
	mostHeader  = 16 << 10 // bytes

	setupFor = time.Hour // after the start, in which the first password may be set
)

// Config is what a Server needs.
type Config struct {
	Funcs api.Funcs
	Files fs.FS // the page, each file gzipped under its name and ".gz"
	Store Store
	// Member says who of the mesh has an address.
	Member func(netip.Addr) (Member, bool)
	// Given are sockets that were open before us. They are served where Settings has the
	// page, and to the same people.
	Given []net.Listener
	// Login asks this machine whether that user may, ErrNoPassword if anybody could be
	// it. As long as the page has no password of its own, it is that of root. Nil: the
	// page's own is the only one.
	Login func(ctx context.Context, user, password string) error
	// Rest is what Events show beside the snapshot. Whoever knows that it changed
	// calls Look.
	Rest func() Rest
	// Traffic is what the tunnels' interfaces have carried since they were made, by
	// their names. It is asked once a minute, whoever looks: it must cost next to nothing.
	Traffic func() map[string]status.TrafficPoint
	Ring    *Ring
	Version string
	Now     func() time.Time
	Random  io.Reader // good enough for secrets
	Trouble func(text string)
	Log     *slog.Logger
}

// Store keeps what must last.
type Store interface {
	Load(name string, v any) (found bool, err error)
	Save(name string, v any) error
	// Lost is where a damaged file of that name was put aside, "" if none was.
	Lost(name string) string
}

// Member is a node of the mesh.
type Member struct {
	Name  string // fully qualified, without a dot at its end
	User  string // "": nobody's
	Owner bool   // User is who owns this router
	// Router: a LAN speaks with its address, so that who asks is told by a password.
	Router bool
}

// Rest is what of an Event is not in the snapshot. House.Status is left empty.
type Rest struct {
	House   status.House
	Devices []status.Device
	Nodes   []status.HomeNode
}

// Settings is where the page is. The zero Settings: nowhere.
type Settings struct {
	Port uint16
	Only netip.Addr // of our addresses, if valid
	// Home is our addresses on the LANs, each with its network.
	Home  []netip.Prefix
	Mesh  []netip.Addr // our mesh addresses
	Names []string     // by which this router is called, in lower case
}

// Server is the page's server, a task.
type Server struct {
	cfg      Config
	http     *http.Server
	api      http.Handler
	origin   *http.CrossOriginProtection
	boot     string
	began    time.Time
	now      atomic.Pointer[Settings]
	wake     chan struct{} // one slot: look at now again
	conns    quota.Conns
	streams  quota.Conns
	secret   secret
	first    sync.Mutex // one sets the first password at a time
	tries    tries
	sessions sessions
	hub      hub
	traffic  traffic
}

// New gives a Server that is nowhere before Set.
func New(cfg Config) (*Server, error) {
	boot, err := randomText(cfg.Random)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, boot: boot, began: cfg.Now(), wake: make(chan struct{}, 1), origin: http.NewCrossOriginProtection()}
	s.now.Store(&Settings{})
	s.secret.load(cfg.Store)
	s.tries.hashing = make(chan struct{}, 1)
	s.traffic.reset(s.began)
	s.hub = newHub(boot, cfg, &s.traffic)
	s.api = api.Handler(cfg.Funcs, asker)
	s.http = &http.Server{
		Handler: s, ConnContext: s.connected,
		ReadHeaderTimeout: headTimeout, ReadTimeout: readTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: mostHeader,
		ErrorLog: log.New(io.Discard, "", 0), // strangers shall not fill the log
	}
	return s, nil
}

func (s *Server) String() string { return "page" }

// Set replaces where the page is. It does not block.
func (s *Server) Set(set Settings) {
	s.now.Store(&set)
	poke(s.wake)
}

// Behind answers requests that another listener of ours took, from whom it says, at our
// addresses in the mesh: they are answered where Settings has the page there, too.
func (s *Server) Behind(from func(*http.Request) netip.Addr) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		set := s.now.Load()
		e := ends{from: from(r)}
		if len(set.Mesh) > 0 {
			e.at = netip.AddrPortFrom(set.Mesh[0], set.Port)
		}
		if r.Method == http.MethodPost {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(readTimeout))
		}
		s.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), keyEnds, e)))
	})
}

// Look says that Rest changed. It does not block.
func (s *Server) Look() { poke(s.hub.look) }

func poke(slot chan struct{}) {
	select {
	case slot <- struct{}{}:
	default:
	}
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { s.hub.run(ctx) })
	parts.Go(func() { s.traffic.run(ctx, s.cfg.Traffic, s.cfg.Now, s.Look) })
	return s.serve(ctx)
}

// SetPassword makes a password the page's. Whoever logged in by another must again.
func (s *Server) SetPassword(_ context.Context, password string) error {
	return s.setPassword(password)
}

func (s *Server) setPassword(password string) error {
	if err := checkPassword(password); err != nil {
		return api.BadRequest(err)
	}
	s.tries.hashing <- struct{}{}
	defer func() { <-s.tries.hashing }()
	return s.setLocked(password)
}

// setLocked is setPassword for whoever holds the slot of hashing.
func (s *Server) setLocked(password string) error {
	if err := s.secret.set(s.cfg.Store, s.cfg.Random, password); err != nil {
		return err
	}
	s.sessions.end(func(x *session) bool { return x.password })
	return nil
}

func checkPassword(password string) error {
	switch {
	case len(password) > mostPassword:
		return errors.New("the password is too long: 256 bytes at most")
	case len([]rune(password)) < leastPassword:
		return errors.New("the password is too short: at least 8 characters are wanted")
	}
	return nil
}
