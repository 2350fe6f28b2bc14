// Package ingress is the one TCP port on which strangers may speak to this
// router: plain HTTP and TLS side by side, told apart by the first byte.
//
// How a connection goes: the accept loop asks the gate (gate.go), which knows
// how many connections there are and whose, and refuses it or throws another
// one out for it. A goroutine reads its first byte and hands it on, as it is or
// in TLS, to one HTTP/1.1 server. Until then, and until a handler says with the
// connection's method Established() that its peer has proved who it is, the
// connection is pending: there are few of these, they live for seconds, and who
// has the most loses one first.
package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
)

const (
	headerTimeout = 10 * time.Second // for the first byte, for TLS, and for a request's header, each
	idleTimeout   = 15 * time.Second // between two requests
	maxHeader     = 16 << 10         // bytes
	grace         = 5 * time.Second  // for handlers, once their connections are closed
	maxBackoff    = time.Second      // between two tries to accept

	keepAlive = 2 * time.Minute // by TCP; who is established has probes of his own

	recordHandshake = 0x16 // the first byte of TLS (RFC 8446, section 5.1); no HTTP method begins with it
)

// Config is what the port needs.
type Config struct {
	Listen  string // an address with port
	Handler http.Handler
	// Certificate is for connections in TLS. nil: they are closed.
	Certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	// ACME says that Certificate also answers the challenges of a certificate
	// authority (RFC 8737).
	ACME   bool
	Bounds Bounds
	Now    func() time.Time // nil: time.Now
	Log    *slog.Logger
}

// Server is the port, a task.
type Server struct {
	cfg  Config
	gate *gate
	tls  *tls.Config
}

// New makes the server. It listens once it runs.
func New(cfg Config) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Server{cfg: cfg, gate: newGate(cfg.Bounds, cfg.Now), tls: tlsConfig(cfg)}
}

func (s *Server) String() string { return "ingress" }

// Stats is how the port stands, and what it has turned away so far.
func (s *Server) Stats() Stats { return s.gate.stats() }

// Run listens and serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	var lc net.ListenConfig
	lc.KeepAlive = keepAlive
	lc.SetMultipathTCP(false) // Go listens by it if not told otherwise; nobody speaks it
	l, err := lc.Listen(ctx, "tcp", s.cfg.Listen)
	if err != nil {
		return fmt.Errorf("cannot listen on %s, choose another home.listen: %w", s.cfg.Listen, err)
	}
	return s.Serve(ctx, l)
}

// Serve serves what comes to l until ctx ends. Then it closes l and every
// connection, those that handlers have taken over too, and waits for the
// handlers.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	sniffed := &handover{addr: l.Addr(), conns: make(chan net.Conn), closed: make(chan struct{})}
	var sniffers, handlers sync.WaitGroup
	srv := s.http(ctx, &handlers)
	served := make(chan struct{})
	go func() {
		defer close(served)
		srv.Serve(sniffed)
	}()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	err := s.accept(ctx, l, func(c *conn) {
		sniffers.Go(func() { s.sniff(c, sniffed) })
	})
	stop()
	l.Close()
	s.gate.shut()
	sniffed.Close()
	sniffers.Wait()
	s.finish(srv, &handlers)
	<-served
	return err
}

// accept takes connections in until ctx ends. That there are no file
// descriptors, or no memory, passes: it waits and tries again.
func (s *Server) accept(ctx context.Context, l net.Listener, sniff func(*conn)) error {
	wait := time.Duration(0)
	for {
		raw, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				raw.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("the socket on %s was closed: %w", l.Addr(), err)
		case err != nil:
			if wait == 0 {
				s.cfg.Log.Warn("cannot accept connections for now", "listen", l.Addr(), "err", err)
			}
			wait = min(max(2*wait, 5*time.Millisecond), maxBackoff)
			pause(ctx, wait)
			continue
		}
		wait = 0
		if c := s.gate.admit(raw); c != nil {
			sniff(c)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// sniff reads the first byte and hands the connection on.
func (s *Server) sniff(c *conn, to *handover) {
	next, err := s.demux(c)
	if err == nil {
		err = to.give(next)
	}
	if err != nil {
		c.Close()
	}
}

// demux is the connection as its first byte wants it.
func (s *Server) demux(c *conn) (net.Conn, error) {
	c.SetReadDeadline(time.Now().Add(headerTimeout))
	first, err := c.peek()
	if err != nil {
		return nil, err
	}
	c.SetReadDeadline(time.Time{})
	if first != recordHandshake {
		return c, nil
	}
	if s.cfg.Certificate == nil {
		return nil, errors.New("there is no certificate for TLS")
	}
	return tls.Server(c, s.tls), nil
}

// tlsConfig leaves no choice but HTTP/1.1, as handlers take connections over.
func tlsConfig(cfg Config) *tls.Config {
	protos := []string{"http/1.1"}
	if cfg.ACME {
		protos = append(protos, acme.ALPNProto)
	}
	return &tls.Config{
		GetCertificate: cfg.Certificate,
		NextProtos:     protos,
		MinVersion:     tls.VersionTLS12,
		Time:           cfg.Now,
		// What is written at once stays together from the first byte on.
		DynamicRecordSizingDisabled: true,
	}
}

func (s *Server) http(ctx context.Context, handlers *sync.WaitGroup) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handlers.Add(1)
			defer handlers.Done()
			s.cfg.Handler.ServeHTTP(w, r)
		}),
		Protocols:         protocols,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
}

// finish waits until the HTTP server and all handlers have noticed that their
// connections are closed.
func (s *Server) finish(srv *http.Server, handlers *sync.WaitGroup) {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if srv.Shutdown(ctx) == nil {
			handlers.Wait()
		}
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.cfg.Log.Warn("a handler goes on though its connection is closed")
	}
}

// handover is a listener whose connections others have accepted.
type handover struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (h *handover) give(c net.Conn) error {
	select {
	case h.conns <- c:
		return nil
	case <-h.closed:
		return net.ErrClosed
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

func (h *handover) Addr() net.Addr { return h.addr }
