package cert

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

// scene is a world with an ACME server in it, and a host that answers on ports 80 and 443
// of every address.
type scene struct {
	*world
	ca    *CA
	acme  *ACME
	front *httptest.Server
	web   *httptest.Server // port 80
	tls   net.Listener     // port 443

	mu      sync.Mutex
	answers map[string]string // what port 80 answers, by path
	shown   *tls.Certificate  // what port 443 shows
	dialled []string
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{world: newWorld(t), answers: map[string]string{}}
	s.now = time.Now() // the clients have a clock of their own
	s.ca = s.world.ca()
	s.acme = NewACME(ACMEConfig{CA: s.ca, Host: func() string { return strings.TrimPrefix(s.front.URL, "https://") }, Dial: s.dial})
	s.front = httptest.NewTLSServer(Site{CA: s.ca, ACME: s.acme})
	s.web = httptest.NewServer(http.HandlerFunc(s.answer))
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{NextProtos: []string{"acme-tls/1", "http/1.1"}, GetCertificate: s.show})
	if err != nil {
		t.Fatal(err)
	}
	s.tls = l
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.(*tls.Conn).Handshake()
			}()
		}
	}()
	t.Cleanup(func() {
		s.front.Close()
		s.web.Close()
		l.Close()
		<-served
	})
	return s
}

func (s *scene) dial(ctx context.Context, network, address string) (net.Conn, error) {
	s.mu.Lock()
	s.dialled = append(s.dialled, address)
	s.mu.Unlock()
	to := map[string]string{"80": s.web.Listener.Addr().String(), "443": s.tls.Addr().String()}
	host, port, _ := net.SplitHostPort(address)
	if host != "127.0.0.1" || to[port] == "" {
		return nil, fmt.Errorf("nobody is at %s", address)
	}
	return (&net.Dialer{}).DialContext(ctx, network, to[port])
}

func (s *scene) answer(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, ok := s.answers[r.URL.Path]
	if to, found := strings.CutPrefix(text, "to "); found {
		http.Redirect(w, r, to, http.StatusFound)
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	_, _ = io.WriteString(w, text)
}

func (s *scene) show(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shown == nil {
		return nil, errors.New("nothing to show")
	}
	return s.shown, nil
}

func (s *scene) says(path, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[path] = text
}

// client is one of Go's own, with an account.
func (s *scene) client(t testing.TB, key crypto.Signer) *acme.Client {
	t.Helper()
	c := &acme.Client{Key: key, DirectoryURL: s.front.URL + DirectoryPath, HTTPClient: s.front.Client(),
		RetryBackoff: func(int, *http.Request, *http.Response) time.Duration { return -1 }}
	if _, err := c.Register(t.Context(), &acme.Account{Contact: []string{"mailto:me@example.com"}}, acme.AcceptTOS); err != nil {
		t.Fatal(err)
	}
	return c
}

func ecKeyPair(t testing.TB) *ecdsa.PrivateKey {
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
}

// prove has one way's answer ready and asks the server to look.
func (s *scene) prove(t testing.TB, c *acme.Client, authz *acme.Authorization, way string) (*acme.Authorization, error) {
	t.Helper()
	i := slices.IndexFunc(authz.Challenges, func(x *acme.Challenge) bool { return x.Type == way })
	if i < 0 {
		t.Fatalf("%s is not offered: %+v", way, authz)
	}
	ch := authz.Challenges[i]
	if way == wayHTTP {
		s.says(c.HTTP01ChallengePath(ch.Token), must(c.HTTP01ChallengeResponse(ch.Token))(t)+"\r\n")
	} else {
		cert := must(c.TLSALPN01ChallengeCert(ch.Token, authz.Identifier.Value))(t)
		s.mu.Lock()
		s.shown = &cert
		s.mu.Unlock()
	}
	if _, err := c.Accept(t.Context(), ch); err != nil {
		return nil, err
	}
	return c.WaitAuthorization(t.Context(), authz.URI)
}

// obtain gets a certificate for names.
func (s *scene) obtain(t testing.TB, c *acme.Client, key crypto.Signer, way string, names ...string) ([]*x509.Certificate, error) {
	t.Helper()
	order, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs(names...))
	if err != nil {
		return nil, err
	}
	for _, u := range order.AuthzURLs {
		if _, err := s.prove(t, c, must(c.GetAuthorization(t.Context(), u))(t), way); err != nil {
			return nil, err
		}
	}
	if _, err := c.WaitOrder(t.Context(), order.URI); err != nil {
		return nil, err
	}
	csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, key))(t)
	ders, _, err := c.CreateOrderCert(t.Context(), order.FinalizeURL, csr, true)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for _, der := range ders {
		out = append(out, must(x509.ParseCertificate(der))(t))
	}
	return out, nil
}

