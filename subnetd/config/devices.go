package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The things of the LAN that the owner speaks of: lan.devices, which the mesh may
// reach, lan.names, and lan.web (web.go).

// Device is a thing on the LAN: one of its addresses, or its MAC, wherever that is
// then. A name has one MAC, or at most one address of each family.
type Device struct {
	Name  string     // one label, in lower case; "": none
	Addr  netip.Addr // invalid: by MAC
	MAC   string     // in lower case with colons; "": by Addr
	Ports []Ports    // that the mesh may reach; none: all, and all protocols
	Wake  bool       // what the mesh sends to it wakes it; with a MAC only
}

// Ports is a range of ports of TCP or UDP.
type Ports struct {
	Proto       string // "tcp" or "udp"
	First, Last uint16 // both among them, from 1
}

// Named is what the owner calls a thing that has no name in lan.devices.
type Named struct {
	Name string // one label, in lower case
	MAC  string // in lower case with colons
}

const (
	wordWake = "wake"
	// MaxPorts bounds the ranges of ports of one device.
	MaxPorts = 16
)

// String is the device as it stands in the file.
func (d Device) String() string {
	s := d.MAC
	if s == "" {
		s = d.Addr.String()
	}
	if d.Name != "" {
		s = d.Name + "=" + s
	}
	for _, p := range d.Ports {
		s += " " + p.String()
	}
	if d.Wake {
		s += " " + wordWake
	}
	return s
}

// String is the range as it stands in the file.
func (p Ports) String() string {
	s := p.Proto + "/" + strconv.Itoa(int(p.First))
	if p.Last != p.First {
		s += "-" + strconv.Itoa(int(p.Last))
	}
	return s
}

// String is the name as it stands in the file.
func (n Named) String() string { return n.Name + "=" + n.MAC }

// parseDevice reads "[NAME=]ADDRESS [PORTS...]" and "[NAME=]MAC [PORTS...] [wake]".
func parseDevice(s string) (d Device, ok bool) {
	words := strings.Fields(s)
	if len(words) == 0 {
		return d, false
	}
	name, where, named := strings.Cut(words[0], "=")
	if !named {
		name, where = "", name
	}
	d.Name = strings.ToLower(name)
	if d.MAC, ok = parseMAC(where); !ok {
		d.Addr, ok = parseAddr(where)
	}
	if !ok || named && !isLabel(name) {
		return d, false
	}
	for _, w := range words[1:] {
		if w == wordWake {
			if d.Wake || d.MAC == "" {
				return d, false
			}
			d.Wake = true
			continue
		}
		p, err := ParsePorts(w)
		if err != nil || slices.Contains(d.Ports, p) {
			return d, false
		}
		d.Ports = append(d.Ports, p)
	}
	return d, len(d.Ports) <= MaxPorts
}

// parseNamed reads "NAME=MAC".
func parseNamed(s string) (n Named, ok bool) {
	name, mac, _ := strings.Cut(s, "=")
	n.Name = strings.ToLower(name)
	n.MAC, ok = parseMAC(mac)
	return n, ok && isLabel(name)
}

// parseMAC reads the MAC address of one thing.
func parseMAC(s string) (mac string, ok bool) {
	if !isMAC(s) || isGroup(s) {
		return "", false
	}
	return lower([]string{s})[0], true
}

