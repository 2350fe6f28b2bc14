package cert

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strings"
)

// Paths of a Site. What follows "root." is a form of the root.
const (
	acmePath      = "/acme/" // below it is the ACME server
	DirectoryPath = acmePath + "directory"

	rootPEM     = "crt"
	rootDER     = "der"
	rootProfile = "mobileconfig"
)

// File is a root certificate in a form that some program reads, with its media type:
// "crt" for most (PEM), "der", "mobileconfig" for iOS. "": there is no such form.
func File(root *x509.Certificate, form string) (data []byte, media string) {
	switch form {
	case rootPEM:
		return PEM(root), "application/x-x509-ca-cert"
	case rootDER:
		return root.Raw, "application/x-x509-ca-cert"
	case rootProfile:
		return profile(root), "application/x-apple-aspen-config"
	}
	return nil, ""
}

// profile is a configuration profile of Apple's with the root in it. Its identifiers
// come of the root: one that is installed again takes the place of the first.
func profile(root *x509.Certificate) []byte {
	name := root.Subject.CommonName
	print := sha256.Sum256(root.Raw)
	id := "subnetd." + hex.EncodeToString(print[:8])
	pairs := func(kv ...string) string {
		var b strings.Builder
		for i := 0; i < len(kv); i += 2 {
			b.WriteString("<key>" + kv[i] + "</key>" + kv[i+1] + "\n")
		}
		return "<dict>\n" + b.String() + "</dict>\n"
	}
	text := func(s string) string { return "<string>" + s + "</string>" } // names have nothing in them that XML minds
	inner := pairs(
		"PayloadType", text("com.apple.security.root"),
		"PayloadVersion", "<integer>1</integer>",
		"PayloadIdentifier", text(id+".root"),
		"PayloadUUID", text(uuid([16]byte(print[:16]))),
		"PayloadDisplayName", text(name),
		"PayloadContent", "<data>"+base64.StdEncoding.EncodeToString(root.Raw)+"</data>",
	)
	return []byte(`<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
` + pairs(
		"PayloadType", text("Configuration"),
		"PayloadVersion", "<integer>1</integer>",
		"PayloadIdentifier", text(id),
		"PayloadUUID", text(uuid([16]byte(print[16:]))),
		"PayloadDisplayName", text(name),
		"PayloadDescription", text("Trusts the certificates of "+strings.TrimSuffix(name, " root")+", and no others."),
		"PayloadContent", "<array>\n"+inner+"</array>",
	) + "</plist>\n")
}

// uuid is one of random bytes (RFC 9562, 5.8).
func uuid(b [16]byte) string {
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// Site is what stands at ca.HOME.DOMAIN: the root for those who come to trust it, and
// below /acme/ the ACME server.
type Site struct {
	CA   *CA
	ACME http.Handler
}

// ServeHTTP answers a request for that name.
func (s Site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, acmePath) {
		s.ACME.ServeHTTP(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "this can be looked at only", http.StatusMethodNotAllowed)
		return
	}
	root, err := s.CA.Root()
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	form, _ := strings.CutPrefix(r.URL.Path, "/root.")
	data, media := File(root, form)
	switch {
	case r.URL.Path == "/":
		data, media = welcome(root), "text/html; charset=utf-8"
	case media == "":
		http.Error(w, "there is no such thing here", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", media)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(data) // an asker who left needs no answer
}

// welcome says what there is, and by what it is known to be the right one.
func welcome(root *x509.Certificate) []byte {
	name := root.Subject.CommonName
	return []byte(`<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>` + name + `</title>
<h1>` + name + `</h1>
<p>A device that trusts this certificate opens the names of ` + strings.Join(root.PermittedDNSDomains, ", ") + ` without a warning. It is worth nothing for other names.
<ul><li><a href="/root.crt">root.crt</a>: Android, Windows, Linux, browsers
<li><a href="/root.mobileconfig">root.mobileconfig</a>: iPhone, iPad, Mac
<li><a href="/root.der">root.der</a>: whatever wants DER</ul>
<p>SHA-256: <code>` + Fingerprint(root) + `</code>
<p>ACME: <code>` + DirectoryPath + `</code>
</html>
`)
}