func testCSR(t testing.TB, names ...string) []byte {
	t.Helper()
	return must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: names}, ecKeyPair(t)))(t)
}

func TestObtain(t *testing.T) {
	s := newScene(t)
	root := must(s.ca.Root())(t)
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	for _, tt := range []struct {
		way          string
		account, key crypto.Signer
	}{
		{wayHTTP, ecKeyPair(t), ecKeyPair(t)},
		{wayALPN, rsaKey, must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)},
		{wayHTTP, must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t), rsaKey},
	} {
		c := s.client(t, tt.account)
		saves := s.saves
		chain, err := s.obtain(t, c, tt.key, tt.way, "nas.home.mesh.internal")
		if err != nil {
			t.Fatalf("%s: %v", tt.way, err)
		}
		if s.saves != saves+1 {
			t.Errorf("the disk was written %d times for one certificate", s.saves-saves)
		}
		leaf := chain[0]
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "nas.home.mesh.internal", Roots: pool(root)}); err != nil || len(chain) != 2 || !chain[1].Equal(root) {
			t.Errorf("%v, a chain of %d", err, len(chain))
		}
		if !equal(leaf.PublicKey, tt.key.Public()) || leaf.NotAfter.Sub(s.now).Round(time.Minute) != Life {
			t.Errorf("for another key, or until %s", leaf.NotAfter)
		}
		// Renewed, which is the same once more, and given back.
		if _, err := s.obtain(t, c, tt.key, tt.way, "nas.home.mesh.internal"); err != nil {
			t.Errorf("renewal: %v", err)
		}
		if err := c.RevokeCert(t.Context(), nil, leaf.Raw, acme.CRLReasonSuperseded); err != nil {
			t.Errorf("revocation: %v", err)
		}
	}
	n := 0
	for _, c := range s.ca.Issued() {
		if !c.Revoked.IsZero() {
			n++
		}
	}
	if all := s.ca.Issued(); len(all) != 6 || n != 3 {
		t.Errorf("%d certificates, %d of them revoked", len(all), n)
	}
}

// kindOf is the last word of a problem's type.
func kindOf(err error) string {
	var e *acme.Error
	var a *acme.AuthorizationError
	switch {
	case errors.As(err, &a) && len(a.Errors) > 0:
		return kindOf(a.Errors[0])
	case errors.As(err, &e):
		return e.ProblemType[strings.LastIndexByte(e.ProblemType, ':')+1:]
	}
	return fmt.Sprint(err)
}

func TestRejected(t *testing.T) {
	s := newScene(t)
	c := s.client(t, ecKeyPair(t))
	s.hosts["example.com"] = s.hosts["nas.home.mesh.internal"]
	for name, want := range map[string]string{
		"example.com": "rejectedIdentifier", "tv.home.mesh.internal": "rejectedIdentifier", "*.home.mesh.internal": "rejectedIdentifier",
		"home.mesh.internal": "rejectedIdentifier", "127.0.0.1": "rejectedIdentifier", "": "rejectedIdentifier", "NAS.home.mesh.internal": "<nil>",
	} {
		if _, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs(name)); kindOf(err) != want {
			t.Errorf("%q: %v, want %s", name, err, want)
		}
	}
	if _, err := c.AuthorizeOrder(t.Context(), []acme.AuthzID{{Type: "ip", Value: "127.0.0.1"}}); kindOf(err) != "unsupportedIdentifier" {
		t.Errorf("an address: %v", err)
	}
	many := make([]string, maxNames+1)
	for i := range many {
		many[i] = "nas.home.mesh.internal"
	}
	if _, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs(many...)); kindOf(err) != "malformed" {
		t.Errorf("too many names: %v", err)
	}
	s.behind = true
	key := ecKeyPair(t)
	if _, err := s.obtain(t, c, key, wayHTTP, "nas.home.mesh.internal"); kindOf(err) != "serverInternal" || !strings.Contains(err.Error(), "clock") {
		t.Errorf("clock behind: %v", err)
	}
	s.behind, s.home = false, Home{}
	if _, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("nas.home.mesh.internal")); kindOf(err) != "serverInternal" {
		t.Errorf("in no mesh: %v", err)
	}
}

