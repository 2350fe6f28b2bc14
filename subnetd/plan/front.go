package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
)

// Ports of the web.
const (
	PortHTTP  = 80
	PortHTTPS = 443
)

// Services are the names below the name of this router that lead to itself: its page,
// the gateway by which the home sends files, its certificate authority.
func Services() [3]string { return [3]string{"page", "drop", "ca"} }

// Served is a device whose web server is asked by this router for whoever calls it.
type Served struct {
	config.Served
	Names []string         // fully qualified, the best first, in lower case without dots at their ends
	Maps  []host.DeviceMap // by family: where it is called, and where it is asked
	Doors []netip.AddrPort // all that is brought to us for it
}

// doors are where it is called: at the port of https, at that of http, to be sent to the
// other, and at its own, as far as that is open to the mesh: who asks it there shall be
// told to it, too.
func (s *Served) doors(only func(netip.Addr, uint16) bool) (doors, behind []netip.AddrPort) {
	for _, m := range s.Maps {
		ports := []uint16{PortHTTP, PortHTTPS}
		if only(m.LAN, s.Port) {
			ports = append(ports, s.Port)
			behind = append(behind, netip.AddrPortFrom(m.LAN, s.Port))
		} else {
			ports = slices.DeleteFunc(ports, func(p uint16) bool { return p == s.Port })
		}
		for _, p := range ports {
			doors = append(doors, netip.AddrPortFrom(m.Mesh, p))
		}
	}
	return doors, behind
}

// front says what is brought to the listener of this router.
func (p *Plan) front(in Inputs, own []netip.Addr) {
	if in.Front == 0 {
		return
	}
	f := host.Front{Port: in.Front}
	for _, a := range own {
		f.Doors = append(f.Doors, netip.AddrPortFrom(a, PortHTTP), netip.AddrPortFrom(a, PortHTTPS))
	}
	only := limitsOf(in)
	open := func(a netip.Addr, port uint16) bool {
		return only[a] == nil || slices.ContainsFunc(only[a], func(p config.Ports) bool {
			return p.Proto == "tcp" && p.First <= port && port <= p.Last
		})
	}
	for _, w := range in.Config.LAN.Web {
		s := Served{Served: w}
		i := slices.IndexFunc(in.Devices, func(d mesh.Device) bool { return d.Name == w.Name })
		if i >= 0 {
			s.Names = namesOfDevice(in.Devices[i], in.Netmap.Self.Name)
			s.Maps = slices.DeleteFunc(slices.Clone(p.Host.Firewall.Devices), func(m host.DeviceMap) bool { return !slices.Contains(in.Devices[i].LAN, m.LAN) })
		}
		if len(s.Maps) == 0 {
			p.notServed(w.Name, i >= 0, in.Config.LAN.Expose)
			continue
		}
		doors, behind := s.doors(open)
		f.Doors, f.Behind = append(f.Doors, doors...), append(f.Behind, behind...)
		s.Doors = slices.Concat(doors, behind)
		p.Web = append(p.Web, s)
	}
	p.Host.Firewall.Front = host.Front{Port: f.Port, Doors: sortPorts(f.Doors), Behind: sortPorts(f.Behind)}
	for _, d := range in.Devices {
		if services := Services(); slices.Contains(services[:], d.Name) {
			p.problem("device-name", fmt.Sprintf("The device %s has the name of a service of this router: by that name the service answers.", d.Name),
				"Give the device another name: `subnetd devices name`.")
		}
	}
}

// namesOfDevice are those by which it is called, in the mesh and at home.
func namesOfDevice(d mesh.Device, self string) []string {
	long := folded(d.Name + "." + self)
	return slices.Compact([]string{cmp.Or(strings.ToLower(d.Full), long), long})
}

// notServed tells of a device that cannot be served.
func (p *Plan) notServed(name string, known bool, e config.Expose) {
	switch {
	case e == config.ExposeNone: // the owner has shut all
	case known:
		p.problem("web-address", fmt.Sprintf("The web pages of %s are not served: it has no address of its own in the mesh yet.", name),
			"Turn the device on; a coordinator other than subnetd gives devices no addresses.")
	default:
		p.problem("web-device", fmt.Sprintf("lan.web speaks of %s, which is the name of no device that the mesh may reach.", name),
			fmt.Sprintf("Run `subnetd devices expose DEVICE --as %s`, or `subnetd devices web %s off`.", name, name))
	}
}

func sortPorts(all []netip.AddrPort) []netip.AddrPort {
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}
