package status

import "time"

// Certificates is what this home has to do with certificates.
type Certificates struct {
	Name        string        `json:"name"`        // of the root
	Domain      string        `json:"domain"`      // below which its names are
	Fingerprint string        `json:"fingerprint"` // of the root, SHA-256
	Until       time.Time     `json:"until"`       // the root is good
	URL         string        `json:"url"`         // where a device at home or in the mesh gets the root
	Directory   string        `json:"directory"`   // for ACME clients there
	Issued      []Certificate `json:"issued"`      // and still good, the newest first
}

// Certificate is one that was given away.
type Certificate struct {
	Names   []string  `json:"names"`
	ACME    bool      `json:"acme,omitempty"` // a client got it by itself; else the owner asked for it
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
	Revoked time.Time `json:"revoked,omitzero"`
}

// CertificateRequest asks for a certificate.
type CertificateRequest struct {
	Name string `json:"name"` // of a member, or of a device that is exposed under a name
}

// CertificatePair is a certificate with its key, which is kept nowhere else.
type CertificatePair struct {
	Name  string    `json:"name"`  // fully qualified, without a dot at its end
	Key   string    `json:"key"`   // PEM, PKCS #8
	Chain string    `json:"chain"` // PEM
	Until time.Time `json:"until"`
}

// String keeps the key out of logs.
func (p CertificatePair) String() string { return p.Name }
