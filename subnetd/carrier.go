package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/host/apply"
	"subnetd/subnetd/host/firewall"
	"subnetd/subnetd/host/tunnel"
	"subnetd/subnetd/state"
	"subnetd/subnetd/underlay"

	"tailscale.com/types/key"
)

// carrier is the engine that carries packets: WireGuard in the kernel or in this
// process.
type carrier interface {
	apply.Hand[host.Tunnel]
	// Kick starts a handshake over that led nowhere, as there is a new path.
	Kick(key.NodePublic)
	Stats() map[key.NodePublic]tunnel.Stat
	Close() error
}

// choice is which engine it has become.
type choice struct {
	engine string // kernel | userspace | none
	why    string
	share  host.PortShare // of the kernel's
}

// openCarrier opens the engine that the owner wants, and the underlay it needs.
// Without a wish it is the kernel's, if that works here.
func (d *daemon) openCarrier(id *state.Identity, fw *firewall.Firewall) (choice, error) {
	wish := d.cfg.Tunnel.Engine
	if wish == "userspace" {
		return choice{engine: wish, why: "tunnel.engine says so"}, d.openUserspace(id)
	}
	share, why := d.openKernel(id, fw)
	if why == nil {
		return choice{engine: "kernel", share: share}, nil
	}
	if wish == "auto" {
		d.log.Warn("packets are carried in this process, which is slower", "why", why)
		return choice{engine: "userspace", why: why.Error()}, d.openUserspace(id)
	}
	d.log.Error("no packets are carried, since tunnel.engine asks for the kernel", "why", why)
	err := d.openUserspace(id)
	d.carrier = missing{why}
	return choice{engine: "none", why: why.Error()}, err
}

// openUserspace is for machines whose kernel has no WireGuard.
func (d *daemon) openUserspace(id *state.Identity) error {
	if err := tunnel.RemoveKernel(host.DefaultInterface); err != nil {
		d.log.Warn("the kernel's interface stays", "err", err)
	}
	c := d.underlayConfig(id)
	c.Port = cmp.Or(d.cfg.Tunnel.Port, id.Port)
	u, err := underlay.New(c)
	if err != nil && d.cfg.Tunnel.Port == 0 { // the one we have had may by now be somebody else's
		d.log.Warn("another UDP port is used this time", "err", err)
		c.Port = 0
		u, err = underlay.New(c)
	}
	if err != nil {
		return err
	}
	d.under, d.carrier = u, tunnel.NewUserspaces(d.logger("tunnel"), u)
	return nil
}

// openKernel leaves data packets to the kernel. It succeeds only where all that
// this takes has been seen to work: the interface, and nftables bringing us what
// is ours of its port.
func (d *daemon) openKernel(id *state.Identity, fw *firewall.Firewall) (host.PortShare, error) {
	left, err := tunnel.Find(host.DefaultInterface)
	if err != nil {
		return host.PortShare{}, err
	}
	port, err := d.kernelPort(id, left.Port)
	if err != nil {
		return host.PortShare{}, err
	}
	var k *tunnel.Kernels
	exits := newDoors(d.logger("doors"), port, fw.SetExits, left)
	c := d.underlayConfig(id)
	c.Port, c.Public, c.Conduit, c.Adopted = id.Inner, port, id.Conduit, left.Direct
	c.OnUse = func(peer key.NodePublic, to netip.AddrPort) { k.Pin(peer, to) }
	c.OnActive = func() { k.Look() }
	c.OnDoor = exits.look
	u, err := underlay.New(c)
	if err != nil {
		c.Port = 0
		if u, err = underlay.New(c); err != nil {
			return host.PortShare{}, err
		}
	}
	share := host.PortShare{Outer: port, Inner: u.Inner()}
	if err := shares(u, fw, share, exits, left.Port == port); err != nil {
		none := context.Background()
		return host.PortShare{}, errors.Join(err, u.Close(), fw.SetShare(none, host.PortShare{}), fw.SetExits(none, 0, nil))
	}
	k = tunnel.NewKernels(d.logger("tunnel"), port, host.Mark, exits)
	k.Adopt(left)
	d.under, d.carrier = u, k
	d.tasks = append(d.tasks, k, exits)
	d.keepPorts(id)
	return share, nil
}

// shares has nftables share the port, and sees whether it does. A machine that is busy
// is tried again; where it has worked before, as there is an interface of ours, for
// longer: to give up takes away what carries packets meanwhile. A router that boots may
// take seconds for the first transaction, and would be slow from then on if that were the end.
func shares(u *underlay.Underlay, fw *firewall.Firewall, s host.PortShare, exits *doors, worked bool) error {
	const limit = 30 * time.Second
	tries := 2
	if worked {
		tries = 20
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := errors.Join(fw.SetShare(ctx, s), exits.open(ctx, u))
	if err != nil {
		return err
	}
	for range tries {
		if err = u.SelfTest(ctx); err == nil {
			return nil
		}
	}
	return err
}

// kernelPort is the port for the kernel's WireGuard: the one that an interface of
// ours has already, the owner's, or the one of before unless it is taken.
func (d *daemon) kernelPort(id *state.Identity, ours uint16) (uint16, error) {
	port := cmp.Or(d.cfg.Tunnel.Port, id.Port)
	if port == ours {
		return port, nil
	}
	err := free(port)
	if err == nil || d.cfg.Tunnel.Port != 0 {
		return port, err
	}
	d.log.Warn("another UDP port is used this time", "err", err)
	port = randomPort()
	return port, free(port)
}

// free reports whether nobody listens on the UDP port, in either family.
func free(port uint16) error {
	for _, network := range []string{"udp4", "udp6"} {
		conn, err := net.ListenUDP(network, &net.UDPAddr{Port: int(port)})
		if err == nil {
			conn.Close()
		} else if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("UDP port %d is taken: %w", port, err)
		}
	}
	return nil
}

// keepPorts keeps those that the kernel's state depends on, so that the next
// start finds it fitting. Without them it sets right what differs.
func (d *daemon) keepPorts(id *state.Identity) {
	inner, conduit := d.under.Inner(), d.under.ConduitPort()
	if id.Inner == inner && id.Conduit == conduit {
		return
	}
	id.Inner, id.Conduit = inner, conduit
	if err := d.dir.Save("identity", *id); err != nil {
		d.log.Warn("this node's inner ports are not kept", "err", err)
	}
}

// missing is an engine that cannot be.
type missing struct{ why error }

func (m missing) Set(_ context.Context, want host.Tunnel) error {
	if want.Name == "" {
		return nil
	}
	return m.why
}

func (missing) Kick(key.NodePublic)                   {}
func (missing) Stats() map[key.NodePublic]tunnel.Stat { return nil }
func (missing) Close() error                          { return nil }
