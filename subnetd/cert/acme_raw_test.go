package cert

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/acme"
)

// raw sends requests that no client would make.
type raw struct {
	*scene
	t testing.TB
	signer
	kid string
}

func newRaw(t *testing.T, alg string) *raw {
	r := &raw{scene: newScene(t), t: t, signer: newSigner(t, alg)}
	res := r.post("new-account", `"jwk":`+r.jwk, `{}`)
	if r.kid = res.Header.Get("Location"); res.StatusCode != http.StatusCreated || !strings.HasPrefix(r.kid, r.front.URL+"/acme/account/") {
		t.Fatalf("%s, %q", res.Status, r.kid)
	}
	return r
}

func (r *raw) nonce() string {
	r.t.Helper()
	res, err := r.front.Client().Head(r.front.URL + "/acme/new-nonce")
	if err != nil {
		r.t.Fatal(err)
	}
	res.Body.Close()
	return res.Header.Get("Replay-Nonce")
}

// answer is one that was read.
type answer struct {
	*http.Response
	body string
}

// problem is the last word of its type.
func (a answer) problem() string {
	var p problem
	if err := json.Unmarshal([]byte(a.body), &p); err != nil || a.Header.Get("Content-Type") != "application/problem+json" || p.Status != a.StatusCode || p.Detail == "" {
		return a.Status
	}
	return p.Type[strings.LastIndexByte(p.Type, ':')+1:]
}

func (r *raw) post(path, who, payload string) answer {
	r.t.Helper()
	head := fmt.Sprintf(`"nonce":%q,"url":%q,%s`, r.nonce(), r.front.URL+"/acme/"+path, who)
	return r.send(path, r.sign(r.t, head, payload), joseType, "")
}

// ask is as its account.
func (r *raw) ask(path, payload string) answer {
	r.t.Helper()
	return r.post(path, fmt.Sprintf(`"kid":%q`, r.kid), payload)
}

func (r *raw) send(path, body, media, host string) answer {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), http.MethodPost, r.front.URL+"/acme/"+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	req.Header.Set("Content-Type", media)
	if host != "" {
		req.Host = host
	}
	res, err := r.front.Client().Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer{res, string(text)}
}

const forNAS = `{"identifiers":[{"type":"dns","value":"nas.home.mesh.internal"}]}`

func TestAllAlgorithms(t *testing.T) {
	for _, alg := range algorithms {
		r := newRaw(t, alg)
		if res := r.ask("new-order", forNAS); res.StatusCode != http.StatusCreated || res.Header.Get("Replay-Nonce") == "" || res.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %s %s", alg, res.Status, res.body)
		}
	}
}

// What is not signed for this request alone is refused.
func TestForged(t *testing.T) {
	r := newRaw(t, "ES256")
	other := newSigner(t, "ES256")
	at := r.front.URL + "/acme/new-order"
	kid := fmt.Sprintf(`"kid":%q`, r.kid)
	head := func(nonce, url, who string) string { return fmt.Sprintf(`"nonce":%q,"url":%q,%s`, nonce, url, who) }
	good := func() string { return r.sign(t, head(r.nonce(), at, kid), forNAS) }
	used := good()
	for _, tt := range []struct {
		name, body, media, host, want string
	}{
		{"right", used, joseType, "", "201 Created"},
		{"once more", used, joseType, "", "badNonce"},
		{"no nonce", r.sign(t, head("", at, kid), forNAS), joseType, "", "badNonce"},
		{"own nonce", r.sign(t, head("AAAAAAAAAAAAAAAAAAAAAAAAAA", at, kid), forNAS), joseType, "", "badNonce"},
		{"for another URL", r.sign(t, head(r.nonce(), r.front.URL+"/acme/revoke-cert", kid), forNAS), joseType, "", "unauthorized"},
		{"for another host", r.sign(t, head(r.nonce(), "https://example.com/acme/new-order", kid), forNAS), joseType, "", "unauthorized"},
		{"at another host", r.sign(t, head(r.nonce(), "https://example.com/acme/new-order", kid), forNAS), joseType, "example.com", "malformed"},
		{"by somebody else", other.sign(t, head(r.nonce(), at, kid), forNAS), joseType, "", "unauthorized"},
		{"by nobody", r.sign(t, head(r.nonce(), at, `"x":1`), forNAS), joseType, "", "malformed"},
		{"by two", r.sign(t, head(r.nonce(), at, kid+`,"jwk":`+r.jwk), forNAS), joseType, "", "malformed"},
		{"by a key", r.sign(t, head(r.nonce(), at, `"jwk":`+r.jwk), forNAS), joseType, "", "malformed"},
		{"by no account", r.sign(t, head(r.nonce(), at, fmt.Sprintf(`"kid":%q`, r.kid+"x")), forNAS), joseType, "", "accountDoesNotExist"},
		{"by an account elsewhere", r.sign(t, head(r.nonce(), at, strings.Replace(kid, r.front.URL, "https://example.com", 1)), forNAS), joseType, "", "accountDoesNotExist"},
		{"other algorithm", signer{other.key, "RS256", 32, ""}.sign(t, head(r.nonce(), at, kid), forNAS), joseType, "", "badSignatureAlgorithm"},
		{"bad key", r.sign(t, head(r.nonce(), at, `"jwk":{"kty":"oct"}`), forNAS), joseType, "", "badPublicKey"},
		{"as JSON", good(), "application/json", "", "malformed"},
		{"no JSON", "x", joseType, "", "malformed"},
		{"payload no JSON", r.sign(t, head(r.nonce(), at, kid), "x"), joseType, "", "malformed"},
		{"too long", good() + strings.Repeat(" ", maxRequest), joseType, "", "malformed"},
		{"with dates", r.sign(t, head(r.nonce(), at, kid), `{"notAfter":"2030-01-01T00:00:00Z",`+forNAS[1:]), joseType, "", "malformed"},
		{"no names", r.sign(t, head(r.nonce(), at, kid), `{}`), joseType, "", "malformed"},
		{"still right", good(), joseType, "", "201 Created"},
	} {
		if got := r.send("new-order", tt.body, tt.media, tt.host); got.problem() != tt.want {
			t.Errorf("%s: %s %s, want %s", tt.name, got.problem(), got.body, tt.want)
		}
	}
}

