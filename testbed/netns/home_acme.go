package netns

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// pebbleVersion is that of the ACME server; testbed/peers/build.sh builds the same.
const pebbleVersion = "v2.10.1"

// ACME is an ACME server, Let's Encrypt's pebble, on a public address of its own, named acme.test. Its validation comes
// to the ports 80 and 443 of the names that it certifies.
type ACME struct {
	Host      *Host
	Directory string // URL
	proc      *Process
}

// ACME starts the server. Everybody in the lab who trusts the lab's authority trusts the server and what it issues.
func (l *Lab) ACME() *ACME {
	l.t.Helper()
	h := l.newHost("acme")
	l.public(h, "wan0", 11)
	l.NameHost("acme.test", h.Addr4, h.Addr6)
	dir := l.mkdir("acme")
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	l.ca.issue(l.t, cert, key, []string{h.Addr4.String(), h.Addr6.String()}, "acme.test")
	conf := l.write("acme/pebble.json", fmt.Sprintf(`{"pebble": {"listenAddress": "[::]:14000", "managementListenAddress": "[::]:15000",
"certificate": %q, "privateKey": %q, "httpPort": 80, "tlsPort": 443, "keyAlgorithm": "ecdsa"}}`, cert, key))
	a := &ACME{Host: h, Directory: "https://acme.test:14000/dir"}
	a.proc = h.StartEnv([]string{"PEBBLE_VA_NOSLEEP=1"}, peer(l.t, "pebble", pebbleVersion, "pebble"), "-config", conf)
	l.trust(a.root())
	return a
}

// Log is what the server has logged.
func (a *ACME) Log() []string { return a.proc.Lines() }

// root waits for the server's root certificate, which it makes anew at each start, as PEM.
func (a *ACME) root() []byte {
	t := a.Host.lab.t
	t.Helper()
	pool := x509.NewCertPool()
	authority, err := os.ReadFile(a.Host.lab.CACert())
	if err != nil || !pool.AppendCertsFromPEM(authority) {
		t.Fatalf("the lab's authority: %v", err)
	}
	tr := &http.Transport{DialContext: a.Host.Dial, DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}
	client := http.Client{Transport: tr, Timeout: 5 * time.Second}
	var pem []byte
	Eventually(t, 20*time.Second, "the ACME server gives its root certificate", func() error {
		resp, err := client.Get("https://" + a.Host.Addr4.String() + ":15000/roots/0")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		pem, err = io.ReadAll(resp.Body)
		return err
	})
	return pem
}

// trust adds a certificate to the authorities of the lab.
func (l *Lab) trust(pem []byte) {
	l.t.Helper()
	f, err := os.OpenFile(l.CACert(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(pem); err != nil {
		l.t.Fatal(err)
	}
}

// IssueFor makes the lab's authority issue a certificate for a name; the paths of certificate and key are given.
func (l *Lab) IssueFor(name string) (cert, key string) {
	l.t.Helper()
	dir := l.mkdir("cert-" + name)
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	l.ca.issue(l.t, cert, key, []string{"127.0.0.1"}, name)
	return cert, key
}