// Whoever does not answer as he should at the address of the name gets nothing, and the
// order is lost.
func TestUnproved(t *testing.T) {
	const path = "/.well-known/acme-challenge/"
	for name, tt := range map[string]struct {
		way   string
		spoil func(s *scene, c *acme.Client, token string)
		want  string
	}{
		"nothing there": {wayHTTP, func(s *scene, _ *acme.Client, token string) { delete(s.answers, path+token) }, "incorrectResponse"},
		"other account": {wayHTTP, func(s *scene, _ *acme.Client, token string) { s.answers[path+token] = token + ".x" }, "incorrectResponse"},
		"endless":       {wayHTTP, func(s *scene, _ *acme.Client, token string) { s.answers[path+token] += strings.Repeat(" ", 5000) + "x" }, "incorrectResponse"},
		"to elsewhere":  {wayHTTP, func(s *scene, _ *acme.Client, token string) { s.answers[path+token] = "to http://phone.mesh.internal/" }, "connection"},
		"to a port": {wayHTTP, func(s *scene, _ *acme.Client, token string) {
			s.answers[path+token] = "to http://nas.home.mesh.internal:8080/"
		}, "connection"},
		"in circles":    {wayHTTP, func(s *scene, _ *acme.Client, token string) { s.answers[path+token] = "to " + path + token }, "connection"},
		"not reached":   {wayHTTP, func(s *scene, _ *acme.Client, _ string) { s.move("127.0.0.2") }, "connection"},
		"no address":    {wayALPN, func(s *scene, _ *acme.Client, _ string) { s.move() }, "connection"},
		"no TLS":        {wayALPN, func(s *scene, _ *acme.Client, _ string) { s.shown = nil }, "tls"},
		"not reached 2": {wayALPN, func(s *scene, _ *acme.Client, _ string) { s.move("127.0.0.2") }, "connection"},
		"other token": {wayALPN, func(s *scene, c *acme.Client, _ string) {
			*s.shown, _ = c.TLSALPN01ChallengeCert("x", "nas.home.mesh.internal")
		}, "incorrectResponse"},
		"other name": {wayALPN, func(s *scene, c *acme.Client, token string) {
			*s.shown, _ = c.TLSALPN01ChallengeCert(token, "phone.mesh.internal")
		}, "incorrectResponse"},
		"its usual one": {wayALPN, func(s *scene, _ *acme.Client, _ string) {
			pair, _ := s.ca.Leaf([]string{"nas.home.mesh.internal"}, time.Hour)
			s.shown = pair
		}, "incorrectResponse"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			c := s.client(t, ecKeyPair(t))
			order := must(c.AuthorizeOrder(t.Context(), acme.DomainIDs("nas.home.mesh.internal")))(t)
			authz := must(c.GetAuthorization(t.Context(), order.AuthzURLs[0]))(t)
			i := slices.IndexFunc(authz.Challenges, func(x *acme.Challenge) bool { return x.Type == tt.way })
			token := authz.Challenges[i].Token
			cert := must(c.TLSALPN01ChallengeCert(token, "nas.home.mesh.internal"))(t)
			s.answers[path+token], s.shown = must(c.HTTP01ChallengeResponse(token))(t), &cert
			tt.spoil(s, c, token)
			must(c.Accept(t.Context(), authz.Challenges[i]))(t)
			if _, err := c.WaitAuthorization(t.Context(), authz.URI); kindOf(err) != tt.want {
				t.Errorf("%v, want %s", err, tt.want)
			}
			if o := must(c.GetOrder(t.Context(), order.URI))(t); o.Status != acme.StatusInvalid || o.Error == nil {
				t.Errorf("the order is %s, %v", o.Status, o.Error)
			}
			if _, _, err := c.CreateOrderCert(t.Context(), order.FinalizeURL, nil, true); kindOf(err) != "orderNotReady" {
				t.Errorf("finalize: %v", err)
			}
		})
	}
}

// move has the NAS be at these addresses.
func (s *scene) move(to ...string) {
	h := Host{}
	for _, a := range to {
		h.Addrs = append(h.Addrs, netip.MustParseAddr(a))
	}
	s.hosts["nas.home.mesh.internal"] = h
}

