package netns

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Device adds a thing to a home's LAN, with interface eth0 and the addresses that end in n: 192.168.77.51 and
// fd77:77::51 for 51. The LAN host is its switch, and keeps its own addresses.
func (l *Lab) Device(home *Home, name string, n int) *Host {
	l.t.Helper()
	lan, d := home.LAN, l.newHost(name)
	bits4, bits6 := home.LAN4.Bits(), home.LAN6.Bits()
	gw4, gw6 := home.LAN4.Addr().Next(), home.LAN6.Addr().Next()
	if _, err := lan.Run(l.t.Context(), "ip", "link", "show", "sw0"); err != nil {
		lan.ip("link add sw0 type bridge", "link set eth0 master sw0", "addr flush dev eth0", "link set sw0 up",
			fmt.Sprintf("addr add %s/%d dev sw0", lan.Addr4, bits4), fmt.Sprintf("addr add %s/%d dev sw0 nodad", lan.Addr6, bits6),
			fmt.Sprintf("route replace default via %s", gw4), fmt.Sprintf("route replace ::/0 via %s", gw6))
	}
	port := "to-" + name
	l.link(d, "eth0", lan, port)
	lan.ip("link set " + port + " master sw0")
	b4, b6 := home.LAN4.Addr().As4(), home.LAN6.Addr().As16()
	b4[3], b6[15] = byte(n), byte(n/10*16+n%10)
	d.Addr4, d.Addr6 = netip.AddrFrom4(b4), netip.AddrFrom16(b6)
	d.ip(fmt.Sprintf("addr add %s/%d dev eth0", d.Addr4, bits4), fmt.Sprintf("addr add %s/%d dev eth0 nodad", d.Addr6, bits6),
		fmt.Sprintf("route add default via %s", gw4), fmt.Sprintf("route add ::/0 via %s", gw6))
	return d
}

// MAC is the hardware address of an interface, in lower case with colons.
func (h *Host) MAC(ifname string) string {
	h.lab.t.Helper()
	out, err := h.Run(h.lab.t.Context(), "cat", "/sys/class/net/"+ifname+"/address")
	if err != nil {
		h.lab.t.Fatalf("%s: %v: %s", h.Name, err, out)
	}
	return strings.TrimSpace(out)
}

// Far makes a server on a public network of its own: the first is 198.51.100.2 and 2001:db8:100::2, behind the internet's
// router. The usual public hosts are all neighbours of each other, and an exit leads to no neighbour of its own.
func (l *Lab) Far(name string) *Host {
	l.t.Helper()
	h := l.newHost(name)
	n := 4 * l.far
	l.far++
	port := fmt.Sprintf("far%d", n)
	l.link(h, "wan0", l.inet, port)
	h.Addr4, h.Addr6 = netip.AddrFrom4([4]byte{198, 51, 100, byte(n + 2)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:100:%x::2", n))
	l.inet.ip(fmt.Sprintf("addr add 198.51.100.%d/30 dev %s", n+1, port), fmt.Sprintf("addr add 2001:db8:100:%x::1/64 dev %s nodad", n, port))
	h.ip(fmt.Sprintf("addr add %s/30 dev wan0", h.Addr4), fmt.Sprintf("addr add %s/64 dev wan0 nodad", h.Addr6),
		fmt.Sprintf("route add default via 198.51.100.%d", n+1), fmt.Sprintf("route add ::/0 via 2001:db8:100:%x::1", n))
	return h
}

// SecondWAN gives a router another provider: interface wan1 with public addresses of its own, which are given, behind which
// it translates for its LAN. The routes of the first go before.
func (l *Lab) SecondWAN(home *Home) (v4, v6 netip.Addr) {
	l.t.Helper()
	n := 4 * l.far
	l.far++
	port := fmt.Sprintf("far%d", n)
	l.link(home.Router, "wan1", l.inet, port)
	v4, v6 = netip.AddrFrom4([4]byte{198, 51, 100, byte(n + 2)}), netip.MustParseAddr(fmt.Sprintf("2001:db8:100:%x::2", n))
	l.inet.ip(fmt.Sprintf("addr add 198.51.100.%d/30 dev %s", n+1, port), fmt.Sprintf("addr add 2001:db8:100:%x::1/64 dev %s nodad", n, port))
	home.Router.ip(fmt.Sprintf("addr add %s/30 dev wan1", v4), fmt.Sprintf("addr add %s/64 dev wan1 nodad", v6),
		fmt.Sprintf("route add default via 198.51.100.%d dev wan1 metric 20", n+1),
		fmt.Sprintf("route add ::/0 via 2001:db8:100:%x::1 dev wan1 metric 2000", n))
	home.Router.nft(fmt.Sprintf("table inet home2 { chain post { type nat hook postrouting priority srcnat;\n"+
		"oifname wan1 ip saddr %s masquerade\noifname wan1 ip6 saddr %s masquerade\n}; }", home.LAN4, home.LAN6))
	return v4, v6
}

// SendFrames puts Ethernet frames on the wire of an interface, whoever they say they are from.
func (h *Host) SendFrames(ifname string, frames [][]byte) error {
	return h.inside(func() error {
		link, err := net.InterfaceByName(ifname)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, f := range frames {
			err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: link.Index, Halen: 6})
			if err != nil && err != unix.ENOBUFS {
				return err
			}
		}
		return nil
	})
}
