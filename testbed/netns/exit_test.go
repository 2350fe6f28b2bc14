package netns_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// internet4 and internet6 are what a node offers as an exit.
var (
	internet4 = netip.MustParsePrefix("0.0.0.0/0")
	internet6 = netip.MustParsePrefix("::/0")
)

// seenFrom is how a web server of [serveSource] sees who calls it from a host.
func seenFrom(ctx context.Context, h *netns.Host, web netip.Addr) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", netip.AddrPortFrom(web, 7000).String())
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(string(b))
}

// serveSource tells each caller the address it has, in both families.
func serveSource(t testing.TB, h *netns.Host) {
	t.Helper()
	l, err := h.Listen("[::]:7000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go tellSources(l)
}

func tellSources(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
		_, _ = c.Write([]byte(from.Addr().Unmap().String()))
		_ = c.Close()
	}
}

// outside are the addresses that the internet sees of a host that has none of its own.
func outside(h *netns.Host) [2]netip.Addr {
	if box := h.Behind(); box != nil {
		h = box
	}
	return [2]netip.Addr{h.Addr4, h.Addr6}
}

// wantOutBy waits until the web sees a host's new flows of both families as coming from another, and says when.
func wantOutBy(t testing.TB, h, web, by *netns.Host, limit time.Duration) time.Time {
	t.Helper()
	for i, a := range []netip.Addr{web.Addr4, web.Addr6} {
		want := outside(by)[i]
		netns.Eventually(t, limit, fmt.Sprintf("%s leaves by %s", h.Name, by.Name), func() error {
			got, err := seenFrom(t.Context(), h, a)
			if err == nil && got != want {
				err = fmt.Errorf("the web sees %v, want %v", got, want)
			}
			return err
		})
	}
	return time.Now()
}

// stockExit is a stock node that offers itself as an exit.
func stockExit(t testing.TB, lab *netns.Lab, hs *netns.Headscale, name string, nat netns.NAT) *netns.StockPeer {
	t.Helper()
	p := lab.StockPeer(lab.Client(name, nat))
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if out, err := p.Host.Run(t.Context(), "sh", "-c", "echo 1 >/proc/sys/net/"+f); err != nil {
			t.Fatal(err, out)
		}
	}
	p.Up(hs.URL, hs.PreAuthKey("ana", netns.KeyOptions{}), "--advertise-exit-node")
	hs.ApproveRoutes(name, internet4, internet6)
	return p
}

// leaves counts what of a LAN arrives at a server that only the blocked ask for: what left by the WAN unasked for.
type leaves struct{ *netns.Host }

func newLeaves(lab *netns.Lab) leaves {
	h := lab.Far("forbidden")
	h.NFT(`table inet watch {
		chain pre { type filter hook prerouting priority -300;
			iifname "wan0" meta l4proto { tcp, udp } counter
		}
	}
	`)
	return leaves{h}
}

// wantNone lets a host try to get there, in every way, and wants nothing to arrive.
func (l leaves) wantNone(t *testing.T, from *netns.Host, while string) {
	t.Helper()
	for _, a := range []netip.Addr{l.Addr4, l.Addr6} {
		if letsIn(from, netip.AddrPortFrom(a, 7000)) {
			t.Errorf("%s: %s reaches %v", while, from.Name, a)
		}
		if c, err := from.ListenPacket("[::]:0"); err == nil {
			for range 5 {
				_, _ = c.WriteTo([]byte("leak?"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 7000)))
			}
			c.Close()
		}
	}
	out, err := l.Run(t.Context(), "nft", "list", "table", "inet", "watch")
	if err != nil || !strings.Contains(out, "counter packets 0 ") {
		t.Errorf("%s: packets of %s left by the WAN: %s (%v)", while, from.Name, out, err)
	}
}

// exitHome is a home of three things, with two exits elsewhere.
type exitHome struct {
	*scene
	lab     *netns.Lab
	web     *netns.Host
	forbid  leaves
	a, b, c *netns.Host
	x, y    *netns.StockPeer
}

