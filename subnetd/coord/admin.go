package coord

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"subnetd/subnetd/status"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// Nodes is everybody in the mesh, by name.
func (c *Coordinator) Nodes() []status.HomeNode {
	s, now := c.snap.Load(), c.cfg.Now()
	out := make([]status.HomeNode, 0, len(s.nodes))
	for _, n := range s.nodes {
		out = append(out, s.describe(n, c.cfg.Domain, now))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func (s *snapshot) describe(n *node, domain string, now time.Time) status.HomeNode {
	out := status.HomeNode{
		ID: int64(n.ID), Name: n.Name + "." + domain, User: s.userName(n), Tags: n.Tags, OS: n.OS, Client: n.Client,
		Self: n.Self, Online: n.Online, LastSeen: n.Seen, Created: n.Created, KeyExpiry: n.Expiry, Expired: n.expired(now), Ephemeral: n.Ephemeral,
	}
	for _, p := range n.addrs {
		out.Addresses = append(out.Addresses, p.Addr())
	}
	for _, dev := range n.Devices {
		out.Devices = append(out.Devices, status.HomeDevice{Name: dev.Name + "." + domain, Addresses: dev.addresses()})
	}
	for _, p := range n.Offers {
		out.Routes = append(out.Routes, status.HomeRoute{Prefix: p, Offered: true, Approved: s.approves(n, p), Primary: s.primary[p] == n.ID})
	}
	for _, p := range n.Approved {
		if !slices.Contains(n.Offers, p) {
			out.Routes = append(out.Routes, status.HomeRoute{Prefix: p, Approved: true})
		}
	}
	return out
}

// find gives the node of that name (full or first label), address or ID.
func (s *snapshot) find(who, domain string) (*node, error) {
	name := strings.TrimSuffix(strings.ToLower(who), ".")
	name = strings.TrimSuffix(name, "."+strings.ToLower(domain))
	addr, _ := netip.ParseAddr(who)
	id, _ := strconv.ParseInt(who, 10, 64)
	var found *node
	for _, n := range s.nodes {
		if n.Name == name || int64(n.ID) == id || slices.ContainsFunc(n.addrs, func(p netip.Prefix) bool { return p.Addr() == addr }) {
			if found != nil { // a host may call itself like the number of another
				return nil, badf("%q is the name of one node and the number of another: tell an address of the one you mean", who)
			}
			found = n
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%w: %q; `subnetd nodes` lists them", ErrUnknownNode, who)
	}
	return found, nil
}

// change makes a change of one node that the owner asks for, and describes it after.
func (c *Coordinator) change(ctx context.Context, who string, do func(*draft, *node) error) (out status.HomeNode, err error) {
	var id tailcfg.NodeID
	err = c.update(ctx, func(d *draft) error {
		n, err := d.find(who, c.cfg.Domain)
		if err != nil {
			return err
		}
		id = n.ID
		out = d.describe(n, c.cfg.Domain, d.now) // of one that is removed, this is the last word
		if err := do(d, n); err != nil {
			return err
		}
		d.lasting = true
		return nil
	})
	if s := c.snap.Load(); err == nil && s.nodes[id] != nil {
		out = s.describe(s.nodes[id], c.cfg.Domain, c.cfg.Now())
	}
	return out, err
}

// Rename gives a node another name, which it keeps whatever its host is called.
func (c *Coordinator) Rename(ctx context.Context, who, name string) (status.HomeNode, error) {
	return c.change(ctx, who, func(d *draft, n *node) error {
		name, err := checkLabel(name)
		if err != nil {
			return err
		}
		if d.taken(n.ID)[name] {
			return badf("%q is the name of another node or device", name)
		}
		n = d.edit(n.ID)
		n.Name, n.Named = name, true
		return nil
	})
}

// Expire makes a node's key worthless after a while; it must log in again then.
func (c *Coordinator) Expire(ctx context.Context, who string, in time.Duration) (status.HomeNode, error) {
	if in < 0 {
		return status.HomeNode{}, BadRequest("a key cannot expire in the past")
	}
	return c.change(ctx, who, func(d *draft, n *node) error {
		if n.Self {
			return BadRequest("this is the router itself: its key does not expire")
		}
		d.edit(n.ID).Expiry = d.now.UTC().Add(in).Truncate(time.Millisecond)
		return nil
	})
}

// Remove forgets a node. It hears of it and may ask to be let in again.
func (c *Coordinator) Remove(ctx context.Context, who string) (status.HomeNode, error) {
	return c.change(ctx, who, func(d *draft, n *node) error {
		if n.Self {
			return BadRequest("this is the router itself: it cannot be removed from its own mesh")
		}
		d.remove(n.ID)
		return nil
	})
}

// ApproveRoutes lets a node serve exactly these prefixes, offered now or later.
func (c *Coordinator) ApproveRoutes(ctx context.Context, who string, prefixes []netip.Prefix) (status.HomeNode, error) {
	var next []netip.Prefix
	for _, p := range prefixes {
		if !p.IsValid() || p.Bits() > 0 && (p.Overlaps(pool4) || p.Overlaps(pool6)) {
			return status.HomeNode{}, badf("%v cannot be a route of the mesh", p)
		}
		if p = p.Masked(); !slices.Contains(next, p) {
			next = append(next, p)
		}
	}
	if len(next) > maxOffers {
		return status.HomeNode{}, badf("more than %d routes of one node are not kept", maxOffers)
	}
	return c.change(ctx, who, func(d *draft, n *node) error {
		if n.Self {
			return BadRequest("this is the router itself: what it exposes is set in its configuration, lan.expose")
		}
		d.edit(n.ID).Approved = next
		return nil
	})
}

// Device is a thing behind a node that shall have addresses of its own.
type Device struct {
	Name string
	V6   bool   // an IPv6 address too
	ID   string // what it is known by whatever its name is; "": its name
}

// SetDevices gives the node with that key exactly these devices and tells their
// addresses, in the order asked for. One that stays keeps its addresses: one with the
// ID, or with the name if either of them has no ID.
func (c *Coordinator) SetDevices(ctx context.Context, k key.NodePublic, want []Device) (out []status.HomeDevice, err error) {
	if len(want) > maxDevices {
		return nil, badf("more than %d devices behind one node are not kept", maxDevices)
	}
	err = c.update(ctx, func(d *draft) error {
		n := d.byKey[k]
		if n == nil {
			return errGone
		}
		next, err := d.devicesOf(n, want)
		if err != nil {
			return err
		}
		out = nil
		for _, dev := range next {
			out = append(out, status.HomeDevice{Name: dev.Name + "." + c.cfg.Domain, Addresses: dev.addresses()})
		}
		if slices.Equal(next, n.Devices) {
			return nil
		}
		d.spendDevices(n.Devices, next)
		d.edit(n.ID).Devices = next
		d.lasting = true
		return nil
	})
	return out, err
}

// spendDevices spends what devices had that are gone.
func (d *draft) spendDevices(was, is []device) {
	for _, old := range was {
		if !slices.ContainsFunc(is, func(dev device) bool { return dev.Number == old.Number }) {
			d.spend(old.Number)
		}
	}
}

// devicesOf finds what a node's devices have, or gives them addresses and names that
// are not among those there are. Names are the wanted ones for whom had them first.
func (d *draft) devicesOf(n *node, want []Device) ([]device, error) {
	names, numbers := d.taken(0), d.numbers()
	others := 0
	for _, o := range d.nodes {
		others += len(o.Devices)
	}
	if others-len(n.Devices)+len(want) > maxAll {
		return nil, badf("more than %d devices in a mesh are not kept", maxAll)
	}
	for _, old := range n.Devices {
		delete(names, old.Name)
	}
	next := make([]device, 0, len(want))
	wants, found := map[string]bool{}, map[uint32]bool{}
	for _, w := range want {
		if len(w.ID) > maxText {
			return nil, badf("the ID of a device is too long")
		}
		dev := device{Want: free(label(w.Name), wants), ID: w.ID}
		wants[dev.Want] = true
		i := slices.IndexFunc(n.Devices, func(old device) bool { return !found[old.Number] && old.is(dev) })
		if i >= 0 {
			old := n.Devices[i]
			found[old.Number] = true
			dev.Number, dev.V6 = old.Number, old.V6
			if old.Want == dev.Want {
				dev.Name = old.Name
				names[dev.Name] = true
			}
		}
		next = append(next, dev)
	}
	for i := range next {
		if err := next[i].complete(n, want[i].V6, names, numbers); err != nil {
			return nil, err
		}
	}
	return next, nil
}

// is reports whether it is the device of that ID or, where one has none, of that name.
func (d device) is(o device) bool {
	if d.ID != "" && o.ID != "" {
		return d.ID == o.ID
	}
	return d.Want == o.Want
}

// complete gives a device what it lacks.
func (d *device) complete(n *node, v6 bool, names map[string]bool, numbers map[uint32]bool) error {
	if d.Number == 0 {
		number, _, err := allocate(numbers, fmt.Appendf(nil, "%s device %s", n.Machine, d.Want))
		if err != nil {
			return err
		}
		d.Number, numbers[number] = number, true
	}
	if d.Name == "" {
		d.Name = free(d.Want, names)
		names[d.Name] = true
	}
	switch {
	case !v6:
		d.V6 = netip.Addr{}
	case !d.V6.IsValid(): // the same whenever it comes back
		sum := sha256.Sum256(binary.BigEndian.AppendUint32(fmt.Appendf(nil, "%s device IPv6 ", n.Machine), d.Number))
		d.V6 = address6(sum[:8])
	}
	return nil
}
