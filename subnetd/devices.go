package main

import (
	"context"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"subnetd/subnetd/config"
	"subnetd/subnetd/control"
	"subnetd/subnetd/coord"
	"subnetd/subnetd/host"
	"subnetd/subnetd/host/watch"
	"subnetd/subnetd/lan"
	"subnetd/subnetd/lan/sense"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/status"
)

const (
	// devicesFile keeps the devices of lan.devices with their addresses, so that a
	// start need not wait for the coordinator to go on translating them; thingsFile
	// what is known of everything on the LAN.
	devicesFile = "devices"
	thingsFile  = "things"

	wakePause = time.Minute      // between two magic packets for one device
	wakeFor   = 10 * time.Second // after a flow of the mesh to it began; the kernel asks for three
)

// devices joins who is on the LAN with what the owner wants of them:
//
//	lan/sense: things ─┐
//	configuration  ────┼─> plan.Resolve ─> engine ─> firewall, names
//	coordinator  ──────┘        └─> home, or the member's word: addresses in the mesh
//
// News are levels: whoever has some calls look.
type devices struct {
	d       *daemon
	log     *slog.Logger
	sense   *sense.Sense
	reached func(context.Context) ([]host.Reach, bool, error)
	now     func() time.Time

	mu    sync.Mutex           // guards all below, and has the engine get the lists in order
	told  []lan.Thing          // by changed
	list  []mesh.Device        // as the engine has it
	asked bool                 // another coordinator gives addresses to them
	woken map[string]time.Time // by MAC
}

func newDevices(d *daemon, reached func(context.Context) ([]host.Reach, bool, error)) *devices {
	x := &devices{d: d, log: d.logger("devices"), reached: reached, now: d.clock.now, woken: map[string]time.Time{}}
	if _, err := d.dir.Load(devicesFile, &x.list); err != nil {
		x.log.Warn("the devices' addresses are asked for anew", "err", err)
	}
	if d.control() != homeControl {
		withdraw(x.list)
	}
	var known lan.Memory
	if _, err := d.dir.Load(thingsFile, &known); err != nil {
		x.log.Warn("what was on the LAN is learned anew", "err", err)
	}
	x.sense = sense.New(sense.Config{
		Known: known, Names: spokenOf(d.cfg), Save: func(m lan.Memory) error { return d.dir.Save(thingsFile, m) },
		OnChange: x.changed, OnSilent: x.silent, Now: d.clock.now, Log: d.logger("lan"),
	})
	return x
}

// restore puts the devices to work before anything was heard of them: the kernel knows
// where they are.
func (x *devices) restore() {
	at := addressesOf(x.sense.Things())
	all, err := watch.Neighbours()
	if err != nil {
		x.log.Warn("the devices are looked for anew", "err", err)
	}
	for _, n := range all {
		if !slices.Contains(at[n.MAC], n.Addr) {
			at[n.MAC] = append(at[n.MAC], n.Addr)
		}
	}
	c, f := x.d.config(), x.d.facts()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.set(plan.Resolve(c.LAN, at, plan.LANPrefixes(c.LAN, f), ownAddrs(f), x.list))
	x.d.engine.SetDevices(x.list) // also where that was no news to us
}

// withdraw takes the mesh addresses away, in a list that nobody else has.
func withdraw(list []mesh.Device) {
	for i := range list {
		list[i].Mesh, list[i].Full = nil, ""
	}
}

// spokenOf is the MACs that the owner speaks of, and what he calls them.
func spokenOf(c config.Config) map[string]string {
	out := map[string]string{}
	for _, mac := range c.Exit.MACs() {
		out[mac] = c.LAN.Called(mac)
	}
	for _, d := range c.LAN.Devices {
		if d.MAC != "" {
			out[d.MAC] = c.LAN.Called(d.MAC)
		}
	}
	for _, n := range c.LAN.Names {
		out[n.MAC] = n.Name
	}
	return out
}

// configured takes the wishes now in force.
func (x *devices) configured() {
	x.sense.SetNames(spokenOf(x.d.config()))
	x.look()
}

// changed takes who is on the LAN now. Where one that is followed has come to another
// address too, the kernel is asked which of them still answer.
func (x *devices) changed(things []lan.Thing) {
	x.mu.Lock()
	came := moved(x.list, addressesOf(x.told), addressesOf(things))
	x.told = things
	x.mu.Unlock()
	x.look()
	if came {
		x.sense.Look()
	}
	x.d.engine.Refresh() // whoever shows them asks again
}

// moved reports whether a device of the list, with addresses before, has another now.
func moved(list []mesh.Device, was, is map[string][]netip.Addr) bool {
	return slices.ContainsFunc(list, func(d mesh.Device) bool {
		return d.MAC != "" && len(was[d.MAC]) > 0 &&
			slices.ContainsFunc(is[d.MAC], func(a netip.Addr) bool { return !slices.Contains(was[d.MAC], a) })
	})
}

// look tells the engine and the coordinator where the devices are now.
func (x *devices) look() {
	x.mu.Lock()
	defer x.mu.Unlock()
	c, f := x.d.config(), x.d.facts()
	x.set(plan.Resolve(c.LAN, addressesOf(x.sense.Things()), plan.LANPrefixes(c.LAN, f), ownAddrs(f), x.list))
}

// set makes next the list, if it is another; x.mu is held.
func (x *devices) set(next []mesh.Device) {
	if reflect.DeepEqual(next, x.list) {
		return
	}
	x.list = next
	x.d.engine.SetDevices(next)
	x.ask()
}

