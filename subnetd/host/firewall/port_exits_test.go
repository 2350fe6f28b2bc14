package firewall

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const inner1, inner2 = 7101, 7102

// behind has exits share the outer port, on a router with nothing else.
func behind(t *testing.T, f *Firewall, exits ...host.ShareExit) {
	t.Helper()
	if err := f.SetExits(t.Context(), outer, exits); err != nil {
		t.Fatal(err)
	}
	if err := f.Set(t.Context(), shared); err != nil {
		t.Fatal(err)
	}
}

// at is where a socket of the world is.
func at(world netip.Addr, c *net.UDPConn) netip.AddrPort {
	return netip.AddrPortFrom(world, uint16(c.LocalAddr().(*net.UDPAddr).Port))
}

// What WireGuard of an exit's peer sends comes to the exit's interface, what is ours
// among it to us, all else where it came before; and to the world there is one port.
func TestExitsPackets(t *testing.T) {
	neighbourhood(t)
	for _, tt := range []struct {
		name     string
		byDevice uint32
		reload   bool
	}{{"offloaded", 1, false}, {"in software", 0, false}, {"reloaded", 0, true}} {
		t.Run(tt.name, func(t *testing.T) {
			checksums(t, "", "wan0", tt.byDevice)
			checksums(t, "world", "e0", tt.byDevice)
			for _, f := range twins {
				sortedOut(t, f.network, f.router, f.world, tt.reload)
			}
		})
	}
}

func sortedOut(t *testing.T, network string, router, world netip.Addr, reload bool) {
	t.Helper()
	wg, own := mouth(t, "", network, outer), mouth(t, "", network, inner)
	exits := []*net.UDPConn{mouth(t, "", network, inner1), mouth(t, "", network, inner2)}
	var peers []*net.UDPConn
	for range 4 {
		peers = append(peers, mouth(t, "world", network, 0))
	}
	behind(t, New(silent),
		host.ShareExit{Port: inner1, From: []netip.AddrPort{at(world, peers[0]), at(world, peers[1])}},
		host.ShareExit{Port: inner2, From: []netip.AddrPort{at(world, peers[2])}})
	if reload {
		saved := run(t, "nft list table inet "+host.NftExitsTable)
		run(t, "nft delete table inet "+host.NftExitsTable)
		load(t, saved)
	}
	to := netip.AddrPortFrom(router, outer)
	messages := []string{"\x01\x00\x00\x00 initiation", "\x02\x00\x00\x00 response", "\x03\x00\x00\x00 cookie", data + stunCookie, data + strings.Repeat("d", 1300)}
	for i, mouth := range []*net.UDPConn{exits[0], exits[0], exits[1], wg} {
		mine := []string{discoMagic, success}
		send(t, peers[i], to, append(messages, mine...)...)
		want := messages
		if network == "udp4" {
			setsockopt(t, peers[i], unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
			send(t, peers[i], to, data+"no checksum", discoMagic+"no checksum")
			mine, want = append(mine, discoMagic+"no checksum"), append(want[:len(want):len(want)], data+"no checksum")
			setsockopt(t, peers[i], unix.SOL_SOCKET, unix.SO_NO_CHECK, 0)
		}
		send(t, peers[i], to, data+"last", discoMagic+"last")
		got, from := heard(t, mouth)
		if d := cmp.Diff(want, got); d != "" || from != at(world, peers[i]) {
			t.Errorf("%s: of peer %d at %v: %s", network, i, from, d)
		}
		got, _ = heard(t, own)
		if d := cmp.Diff(mine, got); d != "" {
			t.Errorf("%s: our socket from peer %d: %s", network, i, d)
		}
		send(t, mouth, at(world, peers[i]), data, data+"last")
		if got, from = heard(t, peers[i]); len(got) != 1 || from != to {
			t.Errorf("%s: to peer %d from %v: %q", network, i, from, got)
		}
	}
	// Not past the outer port, but on loopback, as what relays bring.
	send(t, peers[0], netip.AddrPortFrom(router, inner1), data+"past")
	loopback := netip.AddrPortFrom(netip.MustParseAddr(map[string]string{"udp4": "127.0.0.1", "udp6": "::1"}[network]), inner1)
	send(t, own, loopback, data, data+"last")
	if got, _ := heard(t, exits[0]); len(got) != 1 {
		t.Errorf("%s: by loopback: %q", network, got)
	}
}

// A hole that an exit's interface made is one flow of the outer port.
func TestExitsBehindFirewall(t *testing.T) {
	neighbourhood(t)
	load(t, fw(""))
	for _, f := range twins {
		exit, peer := mouth(t, "", f.network, inner1), mouth(t, "world", f.network, 0)
		from := at(f.world, peer)
		behind(t, New(silent), host.ShareExit{Port: inner1, From: []netip.AddrPort{from}})
		send(t, peer, netip.AddrPortFrom(f.router, outer), data+"too early")
		send(t, exit, from, data+"last")
		_, router := heard(t, peer)
		send(t, peer, router, data, data+"last")
		if got, _ := heard(t, exit); len(got) != 1 {
			t.Errorf("%s: %q", f.network, got)
		}
		flows := run(t, "conntrack -L -p udp -f ip"+strings.Replace(f.network, "udp", "v", 1))
		if strings.Contains(flows, "7101") || strings.Count(flows, "port="+portText(from)) != 2 {
			t.Errorf("%s: %s", f.network, flows)
		}
	}
}

// The table is there while there are exits. It follows their peers, while no packet
// of another is lost; what somebody took away comes back; no change touches others'.
func TestExitsTable(t *testing.T) {
	fresh(t)
	var log bytes.Buffer
	f := New(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	set := func(exits ...host.ShareExit) {
		t.Helper()
		behind(t, f, exits...)
	}
	set()
	without := run(t, "nft list ruleset")
	a := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("[2001:db8::9]:1")}
	set(host.ShareExit{Port: inner1, From: a}, host.ShareExit{Port: inner2})
	port, own, gen := hooks(t, host.NftPortTable), hooks(t, host.NftExitsTable), generation(t)
	set(host.ShareExit{Port: inner1, From: a}, host.ShareExit{Port: inner2})
	if g := generation(t); g != gen {
		t.Errorf("the same again: %d transactions", g-gen)
	}
	log.Reset()
	a = append(a, netip.MustParseAddrPort("192.0.2.1:2"))
	set(host.ShareExit{Port: inner1, From: a}, host.ShareExit{Port: inner2})
	if h := hooks(t, host.NftExitsTable); h != own || strings.Contains(log.String(), "INFO") {
		t.Errorf("a peer moved: hooks %s, was %s: %s", h, own, log.String())
	}
	if got := run(t, "nft list table inet "+host.NftExitsTable); !strings.Contains(got, "192.0.2.1 . 2 : 7101") {
		t.Errorf("a peer moved: %s", got)
	}
	run(t, "nft delete table inet "+host.NftExitsTable)
	if err := f.Set(t.Context(), shared); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "nft list table inet "+host.NftExitsTable); !strings.Contains(got, "192.0.2.1 . 2 : 7101") {
		t.Errorf("not healed: %s", got)
	}
	if p := hooks(t, host.NftPortTable); p != port {
		t.Errorf("the port's table was touched: %s, was %s", p, port)
	}
	set()
	if got := run(t, "nft list ruleset"); got != without {
		t.Errorf("left: %s", cmp.Diff(without, got))
	}
	set(host.ShareExit{Port: inner1})
	put(t, host.Firewall{}) // the next life has no exits
	if got := run(t, "nft list tables"); got != "" {
		t.Errorf("traces: %s", got)
	}
}

