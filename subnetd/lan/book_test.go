package lan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const (
	printer = "00:80:77:00:00:01" // Brother
	phone   = "a2:00:00:00:00:02" // made up
	tv      = "00:09:b0:00:00:03" // Onkyo
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func at(d time.Duration) time.Time { return t0.Add(d) }

// show prints things, a line for each: what the tests below compare.
func show(things []Thing) string {
	var b strings.Builder
	for _, t := range things {
		fmt.Fprintf(&b, "%s", t.MAC)
		if t.Name != "" {
			fmt.Fprintf(&b, " %s(%s)", t.Name, t.NameFrom)
		}
		if t.Kind != "" {
			fmt.Fprintf(&b, " %s", t.Kind)
		}
		if t.Online {
			b.WriteString(" online")
		}
		if t.Pinned {
			b.WriteString(" pinned")
		}
		for _, a := range t.Addresses {
			fmt.Fprintf(&b, " %s", a.Addr)
			for _, f := range []struct {
				is  bool
				say string
			}{{a.Leased, "L"}, {a.Known, "K"}, {a.Silent, "S"}} {
				if f.is {
					b.WriteString("+" + f.say)
				}
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func is(t *testing.T, b *Book, now time.Time, want string) {
	t.Helper()
	want = strings.TrimLeft(strings.ReplaceAll(want, "\t", ""), "\n")
	if got := show(b.Things(now)); got != want {
		t.Errorf("is:\n%sshall be:\n%s", got, want)
	}
}

func neighbour(mac, addr string, seen time.Time) Neighbour {
	return Neighbour{Addr: ip(addr), MAC: mac, Interface: "br-lan", Seen: seen}
}

func lost(addr string, s State) Neighbour {
	return Neighbour{Addr: ip(addr), Interface: "br-lan", State: s}
}

// The life of a phone and a printer, as the sources tell it.
func TestBook(t *testing.T) {
	b := NewBook()
	is(t, b, t0, "")

	b.Names(t0, map[string]string{printer: "drucker"})
	is(t, b, t0, printer+" drucker(owner) printer pinned\n")

	b.Leases(t0, "f", []Given{{MAC: printer, Addr: ip("192.168.1.50"), Name: "BRN008077"}, {MAC: phone, Addr: ip("192.168.1.60"), Expires: at(time.Hour)}})
	is(t, b, t0, printer+` drucker(owner) printer pinned 192.168.1.50+L
		`+phone+` 192.168.1.60+L
	`)
	if th := b.Things(t0)[1]; !th.Private || !th.LastSeen.IsZero() || !th.FirstSeen.Equal(t0) || th.Maker != "" {
		t.Errorf("a lease from before: %+v", th)
	}

	b.Neighbour(at(1*time.Second), neighbour(phone, "192.168.1.60", at(1*time.Second)))
	b.Neighbour(at(1*time.Second), neighbour(phone, "fe80::2", at(1*time.Second)))
	b.Neighbour(at(1*time.Second), neighbour(phone, "2001:db8::2", at(1*time.Second)))
	b.Heard(at(2*time.Second), Heard{MAC: phone, Interface: "br-lan", Source: DHCP, Name: "Annas-iPhone", Params: []byte{1, 121, 3, 6, 15, 108, 114, 119, 252}})
	b.Heard(at(2*time.Second), Heard{MAC: phone, Interface: "br-lan", Source: MDNS, Name: "anderes"})
	is(t, b, at(3*time.Second), printer+` drucker(owner) printer pinned 192.168.1.50+L
		`+phone+` Annas-iPhone(dhcp) phone online 192.168.1.60+L+K 2001:db8::2+K fe80::2+K
	`)

	// the phone leaves: asked in vain
	for _, a := range []string{"192.168.1.60", "fe80::2", "2001:db8::2"} {
		b.Neighbour(at(time.Minute), lost(a, Silent))
	}
	is(t, b, at(time.Minute), printer+` drucker(owner) printer pinned 192.168.1.50+L
		`+phone+` Annas-iPhone(dhcp) phone 192.168.1.60+L+S 2001:db8::2+S fe80::2+S
	`)

	// its lease runs out; where it was is remembered, but not of IPv6 for long
	is(t, b, at(25*time.Hour), printer+` drucker(owner) printer pinned 192.168.1.50+L
		`+phone+` Annas-iPhone(dhcp) phone 192.168.1.60+S
	`)

	// its address is another's now
	b.Neighbour(at(26*time.Hour), neighbour(tv, "192.168.1.60", at(26*time.Hour)))
	is(t, b, at(26*time.Hour), tv+` speaker online 192.168.1.60+K
		`+printer+` drucker(owner) printer pinned 192.168.1.50+L
		`+phone+` Annas-iPhone(dhcp) phone
	`)

	// nobody speaks of the printer any more, and it has no lease
	b.Names(at(26*time.Hour), nil)
	b.Leases(at(26*time.Hour), "f", nil)
	is(t, b, at(26*time.Hour), tv+` speaker online 192.168.1.60+K
		`+printer+` BRN008077(lease) printer
		`+phone+` Annas-iPhone(dhcp) phone
	`)
}

// A new lease is where to reach a thing by at once, though the kernel still has the old address.
func TestNewLeaseFirst(t *testing.T) {
	b := NewBook()
	b.Leases(t0, "f", []Given{{MAC: tv, Addr: ip("192.168.1.9")}})
	b.Neighbour(t0, neighbour(tv, "192.168.1.9", t0))
	if !b.Leases(at(time.Second), "f", []Given{{MAC: tv, Addr: ip("192.168.1.200")}}) {
		t.Error("a new lease is no news")
	}
	is(t, b, at(time.Second), tv+" speaker online 192.168.1.200+L 192.168.1.9+K\n")
	// two leases: the newer one
	b.Leases(at(2*time.Second), "f", []Given{{MAC: tv, Addr: ip("192.168.1.200")}, {MAC: tv, Addr: ip("192.168.1.3")}})
	is(t, b, at(2*time.Second), tv+" speaker online 192.168.1.3+L 192.168.1.200+L 192.168.1.9+K\n")
	// it has taken an address of its own, and nobody answers at the leased ones
	b.Neighbour(at(3*time.Second), lost("192.168.1.3", Silent))
	b.Neighbour(at(3*time.Second), lost("192.168.1.200", Silent))
	is(t, b, at(3*time.Second), tv+" speaker online 192.168.1.9+K 192.168.1.3+L+S 192.168.1.200+L+S\n")
}

// An address with a lease is that thing's to which the kernel sends; when it is no longer
// in the kernel's table, the lease counts again.
func TestOwner(t *testing.T) {
	b := NewBook()
	a := ip("192.168.1.9")
	b.Leases(t0, "f", []Given{{MAC: tv, Addr: a}})
	for i, step := range []struct {
		n    Neighbour
		want string
	}{
		{neighbour(phone, "192.168.1.9", t0), phone},
		{lost("192.168.1.9", Gone), tv},
		{neighbour(phone, "192.168.1.9", t0), phone},
		{lost("192.168.1.9", Silent), tv},
		{neighbour(tv, "192.168.1.9", t0), tv},
		{Neighbour{Addr: a, Interface: "br-guest", State: Silent}, tv},
		{neighbour("01:00:5e:00:00:fb", "192.168.1.9", t0), tv},
		{neighbour("00:00:00:00:00:00", "192.168.1.9", t0), tv},
	} {
		b.Neighbour(t0, step.n)
		if got := b.Owner(t0, a); got != step.want {
			t.Errorf("step %d: %s has it, not %s", i, got, step.want)
		}
	}
	if b.Foreign(t0, tv, []netip.Addr{a, ip("10.0.0.1")}) || !b.Foreign(t0, phone, []netip.Addr{ip("10.0.0.1"), a}) {
		t.Error("whose addresses they are")
	}
}

// The lease of IPv6 goes with the thing that the kernel has there, not with the DUID's MAC.
func TestGuessedLease(t *testing.T) {
	b := NewBook()
	g := Given{MAC: printer, Guess: true, Addr: ip("fd00::50"), Name: "x"}
	b.Leases(t0, "f", []Given{g})
	is(t, b, t0, "")
	b.Neighbour(t0, neighbour(tv, "fd00::50", t0))
	b.Leases(t0, "f", []Given{g})
	is(t, b, t0, tv+" x(lease) speaker online fd00::50+L+K\n")
	b.Neighbour(t0, neighbour(printer, "192.168.1.1", t0))
	b.Leases(t0, "f", []Given{g, {MAC: printer, Guess: true, Addr: ip("fd00::51")}})
	is(t, b, t0, tv+` x(lease) speaker online fd00::50+L+K
		`+printer+` printer online 192.168.1.1+K fd00::51+L
	`)
	b.Neighbour(t0, neighbour(tv, "fd00::51", t0))
	if got := b.Owner(t0, ip("fd00::51")); got != tv {
		t.Error(got)
	}
	b.Neighbour(t0, lost("fd00::51", Gone))
	if got := b.Owner(t0, ip("fd00::51")); got != tv {
		t.Error("forgot whose lease it was:", got)
	}
}

// Of the addresses of IPv6 the one that stays comes first.
func TestOrderV6(t *testing.T) {
	b := NewBook()
	for i, a := range []string{"2001:db8::aaaa", "fe80::280:77ff:fe00:1", "2001:db8::280:77ff:fe00:1", "2001:db8::bbbb", "fd00::50"} {
		b.Neighbour(at(time.Duration(i)*time.Second), neighbour(printer, a, t0))
	}
	b.Leases(at(9*time.Second), "f", []Given{{MAC: printer, Guess: true, Addr: ip("fd00::50")}})
	is(t, b, at(9*time.Second), printer+" printer online fd00::50+L+K 2001:db8::280:77ff:fe00:1+K 2001:db8::aaaa+K 2001:db8::bbbb+K fe80::280:77ff:fe00:1+K\n")
	if got := b.Things(t0)[0].Addrs(); len(got) != 4 {
		t.Errorf("link-local is shown: %v", got)
	}
}

// What a table of neighbours does not have is gone; so is what was on other interfaces.
func TestWholeTable(t *testing.T) {
	b := NewBook()
	b.Neighbours(t0, []Neighbour{neighbour(tv, "10.0.0.1", t0), neighbour(phone, "10.0.0.2", t0)})
	b.Neighbours(t0, []Neighbour{neighbour(tv, "10.0.0.1", t0), lost("10.0.0.3", Silent)})
	is(t, b, t0, tv+` speaker online 10.0.0.1+K
		`+phone+` online 10.0.0.2
	`)
	if !b.Interfaces(t0, []string{"eth1"}) || b.Interfaces(t0, []string{"eth1"}) {
		t.Error("news, then none")
	}
	is(t, b, t0, tv+` speaker online 10.0.0.1
		`+phone+` online 10.0.0.2
	`)
}

// Next is when Things change by themselves: each change is at one of its moments.
func TestNext(t *testing.T) {
	b := NewBook()
	if !b.Next(t0).IsZero() {
		t.Error("nothing can change")
	}
	b.Neighbour(t0, neighbour(tv, "10.0.0.1", t0))
	b.Neighbour(t0, neighbour(tv, "fd00::1", at(-time.Hour)))
	b.Neighbour(t0, lost("fd00::1", Gone))
	b.Leases(t0, "f", []Given{{MAC: phone, Addr: ip("10.0.0.2"), Expires: at(7 * time.Minute)}})
	var at []time.Duration
	last := show(b.Things(t0))
	for now := t0; ; {
		next := b.Next(now)
		if next.IsZero() {
			break
		}
		if got := show(b.Things(next.Add(-1))); got != last {
			t.Errorf("before %s it is\n%s", next.Sub(t0), got)
		}
		if got := show(b.Things(next)); got == last {
			t.Errorf("at %s nothing changes", next.Sub(t0))
		} else {
			last = got
		}
		at, now = append(at, next.Sub(t0)), next
	}
	if want := []time.Duration{Fresh, 7 * time.Minute, 23 * time.Hour}; !slices.Equal(at, want) {
		t.Errorf("at %v, not %v", at, want)
	}
}

// A hostile LAN makes up MACs as fast as it can.
func TestFlood(t *testing.T) {
	b := NewBook()
	b.Names(t0, map[string]string{printer: "drucker"})
	b.Leases(t0, "f", []Given{{MAC: tv, Addr: ip("192.168.1.9")}})
	old := "00:00:5e:00:00:01"
	b.Neighbour(at(-48*time.Hour), neighbour(old, "192.168.1.8", at(-48*time.Hour)))
	b.Neighbour(t0, neighbour(old, "192.168.1.8", t0))
	flood := func(from time.Time, seed int) {
		for i := range 10000 {
			mac := fmt.Sprintf("02:%02x:00:00:%02x:%02x", seed, i>>8, i&255)
			b.Neighbour(from, neighbour(mac, fmt.Sprintf("10.%d.%d.%d", seed, i>>8, i&255), from))
			b.Heard(from, Heard{MAC: mac, Interface: "br-lan", Source: DHCP, Name: "x"})
		}
	}
	there := func(when string, macs ...string) {
		t.Helper()
		for _, mac := range macs {
			if b.things[mac] == nil {
				t.Errorf("%s: %s was pushed out", when, mac)
			}
		}
		if len(b.things) > maxThings || len(b.places) > maxPlaces {
			t.Errorf("%s: %d things, %d places", when, len(b.things), len(b.places))
		}
	}
	flood(at(time.Minute), 1)
	there("flood", printer, tv, old)
	// somebody with a lease comes in all the same
	b.Leases(at(2*time.Minute), "f", []Given{{MAC: tv, Addr: ip("192.168.1.9")}, {MAC: phone, Addr: ip("192.168.1.60")}})
	there("lease", printer, tv, old, phone)
	// and after a while those that did not come again give way
	guest := "00:00:5e:00:00:02"
	b.Neighbour(at(3*time.Minute), neighbour(guest, "192.168.1.61", at(3*time.Minute)))
	if b.things[guest] != nil {
		t.Error("there was room")
	}
	b.Neighbour(at(30*time.Minute), neighbour(guest, "192.168.1.61", at(30*time.Minute)))
	there("after", printer, tv, old, phone, guest)
	if len(b.things) != 5 {
		t.Errorf("%d things are left", len(b.things))
	}
	// whoever floods with leases pushes out nobody who was there for long
	var many []Given
	for i := range 10000 {
		many = append(many, Given{MAC: fmt.Sprintf("06:00:00:00:%02x:%02x", i>>8, i&255), Addr: netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)})})
	}
	b.Leases(at(31*time.Minute), "g", many)
	there("leases", printer, tv, old, phone)
	// the owner's word counts
	b.Names(at(32*time.Minute), map[string]string{printer: "", "00:00:5e:00:00:03": "neu"})
	there("owner", printer, "00:00:5e:00:00:03", old)
	check(t, b)
}

// One thing with very many addresses has the newest of them.
func TestManyAddresses(t *testing.T) {
	b := NewBook()
	for i := range 1000 {
		b.Neighbour(t0, neighbour(tv, fmt.Sprintf("2001:db8::%x", i), at(time.Duration(i))))
	}
	if got := b.Things(t0)[0].Addresses; len(got) != perThing || b.Owner(t0, ip("2001:db8::3e7")) != tv {
		t.Errorf("%d addresses", len(got))
	}
	check(t, b)
}

// check looks whether the book's two sides agree.
func check(t *testing.T, b *Book) {
	t.Helper()
	n := 0
	for mac, th := range b.things {
		if len(th.places) > perThing {
			t.Errorf("%s is at %d places", mac, len(th.places))
		}
		for i, p := range th.places {
			if b.places[p.addr] != p || p.mac != mac && p.holder != mac || slices.Index(th.places, p) != i {
				t.Errorf("%s is not at %s", mac, p.addr)
			}
			n++
		}
	}
	for addr, p := range b.places {
		for _, mac := range []string{p.mac, p.holder} {
			if mac == "" {
				continue
			}
			n--
			if b.things[mac] == nil {
				t.Errorf("at %s is %s, which is not known", addr, mac)
			}
		}
		if p.mac == p.holder && p.mac != "" {
			n++
		}
		if p.mac == "" && p.holder == "" {
			t.Errorf("%s is nobody's", addr)
		}
	}
	if n != 0 {
		t.Errorf("the two sides differ by %d", n)
	}
}

// oracle is the book as the documentation tells it: it keeps all that it was told, and
// looks through it when asked.
type oracle struct {
	table  map[netip.Addr]Neighbour // the last of each; Gone and Silent keep the MAC
	silent map[netip.Addr]bool
	since  map[netip.Addr]time.Time // it is at the MAC
	leases map[netip.Addr]Given
	spoke  map[string]time.Time
	quiet  map[string]time.Time
	names  map[string][sources]string
}

func (o *oracle) owner(now time.Time, a netip.Addr) string {
	n, seen := o.table[a]
	l, leased := o.leases[a]
	switch {
	case seen && n.State == Answers:
		return n.MAC
	case leased && (l.Expires.IsZero() || now.Before(l.Expires)):
		return l.MAC
	}
	return n.MAC
}

func (o *oracle) neighbour(now time.Time, n Neighbour) {
	was, ok := o.table[n.Addr]
	switch {
	case n.State == Answers:
		if was.MAC == n.MAC && was.Seen.After(n.Seen) {
			n.Seen = was.Seen
		}
		if was.MAC != n.MAC {
			o.since[n.Addr] = now
		}
		o.table[n.Addr], o.silent[n.Addr] = n, false
	case ok:
		was.State = n.State
		o.table[n.Addr] = was
	}
	if _, leased := o.leases[n.Addr]; n.State == Silent && (ok || leased) {
		o.silent[n.Addr] = true
		o.quiet[o.owner(now, n.Addr)] = now
	}
}

func (o *oracle) online(now time.Time, mac string) bool {
	if o.spoke[mac].After(o.quiet[mac]) && now.Sub(o.spoke[mac]) < Fresh {
		return true
	}
	for a, n := range o.table {
		if n.MAC == mac && o.owner(now, a) == mac && !o.silent[a] && now.Sub(n.Seen) < Fresh {
			return true
		}
	}
	return false
}

func (o *oracle) String(now time.Time, macs []string) string {
	var b strings.Builder
	for _, mac := range macs {
		fmt.Fprint(&b, mac)
		for s := Owner; s > None; s-- {
			if name := o.names[mac][s]; name != "" {
				fmt.Fprintf(&b, " %s(%s)", name, s)
				break
			}
		}
		if o.online(now, mac) {
			b.WriteString(" online")
		}
		addrs := map[netip.Addr]bool{}
		for a := range o.table {
			addrs[a] = true
		}
		for a := range o.leases {
			addrs[a] = true
		}
		var own []string
		var last netip.Addr // of those that are no longer anywhere
		for a := range addrs {
			l, leased := o.leases[a]
			switch leased = leased && (l.Expires.IsZero() || now.Before(l.Expires)); {
			case o.owner(now, a) != mac:
			case leased || o.table[a].State == Answers:
				own = append(own, a.String())
			case !last.IsValid() || o.later(a, last):
				last = a
			}
		}
		if len(own) == 0 && last.IsValid() {
			own = append(own, last.String())
		}
		sort.Strings(own)
		fmt.Fprintln(&b, "", strings.Join(own, " "))
	}
	return b.String()
}

func (o *oracle) later(a, b netip.Addr) bool {
	if o.silent[a] != o.silent[b] {
		return o.silent[b]
	}
	if !o.since[a].Equal(o.since[b]) {
		return o.since[a].After(o.since[b])
	}
	return a.Less(b)
}

// plain is what the oracle knows of things.
func plain(things []Thing) string {
	var b strings.Builder
	for _, t := range things {
		fmt.Fprint(&b, t.MAC)
		if t.Name != "" {
			fmt.Fprintf(&b, " %s(%s)", t.Name, t.NameFrom)
		}
		if t.Online {
			b.WriteString(" online")
		}
		var own []string
		for _, a := range t.Addresses {
			own = append(own, a.Addr.String())
		}
		sort.Strings(own)
		fmt.Fprintln(&b, "", strings.Join(own, " "))
	}
	return b.String()
}

func TestBookAgainstOracle(t *testing.T) {
	macs := []string{"00:00:5e:00:00:01", "00:00:5e:00:00:02", "00:00:5e:00:00:03", "00:00:5e:00:00:04"}
	var addrs []netip.Addr
	for i := range 6 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}))
	}
	seeds := uint64(100)
	if testing.Short() { // on an emulated processor each takes as long as fifty here
		seeds = 20
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 1))
		pick := func() string { return macs[r.IntN(len(macs))] }
		addr := func() netip.Addr { return addrs[r.IntN(len(addrs))] }
		b := NewBook()
		o := &oracle{
			table: map[netip.Addr]Neighbour{}, silent: map[netip.Addr]bool{}, since: map[netip.Addr]time.Time{}, leases: map[netip.Addr]Given{},
			spoke: map[string]time.Time{}, quiet: map[string]time.Time{}, names: map[string][sources]string{},
		}
		now := t0
		owned := map[string]string{}
		for _, m := range macs {
			owned[m] = "" // pinned: none comes or goes
		}
		b.Names(now, owned)
		b.Leases(now, "f", nil)
		var story []string
		for range 60 {
			now = now.Add(time.Duration(r.IntN(90)) * time.Second)
			before := b.Things(now)
			var changed bool
			name := func(mac string, s Source, n string) {
				names := o.names[mac]
				if n != "" {
					names[s] = n
				}
				o.names[mac] = names
			}
			switch r.IntN(6) {
			case 0, 1:
				n := Neighbour{Addr: addr(), MAC: pick(), Interface: "br-lan", Seen: now}
				story = append(story, fmt.Sprint(now.Sub(t0), " ", n.Addr, " at ", n.MAC))
				changed = b.Neighbour(now, n)
				o.neighbour(now, n)
			case 2:
				n := Neighbour{Addr: addr(), Interface: "br-lan", State: []State{Gone, Silent}[r.IntN(2)]}
				story = append(story, fmt.Sprint(now.Sub(t0), " ", n.Addr, " lost ", n.State))
				changed = b.Neighbour(now, n)
				o.neighbour(now, n)
			case 3:
				var all []Given
				given := map[netip.Addr]Given{}
				for range r.IntN(4) {
					g := Given{MAC: pick(), Addr: addr()}
					if r.IntN(2) == 0 {
						g.Expires = now.Add(time.Duration(r.IntN(600)) * time.Second)
					}
					if _, twice := given[g.Addr]; !twice {
						given[g.Addr] = g
						all = append(all, g)
					}
				}
				for a, g := range given {
					if was, ok := o.leases[a]; !ok || was.MAC != g.MAC || !was.Expires.Equal(g.Expires) {
						o.spoke[g.MAC] = now
					}
				}
				o.leases = given
				story = append(story, fmt.Sprint(now.Sub(t0), " leases ", all))
				changed = b.Leases(now, "f", all)
			case 4:
				h := Heard{MAC: pick(), Interface: "br-lan", Source: []Source{MDNS, DHCP}[r.IntN(2)], Name: []string{"", "a", "b"}[r.IntN(3)]}
				story = append(story, fmt.Sprint(now.Sub(t0), " heard ", h.MAC, h.Source, h.Name))
				changed = b.Heard(now, h)
				o.spoke[h.MAC] = now
				name(h.MAC, h.Source, h.Name)
			case 5:
				mac := pick()
				owned[mac] = []string{"", "x", "y"}[r.IntN(3)]
				story = append(story, fmt.Sprint(now.Sub(t0), " owner ", owned))
				changed = b.Names(now, owned)
				names := o.names[mac]
				names[Owner] = owned[mac]
				o.names[mac] = names
			}
			after := b.Things(now)
			if got, want := plain(after), o.String(now, macs); got != want {
				t.Fatalf("seed %d, %s:\nbook\n%soracle\n%s", seed, strings.Join(story, "\n"), got, want)
			}
			if !changed && !slices.EqualFunc(before, after, Thing.SameButSeen) {
				t.Fatalf("seed %d, %s: said to be no news\n%s%s", seed, strings.Join(story, "\n"), show(before), show(after))
			}
			check(t, b)
		}
	}
}

