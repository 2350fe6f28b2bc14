package ingress

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"
)

const (
	acmeTimeout = 5 * time.Minute // for one certificate
	renewLook   = time.Hour       // between two looks at whether it is time for a new one
	retryFirst  = 2 * time.Minute
	retryLast   = time.Hour // authorities allow few failures an hour
	retryMore   = 3         // times longer after each failure
	callRetries = 4         // of one request to the authority

	accountFile = "account"
)

// Store keeps what must survive a restart: the account's key and the
// certificate. Load fails with fs.ErrNotExist if there is no such thing. The
// names are file names.
type Store struct {
	Load func(name string) ([]byte, error)
	Save func(name string, b []byte) error
}

// ACMEConfig says where to get which certificate.
type ACMEConfig struct {
	Name      string // the one DNS name
	Directory string // of the authority. "": Let's Encrypt
	Store     Store
	// Fallback is the certificate while there is none for Name, and for whoever
	// asks for another name. nil: these connections fail.
	Fallback func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Client   *http.Client // to reach the authority. nil: http.DefaultClient
	Now      func() time.Time
	Log      *slog.Logger
}

// ACME gets a certificate by RFC 8555, and a new one in time, once it runs. It
// proves that the name is ours by tls-alpn-01, which needs Config.ACME and port
// 443 redirected here, or else by http-01, which needs HTTPHandler and port 80.
// It agrees with the authority's terms.
type ACME struct {
	cfg     ACMEConfig
	cert    atomic.Pointer[tls.Certificate]
	answer  atomic.Pointer[answer]
	problem atomic.Pointer[error]
}

// answer is what the authority wants to see where the name leads to. It is there
// only as long as we are asked.
type answer struct {
	cert tls.Certificate // tls-alpn-01 (RFC 8737)
	path string          // http-01 (RFC 8555, section 8.3)
	text string
}

// NewACME makes the task. Nothing is asked of the authority before it runs.
func NewACME(cfg ACMEConfig) *ACME {
	cfg.Name = strings.ToLower(strings.TrimSuffix(cfg.Name, "."))
	if cfg.Directory == "" {
		cfg.Directory = acme.LetsEncryptURL
	}
	if cfg.Client == nil {
		cfg.Client = http.DefaultClient
	}
	return &ACME{cfg: cfg}
}

func (a *ACME) String() string { return "acme" }

// Run sees to it that there is a certificate, until ctx ends.
func (a *ACME) Run(ctx context.Context) error {
	if pair, err := a.load(); err == nil {
		a.use(pair)
	} else if !errors.Is(err, fs.ErrNotExist) {
		a.cfg.Log.Warn("the stored certificate is of no use, getting another", "name", a.cfg.Name, "err", err)
	}
	wait := retryFirst
	for ctx.Err() == nil {
		if !a.due() {
			pause(ctx, renewLook)
			continue
		}
		pair, err := a.obtain(ctx)
		if err == nil {
			a.use(pair)
			wait = retryFirst
		} else if ctx.Err() == nil {
			a.say(fmt.Errorf("no new certificate for %s from %s: %w", a.cfg.Name, a.cfg.Directory, err))
			pause(ctx, wait)
			wait = min(retryMore*wait, retryLast)
		}
	}
	return nil
}

// due reports whether less than a third of the certificate's life is left. If it
// is not valid yet, it is our clock that is wrong, and nothing is due.
func (a *ACME) due() bool {
	cert := a.cert.Load()
	if cert == nil {
		return true
	}
	from, until := cert.Leaf.NotBefore, cert.Leaf.NotAfter
	return until.Sub(a.cfg.Now()) < until.Sub(from)/3
}

func (a *ACME) use(pair *tls.Certificate) {
	a.cert.Store(pair)
	a.problem.Store(nil)
	a.cfg.Log.Info("certificate", "name", a.cfg.Name, "until", pair.Leaf.NotAfter)
}

func (a *ACME) say(err error) {
	if old := a.problem.Swap(&err); old == nil || (*old).Error() != err.Error() {
		a.cfg.Log.Warn("certificate", "err", err)
	}
}

// Problem is why there is no certificate, or soon none. nil: there is one, or we
// are getting it.
func (a *ACME) Problem() error {
	if err := a.problem.Load(); err != nil {
		return *err
	}
	return nil
}

// Get is for Config.Certificate. It never waits for the authority.
func (a *ACME) Get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	ours := strings.EqualFold(strings.TrimSuffix(hello.ServerName, "."), a.cfg.Name)
	if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPNProto {
		if ans := a.answer.Load(); ours && ans != nil && len(ans.cert.Certificate) > 0 {
			return &ans.cert, nil
		}
		return nil, errors.New("a challenge that we have not asked for")
	}
	if cert := a.cert.Load(); ours && cert != nil {
		return cert, nil
	}
	if a.cfg.Fallback == nil {
		return nil, fmt.Errorf("no certificate for %q", hello.ServerName)
	}
	return a.cfg.Fallback(hello)
}

