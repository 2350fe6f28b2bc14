package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
	"subnetd/subnetd/lan"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
)

// reachWait is how long the answer to `devices expose` waits for the address in the
// mesh, which a coordinator in this router gives in milliseconds.
const reachWait = 2 * time.Second

func (x *devices) calls() api.Devices {
	return api.Devices{List: x.all, Expose: x.expose, Hide: x.hide, Name: x.name, Mode: x.mode, Web: x.web, Wake: x.wake, Log: x.reaches, Whois: x.whois}
}

// expose writes into the configuration that the mesh may reach a thing, and returns
// when it can.
func (x *devices) expose(ctx context.Context, r status.DeviceExpose) (status.Device, error) {
	s := x.shown()
	d, err := s.find(r.Device)
	if err != nil {
		return d, err
	}
	want := config.Device{MAC: d.MAC, Wake: r.Wake}
	for _, text := range r.Ports {
		p, err := config.ParsePorts(text)
		if err != nil {
			return d, api.BadRequest(err)
		}
		if !slices.Contains(want.Ports, p) {
			want.Ports = append(want.Ports, p)
		}
	}
	switch {
	case s.config.LAN.Expose == config.ExposeNone:
		return d, api.BadRequest(errors.New(`lan.expose is "none", nothing at home is reached: say "chosen" first`))
	case len(want.Ports) > config.MaxPorts:
		return d, api.BadRequest(fmt.Errorf("%d ranges of ports are more than %d", len(want.Ports), config.MaxPorts))
	case r.As != "" && labelOf(r.As) != strings.ToLower(r.As):
		return d, api.BadRequest(fmt.Errorf("%q is no name: letters, digits and hyphens are, at most 60", r.As))
	case d.MAC == "" && r.Wake:
		return d, api.BadRequest(errors.New("the MAC address of that device is not known, by which it would be woken: turn it on first"))
	case d.MAC == "":
		want.Addr = d.Addresses[0]
	}
	err = x.change(ctx, func(l config.LAN) (config.LAN, error) { return exposing(l, want, d, r.As) })
	if err != nil {
		return d, err
	}
	return x.await(ctx, keyOf(d), func(d status.Device) bool {
		return d.Mesh != nil && d.Mesh.Missing == "" && len(d.Mesh.Addresses) >= s.families(d)
	})
}

// families is in how many families a thing has an address of a LAN.
func (s *shown) families(d status.Device) (n int) {
	for _, is4 := range [...]bool{true, false} {
		if slices.ContainsFunc(d.Addresses, func(a netip.Addr) bool { return a.Is4() == is4 && contains(s.lans, a) }) {
			n++
		}
	}
	return n
}

// exposing adds a device under the name that is wished, or that it has with the owner,
// or else that it gives itself, with a number if need be.
func exposing(l config.LAN, want config.Device, d status.Device, as string) (config.LAN, error) {
	want.Name = strings.ToLower(as)
	if want.Name == "" {
		want.Name = l.Called(want.MAC)
	}
	if i := slices.IndexFunc(l.Devices, func(o config.Device) bool { return want.MAC == "" && o.Addr == want.Addr }); want.Name == "" && i >= 0 {
		want.Name = l.Devices[i].Name
	}
	if want.Name != "" || labelOf(d.Name) == "" {
		return l.Exposing(want, d.Addresses)
	}
	for i := 1; ; i++ {
		want.Name = labelOf(d.Name)
		if i > 1 {
			want.Name += "-" + strconv.Itoa(i)
		}
		if next, err := l.Exposing(want, d.Addresses); err == nil || i == 9 {
			return next, err
		}
	}
}

// labelOf makes a DNS label of a name; "": nothing is left of it.
func labelOf(name string) string {
	name, _, _ = strings.Cut(strings.ToLower(name), ".")
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r == ' ', r == '_':
			return '-'
		}
		return -1
	}, name)
	return strings.Trim(name[:min(len(name), 60)], "-")
}

// hide ends that.
func (x *devices) hide(ctx context.Context, r status.DeviceRequest) (status.Device, error) {
	s := x.shown()
	d, err := s.find(r.Device)
	if err != nil {
		return d, err
	}
	err = x.change(ctx, func(l config.LAN) (config.LAN, error) {
		return l.Hiding(d.MAC, d.Addresses).NotServing(s.labelOf(d)), nil
	})
	if err != nil {
		return d, err
	}
	return x.await(ctx, keyOf(d), func(status.Device) bool { return true })
}

