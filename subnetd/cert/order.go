package cert

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxOrders = 256
	maxNames  = 16 // of one order
	orderLife = time.Hour
)

// The states of orders, authorizations and challenges (RFC 8555, 7.1.6).
const (
	pending    = "pending"
	processing = "processing" // a challenge that is asked for its proof right now
	ready      = "ready"
	invalid    = "invalid"
)

// orders are those that somebody still works on. The oldest is forgotten when there are
// too many: an order takes seconds.
type orders struct {
	all map[string]*order
	age []string // the oldest first
}

func (o *orders) add(x *order) {
	if len(o.age) >= maxOrders {
		delete(o.all, o.age[0])
		o.age = slices.Delete(o.age, 0, 1)
	}
	o.all[x.id] = x
	o.age = append(o.age, x.id)
}

// order is a certificate on its way, and all that has to be proved for it.
type order struct {
	id      string
	account string
	expires time.Time
	status  string
	authz   []authz
	err     *problem
	chain   []byte // PEM, once it is valid
}

// authz is one name that has to be proved, in one of two ways with one token.
type authz struct {
	name   string
	token  string
	status string
	way    string // in which it is or was proved
	busy   bool   // it is asked right now
	err    *problem
	since  time.Time // it is valid
}

type identifier struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

type orderBody struct {
	Status         string       `json:"status"`
	Expires        time.Time    `json:"expires"`
	Identifiers    []identifier `json:"identifiers"`
	Authorizations []string     `json:"authorizations"`
	Finalize       string       `json:"finalize"`
	Certificate    string       `json:"certificate,omitempty"`
	Error          *problem     `json:"error,omitempty"`
}

type authzBody struct {
	Identifier identifier      `json:"identifier"`
	Status     string          `json:"status"`
	Expires    time.Time       `json:"expires"`
	Challenges []challengeBody `json:"challenges"`
}

type challengeBody struct {
	Type      string    `json:"type"`
	URL       string    `json:"url"`
	Status    string    `json:"status"`
	Token     string    `json:"token"`
	Validated time.Time `json:"validated,omitzero"`
	Error     *problem  `json:"error,omitempty"`
}

func (r *request) shownOrder(o *order) reply {
	at := r.link("order", o.id)
	b := orderBody{Status: o.status, Expires: o.expires, Finalize: at + "/finalize", Error: o.err}
	for i, z := range o.authz {
		b.Identifiers = append(b.Identifiers, identifier{"dns", z.name})
		b.Authorizations = append(b.Authorizations, at+"/"+strconv.Itoa(i))
	}
	if o.status == statusValid {
		b.Certificate = at + "/certificate"
	}
	return reply{location: at, body: b}
}

func (r *request) shownAuthz(o *order, i int) reply {
	z := &o.authz[i]
	b := authzBody{Identifier: identifier{"dns", z.name}, Status: z.status, Expires: o.expires, Challenges: []challengeBody{}}
	for _, way := range []string{wayHTTP, wayALPN} {
		if z.status == pending || way == z.way {
			b.Challenges = append(b.Challenges, r.shownChallenge(o, i, way))
		}
	}
	return reply{body: b}
}

func (r *request) shownChallenge(o *order, i int, way string) challengeBody {
	z := &o.authz[i]
	b := challengeBody{Type: way, URL: r.link("order", o.id, strconv.Itoa(i), way), Status: pending, Token: z.token}
	if z.way != way {
		return b
	}
	b.Validated, b.Error = z.since, z.err
	switch {
	case z.busy:
		b.Status = processing
	case z.status != pending:
		b.Status = z.status
	}
	return b
}

