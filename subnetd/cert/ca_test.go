package cert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"subnetd/subnetd/state"
)

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// world is a home with a CA, whose clock, names and disk the test has in hand.
type world struct {
	home   Home
	hosts  map[string]Host
	now    time.Time
	behind bool
	dir    *state.Dir
	saves  int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := state.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	local := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	return &world{home: Home{"home.mesh.internal", "mesh.internal"}, now: noon, dir: dir, hosts: map[string]Host{
		"nas.home.mesh.internal": {Addrs: local}, "phone.mesh.internal": {Addrs: local}, "home.mesh.internal": {Self: true},
	}}
}

func (w *world) config() Config {
	return Config{
		Home: func() (Home, bool) { return w.home, w.home.Domain != "" },
		Find: func(name string) (Host, bool) { h, ok := w.hosts[name]; return h, ok },
		Store: Store{Load: w.dir.Load, Save: func(name string, v any) error {
			w.saves++
			return w.dir.Save(name, v)
		}},
		Now: func() time.Time { return w.now }, Behind: func() bool { return w.behind },
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
}

func (w *world) ca() *CA { return New(w.config()) }

func pool(root *x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(root)
	return p
}

func TestLeaf(t *testing.T) {
	w := newWorld(t)
	ca := w.ca()
	root := must(ca.Root())(t)
	pair := must(ca.Leaf([]string{"nas.home.mesh.internal", "home.mesh.internal"}, 7*24*time.Hour))(t)
	for _, name := range []string{"nas.home.mesh.internal", "home.mesh.internal"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool(root), CurrentTime: noon}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if from, to := pair.Leaf.NotBefore, pair.Leaf.NotAfter; !from.Equal(noon.Add(-24*time.Hour)) || !to.Equal(noon.Add(7*24*time.Hour)) {
		t.Errorf("good from %s to %s", from, to)
	}
	if other := must(ca.Leaf([]string{"phone.mesh.internal"}, time.Hour))(t); other.Leaf.SerialNumber.Cmp(pair.Leaf.SerialNumber) == 0 {
		t.Error("two certificates have one serial number")
	}
	if got, want := root.Subject.CommonName, "home.mesh.internal root"; got != want || !root.NotAfter.Equal(noon.AddDate(10, 0, 0)) {
		t.Errorf("the root is %q until %s, want %q", got, root.NotAfter, want)
	}
}

func TestRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*world)
		names  []string
		want   error
	}{
		"unknown":      {nil, []string{"tv.home.mesh.internal"}, ErrUnknown},
		"one unknown":  {nil, []string{"nas.home.mesh.internal", "tv.home.mesh.internal"}, ErrUnknown},
		"none":         {nil, nil, ErrUnknown},
		"elsewhere":    {func(w *world) { w.hosts["example.com"] = Host{} }, []string{"example.com"}, ErrUnknown},
		"the domain":   {func(w *world) { w.hosts["mesh.internal"] = Host{} }, []string{"mesh.internal"}, ErrUnknown},
		"wildcard":     {func(w *world) { w.hosts["*.mesh.internal"] = Host{} }, []string{"*.mesh.internal"}, ErrUnknown},
		"address":      {func(w *world) { w.hosts["100.64.0.1"] = Host{} }, []string{"100.64.0.1"}, ErrUnknown},
		"capitals":     {func(w *world) { w.hosts["NAS.home.mesh.internal"] = Host{} }, []string{"NAS.home.mesh.internal"}, ErrUnknown},
		"clock behind": {func(w *world) { w.behind = true }, []string{"nas.home.mesh.internal"}, ErrClock},
		"no mesh":      {func(w *world) { w.home = Home{} }, []string{"nas.home.mesh.internal"}, ErrNoMesh},
		"odd domain":   {func(w *world) { w.home.Domain = "mesh.*" }, []string{"nas.home.mesh.internal"}, ErrNoMesh},
	} {
		w := newWorld(t)
		if tt.change != nil {
			tt.change(w)
		}
		if _, err := w.ca().Leaf(tt.names, time.Hour); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
}

