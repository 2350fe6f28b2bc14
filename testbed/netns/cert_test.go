package netns_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"io/fs"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

const directory = "https://ca.home.mesh.internal/acme/directory"

// certScene is a home with a NAS, a stock phone elsewhere, and somebody on the internet.
type certScene struct {
	*homeScene
	phone    *netns.StockPeer
	nas, web *netns.Host
	root     string // path of the root certificate, as anybody fetches it
	rootCert *x509.Certificate
}

// TestCert: standard clients get, use and renew certificates of the home's own authority, for a member and for a thing at home;
// who has its root trusts them, and for any other name neither its word nor its stolen key is worth anything.
func TestCert(t *testing.T) {
	lab := netns.New(t)
	s := &certScene{homeScene: &homeScene{t: t, lab: lab, home: lab.Home(netns.Public)}}
	s.nas, s.web = lab.Device(s.home, "nas", 51), lab.Far("web")
	s.mesh = lab.HomeMesh(s.home.Router, netns.HomeOptions{URL: "http://home.test", Expose: "chosen",
		Devices: []string{"nas=192.168.77.51", "nas=fd77:77::51"}})
	s.phone = s.client("phone", netns.Easy, netns.StockVersions()[0])
	s.letIn(s.phone)
	wantReach(t, s.phone.Host, s.addrs("home")...)
	for _, h := range []*netns.Host{s.nas, s.home.LAN} {
		h.Resolver(netip.MustParseAddr("100.100.100.100"))
	}
	if !lab.Run("root", s.fetchRoot) {
		return
	}
	for _, part := range []struct {
		name string
		do   func(*certScene, *testing.T)
	}{
		{"by hand", (*certScene).byHand}, {"lego", (*certScene).lego}, {"certbot", (*certScene).certbot}, {"refused", (*certScene).refused}, {"stolen", (*certScene).stolen},
	} {
		lab.Run(part.name, func(t *testing.T) { part.do(s, t) })
	}
}

// curlRoot is curl, which trusts the home's authority and nobody else.
func (s *certScene) curlRoot(t *testing.T, h *netns.Host, url string, flags ...string) (string, error) {
	t.Helper()
	return h.RunPlain(t.Context(), "curl", append(flags, "-sS", "--max-time", "20", "--cacert", s.root, url)...)
}

// fetchRoot: the root is had at home and in the mesh by plain HTTP, in the forms that devices want, and is the one that the
// router's owner sees. Its key is for nobody else to read.
func (s *certScene) fetchRoot(t *testing.T) {
	var all [2]string
	for i, h := range []*netns.Host{s.nas, s.phone.Host} {
		netns.Eventually(t, 20*time.Second, h.Name+" fetches the root", func() (err error) {
			all[i], err = h.RunPlain(t.Context(), "curl", "-sSf", "--max-time", "10", "http://ca.home.mesh.internal/root.crt")
			return err
		})
	}
	printed := say(t, s.mesh.Subnetd, "cert", "root")
	if all[0] != all[1] || all[0] != printed {
		t.Errorf("the NAS has %s\nthe phone has %s\nthe owner has %s", all[0], all[1], printed)
	}
	s.root = filepath.Join(s.lab.Dir(), "root.crt")
	s.nas.WriteFile(s.root, all[0])
	block, _ := pem.Decode([]byte(all[0]))
	if block == nil {
		t.Fatalf("no PEM: %s", all[0])
	}
	var err error
	if s.rootCert, err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	if r := s.rootCert; !r.IsCA || !r.MaxPathLenZero || !r.PermittedDNSDomainsCritical || len(r.PermittedDNSDomains) != 1 || r.PermittedDNSDomains[0] != "mesh.internal" || len(r.ExcludedIPRanges) != 2 {
		t.Errorf("the root may say too much: %+v", r)
	}
	der, err := s.nas.RunPlain(t.Context(), "curl", "-sSf", "http://ca.home.mesh.internal/root.der")
	if err != nil || !bytes.Equal([]byte(der), block.Bytes) {
		t.Errorf("in DER it is another: %v", err)
	}
	profile, err := s.nas.RunPlain(t.Context(), "curl", "-sSf", "http://ca.home.mesh.internal/root.mobileconfig")
	if packed := strings.Join(strings.Fields(profile), ""); err != nil || !strings.Contains(packed, base64.StdEncoding.EncodeToString(block.Bytes)) {
		t.Errorf("the iOS profile does not hold it: %v\n%s", err, profile)
	}
	if out, err := s.nas.RunPlain(t.Context(), "curl", "-sSf", "http://ca.home.mesh.internal/"); err != nil || !strings.Contains(out, "root.crt") {
		t.Errorf("the first page leads nowhere: %v\n%s", err, out)
	}
	if out, err := s.curlRoot(t, s.nas, directory); err != nil || !json.Valid([]byte(out)) {
		t.Errorf("the directory by TLS: %v\n%s", err, out)
	}
	s.key(t)
}

