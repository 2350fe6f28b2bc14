package ingress

import (
	"bytes"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"
)

// FuzzDemux: whatever comes first, the one that serves the connection reads all
// of it, and TLS gets what begins like TLS and nothing else.
func FuzzDemux(f *testing.F) {
	for _, seed := range []string{"", "G", "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x05hello", "\x16", "\x00", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\xff\x16"} {
		f.Add([]byte(seed))
	}
	s := New(Config{Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil },
		Log: slog.New(slog.DiscardHandler), Bounds: Bounds{Rate: 1e9, Burst: 1e9}})
	f.Fuzz(func(t *testing.T, data []byte) {
		client, server := net.Pipe()
		go func() {
			client.Write(data)
			client.Close()
		}()
		c := s.gate.admit(server)
		defer c.Close()
		got, err := s.demux(c)
		if len(data) == 0 {
			if err == nil {
				t.Fatal("nothing came, and it was served")
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		tc, isTLS := got.(*tls.Conn)
		if isTLS != (data[0] == recordHandshake) {
			t.Fatalf("TLS %t for %x", isTLS, data[0])
		}
		if isTLS {
			got = tc.NetConn()
		}
		read, err := io.ReadAll(got)
		if err != nil || !bytes.Equal(read, data) {
			t.Fatalf("read %q, %v", read, err)
		}
	})
}

// FuzzConnection: whatever comes, the server outlives it, and the handler is
// asked only by what is a request.
func FuzzConnection(f *testing.F) {
	for _, seed := range []string{"GET /say HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n", "\x16\x03\x01\x00\x02\x01\x00", "POST /say HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"} {
		f.Add([]byte(seed))
	}
	p := newPipes()
	s := New(Config{Handler: http.NotFoundHandler(), Certificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil },
		Log: slog.New(slog.DiscardHandler), Bounds: Bounds{Rate: 1e9, Burst: 1e9}})
	go s.Serve(f.Context(), p)
	f.Fuzz(func(t *testing.T, data []byte) {
		c := p.dial("192.0.2.1:1")
		c.SetDeadline(time.Now().Add(patience))
		go func() {
			c.Write(data)
			c.Close()
		}()
		if _, err := io.Copy(io.Discard, c); isTimeout(err) {
			t.Fatal("the connection hangs")
		}
	})
}
