package cert

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// The ways to prove a name.
const (
	wayHTTP = "http-01"
	wayALPN = "tls-alpn-01"
)

const (
	proofTime     = 5 * time.Second // at each address
	maxProof      = 4 << 10         // bytes of an answer
	maxRedirects  = 3
	challengePath = "/.well-known/acme-challenge/"
	alpnProtocol  = "acme-tls/1"
)

// Dial connects by TCP.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// prove asks at each of the addresses for so long, until one of them proves that whoever
// has the key of an account has the name: text is the token with the thumbprint of the
// key (RFC 8555, 8.1). It returns nil then, or else why the last one did not.
func prove(ctx context.Context, dial Dial, addrs []netip.Addr, each time.Duration, way, name, token, text string) *problem {
	wrong := refuse(http.StatusBadRequest, "connection", "%s has no address now", name)
	for _, at := range addrs {
		ctx, cancel := context.WithTimeout(ctx, each)
		to := func(_ context.Context, network, address string) (net.Conn, error) { // http.Transport would go on after ctx
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return dial(ctx, network, net.JoinHostPort(at.String(), port))
		}
		if way == wayALPN {
			wrong = proveALPN(ctx, to, name, text)
		} else {
			wrong = proveHTTP(ctx, to, name, token, text)
		}
		cancel()
		if wrong == nil {
			return nil
		}
		wrong.Detail = fmt.Sprintf("%s at %s: %s", name, at, wrong.Detail)
	}
	return wrong
}

// proveHTTP is http-01 (RFC 8555, 8.3). It follows to the same name only, where nobody
// looks at certificates: there is none yet.
func proveHTTP(ctx context.Context, dial Dial, name, token, text string) *problem {
	transport := &http.Transport{
		DialContext: dial, DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	client := http.Client{Transport: transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		port := r.URL.Port()
		if len(via) > maxRedirects || !strings.EqualFold(r.URL.Hostname(), name) || port != "" && port != "80" && port != "443" {
			return errors.New("it leads elsewhere")
		}
		return nil
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+name+challengePath+token, nil)
	if err != nil {
		return malformed("%v", err)
	}
	res, err := client.Do(req)
	if err != nil {
		return refuse(http.StatusBadRequest, "connection", "port 80 must answer: %v", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxProof+1))
	switch {
	case err != nil:
		return refuse(http.StatusBadRequest, "connection", "%v", err)
	case res.StatusCode != http.StatusOK:
		return refuse(http.StatusForbidden, "incorrectResponse", "port 80 answers %q for %s", res.Status, challengePath+token)
	case len(body) > maxProof || subtle.ConstantTimeCompare(bytes.TrimRight(body, " \t\r\n"), []byte(text)) != 1:
		return refuse(http.StatusForbidden, "incorrectResponse", "port 80 answers something else than the key authorization")
	}
	return nil
}

// oidProof is id-pe-acmeIdentifier (RFC 8737, 6.1).
var oidProof = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}

// proveALPN is tls-alpn-01 (RFC 8737, 3).
func proveALPN(ctx context.Context, dial Dial, name, text string) *problem {
	raw, err := dial(ctx, "tcp", net.JoinHostPort(name, "443"))
	if err != nil {
		return refuse(http.StatusBadRequest, "connection", "port 443 must answer: %v", err)
	}
	defer raw.Close()
	c := tls.Client(raw, &tls.Config{ServerName: name, NextProtos: []string{alpnProtocol}, MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	if err := c.HandshakeContext(ctx); err != nil {
		return refuse(http.StatusBadRequest, "tls", "port 443 must speak %s: %v", alpnProtocol, err)
	}
	state := c.ConnectionState()
	if state.NegotiatedProtocol != alpnProtocol || !provesALPN(state.PeerCertificates[0], name, text) {
		return refuse(http.StatusForbidden, "incorrectResponse", "port 443 does not show the certificate of the challenge")
	}
	return nil
}

// provesALPN reports whether a certificate is that of the challenge: for this name alone,
// and with the hash of the text in a critical extension.
func provesALPN(c *x509.Certificate, name, text string) bool {
	if len(c.DNSNames) != 1 || !strings.EqualFold(c.DNSNames[0], name) || len(c.IPAddresses)+len(c.EmailAddresses)+len(c.URIs) > 0 {
		return false
	}
	for _, e := range c.Extensions {
		if !e.Id.Equal(oidProof) {
			continue
		}
		var got []byte
		rest, err := asn1.Unmarshal(e.Value, &got)
		want := sha256.Sum256([]byte(text))
		return e.Critical && err == nil && len(rest) == 0 && subtle.ConstantTimeCompare(got, want[:]) == 1
	}
	return false
}
