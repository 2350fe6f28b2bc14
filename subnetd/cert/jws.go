package cert

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
)

// b64 is base64url as JOSE has it (RFC 7515, 2). The decoder overlooks line breaks.
var b64 = base64.RawURLEncoding.Strict()

// header is the protected header of a request (RFC 8555, 6.2).
type header struct {
	Alg   string          `json:"alg"`
	Nonce string          `json:"nonce"`
	URL   string          `json:"url"`
	KID   string          `json:"kid"`
	JWK   json.RawMessage `json:"jwk"`
	Crit  json.RawMessage `json:"crit"`
	B64   *bool           `json:"b64"`
}

// jws is a signed text in the flattened JSON serialization (RFC 7515, 7.2.2), not
// verified yet.
type jws struct {
	header    header
	payload   []byte
	signed    []byte
	signature []byte
}

func parseJWS(text []byte) (m jws, err error) {
	var raw struct {
		Protected  string          `json:"protected"`
		Payload    *string         `json:"payload"`
		Signature  string          `json:"signature"`
		Header     json.RawMessage `json:"header"`
		Signatures json.RawMessage `json:"signatures"`
	}
	if err := json.Unmarshal(text, &raw); err != nil {
		return m, fmt.Errorf("the body is no JWS: %w", err)
	}
	if raw.Payload == nil || raw.Header != nil || raw.Signatures != nil {
		return m, errors.New("the body is no JWS with one signature and all of its header protected")
	}
	protected, err := b64.DecodeString(raw.Protected)
	if err != nil {
		return m, fmt.Errorf("protected header: %w", err)
	}
	if err := json.Unmarshal(protected, &m.header); err != nil {
		return m, fmt.Errorf("protected header: %w", err)
	}
	if m.header.Crit != nil || m.header.B64 != nil {
		return m, errors.New("protected header: extensions (crit, b64) are not known here")
	}
	if m.payload, err = b64.DecodeString(*raw.Payload); err != nil {
		return m, fmt.Errorf("payload: %w", err)
	}
	if m.signature, err = b64.DecodeString(raw.Signature); err != nil {
		return m, fmt.Errorf("signature: %w", err)
	}
	m.signed = []byte(raw.Protected + "." + *raw.Payload)
	return m, nil
}

// jwk is a public key (RFC 7517; 7518, 6; 8037).
type jwk struct {
	key   crypto.PublicKey
	text  []byte // as JSON, in the form of which print is the hash
	print string // RFC 7638, base64url: what the key is known by
}

// The fields in the order and the form that RFC 7638, 3 wants.
type (
	ecJWK struct {
		Crv string `json:"crv"`
		Kty string `json:"kty"`
		X   string `json:"x"`
		Y   string `json:"y"`
	}
	okpJWK struct {
		Crv string `json:"crv"`
		Kty string `json:"kty"`
		X   string `json:"x"`
	}
	rsaJWK struct {
		E   string `json:"e"`
		Kty string `json:"kty"`
		N   string `json:"n"`
	}
)

func parseJWK(text []byte) (k jwk, err error) {
	var in struct{ Kty, Crv, X, Y, N, E, D string }
	if err := json.Unmarshal(text, &in); err != nil {
		return k, fmt.Errorf("jwk: %w", err)
	}
	var as any
	switch {
	case in.D != "":
		return k, errors.New("jwk: this is a private key: it is no secret any more")
	case in.Kty == "EC":
		k.key, as, err = parseEC(ecJWK{in.Crv, in.Kty, in.X, in.Y})
	case in.Kty == "OKP":
		k.key, as, err = parseOKP(okpJWK{in.Crv, in.Kty, in.X})
	case in.Kty == "RSA":
		k.key, as, err = parseRSA(rsaJWK{in.E, in.Kty, in.N})
	default:
		err = fmt.Errorf("no kind of key is called %q", in.Kty)
	}
	if err == nil {
		err = checkKey(k.key)
	}
	if err != nil {
		return jwk{}, fmt.Errorf("jwk: %w", err)
	}
	k.text, err = json.Marshal(as)
	sum := sha256.Sum256(k.text)
	k.print = b64.EncodeToString(sum[:])
	return k, err
}

