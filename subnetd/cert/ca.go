// Package cert is the certificates of a home: a certificate authority that can speak for
// the mesh's domain only, and an ACME server (RFC 8555) in front of it.
//
//	page, devices without TLS: Leaf ──┐
//	the owner, by name: Issue ────────┼─> sign: does this home know the name? is the clock right?
//	ACME: order, proof, finalize ─────┘
package cert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	rootYears = 10
	before    = 24 * time.Hour // a certificate is valid already: the clocks of things at home are wrong

	// Life is how long a certificate is good that somebody else renews.
	Life = 90 * 24 * time.Hour
)

// What keeps a certificate from being made, wrapped or not.
var (
	ErrNoMesh  = errors.New("this router is in no mesh: certificates are for the names of one")
	ErrClock   = errors.New("the clock of this router is behind: no certificate is made before it knows the time")
	ErrUnknown = errors.New("this home knows no such name: it knows members of the mesh, and devices that are exposed under a name")
)

// Home is whose authority it is.
type Home struct {
	Name   string // of this router in the mesh, fully qualified, in lower case, without a dot at its end
	Domain string // of the mesh, likewise
}

// Host is who has a name.
type Host struct {
	Names []string     // all that it has, if they are several
	Addrs []netip.Addr // where it is asked to prove that
	Self  bool         // this router, which proves nothing
}

// Store keeps what must survive a restart, under file names. Load reports whether there
// is such a thing; of one that was lost it says so by an error.
type Store struct {
	Load func(name string, v any) (found bool, err error)
	Save func(name string, v any) error
}

// Config says whose certificates these are. All is asked anew each time.
type Config struct {
	Home   func() (Home, bool)            // false: in no mesh
	Find   func(name string) (Host, bool) // name as in Home; false: nobody has it
	Store  Store
	Now    func() time.Time
	Behind func() bool // whether the clock is known to be wrong
	Log    *slog.Logger
}

// CA signs for the names of one mesh; in another mesh it is another one, with another
// key. It is safe for concurrent use.
type CA struct {
	cfg  Config
	book *book

	mu   sync.Mutex // guards what follows
	root *root
}

// root is the key of a CA with its certificate.
type root struct {
	domain string
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
}

// kept is a root on disk.
type kept struct {
	Domain string `json:"domain"`
	Key    []byte `json:"key"`  // PKCS #8
	Cert   []byte `json:"cert"` // X.509, DER
}

// New makes a CA. Its key is made when it is first needed.
func New(cfg Config) *CA { return &CA{cfg: cfg, book: openBook(cfg.Store, cfg.Now, cfg.Log)} }

// Root is the certificate by which others trust those of the home.
func (c *CA) Root() (*x509.Certificate, error) {
	r, err := c.current()
	if err != nil {
		return nil, err
	}
	return r.cert, nil
}

// Fingerprint is the SHA-256 of a certificate, as other programs show it.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	text := strings.ToUpper(hex.EncodeToString(sum[:]))
	var out []string
	for pair := range slices.Chunk([]byte(text), 2) {
		out = append(out, string(pair))
	}
	return strings.Join(out, ":")
}

