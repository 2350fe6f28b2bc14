package ingress

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// memory is a Store.
type memory struct {
	mu    sync.Mutex
	files map[string][]byte
	fail  bool
}

func (m *memory) store() Store {
	return Store{
		Load: func(name string) ([]byte, error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			if b, ok := m.files[name]; ok {
				return b, nil
			}
			return nil, fs.ErrNotExist
		},
		Save: func(name string, b []byte) error {
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.fail {
				return errors.New("flash is full")
			}
			m.files[name] = b
			return nil
		},
	}
}

func newACME(ca *authority, m *memory) *ACME {
	return NewACME(ACMEConfig{Name: "Home.Test.", Directory: link("dir"), Store: m.store(),
		Client: &http.Client{Transport: ca}, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
}

// run runs it until the returned func is called.
func (a *ACME) run(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

var hello = &tls.ClientHelloInfo{ServerName: "home.TEST", SupportedProtos: []string{"http/1.1"}}

// A real port proves the name by tls-alpn-01, and shows the certificate.
func TestACMEOverTLS(t *testing.T) {
	ca := newAuthority(t)
	a := newACME(ca, &memory{files: map[string][]byte{}})
	r := serve(t, Bounds{}, func(s *Server) {
		s.cfg.Certificate, s.cfg.ACME = a.Get, true
		s.tls = tlsConfig(s.cfg)
	})
	ca.prove["tls-alpn-01"] = byALPN(func(cfg *tls.Config) (*x509.Certificate, error) {
		c, err := tls.Dial("tcp", r.addr, cfg)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0], nil
	})
	stop := a.run(t)
	defer stop()
	until(t, "a certificate", func() bool { return a.cert.Load() != nil })
	roots := x509.NewCertPool()
	roots.AddCert(ca.root)
	raw, err := net.Dial("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, &tls.Config{ServerName: "home.test", RootCAs: roots})
	defer c.Close()
	if _, err := say(c, "trusted"); err != nil {
		t.Error(err)
	}
	if c, err := tls.Dial("tcp", r.addr, &tls.Config{ServerName: "home.test", NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true}); err == nil {
		c.Close()
		t.Error("a challenge is answered that nobody has made")
	}
}

// What cannot be proved one way is proved the other way. It is kept, and over a
// restart nothing is asked; when a third of its life is left, there is another.
func TestACMELife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t)
		m := &memory{files: map[string][]byte{}}
		a := newACME(ca, m)
		ca.prove["tls-alpn-01"] = never
		ca.prove["http-01"] = byHTTP(a.HTTPHandler(http.NotFoundHandler()))
		if _, err := a.Get(hello); err == nil {
			t.Error("a certificate from nowhere")
		}
		stop := a.run(t)
		time.Sleep(time.Minute)
		first, err := a.Get(hello)
		if err != nil {
			t.Fatal(err)
		}
		if _, tried := ca.seen(); tried != "tls-alpn-01 http-01" {
			t.Errorf("tried %s", tried)
		}
		stop()

		requests, _ := ca.seen()
		a = newACME(ca, m)
		ca.prove["http-01"] = byHTTP(a.HTTPHandler(http.NotFoundHandler()))
		stop = a.run(t)
		defer func() { stop() }()
		time.Sleep(59 * 24 * time.Hour)
		if again, err := a.Get(hello); err != nil || !again.Leaf.Equal(first.Leaf) {
			t.Errorf("another certificate, %v", err)
		}
		if n, _ := ca.seen(); n != requests {
			t.Errorf("%d requests though there is nothing to ask", n-requests)
		}
		time.Sleep(2 * 24 * time.Hour)
		renewed, err := a.Get(hello)
		if err != nil || renewed.Leaf.Equal(first.Leaf) {
			t.Errorf("not renewed, %v", err)
		}
		if ca.accounts != 2 { // the second one is found to be the first
			t.Errorf("%d registrations", ca.accounts)
		}
	})
}

