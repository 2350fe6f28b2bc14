package coord

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	nouns "subnetd/subnetd/mesh"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

func TestLabel(t *testing.T) {
	for in, want := range map[string]string{
		"": "node", "nas": "nas", "NAS": "nas", "nas.lan": "nas", "Anna's Phone": "anna-s-phone", "Anna’s iPhone": "anna-s-iphone", "a_b": "a-b",
		"-a-": "a", "---": "node", "..": "node", ".nas": "node", "ü": "node", "日本": "node", "x\x00y": "xy", "a\nb": "ab", "<script>": "script", "*": "node",
		strings.Repeat("a", 300): strings.Repeat("a", 60), strings.Repeat("a", 59) + "-b": strings.Repeat("a", 59), "\xff\xfe": "node", "İ": "i",
	} {
		if got := label(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// Whatever hosts call themselves, each has a name of its own that is a DNS label.
func TestHostileNames(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		for _, name := range []string{"", "node", "NODE", "node.evil.test", "node-1", "-node-", "n\x00ode", "nöde", "\xffnode", "node\n", strings.Repeat("n", 7_000), strings.Repeat("ü", 200)} {
			for range 2 {
				m.member(name)
			}
		}
		long := strings.Repeat("a", 300)
		for range 12 {
			m.member(long)
		}
		m.invariants()
		for _, n := range m.c.Nodes() {
			first, rest, _ := strings.Cut(n.Name, ".")
			if rest != domain || len(first) > maxLabel || label(first) != first && len(first) < 60 {
				t.Errorf("a node is called %q", n.Name)
			}
		}
	})
}

func TestFree(t *testing.T) {
	taken := map[string]bool{}
	long := strings.Repeat("a", 60)
	for range 1200 {
		name := free(long, taken)
		if taken[name] || len(name) > maxLabel {
			t.Fatalf("%q", name)
		}
		taken[name] = true
	}
}

func TestRename(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		a, b := m.member("a"), m.member("b")
		_, err := m.c.SetDevices(t.Context(), a.node, []Device{{Name: "tv"}})
		m.must(err)
		for _, bad := range []string{"", "b", "B", "tv", "-x", "x.y", "x y", strings.Repeat("x", 61), "ü"} {
			saves := m.disk.count(LedgerFile)
			if _, err := m.c.Rename(t.Context(), "a", bad); !errors.As(err, new(BadRequest)) {
				t.Errorf("rename to %q: %v", bad, err)
			}
			if m.disk.count(LedgerFile) != saves {
				t.Errorf("rename to %q wrote", bad)
			}
		}
		n, err := m.c.Rename(t.Context(), "A."+strings.ToUpper(domain)+".", "Kitchen")
		if err != nil || n.Name != "kitchen."+domain {
			t.Fatalf("%+v, %v", n, err)
		}
		var devices []string
		for _, r := range m.c.snap.Load().dns.ExtraRecords {
			devices = append(devices, r.Name)
		}
		if want := []string{"tv.kitchen." + domain, "tv." + domain}; !slices.Equal(devices, want) {
			t.Errorf("devices are called %q, want %q", devices, want)
		}
		a.host.Hostname = "other"
		a.mustTell()
		if n := m.node(a.node); n.Name != "kitchen" || n.Hostname != "other" {
			t.Errorf("what the owner named is called %q", n.Name)
		}
		b.host.Hostname = "kitchen"
		b.mustTell()
		if n := m.node(b.node); n.Name != "kitchen-1" {
			t.Errorf("called %q", n.Name)
		}
		if _, err := m.c.Rename(t.Context(), "nobody", "x"); !errors.Is(err, ErrUnknownNode) {
			t.Errorf("rename of nobody: %v", err)
		}
		m.invariants()
	})
}

// A host that calls itself like another's number is not taken for it.
func TestFindNumber(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		a, b := m.member("a"), m.member("b")
		id := fmt.Sprint(int64(m.node(a.node).ID))
		b.host.Hostname = id
		b.mustTell()
		if _, err := m.c.Remove(t.Context(), id); !errors.As(err, new(BadRequest)) {
			t.Errorf("remove %s: %v", id, err)
		}
		if n := len(m.c.Nodes()); n != 2 {
			t.Errorf("%d nodes", n)
		}
		_, err := m.c.Remove(t.Context(), number4(m.node(b.node).Number).String())
		m.must(err)
		if m.node(b.node) != nil {
			t.Error("another was removed")
		}
	})
}

