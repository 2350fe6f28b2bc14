package coord

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
	"strings"
	"sync"

	"subnetd/subnetd/status"

	"github.com/klauspost/compress/zstd"
	"tailscale.com/control/controlbase"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// client speaks ts2021 by hand, so that it can do what no good client does.
type client struct {
	m         *mesh
	from      string // address; "": it is the router's own
	machine   key.MachinePrivate
	node      key.NodePublic
	disco     key.DiscoPublic
	version   tailcfg.CapabilityVersion
	host      *tailcfg.Hostinfo
	endpoints []netip.AddrPort

	world *worldConn // of the last connection
	http  *http.Client
	conn  net.Conn
}

// client makes a client that has not connected yet.
func (m *mesh) client(hostname, from string) *client {
	return &client{
		m: m, from: from, version: 130, machine: key.NewMachine(), node: key.NewNode().Public(), disco: key.NewDisco().Public(),
		host: &tailcfg.Hostinfo{Hostname: hostname, OS: "linux", IPNVersion: "1.2.3", NetInfo: &tailcfg.NetInfo{PreferredDERP: 900}},
	}
}

// member is a client that has joined with a key of its own; edit may change the
// invitation.
func (m *mesh) member(hostname string, edit ...func(*status.InviteRequest)) *client {
	m.t.Helper()
	c := m.client(hostname, "192.0.2.1")
	res := c.mustRegister(withAuth(m.invite(edit...)))
	if !res.MachineAuthorized {
		m.t.Fatalf("%s was not let in: %+v", hostname, res)
	}
	return c
}

func (m *mesh) invite(edit ...func(*status.InviteRequest)) string {
	m.t.Helper()
	var r status.InviteRequest
	for _, e := range edit {
		e(&r)
	}
	k, _, err := m.c.Invite(m.t.Context(), r)
	m.must(err)
	return k
}

// at is the same client at another coordinator, or after that one's restart.
func (c *client) at(m *mesh) *client {
	other := *c
	other.m, other.http, other.conn = m, nil, nil
	return &other
}

// connect makes another Noise connection. The test's end closes it.
func (c *client) connect() error {
	ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
	defer cancel()
	raw, world, err := c.m.dial(ctx, c.from)
	if err != nil {
		return err
	}
	c.m.t.Cleanup(func() { _ = raw.Close() })
	conn, err := c.upgrade(ctx, raw)
	if err != nil {
		return errors.Join(err, raw.Close())
	}
	once := make(chan net.Conn, 1)
	once <- conn
	tr := &http.Transport{MaxConnsPerHost: 1, Protocols: new(http.Protocols), DialContext: func(context.Context, string, string) (net.Conn, error) {
		select {
		case conn := <-once:
			return conn, nil
		default:
			return nil, net.ErrClosed
		}
	}}
	tr.Protocols.SetUnencryptedHTTP2(true)
	c.world, c.conn, c.http = world, conn, &http.Client{Transport: tr}
	return nil
}

func (c *client) upgrade(ctx context.Context, raw net.Conn) (net.Conn, error) {
	hello, cont, err := controlbase.ClientDeferred(c.machine, c.m.c.noise.Public(), 130)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(raw, "POST /ts2021 HTTP/1.1\r\nHost: home.test:8410\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\nX-Tailscale-Handshake: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(hello))
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(raw)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		return nil, errors.New(res.Status)
	}
	return cont(ctx, &readAhead{raw, r})
}

// hangUp closes the connection; the next call makes another.
func (c *client) hangUp() {
	if c.conn != nil {
		_ = c.conn.Close()
		c.http.CloseIdleConnections()
	}
	c.conn, c.http = nil, nil
}

