package netns_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// siteConfig is a home router whose LAN speaks with other homes under its own addresses.
const siteConfig = `
[lan]
interfaces = ["lan0"]
expose = "all"
snat = false
[tunnel]
engine = "userspace"
`

// homes are two subnetd routers in one mesh, each with a LAN.
type homes struct {
	hs             *netns.Headscale
	north, south   *netns.Home
	northD, southD *netns.Subnetd
}

// north and south are two homes, each behind a NAT.
var (
	north = netns.HomeSpec{Name: "north", NAT: netns.Easy,
		LAN4: netip.MustParsePrefix("192.168.99.0/24"), LAN6: netip.MustParsePrefix("fd99:99::/64")}
	south = netns.HomeSpec{Name: "south", NAT: netns.Easy,
		LAN4: netip.MustParsePrefix("192.168.88.0/24"), LAN6: netip.MustParsePrefix("fd88:88::/64")}
)

func joinHomes(t *testing.T) *homes {
	t.Helper()
	lab := netns.New(t)
	h := &homes{hs: lab.Headscale(), north: lab.NewHome(north), south: lab.NewHome(south)}
	h.join(lab, siteConfig)
	return h
}

// join starts a daemon in both homes and brings them into the mesh.
func (h *homes) join(lab *netns.Lab, toml string) {
	h.northD, h.southD = lab.Subnetd(h.north.Router, toml), lab.Subnetd(h.south.Router, toml)
	h.northD.UpKey(h.hs, h.hs.PreAuthKey("ana", netns.KeyOptions{}), "north")
	h.southD.UpKey(h.hs, h.hs.PreAuthKey("ana", netns.KeyOptions{}), "south")
	h.hs.ApproveRoutes("north", h.north.LAN4, h.north.LAN6)
	h.hs.ApproveRoutes("south", h.south.LAN4, h.south.LAN6)
}

// TestTwoHomes: hosts of one LAN reach hosts of the other under their own addresses, with packets of every size; and
// with the coordinator gone and both routers restarted they still do.
func TestTwoHomes(t *testing.T) {
	h := joinHomes(t)
	for _, home := range []*netns.Home{h.north, h.south} {
		home.Router.IP("link set wan0 mtu 1492") // as over PPPoE
	}
	wantTwoHomes(t, h, 20_000_000)
}

// wantTwoHomes fetches so many bytes by each family, and kills Headscale for good.
func wantTwoHomes(t *testing.T, h *homes, size int64) {
	t.Helper()
	for _, d := range []*netns.Subnetd{h.northD, h.southD} {
		wantApproved(t, d)
	}
	for _, w := range []struct{ from, to *netns.Host }{{h.north.LAN, h.south.LAN}, {h.south.LAN, h.north.LAN}} {
		wantReach(t, w.from, w.to.Addr4, w.to.Addr6)
		for _, a := range []netip.Addr{w.to.Addr4, w.to.Addr6} {
			wantSender(t, w.from, w.to, a)
		}
	}
	h.south.LAN.ServePayload("[::]:80", 3, size)
	for _, a := range []netip.Addr{h.south.LAN.Addr4, h.south.LAN.Addr6} {
		wantPayload(t, h.north.LAN, "http://"+netip.AddrPortFrom(a, 80).String()+"/", 3, size)
	}

	h.hs.Kill()
	h.northD.Kill9()
	h.southD.Kill9()
	start := time.Now()
	h.northD.Start()
	h.southD.Start()
	wantReach(t, h.north.LAN, h.south.LAN.Addr4, h.south.LAN.Addr6)
	wantReach(t, h.south.LAN, h.north.LAN.Addr4, h.north.LAN.Addr6)
	t.Logf("both routers restarted without their coordinator reach each other after %v", time.Since(start).Round(time.Millisecond))
}

// wantApproved waits until the daemon knows that all it offers is approved: only then other homes accept its LAN.
func wantApproved(t *testing.T, d *netns.Subnetd) {
	t.Helper()
	netns.Eventually(t, 30*time.Second, d.Host.Name+" knows that its routes are approved", func() error {
		out, err := d.CLI("status")
		if err == nil && strings.Contains(out, "not approved") {
			err = errors.New(out)
		}
		return err
	})
}

// wantSender sends 1,400 bytes over UDP from one LAN host to the other, and back, and wants them whole and from the
// sender's own address. The mesh's packets are smaller, so the first datagram each way may be what tells its sender.
func wantSender(t *testing.T, from, to *netns.Host, at netip.Addr) {
	t.Helper()
	server, err := to.ListenPacket("[::]:9999")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := from.ListenPacket("[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	sender := wantDatagram(t, client, server, netip.AddrPortFrom(at, 9999))
	if sender.Addr() != from.Addr4 && sender.Addr() != from.Addr6 {
		t.Errorf("the packet to %v came from %v, not from %v or %v", at, sender, from.Addr4, from.Addr6)
	}
	wantDatagram(t, server, client, sender)
}

func wantDatagram(t *testing.T, from, to net.PacketConn, dst netip.AddrPort) netip.AddrPort {
	t.Helper()
	want, got := bytes.Repeat([]byte{0x5a}, 1400), make([]byte, 2000)
	for range 2 {
		if _, err := from.WriteTo(want, net.UDPAddrFromAddrPort(dst)); err != nil && !errors.Is(err, syscall.EMSGSIZE) {
			t.Fatal(err)
		}
		_ = to.SetReadDeadline(time.Now().Add(time.Second))
		n, sender, err := to.ReadFrom(got)
		if err != nil {
			continue
		}
		if !bytes.Equal(got[:n], want) {
			t.Errorf("of 1,400 bytes to %v came %d, or others", dst, n)
		}
		a := sender.(*net.UDPAddr).AddrPort()
		return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	t.Fatalf("1,400 bytes to %v did not come", dst)
	return netip.AddrPort{}
}

// TestIPv6UnderlayPreferred: two nodes with working IPv4 and IPv6 meet over IPv6.
func TestIPv6UnderlayPreferred(t *testing.T) {
	s := join(t, netns.Public, netns.Public)
	wantReach(t, s.phone.Host, s.home.LAN.Addr4, s.home.LAN.Addr6)
	wantIPv6Path(t, s)
}

func wantIPv6Path(t *testing.T, s *scene) {
	t.Helper()
	netns.Eventually(t, 30*time.Second, "the path to the phone is IPv6", func() error {
		out, err := s.daemon.CLI("ping", s.phone.Host.Name)
		if err != nil {
			return err
		}
		if !strings.Contains(out, "from ["+s.phone.Host.Addr6.String()+"]:") {
			return fmt.Errorf("it is %q", strings.TrimSpace(out))
		}
		return nil
	})
}
