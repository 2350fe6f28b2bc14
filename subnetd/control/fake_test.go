package control

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"tailscale.com/control/controlbase"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// coordinator is a coordinator in this process. Handshake, encryption, HTTP/2
// and frames are real; what it answers is up to each test.
type coordinator struct {
	t    testing.TB
	url  string
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
	web  *http.Server
	wg   sync.WaitGroup // upgraded connections

	pipes *pipes // if in memory

	mu      sync.Mutex
	act     acts
	noise   key.MachinePrivate
	members map[key.NodePublic]bool
	calls   []call
	conns   map[net.Conn]bool // upgraded
	down    bool              // refuses connections
	keys    map[string]bool   // auth keys that are good
}

// acts are what a test may make the coordinator do; nil is the usual.
type acts struct {
	key      http.HandlerFunc // GET /key
	upgrade  http.HandlerFunc // POST /ts2021
	early    []byte           // sent before HTTP/2
	drop     bool             // close each connection right after its handshake
	register func(ctx context.Context, w http.ResponseWriter, r *tailcfg.RegisterRequest)
	stream   func(p *poll)
	lite     http.HandlerFunc
	other    http.HandlerFunc // any other path, over Noise
}

// call is one request that the coordinator got.
type call struct {
	what    string // key, upgrade, register, stream, lite, or method and path
	at      time.Time
	reg     *tailcfg.RegisterRequest
	req     *tailcfg.MapRequest
	machine key.MachinePublic
	body    string
}

// inMemory serves over pipes, so that it can live in a bubble of fake time.
func inMemory(t testing.TB) *coordinator {
	l := &pipes{ch: make(chan net.Conn), done: make(chan struct{})}
	c := newCoordinator(t, "http://coordinator.test", l)
	c.dial, c.pipes = l.dial, l
	return c
}

// onLoopback serves over TCP, with TLS if cfg is not nil.
func onLoopback(t testing.TB, cfg *tls.Config) *coordinator {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	scheme := "http://"
	if cfg != nil {
		l, scheme = tls.NewListener(l, cfg), "https://"
	}
	c := newCoordinator(t, scheme+l.Addr().String(), l)
	c.dial = new(net.Dialer).DialContext
	return c
}

func newCoordinator(t testing.TB, url string, l net.Listener) *coordinator {
	c := &coordinator{
		t: t, url: url, noise: key.NewMachine(), members: make(map[key.NodePublic]bool), conns: make(map[net.Conn]bool),
		keys: map[string]bool{"good": true},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /key", c.serveKey)
	mux.HandleFunc("POST /ts2021", c.serveUpgrade)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { c.serveOther(w, r, "web ") })
	c.web = &http.Server{Handler: mux, ErrorLog: log.New(io.Discard, "", 0)}
	c.wg.Add(1)
	go func() { defer c.wg.Done(); c.web.Serve(l) }()
	t.Cleanup(c.close)
	return c
}

func (c *coordinator) close() {
	c.web.Close()
	c.hangUp()
	c.wg.Wait()
}

// does changes what the coordinator does.
func (c *coordinator) does(f func(*acts)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.act)
}

func (c *coordinator) acts() acts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.act
}

// hangUp ends all connections, as a restart does.
func (c *coordinator) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.conns {
		conn.Close()
	}
}

func (c *coordinator) setDown(down bool) {
	c.mu.Lock()
	c.down = down
	c.mu.Unlock()
	c.hangUp()
}

// forget makes all nodes unknown.
func (c *coordinator) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.members)
}

func (c *coordinator) approve(k key.NodePublic) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members[k] = true
}

func (c *coordinator) note(x call) {
	x.at = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, x)
}

// got returns the calls of one kind so far; an empty kind is all.
func (c *coordinator) got(what string) []call {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []call
	for _, x := range c.calls {
		if what == "" || x.what == what {
			out = append(out, x)
		}
	}
	return out
}

