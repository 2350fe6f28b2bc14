package netns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"subnetd/testbed/netns"
	"subnetd/testbed/qemu"
)

// guardScene is a home in a guest whose TV, and the router itself, may use the internet by an exit only. The state of the
// daemon is on a disk. A laptop of the home, which needs no exit, shows that the router routes.
type guardScene struct {
	scene
	lab    *netns.Lab
	guest  *netns.Guest
	tv     *talker
	laptop *talker
	web    *netns.Host
	forbid *netns.Host // what only the TV and the router ask for, with counters before it
	exit   *netns.StockPeer
	losses *qemu.Process // an `nft monitor`

	allowed int // packets that may have left by the WAN
}

// TestGuestGuard: the kill switch of a router with the kernel engine, whatever becomes of the daemon, the rules, the links
// and the power: of the TV not one packet leaves but by the exit.
func TestGuestGuard(t *testing.T) {
	s := openGuardScene(t)
	defer func() {
		if t.Failed() {
			t.Logf("the router:\n%s", s.look())
		}
	}()
	s.lab.Run("exit-works", s.exitWorks)
	s.lab.Run("exit-off", s.exitOff)
	s.lab.Run("power-cut", s.powerCut)
	s.lab.Run("exit-back", s.exitBack)
	s.lab.Run("opened", s.opened)
}

