package cert

import (
	"crypto/x509"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// accountBody is an account as its owner sees it (RFC 8555, 7.1.2).
type accountBody struct {
	Status  string   `json:"status"`
	Contact []string `json:"contact,omitempty"`
	Orders  string   `json:"orders"`
}

func (r *request) shown(a account) reply {
	at := r.link("account", a.ID)
	return reply{location: at, body: accountBody{a.Status, a.Contact, at + "/orders"}}
}

// newAccount makes one, or finds that of the key (7.3).
func (a *ACME) newAccount(r *request) (reply, error) {
	if r.account.ID != "" {
		return reply{}, malformed("the header must say jwk: the account is not there yet")
	}
	var in struct {
		Contact []string `json:"contact"`
		Only    bool     `json:"onlyReturnExisting"`
	}
	if err := r.read(&in); err != nil {
		return reply{}, err
	}
	if acct, ok := a.cfg.CA.book.owner(r.key); ok {
		if acct.Status != statusValid {
			return reply{}, refuse(http.StatusUnauthorized, "unauthorized", "the account is %s", acct.Status)
		}
		return r.shown(acct), nil
	}
	if in.Only {
		return reply{}, refuse(http.StatusBadRequest, "accountDoesNotExist", noAccount)
	}
	if err := checkContact(in.Contact); err != nil {
		return reply{}, err
	}
	acct, err := a.cfg.CA.book.open(r.key, in.Contact)
	if err != nil {
		return reply{}, busy(time.Hour, "%v", err)
	}
	out := r.shown(acct)
	out.status = http.StatusCreated
	return out, nil
}

func checkContact(all []string) error {
	if len(all) > mostContact {
		return malformed("more than %d contacts", mostContact)
	}
	for _, c := range all {
		u, err := url.Parse(c)
		if err != nil || len(c) > 254 {
			return refuse(http.StatusBadRequest, "invalidContact", "a contact is no URL")
		}
		if u.Scheme != "mailto" {
			return refuse(http.StatusBadRequest, "unsupportedContact", "a contact is a mail address, as in mailto:me@example.com")
		}
		if !strings.Contains(u.Opaque, "@") || strings.Contains(u.Opaque, ",") || u.RawQuery != "" {
			return refuse(http.StatusBadRequest, "invalidContact", "a contact is no mail address")
		}
	}
	return nil
}

// account shows or changes an account (7.3.2, 7.3.6).
func (a *ACME) account(r *request) (reply, error) {
	if r.empty() {
		return r.shown(r.account), nil
	}
	var in struct {
		Status  string    `json:"status"`
		Contact *[]string `json:"contact"`
	}
	if err := r.read(&in); err != nil {
		return reply{}, err
	}
	next := r.account
	switch in.Status {
	case "", statusValid:
	case deactivated:
		next.Status = deactivated
	default:
		return reply{}, malformed("an account can become %s, not %q", deactivated, in.Status)
	}
	if in.Contact != nil {
		if err := checkContact(*in.Contact); err != nil {
			return reply{}, err
		}
		next.Contact = *in.Contact
	}
	if _, err := a.cfg.CA.book.change(next); err != nil {
		return reply{}, refuse(http.StatusBadRequest, "accountDoesNotExist", "%v", err)
	}
	return r.shown(next), nil
}

// changeKey gives an account another key, which signs the same within (7.3.5).
func (a *ACME) changeKey(r *request) (reply, error) {
	inner, err := parseJWS(r.payload)
	if err != nil {
		return reply{}, malformed("the payload: %v", err)
	}
	if inner.header.JWK == nil || inner.header.KID != "" || inner.header.URL != r.url {
		return reply{}, malformed("the inner header must say the new key as jwk, and the same url")
	}
	next := r.account
	if next.Key, err = parseJWK(inner.header.JWK); err != nil {
		return reply{}, refuse(http.StatusBadRequest, "badPublicKey", "%v", err)
	}
	if err := next.Key.verify(inner); err != nil {
		return reply{}, unsigned(err)
	}
	var in struct {
		Account string `json:"account"`
		OldKey  jwk    `json:"oldKey"`
	}
	if err := (&request{payload: inner.payload}).read(&in); err != nil {
		return reply{}, err
	}
	if accountOf(r, in.Account) != r.account.ID || in.OldKey.print != r.account.Key.print {
		return reply{}, malformed("the new key speaks of another account or another key")
	}
	other, err := a.cfg.CA.book.change(next)
	if err != nil {
		return reply{}, refuse(http.StatusBadRequest, "accountDoesNotExist", "%v", err)
	}
	if other.ID != "" {
		p := refuse(http.StatusConflict, "malformed", "another account has that key")
		p.location = r.link("account", other.ID)
		return reply{}, p
	}
	return r.shown(next), nil
}

// revoke marks a certificate as revoked, for the account that got it or whoever has its
// key (7.6).
func (a *ACME) revoke(r *request) (reply, error) {
	var in struct {
		Certificate string `json:"certificate"`
		Reason      int    `json:"reason"`
	}
	if err := r.read(&in); err != nil {
		return reply{}, err
	}
	if in.Reason < 0 || in.Reason > 10 || in.Reason == 7 { // RFC 5280, 5.3.1
		return reply{}, refuse(http.StatusBadRequest, "badRevocationReason", "there is no reason %d", in.Reason)
	}
	der, err := b64.DecodeString(in.Certificate)
	if err != nil {
		return reply{}, malformed("the certificate: %v", err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return reply{}, malformed("the certificate: %v", err)
	}
	root, err := a.cfg.CA.Root()
	if err != nil {
		return reply{}, err
	}
	known, ok := a.cfg.CA.book.of(serialOf(c))
	if !ok || c.CheckSignatureFrom(root) != nil {
		return reply{}, notFound()
	}
	if r.account.ID == "" && !equal(r.key.key, c.PublicKey) || r.account.ID != "" && known.Account != r.account.ID {
		return reply{}, unauthorized("the certificate is somebody else's")
	}
	if !a.cfg.CA.book.revoke(known.Serial) {
		return reply{}, refuse(http.StatusBadRequest, "alreadyRevoked", "it was revoked before")
	}
	return reply{}, nil
}
