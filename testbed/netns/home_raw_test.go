package netns_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"tailscale.com/control/controlbase"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// rawVersion is the capability version that raw members declare.
const rawVersion = 119

// patience bounds whatever answers at once when all is well.
const patience = 10 * time.Second

// A rawNode is a member that speaks the coordinator's protocol by hand, for what no stock client can be made to do.
// It carries no packets.
//
//	dial ── wire ── register ── stream (frames come in by themselves)
//	                        └── lite   (tells of endpoints and more)
type rawNode struct {
	name    string
	dial    func(context.Context) (net.Conn, error) // to the coordinator, without TLS
	machine key.MachinePrivate
	node    key.NodePrivate
	disco   key.DiscoPrivate
	mute    bool // leaves the payload before HTTP/2 to whoever reads next: nobody

	mu        sync.Mutex // guards what the node tells of itself
	endpoints []netip.AddrPort
	region    int
	routes    []netip.Prefix
}

// newRawNode is a member with fresh keys, in the crowd's i-th place.
func newRawNode(c *rawCrowd, i int) *rawNode {
	n := &rawNode{name: fmt.Sprintf("raw-%d", i), machine: key.NewMachine(), node: key.NewNode(), disco: key.NewDisco()}
	n.dial = func(ctx context.Context) (net.Conn, error) { return c.DialAs(ctx, i, c.at) }
	n.endpoints = []netip.AddrPort{netip.AddrPortFrom(c.Addr(i), 41641)}
	n.region = 900
	return n
}

// wire is one Noise connection with HTTP/2 on it.
type wire struct {
	conn net.Conn
	tr   *http.Transport
}

// refused is an answer other than 200.
type refused struct {
	code int
	text string
}

func (r *refused) Error() string { return fmt.Sprintf("HTTP status %d: %s", r.code, r.text) }

// serverKey asks for the coordinator's Noise key.
func (n *rawNode) serverKey(ctx context.Context) (k key.MachinePublic, err error) {
	tr := &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return n.dial(ctx) }}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://coordinator/key?v=%d", rawVersion), nil)
	if err != nil {
		return k, err
	}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return k, err
	}
	defer res.Body.Close()
	var ans tailcfg.OverTLSPublicKeyResponse
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<16)).Decode(&ans); err != nil {
		return k, fmt.Errorf("/key, status %d: %w", res.StatusCode, err)
	}
	return ans.PublicKey, nil
}

// connect makes a connection on which requests can be sent.
func (n *rawNode) connect(ctx context.Context) (*wire, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := n.noise(ctx)
	if err != nil {
		return nil, err
	}
	if !n.mute {
		conn = &afterEarly{Conn: conn}
	}
	return newWire(conn), nil
}

// noise makes the Noise connection alone.
func (n *rawNode) noise(ctx context.Context) (net.Conn, error) {
	server, err := n.serverKey(ctx)
	if err != nil {
		return nil, err
	}
	hello, cont, err := controlbase.ClientDeferred(n.machine, server, rawVersion)
	if err != nil {
		return nil, err
	}
	nc, err := n.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	br, err := upgrade(nc, hello)
	if err != nil {
		nc.Close()
		return nil, err
	}
	conn, err := cont(ctx, &readAhead{nc, br})
	if err != nil {
		nc.Close()
		return nil, err
	}
	return conn, nil
}

// upgrade sends the request that turns HTTP into Noise, and gives the reader of what follows.
func upgrade(nc net.Conn, hello []byte) (*bufio.Reader, error) {
	req, err := http.NewRequest(http.MethodPost, "http://coordinator/ts2021", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Upgrade", "tailscale-control-protocol")
	req.Header.Set("Connection", "upgrade")
	req.Header.Set("X-Tailscale-Handshake", base64.StdEncoding.EncodeToString(hello))
	if err := req.Write(nc); err != nil {
		return nil, err
	}
	br := bufio.NewReader(nc)
	res, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		return nil, &refused{res.StatusCode, "/ts2021"}
	}
	return br, nil
}

// readAhead reads first what came together with the answer's head.
type readAhead struct {
	net.Conn
	r *bufio.Reader
}

func (c *readAhead) Read(b []byte) (int, error) { return c.r.Read(b) }

// afterEarly passes over the payload before HTTP/2, if there is one.
type afterEarly struct {
	net.Conn
	r io.Reader
}

func (c *afterEarly) Read(b []byte) (int, error) {
	if c.r == nil {
		var head [9]byte
		if _, err := io.ReadFull(c.Conn, head[:]); err != nil {
			return 0, err
		}
		c.r = c.Conn
		if string(head[:5]) != "\xff\xff\xffTS" {
			c.r = io.MultiReader(bytes.NewReader(head[:]), c.Conn)
		} else if _, err := io.CopyN(io.Discard, c.Conn, int64(binary.BigEndian.Uint32(head[5:]))); err != nil {
			return 0, err
		}
	}
	return c.r.Read(b)
}

