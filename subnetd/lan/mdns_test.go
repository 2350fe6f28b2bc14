package lan

import (
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// wire writes answers of mDNS, as things write them: with names that are pointed at.
type wire struct {
	b       []byte
	names   map[string]int
	answers int
}

func response() *wire {
	return &wire{b: []byte{0, 0, 0x84, 0, 0, 0, 0, 0, 0, 0, 0, 0}, names: map[string]int{}}
}

// name writes labels, which are apart by slashes.
func (w *wire) name(s string) {
	if at, ok := w.names[s]; ok {
		w.b = append(w.b, byte(0xc0|at>>8), byte(at))
		return
	}
	w.names[s] = len(w.b)
	label, rest, _ := strings.Cut(s, "/")
	w.b = append(append(w.b, byte(len(label))), label...)
	if rest == "" {
		w.b = append(w.b, 0)
		return
	}
	w.name(rest)
}

func (w *wire) record(name string, kind uint16, ttl uint32, data func()) *wire {
	w.name(name)
	w.b = binary.BigEndian.AppendUint16(w.b, kind)
	w.b = append(w.b, 0x80, 1)
	w.b = binary.BigEndian.AppendUint32(w.b, ttl)
	at := len(w.b)
	w.b = append(w.b, 0, 0)
	data()
	binary.BigEndian.PutUint16(w.b[at:], uint16(len(w.b)-at-2))
	w.answers++
	binary.BigEndian.PutUint16(w.b[6:], uint16(w.answers))
	return w
}

func (w *wire) ptr(name, target string) *wire {
	return w.record(name, typePTR, 4500, func() { w.name(target) })
}

func (w *wire) srv(name, host string) *wire {
	return w.record(name, typeSRV, 120, func() { w.b = append(w.b, 0, 0, 0, 0, 2, 0x77); w.name(host) })
}

func (w *wire) addr(name, addr string) *wire {
	a := ip(addr)
	kind := uint16(typeA)
	if a.Is6() {
		kind = typeAAAA
	}
	return w.record(name, kind, 120, func() { w.b = append(w.b, a.AsSlice()...) })
}

func (w *wire) txt(name string, pairs ...string) *wire {
	return w.record(name, typeTXT, 4500, func() {
		for _, p := range pairs {
			w.b = append(append(w.b, byte(len(p))), p...)
		}
	})
}

func TestParseMDNS(t *testing.T) {
	const hp = "HP LaserJet Pro M404dn 1.0 (Büro)/_ipp/_tcp/local"
	for _, c := range []struct {
		what string
		msg  *wire
		want Said
	}{
		{"a printer", response().ptr("_ipp/_tcp/local", hp).srv(hp, "NPI8B2C4D/local").
			txt(hp, "txtvers=1", "ty=HP LaserJet Pro M404dn", "rp=ipp/print").addr("NPI8B2C4D/local", "192.168.1.50").addr("NPI8B2C4D/local", "fe80::1"),
			Said{Name: "HP LaserJet Pro M404dn 1.0 (Büro)", Model: "HP LaserJet Pro M404dn", Services: []string{"_ipp._tcp"}, Addrs: []netip.Addr{ip("192.168.1.50"), ip("fe80::1")}}},
		{"a Chromecast", response().ptr("_googlecast/_tcp/local", "Chromecast-0123456789abcdef/_googlecast/_tcp/local").
			txt("Chromecast-0123456789abcdef/_googlecast/_tcp/local", "id=0123456789abcdef", "md=Chromecast Ultra", "fn=Wohnzimmer").
			srv("Chromecast-0123456789abcdef/_googlecast/_tcp/local", "01234567-89ab-cdef-0123-456789abcdef/local"),
			Said{Name: "Wohnzimmer", Model: "Chromecast Ultra", Services: []string{"_googlecast._tcp"}}},
		{"a Mac", response().addr("Annas-MacBook-Pro/local", "192.168.1.7").txt("Anna’s MacBook Pro/_device-info/_tcp/local", "model=MacBookPro18,3", "osxvers=22").
			ptr("_services/_dns-sd/_udp/local", "_companion-link/_tcp/local").ptr("7.1.168.192/in-addr/arpa", "x"),
			Said{Name: "Annas-MacBook-Pro", Model: "MacBookPro18,3", Services: []string{"_device-info._tcp", "_companion-link._tcp"}, Addrs: []netip.Addr{ip("192.168.1.7")}}},
		{"a speaker of AirPlay", response().ptr("_raop/_tcp/local", "A0B1C2D3E4F5@Küche/_raop/_tcp/local"), Said{Name: "Küche", Services: []string{"_raop._tcp"}}},
		{"a name asked for by the address", response().ptr("7/1/168/192/in-addr/arpa", "nas/local"), Said{Name: "nas"}},
		{"only numbers", response().addr("BRW0080927AFBCE/local", "10.0.0.1"), Said{Name: "BRW0080927AFBCE", Addrs: []netip.Addr{ip("10.0.0.1")}}},
		{"a service that ends", response().record("_ipp/_tcp/local", typePTR, 0, func() {}), Said{}},
		{"names of the internet", response().addr("www/example/com", "10.0.0.1").ptr("_ipp/_tcp/example", "x/_ipp/_tcp/example"), Said{}},
		{"types that are none", response().ptr("x", "a/_IPP/_tcp/local").ptr("x", "a/ipp/_tcp/local").ptr("x", "a/_i p/_tcp/local").ptr("x", "a/_ipp/_sctp/local"), Said{Name: "a", Services: []string{"_ipp._tcp"}}},
	} {
		got, ok := ParseMDNS(c.msg.b)
		if !ok || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v\n%+v\n%+v", c.what, ok, got, c.want)
		}
	}
	w := response()
	w.record("_ipp/_tcp/local", typePTR, 0, func() { w.name("a/_ipp/_tcp/local") })
	if got, _ := ParseMDNS(w.b); !slices.Equal(got.Ended, []string{"_ipp._tcp"}) || got.Services != nil {
		t.Errorf("a goodbye: %+v", got)
	}
	good := response().addr("nas/local", "10.0.0.1").addr("nas/local", "10.0.0.2").b
	for n := range good {
		got, ok := ParseMDNS(good[:n])
		if ok != (n >= 12) || len(got.Addrs) > 1 {
			t.Errorf("cut at %d: %v %+v", n, ok, got)
		}
	}
	for what, b := range map[string][]byte{
		"a question":           AskMDNS(netip.Addr{}),
		"a name that turns":    {0, 0, 0x84, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 0, 0, 0},
		"a label of no length": {0, 0, 0x84, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x80, 12, 0, 0, 0, 0},
	} {
		if got, ok := ParseMDNS(b); ok {
			t.Errorf("%s: %+v", what, got)
		}
	}
}

