package cert

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"
)

const (
	bookFile     = "certificates"
	maxIssued    = 256 // certificates that are remembered
	maxAccounts  = 256
	eachDay      = 10 // certificates for one name by ACME
	statusValid  = "valid"
	deactivated  = "deactivated"
	noAccount    = "there is no such account"
	accountsFull = "all accounts that can be remembered have certificates"
)

// Issued is a certificate that was given away.
type Issued struct {
	Serial  string    `json:"serial"` // hexadecimal
	Names   []string  `json:"names"`
	Account string    `json:"account,omitempty"` // of ACME; "": the owner has it
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
	Revoked time.Time `json:"revoked,omitzero"`
}

// account is who asks by ACME. It is never changed, but replaced.
type account struct {
	ID      string    `json:"id"`
	Key     jwk       `json:"key"`
	Contact []string  `json:"contact,omitempty"`
	Status  string    `json:"status"`
	Used    time.Time `json:"used"` // when it got its last certificate, or was made
	// kept: it got a certificate once, and is on disk. Others are forgotten with a
	// restart, so that nobody wears the flash out by making accounts.
	kept bool
}

// book remembers what was given away, and to whom. It is written when a certificate is
// made or revoked, or an account is changed that got one. That it cannot be written
// keeps nobody from his certificate.
type book struct {
	store Store
	now   func() time.Time
	log   *slog.Logger

	mu       sync.Mutex // guards what follows
	certs    []Issued   // the oldest first
	accounts map[string]account
}

// pages is the book on disk.
type pages struct {
	Issued   []Issued  `json:"issued"`
	Accounts []account `json:"accounts"`
}

func openBook(store Store, now func() time.Time, log *slog.Logger) *book {
	b := &book{store: store, now: now, log: log, accounts: map[string]account{}}
	var p pages
	if _, err := store.Load(bookFile, &p); err != nil {
		log.Warn("the certificates given away so far, and to whom, are forgotten", "err", err)
	}
	b.certs = p.Issued
	for _, a := range p.Accounts {
		a.kept = true
		b.accounts[a.ID] = a
	}
	return b
}

// issued takes down a certificate for an account; "": for the owner.
func (b *book) issued(c *x509.Certificate, to string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now().UTC()
	b.certs = append(b.certs, Issued{Serial: serialOf(c), Names: c.DNSNames, Account: to, Since: now, Until: c.NotAfter})
	b.forget(now)
	if a, ok := b.accounts[to]; ok {
		a.Used, a.kept = now, true
		b.accounts[to] = a
	}
	b.save()
}

func serialOf(c *x509.Certificate) string { return c.SerialNumber.Text(16) }

// forget drops what has ended and, where there is more than can be remembered, first
// what was renewed since, then the oldest.
func (b *book) forget(now time.Time) {
	b.certs = slices.DeleteFunc(b.certs, func(c Issued) bool { return !now.Before(c.Until) })
	for len(b.certs) > maxIssued {
		i := slices.IndexFunc(b.certs, b.renewed)
		b.certs = slices.Delete(b.certs, max(i, 0), max(i, 0)+1)
	}
}

// renewed reports whether there is a later certificate for the same names.
func (b *book) renewed(c Issued) bool {
	return slices.ContainsFunc(b.certs, func(o Issued) bool { return o.Since.After(c.Since) && slices.Equal(o.Names, c.Names) })
}

// all is what was given away and has not ended, the newest first.
func (b *book) all() []Issued {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	out := slices.DeleteFunc(slices.Clone(b.certs), func(c Issued) bool { return !now.Before(c.Until) })
	slices.Reverse(out)
	return out
}

// Issued is what was given away and has not ended, the newest first.
func (c *CA) Issued() []Issued { return c.book.all() }

// lately is how many certificates for a name accounts got within a day.
func (b *book) lately(name string) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	since := b.now().Add(-24 * time.Hour)
	for _, c := range b.certs {
		if c.Account != "" && c.Since.After(since) && slices.Contains(c.Names, name) {
			n++
		}
	}
	return n
}

// of gives the certificate of a serial number.
func (b *book) of(serial string) (Issued, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := b.index(serial)
	if i < 0 {
		return Issued{}, false
	}
	return b.certs[i], true
}

func (b *book) index(serial string) int {
	return slices.IndexFunc(b.certs, func(c Issued) bool { return c.Serial == serial })
}

// revoke marks a certificate, and reports whether it was not marked before. Nobody asks
// whether a certificate is revoked: it stays good until it ends.
func (b *book) revoke(serial string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := b.index(serial)
	if i < 0 || !b.certs[i].Revoked.IsZero() {
		return false
	}
	b.certs = slices.Clone(b.certs)
	b.certs[i].Revoked = b.now().UTC()
	b.save()
	return true
}

// account gives the account of that ID.
func (b *book) account(id string) (account, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.accounts[id]
	return a, ok
}

// owner gives the account of a key.
func (b *book) owner(k jwk) (account, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.keyed(k)
}

func (b *book) keyed(k jwk) (account, bool) {
	for _, a := range b.accounts {
		if a.Key.print == k.print {
			return a, true
		}
	}
	return account{}, false
}

// open makes an account for a key that has none, in place of the one longest unused that
// holds no certificate if there are too many.
func (b *book) open(k jwk, contact []string) (account, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if a, ok := b.keyed(k); ok {
		return a, nil
	}
	if len(b.accounts) >= maxAccounts && !b.evict() {
		return account{}, errors.New(accountsFull)
	}
	a := account{ID: rand.Text(), Key: k, Contact: contact, Status: statusValid, Used: b.now().UTC()}
	b.accounts[a.ID] = a
	return a, nil
}

func (b *book) evict() bool {
	now, victim := b.now(), account{}
	for _, a := range b.accounts {
		holds := slices.ContainsFunc(b.certs, func(c Issued) bool { return c.Account == a.ID && now.Before(c.Until) })
		if !holds && (victim.ID == "" || a.Used.Before(victim.Used)) {
			victim = a
		}
	}
	delete(b.accounts, victim.ID)
	return victim.ID != ""
}

// change replaces an account, unless another has its key: that one is given then.
func (b *book) change(a account) (other account, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old, ok := b.accounts[a.ID]
	if !ok {
		return account{}, errors.New(noAccount)
	}
	if same, ok := b.keyed(a.Key); ok && same.ID != a.ID {
		return same, nil
	}
	a.kept, a.Used = old.kept, old.Used
	b.accounts[a.ID] = a
	if a.kept {
		b.save()
	}
	return account{}, nil
}

func (b *book) save() {
	p := pages{Issued: b.certs, Accounts: []account{}}
	for _, a := range b.accounts {
		if a.kept {
			p.Accounts = append(p.Accounts, a)
		}
	}
	slices.SortFunc(p.Accounts, func(x, y account) int { return x.Used.Compare(y.Used) })
	if err := b.store.Save(bookFile, p); err != nil {
		b.log.Warn("who has a certificate will be forgotten with a restart", "err", err)
	}
}