// The clock may turn out to be behind when there is a root already, and the root ends.
func TestTimes(t *testing.T) {
	w := newWorld(t)
	ca := w.ca()
	root := must(ca.Root())(t)
	w.behind = true
	if _, err := ca.Issue([]string{"nas.home.mesh.internal"}); !errors.Is(err, ErrClock) {
		t.Errorf("clock behind: %v", err)
	}
	w.behind, w.now = false, root.NotAfter.Add(-time.Hour)
	if p := must(ca.Issue([]string{"nas.home.mesh.internal"}))(t); !p.Until.Equal(root.NotAfter) {
		t.Errorf("good until %s, the root until %s", p.Until, root.NotAfter)
	}
	w.now = root.NotAfter
	if _, err := ca.Issue([]string{"nas.home.mesh.internal"}); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("after its end: %v", err)
	}
}

// Each domain has a root for good, also over restarts; one that was damaged is not made
// anew by itself.
func TestKept(t *testing.T) {
	w := newWorld(t)
	first := must(w.ca().Root())(t)
	if again := must(w.ca().Root())(t); !again.Equal(first) {
		t.Error("a restart makes another root")
	}
	ca := w.ca()
	w.home = Home{"home.example.net", "example.net"}
	second := must(ca.Root())(t)
	if second.Equal(first) || !slices.Equal(second.PermittedDNSDomains, []string{"example.net"}) {
		t.Errorf("another domain: %v", second.PermittedDNSDomains)
	}
	w.home = Home{"other.mesh.internal", "mesh.internal"}
	if again := must(ca.Root())(t); !again.Equal(first) {
		t.Error("the first domain has lost its root")
	}
	file := filepath.Join(w.dir.Path(), rootFile("mesh.internal"))
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	for _, text := range []string{"{", `{"domain":"mesh.internal"}`} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if r, err := w.ca().Root(); err == nil {
			t.Errorf("%q gives %v", text, r.Subject)
		}
	}
}

func TestNotKept(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	full := errors.New("disk full")
	cfg.Store.Save = func(string, any) error { return full }
	if _, err := New(cfg).Root(); !errors.Is(err, full) {
		t.Error(err)
	}
}

func TestIssue(t *testing.T) {
	w := newWorld(t)
	ca := w.ca()
	p := must(ca.Issue([]string{"nas.home.mesh.internal"}))(t)
	pair := must(tls.X509KeyPair(p.Chain, p.Key))(t)
	if len(pair.Certificate) != 2 || pair.Leaf.VerifyHostname("nas.home.mesh.internal") != nil || !p.Until.Equal(noon.Add(Life)) {
		t.Errorf("%d certificates, for %v, until %s", len(pair.Certificate), pair.Leaf.DNSNames, p.Until)
	}
	w.now = noon.Add(time.Hour)
	must(ca.Issue([]string{"phone.mesh.internal"}))(t)
	for _, ca := range []*CA{ca, w.ca()} {
		all := ca.Issued()
		if len(all) != 2 || all[0].Names[0] != "phone.mesh.internal" || all[1].Serial != serialOf(pair.Leaf) {
			t.Errorf("%+v", all)
		}
	}
	w.now = noon.Add(Life)
	if all := ca.Issued(); len(all) != 1 {
		t.Errorf("%+v", all)
	}
}

// There is an end to what is remembered: what was renewed goes first.
func TestForgets(t *testing.T) {
	w := newWorld(t)
	cfg := w.config()
	cfg.Store.Save = func(string, any) error { return nil }
	b := New(cfg).book
	give := func(name string) {
		b.issued(&x509.Certificate{SerialNumber: newSerial(), DNSNames: []string{name}, NotAfter: noon.Add(Life)}, "")
		w.now = w.now.Add(time.Second)
	}
	give("a")
	give("b")
	give("b")
	for range maxIssued - 2 {
		give("c")
	}
	has := map[string]int{}
	for _, c := range b.all() {
		has[c.Names[0]]++
	}
	if has["a"] != 1 || has["b"] != 1 || has["c"] != maxIssued-2 {
		t.Errorf("%v", has)
	}
}

// abuse signs a certificate as somebody would who stole the key of a home.
func abuse(t testing.TB, w *world, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	ca := w.ca()
	r := must(ca.current())(t)
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	c := &x509.Certificate{SerialNumber: newSerial(), Subject: pkix.Name{CommonName: "thief"}, NotBefore: w.now.Add(-time.Hour), NotAfter: w.now.Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	change(c)
	der := must(x509.CreateCertificate(rand.Reader, c, r.cert, key.Public(), r.key))(t)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: must(x509.ParseCertificate(der))(t)}
}

