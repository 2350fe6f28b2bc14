package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"subnetd/subnetd/api"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
)

// whois says whose an address or a name is: of the mesh, or a thing at home.
func (x *devices) whois(_ context.Context, of string) (status.Whois, error) {
	nm := x.d.engine.Netmap()
	at, err := netip.ParseAddr(of)
	if err != nil && nm != nil {
		if n := find(nm, of); n != nil && len(n.Addresses) > 0 {
			return whose(nm, n.Addresses[0].Addr())
		}
	}
	s := x.shown()
	if d, err := s.find(of); err == nil && (d.Mesh != nil || !d.LastSeen.IsZero() || d.Name != "") {
		return whoisDevice(nm, at.Unmap(), d), nil
	}
	if !at.IsValid() {
		return status.Whois{}, fmt.Errorf("%w: %q", api.ErrUnknownPeer, of)
	}
	return whose(nm, at.Unmap())
}

// whoisDevice is a thing at home, asked for by an address of it or, if that is
// invalid, by its name.
func whoisDevice(nm *mesh.Netmap, at netip.Addr, d status.Device) status.Whois {
	w := status.Whois{Address: at, Kind: status.WhoisDevice, Name: d.Name, Device: &d}
	if d.Mesh != nil && d.Mesh.Name != "" {
		w.Name = d.Mesh.Name
	}
	if !at.IsValid() && d.Mesh != nil && len(d.Mesh.Addresses) > 0 {
		w.Address = d.Mesh.Addresses[0]
	} else if !at.IsValid() && len(d.Addresses) > 0 {
		w.Address = d.Addresses[0]
	}
	if nm != nil {
		w.Via = plainName(nm.Self.Name)
	}
	return w
}

// whose is who in the mesh has an address: a node, what it routes, or a device of
// another home.
func whose(nm *mesh.Netmap, at netip.Addr) (status.Whois, error) {
	w := status.Whois{Address: at}
	if nm == nil {
		return w, fmt.Errorf("%w: this router is in no mesh", api.ErrUnknownPeer)
	}
	describe := func(n *mesh.Node) {
		w.Name, w.Tags = plainName(n.Name), n.Tags
		if len(n.Tags) == 0 {
			w.User = strings.TrimSuffix(nm.Users[n.User], "@")
			w.Owner = n.User == nm.Self.User && len(nm.Self.Tags) == 0 && !n.Router
		}
	}
	if nm.Self.HasAddr(at) {
		w.Kind = status.WhoisSelf
		describe(&nm.Self)
		return w, nil
	}
	var via *mesh.Node
	best := 0
	for i := range nm.Peers {
		n := &nm.Peers[i]
		if n.Own(at) {
			w.Kind = status.WhoisNode
			describe(n)
			return w, nil
		}
		for _, p := range slices.Concat(n.Addresses, n.AllowedIPs) {
			if p.Bits() > best && p.Contains(at) {
				via, best = n, p.Bits()
			}
		}
	}
	if via == nil {
		return w, fmt.Errorf("%w: %s", api.ErrUnknownPeer, at)
	}
	w.Kind, w.Via = status.WhoisRoute, plainName(via.Name)
	if i := slices.IndexFunc(nm.Names.Records, func(r mesh.Record) bool { return r.Addr == at }); i >= 0 {
		w.Name = plainName(nm.Names.Records[i].Name)
	}
	if best == at.BitLen() {
		w.Kind = status.WhoisDevice
	}
	return w, nil
}

func plainName(name string) string { return strings.TrimSuffix(name, ".") }
