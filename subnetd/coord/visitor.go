package coord

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sort"
	"strings"
	"time"

	"subnetd/subnetd/status"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// The bounds of those who wait at the door.
const (
	maxPending     = 64
	maxPendingFrom = 8 // of one address
	codeLetters    = "ABCDEFGHJKMNPQRSTVWXYZ23456789"
	codeLength     = 8
)

// visitor is a device that asks to be let in. It is kept in memory only: who
// waits when we stop asks again.
type visitor struct {
	status.HomePending
	machine key.MachinePublic
	node    key.NodePublic
	asks    *tailcfg.RegisterRequest // never changed
	source  netip.Addr               // see origin
	ends    time.Time
	waits   int           // requests that wait for the owner
	granted bool          // the owner's yes
	decided chan struct{} // closed with it
}

// knock gives a device a code for the owner, and the page that shows it.
func (c *Coordinator) knock(p *caller, req *tailcfg.RegisterRequest) (*tailcfg.RegisterResponse, error) {
	v := c.visit(p, req)
	p.established() // who waits is bounded here, and dismissed with its connections
	return &tailcfg.RegisterResponse{AuthURL: p.base + "/a/" + v.Code}, nil
}

// visit finds the visitor of a machine and its key, or lets it begin.
func (c *Coordinator) visit(p *caller, req *tailcfg.RegisterRequest) *visitor {
	now := c.cfg.Now()
	defer c.cfg.Changed()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range c.pending {
		if v.machine == p.machine {
			if v.node == req.NodeKey && now.Before(v.ends) {
				return v
			}
			delete(c.pending, v.Code) // it has changed its mind, or that code is over
		}
	}
	c.sweep(now)
	c.makeRoom(origin(p.from.Addr()))
	v := &visitor{machine: p.machine, node: req.NodeKey, asks: req, source: origin(p.from.Addr()), ends: now.Add(pendingFor), decided: make(chan struct{})}
	v.Code, v.From, v.Since = newCode(), p.from.Addr().Unmap().String(), now
	if h := req.Hostinfo; h != nil {
		v.Hostname, v.OS = clip(h.Hostname), clip(h.OS)
	}
	c.pending[v.Code] = v
	return v
}

// sweep forgets who has waited too long; c.mu is held. Who is still there asks
// for another page by itself.
func (c *Coordinator) sweep(now time.Time) {
	for code, v := range c.pending {
		if now.Before(v.ends) {
			continue
		}
		delete(c.pending, code)
		if v.waits == 0 {
			c.dismiss(v)
		}
	}
}

// dismiss ends the connections of a visitor who is none any more: strangers
// would gather there. c.mu is held.
func (c *Coordinator) dismiss(v *visitor) {
	if c.snap.Load().ofMachine(v.machine) == nil {
		c.crowd.dismiss(v.machine)
	}
}

// makeRoom lets the oldest go where too many wait; c.mu is held.
func (c *Coordinator) makeRoom(from netip.Addr) {
	var all, same []*visitor
	for _, v := range c.pending {
		all = append(all, v)
		if v.source == from {
			same = append(same, v)
		}
	}
	if len(same) >= maxPendingFrom {
		all = same
	} else if len(all) < maxPending {
		return
	}
	oldest := slices.MinFunc(all, func(a, b *visitor) int { return a.Since.Compare(b.Since) })
	delete(c.pending, oldest.Code)
	c.dismiss(oldest)
}

// origin is who asks from an address: in IPv6 everybody has a whole /64.
func origin(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if p, err := a.Prefix(64); err == nil {
		return p.Addr()
	}
	return a
}

func newCode() string {
	var raw [codeLength]byte
	_, _ = rand.Read(raw[:]) // never fails (crypto/rand)
	for i, b := range raw {
		raw[i] = codeLetters[int(b)%len(codeLetters)]
	}
	return string(raw[:codeLength/2]) + "-" + string(raw[codeLength/2:])
}