// Even with the key of a home nobody makes a certificate that Go or OpenSSL takes for
// something outside of its domain.
func TestConstraints(t *testing.T) {
	w := newWorld(t)
	w.now = time.Now()
	root := must(w.ca().Root())(t)
	u := must(url.Parse("https://example.com/"))(t)
	for name, tt := range map[string]struct {
		change func(*x509.Certificate)
		usage  x509.ExtKeyUsage
		good   bool
	}{
		"own":        {func(c *x509.Certificate) { c.DNSNames = []string{"nas.home.mesh.internal"} }, x509.ExtKeyUsageServerAuth, true},
		"example":    {func(c *x509.Certificate) { c.DNSNames = []string{"example.com"} }, x509.ExtKeyUsageServerAuth, false},
		"both":       {func(c *x509.Certificate) { c.DNSNames = []string{"nas.home.mesh.internal", "example.com"} }, x509.ExtKeyUsageServerAuth, false},
		"lookalike":  {func(c *x509.Certificate) { c.DNSNames = []string{"evilmesh.internal"} }, x509.ExtKeyUsageServerAuth, false},
		"longer":     {func(c *x509.Certificate) { c.DNSNames = []string{"mesh.internal.example.com"} }, x509.ExtKeyUsageServerAuth, false},
		"IPv4":       {func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(192, 168, 1, 1)} }, x509.ExtKeyUsageServerAuth, false},
		"IPv6":       {func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP("fd7a:115c:a1e0::1")} }, x509.ExtKeyUsageServerAuth, false},
		"mail":       {func(c *x509.Certificate) { c.EmailAddresses = []string{"me@example.com"} }, x509.ExtKeyUsageServerAuth, false},
		"URI":        {func(c *x509.Certificate) { c.URIs = []*url.URL{u} }, x509.ExtKeyUsageServerAuth, false},
		"program":    {func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, x509.ExtKeyUsageCodeSigning, false},
		"authority":  {func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, x509.ExtKeyUsageServerAuth, true},
		"name as CN": {func(c *x509.Certificate) { c.Subject.CommonName = "example.com" }, x509.ExtKeyUsageServerAuth, true}, // by nobody's rules a name
	} {
		t.Run(name, func(t *testing.T) {
			pair := abuse(t, w, tt.change)
			_, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: pool(root), KeyUsages: []x509.ExtKeyUsage{tt.usage}})
			if (err == nil) != tt.good {
				t.Errorf("Go: %v", err)
			}
			out, err := openssl(t, root, pair.Leaf, tt.usage)
			if name == "name as CN" { // OpenSSL takes it for one
				tt.good = false
			}
			if (err == nil) != tt.good {
				t.Errorf("OpenSSL: %v: %s", err, out)
			}
		})
	}
	// What an authority below ours signs is worth nothing.
	sub := abuse(t, w, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	leaf := &x509.Certificate{SerialNumber: newSerial(), DNSNames: []string{"nas.home.mesh.internal"}, NotBefore: w.now.Add(-time.Hour), NotAfter: w.now.Add(time.Hour)}
	key := sub.PrivateKey.(*ecdsa.PrivateKey)
	der := must(x509.CreateCertificate(rand.Reader, leaf, sub.Leaf, key.Public(), key))(t)
	inter := x509.NewCertPool()
	inter.AddCert(sub.Leaf)
	if _, err := must(x509.ParseCertificate(der))(t).Verify(x509.VerifyOptions{Roots: pool(root), Intermediates: inter}); err == nil {
		t.Error("Go takes what an authority below ours has signed")
	}
}

