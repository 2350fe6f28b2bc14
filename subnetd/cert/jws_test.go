package cert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

const (
	// RFC 7638, 3.1; RFC 8037, A.2; RFC 7515, A.3.1.
	rsaKey = `{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}`
	edKey  = `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`
	ecKey  = `{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`
)

func TestThumbprints(t *testing.T) {
	for text, want := range map[string]string{
		rsaKey: "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
		edKey:  "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
	} {
		k := must(parseJWK([]byte(text)))(t)
		if k.print != want {
			t.Errorf("%s: %s", want, k.print)
		}
		var again jwk
		if err := json.Unmarshal(must(json.Marshal(k))(t), &again); err != nil || again.print != want {
			t.Errorf("read again: %v, %s", err, again.print)
		}
	}
}

// flattened makes the JSON serialization of the compact one.
func flattened(compact string) string {
	p := strings.Split(compact, ".")
	return `{"protected":"` + p[0] + `","payload":"` + p[1] + `","signature":"` + p[2] + `"}`
}

// The examples of RFC 8037, A.4 and RFC 7515, A.3.
var signedExamples = map[string]string{
	edKey: "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
	ecKey: "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
}

func TestSignedExamples(t *testing.T) {
	for key, compact := range signedExamples {
		k := must(parseJWK([]byte(key)))(t)
		m := must(parseJWS([]byte(flattened(compact))))(t)
		if err := k.verify(m); err != nil {
			t.Errorf("%s: %v", m.header.Alg, err)
		}
		for i := range m.signature {
			m.signature[i] ^= 1
			if err := k.verify(m); !errors.Is(err, errSignature) {
				t.Fatalf("%s, byte %d changed: %v", m.header.Alg, i, err)
			}
			m.signature[i] ^= 1
		}
		m.signed[3] ^= 1
		if err := k.verify(m); !errors.Is(err, errSignature) {
			t.Errorf("%s, text changed: %v", m.header.Alg, err)
		}
	}
}

// signer signs as a client does.
type signer struct {
	key  crypto.Signer
	alg  string
	size int    // of the numbers of ECDSA
	jwk  string // as JSON
}

func newSigner(t testing.TB, kind string) signer {
	t.Helper()
	num := func(b []byte) string { return b64.EncodeToString(b) }
	switch kind {
	case "RS256":
		k := must(rsa.GenerateKey(rand.Reader, 2048))(t)
		return signer{k, kind, 0, `{"kty":"RSA","n":"` + num(k.N.Bytes()) + `","e":"AQAB"}`}
	case "EdDSA":
		pub, k, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return signer{k, kind, 0, `{"kty":"OKP","crv":"Ed25519","x":"` + num(pub) + `"}`}
	}
	curve, size := elliptic.P256(), 32
	if kind == "ES384" {
		curve, size = elliptic.P384(), 48
	}
	k := must(ecdsa.GenerateKey(curve, rand.Reader))(t)
	p := must(k.PublicKey.Bytes())(t)
	return signer{k, kind, size, `{"kty":"EC","crv":"` + curve.Params().Name + `","x":"` + num(p[1:1+size]) + `","y":"` + num(p[1+size:]) + `"}`}
}

// sign makes a JWS of a protected header, all but its alg, and a payload.
func (s signer) sign(t testing.TB, head, payload string) string {
	t.Helper()
	signed := b64.EncodeToString([]byte(`{"alg":"`+s.alg+`",`+head+`}`)) + "." + b64.EncodeToString([]byte(payload))
	var sig []byte
	switch k := s.key.(type) {
	case *ecdsa.PrivateKey:
		sum := sha256.Sum256([]byte(signed))
		hash := sum[:]
		if s.size == 48 {
			long := sha512.Sum384([]byte(signed))
			hash = long[:]
		}
		a, b, err := ecdsa.Sign(rand.Reader, k, hash)
		if err != nil {
			t.Fatal(err)
		}
		sig = append(a.FillBytes(make([]byte, s.size)), b.FillBytes(make([]byte, s.size))...)
	case ed25519.PrivateKey:
		sig = ed25519.Sign(k, []byte(signed))
	case *rsa.PrivateKey:
		sum := sha256.Sum256([]byte(signed))
		sig = must(rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, sum[:]))(t)
	}
	return flattened(signed + "." + b64.EncodeToString(sig))
}

var algorithms = []string{"ES256", "ES384", "RS256", "EdDSA"}

// Base64 with line breaks is read, but does not make another key.
func TestOneText(t *testing.T) {
	for _, text := range []string{rsaKey, edKey, ecKey} {
		k := must(parseJWK([]byte(text)))(t)
		broken := strings.NewReplacer(`"x":"`, `"x":"\n`, `"n":"`, `"n":"\n`).Replace(text)
		if again := must(parseJWK([]byte(broken)))(t); again.print != k.print {
			t.Errorf("%s becomes %s", k.text, again.text)
		}
	}
}

