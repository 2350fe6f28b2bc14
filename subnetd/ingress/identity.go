package ingress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Identity is a certificate that its user knows beforehand, and its key. It is
// kept as JSON; what does not fit together is an error when it is read.
type Identity struct {
	Names []string     `json:"names,omitempty"` // DNS names it is valid for
	Addrs []netip.Addr `json:"addrs,omitempty"` // and addresses
	Key   []byte       `json:"key"`             // PKCS #8
	Cert  []byte       `json:"cert"`            // X.509, DER
}

// SelfSigned makes an identity for the names and addresses, of which there must
// be one at least. It does not expire while a router lives, and is valid already
// for those whose clock is wrong: neither protects anything where the
// certificate itself is known.
func SelfSigned(now time.Time, names []string, addrs []netip.Addr, rand io.Reader) (Identity, error) {
	if len(names)+len(addrs) == 0 {
		return Identity{}, errors.New("certificate: for no name")
	}
	serial := make([]byte, 16)
	if _, err := io.ReadFull(rand, serial); err != nil {
		return Identity{}, fmt.Errorf("certificate: %w", err)
	}
	serial[0] = serial[0]&0x7f | 0x40 // positive, and long
	from := time.Date(1970, 1, 2, 0, 0, 0, 0, time.UTC)
	built := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) // it is not earlier, whatever our clock says
	if now.Before(built) {
		now = built
	}
	template := &x509.Certificate{
		SerialNumber:          new(big.Int).SetBytes(serial),
		Subject:               pkix.Name{CommonName: "subnetd"},
		NotBefore:             from,
		NotAfter:              now.UTC().AddDate(30, 0, 0),
		DNSNames:              names,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, a := range addrs {
		template.IPAddresses = append(template.IPAddresses, net.IP(a.Unmap().AsSlice()))
	}
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand)
	if err != nil {
		return Identity{}, fmt.Errorf("certificate: %w", err)
	}
	cert, err := x509.CreateCertificate(rand, template, template, k.Public(), k)
	if err != nil {
		return Identity{}, fmt.Errorf("certificate: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return Identity{}, fmt.Errorf("certificate: %w", err)
	}
	return Identity{Names: names, Addrs: addrs, Key: der, Cert: cert}, nil
}

// IsZero reports whether there is no certificate.
func (i Identity) IsZero() bool { return len(i.Cert) == 0 && len(i.Key) == 0 }

// Covers reports whether the certificate is for all of the names and addresses.
// If not, there has to be a new one, with another Pin.
func (i Identity) Covers(names []string, addrs []netip.Addr) bool {
	for _, n := range names {
		if !slices.Contains(i.Names, n) {
			return false
		}
	}
	for _, a := range addrs {
		if !slices.Contains(i.Addrs, a) {
			return false
		}
	}
	return !i.IsZero()
}

// Pin is by what stock clients know the certificate, as CertName of a relay.
func (i Identity) Pin() string {
	sum := sha256.Sum256(i.Cert)
	return "sha256-raw:" + hex.EncodeToString(sum[:])
}

// TLS is the identity as a server shows it: exactly one certificate, as a client
// that knows it by its Pin wants it. The zero Identity gives a certificate with
// which no handshake succeeds.
func (i Identity) TLS() tls.Certificate {
	c, _ := i.pair()
	return c
}

func (i Identity) pair() (tls.Certificate, error) {
	leaf, err := x509.ParseCertificate(i.Cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	k, err := x509.ParsePKCS8PrivateKey(i.Key)
	if err != nil {
		return tls.Certificate{}, err
	}
	signer, ok := k.(*ecdsa.PrivateKey)
	if !ok || !signer.PublicKey.Equal(leaf.PublicKey) {
		return tls.Certificate{}, errors.New("the key is not the certificate's")
	}
	return tls.Certificate{Certificate: [][]byte{i.Cert}, PrivateKey: signer, Leaf: leaf}, nil
}

// UnmarshalJSON reads what Marshal wrote.
func (i *Identity) UnmarshalJSON(b []byte) error {
	type plain Identity
	var p plain
	if err := json.Unmarshal(b, &p); err != nil {
		return err
	}
	if got := Identity(p); !got.IsZero() {
		if _, err := got.pair(); err != nil {
			return fmt.Errorf("certificate: %w", err)
		}
	}
	*i = Identity(p)
	return nil
}
