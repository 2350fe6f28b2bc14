package firewall

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"subnetd/subnetd/host"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const (
	outer, inner = 41001, 7001
	data         = "\x04\x00\x00\x00"
	success      = "\x01\x01\x00\x00" + stunCookie
	failure      = "\x01\x11\x00\x00" + stunCookie
)

var shared = host.Firewall{Share: host.PortShare{Outer: outer, Inner: inner}}

// mouth is a UDP socket in a namespace; port 0: any.
func mouth(t *testing.T, ns, network string, port int) *net.UDPConn {
	t.Helper()
	c := in(t, ns, func() (*net.UDPConn, error) { return net.ListenUDP(network, &net.UDPAddr{Port: port}) })
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func send(t *testing.T, c *net.UDPConn, to netip.AddrPort, texts ...string) {
	t.Helper()
	for _, s := range texts {
		if _, err := c.WriteToUDPAddrPort([]byte(s), to); err != nil {
			t.Fatal(err)
		}
	}
}

// heard is what a socket got up to a datagram that ends with "last".
func heard(t *testing.T, c *net.UDPConn) (texts []string, from netip.AddrPort) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 2048); ; {
		n, src, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatalf("after %q: %v", texts, err)
		}
		if text := string(b[:n]); !strings.HasSuffix(text, "last") {
			texts = append(texts, text)
			continue
		}
		return texts, netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
	}
}

// checksums says whether a device fills in checksums itself; among virtual ones
// nobody looks at them then.
func checksums(t *testing.T, ns, dev string, byDevice uint32) {
	t.Helper()
	in(t, ns, func() (struct{}, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return struct{}{}, err
		}
		defer unix.Close(fd)
		const setTransmitChecksums = 0x17 // ETHTOOL_STXCSUM
		value := &struct{ command, value uint32 }{setTransmitChecksums, byDevice}
		request := struct { // struct ifreq
			name  [unix.IFNAMSIZ]byte
			value unsafe.Pointer
			rest  [16]byte
		}{value: unsafe.Pointer(value)}
		copy(request.name[:], dev)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
		if errno != 0 {
			return struct{}{}, errno
		}
		return struct{}{}, nil
	})
}