// No key takes what another key or another algorithm has signed.
func TestAlgorithms(t *testing.T) {
	signers := map[string]signer{}
	for _, alg := range algorithms {
		signers[alg] = newSigner(t, alg)
	}
	for _, by := range algorithms {
		m := must(parseJWS([]byte(signers[by].sign(t, `"nonce":"n"`, "text"))))(t)
		for _, with := range algorithms {
			k := must(parseJWK([]byte(signers[with].jwk)))(t)
			if err := k.verify(m); (err == nil) != (by == with) {
				t.Errorf("%s verified with a key for %s: %v", by, with, err)
			}
			for _, claim := range []string{"none", "HS256", "ES512", "PS256", "", "es256"} {
				m := m
				m.header.Alg = claim
				if err := k.verify(m); !errors.Is(err, errAlgorithm) {
					t.Errorf("%q with a key for %s: %v", claim, with, err)
				}
			}
		}
	}
}

func TestBadKeys(t *testing.T) {
	zero := strings.Repeat("A", 43)
	for name, text := range map[string]string{
		"no JSON":          `{`,
		"no kind":          `{}`,
		"symmetric":        `{"kty":"oct","k":"AAAA"}`,
		"private":          strings.Replace(edKey, "{", `{"d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A",`, 1),
		"not on its curve": `{"kty":"EC","crv":"P-256","x":"` + zero + `","y":"` + zero + `"}`,
		"short":            strings.Replace(ecKey, "f83O", "", 1),
		"other curve":      strings.Replace(ecKey, "P-256", "P-384", 1),
		"P-521":            strings.Replace(ecKey, "P-256", "P-521", 1),
		"padded":           strings.Replace(edKey, "URo", "URo=", 1),
		"odd last bits":    strings.Replace(edKey, "URo", "URp", 1),
		"X25519":           strings.Replace(edKey, "Ed25519", "X25519", 1),
		"small RSA":        `{"kty":"RSA","n":"` + strings.Repeat("_", 171) + `","e":"AQAB"}`,
		"large RSA":        `{"kty":"RSA","n":"` + strings.Repeat("_", 684) + `","e":"AQAB"}`,
		"leading zero":     strings.Replace(rsaKey, `"n":"0vx7`, `"n":"AAAA0vx7`, 1),
		"even exponent":    strings.Replace(rsaKey, "AQAB", "AQAA", 1),
		"exponent 1":       strings.Replace(rsaKey, "AQAB", "AQ", 1),
		"wide exponent":    strings.Replace(rsaKey, "AQAB", "_____w", 1),
	} {
		if k, err := parseJWK([]byte(text)); err == nil {
			t.Errorf("%s: a key: %s", name, k.text)
		}
	}
}

func TestBadJWS(t *testing.T) {
	good := flattened(signedExamples[edKey])
	for name, text := range map[string]string{
		"no JSON":        "x",
		"a list":         "[]",
		"compact":        `"` + signedExamples[edKey] + `"`,
		"no payload":     strings.Replace(good, "payload", "load", 1),
		"open header":    strings.Replace(good, "{", `{"header":{},`, 1),
		"general":        strings.Replace(good, "{", `{"signatures":[],`, 1),
		"padding":        strings.Replace(good, `pbmc"`, `pbmc="`, 1),
		"odd last bits":  strings.Replace(good, `pbmc"`, `pbmd"`, 1),
		"no header":      strings.Replace(good, "eyJhbGciOiJFZERTQSJ9", "", 1),
		"header no JSON": strings.Replace(good, "eyJhbGciOiJFZERTQSJ9", "AAAA", 1),
		"critical":       strings.Replace(good, "eyJhbGciOiJFZERTQSJ9", b64.EncodeToString([]byte(`{"alg":"EdDSA","crit":["x"]}`)), 1),
		"unencoded":      strings.Replace(good, "eyJhbGciOiJFZERTQSJ9", b64.EncodeToString([]byte(`{"alg":"EdDSA","b64":false}`)), 1),
	} {
		if _, err := parseJWS([]byte(text)); err == nil {
			t.Errorf("%s is taken: %s", name, text)
		}
	}
}

// Whatever comes is refused in words, and a key that is read is read again the same.
func FuzzJWS(f *testing.F) {
	for key, compact := range signedExamples {
		f.Add(flattened(compact), key)
	}
	f.Add(`{"protected":"e30","payload":"","signature":""}`, rsaKey)
	f.Fuzz(func(t *testing.T, text, key string) {
		m, errM := parseJWS([]byte(text))
		k, errK := parseJWK([]byte(key))
		if errK == nil {
			again, err := parseJWK(k.text)
			if err != nil || again.print != k.print {
				t.Fatalf("%s is read again as %s: %v", k.text, again.text, err)
			}
		}
		if errM == nil && errK == nil {
			_ = k.verify(m) // no panic
		}
	})
}
