package plan

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
)

// Resolve says where on the LAN each device of the configuration is, those of one
// name together, in the order of the file. at is what addresses a MAC has now, the
// best first; lans are the subnets of the LAN, own the addresses of this router. was
// is the answer before: one that is off is where it was, unless somebody else is there
// now, and an IPv6 address that is still good stays. What it has in the mesh is taken over.
func Resolve(c config.LAN, at map[string][]netip.Addr, lans []netip.Prefix, own []netip.Addr, was []mesh.Device) []mesh.Device {
	out := []mesh.Device{} // not null: it is kept
	index := func(list []mesh.Device, d mesh.Device) int {
		return slices.IndexFunc(list, func(o mesh.Device) bool { return o.MAC == d.MAC && (d.MAC != "" || o.Name == d.Name) })
	}
	good := func(a netip.Addr) bool {
		return inAny(lans, a) && !slices.Contains(own, a) && !a.IsLinkLocalUnicast() && !a.IsMulticast()
	}
	for _, d := range c.Devices {
		next, before := mesh.Device{Name: nameOf(c, d), MAC: d.MAC}, mesh.Device{}
		if i := index(was, next); i >= 0 {
			before = was[i]
		}
		i := index(out, next)
		if i < 0 {
			next.Mesh, next.Full = before.Mesh, before.Full
			i, out = len(out), append(out, next)
		}
		if d.MAC == "" {
			out[i].LAN = append(out[i].LAN, d.Addr)
		} else {
			out[i].LAN = follow(d.MAC, at, before.LAN, good)
		}
	}
	return out
}

// follow is where a MAC is reached, at most one address of each family.
func follow(mac string, at map[string][]netip.Addr, was []netip.Addr, good func(netip.Addr) bool) (out []netip.Addr) {
	free := func(a netip.Addr) bool {
		for other, addrs := range at {
			if other != mac && slices.Contains(addrs, a) {
				return false
			}
		}
		return good(a)
	}
	for _, bits := range [...]int{32, 128} {
		best := netip.Addr{}
		most := -1
		for _, a := range at[mac] {
			if a.BitLen() == bits && good(a) && rank(a, mac, was) > most {
				best, most = a, rank(a, mac, was)
			}
		}
		for _, a := range was {
			if !best.IsValid() && a.BitLen() == bits && free(a) {
				best = a
			}
		}
		if best.IsValid() {
			out = append(out, best)
		}
	}
	return out
}

// rank is how good an address is beside those before it. Of IPv6 a thing has many,
// some for a day only: one that is kept, one made of the MAC, one of the home's own
// prefix are better, in this order. Of IPv4 the first is the best.
func rank(a netip.Addr, mac string, was []netip.Addr) (score int) {
	if a.Is4() {
		return 0
	}
	if slices.Contains(was, a) {
		score += 4
	}
	if m, err := net.ParseMAC(mac); err == nil && len(m) == 6 {
		b := a.As16() // RFC 4291, appendix A
		if [8]byte(b[8:]) == [8]byte{m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]} {
			score += 2
		}
	}
	if a.IsPrivate() {
		score++
	}
	return score
}