func openExitHome(t *testing.T) *exitHome {
	t.Helper()
	lab := netns.New(t)
	s := &exitHome{scene: &scene{hs: lab.Headscale(), home: lab.Home(netns.Public)}, lab: lab}
	s.a, s.b = lab.Device(s.home, "tv", 51), lab.Device(s.home, "laptop", 52)
	s.c = s.home.LAN
	s.web, s.forbid = lab.Far("web"), newLeaves(lab)
	serveSource(t, s.web)
	serveSource(t, s.forbid.Host)
	s.daemon = lab.Subnetd(s.home.Router, daemonConfig)
	s.daemon.UpKey(s.hs, s.hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
	s.hs.ApproveRoutes("home", s.home.LAN4, s.home.LAN6)
	s.x, s.y = stockExit(t, lab, s.hs, "parents", netns.Public), stockExit(t, lab, s.hs, "cabin", netns.Public)
	return s
}

// must runs a command of the daemon that has to succeed.
func (s *exitHome) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.daemon.CLI(args...)
	if err != nil {
		t.Fatalf("subnetd %v: %v\n%s", args, err, out)
	}
	return out
}

// TestExits: the home's side of exits, from the choice of each device to the kill switch.
func TestExits(t *testing.T) {
	s := openExitHome(t)
	s.lab.Run("per-device", s.perDevice)
	s.lab.Run("kill-switch", s.killSwitch)
	s.lab.Run("fail-over", s.failOver)
	s.lab.Run("flushed", s.flushed)
	s.lab.Run("pppoe", s.pppoe)
	s.lab.Run("refused", s.refused)
	s.lab.Run("off", s.off)
}

// perDevice: one thing by an exit, another by another, a third directly, at the same time; changed in less than a second.
func (s *exitHome) perDevice(t *testing.T) {
	wantOutBy(t, s.a, s.web, s.home.Router, 10*time.Second)
	netns.Eventually(t, 30*time.Second, "both exits are known", func() error {
		out, err := s.daemon.CLI("exit")
		if err == nil && !(strings.Contains(out, "parents") && strings.Contains(out, "cabin")) {
			err = errors.New(out)
		}
		return err
	})
	s.moved(t, s.x.Host, "exit", "use", "parents", s.a.MAC("eth0"))
	s.must(t, "exit", "use", "cabin", s.b.MAC("eth0"))
	wantOutBy(t, s.b, s.web, s.y.Host, 20*time.Second)
	wantOutBy(t, s.c, s.web, s.home.Router, 5*time.Second)
	wantOutBy(t, s.a, s.web, s.x.Host, 5*time.Second) // still
	wantReach(t, s.a, s.b.Addr4, s.b.Addr6, s.home.LAN4.Addr().Next(), s.home.LAN6.Addr().Next())

	s.moved(t, s.y.Host, "exit", "use", "cabin", s.a.MAC("eth0"))
	s.moved(t, s.home.Router, "exit", "off", s.a.MAC("eth0"))
	s.moved(t, s.x.Host, "exit", "use", "parents", s.a.MAC("eth0"))
	out := s.must(t, "exit", "test", s.a.MAC("eth0"))
	if !strings.Contains(out, "parents") {
		t.Errorf("exit test: %s", out)
	}
	t.Logf("exit test:\n%s", out)

	s.a.IP("addr del "+s.a.Addr4.String()+"/24 dev eth0", "addr add 192.168.77.61/24 dev eth0", "route replace default via 192.168.77.1",
		"addr add fd77:77::61/64 dev eth0 nodad", "addr del "+s.a.Addr6.String()+"/64 dev eth0")
	s.a.Addr4, s.a.Addr6 = netip.MustParseAddr("192.168.77.61"), netip.MustParseAddr("fd77:77::61")
	wantOutBy(t, s.a, s.web, s.x.Host, 5*time.Second) // another address, the same device
}

// moved runs a command of the daemon by which new flows of a shall leave by another, and tells when the first of both
// families did.
func (s *exitHome) moved(t *testing.T, by *netns.Host, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	v4, v6 := firstBy(ctx, s.a, s.web.Addr4, outside(by)[0]), firstBy(ctx, s.a, s.web.Addr6, outside(by)[1])
	began := time.Now()
	s.must(t, args...)
	answered := time.Since(began)
	last := began
	for _, first := range []<-chan time.Time{v4, v6} {
		select {
		case at := <-first:
			if at.After(last) {
				last = at
			}
		case <-ctx.Done():
			t.Fatalf("subnetd %v: new flows do not leave by %s", args, by.Name)
		}
	}
	t.Logf("%s: new flows of both families leave by %s %v after the command began, which took %v",
		strings.Join(args[:2], " "), by.Name, last.Sub(began).Round(time.Millisecond), answered.Round(time.Millisecond))
	wantOutBy(t, s.a, s.web, by, 5*time.Second)
}

