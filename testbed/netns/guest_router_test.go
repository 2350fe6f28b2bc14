package netns_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"subnetd/testbed/netns"
	"subnetd/testbed/qemu"
)

// long says that the tests may take the time that the text gives them, not only what fits into make test.
func long() bool { return os.Getenv("SUBNETD_LONG") != "" }

// withEngine is a configuration with another engine.
func withEngine(toml, engine string) string {
	return strings.Replace(toml, `engine = "userspace"`, fmt.Sprintf("engine = %q", engine), 1)
}

// guestScene is the usual cast with a guest as the router, and a stock phone behind every kind of NAT.
type guestScene struct {
	scene
	lab    *netns.Lab
	guest  *netns.Guest
	key    string // Headscale's, for all
	phones map[netns.NAT]*netns.StockPeer
}

// bootScene boots a guest as the home's router; nobody has joined yet. more is how many cards others in the guest need.
func bootScene(t *testing.T, arch qemu.Arch, memory, more int, phones ...netns.NAT) *guestScene {
	t.Helper()
	s := &guestScene{lab: netns.New(t), phones: map[netns.NAT]*netns.StockPeer{}}
	s.guest = s.lab.Guest(netns.GuestSpec{Arch: arch, MemoryMB: memory, Cards: 2 + more})
	s.hs, s.home = s.lab.Headscale(), s.lab.GuestHome(s.guest, netns.Public)
	s.key = s.hs.PreAuthKey("ana", netns.KeyOptions{Reusable: true})
	for _, kind := range phones {
		s.phones[kind] = s.lab.StockPeer(s.lab.Client("phone-"+string(kind), kind))
	}
	s.phone = s.phones[netns.Easy]
	return s
}

// begin starts the daemon with an engine and brings everybody into the mesh.
func (s *guestScene) begin(t *testing.T, engine string) {
	t.Helper()
	s.daemon = s.lab.SubnetdIdle(s.home.Router, withEngine(daemonConfig, engine))
	s.join(t)
	for _, p := range s.phones {
		if p != s.phone {
			p.Up(s.hs.URL, s.key, "--accept-routes")
		}
	}
}

// with is the scene with another phone.
func (s *guestScene) with(kind netns.NAT) *scene {
	other := s.scene
	other.phone = s.phones[kind]
	return &other
}

// TestGuestRouter: the kernel engine on an emulated amd64 router, among stock clients.
func TestGuestRouter(t *testing.T) {
	s := bootScene(t, qemu.AMD64, 512, 8, netns.Kinds()...)
	payload, across := int64(20_000_000), int64(5_000_000)
	if long() {
		payload, across = 200_000_000, 20_000_000
	}
	if !s.lab.Run("EnginesAlike", func(t *testing.T) { wantEnginesAlike(t, s) }) {
		t.FailNow() // nobody has joined, or there is no kernel engine
	}
	run := func(name string, want func(*testing.T)) {
		s.lab.Run(name, func(t *testing.T) {
			wantKernel(t, s.daemon)
			want(t)
		})
	}
	run("OpenLAN", func(t *testing.T) { wantOpenLAN(t, &s.scene, payload) })
	if long() { // a slower router shows it each time
		run("NoPacketWork", func(t *testing.T) { wantNoPacketWork(t, &s.scene) })
	}
	run("Policy", func(t *testing.T) { wantPolicy(t, &s.scene) })
	h := joinGuestHomes(t, s) // from here on three routers share one slow core
	run("IPv6Underlay", func(t *testing.T) { wantIPv6Underlay(t, s.with(netns.Public)) })
	run("OpenLAN6", func(t *testing.T) { wantOpenLAN6(t, s.with(netns.Public), 5_000_000) })
	run("RestartUnnoticed", func(t *testing.T) { wantRestartUnnoticed(t, s) })
	run("NoNeedOfCoordinator", func(t *testing.T) {
		wantNoNeedOfCoordinator(t, &s.scene)
		startAgain(t, s.hs, s.daemon, h.northD, h.southD)
	})
	run("HomesDirectDies", func(t *testing.T) { wantHomesRelayWhenCut(t, h) })
	run("NATGrid", func(t *testing.T) { wantGuestGrid(t, s) })
	run("OutlivesDaemon", func(t *testing.T) {
		var steady func()
		wantOutlivesDaemon(t, h, func() {
			run("PeerRebinds", func(t *testing.T) { wantPeerRebinds(t, &s.scene) })
			run("DirectDies", func(t *testing.T) { wantRelayWhenCut(t, &s.scene) })
			steady = watchSteady(t, s)
		})
		steady()
	})
	run("TwoHomes", func(t *testing.T) {
		wantTwoHomes(t, h, across)
		startAgain(t, s.hs, s.daemon, h.northD, h.southD)
	})
	run("WANReplaced", func(t *testing.T) { wantWANReplaced(t, &s.scene, payload) })
}