func (c *coordinator) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	c.mu.Lock()
	down := c.down
	c.mu.Unlock()
	if down {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	return c.dial(ctx, network, addr)
}

func (c *coordinator) serveKey(w http.ResponseWriter, r *http.Request) {
	c.note(call{what: "key", body: r.URL.RawQuery})
	if act := c.acts(); act.key != nil {
		act.key(w, r)
		return
	}
	answer(w, tailcfg.OverTLSPublicKeyResponse{PublicKey: c.noiseKey().Public()})
}

func (c *coordinator) noiseKey() key.MachinePrivate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.noise
}

func answer(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	w.Write(b)
}

func (c *coordinator) serveUpgrade(w http.ResponseWriter, r *http.Request) {
	c.note(call{what: "upgrade"})
	act := c.acts()
	if act.upgrade != nil {
		act.upgrade(w, r)
		return
	}
	hello, err := base64.StdEncoding.DecodeString(r.Header.Get("X-Tailscale-Handshake"))
	if err != nil || r.Header.Get("Upgrade") != "tailscale-control-protocol" {
		http.Error(w, "no upgrade", http.StatusBadRequest)
		return
	}
	raw, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		c.t.Error(err)
		return
	}
	c.mu.Lock()
	c.conns[raw] = true
	c.wg.Add(1)
	c.mu.Unlock()
	defer c.wg.Done()
	defer c.dropped(raw)
	io.WriteString(raw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\n\r\n")
	conn, err := controlbase.Server(context.Background(), raw, c.noiseKey(), hello)
	if err != nil || act.drop {
		return
	}
	conn.Write(act.early)
	c.serveNoise(conn)
}

func (c *coordinator) dropped(raw net.Conn) {
	raw.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, raw)
}

// earlyPayload is what Headscale sends before HTTP/2.
func earlyPayload(json string) []byte {
	return append(binary.BigEndian.AppendUint32([]byte(earlyMagic), uint32(len(json))), json...)
}

// serveNoise speaks HTTP/2 until conn ends.
func (c *coordinator) serveNoise(conn *controlbase.Conn) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /machine/register", func(w http.ResponseWriter, r *http.Request) { c.serveRegister(w, r, conn.Peer()) })
	mux.HandleFunc("POST /machine/map", func(w http.ResponseWriter, r *http.Request) { c.serveMap(w, r, conn.Peer()) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { c.serveOther(w, r, "noise ") })
	l := &pipes{ch: make(chan net.Conn, 1), done: make(chan struct{})}
	l.ch <- conn
	s := &http.Server{Handler: mux, Protocols: new(http.Protocols), ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			l.Close()
		}
	}}
	s.Protocols.SetUnencryptedHTTP2(true)
	s.Serve(l)
}

func (c *coordinator) serveOther(w http.ResponseWriter, r *http.Request, by string) {
	b, _ := io.ReadAll(r.Body)
	c.note(call{what: by + r.Method + " " + r.URL.Path, body: string(b)})
	if act := c.acts(); act.other != nil {
		act.other(w, r)
	}
}

func (c *coordinator) serveRegister(w http.ResponseWriter, r *http.Request, machine key.MachinePublic) {
	req := new(tailcfg.RegisterRequest)
	if err := json.NewDecoder(r.Body).Decode(req); err != nil {
		return // the client left in between
	}
	c.note(call{what: "register", reg: req, machine: machine})
	if act := c.acts(); act.register != nil {
		act.register(r.Context(), w, req)
		return
	}
	c.usualRegister(r.Context(), w, req)
}