// firstBy says when the web first sees a flow of the host as from want: new ones begin all the time, as one whose first
// packet is lost sends the next a second later.
func firstBy(ctx context.Context, h *netns.Host, web, want netip.Addr) <-chan time.Time {
	out := make(chan time.Time, 1)
	go func() {
		seen := make(chan time.Time, 1)
		tick := time.NewTicker(30 * time.Millisecond)
		defer tick.Stop()
		for {
			go func() {
				if got, err := seenFrom(ctx, h, web); err == nil && got == want {
					select {
					case seen <- time.Now():
					default:
					}
				}
			}()
			select {
			case at := <-seen:
				out <- at
				return
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return out
}

// killSwitch: with its exit gone the device is blocked, also with the daemon killed and the ruleset flushed; the others are not.
func (s *exitHome) killSwitch(t *testing.T) {
	s.x.Kill()
	s.forbid.wantNone(t, s.a, "the exit is off")
	gone := time.Now()
	netns.Eventually(t, 30*time.Second, "the owner is told", func() error {
		out, err := s.daemon.CLI("exit")
		if err == nil && !strings.Contains(out, "blocked") {
			err = errors.New(out)
		}
		return err
	})
	t.Logf("%v later the owner reads:\n%s", time.Since(gone).Round(time.Millisecond), s.must(t, "exit"))
	s.forbid.wantNone(t, s.a, "it is known to be off")
	wantOutBy(t, s.c, s.web, s.home.Router, 5*time.Second)
	wantOutBy(t, s.b, s.web, s.y.Host, 10*time.Second)
	s.daemon.Kill9()
	s.forbid.wantNone(t, s.a, "the daemon is killed")
	wantReach(t, s.a, s.b.Addr4, s.home.LAN4.Addr().Next())
	s.daemon.Start()
	s.forbid.wantNone(t, s.a, "the daemon is back")
	s.x.Start()
	back := time.Now()
	took := wantOutBy(t, s.a, s.web, s.x.Host, 60*time.Second).Sub(back)
	t.Logf("the exit is back: works again %v after its start", took.Round(time.Millisecond))
}

// failOver: of two exits in order the first that answers.
func (s *exitHome) failOver(t *testing.T) {
	s.must(t, "exit", "use", "parents,cabin", s.a.MAC("eth0"))
	wantOutBy(t, s.a, s.web, s.x.Host, 20*time.Second)
	s.x.Kill()
	gone := time.Now()
	took := wantOutBy(t, s.a, s.web, s.y.Host, 40*time.Second).Sub(gone)
	t.Logf("the second takes over %v after the first was killed", took.Round(time.Millisecond))
	s.x.Start()
	back := time.Now()
	took = wantOutBy(t, s.a, s.web, s.x.Host, 120*time.Second).Sub(back)
	t.Logf("the first is used again %v after it is back", took.Round(time.Millisecond))
	s.must(t, "exit", "use", "parents", s.a.MAC("eth0"))
}

// flushed: somebody flushes the whole ruleset: it is back soon, and meanwhile nothing leaks.
func (s *exitHome) flushed(t *testing.T) {
	wantOutBy(t, s.a, s.web, s.x.Host, 20*time.Second)
	conn, err := s.a.ListenPacket("[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	end := make(chan struct{})
	done := make(chan int)
	go func() { // a packet a millisecond to where nothing may arrive
		sent := 0
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				done <- sent
				return
			case <-tick.C:
				a := s.forbid.Addr4
				if sent%2 == 1 {
					a = s.forbid.Addr6
				}
				_, _ = conn.WriteTo([]byte("leak?"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 7001)))
				sent++
			}
		}
	}()
	s.forbid.NFT(`flush chain inet watch pre
		add rule inet watch pre ip saddr ` + s.home.Router.Addr4.String() + ` meta l4proto { tcp, udp } counter comment "leak"
		add rule inet watch pre ip6 saddr ` + s.home.Router.Addr6.String() + ` meta l4proto { tcp, udp } counter comment "leak"
		add rule inet watch pre ip saddr 192.168.77.0/24 counter comment "leak"
		add rule inet watch pre ip6 saddr fd77:77::/64 counter comment "leak"`)
	rules, err := s.home.Router.Run(t.Context(), "nft", "list", "table", "inet", "home")
	if err != nil {
		t.Fatal(err, rules)
	}
	if out, err := s.home.Router.Run(t.Context(), "nft", "flush", "ruleset"); err != nil {
		t.Fatal(err, out)
	}
	flushed := time.Now()
	s.home.Router.NFT(rules)
	netns.Eventually(t, 5*time.Second, "the tables are back", func() error {
		out, err := s.home.Router.Run(t.Context(), "nft", "list", "tables")
		if err == nil && !(strings.Contains(out, "inet subnetd\n") && strings.Contains(out, "subnetd_guard")) {
			err = errors.New(out)
		}
		return err
	})
	t.Logf("tables are back %v after the flush", time.Since(flushed).Round(time.Millisecond))
	wantOutBy(t, s.a, s.web, s.x.Host, 10*time.Second)
	close(end)
	sent := <-done
	out, err := s.forbid.Run(t.Context(), "nft", "list", "table", "inet", "watch")
	if err != nil {
		t.Fatal(err, out)
	}
	if leaked := strings.Count(out, "counter packets") - strings.Count(out, "counter packets 0 "); leaked != 0 {
		t.Errorf("of %d packets, a millisecond apart, some left by the WAN:\n%s", sent, out)
	}
	t.Logf("of %d packets sent meanwhile none left by the WAN", sent)
}

// pppoe: with a WAN of 1,492 bytes packets of every size pass through an exit, whole, and come back.
func (s *exitHome) pppoe(t *testing.T) {
	for _, h := range []*netns.Host{s.home.Router, s.x.Host} {
		h.IP("link set wan0 mtu 1492")
	}
	const size = 5_000_000
	s.web.ServePayload("[::]:80", 4, size)
	echo, err := s.web.ListenPacket("[::]:7")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := echo.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(b[:n], from)
		}
	}()
	wantOutBy(t, s.a, s.web, s.x.Host, 20*time.Second)
	for _, a := range []netip.Addr{s.web.Addr4, s.web.Addr6} {
		wantPayload(t, s.a, "http://"+netip.AddrPortFrom(a, 80).String()+"/", 4, size)
		for _, n := range []int{1200, 1252, 1400, 1472, 4000} {
			wantEcho(t, s.a, netip.AddrPortFrom(a, 7), n)
		}
	}
}

