package firewall

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// small is a family of 16 addresses, the last of them the last of all.
func small(i int, v6 bool) netip.Addr {
	if v6 {
		return netip.AddrFrom16([16]byte(append(slices.Repeat([]byte{255}, 15), 0xf0+byte(i))))
	}
	return netip.AddrFrom4([4]byte{255, 255, 255, 0xf0 + byte(i)})
}

func randomRange(r *rand.Rand, v6 bool) mesh.Range {
	a, b := r.IntN(16), r.IntN(16)
	if r.IntN(20) > 0 && a > b { // now and then one that is no range
		a, b = b, a
	}
	return mesh.Range{From: small(a, v6), To: small(b, v6)}
}

func randomRules(r *rand.Rand) []mesh.Rule {
	ports := []mesh.PortRange{{First: 0, Last: 65535}, {First: 80, Last: 80}, {First: 81, Last: 90}, {First: 80, Last: 443}, {First: 65535, Last: 65535}, {First: 9, Last: 8}}
	protos := []uint8{protoTCP, protoUDP, protoICMP, protoICMPv6, protoSCTP, 47, protoTSMP}
	var rules []mesh.Rule
	for range r.IntN(6) {
		var x mesh.Rule
		for range r.IntN(4) {
			x.Srcs = append(x.Srcs, randomRange(r, r.IntN(2) == 0))
		}
		for range r.IntN(4) {
			x.Dsts = append(x.Dsts, mesh.Dest{Range: randomRange(r, r.IntN(2) == 0), Ports: ports[r.IntN(len(ports))]})
		}
		for range r.IntN(3) {
			x.Protos = append(x.Protos, protos[r.IntN(len(protos))])
		}
		rules = append(rules, x)
	}
	return rules
}

func within(x mesh.Range, a netip.Addr) bool {
	return x.From.BitLen() == a.BitLen() && x.From.Compare(a) <= 0 && a.Compare(x.To) <= 0
}

// allowed is the meaning of rules, said as plainly as possible.
func allowed(rules []mesh.Rule, src, dst netip.Addr, proto uint8, port uint16) bool {
	for _, r := range rules {
		if !slices.ContainsFunc(r.Srcs, func(x mesh.Range) bool { return within(x, src) }) {
			continue
		}
		for _, d := range r.Dsts {
			if !within(d.Range, dst) || d.Ports.First > d.Ports.Last {
				continue
			}
			inPorts := d.Ports.First <= port && port <= d.Ports.Last
			named := slices.Contains(r.Protos, proto)
			switch proto {
			case protoICMP, protoICMPv6:
				if (named || len(r.Protos) == 0) && (proto == protoICMPv6) == dst.Is6() {
					return true
				}
			case protoTCP, protoUDP:
				if (named || len(r.Protos) == 0) && inPorts {
					return true
				}
			case protoSCTP:
				if named && inPorts {
					return true
				}
			case protoTSMP:
			default:
				if named && d.Ports == (mesh.PortRange{First: 0, Last: 65535}) {
					return true
				}
			}
		}
	}
	return false
}

// lookup does what the kernel does with an acl; more than one hit is a mistake.
func lookup(t *testing.T, a acl, src, dst netip.Addr, proto uint8, port uint16) bool {
	t.Helper()
	class, hits := -1, 0
	for _, s := range a.sources {
		if within(s.Range, src) {
			class, hits = s.class, hits+1
		}
	}
	if hits > 1 {
		t.Fatalf("sources overlap at %v", src)
	}
	if hits == 0 {
		return false
	}
	hits = 0
	for _, b := range a.classes[class] {
		if within(b.dst, dst) && b.proto == proto && b.ports.First <= port && port <= b.ports.Last {
			hits++
		}
	}
	if hits > 1 {
		t.Fatalf("boxes overlap at %v %d %d", dst, proto, port)
	}
	return hits == 1
}

// Whatever the rules, the compiled list allows what they say and nothing else.
func TestACLMeaning(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 0)) // the same in every run: what is red is so because of a change
	protos := []uint8{protoTCP, protoUDP, protoICMP, protoICMPv6, protoSCTP, 47, protoTSMP, 50}
	ports := []uint16{0, 8, 79, 80, 81, 90, 91, 443, 444, 65535}
	for range 300 {
		rules := randomRules(r)
		for _, v6 := range []bool{false, true} {
			a, err := compileACL(rules, v6)
			if err != nil {
				t.Fatal(err)
			}
			for src := range 16 {
				for range 40 {
					s, d := small(src, v6), small(r.IntN(16), v6)
					proto, port := protos[r.IntN(len(protos))], ports[r.IntN(len(ports))]
					if got, want := lookup(t, a, s, d, proto, port), allowed(rules, s, d, proto, port); got != want {
						t.Fatalf("%v -> %v proto %d port %d: %v, want %v\nrules %+v\nacl %+v", s, d, proto, port, got, want, rules, a)
					}
				}
			}
		}
	}
}