// newOrder begins to give somebody a certificate (7.4).
func (a *ACME) newOrder(r *request) (reply, error) {
	var in struct {
		Identifiers []identifier `json:"identifiers"`
		NotBefore   string       `json:"notBefore"`
		NotAfter    string       `json:"notAfter"`
	}
	if err := r.read(&in); err != nil {
		return reply{}, err
	}
	if in.NotBefore != "" || in.NotAfter != "" {
		return reply{}, malformed("how long a certificate is good cannot be chosen")
	}
	if len(in.Identifiers) == 0 || len(in.Identifiers) > maxNames {
		return reply{}, malformed("1 to %d names are wanted", maxNames)
	}
	o := &order{id: rand.Text(), account: r.account.ID, status: pending, expires: a.now().Add(orderLife).UTC().Truncate(time.Second)}
	for _, id := range in.Identifiers {
		name, err := a.orderable(id)
		if err != nil {
			return reply{}, err
		}
		if !slices.ContainsFunc(o.authz, func(z authz) bool { return z.name == name }) {
			o.authz = append(o.authz, authz{name: name, token: newToken(), status: pending})
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.orders.add(o)
	out := r.shownOrder(o)
	out.status = http.StatusCreated
	return out, nil
}

func (a *ACME) now() time.Time { return a.cfg.CA.cfg.Now() }

// orderable gives the name of an identifier, if somebody can prove it here.
func (a *ACME) orderable(id identifier) (string, error) {
	if id.Type != "dns" {
		return "", refuse(http.StatusBadRequest, "unsupportedIdentifier", "certificates are for names (dns), not for %q", id.Type)
	}
	name := strings.ToLower(id.Value)
	root, err := a.cfg.CA.current()
	if err != nil {
		return "", err
	}
	host, ok := a.cfg.CA.find(name, root.domain)
	switch {
	case !ok:
		return "", refuse(http.StatusForbidden, "rejectedIdentifier", "%v: %q", ErrUnknown, id.Value)
	case host.Self:
		return "", refuse(http.StatusForbidden, "rejectedIdentifier", "%s is this router itself, which has its certificates", name)
	case a.cfg.CA.book.lately(name) >= eachDay:
		return "", busy(time.Hour, "%s had %d certificates within a day", name, eachDay)
	}
	return name, nil
}

// ordersOf lists the orders of an account (7.1.2.1).
func (a *ACME) ordersOf(r *request) (reply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := []string{}
	for _, id := range a.orders.age {
		if o := a.orders.all[id]; o.account == r.account.ID && o.status != invalid {
			out = append(out, r.link("order", id))
		}
	}
	return reply{body: map[string][]string{"orders": out}}, nil
}

// order is all that stands below /acme/order/ID: the order itself, finalize, certificate,
// the number of a name, and below that the ways to prove it.
func (a *ACME) order(r *request) (reply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := a.orders.all[r.path[1]]
	switch {
	case o == nil:
		return reply{}, notFound()
	case o.account != r.account.ID:
		return reply{}, unauthorized("this order is somebody else's")
	}
	a.expire(o)
	if len(r.path) == 2 {
		return r.shownOrder(o), nil
	}
	switch r.path[2] {
	case "finalize":
		return a.finalize(r, o)
	case "certificate":
		if o.chain == nil {
			return reply{}, notFound()
		}
		return reply{chain: o.chain}, nil
	}
	i, err := strconv.Atoi(r.path[2])
	if err != nil || i < 0 || i >= len(o.authz) || r.path[2] != strconv.Itoa(i) {
		return reply{}, notFound()
	}
	switch {
	case len(r.path) == 3:
		return a.authz(r, o, i)
	case len(r.path) == 4 && (r.path[3] == wayHTTP || r.path[3] == wayALPN):
		return a.challenge(r, o, i, r.path[3])
	}
	return reply{}, notFound()
}

// expire ends an order for which it is too late.
func (a *ACME) expire(o *order) {
	if (o.status == pending || o.status == ready) && !a.now().Before(o.expires) {
		o.fail(malformed("the order was not finalized in time"))
	}
}

func (o *order) fail(p *problem) { o.status, o.err = invalid, p }

// authz shows what has to be proved, or gives up on it (7.5, 7.5.2).
func (a *ACME) authz(r *request, o *order, i int) (reply, error) {
	z := &o.authz[i]
	if !r.empty() {
		var in struct {
			Status string `json:"status"`
		}
		if err := r.read(&in); err != nil {
			return reply{}, err
		}
		if in.Status != deactivated {
			return reply{}, malformed("an authorization can become %s only", deactivated)
		}
		if z.status == pending || z.status == statusValid {
			z.status = deactivated
			if o.status != statusValid {
				o.fail(malformed("the authorization of %s was given up", z.name))
			}
		}
	}
	return r.shownAuthz(o, i), nil
}

// challenge has a name proved (7.5.1). It answers when that is decided.
func (a *ACME) challenge(r *request, o *order, i int, way string) (reply, error) {
	z := &o.authz[i]
	if !r.empty() && z.status == pending && !z.busy && o.status == pending {
		if err := a.proveNow(r, o, z, way); err != nil {
			return reply{}, err
		}
	}
	out := reply{up: r.link("order", o.id, strconv.Itoa(i)), body: r.shownChallenge(o, i, way)}
	if z.busy {
		out.after = 1
	}
	return out, nil
}

// proveNow asks whoever has the name. While that takes its time, a.mu is not held.
func (a *ACME) proveNow(r *request, o *order, z *authz, way string) error {
	select {
	case a.proving <- struct{}{}:
		defer func() { <-a.proving }()
	default:
		return busy(5*time.Second, "many names are being proved, try again")
	}
	root, err := a.cfg.CA.current()
	if err != nil {
		return err
	}
	host, _ := a.cfg.CA.find(z.name, root.domain)
	z.busy, z.way = true, way
	name, token, text := z.name, z.token, z.token+"."+r.account.Key.print
	a.mu.Unlock()
	wrong := prove(r.ctx, a.cfg.Dial, host.Addrs, a.each, way, name, token, text)
	a.mu.Lock()
	z.busy = false
	switch {
	case r.ctx.Err() != nil: // who asked has left: nothing is decided
		z.way = ""
		return context.Cause(r.ctx)
	case z.status != pending: // it was given up meanwhile
	case wrong != nil:
		z.status, z.err = invalid, wrong
		o.fail(wrong)
	default:
		z.status, z.since = statusValid, a.now().UTC().Truncate(time.Second)
		if !slices.ContainsFunc(o.authz, func(z authz) bool { return z.status != statusValid }) && o.status == pending {
			o.status = ready
		}
	}
	return nil
}

// finalize makes the certificate (7.4).
func (a *ACME) finalize(r *request, o *order) (reply, error) {
	if o.status != ready {
		return reply{}, refuse(http.StatusForbidden, "orderNotReady", "the order is %s", o.status)
	}
	var in struct {
		CSR string `json:"csr"`
	}
	if err := r.read(&in); err != nil {
		return reply{}, err
	}
	der, err := b64.DecodeString(in.CSR)
	if err != nil {
		return reply{}, refuse(http.StatusBadRequest, "badCSR", "%v", err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return reply{}, refuse(http.StatusBadRequest, "badCSR", "%v", err)
	}
	if err := o.checkCSR(csr, r.account); err != nil {
		return reply{}, err
	}
	for _, n := range o.names() { // the home may have changed since
		if _, err := a.orderable(identifier{"dns", n}); err != nil {
			return reply{}, err
		}
	}
	leaf, ca, err := a.cfg.CA.sign(o.names(), csr.PublicKey, Life)
	if err != nil {
		return reply{}, err
	}
	a.cfg.CA.book.issued(leaf, r.account.ID)
	o.status, o.chain = statusValid, chain(leaf, ca)
	return r.shownOrder(o), nil
}

func (o *order) names() (out []string) {
	for _, z := range o.authz {
		out = append(out, z.name)
	}
	return out
}

// checkCSR: it must be for exactly the names of the order, by a key of its own.
func (o *order) checkCSR(csr *x509.CertificateRequest, by account) error {
	bad := func(format string, a ...any) error { return refuse(http.StatusBadRequest, "badCSR", format, a...) }
	if err := csr.CheckSignature(); err != nil {
		return bad("%v", err)
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return bad("%v", err)
	}
	if equal(csr.PublicKey, by.Key.key) {
		return bad("the key of the account is not for certificates")
	}
	if len(csr.IPAddresses)+len(csr.EmailAddresses)+len(csr.URIs) > 0 {
		return bad("certificates are for names, not for addresses")
	}
	got, want := o.names(), o.names()
	got = got[:0]
	for _, n := range append(csr.DNSNames, nonEmpty(csr.Subject.CommonName)...) {
		got = append(got, strings.ToLower(n))
	}
	slices.Sort(got)
	slices.Sort(want)
	if got = slices.Compact(got); !slices.Equal(got, want) {
		return bad("it is for %q, the order for %q", got, want)
	}
	return nil
}

func nonEmpty(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}