func TestMemory(t *testing.T) {
	b := NewBook()
	b.Names(t0, map[string]string{printer: "drucker"})
	b.Leases(t0, "f", []Given{{MAC: phone, Addr: ip("192.168.1.60"), Name: "anna"}})
	b.Neighbour(t0, neighbour(printer, "192.168.1.50", t0))
	b.Heard(t0, Heard{MAC: printer, Interface: "br-lan", Source: MDNS, Name: "Laser", Model: "HL-1", Services: []string{"_ipp._tcp"}, VendorClass: "v", Params: []byte{1, 3}})
	b.Neighbour(t0, neighbour("02:00:00:00:00:99", "192.168.1.51", t0)) // a guest of this minute
	m := b.Memory(t0)
	if len(m.Things) != 2 {
		t.Fatalf("%d things are kept", len(m.Things))
	}
	again := NewBook()
	again.Remember(at(time.Hour), m)
	is(t, again, at(time.Hour), printer+` Laser(mdns) printer 192.168.1.50+S
		`+phone+` anna(lease) 192.168.1.60+S
	`)
	th := again.Things(at(time.Hour))[0]
	if !th.FirstSeen.Equal(t0) || !th.LastSeen.Equal(t0) || th.Online || !slices.Equal(th.Services, []string{"_ipp._tcp"}) {
		t.Errorf("%+v", th)
	}
	check(t, again)
	again.Names(at(time.Hour), map[string]string{printer: "drucker", phone: ""})
	if !again.Memory(at(time.Hour)).Equal(m) {
		t.Errorf("it forgot:\n%+v\n%+v", again.Memory(at(time.Hour)), m)
	}
	// a sign of life is not worth a write; a name is
	again.Neighbour(at(2*time.Hour), neighbour(printer, "192.168.1.50", at(2*time.Hour)))
	if !again.Memory(at(2 * time.Hour)).Equal(m) {
		t.Error("a sign of life is written")
	}
	again.Heard(at(2*time.Hour), Heard{MAC: phone, Interface: "br-lan", Source: DHCP, Name: "otto"})
	if again.Memory(at(2 * time.Hour)).Equal(m) {
		t.Error("a name is not written")
	}
	// files can be edited
	again.Remember(t0, Memory{Things: []Remembered{{MAC: "no"}, {MAC: "01:00:00:00:00:01"}, {MAC: "00:00:5E:00:00:01"}, {MAC: "00:00:5e:00:00:09", Address: ip("224.0.0.1")}}})
	check(t, again)
}

