package leases

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

var (
	start = time.Unix(1700000000, 0)
	cfg   = Config{Router: netip.MustParsePrefix("192.168.77.1/24"), First: netip.MustParseAddr("192.168.77.100"), Last: netip.MustParseAddr("192.168.77.109"),
		Static: map[MAC]netip.Addr{{2, 9}: netip.MustParseAddr("192.168.77.105"), {2, 8}: netip.MustParseAddr("192.168.77.10")}}
)

func device(n int) MAC { return MAC{2, 1, byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)} }

// join is a device's way to an address: the offer, then the lease. It begins anew when
// another took what it was offered.
func join(t *testing.T, p *Pool, mac MAC, now time.Time) netip.Addr {
	t.Helper()
	for range 3 {
		a, ok := p.Offer(mac, netip.Addr{}, now)
		if !ok {
			return netip.Addr{}
		}
		if length, ok := p.Take(mac, a, "", now); ok && length == Short {
			return a
		}
	}
	t.Fatalf("%v was offered what it does not get", mac)
	return netip.Addr{}
}

func renew(t *testing.T, p *Pool, mac MAC, addr netip.Addr, now time.Time) {
	t.Helper()
	if length, ok := p.Take(mac, addr, "", now); !ok || length != Long {
		t.Fatalf("%v renews %v: %v, %v", mac, addr, length, ok)
	}
}

func TestLease(t *testing.T) {
	p := New(cfg, nil, start)
	a := join(t, p, device(1), start)
	if length, ok := p.Take(device(1), a, "", start.Add(time.Second)); !ok || length != Short {
		t.Errorf("asked again at once: %v, %v", length, ok)
	}
	if len(Kept(p.All())) != 0 {
		t.Error("a device that has not renewed is to be written to disk")
	}
	renew(t, p, device(1), a, start.Add(Short/2))
	kept := string(Kept(p.All()))
	renew(t, p, device(1), a, start.Add(5*time.Hour))
	if again := string(Kept(p.All())); again != kept || kept != fmt.Sprintf("%v %v *\n", device(1), a) {
		t.Errorf("kept %q, after another renewal %q", kept, again)
	}
	if b, _ := p.Offer(device(1), netip.MustParseAddr("192.168.77.101"), start.Add(999*time.Hour)); b != a {
		t.Errorf("after its lease is over the device is offered %v, not its own %v", b, a)
	}
}

func TestAddresses(t *testing.T) {
	p := New(cfg, nil, start)
	for _, c := range []struct {
		mac  MAC
		addr string
		ok   bool
	}{
		{MAC{2, 9}, "192.168.77.105", true},
		{MAC{2, 8}, "192.168.77.10", true},   // outside of the pool
		{MAC{2, 8}, "192.168.77.101", false}, // it has another
		{device(1), "192.168.77.105", false}, // another's
		{device(1), "192.168.77.10", false},
		{device(1), "192.168.77.1", false},
		{device(1), "192.168.77.99", false},
		{device(1), "192.168.77.110", false},
		{device(1), "192.168.1.100", false},
		{device(1), "::1", false},
		{device(1), "192.168.77.100", true},
		{device(2), "192.168.77.100", false}, // taken
		{device(1), "192.168.77.101", true},  // it moves
		{device(2), "192.168.77.100", true},
	} {
		if _, ok := p.Take(c.mac, netip.MustParseAddr(c.addr), "", start); ok != c.ok {
			t.Errorf("%v takes %s: %v", c.mac, c.addr, ok)
		}
	}
	if a, ok := p.Offer(MAC{2, 9}, netip.MustParseAddr("192.168.77.102"), start); !ok || a.String() != "192.168.77.105" {
		t.Errorf("offered to a device with an address of its own: %v", a)
	}
	if a, ok := p.Offer(device(3), netip.MustParseAddr("192.168.77.107"), start); !ok || a.String() != "192.168.77.107" {
		t.Errorf("offered to one that wishes a free one: %v", a)
	}
}

// TestStarvation: a stranger invents devices for a day, and renews some. Known ones keep
// their addresses, nothing of the stranger's outlives him, and the pool stays as large as it is.
func TestStarvation(t *testing.T) {
	p := New(cfg, nil, start)
	known := map[MAC]netip.Addr{}
	for i := range 5 {
		a := join(t, p, device(i), start)
		renew(t, p, device(i), a, start.Add(Short/2))
		known[device(i)] = a
	}
	kept := string(Kept(p.All()))
	full := 0
	for i := range 20_000 {
		now := start.Add(Short/2 + time.Duration(i)*5*time.Second/2)
		if a, ok := p.Offer(device(1000+i), netip.Addr{}, now); ok {
			p.Take(device(1000+i), a, "", now)
		} else {
			full++
		}
		if i%1400 == 1399 { // before their leases are over
			for mac, a := range known {
				renew(t, p, mac, a, now)
			}
		}
	}
	if full < 18_000 || len(p.All()) > p.Size() {
		t.Errorf("%d of 20,000 were refused; %d leases of %d", full, len(p.All()), p.Size())
	}
	if now := string(Kept(p.All())); now != kept {
		t.Errorf("what is written to disk was\n%snow\n%s", kept, now)
	}
	later := start.Add(24 * time.Hour)
	if a := join(t, p, device(77), later); !a.IsValid() {
		t.Error("a new device finds no address when the stranger is gone")
	}
}

