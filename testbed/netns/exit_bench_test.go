package netns_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"subnetd/testbed/netns"
)

const exitTurns = 3

var exitMeasures = []figureLine{
	{"TCP to the web, Mbit/s", "more is better"},
	{"TCP from the web, Mbit/s", "more is better"},
	{"UDP to the web, Mbit/s", "more is better"},
	{"UDP from the web, Mbit/s", "more is better"},
	{"TCP to the web, CPU s per GB", "less is better"},
	{"TCP from the web, CPU s per GB", "less is better"},
	{"ping to the web, ms", "less is better"},
	{"loaded RSS, MB", "less is better"},
}

// BenchmarkExit measures exits: the routers of two homes, one with the daemon and one with stock tailscaled, as exits of a
// stock client each, and as their LANs' ways to a stock exit. They take turns, all on one machine and with WireGuard in the
// process; what the kernel's does is BenchmarkGuestRouter's. CPU is that of the router's process.
func BenchmarkExit(b *testing.B) {
	b.Run("offered", func(b *testing.B) {
		for b.Loop() {
			s := openExitBench(b, true)
			var phones [2]*netns.StockPeer
			for i, exit := range []string{"home", "other"} {
				v4, _, err := s.hs.MeshAddrs(exit)
				if err != nil {
					b.Fatal(err)
				}
				phones[i] = s.lab.StockPeer(s.lab.Client("phone-"+exit, netns.Public))
				phones[i].Up(s.hs.URL, s.key, "--exit-node="+v4.String())
			}
			s.compare(b, phones[0].Host, s.ours.Router, phones[1].Host, s.other.Router)
		}
	})
	b.Run("used", func(b *testing.B) {
		for b.Loop() {
			s := openExitBench(b, false)
			far := stockExit(b, s.lab, s.hs, "far", netns.Public)
			v4, _, err := s.hs.MeshAddrs("far")
			if err != nil {
				b.Fatal(err)
			}
			netns.Eventually(b, 30*time.Second, "the exit is known to both", func() error {
				if out, err := s.daemon.CLI("exit", "use", "far", "lan"); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				_, err := s.stock.CLI(b.Context(), "set", "--exit-node="+v4.String(), "--exit-node-allow-lan-access")
				return err
			})
			s.other.Router.NFT(masquerading("tailscale0")) // as OpenWrt's zone for it does
			s.compare(b, s.ours.LAN, far.Host, s.other.LAN, far.Host)
		}
	})
}

// exitBench is two homes and a web server.
type exitBench struct {
	lab         *netns.Lab
	hs          *netns.Headscale
	key         string
	web         *netns.Host
	ours, other *netns.Home
	daemon      *netns.Subnetd
	stock       *netns.StockPeer
}

// openExitBench brings both routers into the mesh. Both offer their LANs, and the internet if offer says so: a stock node that
// does may use no exit.
func openExitBench(b *testing.B, offer bool) *exitBench {
	b.Helper()
	lab := netns.New(b)
	s := &exitBench{lab: lab, hs: lab.Headscale(), web: lab.Far("web"), ours: lab.Home(netns.Public),
		other: lab.NewHome(netns.HomeSpec{Name: "other", NAT: netns.Public,
			LAN4: netip.MustParsePrefix("192.168.78.0/24"), LAN6: netip.MustParsePrefix("fd78:78::/64")})}
	s.key = s.hs.PreAuthKey("ana", netns.KeyOptions{Reusable: true})
	s.daemon = lab.Subnetd(s.ours.Router, daemonConfig+fmt.Sprintf("[exit]\noffer = %t\n", offer))
	s.daemon.UpKey(s.hs, s.key, "home")
	s.stock = lab.StockPeer(s.other.Router)
	s.stock.Up(s.hs.URL, s.key, "--accept-routes", fmt.Sprintf("--advertise-exit-node=%t", offer),
		"--advertise-routes="+s.other.LAN4.String()+","+s.other.LAN6.String())
	for name, routes := range map[string][]netip.Prefix{"home": {s.ours.LAN4, s.ours.LAN6}, "other": {s.other.LAN4, s.other.LAN6}} {
		if offer {
			routes = append(routes, internet4, internet6)
		}
		s.hs.ApproveRoutes(name, routes...)
	}
	serveSource(b, s.web)
	return s
}

// compare lets a host of each router talk to the web server, in turns, once it leaves where it shall.
func (s *exitBench) compare(b *testing.B, ours, oursBy, other, otherBy *netns.Host) {
	b.Helper()
	wantOutBy(b, ours, s.web, oursBy, time.Minute)
	wantOutBy(b, other, s.web, otherBy, time.Minute)
	us, them := relayRounds{}, relayRounds{}
	for range exitTurns {
		us.exit(b, ours, s.web, s.daemon.Pid())
		them.exit(b, other, s.web, s.stock.Pid())
	}
	wantOutBy(b, ours, s.web, oursBy, time.Second) // still
	wantOutBy(b, other, s.web, otherBy, time.Second)
	compare(b, exitMeasures, "subnetd", us.middle(), "tailscaled", them.middle())
}

// exit takes one turn.
func (r relayRounds) exit(b *testing.B, h, web *netns.Host, pid int) {
	b.Helper()
	const gigabytes = iperfSeconds / 8e3 // at 1 Mbit/s
	udp := []string{"-u", "-b", "0", "-l", "1200"}
	for _, t := range []struct {
		name string
		args []string
	}{{"TCP to the web", nil}, {"TCP from the web", []string{"-R"}}, {"UDP to the web", udp}, {"UDP from the web", append(udp, "-R")}} {
		before := netns.CPUSeconds(b, pid)
		rate := iperfOnce(b, h, web, t.args...)
		r.add(t.name+", Mbit/s", rate)
		r.add(t.name+", CPU s per GB", (netns.CPUSeconds(b, pid)-before)/(rate*gigabytes))
	}
	r.add("ping to the web, ms", pingTime(b, h, web.Addr4))
	r.add("loaded RSS, MB", peak(b, pid))
}