// ask has the coordinator know of the devices, if it is one of ours; x.mu is held.
func (x *devices) ask() {
	x.d.home.look()
	var want []control.Device // nil: nothing is said
	if x.asked {
		want = []control.Device{}
		for _, w := range wanted(x.list) {
			want = append(want, control.Device{Name: w.Name, MAC: w.ID, V6: w.V6})
		}
	}
	x.d.member.change(func(h *control.Host) { h.Devices = want })
}

// heard takes what another coordinator says that the devices have; no netmap, that it
// gives them nothing.
func (x *devices) heard(nm *mesh.Netmap) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.d.control() == homeControl { // it is told, and tells, by home
		x.asked = false
		return
	}
	next := slices.Clone(x.list)
	withdraw(next)
	asked := x.asked
	if x.asked = nm != nil && nm.Devices != nil; x.asked {
		for i := range next {
			d := &next[i]
			j := slices.IndexFunc(nm.Devices, func(g mesh.Device) bool { return g.MAC == d.MAC && (d.MAC != "" || g.Name == d.Name) })
			if j >= 0 {
				d.Mesh, d.Full = nm.Devices[j].Mesh, nm.Devices[j].Full
			}
		}
	}
	x.set(next)
	if asked != x.asked {
		x.ask()
	}
}

// addressesOf is the addresses of each MAC, the best first: those that answer or, of a
// family of which none does, those where it was.
func addressesOf(things []lan.Thing) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for _, t := range things {
		for _, a := range t.Addresses {
			better := slices.ContainsFunc(t.Addresses, func(b lan.Address) bool {
				return !b.Silent && b.Addr.Is4() == a.Addr.Is4() && !b.Addr.IsLinkLocalUnicast()
			})
			if !a.Addr.IsLinkLocalUnicast() && !(a.Silent && better) {
				out[t.MAC] = append(out[t.MAC], a.Addr)
			}
		}
	}
	return out
}

// ownAddrs is every address of this machine.
func ownAddrs(f host.Facts) (out []netip.Addr) {
	for _, i := range f.Interfaces {
		for _, a := range i.Addrs {
			out = append(out, a.Addr())
		}
	}
	return out
}

// current is the devices as the engine has them.
func (x *devices) current() []mesh.Device {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.list
}

// wanted is what a coordinator in this router is to give the devices. One that is off
// keeps its families: its addresses come back with it.
func wanted(list []mesh.Device) []coord.Device {
	var out []coord.Device
	for _, d := range list {
		v6 := slices.ContainsFunc(d.LAN, netip.Addr.Is6) || len(d.LAN) == 0 && slices.ContainsFunc(d.Mesh, netip.Addr.Is6)
		out = append(out, coord.Device{Name: d.Name, V6: v6, ID: d.MAC})
	}
	return out
}

// given takes what the coordinator gave to the devices it was asked for, and keeps it
// for the next start.
func (x *devices) given(want []coord.Device, got []status.HomeDevice) {
	x.mu.Lock()
	defer x.mu.Unlock()
	next := slices.Clone(x.list)
	for i := range next {
		d := &next[i]
		if j := slices.IndexFunc(want, func(w coord.Device) bool { return w.ID == d.MAC && w.Name == d.Name }); j >= 0 && j < len(got) {
			d.Mesh, d.Full = got[j].Addresses, got[j].Name
		}
	}
	x.set(next)
	if err := x.d.dir.Save(devicesFile, next); err != nil {
		x.log.Warn("the devices' addresses are not kept for the next start", "err", err)
	}
}

// forget takes back what the coordinator in this router gave: it is none any more.
func (x *devices) forget() {
	x.mu.Lock()
	defer x.mu.Unlock()
	next := slices.Clone(x.list)
	withdraw(next)
	x.set(next)
}

// silent hears that nobody answers at an address. If that is of a device that the owner
// wants woken, and the mesh has just sent to it, it is.
func (x *devices) silent(at netip.Addr, iface string) {
	mac := x.sleeper(at)
	if mac == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if !x.d.front.Asked(at, wakeFor) { // for somebody who calls its web pages
		all, _, err := x.reached(ctx)
		if err != nil {
			x.log.Warn("a device may sleep on", "mac", mac, "err", err)
			return
		}
		if !slices.ContainsFunc(all, func(r host.Reach) bool { return r.To == at && r.Ago <= wakeFor }) {
			return // somebody at home asked, or we did
		}
	}
	x.mu.Lock()
	x.woken[mac] = x.now()
	x.mu.Unlock()
	x.log.Info("the mesh wakes a device", "mac", mac, "address", at)
	if err := x.sense.Wake(ctx, mac, iface); err != nil {
		x.log.Warn("a device cannot be woken", "mac", mac, "err", err)
	}
}

// sleeper is the MAC of the device at that address, if it may be woken now.
func (x *devices) sleeper(at netip.Addr) string {
	c := x.d.config().LAN
	x.mu.Lock()
	defer x.mu.Unlock()
	i := slices.IndexFunc(x.list, func(d mesh.Device) bool { return d.MAC != "" && slices.Contains(d.LAN, at) })
	if i < 0 {
		return ""
	}
	mac := x.list[i].MAC
	if !slices.ContainsFunc(c.Devices, func(d config.Device) bool { return d.MAC == mac && d.Wake }) {
		return ""
	}
	if last, was := x.woken[mac]; was && x.now().Sub(last) < wakePause {
		return ""
	}
	return mac
}
