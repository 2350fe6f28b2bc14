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

// Applier drives the three hands. Its methods may be called from several
// goroutines; they take turns.
type Applier struct {
	mu       sync.Mutex
	tunnel   Hand[host.Tunnel]
	firewall Hand[host.Firewall]
	route    Hand[host.Route]
	guarded  string // interface our firewall is known to guard; "": none
}

// New returns an Applier over the three hands.
func New(tunnel Hand[host.Tunnel], firewall Hand[host.Firewall], route Hand[host.Route]) *Applier {
	return &Applier{tunnel: tunnel, firewall: firewall, route: route}
}

// Set brings the machine to c. Coming up: tunnel, firewall, route. Going down
// (no tunnel wanted): route, firewall, tunnel. A part that fails does not stop
// the others, with one exception: routes are not set on an interface that our
// firewall never guarded. The error joins all failures, each with its part.
func (a *Applier) Set(ctx context.Context, c host.Config) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.Tunnel.Name == "" {
		return a.down(ctx, c)
	}
	return a.up(ctx, c)
}

func (a *Applier) up(ctx context.Context, c host.Config) error {
	tunnel := part("tunnel", a.tunnel.Set(ctx, c.Tunnel))
	firewall := a.setFirewall(ctx, c.Firewall)
	if c.Route.Interface != "" && a.guarded != c.Route.Interface {
		return errors.Join(tunnel, firewall, part("route", ErrUnguarded))
	}
	return errors.Join(tunnel, firewall, part("route", a.route.Set(ctx, c.Route)))
}

func (a *Applier) down(ctx context.Context, c host.Config) error {
	route := part("route", a.route.Set(ctx, c.Route))
	firewall := a.setFirewall(ctx, c.Firewall)
	return errors.Join(route, firewall, part("tunnel", a.tunnel.Set(ctx, c.Tunnel)))
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
