package cert

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxRequest  = 32 << 10 // bytes
	maxNonces   = 512
	maxProving  = 8 // names that are asked for their proof at once
	joseType    = "application/jose+json"
	mostContact = 4
)

// ACMEConfig says where the server stands.
type ACMEConfig struct {
	CA *CA
	// Host is by what name it is asked, with the port if that is not the usual one.
	Host func() string
	Dial Dial // to who has a name
}

// ACME is the server (RFC 8555): whoever proves by http-01 or tls-alpn-01 that he
// answers where this home knows a name to be gets a certificate for it. Each request is
// signed, and does all that it brings about before it is answered: nothing runs between
// requests. Orders are forgotten with a restart, accounts that got a certificate are not.
//
//	POST -> read: who signs? -> answer: what of? -> account.go, order.go -> reply
type ACME struct {
	cfg     ACMEConfig
	proving chan struct{} // has one element for each name that is proved now
	each    time.Duration // for a proof, at one address

	mu     sync.Mutex // guards what follows
	nonces nonces
	orders orders
}

// NewACME makes the server.
func NewACME(cfg ACMEConfig) *ACME {
	return &ACME{cfg: cfg, proving: make(chan struct{}, maxProving), each: proofTime, nonces: nonces{there: map[string]bool{}}, orders: orders{all: map[string]*order{}}}
}

// nonces are those that may be used, the newest of those given.
type nonces struct {
	there map[string]bool
	ring  [maxNonces]string
	next  int
}

func (n *nonces) make() string {
	delete(n.there, n.ring[n.next])
	s := newToken()
	n.ring[n.next], n.there[s] = s, true
	n.next = (n.next + 1) % maxNonces
	return s
}

// newToken is what nobody guesses, as JOSE writes bytes: some clients write it anew.
func newToken() string {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return b64.EncodeToString(b[:])
}

func (n *nonces) use(s string) bool {
	there := n.there[s]
	delete(n.there, s)
	return there
}

func (a *ACME) nonce() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.nonces.make()
}

func (a *ACME) useNonce(s string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.nonces.use(s)
}

// request is one that is signed rightly.
type request struct {
	ctx     context.Context
	base    string   // of all URLs, as the client knows them
	path    []string // below acmePath
	url     string
	payload []byte
	key     jwk
	account account // the zero one if the key itself signs
}

// empty reports whether it only asks how something is (RFC 8555, 6.3).
func (r *request) empty() bool { return len(r.payload) == 0 }

func (r *request) read(v any) error {
	if err := json.Unmarshal(r.payload, v); err != nil {
		return malformed("the payload is not understood: %v", err)
	}
	return nil
}

func (r *request) link(path ...string) string { return r.base + acmePath + strings.Join(path, "/") }

// reply is what is answered: body as JSON, or a chain of certificates.
type reply struct {
	status   int // 0: 200
	location string
	up       string // of what it is a part
	after    int    // seconds, after which it may be different; 0: not said
	body     any
	chain    []byte
}

// ServeHTTP answers what is asked below acmePath.
func (a *ACME) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	scheme := "http://"
	if r.TLS != nil {
		scheme = "https://"
	}
	base := scheme + r.Host
	h.Set("Link", "<"+base+DirectoryPath+`>;rel="index"`)
	path := strings.TrimPrefix(r.URL.Path, acmePath)
	var out reply
	err := a.here(r)
	switch get := r.Method == http.MethodGet || r.Method == http.MethodHead; {
	case err != nil:
	case get && r.URL.Path == DirectoryPath:
		out.body = directory(base + acmePath)
	case get && path == "new-nonce":
		h.Set("Replay-Nonce", a.nonce())
		if r.Method == http.MethodGet {
			w.WriteHeader(http.StatusNoContent)
		}
		return
	case r.Method == http.MethodPost:
		h.Set("Replay-Nonce", a.nonce())
		out, err = a.post(r, base, strings.Split(path, "/"))
	case get && path == "":
		err = notFound()
	default:
		err = refuse(http.StatusMethodNotAllowed, "malformed", "this wants POST, also to look at something")
	}
	if err != nil {
		p := problemOf(err)
		p.head(h)
		write(w, p.Status, p)
		return
	}
	out.write(w)
}

// here reports with nil that a request means us: signed requests are good at one place
// only, and so must not be taken from one that calls itself something else.
func (a *ACME) here(r *http.Request) error {
	if host := a.cfg.Host(); host == "" || !strings.EqualFold(r.Host, host) {
		return refuse(http.StatusMisdirectedRequest, "malformed", "certificates are given at %s, not at %q", host, r.Host)
	}
	return nil
}

