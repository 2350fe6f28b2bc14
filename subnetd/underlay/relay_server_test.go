package underlay

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"subnetd/subnetd/mesh"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

// relayBackend is a relay behind its HTTP upgrade.
type relayBackend interface {
	Accept(ctx context.Context, conn derp.Conn, brw *bufio.ReadWriter, remote string)
	IsClientConnectedForTest(key.NodePublic) bool
	Close() error
}

// testRelay is a relay on loopback, with TLS and a pinned certificate.
type testRelay struct {
	t    *testing.T
	cert tls.Certificate
	pin  string
	port int

	mu      sync.Mutex // guards what is replaced when the relay starts again
	backend relayBackend
	server  *http.Server
	conns   sync.WaitGroup
}

const relayHost = "relay.test"

// selfSigned is a certificate for relayHost unless change says otherwise.
func selfSigned(t *testing.T, change func(*x509.Certificate)) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: relayHost}, DNSNames: []string{relayHost},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	if change != nil {
		change(c)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, priv.Public(), priv)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: priv}, leaf
}

func pinOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return pinPrefix + hex.EncodeToString(sum[:])
}

// startRelay runs a relay until the test ends.
func startRelay(t *testing.T) *testRelay {
	t.Helper()
	cert, leaf := selfSigned(t, nil)
	r := &testRelay{t: t, cert: cert, pin: pinOf(leaf)}
	r.start()
	t.Cleanup(r.kill)
	return r
}

// start serves on the port the relay had before, if it had one.
func (r *testRelay) start() {
	r.t.Helper()
	l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", r.port))
	if err != nil {
		r.t.Fatal(err)
	}
	r.port = l.Addr().(*net.TCPAddr).Port
	r.mu.Lock()
	defer r.mu.Unlock()
	r.backend = newRelayBackend()
	// HTTP/1.1 only: HTTP/2 has no upgrade.
	tlsListener := tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{r.cert}, NextProtos: []string{"http/1.1"}})
	r.server = &http.Server{Handler: r.handler(r.backend), ErrorLog: log.New(io.Discard, "", 0)}
	server := r.server
	r.conns.Go(func() { _ = server.Serve(tlsListener) })
}

func (r *testRelay) handler(backend relayBackend) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path != "/derp" || req.Header.Get("Upgrade") != "DERP" || req.Host != relayHost {
			http.Error(w, "no relay here", http.StatusBadRequest)
			return
		}
		conn, brw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			r.t.Errorf("hijack: %v", err)
			return
		}
		r.conns.Add(1)
		defer r.conns.Done()
		fmt.Fprint(brw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
		_ = brw.Flush()
		backend.Accept(context.Background(), conn, brw, req.RemoteAddr)
	})
}

// kill ends the relay and all its connections, as a crash would.
func (r *testRelay) kill() {
	r.mu.Lock()
	backend, server := r.backend, r.server
	r.mu.Unlock()
	server.Close()
	_ = backend.Close()
	r.conns.Wait()
}

// connected waits until the relay knows the node.
func (r *testRelay) connected(n *node) {
	r.t.Helper()
	r.mu.Lock()
	backend := r.backend
	r.mu.Unlock()
	for deadline := time.Now().Add(patience); !backend.IsClientConnectedForTest(n.key.Public()); runtime.Gosched() {
		if time.Now().After(deadline) {
			r.t.Fatal("the node did not connect to the relay")
		}
	}
}

// node is the relay in the relay map. It answers no STUN.
func (r *testRelay) node() mesh.RelayNode {
	return mesh.RelayNode{Name: "1", Host: relayHost, IPv4: "127.0.0.1", IPv6: "none", Port: r.port, STUNPort: -1, CertName: r.pin}
}

func (r *testRelay) region(id int) mesh.RelayRegion {
	return mesh.RelayRegion{ID: id, Code: "test", Nodes: []mesh.RelayNode{r.node()}}
}