// A web server that leads everybody to HTTPS, with whatever certificate, proves the name as
// well, and so does one that answers at the second address only.
func TestProvedBy(t *testing.T) {
	s := newScene(t)
	s.move("127.0.0.9", "127.0.0.1")
	secure := httptest.NewTLSServer(http.HandlerFunc(s.answer))
	defer secure.Close()
	s.tls.Close()
	s.tls = secure.Listener
	c := s.client(t, ecKeyPair(t))
	order := must(c.AuthorizeOrder(t.Context(), acme.DomainIDs("nas.home.mesh.internal")))(t)
	authz := must(c.GetAuthorization(t.Context(), order.AuthzURLs[0]))(t)
	i := slices.IndexFunc(authz.Challenges, func(x *acme.Challenge) bool { return x.Type == wayHTTP })
	ch := authz.Challenges[i]
	s.says(c.HTTP01ChallengePath(ch.Token), "to https://nas.home.mesh.internal/there")
	s.says("/there", must(c.HTTP01ChallengeResponse(ch.Token))(t))
	if got := must(c.Accept(t.Context(), ch))(t); got.Status != acme.StatusValid {
		t.Errorf("%s: %v", got.Status, got.Error)
	}
	want := []string{"127.0.0.9:80", "127.0.0.1:80", "127.0.0.1:443"}
	if !slices.Equal(s.dialled, want) {
		t.Errorf("asked %v, want %v", s.dialled, want)
	}
}

func TestBadCSR(t *testing.T) {
	s := newScene(t)
	account := ecKeyPair(t)
	c := s.client(t, account)
	order := must(c.AuthorizeOrder(t.Context(), acme.DomainIDs("nas.home.mesh.internal", "phone.mesh.internal")))(t)
	for _, u := range order.AuthzURLs {
		must(s.prove(t, c, must(c.GetAuthorization(t.Context(), u))(t), wayHTTP))(t)
	}
	both := []string{"phone.mesh.internal", "NAS.home.mesh.internal"}
	csr := func(key crypto.Signer, r x509.CertificateRequest) []byte {
		return must(x509.CreateCertificateRequest(rand.Reader, &r, key))(t)
	}
	good := csr(ecKeyPair(t), x509.CertificateRequest{DNSNames: both})
	broken := bytes.Clone(good)
	broken[len(broken)-1] ^= 1
	for name, der := range map[string][]byte{
		"nothing":     nil,
		"rubbish":     []byte("rubbish"),
		"broken":      broken,
		"too few":     csr(ecKeyPair(t), x509.CertificateRequest{DNSNames: both[:1]}),
		"too many":    csr(ecKeyPair(t), x509.CertificateRequest{DNSNames: append(both, "tv.home.mesh.internal")}),
		"an address":  csr(ecKeyPair(t), x509.CertificateRequest{DNSNames: both, IPAddresses: []net.IP{net.IPv4(192, 168, 1, 1)}}),
		"a mail":      csr(ecKeyPair(t), x509.CertificateRequest{DNSNames: both, EmailAddresses: []string{"me@example.com"}}),
		"account key": csr(account, x509.CertificateRequest{DNSNames: both}),
		"another name": csr(ecKeyPair(t), func() x509.CertificateRequest {
			r := x509.CertificateRequest{DNSNames: both}
			r.Subject.CommonName = "example.com"
			return r
		}()),
		"P-521": csr(must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t), x509.CertificateRequest{DNSNames: both}),
	} {
		if _, _, err := c.CreateOrderCert(t.Context(), order.FinalizeURL, der, true); kindOf(err) != "badCSR" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if ders, _, err := c.CreateOrderCert(t.Context(), order.FinalizeURL, good, false); err != nil || len(ders) != 1 {
		t.Errorf("%d, %v", len(ders), err)
	}
	if _, _, err := c.CreateOrderCert(t.Context(), order.FinalizeURL, good, false); kindOf(err) != "orderNotReady" {
		t.Errorf("twice: %v", err)
	}
}

