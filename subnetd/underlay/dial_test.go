package underlay

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/mesh"

	"tailscale.com/types/key"
)

func TestVerifyPin(t *testing.T) {
	_, good := selfSigned(t, nil)
	_, other := selfSigned(t, nil)
	_, meta := selfSigned(t, func(c *x509.Certificate) { c.Subject.CommonName = metaPrefix + "00ff" })
	_, wrongHost := selfSigned(t, func(c *x509.Certificate) { c.DNSNames = []string{"other.test"} })
	_, old := selfSigned(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	_, early := selfSigned(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
	pin := func(c *x509.Certificate) string { return strings.TrimPrefix(pinOf(c), pinPrefix) }
	tests := []struct {
		name  string
		certs []*x509.Certificate
		pin   string
		want  string // "": accepted
	}{
		{"the pinned one", []*x509.Certificate{good}, pin(good), ""},
		{"with the relay's own extra", []*x509.Certificate{good, meta}, pin(good), ""},
		{"another", []*x509.Certificate{other}, pin(good), "not the pinned one"},
		{"behind another", []*x509.Certificate{other, good}, pin(good), "2 certificates"},
		{"before another", []*x509.Certificate{good, other}, pin(good), "2 certificates"},
		{"none", nil, pin(good), "0 certificates"},
		{"only the extra", []*x509.Certificate{meta}, pin(meta), "0 certificates"},
		{"for another host", []*x509.Certificate{wrongHost}, pin(wrongHost), "other.test"},
		{"expired", []*x509.Certificate{old}, pin(old), "valid from"},
		{"not yet valid", []*x509.Certificate{early}, pin(early), "valid from"},
		{"no pin at all", []*x509.Certificate{good}, "", "no SHA-256"},
		{"a pin cut short", []*x509.Certificate{good}, pin(good)[:62], "no SHA-256"},
		{"a pin that is no number", []*x509.Certificate{good}, "zz" + pin(good)[2:], "no SHA-256"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			wantErr(t, verifyPin(tt.certs, tt.pin, relayHost, time.Now()), tt.want)
		})
	}
}

// wantErr checks for an error with some words; "" is no error.
func wantErr(t *testing.T, err error, words string) {
	t.Helper()
	switch {
	case words == "" && err != nil:
		t.Fatal(err)
	case words != "" && (err == nil || !strings.Contains(err.Error(), words)):
		t.Fatalf("got %v, want an error about %q", err, words)
	}
}

func TestDERPDialErrors(t *testing.T) {
	noLeak(t)
	good, leaf := selfSigned(t, nil)
	web := tlsServer(t, good, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy", http.StatusServiceUnavailable) })
	rude := tlsServer(t, good, func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\n\r\nno frames at all, and more than forty bytes of it")
		conn.Close()
	})
	_, stranger := selfSigned(t, nil)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closedPort := closed.Addr().(*net.TCPAddr).Port
	closed.Close()
	node := func(port int, cert string) mesh.RelayNode {
		return mesh.RelayNode{Host: relayHost, IPv4: "127.0.0.1", IPv6: "none", Port: port, CertName: cert}
	}
	tests := []struct {
		name string
		node mesh.RelayNode
		want string
	}{
		{"closed port", node(closedPort, ""), "refused"},
		{"no address", mesh.RelayNode{Host: relayHost, IPv4: "none", IPv6: "none"}, "no usable address"},
		{"another pin", node(web, pinOf(stranger)), "not the pinned one"},
		{"not pinned, and nobody vouches for it", node(web, ""), "TLS"},
		{"another name, and nobody vouches for it", node(web, "other.test"), "TLS"},
		{"no upgrade", node(web, pinOf(leaf)), "503"},
		{"no upgrade, any certificate", mesh.RelayNode{Host: relayHost, IPv4: "127.0.0.1", IPv6: "none", Port: web, Insecure: true}, "503"},
		{"not the relay protocol", node(rude, pinOf(leaf)), "relay greeting"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := dialer{now: time.Now, log: nil}
			_, _, err := d.derp(t.Context(), tt.node, key.NewNode())
			wantErr(t, err, tt.want)
		})
	}
}

// A certificate for another name than the relay's host must be of that name,
// and somebody known must vouch for it.
func TestVerifyName(t *testing.T) {
	_, leaf := selfSigned(t, nil)
	_, meta := selfSigned(t, func(c *x509.Certificate) { c.Subject.CommonName = metaPrefix + "00ff" })
	wantErr(t, verifyName(nil, relayHost, time.Now()), "no certificate")
	wantErr(t, verifyName([]*x509.Certificate{meta}, relayHost, time.Now()), "no certificate")
	wantErr(t, verifyName([]*x509.Certificate{leaf}, "other.test", time.Now()), "other.test")
	err := verifyName([]*x509.Certificate{leaf, meta}, relayHost, time.Now())
	if unknown := (x509.UnknownAuthorityError{}); !errors.As(err, &unknown) {
		t.Errorf("self-signed: %v", err)
	}
}

// tlsServer serves HTTP/1.1 over TLS and returns its port.
func tlsServer(t *testing.T, cert tls.Certificate, h http.HandlerFunc) int {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.Listener.Addr().(*net.TCPAddr).Port
}

func TestDialHost(t *testing.T) {
	tests := []struct {
		host, literal string
		v6            bool
		want          string
		ok            bool
	}{
		{"relay.test", "", false, "relay.test", true},
		{"relay.test", "", true, "relay.test", true},
		{"relay.test", "192.0.2.1", false, "192.0.2.1", true},
		{"relay.test", "192.0.2.1", true, "192.0.2.1", false},
		{"relay.test", "2001:db8::1", true, "2001:db8::1", true},
		{"relay.test", "none", false, "none", false},
		{"192.0.2.1", "", false, "192.0.2.1", true},
		{"192.0.2.1", "", true, "192.0.2.1", false},
		{"", "", false, "", false},
	}
	for _, tt := range tests {
		if got, ok := dialHost(tt.host, tt.literal, tt.v6); got != tt.want || ok != tt.ok {
			t.Errorf("%q %q v6=%t: got %q %t", tt.host, tt.literal, tt.v6, got, ok)
		}
	}
}

// Many small writes become one, and what is large goes at once.
func TestGatherer(t *testing.T) {
	ours, theirs := net.Pipe()
	got := make(chan int, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1<<20)
		for {
			n, err := theirs.Read(b)
			if err != nil {
				return
			}
			got <- n
		}
	}()
	g := &gatherer{conn: ours}
	for range 10 {
		if _, err := g.Write(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	if len(got) != 0 {
		t.Error("written before flush")
	}
	for range 2 { // the second has nothing to do
		if err := g.flush(); err != nil {
			t.Fatal(err)
		}
	}
	if n := <-got; n != 1000 {
		t.Errorf("%d bytes at once, want 1000", n)
	}
	if _, err := g.Write(make([]byte, gatherLimit)); err != nil {
		t.Fatal(err)
	}
	if n := <-got; n != gatherLimit {
		t.Errorf("%d bytes, want %d", n, gatherLimit)
	}
	ours.Close()
	<-done
	if len(got) != 0 {
		t.Error("written twice")
	}
	if _, err := g.Write(make([]byte, gatherLimit)); err == nil {
		t.Error("no error on a closed connection")
	}
}