// startAgain starts a Headscale that was killed, and waits until it has its routers back: until then it takes their routes from
// everybody.
func startAgain(t *testing.T, hs *netns.Headscale, routers ...*netns.Subnetd) {
	t.Helper()
	hs.Start()
	for _, d := range routers {
		netns.Eventually(t, 60*time.Second, d.Host.Name+" is back", func() error {
			n, err := hs.Node(d.Host.Name)
			if err != nil || !n.Online {
				return fmt.Errorf("online %v, %v", n.Online, err)
			}
			m, err := d.StatusJSON()
			if err == nil && m["error"] != nil {
				err = fmt.Errorf("%v", m["error"])
			}
			return err
		})
	}
}

// wantGuestGrid compares the guest's router and three hosts in the guest, behind all kinds of NAT, with stock tailscaled.
func wantGuestGrid(t *testing.T, s *guestScene) {
	t.Helper()
	ours := map[netns.NAT]netip.Addr{netns.Public: meshAddr(t, s.hs, "home")}
	for _, kind := range netns.Kinds() {
		if kind == netns.Public {
			continue
		}
		name := "ours-" + string(kind)
		h := s.guest.Inner(name)
		s.lab.ClientAt(h, kind)
		d := s.lab.Subnetd(h, "[lan]\nexpose = \"none\"\n[tunnel]\nengine = \"kernel\"\n")
		defer func() { _ = d.Stop() }()
		d.UpKey(s.hs, s.key, name)
		wantKernel(t, d)
		ours[kind] = meshAddr(t, s.hs, name)
	}
	wantAsGood(t, s.phones, ours, joinStockTargets(t, s.lab, s.hs, s.key))
}

// joinGuestHomes brings two more homes into the mesh, whose routers are namespaces of the guest.
func joinGuestHomes(t *testing.T, s *guestScene) *homes {
	t.Helper()
	h := &homes{hs: s.hs, north: s.lab.HomeAt(s.guest.Inner("north"), north), south: s.lab.HomeAt(s.guest.Inner("south"), south)}
	h.join(s.lab, withEngine(siteConfig, "kernel"))
	wantKernel(t, h.northD)
	wantKernel(t, h.southD)
	wantHomesDirect(t, h) // from now on their keys age
	return h
}

// watchSteady lets datagrams run between phone and LAN, with the direct path and the relay alive, until the returned
// function is called: it wants the endpoint never to have changed, and waits for ten minutes of that if there is time.
func watchSteady(t *testing.T, s *guestScene) (end func()) {
	t.Helper()
	wantDirect(t, &s.scene)
	begin := time.Now()
	down, up := s.streams(t)
	both := watchEndpoint(t, s.home.Router, wgKey(t, s.hs, s.phone.Host.Name), s.daemon, s.phone.Host.Name)
	return func() {
		if long() {
			time.Sleep(10*time.Minute - time.Since(begin))
		}
		both.wantSteady(t)
		for _, st := range []*stream{down, up} {
			sent, holes := st.end()
			t.Logf("%s: %d datagrams sent, missing %s", st.what, sent, tell(holes))
		}
	}
}