// ParsePorts reads "tcp/80" and "udp/5000-5010". The error says what would be right.
func ParsePorts(s string) (Ports, error) {
	proto, numbers, _ := strings.Cut(strings.ToLower(s), "/")
	first, last, isRange := strings.Cut(numbers, "-")
	if !isRange {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if proto != "tcp" && proto != "udp" || errA != nil || errB != nil || a == 0 || b < a {
		return Ports{}, fmt.Errorf(`%s are no ports: they are written like "tcp/80" or "udp/5000-5010"`, clip(quote(s)))
	}
	return Ports{proto, uint16(a), uint16(b)}, nil
}

// unsure tells what the lists cannot mean: a thing that is two, or a name of two.
func (l LAN) unsure() (out []*Error) {
	mistake := func(key, problem, allowed string) {
		out = append(out, &Error{Key: key, Problem: problem, Allowed: allowed})
	}
	type at struct {
		name   string
		family int // 32, 128, or 48 for a MAC
	}
	seen, macs := map[at]Device{}, map[string]bool{}
	for _, d := range l.Devices {
		if d.MAC != "" && macs[d.MAC] {
			mistake("lan.devices", "has "+d.MAC+" twice", "one entry for a MAC address")
		}
		macs[d.MAC] = true
		if d.Name == "" {
			continue
		}
		for _, family := range families(d) {
			if was, ok := seen[at{d.Name, family}]; ok {
				mistake("lan.devices", fmt.Sprintf("has %s at %s and at %s", d.Name, place(was), place(d)), "one MAC address, or one IPv4 and one IPv6 address, for a name")
				break
			}
			seen[at{d.Name, family}] = d
		}
	}
	for i, n := range l.Names {
		was := slices.ContainsFunc(l.Names[:i], func(o Named) bool { return o.MAC == n.MAC }) ||
			slices.ContainsFunc(l.Devices, func(d Device) bool { return d.MAC == n.MAC && d.Name != "" })
		if was {
			mistake("lan.names", "has another name for "+n.MAC, "one name for a MAC address, here or in lan.devices")
		}
		if slices.ContainsFunc(l.Names[:i], func(o Named) bool { return o.Name == n.Name }) ||
			slices.ContainsFunc(l.Devices, func(d Device) bool { return d.Name == n.Name && d.MAC != n.MAC }) {
			mistake("lan.names", "has "+n.Name+", which is the name of another thing", "one MAC address for a name")
		}
	}
	for i, w := range l.Web {
		if slices.ContainsFunc(l.Web[:i], w.same) {
			mistake("lan.web", "has "+w.Name+" twice", "one web server for a device")
		}
	}
	return out
}

// families are those of which a name can have one device.
func families(d Device) []int {
	if d.MAC != "" {
		return []int{32, 128}
	}
	return []int{d.Addr.BitLen()}
}

func place(d Device) string {
	if d.MAC != "" {
		return d.MAC
	}
	return d.Addr.String()
}

// Called is what the owner calls the thing with that MAC; "": nothing.
func (l LAN) Called(mac string) string {
	for _, d := range l.Devices {
		if d.MAC == mac && mac != "" && d.Name != "" {
			return d.Name
		}
	}
	for _, n := range l.Names {
		if n.MAC == mac {
			return n.Name
		}
	}
	return ""
}

// Exposing lets the mesh reach d, in the place of what spoke of the same thing
// before: its MAC, its address, or one of those that it has now. The error says why
// that cannot be.
func (l LAN) Exposing(d Device, has []netip.Addr) (LAN, error) {
	same := func(o Device) bool { return o.is(d.MAC, append(slices.Clone(has), d.Addr)) }
	at := slices.IndexFunc(l.Devices, same)
	if at >= 0 {
		l = l.renamed(l.Devices[at].Name, d.Name)
	}
	next := l.Hiding(d.MAC, append(slices.Clone(has), d.Addr))
	if at < 0 || at > len(next.Devices) {
		at = len(next.Devices)
	}
	next.Devices = slices.Insert(next.Devices, at, d)
	if d.MAC != "" && d.Name != "" { // it is its only name then
		next.Names = slices.DeleteFunc(slices.Clone(next.Names), func(n Named) bool { return n.MAC == d.MAC })
	}
	return next, next.check()
}

// Hiding leaves out the thing with that MAC or one of those addresses, and keeps what
// the owner calls it.
func (l LAN) Hiding(mac string, addrs []netip.Addr) LAN {
	name := l.Called(mac)
	l.Devices = slices.DeleteFunc(slices.Clone(l.Devices), func(d Device) bool { return d.is(mac, addrs) })
	if name != "" && l.Called(mac) == "" && len(l.Names) < maxList {
		l.Names = append(slices.Clone(l.Names), Named{name, mac})
	}
	return l
}

func (d Device) is(mac string, addrs []netip.Addr) bool {
	return d.MAC != "" && d.MAC == mac || d.Addr.IsValid() && slices.Contains(addrs, d.Addr)
}

// Calling gives the thing with that MAC a name; "": none.
func (l LAN) Calling(mac, name string) (LAN, error) {
	name = strings.ToLower(name)
	if name != "" && !isLabel(name) {
		return l, fmt.Errorf("%s is no name: letters, digits and hyphens are, at most 63", clip(quote(name)))
	}
	next := l
	next.Devices = slices.Clone(l.Devices)
	next.Names = slices.DeleteFunc(slices.Clone(l.Names), func(n Named) bool { return n.MAC == mac })
	if i := slices.IndexFunc(next.Devices, func(d Device) bool { return d.MAC == mac }); i >= 0 {
		next = next.renamed(next.Devices[i].Name, name)
		next.Devices[i].Name = name
	} else if name != "" {
		next.Names = append(next.Names, Named{name, mac})
	}
	return next, next.check()
}

// check says what is wrong with lists that were changed.
func (l LAN) check() error {
	if len(l.Devices) > maxList || len(l.Names) > maxList || len(l.Web) > maxList {
		return fmt.Errorf("lan.devices, lan.names and lan.web hold %d entries each, not more", maxList)
	}
	for _, e := range l.unsure() {
		return fmt.Errorf("%s then %s; allowed is %s", e.Key, e.Problem, e.Allowed)
	}
	return nil
}

// Changes are the keys of [lan] that differ in next, for Edit.
func (l LAN) Changes(next LAN) map[string]any {
	out := map[string]any{}
	if l.Expose != next.Expose {
		out["expose"] = string(next.Expose)
	}
	if is := written(next.Devices); !slices.Equal(written(l.Devices), is) {
		out["devices"] = is
	}
	if is := written(next.Web); !slices.Equal(written(l.Web), is) {
		out["web"] = is
	}
	if is := written(next.Names); !slices.Equal(written(l.Names), is) {
		out["names"] = is
	}
	return out
}

func written[T fmt.Stringer](all []T) []string {
	out := []string{}
	for _, x := range all {
		out = append(out, x.String())
	}
	return out
}
