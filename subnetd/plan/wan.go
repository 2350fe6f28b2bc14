package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
)

// WANAddrs is the router's addresses towards the internet, sorted: those of the
// interfaces with a default route, v4 and v6, also private ones (another router
// may forward to them), but none of a LAN.
func WANAddrs(f host.Facts, lans []string) []netip.Addr {
	var out []netip.Addr
	for _, i := range f.Interfaces {
		if !isWAN(f, i.Name) || isOurs(i.Name) || slices.Contains(lans, i.Name) {
			continue
		}
		for _, p := range i.Addrs {
			a := p.Addr()
			if a.IsGlobalUnicast() && !slices.Contains(out, a) { // private ones are among them
				out = append(out, a)
			}
		}
	}
	return sortAddrs(out)
}

// redirect brings what the world sends to home.url, that is to TCP 80 or 443, to
// the coordinator's own port: stock clients insist on 443 wherever they reconnect
// to a name. Nothing that listens on these ports on a LAN address is displaced.
func (p *Plan) redirect(c config.Config, f host.Facts) host.Redirect {
	if c.Mesh.Control != "home" || c.Home.URL == "" {
		return host.Redirect{}
	}
	only, to := listenOf(c.Home.Listen)
	if to == 0 {
		return host.Redirect{} // no configuration that was checked
	}
	wan := WANAddrs(f, p.LANs)
	if len(wan) == 0 {
		p.problem("home-unreachable",
			fmt.Sprintf("home.url is %s, but this router has no address towards the internet: nobody outside reaches the coordinator.", c.Home.URL),
			fmt.Sprintf("Connect the WAN, or have the router in front forward TCP ports 80 and 443 to port %d of this one.", to))
		return host.Redirect{}
	}
	if only.IsValid() {
		wan = slices.DeleteFunc(wan, func(a netip.Addr) bool { return a != only })
	}
	if len(wan) == 0 {
		p.problem("home-unreachable",
			fmt.Sprintf("home.listen answers on %s only, which is no address towards the internet: nobody outside reaches home.url.", only),
			fmt.Sprintf("Set home.listen to \":%d\".", to))
		return host.Redirect{}
	}
	r := host.Redirect{Addrs: wan, To: to}
	for _, port := range [...]uint16{80, 443} {
		if port != r.To {
			r.Ports = append(r.Ports, port)
		}
	}
	return r
}