// waiting is the visitor for whom a request waits now, nil if it follows up none:
// then it is one like any other, be it that the answer to the last was lost.
func (c *Coordinator) waiting(p *caller, req *tailcfg.RegisterRequest) *visitor {
	if req.Followup == "" {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.pending[codeOf(req.Followup)]
	if v == nil || v.machine != p.machine || v.node != req.NodeKey {
		return nil
	}
	v.waits++
	return v
}

// followUp waits with the device until its owner has decided.
func (c *Coordinator) followUp(ctx context.Context, p *caller, req *tailcfg.RegisterRequest, v *visitor) (*tailcfg.RegisterResponse, error) {
	p.established()
	timer := time.NewTimer(v.ends.Sub(c.cfg.Now()))
	defer timer.Stop()
	defer func() {
		c.mu.Lock()
		v.waits--
		c.mu.Unlock()
	}()
	select {
	case <-v.decided: // it is a member now
	case <-timer.C: // another page
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return c.decide(ctx, p, req)
}

// arrived forgets a visitor who is a member now, by the owner's word or by a key.
func (c *Coordinator) arrived(machine key.MachinePublic, node key.NodePublic) {
	c.mu.Lock()
	n := len(c.pending)
	maps.DeleteFunc(c.pending, func(_ string, v *visitor) bool { return v.machine == machine && v.node == node })
	fewer := len(c.pending) < n
	c.mu.Unlock()
	if fewer {
		c.cfg.Changed()
	}
}

func codeOf(followup string) string {
	u, err := url.Parse(followup)
	if err != nil {
		return ""
	}
	return strings.TrimPrefix(u.Path, "/a/")
}

// Approve lets the device with that code in, as a device of the user; without
// one as what it was before, if it was a member, else as the owner's. It is a
// member on the disk when this returns, whether or not it still waits.
func (c *Coordinator) Approve(ctx context.Context, code, user string) (out status.HomeNode, err error) {
	v, err := c.withCode(code)
	if err != nil {
		return out, err
	}
	err = c.update(ctx, func(d *draft) error {
		users, lasting := d.users, d.lasting
		g, err := d.grantTo(v.machine, user)
		if err == nil {
			_, err = d.admit(v.machine, v.asks, g)
		}
		if err != nil {
			d.users, d.lasting = users, lasting // nobody's user is none
		}
		return err
	})
	if err != nil {
		return out, err
	}
	c.mu.Lock()
	if !v.granted {
		v.granted = true
		close(v.decided)
	}
	c.mu.Unlock()
	c.cfg.Changed()
	s := c.snap.Load()
	if n := s.ofMachine(v.machine); n != nil {
		out = s.describe(n, c.cfg.Domain, c.cfg.Now())
	}
	return out, nil
}

// grantTo is as whom the owner lets a machine in. That a tagged device logs in
// again must not make it the owner's own, who may reach more.
func (d *draft) grantTo(machine key.MachinePublic, user string) (grant, error) {
	if n := d.ofMachine(machine); n != nil && user == "" {
		return grant{user: n.User, tags: n.Tags, ephemeral: n.Ephemeral}, nil
	}
	id, err := d.userID(cmp.Or(user, OwnerName))
	return grant{user: id}, err
}

// withCode finds who waits with a code, as a person types it.
func (c *Coordinator) withCode(code string) (*visitor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweep(c.cfg.Now())
	code = strings.ToUpper(strings.TrimSpace(code))
	v := c.pending[code]
	if v == nil && len(code) == codeLength {
		v = c.pending[code[:codeLength/2]+"-"+code[codeLength/2:]]
	}
	if v == nil {
		return nil, fmt.Errorf("%w: %q; codes are good for %d minutes", ErrUnknownCode, code, int(pendingFor.Minutes()))
	}
	return v, nil
}

// Pending lists who waits, the first first.
func (c *Coordinator) Pending() []status.HomePending {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sweep(c.cfg.Now())
	var out []status.HomePending
	for _, v := range c.pending {
		if !v.granted {
			out = append(out, v.HomePending)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Since.Before(out[j].Since) })
	return out
}

// inHTML writes a text into a page, as package html does, which brings along the names of 2,231 characters.
var inHTML = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;")

// servePage shows a device's code. It changes nothing: the owner approves on
// the router, where nobody else can.
func (c *Coordinator) servePage(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.sweep(c.cfg.Now())
	v := c.pending[r.PathValue("code")]
	c.mu.Unlock()
	if v == nil {
		page(w, http.StatusNotFound, "This code is over",
			"<p>Codes are good for 15 minutes. Log in once more on your device to get another.</p>")
		return
	}
	text := "<p>The device <b>" + inHTML.Replace(v.Hostname) + "</b>"
	if v.OS != "" {
		text += " (" + inHTML.Replace(v.OS) + ")"
	}
	text += " asks to join this home's mesh.</p><p>Its code is</p><p class=code>" + v.Code + "</p>" +
		"<p>If it is yours, let it in on the router:</p><pre>subnetd nodes approve " + v.Code + "</pre>" +
		"<p>Your device goes on by itself then; you may close this page.</p>"
	page(w, http.StatusOK, "A device asks to join", text)
}

func (c *Coordinator) serveRoot(w http.ResponseWriter, _ *http.Request) {
	page(w, http.StatusOK, "A home mesh", "<p>This is the coordinator of a private mesh. In your Tailscale client, "+
		"use this page's address as the login server.</p>")
}

// page writes a plain page without script; text is HTML.
func page(w http.ResponseWriter, code int, title, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = fmt.Fprintf(w, "<!doctype html><html lang=en><meta name=viewport content=\"width=device-width\"><title>%s</title>"+
		"<style>:root{color-scheme:light dark}body{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:3rem auto;padding:0 1rem}"+
		".code{font:700 2.2rem ui-monospace,monospace;letter-spacing:.1em}pre{white-space:pre-wrap}</style><h1>%s</h1>%s</html>\n", title, title, text)
}
