package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"subnetd/subnetd/api"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/underlay"
)

// funcs is what the local API may ask of the daemon.
func (d *daemon) funcs() api.Funcs {
	return api.Funcs{
		Status:   d.engine.Status,
		Watch:    d.engine.Watch,
		Up:       d.up,
		Down:     d.member.down,
		Logout:   d.member.logout,
		Ping:     d.ping,
		Netcheck: d.netcheck,
		Debug:    d.debug,
		Home:     d.home.calls,
		Exit:     api.Exit{Use: d.exitUse, Off: d.exitOff, Offer: d.exitOffer, Test: d.exitTest},
		Devices:  d.devices.calls(),
		Page:     d.pageCalls(),
		Drop:     d.dropCalls(),
		System:   d.system.calls(),

		Certificates: d.issuer.calls(),
	}
}

func (d *daemon) control() string { return d.config().Mesh.Control }

// ping asks the path machine for the way to a node, by name or address.
func (d *daemon) ping(ctx context.Context, target string) (api.PingResult, error) {
	nm := d.engine.Netmap()
	if nm == nil {
		return api.PingResult{}, errors.New("this node is in no mesh: run `subnetd up` first")
	}
	n := find(nm, target)
	if n == nil {
		return api.PingResult{}, fmt.Errorf("%w: %q; `subnetd status` lists them", api.ErrUnknownPeer, target)
	}
	p, err := d.under.Ping(ctx, n.Key)
	if err != nil {
		return api.PingResult{}, fmt.Errorf("pinging %s: %w", strings.TrimSuffix(n.Name, "."), err)
	}
	if p.Kind == mesh.PathNone {
		return api.PingResult{}, fmt.Errorf("%w from %s: %s", api.ErrSilent, strings.TrimSuffix(n.Name, "."), p.Reason)
	}
	r := api.PingResult{Name: strings.TrimSuffix(n.Name, "."), Path: p, Relay: regionCode(nm.Relays, p.Relay)}
	if len(n.Addresses) > 0 {
		r.Addr = n.Addresses[0].Addr()
	}
	return r, nil
}

// find gives the peer of that name (full or first label), address, or the one
// that routes the address.
func find(nm *mesh.Netmap, target string) *mesh.Node {
	addr, _ := netip.ParseAddr(target)
	var via *mesh.Node
	for i := range nm.Peers {
		n := &nm.Peers[i]
		full := strings.TrimSuffix(n.Name, ".")
		first, _, _ := strings.Cut(full, ".")
		if strings.EqualFold(full, strings.TrimSuffix(target, ".")) || strings.EqualFold(first, target) || (addr.IsValid() && n.HasAddr(addr)) {
			return n
		}
		for _, p := range n.AllowedIPs {
			if addr.IsValid() && p.Bits() > 0 && p.Contains(addr) {
				via = n
			}
		}
	}
	return via
}

func (d *daemon) netcheck(ctx context.Context) (any, error) {
	d.mu.Lock()
	relays := d.relays
	d.mu.Unlock()
	if len(relays) == 0 {
		return nil, errors.New("no relays are known before this node has joined a mesh: run `subnetd up` first")
	}
	return underlay.Netcheck(ctx, relays, host.Mark), nil
}

func (d *daemon) debug(what string) (any, error) {
	switch what {
	case "plan":
		p := d.engine.Plan()
		return p.Redacted(), nil
	case "netmap":
		return d.engine.Netmap(), nil
	case "paths":
		out := map[string]mesh.Path{}
		for k, p := range d.under.Paths() {
			out[k.String()] = p
		}
		return out, nil
	}
	return nil, fmt.Errorf("debug knows plan, netmap and paths, not %q", what)
}