// name gives a thing the owner's name.
func (x *devices) name(ctx context.Context, r status.DeviceName) (status.Device, error) {
	s := x.shown()
	d, err := s.find(r.Device)
	if err != nil {
		return d, err
	}
	if d.MAC == "" {
		return d, api.BadRequest(errors.New("the MAC address of that device is not known, by which it would be named: turn it on first"))
	}
	err = x.change(ctx, func(l config.LAN) (config.LAN, error) { return l.Calling(d.MAC, r.Name) })
	if err != nil {
		return d, err
	}
	return x.await(ctx, keyOf(d), func(d status.Device) bool { return d.Mesh == nil || d.Mesh.Missing == "" })
}

// mode says what of the LAN the mesh may reach.
func (x *devices) mode(ctx context.Context, r status.DeviceMode) (status.Devices, error) {
	e := config.Expose(r.Expose)
	if e != config.ExposeAll && e != config.ExposeChosen && e != config.ExposeNone {
		return status.Devices{}, api.BadRequest(fmt.Errorf("%q is none of all, chosen and none", r.Expose))
	}
	err := x.change(ctx, func(l config.LAN) (config.LAN, error) {
		l.Expose = e
		return l, nil
	})
	return x.all(), err
}

// web writes into the configuration that this router serves a device's web pages, or
// not, and returns when that is so.
func (x *devices) web(ctx context.Context, r status.DeviceWebRequest) (status.Device, error) {
	s := x.shown()
	d, err := s.find(r.Device)
	if err != nil {
		return d, err
	}
	label := s.labelOf(d)
	err = x.change(ctx, func(l config.LAN) (config.LAN, error) {
		if r.Target == "" {
			return l.NotServing(label), nil
		}
		if label == "" {
			return l, errors.New("the mesh does not reach that device: expose it first")
		}
		w, err := config.ParseServed(label, r.Target)
		if err != nil {
			return l, err
		}
		return l.Serving(w)
	})
	if err != nil {
		return d, err
	}
	return x.await(ctx, keyOf(d), func(d status.Device) bool {
		return r.Target == "" || d.Mesh != nil && d.Mesh.Web != nil && d.Mesh.Web.URL != ""
	})
}

// labelOf is the name in lan.devices of one that the owner exposed; "": he did not.
func (s *shown) labelOf(d status.Device) string {
	i := slices.IndexFunc(s.list, func(m mesh.Device) bool {
		if m.MAC == "" { // it is exposed by its addresses, whatever else is known of it
			return slices.ContainsFunc(m.LAN, func(a netip.Addr) bool { return slices.Contains(d.Addresses, a) })
		}
		return m.MAC == d.MAC
	})
	if i < 0 {
		return ""
	}
	return s.list[i].Name
}

// wake sends a magic packet to a thing.
func (x *devices) wake(ctx context.Context, r status.DeviceRequest) (status.Device, error) {
	s := x.shown()
	d, err := s.find(r.Device)
	if err != nil {
		return d, err
	}
	if d.MAC == "" {
		return d, api.BadRequest(errors.New("the MAC address of that device is not known, by which it would be woken: turn it on once"))
	}
	return d, x.sense.Wake(ctx, d.MAC, d.Interface)
}

// change changes the section [lan] of the file, and puts it in force.
func (x *devices) change(ctx context.Context, change func(config.LAN) (config.LAN, error)) error {
	if err := x.write(change); err != nil {
		return err
	}
	return x.d.engine.Settle(ctx)
}

func (x *devices) write(change func(config.LAN) (config.LAN, error)) error {
	x.d.wishes.Lock()
	defer x.d.wishes.Unlock()
	file, err := config.Load(x.d.opts.Config) // its owner may be editing it
	if err != nil {
		return err
	}
	next, err := change(file.LAN)
	if err != nil {
		return api.BadRequest(err)
	}
	if err := x.d.editConfig("lan", file.LAN.Changes(next)); err != nil {
		return err
	}
	c := x.d.config()
	c.LAN = next
	x.d.adopt(c)
	return nil
}

