package ingress

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

// authority is a certificate authority (RFC 8555), so far as one client and one
// name need it. It checks what proves the name, and no signatures. It is reached
// as an http.RoundTripper.
type authority struct {
	t    testing.TB
	life time.Duration // of certificates
	// prove looks at the name as the world sees it, for a challenge type.
	prove map[string]func(token, keyAuth string) error

	key  *ecdsa.PrivateKey
	root *x509.Certificate

	mu       sync.Mutex
	down     bool
	requests int
	accounts int
	thumb    string
	state    map[int]string // of orders: pending, ready, invalid, valid
	certs    map[int][]byte
	tried    []string
}

func newAuthority(t testing.TB) *authority {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0)}
	der, err := x509.CreateCertificate(rand.Reader, root, root, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	if root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &authority{t: t, life: 90 * 24 * time.Hour, key: k, root: root, prove: map[string]func(string, string) error{},
		state: map[int]string{}, certs: map[int][]byte{}}
}

func (a *authority) setDown(down bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.down = down
}

// seen is how many requests there were, and which ways to prove were tried.
func (a *authority) seen() (requests int, tried string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests, strings.Join(a.tried, " ")
}

func (a *authority) RoundTrip(r *http.Request) (*http.Response, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests++
	if a.down {
		return nil, errors.New("authority unreachable")
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	w := httptest.NewRecorder()
	w.Header().Set("Replay-Nonce", fmt.Sprint("nonce", a.requests))
	a.serve(w, r)
	res := w.Result()
	res.Request = r
	return res, nil
}

func (a *authority) serve(w http.ResponseWriter, r *http.Request) {
	var msg struct{ Protected, Payload string }
	var head struct{ JWK struct{ X, Y string } }
	var payload struct{ CSR string }
	if r.Method == http.MethodPost {
		if err := json.NewDecoder(r.Body).Decode(&msg); err != nil {
			a.t.Error(err)
		}
		json.Unmarshal(unbase64(msg.Protected), &head)
		json.Unmarshal(unbase64(msg.Payload), &payload)
	}
	part := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	n := 0
	if len(part) > 1 {
		fmt.Sscan(part[1], &n)
	}
	switch part[0] {
	case "dir":
		a.json(w, 200, map[string]any{"newNonce": link("nonce"), "newAccount": link("account"), "newOrder": link("order-new")})
	case "nonce":
	case "account":
		a.accounts++
		pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, unbase64(head.JWK.X), unbase64(head.JWK.Y)))
		if err != nil {
			a.t.Error(err)
		}
		a.thumb, _ = acme.JWKThumbprint(pub)
		w.Header().Set("Location", link("account/1"))
		a.json(w, 201, map[string]any{"status": "valid"})
	case "order-new":
		n = len(a.state) + 1
		a.state[n] = "pending"
		w.Header().Set("Location", link("order/%d", n))
		a.json(w, 201, a.order(n))
	case "order":
		a.json(w, 200, a.order(n))
	case "authz":
		a.json(w, 200, a.authz(n))
	case "challenge":
		a.tried = append(a.tried, part[2])
		a.state[n] = "ready"
		if err := a.prove[part[2]](token(n), token(n)+"."+a.thumb); err != nil {
			a.state[n] = "invalid"
		}
		a.json(w, 200, map[string]any{"type": part[2], "url": link("challenge/%d/%s", n, part[2]), "token": token(n), "status": "processing"})
	case "finalize":
		a.issue(n, unbase64(payload.CSR))
		w.Header().Set("Location", link("order/%d", n))
		a.json(w, 200, a.order(n))
	case "cert":
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		w.Write(a.certs[n])
	default:
		http.NotFound(w, r)
	}
}

func (a *authority) order(n int) map[string]any {
	return map[string]any{"status": a.state[n], "identifiers": []any{map[string]string{"type": "dns", "value": "home.test"}},
		"authorizations": []string{link("authz/%d", n)}, "finalize": link("finalize/%d", n), "certificate": link("cert/%d", n)}
}

func (a *authority) authz(n int) map[string]any {
	status := map[string]string{"pending": "pending", "invalid": "invalid"}[a.state[n]]
	if status == "" {
		status = "valid"
	}
	var all []any
	for way := range a.prove {
		all = append(all, map[string]any{"type": way, "url": link("challenge/%d/%s", n, way), "token": token(n), "status": status})
	}
	return map[string]any{"status": status, "identifier": map[string]string{"type": "dns", "value": "home.test"}, "challenges": all}
}

func (a *authority) issue(n int, der []byte) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil || a.state[n] != "ready" {
		a.t.Errorf("finalize of an order that is %s: %v", a.state[n], err)
		return
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(n + 1)), DNSNames: csr.DNSNames, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(a.life)}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, a.root, csr.PublicKey, a.key)
	if err != nil {
		a.t.Error(err)
		return
	}
	var chain bytes.Buffer
	for _, c := range [][]byte{cert, a.root.Raw} {
		pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: c})
	}
	a.certs[n], a.state[n] = chain.Bytes(), "valid"
}

func (a *authority) json(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func link(format string, v ...any) string {
	return "https://authority.test/" + fmt.Sprintf(format, v...)
}
func token(n int) string { return fmt.Sprint("token-", n) }

func unbase64(s string) []byte {
	b, _ := base64.RawURLEncoding.DecodeString(s)
	return b
}

// byALPN proves over a handshake: over the network, or by what Get gives.
func byALPN(shake func(*tls.Config) (*x509.Certificate, error)) func(string, string) error {
	return func(_, keyAuth string) error {
		cert, err := shake(&tls.Config{ServerName: "home.test", NextProtos: []string{acme.ALPNProto}, InsecureSkipVerify: true})
		if err != nil {
			return err
		}
		want := sha256.Sum256([]byte(keyAuth))
		for _, e := range cert.Extensions { // RFC 8737, section 3
			var got []byte
			if e.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}) && e.Critical {
				if _, err := asn1.Unmarshal(e.Value, &got); err == nil && bytes.Equal(got, want[:]) {
					return cert.VerifyHostname("home.test")
				}
			}
		}
		return errors.New("wrong certificate")
	}
}

func byHTTP(h http.Handler) func(string, string) error {
	return func(token, keyAuth string) error {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(context.Background(), "GET", "http://home.test/.well-known/acme-challenge/"+token, nil))
		if got := w.Body.String(); got != keyAuth {
			return fmt.Errorf("got %q", got)
		}
		return nil
	}
}

func never(string, string) error { return errors.New("cannot be reached") }
