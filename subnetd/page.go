package main

import (
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/config"
	"subnetd/subnetd/coord"
	"subnetd/subnetd/host"
	"subnetd/subnetd/host/watch"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/status"
	"subnetd/subnetd/web"
	"subnetd/webui"
)

// newPage gives the page, which is nowhere before the first plan.
func (d *daemon) newPage() (*web.Server, error) {
	return web.New(web.Config{
		Funcs: d.funcs(), Files: webui.Files(), Store: d.dir, Member: d.memberAt, Rest: d.pageRest, Traffic: d.traffic, Ring: d.ring,
		Given: d.service.web(), Login: systemLogin(loginProgram),
		Version: version, Now: time.Now, Random: rand.Reader, Log: d.logger("page"),
		Trouble: func(text string) {
			if text != "" {
				d.logger("page").Warn(text)
			}
			d.engine.SetProblem("page", text, "Stop the other program, or set web.listen to another port.")
		},
	})
}

// pageRest is what the page shows beside the snapshot.
func (d *daemon) pageRest() web.Rest {
	devices := d.devices.all()
	r := web.Rest{Devices: devices.Devices, House: status.House{Expose: devices.Expose, Trial: d.trial.under(), Drop: d.dropNews.Load()}}
	if h, err := d.home.calls(); err == nil {
		all := h.Nodes()
		r.Nodes, r.House.Home, r.House.Pending = all.Nodes, true, all.Pending
	}
	return r
}

// traffic is what the tunnels' interfaces have carried, as the kernel counts it.
func (d *daemon) traffic() map[string]status.TrafficPoint {
	t := d.engine.Plan().Host.Tunnel
	names := []string{t.Name}
	for _, x := range t.Exits {
		names = append(names, x.Name)
	}
	counters, err := watch.Counters(names)
	if err != nil {
		d.logger("page").Debug("traffic", "err", err)
	}
	all := make(map[string]status.TrafficPoint, len(counters))
	for name, c := range counters {
		all[name] = status.TrafficPoint{Rx: c.Rx, Tx: c.Tx}
	}
	return all
}

func (d *daemon) memberAt(a netip.Addr) (web.Member, bool) {
	return memberAt(d.engine.Netmap(), a, d.clock.now(), d.control() == homeControl)
}

// memberAt says which node of the mesh has an address. Whoever may not open flows to us
// is none; what is tagged is nobody's; and behind a router, another home's for one, may be
// anybody. home: the coordinator is here, and so is the owner of all.
func memberAt(nm *mesh.Netmap, a netip.Addr, now time.Time, home bool) (web.Member, bool) {
	if nm == nil {
		return web.Member{}, false
	}
	i := slices.IndexFunc(nm.Peers, func(n mesh.Node) bool { return n.HasAddr(a) })
	if i < 0 || nm.Peers[i].Jailed || nm.Peers[i].ExpiredAt(now.Add(nm.ClockSkew)) {
		return web.Member{}, false
	}
	n := &nm.Peers[i]
	m := web.Member{Name: strings.TrimSuffix(n.Name, ".")}
	m.Router = n.Router || slices.ContainsFunc(n.AllowedIPs, func(p netip.Prefix) bool { return !n.HasAddr(p.Addr()) })
	if len(n.Tags) == 0 && !m.Router {
		m.User = strings.TrimSuffix(nm.Users[n.User], "@")
		m.Owner = len(nm.Self.Tags) == 0 && n.User == nm.Self.User || home && m.User == coord.OwnerName
	}
	return m, true
}

// pageSettings is where the page is: on the LANs and in the mesh, by the names that
// this router has.
func pageSettings(p plan.Plan, f host.Facts, c config.Config, nm *mesh.Netmap) web.Settings {
	at, port, err := net.SplitHostPort(c.Web.Listen)
	n, err2 := strconv.ParseUint(port, 10, 16)
	if err != nil || err2 != nil {
		return web.Settings{} // it was checked with the file
	}
	s := web.Settings{Port: uint16(n), Mesh: p.Host.Firewall.Own}
	s.Only, _ = netip.ParseAddr(at)
	for _, i := range f.Interfaces {
		if slices.Contains(p.LANs, i.Name) {
			s.Home = append(s.Home, i.Addrs...)
		}
	}
	names := []string{f.Hostname, c.Mesh.Hostname}
	if nm != nil {
		full := strings.TrimSuffix(nm.Self.Name, ".")
		first, _, _ := strings.Cut(full, ".")
		names = append(names, full, first, plan.Services()[0]+"."+full)
	}
	for _, name := range names {
		name = strings.ToLower(name)
		if name == "" || slices.Contains(s.Names, name) {
			continue
		}
		s.Names = append(s.Names, name)
		if !strings.Contains(name, ".") {
			s.Names = append(s.Names, name+".lan", name+".local", name+".home.arpa")
		}
	}
	return s
}

// tellPage has the page be where the plan says.
func (d *daemon) tellPage(p plan.Plan) {
	d.page.Set(pageSettings(p, d.facts(), d.config(), d.engine.Netmap()))
}

// pageCalls is what the page may ask beyond the command line.
func (d *daemon) pageCalls() api.Page {
	return api.Page{
		Settings: d.settings, Change: d.changeSettings, Confirm: d.confirmTrial, Undo: d.undoTrial,
		Diagnose: d.diagnose, Backup: d.backup, Restore: d.restoreBackup,
		SetPassword: func(ctx context.Context, password string) error { return d.page.SetPassword(ctx, password) },
	}
}

// settings is what of the configuration the page shows.
func (d *daemon) settings() status.Settings {
	c := d.config()
	rows := []string{}
	for _, r := range c.Exit.All() {
		rows = append(rows, r.String())
	}
	return status.Settings{
		Control: c.Mesh.Control, Hostname: c.Mesh.Hostname,
		Interfaces: append([]string{}, c.LAN.Interfaces...), Found: append([]string{}, d.engine.Plan().LANs...),
		Expose: string(c.LAN.Expose), SNAT: c.LAN.SNAT, Offer: c.Exit.Offer, Rows: rows, URL: c.Home.URL, Listen: c.Web.Listen,
	}
}