// Range arithmetic against a table of bits.
func TestRanges(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 0)) // the same in every run: what is red is so because of a change
	bits := func(rs []mesh.Range, v6 bool) (out [16]bool) {
		for i := range 16 {
			out[i] = slices.ContainsFunc(rs, func(x mesh.Range) bool { return within(x, small(i, v6)) })
		}
		return out
	}
	apart := func(rs []mesh.Range) bool {
		for i := 1; i < len(rs); i++ {
			if next := rs[i-1].To.Next(); !next.IsValid() || next.Compare(rs[i].From) >= 0 {
				return false
			}
		}
		return true
	}
	for range 2000 {
		v6 := r.IntN(2) == 0
		var a, b []mesh.Range
		for range r.IntN(5) {
			if x := randomRange(r, v6); inFamily(x, v6) {
				a = append(a, x)
			}
		}
		for range r.IntN(5) {
			if x := randomRange(r, v6); inFamily(x, v6) {
				b = append(b, x)
			}
		}
		if m := mergeRanges(a); bits(m, v6) != bits(a, v6) || !apart(m) {
			t.Fatalf("merge %v = %v", a, m)
		}
		s, want := subtractRanges(a, b), bits(a, v6)
		for i, x := range bits(b, v6) {
			want[i] = want[i] && !x
		}
		if bits(s, v6) != want || !apart(s) {
			t.Fatalf("%v minus %v = %v", a, b, s)
		}
	}
}

func TestRangesOf(t *testing.T) {
	in := []netip.Prefix{netip.MustParsePrefix("10.0.0.7/8"), netip.MustParsePrefix("11.0.0.0/9"), netip.MustParsePrefix("0.0.0.0/0"),
		netip.MustParsePrefix("fd00::1/63"), netip.MustParsePrefix("::ffff:1.2.3.4/128"), {}}
	a := netip.MustParseAddr
	if d := cmp.Diff([]mesh.Range{{From: a("0.0.0.0"), To: a("255.255.255.255")}}, rangesOf(in, false), addrs); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]mesh.Range{{From: a("fd00::"), To: a("fd00:0:0:1:ffff:ffff:ffff:ffff")}}, rangesOf(in, true), addrs); d != "" {
		t.Error(d)
	}
}

var addrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// Too much is an error, never half a policy.
func TestACLBounds(t *testing.T) {
	var r mesh.Rule
	for i := range maxSources + 1 {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		r.Srcs = append(r.Srcs, mesh.Range{From: a, To: a})
	}
	r.Dsts = []mesh.Dest{{Range: mesh.Range{From: small(0, false), To: small(1, false)}}}
	var rules []mesh.Rule
	for i := range r.Srcs { // one rule per source, each with another port
		x := mesh.Rule{Srcs: r.Srcs[i : i+1], Dsts: []mesh.Dest{{Range: r.Dsts[0].Range, Ports: mesh.PortRange{First: uint16(i), Last: uint16(i)}}}}
		rules = append(rules, x)
	}
	for _, in := range [][]mesh.Rule{rules, rules[:maxClasses+1]} {
		if _, err := compileACL(in, false); !errors.Is(err, errTooBig) {
			t.Errorf("%d rules: %v", len(in), err)
		}
	}
}

// What is laid into set keys and registers is the same on every byte order;
// words that the kernel keeps in its own order follow the machine.
func TestBytes(t *testing.T) {
	f := families()
	got := tripleKey(netip.MustParseAddr("192.168.77.50"), protoTCP, 8080)
	if d := cmp.Diff([]byte{192, 168, 77, 50, 6, 0, 0, 0, 0x1f, 0x90, 0, 0}, got); d != "" {
		t.Error(d)
	}
	if n := len(tripleKey(netip.MustParseAddr("fd00::1"), protoTCP, 1)); n != 24 {
		t.Errorf("v6 key of %d bytes", n)
	}
	if d := cmp.Diff(append([]byte("br-lan"), make([]byte, 10)...), ifnameKey("br-lan")); d != "" {
		t.Error(d)
	}
	for _, e := range state(expr.CtStateBitNEW) {
		if b, ok := e.(*expr.Bitwise); ok && binary.NativeEndian.Uint32(b.Mask) != expr.CtStateBitNEW {
			t.Errorf("state mask %x", b.Mask)
		}
	}
	for i, want := range [][2]uint32{{9, 10}, {12, 13}} { // NFT_REG32_00 is 8
		if f[i].l4 != want[0] || f[i].port != want[1] {
			t.Errorf("registers %d, %d", f[i].l4, f[i].port)
		}
	}
	// An interval is [from, to+1), network order, open at the end of all.
	a := netip.MustParseAddr
	v := appendInterval(nil, mesh.Range{From: a("10.0.0.1"), To: a("10.0.0.255")}, nil)
	v = appendInterval(v, mesh.Range{From: a("255.0.0.0"), To: a("255.255.255.255")}, nil)
	want := []nftables.SetElement{{Key: []byte{10, 0, 0, 1}}, {Key: []byte{10, 0, 1, 0}, IntervalEnd: true}, {Key: []byte{255, 0, 0, 0}}}
	if d := cmp.Diff(want, v); d != "" {
		t.Error(d)
	}
	if s, ok := userdata.GetString(userdata.AppendString(nil, userdata.TypeComment, "x"), userdata.TypeComment); !ok || s != "x" {
		t.Errorf("comment %q", s)
	}
}

func TestCompileNames(t *testing.T) {
	for _, cfg := range []host.Firewall{{Interface: "sixteencharacter"}, {Interface: "mesh0", LANs: []string{""}}} {
		if _, err := compile(cfg); err == nil {
			t.Errorf("%+v compiled", cfg)
		}
	}
}
