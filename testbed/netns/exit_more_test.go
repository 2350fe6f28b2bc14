package netns_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

// What pbr and mwan3 do on a router with two WANs, as their packages write it (openwrt/packages, net/pbr and net/mwan3): a
// table for each WAN, rules by marks, and chains that put their bits beside those that are there. $GWxy is the gateway of WAN
// x in IPv y, $MACS are those whose traffic the owner sent by the second WAN.
const (
	pbrStart = `for f in 4 6; do
	ip -$f rule add pref 29998 lookup main suppress_prefixlength 1
	ip -$f rule add pref 29999 fwmark 0x20000/0xff0000 lookup 257
	ip -$f rule add pref 30000 fwmark 0x10000/0xff0000 lookup 256
done
ip -4 route add default via $GW04 dev wan0 table 256; ip -4 route add default via $GW14 dev wan1 table 257
ip -6 route add default via $GW06 dev wan0 table 256; ip -6 route add default via $GW16 dev wan1 table 257
nft -f - <<-E
	table inet pbr {
		chain pre { type filter hook prerouting priority mangle;
			ether saddr { $MACS } meta mark set meta mark & 0xff00ffff | 0x20000 return
		}
	}
E`
	pbrStop = `for f in 4 6; do
	for p in 29998 29999 30000; do ip -$f rule del pref $p; done
	ip -$f route flush table 256; ip -$f route flush table 257
done
nft delete table inet pbr`

	mwan3Start = `for f in 4 6; do
	for n in 1 2; do
		ip -$f rule add pref $((1000+n)) iif wan$((n-1)) lookup $n
		ip -$f rule add pref $((2000+n)) fwmark 0x${n}00/0x3f00 lookup $n
		ip -$f rule add pref $((3000+n)) fwmark 0x${n}00/0x3f00 unreachable
	done
	ip -$f rule add pref 2061 fwmark 0x3d00/0x3f00 blackhole
	ip -$f rule add pref 2062 fwmark 0x3e00/0x3f00 unreachable
done
for n in 1 2; do
	ip -4 route add 192.168.77.0/24 dev lan0 table $n; ip -6 route add fd77:77::/64 dev lan0 table $n
done
ip -4 route add default via $GW04 dev wan0 table 1; ip -4 route add default via $GW14 dev wan1 table 2
ip -6 route add default via $GW06 dev wan0 table 1; ip -6 route add default via $GW16 dev wan1 table 2
nft -f - <<-E
	table inet mwan3 {
		chain sort {
			ct mark & 0x3f00 == 0x100 meta mark set meta mark & 0xffffc0ff | 0x100
			ct mark & 0x3f00 == 0x200 meta mark set meta mark & 0xffffc0ff | 0x200
			ct mark & 0x3f00 == 0x3f00 meta mark set meta mark & 0xffffc0ff | 0x3f00
			meta mark & 0x3f00 == 0 ip daddr { 192.168.77.0/24, 203.0.113.0/24 } meta mark set meta mark | 0x3f00
			meta mark & 0x3f00 == 0 ip6 daddr { fd77:77::/64, 2001:db8::/64, fe80::/10, ff00::/8 } meta mark set meta mark | 0x3f00
			meta mark & 0x3f00 == 0 iifname lan0 ether saddr { $MACS } meta mark set meta mark | 0x200
			meta mark & 0x3f00 == 0 meta mark set meta mark | 0x100
			meta mark & 0x3f00 == 0x100 ct mark set ct mark & 0xffffc0ff | 0x100
			meta mark & 0x3f00 == 0x200 ct mark set ct mark & 0xffffc0ff | 0x200
			meta mark & 0x3f00 == 0x3f00 ct mark set ct mark & 0xffffc0ff | 0x3f00
		}
		chain pre { type filter hook prerouting priority mangle; jump sort; }
		chain out { type route hook output priority mangle; jump sort; }
	}
E`
	mwan3Stop = `nft delete table inet mwan3
for f in 4 6; do
	for p in 1001 1002 2001 2002 2061 2062 3001 3002; do ip -$f rule del pref $p; done
	ip -$f route flush table 1; ip -$f route flush table 2
done`
)

// besides is a home with two WANs, whose owner sends tv and laptop by the second with another program, and tv by an exit with
// ours.
type besides struct {
	*exitHome
	second  [2]netip.Addr // of wan1
	control func(t *testing.T, script string)
}

