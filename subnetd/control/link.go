package control

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"tailscale.com/control/controlbase"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// capVersion is the capability version that this client keeps to: Headscale
// v0.29 wants 113 or more; from 121 on peers expect relay discovery of us.
const capVersion = 119

const (
	dialTimeout = 15 * time.Second // for /key, and for the upgrade
	maxAnswer   = 1 << 20          // bytes of any answer but the map stream
	maxEarly    = 1 << 20          // bytes of the payload before HTTP/2
	earlyMagic  = "\xff\xff\xffTS"
)

// web makes plain HTTP(S) connections to the coordinator, before Noise.
type web struct {
	base *url.URL
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
	now  func() time.Time
}

func parseBase(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("the coordinator's address %q is not of the form https://host or http://host", s)
	}
	return u, nil
}

// client is for one request with ctx. Left to itself the transport would let the
// dial and the TLS handshake outlive the request, a mute server's for ever.
func (w *web) client(ctx context.Context) *http.Client {
	return &http.Client{Timeout: dialTimeout, Transport: &http.Transport{
		DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		DialContext: func(_ context.Context, network, addr string) (net.Conn, error) {
			return w.dial(ctx, network, addr)
		},
		DialTLSContext: func(_ context.Context, _, addr string) (net.Conn, error) { return w.dialTLS(ctx, addr) },
	}}
}

// dialTLS must not let HTTP/2 be chosen: it has no upgrade.
func (w *web) dialTLS(ctx context.Context, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("dial %q: %w", addr, err)
	}
	nc, err := w.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	tc := tls.Client(nc, &tls.Config{ServerName: host, NextProtos: []string{"http/1.1"}, Time: w.now, MinVersion: tls.VersionTLS12})
	if err := tc.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	return tc, nil
}

// serverKey asks for the coordinator's Noise key. Over https this is the one
// place where certificates matter.
func (w *web) serverKey(ctx context.Context) (key.MachinePublic, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	u := w.base.JoinPath("key")
	u.RawQuery = "v=" + strconv.Itoa(capVersion)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return key.MachinePublic{}, fmt.Errorf("ask for the coordinator's key: %w", err)
	}
	res, err := w.client(ctx).Do(req)
	if err != nil {
		return key.MachinePublic{}, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return key.MachinePublic{}, &statusError{what: "/key", code: res.StatusCode}
	}
	var ans tailcfg.OverTLSPublicKeyResponse
	body, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return key.MachinePublic{}, err
	}
	if err := json.Unmarshal(body, &ans); err != nil || ans.PublicKey.IsZero() {
		return key.MachinePublic{}, errNoCoordinator
	}
	return ans.PublicKey, nil
}

// upgrade opens a Noise connection to the coordinator.
func (w *web) upgrade(ctx context.Context, machine key.MachinePrivate, server key.MachinePublic) (*earlyConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	hello, cont, err := controlbase.ClientDeferred(machine, server, capVersion)
	if err != nil {
		return nil, fmt.Errorf("begin Noise handshake: %w", err)
	}
	nc, err := w.connect(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	conn, err := w.handshake(ctx, nc, hello, cont)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		nc.Close()
		return nil, err
	}
	return conn, nil
}

func (w *web) connect(ctx context.Context) (net.Conn, error) {
	port := w.base.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[w.base.Scheme]
	}
	addr := net.JoinHostPort(w.base.Hostname(), port)
	if w.base.Scheme == "https" {
		return w.dialTLS(ctx, addr)
	}
	return w.dial(ctx, "tcp", addr)
}

func (w *web) handshake(ctx context.Context, nc net.Conn, hello []byte, cont controlbase.HandshakeContinuation) (*earlyConn, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.base.JoinPath("ts2021").String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask for the upgrade: %w", err)
	}
	req.Header.Set("Upgrade", "tailscale-control-protocol")
	req.Header.Set("Connection", "upgrade")
	req.Header.Set("X-Tailscale-Handshake", base64.StdEncoding.EncodeToString(hello))
	if err := req.Write(nc); err != nil {
		return nil, err
	}
	head := &io.LimitedReader{R: nc, N: 64 << 10} // a head that never ends is cut off
	br := bufio.NewReader(head)
	res, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		res.Body.Close()
		return nil, &statusError{what: "/ts2021", code: res.StatusCode}
	}
	head.N = math.MaxInt64
	conn, err := cont(ctx, &bufferedConn{Conn: nc, r: br})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errHandshake, err)
	}
	return &earlyConn{Conn: conn}, nil
}

// bufferedConn reads first what was read ahead with the answer's head.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(b []byte) (int, error) { return c.r.Read(b) }