// key is the authority's key, stolen from its disk, where only root may read it.
func (s *certScene) key(t *testing.T) (key crypto.Signer) {
	t.Helper()
	err := filepath.WalkDir(s.mesh.State, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found := keyIn(text)
		if found == nil || !s.rootCert.PublicKey.(*ecdsa.PublicKey).Equal(found.Public()) {
			return nil
		}
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the authority's key has mode %v (%v)", info.Mode(), err)
		}
		key = found
		return nil
	})
	if err != nil || key == nil {
		t.Fatalf("the authority's key is not in %s: %v", s.mesh.State, err)
	}
	return key
}

var base64Text = regexp.MustCompile(`[A-Za-z0-9+/]{80,}=*`)

// keyIn is the first EC key in a file, in PKCS #8 and base64, as PEM and JSON have it.
func keyIn(text []byte) crypto.Signer {
	for _, b := range base64Text.FindAll(bytes.ReplaceAll(text, []byte("\n"), nil), -1) {
		der, err := base64.StdEncoding.DecodeString(string(b))
		if err != nil {
			continue
		}
		if k, err := x509.ParsePKCS8PrivateKey(der); err == nil {
			if e, ok := k.(*ecdsa.PrivateKey); ok {
				return e
			}
		}
	}
	return nil
}

// serveTLS answers all requests with a word at port 443 of a host, by the certificate that fits.
func serveTLS(t *testing.T, h *netns.Host, word string, pairs ...tls.Certificate) {
	t.Helper()
	ln, err := h.Listen("[::]:443")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, word) }),
		ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = srv.Serve(tls.NewListener(ln, &tls.Config{Certificates: pairs})) }()
	t.Cleanup(func() { _ = srv.Close() })
}

// wantTrusted opens a page with curl, who trusts the home's root only, and wants it not to open without.
func (s *certScene) wantTrusted(t *testing.T, from *netns.Host, url, word string) {
	t.Helper()
	if out, err := s.curlRoot(t, from, url); err != nil || out != word {
		t.Errorf("%s opens %s: %v\n%s", from.Name, url, err, out)
	}
	if out, err := from.RunPlain(t.Context(), "curl", "-sS", "--max-time", "20", url); exitCode(err) != 60 {
		t.Errorf("%s opens %s without the root: %v\n%s", from.Name, url, err, out)
	}
}

// leafIn reads a certificate's file and wants Go and OpenSSL to verify it for a name.
func (s *certScene) leafIn(t *testing.T, path, name string) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("%s is no PEM", path)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.goVerifies(leaf, name); err != nil {
		t.Errorf("Go: %v", err)
	}
	if out, err := s.opensslVerifies(path, name); err != nil {
		t.Errorf("OpenSSL: %v\n%s", err, out)
	}
	return leaf
}

func (s *certScene) goVerifies(leaf *x509.Certificate, name string) error {
	roots := x509.NewCertPool()
	roots.AddCert(s.rootCert)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name})
	return err
}

func (s *certScene) opensslVerifies(path, name string) (string, error) {
	return s.home.LAN.Run(context.Background(), "openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", name, "-CAfile", s.root, path)
}

