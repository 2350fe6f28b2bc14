package main

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"

	"subnetd/subnetd/config"
	"subnetd/subnetd/lan"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/status"
)

// shown is all that the list of the things at home is made of.
type shown struct {
	config config.Config
	things []lan.Thing
	list   []mesh.Device // those of the configuration
	plan   plan.Plan
	lans   []netip.Prefix
	joined bool
	gives  bool // the coordinator gives addresses to devices
}

// shown is that, now.
func (x *devices) shown() *shown {
	c, nm := x.d.config(), x.d.engine.Netmap()
	return &shown{
		config: c, things: x.sense.Things(), list: x.current(), plan: x.d.engine.Plan(),
		lans: plan.LANPrefixes(c.LAN, x.d.facts()), joined: nm != nil,
		gives: c.Mesh.Control == homeControl || nm != nil && nm.Devices != nil,
	}
}

// all is the things at home. Somebody looks at them, so that the kernel is asked who
// is there.
func (x *devices) all() status.Devices {
	x.sense.Look()
	return x.shown().all()
}

// all is every thing that was seen or that the owner speaks of: those that the mesh may
// reach first, then by name.
func (s *shown) all() status.Devices {
	out := status.Devices{Expose: string(s.config.LAN.Expose), Devices: []status.Device{}}
	told := make([]bool, len(s.list))
	for _, t := range s.things {
		d := s.thing(t)
		for i, m := range s.list {
			if m.MAC == t.MAC || m.MAC == "" && slices.ContainsFunc(m.LAN, func(a netip.Addr) bool { return slices.Contains(d.Addresses, a) }) {
				d.Mesh, told[i] = s.mesh(m), true
			}
		}
		out.Devices = append(out.Devices, d)
	}
	for i, m := range s.list {
		if !told[i] {
			out.Devices = append(out.Devices, status.Device{MAC: m.MAC, Name: m.Name, NameFrom: lan.Owner.String(), Addresses: append([]netip.Addr{}, m.LAN...), Mesh: s.mesh(m)})
		}
	}
	all := out.Devices
	sort.SliceStable(all, func(i, j int) bool {
		a, b := &all[i], &all[j]
		if (a.Mesh != nil) != (b.Mesh != nil) {
			return a.Mesh != nil
		}
		if x, y := strings.ToLower(a.Name), strings.ToLower(b.Name); x != y {
			return y == "" || x != "" && x < y
		}
		return a.MAC < b.MAC
	})
	return out
}

// thing is what is known of one that was seen.
func (s *shown) thing(t lan.Thing) status.Device {
	d := status.Device{
		MAC: t.MAC, Private: t.Private, Name: t.Name, NameFrom: t.NameFrom.String(), Maker: t.Maker, Kind: t.Kind, Services: t.Services,
		Addresses: t.Addrs(), Interface: t.Interface, Online: t.Online, FirstSeen: t.FirstSeen, LastSeen: t.LastSeen,
	}
	if i := plan.SourceOf(s.plan.Sources, t.MAC, t.Interface, slices.Contains(s.plan.LANs, t.Interface)); i >= 0 && i < len(s.plan.Exits) {
		d.Exit, d.ExitRow = s.plan.Exits[i].Now, s.plan.Exits[i].Row
	} else if t.Interface != "" {
		d.Exit = status.ExitDirect
	}
	if s.config.LAN.Expose == config.ExposeAll {
		d.Mesh = s.open(d.Addresses)
	}
	return d
}

// open is how the mesh reaches something that nobody chose, as it is on a LAN all of
// which is open; nil: it does not.
func (s *shown) open(addrs []netip.Addr) *status.DeviceMesh {
	out := &status.DeviceMesh{All: true}
	for _, a := range addrs {
		if contains(s.plan.Approved, a) {
			out.Addresses = append(out.Addresses, a)
		}
	}
	switch {
	case !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return contains(s.lans, a) }):
		return nil
	case len(out.Addresses) == 0:
		out.Missing = s.unapproved("the LAN")
	}
	return out
}

// mesh is how the mesh reaches one that the owner chose, or what stands between.
func (s *shown) mesh(m mesh.Device) *status.DeviceMesh {
	out := &status.DeviceMesh{Name: m.Full, Web: s.web(m)}
	for _, d := range s.config.LAN.Devices {
		if d.MAC == m.MAC && (m.MAC != "" || slices.Contains(m.LAN, d.Addr)) {
			out.Wake = out.Wake || d.Wake
			for _, p := range d.Ports {
				if text := p.String(); !slices.Contains(out.Ports, text) {
					out.Ports = append(out.Ports, text)
				}
			}
		}
	}
	fw := &s.plan.Host.Firewall
	for _, a := range m.LAN {
		for _, to := range fw.Devices {
			if to.LAN == a && slices.Contains(m.Mesh, to.Mesh) {
				out.Addresses = append(out.Addresses, to.Mesh)
			}
		}
	}
	if len(out.Addresses) > 0 {
		return out
	}
	for _, a := range m.LAN {
		if !s.gives && contains(s.plan.Approved, a) {
			out.Addresses = append(out.Addresses, a)
		}
	}
	if len(out.Addresses) == 0 {
		out.Missing = s.missing(m)
	}
	return out
}

// web is how this router serves a device's web pages; nil: it does not.
func (s *shown) web(m mesh.Device) *status.DeviceWeb {
	w, ok := s.config.LAN.ServedAs(m.Name)
	if !ok {
		return nil
	}
	out := &status.DeviceWeb{Target: w.Target()}
	if i := slices.IndexFunc(s.plan.Web, func(x plan.Served) bool { return x.Name == w.Name }); i >= 0 {
		out.URL = "https://" + s.plan.Web[i].Names[0] + "/"
	}
	return out
}

// missing is why the mesh does not reach a device, in one sentence.
func (s *shown) missing(m mesh.Device) string {
	switch {
	case s.config.LAN.Expose == config.ExposeNone:
		return `lan.expose is "none": nothing at home is reached.`
	case !s.joined || s.plan.Host.Firewall.Interface == "":
		return "This router is in no mesh."
	case len(m.LAN) == 0:
		return "It was not seen at home yet."
	case !slices.ContainsFunc(m.LAN, func(a netip.Addr) bool { return contains(s.lans, a) }):
		return "It is in no LAN of this router."
	case s.gives:
		return "It waits for its address in the mesh."
	}
	return s.unapproved(m.LAN[0].String())
}

func (s *shown) unapproved(what string) string {
	if !s.joined {
		return "This router is in no mesh."
	}
	return fmt.Sprintf("The coordinator has not approved the route to %s.", what)
}

// contains reports whether an address is in one of the prefixes, but not of the
// internet as a whole.
func contains(ps []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Bits() > 0 && p.Contains(a) })
}
