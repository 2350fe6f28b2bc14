package ingress

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// files is a pair of files, and a clock to look at them by.
type files struct {
	t         *testing.T
	cert, key string
	now       time.Time
}

func newFiles(t *testing.T) *files {
	dir := t.TempDir()
	return &files{t: t, cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem"), now: time.Now()}
}

func (f *files) open() *FileCertificate {
	return NewFileCertificate(f.cert, f.key, "home.example", func() time.Time { return f.now }, slog.New(slog.DiscardHandler))
}

// write replaces a file as careful programs do.
func (f *files) write(path, kind string, der []byte) {
	f.t.Helper()
	if err := os.WriteFile(path+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		f.t.Fatal(err)
	}
}

func (f *files) writeCert(id Identity) { f.write(f.cert, "CERTIFICATE", id.Cert) }
func (f *files) writeKey(id Identity)  { f.write(f.key, "PRIVATE KEY", id.Key) }

func identityFor(t *testing.T, name string) Identity {
	t.Helper()
	id, err := SelfSigned(time.Now(), []string{name}, nil, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// shows checks which certificate is in use. nil: none.
func (f *files) shows(c *FileCertificate, want *Identity, problem string) {
	f.t.Helper()
	got, err := c.Get(nil)
	switch {
	case want == nil && err == nil:
		f.t.Error("there is a certificate")
	case want != nil && err != nil:
		f.t.Errorf("there is none: %v", err)
	case want != nil && string(got.Certificate[0]) != string(want.Cert):
		f.t.Error("it is another certificate")
	}
	p := c.Problem()
	if (p == nil) != (problem == "") || p != nil && !strings.Contains(p.Error(), problem) {
		f.t.Errorf("problem %v, want %q", p, problem)
	}
}

func TestFileCertificate(t *testing.T) {
	f := newFiles(t)
	a, b, elsewhere := identityFor(t, "home.example"), identityFor(t, "home.example"), identityFor(t, "elsewhere.example")
	c := f.open()
	f.shows(c, nil, "no such file")
	f.writeCert(a)
	f.writeKey(a)
	f.shows(c, nil, "no such file") // not looked at again so soon
	f.now = f.now.Add(fileInterval)
	f.shows(c, &a, "")

	f.writeCert(b) // the key comes a moment later
	f.now = f.now.Add(fileInterval)
	f.shows(c, &a, "no pair")
	f.writeKey(b)
	f.now = f.now.Add(fileInterval - time.Second)
	f.shows(c, &a, "no pair")
	f.now = f.now.Add(time.Second)
	f.shows(c, &b, "")

	f.writeCert(elsewhere)
	f.writeKey(elsewhere)
	f.now = f.now.Add(fileInterval)
	f.shows(c, &b, "another name")
	if err := os.Remove(f.cert); err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(fileInterval)
	f.shows(c, &b, "no such file")
	f.writeCert(b)
	f.writeKey(b)
	f.now = f.now.Add(-time.Hour) // the clock was set back
	f.shows(c, &b, "")
	f.now = time.Now().AddDate(40, 0, 0)
	f.shows(c, &b, "has expired")
	if c := f.open(); c.Problem() == nil {
		t.Error("expired, and no problem after a restart")
	}
}

// Files that do not change are not read again.
func TestFileReadOnce(t *testing.T) {
	f := newFiles(t)
	a := identityFor(t, "home.example")
	f.writeCert(a)
	f.writeKey(a)
	c := f.open()
	first, err := c.Get(nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		f.now = f.now.Add(fileInterval)
		if again, err := c.Get(nil); err != nil || again != first {
			t.Errorf("read again, %v", err)
		}
	}
	if _, err := x509.ParseCertificate(first.Certificate[0]); err != nil {
		t.Error(err)
	}
}
