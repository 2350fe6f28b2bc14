package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"subnetd/subnetd/api"
	"subnetd/subnetd/config"
	"subnetd/subnetd/control"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/state"
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
	}
}

func (d *daemon) control() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cfg.Mesh.Control
}

// up writes the owner's wish into the config file, then acts on it.
func (d *daemon) up(ctx context.Context, r api.UpRequest) error {
	d.mu.Lock()
	next := d.cfg
	d.mu.Unlock()
	edits := map[string]string{}
	if r.Control != "" && r.Control != next.Mesh.Control {
		next.Mesh.Control, edits["control"] = r.Control, r.Control
	}
	if r.Hostname != "" && r.Hostname != next.Mesh.Hostname {
		next.Mesh.Hostname, edits["hostname"] = r.Hostname, r.Hostname
	}
	if err := d.editConfig(edits); err != nil {
		return err
	}
	d.mu.Lock()
	d.cfg = next
	d.mu.Unlock()
	d.engine.SetConfig(next)
	if r.Hostname != "" {
		d.member.change(func(h *control.Host) { h.Hostname = r.Hostname })
	}
	return d.member.up(ctx, r.AuthKey)
}

// editConfig sets keys of [mesh] in the owner's file, comments kept.
func (d *daemon) editConfig(edits map[string]string) error {
	if len(edits) == 0 {
		return nil
	}
	src, err := os.ReadFile(d.opts.Config)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	for k, v := range edits {
		if src, err = config.Edit(src, "mesh", k, v); err != nil {
			return err
		}
	}
	if _, err := config.Parse(strings.NewReader(string(src)), d.opts.Config); err != nil {
		return err
	}
	return state.WriteFile(d.opts.Config, src)
}

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
