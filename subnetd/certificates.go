package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"

	"subnetd/subnetd/config"
	"subnetd/subnetd/ingress"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/state"

	"tailscale.com/types/key"
)

// State files of the public port.
const (
	relayFile  = "relay"
	acmePrefix = "acme-"
)

// relayIdentity is the relay's keys: members pin its certificate.
type relayIdentity struct {
	Key         key.NodePrivate  `json:"key"`
	Certificate ingress.Identity `json:"certificate"`
}

// certificates chooses what the coordinator's port shows in TLS: the real
// certificate of home.url to those who ask for that name, the relay's own one,
// which members pin, to all others. None of the fields changes.
type certificates struct {
	own  relayIdentity
	leaf tls.Certificate // of own
	name string          // of home.url, "" if nobody verifies it
	file *ingress.FileCertificate
	acme *ingress.ACME
}

// newCertificates reads the relay's keys, or makes them, and prepares the
// owner's certificate as he wishes.
func (h *home) newCertificates(cfg config.Home, r plan.Reach) (*certificates, error) {
	own, err := h.loadRelay(append([]string{r.Inside.Host}, nonEmpty(r.Name)...))
	if err != nil {
		return nil, err
	}
	c := &certificates{own: own, leaf: own.Certificate.TLS()}
	if !r.TLS {
		return c, nil
	}
	c.name = r.Name
	if cfg.CertFile != "" {
		c.file = ingress.NewFileCertificate(cfg.CertFile, cfg.KeyFile, c.name, h.d.clock.now, h.d.logger("certificate"))
		return c, nil
	}
	c.acme = ingress.NewACME(ingress.ACMEConfig{
		Name: c.name, Directory: cfg.ACMEDirectory, Store: h.acmeStore(), Fallback: c.ours,
		Client: &http.Client{Transport: &http.Transport{DialContext: dialMarked}}, Now: h.d.clock.now, Log: h.d.logger("certificate"),
	})
	return c, nil
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// loadRelay gives the relay's keys with a certificate for the names. Other names
// need another certificate, which members hear of before they meet it.
func (h *home) loadRelay(names []string) (own relayIdentity, err error) {
	_, err = h.d.dir.Load(relayFile, &own)
	var corrupt *state.CorruptError
	if err != nil && !errors.As(err, &corrupt) {
		return own, err
	}
	if own.Key.IsZero() {
		own.Key = key.NewNode()
	}
	if own.Certificate.Covers(names, nil) {
		return own, nil
	}
	if own.Certificate, err = ingress.SelfSigned(h.d.clock.now(), names, nil, rand.Reader); err != nil {
		return own, fmt.Errorf("the relay's certificate: %w", err)
	}
	if err := h.d.dir.Save(relayFile, own); err != nil {
		return own, fmt.Errorf("the relay's keys are not kept: %w", err)
	}
	return own, nil
}

// acmeStore keeps the account and the certificate in the state directory.
func (h *home) acmeStore() ingress.Store {
	file := func(name string) string {
		if name != "account" {
			name = "certificate" // there is one, whatever it is for
		}
		return acmePrefix + name
	}
	return ingress.Store{
		Load: func(name string) (b []byte, err error) {
			if found, err := h.d.dir.Load(file(name), &b); err != nil || !found {
				return nil, errors.Join(err, fs.ErrNotExist)
			}
			return b, nil
		},
		Save: func(name string, b []byte) error { return h.d.dir.Save(file(name), b) },
	}
}

// run gets and renews the certificate of home.url.
func (c *certificates) run(ctx context.Context) error {
	if c.acme != nil {
		return c.acme.Run(ctx)
	}
	return nil
}

// get is of tls.Config.
func (c *certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	switch {
	case c.acme != nil:
		return c.acme.Get(hello)
	case c.file != nil && strings.EqualFold(hello.ServerName, c.name):
		return c.file.Get(hello)
	}
	return &c.leaf, nil
}

func (c *certificates) ours(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c.leaf, nil }

// challenges answers the authority's questions, next all others.
func (c *certificates) challenges(next http.Handler) http.Handler {
	if c.acme == nil {
		return next
	}
	return c.acme.HTTPHandler(next)
}

// trouble is why there is no certificate for home.url.
func (c *certificates) trouble() error {
	switch {
	case c.acme != nil:
		return c.acme.Problem()
	case c.file != nil:
		return c.file.Problem()
	}
	return nil
}
