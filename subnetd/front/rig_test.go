package front

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
)

const patience = 30 * time.Second

// Who calls, and whom. Everybody is on loopback; what was meant, conntrack would say.
var (
	phone    = netip.MustParseAddr("127.0.0.9")  // ann's
	tagged   = netip.MustParseAddr("127.0.0.10") // nobody's
	sofa     = netip.MustParseAddr("127.0.1.2")  // at home
	stranger = netip.MustParseAddr("127.0.2.2")
	self80   = netip.MustParseAddrPort("100.64.0.1:80")
	self443  = netip.MustParseAddrPort("100.64.0.1:443")
	nas80    = netip.MustParseAddrPort("100.64.5.5:80")
	nas443   = netip.MustParseAddrPort("100.64.5.5:443")
)

// rig is a Server before a device.
type rig struct {
	*Server
	t       *testing.T
	at      string // of the listener
	set     Settings
	ca      *authority
	trouble chan string

	mu   sync.Mutex
	goal netip.AddrPort
	now  time.Time
}

func newRig(t *testing.T, device http.Handler) *rig {
	t.Helper()
	r := &rig{t: t, ca: newAuthority(t), trouble: make(chan string, 16), now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	r.ca.now = r.clock
	said := func(what string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			from, at, ok := From(q)
			if !ok {
				t.Error("nobody asks")
			}
			_, _ = io.WriteString(w, what+" "+from.String()+" "+at.String())
		})
	}
	r.Server = New(Config{
		Page: said("page"), Drop: said("drop"), CA: said("ca"), Leaf: r.ca.leaf, Now: r.clock, Log: slog.New(slog.DiscardHandler),
		Who: func(a netip.Addr) (Caller, bool) {
			return Caller{Login: "ann@example.org", Name: "Ann Ö.", Picture: "https://example.org/ann.png"}, a == phone
		},
		Taken: func(uint16) {}, Trouble: func(s string) { r.trouble <- s },
	})
	r.meant = func(*net.TCPConn) (netip.AddrPort, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.goal, nil
	}
	ln := listen(t)
	r.at = ln.Addr().String()
	r.http.BaseContext = func(net.Listener) context.Context { return t.Context() }
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = r.http.Serve(&door{Listener: ln, s: r.Server})
	}()
	back := listen(t)
	srv := &http.Server{Handler: device}
	go func() { _ = srv.Serve(back) }()
	t.Cleanup(func() {
		_ = r.http.Close()
		_ = srv.Close()
		<-done
		r.ways.CloseIdleConnections()
	})
	port := back.Addr().(*net.TCPAddr).AddrPort().Port()
	r.set = Settings{
		Own: []netip.Addr{self80.Addr()}, Home: []netip.Prefix{netip.MustParsePrefix("127.0.1.0/24")},
		Rules: []mesh.Rule{rule(phone, nas443.Addr(), 0, 65535), rule(tagged, nas443.Addr(), 443, 443), rule(phone, self80.Addr(), 80, 443)},
		Names: Names{"page.home.mesh", "drop.home.mesh", "ca.home.mesh", "home.mesh"},
		Sites: []Site{{
			Names: []string{"nas.mesh", "nas.home.mesh"}, Scheme: "http", Port: port,
			Maps:  []host.DeviceMap{{Mesh: nas443.Addr(), LAN: netip.MustParseAddr("127.0.0.1")}},
			Doors: []netip.AddrPort{nas80, nas443, netip.AddrPortFrom(nas443.Addr(), port)},
		}},
	}
	r.Set(r.set)
	return r
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func rule(from, to netip.Addr, first, last uint16) mesh.Rule {
	return mesh.Rule{Srcs: []mesh.Range{{From: from, To: from}}, Dsts: []mesh.Dest{{Range: mesh.Range{From: to, To: to}, Ports: mesh.PortRange{First: first, Last: last}}}}
}

func (r *rig) clock() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

func (r *rig) later(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = r.now.Add(d)
}

// itself is the port at which the device itself is.
func (r *rig) itself() netip.AddrPort { return netip.AddrPortFrom(nas443.Addr(), r.set.Sites[0].Port) }

// dial connects somebody to what he means.
func (r *rig) dial(from netip.Addr, to netip.AddrPort) net.Conn {
	r.t.Helper()
	r.mu.Lock()
	r.goal = to
	r.mu.Unlock()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from.AsSlice()}, Timeout: patience}
	c, err := d.Dial("tcp4", r.at)
	if err != nil {
		r.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	r.t.Cleanup(func() { _ = c.Close() })
	return c
}

// ask sends a request on a connection of its own; by TLS with the name, if there is one.
func (r *rig) ask(from netip.Addr, to netip.AddrPort, sni string, q *http.Request) (*http.Response, error) {
	r.t.Helper()
	c := r.dial(from, to)
	tr := &http.Transport{
		DialContext:    func(context.Context, string, string) (net.Conn, error) { return c, nil },
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return r.hello(c, sni) },
	}
	res, err := tr.RoundTrip(q)
	if err == nil {
		body, readErr := io.ReadAll(res.Body)
		_ = res.Body.Close()
		res.Body, err = io.NopCloser(strings.NewReader(string(body))), readErr
	}
	tr.CloseIdleConnections()
	return res, err
}

func (r *rig) hello(c net.Conn, sni string) (*tls.Conn, error) {
	t := tls.Client(c, &tls.Config{ServerName: sni, RootCAs: r.ca.pool, Time: r.clock})
	return t, t.HandshakeContext(r.t.Context())
}

// get is ask for a page, and gives its status and text.
func (r *rig) get(from netip.Addr, to netip.AddrPort, url string) string {
	r.t.Helper()
	q, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	res, err := r.ask(from, to, q.URL.Hostname(), q)
	if err != nil {
		return "nothing"
	}
	text, _ := io.ReadAll(res.Body)
	if to := res.Header.Get("Location"); to != "" {
		return res.Status[:3] + " " + to
	}
	return res.Status[:3] + " " + strings.TrimSpace(string(text))
}

// authority makes certificates that its pool vouches for.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
	now  func() time.Time

	mu   sync.Mutex
	made int
	fail error
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: k, cert: cert, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

var errClock = errors.New("the clock is not set")

func (a *authority) leaf(names []string, life time.Duration) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.fail != nil {
		return nil, a.fail
	}
	a.made++
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := a.now()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(int64(a.made) + 1), DNSNames: names, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, k.Public(), a.key)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, err
}

func (a *authority) failing(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = err
}

func (a *authority) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.made
}
