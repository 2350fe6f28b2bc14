package firewall

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"subnetd/subnetd/host"

	"golang.org/x/sys/unix"
)

// A tunnel's own packets look, where addresses are translated last, as if the tunnel
// had brought them: the kernel remembers where a packet was before it was wrapped.
// They are ours, and nobody's to translate.
func TestTunnelPacketsKeepTheirAddress(t *testing.T) {
	neighbourhood(t)
	for _, tt := range []struct{ network, from, world, length, inside string }{
		{"ip4:udp", "198.51.100.9", "198.51.100.2", "/24", "100.64.9.9"},
		{"ip6:udp", "2001:db8::9", "2001:db8::2", "/64", "fd7a::9:9"},
	} {
		// No WireGuard is needed for that: another tunnel, which takes over the mark, does.
		run(t, "ip address add "+tt.from+tt.length+" dev wan0")
		run(t, "ip link add tun0 type vxlan id 5 dstport 4789 local "+tt.from+" remote "+tt.world)
		run(t, "ip link set tun0 up")
		run(t, "ip route add "+tt.inside+" dev tun0")
		run(t, "ip neigh add "+tt.inside+" lladdr 02:00:00:00:00:09 dev tun0")
		cfg := home()
		cfg.Interface, cfg.SNAT = "tun0", true
		put(t, cfg)
		world := ear(t, "world", tt.network)
		d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
			failed := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, host.Mark) })
			if failed != nil {
				return failed
			}
			return err
		}}
		c, err := d.DialContext(context.Background(), "udp", net.JoinHostPort(tt.inside, "9"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("inside")); err != nil {
			t.Fatal(err)
		}
		if err := world.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		buf, n, from := make([]byte, 2048), 0, (*net.IPAddr)(nil)
		for !bytes.Contains(buf[:n], []byte("inside")) { // what IPv6 tells a new interface's neighbours is wrapped, too
			if n, from, err = world.ReadFromIP(buf); err != nil {
				t.Fatalf("%s: %v", tt.network, err)
			}
		}
		if got, _ := netip.AddrFromSlice(from.IP); got.Unmap() != netip.MustParseAddr(tt.from) {
			t.Errorf("%s: the tunnel's packet is from %v, not %s", tt.network, got, tt.from)
		}
		run(t, "ip link del tun0")
	}
}
