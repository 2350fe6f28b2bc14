package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"subnetd/subnetd/api"
	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
	"subnetd/subnetd/host/watch"
	"subnetd/subnetd/plan"
	"subnetd/subnetd/status"
)

// exitUse writes into the configuration that devices use the internet by exits, and
// returns when they do.
func (d *daemon) exitUse(ctx context.Context, r status.ExitUse) (status.Exits, error) {
	exits, direct, err := config.ParseExits(strings.Join(r.Exits, ","))
	if err != nil {
		return status.Exits{}, api.BadRequest(fmt.Errorf("%q %w", strings.Join(r.Exits, ","), err))
	}
	if nm := d.engine.Netmap(); nm != nil {
		if err := plan.RefuseExits(nm, exits, d.clock.now()); err != nil {
			return status.Exits{}, api.BadRequest(err)
		}
	}
	sources, err := d.sources(r.Devices)
	if err != nil {
		return status.Exits{}, api.BadRequest(err)
	}
	return d.changeExit(ctx, func(e config.Exit) (config.Exit, error) { return e.Using(sources, exits, direct) })
}

func (d *daemon) exitOff(ctx context.Context, r status.ExitOff) (status.Exits, error) {
	if len(r.Devices) == 0 {
		return d.changeExit(ctx, func(e config.Exit) (config.Exit, error) {
			e.Rows, e.Use, e.Devices = nil, "", nil
			return e, nil
		})
	}
	sources, err := d.sources(r.Devices)
	if err != nil {
		return status.Exits{}, api.BadRequest(err)
	}
	return d.changeExit(ctx, func(e config.Exit) (config.Exit, error) { return e.Off(sources) })
}

// approvalWait is how long the answer to `exit offer on` waits for the coordinator,
// which in this router needs milliseconds.
const approvalWait = 2 * time.Second

func (d *daemon) exitOffer(ctx context.Context, r status.ExitOffer) (status.Exits, error) {
	x, err := d.changeExit(ctx, func(e config.Exit) (config.Exit, error) {
		e.Offer = r.On
		return e, nil
	})
	if err != nil || !r.On || d.engine.Netmap() == nil {
		return x, err
	}
	ctx, cancel := context.WithTimeout(ctx, approvalWait)
	defer cancel()
	for s := range d.engine.Watch(ctx) {
		if x = s.Exits; x.Approved {
			break
		}
	}
	return x, nil
}

// changeExit changes the section [exit] of the file, and puts it in force.
func (d *daemon) changeExit(ctx context.Context, change func(config.Exit) (config.Exit, error)) (status.Exits, error) {
	if err := d.writeExit(change); err != nil {
		return status.Exits{}, err
	}
	err := d.engine.Settle(ctx)
	d.exits.settle(ctx) // one that is offline is not shown as in use
	return d.engine.Status().Exits, errors.Join(err, d.engine.Settle(ctx))
}

func (d *daemon) writeExit(change func(config.Exit) (config.Exit, error)) error {
	d.wishes.Lock()
	defer d.wishes.Unlock()
	file, err := config.Load(d.opts.Config) // its owner may be editing it
	if err != nil {
		return err
	}
	next, err := change(file.Exit)
	if err != nil {
		return api.BadRequest(err)
	}
	if err := d.editConfig("exit", file.Exit.Changes(next)); err != nil {
		return err
	}
	c := d.config()
	c.Exit = next
	d.adopt(c)
	return nil
}

// sources understands what devices are called: none is the whole home.
func (d *daemon) sources(devices []string) (config.Sources, error) {
	if len(devices) == 0 {
		return config.Sources{LAN: true, Router: true}, nil
	}
	var words []string
	for _, name := range devices {
		w, err := d.source(name)
		if err != nil {
			return config.Sources{}, err
		}
		if !slices.Contains(words, w) {
			words = append(words, w)
		}
	}
	return config.ParseSources(words)
}

// source is the word of a row that a device's name stands for.
func (d *daemon) source(name string) (string, error) {
	lans := d.engine.Plan().LANs
	if name == "lan" || name == "router" || slices.Contains(lans, name) {
		return name, nil
	}
	if s, err := config.ParseSources([]string{name}); err == nil && len(s.MACs) > 0 {
		return s.MACs[0], nil
	}
	if mac := d.macOf(name); mac != "" {
		return mac, nil
	}
	addrs := d.addressesOf(name)
	if len(addrs) == 0 {
		return "", fmt.Errorf("%q is no MAC address, no address, no device at home, and no interface of the LAN (%s), not lan and not router",
			name, cmp.Or(strings.Join(lans, ", "), "there is none"))
	}
	n, err := neighbourAt(addrs)
	if err != nil {
		return "", err
	}
	if n == nil {
		return "", fmt.Errorf("the MAC address of %s is not known, as nothing was heard of it lately: turn it on, or tell its MAC address", name)
	}
	return n.MAC, nil
}

// macOf is the MAC address of a thing at home by its name or address; "": not known.
func (d *daemon) macOf(name string) string {
	dev, err := d.devices.shown().find(name)
	if err != nil {
		return ""
	}
	return dev.MAC
}

// addressesOf gives the addresses that a name stands for.
func (d *daemon) addressesOf(name string) []netip.Addr {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a.Unmap()}
	}
	if dev, err := d.devices.shown().find(name); err == nil {
		return dev.Addresses
	}
	return nil
}

// neighbourAt gives the device that has one of the addresses; nil: none is known.
func neighbourAt(addrs []netip.Addr) (*host.Neighbour, error) {
	all, err := watch.Neighbours()
	if err != nil {
		return nil, fmt.Errorf("reading who is on the LAN: %w", err)
	}
	for _, a := range addrs {
		if i := slices.IndexFunc(all, func(n host.Neighbour) bool { return n.Addr == a }); i >= 0 {
			return &all[i], nil
		}
	}
	return nil, nil
}

// exitTest says where the traffic of a device goes.
func (d *daemon) exitTest(_ context.Context, of string) (status.ExitTest, error) {
	all, err := watch.Neighbours()
	if err != nil {
		return status.ExitTest{}, fmt.Errorf("reading who is on the LAN: %w", err)
	}
	p, addrs := d.engine.Plan(), d.addressesOf(of)
	if mac := d.macOf(of); mac != "" && of != "router" && !slices.Contains(p.LANs, of) {
		of = mac
	}
	t, err := plan.Test(p, d.facts(), all, of, addrs)
	if errors.Is(err, plan.ErrNoDevice) {
		err = api.BadRequest(err)
	}
	return t, err
}
