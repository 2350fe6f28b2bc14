package cert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"testing"
)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestKeys(t *testing.T) {
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	for name, tt := range map[string]struct {
		key  crypto.PublicKey
		good bool
	}{
		"P-256":    {must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t).Public(), true},
		"P-384":    {must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t).Public(), true},
		"P-521":    {must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))(t).Public(), false},
		"Ed25519":  {ed.Public(), true},
		"RSA 2048": {must(rsa.GenerateKey(rand.Reader, 2048))(t).Public(), true},
		"RSA 1024": {&rsa.PublicKey{N: big.NewInt(0).Lsh(big.NewInt(1), 1023), E: 65537}, false},
		"nothing":  {nil, false},
	} {
		if err := checkKey(tt.key); (err == nil) != tt.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}
