// Package apply brings the machine to a host.Config: it calls the hands in an
// order in which nothing is open before it is guarded.
package apply

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"subnetd/subnetd/host"
)

// Hand makes one part of the machine what the value says. Set is idempotent and
// corrects only differences; the zero value removes all of it.
type Hand[T any] interface {
	Set(context.Context, T) error
}

// ErrUnguarded says that routes were held back because no firewall of ours has
// ever been in force on that interface.
var ErrUnguarded = errors.New("held back: the firewall is not in force")

// Applier drives the hands. Its methods may be called from several goroutines; they
// take turns.
type Applier struct {
	mu       sync.Mutex
	guard    Hand[host.Guard]
	tunnel   Hand[host.Tunnel]
	firewall Hand[host.Firewall]
	route    Hand[host.Route]
	dns      Hand[host.DNS]
	guarded  string // interface our firewall is known to guard; "": none
}

// New returns an Applier over the hands.
func New(guard Hand[host.Guard], tunnel Hand[host.Tunnel], firewall Hand[host.Firewall], route Hand[host.Route], dns Hand[host.DNS]) *Applier {
	return &Applier{guard: guard, tunnel: tunnel, firewall: firewall, route: route, dns: dns}
}

// Set brings the machine to c. Coming up: tunnel, firewall, route, dns. Going down
// (no tunnel wanted): dns, route, firewall, tunnel. A part that fails does not stop
// the others, with one exception: routes are not set on an interface that our
// firewall never guarded. The error joins all failures, each with its part.
//
// A guard that holds somebody back comes before all of that, and one that does not
// any more behind it: nobody finds a way out meanwhile that the guard closes.
func (a *Applier) Set(ctx context.Context, c host.Config) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	rest := a.up
	if c.Tunnel.Name == "" {
		rest = a.down
	}
	if c.Firewall.Guard().Blocks() {
		guard := a.setGuard(ctx, c)
		return errors.Join(guard, rest(ctx, c))
	}
	err := rest(ctx, c)
	return errors.Join(err, a.setGuard(ctx, c))
}

func (a *Applier) setGuard(ctx context.Context, c host.Config) error {
	return part("guard", a.guard.Set(ctx, c.Firewall.Guard()))
}

func (a *Applier) up(ctx context.Context, c host.Config) error {
	tunnel := part("tunnel", a.tunnel.Set(ctx, c.Tunnel))
	firewall := a.setFirewall(ctx, c.Firewall)
	route := ErrUnguarded
	if c.Route.Interface == "" || a.guarded == c.Route.Interface {
		route = a.route.Set(ctx, c.Route)
	}
	return errors.Join(tunnel, firewall, part("route", route), a.setDNS(ctx, c))
}

func (a *Applier) down(ctx context.Context, c host.Config) error {
	dns := a.setDNS(ctx, c)
	route := part("route", a.route.Set(ctx, c.Route))
	firewall := a.setFirewall(ctx, c.Firewall)
	return errors.Join(dns, route, firewall, part("tunnel", a.tunnel.Set(ctx, c.Tunnel)))
}

func (a *Applier) setDNS(ctx context.Context, c host.Config) error {
	return part("dns", a.dns.Set(ctx, c.DNS))
}

// setFirewall also keeps what is guarded: a failed change leaves the rules that
// were in force (the kernel takes a rule set as a whole or not at all).
func (a *Applier) setFirewall(ctx context.Context, f host.Firewall) error {
	if err := a.firewall.Set(ctx, f); err != nil {
		return part("firewall", err)
	}
	a.guarded = f.Interface
	return nil
}

func part(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}