// While the authority fails, it is asked ever less often, what there is stays in
// use, the owner is told, and nobody waits.
func TestACMEFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t)
		ca.down = true
		m := &memory{files: map[string][]byte{}}
		a := newACME(ca, m)
		fallback := identityFor(t, "elsewhere.test").TLS()
		a.cfg.Fallback = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &fallback, nil }
		ca.prove["tls-alpn-01"] = byALPN(func(cfg *tls.Config) (*x509.Certificate, error) {
			c, err := a.Get(&tls.ClientHelloInfo{ServerName: cfg.ServerName, SupportedProtos: cfg.NextProtos})
			if err != nil {
				return nil, err
			}
			return x509.ParseCertificate(c.Certificate[0])
		})
		stop := a.run(t)
		defer func() { stop() }()
		time.Sleep(24 * time.Hour)
		if n, _ := ca.seen(); n < 24 || n > 40 {
			t.Errorf("%d requests in a day without success", n)
		}
		if err := a.Problem(); err == nil || !strings.Contains(err.Error(), "home.test") || !strings.Contains(err.Error(), "unreachable") {
			t.Errorf("problem %v", err)
		}
		if c, err := a.Get(hello); err != nil || c != &fallback {
			t.Errorf("no fallback, %v", err)
		}
		ca.setDown(false)
		time.Sleep(retryLast + time.Minute)
		good, err := a.Get(hello)
		if err != nil || good == &fallback || a.Problem() != nil {
			t.Fatalf("no certificate, %v, %v", err, a.Problem())
		}
		if c, err := a.Get(&tls.ClientHelloInfo{ServerName: "elsewhere.test"}); err != nil || c != &fallback {
			t.Errorf("another name: %v", err)
		}
		ca.setDown(true)
		m.mu.Lock()
		m.fail = true
		m.mu.Unlock()
		time.Sleep(70 * 24 * time.Hour)
		if c, err := a.Get(hello); err != nil || c != good || a.Problem() == nil {
			t.Errorf("renewal fails: %v, problem %v", err, a.Problem())
		}
		ca.setDown(false)
		time.Sleep(retryLast + time.Minute)
		if c, err := a.Get(hello); err != nil || c == good {
			t.Errorf("a full disk keeps the new certificate out: %v", err)
		}
	})
}

// The end does not wait for an authority that dawdles.
func TestACMEEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t)
		entered := make(chan struct{})
		a := NewACME(ACMEConfig{Name: "home.test", Store: (&memory{files: map[string][]byte{}}).store(), Now: time.Now,
			Log: slog.New(slog.DiscardHandler), Client: &http.Client{Transport: slow{ca, entered}}})
		stop := a.run(t)
		<-entered
		begin := time.Now()
		stop()
		if took := time.Since(begin); took > 0 {
			t.Errorf("it took %s", took)
		}
		if a.Problem() != nil {
			t.Error("the end is told as a problem")
		}
	})
}

// slow answers when the asker has given up.
type slow struct {
	ca      *authority
	entered chan struct{}
}

func (s slow) RoundTrip(r *http.Request) (*http.Response, error) {
	close(s.entered)
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// What is stored and of no use is replaced.
func TestACMEStoreBroken(t *testing.T) {
	other := identityFor(t, "other.test")
	key, err := encode(other.TLS().PrivateKey.(crypto.Signer), [][]byte{other.Cert})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"garbage": []byte("x"), "empty": {}, "for another name": key} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca := newAuthority(t)
				m := &memory{files: map[string][]byte{"home.test": text}}
				a := newACME(ca, m)
				ca.prove["http-01"] = byHTTP(a.HTTPHandler(http.NotFoundHandler()))
				stop := a.run(t)
				defer stop()
				time.Sleep(time.Minute)
				if _, err := a.Get(hello); err != nil {
					t.Error(err)
				}
			})
		})
	}
	for name, text := range map[string][]byte{"garbage": []byte("x"), "no key": []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")} {
		m := &memory{files: map[string][]byte{accountFile: text}}
		if _, err := newACME(newAuthority(t), m).account(t.Context()); err == nil {
			t.Errorf("account key %s: taken", name)
		}
	}
}
