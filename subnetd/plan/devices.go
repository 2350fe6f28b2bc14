package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
)

// serve gives the translations for the devices whose mesh addresses the
// coordinator routes to us, sorted. The home wins over the mesh: an address that
// a LAN or the router itself has is nobody's mesh address.
func (p *Plan) serve(in Inputs, local []netip.Prefix) []host.DeviceMap {
	if in.Config.LAN.Expose == config.ExposeNone {
		return nil
	}
	var out []host.DeviceMap
	for _, d := range in.Devices {
		for _, lan := range d.LAN {
			if !inAny(local, lan) {
				if !slices.ContainsFunc(told(in.Config.LAN), func(c config.Device) bool { return c.Addr == lan }) {
					p.outside(d.Name, lan)
				}
				continue
			}
			i := slices.IndexFunc(d.Mesh, func(m netip.Addr) bool { return m.BitLen() == lan.BitLen() })
			if i < 0 || !served(in, d.Mesh[i]) || inAny(local, d.Mesh[i]) {
				continue
			}
			m := host.DeviceMap{Mesh: d.Mesh[i], LAN: lan}
			if !slices.ContainsFunc(out, func(o host.DeviceMap) bool { return o.Mesh == m.Mesh }) {
				out = append(out, m)
			}
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Mesh.Less(out[j].Mesh) })
	return out
}

// served reports whether the coordinator gave us that address for a device.
func served(in Inputs, a netip.Addr) bool {
	return slices.Contains(in.Netmap.Self.AllowedIPs, single(a)) && !in.Netmap.Self.HasAddr(a) &&
		!slices.ContainsFunc(in.Facts.Interfaces, func(i host.Interface) bool {
			return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
		})
}

// told is the devices that the offer has already judged.
func told(c config.LAN) []config.Device {
	if c.Expose != config.ExposeChosen {
		return nil
	}
	return c.Devices
}

// outside tells of a device that is in no LAN.
func (p *Plan) outside(name string, a netip.Addr) {
	who := a.String()
	if name != "" {
		who = fmt.Sprintf("%s (%s)", name, a)
	}
	p.problem("device-outside", fmt.Sprintf("The device %s is in no LAN of this router: not offered.", who), "Correct lan.devices or lan.interfaces.")
}

// expose is all that may be reached behind us: the approved part of the offer,
// and the devices that are reached by their mesh addresses.
func expose(approved []netip.Prefix, devices []host.DeviceMap) []netip.Prefix {
	out := slices.Clone(approved)
	for _, d := range devices {
		if !inAny(out, d.LAN) {
			out = append(out, single(d.LAN))
		}
	}
	return sortPrefixes(out)
}

// withDevices makes rules right for an access list that is asked after the
// translation. Whoever may reach a device's mesh address may reach its LAN
// address on the same ports. On the other hand a LAN address that is exposed for
// a device only, and not by an approved route, may be reached by no rule that
// does not speak of the device: it is taken out of all others.
func withDevices(rules []mesh.Rule, devices []host.DeviceMap, approved []netip.Prefix) []mesh.Rule {
	if len(devices) == 0 {
		return rules
	}
	var closed []netip.Addr // sorted
	for _, d := range devices {
		if !inAny(approved, d.LAN) {
			closed = append(closed, d.LAN)
		}
	}
	sortAddrs(closed)
	out := make([]mesh.Rule, 0, len(rules))
	for _, r := range rules {
		dsts := r.Dsts
		r.Dsts = make([]mesh.Dest, 0, len(dsts))
		for _, d := range dsts {
			r.Dsts = append(r.Dsts, translated(d, devices, closed)...)
		}
		out = append(out, r)
	}
	return out
}

// translated is one destination for after the translation.
func translated(d mesh.Dest, byMesh []host.DeviceMap, closed []netip.Addr) []mesh.Dest {
	var granted []netip.Addr
	first, _ := slices.BinarySearchFunc(byMesh, d.Range.From, func(m host.DeviceMap, a netip.Addr) int { return m.Mesh.Compare(a) })
	for _, m := range byMesh[first:] {
		if !inRange(d.Range, m.Mesh) {
			break
		}
		granted = append(granted, m.LAN)
	}
	rest := []mesh.Range{d.Range}
	first, _ = slices.BinarySearchFunc(closed, d.Range.From, netip.Addr.Compare)
	for _, a := range closed[first:] {
		if !inRange(d.Range, a) {
			break
		}
		if !slices.Contains(granted, a) {
			rest = subtract(rest, single(a))
		}
	}
	var out []mesh.Dest
	for _, r := range rest {
		out = append(out, mesh.Dest{Range: r, Ports: d.Ports})
	}
	for _, a := range granted {
		if !inRange(d.Range, a) {
			out = append(out, mesh.Dest{Range: mesh.Range{From: a, To: a}, Ports: d.Ports})
		}
	}
	return out
}

// inRange reports whether a lies in a well-formed range of its family.
func inRange(r mesh.Range, a netip.Addr) bool {
	return r.From.BitLen() == a.BitLen() && r.To.BitLen() == a.BitLen() && r.From.Zone() == "" && r.To.Zone() == "" &&
		!a.Less(r.From) && !r.To.Less(a)
}

func inAny(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(a) })
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// warnUnapproved tells the owner that whoever is in charge of the coordinator
// has yet to act. A device with a mesh address needs no approval.
func (p *Plan) warnUnapproved(in Inputs, devices []host.DeviceMap) {
	var missing, offer []string
	for _, o := range lanOnly(p.Offer) {
		offer = append(offer, o.String())
		device := o.IsSingleIP() && slices.ContainsFunc(devices, func(d host.DeviceMap) bool { return d.LAN == o.Addr() })
		if !device && !slices.Contains(p.Approved, o) {
			missing = append(missing, o.String())
		}
	}
	if len(missing) == 0 {
		return
	}
	name, _, _ := strings.Cut(in.Netmap.Self.Name, ".")
	fix := "Approve the routes of this node on the coordinator."
	if in.Config.Mesh.Control == "home" {
		fix = fmt.Sprintf("Run `subnetd nodes routes %s %s`.", cmp.Or(name, "NODE"), strings.Join(offer, " "))
	}
	p.problem("routes-unapproved",
		fmt.Sprintf("The coordinator has not approved %s: nobody in the mesh can reach it.", strings.Join(missing, ", ")), fix)
}