// A device that is known by an ID keeps its addresses through any names, and gives them
// to nobody else who is called the same.
func TestDevicesByID(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		a := m.member("a")
		m.member("b")
		set := func(ds ...Device) (names []string, addrs [][]netip.Addr) {
			out, err := m.c.SetDevices(t.Context(), a.node, ds)
			m.must(err)
			for _, d := range out {
				names, addrs = append(names, strings.TrimSuffix(d.Name, "."+domain)), append(addrs, d.Addresses)
			}
			m.invariants()
			return names, addrs
		}
		check := func(what string, names []string, want ...string) {
			t.Helper()
			if !slices.Equal(names, want) {
				t.Errorf("%s: called %q, want %q", what, names, want)
			}
		}
		_, before := set(Device{Name: "tv", V6: true}, Device{Name: "nas"})
		names, one := set(Device{Name: "tv", V6: true, ID: "1"}, Device{Name: "nas", ID: "2"})
		check("IDs come", names, "tv", "nas")
		if !reflect.DeepEqual(before, one) {
			t.Errorf("with IDs they are at %v, were at %v", one, before)
		}
		names, two := set(Device{Name: "screen", V6: true, ID: "1"}, Device{Name: "tv", ID: "2"})
		check("renamed", names, "screen", "tv")
		if !reflect.DeepEqual(one, two) {
			t.Errorf("renamed they are at %v, were at %v", two, one)
		}
		names, three := set(Device{Name: "tv", V6: true, ID: "3"}, Device{Name: "screen", ID: "1"}, Device{Name: "b", ID: "4"})
		check("another tv", names, "tv", "screen", "b-1")
		if three[0][0] == two[1][0] || three[1][0] != two[0][0] {
			t.Errorf("a new tv at %v after one at %v; the screen at %v", three[0], two[1], three[1])
		}
		_, four := set(Device{Name: "tv", ID: "3"})
		_, five := set(Device{Name: "tv", V6: true, ID: "3"})
		_, six := set(Device{Name: "tv", ID: "3"})
		_, seven := set(Device{Name: "tv", V6: true, ID: "3"})
		if len(four[0]) != 1 || len(six[0]) != 1 || !reflect.DeepEqual(five, seven) {
			t.Errorf("without IPv6, with, without, with: %v, %v, %v, %v", four, five, six, seven)
		}
		if _, err := m.c.SetDevices(t.Context(), a.node, []Device{{ID: strings.Repeat("x", maxText+1)}}); !errors.As(err, new(BadRequest)) {
			t.Errorf("a long ID: %v", err)
		}
	})
}

// Devices have names and addresses of their own, also those that are called the
// same; they keep them while they stay.
func TestDevices(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		a, b := m.member("tv"), m.member("b")
		p := b.stream()
		pass(time.Second)
		set := func(ds ...Device) map[string]string {
			out, err := m.c.SetDevices(t.Context(), a.node, ds)
			m.must(err)
			got := map[string]string{}
			for i, d := range out {
				if n := len(d.Addresses); n == 0 || n > 2 || (n == 2) != ds[i].V6 {
					t.Errorf("device %+v has %v", ds[i], d.Addresses)
				}
				got[d.Name] = fmt.Sprint(d.Addresses)
			}
			if len(got) != len(ds) {
				t.Errorf("devices %v are called %v", ds, got)
			}
			pass(time.Second)
			m.invariants()
			b.check(p, "devices")
			return got
		}
		one := set(Device{Name: "printer", V6: true}, Device{Name: "Printer", V6: true}, Device{Name: "tv", V6: false}, Device{Name: "tv-1", V6: false}, Device{Name: "printer.lan", V6: false})
		if one["printer."+domain] == "" || one["printer-1."+domain] == "" || one["tv-1."+domain] == "" {
			t.Errorf("devices %v", one)
		}
		two := set(Device{Name: "tv", V6: false}, Device{Name: "printer", V6: true})
		for name, addrs := range two {
			if one[name] != addrs {
				t.Errorf("%s was at %s and is at %s", name, one[name], addrs)
			}
		}
		saves, gen := m.disk.count(LedgerFile), m.c.snap.Load().gen
		set(Device{Name: "tv", V6: false}, Device{Name: "printer", V6: true})
		if m.disk.count(LedgerFile) != saves || m.c.snap.Load().gen != gen {
			t.Error("the same devices once more are news")
		}
		set()
		three := set(Device{Name: "tv", V6: true}, Device{Name: "printer", V6: true})
		for name, addrs := range three {
			for _, before := range one {
				if strings.Fields(before)[0] == strings.Fields(addrs)[0] {
					t.Errorf("%s has the address %s, which a device had that is gone", name, addrs)
				}
			}
		}
		if _, err := m.c.SetDevices(t.Context(), a.node, make([]Device, maxDevices+1)); !errors.As(err, new(BadRequest)) {
			t.Errorf("too many devices: %v", err)
		}
		if _, err := m.c.SetDevices(t.Context(), key.NewNode().Public(), nil); !errors.Is(err, errGone) {
			t.Errorf("devices of nobody: %v", err)
		}
	})
}