// openssl has OpenSSL judge a certificate.
func openssl(t testing.TB, root, leaf *x509.Certificate, usage x509.ExtKeyUsage) ([]byte, error) {
	t.Helper()
	dir := t.TempDir()
	for name, c := range map[string]*x509.Certificate{"root": root, "leaf": leaf} {
		if err := os.WriteFile(filepath.Join(dir, name), PEM(c), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	purpose := map[x509.ExtKeyUsage]string{x509.ExtKeyUsageServerAuth: "sslserver", x509.ExtKeyUsageCodeSigning: "codesign"}[usage]
	program, err := exec.LookPath("openssl")
	switch {
	case err != nil && os.Getenv("CI") == "true":
		t.Fatal(err)
	case err != nil:
		t.Skip(err)
	}
	return exec.Command(program, "verify", "-x509_strict", "-purpose", purpose, "-CAfile", filepath.Join(dir, "root"), filepath.Join(dir, "leaf")).CombinedOutput()
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "a.b": true, "a-1.b": true, strings.Repeat("a", 63) + ".b": true,
		"": false, ".": false, "a.": false, ".a": false, "a..b": false, "-a": false, "a-": false, "A": false, "a_b": false, "ä": false, "a b": false,
		"*": false, "a/b": false, strings.Repeat("a", 64): false, strings.Repeat("a.", 130) + "b": false,
	} {
		if isName(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
	long := strings.Repeat("a", 60) + ".mesh.internal"
	w := newWorld(t)
	w.hosts[long], w.home.Name = Host{}, long
	ca := w.ca()
	if leaf := must(ca.Leaf([]string{long}, time.Hour))(t).Leaf; leaf.Subject.CommonName != "" || leaf.VerifyHostname(long) != nil {
		t.Errorf("%s", leaf.Subject)
	}
	if root := must(ca.Root())(t); root.Subject.CommonName != "root of a home" {
		t.Errorf("%s", root.Subject)
	}
}

func TestSite(t *testing.T) {
	w := newWorld(t)
	ca := w.ca()
	s := Site{CA: ca, ACME: http.NotFoundHandler()}
	get := func(method, path string) *httptest.ResponseRecorder {
		out := httptest.NewRecorder()
		s.ServeHTTP(out, httptest.NewRequest(method, "http://ca.home.mesh.internal"+path, nil))
		return out
	}
	root := must(ca.Root())(t)
	for path, want := range map[string]string{"/root.crt": string(PEM(root)), "/root.der": string(root.Raw)} {
		if got := get("GET", path); got.Code != 200 || got.Body.String() != want || got.Header().Get("Content-Type") != "application/x-x509-ca-cert" {
			t.Errorf("%s: %d %v", path, got.Code, got.Header())
		}
	}
	if text := get("GET", "/").Body.String(); !strings.Contains(text, Fingerprint(root)) || !strings.Contains(text, "/root.mobileconfig") {
		t.Errorf("%s", text)
	}
	for path, want := range map[string]int{"/root.": 404, "/root.key": 404, "/x": 404, "/acme/directory": 404, "/root.crt/": 404} {
		if got := get("GET", path); got.Code != want {
			t.Errorf("%s: %d", path, got.Code)
		}
	}
	if got := get("POST", "/root.crt"); got.Code != 405 || got.Header().Get("Allow") == "" {
		t.Errorf("POST: %d", got.Code)
	}
	p := get("GET", "/root.mobileconfig")
	checkProfile(t, p, root)
	w.home = Home{}
	if got := get("GET", "/root.crt"); got.Code != 503 || !strings.Contains(got.Body.String(), ErrNoMesh.Error()) {
		t.Errorf("in no mesh: %d %s", got.Code, got.Body)
	}
}

// checkProfile reads a profile as a property list.
func checkProfile(t *testing.T, p *httptest.ResponseRecorder, root *x509.Certificate) {
	t.Helper()
	if got := p.Header().Get("Content-Type"); got != "application/x-apple-aspen-config" {
		t.Errorf("its type is %q", got)
	}
	var words []string
	for d := xml.NewDecoder(p.Body); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if text, ok := tok.(xml.CharData); ok && strings.TrimSpace(string(text)) != "" {
			words = append(words, string(text))
		}
	}
	i := slices.Index(words, "com.apple.security.root")
	j := slices.IndexFunc(words, func(s string) bool { return len(s) > 100 })
	if i < 0 || j < 1 || words[j-1] != "PayloadContent" || !slices.Contains(words, "home.mesh.internal root") {
		t.Fatalf("%q", words)
	}
	block, _ := pem.Decode([]byte("-----BEGIN CERTIFICATE-----\n" + words[j] + "\n-----END CERTIFICATE-----\n"))
	if block == nil || !slices.Equal(block.Bytes, root.Raw) {
		t.Error("the profile has another certificate in it")
	}
}
