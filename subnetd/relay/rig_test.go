package relay

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/subnetd/ingress"

	"tailscale.com/derp"
	"tailscale.com/net/tlsdial"
	"tailscale.com/types/key"
)

const patience = time.Minute // with what has to happen sometime

// members are who is admitted.
type members struct {
	mu  sync.Mutex
	out map[key.NodePublic]bool
}

func (m *members) admit(k key.NodePublic) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.out[k]
}

func (m *members) remove(k key.NodePublic) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.out == nil {
		m.out = map[key.NodePublic]bool{}
	}
	m.out[k] = true
}

// rig is a relay behind a real port.
type rig struct {
	t    testing.TB
	s    *Server
	in   *ingress.Server
	addr string
	id   ingress.Identity
	members
}

func newServer(t testing.TB, cfg Config) *Server {
	if cfg.Key.IsZero() {
		cfg.Key = key.NewNode()
	}
	if cfg.Admit == nil {
		cfg.Admit = func(key.NodePublic) bool { return true }
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	return New(cfg)
}

// start runs relay and port until the test ends.
func start(t testing.TB, cfg Config) *rig {
	t.Helper()
	noLeak(t)
	id, err := ingress.SelfSigned(time.Now(), []string{"relay.test"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := id.TLS()
	r := &rig{t: t, id: id}
	if cfg.Admit == nil {
		cfg.Admit = r.admit
	}
	r.s = newServer(t, cfg)
	r.in = ingress.New(ingress.Config{
		Handler:     r.s.Handler(),
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
		Log:         slog.New(slog.DiscardHandler),
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- r.in.Serve(ctx, l) }()
	go func() { ended <- r.s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

// tls connects as far as TLS, and knows the certificate as stock clients do.
func (r *rig) tls() *tls.Conn {
	r.t.Helper()
	cfg := &tls.Config{ServerName: "relay.test"}
	tlsdial.SetConfigExpectedCertHash(cfg, strings.TrimPrefix(r.id.Pin(), "sha256-raw:"))
	c, err := tls.Dial("tcp", r.addr, cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// node is a stock client, and what it has received.
type node struct {
	*derp.Client
	t    testing.TB
	key  key.NodePublic
	conn net.Conn
	got  chan derp.ReceivedMessage // closed when the connection ends
}

func (r *rig) node() *node { return r.nodeOf(key.NewNode()) }

func (r *rig) nodeOf(k key.NodePrivate) *node {
	r.t.Helper()
	n := newNode(r.t, r.tls(), k)
	until(r.t, "the relay to know the node", func() bool { return r.s.find(n.key) != nil })
	return n
}

// newNode makes a client of a connection that speaks HTTP, and reads all it gets.
func newNode(t testing.TB, conn net.Conn, k key.NodePrivate) *node {
	t.Helper()
	n := &node{Client: upgradeTo(t, conn, k), t: t, key: k.Public(), conn: conn, got: make(chan derp.ReceivedMessage, 4096)}
	go n.read()
	return n
}

func (n *node) read() {
	defer close(n.got)
	for {
		m, err := n.Recv()
		if err != nil {
			return
		}
		if p, ok := m.(derp.ReceivedPacket); ok {
			p.Data = append([]byte(nil), p.Data...)
			m = p
		}
		n.got <- m
	}
}

func (n *node) send(to key.NodePublic, text string) {
	n.t.Helper()
	if err := n.Send(to, []byte(text)); err != nil {
		n.t.Fatal(err)
	}
}

// next is what comes next.
func (n *node) next() derp.ReceivedMessage {
	n.t.Helper()
	select {
	case m, ok := <-n.got:
		if !ok {
			n.t.Fatal("the connection has ended")
		}
		return m
	case <-time.After(patience):
		n.t.Fatal("nothing comes")
	}
	return nil
}

// expect checks what comes next.
func (n *node) expect(want derp.ReceivedMessage) {
	n.t.Helper()
	if got, want := show(n.next()), show(want); got != want {
		n.t.Fatalf("got %s, want %s", got, want)
	}
}

// ends waits until the relay has closed the connection.
func (n *node) ends() {
	n.t.Helper()
	for deadline := time.After(patience); ; {
		select {
		case _, ok := <-n.got:
			if !ok {
				return
			}
		case <-deadline:
			n.t.Fatal("the connection lives")
		}
	}
}

func packetFrom(n *node, text string) derp.ReceivedMessage {
	return derp.ReceivedPacket{Source: n.key, Data: []byte(text)}
}

func show(m derp.ReceivedMessage) string {
	if p, ok := m.(derp.ReceivedPacket); ok {
		return fmt.Sprintf("%.40q (%d bytes) from %s", p.Data, len(p.Data), p.Source.ShortString())
	}
	return fmt.Sprintf("%T%v", m, m)
}

// upgradeTo turns a connection into that of a stock client.
func upgradeTo(t testing.TB, conn net.Conn, k key.NodePrivate) *derp.Client {
	t.Helper()
	brw := bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	io.WriteString(brw, "GET /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
	brw.Flush()
	res, err := http.ReadResponse(brw.Reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(res.Status)
	}
	return greeted(t, conn, brw, k)
}

// greeted is a stock client once the relay has let it in.
func greeted(t testing.TB, conn net.Conn, brw *bufio.ReadWriter, k key.NodePrivate) *derp.Client {
	t.Helper()
	c, err := derp.NewClient(k, conn, brw, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := c.Recv(); err != nil {
		t.Fatal(err)
	} else if _, ok := m.(derp.ServerInfoMessage); !ok {
		t.Fatalf("the first is %T", m)
	}
	return c
}

// until waits for something that has to happen without being caused any more.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// noLeak fails the test if something of this package, or of the port, still works
// after it.
func noLeak(t testing.TB) {
	t.Cleanup(func() {
		left := ""
		until(t, "the end of all goroutines", func() bool {
			left = ours()
			return left == "" || t.Failed()
		})
		if left != "" {
			t.Errorf("goroutines left:\n%s", left)
		}
	})
}

func ours() string {
	buf := make([]byte, 4<<20)
	var left []string
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "subnetd/subnetd/") && !strings.Contains(g, "testing.tRunner") && !strings.Contains(g, "testing.(*M).Run") {
			left = append(left, g)
		}
	}
	return strings.Join(left, "\n\n")
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
