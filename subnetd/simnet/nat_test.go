package simnet

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

const (
	inA  = "192.168.1.2:41641"
	inB  = "192.168.1.3:41641"
	inV6 = "[2001:db8::2]:41641"
	far1 = "198.51.100.1:1000"
	far2 = "198.51.100.1:2000" // the same address, another port
	far3 = "198.51.100.3:1000"
	far6 = "[2001:db8:ffff::1]:1000"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func start() time.Time { return time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC) }

func nat(k Kind) *NAT { return NewNAT(k, netip.MustParseAddr("203.0.113.1")) }

// TestMapping: which flows share a port (RFC 4787, 4.1).
func TestMapping(t *testing.T) {
	tests := []struct {
		part               Part
		otherPort, another bool // the same port for another port, another address
	}{
		{Nothing, true, true},
		{Address, true, false},
		{AddressAndPort, false, false},
	}
	for _, tt := range tests {
		n := nat(Kind{Mapping: tt.part})
		one, _ := n.Out(start(), ap(inA), ap(far1))
		if one.Addr() != n.wan {
			t.Fatalf("goes out as %v", one)
		}
		if again, _ := n.Out(start(), ap(inA), ap(far1)); again != one {
			t.Errorf("%v: the same flow has %v and %v", tt.part, one, again)
		}
		if two, _ := n.Out(start(), ap(inA), ap(far2)); (two == one) != tt.otherPort {
			t.Errorf("%v: to another port: %v and %v", tt.part, one, two)
		}
		if three, _ := n.Out(start(), ap(inA), ap(far3)); (three == one) != tt.another {
			t.Errorf("%v: to another address: %v and %v", tt.part, one, three)
		}
		if other, _ := n.Out(start(), ap(inB), ap(far1)); other == one {
			t.Errorf("%v: two hosts share %v", tt.part, one)
		}
	}
}

// TestFiltering: who may come in through a mapping (RFC 4787, 5).
func TestFiltering(t *testing.T) {
	tests := []struct {
		part               Part
		otherPort, another bool
	}{
		{Nothing, true, true},
		{Address, true, false},
		{AddressAndPort, false, false},
	}
	for _, mapping := range []Part{Nothing, Address, AddressAndPort} {
		for _, tt := range tests {
			t.Run(fmt.Sprint(mapping, tt.part), func(t *testing.T) {
				n := nat(Kind{Mapping: mapping, Filtering: tt.part})
				out, _ := n.Out(start(), ap(inA), ap(far1))
				for _, from := range []struct {
					addr string
					ok   bool
				}{{far1, true}, {far2, tt.otherPort}, {far3, tt.another}} {
					in, ok := n.In(start(), ap(from.addr), out)
					if ok != from.ok || ok && in != ap(inA) {
						t.Errorf("%s comes in: %v to %v, want %v", from.addr, ok, in, from.ok)
					}
				}
				if _, ok := n.In(start(), ap(far1), netip.AddrPortFrom(n.wan, out.Port()+1)); ok {
					t.Error("a port nobody has lets in")
				}
			})
		}
	}
}

// TestTimeout: a mapping lives as long as something goes out (RFC 4787, 4.3).
func TestTimeout(t *testing.T) {
	k := Easy()
	k.Timeout = 30 * time.Second
	n := nat(k)
	now := start()
	one, _ := n.Out(now, ap(inA), ap(far1))
	now = now.Add(29 * time.Second)
	if _, ok := n.In(now, ap(far1), one); !ok {
		t.Error("gone too early")
	}
	now = now.Add(time.Second)
	if _, ok := n.In(now, ap(far1), one); ok {
		t.Error("what came in kept it alive")
	}
	two, _ := n.Out(now, ap(inA), ap(far1))
	if two == one {
		t.Error("the mapping came back after its time")
	}
	now = now.Add(29 * time.Second)
	if three, _ := n.Out(now, ap(inA), ap(far3)); three != two {
		t.Error("the socket lost its port while something goes out")
	}
	now = now.Add(29 * time.Second)
	if _, ok := n.In(now, ap(far3), two); !ok {
		t.Error("what goes out does not keep it alive")
	}
	if _, ok := n.In(now, ap(far1), two); ok {
		t.Error("who was long not sent to may still answer")
	}
}

// TestPlain: addresses stay, the filter holds.
func TestPlain(t *testing.T) {
	for _, tt := range []struct {
		name     string
		kind     Kind
		in, out  string
		stranger string
	}{
		{"firewall", Firewall(), "203.0.113.7:41641", far1, far3},
		{"v6 behind an easy NAT", Easy(), inV6, far6, "[2001:db8:ffff::2]:1000"},
		{"v6 behind a hard NAT", Hard(), inV6, far6, "[2001:db8:ffff::2]:1000"},
	} {
		n := nat(tt.kind)
		if _, ok := n.In(start(), ap(tt.out), ap(tt.in)); ok {
			t.Errorf("%s: lets in what was not asked for", tt.name)
		}
		if out, ok := n.Out(start(), ap(tt.in), ap(tt.out)); !ok || out != ap(tt.in) {
			t.Errorf("%s: goes out as %v", tt.name, out)
		}
		if in, ok := n.In(start(), ap(tt.out), ap(tt.in)); !ok || in != ap(tt.in) {
			t.Errorf("%s: the answer goes to %v, %v", tt.name, in, ok)
		}
		if _, ok := n.In(start(), ap(tt.stranger), ap(tt.in)); ok {
			t.Errorf("%s: lets in a stranger", tt.name)
		}
	}
}

func TestBlockedAndReset(t *testing.T) {
	if _, ok := nat(Blocked()).Out(start(), ap(inA), ap(far1)); ok {
		t.Error("what is blocked goes out")
	}
	n := nat(FullCone())
	old, _ := n.Out(start(), ap(inA), ap(far1))
	n.Reset(netip.MustParseAddr("203.0.113.2"))
	if _, ok := n.In(start(), ap(far1), old); ok {
		t.Error("the old address is still there")
	}
	if out, _ := n.Out(start(), ap(inA), ap(far1)); out.Addr() != n.wan || out.Addr() == old.Addr() {
		t.Errorf("goes out as %v", out)
	}
}

// TestPortsWrap: after the last port comes the first that is free.
func TestPortsWrap(t *testing.T) {
	n := nat(Easy())
	n.port = 65534
	seen := map[netip.AddrPort]bool{}
	for i := range 4 {
		out, _ := n.Out(start(), netip.AddrPortFrom(netip.MustParseAddr("192.168.1.2"), uint16(i+1)), ap(far1))
		if seen[out] || out.Port() < 1024 {
			t.Errorf("took %v", out)
		}
		seen[out] = true
	}
}
