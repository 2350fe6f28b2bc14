package coord

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// A machine has a few connections; the oldest go, also when many come at once.
func TestCrowd(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c := m.member("c")
		var worlds []*worldConn
		for range 30 {
			m.must(c.connect())
			worlds = append(worlds, c.world)
			synctest.Wait() // the client has its answer before the coordinator counts the connection
		}
		pass(time.Second)
		for i, w := range worlds {
			if old := i < len(worlds)-maxConnsEach; w.closed.Load() != old {
				t.Errorf("connection %d is closed: %v", i, !old)
			}
		}
		if res := c.mustRegister(); !res.MachineAuthorized {
			t.Errorf("over the newest it is answered %+v", res)
		}
		m.c.crowd.mu.Lock()
		n := len(m.c.crowd.conns[c.machine.Public()])
		m.c.crowd.mu.Unlock()
		if n != maxConnsEach {
			t.Errorf("%d connections", n)
		}
		m.member("other") // is not concerned
		m.mu.Lock()
		all := m.conns
		m.mu.Unlock()
		for _, w := range all {
			_ = w.Close()
		}
		pass(time.Second)
		if len(m.c.crowd.conns) != 0 {
			t.Errorf("after all have left there are %v", m.c.crowd.conns)
		}
	})
}

// The burst: all of a machine's connections come before the first is closed.
func TestCrowdBurst(t *testing.T) {
	cr := &crowd{conns: map[key.MachinePublic][]*caller{}}
	k := key.NewMachine().Public()
	var all []*caller
	for range 100 {
		near, far := net.Pipe()
		defer near.Close()
		p := &caller{Conn: far, raw: &worldConn{Conn: far}, machine: k}
		all = append(all, p)
		cr.state(p, http.StateNew)
	}
	for i, p := range all {
		if closed := p.raw.(*worldConn).closed.Load(); closed != (i < 100-maxConnsEach) {
			t.Errorf("connection %d closed: %v", i, closed)
		}
	}
	for _, p := range all {
		cr.state(p, http.StateClosed)
	}
	if len(cr.conns) != 0 {
		t.Errorf("left over: %v", cr.conns)
	}
}

// tlsConn is a connection above another, like one of TLS, which waits before it closes.
type tlsConn struct {
	net.Conn
	below *worldConn
}

func (c *tlsConn) NetConn() net.Conn { return c.below }
func (c *tlsConn) Close() error      { panic("closing TLS may wait for the peer") }

func TestHangUpBelowTLS(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	below := &worldConn{Conn: far}
	p := &caller{Conn: far, raw: &tlsConn{far, below}}
	p.established()
	p.established()
	p.hangUp()
	if below.established.Load() != 1 || !below.closed.Load() {
		t.Errorf("established said %d times, closed %v", below.established.Load(), below.closed.Load())
	}
}

// A connection is no stranger's when its machine is a member, becomes one, or
// waits for the owner; nobody else's is.
func TestEstablished(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		is := func(c *client, want int32, when string) {
			t.Helper()
			synctest.Wait()
			if got := c.world.established.Load(); got != want {
				t.Errorf("%s: established said %d times, want %d", when, got, want)
			}
		}
		c := m.client("c", "192.0.2.1")
		m.must(c.connect())
		is(c, 0, "a handshake")
		c.mustRegister(withAuth("subnetd-wrong"))
		c.mustRegister(func(r *tailcfg.RegisterRequest) { r.Version = 1 })
		c.stream()
		if err := c.tell(); err != nil {
			t.Error(err)
		}
		if _, _, err := c.call(t.Context(), "/c2n/xyz", "x"); err != nil {
			t.Error(err)
		}
		is(c, 0, "refusals")
		c.mustRegister(withAuth(m.invite()))
		is(c, 1, "a registration")
		c.mustRegister()
		is(c, 1, "another")
		m.must(c.connect())
		is(c, 1, "a member's machine")
		v := m.client("v", "192.0.2.2")
		url := v.ask()
		is(v, 1, "a visitor")
		m.must(v.connect())
		is(v, 0, "a visitor's other connection")
		v.wait(t.Context(), url)
		pass(time.Second)
		is(v, 1, "a visitor who waits")
		_, err := m.c.Approve(t.Context(), code(url), "")
		m.must(err)
	})
}

