package firewall

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// edgeFamilies are who is where in the neighbourhood.
var edgeFamilies = []struct{ network, good, own, tv, near, lan, world, wan string }{
	{"ip4:udp", "100.64.0.9", "100.64.0.1", "192.168.77.50", "192.168.77.60", "192.168.77.1", "198.51.100.2", "198.51.100.1"},
	{"ip6:udp", "fd7a::9", "fd7a::1", "fd77::50", "fd77::60", "fd77::1", "2001:db8::2", "2001:db8::1"},
}

// hearing is UDP to some ports of the tv, for one peer.
func hearing(ports ...uint16) host.Firewall {
	cfg := home()
	cfg.LocalLANs, cfg.Sites = nil, nil
	cfg.Rules = nil
	for _, p := range ports {
		cfg.Rules = append(cfg.Rules, allow("100.64.0.9 fd7a::9", "192.168.77.50 fd77::50", p, p, protoUDP))
	}
	return cfg
}

// open lets the same peer reach whatever it may name.
func open() host.Firewall {
	cfg := hearing()
	cfg.Rules = []mesh.Rule{allow("100.64.0.9 fd7a::9", "0.0.0.0/0 ::/0", 0, 65535)}
	return cfg
}

// listen opens a UDP port of an address in ns.
func listen(t *testing.T, ns, addr string, port uint16) *net.UDPConn {
	t.Helper()
	c := in(t, ns, func() (*net.UDPConn, error) {
		return net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), port)))
	})
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return c
}

// from is who sends to c next.
func from(t *testing.T, c *net.UDPConn) netip.AddrPort {
	t.Helper()
	_, a, err := c.ReadFromUDPAddrPort(make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func sendTo(t *testing.T, c *net.UDPConn, to netip.AddrPort, text string) {
	t.Helper()
	if _, err := c.WriteToUDPAddrPort([]byte(text), to); err != nil {
		t.Fatal(err)
	}
}

// A withdrawn rule cuts its flow at once in both directions, although the kernel knows
// it; others go on.
func TestWithdrawnBothWays(t *testing.T) {
	neighbourhood(t)
	t.Run("of a rule's ports", func(t *testing.T) { withdrawn(t, hearing(5000, 5001)) })
	t.Run("of all", func(t *testing.T) { withdrawn(t, open()) })
}

// withdrawn goes from before to one port of it, and back.
func withdrawn(t *testing.T, before host.Firewall) {
	for _, f := range edgeFamilies {
		put(t, before)
		cut, kept := listen(t, "tv", f.tv, 5000), listen(t, "tv", f.tv, 5001)
		a, b := say(t, f.good, net.JoinHostPort(f.tv, "5000"), "a"), say(t, f.good, net.JoinHostPort(f.tv, "5001"), "b")
		toA, toB := from(t, cut), from(t, kept)
		peer, tv := ear(t, "peer", f.network), ear(t, "tv", f.network)
		sendTo(t, cut, toA, "before")
		sendTo(t, kept, toB, "last")
		if got := hear(t, peer); len(got) != 1 {
			t.Errorf("%s: before, the peer hears %q", f.network, got)
		}
		put(t, hearing(5001))
		sendTo(t, cut, toA, "a camera's stream")
		sendTo(t, kept, toB, "last")
		if d := cmp.Diff([]string(nil), hear(t, peer)); d != "" {
			t.Errorf("%s: to the peer: %s", f.network, d)
		}
		_, _ = io.WriteString(a, "after withdrawal")
		if _, err := io.WriteString(b, "last"); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string(nil), hear(t, tv)); d != "" {
			t.Errorf("%s: from the peer: %s", f.network, d)
		}
		put(t, before) // and back
		sendTo(t, cut, toA, "last")
		hear(t, peer)
		_ = cut.Close()
		_ = kept.Close()
	}
}

// What conntrack relates to a flow passes in all four ways: errors tell both ends that
// nobody is there any more, or that a packet is too big.
func TestErrorsPass(t *testing.T) {
	neighbourhood(t)
	t.Run("of a rule's port", func(t *testing.T) { errorsPass(t, hearing(5000)) })
	t.Run("of all", func(t *testing.T) { errorsPass(t, open()) })
}

func errorsPass(t *testing.T, cfg host.Firewall) {
	put(t, cfg)
	for _, f := range edgeFamilies {
		told := func(what string, c net.Conn) {
			t.Helper()
			if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 100)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s: %s: %v", f.network, what, err)
			}
			_ = c.Close()
		}
		told("of the tv, to the peer", say(t, f.good, net.JoinHostPort(f.tv, "5000"), "nobody there"))

		tv := listen(t, "tv", f.tv, 5000)
		c := say(t, f.good, net.JoinHostPort(f.tv, "5000"), "and gone")
		to := from(t, tv)
		_ = tv.Close()
		_ = c.Close()
		told("of the peer, in its own flow", in(t, "tv", func() (net.Conn, error) {
			c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(f.tv), Port: 5000}, net.UDPAddrFromAddrPort(to))
			if err != nil {
				return nil, err
			}
			_, err = c.Write([]byte("are you there"))
			return c, err
		}))

		lan := listen(t, "peer", f.good, 6000)
		c = in(t, "near", func() (net.Conn, error) {
			c, err := net.Dial("udp", net.JoinHostPort(f.good, "6000"))
			if err != nil {
				return nil, err
			}
			_, err = io.WriteString(c, "hello")
			return c, err
		})
		to = from(t, lan)
		if to.Addr().Unmap() != netip.MustParseAddr(f.own) {
			t.Errorf("%s: a neighbour is %v", f.network, to)
		}
		sendTo(t, lan, to, "an answer, without any rule")
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 100)); err != nil {
			t.Errorf("%s: an answer to a neighbour: %v", f.network, err)
		}
		_ = lan.Close()
		if _, err := io.WriteString(c, "still there?"); err != nil {
			t.Fatal(err)
		}
		told("of the peer, to a neighbour", c)
	}
}

