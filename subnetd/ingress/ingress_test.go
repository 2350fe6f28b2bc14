package ingress

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/acme"
)

// One port, both ways; nothing that was read to tell them apart is lost.
func TestPlainAndTLS(t *testing.T) {
	r := serve(t, Bounds{}, nil)
	body := strings.Repeat("x", 100_000)
	for _, tt := range []struct {
		name string
		wrap func(net.Conn) net.Conn
		want string
	}{
		{"plain", func(c net.Conn) net.Conn { return c }, "POST HTTP/1.1 tls=false "},
		{"TLS", func(c net.Conn) net.Conn { return r.tls(c) }, "POST HTTP/1.1 tls=true "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw, err := r.dial("127.0.0.1")
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			c := tt.wrap(raw)
			if got, err := say(c, body); err != nil || got != tt.want+body {
				t.Fatalf("got %.60q, %v", got, err)
			}
			if err := up(c); err != nil {
				t.Fatal(err)
			}
			if err := echo(c, "taken over"); err != nil {
				t.Fatal(err)
			}
			if got := r.s.Stats(); got.Established != 1 || got.Pending != 0 {
				t.Errorf("%+v", got)
			}
			raw.Close()
			until(t, "the handler's end", func() bool { return r.s.Stats().Established == 0 })
		})
	}
}

// A client that prefers HTTP/2 gets HTTP/1.1, as connections must be taken over;
// tls-alpn-01 is answered only where ACME is in use.
func TestProtocols(t *testing.T) {
	for _, tt := range []struct {
		acme  bool
		offer []string
		want  string // "": the handshake fails
	}{
		{false, []string{"h2", "http/1.1"}, "http/1.1"},
		{false, nil, "none"},
		{false, []string{"h2"}, ""},
		{false, []string{acme.ALPNProto}, ""},
		{true, []string{acme.ALPNProto}, acme.ALPNProto},
		{true, []string{"http/1.1"}, "http/1.1"},
	} {
		t.Run(fmt.Sprint(tt.acme, tt.offer), func(t *testing.T) {
			r := serve(t, Bounds{}, func(s *Server) {
				s.cfg.ACME = tt.acme
				s.tls = tlsConfig(s.cfg)
			})
			raw, err := r.dial("127.0.0.1")
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: tt.offer})
			got := ""
			if err := c.Handshake(); err == nil {
				if got = c.ConnectionState().NegotiatedProtocol; got == "" {
					got = "none"
				}
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestNoCertificate(t *testing.T) {
	r := serve(t, Bounds{}, func(s *Server) { s.cfg.Certificate = nil })
	c, err := r.dial("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := r.tls(c).Handshake(); err == nil {
		t.Error("a handshake without a certificate")
	}
}

func TestHeaderTooLong(t *testing.T) {
	r := serve(t, Bounds{}, nil)
	c, err := r.dial("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /say HTTP/1.1\r\nHost: home.test\r\nX: %s\r\n\r\n", strings.Repeat("x", 2*maxHeader))
	answer, _ := io.ReadAll(c)
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 431 ")) {
		t.Errorf("got %.60q", answer)
	}
}

// When the server ends, connections that handlers have taken over end too, and
// so does who has said nothing yet.
func TestEnd(t *testing.T) {
	r := serve(t, Bounds{}, nil)
	var conns []net.Conn
	for i := range 6 {
		c, err := r.dial("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%3 == 0 {
			if err := up(c); err != nil {
				t.Fatal(err)
			}
		}
		if i%3 == 1 {
			io.WriteString(c, "\x16\x03\x01")
		}
		conns = append(conns, c)
	}
	until(t, "all to be in", func() bool { s := r.s.Stats(); return s.Pending+s.Established == 6 })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	for _, c := range conns {
		closed(t, c)
	}
	if c, err := r.dial("127.0.0.1"); err == nil {
		c.Close()
		t.Error("it still listens")
	}
}

func TestListenError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := New(Config{Listen: l.Addr().String(), Log: slog.New(slog.DiscardHandler)})
	err = s.Run(t.Context())
	if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "home.listen") {
		t.Errorf("got %v", err)
	}
}

