package main

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"subnetd/subnetd/coord"
	"subnetd/subnetd/front"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/state"
)

// newFront gives the listener for the web of this router and of the devices it serves.
// Other parts mount what they have there.
func (d *daemon) newFront() *front.Server {
	if d.member.id.Front == 0 {
		d.setFrontPort(randomPort())
	}
	d.engine.SetFront(d.member.id.Front)
	return front.New(front.Config{
		Page: d.page.Behind(func(r *http.Request) netip.Addr {
			from, _, _ := front.From(r)
			return from
		}),
		CA: d.issuer.site, Drop: d.dropGateway(), Leaf: d.issuer.ca.Leaf, Who: d.caller, Now: d.clock.now, Log: d.logger("front"),
		Taken: func(uint16) {
			port := randomPort()
			d.setFrontPort(port)
			d.engine.SetFront(port)
		},
		Trouble: func(text string) {
			if text != "" {
				d.logger("front").Warn(text)
			}
			d.engine.SetProblem("certificate", text, "`subnetd cert` says how the home's certificates are.")
		},
	})
}

func (d *daemon) setFrontPort(port uint16) {
	d.member.keepPort("the web", func(id *state.Identity) { id.Front = port })
}

// tellFront has the listener serve what the plan says.
func (d *daemon) tellFront(p plan.Plan) {
	d.front.Set(frontSettings(p, d.facts(), d.engine.Netmap()))
}

// frontSettings is what is served, and to whom: the home and this machine always.
func frontSettings(p plan.Plan, f host.Facts, nm *mesh.Netmap) front.Settings {
	fw := &p.Host.Firewall
	if fw.Front.Port == 0 || nm == nil {
		return front.Settings{}
	}
	s := front.Settings{Port: fw.Front.Port, Own: fw.Own, Rules: fw.Rules}
	for _, a := range fw.Own {
		s.Home = append(s.Home, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, i := range f.Interfaces {
		for _, a := range i.Addrs {
			if slices.Contains(p.LANs, i.Name) {
				s.Home = append(s.Home, a.Masked())
			} else {
				s.Home = append(s.Home, netip.PrefixFrom(a.Addr(), a.Addr().BitLen()))
			}
		}
	}
	self, services := strings.ToLower(plainName(nm.Self.Name)), plan.Services()
	s.Names = front.Names{Page: services[0] + "." + self, Drop: services[1] + "." + self, CA: services[2] + "." + self, Self: self}
	for _, w := range p.Web {
		s.Sites = append(s.Sites, front.Site{Names: w.Names, Scheme: w.Scheme, Port: w.Port, Maps: w.Maps, Doors: w.Doors})
	}
	return s
}

func (d *daemon) caller(a netip.Addr) (front.Caller, bool) {
	return callerAt(d.engine.Netmap(), a, d.clock.now())
}

// callerAt is whose device has an address, where that is a person's and nobody else's.
func callerAt(nm *mesh.Netmap, a netip.Addr, now time.Time) (front.Caller, bool) {
	m, ok := memberAt(nm, a, now, false)
	if !ok || m.User == "" {
		return front.Caller{}, false
	}
	c := front.Caller{Login: m.User}
	if i := slices.IndexFunc(nm.Peers, func(n mesh.Node) bool { return n.HasAddr(a) }); i >= 0 {
		p := nm.People[nm.Peers[i].User]
		c.Name, c.Picture = p.Name, p.Picture
	}
	return c, true
}

// serviceRecords are the names of this router's own services, as members find them: at
// its first address of each family.
func serviceRecords(nm *mesh.Netmap) (out []coord.Record) {
	if nm == nil {
		return nil
	}
	for _, s := range plan.Services() {
		for _, p := range nm.Self.Addresses {
			if a := p.Addr(); nm.Self.Own(a) {
				out = append(out, coord.Record{Name: s + "." + strings.ToLower(plainName(nm.Self.Name)), Addr: a})
			}
		}
	}
	return out
}