func TestPaths(t *testing.T) {
	r := newRaw(t, "ES256")
	order := strings.TrimPrefix(r.ask("new-order", forNAS).Header.Get("Location"), r.front.URL+"/acme/")
	id := strings.TrimPrefix(r.kid, r.front.URL+"/acme/")
	for path, want := range map[string]string{
		order: "200 OK", order + "/0": "200 OK", order + "/0/http-01": "200 OK", id: "200 OK", id + "/orders": "200 OK",
		order + "/1": "malformed", order + "/00": "malformed", order + "/-1": "malformed", order + "/0/dns-01": "malformed", order + "/0/http-01/x": "malformed",
		order + "/certificate": "malformed", order + "x": "malformed", "order": "malformed", "order/": "malformed", "": "malformed", "x": "malformed",
		id + "/x": "malformed", id + "x": "unauthorized", "account/": "unauthorized", "account": "malformed",
	} {
		if got := r.ask(path, ""); got.problem() != want {
			t.Errorf("%q: %s %s, want %s", path, got.problem(), got.body, want)
		}
	}
	if got := r.ask(id+"/orders", ""); !strings.Contains(got.body, r.front.URL+"/acme/"+order) {
		t.Errorf("its orders are %s", got.body)
	}
	for path, want := range map[string]int{"directory": 200, "new-nonce": 204, "new-order": 405, order: 405, "": 404} {
		res, err := r.front.Client().Get(r.front.URL + "/acme/" + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("GET %s: %s", path, res.Status)
		}
	}
	if got := r.post("new-account", `"jwk":`+newSigner(t, "ES256").jwk, `{"onlyReturnExisting":true}`); got.problem() != "unauthorized" {
		t.Errorf("the key of somebody else: %s", got.body)
	}
	stranger := newSigner(t, "EdDSA")
	r.signer = stranger
	if got := r.post("new-account", `"jwk":`+stranger.jwk, `{"onlyReturnExisting":true}`); got.problem() != "accountDoesNotExist" {
		t.Errorf("only what exists: %s", got.body)
	}
	for contact, want := range map[string]string{`"mailto:a@b"`: "201 Created", `"tel:1"`: "unsupportedContact", `"mailto:a@b,c@d"`: "invalidContact", `"mailto:a@b?to=c"`: "invalidContact",
		`"%"`: "invalidContact", `"mailto:a","mailto:a","mailto:a","mailto:a","mailto:a"`: "malformed"} {
		r.signer = newSigner(t, "EdDSA")
		if got := r.post("new-account", `"jwk":`+r.jwk, `{"contact":[`+contact+`]}`); got.problem() != want {
			t.Errorf("%s: %s, want %s", contact, got.body, want)
		}
	}
}

// The same account counts with and without TLS.
func TestPlain(t *testing.T) {
	r := newRaw(t, "ES256")
	kid := strings.Replace(r.kid, "https://", "http://", 1)
	if got := r.post("new-order", fmt.Sprintf(`"kid":%q`, kid), forNAS); got.StatusCode != http.StatusCreated {
		t.Error(got.body)
	}
}

