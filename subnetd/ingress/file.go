package ingress

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

const fileInterval = 30 * time.Second // between two looks at the files

// FileCertificate is a certificate that the owner keeps in two files in PEM.
// When they change, the new pair is used from the next connection on, 30 seconds
// later at most. If it is broken, the last good one stays in use.
type FileCertificate struct {
	cert, key string
	host      string
	now       func() time.Time
	log       *slog.Logger

	mu      sync.Mutex // guards what follows
	good    *tls.Certificate
	seen    [2]fs.FileInfo // of the pair that good or problem is about
	looked  time.Time
	problem error
}

// NewFileCertificate reads the files, whose certificate must be valid for host.
// That they are missing or broken is no error yet, see Problem.
func NewFileCertificate(certFile, keyFile, host string, now func() time.Time, log *slog.Logger) *FileCertificate {
	f := &FileCertificate{cert: certFile, key: keyFile, host: host, now: now, log: log}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	return f
}

// Get is for Config.Certificate.
func (f *FileCertificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	if f.good == nil {
		return nil, f.problem
	}
	return f.good, nil
}

// Problem is what is wrong with the files, in one sentence. nil: nothing.
func (f *FileCertificate) Problem() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.look()
	if f.problem == nil && f.now().After(f.good.Leaf.NotAfter) {
		return fmt.Errorf("home.cert_file: the certificate in %s has expired on %s, get a new one", f.cert, f.good.Leaf.NotAfter.Format(time.DateOnly))
	}
	return f.problem
}

// look reads the files again if they have changed since. A pair that was broken
// is read again anyway: the second file may just have been written.
func (f *FileCertificate) look() {
	now := f.now()
	if !f.looked.IsZero() && now.Sub(f.looked) < fileInterval && !now.Before(f.looked) {
		return
	}
	f.looked = now
	seen, err := f.stat()
	if err == nil && f.problem == nil && same(seen, f.seen) {
		return
	}
	var pair *tls.Certificate
	if err == nil {
		pair, err = f.read()
	}
	if err == nil {
		f.good, f.seen, f.problem = pair, seen, nil
		f.log.Info("certificate read", "file", f.cert, "until", pair.Leaf.NotAfter)
		return
	}
	err = fmt.Errorf("home.cert_file and home.key_file: %w", err)
	if f.problem == nil || f.problem.Error() != err.Error() {
		f.log.Warn("certificate cannot be used", "err", err, "last_good", f.good != nil)
	}
	f.problem = err
}

func (f *FileCertificate) stat() (seen [2]fs.FileInfo, err error) {
	var errs [2]error
	seen[0], errs[0] = os.Stat(f.cert)
	seen[1], errs[1] = os.Stat(f.key)
	return seen, errors.Join(errs[:]...)
}

func same(a, b [2]fs.FileInfo) bool {
	for i := range a {
		if a[i] == nil || b[i] == nil || !os.SameFile(a[i], b[i]) ||
			!a[i].ModTime().Equal(b[i].ModTime()) || a[i].Size() != b[i].Size() {
			return false
		}
	}
	return true
}

func (f *FileCertificate) read() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s are no pair: %w", f.cert, f.key, err)
	}
	if err := pair.Leaf.VerifyHostname(f.host); err != nil {
		return nil, fmt.Errorf("%s is for another name: %w", f.cert, err)
	}
	return &pair, nil
}