func openGuardScene(t *testing.T) *guardScene {
	t.Helper()
	s := &guardScene{lab: netns.New(t)}
	s.guest = s.lab.Guest(netns.GuestSpec{Arch: qemu.AMD64, MemoryMB: 384, DiskMB: 16, Cards: 2})
	s.hs, s.home = s.lab.Headscale(), s.lab.GuestHome(s.guest, netns.Public)
	tv := s.lab.Device(s.home, "tv", 51)
	s.web, s.forbid = s.lab.Far("web"), s.lab.Far("forbidden")
	serveSource(t, s.web)
	serveSource(t, s.forbid)
	s.exit = stockExit(t, s.lab, s.hs, "parents", netns.Public)

	s.daemon = s.lab.SubnetdIdle(s.home.Router, "")
	s.daemon.Config, s.daemon.State = "/data/subnetd.toml", "/data/state"
	s.home.Router.WriteFile(s.daemon.Config, withEngine(daemonConfig, "kernel")+
		fmt.Sprintf("[exit]\nrows = [\"%s, router -> parents\"]\n", tv.MAC("eth0")))
	s.daemon.Start()
	s.daemon.UpKey(s.hs, s.hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
	s.hs.ApproveRoutes("home", s.home.LAN4, s.home.LAN6)
	wantOutBy(t, tv, s.web, s.exit.Host, 30*time.Second)
	wantKernel(t, s.daemon)
	s.count(t)
	s.writeBoot(t)
	s.losses = s.guest.Start("nft", "monitor", "destroy", "tables")
	s.tv, s.laptop = talk(t, tv, s.forbid, 4*time.Millisecond), talk(t, s.home.LAN, s.web, 20*time.Millisecond)
	return s
}

// count puts counters before the web, of the laptop's datagrams by family, and before the forbidden server: what came by
// the exit, and what left by the WAN, whatever it is. What the internet's own router says is not from the home.
func (s *guardScene) count(t *testing.T) {
	t.Helper()
	s.web.NFT(fmt.Sprintf(`table inet watch {
	counter v4 { }
	counter v6 { }
	chain pre { type filter hook prerouting priority -300;
		ip saddr %s udp dport 7001 counter name v4
		ip6 saddr %s udp dport 7001 counter name v6
	}
}
`, s.home.Router.Addr4, s.home.Router.Addr6))
	s.forbid.NFT(fmt.Sprintf(`table inet watch {
	counter v4 { }
	counter v6 { }
	counter leaked { }
	chain pre { type filter hook prerouting priority -300;
		iifname != "wan0" accept
		ip saddr %s counter name v4 accept
		ip6 saddr %s counter name v6 accept
		ip6 saddr { fe80::/10, 2001:db8:100::/48 } accept
		counter name leaked
	}
}
`, s.exit.Host.Addr4, s.exit.Host.Addr6))
}

// counted is what a counter before a server says.
func counted(t *testing.T, h *netns.Host, name string) int {
	t.Helper()
	out, err := h.Run(t.Context(), "nft", "list", "counter", "inet", "watch", name)
	m := regexp.MustCompile(`packets (\d+)`).FindStringSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("%v: %s", err, out)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

// writeBoot puts on the guest's disk what the router does at boot: the kill switch, and then the network. Its own firewall
// hands established flows on to a fast path, as OpenWrt's does if it is told to, where no chain sees their packets.
func (s *guardScene) writeBoot(t *testing.T) {
	t.Helper()
	r := s.home.Router
	rules, err := r.Run(t.Context(), "nft", "list", "table", "inet", "home")
	if err != nil {
		t.Fatal(err, rules)
	}
	r.WriteFile("/data/home.nft", rules+`table inet home {
	flowtable fast { hook ingress priority 0; devices = { lan0, wan0 }; }
	chain forward { ct state established flow add @fast; }
}
`)
	s.sh(t, "nft delete table inet home; nft -f /data/home.nft")
	r.WriteFile("/data/wan", fmt.Sprintf(`link set wan0 up
addr replace %s/24 dev wan0
addr replace %s/64 dev wan0 nodad
route replace default via 203.0.113.1
route replace ::/0 via 2001:db8::1
`, r.Addr4, r.Addr6))
	r.WriteFile("/data/lan", fmt.Sprintf(`link set lan0 up
addr replace %s/24 dev lan0
addr replace %s/64 dev lan0 nodad
`, s.home.LAN4.Addr().Next(), s.home.LAN6.Addr().Next()))
	r.WriteFile("/data/boot", `set -e
/usr/bin/subnetd guard --state /data/state
for f in /proc/sys/net/ipv6/conf/*/accept_dad; do echo 0 >$f; done
ip link set card0 down
ip link set card1 down
ip link set card0 name wan0
ip link set card1 name lan0
nft -f /data/home.nft
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
ip -batch /data/wan
ip -batch /data/lan
`)
	s.sh(t, "sync")
}

// sh runs a script in the router.
func (s *guardScene) sh(t *testing.T, script string) string {
	t.Helper()
	out, err := s.home.Router.Run(t.Context(), "sh", "-ec", script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// look is the router for who reads of a failure.
func (s *guardScene) look() string {
	out, _ := s.home.Router.Run(context.Background(), "sh", "-c",
		"ip -br addr; ip rule; ip -6 rule; ip route show table all | grep -v local; wg show all dump | cut -f1,2,4-; nft list table inet subnetd_guard")
	return out
}

// talker is a host that sends to a server, in both families, all the time: datagrams to port 7001, which come back, in two
// flows that last and in ever new ones, and pings.
type talker struct {
	*netns.Host
	sent atomic.Int64
}

// talk begins it. The host knows its router's hardware address: it sends also while nobody answers for that.
func talk(t *testing.T, from, to *netns.Host, every time.Duration) *talker {
	t.Helper()
	out, err := from.Run(t.Context(), "ip", "neigh", "show")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out) {
		f := strings.Fields(line) // ADDRESS dev LINK lladdr MAC STATE
		if a, err := netip.ParseAddr(f[0]); err == nil && !a.IsLinkLocalUnicast() && len(f) > 5 {
			from.IP(fmt.Sprintf("neigh replace %s dev %s lladdr %s nud permanent", f[0], f[2], f[4]))
		}
	}
	sendBack(t, to, 7001)
	for _, a := range []netip.Addr{to.Addr4, to.Addr6} {
		from.Start("ping", "-n", "-q", "-i", "0.1", a.String())
	}
	s := &talker{Host: from}
	end, ended := make(chan struct{}), make(chan error, 1)
	t.Cleanup(func() {
		close(end)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	go func() { ended <- s.talk(to, every, end) }()
	return s
}

func (s *talker) talk(to *netns.Host, every time.Duration, end <-chan struct{}) error {
	lasting, err := s.ListenPacket("[::]:0")
	if err != nil {
		return err
	}
	defer lasting.Close()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		fresh, err := s.ListenPacket("[::]:0")
		if err != nil {
			return err
		}
		for i := range 40 {
			select {
			case <-end:
				return fresh.Close()
			case <-tick.C:
			}
			c, a := []net.PacketConn{lasting, fresh}[i%2], []netip.Addr{to.Addr4, to.Addr6}[i/2%2]
			if _, err := c.WriteTo([]byte("out?"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 7001))); err == nil {
				s.sent.Add(1)
			}
		}
		_ = fresh.Close()
	}
}

// wantSent waits until it has sent so many datagrams more.
func (s *talker) wantSent(t *testing.T, more int64) {
	t.Helper()
	begin := s.sent.Load()
	netns.Eventually(t, 20*time.Second, s.Name+" sends", func() error {
		if n := s.sent.Load() - begin; n < more {
			return fmt.Errorf("%d datagrams", n)
		}
		return nil
	})
}

// sendBack sends back what comes to a UDP port of a host.
func sendBack(t *testing.T, h *netns.Host, port uint16) {
	t.Helper()
	c, err := h.ListenPacket(fmt.Sprintf("[::]:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		for b := make([]byte, 2048); ; {
			n, from, err := c.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = c.WriteTo(b[:n], from)
			}
		}
	}()
}

// wantNone lets the TV and the router try for a while, and wants nothing of them to have left by the WAN since the test
// began, while the laptop's datagrams pass.
func (s *guardScene) wantNone(t *testing.T, while string) {
	t.Helper()
	v4, v6 := counted(t, s.web, "v4"), counted(t, s.web, "v6")
	for _, a := range []netip.Addr{s.forbid.Addr4, s.forbid.Addr6} {
		_, _ = s.home.Router.Run(t.Context(), "ping", "-n", "-c", "3", "-i", "0.01", "-W", "0.1", a.String())
	}
	s.tv.wantSent(t, 100)
	netns.Eventually(t, 20*time.Second, while+": the laptop's datagrams arrive", func() error {
		if n4, n6 := counted(t, s.web, "v4")-v4, counted(t, s.web, "v6")-v6; n4 < 5 || n6 < 5 {
			return fmt.Errorf("%d and %d", n4, n6)
		}
		return nil
	})
	if n := counted(t, s.forbid, "leaked"); n != s.allowed {
		t.Fatalf("%s: of %d datagrams of the TV, its pings and the router's, %d packets left by the WAN", while, s.tv.sent.Load(), n-s.allowed)
	}
}

// wantByExit waits until new flows of the TV leave by the exit, in both families, and tells how long that took.
func (s *guardScene) wantByExit(t *testing.T, after string) {
	t.Helper()
	began := time.Now()
	wantOutBy(t, s.tv.Host, s.web, s.exit.Host, 60*time.Second)
	v4, v6 := counted(t, s.forbid, "v4"), counted(t, s.forbid, "v6")
	netns.Eventually(t, 10*time.Second, "what the TV sends arrives by the exit", func() error {
		if n4, n6 := counted(t, s.forbid, "v4")-v4, counted(t, s.forbid, "v6")-v6; n4 == 0 || n6 == 0 {
			return fmt.Errorf("%d and %d", n4, n6)
		}
		return nil
	})
	t.Logf("%s: by the exit after %v", after, time.Since(began).Round(time.Millisecond))
	s.wantNone(t, after)
}

// flushAndBack takes all rules away and waits until the daemon has brought our tables back, the kill switch first; it tells
// how long after the kernel's word of the loss the daemon had the kernel's word that they are in force.
func (s *guardScene) flushAndBack(t *testing.T) {
	t.Helper()
	tables := []string{"subnetd_guard", "subnetd_port", "subnetd_exits", "subnetd"}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	lost := arrival(ctx, s.losses.Lines, "delete table inet subnetd_guard")
	var back []<-chan time.Time
	for _, table := range tables {
		back = append(back, arrival(ctx, s.daemon.Log, "table="+table+" "))
	}
	s.flush(t)
	from, last := <-lost, time.Time{}
	for i, c := range back {
		at := <-c
		if at.IsZero() || from.IsZero() {
			t.Fatalf("the table %s is not back, or no loss was seen: %v", tables[i], s.losses.Lines())
		}
		if i == 0 {
			t.Logf("flushed: the kill switch is in force again after %v", at.Sub(from).Round(time.Millisecond))
		}
		if last.Before(at) {
			last = at
		}
	}
	t.Logf("flushed: all tables are after %v", last.Sub(from).Round(time.Millisecond))
	out := s.sh(t, "nft list tables")
	for _, table := range tables {
		if !strings.Contains(out, "table inet "+table+"\n") {
			t.Errorf("the daemon says that the table %s is back, which it is not: %s", table, out)
		}
	}
}

// arrival gives the time at which a line with that text comes, beyond those there are; the zero time if none does.
func arrival(ctx context.Context, lines func() []string, text string) <-chan time.Time {
	count := func() int { return strings.Count(strings.Join(lines(), "\n"), text) }
	at, before := make(chan time.Time, 1), count()
	go func() {
		defer close(at)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for count() == before {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
		at <- time.Now()
	}()
	return at
}

// wantBlocked waits until the owner is told.
func (s *guardScene) wantBlocked(t *testing.T) {
	t.Helper()
	began := time.Now()
	netns.Eventually(t, 40*time.Second, "the owner is told", func() error {
		out, err := s.daemon.CLI("exit")
		if err == nil && !strings.Contains(out, "blocked") {
			err = errors.New(out)
		}
		return err
	})
	t.Logf("the owner reads that the TV is blocked after %v", time.Since(began).Round(time.Millisecond))
}

// flush takes all rules away; the home's own come back, as its firewall's owner brings them.
func (s *guardScene) flush(t *testing.T) {
	t.Helper()
	s.sh(t, "nft flush ruleset; nft -f /data/home.nft")
}

// removeExits takes the exit's interface away, by hand.
func (s *guardScene) removeExits(t *testing.T) {
	t.Helper()
	if out := s.sh(t, `for i in /sys/class/net/mesh-*; do ip link del ${i##*/}; echo gone; done`); out != "gone\n" {
		t.Errorf("interfaces of exits: %q", out)
	}
}

// uplinkAway takes the link of the WAN down for a moment.
func (s *guardScene) uplinkAway(t *testing.T) {
	t.Helper()
	s.sh(t, "ip link set wan0 down")
	s.tv.wantSent(t, 100)
	s.sh(t, "ip -batch /data/wan")
}

// exitWorks: what takes the rules and links away under a TV whose exit works.
func (s *guardScene) exitWorks(t *testing.T) {
	s.wantByExit(t, "joined")
	s.flushAndBack(t)
	s.wantByExit(t, "flushed")
	s.removeExits(t)
	s.wantByExit(t, "the exit's interface removed")
	s.uplinkAway(t)
	s.wantByExit(t, "the WAN is up again")
	s.daemon.Kill9()
	s.wantByExit(t, "the daemon is killed")
	s.flush(t)
	s.wantNone(t, "flushed without the daemon")
	s.removeExits(t)
	s.wantNone(t, "the exit's interface removed, too")
	s.daemon.Start()
	s.wantByExit(t, "the daemon is back")
}

// exitOff: the same with an exit that is off, before that is known and afterwards. Here the daemon stays away.
func (s *guardScene) exitOff(t *testing.T) {
	s.exit.Kill()
	s.wantNone(t, "the exit is off")
	s.flushAndBack(t)
	s.wantNone(t, "flushed")
	s.wantBlocked(t)
	s.wantNone(t, "the exit is known to be off")
	s.removeExits(t)
	s.wantNone(t, "its interface removed")
	s.daemon.Kill9()
	s.wantNone(t, "the daemon is killed")
	s.flush(t)
	s.wantNone(t, "flushed without the daemon")
	if out := s.sh(t, "echo no-key=1 >/data/bad; /usr/bin/subnetd run --config /data/bad --state /data/state 2>&1 && exit 1; nft list tables"); !strings.Contains(out, "subnetd_guard") {
		t.Errorf("a daemon that cannot read its configuration loads no kill switch: %s", out)
	}
}

// powerCut: the router boots with nothing but what is on its disk, and without its daemon at first.
func (s *guardScene) powerCut(t *testing.T) {
	s.guest.Reboot()
	sent := s.tv.sent.Load()
	s.sh(t, "sh /data/boot")
	if out := s.sh(t, "nft list tables"); !strings.Contains(out, "subnetd_guard") || strings.Contains(out, "inet subnetd\n") {
		t.Errorf("at boot there are the tables %q", out)
	}
	s.wantNone(t, "without the daemon since boot")
	t.Logf("none of %d datagrams of the TV left since boot", s.tv.sent.Load()-sent)
	s.daemon.Start()
	wantPhase(t, s.daemon, "joined")
	wantKernel(t, s.daemon)
	s.wantNone(t, "the daemon has started")
}

// exitBack: all that a blocked home needs is its exit.
func (s *guardScene) exitBack(t *testing.T) {
	s.exit.Start()
	s.wantByExit(t, "the exit is back")
}

// opened: what looked for leaks would have seen some. Closed again, the TV's flows of before end, too.
func (s *guardScene) opened(t *testing.T) {
	s.must(t, "exit", "off")
	wantOutBy(t, s.tv.Host, s.web, s.home.Router, 10*time.Second)
	netns.Eventually(t, 10*time.Second, "what left by the WAN is counted", func() error {
		if n := counted(t, s.forbid, "leaked"); n < 100 {
			return fmt.Errorf("%d packets", n)
		}
		return nil
	})
	if out := s.sh(t, "nft list tables; conntrack -L 2>/dev/null"); strings.Contains(out, "subnetd_guard") || !strings.Contains(out, "OFFLOAD") {
		t.Errorf("the kill switch is left behind, or no flow is on the fast path:\n%s", out)
	}
	s.must(t, "exit", "use", "parents", s.tv.MAC("eth0"), "router")
	s.allowed = counted(t, s.forbid, "leaked")
	s.wantByExit(t, "closed again")
}

// must runs a command of the daemon that has to succeed.
func (s *guardScene) must(t *testing.T, args ...string) {
	t.Helper()
	if out, err := s.daemon.CLI(args...); err != nil {
		t.Fatalf("subnetd %v: %v\n%s", args, err, out)
	}
}