// post sends v, or a text as it is, and gives the response whose body is still to be read.
func (c *client) post(ctx context.Context, path string, v any) (*http.Response, error) {
	if c.http == nil {
		if err := c.connect(); err != nil {
			return nil, err
		}
	}
	body, ok := v.(string)
	if !ok {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		body = string(b)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://coordinator"+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	return c.http.Do(req)
}

// call is post with an answer that ends.
func (c *client) call(ctx context.Context, path string, v any) (code int, body []byte, err error) {
	res, err := c.post(ctx, path, v)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	body, err = io.ReadAll(res.Body)
	return res.StatusCode, body, err
}

type registering func(*tailcfg.RegisterRequest)

func withAuth(k string) registering {
	return func(r *tailcfg.RegisterRequest) { r.Auth = &tailcfg.RegisterResponseAuth{AuthKey: k} }
}

func followingUp(url string) registering {
	return func(r *tailcfg.RegisterRequest) { r.Followup = url }
}

func (c *client) register(ctx context.Context, edit ...registering) (*tailcfg.RegisterResponse, error) {
	r := &tailcfg.RegisterRequest{Version: c.version, NodeKey: c.node, Hostinfo: c.host}
	for _, e := range edit {
		e(r)
	}
	code, body, err := c.call(ctx, "/machine/register", r)
	if err != nil {
		return nil, err
	}
	if code != http.StatusOK {
		return nil, fmt.Errorf("%d: %s", code, body)
	}
	res := new(tailcfg.RegisterResponse)
	return res, json.Unmarshal(body, res)
}

func (c *client) mustRegister(edit ...registering) *tailcfg.RegisterResponse {
	c.m.t.Helper()
	res, err := c.register(context.Background(), edit...)
	c.m.must(err)
	return res
}

// about is what the client says of itself in a map request.
func (c *client) about() *tailcfg.MapRequest {
	return &tailcfg.MapRequest{Version: c.version, NodeKey: c.node, DiscoKey: c.disco, Hostinfo: c.host, Endpoints: c.endpoints, Compress: "zstd", KeepAlive: true}
}

// tell sends an update of what the client says of itself.
func (c *client) tell() error {
	r := c.about()
	r.OmitPeers = true
	code, body, err := c.call(context.Background(), "/machine/map", r)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("%d: %s", code, body)
	}
	return err
}

func (c *client) mustTell() {
	c.m.t.Helper()
	c.m.must(c.tell())
}

// full asks for the whole map without a word of the client's own: what a new
// session would be told.
func (c *client) full() *view {
	c.m.t.Helper()
	r := &tailcfg.MapRequest{Version: c.version, NodeKey: c.node, Endpoints: c.m.node(c.node).Endpoints}
	_, body, err := c.call(context.Background(), "/machine/map", r)
	c.m.must(err)
	v := newView()
	f, err := readFrame(bytes.NewReader(body), nil)
	c.m.must(err)
	v.apply(f)
	return v
}

// poll is a long poll of the map, and all that it has told.
type poll struct {
	cancel context.CancelFunc
	done   chan struct{} // closed at its end
	read   chan struct{} // closed: frames are read

	mu     sync.Mutex // guards all below
	frames []*tailcfg.MapResponse
	texts  []string
	view   *view
	err    error
	code   int
}

// stream begins a long poll. The test's end stops it.
func (c *client) stream(edit ...func(*tailcfg.MapRequest)) *poll {
	c.m.t.Helper()
	p := &poll{done: make(chan struct{}), read: make(chan struct{}), view: newView()}
	close(p.read)
	p.begin(c, edit...)
	return p
}

func (p *poll) begin(c *client, edit ...func(*tailcfg.MapRequest)) {
	r := c.about()
	r.Stream = true
	for _, e := range edit {
		e(r)
	}
	if c.http == nil {
		c.m.must(c.connect()) // not in the poll's goroutine
	}
	body, err := json.Marshal(r) // nor this: the client's fields are the test's
	c.m.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	go p.run(ctx, *c, string(body), r.Compress == "zstd")
	c.m.t.Cleanup(func() { cancel(); <-p.done })
}

func (p *poll) run(ctx context.Context, c client, body string, packed bool) {
	defer close(p.done)
	res, err := c.post(ctx, "/machine/map", body)
	if err != nil {
		p.fail(err, 0)
		return
	}
	defer res.Body.Close()
	p.fail(nil, res.StatusCode)
	<-p.read
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		panic(err)
	}
	defer dec.Close()
	if !packed {
		dec = nil
	}
	for {
		text, err := readFrame(res.Body, dec)
		if err != nil {
			p.fail(err, res.StatusCode)
			return
		}
		p.mu.Lock()
		p.texts = append(p.texts, string(text))
		p.frames = append(p.frames, p.view.apply(text))
		p.mu.Unlock()
	}
}

func (p *poll) fail(err error, code int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err, p.code = err, code
}

// got is what came since the last call.
func (p *poll) got() []*tailcfg.MapResponse {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.frames
	p.frames = nil
	return out
}

// forget drops the texts that came.
func (p *poll) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.texts, p.frames = nil, nil
}

// over reports whether the poll has ended.
func (p *poll) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// bytes is how much text came.
func (p *poll) bytes() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, text := range p.texts {
		n += len(text)
	}
	return n
}

// now is what the client knows.
func (p *poll) now() *view {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.view.clone()
}

// readFrame gives the JSON of the next message.
func readFrame(r io.Reader, dec *zstd.Decoder) ([]byte, error) {
	var n uint32
	if err := binary.Read(r, binary.LittleEndian, &n); err != nil {
		return nil, err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	if dec == nil {
		return b, nil
	}
	return dec.DecodeAll(b, nil)
}