// An established connection has what keeps dead peers and old packets short.
func TestTuned(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ours := newGate(Bounds{}, time.Now).admit(in)
	defer ours.Close()
	ours.Established()
	raw, err := in.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for opt, want := range map[int]int{18: 30_000, 25: 128 << 10} {
		raw.Control(func(fd uintptr) {
			if got, err := syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, opt); err != nil || got != want {
				t.Errorf("TCP option %d: got %d, %v, want %d", opt, got, err, want)
			}
		})
	}
}

// A panic of a handler is one connection's.
func TestPanic(t *testing.T) {
	r := serve(t, Bounds{}, func(s *Server) {
		inner := s.cfg.Handler
		s.cfg.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/panic" {
				panic("ouch")
			}
			inner.ServeHTTP(w, r)
		})
	})
	for range 3 {
		c, err := r.dial("127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.WriteString(c, "GET /panic HTTP/1.1\r\nHost: home.test\r\n\r\n")
		closed(t, c)
	}
	c, err := r.dial("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := say(c, "alive?"); err != nil {
		t.Error(err)
	}
}

// Without file descriptors the server waits, and does not spin; who is connected
// notices nothing, and who was waiting is served afterwards.
func TestNoDescriptors(t *testing.T) {
	warned := make(chan struct{}, 100)
	r := serve(t, Bounds{}, func(s *Server) {
		s.cfg.Log = slog.New(noteHandler{slog.DiscardHandler, warned})
	})
	old, err := r.dial("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := up(old); err != nil {
		t.Fatal(err)
	}
	free := exhaust(t)
	waiting, err := r.dial("127.0.0.1") // has the last descriptor; the server has none for its end
	if err != nil {
		free()
		t.Fatal(err)
	}
	defer waiting.Close()
	<-warned
	for i := range 100 {
		if err := echo(old, fmt.Sprint("still here ", i)); err != nil {
			t.Error(err)
		}
	}
	free()
	if _, err := say(waiting, "at last"); err != nil {
		t.Error(err)
	}
	if n := len(warned); n > 0 {
		t.Errorf("%d more warnings: one was enough", n)
	}
}

// exhaust opens files until there is one descriptor left.
func exhaust(t *testing.T) (free func()) {
	t.Helper()
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := syscall.Rlimit{Cur: 200, Max: limit.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for {
		f, err := os.Open("/dev/null")
		if err != nil {
			break
		}
		files = append(files, f)
	}
	files[0].Close()
	files = files[1:]
	var once sync.Once
	free = func() {
		once.Do(func() {
			for _, f := range files {
				f.Close()
			}
			syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
		})
	}
	t.Cleanup(free)
	return free
}

// noteHandler tells of every warning.
type noteHandler struct {
	slog.Handler
	warned chan struct{}
}

func (n noteHandler) Enabled(context.Context, slog.Level) bool { return true }
func (n noteHandler) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		n.warned <- struct{}{}
	}
	return nil
}
func (n noteHandler) WithAttrs([]slog.Attr) slog.Handler { return n }
func (n noteHandler) WithGroup(string) slog.Handler      { return n }

// flaky is a listener that fails for a while.
type flaky struct {
	net.Listener
	fail  time.Duration
	since time.Time
	tries atomic.Int64
}

func (f *flaky) Accept() (net.Conn, error) {
	f.tries.Add(1)
	if time.Since(f.since) < f.fail {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return f.Listener.Accept()
}

// The waits between two tries grow to a second, and no further.
func TestAcceptBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		f := &flaky{Listener: p, fail: time.Minute, since: time.Now()}
		stop := bubble(t, f, Bounds{}, nil)
		defer stop()
		c := p.dial("192.0.2.1:1")
		defer c.Close()
		if _, err := say(c, "hello"); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(f.since); took < time.Minute || took > time.Minute+2*maxBackoff {
			t.Errorf("served after %s", took)
		}
		if n := f.tries.Load(); n > 80 {
			t.Errorf("%d tries in a minute", n)
		}
	})
}
