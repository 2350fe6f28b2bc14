package swarm

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
	"net/url"
	"strconv"
	"time"

	"tailscale.com/control/controlbase"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

const (
	version     = tailcfg.CurrentCapabilityVersion // as the stock client of the same release
	dialTimeout = 30 * time.Second                 // one core may have hundreds of handshakes before ours
	maxAnswer   = 1 << 20                          // bytes of any answer but the map stream
	maxEarly    = 1 << 20                          // bytes of the payload before HTTP/2
	earlyMagic  = "\xff\xff\xffTS"
)

// serverKey asks for the coordinator's Noise key.
func serverKey(ctx context.Context, base *url.URL, dial dialer) (key.MachinePublic, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	u := base.JoinPath("key")
	u.RawQuery = "v=" + strconv.Itoa(int(version))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return key.MachinePublic{}, fmt.Errorf("ask for the coordinator's key: %w", err)
	}
	tr := &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return dial(ctx, addr) }}
	res, err := tr.RoundTrip(req)
	if err != nil {
		return key.MachinePublic{}, fmt.Errorf("ask for the coordinator's key: %w", err)
	}
	var ans tailcfg.OverTLSPublicKeyResponse
	if err := decode(res, &ans); err != nil {
		return key.MachinePublic{}, fmt.Errorf("ask for the coordinator's key: %w", err)
	}
	return ans.PublicKey, nil
}

// decode reads an answer of status 200.
func decode(res *http.Response, into any) error {
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("HTTP status %d: %.200s", res.StatusCode, bytes.TrimSpace(body))
	}
	return json.Unmarshal(body, into)
}

type dialer func(ctx context.Context, addr string) (net.Conn, error)

// link is one Noise connection with HTTP/2 on it.
type link struct {
	h2   *http.ClientConn
	conn net.Conn
	host string
}

// connect opens a link to the coordinator at base.
func connect(ctx context.Context, base *url.URL, dial dialer, machine key.MachinePrivate, server key.MachinePublic) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := dial(ctx, base.Host)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	l, err := upgrade(ctx, base, raw, machine, server)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return l, nil
}

// upgrade turns a TCP connection into a link.
func upgrade(ctx context.Context, base *url.URL, raw net.Conn, machine key.MachinePrivate, server key.MachinePublic) (*link, error) {
	hello, finish, err := controlbase.ClientDeferred(machine, server, uint16(version))
	if err != nil {
		return nil, fmt.Errorf("begin Noise handshake: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base.JoinPath("ts2021").String(), nil)
	if err != nil {
		return nil, fmt.Errorf("ask for the upgrade: %w", err)
	}
	req.Header.Set("Upgrade", "tailscale-control-protocol")
	req.Header.Set("Connection", "upgrade")
	req.Header.Set("X-Tailscale-Handshake", base64.StdEncoding.EncodeToString(hello))
	if err := req.Write(raw); err != nil {
		return nil, fmt.Errorf("ask for the upgrade: %w", err)
	}
	br := bufio.NewReaderSize(raw, 512)
	res, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, fmt.Errorf("ask for the upgrade: %w", err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		return nil, fmt.Errorf("ask for the upgrade: HTTP status %d", res.StatusCode)
	}
	noise, err := finish(ctx, &readAhead{Conn: raw, r: br})
	if err != nil {
		return nil, fmt.Errorf("the Noise handshake failed: %w", err)
	}
	return speakHTTP2(ctx, &early{Conn: noise}, base.Hostname())
}

func speakHTTP2(ctx context.Context, conn net.Conn, host string) (*link, error) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: protocols,
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
	h2, err := tr.NewClientConn(ctx, "https", host+":443")
	if err != nil {
		return nil, fmt.Errorf("begin HTTP/2: %w", err)
	}
	return &link{h2: h2, conn: conn, host: host}, nil
}

func (l *link) close() {
	l.conn.Close()
	_ = l.h2.Close() // it says that the connection is closed
}

// post sends body as JSON. The caller closes the answer's body.
func (l *link) post(ctx context.Context, path string, node key.NodePublic, body any) (*http.Response, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("write request for %s: %w", path, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+l.host+path, bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("make request for %s: %w", path, err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(tailcfg.LBHeader, node.String())
	return l.h2.RoundTrip(req)
}

// readAhead reads first what came together with the head of the answer.
type readAhead struct {
	net.Conn
	r *bufio.Reader
}

func (c *readAhead) Read(b []byte) (int, error) {
	if c.r != nil && c.r.Buffered() > 0 {
		return c.r.Read(b)
	}
	c.r = nil // its buffer is worth more to others
	return c.Conn.Read(b)
}

// early skips the payload that a coordinator may send before HTTP/2. Only one goroutine reads.
type early struct {
	net.Conn
	r io.Reader // nil until the beginning was looked at
}

func (c *early) Read(b []byte) (int, error) {
	if c.r == nil {
		r, err := skipEarly(c.Conn)
		if err != nil {
			return 0, err
		}
		c.r = r
	}
	return c.r.Read(b)
}

// skipEarly returns what follows the early payload, if there is one.
func skipEarly(r io.Reader) (io.Reader, error) {
	var head [9]byte // the size of an HTTP/2 frame's head
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("the coordinator closed the connection before its first answer: %w", err)
	}
	if string(head[:5]) != earlyMagic {
		return io.MultiReader(bytes.NewReader(head[:]), r), nil
	}
	n := binary.BigEndian.Uint32(head[5:])
	if n > maxEarly {
		return nil, errors.New("the coordinator's early payload is too large")
	}
	if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
		return nil, fmt.Errorf("read early payload: %w", err)
	}
	return r, nil
}