// nameOf is what a device is called in the mesh: after its address if the owner says
// nothing. What it calls itself is not asked: anybody may call himself anything.
func nameOf(c config.LAN, d config.Device) string {
	name := d.Name
	if name == "" && d.MAC != "" {
		name = cmp.Or(c.Called(d.MAC), d.MAC)
	} else if name == "" {
		name = d.Addr.String()
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(name)
}

// LANPrefixes is the subnets of the home.
func LANPrefixes(c config.LAN, f host.Facts) []netip.Prefix {
	return prefixesOf(lanInterfaces(c, f, new(Plan)))
}

// placesOf is the LAN addresses that an entry of the configuration means now.
func placesOf(d config.Device, devices []mesh.Device) []netip.Addr {
	if d.MAC == "" {
		return []netip.Addr{d.Addr}
	}
	for _, o := range devices {
		if o.MAC == d.MAC {
			return o.LAN
		}
	}
	return nil
}

// limits are the only ports by which some LAN addresses are reached.
type limits map[netip.Addr][]config.Ports

// limitsOf joins what entries say of one address; one without ports opens all.
func limitsOf(in Inputs) limits {
	out, open := limits{}, map[netip.Addr]bool{}
	for _, d := range in.Config.LAN.Devices {
		for _, a := range placesOf(d, in.Devices) {
			out[a] = append(out[a], d.Ports...)
			open[a] = open[a] || len(d.Ports) == 0
		}
	}
	for a := range open {
		if open[a] {
			delete(out, a)
		}
	}
	return out
}

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
			if !wanted(in.Config.LAN, d, lan) {
				continue
			}
			if !inAny(local, lan) {
				if in.Config.LAN.Expose == config.ExposeAll && d.MAC == "" { // else the offer has judged
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

// wanted reports whether the owner still speaks of a device at that address: what is
// hidden is closed before anybody else hears of it.
func wanted(c config.LAN, d mesh.Device, lan netip.Addr) bool {
	return slices.ContainsFunc(c.Devices, func(o config.Device) bool { return o.MAC == d.MAC && (d.MAC != "" || o.Addr == lan) })
}

// served reports whether the coordinator gave us that address for a device.
func served(in Inputs, a netip.Addr) bool {
	return slices.Contains(in.Netmap.Self.AllowedIPs, single(a)) && !in.Netmap.Self.HasAddr(a) &&
		!slices.ContainsFunc(in.Facts.Interfaces, func(i host.Interface) bool {
			return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
		})
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
// does not speak of the device: it is taken out of all others. So is one with a
// limit, which is let in again on its ports only, by whatever rule.
func withDevices(rules []mesh.Rule, devices []host.DeviceMap, approved []netip.Prefix, only limits) []mesh.Rule {
	if len(devices) == 0 && len(only) == 0 {
		return rules
	}
	var closed []netip.Addr // sorted, each once
	for _, d := range devices {
		if !inAny(approved, d.LAN) {
			closed = append(closed, d.LAN)
		}
	}
	for a := range only {
		closed = append(closed, a)
	}
	closed = slices.Compact(sortAddrs(closed))
	out := make([]mesh.Rule, 0, len(rules))
	for _, r := range rules {
		all, tcp, udp := r, r, r
		all.Dsts, tcp.Dsts, udp.Dsts = make([]mesh.Dest, 0, len(r.Dsts)), nil, nil
		tcp.Protos, udp.Protos = []uint8{protoTCP}, []uint8{protoUDP}
		for _, d := range r.Dsts {
			whole, limited := translated(d, devices, closed, approved, only)
			all.Dsts = append(all.Dsts, whole...)
			for _, l := range limited {
				tcp.Dsts = append(tcp.Dsts, only.within(l, "tcp")...)
				udp.Dsts = append(udp.Dsts, only.within(l, "udp")...)
			}
		}
		out = append(out, all)
		for _, x := range [...]mesh.Rule{tcp, udp} {
			if len(x.Dsts) > 0 && (len(r.Protos) == 0 || slices.Contains(r.Protos, x.Protos[0])) {
				out = append(out, x)
			}
		}
	}
	return out
}

// IANA protocol numbers.
const (
	protoTCP = 6
	protoUDP = 17
)

// within is the part of a destination, one address with a limit, that the limit opens.
func (l limits) within(d mesh.Dest, proto string) (out []mesh.Dest) {
	for _, p := range l[d.Range.From] {
		ports := mesh.PortRange{First: max(d.Ports.First, p.First), Last: min(d.Ports.Last, p.Last)}
		if p.Proto == proto && ports.First <= ports.Last {
			out = append(out, mesh.Dest{Range: d.Range, Ports: ports})
		}
	}
	return out
}

// translated is one destination for after the translation; limited is the addresses of
// it that have a limit.
func translated(d mesh.Dest, byMesh []host.DeviceMap, closed []netip.Addr, approved []netip.Prefix, only limits) (whole, limited []mesh.Dest) {
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
		if only[a] != nil || !slices.Contains(granted, a) {
			rest = subtract(rest, single(a))
		}
		if only[a] != nil && inAny(approved, a) {
			granted = append(granted, a)
		}
	}
	for _, r := range rest {
		whole = append(whole, mesh.Dest{Range: r, Ports: d.Ports})
	}
	for _, a := range granted {
		to := mesh.Dest{Range: mesh.Range{From: a, To: a}, Ports: d.Ports}
		switch {
		case only[a] != nil:
			limited = append(limited, to)
		case !inRange(d.Range, a):
			whole = append(whole, to)
		}
	}
	return whole, limited
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