// await gives a thing once it is as it shall be, or after a while as it is.
func (x *devices) await(ctx context.Context, who string, done func(status.Device) bool) (d status.Device, err error) {
	ctx, cancel := context.WithTimeout(ctx, reachWait)
	defer cancel()
	for range x.d.engine.Watch(ctx) {
		s := x.shown()
		if d, err = s.find(who); err != nil || done(d) {
			break
		}
	}
	if err == nil {
		err = x.d.engine.Settle(context.WithoutCancel(ctx))
	}
	return d, err
}

// keyOf is how a thing is found again.
func keyOf(d status.Device) string {
	if d.MAC != "" || len(d.Addresses) == 0 {
		return d.MAC
	}
	return d.Addresses[0].String()
}

// find gives the thing of that MAC address, address or name. What a thing calls itself
// counts where nothing is known by that name to the owner or the mesh: anybody may call
// himself anything.
func (s *shown) find(who string) (status.Device, error) {
	at, err := netip.ParseAddr(who)
	if err == nil {
		at = at.Unmap()
	}
	mac := ""
	if m, err := config.ParseSources([]string{who}); err == nil && len(m.MACs) > 0 {
		mac = m.MACs[0]
	}
	name := strings.ToLower(strings.TrimSuffix(who, "."))
	var sure, maybe []status.Device
	for _, d := range s.all().Devices {
		switch {
		case mac != "" && d.MAC == mac, slices.Contains(d.Addresses, at), known(d, name, at):
			sure = append(sure, d)
		case name != "" && name == strings.ToLower(d.Name):
			maybe = append(maybe, d)
		}
	}
	found := sure
	if len(found) == 0 {
		found = maybe
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return status.Device{}, api.BadRequest(fmt.Errorf("%q are %d devices: say the MAC address of the one you mean", who, len(found)))
	case mac != "": // the owner may know what was never seen
		return status.Device{MAC: mac, Addresses: []netip.Addr{}}, nil
	case at.IsValid() && contains(s.lans, at):
		return status.Device{Addresses: []netip.Addr{at}}, nil
	}
	return status.Device{}, fmt.Errorf("%w: %q; `subnetd devices` lists them", api.ErrUnknownDevice, who)
}

// known reports whether the owner or the mesh knows a device by that name or address.
func known(d status.Device, name string, at netip.Addr) bool {
	if d.NameFrom == lan.Owner.String() && name == strings.ToLower(d.Name) {
		return true
	}
	if d.Mesh == nil {
		return false
	}
	first, _, _ := strings.Cut(d.Mesh.Name, ".")
	return name != "" && (name == d.Mesh.Name || name == first) || slices.Contains(d.Mesh.Addresses, at)
}

// reaches is the log: who reached what device.
func (x *devices) reaches(ctx context.Context) (status.DeviceLog, error) {
	all, full, err := x.reached(ctx)
	if err != nil {
		return status.DeviceLog{}, err
	}
	s := x.shown()
	return logOf(all, full, x.d.engine.Netmap(), s.all().Devices, x.now()), nil
}

// logOf gives the kernel's counts names, the newest first.
func logOf(all []host.Reach, full bool, nm *mesh.Netmap, devices []status.Device, now time.Time) status.DeviceLog {
	out := status.DeviceLog{Reached: []status.DeviceReach{}, Full: full}
	for _, r := range all {
		e := status.DeviceReach{Device: r.To.String(), To: r.To, From: r.From, Flows: r.Flows, Last: now.Add(-r.Ago)}
		for _, d := range devices {
			if slices.Contains(d.Addresses, r.To) {
				e.Device = d.Name
				if d.Mesh != nil && d.Mesh.Name != "" {
					e.Device = d.Mesh.Name
				}
				if e.Device == "" {
					e.Device = r.To.String()
				}
			}
		}
		if w, err := whose(nm, r.From); err == nil {
			e.Who, e.User = w.Name, w.User
		}
		out.Reached = append(out.Reached, e)
	}
	sort.Slice(out.Reached, func(i, j int) bool {
		a, b := &out.Reached[i], &out.Reached[j]
		if !a.Last.Equal(b.Last) {
			return a.Last.After(b.Last)
		}
		return a.From.Less(b.From) || a.From == b.From && a.To.Less(b.To)
	})
	return out
}