// HTTPHandler answers http-01 challenges, and has next answer everything else.
func (a *ACME) HTTPHandler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ans := a.answer.Load(); ans != nil && ans.path != "" && r.URL.Path == ans.path {
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Write([]byte(ans.text))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// obtain gets a certificate and stores it. An authorization that has failed has
// failed for good, so each way to prove the name begins with a new order.
func (a *ACME) obtain(ctx context.Context) (*tls.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, acmeTimeout)
	defer cancel()
	client, err := a.account(ctx)
	if err != nil {
		return nil, fmt.Errorf("account: %w", err)
	}
	var errs []error
	for _, way := range []string{"tls-alpn-01", "http-01"} {
		order, err := a.authorize(ctx, client, way)
		if err == nil {
			return a.finalize(ctx, client, order)
		}
		errs = append(errs, fmt.Errorf("%s (ports 80 and 443 of the name must lead to this router): %w", way, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// account is our account with the authority, new if we have none.
func (a *ACME) account(ctx context.Context) (*acme.Client, error) {
	var k crypto.Signer
	pair, err := a.cfg.Store.Load(accountFile)
	switch {
	case err == nil:
		if k, err = decodeKey(pair); err != nil {
			return nil, err
		}
	case errors.Is(err, fs.ErrNotExist):
		if k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
		if pair, err = encode(k, nil); err != nil {
			return nil, err
		}
		if err = a.cfg.Store.Save(accountFile, pair); err != nil {
			return nil, err
		}
	default:
		return nil, err
	}
	client := &acme.Client{
		Key: k, DirectoryURL: a.cfg.Directory, HTTPClient: a.cfg.Client, UserAgent: "subnetd",
		RetryBackoff: func(n int, _ *http.Request, _ *http.Response) time.Duration {
			if n > callRetries {
				return -1
			}
			return time.Duration(n) * time.Second
		},
	}
	if _, err := client.Register(ctx, &acme.Account{}, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return nil, err
	}
	return client, nil
}

// authorize orders a certificate and proves in one way that the name is ours.
func (a *ACME) authorize(ctx context.Context, client *acme.Client, way string) (*acme.Order, error) {
	order, err := client.AuthorizeOrder(ctx, acme.DomainIDs(a.cfg.Name))
	if err != nil {
		return nil, err
	}
	defer a.answer.Store(nil)
	for _, url := range order.AuthzURLs {
		authz, err := client.GetAuthorization(ctx, url)
		if err != nil {
			return nil, err
		}
		if authz.Status == acme.StatusValid {
			continue
		}
		if err := a.prove(ctx, client, authz, way); err != nil {
			return nil, err
		}
	}
	ready, err := client.WaitOrder(ctx, order.URI)
	if err != nil {
		return nil, err
	}
	ready.URI = order.URI // not every authority repeats it
	return ready, nil
}

func (a *ACME) prove(ctx context.Context, client *acme.Client, authz *acme.Authorization, way string) error {
	for _, c := range authz.Challenges {
		if c.Type != way {
			continue
		}
		var ans answer
		var err error
		if way == "http-01" {
			ans.path = client.HTTP01ChallengePath(c.Token)
			ans.text, err = client.HTTP01ChallengeResponse(c.Token)
		} else {
			ans.cert, err = client.TLSALPN01ChallengeCert(c.Token, a.cfg.Name)
		}
		if err != nil {
			return err
		}
		a.answer.Store(&ans)
		if _, err := client.Accept(ctx, c); err != nil {
			return err
		}
		_, err = client.WaitAuthorization(ctx, authz.URI)
		return err
	}
	return errors.New("the authority does not offer it")
}

// finalize has the certificate issued, for a new key, and stores both.
func (a *ACME) finalize(ctx context.Context, client *acme.Client, order *acme.Order) (*tls.Certificate, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{a.cfg.Name}}, k)
	if err != nil {
		return nil, err
	}
	chain, _, err := client.CreateOrderCert(ctx, order.FinalizeURL, csr, true)
	if err != nil {
		// The library asks for the order where the answer says it is, which not
		// every authority does (RFC 8555 demands it of the first answer only).
		issued, waited := client.WaitOrder(ctx, order.URI)
		if waited != nil || issued.CertURL == "" {
			return nil, err
		}
		if chain, err = client.FetchCert(ctx, issued.CertURL, true); err != nil {
			return nil, err
		}
	}
	text, err := encode(k, chain)
	if err != nil {
		return nil, err
	}
	pair, err := a.decode(text)
	if err != nil {
		return nil, err
	}
	if err := a.cfg.Store.Save(a.cfg.Name, text); err != nil {
		a.cfg.Log.Warn("certificate cannot be stored, and will be lost with a restart", "err", err)
	}
	return pair, nil
}

func (a *ACME) load() (*tls.Certificate, error) {
	text, err := a.cfg.Store.Load(a.cfg.Name)
	if err != nil {
		return nil, err
	}
	return a.decode(text)
}

// decode reads a certificate with its chain and key, and checks that it is the one we want.
func (a *ACME) decode(text []byte) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, err
	}
	if err := pair.Leaf.VerifyHostname(a.cfg.Name); err != nil {
		return nil, err
	}
	return &pair, nil
}

// encode writes a key, and a chain that goes with it, in PEM.
func encode(k crypto.Signer, chain [][]byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, c := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	return text, nil
}

func decodeKey(text []byte) (crypto.Signer, error) {
	b, _ := pem.Decode(text)
	if b == nil {
		return nil, errors.New("the stored account key is no PEM")
	}
	k, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the stored account key is of another kind")
	}
	return signer, nil
}