// No address is given twice in the life of a ledger, and none that clients take
// for something else.
func TestAddresses(t *testing.T) {
	d := &draft{now: time.Now()}
	d.nodes, d.byKey = map[tailcfg.NodeID]*node{}, map[key.NodePublic]*node{}
	d.touched = map[tailcfg.NodeID]bool{}
	seen4, seen6 := map[uint32]bool{}, map[netip.Addr]bool{}
	taken := append(taken4, pool4)
	for i := range 600 {
		n, err := d.byMachine(key.NewMachine().Public())
		if err != nil {
			t.Fatal(err)
		}
		d.rekey(n, key.NewNode().Public())
		a := number4(n.Number)
		switch {
		case seen4[n.Number] || seen6[n.V6]:
			t.Fatalf("%v or %v is given twice", a, n.V6)
		case !pool4.Contains(a) || !pool6.Contains(n.V6) || n.V6.As16()[8]&0x80 == 0:
			t.Fatalf("%v, %v", a, n.V6)
		}
		for _, p := range taken[:len(taken)-1] {
			if p.Contains(a) {
				t.Fatalf("%v is of %v", a, p)
			}
		}
		seen4[n.Number], seen6[n.V6] = true, true
		if i%3 == 0 {
			d.remove(n.ID)
		}
	}
}

func TestReserved(t *testing.T) {
	for a, want := range map[string]bool{
		"100.64.0.0": true, "100.64.0.255": true, "100.64.1.0": false, "100.100.100.100": true, "100.100.0.9": true, "100.115.92.1": true,
		"100.115.93.255": true, "100.115.94.0": false, "100.127.255.254": true, "100.127.254.255": false,
	} {
		if got := reserved(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s reserved: %v", a, got)
		}
	}
}

// After an old backup is put back, in whatever order the machines come again,
// each has the address it had: no one has what is another's in his peers' memory.
func TestAddressesAfterRestore(t *testing.T) {
	var machines []key.MachinePublic
	for range 200 {
		machines = append(machines, key.NewMachine().Public())
	}
	join := func(order []int) map[int]netip.Addr {
		d := &draft{}
		d.nodes, d.touched = map[tailcfg.NodeID]*node{}, map[tailcfg.NodeID]bool{}
		out := map[int]netip.Addr{}
		for _, i := range order {
			n, err := d.byMachine(machines[i])
			if err != nil {
				t.Fatal(err)
			}
			out[i] = number4(n.Number)
		}
		return out
	}
	first := join(rand.Perm(len(machines)))
	for range 5 {
		moved := 0
		for i, a := range join(rand.Perm(len(machines))) {
			if first[i] != a {
				moved++
			}
		}
		if moved > 4 { // two who wish for one address: one in 200 runs has such a pair
			t.Errorf("%d of %d machines have another address", moved, len(machines))
		}
	}
}

// A member tells of the devices behind it among its services: they get names and
// addresses, of which it hears, and nobody hears of the words. What it says nothing of
// stays, and too much changes nothing.
func TestDevicesBehindMember(t *testing.T) {
	bubble(t, func(t *testing.T, m *mesh) {
		a, b := m.member("a"), m.member("b")
		p := b.stream()
		pass(time.Second)
		tell := func(all bool, ss ...tailcfg.Service) []nouns.Device {
			t.Helper()
			a.host.Services = append([]tailcfg.Service{{Proto: tailcfg.PeerAPI4, Port: 9}}, ss...)
			if all {
				a.host.Services = append(a.host.Services, tailcfg.Service{Proto: nouns.DevicesService, Port: uint16(len(ss))})
			}
			a.mustTell()
			pass(time.Minute)
			m.invariants()
			b.check(p, "devices")
			if n := m.node(a.node); len(n.Services) != 1 {
				t.Errorf("members hear of %v", n.Services)
			}
			out := []nouns.Device{}
			for _, v := range m.c.snap.Load().self(m.node(a.node)).CapMap[nouns.DevicesCap] {
				var d nouns.Device
				m.must(json.Unmarshal([]byte(v), &d))
				out = append(out, d)
			}
			return out
		}
		printer := tailcfg.Service{Proto: nouns.DeviceService, Port: 1, Description: "printer 02:00:00:00:00:01"}
		nas := tailcfg.Service{Proto: nouns.DeviceService, Description: "nas"}
		one := tell(true, printer, nas)
		if len(one) != 2 || one[0].Name != "printer" || one[0].MAC != "02:00:00:00:00:01" || one[0].Full != "printer."+domain || len(one[0].Mesh) != 2 ||
			one[1].Full != "nas."+domain || one[1].MAC != "" || len(one[1].Mesh) != 1 {
			t.Fatalf("%+v", one)
		}
		if two := tell(false); !reflect.DeepEqual(one, two) {
			t.Errorf("without a word of devices: %+v", two)
		}
		many := []tailcfg.Service{printer}
		for i := range maxBehind + 10 {
			many = append(many, tailcfg.Service{Proto: nouns.DeviceService, Description: fmt.Sprint("d", i)})
		}
		if three := tell(true, many...); len(three) != maxBehind || !reflect.DeepEqual(three[0], one[0]) {
			t.Errorf("%d devices, the first %+v", len(three), three[0])
		}
		if four := tell(true, printer); len(four) != 1 || !reflect.DeepEqual(four[0], one[0]) {
			t.Errorf("%+v", four)
		}
		if n := len(tell(true)); n != 0 {
			t.Errorf("%d are left", n)
		}
		if len(m.c.snap.Load().spent) != maxBehind+1 {
			t.Errorf("%d addresses are spent", len(m.c.snap.Load().spent))
		}
	})
}