// byHand: the owner has a certificate made for a thing that cannot ask, and its key is for him only.
func (s *certScene) byHand(t *testing.T) {
	dir := filepath.Join(s.lab.Dir(), "by-hand")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Log(say(t, s.mesh.Subnetd, "cert", "nas", "--out", dir))
	keys, _ := filepath.Glob(filepath.Join(dir, "*.key"))
	certs, _ := filepath.Glob(filepath.Join(dir, "*.crt"))
	if len(keys) != 1 || len(certs) != 1 {
		t.Fatalf("files: %q %q", keys, certs)
	}
	if info, err := os.Stat(keys[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v %v", info, err)
	}
	leaf := s.leafIn(t, certs[0], "nas.home.mesh.internal")
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life > 92*24*time.Hour {
		t.Errorf("it is good for %v", life)
	}
	for _, name := range []string{"example.com", "*.home.mesh.internal", "192.168.77.51", "nobody.home.mesh.internal", "home.mesh.internal.example.com", "mesh.internal", "", "../nas"} {
		if out, err := s.mesh.CLI("cert", name, "--out", dir); err == nil {
			t.Errorf("the owner gets one for %q: %s", name, out)
		}
	}
	if out := say(t, s.mesh.Subnetd, "cert"); !strings.Contains(out, "nas.home.mesh.internal") {
		t.Errorf("it is not among those given out:\n%s", out)
	}
}

// ask runs lego on a host.
func (s *certScene) ask(t *testing.T, h *netns.Host, dir string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	all := append([]string{"LEGO_CA_CERTIFICATES=" + s.root, s.lab.Lego(), "run", "--accept-tos", "--server", directory, "--path", dir, "--email", "ana@mesh.internal"}, args...)
	return h.RunPlain(ctx, "env", all...)
}

// lego: a stock member gets a certificate for its name by either challenge, serves with it, and renews it.
func (s *certScene) lego(t *testing.T) {
	dir := filepath.Join(s.lab.Dir(), "lego")
	var serials []string
	for _, args := range [][]string{{"--http"}, {"--http", "--renew-force", "--no-random-sleep"}, {"--tls", "--renew-force", "--no-random-sleep", "--key-type", "RSA2048"}} {
		if out, err := s.ask(t, s.phone.Host, dir, append(args, "--domains", "phone.mesh.internal")...); err != nil {
			t.Fatalf("lego %q: %v\n%s", args, err, out)
		}
		serials = append(serials, s.leafIn(t, filepath.Join(dir, "certificates/phone.mesh.internal.crt"), "phone.mesh.internal").SerialNumber.String())
	}
	if serials[0] == serials[1] || serials[1] == serials[2] {
		t.Errorf("nothing was renewed: %v", serials)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "certificates/phone.mesh.internal.crt"), filepath.Join(dir, "certificates/phone.mesh.internal.key"))
	if err != nil {
		t.Fatal(err)
	}
	serveTLS(t, s.phone.Host, "the phone", pair)
	s.wantTrusted(t, s.home.LAN, "https://phone.mesh.internal/", "the phone")
}

// certbot: a thing at home gets one for the name that the router gave it, and renews it. Chromium trusts it, too.
func (s *certScene) certbot(t *testing.T) {
	dir := filepath.Join(s.lab.Dir(), "certbot")
	run := func(args ...string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		all := append([]string{"REQUESTS_CA_BUNDLE=" + s.root, "certbot"}, append(args, "-n", "--config-dir", dir, "--work-dir", dir+"/work", "--logs-dir", dir+"/logs")...)
		if out, err := s.nas.RunPlain(ctx, "env", all...); err != nil {
			log, _ := os.ReadFile(filepath.Join(dir, "logs/letsencrypt.log"))
			t.Fatalf("certbot %q: %v\n%s\n%s", args, err, out, log)
		}
	}
	const name = "nas.home.mesh.internal"
	live := filepath.Join(dir, "live", name)
	run("certonly", "--standalone", "--agree-tos", "--register-unsafely-without-email", "--server", directory, "-d", name)
	first := s.leafIn(t, live+"/fullchain.pem", name)
	run("renew", "--force-renewal", "--no-random-sleep-on-renew")
	if again := s.leafIn(t, live+"/fullchain.pem", name); again.SerialNumber.Cmp(first.SerialNumber) == 0 {
		t.Error("nothing was renewed")
	}
	pair, err := tls.LoadX509KeyPair(live+"/fullchain.pem", live+"/privkey.pem")
	if err != nil {
		t.Fatal(err)
	}
	serveTLS(t, s.nas, "the NAS", pair)
	s.wantTrusted(t, s.home.LAN, "https://nas.home.mesh.internal/", "the NAS")
	browse(t, s.home.LAN, s.root, "", "https://nas.home.mesh.internal/=the NAS")
}

// browse opens pages in a Chromium that trusts a root, each as URL=TEXT: without a text it has to refuse the certificate. Where
// Chromium finds a name is for its resolver's rules to say, else for the host's.
func browse(t *testing.T, h *netns.Host, root, rules string, pages ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	home := filepath.Join(h.Lab().Dir(), "browser-"+h.Name)
	if _, err := os.Stat(home); err != nil {
		if out, err := h.Run(ctx, "sh", "-c", `mkdir -p "$1/.pki/nssdb" && certutil -d "sql:$1/.pki/nssdb" -N --empty-password && certutil -d "sql:$1/.pki/nssdb" -A -n home -t C,, -i "$2"`, "sh", home, root); err != nil {
			t.Fatalf("the browser's roots: %v\n%s", err, out)
		}
	}
	cmd := h.CmdPlain(ctx, "node", append([]string{"trust.mjs", rules}, pages...)...)
	cmd.Dir = scripts(t)
	cmd.Env = append(cmd.Env, "HOME="+home)
	if err := perform(t, cmd, nil); err != nil {
		t.Errorf("Chromium: %v", err)
	}
}