func FuzzBook(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
	f.Fuzz(func(t *testing.T, ops []byte) {
		b, now := NewBook(), t0
		for i := 0; i+3 < len(ops); i += 4 {
			now = now.Add(time.Duration(ops[i]>>3) * time.Hour)
			mac := MAC([]byte{0, 0, 0x5e, 0, ops[i+1] >> 3, ops[i+1] & 7})
			a := netip.AddrFrom4([4]byte{10, 0, 0, ops[i+2]})
			if ops[i+3]&1 != 0 {
				a = netip.AddrFrom16([16]byte{0: 0xfd, 15: ops[i+2]})
			}
			switch ops[i] & 7 {
			case 0, 1:
				b.Neighbour(now, Neighbour{Addr: a, MAC: mac, Interface: "a", Seen: now, State: State(ops[i+3] >> 1 % 3)})
			case 2:
				b.Leases(now, "f", []Given{{Addr: a, MAC: mac, Guess: a.Is6(), Name: "l"}})
			case 3:
				b.Heard(now, Heard{MAC: mac, Source: DHCP, Name: string(ops[i:])})
			case 4:
				b.Names(now, map[string]string{mac: "o"})
			case 5:
				b.Interfaces(now, nil)
			case 6:
				b.forget(now)
			case 7:
				b.dropLeast(now, Owner)
			}
			check(t, b)
			b.Things(now)
		}
	})
}
