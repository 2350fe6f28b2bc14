package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"golang.org/x/net/dns/dnsmessage"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix     { return netip.MustParsePrefix(s) }
func resolver(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func node(name string, addrs ...string) mesh.Node {
	n := mesh.Node{Name: name}
	for _, a := range addrs {
		n.Addresses = append(n.Addresses, netip.PrefixFrom(addr(a), addr(a).BitLen()))
	}
	return n
}

// world is a home with a printer, in a mesh with a phone and a site that has names
// of its own.
func world() Names {
	return Names{
		Netmap: &mesh.Netmap{
			Self: node("home.mesh.internal.", "100.64.0.1", "fd7a:115c:a1e0::1"),
			Peers: []mesh.Node{
				node("Phone.mesh.internal.", "100.64.0.2", "fd7a:115c:a1e0::2"),
				node("wpad.mesh.internal.", "100.64.0.3"),
				node("friend.other.net.", "100.99.0.1"),
				node("", "100.64.0.4"),
			},
			Names: mesh.Names{
				MagicDNS: true, Search: []string{"mesh.internal"},
				Records: []mesh.Record{
					{Name: "printer.mesh.internal", Addr: addr("100.64.1.1")},
					{Name: "printer.mesh.internal", Addr: addr("fd7a:115c:a1e0:1::1")},
					{Name: "a.b.mesh.internal", Addr: addr("100.64.1.2")},
					{Name: "grafana.example.com", Addr: addr("100.64.0.2")},
				},
				Routes: map[string][]string{
					"mesh.internal": {}, "corp.example": {"10.0.0.53", "10.0.0.54:5353"}, "far.mesh.internal": {"100.64.0.1"},
					"doh.example": {"https://dns.example/q"},
				},
				Upstream: []string{"9.9.9.9", "100.100.100.100", "[2620:fe::fe]:53"},
				Hidden:   []string{".secret.example", "one.example"},
			},
		},
		Domains: []string{"mesh.internal", "corp.example", "doh.example", "friend.other.net", "64.100.in-addr.arpa",
			"0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"},
		Devices: []mesh.Device{{Name: "printer", LAN: []netip.Addr{addr("192.168.1.50"), addr("fd00::50")}},
			{Name: "tv", LAN: []netip.Addr{addr("192.168.1.51")}}, {Name: "nas", LAN: []netip.Addr{addr("192.168.2.5")}}},
		Translated: []host.DeviceMap{{Mesh: addr("100.64.1.1"), LAN: addr("192.168.1.50")}, {Mesh: addr("fd7a:115c:a1e0:1::1"), LAN: addr("fd00::50")}},
		Exposed:    []netip.Prefix{prefix("192.168.2.0/24")},
		Own:        []netip.Addr{addr("100.64.0.1"), addr("192.168.1.1")},
	}
}

func (k kind) String() string {
	return [...]string{"found", "nodata", "nxdomain", "forward", "refuse"}[k]
}

// short is a verdict in one line.
func (v verdict) short() string {
	out := []string{v.kind.String()}
	for _, a := range v.addrs {
		out = append(out, a.String())
	}
	if v.ptr != "" {
		out = append(out, v.ptr)
	}
	for _, to := range v.to {
		out = append(out, to.String())
	}
	if v.system {
		out = append(out, "system")
	}
	if v.zone != "" {
		out = append(out, "of "+v.zone)
	}
	return strings.Join(out, " ")
}

func TestDecide(t *testing.T) {
	const a, aaaa, ptr, mx, any, soa, ns = dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypePTR, dnsmessage.TypeMX, dnsmessage.TypeALL, dnsmessage.TypeSOA, dnsmessage.TypeNS
	z := NewZone(world())
	up := "forward 9.9.9.9:53 [2620:fe::fe]:53"
	for _, c := range []struct {
		name string
		t    dnsmessage.Type
		who  Asker
		want string
	}{
		{"phone.mesh.internal", a, Home, "found 100.64.0.2 of mesh.internal"},
		{"phone.mesh.internal", aaaa, Member, "found fd7a:115c:a1e0::2 of mesh.internal"},
		{"phone.mesh.internal", mx, Home, "nodata of mesh.internal"},
		{"phone.mesh.internal", any, Home, "found of mesh.internal"},
		{"home.mesh.internal", a, Home, "found 100.64.0.1 of mesh.internal"},
		{"wpad.mesh.internal", aaaa, Home, "nodata of mesh.internal"},
		{"nobody.mesh.internal", a, Home, "nxdomain of mesh.internal"},
		{"x.phone.mesh.internal", a, Home, "nxdomain of mesh.internal"},
		{"mesh.internal", a, Home, "nodata of mesh.internal"},
		{"mesh.internal", soa, Home, "found of mesh.internal"},
		{"b.mesh.internal", a, Home, "nodata of mesh.internal"},
		{"b.mesh.internal", soa, Home, "nodata of mesh.internal"},
		// names of one label
		{"phone", a, Home, "found 100.64.0.2 of phone"},
		{"phone", mx, Home, "nodata of phone"},
		{"phone", ns, Home, up},
		{"phone", typeDS, Home, up},
		{"wpad", a, Home, up},
		{"nobody", a, Home, up},
		{"", ns, Home, up},
		// devices: the shortest way for each
		{"printer.mesh.internal", a, Home, "found 192.168.1.50 of mesh.internal"},
		{"printer.mesh.internal", a, Member, "found 100.64.1.1 of mesh.internal"},
		{"printer.home.mesh.internal", a, Home, "found 192.168.1.50 of mesh.internal"},
		{"printer.home.mesh.internal", aaaa, Home, "found fd00::50 of mesh.internal"},
		{"printer.home.mesh.internal", a, Member, "found 100.64.1.1 of mesh.internal"},
		{"printer.home.mesh.internal", aaaa, Member, "found fd7a:115c:a1e0:1::1 of mesh.internal"},
		{"tv.home.mesh.internal", a, Home, "found 192.168.1.51 of mesh.internal"},
		{"tv.home.mesh.internal", a, Member, "nxdomain of mesh.internal"},
		{"nas.home.mesh.internal", a, Member, "found 192.168.2.5 of mesh.internal"},
		// hosts outside of our domains
		{"grafana.example.com", a, Home, "found 100.64.0.2 of grafana.example.com"},
		{"grafana.example.com", mx, Home, "nodata of grafana.example.com"},
		{"www.grafana.example.com", a, Home, up},
		{"friend.other.net", a, Home, "found 100.99.0.1 of friend.other.net"},
		{"x.friend.other.net", a, Home, "nxdomain of friend.other.net"},
		{"other.net", a, Home, up},
		// reverse
		{"2.0.64.100.in-addr.arpa", ptr, Home, "found Phone.mesh.internal of 64.100.in-addr.arpa"},
		{"2.0.64.100.in-addr.arpa", any, Home, "found of 64.100.in-addr.arpa"},
		{"2.0.64.100.in-addr.arpa", a, Home, "nodata of 64.100.in-addr.arpa"},
		{"9.0.64.100.in-addr.arpa", ptr, Home, "nxdomain of 64.100.in-addr.arpa"},
		{"0.64.100.in-addr.arpa", ptr, Home, "nodata of 64.100.in-addr.arpa"},
		{"7.64.100.in-addr.arpa", ptr, Home, "nxdomain of 64.100.in-addr.arpa"},
		{"64.100.in-addr.arpa", soa, Home, "found of 64.100.in-addr.arpa"},
		{"1.1.64.100.in-addr.arpa", ptr, Member, "found printer.mesh.internal of 64.100.in-addr.arpa"},
		{"1.0.99.100.in-addr.arpa", ptr, Home, "found friend.other.net of 1.0.99.100.in-addr.arpa"},
		{"2.0.99.100.in-addr.arpa", ptr, Home, up},
		{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa", ptr, Home, "found Phone.mesh.internal of 0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"},
		{"3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa", ptr, Home, "nxdomain of 0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"},
		{"50.1.168.192.in-addr.arpa", ptr, Home, up},
		{"50.1.168.192.in-addr.arpa", ptr, Member, "nxdomain of 50.1.168.192.in-addr.arpa"},
		{"8.8.8.8.in-addr.arpa", ptr, Member, up},
		// others know
		{"corp.example", a, Home, "forward 10.0.0.53:53 10.0.0.54:5353"},
		{"www.corp.example", a, Member, "forward 10.0.0.53:53 10.0.0.54:5353"},
		{"xcorp.example", a, Home, up},
		{"doh.example", a, Home, "forward"},
		{"x.far.mesh.internal", a, Home, "forward"}, // this machine would ask us again
		// protocol
		{"a.localhost", a, Home, "found 127.0.0.1 of localhost"},
		{"localhost", aaaa, Home, "found ::1 of localhost"},
		{"localhost", mx, Home, "nodata of localhost"},
		{"x.onion", a, Home, "nxdomain of onion"},
		{"mesh.internal", 252, Home, "refuse"},
		{"example.com", 251, Home, "refuse"},
		{"example.com", dnsmessage.TypeOPT, Home, "refuse"},
		// what an exit does not resolve
		{"x.secret.example", a, Member, "refuse"},
		{"one.example", a, Member, "refuse"},
		{"two.one.example", a, Member, up},
		{"x.secret.example", a, Home, up},
	} {
		v := z.decide(c.name, c.t, c.who)
		if got := v.short(); got != c.want {
			t.Errorf("%s %v by %d: got %q, want %q", c.name, c.t, c.who, got, c.want)
		}
	}
	if got := z.Unusable(); !slices.Equal(got, []string{"https://dns.example/q"}) {
		t.Errorf("unusable: %q", got)
	}
}

// A home that serves things may be shown with their addresses behind its own: to us they are the things'.
func TestNodeWithThings(t *testing.T) {
	n := world()
	n.Netmap.Peers = append(n.Netmap.Peers, node("south.mesh.internal.", "100.64.0.8", "fd7a:115c:a1e0::8", "100.64.1.8", "fd7a:115c:a1e0:1::8"))
	n.Netmap.Names.Records = append(n.Netmap.Names.Records, mesh.Record{Name: "cam.south.mesh.internal", Addr: addr("100.64.1.8")},
		mesh.Record{Name: "cam.south.mesh.internal", Addr: addr("fd7a:115c:a1e0:1::8")})
	z := NewZone(n)
	for _, c := range []struct {
		name string
		t    dnsmessage.Type
		want string
	}{
		{"south.mesh.internal", dnsmessage.TypeA, "found 100.64.0.8 of mesh.internal"},
		{"south.mesh.internal", dnsmessage.TypeAAAA, "found fd7a:115c:a1e0::8 of mesh.internal"},
		{"cam.south.mesh.internal", dnsmessage.TypeA, "found 100.64.1.8 of mesh.internal"},
	} {
		if got := z.decide(c.name, c.t, Home).short(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	for a, want := range map[string]string{"100.64.0.8": "south.mesh.internal", "100.64.1.8": "cam.south.mesh.internal", "fd7a:115c:a1e0:1::8": "cam.south.mesh.internal"} {
		if got := z.reverse[addr(a)]; got != want {
			t.Errorf("%s is called %q, want %q", a, got, want)
		}
	}
}

// What this router serves itself, and what it serves for a device, is found by the home
// where members find it.
func TestServices(t *testing.T) {
	n := world()
	n.Services = []string{"page", "drop"}
	n.Served = []netip.Addr{addr("192.168.1.50")}
	n.Netmap.Names.Records = append(n.Netmap.Names.Records, mesh.Record{Name: "Page.home.mesh.internal", Addr: addr("100.64.6.6")})
	n.Devices = append(n.Devices, mesh.Device{Name: "drop", LAN: []netip.Addr{addr("192.168.1.66")}})
	z := NewZone(n)
	const a, aaaa = dnsmessage.TypeA, dnsmessage.TypeAAAA
	for _, c := range []struct {
		name string
		t    dnsmessage.Type
		who  Asker
		want string
	}{
		{"page.home.mesh.internal", a, Home, "found 100.64.0.1 of mesh.internal"},
		{"page.home.mesh.internal", aaaa, Member, "found fd7a:115c:a1e0::1 of mesh.internal"},
		{"drop.home.mesh.internal", a, Member, "found 100.64.0.1 of mesh.internal"},
		{"drop.home.mesh.internal", a, Home, "found 100.64.0.1 of mesh.internal"},
		{"ca.home.mesh.internal", a, Home, "nxdomain of mesh.internal"},
		{"page.mesh.internal", a, Home, "nxdomain of mesh.internal"},
		{"printer.home.mesh.internal", a, Home, "found 100.64.1.1 of mesh.internal"},
		{"printer.home.mesh.internal", a, Member, "found 100.64.1.1 of mesh.internal"},
		{"printer.mesh.internal", a, Home, "found 100.64.1.1 of mesh.internal"},
		{"printer.home.mesh.internal", aaaa, Home, "found fd00::50 of mesh.internal"},
		{"tv.home.mesh.internal", a, Home, "found 192.168.1.51 of mesh.internal"},
		{"1.0.64.100.in-addr.arpa", dnsmessage.TypePTR, Home, "found home.mesh.internal of 64.100.in-addr.arpa"},
	} {
		if got := z.decide(c.name, c.t, c.who).short(); got != c.want {
			t.Errorf("%s %v for %d: %s, want %s", c.name, c.t, c.who, got, c.want)
		}
	}
}

func TestUpstream(t *testing.T) {
	for _, c := range []struct {
		upstream []string
		want     string
	}{
		{nil, "forward system"},
		{[]string{"https://dns.example/q"}, "forward"}, // not past the coordinator's wish
		{[]string{"100.100.100.100"}, "forward"},
		{[]string{"::ffff:1.1.1.1", "1.1.1.1", "0.0.0.0"}, "forward 1.1.1.1:53"},
	} {
		n := world()
		n.Netmap.Names.Upstream = c.upstream
		v := NewZone(n).decide("example.com", dnsmessage.TypeA, Home)
		if got := v.short(); got != c.want {
			t.Errorf("%q: got %q, want %q", c.upstream, got, c.want)
		}
	}
	v := NewZone(Names{}).decide("example.com", dnsmessage.TypeA, Home)
	if got := v.short(); got != "forward system" {
		t.Errorf("without a mesh: got %q", got)
	}
}

// TestOracle compares with a zone that is a list of records.
func TestOracle(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	labels := []string{"a", "b", "c", "mesh", "internal", "corp"}
	pick := func() string {
		n := 1 + rnd.IntN(4)
		var out []string
		for range n {
			out = append(out, labels[rnd.IntN(len(labels))])
		}
		return strings.Join(out, ".")
	}
	types := []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeMX}
	kinds := map[kind]int{}
	for range 4000 {
		n, o := Names{Netmap: &mesh.Netmap{}}, oracle{}
		n.Netmap.Self = node("self.mesh.", "100.64.9.9")
		o.add("self.mesh", addr("100.64.9.9"))
		n.Netmap.Names.Upstream = []string{"9.9.9.9"}
		n.Netmap.Names.Routes = map[string][]string{}
		for range rnd.IntN(3) {
			d := pick()
			n.Domains = append(n.Domains, d)
			o.cuts = append(o.cuts, cut{d, nil})
		}
		for range rnd.IntN(3) {
			d := pick()
			n.Netmap.Names.Routes[d] = []string{"10.0.0.1"}
			o.cuts = append(o.cuts, cut{d, []netip.AddrPort{resolver("10.0.0.1:53")}})
		}
		for range rnd.IntN(5) {
			name, a := pick(), netip.AddrFrom4([4]byte{100, 64, 0, byte(rnd.IntN(250))})
			n.Netmap.Names.Records = append(n.Netmap.Names.Records, mesh.Record{Name: strings.ToUpper(name), Addr: a})
			o.add(name, a)
		}
		z := NewZone(n)
		for range 20 {
			name, typ := pick(), types[rnd.IntN(len(types))]
			got := z.decide(name, typ, Asker(1+rnd.IntN(2)))
			want := o.decide(name, typ)
			kinds[got.kind]++
			if got.kind != want.kind || !slices.Equal(got.addrs, want.addrs) || !slices.Equal(got.to, want.to) {
				t.Fatalf("%s %v: got %q, want %q; names %+v, domains %q", name, typ, got.short(), want.short(), n.Netmap.Names, n.Domains)
			}
			if o.within(name) && got.system {
				t.Fatalf("%s is ours and goes to the system's resolvers", name)
			}
		}
	}
	for k := found; k <= forward; k++ {
		if kinds[k] < 500 {
			t.Errorf("only %d times %v", kinds[k], k)
		}
	}
}

type oracle struct {
	records []mesh.Record
	cuts    []cut
}

type cut struct {
	suffix string
	to     []netip.AddrPort
}

func (o *oracle) add(name string, a netip.Addr) {
	o.records = append(o.records, mesh.Record{Name: name, Addr: a})
}

func (o *oracle) within(name string) bool {
	return slices.ContainsFunc(o.cuts, func(c cut) bool {
		return c.to == nil && ("."+name == "."+c.suffix || strings.HasSuffix(name, "."+c.suffix))
	})
}

func (o *oracle) decide(name string, t dnsmessage.Type) verdict {
	var v verdict
	exists, above := false, false
	for _, r := range o.records {
		exists = exists || r.Name == name
		above = above || strings.HasSuffix(r.Name, "."+name)
		if r.Name == name && t == dnsmessage.TypeA && !slices.Contains(v.addrs, r.Addr) {
			v.addrs = append(v.addrs, r.Addr)
		}
	}
	var best *cut
	for i, c := range o.cuts { // a split with the same suffix goes before the domain
		if name == c.suffix || strings.HasSuffix(name, "."+c.suffix) {
			if best == nil || len(c.suffix) > len(best.suffix) || len(c.suffix) == len(best.suffix) && c.to != nil {
				best = &o.cuts[i]
			}
		}
	}
	switch {
	case exists && len(v.addrs) == 0:
		v.kind = nodata
	case exists:
	case best == nil:
		v.kind, v.to = forward, []netip.AddrPort{resolver("9.9.9.9:53")}
	case best.to != nil:
		v.kind, v.to = forward, best.to
	case above || name == best.suffix:
		v.kind = nodata
	default:
		v.kind = nxdomain
	}
	return v
}

func TestPrefixOf(t *testing.T) {
	for name, want := range map[string]string{
		"4.3.2.1.in-addr.arpa": "1.2.3.4/32", "2.1.in-addr.arpa": "1.2.0.0/16", "0.in-addr.arpa": "0.0.0.0/8",
		"in-addr.arpa": "", "5.4.3.2.1.in-addr.arpa": "", "256.in-addr.arpa": "", "01.in-addr.arpa": "", "+1.in-addr.arpa": "",
		"x.in-addr.arpa": "", ".1.in-addr.arpa": "", "1.2.3.4": "", "-1.in-addr.arpa": "",
		"d.f.ip6.arpa": "fd00::/8", "f.ip6.arpa": "f000::/4", "ip6.arpa": "", "df.ip6.arpa": "", "d..f.ip6.arpa": "", ".d.f.ip6.arpa": "",
		"g.ip6.arpa": "", "F.ip6.arpa": "", strings.Repeat("1.", 32) + "ip6.arpa": "1111:1111:1111:1111:1111:1111:1111:1111/128",
		strings.Repeat("1.", 33) + "ip6.arpa": "",
	} {
		p, ok := prefixOf(name)
		if ok != (want != "") || ok && p.String() != want {
			t.Errorf("%s: got %v %v, want %q", name, p, ok, want)
		}
	}
}

// TestReverseRoundTrip: the name of each address leads back to it.
func TestReverseRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 1000 {
		var b [16]byte
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		for _, a := range []netip.Addr{netip.AddrFrom16(b), netip.AddrFrom4([4]byte(b[:4]))} {
			if p, ok := prefixOf(arpaOf(a)); !ok || p.Addr() != a || !p.IsSingleIP() {
				t.Fatalf("%v became %v", a, p)
			}
		}
	}
}

// arpaOf is the reverse name of an address.
func arpaOf(a netip.Addr) string {
	var out []string
	for _, b := range slices.Backward(a.AsSlice()) {
		if a.Is4() {
			out = append(out, netip.AddrFrom4([4]byte{3: b}).String()[len("0.0.0."):])
		} else {
			out = append(out, string("0123456789abcdef"[b&15]), string("0123456789abcdef"[b>>4]))
		}
	}
	if a.Is4() {
		return strings.Join(out, ".") + ".in-addr.arpa"
	}
	return strings.Join(out, ".") + ".ip6.arpa"
}