// usualRegister knows members, and takes whoever has a good key; others must log in.
func (c *coordinator) usualRegister(ctx context.Context, w http.ResponseWriter, req *tailcfg.RegisterRequest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !req.Expiry.IsZero() && req.Expiry.Before(time.Now()):
		delete(c.members, req.NodeKey)
		answer(w, tailcfg.RegisterResponse{NodeKeyExpired: true})
	case c.members[req.NodeKey]:
		answer(w, tailcfg.RegisterResponse{MachineAuthorized: true})
	case req.Auth == nil:
		answer(w, tailcfg.RegisterResponse{AuthURL: "https://coordinator.test/a/1"})
	case !c.keys[req.Auth.AuthKey]:
		answer(w, tailcfg.RegisterResponse{Error: "invalid auth key"})
	default:
		delete(c.members, req.OldNodeKey)
		c.members[req.NodeKey] = true
		answer(w, tailcfg.RegisterResponse{MachineAuthorized: true})
	}
}

func (c *coordinator) serveMap(w http.ResponseWriter, r *http.Request, machine key.MachinePublic) {
	req := new(tailcfg.MapRequest)
	if err := json.NewDecoder(r.Body).Decode(req); err != nil {
		return // the client left in between
	}
	act := c.acts()
	if !req.Stream {
		c.note(call{what: "lite", req: req, machine: machine})
		if act.lite != nil {
			act.lite(w, r)
		}
		return
	}
	c.note(call{what: "stream", req: req, machine: machine})
	p := &poll{ctx: r.Context(), w: w, req: req}
	if act.stream != nil {
		act.stream(p)
		return
	}
	c.usualStream(p)
}

// usualStream tells a member about itself and keeps the stream alive.
func (c *coordinator) usualStream(p *poll) {
	c.mu.Lock()
	known := c.members[p.req.NodeKey]
	c.mu.Unlock()
	if !known {
		http.Error(p.w, "node not found", http.StatusNotFound)
		return
	}
	p.say(&tailcfg.MapResponse{Node: self(p.req.NodeKey)})
	p.keepAlive()
}

func self(k key.NodePublic) *tailcfg.Node {
	return &tailcfg.Node{ID: 1, Name: "me.mesh.", Key: k, MachineAuthorized: true, Addresses: prefixes("100.64.0.1/32")}
}

// poll is one map stream as the coordinator sees it.
type poll struct {
	ctx context.Context
	w   http.ResponseWriter
	req *tailcfg.MapRequest
}

func (p *poll) say(m *tailcfg.MapResponse) {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	p.w.Write(framed(string(b)))
	p.w.(http.Flusher).Flush()
}

// keepAlive says so every 50 seconds until the client leaves.
func (p *poll) keepAlive() {
	for p.wait(50 * time.Second) {
		p.say(&tailcfg.MapResponse{KeepAlive: true})
	}
}

// wait reports whether the client is still there after d.
func (p *poll) wait(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-p.ctx.Done():
		return false
	}
}

// hang waits until the client leaves.
func (p *poll) hang() { <-p.ctx.Done() }

// pipes is a listener whose connections come over a channel.
type pipes struct {
	ch   chan net.Conn
	once sync.Once
	done chan struct{}

	mu    sync.Mutex
	wires []*wire
}

func (l *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipes) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (l *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, a := net.Pipe()
	b, far := net.Pipe()
	select {
	case l.ch <- far:
		// What is under way is kept here, as in a net: a pipe alone keeps nothing.
		w := new(wire)
		l.add(w)
		go w.carry(a, b)
		go w.carry(b, a)
		return near, nil
	case <-l.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// wire lies between two pipes.
type wire struct{ dead atomic.Bool }

// carry brings what comes from one end to the other, until one of them closes. A
// dead wire swallows all, as a net does that lost the way; the ends see nothing.
func (w *wire) carry(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if err != nil {
			return
		}
		if w.dead.Load() {
			continue
		}
		if _, err := to.Write(b[:n]); err != nil {
			return
		}
	}
}

// cut makes all connections of now dead.
func (c *coordinator) cut() {
	c.pipes.mu.Lock()
	defer c.pipes.mu.Unlock()
	for _, w := range c.pipes.wires {
		w.dead.Store(true)
	}
}

func (l *pipes) add(w *wire) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wires = append(l.wires, w)
}