// Ports that cannot be behind the outer one are refused, and all stays.
func TestExitsRefused(t *testing.T) {
	one := host.ShareExit{Port: inner1}
	for _, tt := range []struct {
		outer uint16
		exits []host.ShareExit
	}{{0, []host.ShareExit{one}}, {outer, []host.ShareExit{{}}}, {outer, []host.ShareExit{{Port: outer}}}, {outer, []host.ShareExit{one, one}}} {
		if err := New(silent).SetExits(t.Context(), tt.outer, tt.exits); err == nil || !strings.Contains(err.Error(), "behind port") {
			t.Errorf("%v: %v", tt, err)
		}
	}
}

// Of an address that two peers are said to have, one is served; the order of what
// is said does not matter; mapped addresses are IPv4.
func TestExitsFrom(t *testing.T) {
	a, mapped, b := netip.MustParseAddrPort("192.0.2.1:258"), netip.MustParseAddrPort("[::ffff:192.0.2.1]:258"), netip.MustParseAddrPort("192.0.2.1:1")
	s := fromMap(families()[0], []host.ShareExit{{Port: 772, From: []netip.AddrPort{a, b}}, {Port: 9, From: []netip.AddrPort{mapped}}})
	var got [][]byte
	for _, v := range s.values {
		got = append(got, slices.Concat(v.Key, v.Val))
	}
	want := [][]byte{{192, 0, 2, 1, 0, 1, 0, 0, 3, 4}, {192, 0, 2, 1, 1, 2, 0, 0, 3, 4}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if s := fromMap(families()[1], []host.ShareExit{{Port: 9, From: []netip.AddrPort{mapped, {}}}}); len(s.values) != 0 {
		t.Errorf("%v", s.values)
	}
}
