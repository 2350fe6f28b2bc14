package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"subnetd/subnetd/config"
	"subnetd/subnetd/control"
	"subnetd/subnetd/dns"
	"subnetd/subnetd/host"
	hostdns "subnetd/subnetd/host/dns"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/peerapi"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/state"
)

// resolvConf is where the system's resolvers stand.
const resolvConf = "/etc/resolv.conf"

func (d *daemon) newHook() *hostdns.Hand {
	return hostdns.New(hostdns.Config{
		Root: "/", Dir: d.dir, Run: command, Log: d.logger("resolver"),
		Tell: func(text, fix string) { d.engine.SetProblem("resolver", text, fix) },
	})
}

func (d *daemon) newNames() *dns.Server {
	return dns.New(dns.Config{
		ResolvConf: []string{hostdns.Backup(d.opts.State), resolvConf}, Mark: host.Mark, Now: time.Now,
		Random: func() uint16 { return uint16(rand.Uint32()) }, // ChaCha8: nobody guesses it
		Trouble: func(text string) {
			if text != "" {
				d.logger("names").Warn(text)
			}
			d.engine.SetProblem("names", text, "Stop the other program, or set dns.port to another port.")
		},
	})
}

func (d *daemon) newPeerAPI() *peerapi.Server {
	if d.member.id.PeerAPI == 0 {
		d.member.setPeerAPIPort(randomPort())
	}
	d.engine.SetPeerAPI(d.member.id.PeerAPI)
	return peerapi.New(peerapi.Config{Ask: d.names.Ask, Files: d.drop.Receive, Taken: d.peerAPITaken, Log: d.logger("peerapi")})
}

// peerAPITaken moves the peer api to another port; members hear of it.
func (d *daemon) peerAPITaken(uint16) {
	port := randomPort()
	d.member.setPeerAPIPort(port)
	d.engine.SetPeerAPI(port)
}

// tellNames has those who answer members and the home know of a plan.
func (d *daemon) tellNames(p plan.Plan) {
	nm := d.engine.Netmap()
	if nm == nil {
		nm = &mesh.Netmap{}
	}
	fw := &p.Host.Firewall
	answers := answersOf(p, d.facts(), d.config(), nm, d.devices.current())
	d.names.Set(answers)
	d.tellUnusable(answers.Zone)
	d.peers.Set(peersOf(p, nm))
	d.member.change(func(h *control.Host) {
		h.PeerAPI4, h.PeerAPI6 = 0, 0
		for _, a := range fw.Own {
			if a.Is4() {
				h.PeerAPI4 = fw.PeerAPI
			} else {
				h.PeerAPI6 = fw.PeerAPI
			}
		}
	})
}

// tellUnusable says which resolvers of the mesh are not asked.
func (d *daemon) tellUnusable(z *dns.Zone) {
	text := ""
	if z != nil && len(z.Unusable()) > 0 {
		text = fmt.Sprintf("The coordinator names resolvers by URL, which this router does not ask: %q.", z.Unusable()[:min(len(z.Unusable()), 3)])
	}
	d.engine.SetProblem("resolvers", text, "Name resolvers by their addresses on the coordinator.")
}

// peersOf is what members may ask of this node.
func peersOf(p plan.Plan, nm *mesh.Netmap) peerapi.Settings {
	fw := &p.Host.Firewall
	if fw.PeerAPI == 0 {
		return peerapi.Settings{}
	}
	return peerapi.Settings{Port: fw.PeerAPI, Own: fw.Own, Peers: nm.Peers, Exit: fw.Internet, Rules: fw.Rules}
}

// answersOf is what is answered, where and to whom. Who asks by an address of this
// machine is this machine, whichever way it was led to us.
func answersOf(p plan.Plan, f host.Facts, c config.Config, nm *mesh.Netmap, devices []mesh.Device) dns.Settings {
	fw := &p.Host.Firewall
	if fw.Interface == "" {
		return dns.Settings{}
	}
	s := dns.Settings{Mesh: fw.Mesh, Through: fw.Mesh}
	s.Unmarked = slices.ContainsFunc(fw.Sources, func(x host.ExitSource) bool { return x.Router && x.Way >= 0 })
	listen := append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, fw.Own...)
	own := slices.Clone(fw.Own)
	for _, i := range f.Interfaces {
		lan := slices.Contains(p.LANs, i.Name)
		for _, a := range i.Addrs {
			own = append(own, a.Addr())
			if lan && !a.Addr().IsLinkLocalUnicast() {
				listen = append(listen, a.Addr())
				s.Home = append(s.Home, a.Masked())
			}
		}
	}
	for _, a := range own {
		s.Home = append(s.Home, netip.PrefixFrom(a, a.BitLen()))
	}
	for _, a := range listen {
		if at := netip.AddrPortFrom(a, fw.Names); fw.Names != 0 && !slices.Contains(s.Listen, at) {
			s.Listen = append(s.Listen, at)
		}
	}
	names := dns.Names{Netmap: nm, Domains: p.Domains, Translated: fw.Devices, Exposed: fw.Exposed, Own: own}
	if c.LAN.Expose != config.ExposeNone {
		names.Devices = devices
	}
	if fw.Front.Port != 0 {
		services := plan.Services()
		names.Services = services[:]
	}
	for _, w := range p.Web {
		for _, m := range w.Maps {
			names.Served = append(names.Served, m.LAN)
		}
	}
	s.Zone = dns.NewZone(names)
	return s
}

// keepPort keeps a port for the next start.
func (m *member) keepPort(what string, set func(*state.Identity)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	set(&m.id)
	if err := m.d.dir.Save("identity", m.id); err != nil {
		m.d.log.Warn("the port of "+what+" is not kept for the next start", "err", err)
	}
}

func (m *member) setPeerAPIPort(port uint16) {
	m.keepPort("the peer api", func(id *state.Identity) { id.PeerAPI = port })
}