// twins are the router and the world in both families.
var twins = []struct {
	network       string
	router, world netip.Addr
}{
	{"udp4", netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")},
	{"udp6", netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")},
}

// What is ours comes to our socket, all else to WireGuard's, whoever computes the
// checksums, also where nft loaded what it had listed; what we send says the outer
// port. Nobody outside reaches the inner one.
func TestSharedPortPackets(t *testing.T) {
	neighbourhood(t)
	put(t, shared)
	for _, tt := range []struct {
		name     string
		byDevice uint32
		reload   bool
	}{{"offloaded", 1, false}, {"in software", 0, false}, {"reloaded", 0, true}} {
		t.Run(tt.name, func(t *testing.T) {
			checksums(t, "", "wan0", tt.byDevice)
			checksums(t, "world", "e0", tt.byDevice)
			if tt.reload {
				saved := listing(t)
				run(t, "nft flush ruleset")
				load(t, saved)
			}
			for _, f := range twins {
				takenApart(t, f.network, f.router, f.world)
			}
		})
	}
}

func takenApart(t *testing.T, network string, router, world netip.Addr) {
	t.Helper()
	wg, own, peer := mouth(t, "", network, outer), mouth(t, "", network, inner), mouth(t, "world", network, 0)
	to := netip.AddrPortFrom(router, outer)
	collision := data + stunCookie // WireGuard's receiver number may be anything
	alien := []string{"\x00\x01\x00\x00" + stunCookie, "\x01\x01\x00\x00none", "TS", "", "\x01\x00\x00\x00 handshake", collision, data + "data"}
	mine := []string{discoMagic, discoMagic + strings.Repeat("x", 1200), success, failure + "tail"}
	direct := netip.AddrPortFrom(router, inner)
	send(t, peer, direct, append(alien[:5:5], mine...)...)
	send(t, peer, to, append(alien, mine...)...)
	if network == "udp4" {
		setsockopt(t, peer, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
		send(t, peer, to, discoMagic+"no checksum")
		mine = append(mine, discoMagic+"no checksum")
		setsockopt(t, peer, unix.SOL_SOCKET, unix.SO_NO_CHECK, 0)
	}
	send(t, peer, to, "last", discoMagic+"last")
	got, from := heard(t, wg)
	if d := cmp.Diff(alien, got); d != "" {
		t.Errorf("%s: WireGuard: %s", network, d)
	}
	got, _ = heard(t, own)
	if d := cmp.Diff(mine, got); d != "" {
		t.Errorf("%s: our socket: %s", network, d)
	}
	send(t, own, from, discoMagic, strings.Repeat("y", 1200))
	send(t, own, from, "last")
	got, from = heard(t, peer)
	if d := cmp.Diff([]string{discoMagic, strings.Repeat("y", 1200)}, got); d != "" || from != to {
		t.Errorf("%s: answers of %v: %s", network, from, d)
	}
	loopback := netip.MustParseAddr(map[string]string{"udp4": "127.0.0.1", "udp6": "::1"}[network])
	local := mouth(t, "", network, 0)
	send(t, local, netip.AddrPortFrom(loopback, outer), discoMagic+"test", discoMagic+"last")
	if got, from = heard(t, own); len(got) != 1 {
		t.Errorf("%s: by loopback: %q", network, got)
	}
	send(t, own, from, "last")
	if _, from = heard(t, local); from != netip.AddrPortFrom(loopback, outer) {
		t.Errorf("%s: on loopback our socket is %v", network, from)
	}
}

func setsockopt(t *testing.T, c syscall.Conn, level, name, value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, name, value) }); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fw is the firewall of an ordinary host.
func fw(open string) string {
	return `table inet fw4
delete table inet fw4
table inet fw4 {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iif lo accept
		meta l4proto ipv6-icmp accept
		` + open + `
	}
	chain srcnat {
		type nat hook postrouting priority srcnat; policy accept;
		oifname wan0 masquerade
	}
}`
}

// The host's own firewall knows one port, and conntrack one flow: where only that
// port is open peers may begin, where nothing is open we may, and a hole that we
// made is WireGuard's, too.
func TestSharedPortBehindFirewall(t *testing.T) {
	neighbourhood(t)
	put(t, shared)
	for _, f := range twins {
		t.Run(f.network, func(t *testing.T) {
			wg, own := mouth(t, "", f.network, outer), mouth(t, "", f.network, inner)
			to := netip.AddrPortFrom(f.router, outer)

			load(t, fw("udp dport 41001 accept"))
			peer := mouth(t, "world", f.network, 0)
			send(t, peer, to, discoMagic+"last", data+"last")
			_, from := heard(t, own)
			heard(t, wg)
			send(t, own, from, "pong last")
			if _, from := heard(t, peer); from != to {
				t.Errorf("the answer is from %v", from)
			}

			load(t, fw(""))
			peer = mouth(t, "world", f.network, 0)
			at := netip.AddrPortFrom(f.world, uint16(peer.LocalAddr().(*net.UDPAddr).Port))
			send(t, peer, to, discoMagic+"too early", data+"too early")
			send(t, own, at, "ping last")
			heard(t, peer)
			send(t, peer, to, discoMagic+"last", data+"last")
			for name, c := range map[string]*net.UDPConn{"we": own, "WireGuard": wg} {
				if got, _ := heard(t, c); len(got) > 0 {
					t.Errorf("with nothing open %s heard %q", name, got)
				}
			}
			flows := ""
			for line := range strings.Lines(run(t, "conntrack -L -p udp -f ip"+strings.Replace(f.network, "udp", "v", 1))) {
				if strings.Contains(line, at.Addr().String()+" ") && strings.Contains(line, "port="+portText(at)+" ") {
					flows += line
				}
			}
			if n := strings.Count(flows, "\n"); n != 1 || !strings.Contains(flows, "sport=41001") || strings.Contains(flows, "7001") {
				t.Errorf("%d flows: %s", n, flows)
			}
		})
	}
}

func portText(a netip.AddrPort) string {
	_, port, _ := net.SplitHostPort(a.String())
	return port
}

// A host on the LAN that has the same port keeps what is for it.
func TestSharedPortOfAnother(t *testing.T) {
	neighbourhood(t)
	put(t, shared)
	load(t, fw(""))
	for _, f := range twins {
		other, peer := mouth(t, "near", f.network, outer), mouth(t, "world", f.network, 0)
		at := netip.AddrPortFrom(f.world, uint16(peer.LocalAddr().(*net.UDPAddr).Port))
		send(t, other, at, discoMagic+"last")
		_, from := heard(t, peer)
		if from != netip.AddrPortFrom(f.router, outer) {
			t.Errorf("%s: NAT made it %v: this test shows nothing", f.network, from)
		}
		send(t, peer, from, discoMagic, success, data, discoMagic+"last")
		got, _ := heard(t, other)
		if d := cmp.Diff([]string{discoMagic, success, data}, got); d != "" {
			t.Errorf("%s: %s", f.network, d)
		}
	}
}

// The table comes alone before there is anything to guard, stays through changes
// of the mesh and through reloads of others' tables, and goes without traces.
func TestSharedPortTable(t *testing.T) {
	fresh(t)
	load(t, fw(""))
	before := ruleset(t)
	f := New(silent)
	set := func(s host.PortShare) {
		t.Helper()
		if err := f.SetShare(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	set(host.PortShare{})
	if d := cmp.Diff(before, ruleset(t)); d != "" {
		t.Errorf("removal of nothing: %s", d)
	}
	set(shared.Share)
	if got := run(t, "nft list tables"); strings.Contains(got, "inet subnetd\n") {
		t.Errorf("not alone: %s", got)
	}
	table, gen := hooks(t, host.NftPortTable), generation(t)
	set(shared.Share)
	put(t, shared)
	if g := generation(t); g != gen {
		t.Errorf("the same again: %d transactions", g-gen)
	}
	cfg := home()
	cfg.Share = shared.Share
	put(t, cfg)
	cfg.SNAT = !cfg.SNAT
	put(t, cfg)
	load(t, fw("tcp dport 22 accept"))
	put(t, cfg)
	if d := cmp.Diff(table, hooks(t, host.NftPortTable)); d != "" {
		t.Errorf("touched: %s", d)
	}
	edge := hooks(t, host.NftTable)
	set(host.PortShare{Outer: outer, Inner: inner + 1})
	if d := cmp.Diff(edge, hooks(t, host.NftTable)); d != "" {
		t.Errorf("another port changed the policy: %s", d)
	}
	if got := run(t, "nft list table inet "+host.NftPortTable); !strings.Contains(got, fmt.Sprint("dport set ", inner+1)) {
		t.Errorf("another port changed nothing: %s", got)
	}
	put(t, home()) // the userspace engine takes over
	if got := run(t, "nft list tables"); strings.Contains(got, host.NftPortTable) {
		t.Errorf("left: %s", got)
	}
	set(shared.Share)
	set(host.PortShare{})
	put(t, host.Firewall{})
	load(t, fw(""))
	if got := run(t, "nft list tables"); got != "table inet fw4\n" {
		t.Errorf("traces: %s", got)
	}
}

// Ports that cannot be shared are refused, and all stays.
func TestSharedPortRefused(t *testing.T) {
	for _, s := range []host.PortShare{{Outer: 1}, {Inner: 1}, {Outer: 1, Inner: 1}} {
		if err := New(silent).SetShare(t.Context(), s); err == nil || !strings.Contains(err.Error(), "cannot be shared") {
			t.Errorf("%v: %v", s, err)
		}
		if _, err := compile(host.Firewall{Share: s}); err == nil {
			t.Errorf("%v compiled", s)
		}
	}
}