// gate holds back what connections would read while it is shut.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // nil: it is open
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opened = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
}

// gated is a connection behind a gate.
type gated struct {
	net.Conn
	g *gate
}

func (c *gated) Read(b []byte) (int, error) {
	c.g.mu.Lock()
	opened := c.g.opened
	c.g.mu.Unlock()
	if opened != nil {
		<-opened
	}
	return c.Conn.Read(b)
}

func newWire(conn net.Conn) *wire {
	var once sync.Once
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	w := &wire{conn: conn}
	w.tr = &http.Transport{MaxConnsPerHost: 1, Protocols: protocols,
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			var first net.Conn
			once.Do(func() { first = conn })
			if first == nil {
				return nil, errors.New("the connection to the coordinator is gone")
			}
			return first, nil
		}}
	return w
}

func (w *wire) close() {
	w.conn.Close()
	w.tr.CloseIdleConnections()
}

// post sends a body; whatever is not 200 is an error.
func (w *wire) post(ctx context.Context, path string, body []byte) (*http.Response, error) {
	return w.postFrom(ctx, path, bytes.NewReader(body))
}

func (w *wire) postFrom(ctx context.Context, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://coordinator"+path, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := w.tr.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		defer res.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(res.Body, 200))
		return nil, &refused{res.StatusCode, string(bytes.TrimSpace(text))}
	}
	return res, nil
}

// postJSON sends a request and decodes the answer, if there is one.
func (w *wire) postJSON(ctx context.Context, path string, req, ans any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	res, err := w.post(ctx, path, body)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer res.Body.Close()
	if ans == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(res.Body, 32<<20))
		return err
	}
	return json.NewDecoder(io.LimitReader(res.Body, 32<<20)).Decode(ans)
}

// registerRequest is what the node asks with. key may be empty.
func (n *rawNode) registerRequest(key string) *tailcfg.RegisterRequest {
	r := &tailcfg.RegisterRequest{Version: rawVersion, NodeKey: n.node.Public(), Hostinfo: n.hostinfo()}
	if key != "" {
		r.Auth = &tailcfg.RegisterResponseAuth{AuthKey: key}
	}
	return r
}

// register makes the node a member, or fails with the coordinator's words.
func (n *rawNode) register(ctx context.Context, w *wire, key string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var ans tailcfg.RegisterResponse
	if err := w.postJSON(ctx, "/machine/register", n.registerRequest(key), &ans); err != nil {
		return err
	}
	switch {
	case ans.Error != "":
		return fmt.Errorf("registration refused: %s", ans.Error)
	case ans.AuthURL != "" || ans.NodeKeyExpired || !ans.MachineAuthorized:
		return fmt.Errorf("registration asks for more: URL %q, expired %v, authorized %v", ans.AuthURL, ans.NodeKeyExpired, ans.MachineAuthorized)
	}
	return nil
}

func (n *rawNode) hostinfo() *tailcfg.Hostinfo {
	n.mu.Lock()
	defer n.mu.Unlock()
	return &tailcfg.Hostinfo{Hostname: n.name, OS: "linux", IPNVersion: "1.102.5", BackendLogID: "x", RoutableIPs: n.routes,
		NetInfo: &tailcfg.NetInfo{PreferredDERP: n.region, WorkingUDP: "true"}}
}

func (n *rawNode) mapRequest() *tailcfg.MapRequest {
	r := &tailcfg.MapRequest{Version: rawVersion, Compress: "zstd", KeepAlive: true, NodeKey: n.node.Public(), DiscoKey: n.disco.Public(), Hostinfo: n.hostinfo()}
	n.mu.Lock()
	defer n.mu.Unlock()
	r.Endpoints = n.endpoints
	for range n.endpoints {
		r.EndpointTypes = append(r.EndpointTypes, tailcfg.EndpointSTUN)
	}
	return r
}

// lite tells the coordinator what the node now says of itself.
func (n *rawNode) lite(ctx context.Context, w *wire) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r := n.mapRequest()
	r.OmitPeers = true
	return w.postJSON(ctx, "/machine/map", r, nil)
}

// moves gives the node other endpoints; lite tells of them.
func (n *rawNode) moves(to ...netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.endpoints = to
}

// where are the node's endpoints.
func (n *rawNode) where() []netip.AddrPort {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.endpoints
}

// logout ends the node's key, as `tailscale logout` does.
func (n *rawNode) logout(ctx context.Context, w *wire) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r := n.registerRequest("")
	r.Expiry = time.Unix(123, 0)
	return w.postJSON(ctx, "/machine/register", r, nil)
}