// TestPressure: with no address left, the device goes that is missed least.
func TestPressure(t *testing.T) {
	p := New(cfg, nil, start)
	var macs []MAC
	for i := range 9 { // one of the ten has an owner
		macs = append(macs, device(i))
		a := join(t, p, device(i), start.Add(time.Duration(i)*time.Second))
		if i != 4 {
			renew(t, p, device(i), a, start.Add(Short/2+time.Duration(i)*time.Second))
		}
	}
	if _, ok := p.Offer(device(100), netip.Addr{}, start.Add(time.Minute)); ok {
		t.Error("offered what somebody has")
	}
	a, _ := p.Offer(macs[4], netip.Addr{}, start)
	if got := join(t, p, device(100), start.Add(2*Short)); got != a {
		t.Errorf("%v was given away first, not %v of the one that never renewed", got, a)
	}
	old, _ := p.Offer(macs[0], netip.Addr{}, start)
	if got := join(t, p, device(101), start.Add(2*Long)); got != old && got != a {
		t.Errorf("%v was given away second, not the oldest", got)
	}
}

func TestDecline(t *testing.T) {
	p := New(cfg, nil, start)
	bad := 0
	for i := range 20 {
		a := join(t, p, device(i), start)
		if p.Decline(device(i), a, start) {
			bad++
			if b, _ := p.Offer(device(i), a, start); b == a {
				t.Errorf("%v is offered again at once", a)
			}
		} else {
			p.Release(device(i), a, start)
		}
	}
	if bad != 2 {
		t.Errorf("%d addresses of ten are put aside, not a quarter", bad)
	}
	if p.Decline(device(1), netip.MustParseAddr("192.168.77.1"), start) {
		t.Error("a device declined what it has not")
	}
}

// TestOracle holds two promises over random lives: no address is two devices', and a lease
// that runs is kept.
func TestOracle(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		p, now := New(cfg, nil, start), start
		type held struct {
			mac   MAC
			until time.Time
		}
		book := map[netip.Addr]held{}
		version, kept := p.Version(), ""
		for range 400 {
			now = now.Add(time.Duration(r.IntN(20)) * time.Minute)
			mac := device(r.IntN(14))
			a, ok := p.Offer(mac, netip.Addr{}, now)
			if !ok {
				continue
			}
			if r.IntN(4) == 0 {
				a = netip.AddrFrom4([4]byte{192, 168, 77, byte(98 + r.IntN(14))})
			}
			length, ok := p.Take(mac, a, "", now)
			if h := book[a]; ok && h.mac != mac && h.until.After(now) {
				t.Fatalf("seed %d: %v is given to %v while it is %v's until %v", seed, a, mac, h.mac, h.until)
			}
			if ok {
				for b, h := range book { // it has given back what it had
					if h.mac == mac {
						delete(book, b)
					}
				}
				book[a] = held{mac, now.Add(length)}
			}
			text := string(Kept(p.All()))
			if version == p.Version() && kept != text {
				t.Fatalf("seed %d: what is kept changed, and the version did not", seed)
			}
			version, kept = p.Version(), text
			if r.IntN(10) == 0 {
				p.Release(mac, a, now)
				if h := book[a]; h.mac == mac {
					delete(book, a)
				}
			}
		}
	}
}

func TestKept(t *testing.T) {
	p := New(cfg, nil, start)
	a := join(t, p, device(1), start)
	p.Take(device(1), a, "printer", start)
	renew(t, p, device(1), a, start.Add(Short))
	text := string(Kept(p.All()))
	known, err := ParseKept(text)
	if err != nil || len(known) != 1 || known[0].Name != "printer" {
		t.Fatalf("%q: %+v, %v", text, known, err)
	}
	p = New(cfg, known, start)
	if _, ok := p.Take(device(2), a, "", start.Add(time.Hour)); ok {
		t.Error("after a restart, another gets the address that a known device still uses")
	}
	damaged, err := ParseKept("02:00:00:00:00:01 192.168.77.100 *\nno lease\n02:00:00:00:00:02 x y\n\xff\n02:00:00:00:00:03 192.168.77.102 a..b\n")
	if err == nil || len(damaged) != 2 || damaged[1].Name != "a" {
		t.Errorf("%+v, %v", damaged, err)
	}
}

func TestName(t *testing.T) {
	for in, want := range map[string]string{"printer": "printer", "TV-2.home": "TV-2", "": "", "-x": "", "a b": "", "a\nb": "", "ä": "", "*": ""} {
		if got := Name(in); got != want {
			t.Errorf("Name(%q) = %q", in, got)
		}
	}
}

func FuzzParseKept(f *testing.F) {
	f.Add("02:00:00:00:00:01 192.168.77.100 printer\n")
	f.Fuzz(func(t *testing.T, text string) {
		known, _ := ParseKept(text)
		p := New(cfg, known, start)
		again, err := ParseKept(string(Kept(p.All())))
		if err != nil || len(again) != len(p.All()) {
			t.Errorf("what is kept is not read again: %v", err)
		}
	})
}