// cutFrom makes a host, or a NAT box for what is behind it, drop the UDP of IPv4 from and to an address, until mend.
func cutFrom(box *netns.Host, addr netip.Addr) {
	rules := fmt.Sprintf("meta l4proto udp ip daddr %[1]s drop\n\tmeta l4proto udp ip saddr %[1]s drop", addr)
	box.NFT(fmt.Sprintf(`table ip cut {
	chain forward { type filter hook forward priority -10; %[1]s
	}
	chain in { type filter hook input priority -10; %[1]s
	}
	chain out { type filter hook output priority -10; %[1]s
	}
}
`, rules))
}

func mend(box *netns.Host) { box.NFT("delete table ip cut") }

// wantIPv6Underlay: when IPv4 carries no UDP any more, the path is IPv6. Which of two good ones is the nearer is a matter of
// less than a millisecond, and an emulated router on a busy machine answers now and then ten later: that IPv6 is preferred is
// for namespaces to show.
func wantIPv6Underlay(t *testing.T, s *scene) {
	t.Helper()
	wantReach(t, s.phone.Host, s.home.LAN.Addr4, s.home.LAN.Addr6)
	cutFrom(s.phone.Host, s.home.Router.Addr4)
	defer mend(s.phone.Host)
	wantIPv6Path(t, s)
}

// wantRelayWhenCut: the direct path to the phone dies without a word; what the home sends goes by the relay in less than
// three seconds, and directly again once UDP passes.
func wantRelayWhenCut(t *testing.T, s *scene) {
	t.Helper()
	wantDirect(t, s)
	box, key := s.phone.Host.Behind(), wgKey(t, s.hs, s.phone.Host.Name)
	down, up := s.streams(t)
	time.Sleep(2 * time.Second) // of traffic on the direct path
	cutFrom(box, s.home.Router.Addr4)
	cut := time.Now()
	netns.Eventually(t, 10*time.Second, "the kernel sends to the relay", func() error {
		if p := kernelPeer(t, s.home.Router, key); !p.isLoopback() {
			return errors.New(p.endpoint)
		}
		return nil
	})
	t.Logf("the kernel sends to the relay %v after the cut", time.Since(cut).Round(time.Millisecond))
	time.Sleep(max(0, 12*time.Second-time.Since(cut))) // until the stock side has noticed too
	mend(box)
	mended := time.Now()
	wantDirect(t, s)
	t.Logf("direct again %v after UDP passes", time.Since(mended).Round(time.Millisecond))
	wantShort(t, down)
	_, holes := up.end()
	t.Logf("%s (stock decides): %s", up.what, tell(holes))
}

// streams starts one from the LAN host to the phone, and one back.
func (s *scene) streams(t *testing.T) (down, up *stream) {
	t.Helper()
	v4, _, err := s.hs.MeshAddrs(s.phone.Host.Name)
	if err != nil {
		t.Fatal(err)
	}
	return startStream(t, s.home.LAN, s.phone.Host, v4, 9001), startStream(t, s.phone.Host, s.home.LAN, s.home.LAN.Addr4, 9000)
}

// wantShort ends a stream and wants no hole of three seconds or more in it.
func wantShort(t *testing.T, s *stream) {
	t.Helper()
	sent, holes := s.end()
	t.Logf("%s: %d datagrams sent, silent for %v at most: %s", s.what, sent, longest(holes).Round(time.Millisecond), tell(holes))
	if longest(holes) >= 3*time.Second {
		t.Errorf("%s: nothing came for %v", s.what, longest(holes))
	}
}

