package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Crowd is one host with 254 public addresses, 198.51.100.1 and up: a place from where a test plays many strangers at
// once, who share neither an address nor the bounds that a server sets per address.
type Crowd struct {
	*Host
}

// Crowd makes the crowd's host. A lab has at most one.
func (l *Lab) Crowd() *Crowd {
	l.t.Helper()
	// A bridge takes the lowest MAC of its ports. One that was set stays, also when another host is plugged in, for those
	// who already route through it.
	mac, err := l.inet.Run(context.Background(), "cat", "/sys/class/net/br0/address")
	if err != nil {
		l.t.Fatal(err)
	}
	h := l.newHost("crowd")
	l.inet.ip("link set br0 address " + mac)
	l.public(h, "wan0", l.freePublic())
	l.inet.ip(fmt.Sprintf("route add 198.51.100.0/24 via %s", h.Addr4))
	h.ip("route add local 198.51.100.0/24 dev lo")
	return &Crowd{h}
}

// Addr is the i-th address, counted from 0; after 254 they begin again.
func (c *Crowd) Addr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 51, 100, byte(i%254 + 1)})
}

// DialAs opens a TCP connection of the test process from the i-th address.
func (c *Crowd) DialAs(ctx context.Context, i int, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.Addr(i), 0))}
	var conn net.Conn
	err := c.inside(func() (err error) {
		conn, err = d.DialContext(ctx, "tcp", to.String())
		return err
	})
	return conn, err
}