// wantEcho sends so many bytes over UDP and wants them back. One datagram each way may be what tells its sender of a
// smaller path.
func wantEcho(t *testing.T, from *netns.Host, to netip.AddrPort, n int) {
	t.Helper()
	c, err := from.ListenPacket("[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want, got := bytes.Repeat([]byte{0xa5}, n), make([]byte, 65536)
	for range 3 {
		if _, err := c.WriteTo(want, net.UDPAddrFromAddrPort(to)); err != nil && !errors.Is(err, syscall.EMSGSIZE) {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if m, _, err := c.ReadFrom(got); err == nil {
			if !bytes.Equal(got[:m], want) {
				t.Errorf("of %d bytes to %v came back %d, or others", n, to, m)
			}
			return
		}
	}
	t.Errorf("%d bytes to %v do not come back", n, to)
}

// refused: wishes that cannot be fulfilled.
func (s *exitHome) refused(t *testing.T) {
	own, _, err := s.hs.MeshAddrs("home")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"exit", "use", "nobody"}, 1, "nobody"},
		{[]string{"exit", "use", own.String()}, 1, "itself"},
		{[]string{"exit", "use", "home"}, 1, "itself"},
		{[]string{"exit", "use"}, 2, ""},
		{[]string{"exit", "use", "parents", "no-such-device"}, 1, "no-such-device"},
		{[]string{"exit", "offer", "maybe"}, 2, "maybe"},
		{[]string{"exit", "test", "no-such-device"}, 1, "no-such-device"},
		{[]string{"exit", "frobnicate"}, 2, "frobnicate"},
	} {
		out, err := s.daemon.CLI(tt.args...)
		if exitCode(err) != tt.code || !strings.Contains(out, tt.says) || strings.Contains(out, "goroutine") {
			t.Errorf("subnetd %v: exit code %d, want %d, and %q: %s", tt.args, exitCode(err), tt.code, tt.says, out)
		}
	}
}