// TestExitsBesideOthers: the rules, marks and tables of pbr, and then of mwan3, send some devices one way and our rows others
// another. Each goes where he shall, in both families: with an exit dead, with our daemon dead, and while the other program
// starts anew. `down` leaves what the others have as it is.
func TestExitsBesideOthers(t *testing.T) {
	lab := netns.New(t)
	s := &besides{exitHome: &exitHome{scene: &scene{hs: lab.Headscale(), home: lab.Home(netns.Public)}, lab: lab}}
	s.second[0], s.second[1] = lab.SecondWAN(s.home)
	s.a, s.b, s.c = lab.Device(s.home, "tv", 51), lab.Device(s.home, "laptop", 52), s.home.LAN
	s.web, s.forbid = lab.Far("web"), newLeaves(lab)
	serveSource(t, s.web)
	serveSource(t, s.forbid.Host)
	env := strings.NewReplacer("$GW04", "203.0.113.1", "$GW06", "2001:db8::1", "$GW14", s.second[0].Prev().String(),
		"$GW16", s.second[1].Prev().String(), "$MACS", s.a.MAC("eth0")+", "+s.b.MAC("eth0"))
	s.control = func(t *testing.T, script string) {
		t.Helper()
		if out, err := s.home.Router.Run(t.Context(), "bash", "-ec", env.Replace(script)); err != nil {
			t.Fatal(err, out)
		}
	}
	s.daemon = lab.Subnetd(s.home.Router, daemonConfig+fmt.Sprintf("[exit]\nrows = [\"%s -> parents\", \"%s -> direct\"]\n", s.a.MAC("eth0"), s.b.MAC("eth0")))
	s.daemon.UpKey(s.hs, s.hs.PreAuthKey("ana", netns.KeyOptions{}), "home")
	s.hs.ApproveRoutes("home", s.home.LAN4, s.home.LAN6)
	s.x = stockExit(t, lab, s.hs, "parents", netns.Public)

	before := s.rules(t, true)
	lab.Run("pbr", func(t *testing.T) {
		s.control(t, pbrStart)
		s.each(t, "51")
	})
	s.control(t, pbrStop)
	if got := s.rules(t, true); got != before {
		t.Fatalf("pbr left rules of its own:\n%s", got)
	}
	lab.Run("mwan3", func(t *testing.T) {
		s.control(t, mwan3Start)
		s.each(t, "12")
		s.control(t, mwan3Stop)
		s.control(t, mwan3Start)
		s.wantEach(t)
	})
	theirs := s.rules(t, true)
	s.must(t, "down")
	netns.Eventually(t, 10*time.Second, "only theirs are there", func() error {
		if got := s.rules(t, false); got != theirs {
			return fmt.Errorf("rules are\n%s\nwant\n%s", got, theirs)
		}
		return nil
	})
	s.wantSeen(t, s.a, s.second)
	s.wantSeen(t, s.b, s.second)
}

// each has all go their ways while things happen. ours begins the priorities of our rules.
func (s *besides) each(t *testing.T, ours string) {
	netns.Eventually(t, 10*time.Second, "our rules are at "+ours, func() error {
		out, err := s.home.Router.Run(t.Context(), "ip", "rule")
		if err == nil && !strings.Contains(out, "\n"+ours) {
			err = fmt.Errorf("they are\n%s", out)
		}
		return err
	})
	s.wantEach(t)
	s.x.Kill()
	s.forbid.wantNone(t, s.a, "its exit is off")
	s.wantSeen(t, s.b, s.second)
	s.daemon.Kill9()
	s.forbid.wantNone(t, s.a, "the daemon is killed")
	s.wantSeen(t, s.b, s.second)
	s.daemon.Start()
	s.x.Start()
	s.wantEach(t)
	out, err := s.daemon.CLI("status")
	if err != nil || strings.Contains(out, "policy rule") {
		t.Errorf("status (%v):\n%s", err, out)
	}
}

func (s *besides) wantEach(t *testing.T) {
	t.Helper()
	wantOutBy(t, s.a, s.web, s.x.Host, 60*time.Second)
	s.wantSeen(t, s.b, s.second)
	wantOutBy(t, s.c, s.web, s.home.Router, 5*time.Second)
	wantOutBy(t, s.home.Router, s.web, s.home.Router, 5*time.Second)
	v4, v6, err := s.hs.MeshAddrs("parents")
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []*netns.Host{s.a, s.b, s.c} {
		wantReach(t, h, v4, v6, s.home.LAN4.Addr().Next(), s.home.LAN6.Addr().Next())
	}
}

// wantSeen waits until the web sees new flows of a host as from these addresses.
func (s *besides) wantSeen(t *testing.T, h *netns.Host, want [2]netip.Addr) {
	t.Helper()
	for i, a := range []netip.Addr{s.web.Addr4, s.web.Addr6} {
		netns.Eventually(t, 10*time.Second, fmt.Sprintf("%s leaves as %v", h.Name, want[i]), func() error {
			got, err := seenFrom(t.Context(), h, a)
			if err == nil && got != want[i] {
				err = fmt.Errorf("the web sees %v", got)
			}
			return err
		})
	}
}

// rules are the policy rules of the router: all, or those of others.
func (s *besides) rules(t *testing.T, others bool) string {
	t.Helper()
	out, err := s.home.Router.Run(t.Context(), "sh", "-c", "ip -4 rule; ip -6 rule")
	if err != nil {
		t.Fatal(err)
	}
	var keep strings.Builder
	for line := range strings.Lines(out) {
		if n, _, _ := strings.Cut(line, ":"); !others || len(n) != 4 || !strings.HasPrefix(n, "12") && !strings.HasPrefix(n, "51") {
			keep.WriteString(line)
		}
	}
	return keep.String()
}