// The key that an account shall have must say so itself, for this account and this request.
func TestForgedKeyChange(t *testing.T) {
	r := newRaw(t, "ES256")
	next := newSigner(t, "EdDSA")
	at := r.front.URL + "/acme/key-change"
	inner := func(by signer, url, account, old string) string {
		return by.sign(t, fmt.Sprintf(`"url":%q,"jwk":%s`, url, by.jwk), fmt.Sprintf(`{"account":%q,"oldKey":%s}`, account, old))
	}
	for name, tt := range map[string]struct{ payload, want string }{
		"other URL":     {inner(next, at+"x", r.kid, r.jwk), "malformed"},
		"other account": {inner(next, at, r.kid+"x", r.jwk), "malformed"},
		"other old key": {inner(next, at, r.kid, next.jwk), "malformed"},
		"no old key":    {inner(next, at, r.kid, "{}"), "malformed"},
		"by the old":    {r.sign(t, fmt.Sprintf(`"url":%q,"jwk":%s`, at, newSigner(t, "ES256").jwk), "{}"), "unauthorized"},
		"not signed":    {`{}`, "malformed"},
		"bad key":       {next.sign(t, fmt.Sprintf(`"url":%q,"jwk":{}`, at), "{}"), "badPublicKey"},
	} {
		if got := r.ask("key-change", tt.payload); got.problem() != tt.want {
			t.Errorf("%s: %s, want %s", name, got.body, tt.want)
		}
	}
	if got := r.ask("key-change", inner(next, at, r.kid, r.jwk)); got.StatusCode != http.StatusOK {
		t.Fatal(got.body)
	}
	if got := r.ask("new-order", forNAS); got.problem() != "badSignatureAlgorithm" {
		t.Errorf("with the key before: %s", got.body)
	}
	r.signer = next
	if got := r.ask("new-order", forNAS); got.StatusCode != http.StatusCreated {
		t.Error(got.body)
	}
}