// current is the root of the mesh that this router is in, from memory, disk or new.
func (c *CA) current() (*root, error) {
	home, ok := c.cfg.Home()
	if !ok || !isName(home.Name) || !isName(home.Domain) {
		return nil, ErrNoMesh
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.root != nil && c.root.domain == home.Domain {
		return c.root, nil
	}
	file := rootFile(home.Domain)
	var k kept
	found, err := c.cfg.Store.Load(file, &k)
	if err != nil {
		return nil, fmt.Errorf("the key of this home's certificates: %w", err)
	}
	if !found {
		if k, err = c.newRoot(home); err != nil {
			return nil, err
		}
		if err := c.cfg.Store.Save(file, k); err != nil {
			return nil, fmt.Errorf("the key of this home's certificates is not kept, so it is not used: %w", err)
		}
		c.cfg.Log.Info("this home has a key of its own for certificates", "domain", home.Domain)
	}
	r, err := k.root()
	if err != nil {
		return nil, fmt.Errorf("the key of this home's certificates: %w", err)
	}
	c.root = r
	return r, nil
}

// rootFile is one for each domain, whatever that is called.
func rootFile(domain string) string {
	sum := sha256.Sum256([]byte(domain))
	return "ca-" + hex.EncodeToString(sum[:8])
}

// newRoot makes a root that is good for the names of the domain, and for nothing else
// that certificates are for (RFC 5280, 4.2.1.10): those of other names, of addresses and
// of programs are worth nothing, even if the key is stolen.
func (c *CA) newRoot(home Home) (kept, error) {
	if c.cfg.Behind() {
		return kept{}, ErrClock
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return kept{}, err
	}
	now := c.cfg.Now().UTC()
	t := &x509.Certificate{
		SerialNumber:                newSerial(),
		Subject:                     pkix.Name{CommonName: commonName(home.Name+" root", "root of a home")},
		NotBefore:                   now.Add(-before),
		NotAfter:                    now.AddDate(rootYears, 0, 0),
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:                 []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid:       true,
		IsCA:                        true,
		MaxPathLenZero:              true,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{home.Domain},
		PermittedEmailAddresses:     []string{home.Domain},
		PermittedURIDomains:         []string{home.Domain},
		ExcludedIPRanges:            []*net.IPNet{{IP: make(net.IP, 4), Mask: make(net.IPMask, 4)}, {IP: make(net.IP, 16), Mask: make(net.IPMask, 16)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return kept{}, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	return kept{Domain: home.Domain, Key: pkcs8, Cert: der}, err
}

func (k kept) root() (*root, error) {
	cert, err := x509.ParseCertificate(k.Cert)
	if err != nil {
		return nil, err
	}
	any, err := x509.ParsePKCS8PrivateKey(k.Key)
	if err != nil {
		return nil, err
	}
	key, ok := any.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("it is not that of its certificate")
	}
	return &root{domain: k.Domain, key: key, cert: cert}, nil
}

// sign makes a certificate of a key for names that this home knows, which are written as
// in Home. It ends with the root at the latest.
func (c *CA) sign(names []string, key crypto.PublicKey, life time.Duration) (leaf, ca *x509.Certificate, err error) {
	r, err := c.current()
	if err != nil {
		return nil, nil, err
	}
	if c.cfg.Behind() {
		return nil, nil, ErrClock
	}
	if len(names) == 0 {
		return nil, nil, fmt.Errorf("%w: none", ErrUnknown)
	}
	for _, n := range names {
		if _, ok := c.find(n, r.domain); !ok {
			return nil, nil, fmt.Errorf("%w: %q", ErrUnknown, n)
		}
	}
	now := c.cfg.Now().UTC()
	if !now.Before(r.cert.NotAfter) {
		return nil, nil, fmt.Errorf("the root certificate of this home has ended on %s", r.cert.NotAfter.Format(time.DateOnly))
	}
	t := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: commonName(names[0], "")},
		NotBefore:             now.Add(-before),
		NotAfter:              earlier(now.Add(life), r.cert.NotAfter),
		DNSNames:              names,
		KeyUsage:              usage(key),
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, r.cert, key, r.key)
	if err != nil {
		return nil, nil, err
	}
	leaf, err = x509.ParseCertificate(der)
	return leaf, r.cert, err
}

// find is who has a name, if it is one of the domain.
func (c *CA) find(name, domain string) (Host, bool) {
	if !isName(name) || !strings.HasSuffix(name, "."+domain) {
		return Host{}, false
	}
	return c.cfg.Find(name)
}

// isName reports whether that is a host's name in lower case (RFC 1123, 2.1), of which no
// label is a wildcard.
func isName(name string) bool {
	if len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		bad := func(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-') }
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, bad) {
			return false
		}
	}
	return true
}

// commonName has at most 64 characters (RFC 5280, ub-common-name).
func commonName(name, or string) string {
	if len(name) > 64 {
		return or
	}
	return name
}

// newSerial is positive, and 127 bits long.
func newSerial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:])
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
