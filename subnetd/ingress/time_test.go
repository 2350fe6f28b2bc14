package ingress

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a network in memory, for bubbles.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error {
	select {
	case <-p.done:
	default:
		close(p.done)
	}
	return nil
}
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// dial connects from an address.
func (p *pipes) dial(from string) net.Conn {
	ours, theirs := net.Pipe()
	select {
	case p.conns <- pipeEnd{theirs, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))}:
	case <-p.done:
		theirs.Close()
	}
	return ours
}

type pipeEnd struct {
	net.Conn
	from net.Addr
}

func (p pipeEnd) RemoteAddr() net.Addr { return p.from }

// bubble serves in a bubble.
func bubble(t *testing.T, l net.Listener, b Bounds, out **Server) (stop func()) {
	id, err := SelfSigned(time.Now(), []string{"home.test"}, nil, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := id.TLS()
	s := New(Config{
		Handler:     testHandler(t),
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
		Bounds:      b,
		Log:         slog.New(slog.DiscardHandler),
	})
	if out != nil {
		*out = s
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Serve(ctx, l) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// A peer that does not get ahead is let go, however it dawdles.
func TestDawdlers(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(c net.Conn)
		want time.Duration
	}{
		{"silent", func(net.Conn) {}, headerTimeout},
		{"half a TLS hello", func(c net.Conn) { io.WriteString(c, "\x16\x03\x01\x02\x00") }, headerTimeout},
		{"half a header", func(c net.Conn) { io.WriteString(c, "GET / HTTP/1.1\r\nHost:") }, headerTimeout},
		{"a byte a second", func(c net.Conn) {
			go func() {
				io.WriteString(c, "GET / HTTP/1.1\r\nX: ")
				for {
					if _, err := io.WriteString(c, "x"); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			}()
		}, headerTimeout},
		{"idle after a request", func(c net.Conn) {
			if _, err := say(c, "hello"); err != nil {
				panic(err)
			}
		}, idleTimeout},
		{"half a body", func(c net.Conn) {
			io.WriteString(c, "POST /say HTTP/1.1\r\nHost: home.test\r\nContent-Length: 100\r\n\r\nx")
		}, pendingLife},
		{"a request every ten seconds", func(c net.Conn) {
			go func() {
				for {
					if _, err := say(c, "hello"); err != nil {
						return
					}
					time.Sleep(10 * time.Second)
				}
			}()
		}, pendingLife},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPipes()
				var s *Server
				defer bubble(t, p, Bounds{}, &s)()
				c := p.dial("192.0.2.1:1")
				defer time.Sleep(time.Minute) // so that who writes notices
				defer c.Close()
				begin := time.Now()
				tt.do(c)
				until := func() bool { synctest.Wait(); return s.Stats().Pending == 0 }
				for !until() {
					time.Sleep(time.Second)
					if time.Since(begin) > time.Minute {
						t.Fatal("it lives for ever")
					}
				}
				if took := time.Since(begin); took < tt.want || took > tt.want+2*time.Second {
					t.Errorf("closed after %s, want %s", took, tt.want)
				}
			})
		})
	}
}

// Who is established stays, however long he is silent.
func TestEstablishedStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		defer bubble(t, p, Bounds{}, nil)()
		raw := p.dial("[2001:db8::1]:1")
		defer raw.Close()
		c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true})
		if err := up(c); err != nil {
			t.Fatal(err)
		}
		time.Sleep(24 * time.Hour)
		if err := echo(c, "good morning"); err != nil {
			t.Error(err)
		}
	})
}