// Strangers do not gather: with their place at the door they lose their connections.
func TestVisitorsLeave(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		var all []*client
		for i := range maxPending + 20 {
			pass(time.Second)
			c := m.client("v", fmt.Sprintf("198.51.%d.%d", i/200, i%200))
			c.ask()
			all = append(all, c)
		}
		open := func() (n int) {
			synctest.Wait()
			for _, c := range all {
				if !c.world.closed.Load() {
					n++
				}
			}
			return n
		}
		if n := open(); n != maxPending {
			t.Errorf("%d connections of visitors", n)
		}
		waits := all[len(all)-1]
		answer := waits.wait(t.Context(), waits.ask())
		member := m.member("member") // a member who asks for another key keeps its connections
		member.node = key.NewNode().Public()
		member.ask()
		pass(pendingFor - time.Millisecond)
		m.c.mu.Lock()
		m.c.sweep(time.Now().Add(time.Second)) // as if it were before the timer of one who waits
		m.c.mu.Unlock()
		if res := <-answer; res == nil || res.AuthURL == "" {
			t.Errorf("one who waits is answered %+v", res)
		}
		m.c.Pending()
		if n := open(); n != 1 || waits.world.closed.Load() || member.world.closed.Load() {
			t.Errorf("%d connections of visitors; of one who waits: closed %v; of a member: %v", n, waits.world.closed.Load(), member.world.closed.Load())
		}
		again := all[0]
		again.hangUp()
		pass(pendingFor)
		again.ask() // its own old place is no reason to hang up
		if synctest.Wait(); again.world.closed.Load() {
			t.Error("one who asks again is sent away")
		}
	})
}

// Whoever says nothing, or nonsense, is let go of.
func TestMuteConnections(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		head := "POST /ts2021 HTTP/1.1\r\nHost: x\r\nUpgrade: tailscale-control-protocol\r\nConnection: upgrade\r\nX-Tailscale-Handshake: "
		for _, say := range []string{"", "G", head, head + strings.Repeat("A", 136)} {
			near, far, err := m.dial(t.Context(), "192.0.2.1")
			m.must(err)
			_, err = io.WriteString(near, say)
			m.must(err)
			_, err = io.Copy(io.Discard, near)
			if pass(handshakeTimeout); !far.closed.Load() {
				t.Errorf("%q: %v, the connection stays", say, err)
			}
		}
		c := m.client("c", "192.0.2.1")
		m.must(c.connect())
		_, err := io.WriteString(c.conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n") // no HTTP/2 inside Noise
		m.must(err)
		res, err := http.ReadResponse(bufio.NewReader(c.conn), nil)
		if err == nil && res.StatusCode < 400 {
			t.Errorf("HTTP/1.1 inside Noise: %v", res.Status)
		}
	})
}

// A node is asked over its own connection, and answers over that.
func TestProbe(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		c, thief := m.member("c"), m.member("thief")
		if _, err := m.c.Probe(t.Context(), "c"); err == nil || !strings.Contains(err.Error(), "not connected") {
			t.Errorf("probe of one who is away: %v", err)
		}
		if _, err := m.c.Probe(t.Context(), "nobody"); err == nil {
			t.Error("probe of nobody")
		}
		p := c.stream()
		pass(time.Second)
		p.got()
		type result struct {
			took time.Duration
			err  error
		}
		probe := func(ctx context.Context) chan result {
			out := make(chan result, 1)
			go func() {
				d, err := m.c.Probe(ctx, "c")
				out <- result{d, err}
			}()
			synctest.Wait()
			return out
		}
		for answer, want := range map[string]string{"200 OK": "", "404 Not Found": `answers "404 Not Found"`} {
			out := probe(t.Context())
			fs := p.got()
			if len(fs) != 1 || fs[0].PingRequest == nil || fs[0].PingRequest.Types != "c2n" || !strings.HasPrefix(string(fs[0].PingRequest.Payload), "GET /echo HTTP/1.1\r\n") {
				t.Fatalf("the node is asked %+v", fs)
			}
			path := strings.TrimPrefix(fs[0].PingRequest.URL, "https://unused")
			body := "HTTP/1.1 " + answer + "\r\nContent-Length: 2\r\n\r\nok"
			for who, want := range map[*client]int{thief: 404, m.client("stranger", "192.0.2.5"): 404} {
				if code, _, err := who.call(t.Context(), path, body); err != nil || code != want {
					t.Errorf("another's answer: %d, %v", code, err)
				}
			}
			if code, _, err := c.call(t.Context(), path, "nonsense"); err != nil || code != http.StatusBadRequest {
				t.Errorf("nonsense: %d, %v", code, err)
			}
			pass(time.Second)
			for range 2 { // an answer twice does no harm
				if code, _, err := c.call(t.Context(), path, body); err != nil || code != http.StatusOK && code != http.StatusNotFound {
					t.Errorf("its answer: %d, %v", code, err)
				}
			}
			if r := <-out; r.err == nil && (want != "" || r.took != time.Second) || r.err != nil && (want == "" || !strings.Contains(r.err.Error(), want)) {
				t.Errorf("%s: %v, %v", answer, r.took, r.err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if r := <-probe(ctx); r.err == nil || !strings.Contains(r.err.Error(), "does not answer") {
			t.Errorf("no answer: %v", r.err)
		}
		if len(m.c.probes) != 0 {
			t.Errorf("%d probes are left", len(m.c.probes))
		}
	})
}
