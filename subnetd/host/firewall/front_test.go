package firewall

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"subnetd/subnetd/host"
	"subnetd/subnetd/mesh"

	"golang.org/x/sys/unix"
)

// fronted is a home whose tv has a listener before its port 5000, reached at 443 of its
// mesh address, as the router itself is.
func fronted() host.Firewall {
	cfg := rented()
	cfg.Front = host.Front{
		Port: 7443,
		Doors: []netip.AddrPort{
			netip.MustParseAddrPort("100.64.0.1:443"), netip.MustParseAddrPort("100.64.5.5:443"), netip.MustParseAddrPort("100.64.5.5:5000"),
			netip.MustParseAddrPort("[fd7a::1]:443"), netip.MustParseAddrPort("[fd7a::5:5]:443"), netip.MustParseAddrPort("[fd7a::5:5]:5000"),
		},
		Behind: []netip.AddrPort{netip.MustParseAddrPort("192.168.77.50:5000"), netip.MustParseAddrPort("[fd77::50]:5000")},
	}
	cfg.Rules = append(cfg.Rules,
		allow("100.64.0.9 100.64.5.6 fd7a::9 fd7a::5:6", "100.64.5.5 fd7a::5:5", 0, 65535),
		allow("100.64.0.9 100.64.5.6 fd7a::9 fd7a::5:6", "192.168.77.50 fd77::50", 5000, 5000),
		allow("100.64.0.10 fd7a::a", "100.64.0.1 fd7a::1", 443, 443, protoTCP))
	return cfg
}

// What is meant for the listener gets there, from whom the rules let to what was meant,
// and from home; all else is as it was.
func TestFrontPackets(t *testing.T) {
	neighbourhood(t)
	cfg := fronted()
	put(t, cfg)
	whole(t, cfg)
	for _, a := range cfg.Own {
		tellMeant(t, netip.AddrPortFrom(a, cfg.Front.Port).String())
	}
	serve(t, "tv", ":80", "tv")
	serve(t, "tv", ":443", "tv")
	serve(t, "tv", ":5000", "tv")
	for _, tt := range []struct {
		name, own, tv, lan, good, other, liar, near, world, seen string
	}{
		{"IPv4", "100.64.0.1", "100.64.5.5", "192.168.77.50", "100.64.0.9", "100.64.0.10", "100.64.5.6", "192.168.77.60", "198.51.100.2", "192.168.77.1"},
		{"IPv6", "fd7a::1", "fd7a::5:5", "fd77::50", "fd7a::9", "fd7a::a", "fd7a::5:6", "fd77::60", "2001:db8::2", "fd77::1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := func(host, port string) string { return net.JoinHostPort(host, port) }
			for _, c := range []struct{ what, ns, src, dst, want string }{
				{"a member who may", "peer", tt.good, at(tt.tv, "443"), tt.good + " for " + at(tt.tv, "443")},
				{"at the port behind", "peer", tt.good, at(tt.tv, "5000"), tt.good + " for " + at(tt.tv, "5000")},
				{"at the LAN address", "peer", tt.good, at(tt.lan, "5000"), tt.good + " for " + at(tt.lan, "5000")},
				{"the router itself is asked", "peer", tt.other, at(tt.own, "443"), tt.other + " for " + at(tt.own, "443")},
				{"another port of the device", "peer", tt.good, at(tt.tv, "80"), "tv " + tt.seen},
				{"the LAN, of a device", "near", "", at(tt.tv, "443"), tt.near + " for " + at(tt.tv, "443")},
				{"the LAN, of the router", "near", "", at(tt.own, "443"), tt.near + " for " + at(tt.own, "443")},
				{"the device itself", "tv", "", at(tt.tv, "443"), tt.lan + " for " + at(tt.tv, "443")},
				{"the LAN, past the router", "near", "", at(tt.lan, "5000"), "tv " + tt.near},
				{"this router, of itself", "", "", at(tt.own, "443"), tt.own + " for " + at(tt.own, "443")},
			} {
				if got := call(t, c.ns, c.src, c.dst); got != c.want {
					t.Errorf("%s: %q, want %q", c.what, got, c.want)
				}
			}
			for _, c := range []struct{ what, ns, src, dst string }{
				{"a member who may not, a device", "peer", tt.other, at(tt.tv, "443")},
				{"a member who may not, behind", "peer", tt.other, at(tt.lan, "5000")},
				{"a member who may not, the router", "peer", tt.good, at(tt.own, "443")},
				{"a member, the listener's own port", "peer", tt.good, at(tt.own, "7443")},
				{"a liar", "peer", tt.liar, at(tt.tv, "443")},
				{"the world, the router", "world", "", at(tt.own, "443")},
				{"the world, a device", "world", "", at(tt.tv, "443")},
				{"the world, the listener's own port", "world", "", at(tt.own, "7443")},
			} {
				unanswered(t, c.what, c.ns, c.src, c.dst)
			}
		})
	}
}

