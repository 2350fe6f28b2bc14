package lan

import (
	"bytes"
	"net/netip"
	"slices"
	"sort"
	"time"
)

// Memory is what of a Book survives a restart.
type Memory struct {
	Things []Remembered `json:"things"` // sorted by MAC
}

// Remembered is what survives of a thing.
type Remembered struct {
	MAC         string            `json:"mac"`
	First       time.Time         `json:"first"`
	Last        time.Time         `json:"last,omitzero"`
	Names       map[string]string `json:"names,omitempty"` // by Source, but the owner's
	Model       string            `json:"model,omitempty"`
	VendorClass string            `json:"vendorClass,omitempty"`
	Params      []byte            `json:"params,omitempty"`
	Services    []string          `json:"services,omitempty"`
	Address     netip.Addr        `json:"address,omitzero"` // IPv4, where it was last
	Interface   string            `json:"interface,omitempty"`
}

// remembers is after how long a thing is worth to be kept: guests and made-up MACs
// come and go.
const remembers = time.Hour

// Memory is what must survive: what the owner speaks of, what has a lease, and what was
// around for an hour.
func (b *Book) Memory(now time.Time) Memory {
	m := Memory{Things: []Remembered{}}
	for mac, t := range b.things {
		if t.first.IsZero() || !t.pinned && !t.leased(now, mac) && t.last.Sub(t.first) < remembers {
			continue
		}
		r := Remembered{
			MAC: mac, First: t.first.Round(0), Last: t.last.Round(0), Model: t.model, VendorClass: t.vendorClass, Params: t.params,
			Services: slices.Clone(t.services), Interface: t.iface,
		}
		for s := MDNS; s < Owner; s++ {
			if t.names[s] != "" {
				if r.Names == nil {
					r.Names = map[string]string{}
				}
				r.Names[s.String()] = t.names[s]
			}
		}
		if a := t.show(now, mac).Addresses; len(a) > 0 && a[0].Addr.Is4() {
			r.Address = a[0].Addr
		}
		m.Things = append(m.Things, r)
	}
	sort.Slice(m.Things, func(i, j int) bool { return m.Things[i].MAC < m.Things[j].MAC })
	return m
}

// Equal reports whether nothing differs that is worth writing: not when things were
// seen last.
func (m Memory) Equal(o Memory) bool {
	return slices.EqualFunc(m.Things, o.Things, func(a, b Remembered) bool {
		same := len(a.Names) == len(b.Names)
		for s, name := range a.Names {
			same = same && b.Names[s] == name
		}
		return same && a.MAC == b.MAC && a.First.Equal(b.First) && a.Model == b.Model && a.VendorClass == b.VendorClass && bytes.Equal(a.Params, b.Params) &&
			slices.Equal(a.Services, b.Services) && a.Address == b.Address && a.Interface == b.Interface
	})
}

// Remember takes in what survived. It is as if it had been seen then, and was silent
// since. What is in it is checked like what strangers say: files can be edited.
func (b *Book) Remember(now time.Time, m Memory) {
	for _, r := range m.Things[:min(len(m.Things), maxThings)] {
		if !valid(r.MAC) || b.things[r.MAC] != nil || now.Sub(r.Last) > forgets && !r.Last.IsZero() {
			continue
		}
		t := b.admit(now, r.MAC, None)
		if t == nil {
			return
		}
		t.first, t.last, t.iface = r.First, r.Last, r.Interface
		if t.last.After(now) { // the clock was put back
			t.first, t.last = now, now
		}
		t.model, t.vendorClass, t.params = text(r.Model), text(r.VendorClass), slices.Clone(r.Params[:min(len(r.Params), maxParams)])
		for s := MDNS; s < Owner; s++ {
			t.names[s] = text(r.Names[s.String()])
		}
		t.offers(r.Services, nil)
		t.guess()
		if r.Address.Is4() && usable(r.Address) && b.places[r.Address] == nil {
			if p := b.at(now, r.Address, t); p != nil {
				b.move(p, r.MAC)
				p.iface, p.silent, p.since, p.seen = r.Interface, true, t.last, t.last
			}
		}
	}
}