// off opens everything again and leaves no trace.
func (s *exitHome) off(t *testing.T) {
	s.must(t, "exit", "off")
	wantOutBy(t, s.a, s.web, s.home.Router, 5*time.Second)
	if !letsIn(s.a, netip.AddrPortFrom(s.forbid.Addr4, 7000)) || !letsIn(s.a, netip.AddrPortFrom(s.forbid.Addr6, 7000)) {
		t.Error("what was blocked stays so") // and what looked for leaks would have seen none
	}
	wantOutBy(t, s.b, s.web, s.home.Router, 5*time.Second)
	netns.Eventually(t, 10*time.Second, "no trace of exits", func() error {
		out, err := s.home.Router.Run(t.Context(), "sh", "-c", "ip -br link; nft list tables; ip rule; ip -6 rule")
		if err == nil && (strings.Contains(out, "mesh-") || strings.Contains(out, "subnetd_guard") || strings.Contains(out, "841") && strings.Contains(out, "lookup 8411")) {
			err = errors.New(out)
		}
		return err
	})
}

// TestExitOffered: a stock client on another network leaves by home, in both families, and reaches nothing else there.
func TestExitOffered(t *testing.T) {
	lab := netns.New(t)
	s := &scene{hs: lab.Headscale(), home: lab.Home(netns.Public)}
	web := lab.Far("web")
	serveSource(t, web)
	s.home.LAN.ServePayload("[::]:80", 1, 1000)
	s.home.Router.ServePayload("[::]:8080", 1, 1000)
	s.daemon = lab.Subnetd(s.home.Router, strings.Replace(daemonConfig, `expose = "all"`, `expose = "none"`, 1))
	s.daemon.UpKey(s.hs, s.hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
	s.phone = lab.StockPeer(lab.NAT(netns.Public))
	s.phone.Up(s.hs.URL, s.hs.PreAuthKey("ana", netns.KeyOptions{}), "--accept-routes")
	wantOutBy(t, s.phone.Host, web, s.phone.Host, 5*time.Second)
	wantExitOffered(t, s, web)
}

// wantExitOffered: the phone may leave by home, where nothing of the LAN is exposed, for as long as that is offered.
func wantExitOffered(t *testing.T, s *scene, web *netns.Host) {
	t.Helper()
	if out, err := s.daemon.CLI("exit", "offer", "on"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s.hs.ApproveRoutes("home", internet4, internet6)
	v4, _, err := s.hs.MeshAddrs("home")
	if err != nil {
		t.Fatal(err)
	}
	netns.Eventually(t, 20*time.Second, "the phone may leave by home", func() error {
		_, err := s.phone.CLI(t.Context(), "set", "--exit-node="+v4.String())
		return err
	})
	wantOutBy(t, s.phone.Host, web, s.home.Router, 30*time.Second)
	for _, closed := range []netip.AddrPort{
		netip.AddrPortFrom(s.home.LAN.Addr4, 80), netip.AddrPortFrom(s.home.LAN.Addr6, 80),
		netip.AddrPortFrom(s.home.LAN4.Addr().Next(), 8080), netip.AddrPortFrom(s.home.LAN6.Addr().Next(), 8080),
		netip.AddrPortFrom(s.home.Router.Addr4, 8080), netip.AddrPortFrom(s.home.Router.Addr6, 8080),
	} {
		if letsIn(s.phone.Host, closed) {
			t.Errorf("through the exit the phone reaches %v", closed)
		}
	}
	if out, err := s.daemon.CLI("exit", "offer", "off"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	told := time.Now()
	last := told
	netns.Eventually(t, 20*time.Second, "the exit is closed", func() error {
		if got, err := seenFrom(t.Context(), s.phone.Host, web.Addr4); err == nil && got == s.home.Router.Addr4 {
			last = time.Now()
			return errors.New("it is open")
		}
		return nil
	})
	t.Logf("the last flow of the phone passed %v after `exit offer off`", last.Sub(told).Round(time.Millisecond))
}