// Accounts are found by their keys, change them, and end; those with certificates outlive
// a restart.
func TestAccounts(t *testing.T) {
	s := newScene(t)
	key := ecKeyPair(t)
	c := s.client(t, key)
	acct := must(c.GetReg(t.Context(), ""))(t)
	if acct.Status != acme.StatusValid || !slices.Equal(acct.Contact, []string{"mailto:me@example.com"}) || acct.OrdersURL != acct.URI+"/orders" {
		t.Errorf("%+v", acct)
	}
	acct.Contact = []string{"mailto:you@example.com"}
	if again := must(c.UpdateReg(t.Context(), acct))(t); !slices.Equal(again.Contact, acct.Contact) {
		t.Errorf("%+v", again)
	}
	acct.Contact = []string{"tel:112"}
	if _, err := c.UpdateReg(t.Context(), acct); kindOf(err) != "unsupportedContact" {
		t.Errorf("a telephone: %v", err)
	}
	if s.saves != 0 {
		t.Errorf("an account without a certificate is on disk: %d", s.saves)
	}
	must(s.obtain(t, c, ecKeyPair(t), wayHTTP, "nas.home.mesh.internal"))(t)
	other := ecKeyPair(t)
	if err := c.AccountKeyRollover(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	s.acme.cfg.CA = s.world.ca() // a restart
	s.acme.orders = orders{all: map[string]*order{}}
	again := &acme.Client{Key: other, DirectoryURL: c.DirectoryURL, HTTPClient: c.HTTPClient}
	if found := must(again.GetReg(t.Context(), ""))(t); found.URI != acct.URI || found.Contact[0] != "mailto:you@example.com" {
		t.Errorf("%+v", found)
	}
	old := &acme.Client{Key: key, DirectoryURL: c.DirectoryURL, HTTPClient: c.HTTPClient}
	if _, err := old.GetReg(t.Context(), ""); !errors.Is(err, acme.ErrNoAccount) {
		t.Errorf("the key before: %v", err)
	}
	taken := s.client(t, ecKeyPair(t))
	if err := taken.AccountKeyRollover(t.Context(), other); err == nil {
		t.Error("two accounts have one key")
	}
	if err := again.DeactivateReg(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := again.AuthorizeOrder(t.Context(), acme.DomainIDs("nas.home.mesh.internal")); kindOf(err) != "unauthorized" {
		t.Errorf("deactivated: %v", err)
	}
	if _, err := again.Register(t.Context(), &acme.Account{}, acme.AcceptTOS); kindOf(err) != "unauthorized" {
		t.Errorf("deactivated, and made again: %v", err)
	}
}

// Nobody sees, proves, finalizes or revokes what is another's.
func TestStrangers(t *testing.T) {
	s := newScene(t)
	mine, theirs := s.client(t, ecKeyPair(t)), s.client(t, ecKeyPair(t))
	key := ecKeyPair(t)
	chain := must(s.obtain(t, mine, key, wayHTTP, "nas.home.mesh.internal"))(t)
	order := must(mine.AuthorizeOrder(t.Context(), acme.DomainIDs("nas.home.mesh.internal")))(t)
	authz := must(mine.GetAuthorization(t.Context(), order.AuthzURLs[0]))(t)
	for name, do := range map[string]func() error{
		"order":     func() error { _, err := theirs.GetOrder(t.Context(), order.URI); return err },
		"authz":     func() error { _, err := theirs.GetAuthorization(t.Context(), authz.URI); return err },
		"challenge": func() error { _, err := theirs.Accept(t.Context(), authz.Challenges[0]); return err },
		"finalize": func() error {
			_, _, err := theirs.CreateOrderCert(t.Context(), order.FinalizeURL, nil, true)
			return err
		},
		"revoke":   func() error { return theirs.RevokeCert(t.Context(), nil, chain[0].Raw, 0) },
		"by a key": func() error { return theirs.RevokeCert(t.Context(), ecKeyPair(t), chain[0].Raw, 0) },
	} {
		if err := do(); kindOf(err) != "unauthorized" {
			t.Errorf("%s: %v", name, err)
		}
	}
	forged := abuse(t, newWorld(t), func(c *x509.Certificate) { c.SerialNumber = chain[0].SerialNumber })
	if err := theirs.RevokeCert(t.Context(), forged.PrivateKey.(*ecdsa.PrivateKey), forged.Certificate[0], 0); kindOf(err) != "malformed" {
		t.Errorf("a certificate of another CA with that number: %v", err)
	}
	if err := theirs.RevokeCert(t.Context(), key, chain[0].Raw, 0); err != nil {
		t.Errorf("whoever has its key: %v", err)
	}
	if err := mine.RevokeCert(t.Context(), nil, chain[0].Raw, 7); kindOf(err) != "badRevocationReason" {
		t.Errorf("no reason: %v", err)
	}
	if err := mine.RevokeAuthorization(t.Context(), authz.URI); err != nil {
		t.Error(err)
	}
	if o := must(mine.GetOrder(t.Context(), order.URI))(t); o.Status != acme.StatusInvalid {
		t.Errorf("an authorization was given up, the order is %s", o.Status)
	}
}
