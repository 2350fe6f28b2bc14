package control

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"subnetd/subnetd/status"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// authority signs certificates. TestMain makes one that all tests trust.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var trusted authority // set once by TestMain, before the system's roots are read

func TestMain(m *testing.M) {
	code, err := mainWithRoot(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func mainWithRoot(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if trusted, err = newAuthority(); err != nil {
		return 0, err
	}
	file := filepath.Join(dir, "root.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: trusted.cert.Raw}), 0o600); err != nil {
		return 0, err
	}
	if err := errors.Join(os.Setenv("SSL_CERT_FILE", file), os.Setenv("SSL_CERT_DIR", dir)); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

func newAuthority() (authority, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(50, 0, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		return authority{}, err
	}
	cert, err := x509.ParseCertificate(der)
	return authority{cert, k}, err
}

// serve is what a server with a certificate for the loopback address is set up with.
func (a authority) serve(t testing.TB, edit func(*x509.Certificate)) *tls.Config {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "coordinator"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if edit != nil {
		edit(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, k.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: k}}, NextProtos: []string{"h2", "http/1.1"}}
}

// Over true sockets, with and without TLS: join, hear of a peer, leave.
func TestLoopback(t *testing.T) {
	for name, cfg := range map[string]*tls.Config{"http": nil, "https": trusted.serve(t, nil)} {
		t.Run(name, func(t *testing.T) {
			c := onLoopback(t, cfg)
			say := make(chan *tailcfg.MapResponse)
			c.does(func(a *acts) { a.early, a.stream = earlyPayload(`{}`), tellPeers(say) })
			m := c.member(withKey).run()
			m.await("joined", func() bool { return m.now().Phase == status.PhaseJoined })
			say <- &tailcfg.MapResponse{PeersChanged: []*tailcfg.Node{{ID: 2, Key: nodeKey(2)}}}
			m.await("the peer", func() bool {
				nms := m.seenNetmaps()
				return nms[len(nms)-1].Peer(2) != nil
			})
			if err := m.Logout(t.Context()); err != nil {
				t.Error(err)
			}
			m.await("logged out", func() bool { return m.now().Phase == status.PhaseNeedsLogin })
			c.expectCalls("register", 3, 3)
		})
	}
}

// Certificates that are no good, as a true handshake tells.
func TestPlainCertificates(t *testing.T) {
	stranger, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		cfg  *tls.Config
		want string
	}{
		"unknown signer": {stranger.serve(t, nil), "signed by nobody this router trusts"},
		"another name":   {trusted.serve(t, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(192, 0, 2, 1)} }), "made for another name"},
		"expired":        {trusted.serve(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "expired or not yet valid"},
		"not yet valid":  {trusted.serve(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "expired or not yet valid"},
		"not of a server": {trusted.serve(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }),
			"is not valid"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := onLoopback(t, tt.cfg)
			m := c.member(withKey).run()
			m.await("trouble", func() bool { return m.now().Error != "" })
			m.expect(status.PhaseConnecting, "TLS certificate of 127.0.0.1:", tt.want)
			c.expectCalls("", 0, 0)
		})
	}
}

// What a server answers that is no coordinator, or not ours.
func TestPlainAnswers(t *testing.T) {
	say := func(code int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code); io.WriteString(w, text) }
	}
	tests := map[string]struct {
		act  acts
		want string
	}{
		"no such page":        {acts{key: say(404, "")}, "answered /key with HTTP status 404; check the address"},
		"a page of its own":   {acts{key: say(200, "<html>")}, "something answers, but no coordinator of this kind"},
		"an old coordinator":  {acts{key: say(200, `{"legacyPublicKey": "mkey:`+strings.Repeat("11", 32)+`"}`)}, "no coordinator of this kind"},
		"a page without end":  {acts{key: say(200, strings.Repeat(" ", 1<<20))}, "no coordinator of this kind"},
		"no upgrade":          {acts{upgrade: say(404, "")}, "answered /ts2021 with HTTP status 404"},
		"a proxy in between":  {acts{upgrade: say(200, "ok")}, "answered /ts2021 with HTTP status 200"},
		"too new or too old":  {acts{drop: true}, "may be too new or too old for this program (capability version 119)"},
		"early payload large": {acts{early: []byte(earlyMagic + "\x7f\xff\xff\xff")}, "early payload of 2147483647 bytes is too large"},
		"no HTTP/2":           {acts{early: []byte("HTTP/1.1 400 Bad Request\r\n\r\n")}, "The connection to the coordinator coordinator.test failed"},
		"redirect in circles": {acts{key: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/key", http.StatusFound) }}, "failed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *coordinator) {
				c.does(func(a *acts) { *a = tt.act })
				m := c.member(withKey).run()
				pass(0)
				m.expect(status.PhaseConnecting, tt.want)
				c.expectCalls("stream", 0, 0)
				onePlainSentence(t, m.now().Error)
				c.does(func(a *acts) { *a = acts{} })
				pass(longestPause)
				m.expect(status.PhaseJoined)
			})
		})
	}
}