func (o reply) write(w http.ResponseWriter) {
	h := w.Header()
	if o.location != "" {
		h.Set("Location", o.location)
	}
	if o.up != "" {
		h.Add("Link", "<"+o.up+`>;rel="up"`)
	}
	if o.after > 0 {
		h.Set("Retry-After", strconv.Itoa(o.after))
	}
	if o.status == 0 {
		o.status = http.StatusOK
	}
	if o.chain != nil {
		h.Set("Content-Type", "application/pem-certificate-chain")
		w.WriteHeader(o.status)
		_, _ = w.Write(o.chain)
		return
	}
	h.Set("Content-Type", "application/json")
	write(w, o.status, o.body)
}

func write(w http.ResponseWriter, status int, v any) {
	w.WriteHeader(status)
	if v != nil {
		_ = json.NewEncoder(w).Encode(v) // an asker who left needs no answer
	}
}

func directory(at string) any {
	return map[string]any{
		"newNonce": at + "new-nonce", "newAccount": at + "new-account", "newOrder": at + "new-order",
		"revokeCert": at + "revoke-cert", "keyChange": at + "key-change",
		"meta": map[string]any{"externalAccountRequired": false},
	}
}

// post does what a signed request asks for.
func (a *ACME) post(hr *http.Request, base string, path []string) (reply, error) {
	r, err := a.read(hr, base)
	if err != nil {
		return reply{}, err
	}
	r.path = path
	one := strings.Join(path, "/")
	if one == "new-account" {
		return a.newAccount(r)
	}
	if one == "revoke-cert" {
		return a.revoke(r)
	}
	if r.account.ID == "" {
		return reply{}, malformed("the header must say kid, the URL of the account")
	}
	switch {
	case one == "new-order":
		return a.newOrder(r)
	case one == "key-change":
		return a.changeKey(r)
	case path[0] == "account" && len(path) >= 2 && path[1] != r.account.ID:
		return reply{}, unauthorized("this is the account of somebody else")
	case path[0] == "account" && len(path) == 2:
		return a.account(r)
	case path[0] == "account" && len(path) == 3 && path[2] == "orders":
		return a.ordersOf(r)
	case path[0] == "order" && len(path) >= 2:
		return a.order(r)
	}
	return reply{}, notFound()
}

// read reads and verifies a request (RFC 8555, 6.2 to 6.5).
func (a *ACME) read(hr *http.Request, base string) (*request, error) {
	if hr.Header.Get("Content-Type") != joseType {
		return nil, refuse(http.StatusUnsupportedMediaType, "malformed", "the body must be %s", joseType)
	}
	text, err := io.ReadAll(io.LimitReader(hr.Body, maxRequest+1))
	if err != nil {
		return nil, malformed("the body: %v", err)
	}
	if len(text) > maxRequest {
		return nil, refuse(http.StatusRequestEntityTooLarge, "malformed", "the body has more than %d bytes", maxRequest)
	}
	m, err := parseJWS(text)
	if err != nil {
		return nil, malformed("%v", err)
	}
	r := &request{ctx: hr.Context(), base: base, url: base + hr.URL.RequestURI(), payload: m.payload}
	if m.header.URL != r.url {
		return nil, unauthorized("the header's url is %q, but %q was asked", m.header.URL, r.url)
	}
	if !a.useNonce(m.header.Nonce) {
		return nil, refuse(http.StatusBadRequest, "badNonce", "the nonce was used before, or is not one of the newest")
	}
	if err := a.signer(r, m.header); err != nil {
		return nil, err
	}
	if err := r.key.verify(m); err != nil {
		return nil, unsigned(err)
	}
	return r, nil
}

// signer finds whose key the header names.
func (a *ACME) signer(r *request, h header) (err error) {
	switch {
	case (h.KID == "") == (h.JWK == nil):
		return malformed("the header must say either jwk or kid")
	case h.JWK != nil:
		if r.key, err = parseJWK(h.JWK); err != nil {
			return refuse(http.StatusBadRequest, "badPublicKey", "%v", err)
		}
		return nil
	}
	acct, ok := a.cfg.CA.book.account(accountOf(r, h.KID))
	if !ok {
		return refuse(http.StatusBadRequest, "accountDoesNotExist", noAccount)
	}
	if acct.Status != statusValid {
		return refuse(http.StatusUnauthorized, "unauthorized", "the account is %s", acct.Status)
	}
	r.account, r.key = acct, acct.Key
	return nil
}

// accountOf reads the URL of an account, with or without TLS.
func accountOf(r *request, kid string) string {
	u, err := url.Parse(kid)
	_, host, _ := strings.Cut(r.base, "://")
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || !strings.EqualFold(u.Host, host) {
		return ""
	}
	id, ok := strings.CutPrefix(u.Path, acmePath+"account/")
	if !ok {
		return ""
	}
	return id
}

func unsigned(err error) error {
	if errors.Is(err, errAlgorithm) {
		return refuse(http.StatusBadRequest, "badSignatureAlgorithm", "%v", err)
	}
	return refuse(http.StatusForbidden, "unauthorized", "%v", err)
}
