package cert

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"time"
)

// Leaf makes a certificate for names that this home knows, with a new key that is kept
// nowhere. It is the caller's to renew.
func (c *CA) Leaf(names []string, life time.Duration) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leaf, _, err := c.sign(names, key.Public(), life)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// Pair is a certificate and its key, as other programs read them.
type Pair struct {
	Key   []byte // PEM, PKCS #8
	Chain []byte // PEM: the certificate, and the root
	Until time.Time
}

// Issue makes a certificate for the owner to put where he wants it.
func (c *CA) Issue(names []string) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	leaf, ca, err := c.sign(names, key.Public(), Life)
	if err != nil {
		return Pair{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	c.book.issued(leaf, "")
	return Pair{Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), Chain: chain(leaf, ca), Until: leaf.NotAfter}, nil
}

// chain is what a server shows. Whoever trusts the root has it, but certbot takes no
// chain of one.
func chain(leaf, ca *x509.Certificate) []byte { return append(PEM(leaf), PEM(ca)...) }

// PEM is a certificate as text.
func PEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}