// earlyConn skips the payload that a coordinator may send before HTTP/2. Its
// challenge needs no answer. Only one goroutine reads.
type earlyConn struct {
	net.Conn
	r      io.Reader             // nil until the start was looked at
	heard  atomic.Bool           // something came
	failed atomic.Pointer[error] // why nothing will come
}

func (c *earlyConn) Read(b []byte) (int, error) {
	if c.r == nil {
		r, err := skipEarly(c.Conn)
		if err != nil {
			c.failed.CompareAndSwap(nil, &err)
			return 0, err
		}
		c.r = r
		c.heard.Store(true)
	}
	return c.r.Read(b)
}

// Write may be the first to see that the coordinator has closed the connection.
func (c *earlyConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil && !c.heard.Load() {
		err = fmt.Errorf("%w: %w", errClosedEarly, err)
		c.failed.CompareAndSwap(nil, &err)
	}
	return n, err
}

// why is the reason behind err: HTTP/2 often tells only that it has no connection.
func (c *earlyConn) why(err error) error {
	if p := c.failed.Load(); p != nil {
		return *p
	}
	return err
}

// skipEarly returns what follows the early payload, if there is one.
func skipEarly(r io.Reader) (io.Reader, error) {
	var head [9]byte // the size of an HTTP/2 frame's head
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("%w: %w", errClosedEarly, err)
	}
	if string(head[:5]) != earlyMagic {
		return io.MultiReader(bytes.NewReader(head[:]), r), nil
	}
	n := binary.BigEndian.Uint32(head[5:])
	if n > maxEarly {
		return nil, fmt.Errorf("the coordinator's early payload of %d bytes is too large", n)
	}
	if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
		return nil, fmt.Errorf("read early payload: %w", err)
	}
	return r, nil
}

// link is one Noise connection with HTTP/2 on it.
type link struct {
	conn *earlyConn
	host string
	tr   *http.Transport
}

// newLink takes over conn.
func newLink(conn *earlyConn, host string) *link {
	l := &link{conn: conn, host: host}
	var once sync.Once
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	l.tr = &http.Transport{
		MaxConnsPerHost: 1, Protocols: protocols,
		// A dead connection is found even while a long poll is silent by nature.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 60 * time.Second, PingTimeout: 30 * time.Second},
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			var first net.Conn
			once.Do(func() { first = conn })
			if first == nil {
				return nil, errLinkDown
			}
			return first, nil
		},
	}
	return l
}

func (l *link) close() {
	l.conn.Close()
	l.tr.CloseIdleConnections()
}

// do sends body to path on this connection. The caller closes the answer's body.
func (l *link) do(ctx context.Context, path string, node key.NodePublic, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+l.host+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make request for %s: %w", path, err)
	}
	req.Header.Set("Content-Type", "application/json")
	if !node.IsZero() {
		req.Header.Set(tailcfg.LBHeader, node.String())
	}
	res, err := l.tr.RoundTrip(req)
	if err != nil {
		return nil, l.conn.why(err)
	}
	return res, nil
}

// statusError is an answer other than 200.
type statusError struct {
	what  string
	code  int
	after time.Duration // asked by the coordinator; 0: not said
	text  string        // first line of the answer
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("the coordinator answered %s with HTTP status %d", e.what, e.code)
	if e.text != "" {
		s += ": " + e.text
	}
	return s
}

var (
	errNoCoordinator = errors.New("no coordinator answers there")
	errHandshake     = errors.New("the Noise handshake failed")
	errClosedEarly   = errors.New("the coordinator closed the connection before its first answer")
	errLinkDown      = errors.New("the connection to the coordinator is gone")
)

func statusErrorOf(what string, res *http.Response, now time.Time) *statusError {
	text, _ := io.ReadAll(io.LimitReader(res.Body, 256))
	line, _, _ := bytes.Cut(bytes.TrimSpace(text), []byte("\n"))
	return &statusError{what: what, code: res.StatusCode, text: printable(line), after: retryAfter(res.Header.Get("Retry-After"), now)}
}

// printable keeps a server's words from steering a terminal.
func printable(b []byte) string {
	return string(bytes.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, b))
}

// retryAfter reads seconds or a date; more than an hour is not believed.
func retryAfter(s string, now time.Time) time.Duration {
	var d time.Duration
	if n, err := strconv.Atoi(s); err == nil {
		d = time.Duration(min(n, 1<<20)) * time.Second
	} else if t, err := http.ParseTime(s); err == nil {
		d = t.Sub(now)
	}
	if d < 0 || d > time.Hour {
		return 0
	}
	return d
}