// A mesh address as the source is a lie on any other interface, to whomever it goes;
// ours are nobody's to reach but the mesh's and the LANs'.
func TestLiars(t *testing.T) {
	neighbourhood(t)
	cfg := hearing(9)
	cfg.Rules = append(cfg.Rules, mesh.Rule{Srcs: cfg.Rules[0].Srcs, Protos: []uint8{protoUDP},
		Dsts: []mesh.Dest{{Range: span("100.64.0.1"), Ports: mesh.PortRange{First: 9, Last: 9}}, {Range: span("fd7a::1"), Ports: mesh.PortRange{First: 9, Last: 9}}}})
	put(t, cfg)
	for _, f := range edgeFamilies {
		for _, ns := range []string{"near", "world"} {
			run(t, "ip -n "+ns+" address add "+f.good+" dev e0")
		}
		lie := func(ns, src, dst, port, text string) {
			t.Helper()
			in(t, ns, func() (int, error) {
				d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(src), 0))}
				c, err := d.Dial("udp", net.JoinHostPort(dst, port))
				if err != nil {
					return 0, err
				}
				defer c.Close()
				return io.WriteString(c, text)
			})
		}
		router, world, tv, peer := ear(t, "", f.network), ear(t, "world", f.network), ear(t, "tv", f.network), ear(t, "peer", f.network)
		lie("near", f.good, f.world, "1", "to the world")
		lie("near", f.near, f.world, "9", "last")
		if d := cmp.Diff([]string(nil), hear(t, world)); d != "" {
			t.Errorf("%s: %s", f.network, d)
		}
		run(t, "ip -n near route add 100.64.0.10 via 192.168.77.1")
		run(t, "ip -n near route add fd7a::a via fd77::1")
		other := map[string]string{"ip4:udp": "100.64.0.10", "ip6:udp": "fd7a::a"}[f.network]
		lie("near", f.good, other, "1", "to the mesh")
		lie("near", f.near, other, "9", "last")
		if d := cmp.Diff([]string(nil), hear(t, peer)); d != "" {
			t.Errorf("%s: %s", f.network, d)
		}
		run(t, "ip -n near route del 100.64.0.10")
		run(t, "ip -n near route del fd7a::a")
		run(t, "ip -n world route add 192.168.77.0/24 via 198.51.100.1")
		run(t, "ip -n world route add fd77::/64 via 2001:db8::1")
		lie("world", f.good, f.tv, "1", "to the LAN")
		lie("world", f.world, f.tv, "9", "last")
		if d := cmp.Diff([]string(nil), hear(t, tv)); d != "" {
			t.Errorf("%s: %s", f.network, d)
		}
		run(t, "ip -n world route del 192.168.77.0/24")
		run(t, "ip -n world route del fd77::/64")
		lie("world", f.world, f.own, "1", "to our own address, from outside")
		lie("world", f.good, f.wan, "1", "to our outer address")
		lie("near", f.good, f.own, "1", "to our own address, from the LAN")
		lie("near", f.good, f.lan, "1", "to our address there")
		lie("near", f.near, f.own, "2", "a neighbour may")
		lie("", f.own, f.own, "3", "and we ourselves")
		say(t, f.good, net.JoinHostPort(f.own, "1"), "another port")
		say(t, f.good, net.JoinHostPort(f.own, "9"), "last")
		if d := cmp.Diff([]string{"a neighbour may 2", "and we ourselves 3"}, hear(t, router)); d != "" {
			t.Errorf("%s: %s", f.network, d)
		}
		for _, ns := range []string{"near", "world"} {
			run(t, "ip -n "+ns+" address del "+f.good+" dev e0")
		}
	}
}

// Both ends of a connection hear of the mesh's MTU, whoever begins.
func TestSegmentsFit(t *testing.T) {
	neighbourhood(t)
	run(t, "ip link set mesh0 mtu 1280")
	cfg := home()
	cfg.LocalLANs, cfg.Sites = nil, nil
	put(t, cfg)
	for _, f := range edgeFamilies {
		want := map[string]int{"ip4:udp": 1280 - 40, "ip6:udp": 1280 - 60}[f.network]
		for _, way := range []struct{ server, client, src, addr string }{{"tv", "peer", f.good, f.tv}, {"peer", "near", f.near, f.good}} {
			l := in(t, way.server, func() (net.Listener, error) { return net.Listen("tcp", net.JoinHostPort(way.addr, "80")) })
			c := in(t, way.client, func() (net.Conn, error) {
				d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(way.src)}}
				return d.Dial("tcp", l.Addr().String())
			})
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			for end, c := range map[string]net.Conn{"client": c, "server": s} {
				if got := segment(t, c); got > want || got < want-20 { // an option may take some of it
					t.Errorf("%s, %s to %s: segments of the %s: %d, want %d", f.network, way.client, way.server, end, got, want)
				}
				_ = c.Close()
			}
			_ = l.Close()
		}
	}
}

// segment is how much one packet of a connection carries.
func segment(t *testing.T, c net.Conn) int {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if failed := raw.Control(func(fd uintptr) { n, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG) }); failed != nil || err != nil {
		t.Fatal(failed, err)
	}
	return n
}
