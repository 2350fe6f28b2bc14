package coord

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/control/controlbase"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const (
	handshakeTimeout = 10 * time.Second
	maxBody          = 256 << 10 // bytes of one request inside Noise
	maxStrangersBody = 32 << 10  // of one who is no member
	bodyTimeout      = 10 * time.Second
	maxStreams       = 8 // at once on one connection
	maxConnsEach     = 8 // of one machine; the oldest goes
	upgradeProtocol  = "tailscale-control-protocol"
)

// Handler is what the world may ask: the key of this coordinator, the upgrade
// to Noise, and the page of a device that waits to be let in.
func (c *Coordinator) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /key", c.serveKey)
	mux.HandleFunc("POST /ts2021", c.serveUpgrade)
	mux.HandleFunc("GET /generate_204", serveNoContent)
	mux.HandleFunc("GET /a/{code}", c.servePage)
	mux.HandleFunc("GET /{$}", c.serveRoot)
	return mux
}

// serveNoContent lets clients find out whether something between us answers in
// our place: the challenge must come back.
func serveNoContent(w http.ResponseWriter, r *http.Request) {
	const challenge, answer = "X-Tailscale-Challenge", "X-Tailscale-Response"
	if s := r.Header.Get(challenge); s != "" && len(s) < 64 && !strings.ContainsFunc(s, odd) {
		w.Header().Set(answer, "response "+s)
	}
	w.WriteHeader(http.StatusNoContent)
}

// odd are characters that no challenge holds.
func odd(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_' && r != ':'
}

func (c *Coordinator) serveKey(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(tailcfg.OverTLSPublicKeyResponse{PublicKey: c.noise.Public()}) // who left needs none
}

// caller is one Noise connection: who is at its other end.
type caller struct {
	net.Conn
	machine key.MachinePublic
	inside  bool           // the router's own node
	from    netip.AddrPort // invalid: inside
	base    string         // the URL of this coordinator as the caller knows it

	member atomic.Bool // its requests may be big; not those of one who waits to be let in
	stays  atomic.Bool // established was said
	body   sync.Mutex  // held while a request is read: one at a time
	raw    net.Conn
}

// established says that this is no stranger any more: whoever bounds unknown
// connections need not count it.
func (p *caller) established() {
	if p.stays.Swap(true) {
		return
	}
	if e, ok := p.wire().(interface{ Established() }); ok {
		e.Established()
	}
}

// wire is the connection below TLS, if there is that.
func (p *caller) wire() net.Conn {
	if t, ok := p.raw.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn()
	}
	return p.raw
}

// hangUp ends the connection at once: TLS would first wait for who does not read.
func (p *caller) hangUp() { _ = p.wire().Close() }

type contextKey int

const (
	insideKey contextKey = iota
	callerKey
)

// serveUpgrade turns an HTTP connection into a Noise one and hands it to the
// HTTP/2 server. The client's first Noise message came in a header.
func (c *Coordinator) serveUpgrade(w http.ResponseWriter, r *http.Request) {
	hello, err := base64.StdEncoding.DecodeString(r.Header.Get("X-Tailscale-Handshake"))
	if err != nil || len(hello) == 0 || !strings.EqualFold(r.Header.Get("Upgrade"), upgradeProtocol) {
		http.Error(w, "this wants an upgrade to "+upgradeProtocol, http.StatusBadRequest)
		return
	}
	hijacker, ok := w.(http.Hijacker)
	if !ok {
		http.Error(w, "this wants HTTP/1.1", http.StatusHTTPVersionNotSupported)
		return
	}
	raw, rw, err := hijacker.Hijack()
	if err != nil {
		return // the client is gone
	}
	if err := c.upgrade(r, raw, rw, hello); err != nil {
		c.cfg.Log.Debug("a connection came to nothing", "from", r.RemoteAddr, "err", err)
		_ = raw.Close()
	}
}

func (c *Coordinator) upgrade(r *http.Request, raw net.Conn, rw *bufio.ReadWriter, hello []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	if err := raw.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	const switching = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: " + upgradeProtocol + "\r\nConnection: upgrade\r\n\r\n"
	if _, err := io.WriteString(raw, switching); err != nil {
		return err
	}
	noise, err := controlbase.Server(ctx, &readAhead{raw, rw.Reader}, c.noise, hello)
	if err != nil {
		return err
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		return err
	}
	inside, _ := r.Context().Value(insideKey).(bool)
	p := &caller{Conn: noise, machine: noise.Peer(), inside: inside, raw: raw}
	if !inside {
		p.from, _ = netip.ParseAddrPort(r.RemoteAddr)
		p.base = c.baseFor(r)
	}
	if c.snap.Load().ofMachine(p.machine) != nil {
		p.member.Store(true)
		p.established()
	}
	return c.hall.deliver(ctx, p)
}

// readAhead reads first what came together with the request, and then lets go of
// the buffer in which that was.
type readAhead struct {
	net.Conn
	r *bufio.Reader // nil: it is read out
}

func (c *readAhead) Read(b []byte) (int, error) {
	if c.r != nil && c.r.Buffered() > 0 {
		return c.r.Read(b)
	}
	c.r = nil
	return c.Conn.Read(b)
}

// baseFor is where this client finds us: as it asked, unless that is the name
// by which the world does, whose scheme we know better.
func (c *Coordinator) baseFor(r *http.Request) string {
	place := c.snap.Load().place.URL
	asked, err := url.Parse("http://" + r.Host)
	if err != nil || asked.Hostname() == "" || asked.User != nil || asked.Path != "" || len(r.Host) > 260 {
		return place
	}
	if known, err := url.Parse(place); err == nil && strings.EqualFold(known.Hostname(), asked.Hostname()) {
		return place
	}
	return "http://" + asked.Host
}