// refused: nobody gets a certificate for a name that is not of this mesh, is nobody's, or is somebody else's.
func (s *certScene) refused(t *testing.T) {
	dir := filepath.Join(s.lab.Dir(), "refused")
	for _, w := range []struct {
		from *netns.Host
		name string
	}{
		{s.phone.Host, "example.com"}, {s.phone.Host, "nobody.mesh.internal"}, {s.phone.Host, "*.mesh.internal"}, {s.phone.Host, "mesh.internal"},
		{s.phone.Host, "nas.home.mesh.internal"}, {s.phone.Host, "ca.home.mesh.internal"}, {s.nas, "phone.mesh.internal"}, {s.nas, "home.mesh.internal"}, {s.nas, "192.168.77.51"},
	} {
		out, err := s.ask(t, w.from, dir, "--http", "--domains", w.name)
		if err == nil {
			t.Errorf("%s gets one for %s:\n%s", w.from.Name, w.name, out)
		}
		if got, _ := filepath.Glob(filepath.Join(dir, "certificates/*.crt")); len(got) > 0 {
			t.Fatalf("there is one: %q", got)
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		t.Logf("%s for %s: %s", w.from.Name, w.name, lines[len(lines)-1])
	}
}

// stolen: with the authority's own key, whoever has it can speak for names of this mesh only: Go, OpenSSL and Chromium take the
// one and reject the other.
func (s *certScene) stolen(t *testing.T) {
	key := s.key(t)
	forge := func(parent *x509.Certificate, by crypto.Signer, c x509.Certificate) (tls.Certificate, *x509.Certificate) {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
		c.ExtKeyUsage, c.BasicConstraintsValid = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, true
		if c.KeyUsage == 0 {
			c.KeyUsage = x509.KeyUsageDigitalSignature
		}
		der, err := x509.CreateCertificate(rand.Reader, &c, parent, own.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: own}, leaf
	}
	file := filepath.Join(s.lab.Dir(), "forged.pem")
	wants := func(name string, good bool, c x509.Certificate) tls.Certificate {
		t.Helper()
		pair, leaf := forge(s.rootCert, key, c)
		s.nas.WriteFile(file, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})))
		if err := s.goVerifies(leaf, name); (err == nil) != good {
			t.Errorf("Go verifies %s: %v", name, err)
		}
		if out, err := s.opensslVerifies(file, name); (err == nil) != good {
			t.Errorf("OpenSSL verifies %s: %v\n%s", name, err, out)
		}
		return pair
	}
	inside := wants("www.mesh.internal", true, x509.Certificate{DNSNames: []string{"www.mesh.internal"}})
	outside := wants("example.com", false, x509.Certificate{DNSNames: []string{"example.com"}})
	wants("www.mesh.internal", false, x509.Certificate{DNSNames: []string{"www.mesh.internal", "example.com"}})
	wants("mesh.internal.example.com", false, x509.Certificate{DNSNames: []string{"mesh.internal.example.com"}})
	wants("xmesh.internal", false, x509.Certificate{DNSNames: []string{"xmesh.internal"}})
	wants("*.com", false, x509.Certificate{DNSNames: []string{"*.com"}})
	for _, at := range []netip.Addr{s.web.Addr4, s.web.Addr6} { // by Go, whose name would be the address
		_, leaf := forge(s.rootCert, key, x509.Certificate{DNSNames: []string{"www.mesh.internal"}, IPAddresses: []net.IP{at.AsSlice()}})
		if err := s.goVerifies(leaf, at.String()); err == nil {
			t.Errorf("Go verifies %v", at)
		}
	}
	below, middle := forge(s.rootCert, key, x509.Certificate{Subject: pkix.Name{CommonName: "a branch"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign})
	_, leaf := forge(middle, below.PrivateKey.(crypto.Signer), x509.Certificate{DNSNames: []string{"www.mesh.internal"}})
	roots, branches := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(s.rootCert)
	branches.AddCert(middle)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: branches}); err == nil {
		t.Error("an authority below it is believed")
	}
	serveTLS(t, s.web, "a forged page", outside, inside)
	if out, err := s.curlRoot(t, s.web, "https://example.com/", "--resolve", "example.com:443:"+s.web.Addr4.String()); exitCode(err) != 60 {
		t.Errorf("curl: %v %s", err, out)
	}
	browse(t, s.web, s.root, "MAP * "+s.web.Addr4.String(), "https://example.com/=", "https://www.mesh.internal/=a forged page")
}
