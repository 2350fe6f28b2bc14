package main

import (
	"io"
	"net"
	"net/netip"
	"testing"

	"subnetd/subnetd/host"
)

// at is a connection that says it is from an address.
type at struct {
	net.Conn
	from netip.AddrPort
}

func (c at) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.from) }

// TestLinesLeave: connections from addresses that are gone end, the others stay.
func TestLinesLeave(t *testing.T) {
	l := lines{open: map[*line]struct{}{}}
	stays := map[string]bool{"198.51.100.2": true, "::ffff:198.51.100.2": true, "2001:db8::2": true, "fe80::2%eth0": true, "127.0.0.1": true, "::1": true,
		"198.51.100.3": false, "2001:db8::3": false}
	ends := map[string]net.Conn{}
	for from := range stays {
		a, b := net.Pipe()
		defer b.Close()
		l.open[&line{at{a, netip.AddrPortFrom(netip.MustParseAddr(from), 40000)}, &l}] = struct{}{}
		ends[from] = b
	}
	l.leave(host.Facts{Interfaces: []host.Interface{{Name: "wan", Addrs: []netip.Prefix{
		netip.MustParsePrefix("198.51.100.2/24"), netip.MustParsePrefix("2001:db8::2/64"), netip.MustParsePrefix("fe80::2/64")}}}})
	if len(l.open) != 6 {
		t.Errorf("%d stay, want 6", len(l.open))
	}
	for c := range l.open {
		if err := c.Close(); err != nil || len(l.open) == 6 {
			t.Errorf("%v is not forgotten by its end: %v", c.LocalAddr(), err)
		}
		break
	}
	for from, want := range stays {
		if want {
			continue
		}
		if _, err := ends[from].Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("from %s: %v, want its end", from, err)
		}
	}
}
