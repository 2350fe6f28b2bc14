package underlay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"subnetd/subnetd/mesh"

	"tailscale.com/derp"
	"tailscale.com/types/key"
)

const (
	dialTimeout  = 10 * time.Second // to a relay, all of it
	writeTimeout = 5 * time.Second
	pinPrefix    = "sha256-raw:"
)

// dialer connects to relays.
type dialer struct {
	mark int
	now  func() time.Time
	log  *slog.Logger
}

// tcp connects to the node's TLS port. IPv4 and IPv6 are tried side by side;
// the first to connect wins.
func (d *dialer) tcp(ctx context.Context, n mesh.RelayNode) (net.Conn, error) {
	port := n.Port
	if port == 0 {
		port = 443
	}
	type result struct {
		conn net.Conn
		err  error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	nd := net.Dialer{Control: markControl(d.mark, d.log), KeepAlive: 30 * time.Second}
	results := make(chan result, 2)
	tries := 0
	for _, family := range []struct{ network, literal string }{{"tcp4", n.IPv4}, {"tcp6", n.IPv6}} {
		host, ok := dialHost(n.Host, family.literal, family.network == "tcp6")
		if !ok {
			continue
		}
		tries++
		go func() {
			c, err := nd.DialContext(ctx, family.network, net.JoinHostPort(host, strconv.Itoa(port)))
			results <- result{c, err}
		}()
	}
	errs := []error{fmt.Errorf("relay %s has no usable address", n.Host)}
	for i := range tries {
		r := <-results
		if r.err == nil {
			go func() { // a late second connection is not needed
				for range tries - i - 1 {
					if late := <-results; late.conn != nil {
						late.conn.Close()
					}
				}
			}()
			return r.conn, nil
		}
		errs = append(errs, r.err)
	}
	return nil, errors.Join(errs[min(1, len(errs)-1):]...)
}

// dialHost is whom to dial in one family: the literal, the name if no literal
// is given, nobody if the family is switched off.
func dialHost(host, literal string, v6 bool) (string, bool) {
	if literal != "" {
		a, err := netip.ParseAddr(literal)
		return literal, err == nil && a.Is6() == v6
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return host, a.Is6() == v6
	}
	return host, host != ""
}

// derp connects to the relay node and speaks until the relay knows us. Writes
// of the client gather in the returned writer until it is flushed.
func (d *dialer) derp(ctx context.Context, n mesh.RelayNode, k key.NodePrivate) (*derp.Client, *gatherer, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := d.tcp(ctx, n)
	if err != nil {
		return nil, nil, fmt.Errorf("connect: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	conn := tls.Client(raw, d.tlsConfig(n))
	c, g, err := speak(ctx, conn, n.Host, k)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		return nil, nil, err
	}
	return c, g, nil
}

func speak(ctx context.Context, conn *tls.Conn, host string, k key.NodePrivate) (*derp.Client, *gatherer, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, fmt.Errorf("TLS: %w", err)
	}
	br := bufio.NewReaderSize(conn, 8<<10)
	if err := upgrade(conn, br, host); err != nil {
		return nil, nil, err
	}
	g := &gatherer{conn: conn}
	c, err := derp.NewClient(k, conn, bufio.NewReadWriter(br, bufio.NewWriter(g)),
		func(string, ...any) {}, derp.CanAckPings(true))
	if err == nil {
		err = g.flush()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("relay greeting: %w", err)
	}
	return c, g, nil
}

// upgrade turns the connection from HTTP to the relay protocol.
func upgrade(conn net.Conn, br *bufio.Reader, host string) error {
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		host = "[" + host + "]"
	}
	_, err := fmt.Fprintf(conn, "GET /derp HTTP/1.1\r\nHost: %s\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n", host)
	if err != nil {
		return fmt.Errorf("relay upgrade: %w", err)
	}
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return fmt.Errorf("relay upgrade: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		resp.Body.Close()
		return fmt.Errorf("relay upgrade: server answered %s", resp.Status)
	}
	return nil
}

// tlsConfig trusts what the relay map says: a pinned certificate, another name,
// or an ordinary certificate for the host.
func (d *dialer) tlsConfig(n mesh.RelayNode) *tls.Config {
	c := &tls.Config{ServerName: n.Host, Time: d.now, MinVersion: tls.VersionTLS12}
	pin, pinned := strings.CutPrefix(n.CertName, pinPrefix)
	switch {
	case n.Insecure:
		c.InsecureSkipVerify = true
	case pinned:
		c.InsecureSkipVerify = true // we verify ourselves, below
		c.VerifyConnection = func(s tls.ConnectionState) error {
			return verifyPin(s.PeerCertificates, pin, n.Host, d.now())
		}
	case n.CertName != "" && n.CertName != n.Host:
		c.InsecureSkipVerify = true // for the name in the greeting; the chain is verified for CertName
		c.VerifyConnection = func(s tls.ConnectionState) error {
			return verifyName(s.PeerCertificates, n.CertName, d.now())
		}
	}
	return c
}

// metaPrefix begins the common name of the pseudo certificates by which relays
// tell their key; they are not part of the chain.
const metaPrefix = "derpkey"

func withoutMeta(certs []*x509.Certificate) []*x509.Certificate {
	var rest []*x509.Certificate
	for _, c := range certs {
		if !strings.HasPrefix(c.Subject.CommonName, metaPrefix) {
			rest = append(rest, c)
		}
	}
	return rest
}

// verifyPin accepts exactly one certificate: that with the hash, for the host,
// in its time.
func verifyPin(certs []*x509.Certificate, pin, host string, now time.Time) error {
	want, err := hex.DecodeString(pin)
	if err != nil || len(want) != sha256.Size {
		return errors.New("relay map: pin is no SHA-256 in hexadecimal")
	}
	certs = withoutMeta(certs)
	if len(certs) != 1 {
		return fmt.Errorf("pinned relay sent %d certificates, want 1", len(certs))
	}
	leaf := certs[0]
	got := sha256.Sum256(leaf.Raw)
	if !bytes.Equal(got[:], want) {
		return errors.New("relay's certificate is not the pinned one")
	}
	if err := leaf.VerifyHostname(host); err != nil {
		return fmt.Errorf("pinned certificate: %w", err)
	}
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return fmt.Errorf("pinned certificate is valid from %s to %s, and it is %s", leaf.NotBefore, leaf.NotAfter, now)
	}
	return nil
}

func verifyName(certs []*x509.Certificate, name string, now time.Time) error {
	certs = withoutMeta(certs)
	if len(certs) == 0 {
		return errors.New("relay sent no certificate")
	}
	opts := x509.VerifyOptions{DNSName: name, CurrentTime: now, Intermediates: x509.NewCertPool()}
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	_, err := certs[0].Verify(opts)
	return err
}

// gatherer holds back writes until flush, so that a batch of packets is one
// TLS record and one system call. Only one goroutine may use it.
type gatherer struct {
	conn net.Conn
	buf  []byte
}

// gatherLimit is the bytes after which a gatherer writes by itself.
const gatherLimit = 14 << 10

func (g *gatherer) Write(b []byte) (int, error) {
	g.buf = append(g.buf, b...)
	if len(g.buf) < gatherLimit {
		return len(b), nil
	}
	return len(b), g.flush()
}

func (g *gatherer) flush() error {
	if len(g.buf) == 0 {
		return nil
	}
	_ = g.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := g.conn.Write(g.buf)
	g.buf = g.buf[:0]
	return err
}
