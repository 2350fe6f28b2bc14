package relay

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"go4.org/mem"
	"tailscale.com/derp"
	"tailscale.com/types/key"
)

const (
	greetTimeout = 10 * time.Second // for the whole handshake
	maxInfo      = 16 << 10         // bytes of a client info; real ones have some 200
)

// client is one connection.
type client struct {
	s    *Server
	conn net.Conn
	raw  net.Conn // conn without its TLS
	key  key.NodePublic
	seat *seat
	out  outbox

	preferred atomic.Bool // the relay is its home
	crowded   atomic.Bool // there are other connections with its key
	stopped   atomic.Bool

	// The reader's.
	br      *bufio.Reader
	last    *seat                    // whom it sent to last
	dests   map[key.NodePublic]*seat // whom it has sent to; read by leave once the reader has ended
	waking  *client                  // is owed a signal
	notHere allowance

	// The writer's.
	until time.Time // the write deadline
	batch []*packet
}

// Handler serves /derp, where clients turn the connection from HTTP to DERP, and
// /derp/probe and /derp/latency-check, by which those without UDP measure how
// far the relay is.
func (s *Server) Handler() http.Handler { return http.HandlerFunc(s.serveHTTP) }

func (s *Server) serveHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/derp/probe", "/derp/latency-check":
		probe(w, r)
	case "/derp":
		s.upgrade(w, r)
	default:
		http.NotFound(w, r)
	}
}

func probe(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Access-Control-Allow-Origin", "*") // clients in a browser measure too
}

// upgrade takes the connection away from HTTP. A client that learnt our key from
// a TLS certificate may ask not to be answered in HTTP.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "DERP") {
		w.Header().Set("Upgrade", "DERP")
		http.Error(w, "this is a relay: it speaks DERP, not over WebSocket", http.StatusUpgradeRequired)
		return
	}
	conn, brw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "the relay needs HTTP/1.1", http.StatusHTTPVersionNotSupported)
		return
	}
	var answer []byte
	if r.Header.Get(derp.FastStartHeader) != "1" {
		answer = fmt.Appendf(nil, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n"+
			"Derp-Version: %d\r\nDerp-Public-Key: %x\r\n\r\n", derp.ProtocolVersion, s.public.AppendTo(nil))
	}
	early, _ := brw.Reader.Peek(brw.Reader.Buffered()) // all of it is there: no error
	s.serve(conn, answer, bytes.Clone(early))          // HTTP's memory is free once we return
}

// serve takes a connection over. answer is yet to be sent, early has been
// received already.
func (s *Server) serve(conn net.Conn, answer, early []byte) {
	c := &client{s: s, conn: conn, raw: below(conn), dests: map[key.NodePublic]*seat{}}
	c.out.init(&s.budget)
	if err := s.begin(c); err != nil {
		s.cfg.Log.Debug("relay: connection refused", "from", conn.RemoteAddr(), "err", err)
		c.raw.Close()
		return
	}
	go c.run(answer, early)
}

// run serves the connection to its end. It is the reader.
func (c *client) run(answer, early []byte) {
	defer c.s.end(c)
	if err := c.greet(answer, early); err != nil {
		c.s.cfg.Log.Debug("relay: no handshake", "from", c.conn.RemoteAddr(), "key", c.key.ShortString(), "err", err)
		return
	}
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		c.write()
	}()
	err := c.read()
	c.stop()
	<-wrote
	c.out.drain(c.s)
	c.s.cfg.Log.Debug("relay: client left", "from", c.conn.RemoteAddr(), "key", c.key.ShortString(), "err", err)
}

// stop makes both goroutines of the connection end, and may be called by any
// other. Nothing the client has sent goes out afterwards.
func (c *client) stop() {
	c.stopped.Store(true)
	c.out.close()
	c.raw.Close()
}

// greet proves to the client who we are, and lets it prove who it is.
func (c *client) greet(answer, early []byte) error {
	s := c.s
	if err := c.conn.SetDeadline(time.Now().Add(greetTimeout)); err != nil {
		return err
	}
	hello := append(appendHeader(answer, derp.FrameServerKey, len(derp.Magic)+derp.KeyLen), derp.Magic...)
	if _, err := c.conn.Write(s.public.AppendTo(hello)); err != nil {
		return fmt.Errorf("server key: %w", err)
	}
	c.br = bufio.NewReaderSize(&resumed{early, c.conn}, readBuffer)
	k, err := readInfo(c.br, s.cfg.Key)
	if err != nil {
		return fmt.Errorf("client info: %w", err)
	}
	c.key = k
	if !s.cfg.Admit(k) {
		return errRefused
	}
	if err := s.take(c); err != nil {
		return err
	}
	if !s.cfg.Admit(k) { // was removed meanwhile, and Expel may have come too early
		return errRefused
	}
	if e, ok := c.raw.(interface{ Established() }); ok {
		e.Established()
	}
	info, err := json.Marshal(derp.ServerInfo{Version: derp.ProtocolVersion})
	if err != nil {
		return err
	}
	box := s.cfg.Key.SealTo(k, info)
	if _, err := c.conn.Write(append(appendHeader(nil, derp.FrameServerInfo, len(box)), box...)); err != nil {
		return fmt.Errorf("server info: %w", err)
	}
	return c.conn.SetDeadline(time.Time{})
}

// readInfo reads the frame by which a client proves that it has the key it
// names. Anybody may have sent it.
func readInfo(br *bufio.Reader, ours key.NodePrivate) (k key.NodePublic, err error) {
	n, err := derp.ReadFrameTypeHeader(br, derp.FrameClientInfo)
	if err != nil {
		return k, err
	}
	if n < derp.KeyLen+derp.NonceLen || n > maxInfo {
		return k, fmt.Errorf("has %d bytes", n)
	}
	b, err := io.ReadAll(io.LimitReader(br, int64(n))) // grows with what comes, not with what is announced
	if err != nil {
		return k, err
	}
	if len(b) < int(n) {
		return k, io.ErrUnexpectedEOF
	}
	if k = key.NodePublicFromRaw32(mem.B(b[:derp.KeyLen])); k.IsZero() {
		return k, errors.New("has no key")
	}
	text, ok := ours.OpenFrom(k, b[derp.KeyLen:])
	if !ok {
		return k, errors.New("is not sealed with the key it names")
	}
	var info struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(text, &info); err != nil {
		return k, err
	}
	if info.Version < derp.ProtocolVersion {
		return k, fmt.Errorf("speaks version %d, we need %d", info.Version, derp.ProtocolVersion)
	}
	return k, nil
}

// resumed reads first what has been read already.
type resumed struct {
	early []byte
	net.Conn
}

func (r *resumed) Read(b []byte) (int, error) {
	if len(r.early) > 0 {
		n := copy(b, r.early)
		r.early = r.early[n:]
		return n, nil
	}
	return r.Conn.Read(b)
}