// serveInside prepares the servers that this process's own connections reach:
// plain HTTP for the router's node, HTTP/2 for what came through Noise.
func (c *Coordinator) serveInside() {
	silent := log.New(io.Discard, "", 0) // errors of clients are not ours
	c.door, c.hall = newPipeListener(), newPipeListener()
	c.crowd = &crowd{conns: map[key.MachinePublic][]*caller{}}
	c.outer = &http.Server{
		Handler: c.Handler(), ErrorLog: silent, ReadHeaderTimeout: handshakeTimeout,
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, insideKey, true)
		},
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /machine/register", c.serveRegister)
	mux.HandleFunc("POST /machine/map", c.serveMap)
	mux.HandleFunc("POST /c2n/{token}", c.serveProbeAnswer)
	c.inner = &http.Server{
		Handler: mux, ErrorLog: silent, Protocols: protocols, MaxHeaderBytes: 16 << 10, ReadHeaderTimeout: handshakeTimeout,
		HTTP2: &http.HTTP2Config{
			// Not less than 65,535 of each: until a client has read our settings it may
			// send so much (RFC 9113, 6.9.2), and the server would not bear it.
			MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerConnection: 64 << 10, MaxReceiveBufferPerStream: 64 << 10,
			SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second, WriteByteTimeout: writeTimeout,
		},
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, callerKey, conn.(*caller))
		},
		ConnState: c.crowd.state,
	}
}

// Dial connects the router's own node, which needs no key to be let in.
func (c *Coordinator) Dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	if err := c.door.deliver(ctx, far); err != nil {
		return nil, errors.Join(err, near.Close(), far.Close())
	}
	return near, nil
}

// crowd holds each machine to a few connections: a client that lost its old
// ones leaves them behind.
type crowd struct {
	mu    sync.Mutex // guards conns
	conns map[key.MachinePublic][]*caller
}

func (c *crowd) state(conn net.Conn, s http.ConnState) {
	p, ok := conn.(*caller)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	list := c.conns[p.machine]
	switch s {
	case http.StateNew:
		if len(list) >= maxConnsEach {
			list[0].hangUp()
			list = list[1:]
		}
		c.conns[p.machine] = append(list, p)
	case http.StateClosed:
		for i, q := range list {
			if q == p {
				list = append(list[:i:i], list[i+1:]...)
				break
			}
		}
		if c.conns[p.machine] = list; len(list) == 0 {
			delete(c.conns, p.machine)
		}
	}
}

// dismiss ends all connections of a machine.
func (c *crowd) dismiss(machine key.MachinePublic) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.conns[machine] {
		p.hangUp()
	}
}

// read decodes a request's body. Anybody may send one, so what is in memory of
// those that are not finished is bounded: one of each connection at a time, a
// small one of strangers, and not for long.
func read(w http.ResponseWriter, r *http.Request, v any) bool {
	p := callerOf(r)
	p.body.Lock()
	defer p.body.Unlock()
	limit := int64(maxStrangersBody)
	if p.member.Load() {
		limit = maxBody
	}
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTimeout)) // always there over HTTP/2
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit)).Decode(v)
	_ = rc.SetReadDeadline(time.Time{})
	var big *http.MaxBytesError
	switch {
	case err == nil:
		return true
	case errors.As(err, &big):
		http.Error(w, "the request is too big", http.StatusRequestEntityTooLarge)
	default:
		http.Error(w, "the request is not understood", http.StatusBadRequest)
	}
	return false
}

func callerOf(r *http.Request) *caller { return r.Context().Value(callerKey).(*caller) }

// serveMap answers both kinds of map request: the long poll, and the update of
// what a node says of itself.
func (c *Coordinator) serveMap(w http.ResponseWriter, r *http.Request) {
	var req tailcfg.MapRequest
	if !read(w, r, &req) {
		return
	}
	n := c.snap.Load().byKey[req.NodeKey]
	if n != nil && n.Machine != callerOf(r).machine {
		http.Error(w, "this node key belongs to another machine", http.StatusForbidden)
		return
	}
	var err error
	switch {
	case n == nil && req.Stream:
		s := &session{c: c, key: req.NodeKey, w: w, packed: req.Compress == "zstd"}
		err = s.farewell(r.Context())
	case n == nil:
		// What a removed node says of itself is of no interest; its long poll hears why.
	case req.Stream:
		err = c.stream(r.Context(), w, n, &req)
	default:
		err = c.lite(r.Context(), w, n, &req)
	}
	if err != nil && r.Context().Err() == nil {
		c.cfg.Log.Debug("a map request failed", "node", req.NodeKey.ShortString(), "err", err)
		http.Error(w, "the coordinator cannot answer now", http.StatusInternalServerError)
	}
}

// lite takes what a node says of itself. A request whose client has gone on
// meanwhile is old news.
func (c *Coordinator) lite(ctx context.Context, w http.ResponseWriter, n *node, req *tailcfg.MapRequest) error {
	var more bool
	if err := n.pace.tell.Wait(ctx); err != nil {
		return err
	}
	err := c.update(ctx, func(d *draft) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n, err := d.member(n.ID, n.Key)
		if err == nil {
			more = d.tell(n, req)
		}
		return err
	})
	if err == nil && more {
		if err = n.pace.note.Wait(ctx); err == nil {
			err = c.note(ctx, n, req)
		}
	}
	if err != nil || req.OmitPeers {
		return err
	}
	s := &session{c: c, id: n.ID, key: n.Key, self: n.Self, w: w, version: req.Version, packed: req.Compress == "zstd",
		users: map[tailcfg.UserID]bool{}}
	return s.send(s.first(c.snap.Load()))
}