func parseEC(in ecJWK) (crypto.PublicKey, any, error) {
	curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384()}[in.Crv]
	if curve == nil {
		return nil, nil, fmt.Errorf("the curve %q is not known here", in.Crv)
	}
	size := (curve.Params().BitSize + 7) / 8
	x, errX := b64.DecodeString(in.X)
	y, errY := b64.DecodeString(in.Y)
	if errX != nil || errY != nil || len(x) != size || len(y) != size {
		return nil, nil, errors.New("x and y are not of the size of the curve")
	}
	in.X, in.Y = b64.EncodeToString(x), b64.EncodeToString(y)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, append(append([]byte{4}, x...), y...))
	return key, in, err
}

func parseOKP(in okpJWK) (crypto.PublicKey, any, error) {
	x, err := b64.DecodeString(in.X)
	if err != nil || in.Crv != "Ed25519" || len(x) != ed25519.PublicKeySize {
		return nil, nil, errors.New("of this kind there is Ed25519 only, with 32 bytes")
	}
	in.X = b64.EncodeToString(x)
	return ed25519.PublicKey(x), in, nil
}

func parseRSA(in rsaJWK) (crypto.PublicKey, any, error) {
	n, errN := b64.DecodeString(in.N)
	e, errE := b64.DecodeString(in.E)
	if errN != nil || errE != nil || len(n) > 512 || len(n) == 0 || n[0] == 0 || len(e) > 4 || len(e) == 0 || e[0] == 0 {
		return nil, nil, errors.New("n and e are no numbers in their shortest form, of at most 512 and 4 bytes")
	}
	exp := new(big.Int).SetBytes(e)
	if exp.BitLen() > 31 { // int has 32 bits on small routers
		return nil, nil, errors.New("e is too large")
	}
	in.N, in.E = b64.EncodeToString(n), b64.EncodeToString(e)
	return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exp.Int64())}, in, nil
}

// MarshalJSON writes the key as JWK.
func (k jwk) MarshalJSON() ([]byte, error) { return k.text, nil }

// UnmarshalJSON reads one.
func (k *jwk) UnmarshalJSON(text []byte) (err error) {
	*k, err = parseJWK(text)
	return err
}

var (
	errAlgorithm = errors.New("ES256, ES384, RS256 or EdDSA is wanted, as fits the key")
	errSignature = errors.New("the signature is wrong")
)

// verify checks the signature of m (RFC 7518, 3; RFC 8037, 3.1). The key alone decides by
// which algorithm.
func (k jwk) verify(m jws) error {
	var alg string
	var good func() bool
	switch key := k.key.(type) {
	case *ecdsa.PublicKey:
		sum256, sum384 := sha256.Sum256(m.signed), sha512.Sum384(m.signed)
		alg, good = "ES256", func() bool { return verifyEC(key, sum256[:], m.signature) }
		if key.Curve == elliptic.P384() {
			alg, good = "ES384", func() bool { return verifyEC(key, sum384[:], m.signature) }
		}
	case ed25519.PublicKey:
		alg, good = "EdDSA", func() bool { return ed25519.Verify(key, m.signed, m.signature) }
	case *rsa.PublicKey:
		sum := sha256.Sum256(m.signed)
		alg, good = "RS256", func() bool { return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], m.signature) == nil }
	}
	switch {
	case m.header.Alg != alg || alg == "":
		return errAlgorithm
	case !good():
		return errSignature
	}
	return nil
}

func verifyEC(key *ecdsa.PublicKey, sum, signature []byte) bool {
	size := (key.Curve.Params().BitSize + 7) / 8
	if len(signature) != 2*size {
		return false
	}
	r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
	return ecdsa.Verify(key, sum, r, s)
}