// Another reader of DNS understands the question.
func TestAskMDNS(t *testing.T) {
	for _, addr := range []netip.Addr{{}, ip("192.168.100.7"), ip("fd00::1234")} {
		var m dnsmessage.Message
		if err := m.Unpack(AskMDNS(addr)); err != nil {
			t.Fatal(err)
		}
		want := len(asked)
		if addr.IsValid() {
			want++
			if got := m.Questions[want-1].Name.String(); got != map[bool]string{
				true:  "7.100.168.192.in-addr.arpa.",
				false: "4.3.2.1." + strings.Repeat("0.", 26) + "d.f.ip6.arpa.",
			}[addr.Is4()] {
				t.Error(got)
			}
		}
		if len(m.Questions) != want || m.Questions[1].Name.String() != "_ipp._tcp.local." || m.Questions[1].Type != dnsmessage.TypePTR {
			t.Errorf("%d questions: %+v", len(m.Questions), m.Questions)
		}
	}
	for _, s := range asked[1:] {
		if !serviceType(s) {
			t.Error(s)
		}
	}
}

func TestSpoken(t *testing.T) {
	for s, want := range map[string]bool{
		"": false, "nas": true, "Annas-iPhone": true, "Facade": true, "deadbeef": true, "LivingRoomTV2": true, "DESKTOP-1234": true,
		"NPI8B2C4D": false, "BRW0080927AFBCE": false, "01234567-89ab": false, "00:80:77:01": false,
	} {
		if spoken(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
}

func FuzzParseMDNS(f *testing.F) {
	f.Add(response().ptr("_ipp/_tcp/local", "a.b/_ipp/_tcp/local").srv("a.b/_ipp/_tcp/local", "h/local").txt("a.b/_ipp/_tcp/local", "ty=x").addr("h/local", "10.0.0.1").b)
	f.Add([]byte{0, 0, 0x84, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := ParseMDNS(b)
		if !ok && !reflect.DeepEqual(s, Said{}) {
			t.Errorf("%+v", s)
		}
		if len(s.Services) > maxServices || len(s.Ended) > maxServices || len(s.Addrs) > perThing {
			t.Errorf("%+v", s)
		}
		shown(t, s.Name, s.Model)
		for _, svc := range append(s.Services, s.Ended...) {
			if !serviceType(svc) {
				t.Errorf("%q", svc)
			}
		}
	})
}
