package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"subnetd/subnetd/config"
	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"
	"subnetd/subnetd/status"
)

// ErrNoDevice is returned by Test for what is nothing on the LAN.
var ErrNoDevice = errors.New("no device of the LAN")

// RefuseExits says which of the nodes cannot be used as exits, and why.
func RefuseExits(nm *mesh.Netmap, names []string, now time.Time) error {
	for _, name := range names {
		if x := findExit(nm, name, now.Add(nm.ClockSkew)); x.bad != "" {
			return fmt.Errorf("%s %s", x.name, x.bad)
		}
	}
	return nil
}

// Test says which row is about a thing, and where that goes now. of is a MAC
// address, an interface of the LAN, `router` or, with the addresses it stands for,
// anything else; all are the neighbours of this router.
func Test(p Plan, f host.Facts, all []host.Neighbour, of string, addrs []netip.Addr) (status.ExitTest, error) {
	own := func(a netip.Addr) bool {
		return slices.ContainsFunc(f.Interfaces, func(i host.Interface) bool {
			return slices.ContainsFunc(i.Addrs, func(q netip.Prefix) bool { return q.Addr() == a })
		})
	}
	if of == "router" || slices.ContainsFunc(addrs, own) {
		return p.tested(status.ExitTest{What: "router"}, "", []string{"lo"}), nil
	}
	if slices.Contains(p.LANs, of) {
		return p.tested(status.ExitTest{What: "a device", Interface: of, Unsure: "a row for its MAC address may be about it"}, "", []string{of}), nil
	}
	mac := ""
	if s, err := config.ParseSources([]string{of}); err == nil && len(s.MACs) > 0 {
		mac = s.MACs[0]
	}
	for _, n := range all {
		if mac == "" && slices.Contains(addrs, n.Addr) {
			mac = n.MAC
		}
	}
	t := status.ExitTest{What: mac}
	var links []string
	for _, n := range all {
		if mac != "" && n.MAC == mac {
			t.Addresses = append(t.Addresses, n.Addr.String())
			if !slices.Contains(links, n.Interface) {
				links = append(links, n.Interface)
			}
		}
	}
	switch {
	case len(links) > 0:
		t.Interface = strings.Join(links, ", ")
		return p.tested(t, mac, links), nil
	case mac != "":
		t.Unsure = "nothing was heard of it lately"
		return p.tested(t, mac, append(slices.Clone(p.LANs), "")), nil
	case len(addrs) == 0:
		return t, fmt.Errorf("%w: %q is no MAC address, no address, no device of lan.devices and no interface of the LAN", ErrNoDevice, of)
	}
	return p.silent(f, of, addrs)
}

// silent is Test for an address of which nothing was heard.
func (p Plan) silent(f host.Facts, of string, addrs []netip.Addr) (status.ExitTest, error) {
	for _, i := range f.Interfaces {
		for _, a := range addrs {
			if slices.Contains(p.LANs, i.Name) && inAny(i.Addrs, a) {
				t := status.ExitTest{What: of, Interface: i.Name, Unsure: "its MAC address is not known, as nothing was heard of it lately: a row for that may be about it"}
				return p.tested(t, "", []string{i.Name}), nil
			}
		}
	}
	return status.ExitTest{}, fmt.Errorf("%w: %s is in no network of the LAN", ErrNoDevice, of)
}

// tested adds the row that fits a device behind one of the links.
func (p Plan) tested(t status.ExitTest, mac string, links []string) status.ExitTest {
	for n, link := range links {
		i := SourceOf(p.Sources, mac, link, slices.Contains(p.LANs, link))
		var row *status.ExitRow
		if i >= 0 {
			row = &p.Exits[i]
		}
		if n == 0 {
			t.Row = row
		} else if (t.Row == nil) != (row == nil) || row != nil && t.Row.Row != row.Row {
			t.Unsure = "that depends on the interface it is behind"
		}
	}
	return t
}