// wantHomesDirect waits until the homes reach each other, and both kernels send straight to the other.
func wantHomesDirect(t *testing.T, h *homes) {
	t.Helper()
	wantApproved(t, h.northD)
	wantApproved(t, h.southD)
	north, south := wgKey(t, h.hs, "north"), wgKey(t, h.hs, "south")
	netns.Eventually(t, 60*time.Second, "the homes are direct", func() error {
		if err := h.north.LAN.Ping(t.Context(), h.south.LAN.Addr4); err != nil {
			return err
		}
		for _, p := range []wgPeer{kernelPeer(t, h.north.Router, south), kernelPeer(t, h.south.Router, north)} {
			if p.isLoopback() || p.handshake == 0 {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
}

// wantHomesRelayWhenCut is wantRelayWhenCut between two of ours: both directions are short.
func wantHomesRelayWhenCut(t *testing.T, h *homes) {
	t.Helper()
	wantHomesDirect(t, h)
	there, back := h.streams(t)
	time.Sleep(2 * time.Second) // of traffic on the direct path
	box := h.north.Router.Behind()
	cutFrom(box, h.south.Router.Behind().Addr4)
	time.Sleep(8 * time.Second) // of traffic on the relay
	mend(box)
	mended := time.Now()
	wantHomesDirect(t, h)
	t.Logf("direct again %v after UDP passes", time.Since(mended).Round(time.Millisecond))
	time.Sleep(time.Second) // of traffic on it
	wantShort(t, there)
	wantShort(t, back)
}

// streams starts one from north's LAN to south's, and one back.
func (h *homes) streams(t *testing.T) (there, back *stream) {
	t.Helper()
	return startStream(t, h.north.LAN, h.south.LAN, h.south.LAN.Addr4, 9000), startStream(t, h.south.LAN, h.north.LAN, h.north.LAN.Addr4, 9000)
}

// wantPeerRebinds: the phone's NAT forgets its mapping and takes another port; the flow goes on, directly and to the new
// port, and stays there.
func wantPeerRebinds(t *testing.T, s *scene) {
	t.Helper()
	wantDirect(t, s)
	box, key := s.phone.Host.Behind(), wgKey(t, s.hs, s.phone.Host.Name)
	before := kernelPeer(t, s.home.Router, key).endpoint
	conn := dialEcho(t, s)
	down, up := s.streams(t)
	time.Sleep(time.Second) // of traffic by the old port
	box.NFT(`flush chain inet nat post
		add rule inet nat post oifname "wan" meta l4proto udp masquerade to :50000-50999
		add rule inet nat post oifname "wan" masquerade`)
	if out, err := box.Run(t.Context(), "conntrack", "-D", "-p", "udp"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	rebound := time.Now()
	moved := func() error {
		p := kernelPeer(t, s.home.Router, key)
		if ap, err := netip.ParseAddrPort(p.endpoint); err != nil || ap.Port() < 50000 || ap.Port() > 50999 || ap.Addr() != box.Addr4 {
			return fmt.Errorf("the kernel sends to %s", p.endpoint)
		}
		return nil
	}
	netns.Eventually(t, 10*time.Second, "the kernel follows the phone", moved)
	t.Logf("the kernel sends to the new port %v after the NAT rebound (was %s)", time.Since(rebound).Round(time.Millisecond), before)
	if err := echoOnce(conn, "by another port"); err != nil {
		t.Errorf("a flow broke: %v", err)
	}
	for time.Since(rebound) < 12*time.Second { // past the 5 s in which it might be set back
		if err := moved(); err != nil {
			t.Errorf("%v after the NAT rebound: %v", time.Since(rebound).Round(time.Millisecond), err)
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	if p, err := peerStatus(s.daemon, s.phone.Host.Name); err != nil || p["path"] != "direct" || !strings.Contains(fmt.Sprint(p["endpoint"]), ":50") {
		t.Errorf("status says %v %v (%v)", p["path"], p["endpoint"], err)
	}
	for _, st := range []*stream{down, up} {
		sent, holes := st.end()
		t.Logf("%s: %d datagrams sent, missing %s", st.what, sent, tell(holes))
		if longest(holes) > 3*time.Second {
			t.Errorf("%s: nothing came for %v", st.what, longest(holes))
		}
	}
}