// A flow that goes on past the listener is cut when there is one, whatever the rules say.
func TestFrontCutsOldFlows(t *testing.T) {
	neighbourhood(t)
	cfg := fronted()
	before := cfg
	before.Front = host.Front{}
	put(t, before)
	l := in(t, "tv", func() (net.Listener, error) { return net.Listen("tcp", ":5000") })
	defer l.Close()
	c := in(t, "peer", func() (net.Conn, error) {
		d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP("100.64.0.9")}}
		return d.Dial("tcp", "100.64.5.5:5000")
	})
	defer c.Close()
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	put(t, cfg)
	if _, err := io.WriteString(c, "on and on"); err != nil {
		t.Fatal(err)
	}
	if err := far.SetReadDeadline(time.Now().Add(quiet)); err != nil {
		t.Fatal(err)
	}
	if n, err := far.Read(make([]byte, 9)); n > 0 {
		t.Errorf("the device heard %d bytes past the listener (%v)", n, err)
	}
	put(t, before) // and it was nothing else that kept them back
	if err := far.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if b := make([]byte, 9); true {
		if _, err := io.ReadFull(far, b); err != nil || string(b) != "on and on" {
			t.Errorf("%q, %v", b, err)
		}
	}
}

// quiet is how long nothing is to be heard.
const quiet = 200 * time.Millisecond

// unanswered has somebody call who gets no answer: what is dropped says nothing.
func unanswered(t *testing.T, what, ns, src, dst string) {
	t.Helper()
	if got := in(t, ns, func() (string, error) {
		d := net.Dialer{Timeout: quiet}
		if src != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(src)}
		}
		c, err := d.Dial("tcp", dst)
		if err != nil {
			return "", nil
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		b, _ := io.ReadAll(c)
		return fmt.Sprintf("connected: %q", b), nil
	}); got != "" {
		t.Errorf("%s: %s", what, got)
	}
}

// tellMeant answers TCP with who the client is, and what was meant.
func tellMeant(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			from, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, from+" for "+meant(c.(*net.TCPConn)))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
}

// meant asks conntrack where a connection was to go (SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST).
func meant(c *net.TCPConn) (where string) {
	const originalDst = 80
	raw, err := c.SyscallConn()
	if err != nil {
		return err.Error()
	}
	v6 := c.LocalAddr().(*net.TCPAddr).IP.To4() == nil
	err = raw.Control(func(fd uintptr) {
		if v6 {
			info, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, originalDst)
			if err != nil {
				where = err.Error()
				return
			}
			port := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, info.Addr.Port))
			where = netip.AddrPortFrom(netip.AddrFrom16(info.Addr.Addr), port).String()
			return
		}
		a, err := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, originalDst)
		if err != nil {
			where = err.Error()
			return
		}
		where = netip.AddrPortFrom(netip.AddrFrom4([4]byte(a.Multiaddr[4:8])), binary.BigEndian.Uint16(a.Multiaddr[2:])).String()
	})
	if err != nil {
		return err.Error()
	}
	return where
}

// A rule is asked by what it lets to doors, and by nothing else of it.
func TestToDoors(t *testing.T) {
	doors := []netip.AddrPort{netip.MustParseAddrPort("100.64.0.1:443"), netip.MustParseAddrPort("[fd7a::1]:443")}
	for _, tt := range []struct {
		name string
		rule mesh.Rule
		want int
	}{
		{"all", allow("100.64.0.9", "0.0.0.0/0 ::/0", 0, 65535), 2},
		{"one family", allow("100.64.0.9", "100.64.0.0/10", 0, 65535), 1},
		{"its port", allow("100.64.0.9", "fd7a::1", 443, 443, protoTCP), 1},
		{"another port", allow("100.64.0.9", "fd7a::1", 80, 442, protoTCP), 0},
		{"another protocol", allow("100.64.0.9", "fd7a::1", 443, 443, protoUDP), 0},
		{"another address", allow("100.64.0.9", "100.64.0.2-100.64.0.9", 443, 443), 0},
	} {
		n := 0
		for _, r := range toDoors([]mesh.Rule{tt.rule}, doors) {
			n += len(r.Dsts)
		}
		if n != tt.want {
			t.Errorf("%s: %d doors, want %d", tt.name, n, tt.want)
		}
	}
}
