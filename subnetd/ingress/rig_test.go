package ingress

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
	"testing"
	"time"
)

const patience = time.Minute // with what has to happen sometime

// rig is a server on a port of this machine.
type rig struct {
	t    testing.TB
	s    *Server
	addr string
	id   Identity
	stop func() error
}

// serve runs a server until the test ends. before may change it.
func serve(t testing.TB, b Bounds, before func(*Server)) *rig {
	t.Helper()
	noLeak(t)
	id, err := SelfSigned(time.Now(), []string{"home.test"}, []netip.Addr{netip.MustParseAddr("127.0.0.1")}, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := id.TLS()
	r := &rig{t: t, id: id, s: New(Config{
		Listen:      "127.0.0.1:0",
		Handler:     testHandler(t),
		Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil },
		Bounds:      b,
		Log:         slog.New(slog.DiscardHandler),
	})}
	if before != nil {
		before(r.s)
	}
	l, err := net.Listen("tcp", r.s.cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.s.Serve(ctx, l) }()
	r.stop = func() error {
		cancel()
		select {
		case err := <-ended:
			ended <- err
			return err
		case <-time.After(patience):
			return errors.New("does not end")
		}
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// testHandler answers with what it has heard; /up takes the connection over and
// echoes.
func testHandler(t testing.TB) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/say", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "%s %s tls=%t %s", r.Method, r.Proto, r.TLS != nil, body)
	})
	mux.HandleFunc("/up", func(w http.ResponseWriter, r *http.Request) {
		c, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		below := c
		if tc, ok := c.(*tls.Conn); ok {
			below = tc.NetConn()
		}
		below.(interface{ Established() }).Established()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
		io.Copy(c, brw.Reader)
	})
	return mux
}

// dial connects from an address of this machine.
func (r *rig) dial(from string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
	c, err := d.Dial("tcp", r.addr)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	return c, nil
}

func (r *rig) tls(c net.Conn) *tls.Conn {
	return tls.Client(c, &tls.Config{ServerName: "home.test", InsecureSkipVerify: true})
}

// say asks over a connection and gives the answer.
func say(c net.Conn, body string) (string, error) {
	c.SetDeadline(time.Now().Add(patience))
	_, err := fmt.Fprintf(c, "POST /say HTTP/1.1\r\nHost: home.test\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if err != nil {
		return "", err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// up makes an established connection, which echoes.
func up(c net.Conn) error {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, "GET /up HTTP/1.1\r\nHost: home.test\r\n\r\n"); err != nil {
		return err
	}
	want := "HTTP/1.1 101 Switching Protocols\r\n\r\n"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != want {
		return fmt.Errorf("got %q", got)
	}
	return nil
}

func echo(c net.Conn, what string) error {
	c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, what); err != nil {
		return err
	}
	got := make([]byte, len(what))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != what {
		return fmt.Errorf("%q came back as %q", what, got)
	}
	return nil
}

// closed waits until the other end has closed the connection.
func closed(t testing.TB, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		t.Fatalf("the connection lives: %v", err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
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

// noLeak fails the test if something of this package still works after it.
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
		if strings.Contains(g, "subnetd/ingress.") && !strings.Contains(g, "testing.tRunner") && !strings.Contains(g, "testing.(*M).Run") {
			left = append(left, g)
		}
	}
	return strings.Join(left, "\n\n")
}