// Whatever is asked for how often, the server stays small, and goes on for others.
func TestBounds(t *testing.T) {
	r := newRaw(t, "EdDSA")
	old := r.nonce()
	for range maxNonces {
		r.acme.nonce()
	}
	head := fmt.Sprintf(`"nonce":%q,"url":%q,"kid":%q`, old, r.front.URL+"/acme/new-order", r.kid)
	if got := r.send("new-order", r.sign(t, head, forNAS), joseType, ""); got.problem() != "badNonce" {
		t.Errorf("a nonce long ago: %s", got.body)
	}
	first := strings.TrimPrefix(r.ask("new-order", forNAS).Header.Get("Location"), r.front.URL+"/acme/")
	for range maxOrders {
		r.acme.mu.Lock()
		r.acme.orders.add(&order{id: fmt.Sprint("x", len(r.acme.orders.age), r.acme.orders.age[0])})
		r.acme.mu.Unlock()
	}
	if got := r.ask(first, ""); got.problem() != "malformed" || len(r.acme.orders.all) != maxOrders || len(r.acme.orders.age) != maxOrders {
		t.Errorf("%s, %d orders", got.body, len(r.acme.orders.all))
	}
	// An account with a certificate outlives any number of others.
	c := r.client(t, ecKeyPair(t))
	must(r.obtain(t, c, ecKeyPair(t), wayHTTP, "nas.home.mesh.internal"))(t)
	for i := range maxAccounts + 1 {
		r.now = r.now.Add(time.Second)
		if _, err := r.ca.book.open(jwk{print: fmt.Sprint(i)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.ca.book.accounts); n != maxAccounts {
		t.Errorf("%d accounts", n)
	}
	if _, err := c.AuthorizeOrder(t.Context(), acme.DomainIDs("nas.home.mesh.internal")); err != nil {
		t.Errorf("who has a certificate: %v", err)
	}
	if got := r.ask("new-order", forNAS); got.problem() != "accountDoesNotExist" {
		t.Errorf("who has none: %s", got.body)
	}
	for id := range r.ca.book.accounts {
		r.ca.book.certs = append(r.ca.book.certs, Issued{Account: id, Until: r.now.Add(time.Hour)})
	}
	r.signer = newSigner(t, "EdDSA")
	if got := r.post("new-account", `"jwk":`+r.jwk, `{}`); got.problem() != "rateLimited" || got.Header.Get("Retry-After") != "3600" {
		t.Errorf("all have certificates: %s", got.body)
	}
}

// A client that goes mad gets ten a day.
func TestEachDay(t *testing.T) {
	s := newScene(t)
	c := s.client(t, ecKeyPair(t))
	key := ecKeyPair(t)
	order := must(c.AuthorizeOrder(t.Context(), acme.DomainIDs("nas.home.mesh.internal")))(t)
	for range eachDay {
		must(s.obtain(t, c, key, wayHTTP, "nas.home.mesh.internal"))(t)
	}
	if _, err := s.obtain(t, c, key, wayHTTP, "nas.home.mesh.internal"); kindOf(err) != "rateLimited" {
		t.Errorf("the eleventh: %v", err)
	}
	must(s.prove(t, c, must(c.GetAuthorization(t.Context(), order.AuthzURLs[0]))(t), wayHTTP))(t)
	if _, _, err := c.CreateOrderCert(t.Context(), order.FinalizeURL, nil, true); kindOf(err) != "badCSR" {
		t.Errorf("without a CSR: %v", err)
	}
	if _, err := s.obtain(t, c, key, wayHTTP, "phone.mesh.internal"); err != nil {
		t.Errorf("another name: %v", err)
	}
	s.now = s.now.Add(24 * time.Hour)
	if _, err := s.obtain(t, c, key, wayHTTP, "nas.home.mesh.internal"); err != nil {
		t.Errorf("a day later: %v", err)
	}
}

// An order ends, and a name that is gone or another's meanwhile is not certified.
func TestLate(t *testing.T) {
	r := newRaw(t, "ES256")
	path := strings.TrimPrefix(r.ask("new-order", forNAS).Header.Get("Location"), r.front.URL+"/acme/")
	r.now = r.now.Add(orderLife)
	if got := r.ask(path, ""); !strings.Contains(got.body, `"status":"invalid"`) {
		t.Error(got.body)
	}
	c := r.client(t, ecKeyPair(t))
	order := must(c.AuthorizeOrder(t.Context(), acme.DomainIDs("nas.home.mesh.internal")))(t)
	must(r.prove(t, c, must(c.GetAuthorization(t.Context(), order.AuthzURLs[0]))(t), wayHTTP))(t)
	delete(r.hosts, "nas.home.mesh.internal")
	csr := testCSR(t, "nas.home.mesh.internal")
	if _, _, err := c.CreateOrderCert(t.Context(), order.FinalizeURL, csr, true); kindOf(err) != "rejectedIdentifier" {
		t.Errorf("gone: %v", err)
	}
}

// While one is asked for his proof, others are answered; who does not wait for the end may
// try again.
func TestProvingTakesTime(t *testing.T) {
	r := newRaw(t, "ES256")
	path := strings.TrimPrefix(r.ask("new-order", forNAS).Header.Get("Location"), r.front.URL+"/acme/")
	asked, left := make(chan struct{}), make(chan struct{})
	dial := r.acme.cfg.Dial
	r.acme.each = time.Hour
	r.acme.cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		close(asked)
		<-ctx.Done()
		close(left)
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	body := r.sign(t, fmt.Sprintf(`"nonce":%q,"url":%q,"kid":%q`, r.nonce(), r.front.URL+"/acme/"+path+"/0/http-01", r.kid), "{}")
	go func() {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.front.URL+"/acme/"+path+"/0/http-01", strings.NewReader(body))
		if err != nil {
			ended <- err
			return
		}
		req.Header.Set("Content-Type", joseType)
		_, err = r.front.Client().Do(req)
		ended <- err
	}()
	<-asked
	if got := r.ask(path+"/0/http-01", "{}"); !strings.Contains(got.body, `"status":"processing"`) || got.Header.Get("Retry-After") != "1" {
		t.Error(got.body)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("an answer to somebody who left")
	}
	<-left
	r.acme.proving <- struct{}{} // when all others are through
	for range maxProving - 1 {
		r.acme.proving <- struct{}{}
	}
	if got := r.ask(path+"/0/http-01", "{}"); got.problem() != "rateLimited" {
		t.Error(got.body)
	}
	for range maxProving {
		<-r.acme.proving
	}
	if got := r.ask(path+"/0", ""); !strings.Contains(got.body, `"status":"pending"`) || strings.Contains(got.body, "processing") {
		t.Error(got.body)
	}
	r.acme.cfg.Dial = dial
	if got := r.ask(path+"/0/http-01", "{}"); !strings.Contains(got.body, `"status":"invalid"`) { // nothing is there
		t.Error(got.body)
	}
}

// certbot reads nonces and tokens as bytes, and writes them again.
func TestTokens(t *testing.T) {
	r := newRaw(t, "ES256")
	var body authzBody
	path := strings.TrimPrefix(r.ask("new-order", forNAS).Header.Get("Location"), r.front.URL+"/acme/")
	if err := json.Unmarshal([]byte(r.ask(path+"/0", "").body), &body); err != nil || len(body.Challenges) != 2 {
		t.Fatal(err)
	}
	for _, text := range []string{r.nonce(), body.Challenges[0].Token} {
		if b, err := b64.DecodeString(text); err != nil || len(b) < 16 || b64.EncodeToString(b) != text {
			t.Errorf("%q becomes %q (%v)", text, b64.EncodeToString(b), err)
		}
	}
}