// A coordinator that does not answer at all.
func TestPlainMute(t *testing.T) {
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for name, act := range map[string]acts{"key": {key: hang}, "upgrade": {upgrade: hang}, "handshake": {upgrade: mute}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *coordinator) {
				c.does(func(a *acts) { *a = act })
				m := c.member(withKey).run()
				pass(dialTimeout + time.Second)
				m.expect(status.PhaseConnecting, "did not answer in time")
				pass(10 * time.Minute)
				c.expectCalls("", 10, 2*40)
			})
		})
	}
}

// Each kind of error has its sentence, and is still known when it is wrapped.
func TestPlain(t *testing.T) {
	op := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", err)}
	}
	tests := []struct {
		err  error
		want string
	}{
		{&net.DNSError{Err: "no such host", Name: "host", IsNotFound: true}, "The host host is unknown"},
		{&net.DNSError{Err: "server misbehaving", Name: "host"}, "could not be looked up (server misbehaving)"},
		{&net.DNSError{Err: "i/o timeout", Name: "host", IsTimeout: true}, "could not be looked up (i/o timeout)"},
		{op(syscall.ECONNREFUSED), "refused the connection; check that it runs"},
		{op(syscall.ENETUNREACH), "cannot be reached from here"},
		{op(syscall.EHOSTUNREACH), "cannot be reached from here"},
		{op(syscall.ETIMEDOUT), "did not answer in time"},
		{context.DeadlineExceeded, "did not answer in time"},
		{os.ErrDeadlineExceeded, "did not answer in time"},
		{errSilence, "silent for two minutes"},
		{&refusedError{text: "no"}, "refuses this node (no)"},
		{&keyChangedError{want: key.NewMachine().Public(), got: key.NewMachine().Public()}, "shows another key"},
		{&statusError{what: "/key", code: 418}, "answered /key with HTTP status 418"},
		{&statusError{what: "/key", code: 418, text: "teapot"}, "HTTP status 418: teapot; check"},
		{errSave, "could not be saved"},
		{errNoCoordinator, "no coordinator of this kind"},
		{errClosedEarly, "closed the connection before its first answer"},
		{errHandshake, "encrypted handshake"},
		{errLocked, "tailnet lock on"},
		{io.EOF, "ended the connection; it is opened anew"},
		{io.ErrUnexpectedEOF, "ended the connection; it is opened anew"},
		{errFrameSize, "larger than 32 MiB"},
		{errors.New("anything else"), "failed (anything else); it is tried again"},
	}
	for _, tt := range tests {
		for _, err := range []error{tt.err, fmt.Errorf("in between: %w", tt.err)} {
			got := plain(err, "host")
			if !strings.Contains(strings.ReplaceAll(got, "in between: ", ""), tt.want) {
				t.Errorf("%v told as %q; want %q", err, got, tt.want)
			}
			onePlainSentence(t, got)
		}
	}
}

func onePlainSentence(t *testing.T, s string) {
	t.Helper()
	if s == "" || strings.ContainsAny(s, "\n\r\x1b") || !strings.HasSuffix(s, ".") || strings.Contains(s, ". ") {
		t.Errorf("%q is not one plain sentence", s)
	}
}
